//! Choosing tokens from rows of logits.
use std::cmp::Ordering;

use rayon::prelude::*;

use super::tensor::CpuTensor;
use crate::{Error, Result, SampleRow, Tensor};

/// Whether a row can be chosen from: no NaN, something finite.
fn check(row: usize, logits: &[f32]) -> Result<()> {
    let (mut nan, mut finite) = (false, false);
    for x in logits {
        nan |= x.is_nan();
        finite |= x.is_finite();
    }
    if nan || !finite { Err(Error::InvalidLogits { row }) } else { Ok(()) }
}

/// The index of the largest logit, the lowest among equals.
fn largest(row: usize, values: &[f32]) -> Result<u32> {
    check(row, values)?;
    let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // There is one: the row holds no NaN.
    Ok(values.iter().position(|&x| x == largest).unwrap_or(0) as u32)
}

/// The index of each row's largest logit, the lowest among equals.
pub(super) fn argmax(logits: &CpuTensor) -> Result<Vec<u32>> {
    each_row(logits.rows(), |row| largest(row, logits.row(row)))
}

/// A token a row, greedily where the temperature is 0; none for a row that can't be chosen from.
pub(super) fn choose(logits: &CpuTensor, rows: &[SampleRow]) -> Vec<Option<u32>> {
    let choose = |row: usize| {
        let values = logits.row(row);
        let greedy = rows[row].temperature == 0.0;
        let token =
            if greedy { largest(row, values) } else { check(row, values).map(|()| draw(values, &rows[row])) };
        token.ok()
    };
    match rows.len() {
        1 => vec![choose(0)],
        rows => (0..rows).into_par_iter().map(choose).collect(),
    }
}

/// A token a row, drawn as [`tilewright_kernels::abi::Sample`] says.
pub(super) fn sample(logits: &CpuTensor, rows: &[SampleRow]) -> Result<Vec<u32>> {
    each_row(logits.rows(), |row| {
        check(row, logits.row(row))?;
        Ok(draw(logits.row(row), &rows[row]))
    })
}

/// In parallel only where there is more than one row; the first row's error wins.
fn each_row(rows: usize, choose: impl Fn(usize) -> Result<u32> + Sync + Send) -> Result<Vec<u32>> {
    if rows == 1 {
        return Ok(vec![choose(0)?]);
    }
    let chosen: Vec<Result<u32>> = (0..rows).into_par_iter().map(choose).collect();
    chosen.into_iter().collect()
}

/// Descending by logit, the lower index first among equals.
fn rank(logits: &[f32], a: u32, b: u32) -> Ordering {
    let (x, y) = (logits[a as usize], logits[b as usize]);
    y.partial_cmp(&x).unwrap_or(Ordering::Equal).then(a.cmp(&b))
}

fn draw(logits: &[f32], how: &SampleRow) -> u32 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // Relative to the largest, whose weight is 1.
    let weight = |index: u32| {
        let x = logits[index as usize];
        if x == largest { 1.0 } else { (f64::from(x - largest) / f64::from(how.temperature)).exp() }
    };
    let mut kept: Vec<u32> = (0..logits.len() as u32).collect();
    let top_k = how.top_k as usize;
    if top_k > 0 && top_k < kept.len() {
        kept.select_nth_unstable_by(top_k - 1, |&a, &b| rank(logits, a, b));
        kept.truncate(top_k);
    }
    if how.top_p < 1.0 {
        kept.sort_unstable_by(|&a, &b| rank(logits, a, b));
        let total: f64 = kept.iter().map(|&index| weight(index)).sum();
        let enough = f64::from(how.top_p) * total;
        let mut sum = 0.0;
        let prefix = kept.iter().position(|&index| {
            sum += weight(index);
            sum >= enough
        });
        kept.truncate(prefix.map_or(kept.len(), |last| last + 1));
    }
    kept.retain(|&index| weight(index) >= f64::from(how.min_p));
    kept.sort_unstable();
    let total: f64 = kept.iter().map(|&index| weight(index)).sum();
    let target = f64::from(how.uniform) * total;
    let mut sum = 0.0;
    let drawn = kept.iter().copied().find(|&index| {
        sum += weight(index);
        sum > target
    });
    drawn.or(kept.last().copied()).unwrap_or(0)
}
