//! A checkpoint of random weights that is in no file, for measurements of a shape.

use half::{bf16, f16};
use memmap2::MmapMut;
use rayon::prelude::*;
use safetensors::Dtype;

use super::{Checkpoint, Entry, Shard};
use crate::config::{ModelConfig, QuantFormat};
use crate::model::projections;
use crate::{Error, Result};

/// Where errors say such a checkpoint is.
const PLACE: &str = "random weights";
/// Standard deviation of weights: that of Llama's initialisation.
const DEVIATION: f32 = 0.02;
/// Tensors start at multiples of it.
const ALIGNMENT: usize = 64;
/// Elements drawn from one seed, so that threads share the work and the numbers stay the same.
const CHUNK_BYTES: usize = 1 << 16;

/// What a tensor is filled with.
#[derive(Clone, Copy)]
enum Fill {
    /// bf16 between -1 and 1 times `sqrt(3)` deviations.
    Weights,
    /// bf16 ones.
    Ones,
    /// bf16 zeros.
    Zeros,
    /// Any bits.
    Bits,
    /// The same in every byte.
    Bytes(u8),
    /// f16 scales with which codes of that many bits have the weights' deviation.
    Scales(usize),
    /// The group, of so many columns, of each of `cols` columns that come in an order.
    Groups { group: usize, cols: usize },
}

/// From a column of a group to the next, [`Fill::Groups`]: a prime that is part of no width.
const ORDER_STEP: usize = 12_289;

/// One range of bytes, under one name or, of layers, under many.
struct Tensor {
    names: Vec<String>,
    dtype: Dtype,
    shape: Vec<usize>,
    fill: Fill,
}

impl Checkpoint {
    /// Random weights of a model's shape. All layers share the bytes of one, and the output projection those of the embedding, so that
    /// memory and time are those of one layer; a device that is given them keeps each apart.
    ///
    /// # Errors
    /// A quantisation other than symmetric GPTQ and `int-quantized`.
    pub fn random(config: &ModelConfig, seed: u64) -> Result<Checkpoint> {
        let tensors = tensors(config)?;
        let mut ranges = Vec::with_capacity(tensors.len());
        let mut end = 0usize;
        for tensor in &tensors {
            let bytes = tensor.shape.iter().product::<usize>() * tensor.dtype.bitsize() / 8;
            let start = end.next_multiple_of(ALIGNMENT);
            end = start + bytes;
            ranges.push(start..end);
        }
        let mut bytes = MmapMut::map_anon(end.max(1)).map_err(Error::io(PLACE.as_ref()))?;
        for (index, (tensor, range)) in tensors.iter().zip(&ranges).enumerate() {
            fill(&mut bytes[range.clone()], tensor.fill, seed ^ (index as u64) << 48);
        }
        let bytes = bytes.make_read_only().map_err(Error::io(PLACE.as_ref()))?;
        let mut checkpoint = Checkpoint {
            dir: PLACE.into(),
            shards: vec![Shard { path: PLACE.into(), bytes }],
            entries: Default::default(),
        };
        for (tensor, range) in tensors.into_iter().zip(ranges) {
            for name in tensor.names {
                let (dtype, shape, range) = (tensor.dtype, tensor.shape.clone(), range.clone());
                checkpoint.entries.insert(name, Entry { shard: 0, dtype, shape, range });
            }
        }
        Ok(checkpoint)
    }
}

