//! What may not be done while `wgmma` is on its way.

mod operands;
mod support;

use operands::*;
use support::orders;
use tilewright_simt::intrinsic::*;
use tilewright_simt::{Device, Fault, FaultKind, Launch, Order};

fn caught(device: &mut Device, kind: FaultKind, kernel: &dyn Fn()) -> Fault {
    support::caught(include_str!("wgmma_faults.rs"), 4, kind, |order| run(device, 128, order, kernel))
}

#[test]
fn accumulators_in_flight() {
    let mut device = Device::new();
    let out = device.alloc(64 * 64 * 4, "out");
    // Stored before the wait: what comes out is no number.
    let early = || {
        fill_both();
        let mut d = [0f32; 32];
        wgmma_fence();
        step(&mut d, 0, false);
        wgmma_commit();
        store(out, 64, &d);
        wgmma_wait(0, &mut d);
    };
    run(&mut device, 128, Order::Deterministic, &early).unwrap_or_else(|fault| panic!("{fault}"));
    let mut got = vec![0; 64 * 64 * 4];
    device.read(out, &mut got).unwrap_or_else(|fault| panic!("{fault}"));
    assert!(got.chunks_exact(4).all(|d| f32::from_le_bytes([d[0], d[1], d[2], d[3]]).is_nan()));
    // Scaled before the wait.
    caught(&mut device, FaultKind::InFlight, &|| {
        fill_both();
        let mut d = [0f32; 32];
        wgmma_fence();
        step(&mut d, 0, false);
        wgmma_commit();
        d.iter_mut().for_each(|d| *d = std::hint::black_box(*d * 0.5));
        wgmma_wait(0, &mut d); // caught
    });
    caught(&mut device, FaultKind::InFlight, &|| {
        fill_both();
        let mut d = [0f32; 32];
        wgmma_fence();
        step(&mut d, 0, false);
        d[7] = 0.0;
        step(&mut d, 16, true); // caught
    });
    // Two accumulators that have changed places in part.
    caught(&mut device, FaultKind::InFlight, &|| {
        fill_both();
        let (mut d, mut e) = ([0f32; 32], [0f32; 32]);
        wgmma_fence();
        step(&mut d, 0, false);
        step(&mut e, 0, false);
        std::mem::swap(&mut d[3], &mut e[3]);
        wgmma_commit();
        wgmma_wait(0, &mut d); // caught
    });
    // A copy of accumulators that the wait has given back.
    caught(&mut device, FaultKind::InFlight, &|| {
        fill_both();
        let mut d = [0f32; 32];
        wgmma_fence();
        step(&mut d, 0, false);
        wgmma_commit();
        let mut stale = d;
        wgmma_wait(0, &mut d);
        wgmma_fence();
        step(&mut stale, 16, true); // caught
    });
    // Waited for one group too few, or not committed.
    let fault = caught(&mut device, FaultKind::InFlight, &|| {
        fill_both();
        let mut d = [0f32; 32];
        wgmma_fence();
        step(&mut d, 0, false);
        wgmma_commit();
        wgmma_wait(1, &mut d); // caught
    });
    assert!(fault.other.is_some(), "{fault}");
    caught(&mut device, FaultKind::InFlight, &|| {
        fill_both();
        let mut d = [0f32; 32];
        wgmma_fence();
        step(&mut d, 0, false);
        wgmma_wait(0, &mut d); // caught
    });
    let fault = caught(&mut device, FaultKind::InFlight, &|| {
        fill_both();
        let mut d = [0f32; 32];
        wgmma_fence();
        step(&mut d, 0, false); // caught
        wgmma_commit();
    });
    assert!(fault.to_string().contains("ended before it waited for its wgmma"), "{fault}");
}

#[test]
fn operands_in_flight_and_fences() {
    let mut device = Device::new();
    // Written before the wait, by the warps that multiply and by one that has met them.
    let fault = caught(&mut device, FaultKind::Race, &|| {
        fill_both();
        let mut d = [0f32; 32];
        wgmma_fence();
        step(&mut d, 0, false);
        wgmma_commit();
        bar_sync();
        st_shared(b_base() + 4 * tid_x(), 0u32); // caught
        wgmma_wait(0, &mut d);
    });
    assert!(fault.to_string().contains("unordered with a read"), "{fault}");
    // After the wait and a barrier it is free.
    let reused = run(&mut device, 128, Order::Seeded(1), &|| {
        fill_both();
        let mut d = [0f32; 32];
        wgmma_fence();
        step(&mut d, 0, false);
        wgmma_commit();
        wgmma_wait(0, &mut d);
        bar_sync();
        st_shared(b_base() + 4 * tid_x(), 0u32);
    });
    reused.unwrap_or_else(|fault| panic!("{fault}"));
    let without = |proxy: bool, barrier: bool, fence: bool| {
        A.fill(a_base(), WgmmaType::Bf16, 1);
        B.fill(b_base(), WgmmaType::Bf16, 2);
        if proxy {
            fence_proxy_async();
        }
        if barrier {
            bar_sync();
        }
        let mut d = [0f32; 32];
        if fence {
            wgmma_fence();
        }
        step(&mut d, 0, false); // caught
        wgmma_commit();
        wgmma_wait(0, &mut d);
    };
    caught(&mut device, FaultKind::MissingFence, &|| without(false, true, true));
    caught(&mut device, FaultKind::Race, &|| without(true, false, true));
    caught(&mut device, FaultKind::MissingFence, &|| without(true, true, false));
    // Registers touched after a wait need another fence.
    caught(&mut device, FaultKind::MissingFence, &|| {
        fill_both();
        let mut d = [0f32; 32];
        wgmma_fence();
        step(&mut d, 0, false);
        wgmma_commit();
        wgmma_wait(0, &mut d);
        step(&mut d, 0, true); // caught
    });
    caught(&mut device, FaultKind::Uninitialised, &|| {
        A.fill(a_base(), WgmmaType::Bf16, 1);
        fence_proxy_async();
        bar_sync();
        wgmma_fence();
        step(&mut [0f32; 32], 0, false); // caught
    });
}

