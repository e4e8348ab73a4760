use crate::Real;

/// Softmax attention of ragged query spans over a paged cache.
#[derive(Debug, Clone, Copy)]
pub struct AttentionProblem<'a> {
    /// `[tokens, q_heads, head_dim]`
    pub q: &'a [f32],
    /// `[pages, kv_heads, page_size, head_dim]`
    pub k_cache: &'a [f32],
    /// As `k_cache`.
    pub v_cache: &'a [f32],
    /// `[seqs + 1]`: the first query row of each sequence.
    pub q_starts: &'a [u32],
    /// `[seqs]`: keys of each sequence.
    pub kv_lens: &'a [u32],
    /// `[seqs, block_table_stride]`: the pages of each sequence.
    pub block_table: &'a [u32],
    pub block_table_stride: usize,
    pub page_size: usize,
    pub q_heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Multiplies the scores.
    pub scale: f32,
    /// If not 0, scores become `softcap * tanh(score / softcap)`.
    pub softcap: f32,
    pub causal: bool,
    /// Keys each query sees, itself included; 0 for all.
    pub window: u32,
}

impl AttentionProblem<'_> {
    /// Whether the query at `position` sees key `key`; both are counted from the sequence's first key.
    pub fn sees(&self, position: i64, key: i64) -> bool {
        let window = i64::from(self.window);
        let past = !self.causal || key <= position;
        let recent = window == 0 || key + window > position;
        let near = window == 0 || self.causal || key < position + window;
        past && recent && near
    }

    /// One head's vector of one key of a sequence in a cache.
    pub(crate) fn cached<'c>(&self, cache: &'c [f32], seq: usize, key: usize, kv_head: usize) -> &'c [f32] {
        let page = self.block_table[seq * self.block_table_stride + key / self.page_size] as usize;
        let row = (page * self.kv_heads + kv_head) * self.page_size + key % self.page_size;
        &cache[row * self.head_dim..][..self.head_dim]
    }
}

/// The attention of every query, `[tokens, q_heads, head_dim]`; zeros for one that sees nothing.
pub fn attention<R: Real>(p: &AttentionProblem<'_>) -> Vec<R> {
    let mut out = Vec::with_capacity(p.q.len());
    for seq in 0..p.kv_lens.len() {
        let queries = p.q_starts[seq]..p.q_starts[seq + 1];
        for (i, row) in queries.clone().enumerate() {
            let position = i64::from(p.kv_lens[seq]) - queries.len() as i64 + i as i64;
            for head in 0..p.q_heads {
                let q = &p.q[(row as usize * p.q_heads + head) * p.head_dim..][..p.head_dim];
                out.extend(attend::<R>(p, q, seq, position, head * p.kv_heads / p.q_heads));
            }
        }
    }
    out
}

/// One query of one head.
fn attend<R: Real>(p: &AttentionProblem<'_>, q: &[f32], seq: usize, position: i64, kv_head: usize) -> Vec<R> {
    let keys: Vec<usize> = (0..p.kv_lens[seq] as usize).filter(|&key| p.sees(position, key as i64)).collect();
    attend_keys(p, q, seq, &keys, kv_head)
}

/// One query of one head over the keys it sees.
pub(crate) fn attend_keys<R: Real>(
    p: &AttentionProblem<'_>,
    q: &[f32],
    seq: usize,
    keys: &[usize],
    kv_head: usize,
) -> Vec<R> {
    let scores: Vec<R> = keys
        .iter()
        .map(|&key| {
            let k = p.cached(p.k_cache, seq, key, kv_head);
            let mut score = R::ZERO;
            for (&q, &k) in q.iter().zip(k) {
                score += R::of(q) * R::of(k);
            }
            score = score * R::of(p.scale);
            if p.softcap == 0.0 { score } else { R::of(p.softcap) * (score / R::of(p.softcap)).tanh() }
        })
        .collect();
    let Some(&first) = scores.first() else { return vec![R::ZERO; p.head_dim] };
    let largest = scores.iter().fold(first, |a, &b| if b > a { b } else { a });
    let mut total = R::ZERO;
    let mut sum = vec![R::ZERO; p.head_dim];
    for (&key, &score) in keys.iter().zip(&scores) {
        let weight = (score - largest).exp();
        total += weight;
        let stored = weight.stored();
        for (sum, &v) in sum.iter_mut().zip(p.cached(p.v_cache, seq, key, kv_head)) {
            *sum += stored * R::of(v);
        }
    }
    sum.into_iter().map(|sum| (sum / total).stored()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem<'a>(q: &'a [f32], k: &'a [f32], v: &'a [f32], pages: &'a [u32]) -> AttentionProblem<'a> {
        AttentionProblem {
            q,
            k_cache: k,
            v_cache: v,
            q_starts: &[0, 2],
            kv_lens: &[3],
            block_table: pages,
            block_table_stride: 3,
            page_size: 1,
            q_heads: 1,
            kv_heads: 1,
            head_dim: 1,
            scale: 1.0,
            softcap: 0.0,
            causal: true,
            window: 0,
        }
    }

    #[test]
    fn equal_scores_average_what_is_seen() {
        let (q, k, v) = ([0.0, 0.0], [1.0, 2.0, 3.0], [3.0, 6.0, 12.0]);
        let p = problem(&q, &k, &v, &[2, 0, 1]);
        // The keys in order stand in pages 2, 0, 1: values 12, 3, 6.
        assert_eq!(attention::<f64>(&p), [7.5, 7.0]);
        assert_eq!(attention::<f64>(&AttentionProblem { causal: false, ..p }), [7.0, 7.0]);
        assert_eq!(attention::<f64>(&AttentionProblem { window: 1, ..p }), [3.0, 6.0]);
        assert_eq!(attention::<f64>(&AttentionProblem { window: 1, causal: false, ..p }), [3.0, 6.0]);
        assert_eq!(attention::<f64>(&AttentionProblem { window: 2, causal: false, ..p }), [7.0, 4.5]);
    }

    #[test]
    fn a_query_before_the_first_key_gets_zero() {
        let (q, k, v) = ([1.0, 1.0], [1.0], [5.0]);
        let p = AttentionProblem { kv_lens: &[1], ..problem(&q, &k, &v, &[0, 0, 0]) };
        assert_eq!(attention::<f64>(&p), [0.0, 5.0]);
    }

    #[test]
    fn scores_weigh_by_their_exponential_and_are_capped() {
        let (q, k, v) = ([0.0, 2.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]);
        let p = problem(&q, &k, &v, &[0, 1, 2]);
        let expected = 2.0f64.exp() / (2.0f64.exp() + 2.0);
        assert!((attention::<f64>(&p)[1] - expected).abs() < 1e-15);
        let capped = 2.0f64.tanh().exp();
        let expected = capped / (capped + 2.0);
        assert!((attention::<f64>(&AttentionProblem { softcap: 1.0, ..p })[1] - expected).abs() < 1e-15);
    }
}
