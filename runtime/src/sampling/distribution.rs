use std::cmp::Ordering;

use super::SamplingParams;

/// Tokens that are put in order at first, where the shortest prefix of some probability is looked for.
const FIRST_FEW: usize = 256;

/// The probabilities of the tokens that a request's temperature and filters leave.
///
/// # Source
/// The order of the filters is that of the devices' own sampling ([`tilewright_host::SampleRow`]): temperature, top-k, top-p
/// (Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020, section 3.1), min-p (Nguyen et al., "Turning Up
/// the Heat: Min-p Sampling", 2024).
#[derive(Debug, Clone, PartialEq)]
pub struct Distribution {
    /// Tokens and their weights, ascending by token.
    kept: Vec<(u32, f64)>,
    /// Of the weights, summed in that order.
    total: f64,
}

impl Distribution {
    /// What is left of `softmax(logits / temperature)`; all of it on the largest (the lowest index among equals) where the
    /// temperature is 0. None where `logits` hold a NaN or nothing finite.
    pub fn new(logits: &[f32], params: &SamplingParams) -> Option<Distribution> {
        let largest = largest(logits)?;
        if params.is_greedy() {
            return Some(Distribution::certain(first(logits, largest)?));
        }
        // Relative to the largest, whose weight is 1.
        let weight = |x: f32| {
            if x == largest { 1.0 } else { (f64::from(x - largest) / f64::from(params.temperature)).exp() }
        };
        let mut kept: Vec<(u32, f64)> = (0..).zip(logits.iter().map(|&x| weight(x))).collect();
        let rank = |a: &(u32, f64), b: &(u32, f64)| {
            let (x, y) = (logits[a.0 as usize], logits[b.0 as usize]);
            y.partial_cmp(&x).unwrap_or(Ordering::Equal).then(a.0.cmp(&b.0))
        };
        let top_k = params.top_k as usize;
        if top_k > 0 && top_k < kept.len() {
            kept.select_nth_unstable_by(top_k - 1, rank);
            kept.truncate(top_k);
        }
        if params.top_p < 1.0 {
            let enough = f64::from(params.top_p) * kept.iter().map(|(_, weight)| weight).sum::<f64>();
            let reached = |sorted: &[(u32, f64)]| {
                let mut sum = 0.0;
                sorted.iter().position(|(_, weight)| {
                    sum += weight;
                    sum >= enough
                })
            };
            // The first few nearly always are enough: the rest of a large vocabulary needn't be put in order.
            let mut count = FIRST_FEW;
            let last = loop {
                let len = count.min(kept.len());
                if len < kept.len() {
                    kept.select_nth_unstable_by(len, rank);
                }
                kept[..len].sort_unstable_by(rank);
                match reached(&kept[..len]) {
                    None if len < kept.len() => count *= 8,
                    last => break last,
                }
            };
            kept.truncate(last.map_or(kept.len(), |last| last + 1));
        }
        kept.retain(|&(_, weight)| weight > 0.0 && weight >= f64::from(params.min_p));
        kept.sort_unstable_by_key(|&(token, _)| token);
        Some(Distribution::of(kept))
    }

    /// All of it on one token.
    pub fn certain(token: u32) -> Distribution {
        Distribution { kept: vec![(token, 1.0)], total: 1.0 }
    }

    fn of(kept: Vec<(u32, f64)>) -> Distribution {
        let total = kept.iter().map(|(_, weight)| weight).sum();
        Distribution { kept, total }
    }

    /// A token's probability.
    pub fn probability(&self, token: u32) -> f64 {
        match self.kept.binary_search_by_key(&token, |&(token, _)| token) {
            Ok(at) => self.kept[at].1 / self.total,
            Err(_) => 0.0,
        }
    }

    /// The first token, ascending, at which the running sum of probabilities exceeds `uniform`, which is in [0, 1).
    pub fn draw(&self, uniform: f32) -> u32 {
        let target = f64::from(uniform) * self.total;
        let mut sum = 0.0;
        let drawn = self.kept.iter().find(|(_, weight)| {
            sum += weight;
            sum > target
        });
        drawn.or(self.kept.last()).map_or(0, |&(token, _)| token)
    }

    /// `max(0, self - other)`, to be normalised: what is owed to the tokens that `other` proposes too rarely. None where it
    /// proposes none too rarely.
    pub fn minus(&self, other: &Distribution) -> Option<Distribution> {
        let owed = |&(token, weight): &(u32, f64)| (token, weight / self.total - other.probability(token));
        let kept: Vec<(u32, f64)> = self.kept.iter().map(owed).filter(|&(_, weight)| weight > 0.0).collect();
        (!kept.is_empty()).then(|| Distribution::of(kept))
    }
}

/// Logits that are looked at together, so that the compiler has vectors do it.
const LANES: usize = 32;

/// The largest logit; none where there's a NaN or nothing finite.
fn largest(logits: &[f32]) -> Option<f32> {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (mut numbers, mut finite) = ([true; LANES], [false; LANES]);
    for chunk in logits.chunks(LANES) {
        for (lane, &x) in chunk.iter().enumerate() {
            numbers[lane] &= !x.is_nan();
            finite[lane] |= x.is_finite();
            lanes[lane] = if x > lanes[lane] { x } else { lanes[lane] };
        }
    }
    let is_valid = numbers.iter().all(|&it| it) && finite.iter().any(|&it| it);
    is_valid.then(|| lanes.into_iter().fold(f32::NEG_INFINITY, f32::max))
}

