use super::linalg::{Upper, add_cross, add_gram, add_matmul};
use super::matrix::descending;
use super::options::{Linear, QuantiseOptions};
use crate::{Error, Result};

/// How often damping is raised tenfold before a Hessian is given up.
const RETRIES: usize = 3;

/// Sums over the calibration texts of the inputs of a linear layer, `X` as the quantised-so-far model has them.
pub(super) struct Hessian {
    /// `X^T X`: half the Hessian of its squared error, a factor that GPTQ doesn't feel.
    gram: Upper,
    drift: Option<Drift>,
}

/// How far the quantised-so-far model has drifted from the original.
struct Drift {
    /// `(X_original - X)^T X`, `[cols, cols]`.
    inputs: Vec<f64>,
    /// `(R_original - R)^T X` of the residual stream that the layer's outputs are added to, `[rows, cols]`.
    residual: Option<Vec<f64>>,
}

/// What a text adds to a [`Hessian`], `[tokens, ...]` each.
pub(super) struct Sample {
    pub inputs: Vec<f32>,
    pub tokens: usize,
    /// Of the original model.
    pub original: Option<Vec<f32>>,
    /// The original model's residual stream less the present one's.
    pub residual_drift: Option<Vec<f32>>,
}

/// What GPTQ needs of a Hessian.
pub(super) struct Prepared {
    pub factor: Upper,
    /// The order of columns in which `factor` was made, where it isn't their own.
    pub order: Option<Vec<u32>>,
    /// Inputs that are always 0.
    pub dead: Vec<bool>,
    drift: Option<Drift>,
}

impl Prepared {
    /// Moves weights `[rows, cols]` to where their products with the present inputs come closest to what the original model adds
    /// up to, in the sense of least squares: `W + (W D + E) (H + damping)^-1` with the drifts `D` of inputs and `E` of the residual
    /// stream. GPTQ of these weights then makes up for what the layers before have lost, not only for its own rounding (the
    /// asymmetric calibration of Li et al. 2025, arXiv 2504.02692, in closed form).
    pub fn corrected(&self, weights: Vec<f32>) -> Vec<f32> {
        let Some(drift) = &self.drift else { return weights };
        let n = self.factor.n;
        let wide: Vec<f64> = weights.iter().map(|&weight| f64::from(weight)).collect();
        let mut gradient = match &drift.residual {
            Some(residual) => residual.clone(),
            None => vec![0.0; wide.len()],
        };
        add_matmul(&mut gradient, &wide, &drift.inputs, n, false);
        let column = |place: usize| self.order.as_ref().map_or(place, |order| order[place] as usize);
        let ordered: Vec<f64> =
            gradient.chunks_exact(n).flat_map(|row| (0..n).map(|place| row[column(place)])).collect();
        // Only the upper triangle of the factor is its own.
        let factor: Vec<f64> =
            (0..n * n).map(|at| if at / n <= at % n { self.factor.elems[at] } else { 0.0 }).collect();
        let (mut half, mut moves) = (vec![0.0; wide.len()], vec![0.0; wide.len()]);
        add_matmul(&mut half, &ordered, &factor, n, true);
        add_matmul(&mut moves, &half, &factor, n, false);
        let mut corrected = wide;
        for (row, moves) in corrected.chunks_exact_mut(n).zip(moves.chunks_exact(n)) {
            // An output that was taken out of the model stays out.
            if row.iter().all(|&weight| weight == 0.0) {
                continue;
            }
            for (place, step) in moves.iter().enumerate() {
                row[column(place)] += step;
            }
        }
        corrected.into_iter().map(|weight| weight as f32).collect()
    }
}

impl Hessian {
    pub fn new(cols: usize) -> Hessian {
        Hessian { gram: Upper { n: cols, elems: vec![0.0; cols * cols] }, drift: None }
    }

    /// Adds a text.
    pub fn add(&mut self, sample: Sample) {
        let Sample { inputs, tokens, original, residual_drift } = sample;
        add_gram(&mut self.gram, &inputs);
        let Some(mut original) = original else { return };
        let n = self.gram.n;
        let rows = residual_drift.as_ref().map(|drift| drift.len() / tokens);
        let drift = self.drift.get_or_insert_with(|| Drift {
            inputs: vec![0.0; n * n],
            residual: rows.map(|rows| vec![0.0; rows * n]),
        });
        original.iter_mut().zip(&inputs).for_each(|(original, input)| *original -= input);
        add_cross(&mut drift.inputs, &original, &inputs, tokens);
        if let (Some(sums), Some(residual_drift)) = (&mut drift.residual, residual_drift) {
            add_cross(sums, &residual_drift, &inputs, tokens);
        }
    }

