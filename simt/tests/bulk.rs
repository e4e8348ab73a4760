//! Bulk copies, tensor and plain, against a naive model, and what may not be done with them.

use tilewright_simt::intrinsic::*;
use tilewright_simt::{Device, Fault, FaultKind, Launch, Order, Report, Swizzle, TensorMap, TensorMapSpec};

/// Bytes of shared memory before the tile: the mbarrier.
const TILE: u32 = 1024;

fn run(device: &mut Device, threads: u32, order: Order, kernel: &dyn Fn()) -> Result<Report, Fault> {
    let launch = Launch { name: "bulk", grid: [1; 3], threads, shared_bytes: 64 << 10, order };
    device.launch(&launch, kernel)
}

fn orders(count: u64) -> impl Iterator<Item = Order> {
    std::iter::once(Order::Deterministic).chain((0..count).map(Order::Seeded))
}

/// The fault that every order finds on the line marked "caught".
fn caught(device: &mut Device, threads: u32, kind: FaultKind, kernel: &dyn Fn()) -> Fault {
    let mut faults = orders(8).map(|order| run(device, threads, order, kernel).expect_err("a planted bug"));
    let first = faults.next().expect("one order at least");
    for fault in std::iter::once(first.clone()).chain(faults) {
        assert_eq!(fault.kind, kind, "{fault}");
        let location = fault.at.and_then(|at| at.location).unwrap_or_else(|| panic!("no line: {fault}"));
        let line =
            include_str!("bulk.rs").lines().nth(location.line() as usize - 1).expect("a line of this file");
        assert!(line.ends_with("// caught"), "{fault}: {line}");
    }
    first
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

/// A tensor of any rank and a box in it.
#[derive(Debug, Clone, Copy)]
struct Case {
    spec: TensorMapSpec,
    coords: [i32; 5],
}

impl Case {
    /// Every element of the box, in order, as an offset in bytes from the tensor's base; none outside it.
    fn elements(&self) -> Vec<Option<u64>> {
        let TensorMapSpec { element_bytes, rank, dims, strides_bytes, box_dims, .. } = self.spec;
        let mut elements = Vec::new();
        let mut at = [0u32; 5];
        loop {
            let mut offset = Some(0u64);
            for d in 0..rank as usize {
                let index = i64::from(self.coords[d]) + i64::from(at[d]);
                let stride = if d == 0 { u64::from(element_bytes) } else { strides_bytes[d - 1] };
                let inside = index >= 0 && (index as u64) < dims[d];
                offset = offset.filter(|_| inside).map(|offset| offset + index as u64 * stride);
            }
            elements.push(offset);
            let mut d = 0;
            while d < rank as usize {
                at[d] += 1;
                if at[d] < box_dims[d] {
                    break;
                }
                at[d] = 0;
                d += 1;
            }
            if d == rank as usize {
                return elements;
            }
        }
    }

    fn box_bytes(&self) -> u32 {
        self.spec.box_dims[..self.spec.rank as usize].iter().product::<u32>() * self.spec.element_bytes
    }

    fn load(&self, map: &TensorMap) {
        let c = self.coords;
        match self.spec.rank {
            1 => bulk_tensor_load(tile(), map, [c[0]], base()),
            2 => bulk_tensor_load(tile(), map, [c[0], c[1]], base()),
            3 => bulk_tensor_load(tile(), map, [c[0], c[1], c[2]], base()),
            4 => bulk_tensor_load(tile(), map, [c[0], c[1], c[2], c[3]], base()),
            _ => bulk_tensor_load(tile(), map, c, base()),
        }
    }

    fn store(&self, map: &TensorMap) {
        let c = self.coords;
        match self.spec.rank {
            1 => bulk_tensor_store(map, [c[0]], tile()),
            2 => bulk_tensor_store(map, [c[0], c[1]], tile()),
            3 => bulk_tensor_store(map, [c[0], c[1], c[2]], tile()),
            4 => bulk_tensor_store(map, [c[0], c[1], c[2], c[3]], tile()),
            _ => bulk_tensor_store(map, c, tile()),
        }
    }
}

/// Where byte `i` of a box lies: chunk `i / 16` of a line changes places with others of its line.
fn place(swizzle: Swizzle, i: u32) -> u32 {
    let (line, chunk) = (i / 128, i / 16 % 8);
    let chunk = match swizzle {
        Swizzle::None => chunk,
        Swizzle::B32 => chunk ^ (line % 2),
        Swizzle::B64 => chunk ^ (line % 4),
        Swizzle::B128 => chunk ^ (line % 8),
    };
    128 * line + 16 * chunk + i % 16
}

fn cases(x: u64) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut case = |swizzle, element_bytes, dims: &[u64], box_dims: &[u32], coords: &[i32]| {
        let rank = dims.len();
        let mut spec = TensorMapSpec {
            element_bytes,
            rank: rank as u32,
            base: x,
            dims: [0; 5],
            strides_bytes: [0; 4],
            box_dims: [0; 5],
            swizzle,
        };
        spec.dims[..rank].copy_from_slice(dims);
        spec.box_dims[..rank].copy_from_slice(box_dims);
        let mut stride = u64::from(element_bytes);
        for (extent, stride_bytes) in dims[..rank - 1].iter().zip(&mut spec.strides_bytes) {
            // Rows further apart than they are long.
            stride = (stride * extent).next_multiple_of(16) + 16;
            *stride_bytes = stride;
        }
        let mut all = [0; 5];
        all[..rank].copy_from_slice(coords);
        cases.push(Case { spec, coords: all });
    };
    for swizzle in [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128] {
        let wide = swizzle.span_bytes() / 2;
        case(swizzle, 2, &[100], &[wide], &[0]);
        case(swizzle, 2, &[100], &[wide], &[95]);
        case(swizzle, 2, &[100], &[wide], &[-3]);
        case(swizzle, 2, &[70, 40], &[wide, 16], &[5, 20]);
        case(swizzle, 2, &[70, 40], &[wide, 16], &[64, 33]);
        case(swizzle, 2, &[70, 40], &[wide, 16], &[-7, -9]);
        case(swizzle, 2, &[70, 40], &[wide, 16], &[70, 0]);
        case(swizzle, 2, &[70, 40], &[wide, 16], &[-100, 7]);
        case(swizzle, 4, &[33, 5, 7], &[wide / 2, 2, 5], &[2, 4, 3]);
        case(swizzle, 1, &[64, 5, 3, 4], &[wide * 2, 3, 2, 3], &[16, 3, -1, 2]);
        case(swizzle, 8, &[16, 3, 4, 2, 3], &[wide / 4, 2, 3, 2, 2], &[1, 2, 2, 1, -1]);
    }
    case(Swizzle::None, 2, &[300, 4], &[256, 3], &[60, 2]);
    cases
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| (i * 37 % 251) as u8 | 1).collect()
}

