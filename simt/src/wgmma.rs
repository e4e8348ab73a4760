//! Matrix products of a warpgroup, and the accumulators that they hold until they have been waited for.

use std::ops::Range;

use crate::clock::{Agent, OWN_MEMORY_FLOOR};
use crate::context::{Context, Space};
use crate::descriptor::Descriptor;
use crate::fault::{Fault, FaultKind};
use crate::matrix::{K, Products, decode, multiply};
use crate::problem::Problem;
use crate::site::Site;

/// The type of the operands of `wgmma`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WgmmaType {
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
}

/// What a register of an accumulator holds while the product is on its way: a signalling NaN that names both. Arithmetic
/// makes it a quiet one, which gives the use away.
fn poison(accumulator: u32, register: usize) -> u32 {
    0x7fa0_0000 | accumulator << 7 | register as u32
}
/// Accumulators in flight are told apart by this many names.
const NAMES: u32 = 1 << 13;

/// Whether a value is or was made of poison.
fn is_poisoned(bits: u32) -> bool {
    bits & 0x7fb0_0000 == 0x7fa0_0000
}

/// What a lane's registers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Registers {
    Values,
    /// All of an accumulator in flight, untouched.
    Pending(u32),
    /// Some use was made of one.
    Used,
}

fn classify(d: &[f32]) -> Registers {
    if !d.iter().any(|value| is_poisoned(value.to_bits())) {
        return Registers::Values;
    }
    let name = d[0].to_bits() >> 7 & (NAMES - 1);
    let untouched = d.iter().enumerate().all(|(register, value)| value.to_bits() == poison(name, register));
    if untouched { Registers::Pending(name) } else { Registers::Used }
}

/// A warp's part of an accumulator in flight.
#[derive(Debug)]
struct Pending {
    name: u32,
    /// The group of the last product that adds to it, once committed.
    group: Option<u32>,
    /// Registers of all lanes, lane by lane.
    values: Vec<f32>,
    site: Site,
}

/// A warp's matrix products in flight.
#[derive(Debug, Default)]
pub(crate) struct WarpProducts {
    /// Whether a fence has followed the last wait.
    fenced: bool,
    pending: Vec<Pending>,
    /// The clock of the warpgroup's agent after the last product, and after the last of each committed group.
    last: u32,
    groups: Vec<u32>,
    /// Groups waited for.
    done: u32,
}

/// The operands of one `wgmma`, the same in all lanes, A in registers aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Operands {
    n: u32,
    ty: WgmmaType,
    accumulate: bool,
    trans_a: bool,
    trans_b: bool,
    a: u64,
    b: u64,
}

/// Packs the operands of `wgmma` for a lane, as [`Context::execute_wgmma`] unpacks them.
pub(crate) fn pack(ty: WgmmaType, n: u32, flags: [bool; 3], a: [u32; 4], b: u64) -> [u32; 8] {
    let flags = flags.iter().rev().fold(0, |bits, &flag| bits << 1 | u32::from(flag));
    let ty = u32::from(ty == WgmmaType::F16);
    [n, ty | flags << 1, b as u32, (b >> 32) as u32, a[0], a[1], a[2], a[3]]
}

/// A descriptor as the A of [`pack`].
pub(crate) fn descriptor_words(bits: u64) -> [u32; 4] {
    [bits as u32, (bits >> 32) as u32, 0, 0]
}

