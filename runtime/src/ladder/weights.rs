//! Smaller weights: f32 against bf16, and bf16 against eight and four bits, in bytes, in time, and in what the model then predicts.

use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, serialize_to_file};

use super::paths::{WorkFolder, copy_companions};
use super::product::Products;
use super::{Bench, Claim, LadderOptions, Rate, Rung, Turns, in_turns};
use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
use crate::device::on_device;
use crate::eval::evaluate;
use crate::plan::{WeightFormat, weight_bytes};
use crate::quantise::{Method, QuantiseOptions, quantisable, quantise};
use crate::{Error, GenerateParams, Model, Result};

/// What the models are judged on: Rust of this crate, which no model was trained on.
const JUDGED: &[&str] = &[include_str!("../engine/schedule.rs"), include_str!("../engine/memory.rs")];
/// What four-bit weights are calibrated on: other Rust of this crate.
const CALIBRATED: &[&str] = &[
    include_str!("../quantise/stages.rs"),
    include_str!("../quantise/files.rs"),
    include_str!("../quantise/linalg.rs"),
    include_str!("../config/mod.rs"),
    include_str!("../generate/mod.rs"),
    include_str!("../checkpoint.rs"),
    include_str!("../front.rs"),
    include_str!("../tokenizer/mod.rs"),
];
const BF16_SIZE: &str = "2 times smaller than FP32";
const BF16_SPEED: &str = "2 times faster than FP32";
const INT8_SIZE: &str = "2 times smaller";
const INT8_SPEED: &str = "2 times faster";
const INT4_SIZE: &str = "4 times smaller";
const INT4_SPEED: &str = "up to 4 times faster";
const INT4_LOSS: &str = "under 1% of accuracy lost";

pub(super) fn rungs(bench: &Bench<'_>) -> Result<Vec<Rung>> {
    let folder = WorkFolder::new()?;
    let (int8, int4) = (folder.join("int8"), folder.join("int4"));
    let context = bench.model.config().context;
    for (out, method) in [(&int8, Method::Int8), (&int4, four_bits(bench.options))] {
        quantise(&bench.options.target, out, &how(bench.options, method, context), &mut |_, _| {})?;
    }
    let (rows, cols) = if bench.options.quick { (256, 512) } else { (14_336, 4096) };
    let products = on_device(bench.options.device, Products { rows, cols, runs: bench.size(20, 2) })?;
    let product =
        |format: WeightFormat| products.iter().find(|(of, _)| *of == format).map(|(_, seconds)| *seconds);
    let in_f32 = product(WeightFormat::F32).is_some();

    let load = |dir: &Path| Model::load(dir, bench.options.device);
    let mut models = vec![("bf16", bench.model.clone()), ("int8", load(&int8)?), ("int4", load(&int4)?)];
    if in_f32 {
        let dir = folder.join("f32");
        widened(&bench.options.target, &dir)?;
        models.push(("f32", load(&dir)?));
    }
    let rates =
        in_turns(bench.size(5, 1), models.iter().map(|(_, model)| decode_rate(bench, model)).collect())?;
    let losses = models[..3].iter().map(|(_, model)| loss(bench, model)).collect::<Result<Vec<_>>>()?;
    let found = Found { bench, rows, cols, product: &product, rates: &rates, losses: &losses };
    Ok(vec![
        found.bf16_size(),
        found.bf16_speed(),
        found.size("INT8, size", INT8_SIZE, WeightFormat::Int8)?,
        found.speed("INT8, speed", INT8_SPEED, WeightFormat::Int8, [2.0, 2.0]),
        found.size("INT4, size", INT4_SIZE, WeightFormat::Int4)?,
        found.speed("INT4, speed", INT4_SPEED, WeightFormat::Int4, [1.0, 4.0]),
        found.int4_loss(),
    ])
}

/// What was measured of all formats.
struct Found<'a> {
    bench: &'a Bench<'a>,
    rows: usize,
    cols: usize,
    product: &'a dyn Fn(WeightFormat) -> Option<f64>,
    /// Tokens a second and their ratios to bf16's: of bf16, int8, int4 and, where the device has it, f32.
    rates: &'a [Turns],
    /// Nats a token of bf16, int8, int4.
    losses: &'a [f64],
}

