//! Bulk copies: what is on its way to or from shared memory without a lane.

use crate::clock::Agent;
use crate::context::{Context, Space};
use crate::fault::{Fault, FaultKind};
use crate::problem::Problem;
use crate::shared::{Busy, FIRST_FLIGHT, Piece};
use crate::site::Site;
use crate::tensor_map::{Swizzle, TensorMap, TensorMapSpec};

/// What completes on an mbarrier some time after it was issued.
#[derive(Debug)]
pub(crate) struct Flight {
    /// What marks its destination.
    pub busy: Busy,
    /// Index of the mbarrier.
    pub mbarrier: usize,
    pub thread: usize,
    pub site: Site,
    cargo: Cargo,
}

#[derive(Debug)]
enum Cargo {
    /// Bytes to be counted, and 16 of them at an address each.
    Bulk { bytes: u32, pieces: Vec<(u32, Piece)> },
    /// An arrival once the thread's `cp.async` up to this number have landed.
    Copies(u64),
}

/// A box of bytes, row by row, and which of them were ever written.
pub(crate) struct Cells {
    pub data: Vec<u8>,
    pub written: Vec<bool>,
}

impl Cells {
    /// Zeros, as written.
    pub fn new(bytes: usize) -> Self {
        Self { data: vec![0; bytes], written: vec![true; bytes] }
    }

    /// The 16 bytes from `16 * index` on.
    fn piece(&self, index: usize) -> Piece {
        let at = 16 * index..16 * index + 16;
        let mut data = [0; 16];
        data.copy_from_slice(&self.data[at.clone()]);
        let init = self.written[at].iter().rev().fold(0, |bits, &bit| bits << 1 | u16::from(bit));
        (data, init)
    }

    pub fn set(&mut self, index: usize, (data, init): Piece) {
        self.data[16 * index..16 * index + 16].copy_from_slice(&data);
        for (bit, written) in self.written[16 * index..16 * index + 16].iter_mut().enumerate() {
            *written = init >> bit & 1 != 0;
        }
    }
}

impl Context {
    /// The fault of an operand that the running lane may not give.
    #[cold]
    pub fn operand_fault(&self, site: Site, detail: String) -> Fault {
        self.fault(FaultKind::InvalidOperand, Some(self.place(self.current, site)), None, detail)
    }

    fn shared_fault(&self, problem: Problem, address: u32, what: &str, site: Site) -> Fault {
        self.access_fault(problem, Space::Shared(address), what, 16, site)
    }

    fn decode(&self, map: &TensorMap, site: Site) -> Result<TensorMapSpec, Fault> {
        TensorMapSpec::decode(map).ok_or_else(|| {
            let detail = "expected a tensor map made by TensorMapSpec::encode, found other bits".to_owned();
            self.operand_fault(site, detail)
        })
    }

    pub fn check_tensor_map(&self, map: &TensorMap, site: Site) -> Result<(), Fault> {
        self.decode(map, site).map(|_| ())
    }

    /// What a tensor copy of the running lane works on: the spec, and the coordinates with zeros past the rank.
    pub fn tensor(
        &self,
        map: &TensorMap,
        coords: &[i32],
        shared: u32,
        site: Site,
    ) -> Result<(TensorMapSpec, [i32; 5]), Fault> {
        let spec = self.decode(map, site)?;
        if coords.len() != spec.rank as usize {
            let detail = format!("{} coordinates for a tensor map of rank {}", coords.len(), spec.rank);
            return Err(self.operand_fault(site, detail));
        }
        if !shared.is_multiple_of(128) {
            let detail = format!(
                "tensor copy of a box at {}: expected a multiple of 128 bytes",
                self.shared.describe(shared)
            );
            let at = Some(self.place(self.current, site));
            return Err(self.fault(FaultKind::Misaligned, at, None, detail));
        }
        let mut all = [0; 5];
        all[..coords.len()].copy_from_slice(coords);
        Ok((spec, all))
    }