/// The first of the logits that is `x`.
fn first(logits: &[f32], x: f32) -> Option<u32> {
    let holds = |chunk: &[f32]| chunk.iter().fold(false, |held, &y| held | (y == x));
    let chunk = logits.chunks(LANES).position(holds)?;
    let at = logits[chunk * LANES..].iter().position(|&y| y == x)?;
    u32::try_from(chunk * LANES + at).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: SamplingParams =
        SamplingParams { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0 };

    fn logits(probabilities: &[f32]) -> Vec<f32> {
        probabilities.iter().map(|p| p.ln()).collect()
    }

    fn tokens(distribution: &Distribution) -> Vec<u32> {
        distribution.kept.iter().map(|&(token, _)| token).collect()
    }

    #[test]
    fn filters_keep_what_they_say() {
        let logits = logits(&[0.1, 0.4, 0.2, 0.3]);
        let kept = |params| tokens(&Distribution::new(&logits, &params).expect("numbers"));
        assert_eq!(kept(PLAIN), [0, 1, 2, 3]);
        assert_eq!(kept(SamplingParams { top_k: 2, ..PLAIN }), [1, 3]);
        assert_eq!(kept(SamplingParams { top_p: 0.69, ..PLAIN }), [1, 3]);
        assert_eq!(kept(SamplingParams { top_p: 0.0, ..PLAIN }).len(), 1);
        assert_eq!(kept(SamplingParams { top_p: 0.71, ..PLAIN }), [1, 2, 3]);
        assert_eq!(kept(SamplingParams { min_p: 0.49, ..PLAIN }), [1, 2, 3]);
        assert_eq!(kept(SamplingParams { temperature: 0.0, ..PLAIN }), [1]);
        let cold =
            Distribution::new(&logits, &SamplingParams { temperature: 0.5, ..PLAIN }).expect("numbers");
        assert!((cold.probability(1) - 0.16 / 0.3).abs() < 1e-6);
        assert_eq!(cold.probability(9), 0.0);
    }

    #[test]
    fn the_shortest_prefix_is_that_of_the_whole_order() {
        // Several times as many tokens as are put in order at first, many of them as likely as others.
        let count = 10 * FIRST_FEW;
        let logits: Vec<f32> = (0..count).map(|at| (at * 7919 % count / 4) as f32 * 0.004).collect();
        let mut order: Vec<usize> = (0..count).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        let weights: Vec<f64> = order.iter().map(|&token| f64::from(logits[token]).exp()).collect();
        let all: f64 = weights.iter().sum();
        for top_p in [0.001, 0.1, 0.5, 0.9, 0.9999] {
            let found = Distribution::new(&logits, &SamplingParams { top_p, ..PLAIN }).expect("numbers");
            let mut sum = 0.0;
            let last = weights.iter().position(|weight| {
                sum += weight;
                sum >= f64::from(top_p) * all
            });
            let mut expected = order[..=last.expect("a sum of them all is enough")].to_vec();
            expected.sort_unstable();
            let found: Vec<usize> = tokens(&found).into_iter().map(|token| token as usize).collect();
            assert_eq!(found, expected, "{top_p}");
        }
    }

    #[test]
    fn the_largest_is_found_wherever_it_is() {
        for len in [1, 2, LANES - 1, LANES, LANES + 1, 3 * LANES + 5] {
            for at in 0..len {
                let mut logits = vec![-2.5; len];
                logits[at] = 7.0;
                logits[len - 1] = if at % 2 == 0 { 7.0 } else { logits[len - 1] };
                assert_eq!((largest(&logits), first(&logits, 7.0)), (Some(7.0), Some(at as u32)));
                logits[at] = f32::NAN;
                assert_eq!(largest(&logits), None);
                logits.fill(f32::NEG_INFINITY);
                assert_eq!(largest(&logits), None);
                logits[at] = -3.0;
                assert_eq!(largest(&logits), Some(-3.0));
            }
        }
    }

    #[test]
    fn a_draw_takes_each_token_for_its_share() {
        let found = Distribution::new(&logits(&[0.25, 0.5, 0.25]), &PLAIN).expect("numbers");
        let draws = [0.0, 0.249, 0.251, 0.749, 0.751, 0.999_999].map(|uniform| found.draw(uniform));
        assert_eq!(draws, [0, 0, 1, 1, 2, 2]);
    }

    #[test]
    fn what_is_owed_is_the_positive_difference() {
        let p = Distribution::new(&logits(&[0.5, 0.3, 0.2]), &PLAIN).expect("numbers");
        let q = Distribution::new(&logits(&[0.2, 0.2, 0.6]), &PLAIN).expect("numbers");
        let owed = p.minus(&q).expect("something");
        assert!((owed.probability(0) - 0.75).abs() < 1e-6 && owed.probability(2) == 0.0);
        assert_eq!(p.minus(&p), None);
        assert_eq!(Distribution::certain(3).minus(&q), Some(Distribution::certain(3)));
    }

    #[test]
    fn nothing_can_be_chosen_from_nans_or_infinities_alone() {
        for logits in [&[0.0, f32::NAN][..], &[f32::NEG_INFINITY; 2], &[]] {
            assert_eq!(Distribution::new(logits, &PLAIN), None);
        }
        assert!(Distribution::new(&[f32::NEG_INFINITY, 1.0], &PLAIN).is_some_and(|d| d.draw(0.0) == 1));
    }
}
