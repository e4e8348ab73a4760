//! How much of a text one token can stand for, so that a text that can't fit is told from its length.

use tokenizers::{Model, ModelWrapper, NormalizedString, Normalizer, Tokenizer};

use super::bytes::byte_of;
use super::trust::{guarded, steps};

/// Behind the last character of the byte-level alphabet.
const ALPHABET_END: u32 = 324;

/// Bytes of a text that a token stands for at most; nothing where tokens may stand for more than they spell, or parts of a text for nothing:
/// where the normaliser doesn't keep all that it is given or make it longer (`Steps::keep_all`), or [`widest_of_normalised`] says so.
pub(super) fn widest_token(tokenizer: &Tokenizer) -> Option<usize> {
    let keeps_all = steps(tokenizer.get_normalizer()).keep_all();
    widest_of_normalised(tokenizer).filter(|_| keeps_all)
}

/// As [`widest_token`], of a text under no more than Unicode's forms.
pub(super) fn widest_under_forms(tokenizer: &Tokenizer) -> Option<usize> {
    let are_forms = steps(tokenizer.get_normalizer()).are_forms();
    widest_of_normalised(tokenizer).filter(|_| are_forms)
}

/// Bytes of a normalised text that a token stands for at most.
///
/// Each byte of a text is in a token, and a token covers no more than its own length, where all of these hold:
/// - pre-tokenizers keep what they are given or make it longer: nothing stripped, no white space removed;
/// - no added token takes the white space beside it along;
/// - the model is of byte pairs, and takes every byte: byte-level over the whole alphabet, or with a token for each byte to fall back to.
///   Others have a token for what they don't know, however long;
/// - what is put round a text holds the text, which `trust` makes sure of.
fn widest_of_normalised(tokenizer: &Tokenizer) -> Option<usize> {
    let pre_tokenizer = steps(tokenizer.get_pre_tokenizer());
    if !pre_tokenizer.keep_all() {
        return None;
    }
    let ModelWrapper::BPE(model) = tokenizer.get_model() else { return None };
    if model.continuing_subword_prefix.is_some() || model.end_of_word_suffix.is_some() {
        return None;
    }
    let has = |token: &str| tokenizer.get_model().token_to_id(token).is_some();
    // Of the alphabet, a character is a byte.
    let is_bytes = pre_tokenizer.has("ByteLevel");
    let takes_all = match is_bytes {
        true => {
            let mut alphabet = (0..ALPHABET_END).filter_map(char::from_u32).filter(|&c| byte_of(c).is_some());
            alphabet.all(|c| has(c.encode_utf8(&mut [0; 4])))
        }
        false => model.byte_fallback && (0..=u8::MAX).all(|byte| has(&format!("<0x{byte:02X}>"))),
    };
    if !takes_all {
        return None;
    }
    let mut widest = 1;
    for token in tokenizer.get_model().get_vocab().keys() {
        widest = widest.max(if is_bytes { token.chars().count() } else { token.len() });
    }
    for (&id, added) in tokenizer.get_added_vocabulary().get_added_tokens_decoder() {
        if added.lstrip || added.rstrip {
            return None;
        }
        // Found as it is, or as it's normalised; or cut in two by who looks at pieces, and normalised then.
        let spelled = tokenizer.id_to_token(id).map_or(0, |token| token.len());
        let normalised = normalised(tokenizer, &added.content)?.len();
        widest = widest.max(added.content.len()).max(spelled).max(normalised);
    }
    Some(widest)
}

/// Whether each word of a normalised text has a token at least, words being what is between white space:
/// - pre-tokenizers split there, and remove nothing else;
/// - the normaliser replaces nothing: what spans two pieces of a text isn't seen in either;
/// - the model has a token for every word, be it the unknown one;
/// - no added token is several words.
pub(super) fn splits_at_spaces(tokenizer: &Tokenizer) -> bool {
    let is_one_word = |content: &str| {
        normalised(tokenizer, content).is_some_and(|content| content.split_whitespace().count() <= 1)
    };
    matches!(tokenizer.get_model(), ModelWrapper::WordPiece(_) | ModelWrapper::WordLevel(_))
        && steps(tokenizer.get_pre_tokenizer()).split_at_spaces()
        && !steps(tokenizer.get_normalizer()).has("Replace")
        && tokenizer.get_added_tokens_decoder().values().all(|added| is_one_word(&added.content))
}

