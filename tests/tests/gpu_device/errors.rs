//! What doesn't fit is refused before anything is launched, and a row of NaNs names itself.

use tilewright_host::{
    ActivationBits, AttentionSpec, Batch, CacheSpec, CodeBits, DType, Device, Error, Gelu, HostMatrix,
    HostQuantized, KvDType, LogitChange, LogitChanges, Outputs, QuantizedPart, QuantizedSpec, Result,
    RopeAppend, SampleRow, Tensor as _, cpu::CpuDevice, gpu::GpuDevice,
};
use tilewright_tests::emulated::Emulated;

use super::setup::*;

#[track_caller]
fn refused<T>(op: &str, what: &str, result: Result<T>) {
    match result {
        Err(Error::Shape { op: found_op, what: found_what, .. }) => {
            assert_eq!((found_op, found_what), (op, what))
        }
        Err(other) => panic!("{op}: {other}"),
        Ok(_) => panic!("{op}: a wrong {what} was accepted"),
    }
}

#[test]
fn makers_refuse_what_kernels_cannot_take() {
    let device = gpu();
    refused("tensor", "cols", device.tensor(2, 12));
    refused("tensor", "shape", device.tensor(usize::MAX / 2, 8));
    refused("logits", "vocab", device.logits(2, 0));
    let weights = |cols, bytes| HostMatrix { parts: vec![(1, bytes)], cols, dtype: DType::Bf16 };
    refused("matrix", "cols", device.matrix(&weights(4, &[0; 8])));
    refused("matrix", "bytes of a part", device.matrix(&weights(8, &[0; 15])));
    refused("rope", "frequencies", device.rope(&[], 1.0, 4));
    let spec =
        CacheSpec { layers: 1, pages: 1, page_size: 8, kv_heads: 1, head_dim: 64, dtype: KvDType::Native };
    for dtype in KvDType::ALL {
        refused("cache", "head_dim", device.cache(CacheSpec { head_dim: 96, dtype, ..spec }));
    }
    refused("cache", "page_size", device.cache(CacheSpec { page_size: 0, ..spec }));
    refused("cache", "pages * page_size", device.cache(CacheSpec { pages: 1 << 40, ..spec }));
}

