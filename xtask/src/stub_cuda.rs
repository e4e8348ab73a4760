//! A stand-in for the CUDA driver library, for machines without one.
//!
//! `cust` asks for a CUDA installation when it is built and links `libcuda`. All that the linker needs is the symbols, so a
//! library that has them, and answers every call with `CUDA_ERROR_STUB_LIBRARY`, lets the feature `cuda` be compiled, linted
//! and linked anywhere. A program does not come to need it: `host` defines the symbols itself and opens the driver's library when a
//! GPU is asked for.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Outcome, workspace};

/// The version that `cust_raw` was generated from, told to whoever looks for a toolkit.
const CUDA_H: &str = "/* Stand-in made by 'cargo xtask stub-cuda': marks a CUDA installation, declares nothing. */\n#define CUDA_VERSION 11040\n";

/// Makes `dir/lib64/libcuda.so` and `dir/include/cuda.h`.
pub fn make(root: &Path, dir: &Path) -> Outcome {
    let symbols = symbols(root)?;
    let lib64 = dir.join("lib64");
    let include = dir.join("include");
    for folder in [&lib64, &include] {
        fs::create_dir_all(folder).map_err(|e| format!("cannot create {}: {e}", folder.display()))?;
    }
    write(&include.join("cuda.h"), CUDA_H)?;
    let source = dir.join("stub_cuda.c");
    write(&source, &c_source(&symbols))?;
    let library = lib64.join("libcuda.so");
    let cc = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let output = Command::new(&cc)
        .args(["-shared", "-fPIC", "-O1", "-Wl,-soname,libcuda.so.1", "-o"])
        .arg(&library)
        .arg(&source)
        .output()
        .map_err(|e| format!("cannot run the C compiler '{cc}' (install gcc, or set CC): {e}"))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        return Err(format!("'{cc}' failed on {}: {}", source.display(), message.trim()));
    }
    // Under the name that programs open: LD_LIBRARY_PATH=dir/lib64 shows what a driver without a GPU is like.
    let soname = lib64.join("libcuda.so.1");
    fs::copy(&library, &soname).map_err(|e| format!("cannot write {}: {e}", soname.display()))?;
    println!(
        "{}: {} symbols; build with CUDA_LIBRARY_PATH={}",
        library.display(),
        symbols.len(),
        dir.display()
    );
    Ok(())
}

fn write(path: &Path, text: &str) -> Outcome {
    fs::write(path, text).map_err(|e| format!("cannot write {}: {e}", path.display()))
}

/// Every driver function that `cust_raw` or the host crate declares.
fn symbols(root: &Path) -> Outcome<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let cust_raw = package_folder(root, "cust_raw")?;
    for folder in [cust_raw.join("src"), root.join("host/src")] {
        for file in workspace::files(&folder, &|_| false)? {
            let text =
                fs::read_to_string(&file).map_err(|e| format!("cannot read {}: {e}", file.display()))?;
            found.extend(driver_functions(&text));
        }
    }
    if found.contains("cuInit") {
        Ok(found)
    } else {
        Err(format!("{}: no declaration of cuInit found", cust_raw.display()))
    }
}

/// The source folder of a dependency, as cargo resolved it.
fn package_folder(root: &Path, name: &str) -> Outcome<PathBuf> {
    let metadata = workspace::metadata(root, &["--all-features"])?;
    let packages = metadata["packages"].as_array().map_or(&[][..], Vec::as_slice);
    packages
        .iter()
        .find(|package| package["name"] == name)
        .and_then(|package| Path::new(package["manifest_path"].as_str()?).parent())
        .map(Path::to_path_buf)
        .ok_or_else(|| format!("'cargo metadata' lists no package {name}"))
}

/// Names `cuXyz` that follow `fn` in Rust text.
fn driver_functions(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split("fn ").skip(1).filter_map(|rest| {
        let name: String = rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        let is_driver =
            name.strip_prefix("cu").is_some_and(|tail| tail.starts_with(|c: char| c.is_ascii_uppercase()));
        is_driver.then_some(name)
    })
}

fn c_source(symbols: &BTreeSet<String>) -> String {
    let mut text = String::from(
        "/* Made by 'cargo xtask stub-cuda'. 34 is CUDA_ERROR_STUB_LIBRARY. */\n\
         int cuGetErrorName(int e, const char **s) { (void)e; *s = \"CUDA_ERROR_STUB_LIBRARY\"; return 0; }\n\
         int cuGetErrorString(int e, const char **s) { (void)e; *s = \"no CUDA driver: this is the stub library\"; return 0; }\n",
    );
    for name in symbols {
        if name != "cuGetErrorName" && name != "cuGetErrorString" {
            // Writing to a String does not fail.
            let _ = writeln!(text, "int {name}(void) {{ return 34; }}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn driver_functions_are_told_from_others() {
        let text = "extern \"C\" { pub fn cuInit(flags: u32) -> u32; fn cuMemAlloc_v2(p: u64); fn custom(); fn curl(); fn cu(); }";
        assert_eq!(driver_functions(text).collect::<Vec<_>>(), ["cuInit", "cuMemAlloc_v2"]);
    }

    #[test]
    fn each_symbol_is_defined_once() {
        let symbols = ["cuInit", "cuGetErrorName"].map(str::to_owned).into();
        let text = c_source(&symbols);
        assert_eq!(text.matches("int cuInit(").count(), 1);
        assert_eq!(text.matches("int cuGetErrorName(").count(), 1);
    }
}
