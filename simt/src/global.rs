//! Global memory: allocations in a sparse address space, backed page by page.

use crate::clock::{Clocks, Stamp};
use crate::element::Element;
use crate::problem::Problem;
use crate::shadow::{Access, Actor, Shadow};
use crate::site::Site;

/// Each allocation has terabytes of addresses to itself, and starts in the middle: an offset too far either way hits nothing,
/// and the message can say whose it was.
const SLOT_SHIFT: u32 = 40;
/// Aligned to 256 bytes as the driver aligns, and to no more.
const START: u64 = (1 << (SLOT_SHIFT - 1)) + 256;
/// Reads of a cell that are remembered. One more than one, so that a reader who then writes still finds the other.
const READS: usize = 2;
const PAGE_SHIFT: u32 = 14;
const PAGE_BYTES: usize = 1 << PAGE_SHIFT;

#[derive(Debug, Default)]
struct Page {
    data: Box<[u8]>,
    /// One bit a byte: written.
    init: Box<[u16]>,
    shadow: Shadow<READS>,
}

impl Page {
    #[cold]
    fn back(&mut self, bytes: usize) {
        self.data = vec![0; bytes].into();
        self.init = vec![0; bytes / 16].into();
    }
}

#[derive(Debug)]
struct Allocation {
    name: String,
    bytes: u64,
    live: bool,
    pages: Vec<Page>,
}

impl Allocation {
    fn page_bytes(&self, page: usize) -> usize {
        let rest = self.bytes as usize - (page << PAGE_SHIFT);
        rest.min(PAGE_BYTES).next_multiple_of(16)
    }
}

/// All allocations of a device. Slot 0 stays empty, so that 0 is no address.
#[derive(Debug, Default)]
pub(crate) struct Global {
    allocations: Vec<Allocation>,
}

fn slot_of(address: u64) -> usize {
    (address >> SLOT_SHIFT) as usize
}

impl Global {
    /// Takes `bytes` of address space. The contents are uninitialised.
    pub fn alloc(&mut self, bytes: u64, name: &str) -> u64 {
        assert!(bytes <= 1 << (SLOT_SHIFT - 2), "allocation {name}: {bytes} bytes; at most 2^38");
        let mut pages = Vec::new();
        pages.resize_with(bytes.div_ceil(PAGE_BYTES as u64) as usize, Page::default);
        self.allocations.push(Allocation { name: name.to_owned(), bytes, live: true, pages });
        ((self.allocations.len() as u64) << SLOT_SHIFT) + START
    }

    /// Gives the memory back; its addresses stay taken, so that a later use of them is found.
    pub fn free(&mut self, address: u64) {
        let allocation = self.host_slot(address, "free");
        allocation.live = false;
        allocation.pages = Vec::new();
    }

    #[track_caller]
    fn host_slot(&mut self, address: u64, operation: &str) -> &mut Allocation {
        let slot = slot_of(address);
        let described = self.describe(address);
        match self.allocations.get_mut(slot.wrapping_sub(1)) {
            Some(allocation) if allocation.live && address == ((slot as u64) << SLOT_SHIFT) + START => {
                allocation
            }
            _ => panic!("{operation}: expected the start of an allocation, found {described}"),
        }
    }

    /// Forgets all accesses.
    pub fn clear_shadow(&mut self) {
        for allocation in &mut self.allocations {
            for page in &mut allocation.pages {
                page.shadow.clear();
            }
        }
    }

    /// The page and the offset in it of an aligned access.
    #[inline(always)]
    fn locate(&mut self, address: u64, bytes: usize) -> Result<(&mut Page, usize, usize), Problem> {
        if address & (bytes as u64 - 1) != 0 {
            return Err(Problem::Misaligned);
        }
        let slot = slot_of(address).wrapping_sub(1);
        let Some(allocation) = self.allocations.get_mut(slot) else { return Err(Problem::OutOfBounds) };
        let offset = (address & ((1 << SLOT_SHIFT) - 1)).wrapping_sub(START);
        if offset >= allocation.bytes || allocation.bytes - offset < bytes as u64 || !allocation.live {
            return Err(Problem::OutOfBounds);
        }
        let index = (offset >> PAGE_SHIFT) as usize;
        let page_bytes =
            if index + 1 < allocation.pages.len() { PAGE_BYTES } else { allocation.page_bytes(index) };
        let page = &mut allocation.pages[index];
        if page.data.is_empty() {
            page.back(page_bytes);
        }
        Ok((page, offset as usize & (PAGE_BYTES - 1), page_bytes))
    }

