use crate::Real;

/// `out = a * w^T (+ bias) (+ residual)`.
#[derive(Debug, Clone, Copy)]
pub struct GemmProblem<'a> {
    /// `[m, k]`
    pub a: &'a [f32],
    /// `[n, k]`
    pub w: &'a [f32],
    /// `[n]`
    pub bias: Option<&'a [f32]>,
    /// `[m, n]`
    pub residual: Option<&'a [f32]>,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// Whether the result is stored as bf16 rather than f32.
    pub stores_bf16: bool,
}

/// The product, `[m, n]`.
pub fn gemm<R: Real>(p: &GemmProblem<'_>) -> Vec<R> {
    let mut out = Vec::with_capacity(p.m * p.n);
    for i in 0..p.m {
        for j in 0..p.n {
            let mut sum = R::ZERO;
            for l in 0..p.k {
                sum += R::of(p.a[i * p.k + l]) * R::of(p.w[j * p.k + l]);
            }
            if let Some(bias) = p.bias {
                sum += R::of(bias[j]);
            }
            if let Some(residual) = p.residual {
                sum += R::of(residual[i * p.n + j]);
            }
            out.push(if p.stores_bf16 { sum.stored() } else { sum });
        }
    }
    out
}

/// The sums of the magnitudes of the terms of each element, `[m, n]`: what rounding errors of the accumulation scale with.
pub fn gemm_magnitude(p: &GemmProblem<'_>) -> Vec<f64> {
    let magnitudes = |values: &[f32]| values.iter().map(|v| v.abs()).collect::<Vec<f32>>();
    let (a, w) = (magnitudes(p.a), magnitudes(p.w));
    let (bias, residual) = (p.bias.map(magnitudes), p.residual.map(magnitudes));
    gemm(&GemmProblem { a: &a, w: &w, bias: bias.as_deref(), residual: residual.as_deref(), ..*p })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_product() {
        let p = GemmProblem {
            a: &[1.0, 2.0, 3.0, 4.0],
            w: &[5.0, 6.0, -7.0, 8.0],
            bias: Some(&[0.5, 0.25]),
            residual: Some(&[1.0, 2.0, 3.0, 4.0]),
            m: 2,
            n: 2,
            k: 2,
            stores_bf16: false,
        };
        assert_eq!(gemm::<f64>(&p), [18.5, 11.25, 42.5, 15.25]);
        assert_eq!(gemm_magnitude(&p), [18.5, 25.25, 42.5, 57.25]);
    }
}