#[test]
fn every_warp_has_to_see_the_operands() {
    let mut device = Device::new();
    for absent in 0..5 {
        let kernel = || {
            let bar = shared_base() + 2 * OPERAND_BYTES - 8;
            if tid_x() == 0 {
                mbarrier_init(bar, 128);
            }
            bar_sync();
            A.fill(a_base(), WgmmaType::Bf16, 1);
            B.fill(b_base(), WgmmaType::Bf16, 2);
            fence_proxy_async();
            mbarrier_arrive(bar);
            if tid_x() / 32 != absent {
                while !mbarrier_try_wait_parity(bar, 0) {}
            }
            let mut d = [0f32; 32];
            wgmma_fence();
            step(&mut d, 0, false); // caught
            wgmma_commit();
            wgmma_wait(0, &mut d);
        };
        if absent < 4 {
            let fault = caught(&mut device, FaultKind::Race, &kernel);
            assert_eq!(fault.at.expect("a lane").thread / 32, absent, "{fault}");
        } else {
            run(&mut device, 128, Order::Seeded(3), &kernel).unwrap_or_else(|fault| panic!("{fault}"));
        }
    }
}

#[test]
fn a_warpgroup_waits_for_its_own_products_alone() {
    let mut device = Device::new();
    let kernel = |late: bool| {
        fill_both();
        let second = tid_x() >= 128;
        let mut d = [0f32; 32];
        // The second warpgroup multiplies first; the first one then waits for its own product and writes an operand.
        if !second {
            bar_sync_named(1, 256);
        }
        wgmma_fence();
        step(&mut d, 0, false);
        wgmma_commit();
        if second && late {
            bar_arrive_named(1, 256);
        }
        wgmma_wait(0, &mut d);
        if second && !late {
            bar_arrive_named(1, 256);
        }
        if !second {
            bar_sync_named(2, 128);
            st_shared(b_base() + 4 * tid_x(), 0u32);
        }
    };
    for order in orders(8) {
        run(&mut device, 256, order, &|| kernel(false)).unwrap_or_else(|fault| panic!("{fault}"));
        let fault = run(&mut device, 256, order, &|| kernel(true)).expect_err("a race");
        assert_eq!((fault.kind, fault.other.expect("a warpgroup").thread), (FaultKind::Race, 128), "{fault}");
    }
}

#[test]
fn operands_that_no_device_takes() {
    let mut device = Device::new();
    let issue = |n: u32, registers: usize, a: u64| {
        fill_both();
        let mut d = [0f32; 144];
        wgmma_fence();
        let b = B.descriptor(b_base(), 0, 0);
        wgmma_ss(WgmmaType::Bf16, n, &mut d[..registers], a, b, false, false, true); // caught
    };
    let a = || A.descriptor(a_base(), 0, 0);
    for (n, registers) in [(60, 30), (0, 0), (264, 132), (64, 33), (64, 31)] {
        caught(&mut device, FaultKind::InvalidOperand, &|| issue(n, registers, a()));
    }
    for bits in [1 << 14, 1 << 30, 1 << 46, 1 << 52, 1 << 49] {
        caught(&mut device, FaultKind::InvalidOperand, &|| issue(64, 32, a() | bits));
    }
    caught(&mut device, FaultKind::OutOfBounds, &|| issue(64, 32, a() | 0x3fff));
    caught(&mut device, FaultKind::WarpDivergence, &|| issue(64, 32, a() + u64::from(tid_x() / 96)));
    let launch =
        Launch { name: "wgmma", grid: [1; 3], threads: 96, shared_bytes: 1024, order: Order::Deterministic };
    let fault = device.launch(&launch, &|| {
        wgmma_rs(WgmmaType::F16, 8, &mut [0f32; 4], [0; 4], 0, false, false);
    });
    assert_eq!(fault.expect_err("three warps").kind, FaultKind::WarpDivergence);
    // One warp goes another way.
    let fault = caught(&mut device, FaultKind::Deadlock, &|| {
        fill_both();
        wgmma_fence();
        if tid_x() >= 32 {
            step(&mut [0f32; 32], 0, false); // caught
        }
    });
    assert!(fault.to_string().contains("for the rest of its warpgroup"), "{fault}");
}
