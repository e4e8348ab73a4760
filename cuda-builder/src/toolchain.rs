use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Arch, Error, Result};

/// A rustc and cargo that can build device code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toolchain {
    /// The compiler.
    pub rustc: PathBuf,
    /// The cargo that goes with it.
    pub cargo: PathBuf,
    /// `rustc RELEASE COMMIT, LLVM VERSION`.
    pub version: String,
}

impl Toolchain {
    /// The toolchain that `TILEWRIGHT_RUSTC` names; otherwise the first of rustup's nightlies, then the system's, that has the
    /// source of `core`.
    ///
    /// # Errors
    /// [`Error::NoToolchain`], which says what to install.
    pub fn find(arch: Arch) -> Result<Self> {
        if let Some(rustc) = env::var_os("TILEWRIGHT_RUSTC") {
            let rustc = PathBuf::from(rustc);
            return Self::try_rustc(&rustc, arch)
                .map_err(|reason| Error::BadToolchain { rustc: rustc.display().to_string(), reason });
        }
        let mut candidates = rustup_nightlies();
        candidates.push(PathBuf::from("/usr/bin/rustc"));
        let mut looked = Vec::new();
        for rustc in candidates {
            match Self::try_rustc(&rustc, arch) {
                Ok(toolchain) => return Ok(toolchain),
                Err(reason) => looked.push(format!("{} ({reason})", rustc.display())),
            }
        }
        Err(Error::NoToolchain { looked: looked.join(", ") })
    }

    fn try_rustc(rustc: &Path, arch: Arch) -> std::result::Result<Self, String> {
        let version = run(rustc, &["-vV"]).ok_or("does not run")?;
        let version = parse_version(&version).ok_or("prints no version")?;
        let sysroot = run(rustc, &["--print", "sysroot"]).ok_or("prints no sysroot")?;
        let core = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core");
        if !core.is_dir() {
            return Err("no source of core: rust-src is missing".to_owned());
        }
        let cpus = run(rustc, &["--print", "target-cpus", "--target", "nvptx64-nvidia-cuda"])
            .ok_or("no nvptx64-nvidia-cuda target")?;
        if !cpus.split_whitespace().any(|cpu| cpu == arch.name()) {
            return Err(format!("its LLVM does not know {arch}"));
        }
        let cargo = match env::var_os("TILEWRIGHT_CARGO") {
            Some(cargo) => PathBuf::from(cargo),
            None => rustc.with_file_name("cargo"),
        };
        if run(&cargo, &["-V"]).is_none() {
            return Err(format!("no cargo at {}", cargo.display()));
        }
        Ok(Self { rustc: rustc.to_path_buf(), cargo, version })
    }
}

/// The compilers of rustup's nightly toolchains, in rustup's order.
fn rustup_nightlies() -> Vec<PathBuf> {
    let rustup = Path::new("rustup");
    let Some(list) = run(rustup, &["toolchain", "list"]) else { return Vec::new() };
    list.lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| name.starts_with("nightly"))
        .filter_map(|name| run(rustup, &["which", "--toolchain", name, "rustc"]))
        .map(|path| PathBuf::from(path.trim()))
        .collect()
}

/// Standard output of a program that ends well.
pub(crate) fn run(program: &Path, args: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(args)
        .env("RUSTC_BOOTSTRAP", "1")
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("LD_LIBRARY_PATH")
        .output()
        .ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `rustc -vV` on one line: what decides the code, not when or by whom it was packaged.
fn parse_version(text: &str) -> Option<String> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let commit: String = field("commit-hash:")?.chars().take(9).collect();
    Some(format!("rustc {} {commit}, LLVM {}", field("release:")?, field("LLVM version:")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_release_commit_and_llvm() {
        let text = "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)\nbinary: rustc\n\
                    commit-hash: ac68faa20c58cbccd01ee7208bf3b6e93a7d7f96\nhost: x86_64-unknown-linux-gnu\n\
                    release: 1.96.0\nLLVM version: 22.1.8\n";
        assert_eq!(parse_version(text).as_deref(), Some("rustc 1.96.0 ac68faa20, LLVM 22.1.8"));
        assert_eq!(parse_version("rustc 1.96.0"), None);
    }

    #[test]
    fn a_missing_compiler_says_so() {
        let reason = Toolchain::try_rustc(Path::new("/nonexistent/rustc"), Arch::Sm80);
        assert_eq!(reason, Err("does not run".to_owned()));
    }
}
