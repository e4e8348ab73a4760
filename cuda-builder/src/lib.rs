#![doc = include_str!("../README.md")]
#![warn(missing_docs)]

mod error;
mod ptx;
mod ptxas;
mod report;
mod source;
mod toolchain;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

pub use error::Error;
pub use ptx::{Entry, Header};
pub use ptxas::{Assembly, KernelResources, Ptxas};
pub use report::markdown;
pub use source::source_hash;
pub use toolchain::Toolchain;

/// What a fallible function of this crate returns.
pub type Result<T> = std::result::Result<T, Error>;

/// A target of the build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Arch {
    /// Ampere: the baseline, which everything newer runs too.
    Sm80,
    /// Hopper with its architecture-specific instructions; runs on compute capability 9.0 alone.
    Sm90a,
}

impl Arch {
    /// The name that rustc and ptxas know it by.
    pub fn name(self) -> &'static str {
        match self {
            Arch::Sm80 => "sm_80",
            Arch::Sm90a => "sm_90a",
        }
    }

    /// The lowest PTX version that has this target.
    pub(crate) fn least_version(self) -> (u32, u32) {
        match self {
            Arch::Sm80 => (7, 0),
            Arch::Sm90a => (8, 0),
        }
    }
}

impl std::fmt::Display for Arch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What [`CudaBuilder::build`] made.
#[derive(Debug)]
pub struct PtxBuild {
    /// The PTX file: where [`CudaBuilder::copy_to`] said, or in the build's own folder.
    pub ptx: PathBuf,
    /// The text of that file.
    pub text: String,
    /// The toolchain it was made with.
    pub toolchain: Toolchain,
    /// What ptxas said, where there was one.
    pub report: Option<Assembly>,
}

impl PtxBuild {
    /// The kernels of the module, in its order.
    pub fn entries(&self) -> Vec<&str> {
        ptx::entry_names(&self.text)
    }
}

/// Compiles a crate to PTX. See the crate's page.
#[derive(Debug, Clone)]
pub struct CudaBuilder {
    crate_dir: PathBuf,
    arch: Arch,
    entries: Vec<Entry>,
    copy_to: Option<PathBuf>,
    target_dir: Option<PathBuf>,
}

impl CudaBuilder {
    /// A build of the crate in `crate_dir`, for [`Arch::Sm80`].
    pub fn new(crate_dir: impl Into<PathBuf>) -> Self {
        Self {
            crate_dir: crate_dir.into(),
            arch: Arch::Sm80,
            entries: Vec::new(),
            copy_to: None,
            target_dir: None,
        }
    }

    /// The target.
    pub fn arch(mut self, arch: Arch) -> Self {
        self.arch = arch;
        self
    }

    /// At most `threads` threads a block of `kernel`, of which at least `min_blocks` must fit a multiprocessor.
    pub fn launch_bounds(mut self, kernel: &str, threads: u32, min_blocks: u32) -> Self {
        let entry = self.entry_mut(kernel);
        entry.threads = threads;
        entry.min_blocks = min_blocks;
        self
    }

    /// Dynamic shared memory of a launch of `kernel`, for the report: ptxas can't know it.
    pub fn dynamic_shared(mut self, kernel: &str, bytes: u32) -> Self {
        self.entry_mut(kernel).dynamic_shared_bytes = bytes;
        self
    }

    /// Lets `kernel` have what the check refuses, and says why.
    pub fn allow(mut self, kernel: &str, reason: &str) -> Self {
        self.entry_mut(kernel).allowance = Some(reason.to_owned());
        self
    }

    /// Where to put the PTX.
    pub fn copy_to(mut self, path: impl Into<PathBuf>) -> Self {
        self.copy_to = Some(path.into());
        self
    }

