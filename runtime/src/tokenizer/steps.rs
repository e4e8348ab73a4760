//! What the steps of a `tokenizer.json` do to the length of a text.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

/// Steps of a list, those of lists within it among them.
const MAX_STEPS: usize = 64;
/// How many times longer the steps of a list may make a text, all together.
pub(super) const MAX_GROWTH: usize = 256;
/// The same of pre-tokenizers: those of one kind of vocabulary, and not of two, one upon the other. What they leave of a text isn't measured
/// beforehand as normalised texts are, and takes hundreds of bytes of memory a byte.
pub(super) const MAX_SPLIT_GROWTH: usize = 5;
/// Bytes of a text that a normaliser replaces: what is longer isn't seen in a piece of a text ([`super::extent`]).
const MAX_PATTERN_BYTES: usize = 256;
/// Bytes that it puts where an expression matches, which may look at more of a text than a piece.
const MAX_BY_EXPRESSION: usize = 16;
/// Tokens that are put round a text.
const MAX_AROUND: usize = 64;
/// Steps that real tokenizers have once in a list.
const ONCE: [&str; 4] = ["ByteLevel", "Metaspace", "Precompiled", "TemplateProcessing"];

/// What was expected of a list of steps, and what was found.
pub(super) type Refusal = (String, String);

/// A part's steps, in their order, as the library writes what it read: each has its true `type`, whatever the file called it.
#[derive(Debug, Default)]
pub(super) struct Steps(Vec<Map<String, Value>>);

impl Steps {
    /// Of one part: a step, or a `Sequence` of such.
    pub fn of(part: Value) -> Steps {
        let mut steps = Steps::default();
        steps.add(part);
        steps
    }

    fn add(&mut self, part: Value) {
        let Value::Object(mut fields) = part else { return };
        if kind(&fields) != "Sequence" {
            return self.0.push(fields);
        }
        for list in ["normalizers", "pretokenizers", "processors", "decoders"] {
            if let Some(Value::Array(parts)) = fields.remove(list) {
                parts.into_iter().for_each(|part| self.add(part));
            }
        }
    }

    /// Whether there's a step of a kind.
    pub fn has(&self, wanted: &str) -> bool {
        self.0.iter().any(|step| kind(step) == wanted)
    }

    /// Whether no step makes a text shorter, or may: what isn't known here may.
    pub fn keep_all(&self) -> bool {
        self.0.iter().all(|step| match kind(step) {
            "ByteLevel" | "Prepend" | "Metaspace" | "Digits" => true,
            "Split" | "Punctuation" => text(step, "behavior").is_some_and(|behavior| behavior != "Removed"),
            "Replace" => {
                replaced_bytes(step).is_some_and(|bytes| (1..=length(step, "content")).contains(&bytes))
            }
            _ => false,
        })
    }

    /// Whether they are Unicode's forms and nothing else.
    pub fn are_forms(&self) -> bool {
        self.0.iter().all(|step| matches!(kind(step), "NFC" | "NFD" | "NFKC" | "NFKD"))
    }

    /// Whether they split a text at white space, and do nothing that could take a word away.
    pub fn split_at_spaces(&self) -> bool {
        let at_spaces = ["BertPreTokenizer", "Whitespace", "WhitespaceSplit"];
        !self.0.is_empty() && self.0.iter().all(|step| at_spaces.contains(&kind(step)))
    }

    /// How many times longer they make a text at most.
    pub fn growth(&self) -> usize {
        self.0.iter().map(growth).fold(1, usize::saturating_mul)
    }

    /// Refuses lists that could make a text more than `most_growth` times longer, or the work on it grow without end.
    pub fn check(&self, most_growth: usize) -> Result<(), Refusal> {
        if self.0.len() > MAX_STEPS {
            return Err((format!("at most {MAX_STEPS} steps"), self.0.len().to_string()));
        }
        for once in ONCE {
            let count = self.0.iter().filter(|step| kind(step) == once).count();
            if count > 1 {
                return Err((format!("{once} once at most"), format!("{count} of them")));
            }
        }
        let growth = self.growth();
        if growth > most_growth {
            let expected = format!("steps that make a text at most {most_growth} times longer");
            return Err((expected, format!("{growth} times")));
        }
        Ok(())
    }

