//! What a text becomes before it is made into tokens: normalisers may make it many times longer.

use tokenizers::{OffsetReferential, OffsetType};

use super::Tokenizer;
use super::trust::guarded;
use crate::{Error, Result};

/// Bytes of a text that are normalised at a time: what they become at worst, 256 times as long, is a megabyte, with its offsets some 20.
const PIECE_BYTES: usize = 4096;

/// A text as the tokenizer's normaliser leaves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Extent {
    /// Its bytes, but for what is another where two pieces meet.
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
            return Ok(Extent { bytes: text.len(), least_tokens: 0 });
        }
        let mut extent = Extent::default();
        let mut rest = text;
        while !rest.is_empty() && extent.bytes <= most_bytes {
            let (piece, behind) = rest.split_at(rest.floor_char_boundary(PIECE_BYTES));
            self.add(piece, &mut extent)?;
            // A word that two pieces share was counted twice.
            let shared = usize::from(!behind.is_empty());
            extent.least_tokens = extent.least_tokens.saturating_sub(shared);
            rest = behind;
        }
        Ok(extent)
    }

    fn add(&self, piece: &str, extent: &mut Extent) -> Result<()> {
        // As the library does it itself: added tokens are found first, and what is between them is normalised.
        let (added, normalizer) = (self.inner.get_added_vocabulary(), self.inner.get_normalizer());
        let normalised = guarded(|| added.extract_and_normalize(normalizer, piece))
            .map_err(|found| Error::request("text", "a text that the tokenizer takes", found))?;
        for (stretch, _, tokens) in normalised.get_splits(OffsetReferential::Normalized, OffsetType::Byte) {
            extent.bytes += stretch.len();
            extent.least_tokens += match tokens {
                Some(tokens) => tokens.len(),
                None if self.splits_at_spaces => stretch.split_whitespace().count(),
                None => 0,
            };
        }
        Ok(())
    }
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
        assert_eq!(bytes(&normalising(shorter), "``é``"), 3);
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
        assert_eq!(extent.least_tokens, 1000);
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
            assert!(extent.least_tokens + text.len() / PIECE_BYTES >= words, "{extent:?}: {text:.40}");
        }
        let least = |bytes: &[u8]| read(bytes).extent("a b a", usize::MAX).expect("measured").least_tokens;
        assert_eq!(least(&of_words(|_| {})), 3);
        let kept = |change: fn(&mut Value)| assert_eq!(least(&of_words(change)), 0);
        // One token of several words; no splitting; what is removed.
        kept(|file| file["added_tokens"][0]["content"] = json!("[X] [X]"));
        kept(|file| file["added_tokens"][0]["content"] = json!("漢漢"));
        kept(|file| file["pre_tokenizer"] = json!(null));
        kept(|file| {
            let removed = json!({ "type": "Split", "pattern": { "String": "a" }, "behavior": "Removed", "invert": false });
            file["pre_tokenizer"] =
                sequence("pretokenizers", vec![json!({ "type": "WhitespaceSplit" }), removed]);
        });
        assert_eq!(least(&of_bytes(|file| file["normalizer"] = json!({ "type": "NFC" }))), 0);
    }
}
