//! Two blocks that share their tiles: each loads half of every stage for both, in a ring whose `empty` barriers hear from
//! both. Right, and with one thing wrong each. And `wgmma` in each block of a cluster.

mod operands;
mod support;

use operands::{A, OPERAND_BYTES, a_base, fill_both, step, store, value};
use support::orders;
use tilewright_simt::intrinsic::*;
use tilewright_simt::{Device, Fault, FaultKind, Launch, Order, Report, Swizzle, TensorMap, TensorMapSpec};

const STAGES: u32 = 2;
const TILES: u32 = 6;
/// Half of a tile: 8 rows of 64 bytes.
const HALF_BYTES: u32 = 512;
/// A producer warp and a consumer warp.
const THREADS: u32 = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bug {
    None,
    NoMeetingAfterInit,
    EmptyHeardFromOwnBlockAlone,
    OnlyToItself,
    HalfExpected,
    NoMeetingAtTheEnd,
    SameHalf,
}

fn full(stage: u32) -> u32 {
    shared_base() + 8 * stage
}
fn empty(stage: u32) -> u32 {
    shared_base() + 64 + 8 * stage
}
fn tile(stage: u32) -> u32 {
    shared_base() + 1024 + 2 * HALF_BYTES * stage
}

fn produce(map: &TensorMap, bug: Bug) {
    if tid_x() != 0 {
        return;
    }
    let rank = cluster_ctarank();
    let half = if bug == Bug::SameHalf { 0 } else { rank };
    for index in 0..TILES {
        let (stage, round) = (index % STAGES, index / STAGES);
        if round > 0 {
            while !mbarrier_try_wait_parity(empty(stage), (round - 1) & 1) {} // caught
        }
        let expected = if bug == Bug::HalfExpected { HALF_BYTES } else { 2 * HALF_BYTES };
        mbarrier_arrive_expect_tx(full(stage), expected);
        let ranks = if bug == Bug::OnlyToItself { 1 << rank } else { 3 };
        let row = (16 * index + 8 * half) as i32;
        bulk_tensor_load_multicast(tile(stage) + half * HALF_BYTES, map, [0, row], full(stage), ranks); // caught
    }
}

fn consume(out: u64, bug: Bug) {
    let lane = tid_x() - 32;
    for index in 0..TILES {
        let (stage, round) = (index % STAGES, index / STAGES);
        while !mbarrier_try_wait_parity(full(stage), round & 1) {} // caught
        for i in (4 * lane..2 * HALF_BYTES).step_by(128) {
            let value = ld_shared::<u32>(tile(stage) + i); // caught
            let at = u64::from(ctaid_x() * TILES + index) * u64::from(2 * HALF_BYTES) + u64::from(i);
            st_global(out + at, value);
        }
        bar_warp_sync();
        if lane < 2 {
            let rank = if bug == Bug::EmptyHeardFromOwnBlockAlone { cluster_ctarank() } else { lane };
            mbarrier_arrive_cluster(mapa(empty(stage), rank)); // caught
        }
    }
}

fn kernel(map: &TensorMap, out: u64, bug: Bug) {
    if tid_x() == 0 {
        for stage in 0..STAGES {
            mbarrier_init(full(stage), 1);
            mbarrier_init(empty(stage), 2);
        }
        fence_mbarrier_init();
    }
    bar_sync();
    if bug != Bug::NoMeetingAfterInit {
        cluster_arrive();
        cluster_wait();
    }
    match tid_x() / 32 {
        0 => produce(map, bug),
        _ => consume(out, bug),
    }
    if bug != Bug::NoMeetingAtTheEnd {
        cluster_arrive();
        cluster_wait();
    }
}

struct Ring {
    device: Device,
    map: TensorMap,
    out: u64,
}

const TENSOR_BYTES: u32 = TILES * 2 * HALF_BYTES;

