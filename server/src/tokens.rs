//! What one token is called: its bytes, and a text for them.

use tilewright::tokenizer::Tokenizer;

/// SentencePiece's mark for a space.
const SPACE_MARK: char = '\u{2581}';
/// Where byte-level vocabularies put the bytes that aren't printable.
const SHIFTED: u32 = 0x100;

/// How a vocabulary spells its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spelling {
    /// A character a byte.
    ByteLevel,
    /// Text, with a mark for spaces and `<0xHH>` for single bytes.
    Marked,
}

impl Spelling {
    /// That of a tokenizer: byte-level ones spell a space as the character U+0120.
    pub fn of(tokenizer: &Tokenizer) -> Spelling {
        let ids = tokenizer.encode_plain("a a").unwrap_or_default();
        let spelled: String = ids.iter().filter_map(|&id| tokenizer.spelling(id)).collect();
        if spelled.contains('\u{120}') { Spelling::ByteLevel } else { Spelling::Marked }
    }

    /// The bytes of a token.
    pub fn bytes(self, spelled: &str) -> Vec<u8> {
        match self {
            Spelling::ByteLevel => spelled
                .chars()
                .map(byte_of)
                .collect::<Option<Vec<u8>>>()
                // Tokens that were added are spelled as they are.
                .unwrap_or_else(|| spelled.as_bytes().to_vec()),
            Spelling::Marked => {
                let hex = spelled.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
                match hex.filter(|hex| hex.len() == 2).and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                    Some(byte) => vec![byte],
                    None => spelled.replace(SPACE_MARK, " ").into_bytes(),
                }
            }
        }
    }
}

/// A token's bytes and the text that stands for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TokenText {
    pub text: String,
    pub bytes: Vec<u8>,
    /// Answers and echoes leave it out.
    pub is_special: bool,
}

impl TokenText {
    /// Characters that it adds to an answer's text. Bytes that are part of a character count with the one that begins it.
    pub fn shown_chars(&self) -> usize {
        if self.is_special { 0 } else { self.bytes.iter().filter(|&&byte| byte & 0xc0 != 0x80).count() }
    }
}

/// What a token is called: its text, or `bytes:\xHH...` where its bytes are part of a character. Without a tokenizer, its number.
pub(crate) fn token_text(tokenizer: Option<(&Tokenizer, Spelling)>, id: u32) -> TokenText {
    let spelled = tokenizer.and_then(|(tokenizer, spelling)| {
        Some((tokenizer.spelling(id)?, spelling, tokenizer.is_special(id)))
    });
    let Some((spelled, spelling, is_special)) = spelled else {
        let text = format!("token:{id}");
        return TokenText { bytes: text.clone().into_bytes(), text, is_special: false };
    };
    let bytes = spelling.bytes(&spelled);
    let text = match std::str::from_utf8(&bytes) {
        Ok(text) => text.to_string(),
        Err(_) => bytes.iter().fold("bytes:".to_string(), |text, byte| text + &format!("\\x{byte:02x}")),
    };
    TokenText { text, bytes, is_special }
}

/// The byte that a character of a byte-level vocabulary stands for.
///
/// # Source
/// Radford et al., "Language Models are Unsupervised Multitask Learners", 2019: printable bytes of Latin-1 stand for themselves, the
/// others, in order, for the characters from U+0100 on.
fn byte_of(character: char) -> Option<u8> {
    let printable = |code: u32| matches!(code, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let code = character as u32;
    if printable(code) {
        return u8::try_from(code).ok();
    }
    let mut shifted = (0..=0xff).filter(|&code| !printable(code));
    shifted.nth(code.checked_sub(SHIFTED)? as usize).and_then(|code| u8::try_from(code).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_one_character() {
        let characters: Vec<char> =
            (0..0x200).filter_map(char::from_u32).filter(|&c| byte_of(c).is_some()).collect();
        let mut bytes: Vec<u8> = characters.iter().filter_map(|&c| byte_of(c)).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!(byte_of('\u{120}'), Some(b' '));
        assert_eq!(byte_of('\u{10a}'), Some(b'\n'));
    }

    #[test]
    fn spellings_become_bytes() {
        assert_eq!(Spelling::ByteLevel.bytes("\u{120}fn"), b" fn");
        assert_eq!(Spelling::ByteLevel.bytes("\u{e2}\u{124}"), [0xe2, 0x82]);
        assert_eq!(Spelling::ByteLevel.bytes("a b"), b"a b");
        assert_eq!(Spelling::Marked.bytes("\u{2581}fn"), b" fn");
        assert_eq!(Spelling::Marked.bytes("<0xE2>"), [0xe2]);
        assert_eq!(Spelling::Marked.bytes("<0xE2"), b"<0xE2");
    }
}