    /// Reads the box of a tensor, zeros outside it.
    fn read_box(&mut self, spec: &TensorMapSpec, coords: [i32; 5], site: Site) -> Result<Cells, Fault> {
        let mut cells = Cells::new(spec.box_bytes() as usize);
        let row_bytes = (spec.box_dims[0] * spec.element_bytes) as usize;
        let columns = spec.columns(coords);
        for (row, address) in spec.rows(coords).enumerate() {
            let Some(address) = address.filter(|_| !columns.is_empty()) else { continue };
            let inside = row * row_bytes + columns.start..row * row_bytes + columns.end;
            let from = address.wrapping_add(columns.start as u64);
            let (data, written) = (&mut cells.data[inside.clone()], &mut cells.written[inside]);
            self.global.load_range(from, data, written, &self.clocks, site).map_err(|(at, problem)| {
                self.access_fault(problem, Space::Global(at), "tensor load", columns.len(), site)
            })?;
        }
        Ok(cells)
    }

    pub fn load_tensor(
        &mut self,
        shared: u32,
        map: &TensorMap,
        coords: &[i32],
        mbarrier: u32,
        site: Site,
    ) -> Result<(), Fault> {
        let (spec, coords) = self.tensor(map, coords, shared, site)?;
        let cells = self.read_box(&spec, coords, site)?;
        self.report.bulk_copies += 1;
        self.take_off(shared, &cells, spec.swizzle, mbarrier, site)
    }

    /// As [`Context::load_tensor`], to the same place in every block of `ranks` (a bit each), each of whose mbarriers is told.
    pub fn load_tensor_multicast(
        &mut self,
        shared: u32,
        map: &TensorMap,
        coords: &[i32],
        mbarrier: u32,
        ranks: u16,
        site: Site,
    ) -> Result<(), Fault> {
        if ranks == 0 || u32::from(ranks) >> self.cluster != 0 {
            let blocks = self.cluster;
            let detail = format!("multicast to ranks {ranks:#b}: expected some of a cluster of {blocks}");
            return Err(self.operand_fault(site, detail));
        }
        let (spec, coords) = self.tensor(map, coords, shared, site)?;
        let cells = self.read_box(&spec, coords, site)?;
        self.report.bulk_copies += 1;
        for rank in (0..self.cluster).filter(|rank| ranks >> rank & 1 != 0) {
            self.in_block(rank, "multicast", site, |c| {
                c.take_off(shared, &cells, spec.swizzle, mbarrier, site)
            })?;
        }
        Ok(())
    }

    pub fn load_bulk(
        &mut self,
        shared: u32,
        global: u64,
        bytes: u32,
        mbarrier: u32,
        site: Site,
    ) -> Result<(), Fault> {
        self.check_bulk(shared, global, bytes, site)?;
        let mut cells = Cells::new(bytes as usize);
        let (data, written) = (&mut cells.data, &mut cells.written);
        self.global.load_range(global, data, written, &self.clocks, site).map_err(|(at, problem)| {
            self.access_fault(problem, Space::Global(at), "bulk load", bytes as usize, site)
        })?;
        self.report.bulk_copies += 1;
        self.take_off(shared, &cells, Swizzle::None, mbarrier, site)
    }

    pub fn prefetch_bulk(&mut self, global: u64, bytes: u32, site: Site) -> Result<(), Fault> {
        self.check_bulk(0, global, bytes, site)?;
        let (mut data, mut written) = (vec![0; bytes as usize], vec![false; bytes as usize]);
        let there = self.global.load_range(global, &mut data, &mut written, &self.clocks, site);
        there.map_err(|(at, problem)| {
            self.access_fault(problem, Space::Global(at), "bulk prefetch", bytes as usize, site)
        })?;
        self.report.prefetched_bytes += u64::from(bytes);
        Ok(())
    }

    pub fn check_bulk(&self, shared: u32, global: u64, bytes: u32, site: Site) -> Result<(), Fault> {
        if bytes == 0 || !bytes.is_multiple_of(16) {
            let detail = format!("bulk copy of {bytes} bytes: expected a multiple of 16");
            return Err(self.operand_fault(site, detail));
        }
        if !global.is_multiple_of(16) {
            let space = Space::Global(global);
            return Err(self.access_fault(Problem::Misaligned, space, "bulk copy", 16, site));
        }
        if !shared.is_multiple_of(16) {
            return Err(self.shared_fault(Problem::Misaligned, shared, "bulk copy", site));
        }
        Ok(())
    }

