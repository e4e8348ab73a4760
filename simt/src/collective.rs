//! What the lanes of a warp do together.

use crate::context::{Context, Space};
use crate::fault::{Fault, FaultKind};
use crate::lane::{Collective, Lane, State};
use crate::matrix::{Factors, MmaOperands, byte_element, float_element, ldmatrix, mma_m16n8, stmatrix_trans};
use crate::requests::Kind;

/// How a warp stands once none of its lanes can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// All lanes wait in the same place.
    Together(Collective),
    Finished,
    /// A lane waits at an mbarrier; the others can't meet without it.
    Blocked,
}

impl Context {
    /// How `warp` stands. All its lanes must wait or have finished.
    pub fn standing(&self, warp: usize) -> Result<Standing, Fault> {
        let threads = self.warp_threads(warp);
        let first = threads.start;
        if self.states[threads.clone()].contains(&State::Blocked) {
            return Ok(Standing::Blocked);
        }
        let same = |thread: usize| {
            self.states[thread] == self.states[first]
                && (self.states[thread] == State::Finished || self.same_place(thread, first))
        };
        match threads.clone().find(|&thread| !same(thread)) {
            Some(thread) => Err(self.disagreement(first, thread)),
            None if self.states[first] == State::Finished => Ok(Standing::Finished),
            None => Ok(Standing::Together(self.lanes[first].collective)),
        }
    }

    pub fn same_place(&self, one: usize, other: usize) -> bool {
        let (one, other) = (&self.lanes[one], &self.lanes[other]);
        one.collective == other.collective
            && (one.site == other.site || self.sites.decode(one.site) == self.sites.decode(other.site))
    }

    /// The fault of two lanes of a warp that can't meet.
    fn disagreement(&self, one: usize, other: usize) -> Fault {
        let (waiting, absent) = match self.states[one] {
            State::Waiting => (one, other),
            _ => (other, one),
        };
        let what = |thread: usize| match self.states[thread] {
            State::Finished => "has finished".to_owned(),
            _ => format!("is at {}", self.lanes[thread].collective.name()),
        };
        let barrier = |thread: usize| {
            self.states[thread] == State::Finished
                || matches!(self.lanes[thread].collective, Collective::Barrier { .. })
        };
        let kind = match barrier(waiting) && barrier(absent) {
            true => FaultKind::BarrierDivergence,
            false => FaultKind::WarpDivergence,
        };
        let detail = format!(
            "waits in {}, but lane {} of its warp {}",
            self.lanes[waiting].collective.name(),
            absent % 32,
            what(absent)
        );
        let other = (self.states[absent] == State::Waiting).then(|| self.lane_place(absent));
        self.fault(kind, Some(self.lane_place(waiting)), other, detail)
    }

    /// A waiting lane and the line it waits at.
    pub fn lane_place(&self, thread: usize) -> crate::Place {
        self.place(thread, self.lanes[thread].site)
    }

    /// Executes a warp-wide instruction that all lanes of `warp` wait in, barriers aside. Of them `bar.warp.sync` alone orders
    /// memory among the lanes.
    pub fn execute(&mut self, warp: usize, collective: Collective) -> Result<(), Fault> {
        let threads = self.warp_threads(warp);
        match collective {
            Collective::Mma(factors) => self.execute_mma(warp, factors)?,
            Collective::Ldmatrix { trans } => self.execute_ldmatrix(warp, trans)?,
            Collective::StmatrixTrans => self.execute_stmatrix_trans(warp)?,
            Collective::WgmmaFence => self.execute_wgmma_fence(warp),
            Collective::WgmmaCommit => self.execute_wgmma_commit(warp),
            Collective::WgmmaWait => {
                self.whole_warp(warp)?;
                self.execute_wgmma_wait(warp)?;
            }
            Collective::ClusterArrive { relaxed } => self.arrive_at_cluster_barrier(warp, relaxed)?,
            Collective::Elect => {
                let lanes = self.lanes[threads.clone()].iter_mut().enumerate();
                lanes.for_each(|(lane, elected)| elected.result[0] = u32::from(lane == 0));
            }
            Collective::WarpSync => self.clocks.sync_warp(warp),
            _ => exchange(&mut self.lanes[threads.clone()], collective),
        }
        self.states[threads].fill(State::Ready);
        Ok(())
    }

    /// Executes an instruction that all lanes of the four warps from `warp` on wait in.
    pub fn execute_warpgroup(&mut self, warp: usize, collective: Collective) -> Result<(), Fault> {
        let threads = 32 * warp..32 * warp + 128;
        match collective {
            Collective::Wgmma { registers } => self.execute_wgmma(threads.clone(), registers)?,
            _ => self.execute_set_max_registers(threads.clone())?,
        }
        self.states[threads].fill(State::Ready);
        Ok(())
    }

