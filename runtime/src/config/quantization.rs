use serde::Serialize;
use serde_json::Value;
use tilewright_host::CodeBits;

use super::fields::Fields;
use crate::Result;

/// How a checkpoint stores quantised weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum QuantFormat {
    /// GPTQ as AutoGPTQ writes it: zero points are stored less one, modulo the number of codes.
    Gptq,
    /// GPTQ with zero points as they are (`checkpoint_format: gptq_v2`).
    GptqV2,
    /// AWQ in its `gemm` layout.
    Awq,
    /// compressed-tensors' `pack-quantized`: weights of four or eight bits, activations as they are.
    PackQuantized,
    /// compressed-tensors' `int-quantized`: weights of eight bits a channel, activations of eight bits a token.
    IntQuantized,
}

/// What `quantization_config` says, validated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct QuantizationConfig {
    /// The layout of the tensors.
    pub format: QuantFormat,
    /// Bits a weight: 4 or 8.
    pub bits: usize,
    /// Columns that share a scale; none where a whole row does.
    pub group_size: Option<usize>,
    /// Every zero point is the middle code.
    pub symmetric: bool,
    /// Columns may be assigned to groups in any order.
    pub act_order: bool,
}

impl QuantizationConfig {
    /// Columns that share a scale in a matrix of `cols`.
    pub fn group(&self, cols: usize) -> usize {
        self.group_size.unwrap_or(cols).min(cols)
    }

    /// The bits of a code.
    pub fn code_bits(&self) -> CodeBits {
        if self.bits == 4 { CodeBits::Four } else { CodeBits::Eight }
    }

    pub(super) fn parse(fields: &Fields) -> Result<Option<QuantizationConfig>> {
        let Some(config) = fields.object("quantization_config")? else { return Ok(None) };
        match config.text("quant_method")? {
            Some("gptq") => gptq(&config).map(Some),
            Some("awq") => awq(&config).map(Some),
            Some("compressed-tensors") => compressed(&config).map(Some),
            _ => Err(config.wrong("quant_method", "\"gptq\", \"awq\" or \"compressed-tensors\"")),
        }
    }
}

fn bits(config: &Fields, field: &str, choices: &[usize]) -> Result<usize> {
    match config.size(field)? {
        Some(bits) if choices.contains(&bits) => Ok(bits),
        _ => {
            let words: Vec<String> = choices.iter().map(usize::to_string).collect();
            Err(config.wrong(field, &words.join(" or ")))
        }
    }
}

/// -1 or nothing where a whole row is one group.
fn group_size(config: &Fields) -> Result<Option<usize>> {
    match config.get("group_size").and_then(Value::as_i64) {
        Some(-1) => Ok(None),
        _ if config.get("group_size").is_none() => Ok(None),
        Some(1..) => config.size("group_size"),
        _ => Err(config.wrong("group_size", "-1 or an integer from 1")),
    }
}

fn gptq(config: &Fields) -> Result<QuantizationConfig> {
    let format = match config.text("checkpoint_format")? {
        None | Some("gptq") => QuantFormat::Gptq,
        Some("gptq_v2") => QuantFormat::GptqV2,
        Some(_) => return Err(config.wrong("checkpoint_format", "\"gptq\" or \"gptq_v2\"")),
    };
    let same_everywhere = match config.get("dynamic") {
        None => true,
        Some(Value::Object(rules)) => rules.is_empty(),
        Some(_) => false,
    };
    if !same_everywhere {
        return Err(config.wrong("dynamic", "nothing (the same bits in all layers)"));
    }
    Ok(QuantizationConfig {
        format,
        bits: bits(config, "bits", &[4, 8])?,
        group_size: group_size(config)?,
        symmetric: config.flag("sym")?.unwrap_or(false),
        act_order: config.flag("desc_act")?.unwrap_or(false),
    })
}

fn awq(config: &Fields) -> Result<QuantizationConfig> {
    if config.text("version")?.is_some_and(|version| !version.eq_ignore_ascii_case("gemm")) {
        return Err(config.wrong("version", "\"gemm\""));
    }
    let bits_field = if config.says("w_bit") { "w_bit" } else { "bits" };
    let group_size = match config.size("q_group_size")? {
        Some(size) => Some(size),
        None => group_size(config)?,
    };
    Ok(QuantizationConfig {
        format: QuantFormat::Awq,
        bits: bits(config, bits_field, &[4])?,
        group_size,
        symmetric: !config.flag("zero_point")?.unwrap_or(true),
        act_order: false,
    })
}

fn compressed(config: &Fields) -> Result<QuantizationConfig> {
    let Some(groups) = config.object("config_groups")? else {
        return Err(config.wrong("config_groups", "an object with one group"));
    };
    let names: Vec<&String> = groups.names().collect();
    let [name] = names[..] else { return Err(config.wrong("config_groups", "one group of layers")) };
    let Some(group) = groups.object(name)? else { return Err(groups.wrong(name, "an object")) };
    if group.get("targets").is_some_and(|targets| *targets != serde_json::json!(["Linear"])) {
        return Err(group.wrong("targets", "[\"Linear\"]"));
    }
    let Some(weights) = group.object("weights")? else { return Err(group.wrong("weights", "an object")) };
    if weights.text("type")?.is_some_and(|kind| kind != "int") {
        return Err(weights.wrong("type", "\"int\""));
    }
    let symmetric = weights.flag("symmetric")?.unwrap_or(true);
    let format = config.text("format")?.or(group.text("format")?);
    match format {
        Some("pack-quantized") => {
            if group.get("input_activations").is_some() {
                return Err(group.wrong("input_activations", "null for pack-quantized"));
            }
            let act_order = weights.text("actorder")?.is_some_and(|order| order == "group");
            let group_size = match weights.text("strategy")? {
                Some("channel") => None,
                Some("group") => Some(weights.required_size("group_size")?),
                _ => return Err(weights.wrong("strategy", "\"group\" or \"channel\"")),
            };
            let bits = bits(&weights, "num_bits", &[4, 8])?;
            Ok(QuantizationConfig {
                format: QuantFormat::PackQuantized,
                bits,
                group_size,
                symmetric,
                act_order,
            })
        }
        Some("int-quantized") => {
            if weights.text("strategy")? != Some("channel") {
                return Err(weights.wrong("strategy", "\"channel\" for int-quantized"));
            }
            int_quantized_activations(&group)?;
            let bits = bits(&weights, "num_bits", &[8])?;
            let format = QuantFormat::IntQuantized;
            Ok(QuantizationConfig { format, bits, group_size: None, symmetric, act_order: false })
        }
        _ => Err(config.wrong("format", "\"pack-quantized\" or \"int-quantized\"")),
    }
}

/// Activations of eight bits a token, found as the model runs.
fn int_quantized_activations(group: &Fields) -> Result<()> {
    let Some(inputs) = group.object("input_activations")? else {
        return Err(group.wrong("input_activations", "an object for int-quantized"));
    };
    bits(&inputs, "num_bits", &[8])?;
    if inputs.text("strategy")? != Some("token") {
        return Err(inputs.wrong("strategy", "\"token\""));
    }
    if inputs.flag("dynamic")? != Some(true) {
        return Err(inputs.wrong("dynamic", "true"));
    }
    if inputs.flag("symmetric")? == Some(false) {
        return Err(inputs.wrong("symmetric", "true"));
    }
    Ok(())
}
