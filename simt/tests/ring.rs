//! A producer and its consumers around a ring of stages filled by bulk copies: right, and with one thing wrong each.

use tilewright_simt::intrinsic::*;
use tilewright_simt::{Device, Fault, FaultKind, Launch, Order, Report, Swizzle, TensorMap, TensorMapSpec};

const STAGES: u32 = 3;
const TILES: u32 = 8;
/// A tile is 8 rows of 64 bytes.
const TILE_BYTES: u32 = 512;
const CONSUMER_WARPS: u32 = 2;
/// Producer warp first.
const THREADS: u32 = 32 * (1 + CONSUMER_WARPS);

/// What is done wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bug {
    None,
    NoWaitOnFull,
    StaleParity,
    NoWaitOnEmpty,
    TooFewBytesExpected,
    TooManyBytesExpected,
    EmptyCountTooLow,
    EmptyCountTooHigh,
    NoInitFence,
    NoBarrierAfterInit,
    NoInit,
    NobodyWaits,
    ReleasedBeforeRead,
}

struct Shared {
    full: u32,
    empty: u32,
    tiles: u32,
}

fn plan() -> Shared {
    let base = shared_base();
    Shared { full: base, empty: base + 64, tiles: base + 1024 }
}

fn produce(s: &Shared, map: &TensorMap, bug: Bug) {
    if tid_x() != 0 {
        return;
    }
    let expected = match bug {
        Bug::TooFewBytesExpected => TILE_BYTES - 16,
        Bug::TooManyBytesExpected => TILE_BYTES + 16,
        _ => TILE_BYTES,
    };
    for tile in 0..TILES {
        let (stage, round) = (tile % STAGES, tile / STAGES);
        if round > 0 && bug != Bug::NoWaitOnEmpty {
            while !mbarrier_try_wait_parity(s.empty + 8 * stage, (round - 1) & 1) {} // empty
        }
        mbarrier_arrive_expect_tx(s.full + 8 * stage, expected); // expect
        bulk_tensor_load(s.tiles + TILE_BYTES * stage, map, [0, 8 * tile as i32], s.full + 8 * stage); // load
    }
}

fn consume(s: &Shared, out: u64, bug: Bug) {
    let lane = tid_x() - 32;
    for tile in 0..TILES {
        let (stage, round) = (tile % STAGES, tile / STAGES);
        let parity = match bug {
            Bug::StaleParity => 1,
            _ => round & 1,
        };
        if bug != Bug::NoWaitOnFull {
            while !mbarrier_try_wait_parity(s.full + 8 * stage, parity) {} // full
        }
        if bug == Bug::ReleasedBeforeRead && lane.is_multiple_of(32) {
            mbarrier_arrive(s.empty + 8 * stage);
        }
        let swizzled = Swizzle::B64.apply(8 * lane);
        let value = ld_shared::<u64>(s.tiles + TILE_BYTES * stage + swizzled); // read
        st_global(out + 8 * u64::from(64 * tile + lane), value);
        bar_warp_sync();
        if bug != Bug::ReleasedBeforeRead && lane.is_multiple_of(32) {
            mbarrier_arrive(s.empty + 8 * stage); // release
        }
    }
}

fn kernel(map: &TensorMap, out: u64, bug: Bug) {
    let s = plan();
    if tid_x() == 0 && bug != Bug::NoInit {
        let count = match bug {
            Bug::EmptyCountTooLow => CONSUMER_WARPS - 1,
            Bug::EmptyCountTooHigh => CONSUMER_WARPS + 1,
            _ => CONSUMER_WARPS,
        };
        for stage in 0..STAGES {
            mbarrier_init(s.full + 8 * stage, 1); // init
            mbarrier_init(s.empty + 8 * stage, count);
        }
        if bug != Bug::NoInitFence {
            fence_mbarrier_init();
        }
    }
    if bug != Bug::NoBarrierAfterInit {
        bar_sync();
    }
    match tid_x() / 32 {
        0 => produce(&s, map, bug),
        _ if bug == Bug::NobodyWaits => {}
        _ => consume(&s, out, bug),
    }
}

struct Ring {
    device: Device,
    map: TensorMap,
    out: u64,
}

impl Ring {
    fn new() -> Self {
        let mut device = Device::new();
        let bytes = (TILES * TILE_BYTES) as usize;
        let x = device.alloc(bytes, "x");
        device.write(x, &(0..bytes).map(|i| (i * 31 % 251) as u8).collect::<Vec<_>>());
        let out = device.alloc(bytes, "out");
        let map = TensorMapSpec {
            element_bytes: 2,
            rank: 2,
            base: x,
            dims: [32, u64::from(8 * TILES), 0, 0, 0],
            strides_bytes: [64, 0, 0, 0],
            box_dims: [32, 8, 0, 0, 0],
            swizzle: Swizzle::B64,
        };
        Self { device, map: map.encode().expect("a tensor map"), out }
    }

