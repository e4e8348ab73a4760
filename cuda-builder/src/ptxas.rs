//! The assembler as a judge: it needs no GPU to say what a kernel takes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use crate::toolchain::run;
use crate::{Arch, Entry, Error, Result};

/// Messages that a performance promise is broken: setmaxnreg ignored, and wgmma serialised.
const REFUSED_CODES: [&str; 7] = ["C7508", "C7510", "C7511", "C7512", "C7513", "C7514", "C7515"];

/// The assembler of a CUDA toolkit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ptxas {
    /// The program.
    pub path: PathBuf,
    /// Its version, as it says it.
    pub version: String,
}

/// What ptxas said of one kernel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KernelResources {
    /// The PTX symbol.
    pub name: String,
    /// Registers a thread.
    pub registers: u32,
    /// Local memory a thread, in bytes.
    pub stack_bytes: u32,
    /// Bytes of registers written to local memory.
    pub spill_store_bytes: u32,
    /// Bytes of registers read back.
    pub spill_load_bytes: u32,
    /// Static shared memory a block, in bytes.
    pub shared_bytes: u32,
    /// Hardware barriers a block.
    pub barriers: u32,
    /// Codes among those refused that name this kernel.
    pub codes: Vec<String>,
}

/// What ptxas said of a module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assembly {
    /// The target.
    pub arch: Arch,
    /// The assembler's version.
    pub ptxas: String,
    /// What was declared.
    pub entries: Vec<Entry>,
    /// What each kernel takes, sorted by name.
    pub kernels: Vec<KernelResources>,
}

impl Ptxas {
    /// Looks at `TILEWRIGHT_PTXAS`, `PATH`, `CUDA_HOME`, `CUDA_PATH`, `/usr/local/cuda` and Python's packages, in this order.
    pub fn find() -> Option<Self> {
        candidates().into_iter().find_map(|path| {
            let text = run(&path, &["--version"])?;
            let version = text.lines().find_map(|line| Some(line.split_once(", V")?.1.trim().to_owned()))?;
            Some(Self { path, version })
        })
    }

    /// Assembles a module and checks each kernel of it.
    pub(crate) fn assemble(&self, ptx: &Path, arch: Arch, entries: &[Entry]) -> Result<Assembly> {
        let cubin = env::temp_dir().join(format!("cuda-builder-{}-{arch}.cubin", std::process::id()));
        let output = Command::new(&self.path)
            .arg("-v")
            .arg(format!("-arch={arch}"))
            .arg(ptx)
            .arg("-o")
            .arg(&cubin)
            .output()
            .map_err(|e| Error::io("run", &self.path, e))?;
        // Left behind only where ptxas failed to make it.
        let _ = fs::remove_file(&cubin);
        let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            let message = said.lines().filter(|line| !line.contains("info")).collect::<Vec<_>>().join("; ");
            return Err(Error::Ptxas { arch, path: ptx.to_path_buf(), message });
        }
        let kernels = parse(&said);
        let faults = faults(&kernels, entries);
        if faults.is_empty() {
            Ok(Assembly { arch, ptxas: self.version.clone(), entries: entries.to_vec(), kernels })
        } else {
            Err(Error::Refused { arch, faults })
        }
    }
}

fn candidates() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = env::var_os("TILEWRIGHT_PTXAS").map(PathBuf::from).into_iter().collect();
    found.extend(env::var_os("PATH").iter().flat_map(env::split_paths).map(|folder| folder.join("ptxas")));
    for name in ["CUDA_HOME", "CUDA_PATH"] {
        found.extend(env::var_os(name).map(|home| PathBuf::from(home).join("bin/ptxas")));
    }
    found.push(PathBuf::from("/usr/local/cuda/bin/ptxas"));
    let home = env::var_os("HOME").map(|home| PathBuf::from(home).join(".local"));
    let prefixes = env::var_os("VIRTUAL_ENV").map(PathBuf::from).into_iter().chain(home);
    for prefix in prefixes.chain([PathBuf::from("/usr/local")]) {
        let Ok(versions) = fs::read_dir(prefix.join("lib")) else { continue };
        let mut versions: Vec<_> = versions.filter_map(|entry| Some(entry.ok()?.path())).collect();
        versions.sort();
        for packages in ["site-packages", "dist-packages"] {
            found.extend(versions.iter().map(|v| v.join(packages).join("nvidia/cu13/bin/ptxas")));
        }
    }
    found.retain(|path| path.is_file());
    found
}

