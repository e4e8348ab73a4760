use std::path::{Path, PathBuf};

use half::bf16;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::doctor::examine;
use crate::quantized::read_linear;
use crate::{DeviceChoice, Model};

/// Numbers from -1 to 1.
pub(super) fn numbers(seed: u32, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn draft() -> PathBuf {
    root("models/demo/draft")
}

/// GPTQ of the demo's draft on a little text.
fn options() -> QuantiseOptions {
    QuantiseOptions {
        group: Some(64),
        samples: 24,
        context: 96,
        calibration: Some(
            [include_str!("tests.rs"), include_str!("stages.rs"), include_str!("files.rs")].concat(),
        ),
        device: DeviceChoice::Cpu,
        ..QuantiseOptions::default()
    }
}

fn run(dir: &Path, out: &Path, options: &QuantiseOptions) -> Result<QuantiseReport> {
    quantise(dir, out, options, &mut |_, _| {})
}

fn refusal(dir: &Path, options: &QuantiseOptions) -> String {
    let out = tempfile::tempdir().expect("a temporary folder");
    let message = run(dir, out.path(), options).expect_err("refused").to_string();
    assert!(!message.contains('\n'), "{message}");
    message
}

fn logits(dir: &Path) -> Vec<f32> {
    let model = Model::load(dir, DeviceChoice::Cpu).expect("loaded");
    let text = &include_str!("options.rs")[..600];
    let ids = model.require_tokenizer().expect("a tokenizer").encode(text).expect("tokens");
    let mut all = Vec::new();
    model
        .sequence(ids.len())
        .expect("a sequence")
        .feed_all(&ids, &mut |_, row| all.extend_from_slice(row))
        .expect("fed");
    all
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    let sum: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    (sum / a.len() as f64).sqrt()
}

fn bytes_of(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .map(|path| {
            (
                path.file_name().expect("a name").to_string_lossy().into_owned(),
                std::fs::read(&path).expect("read"),
            )
        })
        .collect();
    files.sort();
    files
}

#[test]
fn every_method_writes_a_checkpoint_that_loads_and_is_close() {
    let plain = logits(&draft());
    let size = distance(&plain, &vec![0.0; plain.len()]);
    let mut errors = Vec::new();
    for (method, bits, symmetric, act_order) in [
        (Method::Rtn, 4, false, false),
        (Method::Rtn, 8, true, false),
        (Method::Gptq, 4, false, false),
        (Method::Gptq, 4, true, true),
        (Method::Gptq, 8, false, true),
        (Method::Int8, 8, false, false),
    ] {
        let out = tempfile::tempdir().expect("a temporary folder");
        let options = QuantiseOptions { method, bits, symmetric, act_order, ..options() };
        let report = run(&draft(), out.path(), &options).expect("quantised");
        assert!(report.bytes_after < report.bytes_before, "{report:?}");
        let verdict = examine(out.path(), DeviceChoice::Cpu).expect("examined");
        assert!(verdict.passed && verdict.checks.len() == 7, "{verdict:?}");
        let error = distance(&logits(out.path()), &plain) / size;
        let bound = if bits == 4 { 0.5 } else { 0.06 };
        assert!(error > 0.0 && error < bound, "{method:?} with {bits} bits: {error}");
        errors.push(error);
    }
    // With enough text, drift is made up for too.
    let out = tempfile::tempdir().expect("a temporary folder");
    let options = QuantiseOptions { samples: 70, ..options() };
    let report = run(&draft(), out.path(), &options).expect("quantised");
    assert!(report.calibration_tokens >= 32 * 192, "{report:?}");
    let plain_out = tempfile::tempdir().expect("a temporary folder");
    let uncorrected = QuantiseOptions { corrected: false, ..options };
    run(&draft(), plain_out.path(), &uncorrected).expect("quantised");
    let [corrected, uncorrected] =
        [out.path(), plain_out.path()].map(|dir| distance(&logits(dir), &plain) / size);
    assert!(corrected < errors[0] && corrected != uncorrected, "{corrected} {uncorrected} {errors:?}");
    assert!(errors[2] < errors[0], "GPTQ {} against rounding {}", errors[2], errors[0]);
}

#[test]
fn a_run_repeats_and_resumes_with_the_same_bits() {
    let options = QuantiseOptions { act_order: true, ..options() };
    let [whole, resumed] = [(), ()].map(|()| tempfile::tempdir().expect("a temporary folder"));
    assert_eq!(run(&draft(), whole.path(), &options).expect("quantised").resumed_layers, 0);
    // As if it had been interrupted in its last layer.
    for (name, bytes) in bytes_of(whole.path()) {
        if name.starts_with("model-00001") || name.starts_with("model-00002") {
            std::fs::write(resumed.path().join(name), bytes).expect("written");
        }
    }
    std::fs::write(resumed.path().join("model-00003-of-00003.safetensors.unfinished"), b"half")
        .expect("written");
    assert_eq!(run(&draft(), resumed.path(), &options).expect("resumed").resumed_layers, 1);
    assert!(bytes_of(whole.path()) == bytes_of(resumed.path()), "a resumed run differs");
    assert_eq!(run(&draft(), resumed.path(), &options).expect("again").resumed_layers, 2);
    // Another run's files are not mixed in.
    let other = QuantiseOptions { damp: 0.02, ..options.clone() };
    let message = run(&draft(), resumed.path(), &other).expect_err("refused").to_string();
    assert!(message.contains("origin: expected a file of this run (Gptq bits=4 group=64"), "{message}");
    let occupied =
        run(&draft(), &root("tests/fixtures/qwen2-bias"), &options).expect_err("refused").to_string();
    assert!(
        occupied.contains("output: expected an empty folder, or an unfinished run, found config.json"),
        "{occupied}"
    );
    let itself = run(&draft(), &draft(), &options).expect_err("refused").to_string();
    assert!(itself.contains("expected another folder than the model's"), "{itself}");
}

#[test]
fn options_that_do_not_fit_are_named() {
    let with = |change: fn(&mut QuantiseOptions)| {
        let mut options = options();
        change(&mut options);
        refusal(&draft(), &options)
    };
    let group = "group: expected a divisor of 192, the inputs of model.layers.0.self_attn.q_proj, found ";
    assert_eq!(with(|o| o.group = Some(128)), format!("{group}128"));
    assert_eq!(with(|o| o.group = Some(256)), format!("{group}256"));
    assert_eq!(with(|o| o.group = Some(0)), "group: expected -1 or a number from 1, found 0");
    assert_eq!(with(|o| o.bits = 3), "bits: expected 4 or 8, found 3");
    assert_eq!(with(|o| (o.method, o.bits) = (Method::Int8, 4)), "bits: expected 8, found 4");
    assert_eq!(with(|o| o.damp = f64::NAN), "damp: expected a number above 0, found NaN");
    assert_eq!(with(|o| o.samples = 0), "samples: expected at least 1, found 0");
    assert_eq!(with(|o| o.context = 4096), "ctx: expected 2 to 2048 (the model's context), found 4096");
    assert!(with(|o| o.calibration = None).starts_with("calib: expected a text file to calibrate on"));
    assert!(
        with(|o| o.calibration = Some("fn".into()))
            .starts_with("calib: expected a text of at least 95 tokens")
    );
    let quantised = root("tests/fixtures/llama-gptq-g128");
    assert!(refusal(&quantised, &options()).contains("expected a checkpoint that isn't quantised"));
}

/// The draft with some of its weights replaced.
fn damaged(name: &str, change: impl Fn(usize, usize, bf16) -> bf16) -> TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        std::fs::copy(draft().join(file), dir.path().join(file)).expect("copied");
    }
    let checkpoint = Checkpoint::open(&draft()).expect("opened");
    let tensors: Vec<_> = checkpoint
        .tensors()
        .map(|tensor| {
            let (dtype, shape, bytes) = checkpoint.raw(&tensor.name).expect("there");
            let mut bytes = bytes.to_vec();
            if tensor.name == name {
                assert_eq!(dtype, Dtype::BF16);
                let cols = shape[shape.len() - 1];
                for (i, bytes) in bytes.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                    *bytes = change(i / cols, i % cols, bf16::from_le_bytes(*bytes)).to_le_bytes();
                }
            }
            (tensor.name, dtype, shape, bytes)
        })
        .collect();
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).expect("a view"))
    });
    let bytes = safetensors::serialize(views, None).expect("serialised");
    std::fs::write(dir.path().join("model.safetensors"), bytes).expect("written");
    dir
}

