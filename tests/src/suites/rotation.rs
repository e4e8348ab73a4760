//! What queries and keys are normed and turned by, drawn and uploaded, for the kernels that do it.

use std::ops::Range;

use tilewright_host::gpu::Driver;
use tilewright_kernels::abi;
use tilewright_reference::{RopeScaling, rope_frequencies, rope_table};

use crate::{
    harness::{Arena, Failure},
    random::Random,
};

/// Rows of the table of angles.
const POSITIONS: usize = 97;
pub const EPS: f32 = 1e-6;

pub struct Rotation {
    pub q_norm: Option<Vec<f32>>,
    pub k_norm: Option<Vec<f32>>,
    pub cos_sin: Vec<f32>,
    /// Of each token.
    pub positions: Vec<u32>,
}

impl Rotation {
    /// `normed` says whether queries and keys have a norm.
    pub fn draw(
        random: &mut Random,
        head_dim: usize,
        scaling: RopeScaling,
        normed: [bool; 2],
        tokens: usize,
    ) -> Rotation {
        let frequencies = rope_frequencies(head_dim, 10_000.0, scaling);
        let [q_norm, k_norm] = normed.map(|normed| normed.then(|| random.f32s(head_dim, 1.0)));
        Rotation {
            q_norm,
            k_norm,
            cos_sin: rope_table(&frequencies, POSITIONS).iter().map(|&value| value as f32).collect(),
            positions: (0..tokens).map(|_| random.below(POSITIONS) as u32).collect(),
        }
    }

    /// The parameters that say how `tokens` are turned; the others are left open.
    pub fn params<D: Driver>(
        &self,
        arena: &mut Arena<'_, D>,
        tokens: Range<usize>,
    ) -> Result<abi::RopeAppend, Failure> {
        let mut norm = |name, values: &Option<Vec<f32>>| match values {
            Some(values) => arena.input_f32(name, values).map(|handle| arena.address(handle)),
            None => Ok(0),
        };
        let (q_norm, k_norm) = (norm("q_norm", &self.q_norm)?, norm("k_norm", &self.k_norm)?);
        let cos_sin = arena.input_f32("cos_sin", &self.cos_sin)?;
        let positions = arena.input_u32("positions", &self.positions[tokens.clone()])?;
        Ok(abi::RopeAppend {
            q_norm,
            k_norm,
            cos_sin: arena.address(cos_sin),
            positions: arena.address(positions),
            tokens: tokens.len() as u32,
            eps: EPS,
            ..abi::RopeAppend::default()
        })
    }
}
