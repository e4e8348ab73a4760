//! Counts what each warp asks of memory, without holding its lanes in step: every lane logs its accesses, and when the warp
//! next meets, the n-th access of each lane from the same line counts as one request.

use std::ops::Range;

use crate::report::Report;
use crate::site::Site;

/// Where a logged access went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    GlobalLoad,
    GlobalStore,
    Shared,
}

/// The logs of all lanes; empty and free of cost unless enabled.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    pub enabled: bool,
}

impl Requests {
    #[inline(always)]
    pub fn log(&mut self, _thread: usize, _kind: Kind, _address: u64, _bytes: usize, _site: Site) {}
    pub fn flush(&mut self, _threads: Range<usize>, _report: &mut Report) {}
}
