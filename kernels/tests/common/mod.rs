//! A device in a test's hands: typed uploads, launches under the emulator, typed downloads.
#![allow(dead_code)]

use tilewright_kernels::{abi::KernelSpec, emulation};
use tilewright_simt::{Device, Launch, Order, Report};

/// A repeatable stream of numbers in [-1, 1).
pub struct Noise(u64);

impl Noise {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    pub fn value(&mut self) -> f32 {
        self.bits() as f32 / (1u32 << 30) as f32 - 1.0
    }

    /// Numbers that bf16 holds exactly.
    pub fn bf16s(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| from_bf16(to_bf16(self.value()))).collect()
    }

    pub fn f32s(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.value()).collect()
    }
}

pub fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() { 0x7fff } else { ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16 }
}

pub fn from_bf16(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}

pub struct Bench {
    pub dev: Device,
}

impl Bench {
    pub fn new() -> Self {
        let mut dev = Device::new();
        dev.count_requests(true);
        Self { dev }
    }

    pub fn empty(&mut self, bytes: usize) -> u64 {
        self.dev.alloc(bytes, "out")
    }

    fn upload(&mut self, bytes: &[u8]) -> u64 {
        let address = self.dev.alloc(bytes.len(), "in");
        self.dev.write(address, bytes);
        address
    }

    pub fn bf16(&mut self, values: &[f32]) -> u64 {
        let halves: Vec<u16> = values.iter().map(|&v| to_bf16(v)).collect();
        self.upload(bytemuck::cast_slice(&halves))
    }

    pub fn words<T: bytemuck::Pod>(&mut self, values: &[T]) -> u64 {
        self.upload(bytemuck::cast_slice(values))
    }

    /// Launches twice, in the natural order of lanes and in a shuffled one.
    pub fn launch<P: bytemuck::Pod + Sync>(&mut self, spec: &KernelSpec, grid: [u32; 3], params: P) {
        self.launch_ordered(spec, grid, params, Order::Deterministic);
        self.launch_ordered(spec, grid, params, Order::Seeded(7));
    }

    /// For kernels that overwrite what they read.
    pub fn launch_once<P: bytemuck::Pod + Sync>(
        &mut self,
        spec: &KernelSpec,
        grid: [u32; 3],
        params: P,
    ) -> Report {
        self.launch_ordered(spec, grid, params, Order::Seeded(7))
    }

    fn launch_ordered<P: bytemuck::Pod + Sync>(
        &mut self,
        spec: &KernelSpec,
        grid: [u32; 3],
        params: P,
        order: Order,
    ) -> Report {
        let entry = emulation::entry(spec.name).expect("the kernel has an entry");
        let (threads, shared_bytes) = (spec.threads, spec.shared_bytes);
        let launch = Launch { name: spec.name, grid, threads, shared_bytes, order };
        match self.dev.launch(&launch, &|| entry(bytemuck::bytes_of(&params))) {
            Ok(report) => report,
            Err(fault) => panic!("{fault}"),
        }
    }

    pub fn read<T: bytemuck::Pod + Default>(&mut self, address: u64, n: usize) -> Vec<T> {
        let mut out = vec![T::default(); n];
        if let Err(fault) = self.dev.read(address, bytemuck::cast_slice_mut(&mut out)) {
            panic!("reading back: {fault}");
        }
        out
    }

    pub fn read_bf16(&mut self, address: u64, n: usize) -> Vec<f32> {
        self.read::<u16>(address, n).into_iter().map(from_bf16).collect()
    }
}

/// Elementwise `|got - want| <= tolerance * (1 + |want|)`, which a NaN fails.
pub fn assert_close(what: &str, got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len());
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        let close = (g - w).abs() <= tolerance * (1.0 + w.abs());
        assert!(close, "{what}: element {i} is {g}, expected {w}");
    }
}
