use super::super::linalg::add_gram;
use super::super::tests::numbers;
use super::*;

const FOUR: GridKind = GridKind { largest: 15, symmetric: false };

/// A damped Hessian of correlated activations, in full.
fn hessian(n: usize) -> Vec<f64> {
    let noise = numbers(5, 3 * n * n);
    let x: Vec<f32> = (0..3 * n)
        .flat_map(|token| {
            let noise = &noise[token * n..][..n];
            (0..n).map(|i| noise[i] + 0.9 * noise[i / 3] + 0.5 * noise[0]).collect::<Vec<f32>>()
        })
        .collect();
    let mut gram = Upper { n, elems: vec![0.0; n * n] };
    add_gram(&mut gram, &x);
    let damp = 0.01 * gram.mean_diagonal();
    (0..n * n)
        .map(|at| {
            let (i, j) = (at / n, at % n);
            gram.elems[i.min(j) * n + i.max(j)] + if i == j { damp } else { 0.0 }
        })
        .collect()
}

/// The inverse, by elimination.
fn inverse(matrix: &[f64], n: usize) -> Vec<f64> {
    let mut left = matrix.to_vec();
    let mut right: Vec<f64> = (0..n * n).map(|at| f64::from(u8::from(at / n == at % n))).collect();
    for pivot in 0..n {
        let scale = left[pivot * n + pivot];
        for j in 0..n {
            left[pivot * n + j] /= scale;
            right[pivot * n + j] /= scale;
        }
        for i in (0..n).filter(|&i| i != pivot) {
            let factor = left[i * n + pivot];
            for j in 0..n {
                left[i * n + j] -= factor * left[pivot * n + j];
                right[i * n + j] -= factor * right[pivot * n + j];
            }
        }
    }
    right
}

/// `(w - q)^T H (w - q)` over all rows.
fn objective(weights: &[f32], quantised: &Quantised, h: &[f64]) -> f64 {
    let n = quantised.cols;
    let groups = n.div_ceil(quantised.group);
    let mut total = 0.0;
    for (row, weights) in weights.chunks_exact(n).enumerate() {
        let errors: Vec<f64> = (0..n)
            .map(|col| {
                let at = row * groups + quantised.g_idx[col] as usize;
                let grid = Grid { scale: quantised.scales[at], zero: quantised.zeros[at], largest: 15 };
                f64::from(weights[col]) - f64::from(grid.weight(quantised.codes[row * n + col]))
            })
            .collect();
        for i in 0..n {
            total += errors[i] * (0..n).map(|j| h[i * n + j] * errors[j]).sum::<f64>();
        }
    }
    total
}

/// Column after column with the whole inverse, whose row and column are eliminated each time (section 3.1 of the paper), in f64.
fn plain_codes(weights: &[f32], h: &[f64], group: usize) -> Vec<u8> {
    let n = (h.len() as f64).sqrt() as usize;
    let mut codes = Vec::new();
    let eliminate = |inverse: &mut [f64], j: usize| {
        let row: Vec<f64> = inverse[j * n..][..n].to_vec();
        for a in j + 1..n {
            for b in j + 1..n {
                inverse[a * n + b] -= row[a] * row[b] / row[j];
            }
        }
    };
    let start = inverse(h, n);
    let mut pivots = Vec::new();
    let mut left = start.clone();
    for j in 0..n {
        pivots.push(left[j * n + j].sqrt() as f32);
        eliminate(&mut left, j);
    }
    for row in weights.chunks_exact(n) {
        let mut left = start.clone();
        let mut row: Vec<f64> = row.iter().map(|&w| f64::from(w)).collect();
        let mut grid = None;
        for j in 0..n {
            if j % group == 0 {
                let end = (j + group).min(n);
                let present: Vec<f32> = row[j..end].iter().map(|&w| w as f32).collect();
                grid = FOUR.fit_weighted(&present, pivots[j..end].iter().copied());
            }
            let grid = grid.expect("a grid");
            let code = grid.code(row[j] as f32);
            codes.push(code);
            let error = (row[j] - f64::from(grid.weight(code))) / left[j * n + j];
            for k in j..n {
                row[k] -= error * left[j * n + k];
            }
            eliminate(&mut left, j);
        }
    }
    codes
}

#[test]
fn blocks_give_what_the_plain_algorithm_gives() {
    for (n, group) in [(1, 1), (8, 3), (70, 70), (150, 50), (150, 150), (200, 130)] {
        let h = hessian(n);
        let weights = numbers(9, 18 * n);
        let factor = Upper { n, elems: h.clone() }.into_inverse_factor().expect("positive");
        let recipe = Recipe { grid: FOUR, group };
        let found = gptq(&weights, recipe, &factor, None, &vec![false; n]).expect("quantised");
        let plain = plain_codes(&weights, &h, group);
        let different = found.codes.iter().zip(&plain).filter(|(a, b)| a != b).count();
        // A weight halfway between two codes may fall either way in f32, and move those after it.
        assert!(different * 50 <= plain.len(), "{n} by {group}: {different} of {}", plain.len());
    }
}

#[test]
fn spreading_errors_beats_rounding_in_any_order() {
    let (n, group) = (160, 32);
    let h = hessian(n);
    let weights = numbers(11, 20 * n);
    let recipe = Recipe { grid: FOUR, group };
    let rounded = objective(&weights, &round_to_nearest(&weights, n, recipe).expect("rounded"), &h);
    let upper = Upper { n, elems: h.clone() };
    let order = descending((0..n).map(|i| h[i * n + i]));
    let in_order = upper.permuted(&order).into_inverse_factor().expect("positive");
    let plain = upper.into_inverse_factor().expect("positive");
    for (factor, order) in [(&plain, None), (&in_order, Some(&order[..]))] {
        let quantised = gptq(&weights, recipe, factor, order, &vec![false; n]).expect("quantised");
        let mut columns = vec![0; n / group];
        quantised.g_idx.iter().for_each(|&g| columns[g as usize] += 1);
        assert_eq!(columns, vec![group; n / group]);
        let error = objective(&weights, &quantised, &h);
        assert!(error < 0.7 * rounded, "{error} against {rounded}");
    }
}

#[test]
fn blocks_hold_whole_groups_or_parts_of_one() {
    for group in [1, 3, 32, 48, 100, 128, 129, 192, 256, 1000] {
        let (mut start, cols) = (0, 1000);
        while start < cols {
            let end = block_end(start, cols, group);
            assert!(end > start && end - start <= BLOCK_COLS, "{start}..{end} by {group}");
            let last = (end - 1) / group * group;
            assert!(last <= start || end == cols || end.is_multiple_of(group), "{start}..{end} by {group}");
            start = end;
        }
    }
}