    #[inline(always)]
    fn checked(
        &mut self,
        address: u64,
        bytes: usize,
        access: Access,
        clocks: &Clocks,
        site: Site,
    ) -> Result<(&mut Page, usize), Problem> {
        self.checked_as(address, bytes, access, clocks, site, clocks.now)
    }

    /// As [`Global::checked`], recorded as `stamp`.
    #[inline(always)]
    fn checked_as(
        &mut self,
        address: u64,
        bytes: usize,
        access: Access,
        clocks: &Clocks,
        site: Site,
        stamp: Stamp,
    ) -> Result<(&mut Page, usize), Problem> {
        let (page, offset, page_bytes) = self.locate(address, bytes)?;
        if clocks.enabled {
            let actor = Actor { clocks, floor: clocks.floor(), site, stamp };
            page.shadow.access(page_bytes, offset, bytes, access, actor).map_err(Problem::Race)?;
        }
        Ok((page, offset))
    }

    #[inline(always)]
    pub fn load<T: Element>(&mut self, address: u64, clocks: &Clocks, site: Site) -> Result<T, Problem> {
        let (page, offset) = self.checked(address, T::BYTES, Access::Read, clocks, site)?;
        let mask = byte_mask(offset, T::BYTES);
        if page.init[offset >> 4] & mask != mask {
            return Err(Problem::Uninitialised);
        }
        Ok(T::from_memory(&page.data[offset..offset + T::BYTES]))
    }

    #[inline(always)]
    pub fn store<T: Element>(
        &mut self,
        address: u64,
        value: T,
        clocks: &Clocks,
        site: Site,
    ) -> Result<(), Problem> {
        let (page, offset) = self.checked(address, T::BYTES, Access::Write, clocks, site)?;
        page.init[offset >> 4] |= byte_mask(offset, T::BYTES);
        value.to_memory(&mut page.data[offset..offset + T::BYTES]);
        Ok(())
    }

    /// An atomic read and write; the value before.
    pub fn update<T: Element>(
        &mut self,
        address: u64,
        change: impl FnOnce(T) -> T,
        clocks: &Clocks,
        site: Site,
    ) -> Result<T, Problem> {
        let (page, offset) = self.checked(address, T::BYTES, Access::Atomic, clocks, site)?;
        let mask = byte_mask(offset, T::BYTES);
        if page.init[offset >> 4] & mask != mask {
            return Err(Problem::Uninitialised);
        }
        let bytes = &mut page.data[offset..offset + T::BYTES];
        let before = T::from_memory(bytes);
        change(before).to_memory(bytes);
        Ok(before)
    }

    /// What a 16-byte copy of which the first `bytes` count sees: the data, zeros after, and which bytes are written.
    pub fn load_for_copy(
        &mut self,
        address: u64,
        bytes: usize,
        clocks: &Clocks,
        site: Site,
    ) -> Result<([u8; 16], u16), Problem> {
        let (mut data, mut init) = ([0; 16], 0xffff);
        if address & 15 != 0 {
            return Err(Problem::Misaligned);
        }
        // Two bytes at a time: a ragged end must not be read past, nor counted as a race.
        let mut at = 0;
        while at < bytes {
            let step = if bytes - at == 16 { 16 } else { 2.min(bytes - at) };
            let (page, offset) = self.checked(address + at as u64, step, Access::Read, clocks, site)?;
            data[at..at + step].copy_from_slice(&page.data[offset..offset + step]);
            let mask = byte_mask(offset, step);
            init &= page.init[offset >> 4] | !mask;
            at += step;
        }
        Ok((data, init))
    }

    /// What a bulk copy of any alignment sees, written or not; the address of what it may not read.
    pub fn load_range(
        &mut self,
        address: u64,
        data: &mut [u8],
        written: &mut [bool],
        clocks: &Clocks,
        site: Site,
    ) -> Result<(), (u64, Problem)> {
        let mut at = 0;
        while at < data.len() {
            let from = address.wrapping_add(at as u64);
            let step = aligned_step(from, data.len() - at);
            let checked = self.checked(from, step, Access::Read, clocks, site);
            let (page, offset) = checked.map_err(|problem| (from, problem))?;
            data[at..at + step].copy_from_slice(&page.data[offset..offset + step]);
            let init = page.init[offset >> 4] >> (offset & 15);
            for (bit, written) in written[at..at + step].iter_mut().enumerate() {
                *written = init >> bit & 1 != 0;
            }
            at += step;
        }
        Ok(())
    }

