//! A producer warpgroup that fills a ring of tiles and three warpgroups that multiply them: 512 threads, as the kernels for
//! Hopper are built.

use std::time::{Duration, Instant};

use tilewright_simt::intrinsic::*;
use tilewright_simt::{Device, Fault, FaultKind, Launch, Order, Report, Swizzle, TensorMap, TensorMapSpec};

const STAGES: u32 = 2;
const TILES: u32 = 5;
const CONSUMERS: u32 = 3;
const THREADS: u32 = 128 * (1 + CONSUMERS);
/// A tile is 64 rows of 64 elements of 2 bytes; so is each consumer's own operand.
const TILE_BYTES: u32 = 8192;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bug {
    None,
    ReleasedBeforeWait,
    NoWaitOnEmpty,
    /// One warpgroup fewer than read it frees a stage.
    EmptyCountTooLow,
    OneConsumerDoesNotWaitOnFull,
    AccumulatorsTakenTooEarly,
}

#[derive(Clone, Copy)]
struct Barriers {
    own: u32,
    full: u32,
    empty: u32,
}

struct Tensors {
    a: TensorMap,
    b: TensorMap,
    out: TensorMap,
}

fn tile(index: u32) -> u32 {
    shared_base() + 1024 + TILE_BYTES * index
}

/// K-major or MN-major, 128-byte swizzle, groups of 8 rows 1024 bytes apart.
fn descriptor(address: u32) -> u64 {
    u64::from(address >> 4) | 64 << 32 | 1 << 62
}

fn wait(bar: u32, parity: u32) {
    while !mbarrier_try_wait_parity(bar, parity) {} // wait
}

fn produce(s: Barriers, tensors: &Tensors, bug: Bug) {
    setmaxnreg(24, false);
    if tid_x() / 32 != 0 || !elect() {
        return;
    }
    mbarrier_arrive_expect_tx(s.own, CONSUMERS * TILE_BYTES);
    for consumer in 0..CONSUMERS {
        bulk_tensor_load(tile(STAGES + consumer), &tensors.a, [0, 64 * consumer as i32], s.own);
    }
    for i in 0..TILES {
        let (stage, round) = (i % STAGES, i / STAGES);
        if bug != Bug::NoWaitOnEmpty {
            wait(s.empty + 8 * stage, round & 1 ^ 1);
        }
        mbarrier_arrive_expect_tx(s.full + 8 * stage, TILE_BYTES); // expect
        bulk_tensor_load(tile(stage), &tensors.b, [0, 64 * i as i32], s.full + 8 * stage); // load
    }
}

fn consume(s: Barriers, tensors: &Tensors, bug: Bug) {
    setmaxnreg(240, true);
    let consumer = tid_x() / 128 - 1;
    let release = |stage: u32| {
        if tid_x().is_multiple_of(128) {
            mbarrier_arrive(s.empty + 8 * stage);
        }
    };
    let own = tile(STAGES + consumer);
    let mut d = [0f32; 32];
    wait(s.own, 0);
    for i in 0..TILES {
        let (stage, round) = (i % STAGES, i / STAGES);
        if !(bug == Bug::OneConsumerDoesNotWaitOnFull && consumer == 1) {
            wait(s.full + 8 * stage, round & 1);
        }
        wgmma_fence();
        for k in 0..4 {
            let (a, b) = (descriptor(own + 32 * k), descriptor(tile(stage) + 2048 * k));
            wgmma_ss(WgmmaType::Bf16, 64, &mut d, a, b, true, false, true); // wgmma
        }
        wgmma_commit();
        if bug == Bug::ReleasedBeforeWait {
            release(stage);
        }
        match bug {
            Bug::AccumulatorsTakenTooEarly => wgmma_wait(1, &mut d), // taken
            _ => wgmma_wait(0, &mut d),
        }
        if bug != Bug::ReleasedBeforeWait {
            release(stage);
        }
    }
    // The result goes out as it came in, through the consumer's own tile.
    bar_sync_named(1 + consumer, 128);
    let (warp, lane) = (tid_x() / 32 % 4, tid_x() % 32);
    for (register, pair) in d.chunks_exact(2).enumerate() {
        let (j, i) = (register as u32 / 2, register as u32 % 2);
        let (row, column) = (16 * warp + lane / 4 + 8 * i, 8 * j + 2 * (lane % 4));
        let bits = pair[0].to_bits() >> 16 | pair[1].to_bits() & 0xffff_0000;
        st_shared(Swizzle::B128.apply(own + 128 * row + 2 * column), bits);
    }
    fence_proxy_async();
    bar_sync_named(1 + consumer, 128);
    if tid_x().is_multiple_of(128) {
        bulk_tensor_store(&tensors.out, [0, 64 * consumer as i32], own);
        bulk_commit();
        bulk_wait_read(0);
    }
}