#[test]
fn operations_refuse_arguments_that_do_not_fit() {
    let device = gpu();
    let zeros = |rows: usize, cols: usize| tensor(&device, &vec![0.0; rows * cols], cols);
    let weights = |rows: usize, cols: usize| matrix(&device, &vec![0.0; rows * cols], cols);
    let vector = |len| device.vector(&vec![0.0; len]).expect("a vector");
    let mut batch = Batch::default();
    batch.push(&[0, 7], 0, &[1], 8, Outputs::Last);
    let step = device.step(&batch).expect("a step");
    refused("embed", "token ids", device.embed(&weights(7, 8), &step, &mut zeros(2, 8)));
    refused("embed", "out", device.embed(&weights(8, 8), &step, &mut zeros(1, 8)));
    refused("select_outputs", "rows of x", device.select_outputs(&zeros(3, 8), &step, &mut zeros(3, 8)));
    refused("rms_norm", "weight", device.rms_norm(&zeros(2, 8), &vector(7), 1e-5, &mut zeros(2, 8)));
    let residual = &mut zeros(1, 8);
    refused(
        "add_rms_norm",
        "residual",
        device.add_rms_norm(&zeros(2, 8), residual, &vector(8), 1e-5, &mut zeros(2, 8)),
    );
    refused("linear", "columns of x", device.linear(&zeros(2, 8), &weights(8, 16), None, &mut zeros(2, 8)));
    refused(
        "linear",
        "bias",
        device.linear(&zeros(2, 8), &weights(8, 8), Some(&vector(9)), &mut zeros(2, 8)),
    );
    refused(
        "linear_residual",
        "rows of residual",
        device.linear_residual(&zeros(2, 8), &weights(8, 8), None, &mut zeros(1, 8)),
    );
    refused(
        "embed_sum",
        "token ids",
        device.embed_sum(&weights(7, 8), &weights(2, 8), &step, &mut zeros(2, 8)),
    );
    refused(
        "embed_sum",
        "positions",
        device.embed_sum(&weights(8, 8), &weights(1, 8), &step, &mut zeros(2, 8)),
    );
    refused(
        "embed_sum",
        "columns of places",
        device.embed_sum(&weights(8, 8), &weights(2, 16), &step, &mut zeros(2, 8)),
    );
    refused("write", "values", device.write(&[0.0; 9], &mut zeros(2, 8)));
    refused("write", "out", device.write(&[0.0; 24], &mut zeros(2, 8)));
    let short = vector(7);
    refused(
        "layer_norm",
        "bias",
        device.layer_norm(&zeros(2, 8), &vector(8), Some(&short), 1e-5, &mut zeros(2, 8)),
    );
    refused("gelu", "columns of out", device.gelu(&zeros(2, 24), Gelu::Erf, &mut zeros(2, 8)));
    refused("causal_softmax", "rows of scores", device.causal_softmax(1.0, &mut zeros(12, 8)));
    for scale in [0.0, -1.0, f32::NAN] {
        refused("causal_softmax", "scale", device.causal_softmax(scale, &mut zeros(16, 8)));
    }
    refused("silu_mul", "columns of gate_up", device.silu_mul(&zeros(2, 24), &mut zeros(2, 8)));
    let mut logits = device.logits(1, 8).expect("logits");
    refused("project_logits", "logits", device.project_logits(&zeros(2, 8), &weights(8, 8), &mut logits));
    refused("sample", "rows", device.sample(&logits, &[SampleRow::default()]));
    refused("set_rows", "rows", zeros(2, 8).set_rows(3));
}

#[test]
fn attention_refuses_what_the_cache_does_not_hold() {
    let device = gpu();
    let step = |cached, page| {
        let mut batch = Batch::default();
        batch.push(&[0, 0], cached, &[page], 16, Outputs::Last);
        device.step(&batch).expect("a step")
    };
    let spec =
        CacheSpec { layers: 1, pages: 2, page_size: 16, kv_heads: 2, head_dim: 64, dtype: KvDType::Native };
    let mut cache = device.cache(spec).expect("a cache");
    let rope = device.rope(&[1.0; 32], 1.0, 8).expect("a table");
    let (qkv, q) = (tensor(&device, &[0.0; 2 * 384], 384), tensor(&device, &[0.0; 2 * 128], 128));
    let mut out = device.tensor(2, 128).expect("a tensor");
    let mut append = |step: &_, layer, q_heads| {
        let args = RopeAppend { qkv: &qkv, qk_norm: None, rope: &rope, q_heads, layer };
        device.rope_append(args, step, &mut cache, &mut out)
    };
    refused("rope_append", "slots", append(&step(0, 2), 0, 2));
    refused("rope_append", "positions", append(&step(7, 0), 0, 2));
    refused("rope_append", "layer", append(&step(0, 0), 1, 2));
    refused("rope_append", "columns of qkv", append(&step(0, 0), 0, 4));
    let attend = |step: &_, cache: &_, q_heads, window, out: &mut _| {
        let spec = AttentionSpec { q_heads, scale: 1.0, causal: true, window, softcap: None };
        device.attention(&q, cache, 0, step, &spec, out)
    };
    refused("attention", "pages", attend(&step(0, 2), &cache, 2, None, &mut out));
    refused("attention", "q_heads", attend(&step(0, 0), &cache, 3, None, &mut out));
    refused("attention", "window", attend(&step(0, 0), &cache, 2, Some(0), &mut out));
    let small = device.cache(CacheSpec { page_size: 8, ..spec }).expect("a cache");
    refused("attention", "page_size", attend(&step(9, 0), &small, 2, None, &mut out));
}

