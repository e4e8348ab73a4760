//! Products of bytes (W8A8): activations are rounded to eight bits a token, by the norm before the product where there is one, and else by a
//! launch of its own.

use bytemuck::cast_slice;
use rayon::prelude::*;
use tilewright_kernels::{
    abi,
    gemm_few::{Weights, pack::Rows},
    gemm_sm90::launch::Element,
    quantize_rows::QUANTIZE_ROWS,
    rms_norm::RMS_NORM_INT8,
};

use super::{
    Driver, GpuDevice, GpuMatrix, GpuTensor, GpuVector,
    gemm::Product,
    scratch,
    storage::{Int8, Stored, WORD, dim, require, scales_of_codes, shape},
};
use crate::{ActivationBits, QuantizedPart, Result};

/// Inputs of a product whose sums stay within 31 bits.
const MOST_COLS: usize = 1 << 17;
/// Of a row of bytes that the copy engine takes.
const COLS_STEP: usize = 16;

/// Whether the kernels take a part.
pub(super) fn is_of_bytes(part: &QuantizedPart) -> bool {
    part.activations == ActivationBits::Eight
        && part.permutation.is_none()
        && part.is_symmetric()
        && part.rows > 0
        && part.rows.is_multiple_of(8)
        && part.cols.is_multiple_of(COLS_STEP)
        && part.cols <= MOST_COLS
}

impl<Dr: Driver> GpuDevice<Dr> {
    /// Codes, then scales, then the factors of activations.
    pub(super) fn make_int8(&self, part: &QuantizedPart, order: Rows) -> Result<GpuMatrix<Dr>> {
        let (rows, cols) = (part.rows, part.cols);
        let mut codes = vec![0; rows * cols];
        codes.par_chunks_exact_mut(cols).enumerate().for_each(|(row, codes)| {
            let given = &part.codes[order.source(row, rows) * cols..][..cols];
            // Less 128: the highest bit is flipped.
            codes.iter_mut().zip(given).for_each(|(code, given)| *code = given ^ 0x80);
        });
        let scales: Vec<f32> = (0..rows).map(|row| part.scales[order.source(row, rows)]).collect();
        let factors = part.pre_scale.as_deref().unwrap_or(&[]);
        let factors_at = codes.len() + rows * WORD;
        let (buffer, address) = self.allocate("matrix", &[factors_at + size_of_val(factors)], "weights")?;
        self.upload(&buffer, 0, &codes)?;
        self.upload(&buffer, codes.len(), cast_slice(&scales))?;
        self.upload(&buffer, factors_at, cast_slice(factors))?;
        let maps = self.weight_maps(address, rows, cols, size_of::<u8>())?;
        let int8 = Int8 {
            maps: maps.ok_or_else(|| shape("matrix", "rows", "a multiple of 8", rows))?,
            g_scales: scales_of_codes(address, rows, cols),
            g_factors: if factors.is_empty() { 0 } else { address + factors_at as u64 },
        };
        let stored = Stored::Int8(int8);
        self.make_ready(&stored)?;
        Ok(GpuMatrix { _buffer: buffer, address, rows, cols, stored, is_paired: false })
    }

    /// That codes are those of the product's weights.
    pub(super) fn check_codes(&self, op: &'static str, x: &GpuTensor<Dr>, w: &GpuMatrix<Dr>) -> Result<()> {
        let fit = x.codes_for == 0 || x.codes_for == w.address;
        require(fit, op, "x", "rows of bf16, or codes for these weights", "codes for others")
    }

    /// Products as [`GpuDevice::launch_int4`] has them, of the rows of `x`.
    pub(super) fn launch_int8(
        &self,
        op: &'static str,
        x: &GpuTensor<Dr>,
        products: [Product; 2],
        first_of_prompts: u32,
        int8: &Int8,
    ) -> Result<()> {
        let Product { a, m, n, k, .. } = products[0];
        // Held until the launches that read it are in the stream.
        let mut held = scratch::lock(&self.prepared_scratch);
        let codes = match x.codes_for {
            0 => held.0.at_least(self, m as usize * (k as usize + WORD), false)?,
            _ => a,
        };
        let scales = scales_of_codes(codes, m as usize, k as usize);
        if x.codes_for == 0 {
            let params = abi::QuantizeRows { x: a, factors: int8.g_factors, codes, scales, rows: m, cols: k };
            // SAFETY: `a` is `[m, k]`, factors are 0 or `[k]`, and the scratch holds codes and scales.
            unsafe { self.launch(&QUANTIZE_ROWS, [m, 1, 1], params)? };
        }
        let [generated, prompts] = products.map(|product| Product {
            a: codes,
            a_scales: scales,
            w_scales: int8.g_scales,
            ..product
        });
        let operand = int8.maps.operand(Element::Int8, n, k);
        self.launch_few_in_parts(op, generated.rows(0, first_of_prompts), Weights::Int8, operand)?;
        self.launch_many(prompts.rows(first_of_prompts, m), &int8.maps)
    }

    /// The norm of `x` as codes for the product with `reader`; of other weights than those of bytes, as bf16.
    pub(super) fn launch_rms_norm_for(
        &self,
        x: &GpuTensor<Dr>,
        weight: &GpuVector<Dr>,
        eps: f32,
        reader: &GpuMatrix<Dr>,
        out: &mut GpuTensor<Dr>,
    ) -> Result<()> {
        let op = "rms_norm_for";
        require(reader.cols == x.cols, op, "columns of what reads it", x.cols, reader.cols)?;
        let Stored::Int8(int8) = &reader.stored else {
            return self.launch_rms_norm("rms_norm", x, None, weight, eps, out);
        };
        require(weight.len == x.cols, op, "weight", x.cols, weight.len)?;
        require(out.cols == x.cols, op, "columns of out", x.cols, out.cols)?;
        out.resize(op, "out", x.rows, x.generated)?;
        let (rows, cols) = (dim(op, "rows", x.rows)?, dim(op, "cols", x.cols)?);
        let params = abi::RmsNormInt8 {
            x: x.numbers(op, "x")?,
            weight: weight.address,
            factors: int8.g_factors,
            codes: out.address,
            scales: scales_of_codes(out.address, x.rows, x.cols),
            rows,
            cols,
            eps,
            reserved: 0,
        };
        // SAFETY: `x` is `[rows, cols]`, `weight` `[cols]`, as checked above, and factors are 0 or `[cols]`. Codes and scales take no more than the
        // bf16 that `out` has room for: rows have 16 columns or more.
        unsafe { self.launch(&RMS_NORM_INT8, [rows, 1, 1], params)? };
        out.codes_for = reader.address;
        Ok(())
    }
}
