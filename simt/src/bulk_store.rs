//! Bulk stores: out of shared memory without a lane, complete when the lane that issued them has waited for their group.
//!
//! The data moves at once. What keeps others off until the wait are the stamps: the source is read and the target written by
//! agents that nobody has seen before it.

use crate::bulk::Cells;
use crate::clock::{Agent, Stamp};
use crate::context::{Context, Space};
use crate::fault::{Fault, FaultKind};
use crate::shared::Piece;
use crate::site::Site;
use crate::tensor_map::TensorMap;

/// A lane's bulk stores.
#[derive(Debug, Default)]
pub(crate) struct Stores {
    /// The clocks of the agents after the last store of each committed group.
    groups: Vec<Clock>,
    /// And after the last store of all.
    last: Clock,
    /// How far the lane has waited for the sources.
    waited: u32,
    site: Site,
}

#[derive(Debug, Clone, Copy, Default)]
struct Clock {
    source: u32,
    target: u32,
}

impl Context {
    /// Begins a store of the running lane; the stamps of its source's reads and its target's writes.
    fn begin_store(&mut self, bytes: u32, site: Site) -> (Stamp, Stamp) {
        self.report.bulk_copies += 1;
        self.report.bulk_bytes += u64::from(bytes);
        let thread = self.current;
        let source = self.clocks.set_off(Agent::StoreSource(thread / 32), thread);
        let target = self.clocks.set_off(Agent::StoreTarget(thread / 32), thread);
        let stores = &mut self.lanes[thread].stores;
        stores.last = Clock { source: source.clock(), target: target.clock() };
        stores.site = site;
        (source, target)
    }

    fn read_source(&mut self, address: u32, stamp: Stamp, site: Site) -> Result<Piece, Fault> {
        let read = self.shared.load_for_copy(address, &self.clocks, site, stamp);
        let space = Space::Shared(address);
        read.map_err(|problem| self.access_fault(problem, space, "bulk store from shared", 16, site))
    }

    pub fn store_tensor(
        &mut self,
        map: &TensorMap,
        coords: &[i32],
        shared: u32,
        site: Site,
    ) -> Result<(), Fault> {
        let (spec, coords) = self.tensor(map, coords, shared, site)?;
        let bytes = spec.box_bytes();
        let (source, target) = self.begin_store(bytes, site);
        let mut cells = Cells::new(bytes as usize);
        for index in 0..bytes / 16 {
            let from = spec.swizzle.apply(shared.wrapping_add(16 * index));
            cells.set(index as usize, self.read_source(from, source, site)?);
        }
        let row_bytes = (spec.box_dims[0] * spec.element_bytes) as usize;
        let columns = spec.columns(coords);
        for (row, address) in spec.rows(coords).enumerate() {
            let Some(address) = address.filter(|_| !columns.is_empty()) else { continue };
            let inside = row * row_bytes + columns.start..row * row_bytes + columns.end;
            let to = address.wrapping_add(columns.start as u64);
            self.write_target(to, &cells.data[inside.clone()], &cells.written[inside], target, site)?;
        }
        Ok(())
    }

    pub fn store_bulk(&mut self, global: u64, shared: u32, bytes: u32, site: Site) -> Result<(), Fault> {
        self.check_bulk(shared, global, bytes, site)?;
        let (source, target) = self.begin_store(bytes, site);
        let mut cells = Cells::new(bytes as usize);
        for index in 0..bytes / 16 {
            let piece = self.read_source(shared.wrapping_add(16 * index), source, site)?;
            cells.set(index as usize, piece);
        }
        self.write_target(global, &cells.data, &cells.written, target, site)
    }

    fn write_target(
        &mut self,
        to: u64,
        data: &[u8],
        written: &[bool],
        stamp: Stamp,
        site: Site,
    ) -> Result<(), Fault> {
        let stored = self.global.store_range(to, data, written, &self.clocks, site, stamp);
        stored.map_err(|(at, problem)| {
            self.access_fault(problem, Space::Global(at), "bulk store to global", data.len(), site)
        })
    }

    /// Closes the group of the running lane's stores.
    pub fn commit_stores(&mut self) {
        let stores = &mut self.lanes[self.current].stores;
        stores.groups.push(stores.last);
    }

    /// Waits for all but the `newest` newest groups: for their reads, and unless `reads_only` for their writes.
    pub fn wait_for_stores(&mut self, newest: u32, reads_only: bool) {
        let warp = self.current / 32;
        let stores = &mut self.lanes[self.current].stores;
        let Some(last) = stores.groups.len().checked_sub(newest as usize + 1) else { return };
        let Clock { source, target } = stores.groups[last];
        stores.waited = stores.waited.max(source);
        self.clocks.see(warp, Agent::StoreSource(warp), source);
        if !reads_only {
            self.clocks.see(warp, Agent::StoreTarget(warp), target);
        }
    }

    /// The fault of a lane that ended before its stores had read their sources.
    pub fn stores_at_end(&self, thread: usize) -> Result<(), Fault> {
        let stores = &self.lanes[thread].stores;
        if stores.last.source <= stores.waited {
            return Ok(());
        }
        let at = Some(self.place(thread, stores.site));
        let detail = "ended before it waited for its bulk store".to_owned();
        Err(self.fault(FaultKind::InFlight, at, None, detail))
    }
}
