use std::fmt;
use std::path::{Path, PathBuf};

/// What can go wrong between a checkpoint's folder and the text it generates. Each message is one line that names what and where, also
/// where `{:?}` prints it: that is what a `main` does that answers it.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder can't be read.
    #[error("{}: {}", path.display(), source)]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file isn't what its name promises: broken JSON, a truncated checkpoint, a format that isn't read.
    #[error("{}: {what}: expected {expected}, found {found}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// The part of it.
        what: &'static str,
        /// What would have been read.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A field of a configuration file can't be used.
    #[error("{}: field {field}: expected {expected}, found {found}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field, dotted where it's nested.
        field: String,
        /// What would have been taken.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A tensor of a checkpoint isn't what the configuration implies.
    #[error("{}: tensor {tensor}: expected {expected}, found {found}", path.display())]
    Tensor {
        /// The file, or the folder where the tensor is in no file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Type or shape implied.
        expected: String,
        /// Type or shape stored.
        found: String,
    },
    /// A request can't be served.
    #[error("{what}: expected {expected}, found {found}")]
    Request {
        /// The parameter.
        what: &'static str,
        /// What would have been served.
        expected: String,
        /// What was asked.
        found: String,
    },
    /// The engine ended before the request did.
    #[error("the engine has stopped")]
    Stopped,
    /// A device refused.
    #[error(transparent)]
    Device(#[from] tilewright_host::Error),
}

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Error {
    /// The file or folder that it names, where it names one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Error::Io { path, .. }
            | Error::File { path, .. }
            | Error::Field { path, .. }
            | Error::Tensor { path, .. } => Some(path),
            Error::Request { .. } | Error::Stopped | Error::Device(_) => None,
        }
    }

    /// The same for another who met it. What a device refused stays what it was; all else becomes a request's refusal.
    pub(crate) fn for_another(&self) -> Error {
        match self {
            Error::Device(error) => Error::Device(error.clone()),
            Error::Stopped => Error::Stopped,
            other => Error::request("step", "one that runs", other),
        }
    }

    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
        |source| Error::Io { path: path.to_path_buf(), source }
    }

    pub(crate) fn file(
        path: &Path,
        what: &'static str,
        expected: impl Into<String>,
        found: impl ToString,
    ) -> Error {
        Error::File { path: path.to_path_buf(), what, expected: expected.into(), found: one_line(&found) }
    }

    pub(crate) fn tensor(
        path: &Path,
        tensor: &str,
        expected: impl Into<String>,
        found: impl ToString,
    ) -> Error {
        Error::Tensor {
            path: path.to_path_buf(),
            tensor: tensor.to_string(),
            expected: expected.into(),
            found: one_line(&found),
        }
    }

    pub(crate) fn request(what: &'static str, expected: impl Into<String>, found: impl ToString) -> Error {
        Error::Request { what, expected: expected.into(), found: one_line(&found) }
    }
}

/// Messages of libraries may have several lines; ours have one.
fn one_line(text: &impl ToString) -> String {
    text.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use crate::{DeviceChoice, Error, Model};

    #[test]
    fn what_main_answers_is_printed_as_the_message() {
        let missing = Model::load("no/such/folder", DeviceChoice::Cpu).map(drop).expect_err("no such folder");
        let device = Error::from(tilewright_host::Error::Shape {
            op: "linear",
            what: "x",
            expected: "4 columns".into(),
            found: "5".into(),
        });
        for (error, begin) in [(missing, "no/such/folder"), (device, "linear: x: expected 4 columns")] {
            let printed = format!("{error:?}");
            assert!(printed.starts_with(begin) && !printed.contains('\n'), "{printed}");
            assert_eq!(printed, error.to_string());
        }
    }
}