const DOWN: &str = "model.layers.0.mlp.down_proj";

#[test]
fn weights_that_are_not_numbers_are_named() {
    let nan =
        damaged(&format!("{DOWN}.weight"), |row, col, w| if (row, col) == (3, 5) { bf16::NAN } else { w });
    for method in [Method::Gptq, Method::Rtn, Method::Int8] {
        let bits = if method == Method::Int8 { 8 } else { 4 };
        let message = refusal(nan.path(), &QuantiseOptions { method, bits, ..options() });
        let expected = "model.layers.0.mlp.down_proj.weight: expected finite weights, found NaN at [3, 5]";
        // GPTQ may meet what the NaN does to activations first, never write it.
        assert!(message.contains(expected), "{method:?}: {message}");
    }
    let huge = damaged(&format!("{DOWN}.weight"), |_, _, w| w * bf16::from_f32(1e8));
    let message = refusal(huge.path(), &QuantiseOptions { method: Method::Rtn, ..options() });
    assert!(
        message.contains("expected weights whose scale an f16 holds, found larger ones in group"),
        "{message}"
    );
}

#[test]
fn zero_matrices_and_dead_inputs_stay_zero() {
    // No weights at all in one matrix; inputs 0 to 9 of the other are never anything but 0.
    let zero = damaged(&format!("{DOWN}.weight"), |_, _, _| bf16::ZERO);
    for method in [Method::Gptq, Method::Rtn, Method::Int8] {
        let bits = if method == Method::Int8 { 8 } else { 4 };
        let out = tempfile::tempdir().expect("a temporary folder");
        let options = QuantiseOptions { method, bits, ..options() };
        run(zero.path(), out.path(), &options).expect("quantised");
        let checkpoint = Checkpoint::open(out.path()).expect("opened");
        let part = read_linear(&checkpoint, &options.file_config(), DOWN, 192, 512).expect("read");
        assert!((0..192).all(|row| part.stored_row(row).all(|weight| weight == 0.0)), "{method:?}");
    }
    let norm = "model.layers.0.post_attention_layernorm.weight";
    let dead = damaged(norm, |_, col, w| if col < 10 { bf16::ZERO } else { w });
    for act_order in [false, true] {
        let out = tempfile::tempdir().expect("a temporary folder");
        let options = QuantiseOptions { act_order, ..options() };
        run(dead.path(), out.path(), &options).expect("quantised");
        let checkpoint = Checkpoint::open(out.path()).expect("opened");
        let name = "model.layers.0.mlp.gate_proj";
        let part = read_linear(&checkpoint, &options.file_config(), name, 512, 192).expect("read");
        let mut row = vec![0.0; 192];
        for output in 0..512 {
            part.read_row(output, &mut row);
            assert!(row[..10].iter().all(|&weight| weight == 0.0), "output {output}");
        }
    }
}

#[test]
fn the_doctor_names_faults() {
    let out = tempfile::tempdir().expect("a temporary folder");
    run(&draft(), out.path(), &QuantiseOptions { method: Method::Rtn, ..options() }).expect("quantised");
    let path = out.path().join("config.json");
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).expect("read")).expect("JSON");
    config["quantization_config"]["checkpoint_format"] = json!("gptq_v2");
    std::fs::write(&path, config.to_string()).expect("written");
    let report = examine(out.path(), DeviceChoice::Cpu).expect("examined");
    assert!(!report.passed && report.checks.len() == 7, "{report:?}");
    let fault = report.fault.expect("a fault");
    assert!(fault.contains("checkpoint_format: expected gptq, by which weights average"), "{fault}");
    assert!(examine(Path::new("/no/such/folder"), DeviceChoice::Cpu).is_err());
    let plain = examine(&draft(), DeviceChoice::CpuBf16).expect("examined");
    assert!(plain.passed, "{plain:?}");
}