    fn execute_set_max_registers(&mut self, threads: std::ops::Range<usize>) -> Result<(), Fault> {
        let [registers, increase, ..] = self.lanes[threads.start].operands;
        let same = |thread: &usize| self.lanes[*thread].operands[..2] == [registers, increase];
        let at = |thread| Some(self.lane_place(thread));
        if let Some(other) = threads.clone().find(|thread| !same(thread)) {
            let detail = format!("setmaxnreg {registers}: the warpgroup's lanes disagree about it");
            return Err(self.fault(FaultKind::WarpDivergence, at(threads.start), at(other), detail));
        }
        if !registers.is_multiple_of(8) || !(24..=256).contains(&registers) {
            let detail = format!("setmaxnreg {registers}: expected a multiple of 8 from 24 to 256");
            return Err(self.fault(FaultKind::InvalidOperand, at(threads.start), None, detail));
        }
        Ok(())
    }

    fn whole_warp(&self, warp: usize) -> Result<usize, Fault> {
        let threads = self.warp_threads(warp);
        if threads.len() == 32 {
            return Ok(threads.start);
        }
        let name = self.lanes[threads.start].collective.name();
        let detail = format!("{name} needs 32 lanes; this warp has {}", threads.len());
        Err(self.fault(FaultKind::WarpDivergence, Some(self.lane_place(threads.start)), None, detail))
    }

    fn execute_mma(&mut self, warp: usize, factors: Factors) -> Result<(), Fault> {
        let first = self.whole_warp(warp)?;
        self.report.mma += 1;
        let lanes = &mut self.lanes[first..first + 32];
        let mut operands = [MmaOperands::default(); 32];
        for (operands, lane) in operands.iter_mut().zip(&*lanes) {
            let [a0, a1, a2, a3, b0, b1, c @ ..] = lane.operands;
            *operands = MmaOperands { a: [a0, a1, a2, a3], b: [b0, b1], c };
        }
        let results = match factors {
            Factors::Float(ty) => mma_m16n8::<f64, 16>(&operands, float_element(ty)),
            Factors::S8 => mma_m16n8::<i8, 32>(&operands, byte_element),
        };
        for (lane, d) in lanes.iter_mut().zip(results) {
            lane.result = d;
        }
        Ok(())
    }

    fn execute_ldmatrix(&mut self, warp: usize, trans: bool) -> Result<(), Fault> {
        let first = self.whole_warp(warp)?;
        self.report.ldmatrix += 1;
        for matrix in 0..4 {
            let mut rows = [[0; 4]; 8];
            for (row, values) in rows.iter_mut().enumerate() {
                let thread = first + 8 * matrix + row;
                // The lane that gives the address is the one that reads, as far as races go.
                self.become_thread(thread);
                let (address, site) = (self.lanes[thread].operands[0], self.lanes[thread].site);
                self.requests.log(thread, Kind::Shared, u64::from(address), 16, site);
                *values = self.shared.load(address, &self.clocks, site).map_err(|problem| {
                    self.access_fault(problem, Space::Shared(address), "ldmatrix row", 16, site)
                })?;
            }
            for (lane, value) in self.lanes[first..first + 32].iter_mut().zip(ldmatrix(&rows, trans)) {
                lane.result[matrix] = value;
            }
        }
        Ok(())
    }

    fn execute_stmatrix_trans(&mut self, warp: usize) -> Result<(), Fault> {
        let first = self.whole_warp(warp)?;
        for matrix in 0..4 {
            let values = std::array::from_fn(|lane| self.lanes[first + lane].operands[1 + matrix]);
            for (row, values) in stmatrix_trans(&values).into_iter().enumerate() {
                let thread = first + 8 * matrix + row;
                // The lane that gives the address is the one that writes, as far as races go.
                self.become_thread(thread);
                let (address, site) = (self.lanes[thread].operands[0], self.lanes[thread].site);
                self.requests.log(thread, Kind::Shared, u64::from(address), 16, site);
                self.shared.store(address, values, &self.clocks, site).map_err(|problem| {
                    self.access_fault(problem, Space::Shared(address), "stmatrix row", 16, site)
                })?;
            }
        }
        Ok(())
    }
}

/// Shuffles and votes. A shuffle from a lane that isn't there answers one's own value.
fn exchange(lanes: &mut [Lane], collective: Collective) {
    let mut values = [0u32; 32];
    for (value, lane) in values.iter_mut().zip(&*lanes) {
        *value = lane.operands[0];
    }
    if collective == Collective::Ballot {
        let bits = values.iter().enumerate().fold(0, |bits, (lane, &vote)| bits | vote << lane);
        lanes.iter_mut().for_each(|lane| lane.result[0] = bits);
        return;
    }
    let present = lanes.len();
    for (own, lane) in lanes.iter_mut().enumerate() {
        let operand = (lane.operands[1] & 31) as usize;
        let source = match collective {
            Collective::ShflBfly => own ^ operand,
            Collective::ShflIdx => operand,
            Collective::ShflDown => own + operand,
            Collective::ShflUp => own.wrapping_sub(operand),
            _ => own,
        };
        lane.result[0] = values[if source < present { source } else { own }];
    }
}
