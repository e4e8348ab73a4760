//! Texts of byte-level vocabularies, put together from their tokens' bytes. The library spells every token of a text out anew, which
//! takes microseconds a token, and an engine decodes one for each sequence and step.

use std::sync::OnceLock;

use tokenizers::{DecoderWrapper, Tokenizer};

/// What each token of a vocabulary says, found when it's first said; nothing of special ones.
pub(super) struct TokenBytes {
    tokens: Vec<OnceLock<Box<[u8]>>>,
}

impl TokenBytes {
    /// Of a vocabulary whose texts are its tokens' bytes one after the other.
    pub fn of(tokenizer: &Tokenizer) -> Option<TokenBytes> {
        let is_bytes = matches!(tokenizer.get_decoder(), Some(DecoderWrapper::ByteLevel(_)));
        is_bytes.then(|| {
            let tokens = std::iter::repeat_with(OnceLock::new).take(tokenizer.get_vocab_size(true)).collect();
            TokenBytes { tokens }
        })
    }

    /// As the tokenizer decodes, special tokens left out; nothing where a token has a number out of the ordinary.
    pub fn decode(&self, tokenizer: &Tokenizer, ids: &[u32]) -> Option<String> {
        let mut bytes = Vec::with_capacity(8 * ids.len());
        for &id in ids {
            let token = self.tokens.get(id as usize)?;
            bytes.extend_from_slice(token.get_or_init(|| bytes_of(tokenizer, id)));
        }
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }
}

fn bytes_of(tokenizer: &Tokenizer, id: u32) -> Box<[u8]> {
    let token = tokenizer.id_to_token(id).unwrap_or_default();
    if tokenizer.get_added_vocabulary().is_special_token(&token) {
        return Box::default();
    }
    let bytes: Option<Vec<u8>> = token.chars().map(byte_of).collect();
    // An added token is spelled as it is.
    bytes.unwrap_or_else(|| token.into_bytes()).into()
}

/// The byte that a character of GPT-2's alphabet stands for: printable ones for themselves, and those from 256 on for the others in
/// their order.
///
/// # Source
/// `bytes_to_unicode` of GPT-2's encoder.
pub(super) fn byte_of(c: char) -> Option<u8> {
    let is_printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    match u8::try_from(c) {
        Ok(byte) => is_printable(&byte).then_some(byte),
        Err(_) => (0..=u8::MAX).filter(|byte| !is_printable(byte)).nth((c as usize).checked_sub(256)?),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn texts_are_those_of_the_tokenizer() {
        // Every letter of the alphabet, a character in two halves, a special token and two that were added, one in letters of the alphabet.
        let alphabet = (0u32..324).filter_map(char::from_u32).filter(|&c| byte_of(c).is_some());
        let mut vocab: Vec<String> = alphabet.map(String::from).collect();
        assert_eq!(vocab.len(), 256);
        vocab.extend(["Ġthe", "âĤ", "¬Ċ", "<eos>", "é€", "Ġx"].map(String::from));
        let numbers: serde_json::Map<String, serde_json::Value> =
            vocab.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
        let added = |id: usize, special: bool| {
            json!({ "id": id, "content": vocab[id], "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": special })
        };
        let file = |decoder| {
            let file = json!({
                "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
                "added_tokens": [added(259, true), added(260, false), added(261, false)], "post_processor": null,
                "decoder": decoder, "model": { "type": "BPE", "vocab": numbers, "merges": [] },
            });
            Tokenizer::from_bytes(file.to_string().into_bytes()).expect("a tokenizer")
        };
        let level =
            json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true });
        let tokenizer = file(level);
        let bytes = TokenBytes::of(&tokenizer).expect("a vocabulary of bytes");
        let mut number = 1usize;
        for len in (0..6).cycle().take(3000) {
            let ids: Vec<u32> = (0..len)
                .map(|_| {
                    number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let number = number >> 33;
                    // The last few often.
                    (if number.is_multiple_of(2) { 256 + number / 2 % 6 } else { number / 2 % 262 }) as u32
                })
                .collect();
            let expected = tokenizer.decode(&ids, true).expect("a text");
            assert_eq!(bytes.decode(&tokenizer, &ids), Some(expected), "{ids:?}");
        }
        assert_eq!(bytes.decode(&tokenizer, &[3, 262]), None);
        assert!(TokenBytes::of(&file(json!(null))).is_none());
    }
}
