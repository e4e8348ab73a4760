use half::bf16;
use serde::Serialize;

use super::fields::Fields;
use crate::Result;

/// Rotary embedding: the base and how long contexts are reached.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Rope {
    /// The base of the frequencies.
    pub theta: f64,
    /// What is done to them.
    pub scaling: RopeScaling,
    /// How exactly they are held.
    pub precision: FrequencyPrecision,
}

/// How exactly the frequencies of a rotary embedding are held. They aren't part of a checkpoint, so it's up to the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FrequencyPrecision {
    /// As computed: what `from_pretrained` of Hugging Face transformers does.
    #[default]
    F32,
    /// Rounded to bf16: what `model.to(torch.bfloat16)` does to a model in memory. Expected values that were computed after it
    /// can be met only in this way.
    Bf16,
}

/// How frequencies are stretched for contexts longer than the model was first trained on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
#[non_exhaustive]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// All frequencies are divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3: low frequencies are divided, high ones kept, those between interpolated.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original_context / low_freq_factor` are low.
        low_freq_factor: f64,
        /// Wavelengths below `original_context / high_freq_factor` are high.
        high_freq_factor: f64,
        /// The context first trained on.
        original_context: usize,
    },
}

impl Rope {
    /// Reads the form of transformers 5 (`rope_parameters`) or the older one (`rope_theta` and `rope_scaling`).
    pub(super) fn parse(fields: &Fields) -> Result<Rope> {
        const DEFAULT_THETA: f64 = 10_000.0;
        let outer_theta = fields.positive("rope_theta")?;
        let nested = match fields.object("rope_parameters")? {
            Some(nested) => Some(nested),
            None => fields.object("rope_scaling")?,
        };
        let Some(nested) = nested else {
            let theta = outer_theta.unwrap_or(DEFAULT_THETA);
            return Ok(Rope { theta, scaling: RopeScaling::Default, precision: FrequencyPrecision::F32 });
        };
        let theta = nested.positive("rope_theta")?.or(outer_theta).unwrap_or(DEFAULT_THETA);
        let scaling = RopeScaling::parse(&nested)?;
        // Both forms in one file must agree, or one of them would be passed over in silence.
        if let Some(old) = fields.object("rope_scaling")?
            && RopeScaling::parse(&old)? != scaling
        {
            return Err(fields.wrong("rope_scaling", "what rope_parameters says, or nothing"));
        }
        if outer_theta.is_some_and(|outer| outer != theta) {
            return Err(fields.wrong("rope_theta", "what rope_parameters says, or nothing"));
        }
        Ok(Rope { theta, scaling, precision: FrequencyPrecision::F32 })
    }

    /// `head_dim / 2` frequencies in radians a position.
    pub fn inv_freq(&self, head_dim: usize) -> Vec<f32> {
        (0..head_dim / 2)
            .map(|i| {
                let frequency = self.theta.powf(-2.0 * i as f64 / head_dim as f64);
                let frequency = self.scaling.apply(frequency) as f32;
                match self.precision {
                    FrequencyPrecision::F32 => frequency,
                    FrequencyPrecision::Bf16 => bf16::from_f32(frequency).to_f32(),
                }
            })
            .collect()
    }
}

impl RopeScaling {
    fn parse(nested: &Fields) -> Result<RopeScaling> {
        let name = if nested.get("rope_type").is_some() { "rope_type" } else { "type" };
        match nested.text(name)? {
            None | Some("default") => Ok(RopeScaling::Default),
            Some("linear") => Ok(RopeScaling::Linear { factor: nested.required_positive("factor")? }),
            Some("llama3") => {
                let low_freq_factor = nested.required_positive("low_freq_factor")?;
                let high_freq_factor = nested.required_positive("high_freq_factor")?;
                if high_freq_factor <= low_freq_factor {
                    let expected = format!("more than low_freq_factor, which is {low_freq_factor}");
                    return Err(nested.wrong("high_freq_factor", &expected));
                }
                Ok(RopeScaling::Llama3 {
                    factor: nested.required_positive("factor")?,
                    low_freq_factor,
                    high_freq_factor,
                    original_context: nested.required_size("original_max_position_embeddings")?,
                })
            }
            Some(_) => Err(nested.wrong(name, "\"default\", \"linear\" or \"llama3\"")),
        }
    }

    pub(super) fn apply(&self, frequency: f64) -> f64 {
        match *self {
            RopeScaling::Default => frequency,
            RopeScaling::Linear { factor } => frequency / factor,
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let turns = original_context as f64 * frequency / std::f64::consts::TAU;
                if turns > high_freq_factor {
                    frequency
                } else if turns < low_freq_factor {
                    frequency / factor
                } else {
                    let smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
        }
    }
}
