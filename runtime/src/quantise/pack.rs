use half::f16;
use safetensors::Dtype;
use tilewright_host::{ActivationBits, CodeBits, DType, QuantizedPart, QuantizedSpec};

use super::matrix::Quantised;
use crate::Result;

/// A tensor to be written.
pub(super) struct Tensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

/// The tensors of a matrix in AutoGPTQ's layout: `qweight` `[cols / pack, rows]`, `qzeros` `[groups, rows / pack]` less one, `scales`
/// `[groups, rows]` f16, `g_idx` `[cols]`.
pub(super) fn gptq_tensors(name: &str, bits: usize, q: &Quantised) -> Vec<Tensor> {
    let (rows, cols, groups, pack) = (q.rows, q.cols, q.cols.div_ceil(q.group), 32 / bits);
    let word = |codes: &mut dyn Iterator<Item = u8>| {
        codes.enumerate().fold(0_u32, |word, (i, code)| word | u32::from(code) << (i * bits)).to_le_bytes()
    };
    let largest = ((1u32 << bits) - 1) as u8;
    let mut qweight = Vec::with_capacity(rows * cols / pack * 4);
    for block in 0..cols / pack {
        for row in 0..rows {
            let codes = &q.codes[row * cols + block * pack..][..pack];
            qweight.extend(word(&mut codes.iter().copied()));
        }
    }
    let (mut qzeros, mut scales) = (Vec::new(), Vec::new());
    for group in 0..groups {
        for block in 0..rows / pack {
            let zeros = (block * pack..(block + 1) * pack).map(|row| q.zeros[row * groups + group]);
            qzeros.extend(word(&mut zeros.map(|zero| zero.wrapping_sub(1) & largest)));
        }
        scales.extend((0..rows).flat_map(|row| f16::from_f32(q.scales[row * groups + group]).to_le_bytes()));
    }
    let tensor = |kind: &str, dtype, shape: &[usize], bytes| Tensor {
        name: format!("{name}.{kind}"),
        dtype,
        shape: shape.to_vec(),
        bytes,
    };
    vec![
        tensor("qweight", Dtype::I32, &[cols / pack, rows], qweight),
        tensor("qzeros", Dtype::I32, &[groups, rows / pack], qzeros),
        tensor("scales", Dtype::F16, &[groups, rows], scales),
        tensor("g_idx", Dtype::I32, &[cols], q.g_idx.iter().flat_map(|group| group.to_le_bytes()).collect()),
    ]
}

/// The tensors of a matrix in compressed-tensors' `int-quantized` layout: `weight` I8 `[rows, cols]`, `weight_scale` f32
/// `[rows, 1]`. A row of zeros, for which every scale is right, gets a scale of 1.
pub(super) fn int8_tensors(name: &str, weights: &[f32], cols: usize) -> Vec<Tensor> {
    let rows = weights.len() / cols;
    let (mut codes, mut scales) = (Vec::with_capacity(weights.len()), Vec::with_capacity(4 * rows));
    for row in weights.chunks_exact(cols) {
        let largest = row.iter().fold(0.0_f32, |largest, weight| largest.max(weight.abs()));
        let scale = if largest / 127.0 > 0.0 { largest / 127.0 } else { 1.0 };
        codes.extend(row.iter().map(|&weight| (weight / scale).round_ties_even() as i8 as u8));
        scales.extend(scale.to_le_bytes());
    }
    vec![
        Tensor { name: format!("{name}.weight"), dtype: Dtype::I8, shape: vec![rows, cols], bytes: codes },
        Tensor {
            name: format!("{name}.weight_scale"),
            dtype: Dtype::F32,
            shape: vec![rows, 1],
            bytes: scales,
        },
    ]
}

/// As a device takes it over.
pub(super) fn part(q: &Quantised, bits: CodeBits) -> Result<QuantizedPart> {
    let mut order: Vec<u32> = (0..q.cols as u32).collect();
    order.sort_by_key(|&col| q.g_idx[col as usize]);
    let codes = q.codes.chunks_exact(q.cols);
    Ok(QuantizedPart::new(QuantizedSpec {
        rows: q.rows,
        cols: q.cols,
        bits,
        group: q.group,
        codes: codes.flat_map(|row| order.iter().map(|&col| row[col as usize])).collect(),
        scales: q.scales.clone(),
        scale_type: DType::F16,
        zeros: q.zeros.clone(),
        permutation: (!q.g_idx.is_sorted()).then_some(order),
        pre_scale: None,
        activations: ActivationBits::Full,
    })?)
}
