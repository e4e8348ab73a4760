//! Mbarriers used alone, named barriers that some only arrive at, and the instructions that only ask who executes them.

use tilewright_simt::intrinsic::*;
use tilewright_simt::{Device, Fault, FaultKind, Launch, Order, Report};

fn run(threads: u32, order: Order, kernel: &dyn Fn()) -> Result<Report, Fault> {
    let launch = Launch { name: "barriers", grid: [1; 3], threads, shared_bytes: 4096, order };
    Device::new().launch(&launch, kernel)
}

fn orders(count: u64) -> impl Iterator<Item = Order> {
    std::iter::once(Order::Deterministic).chain((0..count).map(Order::Seeded))
}

fn right(threads: u32, kernel: &dyn Fn()) {
    for order in orders(50) {
        run(threads, order, kernel).unwrap_or_else(|fault| panic!("{fault}"));
    }
}

/// The fault that every order finds on a line marked "caught".
fn caught(threads: u32, kind: FaultKind, kernel: &dyn Fn()) -> Fault {
    let mut faults = orders(20).map(|order| run(threads, order, kernel).expect_err("a planted bug"));
    let first = faults.next().expect("one order at least");
    for fault in std::iter::once(first.clone()).chain(faults) {
        assert_eq!(fault.kind, kind, "{fault}");
        let location = fault.at.and_then(|at| at.location).unwrap_or_else(|| panic!("no line: {fault}"));
        let line = include_str!("barriers.rs")
            .lines()
            .nth(location.line() as usize - 1)
            .expect("a line of this file");
        assert!(line.ends_with("// caught"), "{fault}: {line}");
    }
    first
}

fn bar() -> u32 {
    shared_base() + 64
}

fn init(count: u32) {
    if tid_x() == 0 {
        mbarrier_init(bar(), count);
    }
    bar_sync();
}

#[test]
fn a_wait_that_cannot_be_over_answers_false() {
    right(1, &|| {
        init(1);
        assert!(mbarrier_try_wait_parity(bar(), 1), "the phase before the first counts as complete");
        for round in 0..4u32 {
            assert!(!mbarrier_try_wait_parity(bar(), round & 1));
            mbarrier_arrive(bar());
            assert!(mbarrier_try_wait_parity(bar(), round & 1));
        }
    });
    // Two lanes that look before they do their part.
    right(64, &|| {
        init(64);
        mbarrier_try_wait_parity(bar(), 0);
        mbarrier_arrive(bar());
        while !mbarrier_try_wait_parity(bar(), 0) {}
    });
}

#[test]
fn arrivals_release_and_waits_acquire() {
    let data = |i: u32| shared_base() + 128 + 4 * (i % 96);
    right(96, &|| {
        init(96);
        for round in 0..3 {
            st_shared(data(tid_x()), round * 100 + tid_x());
            mbarrier_arrive(bar());
            while !mbarrier_try_wait_parity(bar(), round & 1) {}
            assert_eq!(ld_shared::<u32>(data(tid_x() + 33)), round * 100 + (tid_x() + 33) % 96);
            bar_sync();
        }
    });
    // One arrives for all of its warp, and has to meet them first.
    let one_for_all = |synchronise: bool| {
        init(3);
        st_shared(data(tid_x()), tid_x()); // caught
        if synchronise {
            bar_warp_sync();
        }
        if tid_x().is_multiple_of(32) {
            mbarrier_arrive(bar());
        }
        while !mbarrier_try_wait_parity(bar(), 0) {}
        ld_shared::<u32>(data(tid_x() + 33)); // caught
    };
    right(96, &|| one_for_all(true));
    let fault = run(96, Order::Deterministic, &|| one_for_all(false)).expect_err("a race");
    assert!(matches!(fault.kind, FaultKind::Race | FaultKind::Uninitialised), "{fault}");
    // Without waiting.
    caught(64, FaultKind::Race, &|| {
        init(64);
        st_shared(data(0) + 4 * (tid_x() / 32), 1u32); // caught
        bar_sync();
        if tid_x() == 0 {
            st_shared(data(0), 2u32); // caught
            mbarrier_arrive(bar());
        }
        if tid_x() == 32 {
            ld_shared::<u32>(data(0)); // caught
        }
    });
}

