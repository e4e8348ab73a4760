//! What serving many requests needs of a device: copies of pages, choices that fail row by row, logits of some rows.

use tilewright_host::{
    AttentionSpec, Batch, CacheSpec, Device, Error, KvDType, Outputs, RopeAppend, SampleRow, Tensor as _,
    cpu::CpuDevice,
};

use super::setup::*;

const SPEC: CacheSpec =
    CacheSpec { layers: 2, pages: 6, page_size: 24, kv_heads: 2, head_dim: 64, dtype: KvDType::Native };

/// Appends 40 tokens to pages 4 and 1, copies those to 0 and 5, and returns what a further token attends to by either table.
fn attend_to_copies<D: Device>(device: &D, dtype: KvDType) -> [Vec<f32>; 2] {
    let CacheSpec { page_size, kv_heads, head_dim, .. } = SPEC;
    let mut cache = device.cache(CacheSpec { dtype, ..SPEC }).expect("a cache");
    let rope = device.rope(&[0.5; 32], 1.0, 64).expect("a table");
    let cols = 4 * head_dim + 2 * kv_heads * head_dim;
    let append = |cache: &mut D::Cache, count: usize, cached: u32, pages: &[u32; 2], layer: usize| {
        let mut batch = Batch::default();
        batch.push(&vec![0; count], cached, pages, page_size as u32, Outputs::Last);
        let step = device.step(&batch).expect("a step");
        let qkv = tensor(device, &Numbers::new(7 + layer as u64).take(count * cols, 1.0), cols);
        let mut q = device.tensor(count, 4 * head_dim).expect("a tensor");
        let args = RopeAppend { qkv: &qkv, qk_norm: None, rope: &rope, q_heads: 4, layer };
        device.rope_append(args, &step, cache, &mut q).expect("appended");
        (step, q)
    };
    for layer in 0..SPEC.layers {
        append(&mut cache, 40, 0, &[4, 1], layer);
    }
    device.copy_pages(&mut cache, &[(4, 0), (1, 5)]).expect("copied");
    let spec = AttentionSpec { q_heads: 4, scale: 0.125, causal: true, window: None, softcap: None };
    [[4, 1], [0, 5]].map(|pages| {
        let mut found = Vec::new();
        for layer in 0..SPEC.layers {
            let (step, q) = append(&mut cache, 1, 40, &pages, layer);
            let mut out = device.tensor(1, q.cols()).expect("a tensor");
            device.attention(&q, &cache, layer, &step, &spec, &mut out).expect("attention");
            found.extend(device.read(&out).expect("activations"));
        }
        found
    })
}

#[test]
fn copied_pages_hold_what_their_sources_do() {
    for dtype in KvDType::ALL {
        for [source, copy] in [attend_to_copies(&gpu(), dtype), attend_to_copies(&CpuDevice::new(), dtype)] {
            assert_eq!(bits(&source), bits(&copy), "{dtype:?}");
            assert!(
                source.iter().all(|x| x.is_finite()) && source.iter().any(|x| x.abs() > 0.1),
                "{dtype:?}"
            );
        }
    }
}

#[test]
fn copies_that_cannot_be_made_are_refused() {
    fn refused<D: Device>(device: &D) {
        let mut cache = device.cache(SPEC).expect("a cache");
        for copies in [&[(0, 6)][..], &[(6, 0)], &[(0, 1), (2, 1)], &[(0, 1), (1, 2)]] {
            let refused = device.copy_pages(&mut cache, copies);
            assert!(matches!(refused, Err(Error::Shape { op: "copy_pages", .. })), "{copies:?}");
        }
        device.copy_pages(&mut cache, &[]).expect("nothing to copy");
    }
    refused(&gpu());
    refused(&CpuDevice::new());
}

/// Logits of four rows of 16, the third of them NaN.
fn logits<D: Device>(device: &D) -> D::Logits {
    let mut x = Numbers::new(3).take(4 * 8, 2.0);
    x[2 * 8] = f32::NAN;
    let weights = matrix(device, &Numbers::new(4).take(16 * 8, 2.0), 8);
    let mut logits = device.logits(4, 16).expect("logits");
    device.project_logits(&tensor(device, &x, 8), &weights, &mut logits).expect("logits");
    logits
}

#[test]
fn a_row_of_nans_leaves_the_other_choices_as_they_are() {
    fn check<D: Device>(device: &D) {
        let logits = logits(device);
        let greedy = SampleRow { top_p: 1.0, ..SampleRow::default() };
        let drawn = SampleRow { temperature: 1.5, top_p: 0.9, uniform: 0.7, ..SampleRow::default() };
        let all_greedy = device.choose(&logits, &[greedy; 4]).expect("choices");
        let all_drawn = device.choose(&logits, &[drawn; 4]).expect("choices");
        let mixed = device.choose(&logits, &[greedy, drawn, greedy, greedy]).expect("choices");
        assert_eq!(all_greedy[2], None);
        assert_eq!(all_drawn[2], None);
        assert_eq!(mixed, [all_greedy[0], all_drawn[1], None, all_greedy[3]]);
        let rows = device.read_logit_rows(&logits, &[3, 0]).expect("rows");
        let whole = device.read_logits(&logits).expect("logits");
        assert_eq!(bits(&rows), [bits(&whole[48..]), bits(&whole[..16])].concat());
        let largest = |row: &[f32]| (0..16u32).max_by(|&a, &b| row[a as usize].total_cmp(&row[b as usize]));
        assert_eq!([all_greedy[3], all_greedy[0]], [largest(&rows[..16]), largest(&rows[16..])]);
        assert!(device.read_logit_rows(&logits, &[4]).is_err());
        assert!(device.choose(&logits, &[greedy; 3]).is_err());
    }
    check(&gpu());
    check(&CpuDevice::new());
}
