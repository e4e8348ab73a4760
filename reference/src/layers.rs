use crate::Real;

/// `out[i, :] = table[ids[i], :]`.
pub fn gather(table: &[f32], cols: usize, ids: &[u32]) -> Vec<f32> {
    ids.iter().flat_map(|&id| &table[id as usize * cols..][..cols]).copied().collect()
}

/// `out[o, i, j] = x[i, orders[o, j]]`, of rows of `cols` and orders of `out_cols`.
pub fn gather_columns(x: &[f32], cols: usize, orders: &[u16], out_cols: usize) -> Vec<f32> {
    let of_order = |order| x.chunks(cols).flat_map(move |row| gather_elements(row, order));
    orders.chunks(out_cols).flat_map(of_order).collect()
}

fn gather_elements<'a>(row: &'a [f32], order: &'a [u16]) -> impl Iterator<Item = f32> + 'a {
    order.iter().map(|&from| row[usize::from(from)])
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

/// Rows of scores as attention's weights: row `i` sees its first `(first + i) % cols + 1` elements, whose weights are the softmax of
/// `scale` times them; the others have the weight 0.
pub fn causal_softmax<R: Real>(x: &[f32], cols: usize, first: usize, scale: f32) -> Vec<R> {
    let mut weights = Vec::with_capacity(x.len());
    for (i, row) in x.chunks(cols).enumerate() {
        let seen = &row[..(first + i) % cols + 1];
        let largest = seen.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let exponentials = seen
            .iter()
            .map(|&score| ((R::of(score) - R::of(largest)) * R::of(scale)).exp())
            .collect::<Vec<_>>();
        let mut sum = R::ZERO;
        for &exponential in &exponentials {
            sum += exponential;
        }
        weights.extend(exponentials.iter().map(|&exponential| (exponential / sum).stored()));
        weights.extend(std::iter::repeat_n(R::ZERO, cols - seen.len()));
    }
    weights
}

/// Which form of the Gaussian error linear unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GeluForm {
    /// `x * P(N < x)` for a normal `N`.
    Erf,
    /// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))`.
    Tanh,
}

/// The Gaussian error linear unit of each element.
pub fn gelu<R: Real>(x: &[f32], form: GeluForm) -> Vec<R> {
    let of = R::of_f64;
    x.iter()
        .map(|&x| {
            let x = R::of(x);
            let below = match form {
                GeluForm::Erf => of(0.5) * of(erfc(-x.to_f64() * std::f64::consts::FRAC_1_SQRT_2)),
                // (1 + tanh(u)) / 2 is 1 / (1 + exp(-2 * u)), which keeps its digits where the tangent is near -1.
                GeluForm::Tanh => {
                    let u = of((2.0 / std::f64::consts::PI).sqrt()) * (x + of(0.044715) * x * x * x);
                    of(1.0) / (of(1.0) + (-(u + u)).exp())
                }
            };
            (x * below).stored()
        })
        .collect()
}

/// The complementary error function, to some 13 digits. Source: Abramowitz and Stegun, "Handbook of Mathematical Functions", 7.1.6 (a
/// series of positive terms) and 7.1.14 (a continued fraction, for the tail).
fn erfc(x: f64) -> f64 {
    if x < 0.0 {
        return 2.0 - erfc(-x);
    }
    if x.is_nan() {
        return x;
    }
    let gaussian = (-x * x).exp();
    if x < 2.5 {
        let (mut term, mut sum) = (x, x);
        for n in 1..100 {
            term *= 2.0 * x * x / f64::from(2 * n + 1);
            sum += term;
        }
        return 1.0 - 2.0 / std::f64::consts::PI.sqrt() * gaussian * sum;
    }
    let mut fraction = 0.0;
    for n in (1..200).rev() {
        fraction = f64::from(n) / 2.0 / (x + fraction);
    }
    gaussian / std::f64::consts::PI.sqrt() / (x + fraction)
}

