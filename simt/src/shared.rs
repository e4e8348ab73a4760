//! The shared memory of a block, or of the blocks of a cluster.

use crate::clock::{Clocks, OWN_MEMORY_FLOOR, Stamp};
use crate::element::Element;
use crate::global::byte_mask;
use crate::problem::Problem;
use crate::shadow::{Access, Actor, Shadow};
use crate::site::Site;

/// Where the dynamic shared memory begins. Not 0, so that an offset whose base was forgotten is found.
pub(crate) const BASE: u32 = 1024;
const STRETCH: usize = 1024;
/// Reads of a cell that are remembered: more than there are warpgroups, which read a tile each through an agent of its own.
const READS: usize = 4;

/// Where `mapa` puts the block's rank, plus one: addresses of the shared memory of another block of the cluster.
pub(crate) const RANK_SHIFT: u32 = 24;

/// What keeps 16 bytes from being touched: 0 is nothing, 1 + a thread of the block its `cp.async`, the following two an mbarrier in the
/// lower or upper half (both: their sum), and from [`FIRST_FLIGHT`] on a bulk copy.
pub(crate) type Busy = u16;
const MBARRIER: [Busy; 2] = [1025, 1026];
const MBARRIERS: Busy = MBARRIER[0] + MBARRIER[1];
pub(crate) const FIRST_FLIGHT: Busy = 4096;

#[derive(Debug, Clone, Copy, Default)]
struct Sixteen {
    /// One bit a byte: written.
    init: u16,
    busy: Busy,
    /// 1 + the thread that last wrote through the generic proxy; 0 if the last write was an asynchronous copy's.
    generic: u16,
    /// How many proxy fences that thread had executed by then, modulo 2^16.
    fences: u16,
}

#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// Of a block.
    bytes: usize,
    /// From one block's memory to the next one's.
    stride: usize,
    /// Whose memory addresses mean, and where it begins.
    rank: usize,
    window: usize,
    blocks: usize,
    data: Vec<u8>,
    state: Vec<Sixteen>,
    shadow: Vec<Shadow<READS>>,
    /// Proxy fences executed by each thread.
    fences: Vec<u16>,
}

/// Sixteen bytes of a copy: the data and one bit a byte that was written.
pub(crate) type Piece = ([u8; 16], u16);

impl Shared {
    /// Memory for the blocks of a cluster, of `threads` threads in all: as large as asked for, nothing written.
    pub fn begin(&mut self, bytes: usize, threads: usize, blocks: usize) {
        self.bytes = bytes;
        self.stride = bytes.next_multiple_of(STRETCH);
        self.blocks = blocks;
        self.enter(0);
        let backed = self.stride * blocks;
        self.data.resize(backed, 0);
        self.shadow.resize_with(backed / STRETCH, Shadow::default);
        self.state.clear();
        self.state.resize(backed / 16, Sixteen::default());
        self.fences.clear();
        self.fences.resize(threads, 0);
    }

    pub fn clear_shadow(&mut self) {
        self.shadow.iter_mut().for_each(Shadow::clear);
    }

    /// Makes addresses mean the memory of a block of the cluster.
    #[inline(always)]
    pub fn enter(&mut self, rank: usize) {
        (self.rank, self.window) = (rank, rank * self.stride);
    }

    /// Whose memory addresses mean.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Bounds and alignment; the offset.
    #[inline(always)]
    fn place(&self, address: u32, bytes: usize) -> Result<usize, Problem> {
        if address as usize & (bytes - 1) != 0 {
            return Err(Problem::Misaligned);
        }
        let offset = address.wrapping_sub(BASE) as usize;
        if offset >= self.bytes || self.bytes - offset < bytes {
            return Err(Problem::OutOfBounds);
        }
        Ok(self.window + offset)
    }

    /// Bounds, alignment, copies in flight and mbarriers; the offset.
    #[inline(always)]
    fn locate(&self, address: u32, bytes: usize) -> Result<usize, Problem> {
        let offset = self.place(address, bytes)?;
        match self.state[offset >> 4].busy {
            0 => Ok(offset),
            busy => self.busy(offset, bytes, busy),
        }
    }

