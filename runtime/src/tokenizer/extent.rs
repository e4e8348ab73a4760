//! What a text becomes before it is made into tokens: normalisers may make it many times longer.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokenizers::{NormalizedString, Normalizer, NormalizerWrapper, OffsetReferential, OffsetType};

use super::Tokenizer;
use super::trust::guarded;
use crate::{Error, Result};

/// Bytes of a text that are normalised at a time: what they become at worst, 256 times as long, is a megabyte, with its offsets some 20.
const PIECE_BYTES: usize = 4096;
/// Bytes by which pieces under Unicode's forms may be longer than the whole, where two meet: a character takes three marks at most into
/// itself, and a syllable two letters, of at most four bytes each.
const JOINT_BYTES: usize = 64;

/// How long a text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Extent {
    /// Its bytes where it's longest: as it came, or behind any of the normaliser's steps. But for what is another where two pieces meet.
    pub bytes: usize,
    /// Tokens that it has at least; 0 where that can't be told.
    pub least_tokens: usize,
}

impl Tokenizer {
    /// Normalises a text in pieces, none of which is kept, until there are more than `most_bytes`: the work and the memory that it takes
    /// to measure a text are bounded where those that it takes to make it into tokens aren't.
    ///
    /// # Errors
    /// A text that the normaliser refuses.
    pub fn extent(&self, text: &str, most_bytes: usize) -> Result<Extent> {
        if self.inner.get_normalizer().is_none() && !self.splits_at_spaces {
            return Ok(Extent { bytes: text.len(), least_tokens: self.least_tokens(text.len()) });
        }
        let (mut seen, mut joints, mut rest) = (Seen::default(), 0, text);
        while !rest.is_empty() && seen.bytes <= most_bytes {
            let (piece, behind) = rest.split_at(rest.floor_char_boundary(PIECE_BYTES));
            self.add(piece, &mut seen)?;
            joints += usize::from(!behind.is_empty());
            rest = behind;
        }
        // A word that two pieces share was counted twice, and an added token that they share as two words, or as its bytes.
        let by_words = seen.words.saturating_sub(2 * joints);
        let by_bytes = self
            .widest_normalised
            .map_or(0, |widest| seen.plain_bytes.saturating_sub(joints * (JOINT_BYTES + widest)) / widest);
        let least_tokens = by_words.max(by_bytes).max(self.least_tokens(text.len()));
        Ok(Extent { bytes: seen.bytes, least_tokens })
    }

    fn add(&self, piece: &str, seen: &mut Seen) -> Result<()> {
        // As the library does it itself: added tokens are found first, and what is between them is normalised.
        let added = self.inner.get_added_vocabulary();
        let steps = self.inner.get_normalizer().map(|steps| Watched { steps, bytes: AtomicUsize::new(0) });
        let normalised = guarded(|| added.extract_and_normalize(steps.as_ref(), piece))
            .map_err(|found| Error::request("text", "a text that the tokenizer takes", found))?;
        let mut bytes = 0;
        for (stretch, _, tokens) in normalised.get_splits(OffsetReferential::Normalized, OffsetType::Byte) {
            bytes += stretch.len();
            // Added tokens are not counted: where a piece ends within one, there may be several in its place.
            if tokens.is_none() {
                seen.plain_bytes += stretch.len();
                seen.words += if self.splits_at_spaces { stretch.split_whitespace().count() } else { 0 };
            }
        }
        let watched = steps.map_or(0, |steps| steps.bytes.into_inner());
        seen.bytes += piece.len().max(bytes).max(watched);
        Ok(())
    }
}

/// What the pieces of a text came to.
#[derive(Default)]
struct Seen {
    /// Where they were longest.
    bytes: usize,
    /// Bytes of what is no added token once it was normalised, and its words where those are counted.
    plain_bytes: usize,
    words: usize,
}

