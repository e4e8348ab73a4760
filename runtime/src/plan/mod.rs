//! What a model takes of a device and what it can reach there, from its shape alone.
//!
//! ```
//! use tilewright::plan::{Given, PlanRequest, device, plan, preset};
//!
//! # fn main() -> tilewright::Result<()> {
//! let model = preset("llama-2-70b")?;
//! let device = device("h200", Given::default())?;
//! let plan = plan(&model, &device, &PlanRequest { context: Some(2048), ..PlanRequest::default() })?;
//! // 2 * 80 layers * 8 heads * 128 elements * 2 bytes * 2048 tokens.
//! assert_eq!(plan.cache.sequence_bytes, 671_088_640);
//! # Ok(())
//! # }
//! ```
//!
//! Bytes of the cache are those that the engine allocates. Times are the least that the device's bandwidth and peaks allow: what a kernel
//! can be held to, not what it will reach. On a CPU that was measured, bandwidth is the rate of reading as many bytes as a step does again and
//! again, since caches keep what fits them from step to step.

mod advice;
mod cache;
mod machine;
mod phases;
mod preset;
#[cfg(test)]
mod tests;
mod weights;

use serde::Serialize;
use tilewright_host::KvDType;

pub use advice::{Advice, Goal};
pub use cache::{CachePlan, KvFormat};
pub use machine::{
    DeviceKind, DeviceProfile, Given, ReadRate, cpu_in_words, device, device_of_driver, devices,
};
pub use phases::{Bound, Part, Phase};
pub use preset::{preset, presets};
pub use weights::{WeightBytes, WeightFormat, linear_parameters, parameters, weight_bytes};

use crate::config::ModelConfig;
use crate::engine::EngineConfig;
use crate::{Error, Result};
use phases::Roofline;

/// Sequences at most.
const MAX_BATCH: usize = 1 << 20;
/// Tokens a page at most.
const MAX_PAGE: usize = 1 << 16;

/// What is asked of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PlanRequest {
    /// Tokens a sequence; the model's context, or 4096 where that is longer, if absent.
    pub context: Option<usize>,
    /// Sequences at a time; 1 if absent.
    pub batch: Option<usize>,
    /// Tokens a page; the engine's default if absent.
    pub page_size: Option<usize>,
    /// What weights are stored as; the checkpoint's own if absent.
    pub weights: Option<WeightFormat>,
    /// What keys and values are stored as; what the engine stores on the device if absent.
    pub kv: Option<KvFormat>,
    /// What the advice is for.
    pub goal: Goal,
}

/// A plan.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// Parameters of the model.
    pub parameters: u64,
    /// Tokens of the model's longest text.
    pub model_context: usize,
    /// Query heads for each key and value head: how many times smaller the cache is than with a key head each.
    pub heads_sharing: usize,
    /// The device.
    pub device: DeviceProfile,
    /// Operations a byte above which a step's products with weights of the format are compute-bound.
    pub ridge: f64,
    /// The weights in each format that the device takes.
    pub weights: Vec<WeightBytes>,
    /// The format that is planned for.
    pub format: WeightFormat,
    /// Bytes of the weights in that format.
    pub weight_bytes: u64,
    /// Keys and values.
    pub cache: CachePlan,
    /// Bytes of a step's activations and logits, at the engine's default sizes.
    pub activation_bytes: u64,
    /// Bytes left to driver, program and fragmentation.
    pub reserved_bytes: u64,
    /// Bytes of all of it.
    pub total_bytes: u64,
    /// Whether that is within the device's memory.
    pub fits: bool,
    /// Sequences of that context at most.
    pub largest_batch: u64,
    /// Tokens a sequence at most, with that many sequences, the model's context being the limit.
    pub largest_context: u64,
    /// A prompt of the context's length, and a step of decoding at its end.
    pub phases: Vec<Phase>,
    /// What to choose, and why.
    pub advice: Advice,
}