    #[cold]
    fn busy(&self, offset: usize, bytes: usize, busy: Busy) -> Result<usize, Problem> {
        if busy == MBARRIER[0] || busy == MBARRIER[1] {
            let half = usize::from(busy - MBARRIER[0]);
            return match bytes < 16 && offset >> 3 & 1 != half {
                true => Ok(offset),
                false => Err(Problem::Mbarrier),
            };
        }
        if busy == MBARRIERS { Err(Problem::Mbarrier) } else { Err(Problem::InFlight(busy)) }
    }

    #[inline(always)]
    fn record(
        &mut self,
        offset: usize,
        bytes: usize,
        access: Access,
        clocks: &Clocks,
        site: Site,
    ) -> Result<(), Problem> {
        self.record_as(offset, bytes, access, clocks, site, clocks.now)
    }

    #[inline(always)]
    fn record_as(
        &mut self,
        offset: usize,
        bytes: usize,
        access: Access,
        clocks: &Clocks,
        site: Site,
        stamp: Stamp,
    ) -> Result<(), Problem> {
        if !clocks.enabled {
            return Ok(());
        }
        let actor = Actor { clocks, floor: OWN_MEMORY_FLOOR, site, stamp };
        let shadow = &mut self.shadow[offset / STRETCH];
        shadow.access(STRETCH, offset % STRETCH, bytes, access, actor).map_err(Problem::Race)
    }

    /// Remembers who wrote through the generic proxy.
    #[inline(always)]
    fn written(&mut self, offset: usize, clocks: &Clocks) {
        let thread = clocks.now.thread();
        let fences = self.fences[thread as usize];
        let state = &mut self.state[offset >> 4];
        (state.generic, state.fences) = (thread as u16 + 1, fences);
    }

    #[inline(always)]
    pub fn load<T: Element>(&mut self, address: u32, clocks: &Clocks, site: Site) -> Result<T, Problem> {
        let offset = self.locate(address, T::BYTES)?;
        self.record(offset, T::BYTES, Access::Read, clocks, site)?;
        let mask = byte_mask(offset, T::BYTES);
        if self.state[offset >> 4].init & mask != mask {
            return Err(Problem::Uninitialised);
        }
        Ok(T::from_memory(&self.data[offset..offset + T::BYTES]))
    }

    #[inline(always)]
    pub fn store<T: Element>(
        &mut self,
        address: u32,
        value: T,
        clocks: &Clocks,
        site: Site,
    ) -> Result<(), Problem> {
        let offset = self.locate(address, T::BYTES)?;
        self.record(offset, T::BYTES, Access::Write, clocks, site)?;
        self.state[offset >> 4].init |= byte_mask(offset, T::BYTES);
        self.written(offset, clocks);
        value.to_memory(&mut self.data[offset..offset + T::BYTES]);
        Ok(())
    }

    /// An atomic read and write; the value before.
    pub fn update<T: Element>(
        &mut self,
        address: u32,
        change: impl FnOnce(T) -> T,
        clocks: &Clocks,
        site: Site,
    ) -> Result<T, Problem> {
        let offset = self.locate(address, T::BYTES)?;
        self.record(offset, T::BYTES, Access::Atomic, clocks, site)?;
        let mask = byte_mask(offset, T::BYTES);
        if self.state[offset >> 4].init & mask != mask {
            return Err(Problem::Uninitialised);
        }
        self.written(offset, clocks);
        let bytes = &mut self.data[offset..offset + T::BYTES];
        let before = T::from_memory(bytes);
        change(before).to_memory(bytes);
        Ok(before)
    }

    /// Marks 16 bytes as the destination of a copy that the running lane sets off.
    pub fn begin_copy(
        &mut self,
        address: u32,
        clocks: &Clocks,
        site: Site,
        busy: Busy,
    ) -> Result<(), Problem> {
        let offset = self.locate(address, 16)?;
        self.record(offset, 16, Access::Write, clocks, site)?;
        self.state[offset >> 4].busy = busy;
        Ok(())
    }

