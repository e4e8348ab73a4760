use crate::{AttentionProblem, Real};

/// The natural logarithm of the sum of the exponentials of each query's scores, scaled and capped, over the keys it sees,
/// `[tokens, q_heads]`; `-inf` for one that sees nothing.
pub fn attention_lse(p: &AttentionProblem<'_>) -> Vec<f64> {
    let mut out = Vec::new();
    for seq in 0..p.kv_lens.len() {
        let (first, end) = (p.q_starts[seq], p.q_starts[seq + 1]);
        for row in first..end {
            let position = i64::from(p.kv_lens[seq]) - i64::from(end) + i64::from(row);
            for head in 0..p.q_heads {
                let q = &p.q[(row as usize * p.q_heads + head) * p.head_dim..][..p.head_dim];
                let keys = (0..p.kv_lens[seq] as usize).filter(|&key| p.sees(position, key as i64));
                let scores: Vec<f64> = keys
                    .map(|key| {
                        let k = p.cached(p.k_cache, seq, key, head * p.kv_heads / p.q_heads);
                        let dot: f64 = q.iter().zip(k).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
                        let (score, cap) = (dot * f64::from(p.scale), f64::from(p.softcap));
                        if cap == 0.0 { score } else { cap * Real::tanh(score / cap) }
                    })
                    .collect();
                let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|score| (score - most).exp()).sum();
                out.push(if scores.is_empty() { f64::NEG_INFINITY } else { most + sum.ln() });
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_scores_add_the_logarithm_of_their_number() {
        let p = AttentionProblem {
            q: &[2.0, 2.0, 2.0],
            k_cache: &[3.0, 3.0],
            v_cache: &[0.0, 0.0],
            q_starts: &[0, 3],
            kv_lens: &[2],
            block_table: &[0],
            block_table_stride: 1,
            page_size: 2,
            q_heads: 1,
            kv_heads: 1,
            head_dim: 1,
            scale: 0.5,
            softcap: 0.0,
            causal: true,
            window: 0,
        };
        let lse = attention_lse(&p);
        assert_eq!(lse[..2], [f64::NEG_INFINITY, 3.0]);
        assert!((lse[2] - (3.0 + 2f64.ln())).abs() < 1e-15);
        let capped = attention_lse(&AttentionProblem { softcap: 2.0, ..p });
        assert!((capped[1] - 2.0 * 1.5f64.tanh()).abs() < 1e-15);
    }
}