/// Reads what `ptxas -v` prints.
fn parse(text: &str) -> Vec<KernelResources> {
    let mut kernels: Vec<KernelResources> = Vec::new();
    let mut current: Option<usize> = None;
    for line in text.lines() {
        if let Some(name) = quoted(line, "Compiling entry function '") {
            kernels.push(KernelResources { name: name.to_owned(), ..Default::default() });
            current = Some(kernels.len() - 1);
        }
        let Some(kernel) = current.map(|index| &mut kernels[index]) else { continue };
        if line.contains("bytes stack frame") {
            // Functions that the entry calls have lines of their own: the worst counts.
            kernel.stack_bytes = kernel.stack_bytes.max(before(line, " bytes stack frame"));
            kernel.spill_store_bytes = kernel.spill_store_bytes.max(before(line, " bytes spill stores"));
            kernel.spill_load_bytes = kernel.spill_load_bytes.max(before(line, " bytes spill loads"));
        } else if line.contains(": Used ") {
            kernel.registers = before(line, " registers");
            kernel.shared_bytes = before(line, " bytes smem");
            kernel.barriers = before(line, " barriers");
        }
    }
    for line in text.lines() {
        let Some(code) = REFUSED_CODES.into_iter().find(|code| line.contains(code)) else { continue };
        // A message that names no kernel of this module counts against all of them.
        let named = kernels.iter().any(|k| names(line, &k.name));
        for kernel in kernels.iter_mut().filter(|k| !named || names(line, &k.name)) {
            kernel.codes.push(code.to_owned());
        }
    }
    kernels.sort_by(|a, b| a.name.cmp(&b.name));
    kernels
}

fn names(line: &str, kernel: &str) -> bool {
    line.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '$')).any(|word| word == kernel)
}

fn quoted<'a>(line: &'a str, before: &str) -> Option<&'a str> {
    line.split_once(before)?.1.split('\'').next()
}

/// The number that stands before `unit`, or 0 where the line has none.
fn before(line: &str, unit: &str) -> u32 {
    let Some((head, _)) = line.split_once(unit) else { return 0 };
    head.rsplit(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// One line for each kernel that takes what it has no allowance for.
fn faults(kernels: &[KernelResources], entries: &[Entry]) -> Vec<String> {
    let mut faults = Vec::new();
    for kernel in kernels {
        if entries.iter().any(|e| e.name == kernel.name && e.allowance.is_some()) {
            continue;
        }
        let mut what = Vec::new();
        if kernel.spill_store_bytes + kernel.spill_load_bytes > 0 {
            what.push(format!("{} + {} bytes spilled", kernel.spill_store_bytes, kernel.spill_load_bytes));
        }
        if kernel.stack_bytes > 0 {
            what.push(format!("a stack frame of {} bytes", kernel.stack_bytes));
        }
        what.extend(kernel.codes.iter().cloned());
        if !what.is_empty() {
            faults.push(format!("{}: {}", kernel.name, what.join(", ")));
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "ptxas info    : 0 bytes gmem\n\
        ptxas info    : Compiling entry function 'foo' for 'sm_90a'\n\
        ptxas info    : Function properties for foo\n    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads\n\
        ptxas info    : Used 168 registers, used 2 barriers, 64 bytes smem, 360 bytes cmem[0]\n\
        ptxas info    : Compile time = 3.1 ms\n\
        ptxas info    : Compiling entry function 'bar' for 'sm_90a'\n\
        ptxas info    : Function properties for bar\n    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
        ptxas info    : Used 8 registers, used 0 barriers, 360 bytes cmem[0]\n";

    fn find<'a>(kernels: &'a [KernelResources], name: &str) -> &'a KernelResources {
        kernels.iter().find(|k| k.name == name).unwrap()
    }

    #[test]
    fn resources_are_read() {
        let kernels = parse(SAID);
        let foo = find(&kernels, "foo");
        assert_eq!(
            (foo.registers, foo.stack_bytes, foo.spill_store_bytes, foo.spill_load_bytes),
            (168, 16, 8, 4)
        );
        assert_eq!((foo.shared_bytes, foo.barriers), (64, 2));
        let bar = find(&kernels, "bar");
        assert_eq!((bar.registers, bar.stack_bytes, bar.shared_bytes, bar.barriers), (8, 0, 0, 0));
    }

    #[test]
    fn spills_are_refused_unless_allowed() {
        let kernels = parse(SAID);
        assert_eq!(faults(&kernels, &[]), ["foo: 8 + 4 bytes spilled, a stack frame of 16 bytes"]);
        let allowed = Entry { allowance: Some("a lookup table".into()), ..Entry::new("foo") };
        assert!(faults(&kernels, &[allowed]).is_empty());
    }

    #[test]
    fn codes_go_to_the_kernel_they_name() {
        let warning = "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to \
                       ill formed pipeline stage in the function 'bar'\n";
        let kernels = parse(&format!("{warning}{SAID}"));
        assert_eq!(find(&kernels, "bar").codes, ["C7510"]);
        assert!(find(&kernels, "foo").codes.is_empty());
        let anonymous =
            "ptxas info    : (C7508) setmaxnreg ignored to maintain minimum register requirements\n";
        let kernels = parse(&format!("{SAID}{anonymous}"));
        assert!(kernels.iter().all(|k| k.codes == ["C7508"]), "{kernels:?}");
        assert_eq!(faults(&kernels, &[]).len(), 2);
    }
}
