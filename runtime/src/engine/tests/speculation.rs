//! Speculation within the engine keeps the distribution of what is sampled.

use super::super::{DraftLength, EngineConfig, Request, Speculation};
use super::harness::*;
use crate::{Model, Penalties, SamplingParams};

/// How often each token came at each position, over many answers to one prompt.
fn counts(model: &Model, draft: Option<&Model>, speculation: Speculation, first_key: u64) -> Vec<Vec<f64>> {
    const TOKENS: usize = 3;
    let config = EngineConfig { speculation, cache_tokens: 8192, step_tokens: 512, max_running: 64, ..SMALL };
    let mut bench = Bench::new(model, draft, config);
    let sampling = SamplingParams { temperature: 0.7, top_p: 0.9, top_k: 8, ..SamplingParams::default() };
    let penalties = Penalties { repetition: 1.2, presence: 0.5, frequency: 0.0 };
    let mut counts = vec![vec![0.0; 192]; TOKENS];
    for key in first_key..first_key + 24 {
        let request = Request {
            sampling,
            penalties,
            // Few tokens, so that pairs of them recur.
            logit_bias: vec![(3, 6.0), (7, 6.0), (19, 6.5), (20, 5.5)],
            key,
            answers: 128,
            max_tokens: TOKENS + 3,
            ignore_eos: true,
            ..Request::new([7, 19, 3, 20, 7, 3, 19, 20, 3, 7, 20, 19, 7, 19, 3])
        };
        bench.submit(model, &request);
    }
    bench.run();
    assert_eq!(bench.core.stats.drafts > 0, speculation != Speculation::Off);
    for said in bench.answers().iter().flat_map(|said| said.chunks(TOKENS + 3)) {
        for (counts, said) in counts.iter_mut().zip(said) {
            counts[said.token as usize] += 1.0;
        }
    }
    counts
}

/// The largest difference of two samples' counts, in standard deviations of a difference.
fn worst(a: &[Vec<f64>], b: &[Vec<f64>]) -> f64 {
    let pairs = a.iter().flatten().zip(b.iter().flatten());
    pairs.map(|(a, b)| (a - b).abs() / (a + b).max(1.0).sqrt()).fold(0.0, f64::max)
}

#[test]
fn sampled_answers_are_distributed_as_without_drafts() {
    let model = fixture("llama-gqa-rope3");
    let draft = fixture("qwen2-bias");
    let plain = counts(&model, None, Speculation::Off, 0);
    let length = DraftLength::Fixed(3);
    for (speculation, draft) in [
        (Speculation::DraftModel(length), Some(&draft)),
        (Speculation::DraftModel(length), Some(&model)),
        (Speculation::NGram(length), None),
    ] {
        let found = counts(&model, draft, speculation, 1000);
        let worst = worst(&plain, &found);
        // Some hundred counts that matter; five standard deviations are one in a million each.
        assert!(worst < 5.0, "{speculation:?}: {worst} standard deviations");
    }
}