/// `out[i, :] = table[ids[i], :] + places[positions[i], :]`.
pub fn embed_sum<R: Real>(
    table: &[f32],
    places: &[f32],
    cols: usize,
    ids: &[u32],
    positions: &[u32],
) -> Vec<R> {
    let (tokens, places) = (gather(table, cols, ids), gather(places, cols, positions));
    tokens.iter().zip(&places).map(|(&token, &place)| (R::of(token) + R::of(place)).stored()).collect()
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
    fn softmax_by_hand() {
        let ln = |x: f32| x.ln();
        let x = [5.0, f32::NAN, f32::NAN, ln(1.0), ln(3.0), f32::NAN, 0.0, f32::NEG_INFINITY, 0.0];
        let out: Vec<f64> = causal_softmax(&x, 3, 0, 1.0);
        for (found, expected) in out.iter().zip([1.0, 0.0, 0.0, 0.25, 0.75, 0.0, 0.5, 0.0, 0.5]) {
            assert!((found - expected).abs() < 1e-7, "{out:?}");
        }
        // The last row alone, as the third of a head or of the next one.
        for first in [2, 5] {
            assert_eq!(causal_softmax::<f64>(&x[6..], 3, first, 1.0), out[6..]);
        }
        assert!((causal_softmax::<f64>(&[ln(1.0), ln(9.0)], 2, 1, 0.5)[0] - 0.25).abs() < 1e-7);
        assert!(causal_softmax::<f64>(&[f32::NEG_INFINITY], 1, 0, 1.0)[0].is_nan());
    }

    #[test]
    fn known_values_of_the_error_function() {
        // Abramowitz and Stegun, table 7.1 (erf) and 7.3 (x * exp(x^2) * erfc(x) at 1 / x^2 = 0.04).
        for (x, erf) in [(0.0, 0.0), (0.5, 0.520_499_877_8), (1.0, 0.842_700_792_9), (2.0, 0.995_322_265_0)] {
            assert!((1.0 - erfc(x) - erf).abs() < 1e-10, "{x}");
            assert!((erfc(-x) - 1.0 - erf).abs() < 1e-10, "-{x}");
        }
        let (series, fraction) = (erfc(2.499_999_999), erfc(2.5));
        assert!((series / fraction - 1.0).abs() < 1e-7, "{series} beside {fraction}");
        let scaled = 5.0 * 25f64.exp() * erfc(5.0);
        assert!((scaled - 0.553_523_2).abs() < 1e-6, "{scaled}");
    }

    #[test]
    fn known_gelu() {
        let exact: Vec<f64> = gelu(&[0.0, 1.0, -1.0, -30.0], GeluForm::Erf);
        assert_eq!(exact[0], 0.0);
        assert!((exact[1] - 0.841_344_746_068_543).abs() < 1e-12);
        assert!((exact[2] + 0.158_655_253_931_457).abs() < 1e-12);
        assert!(exact[3] < 0.0 && exact[3] > -1e-190);
        let tanh: Vec<f64> = gelu(&[1.0, -1.0], GeluForm::Tanh);
        let by_tangent = 0.5 * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * 1.044715f64).tanh());
        assert!((tanh[0] - by_tangent).abs() < 1e-14 && (tanh[1] - (by_tangent - 1.0)).abs() < 1e-14);
    }

    #[test]
    fn sums_of_rows() {
        let sums: Vec<f64> = embed_sum(&[1.0, 2.0, 3.0, 4.0], &[10.0, 20.0], 2, &[1, 0], &[0, 0]);
        assert_eq!(sums, [13.0, 24.0, 11.0, 22.0]);
    }

    #[test]
    fn gather_picks_rows() {
        assert_eq!(gather(&[1.0, 2.0, 3.0, 4.0], 2, &[1, 0, 1]), [3.0, 4.0, 1.0, 2.0, 3.0, 4.0]);
    }
}
