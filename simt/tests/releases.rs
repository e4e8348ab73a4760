//! Blocks that hand results to each other through an atomic counter: the last to come combines what all have written.

use tilewright_simt::intrinsic::*;
use tilewright_simt::{Device, Fault, FaultKind, Launch, Order};

const BLOCKS: u32 = 5;
const THREADS: u32 = 64;

/// How a block counts itself done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Count {
    AcquireRelease,
    Fences,
    NoFence,
    NoReleaseFence,
    NoAcquireFence,
    NoBarrierBefore,
    NoBarrierAfter,
}

struct Memory {
    partials: u64,
    counter: u64,
    out: u64,
}

fn count_done(counter: u64, how: Count) -> u32 {
    if !matches!(how, Count::AcquireRelease | Count::NoFence | Count::NoReleaseFence) {
        fence_acq_rel_gpu();
    }
    let before = match how {
        Count::AcquireRelease => atom_add_acq_rel_gpu_u32(counter, 1),
        _ => atom_add_global(counter, 1u32),
    };
    if !matches!(how, Count::AcquireRelease | Count::NoFence | Count::NoAcquireFence) {
        fence_acq_rel_gpu();
    }
    before
}

fn kernel(memory: &Memory, how: Count) {
    let slot = |block: u32, thread: u32| memory.partials + 4 * u64::from(THREADS * block + thread);
    st_global(slot(ctaid_x(), tid_x()), 100 * ctaid_x() + tid_x());
    if how != Count::NoBarrierBefore {
        bar_sync();
    }
    if tid_x() == 0 {
        st_shared(shared_base(), count_done(memory.counter, how));
    }
    if how != Count::NoBarrierAfter {
        bar_sync();
    }
    if ld_shared::<u32>(shared_base()) == BLOCKS - 1 {
        let sum: u32 = (0..BLOCKS).map(|block| ld_global::<u32>(slot(block, tid_x() ^ 33))).sum();
        st_global(memory.out + 4 * u64::from(tid_x()), sum);
    }
}

fn run(how: Count, order: Order) -> Result<Vec<u8>, Fault> {
    let mut device = Device::new();
    let memory = Memory {
        partials: device.alloc((4 * BLOCKS * THREADS) as usize, "partials"),
        counter: device.alloc(4, "counter"),
        out: device.alloc((4 * THREADS) as usize, "out"),
    };
    device.write(memory.counter, &[0; 4]);
    let launch = Launch { name: "combine", grid: [BLOCKS, 1, 1], threads: THREADS, shared_bytes: 4, order };
    device.launch(&launch, &|| kernel(&memory, how))?;
    let mut out = vec![0; (4 * THREADS) as usize];
    device.read(memory.out, &mut out)?;
    Ok(out)
}

fn orders() -> impl Iterator<Item = Order> {
    std::iter::once(Order::Deterministic).chain((0..20).map(Order::Seeded))
}

#[test]
fn the_last_block_combines() {
    let want: Vec<u8> = (0..THREADS).flat_map(|i| (5 * (i ^ 33) + 1000).to_le_bytes()).collect();
    for how in [Count::AcquireRelease, Count::Fences] {
        for order in orders() {
            assert_eq!(run(how, order).unwrap_or_else(|fault| panic!("{fault}")), want, "{how:?}");
        }
    }
}

#[test]
fn a_missing_fence_or_barrier_is_a_race() {
    let bugs = [Count::NoFence, Count::NoReleaseFence, Count::NoAcquireFence, Count::NoBarrierBefore];
    for how in bugs {
        for order in orders() {
            let fault = run(how, order).expect_err("a race");
            assert_eq!(fault.kind, FaultKind::Race, "{how:?}: {fault}");
        }
    }
    for order in orders() {
        let fault = run(Count::NoBarrierAfter, order).expect_err("a race");
        assert!(matches!(fault.kind, FaultKind::Race | FaultKind::Uninitialised), "{fault}");
    }
}

#[test]
fn a_release_covers_what_was_acquired_before() {
    // Block 0 releases at a; block 1 acquires there and releases at b; block 2 acquires at b alone.
    let mut device = Device::new();
    let (x, flags) = (device.alloc(4, "x"), device.alloc(8, "flags"));
    device.write(x, &[0; 4]);
    device.write(flags, &[0; 8]);
    let launch = |device: &mut Device, kernel: &dyn Fn()| {
        let launch = Launch {
            name: "chain",
            grid: [3, 1, 1],
            threads: 1,
            shared_bytes: 0,
            order: Order::Deterministic,
        };
        device.launch(&launch, kernel)
    };
    let chain = |through_b: bool| match ctaid_x() {
        0 => {
            st_global(x, 7u32);
            atom_add_acq_rel_gpu_u32(flags, 1);
        }
        1 => {
            if through_b {
                atom_add_acq_rel_gpu_u32(flags, 1);
            }
            atom_add_acq_rel_gpu_u32(flags + 4, 1);
        }
        _ => {
            atom_add_acq_rel_gpu_u32(flags + 4, 1);
            assert_eq!(ld_global::<u32>(x), 7);
        }
    };
    launch(&mut device, &|| chain(true)).unwrap_or_else(|fault| panic!("{fault}"));
    assert_eq!(launch(&mut device, &|| chain(false)).expect_err("a race").kind, FaultKind::Race);
}
