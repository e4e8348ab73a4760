use crate::{AttentionSpec, Span};

/// The keys that a query sees: of `from..to` those before `drafts_start`, and from there on those whose bit is set.
pub(super) struct Seen {
    pub(super) from: usize,
    pub(super) to: usize,
    /// Past every key where the span's tokens are no drafts.
    pub(super) drafts_start: usize,
    drafts: u32,
}

impl Seen {
    /// What query `query` of a span sees.
    #[inline(always)]
    pub(super) fn of(span: &Span, spec: &AttentionSpec, query: usize) -> Seen {
        let kv_len = span.kv_len as usize;
        let drafts_start = kv_len - span.query_len as usize;
        let position = drafts_start + query;
        let window = spec.window.unwrap_or(usize::MAX);
        if let Some(mut drafts) = span.drafts_seen(query as u32) {
            // A window keeps the last of what is seen.
            while drafts.count_ones() as usize > window {
                drafts &= drafts - 1;
            }
            let from = drafts_start.saturating_sub(window - drafts.count_ones() as usize);
            return Seen { from, to: kv_len, drafts_start, drafts };
        }
        let from = (position + 1).saturating_sub(window);
        let to = if spec.causal { position + 1 } else { position.saturating_add(window) };
        Seen { from, to: to.min(kv_len), drafts_start: usize::MAX, drafts: 0 }
    }

    /// Whether each of `keys` is seen, as far as can be told without looking at drafts.
    #[inline(always)]
    pub(super) fn all(&self, keys: std::ops::Range<usize>) -> bool {
        self.from <= keys.start && keys.end <= self.to.min(self.drafts_start)
    }

    /// Sets the scores of keys `first..` that are hidden drafts to -inf.
    pub(super) fn hide_drafts(&self, first: usize, scores: &mut [f32]) {
        for (lane, score) in scores.iter_mut().enumerate().skip(self.drafts_start.saturating_sub(first)) {
            let draft = (first + lane - self.drafts_start) as u32;
            if self.drafts.checked_shr(draft).unwrap_or(0) & 1 == 0 {
                *score = f32::NEG_INFINITY;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(window: Option<usize>, query: usize) -> Vec<usize> {
        // Five keys before a root, its two children, and a child of the second.
        let drafts = Some(vec![0b1, 0b11, 0b101, 0b1101]);
        let class = crate::RowClass::Generated;
        let span = Span { query_start: 0, query_len: 4, kv_len: 9, pages: vec![0], class, drafts };
        let spec = AttentionSpec { q_heads: 1, scale: 1.0, causal: true, window, softcap: None };
        let seen = Seen::of(&span, &spec, query);
        let mut scores = [0.0; 9];
        seen.hide_drafts(0, &mut scores);
        (seen.from..seen.to).filter(|&key| scores[key] == 0.0).collect()
    }

    #[test]
    fn a_draft_sees_its_ancestors() {
        assert_eq!(keys(None, 0), [0, 1, 2, 3, 4, 5]);
        assert_eq!(keys(None, 2), [0, 1, 2, 3, 4, 5, 7]);
        assert_eq!(keys(Some(4), 3), [4, 5, 7, 8]);
        assert_eq!(keys(Some(2), 3), [7, 8]);
        assert_eq!(keys(Some(1), 1), [6]);
    }
}
