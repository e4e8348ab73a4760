//! Speculative sampling: which drafts of a cheaper model may stand.
//!
//! A draft `x`, drawn from `q`, stands with probability `min(1, p(x) / q(x))`, `p` being the target's distribution after its own
//! temperature, filters and penalties, given the drafts before it. Where one falls, its place is drawn from `max(0, p - q)`,
//! normalised, and what follows it is dropped; where all stand, the target's distribution behind the last yields one token
//! more. Tokens so chosen are distributed as the target's own. Greedy choices are the case where `p` is certain.
//!
//! # Source
//! Leviathan, Kalman, Matias, "Fast Inference from Transformers via Speculative Decoding", arXiv 2211.17192, algorithm 1 and
//! appendix A.1.

use super::{Distribution, Draw};

#[cfg(test)]
mod tests;

/// A token that a cheaper model proposes.
#[derive(Debug, Clone, PartialEq)]
pub struct Draft {
    /// The token.
    pub token: u32,
    /// What it was drawn from.
    pub from: Distribution,
}

impl Draft {
    /// A draft that its proposer would have made in any case.
    pub fn certain(token: u32) -> Draft {
        Draft { token, from: Distribution::certain(token) }
    }
}

/// What becomes of drafts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// How many stand, from the first.
    pub accepted: usize,
    /// The token behind those.
    pub next: u32,
}

/// Whether a draft stands, by its probability under target and proposer and a uniform draw.
type Stands = fn(f64, f64, f64) -> bool;
/// What the token in a fallen draft's place is drawn from.
type Instead = fn(&Distribution, &Distribution) -> Distribution;

fn stands(p: f64, q: f64, uniform: f64) -> bool {
    uniform * q < p
}

fn instead(p: &Distribution, q: &Distribution) -> Distribution {
    // A draft falls only where q exceeds p, so that elsewhere p exceeds q; where rounding hides that, they are equal.
    p.minus(q).unwrap_or_else(|| p.clone())
}

/// Judges `drafts`. `target` answers with the distribution of the token at draft `index`, given those before it; none where its
/// logits were no numbers. `uniform` answers with the draw for draft `index`.
///
/// None where `target` answered with none.
pub(crate) fn verify(
    drafts: &[Draft],
    target: impl FnMut(usize) -> Option<Distribution>,
    uniform: impl FnMut(usize, Draw) -> f32,
) -> Option<Verdict> {
    verify_by((stands, instead), drafts, target, uniform)
}

fn verify_by(
    (stands, instead): (Stands, Instead),
    drafts: &[Draft],
    mut target: impl FnMut(usize) -> Option<Distribution>,
    mut uniform: impl FnMut(usize, Draw) -> f32,
) -> Option<Verdict> {
    for (index, Draft { token, from }) in drafts.iter().enumerate() {
        let p = target(index)?;
        let drawn = f64::from(uniform(index, Draw::Accept));
        if !stands(p.probability(*token), from.probability(*token), drawn) {
            let next = instead(&p, from).draw(uniform(index, Draw::Instead));
            return Some(Verdict { accepted: index, next });
        }
    }
    let next = target(drafts.len())?.draw(uniform(drafts.len(), Draw::Token));
    Some(Verdict { accepted: drafts.len(), next })
}
