use std::collections::BTreeMap;
use std::path::Path;

use safetensors::{Dtype, SafeTensorError};
use serde::Deserialize;
use serde_json::Value;

use crate::Error;

/// What a header says of one tensor.
#[derive(Deserialize)]
struct Info {
    dtype: Dtype,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// Why a file's header was refused: the first tensor of which it says what can't be, or else the file.
pub(super) fn refusal(path: &Path, bytes: &[u8], error: &SafeTensorError) -> Error {
    at_fault(path, bytes).unwrap_or_else(|| {
        let expected = "a whole safetensors file (is it truncated?)";
        Error::file(path, "contents", expected, format!("{error} in {} bytes", bytes.len()))
    })
}

/// The refusal of the first tensor, in the order of their bytes, that contradicts its own dtype and shape or the tensor before it.
fn at_fault(path: &Path, bytes: &[u8]) -> Option<Error> {
    let (len, rest) = bytes.split_first_chunk::<8>()?;
    let header = rest.get(..usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
    let mut tensors = serde_json::from_slice::<BTreeMap<String, Value>>(header).ok()?;
    tensors.remove("__metadata__");
    let mut infos = Vec::with_capacity(tensors.len());
    for (name, value) in tensors {
        match serde_json::from_value::<Info>(value) {
            Ok(info) => infos.push((name, info)),
            Err(error) => {
                return Some(Error::tensor(
                    path,
                    &name,
                    "a dtype, shape and data_offsets of safetensors",
                    error,
                ));
            }
        }
    }
    infos.sort_by_key(|(_, info)| info.data_offsets);
    let mut start = 0;
    for (name, info) in infos {
        let (from, to) = info.data_offsets;
        let refuse = |expected: String, found: String| Some(Error::tensor(path, &name, expected, found));
        if from != start || to < from {
            return refuse(
                format!("data_offsets from {start}, where the tensor before it ends"),
                format!("{from} to {to}"),
            );
        }
        let elems = info.shape.iter().try_fold(1_usize, |elems, &dim| elems.checked_mul(dim));
        let bits = elems.and_then(|elems| elems.checked_mul(info.dtype.bitsize()));
        if bits != (to - from).checked_mul(8) || bits.is_none() {
            let what = format!("as many bytes as {:?} {:?} takes", info.dtype, info.shape);
            return refuse(what, format!("{} (data_offsets {from} to {to})", to - from));
        }
        start = to;
    }
    None
}
