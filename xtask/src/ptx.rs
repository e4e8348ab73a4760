//! The committed PTX: making it, and telling whether it is what the source makes.

use std::fs;
use std::path::Path;

use cuda_builder::{Arch, Assembly, CudaBuilder, Header, PtxBuild, Ptxas, markdown};
use tilewright_kernels::{KERNELS, KERNELS_SM90A, abi::KernelSpec};

use crate::Outcome;

const ARCHS: [Arch; 2] = [Arch::Sm80, Arch::Sm90a];

/// Makes `kernels/ptx/*.ptx` and `kernels/ptx/REPORT.md`.
pub fn generate(root: &Path) -> Outcome {
    let folder = root.join("kernels/ptx");
    let mut reports = Vec::new();
    for arch in ARCHS {
        let path = folder.join(format!("{arch}.ptx"));
        let build = build(root, arch, &path)?;
        println!(
            "{}: {} lines by {}",
            relative(root, &path),
            build.text.lines().count(),
            build.toolchain.version
        );
        reports.extend(build.report);
    }
    if reports.is_empty() {
        println!("no ptxas found: the modules are unchecked and REPORT.md is left as it was; {PTXAS_HINT}");
        return Ok(());
    }
    let path = folder.join("REPORT.md");
    fs::write(&path, markdown(&reports)).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
    println!("{}: ptxas {}", relative(root, &path), reports[0].ptxas);
    Ok(())
}

const PTXAS_HINT: &str = "'pip install nvidia-cuda-nvcc==13.0.88' has one; name it in TILEWRIGHT_PTXAS";

/// Builds again elsewhere and compares with what is committed. With another compiler the text may differ, and only a failure of
/// the build or of the gate counts.
pub fn check(root: &Path) -> Outcome {
    if Ptxas::find().is_none() {
        return Err(format!("no ptxas found, so the gate cannot be held; {PTXAS_HINT}"));
    }
    let mut reports = Vec::new();
    for arch in ARCHS {
        let committed_path = root.join(format!("kernels/ptx/{arch}.ptx"));
        let committed = read(&committed_path)?;
        let fresh = build(root, arch, &root.join(format!("target/device/check/{arch}.ptx")))?;
        compare(&relative(root, &committed_path), &committed, &fresh.text)?;
        reports.extend(fresh.report);
    }
    compare_report(root, &reports)
}

fn compare(name: &str, committed: &str, fresh: &str) -> Outcome {
    let (was, is) = (Header::toolchain_of(committed), Header::toolchain_of(fresh));
    if Header::source_of(committed) != Header::source_of(fresh) {
        return Err(format!("{name} was made from other source than kernels/src; run 'cargo xtask ptx'"));
    }
    if was != is {
        let unknown = "an unknown compiler";
        println!(
            "{name}: builds with {}; made with {}, so not compared",
            is.unwrap_or(unknown),
            was.unwrap_or(unknown)
        );
        return Ok(());
    }
    match committed.lines().zip(fresh.lines()).position(|(a, b)| a != b) {
        None if committed.len() == fresh.len() => {
            println!("{name}: the source makes the same again");
            Ok(())
        }
        at => Err(format!(
            "{name} differs from line {} on from what the same compiler makes of the source; run 'cargo xtask ptx'",
            at.map_or(committed.lines().count().min(fresh.lines().count()), |line| line) + 1
        )),
    }
}

/// The report must be the modules' own, as far as the same ptxas makes it comparable.
fn compare_report(root: &Path, fresh: &[Assembly]) -> Outcome {
    let committed = read(&root.join("kernels/ptx/REPORT.md"))?;
    let same_ptxas = fresh.iter().all(|module| committed.contains(&format!("ptxas {}\n", module.ptxas)));
    let same_compiler = ARCHS.iter().all(|arch| {
        let text = |folder: &str| {
            fs::read_to_string(root.join(folder).join(format!("{arch}.ptx"))).unwrap_or_default()
        };
        Header::toolchain_of(&text("kernels/ptx")) == Header::toolchain_of(&text("target/device/check"))
    });
    if same_ptxas && same_compiler && committed != markdown(fresh) {
        return Err("kernels/ptx/REPORT.md is not that of the modules; run 'cargo xtask ptx'".to_owned());
    }
    println!("ptxas takes both modules: no spills, no stack, no serialised wgmma beyond the allowances");
    Ok(())
}

/// Prints the committed report.
pub fn report(root: &Path) -> Outcome {
    print!("{}", read(&root.join("kernels/ptx/REPORT.md"))?);
    Ok(())
}

/// The entries of a module.
fn kernels(arch: Arch) -> impl Iterator<Item = &'static KernelSpec> {
    let hopper = if arch == Arch::Sm90a { KERNELS_SM90A } else { &[] };
    KERNELS.iter().chain(hopper).copied()
}

fn build(root: &Path, arch: Arch, path: &Path) -> Outcome<PtxBuild> {
    let mut builder = CudaBuilder::new(root.join("kernels")).arch(arch).copy_to(path);
    for spec in kernels(arch) {
        builder = builder
            .launch_bounds(spec.name, spec.threads, spec.min_blocks)
            .dynamic_shared(spec.name, spec.shared_bytes);
        if let Some(reason) = spec.allowance {
            builder = builder.allow(spec.name, reason);
        }
    }
    let build = builder.build().map_err(|e| e.to_string())?;
    match build.entries().into_iter().find(|name| kernels(arch).all(|spec| spec.name != *name)) {
        None => Ok(build),
        Some(name) => {
            Err(format!("the {arch} module has an entry '{name}' that the kernels crate does not list"))
        }
    }
}

fn read(path: &Path) -> Outcome<String> {
    fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()))
}

fn relative(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::compare;

    const MODULE: &str = "// toolchain: rustc 1\n// source: 0a\n.version 7.0\nret;\n";

    #[test]
    fn the_same_text_passes_and_another_does_not() {
        assert_eq!(compare("a.ptx", MODULE, MODULE), Ok(()));
        let error = compare("a.ptx", MODULE, &MODULE.replace("ret", "nop")).unwrap_err();
        assert!(error.starts_with("a.ptx differs from line 4 on"), "{error}");
        let error = compare("a.ptx", MODULE, &format!("{MODULE}}}\n")).unwrap_err();
        assert!(error.starts_with("a.ptx differs from line 5 on"), "{error}");
    }

    #[test]
    fn another_compiler_is_not_compared_but_other_source_is_refused() {
        let other = MODULE.replace("rustc 1", "rustc 2").replace("ret", "nop");
        assert_eq!(compare("a.ptx", MODULE, &other), Ok(()));
        assert!(compare("a.ptx", MODULE, &other.replace("0a", "0b")).is_err());
    }
}
