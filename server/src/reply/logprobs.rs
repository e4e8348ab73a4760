//! The two forms that the API tells of probabilities in.

use serde_json::{Map, Value, json};
use tilewright::Logprobs;

use crate::tokens::TokenText;

/// What stands for minus infinity, which JSON can't say.
const LEAST: f32 = -9999.0;

/// A token and what the model thought of it; nothing of a prompt's first.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Judged {
    pub id: u32,
    pub logprobs: Option<Logprobs>,
}

impl Judged {
    pub fn of(id: u32, logprobs: Logprobs) -> Judged {
        Judged { id, logprobs: Some(logprobs) }
    }
}

fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { LEAST }
}

/// `{"content": [{token, logprob, bytes, top_logprobs}], "refusal": null}`.
pub(super) fn chat_logprobs(judged: &[Judged], text: &dyn Fn(u32) -> TokenText) -> Value {
    let entry = |id: u32, logprob: f32| {
        let token = text(id);
        json!({ "token": token.text, "logprob": finite(logprob), "bytes": token.bytes })
    };
    let content: Vec<Value> = judged
        .iter()
        .filter_map(|token| {
            let logprobs = token.logprobs.as_ref()?;
            let mut told = entry(token.id, logprobs.chosen);
            let top: Vec<Value> = logprobs.top.iter().map(|&(id, logprob)| entry(id, logprob)).collect();
            told["top_logprobs"] = Value::Array(top);
            Some(told)
        })
        .collect();
    json!({ "content": content, "refusal": null })
}

/// `{tokens, token_logprobs, top_logprobs, text_offset}`; the token itself is among the likeliest told of. Of tokens with the same text
/// the likelier one is told.
pub(super) fn completion_logprobs(
    judged: &[Judged],
    text: &dyn Fn(u32) -> TokenText,
    offset: usize,
) -> Value {
    let mut at = offset;
    let (mut tokens, mut chosen, mut tops, mut offsets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for token in judged {
        let called = text(token.id);
        offsets.push(at);
        at += called.shown_chars();
        match &token.logprobs {
            None => {
                chosen.push(Value::Null);
                tops.push(Value::Null);
            }
            Some(logprobs) => {
                chosen.push(json!(finite(logprobs.chosen)));
                let mut top = Map::new();
                for &(id, logprob) in &logprobs.top {
                    top.entry(text(id).text).or_insert_with(|| json!(finite(logprob)));
                }
                top.entry(called.text.clone()).or_insert_with(|| json!(finite(logprobs.chosen)));
                tops.push(Value::Object(top));
            }
        }
        tokens.push(called.text);
    }
    json!({ "tokens": tokens, "token_logprobs": chosen, "top_logprobs": tops, "text_offset": offsets })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(id: u32) -> TokenText {
        let text = ["a", "é", "a", "<end>"][id as usize].to_string();
        TokenText { bytes: text.clone().into_bytes(), text, is_special: id == 3 }
    }

    #[test]
    fn offsets_are_those_of_the_text_without_special_tokens() {
        let judged = [3, 0, 3, 1].map(|id| Judged { id, logprobs: None });
        let told = completion_logprobs(&judged, &text, 0);
        assert_eq!(told["tokens"], json!(["<end>", "a", "<end>", "é"]));
        assert_eq!(told["text_offset"], json!([0, 0, 1, 1]));
    }

    #[test]
    fn both_forms_tell_the_same() {
        let logprobs = Logprobs { chosen: -1.5, top: vec![(0, -0.5), (2, f32::NEG_INFINITY)] };
        let judged = [Judged { id: 1, logprobs: None }, Judged::of(1, logprobs)];
        assert_eq!(
            completion_logprobs(&judged, &text, 3),
            json!({
                "tokens": ["é", "é"],
                "token_logprobs": [null, -1.5],
                "top_logprobs": [null, { "a": -0.5, "é": -1.5 }],
                "text_offset": [3, 4],
            })
        );
        assert_eq!(
            chat_logprobs(&judged, &text),
            json!({
                "content": [{
                    "token": "é",
                    "logprob": -1.5,
                    "bytes": [195, 169],
                    "top_logprobs": [
                        { "token": "a", "logprob": -0.5, "bytes": [97] },
                        { "token": "a", "logprob": -9999.0, "bytes": [97] },
                    ],
                }],
                "refusal": null,
            })
        );
    }
}