    fn land(&mut self, address: u32, (data, init): Piece) -> usize {
        let offset = self.window + address.wrapping_sub(BASE) as usize;
        self.state[offset >> 4] = Sixteen { init, ..Sixteen::default() };
        self.data[offset..offset + 16].copy_from_slice(&data);
        offset
    }

    /// Lets a `cp.async` arrive; from now on it is a write by the lane that waited for it.
    pub fn land_copy(
        &mut self,
        address: u32,
        piece: Piece,
        clocks: &Clocks,
        site: Site,
    ) -> Result<(), Problem> {
        let offset = self.land(address, piece);
        self.written(offset, clocks);
        self.record(offset, 16, Access::Write, clocks, site)
    }

    /// Lets 16 bytes of a bulk copy arrive, as a write of its agent.
    pub fn land_bulk(&mut self, address: u32, piece: Piece, clocks: &Clocks, stamp: Stamp, site: Site) {
        let offset = self.land(address, piece);
        if clocks.enabled {
            self.shadow[offset / STRETCH].landed(STRETCH, offset % STRETCH, 16, stamp, site);
        }
    }

    /// The running thread's `fence.proxy.async`.
    pub fn fence_proxy(&mut self, thread: usize) {
        self.fences[thread] = self.fences[thread].wrapping_add(1);
    }

    /// How many of those a thread has executed.
    pub fn proxy_fences(&self, thread: usize) -> u16 {
        self.fences[thread]
    }

    /// That what was last written to 16 bytes may be used by the async proxy.
    #[inline(always)]
    pub fn check_proxy(&self, address: u32) -> Result<(), Problem> {
        let offset = self.place(address, 16)?;
        let Sixteen { generic, fences, .. } = self.state[offset >> 4];
        if generic != 0 && self.fences[usize::from(generic) - 1] == fences {
            return Err(Problem::MissingProxyFence(u32::from(generic) - 1));
        }
        Ok(())
    }

    /// Sixteen bytes as a copy out of shared memory that the running lane sets off sees them, written or not; a read recorded
    /// as `stamp`.
    pub fn load_for_copy(
        &mut self,
        address: u32,
        clocks: &Clocks,
        site: Site,
        stamp: Stamp,
    ) -> Result<Piece, Problem> {
        let offset = self.locate(address, 16)?;
        self.record_as(offset, 16, Access::Read, clocks, site, stamp)?;
        self.check_proxy(address)?;
        let mut data = [0; 16];
        data.copy_from_slice(&self.data[offset..offset + 16]);
        Ok((data, self.state[offset >> 4].init))
    }

    /// Makes 8 bytes an mbarrier, a write by the running lane.
    pub fn begin_mbarrier(&mut self, address: u32, clocks: &Clocks, site: Site) -> Result<(), Problem> {
        let offset = self.place(address, 8)?;
        let busy = self.state[offset >> 4].busy;
        let own = MBARRIER[offset >> 3 & 1];
        if !(busy == own || busy == MBARRIERS) {
            self.locate(address, 8)?;
            self.state[offset >> 4].busy += own;
        }
        self.record(offset, 8, Access::Write, clocks, site)
    }

    /// A use of an mbarrier by the running lane; whether there is one.
    pub fn use_mbarrier(&mut self, address: u32, clocks: &Clocks, site: Site) -> Result<bool, Problem> {
        let offset = self.place(address, 8)?;
        let busy = self.state[offset >> 4].busy;
        if !(busy == MBARRIER[offset >> 3 & 1] || busy == MBARRIERS) {
            return Ok(false);
        }
        self.record(offset, 8, Access::Atomic, clocks, site)?;
        Ok(true)
    }

    /// An address in words.
    pub fn describe(&self, address: u32) -> String {
        self.describe_in(self.rank, address)
    }

    /// As [`Shared::describe`], of the memory of the block of this rank.
    pub fn describe_in(&self, rank: usize, address: u32) -> String {
        let of_rank = if self.blocks > 1 { format!(" of rank {rank}") } else { String::new() };
        format!("shared byte {} of {}{of_rank}", i64::from(address) - i64::from(BASE), self.bytes)
    }
}
