use crate::Real;

/// What a row without an answer gets: one with a NaN, or without a finite logit.
pub const NO_TOKEN: u32 = u32::MAX;

/// `exp(x) / sum(exp(x))`.
pub fn softmax<R: Real>(x: &[f32]) -> Vec<R> {
    let largest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<R> = x.iter().map(|&v| (R::of(v) - R::of(largest)).exp()).collect();
    let mut total = R::ZERO;
    for &weight in &weights {
        total += weight;
    }
    weights.into_iter().map(|weight| (weight / total).stored()).collect()
}

fn has_answer(row: &[f32]) -> bool {
    row.iter().all(|v| !v.is_nan()) && row.iter().any(|v| v.is_finite())
}

/// The index of the largest logit of a row, the lowest of equals.
pub fn argmax(row: &[f32]) -> u32 {
    if !has_answer(row) {
        return NO_TOKEN;
    }
    let mut best = 0;
    for (i, &value) in row.iter().enumerate() {
        if value > row[best] {
            best = i;
        }
    }
    best as u32
}

/// What a request asks of the logit of one token. Each part is left out where it is not asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LogitPenalty {
    /// Above 0. Keskar et al., "CTRL", 2019, section 4.1, with logits that aren't positive multiplied instead of divided.
    pub repetition: Option<f32>,
    /// Presence and frequency penalties, added up: is subtracted.
    pub less: Option<f32>,
    /// Is added.
    pub bias: Option<f32>,
}

/// A logit after repetition, presence and frequency penalties and bias, in this order, each step rounded to f32.
pub fn adjusted_logit(logit: f32, penalty: &LogitPenalty) -> f32 {
    let mut adjusted = logit;
    match penalty.repetition {
        Some(repetition) if logit > 0.0 => adjusted = logit / repetition,
        Some(repetition) => adjusted = logit * repetition,
        None => {}
    }
    if let Some(less) = penalty.less {
        adjusted -= less;
    }
    if let Some(bias) = penalty.bias {
        adjusted += bias;
    }
    adjusted
}

/// How one row is sampled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SampleSettings {
    /// Above 0.
    pub temperature: f64,
    /// In (0, 1]; 1 keeps all.
    pub top_p: f64,
    /// In [0, 1]; 0 keeps all.
    pub min_p: f64,
    /// In [0, 1): the draw.
    pub uniform: f64,
    /// 0 keeps all.
    pub top_k: usize,
}

/// The tokens that survive the filters, in order of index, with their weights: of the `top_k` largest, the shortest prefix
/// that reaches `top_p`, and of that the ones of at least `min_p` times the largest probability.
fn kept(row: &[f32], settings: &SampleSettings) -> Vec<(usize, f64)> {
    let mut ranked: Vec<usize> = (0..row.len()).collect();
    // No NaN is left, and the sort is stable: the lower index comes first among equals, of which -0 and 0 are two.
    ranked.sort_by(|&a, &b| row[b].partial_cmp(&row[a]).unwrap_or(std::cmp::Ordering::Equal));
    if settings.top_k > 0 {
        ranked.truncate(settings.top_k);
    }
    let largest = f64::from(row[ranked[0]]);
    let weight = |token: usize| ((f64::from(row[token]) - largest) / settings.temperature).exp();
    let total: f64 = ranked.iter().map(|&token| weight(token)).sum();

    let mut kept = Vec::new();
    let mut reached = 0.0;
    for &token in &ranked {
        kept.push((token, weight(token)));
        reached += weight(token);
        if settings.top_p < 1.0 && reached >= settings.top_p * total {
            break;
        }
    }
    kept.retain(|&(_, weight)| weight >= settings.min_p);
    kept.sort_unstable_by_key(|&(token, _)| token);
    kept
}

/// Draws a token: the first that is kept, in order of index, at which the running sum exceeds the draw.
pub fn sample(row: &[f32], settings: &SampleSettings) -> u32 {
    if !has_answer(row) {
        return NO_TOKEN;
    }
    let kept = kept(row, settings);
    let total: f64 = kept.iter().map(|&(_, weight)| weight).sum();
    let mut sum = 0.0;
    for &(token, weight) in &kept {
        sum += weight;
        if sum > settings.uniform * total {
            return token as u32;
        }
    }
    kept.iter().rfind(|(_, weight)| *weight > 0.0).map_or(NO_TOKEN, |&(token, _)| token as u32)
}

