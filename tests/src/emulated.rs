//! The driver interface over the SIMT emulator: the same launches, no GPU.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use tilewright_host::{
    Error, MemoryUse, Result,
    gpu::{Driver, GpuInfo, Launch as Recorded},
};
use tilewright_kernels::{
    abi::MOST_WAITING,
    abi::{KernelSpec, TensorMap, TensorMapSpec},
    emulation,
};
use tilewright_simt::{Device, Launch, Order, Swizzle};

/// What the emulator takes for one allocation.
const MOST_BYTES: usize = 1 << 38;

/// Emulated memory and launches.
pub struct Emulated {
    info: GpuInfo,
    schedule: Mutex<Schedule>,
    device: Arc<Mutex<Device>>,
    allocated_bytes: Arc<AtomicUsize>,
    /// The most of them at a time since somebody asked.
    most_bytes: AtomicUsize,
    prepared: Mutex<BTreeSet<&'static str>>,
    launched: Mutex<Vec<Launched>>,
    replayed: Mutex<Vec<usize>>,
    has_graphs: bool,
    one_launch: bool,
}

/// In which order the lanes of the next launch run.
struct Schedule {
    order: Order,
    /// Launches so far in this order.
    launches: u64,
}

impl Schedule {
    /// Each launch of a seeded order has a seed of its own, so that running a kernel twice compares two interleavings.
    fn next(&mut self) -> Order {
        let launch = self.launches;
        self.launches += 1;
        match self.order {
            Order::Deterministic => Order::Deterministic,
            Order::Seeded(seed) => Order::Seeded(seed.wrapping_add(launch)),
        }
    }
}

/// What is known of a launch that went well.
#[derive(Debug, Clone)]
pub struct Launched {
    /// The kernel.
    pub kernel: &'static str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads a block.
    pub threads: u32,
    /// What it did.
    pub report: tilewright_simt::Report,
    /// What emulating it took, in time the thread ran where the system tells that: others on the machine don't count.
    pub seconds: f64,
}

/// An allocation of an [`Emulated`].
pub struct EmulatedBuffer {
    device: Arc<Mutex<Device>>,
    allocated_bytes: Arc<AtomicUsize>,
    address: u64,
    bytes: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while it was held has failed its test already; what others run doesn't depend on that launch.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
    /// A device whose lanes run in `order`; of a seeded one, each launch takes the next seed.
    pub fn new(order: Order) -> Emulated {
        let info = GpuInfo {
            name: "SIMT emulator".to_string(),
            compute_capability: (8, 0),
            multiprocessors: 4,
            memory_bytes: 1 << 40,
        };
        Emulated {
            info,
            schedule: Mutex::new(Schedule { order, launches: 0 }),
            device: Arc::new(Mutex::new(Device::new())),
            allocated_bytes: Arc::default(),
            most_bytes: AtomicUsize::default(),
            prepared: Mutex::default(),
            launched: Mutex::default(),
            replayed: Mutex::default(),
            has_graphs: true,
            one_launch: false,
        }
    }

    /// The same, of compute capability 9.0, for which a [`tilewright_host::gpu::GpuDevice`] has kernels of its own.
    #[must_use]
    pub fn hopper(mut self) -> Emulated {
        self.info.compute_capability = (9, 0);
        self
    }

    /// The same, counting memory requests and bank conflicts too, which takes time.
    #[must_use]
    pub fn counting(self) -> Emulated {
        lock(&self.device).count_requests(true);
        self
    }

    /// The same, without graphs: every launch is made as it comes.
    #[must_use]
    pub fn without_graphs(self) -> Emulated {
        Emulated { has_graphs: false, ..self }
    }

    /// The same, refusing to go on after the first launch: for those who want that launch and nothing that follows it.
    #[must_use]
    pub fn for_one_launch(self) -> Emulated {
        Emulated { one_launch: true, ..self }
    }

    /// From here on lanes run in the order of `seed`, or without one in the deterministic order.
    pub fn set_order(&self, seed: Option<u64>) {
        let order = seed.map_or(Order::Deterministic, Order::Seeded);
        *lock(&self.schedule) = Schedule { order, launches: 0 };
    }

    /// Bytes of all that is allocated now.
    pub fn allocated_bytes(&self) -> usize {
        self.allocated_bytes.load(Ordering::Relaxed)
    }

    /// Of the graphs replayed since the last call, how many launches each has.
    pub fn take_replayed(&self) -> Vec<usize> {
        std::mem::take(&mut lock(&self.replayed))
    }

    /// Whether a kernel was said to be launched before long.
    pub fn is_prepared(&self, kernel: &str) -> bool {
        lock(&self.prepared).contains(kernel)
    }