const TENSOR_BYTES: usize = 16 << 10;

#[test]
fn tensor_loads_follow_the_model() {
    let mut device = Device::new();
    let x = device.alloc(TENSOR_BYTES, "x");
    let data = pattern(TENSOR_BYTES);
    device.write(x, &data);
    let out = device.alloc(TENSOR_BYTES, "out");
    for case in cases(x) {
        let map = case.spec.encode().unwrap_or_else(|error| panic!("{case:?}: {error}"));
        let bytes = case.box_bytes();
        for order in orders(2) {
            device.poison(out, TENSOR_BYTES);
            let report = run(&mut device, 64, order, &|| {
                begin();
                if tid_x() == 0 {
                    mbarrier_arrive_expect_tx(base(), bytes);
                    case.load(&map);
                }
                wait(0);
                for i in (tid_x()..bytes / 16).step_by(64) {
                    st_global(out + 16 * u64::from(i), ld_shared::<[u32; 4]>(tile() + 16 * i));
                }
            });
            let report = report.unwrap_or_else(|fault| panic!("{case:?}: {fault}"));
            assert_eq!((report.bulk_copies, report.bulk_bytes), (1, u64::from(bytes)));
        }
        let mut got = vec![0; bytes.next_multiple_of(128) as usize];
        device.read_raw(out, &mut got).expect("an allocation");
        let element_bytes = case.spec.element_bytes;
        for (i, element) in case.elements().into_iter().enumerate() {
            for byte in 0..element_bytes {
                let at = place(case.spec.swizzle, i as u32 * element_bytes + byte);
                let want = element.map_or(0, |offset| data[offset as usize + byte as usize]);
                assert_eq!(got[at as usize], want, "{case:?}: element {i}");
            }
        }
    }
}

