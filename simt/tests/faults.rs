//! Kernels with one planted bug each: the fault must be of the right kind and name the right lane and line.

use std::cell::Cell;

use tilewright_simt::intrinsic::*;
use tilewright_simt::{Device, Fault, FaultKind, Launch, Order, Place};

/// Runs one block (or `blocks`) in every order; the fault of the deterministic one. All must be of the same kind.
fn caught(device: &mut Device, blocks: u32, threads: u32, shared_bytes: u32, kernel: &dyn Fn()) -> Fault {
    let mut run = |order| {
        let launch = Launch { name: "planted", grid: [blocks, 1, 1], threads, shared_bytes, order };
        device.launch(&launch, kernel).expect_err("a planted bug")
    };
    let fault = run(Order::Deterministic);
    for seed in 0..8 {
        let seeded = run(Order::Seeded(seed));
        assert_eq!(seeded.kind, fault.kind, "{seeded}");
        assert!(seeded.to_string().ends_with(&format!("[seed {seed}]")), "{seeded}");
        assert_eq!(seeded, run(Order::Seeded(seed)));
    }
    assert!(fault.to_string().starts_with(&format!("planted: {}: ", fault.kind)), "{fault}");
    assert!(!fault.to_string().contains('\n'), "{fault}");
    fault
}

/// The kernels mark the line that must be named, and that of the other lane, with a comment.
fn assert_marked(fault: &Fault, place: Place, mark: &str) {
    let location = place.location.unwrap_or_else(|| panic!("no line: {fault}"));
    assert!(location.file().ends_with("faults.rs"), "{fault}");
    let line =
        include_str!("faults.rs").lines().nth(location.line() as usize - 1).expect("a line of this file");
    assert!(line.rsplit("// ").next().is_some_and(|comment| comment.contains(mark)), "{fault}: {line}");
}

fn assert_fault(fault: &Fault, kind: FaultKind, thread: u32) {
    let at = fault.at.unwrap_or_else(|| panic!("no lane: {fault}"));
    assert_eq!((fault.kind, at.thread), (kind, thread), "{fault}");
    assert_marked(fault, at, "caught");
}

fn assert_other(fault: &Fault, thread: u32) {
    let other = fault.other.unwrap_or_else(|| panic!("no other lane: {fault}"));
    assert_eq!(other.thread, thread, "{fault}");
    assert_marked(fault, other, "other");
}

fn filled(device: &mut Device, bytes: usize, name: &str) -> u64 {
    let address = device.alloc(bytes, name);
    device.write(address, &vec![0; bytes]);
    address
}

#[test]
fn global_access_past_the_end_and_before_the_start() {
    let mut device = Device::new();
    let x = filled(&mut device, 4 * 20, "x");
    let after = filled(&mut device, 4 * 20, "after");
    let fault = caught(&mut device, 1, 32, 0, &|| {
        ld_global::<u32>(x + 4 * u64::from(tid_x())); // caught
    });
    assert_fault(&fault, FaultKind::OutOfBounds, 20);
    assert!(fault.to_string().contains("byte 80 of `x` (80 bytes)"), "{fault}");
    let fault = caught(&mut device, 1, 1, 0, &|| st_global(after - 8, 1u64)); // caught
    assert_fault(&fault, FaultKind::OutOfBounds, 0);
    assert!(fault.to_string().contains("byte -8 of `after`"), "{fault}");
    let fault = caught(&mut device, 1, 1, 0, &|| st_global(0, 1u64));
    assert!(fault.to_string().contains("in no allocation"), "{fault}");
}

#[test]
fn global_use_after_free() {
    let mut device = Device::new();
    let x = filled(&mut device, 16, "x");
    device.free(x);
    let fault = caught(&mut device, 1, 1, 0, &|| {
        ld_global::<u32>(x); // caught
    });
    assert_fault(&fault, FaultKind::OutOfBounds, 0);
    assert!(fault.to_string().contains("freed"), "{fault}");
}