/// Every token that rounding could have drawn: those whose stretch of the running sum comes within `tolerance` of the draw,
/// with `top_p` and `min_p` moved by as much either way. Never one of weight 0.
pub fn sample_candidates(row: &[f32], settings: &SampleSettings, tolerance: f64) -> Vec<u32> {
    if !has_answer(row) {
        return vec![NO_TOKEN];
    }
    let mut candidates = Vec::new();
    for top_p in [-1.0, 0.0, 1.0] {
        for min_p in [-1.0, 0.0, 1.0] {
            let moved = |value: f64, off: f64| value * (1.0 + off * tolerance);
            let settings = SampleSettings {
                top_p: if settings.top_p < 1.0 { moved(settings.top_p, top_p) } else { settings.top_p },
                min_p: moved(settings.min_p, min_p).min(1.0),
                ..*settings
            };
            let kept = kept(row, &settings);
            let total: f64 = kept.iter().map(|&(_, weight)| weight).sum();
            let mut before = 0.0;
            for (token, weight) in kept {
                let near = before <= (settings.uniform + tolerance) * total
                    && before + weight > (settings.uniform - tolerance) * total;
                if near && weight > 0.0 && !candidates.contains(&(token as u32)) {
                    candidates.push(token as u32);
                }
                before += weight;
            }
        }
    }
    candidates
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: SampleSettings =
        SampleSettings { temperature: 1.0, top_p: 1.0, min_p: 0.0, uniform: 0.0, top_k: 0 };
    /// Probabilities 0.1, 0.4, 0.2, 0.3.
    fn row() -> Vec<f32> {
        [0.1f32, 0.4, 0.2, 0.3].iter().map(|p| p.ln()).collect()
    }
    fn draws(settings: SampleSettings) -> Vec<u32> {
        (0..10)
            .map(|i| sample(&row(), &SampleSettings { uniform: 0.05 + 0.1 * f64::from(i), ..settings }))
            .collect()
    }

    #[test]
    fn draws_walk_the_distribution_in_order_of_index() {
        assert_eq!(draws(ALL), [0, 1, 1, 1, 1, 2, 2, 3, 3, 3]);
        assert_eq!(draws(SampleSettings { top_k: 1, ..ALL }), [1; 10]);
        assert_eq!(draws(SampleSettings { top_k: 2, ..ALL }), [1, 1, 1, 1, 1, 1, 3, 3, 3, 3]);
        assert_eq!(draws(SampleSettings { top_p: 0.65, ..ALL }), [1, 1, 1, 1, 1, 1, 3, 3, 3, 3]);
        assert_eq!(draws(SampleSettings { min_p: 0.7, ..ALL }), [1, 1, 1, 1, 1, 1, 3, 3, 3, 3]);
        assert_eq!(draws(SampleSettings { temperature: 1e-3, ..ALL }), [1; 10]);
    }

    #[test]
    fn rows_without_an_answer() {
        assert_eq!(argmax(&[1.0, f32::NAN]), NO_TOKEN);
        assert_eq!(argmax(&[f32::NEG_INFINITY; 3]), NO_TOKEN);
        assert_eq!(argmax(&[0.0, 3.0, 3.0]), 1);
        assert_eq!(sample(&[f32::NAN, 0.0], &ALL), NO_TOKEN);
        assert_eq!(sample(&[f32::NEG_INFINITY, 0.0], &ALL), 1);
    }

    #[test]
    fn a_draw_at_an_edge_has_two_candidates() {
        let edge = SampleSettings { uniform: 0.5, ..ALL };
        assert_eq!(sample_candidates(&row(), &edge, 1e-4).len(), 2);
        assert_eq!(sample_candidates(&row(), &SampleSettings { uniform: 0.3, ..ALL }, 1e-4), [1]);
    }

    #[test]
    fn softmax_sums_to_one() {
        let p: Vec<f64> = softmax(&row());
        assert!((p.iter().sum::<f64>() - 1.0).abs() < 1e-15 && (p[1] - 0.4).abs() < 1e-6);
    }

    #[test]
    fn penalties_come_in_their_order() {
        let all = LogitPenalty { repetition: Some(2.0), less: Some(0.5), bias: Some(4.0) };
        assert_eq!((adjusted_logit(3.0, &all), adjusted_logit(-3.0, &all)), (5.0, -2.5));
        let none = LogitPenalty { repetition: None, less: None, bias: None };
        assert_eq!(adjusted_logit(-0.0, &none).to_bits(), (-0.0f32).to_bits());
        assert_eq!(
            adjusted_logit(3.0, &LogitPenalty { bias: Some(f32::NEG_INFINITY), ..none }),
            f32::NEG_INFINITY
        );
    }
}
