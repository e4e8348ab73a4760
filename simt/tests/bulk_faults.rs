//! What may not be done with bulk copies.

mod support;

use support::orders;
use tilewright_simt::intrinsic::*;
use tilewright_simt::{Device, Fault, FaultKind, Launch, Order, Report, Swizzle, TensorMap, TensorMapSpec};

/// Bytes of shared memory before the tile: the mbarrier.
const TILE: u32 = 1024;

fn run(device: &mut Device, threads: u32, order: Order, kernel: &dyn Fn()) -> Result<Report, Fault> {
    let launch = Launch { name: "bulk", grid: [1; 3], threads, shared_bytes: 64 << 10, order };
    device.launch(&launch, kernel)
}

fn base() -> u32 {
    shared_base()
}
fn tile() -> u32 {
    shared_base() + TILE
}

/// Initialises the mbarrier at the base for one arrival, visible to all.
fn begin() {
    if tid_x() == 0 {
        mbarrier_init(base(), 1);
        fence_mbarrier_init();
    }
    bar_sync();
}

fn wait(parity: u32) {
    while !mbarrier_try_wait_parity(base(), parity) {}
}

fn caught(device: &mut Device, threads: u32, kind: FaultKind, kernel: &dyn Fn()) -> Fault {
    support::caught(include_str!("bulk_faults.rs"), 8, kind, |order| run(device, threads, order, kernel))
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| (i * 37 % 251) as u8 | 1).collect()
}

fn square(x: u64) -> TensorMapSpec {
    TensorMapSpec {
        element_bytes: 2,
        rank: 2,
        base: x,
        dims: [64, 64, 0, 0, 0],
        strides_bytes: [128, 0, 0, 0],
        box_dims: [64, 8, 0, 0, 0],
        swizzle: Swizzle::B128,
    }
}

#[test]
fn copies_carry_the_want_of_a_value_along() {
    let mut device = Device::new();
    let (x, out) = (device.alloc(64, "x"), device.alloc(64, "out"));
    device.write(x, &[1; 64]);
    device.poison(x + 17, 1);
    device.write(out, &[0; 64]);
    let there_and_back = || {
        begin();
        mbarrier_arrive_expect_tx(base(), 64);
        bulk_load(tile(), x, 64, base());
        wait(0);
        bulk_store(out, tile(), 64);
        bulk_commit();
        bulk_wait(0);
        ld_shared::<u16>(tile() + 18);
    };
    run(&mut device, 1, Order::Deterministic, &there_and_back).unwrap_or_else(|fault| panic!("{fault}"));
    assert!(device.read(out, &mut [0; 17]).is_ok());
    assert_eq!(device.read(out + 17, &mut [0]).expect_err("poisoned").kind, FaultKind::Uninitialised);
    assert!(device.read(out + 18, &mut [0; 46]).is_ok());
    caught(&mut device, 1, FaultKind::Uninitialised, &|| {
        there_and_back();
        ld_shared::<u16>(tile() + 16); // caught
    });
}

#[test]
fn operands_that_no_device_takes() {
    let mut device = Device::new();
    let x = device.alloc(8192, "x");
    device.write(x, &[0; 8192]);
    let map = square(x).encode().expect("a tensor map");
    let fault = caught(&mut device, 1, FaultKind::Misaligned, &|| {
        begin();
        bulk_tensor_load(tile() + 64, &map, [0, 0], base()); // caught
    });
    assert!(fault.to_string().contains("expected a multiple of 128"), "{fault}");
    let fault = caught(&mut device, 1, FaultKind::InvalidOperand, &|| {
        begin();
        bulk_tensor_load(tile(), &map, [0, 0, 0], base()); // caught
    });
    assert!(fault.to_string().contains("3 coordinates for a tensor map of rank 2"), "{fault}");
    caught(&mut device, 1, FaultKind::InvalidOperand, &|| {
        prefetch_tensor_map(&map);
        prefetch_tensor_map(&TensorMap([0; 16])); // caught
    });
    let larger = TensorMapSpec { dims: [64, 65, 0, 0, 0], ..square(x) }.encode().expect("a tensor map");
    let fault = caught(&mut device, 1, FaultKind::OutOfBounds, &|| {
        begin();
        bulk_tensor_load(tile(), &larger, [0, 60], base()); // caught
    });
    assert!(fault.to_string().contains("byte 8192 of `x`"), "{fault}");
    caught(&mut device, 1, FaultKind::InvalidOperand, &|| {
        begin();
        bulk_load(tile(), x, 24, base()); // caught
    });
    caught(&mut device, 1, FaultKind::Misaligned, &|| {
        begin();
        bulk_load(tile(), x + 8, 16, base()); // caught
    });
    caught(&mut device, 1, FaultKind::Misaligned, &|| {
        begin();
        bulk_load(tile() + 8, x, 16, base()); // caught
    });
    caught(&mut device, 1, FaultKind::OutOfBounds, &|| {
        begin();
        bulk_load(base() + (64 << 10) - 16, x, 32, base()); // caught
    });
}

