use super::linalg::{Upper, add_gram};
use super::matrix::descending;
use super::options::{Linear, QuantiseOptions};
use crate::{Error, Result};

/// How often damping is raised tenfold before a Hessian is given up.
const RETRIES: usize = 3;

/// `X^T X` of the inputs of a linear layer: half the Hessian of its squared error, a factor that GPTQ doesn't feel.
pub(super) struct Hessian(Upper);

/// What GPTQ needs of a Hessian.
pub(super) struct Prepared {
    pub factor: Upper,
    /// The order of columns in which `factor` was made, where it isn't their own.
    pub order: Option<Vec<u32>>,
    /// Inputs that are always 0.
    pub dead: Vec<bool>,
}

impl Hessian {
    pub fn new(cols: usize) -> Hessian {
        Hessian(Upper { n: cols, elems: vec![0.0; cols * cols] })
    }

    /// Adds activations, `[tokens, cols]`.
    pub fn add(&mut self, x: &[f32]) {
        add_gram(&mut self.0, x);
    }

    /// Damps, orders and factors. An input that is always 0 gets the mean of the diagonal: its weight is 0, and moves nothing.
    pub fn prepare(self, linear: &Linear, options: &QuantiseOptions) -> Result<Prepared> {
        let Hessian(mut hessian) = self;
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
                return Ok(Prepared { factor, order, dead });
            }
            damp *= 10.0;
        }
        let expected = format!("more text: the inputs of {} have a positive definite Hessian", linear.name);
        Err(Error::request("calib", expected, format!("one that isn't with {} damping", damp / 10.0)))
    }
}
