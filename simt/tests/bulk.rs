//! Bulk copies, tensor and plain, against a naive model.

mod support;

use support::orders;
use tilewright_simt::intrinsic::*;
use tilewright_simt::{Device, Fault, Launch, Order, Report, Swizzle, TensorMap, TensorMapSpec};

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
