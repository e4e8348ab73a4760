//! Files of quantised weights, read by the runtime and multiplied by the CPU device, against what the formats say in f64.
//! Tensors are random bits: every code, zero point and order of columns that a file can hold.

use std::path::Path;

use half::f16;
use proptest::prelude::*;
use safetensors::{Dtype, tensor::TensorView};
use tempfile::TempDir;
use tilewright::checkpoint::Checkpoint;
use tilewright::config::{QuantFormat, QuantizationConfig};
use tilewright::quantized::{check_matrix, read_linear};
use tilewright_host::{Device, HostQuantized, QuantizedPart, cpu::CpuDevice};
use tilewright_reference::{
    AwqTensors, GptqTensors, PackQuantizedTensors, awq_weights, gptq_weights, int_quantized_weights,
    pack_quantized_weights,
};
use tilewright_tests::random::Random;

const NAME: &str = "model.layers.0.mlp.down_proj";

/// Tensors of a checkpoint of one layer.
#[derive(Default)]
struct File(Vec<(&'static str, Dtype, Vec<usize>, Vec<u8>)>);

impl File {
    fn words(&mut self, name: &'static str, shape: &[usize], words: &[u32]) {
        let bytes = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.0.push((name, Dtype::I32, shape.to_vec(), bytes));
    }

    fn halves(&mut self, name: &'static str, shape: &[usize], values: &[f32]) {
        let bytes = values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect();
        self.0.push((name, Dtype::F16, shape.to_vec(), bytes));
    }

    fn write(&self) -> TempDir {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let tensors = self.0.iter().map(|(name, dtype, shape, bytes)| {
            let view = TensorView::new(*dtype, shape.clone(), bytes).expect("a view");
            (format!("{NAME}.{name}"), view)
        });
        let bytes = safetensors::serialize(tensors, None).expect("serialised");
        std::fs::write(dir.path().join("model.safetensors"), bytes).expect("written");
        dir
    }
}

/// A layer of `n` outputs and `k` inputs.
#[derive(Debug, Clone, Copy)]
struct Layer {
    n: usize,
    k: usize,
    group: usize,
    bits: usize,
    act_order: bool,
    seed: u64,
}

impl Layer {
    fn groups(&self) -> usize {
        self.k.div_ceil(self.group)
    }

    fn pack(&self) -> usize {
        32 / self.bits
    }

    fn words(&self, random: &mut Random, count: usize) -> Vec<u32> {
        (0..count).map(|_| random.bits() as u32).collect()
    }

    /// Scales that f16 holds exactly, zeros and negative ones among them.
    fn scales(&self, random: &mut Random, count: usize) -> Vec<f32> {
        (0..count).map(|_| f16::from_f32(random.normal(0.02)).to_f32()).collect()
    }

    /// A group for each input in random order.
    fn g_idx(&self, random: &mut Random) -> Option<Vec<u32>> {
        self.act_order
            .then(|| random.shuffled(self.k).into_iter().map(|col| col / self.group as u32).collect())
    }

    fn config(&self, format: QuantFormat) -> QuantizationConfig {
        let group_size = (self.group < self.k).then_some(self.group);
        QuantizationConfig {
            format,
            bits: self.bits,
            group_size,
            symmetric: false,
            act_order: self.act_order,
        }
    }
}

/// Reads the layer, compares each weight (an f32 rounding of the exact product apart), and runs a product with it.
fn agrees(
    dir: &Path,
    config: &QuantizationConfig,
    layer: &Layer,
    expected: &[f64],
) -> Result<(), TestCaseError> {
    let checkpoint = Checkpoint::open(dir).expect("opened");
    let part: QuantizedPart = read_linear(&checkpoint, config, NAME, layer.n, layer.k).expect("read");
    let weights = HostQuantized::new(vec![part]).expect("one part");
    let found = weights.dequantized();
    prop_assert_eq!(found.len(), expected.len());
    for (i, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        prop_assert!(found == expected as f32, "weight {i}: {found} is not {expected}");
    }
    let device = CpuDevice::new();
    let matrix = device.quantized(&weights).expect("packed");
    let check = check_matrix(&device, NAME, &weights, &matrix, true).expect("a product");
    prop_assert!(check.passed, "{check:?}");
    Ok(())
}

/// Sizes around words and vectors, groups that do and don't divide.
fn layers(bits: impl Strategy<Value = usize>) -> impl Strategy<Value = Layer> {
    let size = prop_oneof![Just(8usize), Just(16), Just(24), Just(32), Just(40), Just(136), Just(264)];
    (size.clone(), size, 1usize..=300, bits, any::<bool>(), any::<u64>()).prop_map(
        |(n, k, group, bits, act_order, seed)| Layer { n, k, group: group.min(k), bits, act_order, seed },
    )
}

fn bits() -> impl Strategy<Value = usize> {
    prop_oneof![Just(4usize), Just(8)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn gptq_is_read_as_it_is_defined(layer in layers(bits()), first_version: bool) {
        let mut random = Random::new(layer.seed);
        let (pack, groups) = (layer.pack(), layer.groups());
        let qweight = layer.words(&mut random, layer.k / pack * layer.n);
        let qzeros = layer.words(&mut random, groups * layer.n / pack);
        let scales = layer.scales(&mut random, groups * layer.n);
        let g_idx = layer.g_idx(&mut random);
        let mut file = File::default();
        file.words("qweight", &[layer.k / pack, layer.n], &qweight);
        file.words("qzeros", &[groups, layer.n / pack], &qzeros);
        file.halves("scales", &[groups, layer.n], &scales);
        if let Some(g_idx) = &g_idx {
            file.words("g_idx", &[layer.k], g_idx);
        }
        let expected = gptq_weights(&GptqTensors {
            qweight: &qweight,
            qzeros: &qzeros,
            scales: &scales,
            g_idx: g_idx.as_deref(),
            group: layer.group,
            bits: layer.bits as u32,
            zeros_less_one: first_version,
            n: layer.n,
            k: layer.k,
        });
        let format = if first_version { QuantFormat::Gptq } else { QuantFormat::GptqV2 };
        agrees(file.write().path(), &layer.config(format), &layer, &expected)?;
    }

    #[test]
    fn awq_is_read_as_it_is_defined(layer in layers(Just(4))) {
        let layer = Layer { act_order: false, ..layer };
        let mut random = Random::new(layer.seed);
        let groups = layer.groups();
        let qweight = layer.words(&mut random, layer.k * layer.n / 8);
        let qzeros = layer.words(&mut random, groups * layer.n / 8);
        let scales = layer.scales(&mut random, groups * layer.n);
        let mut file = File::default();
        file.words("qweight", &[layer.k, layer.n / 8], &qweight);
        file.words("qzeros", &[groups, layer.n / 8], &qzeros);
        file.halves("scales", &[groups, layer.n], &scales);
        let (group, n, k) = (layer.group, layer.n, layer.k);
        let tensors = AwqTensors { qweight: &qweight, qzeros: &qzeros, scales: &scales, group, n, k };
        let expected = awq_weights(&tensors);
        agrees(file.write().path(), &layer.config(QuantFormat::Awq), &layer, &expected)?;
    }

    #[test]
    fn pack_quantized_is_read_as_it_is_defined(layer in layers(bits()), odd in 0usize..8, zeros: bool) {
        // Inputs need not fill words here.
        let k = layer.k + odd;
        let layer = Layer { k, group: layer.group.min(k), ..layer };
        let mut random = Random::new(layer.seed);
        let (pack, groups) = (layer.pack(), layer.groups());
        let weight_packed = layer.words(&mut random, layer.n * k.div_ceil(pack));
        let weight_scale = layer.scales(&mut random, layer.n * groups);
        let weight_zero_point = zeros.then(|| layer.words(&mut random, layer.n / pack * groups));
        let g_idx = layer.g_idx(&mut random);
        let mut file = File::default();
        file.words("weight_packed", &[layer.n, k.div_ceil(pack)], &weight_packed);
        file.halves("weight_scale", &[layer.n, groups], &weight_scale);
        let shape = [layer.n, k].iter().flat_map(|&dim| (dim as i64).to_le_bytes()).collect();
        file.0.push(("weight_shape", Dtype::I64, vec![2], shape));
        if let Some(words) = &weight_zero_point {
            file.words("weight_zero_point", &[layer.n / pack, groups], words);
        }
        if let Some(g_idx) = &g_idx {
            file.words("weight_g_idx", &[k], g_idx);
        }
        let expected = pack_quantized_weights(&PackQuantizedTensors {
            weight_packed: &weight_packed,
            weight_scale: &weight_scale,
            weight_zero_point: weight_zero_point.as_deref(),
            weight_g_idx: g_idx.as_deref(),
            group: layer.group,
            bits: layer.bits as u32,
            n: layer.n,
            k,
        });
        agrees(file.write().path(), &layer.config(QuantFormat::PackQuantized), &layer, &expected)?;
    }

    #[test]
    fn int_quantized_is_read_as_it_is_defined(n in 1usize..70, k in 1usize..300, seed: u64) {
        let layer = Layer { n, k, group: k, bits: 8, act_order: false, seed };
        let mut random = Random::new(seed);
        let weight: Vec<i8> = (0..n * k).map(|_| random.bits() as i8).collect();
        let scale = layer.scales(&mut random, n);
        let mut file = File::default();
        let bytes = weight.iter().map(|&byte| byte as u8).collect();
        file.0.push(("weight", Dtype::I8, vec![n, k], bytes));
        file.halves("weight_scale", &[n, 1], &scale);
        let expected = int_quantized_weights(&weight, &scale, k);
        agrees(file.write().path(), &layer.config(QuantFormat::IntQuantized), &layer, &expected)?;
    }
}