impl Found<'_> {
    fn bf16_speed(&self) -> Rung {
        let limits = Claim::Times { from: 2.0, to: 2.0 };
        let Some(in_f32) = self.rates.get(3) else {
            let reason =
                "a GPU computes in bf16 whatever the checkpoint holds: there is no f32 to compare with";
            return Rung::not_here("BF16, speed", BF16_SPEED, limits, reason);
        };
        let of = format!(
            "the model decodes {:.1} tok/s with f32 weights, {:.1} with bf16",
            in_f32.rate, self.rates[0].rate
        );
        let gain = in_f32.inverse();
        let rung = Rung::times("BF16, speed", BF16_SPEED, [2.0, 2.0], gain.ratio(), of).of_rounds(&gain);
        self.beyond_caches(rung.because(self.small("")), WeightFormat::F32, WeightFormat::Bf16)
    }

    fn bf16_size(&self) -> Rung {
        let config = self.bench.model.config();
        let bytes =
            |format| weight_bytes(config, format).map_or(f64::NAN, |bytes| bytes.total_bytes() as f64);
        let (large, small) = (bytes(WeightFormat::F32), bytes(WeightFormat::Bf16));
        let of = format!("all weights: {:.1} MB in f32, {:.1} MB in bf16", large / 1e6, small / 1e6);
        Rung::times("BF16, size", BF16_SIZE, [2.0, 2.0], large / small, of)
    }

    fn size(&self, name: &'static str, claim: &'static str, format: WeightFormat) -> Result<Rung> {
        let config = self.bench.model.config();
        let (plain, small) = (weight_bytes(config, WeightFormat::Bf16)?, weight_bytes(config, format)?);
        let (before, after) = (plain.linear_bytes as f64, small.linear_bytes as f64);
        let from = if format == WeightFormat::Int8 { 2.0 } else { 4.0 };
        let of =
            format!("linear layers: {:.2} MB in bf16, {:.2} MB with their scales", before / 1e6, after / 1e6);
        let rung = Rung::times(name, claim, [from, from], before / after, of);
        let whole = plain.total_bytes() as f64 / small.total_bytes() as f64;
        let rung = rung.because(format!(
            "codes alone are {from:.0} times smaller; scales (and zero points) are the rest"
        ));
        Ok(rung.also("the whole model, embedding and head as they were", format!("{whole:.2}x smaller")))
    }

    fn speed(&self, name: &'static str, claim: &'static str, format: WeightFormat, limits: [f64; 2]) -> Rung {
        let at = if format == WeightFormat::Int8 { 1 } else { 2 };
        let (plain, small) = (&self.rates[0], &self.rates[at]);
        let of = format!(
            "the model decodes {:.1} tok/s in bf16, {:.1} in {}",
            plain.rate,
            small.rate,
            format.name()
        );
        let rung = Rung::times(name, claim, limits, small.ratio(), of)
            .of_rounds(small)
            .because(self.small(", and the head stays in bf16"));
        let rung = self.beyond_caches(rung, WeightFormat::Bf16, format);
        let percent = 100.0 * (self.losses[at] / self.losses[0] - 1.0);
        rung.also("loss against bf16", format!("{percent:+.2}% ({:.4} nats a token)", self.losses[at]))
    }

    fn int4_loss(&self) -> Rung {
        let percent = 100.0 * (self.losses[2] / self.losses[0] - 1.0);
        let how = if self.bench.options.quick { "rounded to nearest" } else { "GPTQ" };
        let of = format!(
            "nats a token over Rust that it wasn't trained on: {:.4} in bf16, {:.4} in four bits ({how}, groups of 128)",
            self.losses[0], self.losses[2]
        );
        let rung = Rung::loss("INT4, accuracy", INT4_LOSS, 1.0, percent, of);
        let eight = 100.0 * (self.losses[1] / self.losses[0] - 1.0);
        let reason = match self.bench.options.quick {
            true => "quick: weights were rounded, not calibrated",
            false => "so small a model has little to spare, and is calibrated on few tokens here",
        };
        rung.because(reason).also("eight bits", format!("{eight:+.2}%"))
    }

    fn small(&self, besides: &str) -> String {
        let bytes = weight_bytes(self.bench.model.config(), WeightFormat::Bf16)
            .map_or(0, |bytes| bytes.total_bytes());
        format!(
            "the model's {:.0} MB of bf16 weights are too few for reading them to be what a step waits for: caches hold much of them{besides}",
            bytes as f64 / 1e6
        )
    }

    /// With the same comparison where nothing but reading counts.
    fn beyond_caches(&self, rung: Rung, large: WeightFormat, small: WeightFormat) -> Rung {
        let (Some(before), Some(after)) = ((self.product)(large), (self.product)(small)) else { return rung };
        let what = format!("one row by {} x {} weights", self.rows, self.cols);
        rung.also(
            &what,
            format!("{:.2}x ({:.0} us, then {:.0} us)", before / after, 1e6 * before, 1e6 * after),
        )
    }
}

