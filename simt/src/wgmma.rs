//! Matrix products of a warpgroup, and the accumulators that they hold until they have been waited for.

use std::ops::Range;

use crate::accumulators::{NAMES, Pending, poison};
use crate::clock::Agent;
use crate::context::Context;
use crate::fault::{Fault, FaultKind};
use crate::matrix::{Factors, Number, Products, byte_element, float_element};
use crate::operands::Operands;

/// The type of the operands of `wgmma`, where it is a float.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WgmmaType {
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
}

impl Context {
    fn wgmma_fault(&self, kind: FaultKind, thread: usize, other: Option<usize>, detail: String) -> Fault {
        self.fault(kind, Some(self.lane_place(thread)), other.map(|other| self.lane_place(other)), detail)
    }

    /// A product of the four warps from `threads.start` on, A in registers or in shared memory.
    pub fn execute_wgmma(&mut self, threads: Range<usize>, registers: bool) -> Result<(), Fault> {
        let first = threads.start;
        let operands = self.operands(first, registers);
        if let Some(other) = threads.clone().find(|&thread| self.operands(thread, registers) != operands) {
            let detail = "wgmma: the warpgroup's lanes give different operands".to_owned();
            return Err(self.wgmma_fault(FaultKind::WarpDivergence, first, Some(other), detail));
        }
        operands
            .check()
            .map_err(|detail| self.wgmma_fault(FaultKind::InvalidOperand, first, None, detail))?;
        let (n, each) = (operands.n, operands.n as usize / 2);
        if let Some(thread) = threads.clone().find(|&thread| self.lanes[thread].accumulators().len() != each)
        {
            let found = self.lanes[thread].accumulators().len();
            let detail = format!("wgmma with n = {n}: expected {each} accumulators a lane, found {found}");
            return Err(self.wgmma_fault(FaultKind::InvalidOperand, thread, None, detail));
        }
        self.report.wgmma += 1;
        match operands.factors {
            Factors::Float(ty) => self.multiply_group::<f64, 16>(first, &operands, float_element(ty)),
            Factors::S8 => self.multiply_group::<i8, 32>(first, &operands, byte_element),
        }
    }

    fn multiply_group<T: Number, const K: usize>(
        &mut self,
        first: usize,
        operands: &Operands,
        element: impl Fn(&[u32], usize) -> T + Copy,
    ) -> Result<(), Fault> {
        let (warps, site) = (first / 32..first / 32 + 4, self.lanes[first].site);
        let stamp = self.clocks.set_off(Agent::Warpgroup(warps.start / 4), first);
        self.become_current(first);
        self.clocks.become_warpgroup(warps.clone(), stamp);
        let products = self.read_operands::<T, K>(operands, element, site)?;
        self.last_accumulator = (self.last_accumulator + 1) % NAMES;
        for (quarter, warp) in warps.enumerate() {
            self.multiply_warp(warp, quarter, operands, &products)?;
            self.products[warp].last = stamp.clock();
        }
        Ok(())
    }

    /// A warp's 16 rows of a product: takes its accumulators out of its registers and keeps them.
    fn multiply_warp<T: Number, const K: usize>(
        &mut self,
        warp: usize,
        quarter: usize,
        operands: &Operands,
        products: &Products<T, K>,
    ) -> Result<(), Fault> {
        let first = 32 * warp;
        let integer = operands.factors == Factors::S8;
        let pending = self.pending_registers(warp, integer)?;
        if !self.products[warp].fenced && (pending.is_none() || operands.registers) {
            let detail = "wgmma whose registers no wgmma.fence has followed".to_owned();
            return Err(self.wgmma_fault(FaultKind::MissingFence, first, None, detail));
        }
        let (name, mut values) = match pending {
            Some(index) => {
                let Pending { name, values, .. } = self.products[warp].pending.swap_remove(index);
                (name, values)
            }
            None => {
                let lanes = self.lanes[first..first + 32].iter();
                (self.last_accumulator, lanes.flat_map(|lane| lane.accumulators()).copied().collect())
            }
        };
        if !operands.accumulate {
            // Zero, be it a float or an integer.
            values.fill(0);
        }
        products.multiply(16 * quarter, &mut values);
        for lane in &mut self.lanes[first..first + 32] {
            for (register, d) in lane.accumulators_mut().iter_mut().enumerate() {
                *d = poison(name, register);
            }
        }
        debug_assert_eq!(values.len(), 16 * products.n);
        let site = self.lanes[first].site;
        self.products[warp].pending.push(Pending { name, integer, group: None, values, site });
        Ok(())
    }

    /// `wgmma.fence` of a warp.
    pub fn execute_wgmma_fence(&mut self, warp: usize) {
        self.products[warp].fenced = true;
    }

    /// `wgmma.commit_group` of a warp.
    pub fn execute_wgmma_commit(&mut self, warp: usize) {
        let products = &mut self.products[warp];
        let group = products.groups.len() as u32;
        products.groups.push(products.last);
        for pending in &mut products.pending {
            pending.group = pending.group.or(Some(group));
        }
    }

    /// `wgmma.wait_group` of a warp: gives the accumulators back that its lanes ask for.
    pub fn execute_wgmma_wait(&mut self, warp: usize) -> Result<(), Fault> {
        let first = 32 * warp;
        let [newest, integer, ..] = self.lanes[first].operands;
        let integer = integer != 0;
        let products = &mut self.products[warp];
        products.fenced = false;
        let done = (products.groups.len() as u32).saturating_sub(newest);
        if done > products.done {
            products.done = done;
            let clock = products.groups[done as usize - 1];
            let group = self.warpgroup_of(warp) / 4;
            self.clocks.see(warp, Agent::Warpgroup(group), clock);
        }
        let Some(index) = self.pending_registers(warp, integer)? else {
            let count = 32 * self.lanes[first].accumulators().len();
            // A number doesn't show that it was made of another: that the one asked for is missing does.
            let used = integer && self.products[warp].awaits_integers(count);
            return if used { Err(self.used_accumulators(first)) } else { Ok(()) };
        };
        let Pending { group, site, .. } = self.products[warp].pending[index];
        if group.is_none_or(|group| group >= self.products[warp].done) {
            let issued = self.place(first, site);
            let detail = format!(
                "waits for all but {newest} groups and takes accumulators that are still on their way"
            );
            return Err(self.fault(FaultKind::InFlight, Some(self.lane_place(first)), Some(issued), detail));
        }
        let Pending { values, .. } = self.products[warp].pending.swap_remove(index);
        let lanes = self.lanes[first..first + 32].iter_mut();
        for (lane, values) in lanes.zip(values.chunks_exact(values.len() / 32)) {
            lane.accumulators_mut().copy_from_slice(values);
        }
        Ok(())
    }

    /// The fault of a warp that ended before its products had.
    pub fn products_at_end(&self, warp: usize) -> Result<(), Fault> {
        let products = &self.products[warp];
        let Some(pending) = products.abandoned() else { return Ok(()) };
        let at = Some(self.place(32 * warp, pending.site));
        let complete = pending.group.is_some_and(|group| group < products.done);
        let detail = match complete {
            true => "ended, and no wait for this wgmma was given its integer accumulators as they were left",
            false => "ended before it waited for its wgmma",
        };
        Err(self.fault(FaultKind::InFlight, at, None, detail.to_owned()))
    }
}
