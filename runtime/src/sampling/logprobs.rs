use serde::Serialize;

/// What the model itself thought of a token: natural logarithms of `softmax(logits)`, before temperature, filters and penalties.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Logprobs {
    /// Of the token chosen.
    pub chosen: f32,
    /// The likeliest tokens and theirs, likeliest first, the lower index first among equals.
    pub top: Vec<(u32, f32)>,
}

impl Logprobs {
    /// Of `token` and the `top` likeliest, by logits `[vocab]`.
    pub fn of(logits: &[f32], token: u32, top: usize) -> Logprobs {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        // In one order, in f64: the same bits whatever else is computed.
        let sum: f64 = logits.iter().map(|&x| f64::from(x - largest).exp()).sum();
        let logprob = |token: u32| {
            let x = logits.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
            (f64::from(x - largest) - sum.ln()) as f32
        };
        let mut ranked: Vec<u32> = (0..logits.len() as u32).collect();
        let rank = |&a: &u32, &b: &u32| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b));
        if top < ranked.len() {
            if top > 0 {
                ranked.select_nth_unstable_by(top - 1, rank);
            }
            ranked.truncate(top);
        }
        ranked.sort_unstable_by(rank);
        let top = ranked.into_iter().map(|token| (token, logprob(token))).collect();
        Logprobs { chosen: logprob(token), top }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_come_first() {
        let logits: Vec<f32> = [0.1f32, 0.4, 0.1, 0.4].iter().map(|p| p.ln() + 3.0).collect();
        let found = Logprobs::of(&logits, 2, 3);
        assert!((found.chosen - 0.1f32.ln()).abs() < 1e-6);
        assert_eq!(found.top.iter().map(|&(token, _)| token).collect::<Vec<_>>(), [1, 3, 0]);
        assert!((found.top[0].1 - 0.4f32.ln()).abs() < 1e-6);
        assert!(Logprobs::of(&logits, 0, 0).top.is_empty());
        assert_eq!(Logprobs::of(&logits, 0, 9).top.len(), 4);
    }
}
