//! The softmax of scores that were written down, between the two products of a textbook's attention.

use tilewright_kernels::{abi, causal_softmax::CAUSAL_SOFTMAX};

use super::{
    Driver, GpuDevice, GpuTensor,
    storage::{dim, require},
};
use crate::Result;

impl<Dr: Driver> GpuDevice<Dr> {
    pub(super) fn launch_causal_softmax(&self, scale: f32, scores: &mut GpuTensor<Dr>) -> Result<()> {
        let op = "causal_softmax";
        let whole = scores.rows.is_multiple_of(scores.cols);
        require(whole, op, "rows of scores", format!("a multiple of {}", scores.cols), scores.rows)?;
        require(scale > 0.0, op, "scale", "above 0", scale)?;
        let (rows, cols) = (dim(op, "rows", scores.rows)?, dim(op, "cols", scores.cols)?);
        let params = abi::CausalSoftmax { x: scores.numbers(op, "scores")?, rows, cols, scale, first: 0 };
        // SAFETY: `scores` is `[rows, cols]`, whose columns are a multiple of 8 by construction.
        unsafe { self.launch(&CAUSAL_SOFTMAX, [rows, 1, 1], params) }
    }
}
