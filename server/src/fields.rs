//! The fields of a request's body, each read once and by name.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::error::{ApiError, ApiResult};

/// Characters of a value that an error repeats.
const SHOWN_CHARS: usize = 60;

/// A JSON object's fields. `null` is as good as absent.
pub(crate) struct Fields {
    map: Map<String, Value>,
}

/// A field that may be there only where its value asks for nothing: its name, what is expected, and whether a value is such.
type Refused<'a> = (&'a str, &'a str, fn(&Value) -> bool);

impl Fields {
    /// Reads a body. Its depth is bounded by the parser (128).
    pub fn parse(body: &[u8]) -> ApiResult<Fields> {
        if let Err(error) = std::str::from_utf8(body) {
            return Err(ApiError::invalid(format!("body: expected UTF-8, found {error}")));
        }
        let value: Value = serde_json::from_slice(body).map_err(|error| {
            let near = field_before(body, error.line(), error.column());
            let message = format!("body: expected JSON, found {error}");
            match near {
                Some(name) => {
                    let message = format!("{message}, near field {name}");
                    ApiError { param: Some(name), ..ApiError::invalid(message) }
                }
                None => ApiError::invalid(message),
            }
        })?;
        match value {
            Value::Object(map) => Ok(Fields { map }),
            other => Err(ApiError::invalid(format!("body: expected a JSON object, found {}", shown(&other)))),
        }
    }

    /// The fields of an object within a body.
    pub fn of(map: Map<String, Value>) -> Fields {
        Fields { map }
    }

    /// The field's value, which is then no longer among those unread.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|value| !value.is_null())
    }

    pub fn boolean(&mut self, name: &str) -> ApiResult<Option<bool>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(ApiError::field(name, "true or false", shown(&other))),
        }
    }

    pub fn integer(&mut self, name: &str, range: RangeInclusive<i64>) -> ApiResult<Option<i64>> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let (low, high) = (range.start(), range.end());
        match value.as_i64().filter(|value| range.contains(value)) {
            Some(value) => Ok(Some(value)),
            None if *high == i64::MAX && *low > i64::MIN => {
                Err(ApiError::field(name, format!("an integer of at least {low}"), shown(&value)))
            }
            None => Err(ApiError::field(name, format!("an integer from {low} to {high}"), shown(&value))),
        }
    }

    /// A number within a range; the comparison is false for a NaN, which JSON can't say anyway.
    pub fn number(&mut self, name: &str, range: RangeInclusive<f64>) -> ApiResult<Option<f32>> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.as_f64().filter(|value| range.contains(value)) {
            Some(value) => Ok(Some(value as f32)),
            None => {
                let expected = format!("a number from {} to {}", range.start(), range.end());
                Err(ApiError::field(name, expected, shown(&value)))
            }
        }
    }

    pub fn string(&mut self, name: &str) -> ApiResult<Option<String>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(ApiError::field(name, "a string", shown(&other))),
        }
    }

    /// All that was to be read has been: what is left must be harmless. Of `refused`, each with the one value that changes nothing,
    /// another value is an error, and so is a field that nobody knows: it may be a slip in one that matters.
    pub fn finish(mut self, harmless: &[&str], refused: &[Refused<'_>]) -> ApiResult<()> {
        for (name, expected, changes_nothing) in refused {
            if let Some(value) = self.take(name)
                && !changes_nothing(&value)
            {
                return Err(ApiError::unsupported(name, expected));
            }
        }
        let unknown =
            self.map.iter().find(|(name, value)| !value.is_null() && !harmless.contains(&&name[..]));
        match unknown {
            None => Ok(()),
            Some((name, _)) => {
                let name: String = name.chars().take(SHOWN_CHARS).collect();
                let message = format!("{name}: expected a field of this request, found one that isn't known");
                let error = ApiError { param: Some(name), ..ApiError::invalid(message) };
                Err(error.with_code("unknown_parameter"))
            }
        }
    }
}

