use std::fmt::Write as _;

use crate::{Assembly, Entry};

/// The resources of modules as a page of Markdown.
pub fn markdown(modules: &[Assembly]) -> String {
    let mut text = String::from(
        "# Resources of the kernels\n\nMade by `cargo xtask ptx`; edits will be lost. Registers and stack are a thread's, shared memory a \
         block's; spills are bytes\nstored + loaded.\n",
    );
    for module in modules {
        // Writing to a String does not fail.
        let _ = write!(
            text,
            "\n## {}, ptxas {}\n\n| kernel | threads | blocks/SM at least | registers | stack | spills | static shared | dynamic shared | barriers |\n\
             |---|---|---|---|---|---|---|---|---|\n",
            module.arch, module.ptxas
        );
        for k in &module.kernels {
            let none = Entry::new(&k.name);
            let entry = module.entries.iter().find(|e| e.name == k.name).unwrap_or(&none);
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} + {} | {} | {} | {} |",
                k.name,
                entry.threads,
                entry.min_blocks,
                k.registers,
                k.stack_bytes,
                k.spill_store_bytes,
                k.spill_load_bytes,
                k.shared_bytes,
                entry.dynamic_shared_bytes,
                k.barriers
            );
        }
        for entry in &module.entries {
            if let Some(reason) = &entry.allowance {
                let _ = write!(text, "\nAllowance of {}: {reason}\n", entry.name);
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Arch, KernelResources};

    #[test]
    fn a_row_has_what_was_declared_and_what_was_found() {
        let entry = Entry {
            threads: 128,
            min_blocks: 2,
            dynamic_shared_bytes: 4096,
            allowance: Some("small table".into()),
            ..Entry::new("foo")
        };
        let kernel = KernelResources { name: "foo".into(), registers: 40, barriers: 1, ..Default::default() };
        let module = Assembly {
            arch: Arch::Sm80,
            ptxas: "13.0.88".into(),
            entries: vec![entry],
            kernels: vec![kernel],
        };
        let text = markdown(&[module]);
        assert!(text.contains("\n| foo | 128 | 2 | 40 | 0 | 0 + 0 | 0 | 4096 | 1 |\n"), "{text}");
        assert!(text.contains("Allowance of foo: small table"), "{text}");
    }
}