#[test]
fn misused_mbarriers() {
    caught(1, FaultKind::Mbarrier, &|| mbarrier_arrive(bar())); // caught
    caught(1, FaultKind::Mbarrier, &|| mbarrier_arrive_expect_tx(bar(), 16)); // caught
    caught(1, FaultKind::Mbarrier, &|| {
        mbarrier_try_wait_parity(bar(), 0); // caught
    });
    caught(1, FaultKind::Mbarrier, &|| mbarrier_init(bar(), 0)); // caught
    caught(1, FaultKind::Misaligned, &|| mbarrier_init(bar() + 4, 1)); // caught
    caught(1, FaultKind::OutOfBounds, &|| mbarrier_init(shared_base() + 4096, 1)); // caught
    let fault = caught(1, FaultKind::Mbarrier, &|| {
        init(1);
        mbarrier_arrive_expect_tx(bar(), 16);
        mbarrier_arrive(bar()); // caught
    });
    assert!(fault.to_string().contains("0 of 1 arrivals to come, 16 bytes to land"), "{fault}");
    caught(1, FaultKind::Mbarrier, &|| {
        init(2);
        mbarrier_arrive_expect_tx(bar(), (1 << 20) - 1);
        mbarrier_arrive_expect_tx(bar(), 1); // caught
    });
    caught(1, FaultKind::InvalidOperand, &|| {
        init(1);
        mbarrier_try_wait_parity(bar(), 2); // caught
    });
    // An mbarrier isn't memory; the half of the 16 bytes that it leaves is.
    caught(1, FaultKind::Mbarrier, &|| {
        init(1);
        st_shared(bar() + 8, 1u64);
        ld_shared::<u32>(bar() + 4); // caught
    });
    caught(1, FaultKind::Mbarrier, &|| {
        init(1);
        st_shared(bar(), [0u32; 4]); // caught
    });
    // Used by a warp that hasn't seen the initialisation, though another's use lies between.
    for order in orders(20) {
        let unseen = run(96, order, &|| match tid_x() {
            0 => {
                mbarrier_init(bar(), 2);
                mbarrier_arrive(bar());
            }
            32 => mbarrier_arrive(bar()),
            _ => {}
        });
        let fault = unseen.expect_err("no barrier after the initialisation");
        assert!(matches!(fault.kind, FaultKind::Race | FaultKind::Mbarrier), "{fault}");
    }
}

#[test]
fn a_phase_that_never_completes() {
    let fault = caught(64, FaultKind::Deadlock, &|| {
        init(3);
        if tid_x() < 2 {
            mbarrier_arrive(bar());
        }
        if tid_x() == 40 {
            while !mbarrier_try_wait_parity(bar(), 0) {} // caught
        }
    });
    assert_eq!(fault.at.expect("a lane").thread, 40);
    assert!(
        fault.to_string().contains("shared byte 64 of 4096 for parity 0: phase 0 has 1 of 3 arrivals"),
        "{fault}"
    );
}

#[test]
fn who_arrives_need_not_wait() {
    let slot = |i: u32| shared_base() + 4 * (i % 32);
    let kernel = |arrive: bool| match tid_x() / 32 {
        0 => {
            for round in 0..4u32 {
                if round > 0 {
                    bar_sync_named(2, 64);
                }
                st_shared(slot(tid_x()), round); // caught
                match arrive {
                    true => bar_arrive_named(1, 64),
                    false => bar_arrive_named(3, 64),
                }
            }
        }
        _ => {
            for round in 0..4u32 {
                if arrive {
                    bar_sync_named(1, 64);
                }
                assert_eq!(ld_shared::<u32>(slot(tid_x() + 5)), round); // caught
                if round < 3 {
                    bar_arrive_named(2, 64);
                }
            }
        }
    };
    right(64, &|| kernel(true));
    for order in orders(20) {
        let fault = run(64, order, &|| kernel(false)).expect_err("unordered");
        assert!(matches!(fault.kind, FaultKind::Race | FaultKind::Uninitialised), "{fault}");
    }
    // The arriving warp has seen nothing of the others.
    caught(64, FaultKind::Race, &|| match tid_x() / 32 {
        0 => {
            bar_arrive_named(1, 64);
            st_shared(slot(tid_x()), 1u32); // caught
        }
        _ => {
            st_shared(slot(tid_x()), 2u32); // caught
            bar_sync_named(1, 64);
        }
    });
    caught(64, FaultKind::BarrierDivergence, &|| match tid_x() / 32 {
        0 => bar_arrive_named(1, 64), // caught
        _ => bar_sync_named(1, 96),   // caught
    });
    caught(64, FaultKind::Deadlock, &|| match tid_x() / 32 {
        0 => bar_arrive_named(1, 96),
        _ => bar_sync_named(1, 96), // caught
    });
    caught(64, FaultKind::BarrierDivergence, &|| bar_arrive_named(16, 64)); // caught
}

#[test]
fn who_executes_what() {
    right(64, &|| {
        assert_eq!(elect(), tid_x().is_multiple_of(32));
        griddepcontrol_wait();
        griddepcontrol_launch_dependents();
        fence_acq_rel_gpu();
    });
    right(256, &|| if tid_x() < 128 { setmaxnreg(24, false) } else { setmaxnreg(240, true) });
    caught(32, FaultKind::WarpDivergence, &|| {
        if tid_x() < 16 {
            elect(); // caught
        }
    });
    // An election orders nothing.
    caught(32, FaultKind::Race, &|| {
        st_shared(shared_base() + 4 * tid_x(), 1u32);
        if elect() {
            st_shared(shared_base() + 4, 1u32); // caught
        }
    });
    for registers in [20, 28, 264] {
        caught(128, FaultKind::InvalidOperand, &|| setmaxnreg(registers, false)); // caught
    }
    caught(128, FaultKind::WarpDivergence, &|| setmaxnreg(24 + 8 * (tid_x() / 64), true)); // caught
    caught(96, FaultKind::WarpDivergence, &|| setmaxnreg(24, true)); // caught
    let fault = caught(128, FaultKind::Deadlock, &|| {
        if tid_x() >= 32 {
            setmaxnreg(24, true); // caught
        }
    });
    assert!(fault.to_string().contains("waits in setmaxnreg for the rest of its warpgroup"), "{fault}");
}
