use std::io;
use std::path::{Path, PathBuf};

use crate::Arch;

/// What can go wrong between a crate and its PTX.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No rustc that can build `core` for the device.
    #[error(
        "no device toolchain: none of {looked} has the source of core and the nvptx64 back end; install one with \
         'apt-get install rustc-web cargo-web rust-web-src' (Debian) or \
         'rustup toolchain install nightly --component rust-src', or name one in TILEWRIGHT_RUSTC"
    )]
    NoToolchain {
        /// What was tried.
        looked: String,
    },
    /// The toolchain that TILEWRIGHT_RUSTC names won't do.
    #[error("TILEWRIGHT_RUSTC={rustc}: {reason}")]
    BadToolchain {
        /// The compiler named.
        rustc: String,
        /// What it lacks.
        reason: String,
    },
    /// A file operation or the start of a program failed.
    #[error("cannot {operation} {path}: {source}")]
    Io {
        /// What was tried, as an infinitive.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A manifest without a package name.
    #[error("{path}: no 'name' in a [package] section")]
    Manifest {
        /// The manifest.
        path: PathBuf,
    },
    /// The crate doesn't compile.
    #[error("{crate_dir} does not compile for {arch}:\n{message}")]
    Compile {
        /// The crate.
        crate_dir: PathBuf,
        /// The target.
        arch: Arch,
        /// What the compiler said.
        message: String,
    },
    /// The module isn't what the back end is known to write.
    #[error("the {arch} module: {what}")]
    Module {
        /// The target.
        arch: Arch,
        /// What was expected and what was found.
        what: String,
    },
    /// ptxas rejects the module.
    #[error("ptxas rejects the {arch} module {path}: {message}")]
    Ptxas {
        /// The target.
        arch: Arch,
        /// The PTX file.
        path: PathBuf,
        /// What ptxas said.
        message: String,
    },
    /// Kernels take what they shouldn't.
    #[error("refused in the {arch} module (an allowance with a reason lets it pass): {}", .faults.join("; "))]
    Refused {
        /// The target.
        arch: Arch,
        /// One line a fault, naming the kernel.
        faults: Vec<String>,
    },
}

impl Error {
    pub(crate) fn io(operation: &'static str, path: &Path, source: io::Error) -> Self {
        Error::Io { operation, path: path.to_path_buf(), source }
    }
}
