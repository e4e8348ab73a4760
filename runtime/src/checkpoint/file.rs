//! The files of a checkpoint's folder, as they are opened.

use std::fs::{File, FileType, metadata};
use std::io::Read;
use std::path::Path;

use crate::{Error, Result};

/// Bytes of a file that is read as a whole; weights are mapped.
const MAX_BYTES: u64 = 1 << 30;

/// Whether there is a file of this name, be it a link that leads nowhere: reading tells of that, where passing it by would not.
pub fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// Opens a file that is read to its end: one that has an end, whatever links lead to it. A pipe would keep its reader waiting, and a device
/// may give bytes for ever.
pub(crate) fn open_file(path: &Path) -> Result<File> {
    let found = metadata(path).map_err(Error::io(path))?.file_type();
    if !found.is_file() {
        return Err(Error::file(path, "type", "a regular file, or a link to one", name(found)));
    }
    File::open(path).map_err(Error::io(path))
}

/// The bytes of a file, which has to be a regular one or a link to one, of a gibibyte at most.
///
/// # Errors
/// A file of another type; one that is longer; one that can't be read.
pub fn read_file(path: &Path) -> Result<Vec<u8>> {
    read_at_most(path, MAX_BYTES)
}

/// As [`read_file`], of `most` bytes at most.
///
/// # Errors
/// As there.
pub fn read_at_most(path: &Path, most: u64) -> Result<Vec<u8>> {
    let file = open_file(path)?;
    let found = file.metadata().map_err(Error::io(path))?.len();
    if found > most {
        return Err(Error::file(path, "length", format!("at most {most} bytes"), found));
    }
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes).map_err(Error::io(path))?;
    Ok(bytes)
}

fn name(found: FileType) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if found.is_fifo() {
            return "a pipe";
        }
        if found.is_socket() {
            return "a socket";
        }
        if found.is_char_device() || found.is_block_device() {
            return "a device";
        }
    }
    if found.is_dir() { "a folder" } else { "another type" }
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::symlink;
    use std::process::Command;

    use super::*;

    #[test]
    fn files_without_an_end_are_refused_and_links_followed() {
        let dir = tempfile::tempdir().expect("a folder");
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("file"), "text").expect("written");
        symlink(at("file"), at("link")).expect("linked");
        symlink(at("link"), at("link to a link")).expect("linked");
        symlink("/dev/zero", at("zeros")).expect("linked");
        symlink(at("nowhere"), at("broken")).expect("linked");
        let made = Command::new("mkfifo").arg(at("pipe")).status().expect("mkfifo");
        assert!(made.success());
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).expect("bound");
        for name in ["file", "link", "link to a link"] {
            assert_eq!(read_file(&at(name)).expect("read"), b"text");
        }
        for (name, found) in
            [("pipe", "a pipe"), ("zeros", "a device"), ("socket", "a socket"), ("", "a folder")]
        {
            let refusal = read_file(&at(name)).expect_err("refused").to_string();
            let expected = format!("type: expected a regular file, or a link to one, found {found}");
            assert_eq!(refusal, format!("{}: {expected}", at(name).display()));
        }
        assert!(read_file(&at("broken")).expect_err("refused").to_string().contains("No such file"));
        assert!(is_there(&at("broken")) && is_there(&at("link")) && !is_there(&at("nowhere")));
        // Sparse: it takes no room.
        File::create(at("long")).and_then(|file| file.set_len(3 << 30)).expect("made");
        let refusal = read_file(&at("long")).expect_err("refused").to_string();
        assert!(
            refusal.ends_with("long: length: expected at most 1073741824 bytes, found 3221225472"),
            "{refusal}"
        );
    }
}