impl Context {
    fn operands(&self, thread: usize, registers: bool) -> Operands {
        let [n, flags, b0, b1, a0, a1, ..] = self.lanes[thread].operands;
        let wide = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        Operands {
            n,
            ty: if flags & 1 == 0 { WgmmaType::Bf16 } else { WgmmaType::F16 },
            accumulate: flags & 2 != 0,
            trans_a: flags & 4 != 0,
            trans_b: flags & 8 != 0,
            a: if registers { 0 } else { wide(a0, a1) },
            b: wide(b0, b1),
        }
    }

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
        let n = operands.n;
        if !n.is_multiple_of(8) || !(8..=256).contains(&n) {
            let detail = format!("wgmma with n = {n}: expected a multiple of 8 from 8 to 256");
            return Err(self.wgmma_fault(FaultKind::InvalidOperand, first, None, detail));
        }
        let each = n as usize / 2;
        if let Some(thread) = threads.clone().find(|&thread| self.lanes[thread].accumulators().len() != each)
        {
            let found = self.lanes[thread].accumulators().len();
            let detail = format!("wgmma with n = {n}: expected {each} accumulators a lane, found {found}");
            return Err(self.wgmma_fault(FaultKind::InvalidOperand, thread, None, detail));
        }
        self.report.wgmma += 1;
        let site = self.lanes[first].site;
        let group = first / 128;
        let stamp = self.clocks.set_off(Agent::Warpgroup(group), first);
        self.current = first;
        self.clocks.become_warpgroup(group, stamp);
        let mut products = Box::new(Products::new(n as usize));
        self.read_a(&operands, registers, &mut products, site)?;
        self.read_b(&operands, &mut products, site)?;
        self.last_accumulator = (self.last_accumulator + 1) % NAMES;
        for warp in 4 * group..4 * group + 4 {
            self.multiply_warp(warp, &operands, registers, &products)?;
            self.products[warp].last = stamp.clock();
        }
        Ok(())
    }

    fn read_a(
        &mut self,
        operands: &Operands,
        registers: bool,
        products: &mut Products,
        site: Site,
    ) -> Result<(), Fault> {
        let first = self.current;
        if registers {
            for thread in 0..128 {
                let [.., a0, a1, a2, a3, _, _] = self.lanes[first + thread].operands;
                let (lane, row) = (thread % 32, thread / 32 * 16 + thread % 32 / 4);
                for (register, bits) in [a0, a1, a2, a3].into_iter().enumerate() {
                    let (row, k) = (row + 8 * (register % 2), 2 * (lane % 4) + 8 * (register / 2));
                    products.a[row][k] = decode(operands.ty, bits as u16);
                    products.a[row][k + 1] = decode(operands.ty, (bits >> 16) as u16);
                }
            }
            return Ok(());
        }
        let descriptor = Descriptor::decode(operands.a).map_err(|detail| self.operand_fault(site, detail))?;
        if operands.trans_a {
            for k in 0..K {
                for chunk in 0..8 {
                    let elements = self.read_chunk(descriptor.mn_major(chunk, k as u32), site)?;
                    for (i, bits) in elements.into_iter().enumerate() {
                        products.a[8 * chunk as usize + i][k] = decode(operands.ty, bits);
                    }
                }
            }
            return Ok(());
        }
        for row in 0..64 {
            for chunk in 0..2 {
                let elements = self.read_chunk(descriptor.k_major(row, chunk), site)?;
                for (i, bits) in elements.into_iter().enumerate() {
                    products.a[row as usize][8 * chunk as usize + i] = decode(operands.ty, bits);
                }
            }
        }
        Ok(())
    }

    fn read_b(&mut self, operands: &Operands, products: &mut Products, site: Site) -> Result<(), Fault> {
        let descriptor = Descriptor::decode(operands.b).map_err(|detail| self.operand_fault(site, detail))?;
        if operands.trans_b {
            for k in 0..K {
                for chunk in 0..operands.n / 8 {
                    let elements = self.read_chunk(descriptor.mn_major(chunk, k as u32), site)?;
                    for (i, bits) in elements.into_iter().enumerate() {
                        products.b[k][8 * chunk as usize + i] = decode(operands.ty, bits);
                    }
                }
            }
            return Ok(());
        }
        for column in 0..operands.n {
            for chunk in 0..2 {
                let elements = self.read_chunk(descriptor.k_major(column, chunk), site)?;
                for (i, bits) in elements.into_iter().enumerate() {
                    products.b[8 * chunk as usize + i][column as usize] = decode(operands.ty, bits);
                }
            }
        }
        Ok(())
    }

    /// Eight elements, read on behalf of the warpgroup's agent.
    #[inline]
    fn read_chunk(&mut self, address: u32, site: Site) -> Result<[u16; 8], Fault> {
        let loaded = self.shared.load::<[u32; 4]>(address, &self.clocks, site);
        match loaded.and_then(|words| self.shared.check_proxy(address).map(|()| words)) {
            Ok(words) => Ok(std::array::from_fn(|i| (words[i / 2] >> (16 * (i % 2))) as u16)),
            Err(problem) => Err(self.operand_access_fault(problem, address, site)),
        }
    }

    /// Names the warp that hasn't seen what the operand was last touched by.
    #[cold]
    fn operand_access_fault(&mut self, problem: Problem, address: u32, site: Site) -> Fault {
        if let Problem::Race(conflict) = problem {
            let group = self.current / 128;
            for warp in 4 * group..4 * group + 4 {
                self.become_thread(32 * warp);
                if !self.clocks.ordered(conflict.stamp, OWN_MEMORY_FLOOR) {
                    break;
                }
            }
        }
        self.access_fault(problem, Space::Shared(address), "wgmma operand", 16, site)
    }

    /// A warp's 16 rows of a product: takes its accumulators out of its registers and keeps them.
    fn multiply_warp(
        &mut self,
        warp: usize,
        operands: &Operands,
        registers: bool,
        products: &Products,
    ) -> Result<(), Fault> {
        let first = 32 * warp;
        let each = products.n / 2;
        let pending = self.pending_registers(warp)?;
        if !self.products[warp].fenced && (pending.is_none() || registers) {
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
            values.fill(0.0);
        }
        multiply(products, 16 * (warp % 4), &mut values);
        for lane in &mut self.lanes[first..first + 32] {
            for (register, d) in lane.accumulators_mut().iter_mut().enumerate() {
                *d = f32::from_bits(poison(name, register));
            }
        }
        debug_assert_eq!(values.len(), 32 * each);
        let site = self.lanes[first].site;
        self.products[warp].pending.push(Pending { name, group: None, values, site });
        Ok(())
    }

    /// Which accumulator in flight the registers are that a warp's lanes give; none if they are values.
    fn pending_registers(&self, warp: usize) -> Result<Option<usize>, Fault> {
        let first = 32 * warp;
        let registers = classify(self.lanes[first].accumulators());
        let name = match registers {
            Registers::Pending(name) => Some(name),
            _ => None,
        };
        let pending = &self.products[warp].pending;
        let found = pending.iter().position(|pending| Some(pending.name) == name);
        for thread in first..first + 32 {
            let own = classify(self.lanes[thread].accumulators());
            let gone = found.is_none() && name.is_some();
            let length = found
                .is_some_and(|i| pending[i].values.len() != 32 * self.lanes[thread].accumulators().len());
            if own != registers || own == Registers::Used || gone || length {
                let detail =
                    "accumulators of a wgmma that was still on its way were used, copied or taken apart"
                        .to_owned();
                return Err(self.wgmma_fault(FaultKind::InFlight, thread, None, detail));
            }
        }
        Ok(found)
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
        let newest = self.lanes[first].operands[0];
        let products = &mut self.products[warp];
        products.fenced = false;
        let done = (products.groups.len() as u32).saturating_sub(newest);
        if done > products.done {
            products.done = done;
            let clock = products.groups[done as usize - 1];
            self.clocks.see(warp, Agent::Warpgroup(warp / 4), clock);
        }
        let Some(index) = self.pending_registers(warp)? else { return Ok(()) };
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
        let running = |pending: &&Pending| pending.group.is_none_or(|group| group >= products.done);
        let Some(pending) = products.pending.iter().find(running) else { return Ok(()) };
        let at = Some(self.place(32 * warp, pending.site));
        let detail = "ended before it waited for its wgmma".to_owned();
        Err(self.fault(FaultKind::InFlight, at, None, detail))
    }
}