#[test]
fn shared_access_past_the_end_and_without_the_base() {
    let mut device = Device::new();
    let fault = caught(&mut device, 1, 64, 4 * 63, &|| st_shared(shared_base() + 4 * tid_x(), 1u32)); // caught
    assert_fault(&fault, FaultKind::OutOfBounds, 63);
    let fault = caught(&mut device, 1, 1, 4 * 63, &|| st_shared(4 * tid_x(), 1u32)); // caught
    assert_fault(&fault, FaultKind::OutOfBounds, 0);
}

#[test]
fn misaligned_accesses() {
    let mut device = Device::new();
    let x = filled(&mut device, 64, "x");
    let fault = caught(&mut device, 1, 1, 0, &|| {
        ld_global::<[u32; 4]>(x + 8); // caught
    });
    assert_fault(&fault, FaultKind::Misaligned, 0);
    let fault = caught(&mut device, 1, 1, 64, &|| st_shared(shared_base() + 2, 1u32)); // caught
    assert_fault(&fault, FaultKind::Misaligned, 0);
    let fault = caught(&mut device, 1, 1, 64, &|| cp_async_16(shared_base(), x + 4, 16)); // caught
    assert_fault(&fault, FaultKind::Misaligned, 0);
    let fault = caught(&mut device, 1, 1, 64, &|| cp_async_16(shared_base() + 8, x, 16)); // caught
    assert_fault(&fault, FaultKind::Misaligned, 0);
    assert!(fault.to_string().contains("expected a multiple of 16"), "{fault}");
}

#[test]
fn reads_of_what_nobody_wrote() {
    let mut device = Device::new();
    let x = device.alloc(64, "x");
    device.write(x, &[0; 7]);
    let load = || {
        ld_global::<u32>(x);
        ld_global::<u32>(x + 4); // caught
    };
    assert_fault(&caught(&mut device, 1, 1, 0, &load), FaultKind::Uninitialised, 0);
    let fault = caught(&mut device, 1, 1, 64, &|| {
        st_shared(shared_base(), 1u16);
        ld_shared::<u32>(shared_base()); // caught
    });
    assert_fault(&fault, FaultKind::Uninitialised, 0);
    // A copy carries the want of a value along; the use of it is the fault.
    let fault = caught(&mut device, 1, 1, 64, &|| {
        st_shared(shared_base(), [1u32; 4]);
        cp_async_16(shared_base(), x, 16);
        cp_async_commit();
        cp_async_wait(0);
        ld_shared::<u32>(shared_base());
        ld_shared::<u32>(shared_base() + 4); // caught
    });
    assert_fault(&fault, FaultKind::Uninitialised, 0);
    device.write(x, &[0; 64]);
    device.poison(x + 4, 1);
    assert_fault(&caught(&mut device, 1, 1, 0, &load), FaultKind::Uninitialised, 0);
    assert_eq!(device.read(x, &mut [0; 5]).expect_err("poisoned").kind, FaultKind::Uninitialised);
    assert!(device.read_raw(x, &mut [0; 5]).is_ok());
    // Shared memory forgets from block to block.
    let fault = caught(&mut device, 2, 1, 64, &|| {
        if ctaid_x() == 0 {
            st_shared(shared_base(), 1u32);
        }
        ld_shared::<u32>(shared_base());
    });
    assert_eq!(fault.at.expect("a lane").block, [1, 0, 0]);
}

#[test]
fn a_missing_barrier() {
    let mut device = Device::new();
    let fault = caught(&mut device, 1, 64, 256, &|| {
        let slot = |i| shared_base() + 4 * (i % 64);
        st_shared(slot(tid_x()), 0u32);
        bar_sync();
        st_shared(slot(tid_x()), tid_x()); // caught
        bar_warp_sync();
        ld_shared::<u32>(slot(tid_x() + 1)); // other
    });
    // Warp 0 reads word 32 first; warp 1's write then has no barrier between.
    assert_fault(&fault, FaultKind::Race, 32);
    assert_other(&fault, 31);
}

