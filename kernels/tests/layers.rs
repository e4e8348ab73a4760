//! Smoke checks of the row kernels under the emulator. The property tests live in the workspace's `tests`.

mod common;

use common::{Bench, Noise, assert_close};
use tilewright_kernels::{abi::*, argmax, gather_rows, rms_norm, rope_append, sample, silu_mul};

#[test]
fn gather_rows_copies_the_rows_asked_for() {
    let (mut b, mut noise) = (Bench::new(), Noise::new(1));
    let (cols, ids) = (1032usize, [3u32, 0, 3, 4]);
    let table = noise.bf16s(5 * cols);
    let (g_table, g_ids, out) = (b.bf16(&table), b.words(&ids), b.empty(ids.len() * cols * 2));
    let params = GatherRows { table: g_table, ids: g_ids, out, rows: 4, cols: cols as u32 };
    b.launch(&gather_rows::GATHER_ROWS, [4, 1, 1], params);
    let want: Vec<f32> =
        ids.iter().flat_map(|&id| table[id as usize * cols..][..cols].iter().copied()).collect();
    assert_eq!(b.read_bf16(out, want.len()), want);
}

#[test]
fn rms_norm_with_residual() {
    let (rows, cols) = (3usize, 2056usize);
    let mut noise = Noise::new(2);
    let (x, residual, weight) = (noise.bf16s(rows * cols), noise.bf16s(rows * cols), noise.f32s(cols));
    let mut b = Bench::new();
    let (g_x, g_weight) = (b.bf16(&x), b.words(&weight));
    let (mut want_h, mut want) = (vec![], vec![]);
    for r in 0..rows {
        let h: Vec<f32> = (0..cols).map(|c| x[r * cols + c] + residual[r * cols + c]).collect();
        let mean = h.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / cols as f64;
        let inverse = 1.0 / (mean + 1e-5).sqrt();
        want.extend(h.iter().zip(&weight).map(|(&v, &w)| (f64::from(v) * inverse) as f32 * w));
        want_h.extend(h);
    }
    // One launch order at a time: the kernel overwrites the residual.
    let g_residual = b.bf16(&residual);
    let params = RmsNorm {
        x: g_x,
        residual: 0,
        weight: g_weight,
        out: b.empty(rows * cols * 2),
        rows: rows as u32,
        cols: cols as u32,
        eps: 1e-5,
        reserved: 0,
    };
    b.launch(&rms_norm::RMS_NORM, [rows as u32, 1, 1], params);
    let with_residual = RmsNorm { residual: g_residual, ..params };
    b.launch_once(&rms_norm::RMS_NORM, [rows as u32, 1, 1], with_residual);
    assert_close("out", &b.read_bf16(params.out, rows * cols), &want, 0.005);
    assert_close("residual", &b.read_bf16(g_residual, rows * cols), &want_h, 0.005);
}

#[test]
fn silu_mul_gates() {
    let (rows, inter) = (2usize, 2064usize);
    let x: Vec<f32> = Noise::new(3).bf16s(rows * 2 * inter).iter().map(|v| v * 8.0).collect();
    let mut b = Bench::new();
    let (g_x, out) = (b.bf16(&x), b.empty(rows * inter * 2));
    let params = SiluMul { gate_up: g_x, out, rows: rows as u32, inter: inter as u32, ..SiluMul::default() };
    b.launch(&silu_mul::SILU_MUL, [rows as u32, 1, 1], params);
    let want: Vec<f32> = (0..rows * inter)
        .map(|i| {
            let at = i / inter * 2 * inter + i % inter;
            x[at] / (1.0 + (-x[at]).exp()) * x[at + inter]
        })
        .collect();
    assert_close("out", &b.read_bf16(out, rows * inter), &want, 0.005);
}

#[test]
fn rope_append_normalises_rotates_and_appends() {
    for head_dim in [16usize, 64, 256] {
        rope_append_case(head_dim);
    }
}