impl Ring {
    fn new() -> Ring {
        let mut device = Device::new();
        let x = device.alloc(TENSOR_BYTES as usize, "x");
        device.write(x, &(0..TENSOR_BYTES / 4).flat_map(u32::to_le_bytes).collect::<Vec<_>>());
        let out = device.alloc(2 * TENSOR_BYTES as usize, "out");
        let spec = TensorMapSpec {
            element_bytes: 4,
            rank: 2,
            base: x,
            dims: [16, u64::from(TILES) * 16, 1, 1, 1],
            strides_bytes: [64, 0, 0, 0],
            box_dims: [16, 8, 1, 1, 1],
            swizzle: Swizzle::None,
        };
        let map = spec.encode().unwrap_or_else(|what| panic!("{what}"));
        Ring { device, map, out }
    }

    fn run(&mut self, bug: Bug, order: Order) -> Result<Report, Fault> {
        let launch =
            Launch { name: "multicast", grid: [2, 1, 1], threads: THREADS, shared_bytes: 4096, order };
        let (map, out) = (self.map, self.out);
        self.device.launch_clusters(&launch, 2, &|| kernel(&map, out, bug))
    }
}

#[test]
fn both_blocks_get_every_tile() {
    let mut ring = Ring::new();
    for order in orders(60) {
        ring.device.poison(ring.out, 2 * TENSOR_BYTES as usize);
        let report = ring.run(Bug::None, order).unwrap_or_else(|fault| panic!("{fault}"));
        // Each block issues one copy a tile, which fills half a tile in both.
        assert_eq!(report.bulk_copies, u64::from(2 * TILES));
        assert_eq!(report.bulk_bytes, u64::from(2 * TILES * 2 * HALF_BYTES));
        let mut got = vec![0; 2 * TENSOR_BYTES as usize];
        ring.device.read(ring.out, &mut got).unwrap_or_else(|fault| panic!("{fault}"));
        let want: Vec<u8> = (0..TENSOR_BYTES / 4).flat_map(u32::to_le_bytes).collect();
        assert!(got == want.repeat(2), "{order:?}");
    }
}

#[test]
fn bugs_of_a_shared_ring() {
    let mut ring = Ring::new();
    for (bug, kinds) in [
        (Bug::NoMeetingAfterInit, &[FaultKind::Mbarrier, FaultKind::Race][..]),
        (Bug::EmptyHeardFromOwnBlockAlone, &[FaultKind::Race, FaultKind::Mbarrier, FaultKind::InFlight]),
        (Bug::OnlyToItself, &[FaultKind::Deadlock]),
        // What lands beyond the phase's bytes disturbs the next one.
        (
            Bug::HalfExpected,
            &[FaultKind::InFlight, FaultKind::Deadlock, FaultKind::Mbarrier, FaultKind::Uninitialised],
        ),
        (Bug::NoMeetingAtTheEnd, &[FaultKind::Exited]),
        (Bug::SameHalf, &[FaultKind::InFlight, FaultKind::Race]),
    ] {
        let faults: Vec<Fault> =
            orders(8).map(|order| ring.run(bug, order).expect_err(&format!("{bug:?}"))).collect();
        for fault in &faults {
            assert!(kinds.contains(&fault.kind), "{bug:?}: {fault}");
        }
    }
}

#[test]
fn ranks_that_are_not_there() {
    let mut ring = Ring::new();
    let launch = Launch {
        name: "multicast",
        grid: [2, 1, 1],
        threads: 32,
        shared_bytes: 4096,
        order: Order::Deterministic,
    };
    let map = ring.map;
    for ranks in [0, 4, 7] {
        let fault = ring.device.launch_clusters(&launch, 2, &|| {
            mbarrier_init(full(tid_x()), 1);
            bulk_tensor_load_multicast(tile(0), &map, [0, 0], full(tid_x()), ranks);
        });
        assert_eq!(fault.expect_err("no such rank").kind, FaultKind::InvalidOperand);
    }
}

