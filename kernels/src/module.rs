//! The PTX made of this crate, one module an architecture, and the parts it comes apart into. `cargo xtask ptx` regenerates it.

use crate::{KERNELS, KERNELS_SM90A, abi::KernelSpec};

/// Ampere and everything newer.
pub static SM_80: &str = include_str!("../ptx/sm_80.ptx");
/// Compute capability 9.0 alone.
pub static SM_90A: &str = include_str!("../ptx/sm_90a.ptx");

/// The best module for a device, or none where the device is older than Ampere.
pub fn ptx_for(compute_capability: (u32, u32)) -> Option<&'static str> {
    match compute_capability {
        (9, 0) => Some(SM_90A),
        (major, _) if major >= 8 => Some(SM_80),
        _ => None,
    }
}

/// The entries of that module.
pub fn kernels_for(compute_capability: (u32, u32)) -> impl Iterator<Item = &'static KernelSpec> {
    let hopper = if compute_capability == (9, 0) { KERNELS_SM90A } else { &[] };
    KERNELS.iter().chain(hopper).copied()
}

/// A module taken apart, so that a driver compiles the kernels that are launched and no others.
#[derive(Debug, Clone)]
pub struct Parts<'a> {
    /// What is no entry: version, target, declarations, functions. No comments, so that a kernel that stayed the same has the same text.
    common: String,
    /// Names and texts, in the module's order.
    entries: Vec<(&'a str, &'a str)>,
}

/// What an entry's first line begins with.
const ENTRY: &str = ".visible .entry ";

impl<'a> Parts<'a> {
    /// Takes a module apart: an entry is what stands from its first line to a line that is nothing but its closing brace.
    pub fn of(module: &'a str) -> Parts<'a> {
        let mut parts = Parts { common: String::new(), entries: Vec::new() };
        let (mut at, mut open) = (0, None);
        for line in module.split_inclusive('\n') {
            if let Some(rest) = line.strip_prefix(ENTRY) {
                let name = rest.split('(').next().unwrap_or(rest).trim_end();
                open = Some((name, at));
            }
            at += line.len();
            match open {
                None if line.starts_with("//") => {}
                None => parts.common.push_str(line),
                Some((name, first)) if line.trim_end() == "}" => {
                    parts.entries.push((name, &module[first..at]));
                    open = None;
                }
                Some(_) => {}
            }
        }
        parts
    }

    /// The names of the entries, in the module's order.
    pub fn entries(&self) -> impl Iterator<Item = &'a str> + '_ {
        self.entries.iter().map(|(name, _)| *name)
    }

    /// A module of one entry.
    pub fn module_of(&self, entry: &str) -> Option<String> {
        let (_, text) = self.entries.iter().find(|(name, _)| *name == entry)?;
        Some([&self.common, *text].concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_is_in_one_part_and_nothing_is_lost() {
        for capability in [(8, 0), (9, 0)] {
            let module = ptx_for(capability).expect("a module");
            let parts = Parts::of(module);
            let mut found: Vec<&str> = parts.entries().collect();
            let mut listed: Vec<&str> = kernels_for(capability).map(|spec| spec.name).collect();
            found.sort_unstable();
            listed.sort_unstable();
            assert_eq!(found, listed);
            let comments = module.split_inclusive('\n').filter(|line| line.starts_with("//"));
            let bytes = |texts: &mut dyn Iterator<Item = &str>| texts.map(str::len).sum::<usize>();
            let entries = bytes(&mut parts.entries.iter().map(|(_, text)| *text));
            assert_eq!(parts.common.len() + entries + bytes(&mut comments.into_iter()), module.len());
            for name in listed {
                let part = parts.module_of(name).expect("a part");
                assert_eq!(part.matches(".entry ").count(), 1, "{name}");
                assert!(part.contains(&format!(".entry {name}(")), "{name}");
                let target = module.lines().find(|line| line.starts_with(".target ")).expect("a target");
                let first: Vec<&str> = part.lines().filter(|line| !line.is_empty()).take(3).collect();
                assert!(first[0].starts_with(".version ") && first[1] == target, "{first:?}");
                assert_eq!(first[2], ".address_size 64");
                let mut called = part.lines().filter_map(|line| line.trim().strip_prefix("call.uni "));
                assert!(called.all(|callee| {
                    let callee = callee.split(',').next().unwrap_or(callee);
                    part.lines().any(|line| line.starts_with(".func ") && line.contains(callee))
                }));
            }
            assert_eq!(parts.module_of("gemm"), None);
        }
    }

    #[test]
    fn comments_are_not_of_the_parts() {
        let module = "// source: 1\n.version 8.0\n.target t\n.visible .entry a(\n\t.param .b32 p\n)\n{\n\t{\n\t}\n}\n.func f()\n{\n}\n\
            .visible .entry b()\n{\n}\n";
        let parts = Parts::of(module);
        assert_eq!(parts.entries().collect::<Vec<_>>(), ["a", "b"]);
        let b = ".version 8.0\n.target t\n.func f()\n{\n}\n.visible .entry b()\n{\n}\n";
        assert_eq!(parts.module_of("b").as_deref(), Some(b));
    }
}
