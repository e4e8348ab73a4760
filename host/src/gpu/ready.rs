//! Kernels that products with a matrix take, made ready when it is made: which of them a step launches depends on how many rows it has, and none of a
//! server's steps should wait for a compiler.

use tilewright_kernels::{
    abi::KernelSpec,
    dequantize_int4::{DEQUANTIZE_HALVES, DEQUANTIZE_INT4},
    gather_columns::GATHER_COLUMNS,
    gemm_bf16,
    gemm_few::{self, Activations, Weights},
    gemm_sm90::{BF16_NARROW, BF16_WIDE, INT8_NARROW, INT8_WIDE},
    gemm_whole,
    quantize_rows::QUANTIZE_ROWS,
    rms_norm::RMS_NORM_INT8,
};

use super::{Driver, GpuDevice, storage::Stored};
use crate::Result;

impl Stored {
    /// The kernels of its products, whatever the rows.
    fn kernels(&self) -> Vec<&'static KernelSpec> {
        match self {
            Stored::Bf16(None) => gemm_bf16::TILES.iter().map(|tile| tile.spec).collect(),
            Stored::Bf16(Some(_)) => {
                [&BF16_WIDE, &BF16_NARROW, &gemm_whole::BF16].into_iter().chain(few(Weights::Bf16)).collect()
            }
            Stored::Int8(_) => [&INT8_WIDE, &INT8_NARROW, &QUANTIZE_ROWS, &RMS_NORM_INT8]
                .into_iter()
                .chain(few(Weights::Int8))
                .collect(),
            Stored::Int4(int4) => {
                let dequantize = if int4.in_halves { &DEQUANTIZE_HALVES } else { &DEQUANTIZE_INT4 };
                let mut kernels = vec![dequantize, &BF16_WIDE, &BF16_NARROW];
                if int4.orders.iter().any(|orders| orders.count > 0) {
                    kernels.push(&GATHER_COLUMNS);
                }
                for part in &int4.parts {
                    let weights = Weights::Int4 { groups: part.groups, activations: Activations::Bf16 };
                    kernels.extend(few(weights));
                    let whole = gemm_whole::VARIANTS.iter().filter(|variant| variant.weights == weights);
                    kernels.extend(
                        whole
                            .flat_map(|variant| [Some(&variant.one), Some(&variant.half), variant.chain])
                            .flatten(),
                    );
                }
                kernels
            }
        }
    }
}

fn few(weights: Weights) -> impl Iterator<Item = &'static KernelSpec> {
    let of_kind = gemm_few::VARIANTS.iter().filter(move |variant| variant.weights == weights);
    of_kind.map(|variant| &variant.spec)
}

impl<Dr: Driver> GpuDevice<Dr> {
    /// Makes the kernels of products with a matrix ready.
    pub(super) fn make_ready(&self, stored: &Stored) -> Result<()> {
        self.driver.prepare(&stored.kernels())
    }
}