#[test]
fn a_block_that_ends_before_its_copy_lands() {
    let mut ring = Ring::new();
    let map = ring.map;
    // In a random order the copy may land before the end.
    support::caught(include_str!("multicast.rs"), 0, FaultKind::InFlight, |order| {
        let launch = Launch { name: "multicast", grid: [2, 1, 1], threads: 32, shared_bytes: 4096, order };
        ring.device.launch_clusters(&launch, 2, &|| {
            if tid_x() == 0 {
                mbarrier_init(full(0), 1);
                fence_mbarrier_init();
            }
            cluster_arrive();
            cluster_wait();
            if tid_x() == 0 {
                mbarrier_arrive_expect_tx(full(0), HALF_BYTES);
            }
            if tid_x() == 0 && cluster_ctarank() == 0 {
                // The second block doesn't wait for what it gets, but can't end before the first has sent it.
                bulk_tensor_load_multicast(tile(0), &map, [0, 0], full(0), 2); // caught
            }
            cluster_arrive();
            cluster_wait();
        })
    });
}

#[test]
fn a_copy_that_lands_after_its_block_has_ended() {
    let mut ring = Ring::new();
    let map = ring.map;
    let mut run = |order| {
        let launch = Launch { name: "multicast", grid: [2, 1, 1], threads: 32, shared_bytes: 4096, order };
        ring.device.launch_clusters(&launch, 2, &|| {
            if tid_x() == 0 {
                mbarrier_init(full(0), 1);
                fence_mbarrier_init();
            }
            cluster_arrive();
            cluster_wait();
            if cluster_ctarank() == 0 {
                if tid_x() == 0 {
                    bulk_tensor_load_multicast(tile(0), &map, [0, 0], full(0), 2);
                }
                cluster_arrive();
                // Time for it to land, most likely when the other block is gone.
                (0..50).for_each(|_| bar_warp_sync());
            } else {
                cluster_arrive();
                cluster_wait();
            }
        })
    };
    let caught = (0..20).filter_map(|seed| run(Order::Seeded(seed)).err()).count();
    // A random order seldom waits so long; without a look at the block's end, none finds it.
    assert!(caught > 0, "caught in {caught} of 20 orders");
}

#[test]
fn warpgroups_of_each_block_multiply_their_own_memory() {
    let mut device = Device::new();
    let out = device.alloc(4 * 64 * 64 * 4, "out");
    // 160 threads: the second block's warpgroup is no multiple of 128 from the cluster's first thread.
    let kernel = || {
        fill_both();
        if tid_x() >= 128 {
            return;
        }
        // The second block's A is twice the first one's.
        if cluster_ctarank() == 1 {
            for row in 0..64 {
                let at = A.address(a_base(), row, tid_x() / 2);
                if tid_x().is_multiple_of(2) {
                    let doubled = 2.0 * value(1, row, tid_x() / 2) as f32;
                    st_shared(at, (doubled.to_bits() >> 16) as u16);
                }
            }
            fence_proxy_async();
        }
        bar_sync_named(1, 128);
        let mut d = [0f32; 32];
        wgmma_fence();
        for k in 0..4 {
            step(&mut d, 16 * k, k > 0);
        }
        wgmma_commit();
        wgmma_wait(0, &mut d);
        store(out + 64 * 64 * 4 * u64::from(ctaid_x()), 64, &d);
    };
    for order in orders(6) {
        device.poison(out, 4 * 64 * 64 * 4);
        let launch =
            Launch { name: "wgmma", grid: [4, 1, 1], threads: 160, shared_bytes: 2 * OPERAND_BYTES, order };
        device.launch_clusters(&launch, 2, &kernel).unwrap_or_else(|fault| panic!("{fault}"));
        let mut got = vec![0; 4 * 64 * 64 * 4];
        device.read(out, &mut got).unwrap_or_else(|fault| panic!("{fault}"));
        for (i, got) in got.as_chunks().0.iter().enumerate() {
            let (block, row, column) = (i as u32 / 4096, i as u32 / 64 % 64, i as u32 % 64);
            let sum: i32 = (0..64).map(|k| value(1, row, k) * value(2, column, k)).sum();
            let want = (sum * (1 + block as i32 % 2)) as f32;
            assert_eq!(f32::from_le_bytes(*got), want, "block {block}, ({row}, {column})");
        }
    }
}