/// All tensors that a model of that shape takes.
fn tensors(config: &ModelConfig) -> Result<Vec<Tensor>> {
    let (hidden, vocab) = (config.hidden_size, config.vocab_size);
    let bf16 = |names: Vec<String>, shape: &[usize], fill| Tensor {
        names,
        dtype: Dtype::BF16,
        shape: shape.to_vec(),
        fill,
    };
    let of_layers =
        |part: &str| (0..config.layers).map(|layer| format!("model.layers.{layer}.{part}")).collect();
    let mut tables = vec!["model.embed_tokens.weight".to_string()];
    if !config.tie_word_embeddings {
        tables.push("lm_head.weight".into());
    }
    let mut tensors = vec![
        bf16(tables, &[vocab, hidden], Fill::Weights),
        bf16(vec!["model.norm.weight".into()], &[hidden], Fill::Ones),
        bf16(of_layers("input_layernorm.weight"), &[hidden], Fill::Ones),
        bf16(of_layers("post_attention_layernorm.weight"), &[hidden], Fill::Ones),
    ];
    if config.qk_norm {
        for part in ["self_attn.q_norm.weight", "self_attn.k_norm.weight"] {
            tensors.push(bf16(of_layers(part), &[config.head_dim], Fill::Ones));
        }
    }
    let biased = [config.qkv_bias, config.qkv_bias, config.qkv_bias, config.output_bias]
        .into_iter()
        .chain([config.mlp_bias; 3]);
    for ((name, rows, cols), biased) in projections(config, 0).into_iter().zip(biased) {
        let part = name.trim_start_matches("model.layers.0.");
        if biased {
            tensors.push(bf16(of_layers(&format!("{part}.bias")), &[rows], Fill::Zeros));
        }
        match &config.quantization {
            None => tensors.push(bf16(of_layers(&format!("{part}.weight")), &[rows, cols], Fill::Weights)),
            Some(quantization) => {
                let quantised = |kind: &str, dtype, shape: &[usize], fill| Tensor {
                    names: of_layers(&format!("{part}.{kind}")),
                    dtype,
                    shape: shape.to_vec(),
                    fill,
                };
                let (bits, group) = (quantization.bits, quantization.group(cols));
                let (in_word, groups) = (32 / bits, cols.div_ceil(group));
                let whole_words = rows.is_multiple_of(in_word) && cols.is_multiple_of(in_word);
                match quantization.format {
                    QuantFormat::Gptq if quantization.symmetric && whole_words => {
                        // The middle code less one in every place.
                        let zeros = Fill::Bytes(if bits == 4 { 0x77 } else { 0x7f });
                        tensors.extend([
                            quantised("qweight", Dtype::I32, &[cols / in_word, rows], Fill::Bits),
                            quantised("qzeros", Dtype::I32, &[groups, rows / in_word], zeros),
                            quantised("scales", Dtype::F16, &[groups, rows], Fill::Scales(bits)),
                        ]);
                        if quantization.act_order {
                            tensors.push(quantised(
                                "g_idx",
                                Dtype::I32,
                                &[cols],
                                Fill::Groups { group, cols },
                            ));
                        }
                    }
                    QuantFormat::IntQuantized => tensors.extend([
                        quantised("weight", Dtype::I8, &[rows, cols], Fill::Bits),
                        quantised("weight_scale", Dtype::F16, &[rows, 1], Fill::Scales(bits)),
                    ]),
                    _ => {
                        let expected = "symmetric GPTQ of sizes that are whole words, or int-quantized";
                        let found = format!("{quantization:?} of {rows} by {cols}");
                        return Err(Error::file(PLACE.as_ref(), "quantization_config", expected, found));
                    }
                }
            }
        }
    }
    Ok(tensors)
}

fn fill(bytes: &mut [u8], fill: Fill, seed: u64) {
    bytes.par_chunks_mut(CHUNK_BYTES).enumerate().for_each(|(chunk, bytes)| {
        if let Fill::Groups { group, cols } = fill {
            for (at, word) in bytes.chunks_exact_mut(4).enumerate() {
                let col = chunk * CHUNK_BYTES / 4 + at;
                word.copy_from_slice(&((col * ORDER_STEP % cols / group) as u32).to_le_bytes());
            }
            return;
        }
        let mut state = seed.wrapping_add((chunk as u64).wrapping_mul(0xD1B5_4A32_D192_ED03));
        for word in bytes.chunks_mut(8) {
            let random = next(&mut state).to_le_bytes();
            let two = [0, 2, 4, 6].map(|at| {
                // From -1 to 1.
                let uniform = f32::from(i16::from_le_bytes([random[at], random[at + 1]])) / 32768.0;
                match fill {
                    Fill::Weights => bf16::from_f32(uniform * 3f32.sqrt() * DEVIATION).to_le_bytes(),
                    Fill::Ones => bf16::ONE.to_le_bytes(),
                    Fill::Zeros => [0; 2],
                    Fill::Bits | Fill::Groups { .. } => [random[at], random[at + 1]],
                    Fill::Bytes(byte) => [byte; 2],
                    Fill::Scales(bits) => {
                        let of_codes = (1 << bits) as f32 / 12f32.sqrt();
                        f16::from_f32(DEVIATION / of_codes * (1.0 + uniform / 4.0)).to_le_bytes()
                    }
                }
            });
            word.copy_from_slice(&two.as_flattened()[..word.len()]);
        }
    });
}

/// The next of a sequence of words. Source: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014, figure 17.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut word = *state;
    word = (word ^ word >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    word = (word ^ word >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ word >> 31
}
