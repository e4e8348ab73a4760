//! The last accesses to each cell of memory, and the check of a new one against them.

use crate::clock::{Clocks, Stamp};
use crate::site::Site;

/// What an access does to the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
    Atomic,
}

/// Whose access it is, on a line.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Actor<'a> {
    pub clocks: &'a Clocks,
    /// Blocks with a lower serial are ordered before this one, as far as this memory goes.
    pub floor: u64,
    pub site: Site,
    /// What the access is recorded as: the running lane's, or an agent's.
    pub stamp: Stamp,
}

/// An earlier access that nothing orders before the present one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Conflict {
    pub stamp: Stamp,
    pub site: Site,
    pub was_write: bool,
}

/// The last write and `R` of the reads since. When there are more, no two of those kept are by lanes of one warp if that can
/// be helped: most of the time all lanes of a warp look the same to other warps.
#[derive(Debug, Clone, Copy)]
struct Cell<const R: usize> {
    write: Stamp,
    reads: [Stamp; R],
    write_site: Site,
    read_sites: [Site; R],
}

impl<const R: usize> Default for Cell<R> {
    fn default() -> Self {
        Self {
            write: Stamp::default(),
            reads: [Stamp::default(); R],
            write_site: Site::default(),
            read_sites: [Site::default(); R],
        }
    }
}

/// The shadow of a stretch of memory. Cells are 16 bytes until a narrower access comes, then as narrow as that.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shadow<const R: usize> {
    cell_shift: u32,
    cells: Vec<Cell<R>>,
}

impl<const R: usize> Shadow<R> {
    fn cells(&mut self, stretch_bytes: usize, offset: usize, bytes: usize) -> &mut [Cell<R>] {
        if self.cells.is_empty() || bytes < 1 << self.cell_shift {
            self.refine(stretch_bytes, bytes.trailing_zeros());
        }
        let first = offset >> self.cell_shift;
        let last = (offset + bytes - 1) >> self.cell_shift;
        &mut self.cells[first..=last]
    }

    /// Records an access of `bytes` (a power of two, 1 to 16) at `offset` into a stretch of `stretch_bytes`.
    #[inline(always)]
    pub fn access(
        &mut self,
        stretch_bytes: usize,
        offset: usize,
        bytes: usize,
        access: Access,
        actor: Actor<'_>,
    ) -> Result<(), Conflict> {
        for cell in self.cells(stretch_bytes, offset, bytes) {
            match access {
                Access::Read => cell.read(actor)?,
                Access::Write => cell.write(actor.stamp, actor)?,
                Access::Atomic => cell.write(actor.stamp.atomic(), actor)?,
            }
        }
        Ok(())
    }

    /// Records a write that was checked when it was set off.
    pub fn landed(&mut self, stretch_bytes: usize, offset: usize, bytes: usize, write: Stamp, site: Site) {
        self.cells(stretch_bytes, offset, bytes).fill(Cell { write, write_site: site, ..Cell::default() });
    }

    #[cold]
    fn refine(&mut self, stretch_bytes: usize, shift: u32) {
        let count = stretch_bytes.div_ceil(1 << shift);
        let coarser = self.cell_shift.saturating_sub(shift);
        self.cells = match self.cells.is_empty() {
            true => vec![Cell::default(); count],
            false => (0..count).map(|i| self.cells[i >> coarser]).collect(),
        };
        self.cell_shift = shift;
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.cells.fill(Cell::default());
    }
}

impl<const R: usize> Cell<R> {
    #[inline(always)]
    fn read(&mut self, Actor { clocks, floor, site, stamp }: Actor<'_>) -> Result<(), Conflict> {
        if !clocks.ordered(self.write, floor) {
            return Err(Conflict { stamp: self.write, site: self.write_site, was_write: true });
        }
        if self.reads.contains(&stamp) {
            return Ok(());
        }
        for slot in 0..R {
            // An agent's accesses complete in order: who has seen the later one has seen the earlier.
            let own = self.reads[slot].same_origin(stamp);
            if own || clocks.ordered(self.reads[slot], floor) {
                self.reads[slot] = stamp;
                self.read_sites[slot] = site;
                return Ok(());
            }
        }
        self.crowded(stamp, site);
        Ok(())
    }

    /// More unordered reads than slots: a warp that has several gives one up.
    #[cold]
    fn crowded(&mut self, stamp: Stamp, site: Site) {
        let twin = (0..R).find(|&slot| {
            let reads = self.reads;
            !stamp.same_warp_and_clock(reads[slot])
                && (slot + 1..R).any(|later| reads[slot].same_warp_and_clock(reads[later]))
        });
        let known = self.reads.iter().any(|&read| stamp.same_warp_and_clock(read));
        if let (Some(slot), false) = (twin, known) {
            self.reads[slot] = stamp;
            self.read_sites[slot] = site;
        }
    }

    #[inline(always)]
    fn write(&mut self, stamp: Stamp, actor: Actor<'_>) -> Result<(), Conflict> {
        let Actor { clocks, floor, site, .. } = actor;
        let both_atomic = stamp.is_atomic() && self.write.is_atomic();
        if !both_atomic && !clocks.ordered(self.write, floor) {
            return Err(Conflict { stamp: self.write, site: self.write_site, was_write: true });
        }
        for slot in 0..R {
            if !clocks.ordered(self.reads[slot], floor) {
                let (stamp, site) = (self.reads[slot], self.read_sites[slot]);
                return Err(Conflict { stamp, site, was_write: false });
            }
        }
        *self = Cell { write: stamp, write_site: site, ..Cell::default() };
        Ok(())
    }
}
