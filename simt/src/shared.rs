//! A block's shared memory.

use crate::clock::{Clocks, OWN_MEMORY_FLOOR};
use crate::element::Element;
use crate::global::byte_mask;
use crate::problem::Problem;
use crate::shadow::{Access, Actor, Shadow};
use crate::site::Site;

/// Where the dynamic shared memory begins. Not 0, so that an offset whose base was forgotten is found.
pub(crate) const BASE: u32 = 1024;
const STRETCH: usize = 1024;

#[derive(Debug, Clone, Copy, Default)]
struct Sixteen {
    /// One bit a byte: written.
    init: u16,
    /// 1 + the thread whose copy is on its way here; 0 for none.
    in_flight: u16,
}

#[derive(Debug, Default)]
pub(crate) struct Shared {
    bytes: usize,
    data: Vec<u8>,
    state: Vec<Sixteen>,
    shadow: Vec<Shadow>,
}

impl Shared {
    /// Memory for a block: as large as asked for, nothing written.
    pub fn begin(&mut self, bytes: usize) {
        self.bytes = bytes;
        let backed = bytes.next_multiple_of(STRETCH);
        self.data.resize(backed, 0);
        self.shadow.resize_with(backed / STRETCH, Shadow::default);
        self.state.clear();
        self.state.resize(backed / 16, Sixteen::default());
    }

    pub fn clear_shadow(&mut self) {
        self.shadow.iter_mut().for_each(Shadow::clear);
    }

    /// Bounds, alignment and copies in flight; the offset.
    #[inline(always)]
    fn locate(&self, address: u32, bytes: usize) -> Result<usize, Problem> {
        if address as usize & (bytes - 1) != 0 {
            return Err(Problem::Misaligned);
        }
        let offset = address.wrapping_sub(BASE) as usize;
        if offset >= self.bytes || self.bytes - offset < bytes {
            return Err(Problem::OutOfBounds);
        }
        match self.state[offset >> 4].in_flight {
            0 => Ok(offset),
            thread => Err(Problem::InFlight(u32::from(thread) - 1)),
        }
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
        if !clocks.enabled {
            return Ok(());
        }
        let actor = Actor { clocks, floor: OWN_MEMORY_FLOOR, site };
        let shadow = &mut self.shadow[offset / STRETCH];
        shadow.access(STRETCH, offset % STRETCH, bytes, access, actor).map_err(Problem::Race)
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
        let bytes = &mut self.data[offset..offset + T::BYTES];
        let before = T::from_memory(bytes);
        change(before).to_memory(bytes);
        Ok(before)
    }

    /// Marks 16 bytes as the destination of a copy by the running lane.
    pub fn begin_copy(
        &mut self,
        address: u32,
        clocks: &Clocks,
        site: Site,
        thread: u32,
    ) -> Result<(), Problem> {
        let offset = self.locate(address, 16)?;
        self.record(offset, 16, Access::Write, clocks, site)?;
        self.state[offset >> 4].in_flight = thread as u16 + 1;
        Ok(())
    }

    /// Lets a copy arrive; from now on it is a write by the lane that waited for it.
    pub fn land_copy(
        &mut self,
        address: u32,
        data: [u8; 16],
        init: u16,
        clocks: &Clocks,
        site: Site,
    ) -> Result<(), Problem> {
        let offset = address.wrapping_sub(BASE) as usize;
        self.state[offset >> 4] = Sixteen { init, in_flight: 0 };
        self.data[offset..offset + 16].copy_from_slice(&data);
        self.record(offset, 16, Access::Write, clocks, site)
    }

    /// An address in words.
    pub fn describe(&self, address: u32) -> String {
        format!("shared byte {} of {}", i64::from(address) - i64::from(BASE), self.bytes)
    }
}
