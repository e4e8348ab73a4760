//! The operands of `wgmma`: how a lane packs them, and reading them.

use crate::context::{Context, Space};
use crate::descriptor::Descriptor;
use crate::fault::Fault;
use crate::matrix::{Factors, Number, Products, place_in_a};
use crate::problem::Problem;
use crate::site::Site;
use crate::wgmma::WgmmaType;

/// The operands of one `wgmma`, the same in all lanes, A in registers aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Operands {
    pub n: u32,
    pub factors: Factors,
    pub accumulate: bool,
    pub trans_a: bool,
    pub trans_b: bool,
    /// A comes from registers.
    pub registers: bool,
    a: u64,
    b: u64,
}

/// Packs the operands of `wgmma` for a lane, as [`Context::operands`] unpacks them.
pub(crate) fn pack(factors: Factors, n: u32, flags: [bool; 3], a: [u32; 4], b: u64) -> [u32; 8] {
    let flags = flags.iter().rev().fold(0, |bits, &flag| bits << 1 | u32::from(flag));
    let ty = match factors {
        Factors::Float(WgmmaType::Bf16) => 0,
        Factors::Float(WgmmaType::F16) => 1,
        Factors::S8 => 2,
    };
    [n, ty | flags << 2, b as u32, (b >> 32) as u32, a[0], a[1], a[2], a[3]]
}

/// A descriptor as the A of [`pack`].
pub(crate) fn descriptor_words(bits: u64) -> [u32; 4] {
    [bits as u32, (bits >> 32) as u32, 0, 0]
}

impl Operands {
    /// # Errors
    /// What no device takes.
    pub fn check(&self) -> Result<(), String> {
        let Self { n, factors, .. } = *self;
        if !n.is_multiple_of(8) || !(8..=256).contains(&n) {
            return Err(format!("wgmma with n = {n}: expected a multiple of 8 from 8 to 256"));
        }
        if factors == Factors::S8 && n > 32 && !n.is_multiple_of(16) {
            return Err(format!("wgmma of bytes with n = {n}: expected 8, 24 or a multiple of 16 up to 256"));
        }
        Ok(())
    }
}

impl Context {
    pub fn operands(&self, thread: usize, registers: bool) -> Operands {
        let [n, flags, b0, b1, a0, a1, ..] = self.lanes[thread].operands;
        let wide = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        Operands {
            n,
            factors: match flags & 3 {
                0 => Factors::Float(WgmmaType::Bf16),
                1 => Factors::Float(WgmmaType::F16),
                _ => Factors::S8,
            },
            accumulate: flags & 4 != 0,
            trans_a: flags & 8 != 0,
            trans_b: flags & 16 != 0,
            registers,
            a: if registers { 0 } else { wide(a0, a1) },
            b: wide(b0, b1),
        }
    }

    /// Reads both operands on behalf of the warpgroup's agent. `element` takes an element out of packed registers.
    pub fn read_operands<T: Number, const K: usize>(
        &mut self,
        operands: &Operands,
        element: impl Fn(&[u32], usize) -> T + Copy,
        site: Site,
    ) -> Result<Box<Products<T, K>>, Fault> {
        let mut products = Box::new(Products::new(operands.n as usize));
        match operands.registers {
            true => self.take_a(&mut products, element),
            false => self.read_a(operands, &mut products, element, site)?,
        }
        self.read_b(operands, &mut products, element, site)?;
        Ok(products)
    }

    /// A from registers.
    fn take_a<T: Number, const K: usize>(
        &self,
        products: &mut Products<T, K>,
        element: impl Fn(&[u32], usize) -> T,
    ) {
        for thread in 0..128 {
            let [.., a0, a1, a2, a3, _, _] = self.lanes[self.current + thread].operands;
            for (register, bits) in [a0, a1, a2, a3].into_iter().enumerate() {
                let (row, k) = place_in_a::<K>(thread % 32, register);
                for i in 0..K / 8 {
                    products.a[thread / 32 * 16 + row][k + i] = element(&[bits], i);
                }
            }
        }
    }

    fn read_a<T: Number, const K: usize>(
        &mut self,
        operands: &Operands,
        products: &mut Products<T, K>,
        element: impl Fn(&[u32], usize) -> T,
        site: Site,
    ) -> Result<(), Fault> {
        let descriptor = Descriptor::decode(operands.a).map_err(|detail| self.operand_fault(site, detail))?;
        let each = K / 2;
        if operands.trans_a {
            for k in 0..K {
                for chunk in 0..64 / each {
                    let words = self.read_chunk(descriptor.mn_major(chunk as u32, k as u32), site)?;
                    for i in 0..each {
                        products.a[each * chunk + i][k] = element(&words, i);
                    }
                }
            }
            return Ok(());
        }
        for row in 0..64 {
            for chunk in 0..2 {
                let words = self.read_chunk(descriptor.k_major(row as u32, chunk as u32), site)?;
                for i in 0..each {
                    products.a[row][each * chunk + i] = element(&words, i);
                }
            }
        }
        Ok(())
    }

    fn read_b<T: Number, const K: usize>(
        &mut self,
        operands: &Operands,
        products: &mut Products<T, K>,
        element: impl Fn(&[u32], usize) -> T,
        site: Site,
    ) -> Result<(), Fault> {
        let descriptor = Descriptor::decode(operands.b).map_err(|detail| self.operand_fault(site, detail))?;
        let (each, n) = (K / 2, operands.n as usize);
        if operands.trans_b {
            for k in 0..K {
                for chunk in 0..n / each {
                    let words = self.read_chunk(descriptor.mn_major(chunk as u32, k as u32), site)?;
                    for i in 0..each {
                        products.b[k][each * chunk + i] = element(&words, i);
                    }
                }
            }
            return Ok(());
        }
        for column in 0..n {
            for chunk in 0..2 {
                let words = self.read_chunk(descriptor.k_major(column as u32, chunk as u32), site)?;
                for i in 0..each {
                    products.b[each * chunk + i][column] = element(&words, i);
                }
            }
        }
        Ok(())
    }

    /// Sixteen bytes, read on behalf of the warpgroup's agent.
    #[inline]
    fn read_chunk(&mut self, address: u32, site: Site) -> Result<[u32; 4], Fault> {
        let loaded = self.shared.load::<[u32; 4]>(address, &self.clocks, site);
        let checked = loaded.and_then(|words| self.shared.check_proxy(address).map(|()| words));
        checked.map_err(|problem| self.operand_access_fault(problem, address, site))
    }

    /// Names the warp that hasn't seen what the operand was last touched by.
    #[cold]
    fn operand_access_fault(&mut self, problem: Problem, address: u32, site: Site) -> Fault {
        if let Problem::Race(conflict) = problem {
            let first = self.current / 32;
            let unseen = |warp: &usize| !self.clocks.seen_by(*warp..*warp + 1, conflict.stamp);
            if let Some(warp) = (first..first + 4).find(unseen) {
                self.become_thread(32 * warp);
            }
        }
        self.access_fault(problem, Space::Shared(address), "wgmma operand", 16, site)
    }
}