    /// Of a normaliser's steps: refuses replacements that could make a whole text much longer than its pieces.
    pub fn check_replacements(&self) -> Result<(), Refusal> {
        for step in self.0.iter().filter(|step| kind(step) == "Replace") {
            let (most, what, found) = match replaced_bytes(step) {
                Some(bytes) => (MAX_PATTERN_BYTES, "to replace", bytes),
                None => (MAX_BY_EXPRESSION, "where an expression matches", length(step, "content")),
            };
            if found > most {
                return Err((format!("at most {most} bytes {what}"), found.to_string()));
            }
        }
        Ok(())
    }

    /// Of steps that put tokens round a text: refuses those that tell it more than once or not at all, or put many round it.
    /// Returns the tokens.
    pub fn around(&self) -> Result<Vec<u64>, Refusal> {
        let mut ids = Vec::new();
        for step in &self.0 {
            let numbers =
                |value: &Value| value.as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
            for end in ["cls", "sep"] {
                ids.extend(step.get(end).map_or(Vec::new(), numbers));
            }
            let Some(pieces) = step.get("single").and_then(Value::as_array) else { continue };
            let told = pieces.iter().filter(|piece| piece["Sequence"]["id"] == "A").count();
            let others = pieces.iter().filter(|piece| piece["Sequence"]["id"] == "B").count();
            if (told, others) != (1, 0) {
                return Err((
                    "the text once".into(),
                    format!("it {told} times, a second text {others} times"),
                ));
            }
            for piece in pieces {
                let name = piece["SpecialToken"]["id"].as_str().unwrap_or_default();
                ids.extend(numbers(&step["special_tokens"][name]["ids"]));
            }
        }
        if ids.len() > MAX_AROUND {
            return Err((format!("at most {MAX_AROUND} tokens round a text"), ids.len().to_string()));
        }
        Ok(ids)
    }
}

fn kind(step: &Map<String, Value>) -> &str {
    text(step, "type").unwrap_or_default()
}

fn text<'s>(step: &'s Map<String, Value>, field: &str) -> Option<&'s str> {
    step.get(field)?.as_str()
}

fn length(step: &Map<String, Value>, field: &str) -> usize {
    text(step, field).map_or(0, str::len)
}

/// Bytes that a replacement stands for; nothing where that is an expression's to say.
fn replaced_bytes(step: &Map<String, Value>) -> Option<usize> {
    Some(step.get("pattern")?.get("String")?.as_str()?.len())
}

/// How many times longer a step makes a text at most, or a list of tokens.
///
/// The forms of Unicode change a text once and then no more; the longest, NFKC's of U+FDFA, is eleven times as long. They count as one here.
fn growth(step: &Map<String, Value>) -> usize {
    match kind(step) {
        // An expression may match nothing, between any two bytes; so does an empty text.
        "Replace" => match replaced_bytes(step) {
            None | Some(0) => 1 + length(step, "content"),
            Some(bytes) => length(step, "content").div_ceil(bytes).max(1),
        },
        // To each stretch between two added tokens.
        "Prepend" => 1 + length(step, "prepend"),
        // A byte becomes a character of two, with another before it.
        "ByteLevel" => 4,
        // A character of four bytes for a space, or before a byte.
        "Metaspace" => 5,
        "Precompiled" => longest_replacement(step),
        // Spaces round a character of three bytes; one before each token.
        "BertNormalizer" | "WordPiece" => 2,
        // An end that is empty is found round every character.
        "BPEDecoder" if length(step, "suffix") == 0 => 3,
        "CTC" if length(step, "word_delimiter_token") == 0 => 3,
        _ => 1,
    }
}

/// The longest of SentencePiece's rules, which may replace a single byte: behind a table of a length that is told first, texts that each
/// end in a zero.
fn longest_replacement(step: &Map<String, Value>) -> usize {
    let rules = STANDARD.decode(text(step, "precompiled_charsmap").unwrap_or_default()).unwrap_or_default();
    let table_bytes = rules.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes) as usize);
    let texts = rules.get(4 + table_bytes / 4 * 4..).unwrap_or_default();
    texts.split(|&byte| byte == 0).map(<[u8]>::len).max().unwrap_or(0).max(1)
}