fn rope_append_case(head_dim: usize) {
    let (q_heads, kv_heads, page_size, pages) = (3usize, 2usize, 4usize, 3usize);
    let (positions, slots) = ([5u32, 0], [9u32, 2]);
    let mut noise = Noise::new(4);
    let heads = q_heads + 2 * kv_heads;
    let qkv = noise.bf16s(2 * heads * head_dim);
    let norms = [noise.f32s(head_dim), noise.f32s(head_dim)];
    let angles = noise.f32s(6 * head_dim);
    let mut b = Bench::new();
    let cache_elems = pages * kv_heads * page_size * head_dim;
    let params = RopeAppend {
        qkv: b.bf16(&qkv),
        q_norm: b.words(&norms[0]),
        k_norm: b.words(&norms[1]),
        cos_sin: b.words(&angles),
        positions: b.words(&positions),
        slots: b.words(&slots),
        q_out: b.empty(2 * q_heads * head_dim * 2),
        k_cache: b.bf16(&vec![0.0; cache_elems]),
        v_cache: b.bf16(&vec![0.0; cache_elems]),
        k_scales: 0,
        v_scales: 0,
        tokens: 2,
        q_heads: q_heads as u32,
        kv_heads: kv_heads as u32,
        head_dim: head_dim as u32,
        page_size: page_size as u32,
        eps: 1e-6,
    };
    let grid = rope_append::grid(2, q_heads as u32, kv_heads as u32, head_dim as u32);
    b.launch(&rope_append::BF16, grid, params);
    let q = b.read_bf16(params.q_out, 2 * q_heads * head_dim);
    let k = b.read_bf16(params.k_cache, cache_elems);
    let v = b.read_bf16(params.v_cache, cache_elems);
    for token in 0..2 {
        for h in 0..heads {
            let head = &qkv[(token * heads + h) * head_dim..][..head_dim];
            let slot = slots[token] as usize;
            let row = |kv_head: usize| {
                (((slot / page_size) * kv_heads + kv_head) * page_size + slot % page_size) * head_dim
            };
            let table = &angles[positions[token] as usize * head_dim..][..head_dim];
            if h < q_heads {
                let got = &q[(token * q_heads + h) * head_dim..][..head_dim];
                assert_close("query", got, &rotated(head, &norms[0], table), 0.01);
            } else if h < q_heads + kv_heads {
                let got = &k[row(h - q_heads)..][..head_dim];
                assert_close("key", got, &rotated(head, &norms[1], table), 0.01);
            } else {
                assert_eq!(&v[row(h - q_heads - kv_heads)..][..head_dim], head);
            }
        }
    }
}

/// Two tokens of Llama 3.1 8B's shape: every sector is touched once, by requests of 512 bytes; the angles are read once a warp.
#[test]
fn rope_append_moves_full_vectors() {
    let (tokens, q_heads, kv_heads, head_dim) = (2usize, 32usize, 8usize, 128usize);
    let (row, kv_row) = ((q_heads + 2 * kv_heads) * head_dim, kv_heads * head_dim);
    for (format, bytes_a_kv_element) in [(KV_BF16, 2usize), (KV_INT8, 1), (KV_FP8, 1)] {
        let (mut b, mut noise) = (Bench::new(), Noise::new(7));
        let params = RopeAppend {
            qkv: b.bf16(&noise.bf16s(tokens * row)),
            q_norm: 0,
            k_norm: 0,
            cos_sin: b.words(&noise.f32s(tokens * head_dim)),
            positions: b.words(&[0u32, 1]),
            slots: b.words(&[0u32, 1]),
            q_out: b.empty(tokens * q_heads * head_dim * 2),
            k_cache: b.empty(16 * kv_row * bytes_a_kv_element),
            v_cache: b.empty(16 * kv_row * bytes_a_kv_element),
            k_scales: b.empty(16 * kv_heads * 4),
            v_scales: b.empty(16 * kv_heads * 4),
            tokens: tokens as u32,
            q_heads: q_heads as u32,
            kv_heads: kv_heads as u32,
            head_dim: head_dim as u32,
            page_size: 16,
            eps: 0.0,
        };
        let grid = rope_append::grid(2, q_heads as u32, kv_heads as u32, head_dim as u32);
        let report = b.launch_once(rope_append::spec(format).unwrap(), grid, params);
        // A warp reads 3 KiB of heads in 16 sectors a request, 16 sectors of angles twice, its position and its slot.
        let warps = (tokens * 4) as u64;
        assert_eq!(report.global_load_requests, warps * (6 + 4 + 2));
        assert_eq!(report.global_load_sectors, warps * (6 * 16 + 4 * 8 + 2));
        let (q_sectors, kv_sectors) =
            (tokens * q_heads * head_dim * 2 / 32, 2 * tokens * kv_row * bytes_a_kv_element / 32);
        let scales = if format == KV_BF16 { 0 } else { 2 * tokens * kv_heads };
        assert_eq!(report.global_store_sectors, (q_sectors + kv_sectors + scales) as u64);
    }
}

fn rotated(head: &[f32], weight: &[f32], table: &[f32]) -> Vec<f32> {
    let (n, half) = (head.len(), head.len() / 2);
    let mean = head.iter().map(|v| v * v).sum::<f32>() / n as f32;
    let x: Vec<f32> = head.iter().zip(weight).map(|(v, w)| v / (mean + 1e-6).sqrt() * w).collect();
    (0..n)
        .map(|i| {
            let (cos, sin) = (table[i % half], table[half + i % half]);
            if i < half { x[i] * cos - x[i + half] * sin } else { x[i] * cos + x[i - half] * sin }
        })
        .collect()
}