#[test]
fn a_missing_barrier_before_a_tile_is_refilled() {
    let mut device = Device::new();
    let x = filled(&mut device, 1024, "x");
    let fault = caught(&mut device, 1, 64, 1024, &|| {
        for _ in 0..2 {
            cp_async_16(shared_base() + 16 * tid_x(), x + 16 * u64::from(tid_x()), 16); // other
            cp_async_commit();
            cp_async_wait(0);
            bar_sync();
            ld_shared::<[u32; 4]>(shared_base() + 16 * (tid_x() ^ 32)); // caught
        }
    });
    // Warp 0, which runs first, has landed its second tile when warp 1 reads its first.
    assert_fault(&fault, FaultKind::Race, 32);
    assert_other(&fault, 0);
}

#[test]
fn a_missing_warp_synchronisation() {
    let mut device = Device::new();
    let kernel = |synchronise: bool| {
        st_shared(shared_base() + 4 * tid_x(), 0u32); // caught
        if synchronise {
            bar_warp_sync();
        }
        st_shared(shared_base() + 4 * (tid_x() ^ 1), 1u32); // other
    };
    let launch =
        Launch { name: "good", grid: [1; 3], threads: 32, shared_bytes: 128, order: Order::Deterministic };
    device.launch(&launch, &|| kernel(true)).expect("ordered");
    let fault = caught(&mut device, 1, 32, 128, &|| kernel(false));
    assert_fault(&fault, FaultKind::Race, 1);
    assert_other(&fault, 0);
}

#[test]
fn blocks_race_for_global_memory() {
    let mut device = Device::new();
    let x = filled(&mut device, 64, "x");
    let fault = caught(&mut device, 3, 1, 0, &|| st_global(x + 4 * u64::from(ctaid_x() / 2), 1u32)); // caught
    assert_fault(&fault, FaultKind::Race, 0);
    assert_eq!(fault.at.expect("a lane").block, [1, 0, 0]);
    assert_eq!(fault.other.expect("another").block, [0, 0, 0]);
    let fault = caught(&mut device, 3, 1, 0, &|| match ctaid_x() {
        2 => st_global(x, 1u32),
        _ => drop(ld_global::<u32>(x)),
    });
    assert_eq!(fault.kind, FaultKind::Race, "{fault}");
    // Neighbouring halves of a word belong to different lanes and blocks.
    let launch =
        Launch { name: "good", grid: [4, 1, 1], threads: 4, shared_bytes: 0, order: Order::Seeded(3) };
    let own = || x + 2 * u64::from(4 * ctaid_x() + tid_x());
    device.launch(&launch, &|| st_global(own(), ld_global::<u16>(own()) + 1)).expect("no race");
    // An atomic races with a store.
    let fault = caught(&mut device, 2, 1, 0, &|| match ctaid_x() {
        0 => drop(atom_add_global(x, 1u32)),
        _ => st_global(x, 1u32),
    });
    assert_eq!(fault.kind, FaultKind::Race, "{fault}");
    device.check_races(false);
    let launch = Launch {
        name: "unchecked",
        grid: [4, 1, 1],
        threads: 4,
        shared_bytes: 0,
        order: Order::Deterministic,
    };
    device.launch(&launch, &|| st_global(x, 1u32)).expect("races unchecked");
}

#[test]
fn a_named_barrier_orders_nobody_else() {
    let mut device = Device::new();
    let fault = caught(&mut device, 1, 96, 4, &|| match tid_x() / 32 {
        0 => {
            if tid_x() == 0 {
                st_shared(shared_base(), 1u32);
            }
            bar_sync_named(1, 64);
        }
        1 => {
            bar_sync_named(1, 64);
            ld_shared::<u32>(shared_base());
        }
        _ => st_shared(shared_base(), 2u32),
    });
    assert_eq!(fault.kind, FaultKind::Race, "{fault}");
}