/// Plans a model on a device.
///
/// # Errors
/// A context above the model's, a size of 0 or out of range, a format that the device doesn't take.
pub fn plan(config: &ModelConfig, device: &DeviceProfile, request: &PlanRequest) -> Result<Plan> {
    let context = request.context.unwrap_or(config.context.min(4096));
    let batch = request.batch.unwrap_or(1);
    let page_size = request.page_size.unwrap_or(EngineConfig::default().page_size);
    for (what, value, most) in [
        ("context", context, config.context),
        ("batch", batch, MAX_BATCH),
        ("page_size", page_size, MAX_PAGE),
    ] {
        if !(1..=most).contains(&value) {
            return Err(Error::request(what, format!("1 to {most}"), value));
        }
    }
    let format = request.weights.unwrap_or_else(|| WeightFormat::of(config));
    if !device.formats().contains(&format) {
        let known: Vec<&str> = device.formats().iter().map(|format| format.name()).collect();
        return Err(Error::request("weights", format!("{} on this device", known.join(", ")), format.name()));
    }
    let kv = request.kv.unwrap_or(KvFormat::of(KvDType::Native, device.kind));
    let cache = CachePlan::new(config, (kv, device.kind), page_size, context, batch)?;
    let planner = Planner { config, device, activation_bytes: activation_bytes(config, device)? };
    let weights =
        device.formats().iter().map(|format| weight_bytes(config, *format)).collect::<Result<Vec<_>>>()?;
    let chosen = weight_bytes(config, format)?;
    let room = planner.room(&chosen);
    let roofline = planner.roofline(chosen);
    let (prefill, decode) = (roofline.prefill(&cache)?, roofline.decode(&cache, batch, 1)?);
    let taken = [chosen.total_bytes(), cache.batch_bytes, planner.activation_bytes, device.reserved_bytes()];
    let total_bytes = taken.into_iter().fold(0, u64::saturating_add);
    Ok(Plan {
        parameters: parameters(config)?,
        model_context: config.context,
        heads_sharing: config.q_heads / config.kv_heads,
        device: device.clone(),
        ridge: decode.part("projections").map_or(0.0, |part| part.ridge),
        weights,
        format,
        weight_bytes: chosen.total_bytes(),
        cache,
        activation_bytes: planner.activation_bytes,
        reserved_bytes: device.reserved_bytes(),
        total_bytes,
        fits: total_bytes <= device.memory_bytes,
        largest_batch: cache.batch_in(room),
        largest_context: cache.context_in(room).min(config.context as u64),
        phases: vec![prefill, decode],
        advice: planner.advise(&cache, request.goal)?,
    })
}

/// A model on a device, whatever the format.
struct Planner<'a> {
    config: &'a ModelConfig,
    device: &'a DeviceProfile,
    activation_bytes: u64,
}

impl<'a> Planner<'a> {
    /// Bytes that weights leave to the cache.
    fn room(&self, weights: &WeightBytes) -> u64 {
        let taken = [weights.total_bytes(), self.activation_bytes, self.device.reserved_bytes()];
        taken.into_iter().fold(self.device.memory_bytes, u64::saturating_sub)
    }

    fn roofline(&self, weights: WeightBytes) -> Roofline<'a> {
        Roofline { config: self.config, device: self.device, weights }
    }
}

/// What the engine reserves for a step of its default sizes: see `Decoder::scratch`.
fn activation_bytes(config: &ModelConfig, device: &DeviceProfile) -> Result<u64> {
    let sizes = EngineConfig::default();
    let q_cols = config.q_heads * config.head_dim;
    let row = 2 * config.hidden_size + config.qkv_rows() + 2 * q_cols + 3 * config.intermediate_size;
    let elem = device.activation_bytes();
    let outputs = sizes.max_running * (1 + sizes.speculation.max_drafts());
    let chosen = product(&[outputs, 2 * config.hidden_size + q_cols, elem])?
        + product(&[outputs, config.vocab_size, 4])?;
    Ok(product(&[sizes.step_tokens, row, elem])? + chosen)
}

/// A product of sizes.
fn product(factors: &[usize]) -> Result<u64> {
    let product = factors.iter().try_fold(1u64, |product, &factor| product.checked_mul(factor as u64));
    product
        .filter(|&product| product < 1 << 60)
        .ok_or_else(|| Error::request("model", "sizes whose products are below 2^60", format!("{factors:?}")))
}
