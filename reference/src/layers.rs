use crate::Real;

/// `out[i, :] = table[ids[i], :]`.
pub fn gather(table: &[f32], cols: usize, ids: &[u32]) -> Vec<f32> {
    ids.iter().flat_map(|&id| &table[id as usize * cols..][..cols]).copied().collect()
}

/// What [`rms_norm`] leaves.
#[derive(Debug, Clone, PartialEq)]
pub struct RmsNorm<R> {
    /// `x + residual`.
    pub h: Vec<R>,
    /// `h / sqrt(mean(h^2) + eps) * weight`.
    pub out: Vec<R>,
}

/// RMS norm of the rows of `x (+ residual)`.
pub fn rms_norm<R: Real>(x: &[f32], residual: Option<&[f32]>, weight: &[f32], eps: f32) -> RmsNorm<R> {
    let mut normed = RmsNorm { h: Vec::new(), out: Vec::new() };
    for i in 0..x.len() {
        let sum = match residual {
            Some(residual) => (R::of(x[i]) + R::of(residual[i])).stored(),
            None => R::of(x[i]),
        };
        normed.h.push(sum);
    }
    for row in normed.h.chunks(weight.len()) {
        let normed_row = normalise(row, weight, eps);
        normed.out.extend(normed_row);
    }
    normed
}

/// One row of an RMS norm.
pub(crate) fn normalise<R: Real>(row: &[R], weight: &[f32], eps: f32) -> Vec<R> {
    let mut squares = R::ZERO;
    for &value in row {
        squares += value * value;
    }
    let rms = (squares / R::of_f64(row.len() as f64) + R::of(eps)).sqrt();
    row.iter()
        .zip(weight)
        .map(|(&value, &weight)| ((value / rms).stored() * R::of(weight)).stored())
        .collect()
}

/// What [`layer_norm`] leaves.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerNorm<R> {
    /// `x + residual`.
    pub h: Vec<R>,
    /// `(h - mean(h)) / sqrt(mean((h - mean(h))^2) + eps) * weight + bias`.
    pub out: Vec<R>,
}

/// Layer norm of the rows of `x (+ residual)`. The sum is normalised as it is; only what is stored of it is rounded.
pub fn layer_norm<R: Real>(
    x: &[f32],
    residual: Option<&[f32]>,
    weight: &[f32],
    bias: Option<&[f32]>,
    eps: f32,
) -> LayerNorm<R> {
    let mut normed = LayerNorm { h: Vec::new(), out: Vec::new() };
    let cols = weight.len();
    for first in (0..x.len()).step_by(cols) {
        let row: Vec<R> = (first..first + cols)
            .map(|i| match residual {
                Some(residual) => R::of(x[i]) + R::of(residual[i]),
                None => R::of(x[i]),
            })
            .collect();
        let count = R::of_f64(cols as f64);
        let mut sum = R::ZERO;
        row.iter().for_each(|&value| sum += value);
        let mean = sum / count;
        let mut squares = R::ZERO;
        row.iter().for_each(|&value| squares += (value - mean) * (value - mean));
        let deviation = (squares / count + R::of(eps)).sqrt();
        for (j, &value) in row.iter().enumerate() {
            let scaled = ((value - mean) / deviation).stored() * R::of(weight[j]);
            let bias = bias.map_or(R::ZERO, |bias| R::of(bias[j]));
            normed.h.push(value.stored());
            normed.out.push((scaled + bias).stored());
        }
    }
    normed
}

/// `out[i, j] = silu(gate_up[i, j]) * gate_up[i, inter + j]`.
pub fn silu_mul<R: Real>(gate_up: &[f32], inter: usize) -> Vec<R> {
    let mut out = Vec::with_capacity(gate_up.len() / 2);
    for row in gate_up.chunks(2 * inter) {
        for j in 0..inter {
            let (gate, up) = (R::of(row[j]), R::of(row[inter + j]));
            let silu = (gate / (R::of(1.0) + (-gate).exp())).stored();
            out.push((silu * up).stored());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_norm() {
        let normed: RmsNorm<f64> = rms_norm(&[1.0, 2.0], Some(&[2.0, 2.0]), &[1.0, 0.5], 0.0);
        assert_eq!(normed.h, [3.0, 4.0]);
        let rms = 12.5f64.sqrt();
        assert!((normed.out[0] - 3.0 / rms).abs() < 1e-15 && (normed.out[1] - 2.0 / rms).abs() < 1e-15);
    }

    #[test]
    fn a_row_of_zeros_normalises_to_zeros() {
        let normed: RmsNorm<f64> = rms_norm(&[0.0; 4], None, &[1.0; 4], 1e-6);
        assert_eq!(normed.out, [0.0; 4]);
    }

    #[test]
    fn a_known_layer_norm() {
        let bias = [0.5, 0.0, -1.0];
        let normed: LayerNorm<f64> =
            layer_norm(&[1.0, 2.0, 3.0], Some(&[1.0, 1.0, 4.0]), &[1.0, 1.0, 2.0], Some(&bias), 0.0);
        assert_eq!(normed.h, [2.0, 3.0, 7.0]);
        // The mean is 4, the deviations -2, -1 and 3, their squares' mean 14 / 3.
        let deviation = (14.0f64 / 3.0).sqrt();
        let expected = [-2.0 / deviation + 0.5, -1.0 / deviation, 6.0 / deviation - 1.0];
        assert!(normed.out.iter().zip(expected).all(|(out, expected)| (out - expected).abs() < 1e-15));
    }

    #[test]
    fn a_constant_row_normalises_to_the_bias() {
        let normed: LayerNorm<f64> = layer_norm(&[7.0; 4], None, &[3.0; 4], Some(&[0.25; 4]), 1e-5);
        assert_eq!(normed.out, [0.25; 4]);
        let normed: LayerNorm<f64> = layer_norm(&[7.0; 4], None, &[3.0; 4], None, 1e-5);
        assert_eq!(normed.out, [0.0; 4]);
    }

    #[test]
    fn known_silu() {
        let out: Vec<f64> = silu_mul(&[0.0, 1.0, 7.0, 2.0], 2);
        assert_eq!(out[0], 0.0);
        assert!((out[1] - 2.0 / (1.0 + (-1.0f64).exp())).abs() < 1e-15);
    }

    #[test]
    fn gather_picks_rows() {
        assert_eq!(gather(&[1.0, 2.0, 3.0, 4.0], 2, &[1, 0, 1]), [3.0, 4.0, 1.0, 2.0, 3.0, 4.0]);
    }
}
