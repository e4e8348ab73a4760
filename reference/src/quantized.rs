use crate::Real;

/// Four- or eight-bit fields of words that are stored as I32, lowest first: field `i` of `words`.
fn field(words: &[u32], i: usize, bits: u32) -> u64 {
    let a_word = 32 / bits as usize;
    let radix = 2u64.pow(bits);
    u64::from(words[i / a_word]) / radix.pow((i % a_word) as u32) % radix
}

/// A linear layer of `n` outputs and `k` inputs in the layout of AutoGPTQ.
#[derive(Debug, Clone, Copy)]
pub struct GptqTensors<'a> {
    /// `[k / pack, n]`: a word holds consecutive inputs of one output.
    pub qweight: &'a [u32],
    /// `[groups, n / pack]`: a word holds consecutive outputs of one group.
    pub qzeros: &'a [u32],
    /// `[groups, n]`
    pub scales: &'a [f32],
    /// The group of each input, `[k]`; without it `group` consecutive ones each.
    pub g_idx: Option<&'a [u32]>,
    pub group: usize,
    pub bits: u32,
    /// Version 1: the zero point is one more than what is stored, modulo `2^bits`.
    pub zeros_less_one: bool,
    pub n: usize,
    pub k: usize,
}

/// The weights `[n, k]`: `(code - zero) * scale`.
pub fn gptq_weights(t: &GptqTensors<'_>) -> Vec<f64> {
    let pack = 32 / t.bits as usize;
    let mut weights = Vec::with_capacity(t.n * t.k);
    for output in 0..t.n {
        for input in 0..t.k {
            let group = t.g_idx.map_or(input / t.group, |of| of[input] as usize);
            let code = field(&[t.qweight[input / pack * t.n + output]], input % pack, t.bits);
            let stored = field(&t.qzeros[group * (t.n / pack)..], output, t.bits);
            let zero = if t.zeros_less_one { (stored + 1) % 2u64.pow(t.bits) } else { stored };
            weights.push((code as f64 - zero as f64) * f64::from(t.scales[group * t.n + output]));
        }
    }
    weights
}

/// A linear layer in AutoAWQ's `gemm` layout: eight outputs a word, in the order 0, 2, 4, 6, 1, 3, 5, 7 from the lowest nibble.
#[derive(Debug, Clone, Copy)]
pub struct AwqTensors<'a> {
    /// `[k, n / 8]`
    pub qweight: &'a [u32],
    /// `[groups, n / 8]`
    pub qzeros: &'a [u32],
    /// `[groups, n]`
    pub scales: &'a [f32],
    pub group: usize,
    pub n: usize,
    pub k: usize,
}

/// The weights `[n, k]`.
pub fn awq_weights(t: &AwqTensors<'_>) -> Vec<f64> {
    let mut weights = vec![0.0; t.n * t.k];
    for input in 0..t.k {
        let group = input / t.group;
        for word in 0..t.n / 8 {
            for (nibble, within) in [0, 2, 4, 6, 1, 3, 5, 7].into_iter().enumerate() {
                let output = 8 * word + within;
                let code = field(&[t.qweight[input * (t.n / 8) + word]], nibble, 4);
                let zero = field(&[t.qzeros[group * (t.n / 8) + word]], nibble, 4);
                weights[output * t.k + input] =
                    (code as f64 - zero as f64) * f64::from(t.scales[group * t.n + output]);
            }
        }
    }
    weights
}

/// A linear layer as compressed-tensors' `pack-quantized` stores it: signed numbers plus `2^(bits - 1)`.
#[derive(Debug, Clone, Copy)]
pub struct PackQuantizedTensors<'a> {
    /// `[n, ceil(k / pack)]`: a word holds consecutive inputs.
    pub weight_packed: &'a [u32],
    /// `[n, groups]`
    pub weight_scale: &'a [f32],
    /// `[n / pack, groups]`: a word holds consecutive outputs; none where zero points are 0.
    pub weight_zero_point: Option<&'a [u32]>,
    /// The group of each input, `[k]`.
    pub weight_g_idx: Option<&'a [u32]>,
    pub group: usize,
    pub bits: u32,
    pub n: usize,
    pub k: usize,
}