#[test]
fn a_divergent_barrier() {
    let mut device = Device::new();
    let fault = caught(&mut device, 1, 64, 0, &|| {
        if tid_x() != 37 {
            bar_sync(); // caught
        }
    });
    assert_fault(&fault, FaultKind::BarrierDivergence, 32);
    assert!(fault.to_string().contains("lane 5 of its warp has finished"), "{fault}");
    let fault = caught(&mut device, 1, 64, 0, &|| {
        if tid_x() < 32 {
            bar_sync(); // caught
        }
    });
    assert_fault(&fault, FaultKind::BarrierDivergence, 0);
    assert!(fault.to_string().contains("warp 1 lane 0 has finished"), "{fault}");
    let fault = caught(&mut device, 1, 64, 0, &|| {
        if tid_x() < 32 {
            bar_sync(); // other
        } else {
            bar_warp_sync();
        }
        bar_sync(); // caught
    });
    assert_fault(&fault, FaultKind::BarrierDivergence, 32);
    assert_other(&fault, 0);
}

#[test]
fn a_deadlock() {
    let mut device = Device::new();
    let fault = caught(&mut device, 1, 64, 0, &|| match tid_x() / 32 {
        0 => bar_sync_named(1, 64), // caught
        _ => bar_sync_named(2, 64), // other
    });
    assert_fault(&fault, FaultKind::Deadlock, 0);
    assert_other(&fault, 32);
}

#[test]
fn a_loop_without_end() {
    let mut device = Device::new();
    let x = filled(&mut device, 4, "x");
    device.limit_steps(1 << 17);
    let fault = caught(&mut device, 1, 32, 0, &|| while atom_add_global(x, 0u32) == 0 {});
    assert_eq!(fault.kind, FaultKind::Deadlock, "{fault}");
    let fault = caught(&mut device, 1, 32, 0, &|| while ballot(true) != 0 {});
    assert_eq!(fault.kind, FaultKind::Deadlock, "{fault}");
    // A lane that waits for another of its block does let it run.
    let launch =
        Launch { name: "spin", grid: [1; 3], threads: 64, shared_bytes: 0, order: Order::Deterministic };
    let spin = || match tid_x() {
        63 => drop(atom_add_global(x, 1u32)),
        _ => while atom_add_global(x, 0u32) == 0 {},
    };
    device.limit_steps(u64::MAX);
    device.launch(&launch, &spin).expect("ends");
}

#[test]
fn copies_in_flight() {
    let mut device = Device::new();
    let x = filled(&mut device, 256, "x");
    let base = || shared_base() + 16 * tid_x();
    let fault = caught(&mut device, 1, 1, 512, &|| {
        cp_async_16(base(), x, 16); // other
        cp_async_commit();
        cp_async_wait(1);
        ld_shared::<u32>(base() + 4); // caught
    });
    assert_fault(&fault, FaultKind::InFlight, 0);
    assert_other(&fault, 0);
    let fault = caught(&mut device, 1, 1, 512, &|| {
        cp_async_16(base(), x, 16);
        cp_async_wait(0);
        st_shared(base() + 4, 1u32); // caught
    });
    assert_fault(&fault, FaultKind::InFlight, 0);
    let fault = caught(&mut device, 1, 1, 512, &|| {
        cp_async_16(base(), x, 16);
        cp_async_16(base(), x, 16); // caught
    });
    assert_fault(&fault, FaultKind::InFlight, 0);
    let fault = caught(&mut device, 1, 1, 512, &|| {
        cp_async_16(base(), x, 16); // caught
        cp_async_commit();
    });
    assert_fault(&fault, FaultKind::InFlight, 0);
    // Waiting tells the waiting lane alone.
    let fault = caught(&mut device, 1, 32, 512, &|| {
        cp_async_16(base(), x + 16 * u64::from(tid_x() % 16), 16);
        cp_async_commit();
        bar_warp_sync();
        cp_async_wait(0);
        ld_shared::<u32>(shared_base() + 16 * (tid_x() ^ 1));
    });
    assert!(matches!(fault.kind, FaultKind::InFlight | FaultKind::Race), "{fault}");
}