    /// The launches since the last call that went well.
    pub fn take_launched(&self) -> Vec<Launched> {
        std::mem::take(&mut lock(&self.launched))
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
        self.allocated_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// What this thread has run so far, in seconds.
fn thread_seconds() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    let nanoseconds: f64 = text.split(' ').next()?.parse().ok()?;
    Some(nanoseconds / 1e9)
}

impl Driver for Emulated {
    type Buffer = EmulatedBuffer;
    type Graph = Vec<Recorded>;

    fn info(&self) -> &GpuInfo {
        &self.info
    }

    fn alloc(&self, bytes: usize, purpose: &'static str) -> Result<EmulatedBuffer> {
        if bytes > MOST_BYTES {
            let device = self.info.name.clone();
            return Err(Error::OutOfMemory { device, requested_bytes: bytes, purpose });
        }
        let address = lock(&self.device).alloc(bytes, purpose);
        let before = self.allocated_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.most_bytes.fetch_max(before + bytes, Ordering::Relaxed);
        let (device, allocated_bytes) = (self.device.clone(), self.allocated_bytes.clone());
        Ok(EmulatedBuffer { device, allocated_bytes, address, bytes })
    }

    fn address(&self, buffer: &EmulatedBuffer) -> u64 {
        buffer.address
    }

    fn upload(&self, dst: &EmulatedBuffer, offset: usize, bytes: &[u8]) -> Result<()> {
        let address = dst.range("upload", offset, bytes.len())?;
        let mut device = lock(&self.device);
        device.write(address, bytes);
        device.end_launches();
        Ok(())
    }

    fn download(&self, src: &EmulatedBuffer, offset: usize, out: &mut [u8]) -> Result<()> {
        let address = src.range("download", offset, out.len())?;
        let mut device = lock(&self.device);
        device.end_launches();
        device.read(address, out).map_err(|fault| refused("download", fault.to_string()))
    }

    fn zero(&self, dst: &EmulatedBuffer) -> Result<()> {
        let mut device = lock(&self.device);
        device.write(dst.address, &vec![0; dst.bytes]);
        device.end_launches();
        Ok(())
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

    fn prepare(&self, kernels: &[&'static KernelSpec]) -> Result<()> {
        lock(&self.prepared).extend(kernels.iter().map(|spec| spec.name));
        Ok(())
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
            order: lock(&self.schedule).next(),
        };
        let (began, ran_before) = (Instant::now(), thread_seconds());
        // Blocks that wait for each other run together.
        let cluster = if spec.waits_in_row && grid[0] <= MOST_WAITING { grid[0] } else { 1 };
        let mut device = lock(&self.device);
        device.start_early(spec.starts_early);
        let launched = device.launch_clusters(&launch, cluster, &|| entry(params));
        drop(device);
        let report = launched.map_err(|fault| refused("launch", fault.to_string()))?;
        let ran = thread_seconds().zip(ran_before).map(|(after, before)| after - before);
        let seconds = ran.unwrap_or_else(|| began.elapsed().as_secs_f64());
        let done = Launched { kernel: spec.name, grid, threads: spec.threads, report, seconds };
        lock(&self.launched).push(done);
        Ok(())
    }

    unsafe fn graph(&self, launches: &[Recorded]) -> Result<Option<Vec<Recorded>>> {
        Ok(self.has_graphs.then(|| launches.to_vec()))
    }

    unsafe fn replay(&self, graph: &Vec<Recorded>) -> Result<()> {
        lock(&self.replayed).push(graph.len());
        // A graph begins behind all that is in its stream.
        lock(&self.device).end_launches();
        graph.iter().try_for_each(|Recorded { spec, grid, params }| {
            // SAFETY: the emulator checks every access.
            unsafe { self.launch(spec, *grid, params) }
        })
    }

    fn synchronize(&self) -> Result<()> {
        lock(&self.device).end_launches();
        match self.one_launch && !lock(&self.launched).is_empty() {
            true => Err(refused("synchronize", "no more than one launch was asked for".to_string())),
            false => Ok(()),
        }
    }

    fn memory(&self) -> Result<Option<MemoryUse>> {
        lock(&self.device).end_launches();
        let now = self.allocated_bytes();
        Ok(Some(MemoryUse { now, most: self.most_bytes.swap(now, Ordering::Relaxed) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_launch_of_a_seeded_order_has_its_own_seed() {
        let device = Emulated::default();
        let next = || lock(&device.schedule).next();
        assert_eq!([next(), next()], [Order::Deterministic; 2]);
        device.set_order(Some(u64::MAX));
        assert_eq!([next(), next()], [Order::Seeded(u64::MAX), Order::Seeded(0)]);
        device.set_order(Some(u64::MAX));
        assert_eq!(next(), Order::Seeded(u64::MAX));
        device.set_order(None);
        assert_eq!(next(), Order::Deterministic);
    }
}
