//! What tests of planted bugs share.

// Each test takes what it needs.
#![allow(dead_code)]

use tilewright_simt::{Fault, FaultKind, Order, Report};

/// The deterministic order and `seeds` random ones.
pub fn orders(seeds: u64) -> impl Iterator<Item = Order> {
    std::iter::once(Order::Deterministic).chain((0..seeds).map(Order::Seeded))
}

/// The fault that every order finds, of this kind and on a line of `source` that ends with the comment "caught"; that of the
/// deterministic order.
pub fn caught(
    source: &str,
    seeds: u64,
    kind: FaultKind,
    mut run: impl FnMut(Order) -> Result<Report, Fault>,
) -> Fault {
    let faults: Vec<Fault> = orders(seeds).map(|order| run(order).expect_err("a planted bug")).collect();
    for fault in &faults {
        assert_eq!(fault.kind, kind, "{fault}");
        let location = fault.at.and_then(|at| at.location).unwrap_or_else(|| panic!("no line: {fault}"));
        let line = source.lines().nth(location.line() as usize - 1).expect("a line of the source");
        assert!(line.ends_with("// caught"), "{fault}: {line}");
    }
    faults[0].clone()
}