    fn run(&mut self, bug: Bug, order: Order) -> Result<Report, Fault> {
        let launch =
            Launch { name: "ring", grid: [2, 1, 1], threads: THREADS, shared_bytes: 1024 + 3 * 512, order };
        // Blocks write the same; races between them aren't what is looked for.
        let (map, out) = (self.map, self.out);
        self.device.launch(&launch, &|| {
            if ctaid_x() == 0 {
                kernel(&map, out, bug);
            }
        })
    }

    /// The fault of the deterministic order, and how many of 50 random ones find one.
    fn faults(&mut self, bug: Bug) -> (Option<Fault>, Vec<Fault>) {
        let first = self.run(bug, Order::Deterministic).err();
        let seeded = (0..50).filter_map(|seed| self.run(bug, Order::Seeded(seed)).err()).collect();
        (first, seeded)
    }
}

/// The comment that ends the line a fault names.
fn mark(fault: &Fault) -> &'static str {
    let location = fault.at.and_then(|at| at.location).unwrap_or_else(|| panic!("no line: {fault}"));
    let line =
        include_str!("ring.rs").lines().nth(location.line() as usize - 1).expect("a line of this file");
    line.rsplit("// ").next().unwrap_or(line)
}

#[test]
fn a_right_ring_runs_in_every_order() {
    let mut ring = Ring::new();
    let orders = std::iter::once(Order::Deterministic).chain((0..50).map(Order::Seeded));
    for order in orders {
        ring.device.poison(ring.out, (TILES * TILE_BYTES) as usize);
        let report = ring.run(Bug::None, order).unwrap_or_else(|fault| panic!("{fault}"));
        assert_eq!((report.bulk_copies, report.bulk_bytes), (8, 8 * 512));
        assert!(report.mbarrier_waits >= 8 * 64 + 5);
        let mut got = vec![0; (TILES * TILE_BYTES) as usize];
        ring.device.read(ring.out, &mut got).unwrap_or_else(|fault| panic!("{fault}"));
        assert!(got.iter().enumerate().all(|(i, &byte)| byte == (i * 31 % 251) as u8));
    }
}

#[test]
fn each_bug_is_found_and_named() {
    let mut ring = Ring::new();
    for (bug, kinds, marks) in [
        (
            Bug::NoWaitOnFull,
            &[FaultKind::InFlight, FaultKind::Race, FaultKind::Uninitialised][..],
            &["read"][..],
        ),
        (
            Bug::StaleParity,
            &[FaultKind::InFlight, FaultKind::Race, FaultKind::Deadlock, FaultKind::Uninitialised],
            &["read", "full", "load", "empty"],
        ),
        (
            Bug::NoWaitOnEmpty,
            &[FaultKind::InFlight, FaultKind::Race, FaultKind::Mbarrier],
            &["load", "read", "expect"],
        ),
        (Bug::TooManyBytesExpected, &[FaultKind::Deadlock], &["full"]),
        (Bug::TooFewBytesExpected, &[FaultKind::Deadlock], &["full"]),
        (
            Bug::EmptyCountTooLow,
            &[FaultKind::InFlight, FaultKind::Race, FaultKind::Mbarrier, FaultKind::Deadlock],
            &["load", "read", "expect", "empty"],
        ),
        (Bug::EmptyCountTooHigh, &[FaultKind::Deadlock], &["empty", "full"]),
        (Bug::NoInitFence, &[FaultKind::MissingFence], &["load"]),
        (Bug::NoBarrierAfterInit, &[FaultKind::Race, FaultKind::Mbarrier], &["full", "init"]),
        (Bug::NoInit, &[FaultKind::Mbarrier], &["expect", "full"]),
        (Bug::ReleasedBeforeRead, &[FaultKind::InFlight, FaultKind::Race], &["load", "read"]),
    ] {
        let (first, seeded) = ring.faults(bug);
        println!(
            "{bug:?}: {}/50; {}",
            seeded.len(),
            first.as_ref().map_or("no fault".into(), Fault::to_string)
        );
        assert!(!seeded.is_empty(), "{bug:?}");
        for fault in first.iter().chain(&seeded) {
            assert!(kinds.contains(&fault.kind), "{bug:?}: {fault}");
            assert!(marks.contains(&mark(fault)), "{bug:?}: {fault}: {}", mark(fault));
        }
    }
}

#[test]
fn a_copy_nobody_waits_for() {
    let mut ring = Ring::new();
    let kernel = |map: &TensorMap| {
        let s = plan();
        mbarrier_init(s.full, 1);
        fence_proxy_async();
        mbarrier_arrive_expect_tx(s.full, TILE_BYTES);
        bulk_tensor_load(s.tiles, map, [0, 0], s.full); // load
    };
    let map = ring.map;
    let launch =
        Launch { name: "ring", grid: [1; 3], threads: 1, shared_bytes: 4096, order: Order::Deterministic };
    let fault = ring.device.launch(&launch, &|| kernel(&map)).expect_err("in flight");
    assert_eq!((fault.kind, mark(&fault)), (FaultKind::InFlight, "load"), "{fault}");
}
