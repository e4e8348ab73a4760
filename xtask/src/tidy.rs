//! What no compiler checks: the invariants of ARCHITECTURE.md.

use std::fs;
use std::path::{Path, PathBuf};

use cuda_builder::{Header, source_hash};
use tilewright_kernels::{KERNELS, KERNELS_SM90A, module};

use crate::{Outcome, workspace};

/// Which members of the workspace each may depend on, in builds of the product and of its tests alike.
const MAY_DEPEND: &[(&str, &[&str])] = &[
    ("tilewright-cuda-builder", &[]),
    ("tilewright-simt", &[]),
    ("tilewright-reference", &[]),
    ("tilewright-kernels", &["tilewright-simt"]),
    ("tilewright-host", &["tilewright-kernels"]),
    ("tilewright", &["tilewright-host"]),
    ("tilewright-server", &["tilewright"]),
    ("tilewright-cli", &["tilewright", "tilewright-benches", "tilewright-server"]),
    ("xtask", &["tilewright-cuda-builder", "tilewright-kernels"]),
    (
        "tilewright-tests",
        &["tilewright", "tilewright-host", "tilewright-kernels", "tilewright-reference", "tilewright-simt"],
    ),
    // The tests' library lends it the emulator, to prove off a GPU that what it times is checked.
    (
        "tilewright-benches",
        &["tilewright", "tilewright-host", "tilewright-kernels", "tilewright-reference", "tilewright-tests"],
    ),
];

/// A file longer than this is worth a look.
const LONG_FILE_LINES: usize = 400;

/// Checks all invariants and names every breach before it fails.
pub fn check(root: &Path) -> Outcome {
    let files = text_files(root)?;
    let mut breaches = dependencies(root)?;
    let mut notes = Vec::new();
    for (name, text) in &files {
        breaches.extend(assembly_outside_its_home(name, text));
        breaches.extend(local_paths(name, text));
        notes.extend(length(name, text));
    }
    breaches.extend(kernels(&files));
    breaches.extend(stale_modules(root)?);
    for note in notes {
        println!("note: {note}");
    }
    if breaches.is_empty() {
        println!("tidy: {} files, {} kernels", files.len(), KERNELS.len() + KERNELS_SM90A.len());
        return Ok(());
    }
    for breach in &breaches {
        eprintln!("{breach}");
    }
    Err(format!("{} breaches of the invariants of ARCHITECTURE.md", breaches.len()))
}

fn dependencies(root: &Path) -> Outcome<Vec<String>> {
    let metadata = workspace::metadata(root, &["--no-deps"])?;
    let empty = Vec::new();
    let packages = metadata["packages"].as_array().unwrap_or(&empty);
    let edges = packages.iter().flat_map(|package| {
        let dependencies = package["dependencies"].as_array().unwrap_or(&empty);
        // Members are depended on by path.
        let members = dependencies.iter().filter(|d| d["path"].is_string());
        members.filter_map(|d| Some((package["name"].as_str()?, d["name"].as_str()?)))
    });
    let unknown = packages.iter().filter_map(|package| package["name"].as_str());
    let unknown = unknown.filter(|name| MAY_DEPEND.iter().all(|(known, _)| known != name));
    let unknown =
        unknown.map(|name| format!("{name}: a member that xtask's table of dependencies does not know"));
    Ok(unknown
        .chain(
            edges
                .filter(|(from, to)| !may_depend(from, to))
                .map(|(from, to)| format!("{from} depends on {to}, against the direction of dependencies")),
        )
        .collect())
}

fn may_depend(from: &str, to: &str) -> bool {
    MAY_DEPEND.iter().any(|(name, allowed)| *name == from && allowed.contains(&to))
}

/// `(path relative to the root with '/', text)` of all source, configuration, pages and modules.
fn text_files(root: &Path) -> Outcome<Vec<(String, String)>> {
    let is_text = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let known = ["rs", "md", "toml", "ptx", "sh", "py"];
        path.extension().is_some_and(|ext| known.iter().any(|k| ext == *k)) || name == "run"
    };
    let skipped = |path: &Path| {
        path == root.join("target") || path == root.join(".git") || path == root.join(".device")
    };
    let mut files = Vec::new();
    for path in workspace::files(root, &skipped)?.into_iter().filter(|path| is_text(path)) {
        let text = fs::read_to_string(&path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
        let relative: PathBuf = path.strip_prefix(root).unwrap_or(&path).into();
        files.push((relative.display().to_string(), text));
    }
    Ok(files)
}

