use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::checkpoint::read_file;
use crate::{Error, Result};

/// Sizes above this are taken for damage: no product of two of them overflows 64 bits.
const MAX_SIZE: u64 = (1 << 31) - 1;

/// A JSON object of a file, read field by field so that each complaint names file and field.
pub(super) struct Fields {
    path: PathBuf,
    prefix: String,
    map: Map<String, Value>,
}

impl Fields {
    pub fn read(path: &Path) -> Result<Fields> {
        Fields::of(path, &read_file(path)?)
    }

    /// The fields of JSON that errors say is in `path`.
    pub fn of(path: &Path, json: &[u8]) -> Result<Fields> {
        match serde_json::from_slice(json) {
            Ok(Value::Object(map)) => Ok(Fields { path: path.to_path_buf(), prefix: String::new(), map }),
            Ok(_) => Err(Error::file(path, "contents", "a JSON object", "another JSON value")),
            Err(error) => Err(Error::file(path, "contents", "JSON", error)),
        }
    }

    /// The value of a field that is there and not null.
    pub fn get(&self, field: &str) -> Option<&Value> {
        self.map.get(field).filter(|value| !value.is_null())
    }

    /// Whether a field is there, be it null.
    pub fn says(&self, field: &str) -> bool {
        self.map.contains_key(field)
    }

    /// The names of all fields.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.map.keys()
    }

    /// A nested object.
    pub fn object(&self, field: &str) -> Result<Option<Fields>> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields {
                path: self.path.clone(),
                prefix: format!("{}{field}.", self.prefix),
                map: map.clone(),
            })),
            Some(_) => Err(self.wrong(field, "an object")),
        }
    }

    /// A count of at least 1.
    pub fn size(&self, field: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        match value.as_u64() {
            Some(size) if (1..=MAX_SIZE).contains(&size) => Ok(Some(size as usize)),
            _ => Err(self.wrong(field, &format!("an integer from 1 to {MAX_SIZE}"))),
        }
    }

    pub fn required_size(&self, field: &str) -> Result<usize> {
        self.size(field)?.ok_or_else(|| self.wrong(field, "an integer"))
    }

    /// A finite number above 0.
    pub fn positive(&self, field: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if number.is_finite() && number > 0.0 => Ok(Some(number)),
            _ => Err(self.wrong(field, "a number above 0")),
        }
    }

    pub fn required_positive(&self, field: &str) -> Result<f64> {
        self.positive(field)?.ok_or_else(|| self.wrong(field, "a number above 0"))
    }

    pub fn flag(&self, field: &str) -> Result<Option<bool>> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.wrong(field, "true or false")),
        }
    }

    pub fn text(&self, field: &str) -> Result<Option<&str>> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(field, "a string")),
        }
    }

    /// One token id or a list of them.
    pub fn token_ids(&self, field: &str) -> Result<Vec<u32>> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        match self.get(field) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => list
                .iter()
                .map(|value| id(value).ok_or_else(|| self.wrong(field, "a token id or a list of them")))
                .collect(),
            Some(value) => match id(value) {
                Some(id) => Ok(vec![id]),
                None => Err(self.wrong(field, "a token id or a list of them")),
            },
        }
    }

    /// The error that `field` isn't `expected`.
    pub fn wrong(&self, field: &str, expected: &str) -> Error {
        let mut found = match self.map.get(field) {
            None => "nothing".to_string(),
            Some(value) => value.to_string(),
        };
        if let Some((at, _)) = found.char_indices().nth(80) {
            found.truncate(at);
            found.push('…');
        }
        Error::Field {
            path: self.path.clone(),
            field: format!("{}{field}", self.prefix),
            expected: expected.to_string(),
            found,
        }
    }
}
