//! The kernels that work row by row, a block a row or a few.

use tilewright_host::{
    Result,
    gpu::{Driver, GpuInfo},
};
use tilewright_kernels::{
    abi,
    argmax::{self, ARGMAX},
    gather_rows::GATHER_ROWS,
    rms_norm::RMS_NORM,
    sample::SAMPLE,
    silu_mul::{self, SILU_MUL},
};

use super::Kernel;
use crate::{
    prepared::Prepared,
    problem::{Problem, Rows},
    random::{Kind, shuffled},
};

/// Of the norms' mean square.
pub const EPS: f32 = 1e-5;

/// Rows of the table that `gather_rows` looks up in, for each row it brings: the table is larger than what is read of it.
const TABLE_ROWS_PER_ROW: usize = 4;

/// One block a row.
fn whole(_: u32) -> u32 {
    1
}

/// A `Kernel` for one variant of `Problem`, a grid of so many blocks a row of those columns.
macro_rules! row_kernel {
    ($(#[$doc:meta])* $kernel:ident, $name:literal, $spec:expr, $parts:expr, |$prepared:ident, $rows:ident, $seed:ident| $params:expr) => {
        $(#[$doc])*
        pub struct $kernel;

        impl<D: Driver> Kernel<D> for $kernel {
            fn name(&self) -> &'static str {
                $name
            }

            fn takes(&self, problem: &Problem, _: &GpuInfo) -> bool {
                matches!(problem, Problem::$kernel(_))
            }

            fn prepare<'d>(&self, driver: &'d D, problem: &Problem, $seed: u64) -> Result<Prepared<'d, D>> {
                let mut prepared = Prepared::new(driver);
                if let Problem::$kernel($rows) = *problem {
                    let $prepared = &mut prepared;
                    let params = $params;
                    let parts: fn(u32) -> u32 = $parts;
                    prepared.launch($spec, [$rows.rows as u32, parts($rows.cols as u32), 1], &params);
                }
                Ok(prepared)
            }
        }
    };
}

row_kernel!(
    /// With a residual. Buffers: `x`, `residual`, `weight`, `out`.
    RmsNorm, "rms_norm", &RMS_NORM, whole, |prepared, shape, seed| {
        let Rows { rows, cols } = shape;
        abi::RmsNorm {
            x: prepared.random("x", Kind::Bf16, rows * cols, seed)?,
            residual: prepared.random("residual", Kind::Bf16, rows * cols, seed)?,
            weight: prepared.random("weight", Kind::F32, cols, seed)?,
            out: prepared.output("out", rows * cols * 2)?,
            rows: rows as u32,
            cols: cols as u32,
            eps: EPS,
            ..abi::RmsNorm::default()
        }
    }
);

row_kernel!(
    /// Buffers: `gate_up`, `out`.
    SiluMul, "silu_mul", &SILU_MUL, silu_mul::parts, |prepared, shape, seed| {
        let Rows { rows, cols } = shape;
        abi::SiluMul {
            gate_up: prepared.random("gate_up", Kind::Bf16, 2 * rows * cols, seed)?,
            out: prepared.output("out", rows * cols * 2)?,
            rows: rows as u32,
            inter: cols as u32,
            ..abi::SiluMul::default()
        }
    }
);

row_kernel!(
    /// Buffers: `table`, `ids`, `out`.
    GatherRows, "gather_rows", &GATHER_ROWS, whole, |prepared, shape, seed| {
        let Rows { rows, cols } = shape;
        let table_rows = TABLE_ROWS_PER_ROW * rows;
        let mut ids = shuffled(table_rows, seed);
        ids.truncate(rows);
        abi::GatherRows {
            table: prepared.random("table", Kind::Bf16, table_rows * cols, seed)?,
            ids: prepared.u32s("ids", ids)?,
            out: prepared.output("out", rows * cols * 2)?,
            rows: rows as u32,
            cols: cols as u32,
        }
    }
);

row_kernel!(
    /// Buffers: `logits`, `out`.
    Argmax, "argmax", &ARGMAX, argmax::parts, |prepared, shape, seed| {
        let Rows { rows, cols } = shape;
        abi::Argmax {
            logits: prepared.random("logits", Kind::F32, rows * cols, seed)?,
            out: prepared.output("out", rows * 4)?,
            partials: prepared.u32s("partials", vec![0; rows * argmax::parts(cols as u32) as usize * 4])?,
            counters: prepared.u32s("counters", vec![0; rows])?,
            rows: rows as u32,
            cols: cols as u32,
        }
    }
);

/// How row `row` is sampled: a usual setting, another draw a row.
pub fn sample_row(row: usize) -> abi::SampleRow {
    let uniform = (row as f32 * 0.618_034 + 0.1).fract();
    abi::SampleRow { temperature: 0.8, top_p: 0.95, min_p: 0.0, uniform, top_k: 50, reserved: 0 }
}

row_kernel!(
    /// Top-k 50, then top-p 0.95. Buffers: `logits`, `out`.
    Sample, "sample", &SAMPLE, whole, |prepared, shape, seed| {
        let Rows { rows, cols } = shape;
        let settings: Vec<abi::SampleRow> = (0..rows).map(sample_row).collect();
        abi::Sample {
            logits: prepared.random("logits", Kind::F32, rows * cols, seed)?,
            row_params: prepared.u32s("row_params", bytemuck::cast_slice(&settings).to_vec())?,
            out: prepared.output("out", rows * 4)?,
            rows: rows as u32,
            cols: cols as u32,
        }
    }
);