    /// Sends cells off to shared memory: from now on nobody may touch their destination.
    fn take_off(
        &mut self,
        shared: u32,
        cells: &Cells,
        swizzle: Swizzle,
        mbarrier: u32,
        site: Site,
    ) -> Result<(), Fault> {
        let mbarrier = self.use_mbarrier(mbarrier, "bulk copy", site)?;
        self.check_mbarrier_fence(mbarrier, site)?;
        let bytes = cells.data.len() as u32;
        self.report.bulk_bytes += u64::from(bytes);
        self.last_flight = if self.last_flight == Busy::MAX { FIRST_FLIGHT } else { self.last_flight + 1 };
        let busy = self.last_flight;
        // In the list first, so that a fault can tell whose the destination is.
        let cargo = Cargo::Bulk { bytes, pieces: Vec::new() };
        self.flights.push(Flight { busy, mbarrier, thread: self.current, site, cargo });
        let mut pieces = Vec::with_capacity(cells.data.len() / 16);
        for index in 0..cells.data.len() / 16 {
            let to = swizzle.apply(shared.wrapping_add(16 * index as u32));
            let begun = self.shared.check_proxy(to);
            begun
                .and_then(|()| self.shared.begin_copy(to, &self.clocks, site, busy))
                .map_err(|problem| self.shared_fault(problem, to, "bulk copy to shared", site))?;
            pieces.push((to, cells.piece(index)));
        }
        if let Some(flight) = self.flights.last_mut() {
            flight.cargo = Cargo::Bulk { bytes, pieces };
        }
        Ok(())
    }

    /// An arrival once the running lane's `cp.async` so far have landed.
    pub fn arrive_after_copies(&mut self, mbarrier: u32, site: Site) -> Result<(), Fault> {
        let mbarrier = self.use_mbarrier(mbarrier, "cp.async.mbarrier.arrive", site)?;
        let cargo = Cargo::Copies(self.lanes[self.current].copies_issued);
        self.flights.push(Flight { busy: 0, mbarrier, thread: self.current, site, cargo });
        Ok(())
    }

    /// Whether an arrival that waits for all of a thread's `cp.async` is on its way.
    pub fn arrival_follows(&self, thread: usize) -> bool {
        let issued = self.lanes[thread].copies_issued;
        let covers = |flight: &Flight| matches!(flight.cargo, Cargo::Copies(upto) if upto == issued);
        self.flights.iter().any(|flight| flight.thread == thread && covers(flight))
    }

    /// Lets the flight at `index` land.
    pub fn land(&mut self, index: usize) -> Result<(), Fault> {
        let Flight { mbarrier, thread, site, cargo, .. } = self.flights.remove(index);
        self.become_thread(thread);
        self.shared.enter(self.mbarriers[mbarrier].rank);
        match cargo {
            Cargo::Bulk { bytes, pieces } => {
                let agent = Agent::Mbarrier(mbarrier);
                let stamp = self.clocks.set_off(agent, thread);
                for (to, piece) in pieces {
                    self.shared.land_bulk(to, piece, &self.clocks, stamp, site);
                }
                self.landed(mbarrier, bytes, agent, stamp.clock())
            }
            Cargo::Copies(upto) => {
                while let Some(&copy) = self.lanes[thread].copies.front().filter(|copy| copy.number < upto) {
                    self.lanes[thread].copies.pop_front();
                    self.land_copy(copy)?;
                }
                self.arrive_at(mbarrier, site)
            }
        }
    }

    /// Lets the newest flight land whose mbarrier a lane waits at; whether there was one. The others stay: copies land in any order, and
    /// this one is the least like that in which they set off.
    pub fn land_awaited(&mut self) -> Result<bool, Fault> {
        let awaited = |flight: &Flight| !self.mbarriers[flight.mbarrier].waiters.is_empty();
        let Some(index) = self.flights.iter().rposition(awaited) else { return Ok(false) };
        self.land(index).map(|()| true)
    }

    /// The fault of a block that ended too soon.
    pub fn flights_at_end(&self) -> Result<(), Fault> {
        let Some(flight) = self.flights.first() else { return Ok(()) };
        Err(self.left_in_flight(flight))
    }

    /// The fault of a block that ended while a copy to it was on its way.
    pub fn left_in_flight(&self, flight: &Flight) -> Fault {
        let at = Some(self.place(flight.thread, flight.site));
        let barrier = &self.mbarriers[flight.mbarrier];
        let target = self.shared.describe_in(barrier.rank, barrier.address);
        let detail =
            format!("the block ended while a copy was on its way that completes on the mbarrier at {target}");
        self.fault(FaultKind::InFlight, at, None, detail)
    }
}
