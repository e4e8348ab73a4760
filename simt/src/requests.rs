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

/// What makes accesses of several lanes one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Instruction {
    site: Site,
    kind: Kind,
    bytes: u8,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    address: u64,
    instruction: Instruction,
}

/// The logs of all lanes; empty and all but free of cost unless enabled.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    pub enabled: bool,
    logs: Vec<Vec<Entry>>,
    /// Scratch: an instruction, how often the lane had executed it, the lane, the address.
    keyed: Vec<(Instruction, u32, u8, u64)>,
}

impl Requests {
    #[inline(always)]
    pub fn log(&mut self, thread: usize, kind: Kind, address: u64, bytes: usize, site: Site) {
        if self.enabled {
            self.push(thread, Entry { address, instruction: Instruction { site, kind, bytes: bytes as u8 } });
        }
    }

    #[cold]
    fn push(&mut self, thread: usize, entry: Entry) {
        if self.logs.len() <= thread {
            self.logs.resize_with(thread + 1, Vec::new);
        }
        self.logs[thread].push(entry);
    }

    /// Forgets what a launch that was stopped left behind.
    pub fn clear(&mut self) {
        self.logs.iter_mut().for_each(Vec::clear);
    }

    /// Counts what the lanes of a warp have logged since they last met.
    pub fn flush(&mut self, threads: Range<usize>, report: &mut Report) {
        if !self.enabled {
            return;
        }
        let end = threads.end.min(self.logs.len());
        let logs = &mut self.logs[threads.start.min(end)..end];
        self.keyed.clear();
        for (lane, log) in logs.iter_mut().enumerate() {
            let first = self.keyed.len();
            self.keyed.extend(log.drain(..).map(|entry| (entry.instruction, 0, lane as u8, entry.address)));
            // Stable, so that the executions of an instruction keep their order and can be numbered.
            self.keyed[first..].sort_by_key(|key| key.0);
            for i in first + 1..self.keyed.len() {
                if self.keyed[i].0 == self.keyed[i - 1].0 {
                    self.keyed[i].1 = self.keyed[i - 1].1 + 1;
                }
            }
        }
        self.keyed.sort_unstable();
        for request in self.keyed.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
            let Instruction { kind, bytes, .. } = request[0].0;
            let accesses = request.iter().map(|key| (key.2, key.3));
            match kind {
                Kind::GlobalLoad => {
                    report.global_load_requests += 1;
                    report.global_load_sectors += sectors(accesses);
                }
                Kind::GlobalStore => {
                    report.global_store_requests += 1;
                    report.global_store_sectors += sectors(accesses);
                }
                Kind::Shared => {
                    report.shared_requests += 1;
                    report.bank_conflicts += bank_conflicts(accesses, bytes);
                }
            }
        }
    }
}

/// Distinct 32-byte sectors. An access lies in one, being aligned.
fn sectors(accesses: impl Iterator<Item = (u8, u64)>) -> u64 {
    let mut touched = [0; 32];
    let mut count = 0;
    for (_, address) in accesses {
        touched[count] = address / 32;
        count += 1;
    }
    let touched = &mut touched[..count];
    touched.sort_unstable();
    touched.chunk_by(|a, b| a == b).count() as u64
}

/// Passes through the banks (32, of 4 bytes) beyond one for each group of lanes that is served at once: a warp for accesses up
/// to 4 bytes, half of one for 8, a quarter for 16. Lanes that want the same word share it.
fn bank_conflicts(accesses: impl Iterator<Item = (u8, u64)>, bytes: u8) -> u64 {
    let words_each = u64::from(bytes.div_ceil(4));
    let lanes_at_once = 32 / words_each;
    // Each word with the group that wants it in front, sorted by group, then bank.
    let mut words = [(0, 0, 0); 128];
    let mut count = 0;
    for (lane, address) in accesses {
        for word in address / 4..address / 4 + words_each {
            words[count] = (u64::from(lane) / lanes_at_once, word % 32, word);
            count += 1;
        }
    }
    let words = &mut words[..count];
    words.sort_unstable();
    let mut conflicts = 0;
    for group in words.chunk_by(|a, b| a.0 == b.0) {
        let passes = group
            .chunk_by(|a, b| a.1 == b.1)
            .map(|bank| bank.chunk_by(|a, b| a.2 == b.2).count())
            .max()
            .unwrap_or(1);
        conflicts += passes as u64 - 1;
    }
    conflicts
}
