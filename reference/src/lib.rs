//! The oracle: naive definitions of every operation, written to be read, with no tiling and no code in common with what
//! they judge. Nothing here depends on another crate of the workspace.
//!
//! Each floating-point operation is one definition over [`Real`], used twice. Over `f64` it is the truth. Over `f32` it is
//! the *plain bf16 computation*: what somebody who follows the formula with bf16 storage and f32 accumulation gets, each
//! stored value rounded to bf16. A kernel may be wrong by twice as much as that, plus a stated floor: see [`Bound`].
//!
//! ```
//! use tilewright_reference::{Bound, Floor, compare, silu_mul};
//! let gate_up = [1.0, -2.0, 0.5, 3.0];
//! let truth: Vec<f64> = silu_mul(&gate_up, 2);
//! let plain: Vec<f32> = silu_mul(&gate_up, 2);
//! let bound = Bound::from_plain(&[1, 2], &truth, &plain, Floor::BF16);
//! assert!(compare("silu_mul", &plain, &truth, &bound).is_ok());
//! assert!(compare("silu_mul", &[f32::NAN, 0.0], &truth, &bound).is_err());
//! ```

mod attention;
mod attention_lse;
mod cache;
mod compare;
mod gemm;
mod half;
mod layers;
mod quantized;
mod real;
mod rope;
mod sampling;
mod tree;

pub use attention::*;
pub use attention_lse::*;
pub use cache::*;
pub use compare::*;
pub use gemm::*;
pub use half::*;
pub use layers::*;
pub use quantized::*;
pub use real::*;
pub use rope::*;
pub use sampling::*;
pub use tree::*;