/// A value as an error repeats it: its beginning.
pub(crate) fn shown(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("an array of {}", items.len()),
        Value::Object(fields) => format!("an object of {} fields", fields.len()),
        Value::String(text) => {
            let beginning: String = text.chars().take(SHOWN_CHARS).collect();
            format!("{beginning:?}")
        }
        other => other.to_string(),
    }
}

/// The last name of a field before a place in JSON that doesn't parse.
fn field_before(body: &[u8], line: usize, column: usize) -> Option<String> {
    let start: usize =
        body.split_inclusive(|&byte| byte == b'\n').take(line.checked_sub(1)?).map(<[u8]>::len).sum();
    let before = body.get(..(start + column).min(body.len()))?;
    // From behind: a colon, a quote, and the quote before it.
    let from = before.len().saturating_sub(4096);
    let window = &before[from..];
    let colon = window.iter().rposition(|&byte| byte == b':')?;
    let end = window[..colon]
        .iter()
        .rposition(|byte| !byte.is_ascii_whitespace())
        .filter(|&at| window[at] == b'"')?;
    let begin = window[..end].iter().rposition(|&byte| byte == b'"')?;
    let name = std::str::from_utf8(&window[begin + 1..end]).ok()?;
    (!name.is_empty() && name.len() <= SHOWN_CHARS).then(|| name.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(body: &str) -> ApiError {
        Fields::parse(body.as_bytes()).err().expect("a refusal")
    }

    #[test]
    fn what_does_not_parse_names_the_field_it_is_in() {
        assert_eq!(refusal(r#"{"temperature": NaN}"#).param.as_deref(), Some("temperature"));
        assert_eq!(refusal("{\"a\": 1,\n \"top_p\": 1e999}").param.as_deref(), Some("top_p"));
        assert_eq!(refusal("{").param, None);
        assert_eq!(refusal("[1]").message, "body: expected a JSON object, found an array of 1");
        let deep = format!("{{\"messages\": {}", "[".repeat(100_000));
        assert!(refusal(&deep).message.contains("recursion limit"), "{}", refusal(&deep).message);
    }

    #[test]
    fn values_are_held_to_type_and_range() {
        let body = r#"{"n": 5, "t": 2.5, "b": 1, "s": [1, 2], "i": 1.5, "x": null, "u": 1, "h": {}}"#;
        let mut fields = Fields::parse(body.as_bytes()).expect("fields");
        let message = |error: ApiError| error.message;
        assert_eq!(
            fields.integer("n", 1..=4).map_err(message),
            Err("n: expected an integer from 1 to 4, found 5".into())
        );
        assert_eq!(
            fields.number("t", 0.0..=2.0).map_err(message),
            Err("t: expected a number from 0 to 2, found 2.5".into())
        );
        assert_eq!(fields.boolean("b").map_err(message), Err("b: expected true or false, found 1".into()));
        assert_eq!(
            fields.string("s").map_err(message),
            Err("s: expected a string, found an array of 2".into())
        );
        assert!(fields.integer("i", 0..=9).is_err());
        assert_eq!(fields.integer("x", 0..=9), Ok(None));
        let error = fields.finish(&["h"], &[]).expect_err("an unknown field");
        assert_eq!((error.param.as_deref(), error.code), (Some("u"), Some("unknown_parameter")));
    }

    #[test]
    fn refused_fields_may_say_what_changes_nothing() {
        let check = |body: &str| {
            let fields = Fields::parse(body.as_bytes()).expect("fields");
            fields.finish(&[], &[("store", "false", |value| value == &Value::Bool(false))])
        };
        assert_eq!(check(r#"{"store": false}"#), Ok(()));
        assert_eq!(check(r#"{"store": null}"#), Ok(()));
        assert_eq!(check(r#"{"store": true}"#).expect_err("a refusal").code, Some("unsupported_parameter"));
    }
}
