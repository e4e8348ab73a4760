//! Drafts by prompt lookup: what was said once after the last few tokens may be said again.

/// Tokens of the longest and the shortest end that is looked for.
const LONGEST: usize = 4;
const SHORTEST: usize = 2;

/// Up to `most` tokens that followed the last occurrence of the longest end of `tokens` that occurred before. Where it occurred
/// so late that fewer follow, they repeat.
pub(super) fn propose(tokens: &[u32], most: usize) -> Vec<u32> {
    for len in (SHORTEST..=LONGEST).rev() {
        let Some(before) = tokens.len().checked_sub(len) else { continue };
        let end = &tokens[before..];
        // A first token that differs rules most places out.
        let found = (0..before).rev().find(|&at| tokens[at] == end[0] && tokens[at..at + len] == *end);
        if let Some(at) = found {
            let mut next = at + len;
            let mut drafts = Vec::with_capacity(most);
            while drafts.len() < most {
                drafts.push(if next < tokens.len() { tokens[next] } else { drafts[next - tokens.len()] });
                next += 1;
            }
            return drafts;
        }
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_end_that_occurred_last_is_followed() {
        assert_eq!(propose(&[1, 2, 3, 9, 1, 2, 4, 7, 1, 2], 2), [4, 7]);
        // Three tokens agree further back.
        assert_eq!(propose(&[5, 1, 2, 9, 8, 1, 2, 4, 5, 1, 2], 3), [9, 8, 1]);
        assert_eq!(propose(&[1, 2, 1, 2], 5), [1, 2, 1, 2, 1]);
        assert_eq!(propose(&[6, 6, 6], 2), [6, 6]);
    }

    #[test]
    fn nothing_is_proposed_where_nothing_recurs() {
        for tokens in [&[][..], &[1], &[1, 1], &[1, 2, 3, 1]] {
            assert!(propose(tokens, 4).is_empty(), "{tokens:?}");
        }
        assert!(propose(&[1, 2, 1, 2], 0).is_empty());
    }
}