#[test]
fn tensor_stores_follow_the_model() {
    let mut device = Device::new();
    let x = device.alloc(TENSOR_BYTES, "x");
    for case in cases(x) {
        let map = case.spec.encode().unwrap_or_else(|error| panic!("{case:?}: {error}"));
        let bytes = case.box_bytes();
        let tile_data = pattern(bytes.next_multiple_of(128) as usize);
        for order in orders(2) {
            device.write(x, &[0; TENSOR_BYTES]);
            let stored = run(&mut device, 64, order, &|| {
                for i in (tid_x()..tile_data.len() as u32 / 4).step_by(64) {
                    let at = 4 * i as usize;
                    let word = [tile_data[at], tile_data[at + 1], tile_data[at + 2], tile_data[at + 3]];
                    st_shared(tile() + 4 * i, u32::from_le_bytes(word));
                }
                fence_proxy_async();
                bar_sync();
                if tid_x() == 0 {
                    case.store(&map);
                    bulk_commit();
                    bulk_wait(0);
                }
            });
            stored.unwrap_or_else(|fault| panic!("{case:?}: {fault}"));
        }
        let mut want = vec![0; TENSOR_BYTES];
        let element_bytes = case.spec.element_bytes;
        for (i, element) in case.elements().into_iter().enumerate() {
            let Some(offset) = element else { continue };
            for byte in 0..element_bytes {
                let at = place(case.spec.swizzle, i as u32 * element_bytes + byte);
                want[offset as usize + byte as usize] = tile_data[at as usize];
            }
        }
        let mut got = vec![0; TENSOR_BYTES];
        device.read(x, &mut got).unwrap_or_else(|fault| panic!("{case:?}: {fault}"));
        assert_eq!(got, want, "{case:?}");
    }
}

#[test]
fn plain_copies_there_and_back() {
    let mut device = Device::new();
    let (x, out) = (device.alloc(512, "x"), device.alloc(512, "out"));
    device.write(x, &pattern(512));
    for order in orders(20) {
        device.poison(out, 512);
        let copied = run(&mut device, 1, order, &|| {
            begin();
            mbarrier_arrive_expect_tx(base(), 512);
            bulk_load(tile(), x, 256, base());
            bulk_load(tile() + 256, x + 256, 256, base());
            wait(0);
            // In two groups; the first may be waited for alone, its source then be written.
            bulk_store(out, tile(), 256);
            bulk_commit();
            bulk_store(out + 256, tile() + 256, 256);
            bulk_commit();
            bulk_wait_read(1);
            st_shared(tile(), 0u32);
            bulk_wait(0);
            assert_eq!(ld_global::<u32>(out + 16), ld_global::<u32>(x + 16));
        });
        copied.unwrap_or_else(|fault| panic!("{fault}"));
        let mut got = vec![0; 512];
        device.read(out, &mut got).unwrap_or_else(|fault| panic!("{fault}"));
        assert_eq!(got, pattern(512));
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
