//! Accumulators of a warpgroup's products: what their registers hold while a product is on its way, and how a use of them is
//! told.

use crate::context::Context;
use crate::fault::{Fault, FaultKind};
use crate::site::Site;

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for i32 {}
}

/// What `wgmma` accumulates in: f32 or i32.
pub trait Accumulator: Copy + sealed::Sealed {
    #[doc(hidden)]
    const INTEGER: bool;
}

impl Accumulator for f32 {
    const INTEGER: bool = false;
}

impl Accumulator for i32 {
    const INTEGER: bool = true;
}

/// What a register of an accumulator holds while the product is on its way: of a float a signalling NaN that names both.
/// Arithmetic makes it a quiet one, which gives the use away. Of an integer it is the same bits, a number about 2.14e9.
pub(crate) fn poison(accumulator: u32, register: usize) -> u32 {
    0x7fa0_0000 | accumulator << 7 | register as u32
}
/// Accumulators in flight are told apart by this many names.
pub(crate) const NAMES: u32 = 1 << 13;

/// Whether a float is or was made of poison.
fn is_poisoned(bits: u32) -> bool {
    bits & 0x7fb0_0000 == 0x7fa0_0000
}

/// What a lane's registers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Registers {
    Values,
    /// All of an accumulator in flight, untouched.
    Pending(u32),
    /// Some use was made of one.
    Used,
}

/// A warp's part of an accumulator in flight.
#[derive(Debug)]
pub(crate) struct Pending {
    pub name: u32,
    pub integer: bool,
    /// The group of the last product that adds to it, once committed.
    pub group: Option<u32>,
    /// Registers of all lanes, lane by lane.
    pub values: Vec<u32>,
    pub site: Site,
}

/// A warp's matrix products in flight.
#[derive(Debug, Default)]
pub(crate) struct WarpProducts {
    /// Whether a fence has followed the last wait.
    pub fenced: bool,
    pub pending: Vec<Pending>,
    /// The clock of the warpgroup's agent after the last product, and after the last of each committed group.
    pub last: u32,
    pub groups: Vec<u32>,
    /// Groups waited for.
    pub done: u32,
}

impl WarpProducts {
    fn classify(&self, d: &[u32], integer: bool) -> Registers {
        let Some(&first) = d.first() else { return Registers::Values };
        let name = first >> 7 & (NAMES - 1);
        if d.iter().enumerate().all(|(register, &bits)| bits == poison(name, register)) {
            return Registers::Pending(name);
        }
        let used = match integer {
            false => d.iter().any(|&bits| is_poisoned(bits)),
            // Any bits can be a number: only those that just now stand for an accumulator give a use away.
            true => self.pending.iter().filter(|pending| pending.integer).any(|pending| {
                d.iter().enumerate().any(|(register, &bits)| bits == poison(pending.name, register))
            }),
        };
        if used { Registers::Used } else { Registers::Values }
    }

    /// Whether a product into so many integers a warp has been waited for and not been given back.
    pub fn awaits_integers(&self, count: usize) -> bool {
        let complete = |pending: &Pending| pending.group.is_some_and(|group| group < self.done);
        self.pending.iter().any(|p| p.integer && p.values.len() == count && complete(p))
    }

    /// What the warp, at its end, should have waited for: what is on its way, and integers that nobody took, whose uses there
    /// are no NaNs to tell.
    pub fn abandoned(&self) -> Option<&Pending> {
        let running = |pending: &&Pending| pending.group.is_none_or(|group| group >= self.done);
        self.pending.iter().find(running).or_else(|| self.pending.iter().find(|pending| pending.integer))
    }
}

impl Context {
    /// Which accumulator in flight the registers are that a warp's lanes give; none if they are values.
    pub fn pending_registers(&self, warp: usize, integer: bool) -> Result<Option<usize>, Fault> {
        let first = 32 * warp;
        let products = &self.products[warp];
        let registers = products.classify(self.lanes[first].accumulators(), integer);
        let name = match registers {
            Registers::Pending(name) => Some(name),
            _ => None,
        };
        let found = products.pending.iter().position(|pending| Some(pending.name) == name);
        for thread in first..first + 32 {
            let d = self.lanes[thread].accumulators();
            let own = products.classify(d, integer);
            let gone = found.is_none() && name.is_some();
            let other = found.is_some_and(|i| {
                let pending = &products.pending[i];
                pending.values.len() != 32 * d.len() || pending.integer != integer
            });
            if own != registers || own == Registers::Used || gone || other {
                return Err(self.used_accumulators(thread));
            }
        }
        Ok(found)
    }

    /// The fault of a lane whose accumulators aren't what was left in its registers.
    #[cold]
    pub fn used_accumulators(&self, thread: usize) -> Fault {
        let detail = "accumulators of a wgmma that was still on its way were used, copied or taken apart";
        self.fault(FaultKind::InFlight, Some(self.lane_place(thread)), None, detail.to_owned())
    }
}