#[test]
fn tensor_maps_that_the_driver_refuses() {
    let good = square(4096);
    assert!(good.encode().is_ok());
    for (bad, want) in [
        (TensorMapSpec { base: 4104, ..good }, "tensor at 0x1008: expected a multiple of 16"),
        (TensorMapSpec { rank: 0, ..good }, "tensor map of rank 0: expected 1 to 5"),
        (TensorMapSpec { rank: 6, ..good }, "tensor map of rank 6: expected 1 to 5"),
        (TensorMapSpec { element_bytes: 3, ..good }, "elements of 3 bytes: expected 1, 2, 4 or 8"),
        (TensorMapSpec { dims: [64, 0, 0, 0, 0], ..good }, "extent 0 of dimension 1: expected 1 to 2^32"),
        (
            TensorMapSpec { strides_bytes: [136, 0, 0, 0], ..good },
            "stride of 136 bytes of dimension 1: expected a multiple of 16 below 2^40",
        ),
        (
            TensorMapSpec { box_dims: [64, 257, 0, 0, 0], ..good },
            "box extent 257 of dimension 1: expected 1 to 256",
        ),
        (
            TensorMapSpec { box_dims: [4, 8, 0, 0, 0], ..good },
            "rows of the box of 8 bytes: expected a multiple of 16",
        ),
        (
            TensorMapSpec { box_dims: [72, 8, 0, 0, 0], ..good },
            "rows of the box of 144 bytes: expected at most 128, what the swizzle spans",
        ),
    ] {
        assert_eq!(bad.encode().expect_err("refused"), want);
    }
}

#[test]
fn what_is_on_its_way_is_not_to_be_touched() {
    let mut device = Device::new();
    let x = device.alloc(8192, "x");
    device.write(x, &[0; 8192]);
    let out = device.alloc(8192, "out");
    let fault = caught(&mut device, 32, FaultKind::InFlight, &|| {
        begin();
        if tid_x() == 0 {
            mbarrier_arrive_expect_tx(base(), 1024);
            bulk_load(tile(), x, 512, base());
            bulk_load(tile() + 256, x, 512, base()); // caught
        }
    });
    assert!(fault.other.is_some(), "{fault}");
    // A store's source before its wait.
    caught(&mut device, 1, FaultKind::Race, &|| {
        st_shared(tile(), [1u32; 4]);
        fence_proxy_async();
        bulk_store(out, tile(), 16);
        bulk_commit();
        st_shared(tile(), [2u32; 4]); // caught
    });
    // Its target, after the wait for the source alone.
    caught(&mut device, 1, FaultKind::Race, &|| {
        st_shared(tile(), [1u32; 4]);
        fence_proxy_async();
        bulk_store(out, tile(), 16);
        bulk_commit();
        bulk_wait_read(0);
        ld_global::<u32>(out); // caught
    });
    // The newest group isn't waited for.
    caught(&mut device, 1, FaultKind::Race, &|| {
        st_shared(tile(), [1u32; 4]);
        fence_proxy_async();
        bulk_store(out, tile(), 16);
        bulk_commit();
        bulk_wait_read(1);
        st_shared(tile(), [2u32; 4]); // caught
    });
    let fault = caught(&mut device, 1, FaultKind::InFlight, &|| {
        st_shared(tile(), [1u32; 4]);
        fence_proxy_async();
        bulk_store(out, tile(), 16); // caught
        bulk_commit();
    });
    assert!(fault.to_string().contains("ended before it waited for its bulk store"), "{fault}");
}

