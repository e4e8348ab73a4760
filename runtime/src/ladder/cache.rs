//! The KV cache: on against off.

use std::time::{Duration, Instant};

use super::{Bench, Rate, Rung, in_turns_within};
use crate::{GenerateParams, Result};

/// What is generated starts with this many tokens.
const PROMPT: u32 = 8;
/// Three rounds begin within that where computing the text anew for each token takes a demo model's time, one where it takes minutes.
const TIME: Duration = Duration::from_secs(40);

pub(super) fn rungs(bench: &Bench<'_>) -> Result<Vec<Rung>> {
    let tokens = bench.size(512, 32);
    // Any tokens do: the time depends on their number alone.
    let prompt: Vec<u32> = (1..=PROMPT).collect();
    let prompt = &prompt;
    let rate = |recompute: bool| -> Rate<'_> {
        Box::new(move || {
            let params = GenerateParams {
                max_tokens: tokens,
                ignore_eos: true,
                recompute,
                ..GenerateParams::default()
            };
            let start = Instant::now();
            let generated = bench.model.generate(&prompt[..], &params)?.collect::<Result<Vec<_>>>()?;
            Ok(generated.len() as f64 / start.elapsed().as_secs_f64())
        })
    };
    let found = in_turns_within(TIME, bench.size(3, 1), vec![rate(true), rate(false)])?;
    let of = format!(
        "{tokens} tokens generated: {:.1} tok/s computing the text anew for each, {:.1} with the cache",
        found[0].rate, found[1].rate
    );
    let rung =
        Rung::times("KV cache", "10 to 100 times over recomputation", [10.0, 100.0], found[1].ratio(), of);
    let last = tokens + PROMPT as usize;
    Ok(vec![rung.of_rounds(&found[1]).because(format!(
        "the gain grows with the text: {last} tokens are few, and many are computed at a time at a far higher rate than one"
    ))])
}
