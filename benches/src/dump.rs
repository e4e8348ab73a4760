//! What a timed problem went in and came out as, in files: for programs that compute the same by other means.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tilewright_host::gpu::Driver;

use crate::{
    cells::Cell,
    error::{Error, Result},
    prepared::Prepared,
};

/// Writes every buffer of launches that have run, as it lies in memory, into `folder/KERNEL/CELL/NAME.bin` ('/' in the cell's name
/// becomes '-'), and the problem beside them as `problem.json`. Returns that folder.
///
/// # Errors
/// [`Error::File`]; the device's.
pub fn dump<D: Driver>(
    folder: &Path,
    kernel: &str,
    cell: &Cell,
    prepared: &Prepared<'_, D>,
) -> Result<PathBuf> {
    let folder = folder.join(kernel).join(cell.key.replace('/', "-"));
    fs::create_dir_all(&folder).map_err(|source| Error::File { path: folder.clone(), source })?;
    let write = |name: String, bytes: &[u8]| {
        let path = folder.join(name);
        fs::write(&path, bytes).map_err(|source| Error::File { path, source })
    };
    for name in prepared.names() {
        let bytes = prepared.bytes(name, 0, prepared.len_bytes(name)?)?;
        write(format!("{name}.bin"), &bytes)?;
    }
    let problem = serde_json::to_vec(&cell.problem).map_err(|source| Error::Json {
        origin: cell.key.clone(),
        expected: "a problem",
        source,
    })?;
    write("problem.json".into(), &problem)?;
    Ok(folder)
}