#[test]
fn a_missing_proxy_fence() {
    let mut device = Device::new();
    let (x, out) = (device.alloc(64, "x"), device.alloc(64, "out"));
    device.write(x, &[0; 64]);
    let store = |fence: &dyn Fn()| {
        st_shared(tile() + 16 * (tid_x() % 2), [1u32; 4]);
        fence();
        bar_sync();
        if tid_x() == 0 {
            bulk_store(out, tile(), 32); // caught
            bulk_commit();
            bulk_wait_read(0);
        }
    };
    for order in orders(20) {
        run(&mut device, 2, order, &|| store(&fence_proxy_async)).unwrap_or_else(|fault| panic!("{fault}"));
    }
    let fault = caught(&mut device, 2, FaultKind::MissingFence, &|| store(&|| {}));
    assert_eq!(fault.other.expect("the writer").thread, 0);
    // The fence of whoever issues the copy is not the writer's.
    let fault = caught(&mut device, 2, FaultKind::MissingFence, &|| {
        store(&|| {
            if tid_x() == 0 {
                fence_proxy_async();
            }
        });
    });
    assert_eq!(fault.other.expect("the writer").thread, 1);
    // A fence before the store is none.
    caught(&mut device, 1, FaultKind::MissingFence, &|| {
        begin();
        fence_proxy_async();
        st_shared(tile(), [1u32; 4]);
        mbarrier_arrive_expect_tx(base(), 16);
        bulk_load(tile(), x, 16, base()); // caught
    });
    // A landed cp.async is an ordinary write.
    caught(&mut device, 1, FaultKind::MissingFence, &|| {
        cp_async_16(tile(), x, 16);
        cp_async_commit();
        cp_async_wait(0);
        bulk_store(out, tile(), 16); // caught
    });
}

#[test]
fn an_mbarrier_counts_copies_of_lanes() {
    let mut device = Device::new();
    let (x, out) = (device.alloc(1024, "x"), device.alloc(1024, "out"));
    device.write(x, &pattern(1024));
    let kernel = |wait_first: bool| {
        if tid_x() == 0 {
            mbarrier_init(base(), 32);
        }
        bar_sync();
        if tid_x() < 32 {
            for half in 0..2 {
                let at = 512 * half + 16 * tid_x();
                cp_async_16(tile() + at, x + u64::from(at), 16);
            }
            mbarrier_arrive_cp_async(base());
        } else {
            if wait_first {
                wait(0);
            }
            let at = 16 * (tid_x() - 32);
            for half in [0, 512] {
                let copied = ld_shared::<[u32; 4]>(tile() + half + at); // caught
                st_global(out + u64::from(half + at), copied);
            }
        }
    };
    for order in orders(50) {
        device.poison(out, 1024);
        run(&mut device, 64, order, &|| kernel(true)).unwrap_or_else(|fault| panic!("{fault}"));
        let mut got = vec![0; 1024];
        device.read(out, &mut got).unwrap_or_else(|fault| panic!("{fault}"));
        assert_eq!(got, pattern(1024));
    }
    let fault = run(&mut device, 64, Order::Deterministic, &|| kernel(false)).expect_err("not landed");
    assert_eq!(fault.kind, FaultKind::InFlight, "{fault}");
    for seed in 0..50 {
        let fault = run(&mut device, 64, Order::Seeded(seed), &|| kernel(false)).expect_err("no wait");
        let kinds = [FaultKind::InFlight, FaultKind::Race, FaultKind::Uninitialised];
        assert!(kinds.contains(&fault.kind), "{fault}");
    }
}