#[test]
fn lanes_that_disagree() {
    let mut device = Device::new();
    let fault = caught(&mut device, 1, 64, 0, &|| match tid_x() {
        40 => drop(shfl_up(1, 1)),  // other
        _ => drop(shfl_bfly(1, 1)), // caught
    });
    assert_fault(&fault, FaultKind::WarpDivergence, 32);
    assert_other(&fault, 40);
    let fault = caught(&mut device, 1, 32, 0, &|| {
        if tid_x() < 16 { bar_warp_sync() } else { bar_sync() } // caught
    });
    assert_fault(&fault, FaultKind::WarpDivergence, 0);
    let fault = caught(&mut device, 1, 32, 0, &|| {
        if tid_x() > 3 {
            ballot(true); // caught
        }
    });
    assert_fault(&fault, FaultKind::WarpDivergence, 4);
    let fault = caught(&mut device, 1, 16, 512, &|| {
        ldmatrix_x4(shared_base());
    });
    assert_eq!(fault.kind, FaultKind::WarpDivergence, "{fault}");
}

#[test]
fn ldmatrix_rows_are_checked_as_accesses_of_the_lane_that_names_them() {
    let mut device = Device::new();
    let fault = caught(&mut device, 1, 32, 512, &|| {
        if tid_x() < 31 {
            st_shared(shared_base() + 16 * tid_x(), [1u32; 4]);
        }
        bar_warp_sync();
        ldmatrix_x4(shared_base() + 16 * tid_x()); // caught
    });
    assert_fault(&fault, FaultKind::Uninitialised, 31);
    let fault = caught(&mut device, 1, 32, 512, &|| {
        st_shared(shared_base() + 16 * tid_x(), [1u32; 4]);
        ldmatrix_x4(shared_base() + 16 * (tid_x() ^ 1)); // caught
    });
    assert_fault(&fault, FaultKind::Race, 0);
}

#[test]
fn a_panic_is_a_fault_and_unwinds_the_other_lanes() {
    struct Counted<'a>(&'a Cell<i32>);
    impl Drop for Counted<'_> {
        fn drop(&mut self) {
            self.0.set(self.0.get() - 1);
        }
    }
    let alive = Cell::new(0);
    let mut device = Device::new();
    let fault = caught(&mut device, 1, 64, 0, &|| {
        alive.set(alive.get() + 1);
        let _counted = Counted(&alive);
        bar_sync();
        let table = [0; 40];
        std::hint::black_box(table[tid_x() as usize]);
        bar_sync();
    });
    assert_eq!(alive.get(), 0);
    assert_eq!(fault.kind, FaultKind::Panic, "{fault}");
    assert_eq!(fault.at.expect("a lane").thread, 40);
    assert!(fault.to_string().contains("index out of bounds: the len is 40 but the index is 40"), "{fault}");
    // The device goes on working.
    let launch =
        Launch { name: "next", grid: [1; 3], threads: 64, shared_bytes: 0, order: Order::Deterministic };
    assert_eq!(device.launch(&launch, &bar_sync).expect("a barrier").barriers, 1);
}

#[test]
fn launches_no_device_accepts() {
    let mut device = Device::new();
    let good =
        Launch { name: "bad", grid: [1; 3], threads: 32, shared_bytes: 0, order: Order::Deterministic };
    for bad in [
        Launch { grid: [1, 0, 1], ..good },
        Launch { grid: [1, 65536, 1], ..good },
        Launch { threads: 0, ..good },
        Launch { threads: 1025, ..good },
        Launch { shared_bytes: 228 << 10, ..good },
    ] {
        let fault = device.launch(&bad, &|| {}).expect_err("refused");
        assert_eq!(fault.kind, FaultKind::InvalidLaunch, "{fault}");
    }
}
