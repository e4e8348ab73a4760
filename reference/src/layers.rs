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
