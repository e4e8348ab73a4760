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

/// Refuses what is no folder.
///
/// # Errors
/// A file of any type; nothing at all.
pub fn check_folder(path: &Path) -> Result<()> {
    let found = metadata(path).map_err(Error::io(path))?;
    match found.is_dir() {
        true => Ok(()),
        false => Err(Error::file(path, "type", "a folder, or a link to one", name(found.file_type()))),
    }
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
    up_to(open_file(path)?, path, most)
}

/// The bytes of what a user names, of `most` at most, whatever gives them: a file, a pipe of another program's, a device. The reader waits
/// for a pipe's end, and takes a byte beyond the limit at most of what has none.
///
/// # Errors
/// A folder; more bytes; what can't be read.
pub fn read_any(path: &Path, most: u64) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(Error::io(path))?;
    let found = file.metadata().map_err(Error::io(path))?.file_type();
    if found.is_dir() {
        return Err(Error::file(path, "type", "a file or a pipe", name(found)));
    }
    up_to(file, path, most)
}

fn up_to(file: File, path: &Path, most: u64) -> Result<Vec<u8>> {
    let too_long = |found: &str| Error::file(path, "length", format!("at most {most} bytes"), found);
    // What has no end, or none yet, has no length either.
    let told = file.metadata().map_err(Error::io(path))?.len();
    if told > most {
        return Err(too_long(&told.to_string()));
    }
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes).map_err(Error::io(path))?;
    if bytes.len() as u64 > most {
        return Err(too_long("more"));
    }
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
    match (found.is_dir(), found.is_file()) {
        (true, _) => "a folder",
        (_, true) => "a file",
        _ => "another type",
    }
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
        assert!(check_folder(&at("")).is_ok() && check_folder(&at("nowhere")).is_err());
        for (name, found) in [("link", "a file"), ("pipe", "a pipe"), ("zeros", "a device")] {
            let refusal = check_folder(&at(name)).expect_err("refused").to_string();
            assert!(refusal.ends_with(&format!("type: expected a folder, or a link to one, found {found}")));
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

    #[test]
    fn what_a_user_names_is_read_whatever_gives_it_up_to_a_limit() {
        let dir = tempfile::tempdir().expect("a folder");
        let (file, pipe) = (dir.path().join("file"), dir.path().join("pipe"));
        std::fs::write(&file, "text").expect("written");
        assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
        // A pipe is opened once both its ends are.
        let through_pipe = |text: &'static str, most| {
            let writer = std::thread::spawn({
                let pipe = pipe.clone();
                move || std::fs::write(pipe, text)
            });
            let read = read_any(&pipe, most);
            writer.join().expect("no panic").expect("written");
            read
        };
        assert_eq!(read_any(&file, 4).expect("read"), b"text");
        assert_eq!(through_pipe("text", 4).expect("read"), b"text");
        let refusals = [
            (read_any(&file, 3), "length: expected at most 3 bytes, found 4"),
            (through_pipe("text", 3), "length: expected at most 3 bytes, found more"),
            (read_any(Path::new("/dev/zero"), 1 << 20), "length: expected at most 1048576 bytes, found more"),
            (read_any(dir.path(), 4), "type: expected a file or a pipe, found a folder"),
            (read_any(&dir.path().join("nowhere"), 4), "No such file"),
        ];
        for (read, expected) in refusals {
            let refusal = read.expect_err("refused").to_string();
            assert!(refusal.contains(expected), "{refusal}");
        }
    }
}