/// The weights `[n, k]`.
pub fn pack_quantized_weights(t: &PackQuantizedTensors<'_>) -> Vec<f64> {
    let (pack, groups) = (32 / t.bits as usize, t.k.div_ceil(t.group));
    let offset = 2i64.pow(t.bits - 1);
    let row_words = t.k.div_ceil(pack);
    let mut weights = Vec::with_capacity(t.n * t.k);
    for output in 0..t.n {
        for input in 0..t.k {
            let group = t.weight_g_idx.map_or(input / t.group, |of| of[input] as usize);
            let number = field(&t.weight_packed[output * row_words..], input, t.bits) as i64 - offset;
            let zero = match t.weight_zero_point {
                None => 0,
                Some(words) => {
                    field(&[words[output / pack * groups + group]], output % pack, t.bits) as i64 - offset
                }
            };
            weights.push((number - zero) as f64 * f64::from(t.weight_scale[output * groups + group]));
        }
    }
    weights
}

/// The weights `[n, k]` of compressed-tensors' `int-quantized`: bytes times a scale an output.
pub fn int_quantized_weights(weight: &[i8], weight_scale: &[f32], k: usize) -> Vec<f64> {
    weight.iter().enumerate().map(|(i, &w)| f64::from(w) * f64::from(weight_scale[i / k])).collect()
}

/// `x * w^T` with weights of any precision, `[m, n]`, and the sums of the magnitudes of its terms. With `eight_bits` each row of
/// `x` is first rounded to multiples of a 127th of its largest magnitude, ties to even.
pub fn quantized_gemm<R: Real>(x: &[f32], weights: &[f64], k: usize, eight_bits: bool) -> (Vec<R>, Vec<f64>) {
    let (mut out, mut magnitudes) = (Vec::new(), Vec::new());
    for x in x.chunks_exact(k) {
        let mut row: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        let step = row.iter().fold(0.0_f64, |largest, x| largest.max(x.abs())) / 127.0;
        if eight_bits && step > 0.0 {
            row.iter_mut().for_each(|x| *x = (*x / step).round_ties_even() * step);
        }
        for weights in weights.chunks_exact(k) {
            let mut sum = R::ZERO;
            let mut magnitude = 0.0;
            for (&x, &w) in row.iter().zip(weights) {
                sum += R::of_f64(x) * R::of_f64(w);
                magnitude += (x * w).abs();
            }
            out.push(sum);
            magnitudes.push(magnitude);
        }
    }
    (out, magnitudes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 0, 1, ... 7 from the lowest nibble.
    const ASCENDING: u32 = 0x7654_3210;

    #[test]
    fn gptq_by_hand() {
        let t = GptqTensors {
            qweight: &[ASCENDING; 8],
            qzeros: &[0xf765_4321, ASCENDING],
            scales: &[0.5; 16],
            g_idx: Some(&[1, 0, 0, 0, 0, 0, 0, 0]),
            group: 7,
            bits: 4,
            zeros_less_one: true,
            n: 8,
            k: 8,
        };
        let weights = gptq_weights(&t);
        // Output 0: zero 2 in group 0, 1 in group 1; output 7: stored 15 is zero point 0.
        assert_eq!(weights[..8], [-0.5, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5]);
        assert_eq!(weights[56..], [-4.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5]);
        let v2 = gptq_weights(&GptqTensors { zeros_less_one: false, ..t });
        assert_eq!(v2[..3], [0.0, 0.0, 0.5]);
    }

    #[test]
    fn awq_by_hand() {
        let t = AwqTensors {
            qweight: &[ASCENDING],
            qzeros: &[0x1111_1111],
            scales: &[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0],
            group: 1,
            n: 8,
            k: 1,
        };
        assert_eq!(awq_weights(&t), [-1.0, 3.0, 0.0, 4.0, 1.0, 5.0, 2.0, 12.0]);
    }

    #[test]
    fn compressed_tensors_by_hand() {
        let t = PackQuantizedTensors {
            weight_packed: &[ASCENDING, 9],
            weight_scale: &[0.5, 2.0],
            weight_zero_point: None,
            weight_g_idx: None,
            group: 8,
            bits: 4,
            n: 1,
            k: 9,
        };
        assert_eq!(pack_quantized_weights(&t), [-4.0, -3.5, -3.0, -2.5, -2.0, -1.5, -1.0, -0.5, 2.0]);
        assert_eq!(int_quantized_weights(&[-128, 1, 2, 3], &[0.5, 2.0], 2), [-64.0, 0.5, 4.0, 6.0]);
    }

    #[test]
    fn eight_bits_keep_the_largest() {
        let (exact, _) = quantized_gemm::<f64>(&[127.0, 0.5, -1.5], &[1.0, 10.0, 100.0], 3, true);
        assert_eq!(exact, [127.0 - 200.0]);
        let (exact, size) = quantized_gemm::<f64>(&[127.0, 0.5, -1.5], &[1.0, 10.0, 100.0], 3, false);
        assert_eq!((exact, size), (vec![-18.0], vec![282.0]));
    }
}