#[test]
fn a_row_without_a_token_names_itself() {
    let device = gpu();
    let mut x = vec![1.0f32; 3 * 8];
    x[8] = f32::NAN;
    let mut logits = device.logits(3, 16).expect("logits");
    let w = matrix(&device, &[0.5; 16 * 8], 8);
    device.project_logits(&tensor(&device, &x, 8), &w, &mut logits).expect("logits");
    let samples = [SampleRow { temperature: 1.0, top_p: 1.0, ..SampleRow::default() }; 3];
    for result in [device.argmax(&logits), device.sample(&logits, &samples)] {
        assert!(matches!(result, Err(Error::InvalidLogits { row: 1 })), "{result:?}");
    }
}

#[test]
fn changes_of_logits_that_are_not_there_are_refused() {
    fn check<D: Device>(device: &D) {
        let mut logits = device.logits(2, 16).expect("logits");
        let (x, w) = (tensor(device, &[1.0; 2 * 8], 8), matrix(device, &[0.5; 16 * 8], 8));
        device.project_logits(&x, &w, &mut logits).expect("logits");
        let before = device.read_logits(&logits).expect("logits");
        let mut adjust = |rows: &[(u32, &[u32])]| {
            let mut changes = LogitChanges::default();
            for (row, tokens) in rows {
                let change = |&token| LogitChange { less: 1.0, ..LogitChange::none(token) };
                changes.push(*row, &tokens.iter().map(change).collect::<Vec<_>>());
            }
            device.adjust_logits(&mut logits, &changes)
        };
        refused("adjust_logits", "rows", adjust(&[(2, &[0])]));
        refused("adjust_logits", "rows", adjust(&[(1, &[0]), (0, &[0])]));
        refused("adjust_logits", "rows", adjust(&[(1, &[0]), (1, &[1])]));
        refused("adjust_logits", "tokens", adjust(&[(0, &[16])]));
        refused("adjust_logits", "tokens", adjust(&[(0, &[3, 3])]));
        refused("adjust_logits", "tokens", adjust(&[(0, &[1]), (1, &[4, 3])]));
        adjust(&[(2, &[])]).expect("nothing to change");
        assert_eq!(device.read_logits(&logits).expect("logits"), before);
    }
    check(&gpu());
    check(&CpuDevice::new());
}

#[test]
fn packed_weights_are_no_table() {
    let device = hopper();
    let part = QuantizedPart::new(QuantizedSpec {
        rows: 8,
        cols: 64,
        bits: CodeBits::Four,
        group: 64,
        codes: vec![3; 8 * 64],
        scales: vec![1.0; 8],
        scale_type: DType::F16,
        zeros: vec![8; 8],
        permutation: None,
        pre_scale: None,
        activations: ActivationBits::Full,
    });
    let weights = HostQuantized::new(vec![part.expect("a part")]).expect("weights");
    let table = device.quantized(&weights).expect("a matrix");
    let mut batch = Batch::default();
    batch.push(&[1], 0, &[0], 8, Outputs::Last);
    let step = device.step(&batch).expect("a step");
    let mut out = device.tensor(1, 64).expect("a tensor");
    refused("embed", "table", device.embed(&table, &step, &mut out));
}

#[test]
fn nothing_to_do_is_no_error() {
    nothing_to_do(&gpu());
    nothing_to_do(&hopper());
}

fn nothing_to_do(device: &GpuDevice<Emulated>) {
    let step = device.step(&Batch::default()).expect("a step");
    let w = matrix(device, &[0.0; 64], 8);
    let (mut x, mut out) = (device.tensor(0, 8).expect("a tensor"), device.tensor(0, 8).expect("a tensor"));
    device.embed(&w, &step, &mut x).expect("nothing");
    device.linear(&x, &w, None, &mut out).expect("nothing");
    let mut logits = device.logits(0, 8).expect("logits");
    device.project_logits(&x, &w, &mut logits).expect("nothing");
    assert!(device.argmax(&logits).expect("nothing").is_empty());
    assert!(device.read(&out).expect("nothing").is_empty());
}
