//! The driver interface over the SIMT emulator: the same launches, no GPU.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tilewright_host::{
    Error, Result,
    gpu::{Driver, GpuInfo},
};
use tilewright_kernels::{
    abi::{KernelSpec, TensorMap, TensorMapSpec},
    emulation,
};
use tilewright_simt::{Device, Launch, Order, Swizzle};

/// Emulated memory and launches.
pub struct Emulated {
    info: GpuInfo,
    order: Order,
    device: Arc<Mutex<Device>>,
}

/// An allocation of an [`Emulated`].
pub struct EmulatedBuffer {
    device: Arc<Mutex<Device>>,
    address: u64,
    bytes: usize,
}

fn lock(device: &Mutex<Device>) -> MutexGuard<'_, Device> {
    // A panic while it was held has failed its test already; what others run doesn't depend on that launch.
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

fn refused(call: &'static str, code: String) -> Error {
    Error::Driver { call, code, observed: None }
}

impl Default for Emulated {
    fn default() -> Emulated {
        Emulated::new(Order::Deterministic)
    }
}

impl Emulated {
    /// A device whose lanes run in `order`.
    pub fn new(order: Order) -> Emulated {
        let info = GpuInfo {
            name: "SIMT emulator".to_string(),
            compute_capability: (8, 0),
            multiprocessors: 4,
            memory_bytes: 1 << 40,
        };
        Emulated { info, order, device: Arc::new(Mutex::new(Device::new())) }
    }
}

impl EmulatedBuffer {
    fn range(&self, call: &'static str, offset: usize, bytes: usize) -> Result<u64> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.bytes => Ok(self.address + offset as u64),
            _ => Err(refused(call, format!("{bytes} bytes at {offset} of a buffer of {}", self.bytes))),
        }
    }
}

impl Drop for EmulatedBuffer {
    fn drop(&mut self) {
        lock(&self.device).free(self.address);
    }
}

impl Driver for Emulated {
    type Buffer = EmulatedBuffer;

    fn info(&self) -> &GpuInfo {
        &self.info
    }

    fn alloc(&self, bytes: usize, purpose: &'static str) -> Result<EmulatedBuffer> {
        let address = lock(&self.device).alloc(bytes, purpose);
        Ok(EmulatedBuffer { device: self.device.clone(), address, bytes })
    }

    fn address(&self, buffer: &EmulatedBuffer) -> u64 {
        buffer.address
    }

    fn upload(&self, dst: &EmulatedBuffer, offset: usize, bytes: &[u8]) -> Result<()> {
        let address = dst.range("upload", offset, bytes.len())?;
        lock(&self.device).write(address, bytes);
        Ok(())
    }

    fn download(&self, src: &EmulatedBuffer, offset: usize, out: &mut [u8]) -> Result<()> {
        let address = src.range("download", offset, out.len())?;
        lock(&self.device).read(address, out).map_err(|fault| refused("download", fault.to_string()))
    }

    fn tensor_map(&self, spec: &TensorMapSpec<'_>) -> Result<TensorMap> {
        let mut encoded = tilewright_simt::TensorMapSpec {
            element_bytes: spec.element_bytes,
            rank: spec.dims.len() as u32,
            base: spec.base,
            dims: [1; 5],
            strides_bytes: [0; 4],
            box_dims: [1; 5],
            swizzle: Swizzle::B128,
        };
        encoded.dims[..spec.dims.len()].copy_from_slice(spec.dims);
        encoded.strides_bytes[..spec.strides_bytes.len()].copy_from_slice(spec.strides_bytes);
        encoded.box_dims[..spec.box_dims.len()].copy_from_slice(spec.box_dims);
        encoded.encode().map(|map| TensorMap(map.0)).map_err(|what| refused("tensor map", what))
    }

    unsafe fn launch(&self, spec: &'static KernelSpec, grid: [u32; 3], params: &[u8]) -> Result<()> {
        let Some(entry) = emulation::entry(spec.name) else {
            return Err(refused("launch", format!("no host-compiled entry '{}'", spec.name)));
        };
        let launch = Launch {
            name: spec.name,
            grid,
            threads: spec.threads,
            shared_bytes: spec.shared_bytes,
            order: self.order,
        };
        let launched = lock(&self.device).launch(&launch, &|| entry(params));
        launched.map(drop).map_err(|fault| refused("launch", fault.to_string()))
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
}