/// Tokens a second of one sequence.
fn decode_rate<'a>(bench: &Bench<'_>, model: &'a Model) -> Rate<'a> {
    let max_tokens = bench.size(192, 8);
    Box::new(move || {
        let params = GenerateParams { max_tokens, ignore_eos: true, ..GenerateParams::default() };
        let prompt: &[u32] = &[1, 2, 3, 4];
        let mut generation = model.generate(prompt, &params)?;
        for token in generation.by_ref() {
            token?;
        }
        Ok(generation.timings().decode_rate())
    })
}

/// Nats a token.
fn loss(bench: &Bench<'_>, model: &Model) -> Result<f64> {
    let text = JUDGED.concat();
    let text: String = text.chars().take(bench.size(usize::MAX, 1500)).collect();
    let context = bench.size(1024, 128).min(model.config().context);
    Ok(evaluate(model, &text, context, &mut |_, _| {})?.nll)
}

/// Refuses a checkpoint whose weights can't be made smaller, by its configuration alone.
pub(super) fn check(options: &LadderOptions) -> Result<()> {
    let context = ModelConfig::load(&options.target)?.context;
    for method in [Method::Int8, four_bits(options)] {
        let config = quantisable(&options.target, &how(options, method, context));
        config.map_err(|error| match error {
            Error::Request { expected, found, .. } => {
                Error::file(&options.target, "weights of four bits in groups of 128", expected, found)
            }
            other => other,
        })?;
    }
    Ok(())
}

fn four_bits(options: &LadderOptions) -> Method {
    if options.quick { Method::Rtn } else { Method::Gptq }
}

fn how(options: &LadderOptions, method: Method, context: usize) -> QuantiseOptions {
    QuantiseOptions {
        method,
        bits: if method == Method::Int8 { 8 } else { 4 },
        samples: 32,
        context: 512.min(context),
        calibration: (method == Method::Gptq).then(|| CALIBRATED.concat()),
        device: options.device,
        ..QuantiseOptions::default()
    }
}

/// The same checkpoint with every tensor in f32.
fn widened(from: &Path, to: &Path) -> Result<()> {
    copy_companions(from, to)?;
    let checkpoint = Checkpoint::open(from)?;
    let mut tensors = Vec::new();
    for summary in checkpoint.tensors() {
        let bytes: Vec<u8> =
            checkpoint.floats(&summary.name)?.iter().flat_map(|value| value.to_le_bytes()).collect();
        tensors.push((summary.name, summary.shape, bytes));
    }
    let path = to.join("model.safetensors");
    let wrong = |error: safetensors::SafeTensorError| {
        Error::file(&path, "contents", "a checkpoint that can be written", error)
    };
    let views = tensors
        .iter()
        .map(|(name, shape, bytes)| Ok((name, TensorView::new(Dtype::F32, shape.clone(), bytes)?)));
    let views = views.collect::<Result<Vec<_>, _>>().map_err(wrong)?;
    serialize_to_file(views, None, &path).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DeviceChoice;

    #[test]
    fn a_widened_checkpoint_says_the_same() {
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo/draft");
        let folder = WorkFolder::new().expect("a folder");
        widened(&demo, &folder.join("f32")).expect("written");
        let said = |dir: &Path| {
            let model = Model::load(dir, DeviceChoice::Cpu).expect("loads");
            let params = GenerateParams { max_tokens: 12, ..GenerateParams::default() };
            let generation = model.generate("fn main() {", &params).expect("a prompt");
            generation.map(|token| token.expect("a token").id).collect::<Vec<_>>()
        };
        assert_eq!(said(&demo), said(&folder.join("f32")));
        let bytes: usize =
            Checkpoint::open(&folder.join("f32")).expect("opens").tensors().map(|tensor| tensor.bytes).sum();
        let narrow: usize =
            Checkpoint::open(&demo).expect("opens").tensors().map(|tensor| tensor.bytes).sum();
        assert_eq!(bytes, 2 * narrow);
    }
}
