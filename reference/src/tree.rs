use crate::{AttentionProblem, Real, attention::attend_keys};

/// Attention of drafts that form a tree. The queries of a sequence are its last tokens, the drafts; every one sees all keys before
/// them and itself, and draft `j` where bit `j` of its mask is set (`masks[tokens]`). Of the keys it sees, a window keeps the
/// last `p.window`. `p.causal` plays no part.
pub fn attention_tree<R: Real>(p: &AttentionProblem<'_>, masks: &[u32]) -> Vec<R> {
    let mut out = Vec::with_capacity(p.q.len());
    for seq in 0..p.kv_lens.len() {
        let (first, end) = (p.q_starts[seq], p.q_starts[seq + 1]);
        let before = i64::from(p.kv_lens[seq]) - i64::from(end - first);
        for row in first..end {
            let own = before + i64::from(row - first);
            let sees = |key: i64| {
                key < before || key == own || masks[row as usize] >> ((key - before) as u32) & 1 == 1
            };
            let mut keys: Vec<usize> = (0..p.kv_lens[seq] as usize).filter(|&key| sees(key as i64)).collect();
            if p.window != 0 {
                keys.drain(..keys.len().saturating_sub(p.window as usize));
            }
            for head in 0..p.q_heads {
                let q = &p.q[(row as usize * p.q_heads + head) * p.head_dim..][..p.head_dim];
                out.extend(attend_keys::<R>(p, q, seq, &keys, head * p.kv_heads / p.q_heads));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention;

    fn problem<'a>(values: &'a [f32], window: u32) -> AttentionProblem<'a> {
        AttentionProblem {
            q: &[0.0; 3],
            k_cache: &[0.0; 5],
            v_cache: values,
            q_starts: &[0, 3],
            kv_lens: &[5],
            block_table: &[0],
            block_table_stride: 1,
            page_size: 5,
            q_heads: 1,
            kv_heads: 1,
            head_dim: 1,
            scale: 1.0,
            softcap: 0.0,
            causal: true,
            window,
        }
    }

    #[test]
    fn siblings_do_not_see_each_other() {
        let values = [3.0, 5.0, 7.0, 11.0, 13.0];
        // Keys 2, 3, 4 are drafts; 3 and 4 are children of 2.
        let masks = [0b001, 0b011, 0b101];
        let p = problem(&values, 0);
        assert_eq!(attention_tree::<f64>(&p, &masks), [15.0 / 3.0, 26.0 / 4.0, 28.0 / 4.0]);
        let p = problem(&values, 2);
        assert_eq!(attention_tree::<f64>(&p, &masks), [12.0 / 2.0, 18.0 / 2.0, 20.0 / 2.0]);
    }

    #[test]
    fn a_chain_is_the_causal_mask() {
        let values = [3.0, 5.0, 7.0, 11.0, 13.0];
        for window in 0..6 {
            let p = problem(&values, window);
            assert_eq!(attention_tree::<f64>(&p, &[1, 3, 7]), attention::<f64>(&p));
        }
    }
}