#[test]
fn argmax_of_ties_nan_and_infinities() {
    let inf = f32::INFINITY;
    let cases: &[(Vec<f32>, u32)] = &[
        (vec![1.0; 700], 0),
        (
            Noise::new(5)
                .f32s(1500)
                .into_iter()
                .enumerate()
                .map(|(i, v)| if i == 1403 { 2.0 } else { v })
                .collect(),
            1403,
        ),
        (vec![-3.0], 0),
        (vec![-inf, -5.0, inf, 3.0], 2),
        (vec![-0.0, 0.0], 0),
        (vec![-inf; 9], INVALID_TOKEN),
        (vec![0.0, f32::NAN, 1.0], INVALID_TOKEN),
        (vec![0.0, -f32::NAN, 1.0], INVALID_TOKEN),
    ];
    for (logits, want) in cases {
        let mut b = Bench::new();
        let (logits, cols) = (b.words(logits), logits.len() as u32);
        let params = Argmax { logits, out: b.empty(4), rows: 1, cols, ..Argmax::default() };
        b.launch(&argmax::ARGMAX, [1, 1, 1], params);
        assert_eq!(b.read::<u32>(params.out, 1), [*want]);
    }
}

/// The definition, by sorting, in f64. `None` where the draw is too close to a boundary to call.
fn sampled(logits: &[f32], row: &SampleRow) -> Option<u32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let p: Vec<f64> = logits
        .iter()
        .map(|&l| ((f64::from(l) - f64::from(max)) / f64::from(row.temperature)).exp())
        .collect();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    // Adding 0 makes the zeros equal.
    order.sort_by(|&a, &b| (logits[b] + 0.0).total_cmp(&(logits[a] + 0.0)).then(a.cmp(&b)));
    if row.top_k > 0 {
        order.truncate(row.top_k as usize);
    }
    let total: f64 = order.iter().map(|&i| p[i]).sum();
    if row.top_p < 1.0 {
        let mut sum = 0.0;
        let mut keep = order.len();
        for (n, &i) in order.iter().enumerate() {
            sum += p[i] / total;
            if (sum - f64::from(row.top_p)).abs() < 1e-6 {
                return None;
            }
            if sum >= f64::from(row.top_p) {
                keep = n + 1;
                break;
            }
        }
        order.truncate(keep);
    }
    order.retain(|&i| p[i] >= f64::from(row.min_p));
    order.sort();
    let total: f64 = order.iter().map(|&i| p[i]).sum();
    let mut sum = 0.0;
    for &i in &order {
        sum += p[i];
        let distance = sum / total - f64::from(row.uniform);
        if distance.abs() < 1e-6 && Some(&i) != order.last() {
            return None;
        }
        if distance > 0.0 {
            return Some(i as u32);
        }
    }
    order.last().map(|&i| i as u32)
}

#[test]
fn sample_draws_what_the_definition_draws() {
    let mut noise = Noise::new(6);
    let mut rows = vec![];
    for uniform in [0.0, 0.3, 0.77, 1.0 - f32::EPSILON / 2.0] {
        for (temperature, top_k, top_p, min_p) in [
            (1.0, 0, 1.0, 0.0),
            (0.7, 5, 1.0, 0.0),
            (1.3, 0, 0.6, 0.0),
            (1.0, 40, 0.9, 0.05),
            (1e-6, 0, 1.0, 0.0),
            (2.0, 1, 0.1, 1.0),
        ] {
            rows.push(SampleRow { temperature, top_p, min_p, uniform, top_k, reserved: 0 });
        }
    }
    for (cols, quantum) in [(1usize, 0.0f32), (33, 0.0), (1100, 0.5), (3001, 0.0)] {
        let logits: Vec<f32> = (0..rows.len() * cols)
            .map(|_| {
                let v = noise.value() * 6.0;
                if quantum > 0.0 { (v / quantum).round() * quantum } else { v }
            })
            .collect();
        let mut b = Bench::new();
        let params = Sample {
            logits: b.words(&logits),
            row_params: b.words(&rows),
            out: b.empty(rows.len() * 4),
            rows: rows.len() as u32,
            cols: cols as u32,
        };
        b.launch(&sample::SAMPLE, [rows.len() as u32, 1, 1], params);
        for (i, got) in b.read::<u32>(params.out, rows.len()).into_iter().enumerate() {
            if let Some(want) = sampled(&logits[i * cols..][..cols], &rows[i]) {
                assert_eq!(got, want, "{cols} columns, {:?}", rows[i]);
            }
        }
    }
}

#[test]
fn sample_answers_invalid_rows_as_such() {
    let inf = f32::INFINITY;
    let row = SampleRow { temperature: 1.0, top_p: 0.5, min_p: 0.0, uniform: 0.9, top_k: 3, reserved: 0 };
    for (logits, want) in [
        (vec![0.0, f32::NAN], INVALID_TOKEN),
        (vec![-inf, -inf], INVALID_TOKEN),
        (vec![0.0, inf, 3.0], 1),
        (vec![-inf, -7.0, -inf], 1),
    ] {
        let mut b = Bench::new();
        let params = Sample {
            logits: b.words(&logits),
            row_params: b.words(&[row]),
            out: b.empty(4),
            rows: 1,
            cols: logits.len() as u32,
        };
        b.launch(&sample::SAMPLE, [1, 1, 1], params);
        assert_eq!(b.read::<u32>(params.out, 1), [want], "{logits:?}");
    }
}