/// A text as the normaliser leaves it; nothing where it can't.
fn normalised(tokenizer: &Tokenizer, text: &str) -> Option<String> {
    let mut text = NormalizedString::from(text);
    let normalise = || tokenizer.get_normalizer().map(|normalizer| normalizer.normalize(&mut text));
    let done = guarded(normalise).ok()?;
    done.is_none_or(|done| done.is_ok()).then(|| text.get().to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::samples::*;
    use super::*;

    #[test]
    fn a_token_is_no_wider_than_said() {
        let files = [
            (of_bytes(|_| {}), Some(3)),
            (
                of_bytes(|file| {
                    file["pre_tokenizer"] = sequence("pretokenizers", vec![split("b+"), byte_level()])
                }),
                Some(3),
            ),
            (with_fallback(|_| {}), Some(6)),
            (with_fallback(|file| file["normalizer"] = json!(null)), Some(6)),
        ];
        for (bytes, expected) in files {
            let tokenizer = outcome(&bytes).expect("a tokenizer");
            let widest = widest_token(&tokenizer);
            assert_eq!(widest, expected);
            let letters = ['a', 'b', ' ', '\n', 'é', '▁', '漢', '😀', '\u{301}', '\0', '"', 'Ġ'];
            let mut number = 1_u64;
            for length in 0..2000 {
                let text: String = (0..length % 40)
                    .map(|_| {
                        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        // "ab" often.
                        if number >> 62 == 0 {
                            letters[(number >> 33) as usize % letters.len()]
                        } else {
                            [' ', 'a', 'b'][(number >> 33) as usize % 3]
                        }
                    })
                    .collect();
                let tokens = tokenizer.encode(text.as_str(), true).expect("ids").len();
                assert!(tokens * widest.expect("a width") >= text.len(), "{tokens} tokens of {text:?}");
            }
        }
    }

    #[test]
    fn where_texts_may_shrink_nothing_is_said() {
        let added = |side: &str| {
            let mut token = json!({ "id": 258, "content": "<m>", "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true });
            token[side] = json!(true);
            json!([token])
        };
        let removing =
            json!({ "type": "Split", "pattern": { "String": "a" }, "behavior": "Removed", "invert": false });
        let files = [
            tokenizer(|_| {}),
            of_bytes(|file| file["normalizer"] = json!({ "type": "NFC" })),
            of_bytes(|file| {
                file["normalizer"] = json!({ "type": "Strip", "strip_left": true, "strip_right": false })
            }),
            of_bytes(|file| file["normalizer"] = replace("aa", "a")),
            of_bytes(|file| {
                file["normalizer"] =
                    json!({ "type": "Replace", "pattern": { "Regex": "a+" }, "content": "a" })
            }),
            of_bytes(|file| file["pre_tokenizer"] = sequence("pretokenizers", vec![removing, byte_level()])),
            of_bytes(|file| {
                let whitespace = json!({ "type": "WhitespaceSplit" });
                file["pre_tokenizer"] = sequence("pretokenizers", vec![whitespace, byte_level()]);
            }),
            of_bytes(|file| file["model"]["end_of_word_suffix"] = json!("</w>")),
            of_bytes(|file| file["added_tokens"] = added("lstrip")),
            of_bytes(|file| file["added_tokens"] = added("rstrip")),
            of_bytes(|file| {
                // A letter of the alphabet is missing, and what it stands for goes for nothing.
                file["model"]["vocab"].as_object_mut().expect("a vocabulary").remove("Ā");
            }),
            with_fallback(|file| {
                file["model"]["vocab"].as_object_mut().expect("a vocabulary").remove("<0xFF>");
            }),
            with_fallback(|file| file["model"]["byte_fallback"] = json!(false)),
        ];
        for (index, bytes) in files.iter().enumerate() {
            let tokenizer = outcome(bytes).unwrap_or_else(|refusal| panic!("{index}: {refusal}"));
            assert_eq!(widest_token(&tokenizer), None, "{index}");
        }
        let wide = of_bytes(|file| {
            let token = json!({ "id": 258, "content": "<a token that was added>", "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true });
            file["added_tokens"] = json!([token]);
        });
        let tokenizer = outcome(&wide).expect("a tokenizer");
        assert_eq!(widest_token(&tokenizer), Some(24));
    }
}