    /// Where cargo keeps its intermediate files; `target/device` of the crate's parent folder otherwise.
    pub fn target_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.target_dir = Some(path.into());
        self
    }

    fn entry_mut(&mut self, kernel: &str) -> &mut Entry {
        let index = self.entries.iter().position(|e| e.name == kernel).unwrap_or_else(|| {
            self.entries.push(Entry::new(kernel));
            self.entries.len() - 1
        });
        &mut self.entries[index]
    }

    /// Compiles, rewrites, checks and stores the PTX.
    ///
    /// # Errors
    /// Where no device toolchain is, the crate doesn't compile, a declared kernel is missing from the module, ptxas rejects the
    /// module or the check refuses a kernel. A refused module is stored all the same, to be looked at.
    pub fn build(&self) -> Result<PtxBuild> {
        let toolchain = Toolchain::find(self.arch)?;
        let crate_dir =
            self.crate_dir.canonicalize().map_err(|e| Error::io("resolve", &self.crate_dir, e))?;
        let root = crate_dir.parent().unwrap_or(&crate_dir);
        // A folder an architecture: the asm file's name has no hash, so in a shared one a fresh build of the one could
        // be taken for the other.
        let target_dir =
            self.target_dir.clone().unwrap_or_else(|| root.join("target/device")).join(self.arch.name());
        let raw = self.compile(&toolchain, &crate_dir, &target_dir)?;
        let header = Header {
            arch: self.arch,
            toolchain: toolchain.version.clone(),
            flags: flags(self.arch).join(" "),
            source: source_hash(&crate_dir.join("src"))?,
        };
        let text = ptx::finish(&raw, &header, &self.entries)?;
        let path = self.copy_to.clone().unwrap_or_else(|| target_dir.join("module.ptx"));
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
        }
        fs::write(&path, &text).map_err(|e| Error::io("write", &path, e))?;
        let report = match Ptxas::find() {
            Some(ptxas) => Some(ptxas.assemble(&path, self.arch, &self.entries)?),
            None => None,
        };
        Ok(PtxBuild { ptx: path, text, toolchain, report })
    }

    /// Runs cargo and returns the module as the back end wrote it.
    fn compile(&self, toolchain: &Toolchain, crate_dir: &Path, target_dir: &Path) -> Result<String> {
        let package = source::package_name(&crate_dir.join("Cargo.toml"))?;
        let root = crate_dir.parent().unwrap_or(crate_dir);
        let mut rustflags = flags(self.arch);
        rustflags.push(format!("--remap-path-prefix={}=.", root.display()));
        let output = device_cargo(toolchain)
            .current_dir(crate_dir)
            .args(["rustc", "--profile", "device", "-Zbuild-std=core", "--target", "nvptx64-nvidia-cuda"])
            .args(["--crate-type", "cdylib", "--lib", "--manifest-path"])
            .arg(crate_dir.join("Cargo.toml"))
            .arg("--target-dir")
            .arg(target_dir)
            .args(["--", "--emit=asm"])
            .env("CARGO_ENCODED_RUSTFLAGS", rustflags.join("\x1f"))
            .output()
            .map_err(|e| Error::io("run", &toolchain.cargo, e))?;
        if !output.status.success() {
            return Err(Error::Compile {
                crate_dir: crate_dir.to_path_buf(),
                arch: self.arch,
                message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            });
        }
        let file = format!("nvptx64-nvidia-cuda/device/deps/{}.s", package.replace('-', "_"));
        let path = target_dir.join(file);
        fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))
    }
}

/// The compiler flags that decide what the PTX is. Paths are left out: they go into the file's header.
fn flags(arch: Arch) -> Vec<String> {
    vec![
        format!("-Ctarget-cpu={arch}"),
        // LTO has made one module already, so there's nothing to link.
        "-Clinker=true".to_owned(),
        // Arrays stay in registers only where every index is a constant after unrolling.
        "-Cllvm-args=-unroll-threshold=100000".to_owned(),
        "-Zlocation-detail=none".to_owned(),
    ]
}

/// The toolchain's cargo without whatever the calling cargo, rustup or user has set for host builds.
fn device_cargo(toolchain: &Toolchain) -> Command {
    let mut command = Command::new(&toolchain.cargo);
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let of_caller =
            (text.starts_with("CARGO") && text != "CARGO_HOME" && !text.starts_with("CARGO_NET_"))
                || text.starts_with("RUSTC")
                || text.starts_with("RUSTFLAGS")
                || text == "RUSTUP_TOOLCHAIN"
                || text == "LD_LIBRARY_PATH";
        if of_caller {
            command.env_remove(&name);
        }
    }
    // An empty wrapper also overrules one from a configuration file.
    command.env("RUSTC", &toolchain.rustc).env("RUSTC_BOOTSTRAP", "1").env("RUSTC_WRAPPER", "");
    command
}
