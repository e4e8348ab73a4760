//! What both ways are off by.

use super::AttentionShape;

/// Tokens whose outputs are held against those in float64.
const CHECKED_TOKENS: usize = 12;

/// How far off both ways are, that which writes scores down first.
#[derive(Debug, Clone, PartialEq)]
pub struct Errors {
    /// From attention in float64, of some tokens.
    pub worst: [f64; 2],
    /// The largest of their outputs.
    pub largest: f64,
    /// From each other, of all tokens.
    pub apart: f32,
    /// How many.
    pub tokens: usize,
}

impl Errors {
    pub(super) fn of(shape: AttentionShape, qkv: &[f32], outputs: &[Vec<f32>; 2]) -> Errors {
        let checked = shape.tokens.min(CHECKED_TOKENS);
        let (mut worst, mut largest) = ([0.0; 2], 0.0_f64);
        for index in 0..checked {
            // The first token, which sees itself alone, to the last.
            let token = index * (shape.tokens - 1) / (checked - 1).max(1);
            let truth = outputs_of(shape, qkv, token);
            largest = truth.iter().fold(largest, |largest, value| largest.max(value.abs()));
            for (worst, outputs) in worst.iter_mut().zip(outputs) {
                let found = outputs[token * truth.len()..].iter().map(|&value| f64::from(value));
                *worst =
                    largest_of(*worst, truth.iter().zip(found).map(|(truth, found)| (truth - found).abs()));
            }
        }
        let apart = outputs[0].iter().zip(&outputs[1]).map(|(a, b)| f64::from((a - b).abs()));
        Errors { worst, largest, apart: largest_of(0.0, apart) as f32, tokens: checked }
    }
}

/// A NaN is the largest of all.
fn largest_of(first: f64, values: impl Iterator<Item = f64>) -> f64 {
    values.fold(first, |largest, next| if next <= largest || largest.is_nan() { largest } else { next })
}

/// A token's outputs in float64, `[q_heads * head_dim]`.
fn outputs_of(shape: AttentionShape, qkv: &[f32], token: usize) -> Vec<f64> {
    let AttentionShape { q_heads, kv_heads, head_dim, .. } = shape;
    let of_head = |token: usize, head: usize| {
        qkv[(token * (q_heads + 2 * kv_heads) + head) * head_dim..][..head_dim].iter().map(|&x| f64::from(x))
    };
    let mut outputs = Vec::with_capacity(q_heads * head_dim);
    for head in 0..q_heads {
        let k_head = q_heads + head / shape.group();
        let score = |key| of_head(token, head).zip(of_head(key, k_head)).map(|(q, k)| q * k).sum::<f64>();
        let scores: Vec<f64> = (0..=token).map(|key| score(key) / (head_dim as f64).sqrt()).collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let (mut sum, mut out) = (0.0, vec![0.0; head_dim]);
        for (key, score) in scores.iter().enumerate() {
            let weight = (score - largest).exp();
            sum += weight;
            out.iter_mut().zip(of_head(key, k_head + kv_heads)).for_each(|(out, v)| *out += weight * v);
        }
        outputs.extend(out.iter().map(|out| out / sum));
    }
    outputs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attention_by_hand() {
        // Two tokens of one query head and one key head: q, k, v.
        let qkv = [1.0, 1.0, 4.0, 2.0_f32.ln(), 1.0, 7.0];
        let shape = AttentionShape { tokens: 2, q_heads: 1, kv_heads: 1, head_dim: 1 };
        assert_eq!(outputs_of(shape, &qkv, 0), [4.0]);
        // Scores of ln 2 and ln 2: equal weights.
        assert!((outputs_of(shape, &qkv, 1)[0] - 5.5).abs() < 1e-12);
        let qkv = [1.0, 0.0, 4.0, 1.0, 2.0_f32.ln(), 7.0];
        assert!((outputs_of(shape, &qkv, 1)[0] - 6.0).abs() < 1e-6);
        let errors = Errors::of(shape, &qkv, &[vec![4.0, 6.5], vec![4.25, f32::NAN]]);
        assert!((errors.worst[0] - 0.5).abs() < 1e-6 && errors.worst[1].is_nan() && errors.apart.is_nan());
    }
}
