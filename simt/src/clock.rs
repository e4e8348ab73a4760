//! Who has seen whose accesses: one logical clock a warp, one vector clock a warp.
//!
//! A warp's clock advances whenever its lanes are ordered among themselves (`bar.warp.sync`, shuffles, votes, barriers); a
//! barrier also merges the vector clocks of the warps that meet there. An access is stamped with its lane and the clock of its
//! warp; it happened before another exactly if the other's warp has seen that clock. Blocks of one launch never see each other.

/// Bits of a stamp: 28 of block, 10 of thread, 1 for atomics, 25 of clock. 0 is older than everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Stamp(u64);

const THREAD_SHIFT: u32 = 26;
const BLOCK_SHIFT: u32 = 36;
const ATOMIC: u64 = 1 << 25;
const CLOCK_MASK: u64 = ATOMIC - 1;
/// The last block serial that fits a stamp.
pub(crate) const LAST_SERIAL: u64 = (1 << 28) - 1;
/// The floor of memory that no other block sees: whatever another block did to it is over.
pub(crate) const OWN_MEMORY_FLOOR: u64 = u64::MAX;

impl Stamp {
    #[inline(always)]
    pub fn atomic(self) -> Self {
        Self(self.0 | ATOMIC)
    }
    #[inline(always)]
    pub fn is_atomic(self) -> bool {
        self.0 & ATOMIC != 0
    }
    #[inline(always)]
    pub fn thread(self) -> u32 {
        (self.0 >> THREAD_SHIFT) as u32 & 0x3ff
    }
    /// Serial number of the block over the life of the device.
    #[inline(always)]
    pub fn block(self) -> u64 {
        self.0 >> BLOCK_SHIFT
    }
    #[inline(always)]
    fn clock(self) -> u32 {
        (self.0 & CLOCK_MASK) as u32
    }
}

/// The clocks of the running block, as the running lane sees them.
#[derive(Debug)]
pub(crate) struct Clocks {
    /// Off: no access is recorded or checked.
    pub enabled: bool,
    /// The running lane's stamp.
    pub now: Stamp,
    /// Serial of the launch's first block: what is older is ordered before the launch.
    pub launch_floor: u64,
    block: u64,
    own: [u32; 32],
    seen: Box<[[u32; 32]; 32]>,
}

impl Clocks {
    pub fn new() -> Self {
        Self {
            enabled: true,
            now: Stamp(0),
            launch_floor: 0,
            block: 0,
            own: [1; 32],
            seen: Box::new([[0; 32]; 32]),
        }
    }

    /// Begins a block.
    pub fn begin(&mut self, serial: u64) {
        self.block = serial;
        self.own = [1; 32];
        *self.seen = [[0; 32]; 32];
    }

    /// The stamp of what `thread` does now.
    #[inline(always)]
    pub fn stamp(&self, thread: usize) -> Stamp {
        let clock = u64::from(self.own[thread >> 5]);
        Stamp(self.block << BLOCK_SHIFT | (thread as u64) << THREAD_SHIFT | clock)
    }

    /// Whether what `past` stamps happened before what the running lane does. `floor` is the serial below which blocks are
    /// ordered before this one.
    #[inline(always)]
    pub fn ordered(&self, past: Stamp, floor: u64) -> bool {
        if past.block() != self.block {
            return past.block() < floor;
        }
        let (them, me) = (past.thread(), self.now.thread());
        if them == me {
            return true;
        }
        let (them, me) = ((them >> 5) as usize, (me >> 5) as usize);
        if them == me { past.clock() < self.own[me] } else { past.clock() <= self.seen[me][them] }
    }

    /// Orders the lanes of a warp among themselves.
    pub fn sync_warp(&mut self, warp: usize) {
        self.own[warp] += 1;
        if u64::from(self.own[warp]) >= CLOCK_MASK {
            // 33 million synchronisations within one block: stop checking rather than report what isn't so.
            self.enabled = false;
        }
    }

    /// Orders all lanes of `warps` among themselves.
    pub fn sync_warps(&mut self, warps: &[usize]) {
        let mut joined = [0; 32];
        for &warp in warps {
            for (joined, seen) in joined.iter_mut().zip(&self.seen[warp]) {
                *joined = (*joined).max(*seen);
            }
        }
        for &warp in warps {
            joined[warp] = self.own[warp];
        }
        for &warp in warps {
            self.seen[warp] = joined;
            self.sync_warp(warp);
        }
    }
}
