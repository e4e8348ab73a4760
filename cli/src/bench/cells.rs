use tilewright::config::ModelConfig;
use tilewright::plan::preset;
use tilewright_benches::cells::{self, Cell};
use tilewright_benches::problem::GemmWeights;
use tilewright_benches::shapes::{self, Family, ModelShape, Sizes};

use super::{BenchArgs, What, failure};
use crate::load::demo_config;
use crate::output::Failure;

/// A model whose products are too large for most caches, and small enough for any machine.
const CPU_PRESET: &str = "llama-3.2-1b";

/// The cells that are asked for.
pub fn of(args: &BenchArgs, on_gpu: bool) -> Result<Vec<Cell>, Failure> {
    let families: Vec<Family> = Family::ALL.into_iter().filter(|family| wants(args.what, *family)).collect();
    let own_sizes =
        args.seq.is_some() || args.batch.is_some() || args.context.is_some() || !args.rows.is_empty();
    if families.is_empty() {
        return Ok(Vec::new());
    }
    if on_gpu && args.preset.is_empty() && !own_sizes && !args.quick {
        let only: Vec<String> = families.iter().map(|family| family.prefix().to_string()).collect();
        return cells::select(&only, &[]).map_err(failure);
    }
    let sizes = sizes(args, on_gpu);
    let mut all = Vec::new();
    for shape in &shapes(args, on_gpu)? {
        all.extend(families.iter().flat_map(|family| shapes::cells(shape, &sizes, *family)));
    }
    Ok(all)
}

fn wants(what: What, family: Family) -> bool {
    match what {
        What::Attention => family == Family::Attention,
        What::Gemm => family == Family::Gemm,
        What::Kv => family == Family::Kv,
        What::Decode => family == Family::Decode,
        What::E2e => false,
        What::All => true,
    }
}

fn sizes(args: &BenchArgs, on_gpu: bool) -> Sizes {
    let pick = |gpu: usize, cpu: usize, quick: usize| match (args.quick, on_gpu) {
        (true, _) => quick,
        (false, true) => gpu,
        (false, false) => cpu,
    };
    let rows: &[usize] = match (args.quick, on_gpu) {
        (true, _) => &[1],
        (false, true) => &[1, 16, 4096],
        (false, false) => &[1, 64],
    };
    // A CPU's activations are f32.
    let weights = [GemmWeights::Bf16, GemmWeights::Int8, GemmWeights::Int4];
    Sizes {
        seq_len: args.seq.unwrap_or(pick(4096, 512, 64)),
        batch: args.batch.unwrap_or(pick(4, 1, 1)),
        context: args.context.unwrap_or(pick(4096, 4096, 100)),
        rows: if args.rows.is_empty() { rows.to_vec() } else { args.rows.clone() },
        weights: if on_gpu { [&weights[..], &[GemmWeights::Int4F16]].concat() } else { weights.to_vec() },
    }
}

fn shapes(args: &BenchArgs, on_gpu: bool) -> Result<Vec<ModelShape>, Failure> {
    if !args.preset.is_empty() {
        return args.preset.iter().map(|name| Ok(shape(name, &preset(name)?))).collect();
    }
    if on_gpu {
        return Ok(vec![shape("llama-3.1-8b", &preset("llama-3.1-8b")?)]);
    }
    let mut shapes = vec![shape("demo", &demo_config()?)];
    if !args.quick {
        shapes.push(shape(CPU_PRESET, &preset(CPU_PRESET)?));
    }
    Ok(shapes)
}

fn shape(name: &str, config: &ModelConfig) -> ModelShape {
    ModelShape {
        name: name.to_lowercase(),
        hidden: config.hidden_size,
        inter: config.intermediate_size,
        q_heads: config.q_heads,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
    }
}