    /// Writes a bulk copy of any alignment, as `stamp`; the address of what it may not write.
    pub fn store_range(
        &mut self,
        address: u64,
        data: &[u8],
        written: &[bool],
        clocks: &Clocks,
        site: Site,
        stamp: Stamp,
    ) -> Result<(), (u64, Problem)> {
        let mut at = 0;
        while at < data.len() {
            let to = address.wrapping_add(at as u64);
            let step = aligned_step(to, data.len() - at);
            let checked = self.checked_as(to, step, Access::Write, clocks, site, stamp);
            let (page, offset) = checked.map_err(|problem| (to, problem))?;
            page.data[offset..offset + step].copy_from_slice(&data[at..at + step]);
            let bits = written[at..at + step].iter().rev().fold(0, |bits, &bit| bits << 1 | u16::from(bit));
            let init = &mut page.init[offset >> 4];
            *init = *init & !byte_mask(offset, step) | bits << (offset & 15);
            at += step;
        }
        Ok(())
    }

    /// Pieces of `[address, address + length)` that lie in one page each: `(page, offset in it, offset in the range, length)`.
    fn for_pieces(
        &mut self,
        address: u64,
        length: usize,
        mut piece: impl FnMut(&mut Page, usize, usize, usize) -> Result<(), Problem>,
    ) -> Result<(), (usize, Problem)> {
        let mut done = 0;
        while done < length {
            let at = address.wrapping_add(done as u64);
            let (page, offset, page_bytes) = self.locate(at, 1).map_err(|problem| (done, problem))?;
            let take = (page_bytes - offset).min(length - done);
            let last = at + take as u64 - 1;
            if slot_of(last) != slot_of(at) {
                return Err((done, Problem::OutOfBounds));
            }
            piece(page, offset, done, take).map_err(|problem| (done, problem))?;
            done += take;
            if done == length {
                self.locate(last, 1).map_err(|problem| (done - 1, problem))?;
            }
        }
        Ok(())
    }

    pub fn host_write(&mut self, address: u64, bytes: &[u8]) -> Result<(), (usize, Problem)> {
        self.for_pieces(address, bytes.len(), |page, offset, done, take| {
            page.data[offset..offset + take].copy_from_slice(&bytes[done..done + take]);
            set_bits(&mut page.init, offset, take, true);
            Ok(())
        })
    }

    pub fn host_read(
        &mut self,
        address: u64,
        out: &mut [u8],
        initialised: bool,
    ) -> Result<(), (usize, Problem)> {
        let mut first_unwritten = None;
        let length = out.len();
        self.for_pieces(address, length, |page, offset, done, take| {
            out[done..done + take].copy_from_slice(&page.data[offset..offset + take]);
            if initialised && first_unwritten.is_none() {
                let unwritten = (offset..offset + take).find(|&i| page.init[i >> 4] >> (i & 15) & 1 == 0);
                first_unwritten = unwritten.map(|i| done + i - offset);
            }
            Ok(())
        })?;
        first_unwritten.map_or(Ok(()), |at| Err((at, Problem::Uninitialised)))
    }

    pub fn poison(&mut self, address: u64, length: usize) -> Result<(), (usize, Problem)> {
        self.for_pieces(address, length, |page, offset, _, take| {
            page.data[offset..offset + take].fill(0xff);
            set_bits(&mut page.init, offset, take, false);
            Ok(())
        })
    }

    /// An address in words.
    pub fn describe(&self, address: u64) -> String {
        match self.allocations.get(slot_of(address).wrapping_sub(1)) {
            Some(Allocation { name, bytes, live, .. }) => {
                let offset = (address & ((1 << SLOT_SHIFT) - 1)) as i64 - START as i64;
                let freed = if *live { "" } else { ", freed" };
                format!("{address:#x}, byte {offset} of `{name}` ({bytes} bytes{freed})")
            }
            None => format!("{address:#x}, in no allocation"),
        }
    }
}

/// The most bytes, a power of two up to 16, that one access at `address` may take of `left`.
fn aligned_step(address: u64, left: usize) -> usize {
    let aligned = 1 << address.trailing_zeros().min(4);
    let fits = 1 << left.ilog2();
    aligned.min(fits)
}

/// The bits of `bytes` bytes from `offset` on within their 16.
#[inline(always)]
pub(crate) fn byte_mask(offset: usize, bytes: usize) -> u16 {
    (((1u32 << bytes) - 1) << (offset & 15)) as u16
}

fn set_bits(init: &mut [u16], offset: usize, length: usize, value: bool) {
    let mut at = offset;
    while at < offset + length {
        let take = (16 - (at & 15)).min(offset + length - at);
        let mask = byte_mask(at, take);
        match value {
            true => init[at >> 4] |= mask,
            false => init[at >> 4] &= !mask,
        }
        at += take;
    }
}
