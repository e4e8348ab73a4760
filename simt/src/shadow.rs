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

/// Whose access it is: the running lane's, on a line.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Actor<'a> {
    pub clocks: &'a Clocks,
    /// Blocks with a lower serial are ordered before this one, as far as this memory goes.
    pub floor: u64,
    pub site: Site,
}

/// An earlier access that nothing orders before the present one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Conflict {
    pub stamp: Stamp,
    pub site: Site,
    pub was_write: bool,
}

/// The last write and two of the reads since. Two distinct readers are enough: a later write is unordered with at least one
/// of them if it is unordered with any, save where named barriers order it with those two alone.
#[derive(Debug, Clone, Copy, Default)]
struct Cell {
    write: Stamp,
    reads: [Stamp; 2],
    write_site: Site,
    read_sites: [Site; 2],
}

/// The shadow of a stretch of memory. Cells are 16 bytes until a narrower access comes, then as narrow as that.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shadow {
    cell_shift: u32,
    cells: Vec<Cell>,
}

impl Shadow {
    /// Records an access of `bytes` (a power of two, 2 to 16) at `offset` into a stretch of `stretch_bytes`.
    #[inline(always)]
    pub fn access(
        &mut self,
        stretch_bytes: usize,
        offset: usize,
        bytes: usize,
        access: Access,
        actor: Actor<'_>,
    ) -> Result<(), Conflict> {
        if self.cells.is_empty() || bytes < 1 << self.cell_shift {
            self.refine(stretch_bytes, bytes.trailing_zeros());
        }
        let first = offset >> self.cell_shift;
        let last = (offset + bytes - 1) >> self.cell_shift;
        for cell in &mut self.cells[first..=last] {
            match access {
                Access::Read => cell.read(actor)?,
                Access::Write => cell.write(actor.clocks.now, actor)?,
                Access::Atomic => cell.write(actor.clocks.now.atomic(), actor)?,
            }
        }
        Ok(())
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

impl Cell {
    #[inline(always)]
    fn read(&mut self, Actor { clocks, floor, site }: Actor<'_>) -> Result<(), Conflict> {
        if !clocks.ordered(self.write, floor) {
            return Err(Conflict { stamp: self.write, site: self.write_site, was_write: true });
        }
        if self.reads[0] == clocks.now || self.reads[1] == clocks.now {
            return Ok(());
        }
        for slot in 0..2 {
            if clocks.ordered(self.reads[slot], floor) {
                self.reads[slot] = clocks.now;
                self.read_sites[slot] = site;
                break;
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn write(&mut self, stamp: Stamp, Actor { clocks, floor, site }: Actor<'_>) -> Result<(), Conflict> {
        let both_atomic = stamp.is_atomic() && self.write.is_atomic();
        if !both_atomic && !clocks.ordered(self.write, floor) {
            return Err(Conflict { stamp: self.write, site: self.write_site, was_write: true });
        }
        for slot in 0..2 {
            if !clocks.ordered(self.reads[slot], floor) {
                let (stamp, site) = (self.reads[slot], self.read_sites[slot]);
                return Err(Conflict { stamp, site, was_write: false });
            }
        }
        *self = Cell { write: stamp, write_site: site, ..Cell::default() };
        Ok(())
    }
}