    /// Damps, orders and factors. An input that is always 0 gets the mean of the diagonal: its weight is 0, and moves nothing.
    pub fn prepare(self, linear: &Linear, options: &QuantiseOptions) -> Result<Prepared> {
        let Hessian { gram: mut hessian, drift } = self;
        let n = hessian.n;
        let mean = hessian.mean_diagonal();
        if !mean.is_finite() {
            return Err(Error::request("calib", format!("finite inputs of {}", linear.name), mean));
        }
        let dead: Vec<bool> = (0..n).map(|i| hessian.elems[i * n + i] == 0.0).collect();
        for i in (0..n).filter(|&i| dead[i]) {
            hessian.elems[i * n + i] = if mean > 0.0 { mean } else { 1.0 };
        }
        let order = options.act_order.then(|| descending((0..n).map(|i| hessian.elems[i * n + i])));
        if let Some(order) = &order {
            hessian = hessian.permuted(order);
        }
        let mean = hessian.mean_diagonal();
        let mut damp = options.damp;
        for _ in 0..RETRIES {
            let mut damped = Upper { n, elems: hessian.elems.clone() };
            for i in 0..n {
                damped.elems[i * n + i] += damp * mean;
            }
            if let Ok(factor) = damped.into_inverse_factor() {
                return Ok(Prepared { factor, order, dead, drift });
            }
            damp *= 10.0;
        }
        let expected = format!("more text: the inputs of {} have a positive definite Hessian", linear.name);
        Err(Error::request("calib", expected, format!("one that isn't with {} damping", damp / 10.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantise::tests::numbers;

    /// Corrected weights are the least-squares solution: the gradient `(T - W' X) X^T` is what damping holds back, `damping * (W' - W)`.
    #[test]
    fn corrected_weights_are_a_least_squares_solution() {
        let (tokens, n, rows) = (90, 23, 8);
        let linear = Linear { name: "a".to_string(), rows, cols: n };
        for act_order in [false, true] {
            let (x, weights) = (numbers(1, tokens * n), numbers(2, rows * n));
            let original: Vec<f32> = x.iter().zip(numbers(3, tokens * n)).map(|(x, d)| x + 0.2 * d).collect();
            let drift = numbers(4, tokens * rows);
            let sample = |original: &[f32], drift: Option<&[f32]>| Sample {
                inputs: x.clone(),
                tokens,
                original: Some(original.to_vec()),
                residual_drift: drift.map(<[f32]>::to_vec),
            };
            let options = QuantiseOptions { act_order, ..QuantiseOptions::default() };
            let mut hessian = Hessian::new(n);
            hessian.add(sample(&original, Some(&drift)));
            let damping = 0.01 * hessian.gram.mean_diagonal();
            let corrected = hessian.prepare(&linear, &options).expect("prepared").corrected(weights.clone());
            for row in 0..rows {
                let wide = |values: &[f32], at: usize| f64::from(values[at]);
                let rest: Vec<f64> = (0..tokens)
                    .map(|t| {
                        let dot = |w: &[f32], x: &[f32]| {
                            (0..n).map(|j| wide(w, row * n + j) * wide(x, t * n + j)).sum::<f64>()
                        };
                        dot(&weights, &original) + wide(&drift, t * rows + row) - dot(&corrected, &x)
                    })
                    .collect();
                for j in 0..n {
                    let gradient: f64 =
                        rest.iter().enumerate().map(|(t, rest)| rest * wide(&x, t * n + j)).sum();
                    let held = damping * (wide(&corrected, row * n + j) - wide(&weights, row * n + j));
                    assert!((gradient - held).abs() < 1e-4, "{row} {j}: {gradient} is not {held}");
                }
            }
            // Without drift there is nothing to correct.
            let mut still = Hessian::new(n);
            still.add(sample(&x, None));
            assert_eq!(
                still.prepare(&linear, &options).expect("prepared").corrected(weights.clone()),
                weights
            );
        }
    }

    #[test]
    fn what_is_not_finite_is_named() {
        let linear = Linear { name: "model.x".to_string(), rows: 1, cols: 2 };
        let mut hessian = Hessian::new(2);
        let inputs = vec![f32::NAN, 1.0];
        hessian.add(Sample { inputs, tokens: 1, original: None, residual_drift: None });
        let error = hessian.prepare(&linear, &QuantiseOptions::default()).err().expect("refused");
        assert_eq!(error.to_string(), "calib: expected finite inputs of model.x, found NaN");
    }
}
