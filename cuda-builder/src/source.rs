use std::fs;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// A 128-bit FNV-1a hash over the relative paths and contents of all files under `folder`, in hexadecimal. It tells a stale
/// module from a current one; it's no protection against intent.
///
/// # Errors
/// Where the folder or a file can't be read.
pub fn source_hash(folder: &Path) -> Result<String> {
    let mut files = Vec::new();
    list(folder, &mut files)?;
    let mut named = Vec::with_capacity(files.len());
    for path in files {
        let relative = path.strip_prefix(folder).unwrap_or(&path);
        let name: Vec<_> = relative.components().map(|c| c.as_os_str().to_string_lossy()).collect();
        named.push((name.join("/"), path));
    }
    named.sort();
    let mut hash = Fnv::new();
    for (name, path) in named {
        let contents = fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
        hash.add(name.as_bytes());
        hash.add(&(contents.len() as u64).to_le_bytes());
        hash.add(&contents);
    }
    Ok(format!("{:032x}", hash.0))
}

fn list(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(folder).map_err(|e| Error::io("read", folder, e))?;
    for entry in entries {
        let path = entry.map_err(|e| Error::io("read", folder, e))?.path();
        if path.is_dir() {
            list(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

struct Fnv(u128);

impl Fnv {
    fn new() -> Self {
        Self(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d)
    }

    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u128::from(*byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
        }
    }
}

/// The name in a manifest's `[package]` section.
pub(crate) fn package_name(manifest: &Path) -> Result<String> {
    let text = fs::read_to_string(manifest).map_err(|e| Error::io("read", manifest, e))?;
    parse_name(&text).ok_or_else(|| Error::Manifest { path: manifest.to_path_buf() })
}

fn parse_name(text: &str) -> Option<String> {
    let package = text.split("[package]").nth(1)?;
    let value = package
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with('['))
        .find_map(|line| line.strip_prefix("name")?.trim_start().strip_prefix('='))?;
    Some(value.trim().trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fnv_matches_its_published_values() {
        let mut hash = Fnv::new();
        assert_eq!(hash.0, 0x6c62272e07bb014262b821756295c58d);
        hash.add(b"a");
        assert_eq!(hash.0, 0xd228cb696f1a8caf78912b704e4a8964);
    }

    #[test]
    fn name_comes_from_the_package_section() {
        assert_eq!(parse_name("[lib]\nname = \"x\"\n[package]\nname = \"a-b\"\n").as_deref(), Some("a-b"));
        assert_eq!(parse_name("[package]\nversion = \"1\"\n[lib]\nname = \"x\"\n"), None);
        assert_eq!(parse_name("[workspace]\n"), None);
    }
}