/// A normaliser whose steps are watched: one may make a text long that the next makes short again.
struct Watched<'n> {
    steps: &'n NormalizerWrapper,
    /// Of all stretches, each where it was longest.
    bytes: AtomicUsize,
}

impl Normalizer for Watched<'_> {
    fn normalize(&self, text: &mut NormalizedString) -> tokenizers::Result<()> {
        let mut longest = 0;
        let done = watch(self.steps, text, &mut longest);
        self.bytes.fetch_add(longest, Ordering::Relaxed);
        done
    }
}

fn watch(
    steps: &NormalizerWrapper,
    text: &mut NormalizedString,
    longest: &mut usize,
) -> tokenizers::Result<()> {
    if let NormalizerWrapper::Sequence(list) = steps {
        return list.as_ref().iter().try_for_each(|step| watch(step, text, longest));
    }
    steps.normalize(text)?;
    *longest = text.get().len().max(*longest);
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::samples::*;
    use super::*;

    fn read(bytes: &[u8]) -> Tokenizer {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join("tokenizer.json"), bytes).expect("written");
        Tokenizer::load(dir.path(), None).expect("read").expect("there")
    }

    fn normalising(normalizer: Value) -> Tokenizer {
        read(&of_bytes(|file| file["normalizer"] = normalizer))
    }

    #[test]
    fn a_text_is_as_long_as_normalisers_make_it() {
        let form = |kind: &str| normalising(json!({ "type": kind }));
        let bytes =
            |tokenizer: &Tokenizer, text: &str| tokenizer.extent(text, usize::MAX).expect("measured").bytes;
        let ligatures = "\u{fdfa}".repeat(10_000);
        assert_eq!(bytes(&read(&of_bytes(|_| {})), &ligatures), 30_000);
        assert_eq!(bytes(&form("NFC"), &ligatures), 30_000);
        assert_eq!(bytes(&form("NFKC"), &ligatures), 330_000);
        assert_eq!(bytes(&form("NFD"), &"é".repeat(10_000)), 30_000);
        let hostile = normalising(replace("a", &"b".repeat(255)));
        assert_eq!(bytes(&hostile, &"a".repeat(10_000)), 2_550_000);
        let shorter = sequence(
            "normalizers",
            vec![replace("``", "'"), json!({ "type": "NFKD" }), json!({ "type": "StripAccents" })],
        );
        assert_eq!(bytes(&normalising(shorter), "``é``"), 6);
        // Long on the way alone.
        let and_back = vec![replace("a", &"b".repeat(255)), replace("b", "")];
        let and_back = sequence("normalizers", vec![sequence("normalizers", and_back)]);
        assert_eq!(bytes(&normalising(and_back), &"a".repeat(10_000)), 2_550_000);
    }

    #[test]
    fn what_is_put_before_each_stretch_counts() {
        let added = json!({ "id": 258, "content": "c", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true });
        let tokenizer = read(&of_bytes(|file| {
            file["normalizer"] = json!({ "type": "Prepend", "prepend": "b".repeat(255) });
            file["added_tokens"] = json!([added]);
        }));
        let extent = tokenizer.extent(&"ca".repeat(1000), usize::MAX).expect("measured");
        assert_eq!(extent.bytes, 1000 * (1 + 256));
    }

    #[test]
    fn no_more_is_normalised_than_was_asked_for() {
        let hostile = normalising(replace("a", &"b".repeat(255)));
        let extent = hostile.extent(&"a".repeat(4 << 20), 1 << 20).expect("measured");
        // A piece at most beyond it.
        assert!(((1 << 20) + 1..=(1 << 20) + 255 * PIECE_BYTES).contains(&extent.bytes), "{extent:?}");
    }

    #[test]
    fn words_have_a_token_each() {
        let tokenizer = read(&of_words(|_| {}));
        let texts = [
            "",
            "a",
            " a  b\n",
            "漢字 a,b",
            "a\u{301}",
            "[X]a[X] b",
            &"ab, ".repeat(5000),
            &"漢".repeat(5000),
        ];
        for text in texts {
            let extent = tokenizer.extent(text, usize::MAX).expect("measured");
            let tokens = tokenizer.encode_plain(text).expect("ids").len();
            assert!(extent.least_tokens <= tokens, "{} of {tokens}: {text:.40}", extent.least_tokens);
            // Where there are words and nothing else, nearly all of them.
            let words = text.split_whitespace().count();
            assert!(extent.least_tokens + 2 * (text.len() / PIECE_BYTES) >= words, "{extent:?}: {text:.40}");
        }
        let least = |bytes: &[u8]| read(bytes).extent("a b a", usize::MAX).expect("measured").least_tokens;
        assert_eq!(least(&of_words(|_| {})), 3);
        let kept = |change: fn(&mut Value)| assert_eq!(least(&of_words(change)), 0);
        // One token of several words; no splitting; what is removed.
        kept(|file| file["added_tokens"][0]["content"] = json!("[X] [X]"));
        kept(|file| file["added_tokens"][0]["content"] = json!("漢漢"));
        kept(|file| file["pre_tokenizer"] = json!(null));
        kept(|file| {
            let comments =
                json!({ "type": "Replace", "pattern": { "Regex": "<!--[\\s\\S]*?-->" }, "content": "" });
            file["normalizer"] = sequence("normalizers", vec![comments, file["normalizer"].take()]);
        });
        kept(|file| {
            let removed = json!({ "type": "Split", "pattern": { "String": "a" }, "behavior": "Removed", "invert": false });
            file["pre_tokenizer"] =
                sequence("pretokenizers", vec![json!({ "type": "WhitespaceSplit" }), removed]);
        });
    }

    #[test]
    fn a_text_under_unicodes_forms_has_no_fewer_tokens() {
        // Marks and letters that go into the character before them, added tokens, and what becomes longer.
        let parts = [
            "a",
            " ",
            "ab",
            "e\u{301}",
            "\u{301}\u{323}",
            "\u{1100}",
            "\u{1161}",
            "\u{11a8}",
            "\u{fdfa}",
            "é",
            "<\u{fdfa}>",
            "漢",
        ];
        let added = json!({ "id": 258, "content": "<\u{fdfa}>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true });
        let mut number = 1_u64;
        for form in ["NFC", "NFD", "NFKC", "NFKD"] {
            for (base, normalized) in
                [(of_bytes as fn(_) -> _, false), (of_bytes, true), (with_fallback, true)]
            {
                let added = added.clone();
                let change: Box<dyn FnOnce(&mut Value)> = Box::new(move |file| {
                    file["normalizer"] = json!({ "type": form });
                    let mut token = added;
                    token["normalized"] = json!(normalized);
                    token["id"] = json!(file["model"]["vocab"].as_object().map(|vocab| vocab.len()));
                    file["added_tokens"] = json!([token]);
                });
                let tokenizer = read(&base(change));
                for _ in 0..8 {
                    let text: String = (0..8000)
                        .map(|_| {
                            number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                            parts[(number >> 33) as usize % parts.len()]
                        })
                        .collect();
                    let extent = tokenizer.extent(&text, usize::MAX).expect("measured");
                    let tokens = tokenizer.encode_plain(&text).expect("ids").len();
                    assert!(
                        (text.len() / 64..=tokens).contains(&extent.least_tokens),
                        "{form}: {extent:?} of {tokens}"
                    );
                }
            }
        }
        // What may take a character away says nothing.
        for kind in ["Lowercase", "StripAccents"] {
            let steps = sequence("normalizers", vec![json!({ "type": "NFC" }), json!({ "type": kind })]);
            assert_eq!(normalising(steps).extent("ab", 9).expect("measured").least_tokens, 0, "{kind}");
        }
    }
}
