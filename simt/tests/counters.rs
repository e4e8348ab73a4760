//! The counters of a launch, against figures worked out by hand.

use tilewright_simt::intrinsic::*;
use tilewright_simt::{Device, Launch, Order, Report};

fn count(device: &mut Device, threads: u32, shared_bytes: u32, kernel: &dyn Fn()) -> Report {
    device.count_requests(true);
    let mut run = |order| {
        let launch = Launch { name: "counted", grid: [1; 3], threads, shared_bytes, order };
        device.launch(&launch, kernel).unwrap_or_else(|fault| panic!("{fault}"))
    };
    let report = run(Order::Deterministic);
    for seed in 0..4 {
        assert_eq!(run(Order::Seeded(seed)), report, "the order of lanes changes no count");
    }
    report
}

#[test]
fn coalesced_strided_and_broadcast_sectors() {
    let mut device = Device::new();
    let x = device.alloc(1 << 16, "x");
    device.write(x, &vec![0; 1 << 16]);
    for (stride, sectors) in [(0, 1), (2, 2), (4, 4), (8, 8), (32, 32), (128, 32)] {
        let report = count(&mut device, 32, 0, &|| {
            ld_global::<u16>(x + stride * u64::from(tid_x()));
        });
        assert_eq!(
            (report.global_load_requests, report.global_load_sectors),
            (1, sectors),
            "stride {stride}"
        );
    }
    let report = count(&mut device, 64, 0, &|| st_global(x + 16 * u64::from(tid_x()), [0u32; 4]));
    assert_eq!((report.global_store_requests, report.global_store_sectors), (2, 32));
    assert_eq!((report.global_load_requests, report.shared_requests), (0, 0));
}

#[test]
fn bank_conflicts_of_each_width() {
    let mut device = Device::new();
    let mut conflicts = |kernel: &dyn Fn()| {
        let report = count(&mut device, 32, 32 << 7, kernel);
        assert_eq!(report.shared_requests, 1);
        report.bank_conflicts
    };
    let at = |stride: u32| shared_base() + stride * tid_x();
    assert_eq!(conflicts(&|| st_shared(at(4), 0u32)), 0);
    assert_eq!(conflicts(&|| st_shared(at(2), 0u16)), 0);
    assert_eq!(conflicts(&|| st_shared(at(8), 0u32)), 1);
    assert_eq!(conflicts(&|| st_shared(at(12), 0u32)), 0);
    assert_eq!(conflicts(&|| st_shared(at(128), 0u32)), 31);
    assert_eq!(conflicts(&|| st_shared(at(8), 0u64)), 0);
    assert_eq!(conflicts(&|| st_shared(at(16), 0u64)), 2);
    assert_eq!(conflicts(&|| st_shared(at(16), [0u32; 4])), 0);
    // Rows of 128 bytes: the 8 lanes of each quarter all want the same 4 banks.
    assert_eq!(conflicts(&|| st_shared(at(128), [0u32; 4])), 28);
}

#[test]
fn lanes_that_sit_out_and_loops_count_by_execution() {
    let mut device = Device::new();
    let x = device.alloc(4096, "x");
    device.write(x, &[0; 4096]);
    let report = count(&mut device, 32, 0, &|| {
        // Lane l executes the load l % 4 + 1 times; execution n is one request of the lanes that get there.
        for n in 0..=tid_x() % 4 {
            ld_global::<u32>(x + 128 * u64::from(n) + 4 * u64::from(tid_x()));
        }
    });
    assert_eq!((report.global_load_requests, report.global_load_sectors), (4, 16));
    assert_eq!(report.lane_steps, 8 * (1 + 2 + 3 + 4));
}

#[test]
fn collectives_and_copies() {
    let mut device = Device::new();
    let x = device.alloc(1024, "x");
    device.write(x, &[0; 1024]);
    let report = count(&mut device, 64, 1024, &|| {
        cp_async_16(shared_base() + 16 * tid_x(), x + 16 * u64::from(tid_x()), 16);
        cp_async_commit();
        cp_async_wait(0);
        bar_sync();
        let a = ldmatrix_x4(shared_base() + 16 * (tid_x() % 32));
        mma_m16n8k16_bf16(a, [0; 2], [0.0; 4]);
    });
    assert_eq!((report.async_copies, report.barriers, report.ldmatrix, report.mma), (64, 1, 2, 2));
    assert_eq!((report.global_load_requests, report.global_load_sectors), (2, 32));
    assert_eq!((report.shared_requests, report.bank_conflicts), (4, 0));
    assert_eq!((report.lane_steps, report.blocks), (6 * 64, 1));
}