fn kernel(tensors: &Tensors, bug: Bug) {
    let base = shared_base();
    let s = Barriers { own: base, full: base + 64, empty: base + 128 };
    if tid_x() == 0 {
        mbarrier_init(s.own, 1);
        let empty = if bug == Bug::EmptyCountTooLow { CONSUMERS - 1 } else { CONSUMERS };
        for stage in 0..STAGES {
            mbarrier_init(s.full + 8 * stage, 1);
            mbarrier_init(s.empty + 8 * stage, empty);
        }
        fence_mbarrier_init();
    }
    bar_sync();
    match tid_x() / 128 {
        0 => produce(s, tensors, bug),
        _ => consume(s, tensors, bug),
    }
}

fn small(seed: u32, row: u32, column: u32) -> f32 {
    ((row * 5 + column * 3 + seed) % 4) as f32 - 1.0
}

/// What the pipeline stores: sums exact in f32, cut to bf16.
fn want() -> Vec<u8> {
    let element = |i: u32| {
        let product = |k: u32| small(1, i / 64, k % 64) * small(2, k, i % 64);
        let sum: f32 = (0..64 * TILES).map(product).sum();
        ((sum.to_bits() >> 16) as u16).to_le_bytes()
    };
    (0..64 * 64 * CONSUMERS).flat_map(element).collect()
}

struct Setup {
    device: Device,
    tensors: Tensors,
    out: u64,
}

impl Setup {
    fn new() -> Self {
        let mut device = Device::new();
        let matrix = |device: &mut Device, name, rows: u32, values: Option<u32>| {
            let address = device.alloc((128 * rows) as usize, name);
            if let Some(seed) = values {
                let bits = |i: u32| (small(seed, i / 64, i % 64).to_bits() >> 16) as u16;
                device
                    .write(address, &(0..64 * rows).flat_map(|i| bits(i).to_le_bytes()).collect::<Vec<_>>());
            }
            let spec = TensorMapSpec {
                element_bytes: 2,
                rank: 2,
                base: address,
                dims: [64, u64::from(rows), 0, 0, 0],
                strides_bytes: [128, 0, 0, 0],
                box_dims: [64, 64, 0, 0, 0],
                swizzle: Swizzle::B128,
            };
            (spec.encode().expect("a tensor map"), address)
        };
        let (a, _) = matrix(&mut device, "a", 64 * CONSUMERS, Some(1));
        let (b, _) = matrix(&mut device, "b", 64 * TILES, Some(2));
        let (out_map, out) = matrix(&mut device, "out", 64 * CONSUMERS, None);
        Self { device, tensors: Tensors { a, b, out: out_map }, out }
    }

    fn run(&mut self, bug: Bug, order: Order) -> Result<Report, Fault> {
        let shared_bytes = 1024 + TILE_BYTES * (STAGES + CONSUMERS);
        let launch = Launch { name: "pipeline", grid: [1; 3], threads: THREADS, shared_bytes, order };
        let tensors = &self.tensors;
        self.device.launch(&launch, &|| kernel(tensors, bug))
    }
}

#[test]
fn a_right_pipeline_runs_in_every_order() {
    let mut setup = Setup::new();
    let mut took = Duration::ZERO;
    let want = want();
    for order in std::iter::once(Order::Deterministic).chain((0..50).map(Order::Seeded)) {
        setup.device.poison(setup.out, (128 * 64 * CONSUMERS) as usize);
        let start = Instant::now();
        let report = setup.run(Bug::None, order).unwrap_or_else(|fault| panic!("{fault}"));
        took += start.elapsed();
        assert_eq!((report.wgmma, report.bulk_copies), (60, 3 + 5 + 3));
        let mut got = vec![0; (128 * 64 * CONSUMERS) as usize];
        setup.device.read(setup.out, &mut got).unwrap_or_else(|fault| panic!("{fault}"));
        assert_eq!(got, want);
    }
    println!("51 launches of 512 threads: {took:?}");
}

#[test]
fn each_bug_is_found_and_named() {
    use FaultKind::{Deadlock, InFlight, Mbarrier, Race, Uninitialised};
    let mut setup = Setup::new();
    for (bug, kinds, marks) in [
        (Bug::ReleasedBeforeWait, &[Race][..], &["load"][..]),
        (Bug::NoWaitOnEmpty, &[Race, InFlight, Mbarrier, Deadlock], &["load", "expect", "wait", "wgmma"]),
        (Bug::EmptyCountTooLow, &[Race, InFlight, Mbarrier, Deadlock], &["load", "expect", "wait", "wgmma"]),
        (Bug::OneConsumerDoesNotWaitOnFull, &[Race, InFlight, Uninitialised], &["wgmma", "load"]),
        (Bug::AccumulatorsTakenTooEarly, &[InFlight], &["taken"]),
    ] {
        for order in std::iter::once(Order::Deterministic).chain((0..20).map(Order::Seeded)) {
            let fault = setup.run(bug, order).expect_err("a planted bug");
            let location = fault.at.and_then(|at| at.location).unwrap_or_else(|| panic!("no line: {fault}"));
            let lines = include_str!("pipeline.rs");
            let line = lines.lines().nth(location.line() as usize - 1).expect("a line of this file");
            let named = marks.iter().any(|mark| line.ends_with(&format!("// {mark}")));
            assert!(kinds.contains(&fault.kind) && named, "{bug:?}: {fault}: {line}");
        }
    }
}