/// Inline assembly stands in kernels/src/ptx alone: elsewhere the emulator would not see what it does.
fn assembly_outside_its_home(name: &str, text: &str) -> Option<String> {
    // Put together here so that this file is no breach of itself.
    let invocation = concat!("asm", "!(");
    if !name.ends_with(".rs") || name.starts_with("kernels/src/ptx/") {
        return None;
    }
    let line =
        text.lines().position(|line| line.contains(invocation) && !line.trim_start().starts_with("//"))?;
    Some(format!("{name}:{}: assembly outside kernels/src/ptx", line + 1))
}

fn local_paths(name: &str, text: &str) -> Option<String> {
    let prefixes =
        [concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/wo", "rk/"), concat!("/Us", "ers/")];
    // A path starts after something that is no part of a path: the same letters within an address are none.
    let starts = |line: &str, prefix: &str| {
        line.match_indices(prefix).any(|(at, _)| {
            !line[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || "/._-})>".contains(c))
        })
    };
    let line = text.lines().position(|line| prefixes.iter().any(|prefix| starts(line, prefix)))?;
    Some(format!("{name}:{}: a path of somebody's machine", line + 1))
}

fn length(name: &str, text: &str) -> Option<String> {
    let lines = text.lines().count();
    (name.ends_with(".rs") && lines > LONG_FILE_LINES).then(|| format!("{name} has {lines} lines"))
}

/// Every spec is of a kernel that has a folder of its stem, and is in both modules; every kernel folder has a spec.
fn kernels(files: &[(String, String)]) -> Vec<String> {
    let folders: Vec<&str> = files
        .iter()
        .filter_map(|(name, _)| name.strip_prefix("kernels/src/")?.strip_suffix("/kernel.rs"))
        .collect();
    let is_of = |kernel: &str, folder: &str| {
        kernel.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
    };
    let mut breaches = Vec::new();
    let all = || KERNELS.iter().chain(KERNELS_SM90A);
    for spec in all() {
        if !folders.iter().any(|folder| is_of(spec.name, folder)) {
            breaches.push(format!("kernel {}: no folder of its stem in kernels/src", spec.name));
        }
        let everywhere = KERNELS.iter().any(|one| one.name == spec.name);
        for (arch, text) in [("sm_80", module::SM_80), ("sm_90a", module::SM_90A)] {
            if (everywhere || arch == "sm_90a") && !text.contains(&format!(".entry {}(", spec.name)) {
                breaches
                    .push(format!("kernels/ptx/{arch}.ptx: no entry '{}'; run 'cargo xtask ptx'", spec.name));
            }
        }
    }
    for folder in folders {
        if !all().any(|spec| is_of(spec.name, folder)) {
            breaches.push(format!("kernels/src/{folder}: no spec of it in the kernels crate"));
        }
    }
    breaches
}

fn stale_modules(root: &Path) -> Outcome<Vec<String>> {
    let current = source_hash(&root.join("kernels/src")).map_err(|e| e.to_string())?;
    let modules = [("sm_80", module::SM_80), ("sm_90a", module::SM_90A)];
    let stale = modules.iter().filter(|(_, text)| Header::source_of(text) != Some(&current));
    Ok(stale
        .map(|(arch, _)| format!("kernels/ptx/{arch}.ptx is not of this source; run 'cargo xtask ptx'"))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_point_one_way() {
        assert!(may_depend("tilewright-host", "tilewright-kernels"));
        assert!(!may_depend("tilewright-kernels", "tilewright-host"));
        assert!(!may_depend("tilewright-simt", "tilewright-reference"));
    }

    #[test]
    fn assembly_is_found_outside_its_home() {
        let text = format!("fn f() {{\n    {}\"nop;\") }}", concat!("asm", "!("));
        assert!(
            assembly_outside_its_home("host/src/lib.rs", &text)
                .is_some_and(|b| b.starts_with("host/src/lib.rs:2:"))
        );
        assert_eq!(assembly_outside_its_home("kernels/src/ptx/sync.rs", &text), None);
        assert_eq!(assembly_outside_its_home("a.rs", &format!("// {text}").replace('\n', " ")), None);
    }

    #[test]
    fn local_paths_are_told_from_addresses() {
        let path = concat!("/ho", "me/me");
        assert!(local_paths("a.md", &format!("x\nsee {path}/a")).is_some_and(|b| b.starts_with("a.md:2:")));
        assert_eq!(local_paths("a.md", &format!("https://example.org{path}")), None);
    }

    #[test]
    fn this_workspace_has_a_folder_for_each_kernel() {
        let all = || KERNELS.iter().chain(KERNELS_SM90A);
        let files: Vec<_> =
            all().map(|spec| (format!("kernels/src/{}/kernel.rs", spec.name), String::new())).collect();
        assert_eq!(kernels(&files), Vec::<String>::new());
        assert_eq!(kernels(&[]).len(), all().count());
    }
}
