//! A driver that counts launches and, asked to, times them.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use serde::Serialize;
use tilewright_host::{
    Result,
    gpu::{Driver, GpuInfo, Launch},
};
use tilewright_kernels::abi::{KernelSpec, TensorMap, TensorMapSpec};

/// A driver that can tell when the device reaches a place in its stream.
pub trait Clock: Driver {
    /// A place in the stream.
    type Mark: Send;
    /// Marks the stream's end.
    ///
    /// # Errors
    /// The driver's own.
    fn mark(&self) -> Result<Self::Mark>;
    /// From one mark to a later one, once the device has passed both.
    ///
    /// # Errors
    /// The driver's own.
    fn between(&self, start: &Self::Mark, end: &Self::Mark) -> Result<Duration>;
}

#[cfg(feature = "cuda")]
impl Clock for tilewright_host::gpu::cuda::CudaDriver {
    type Mark = tilewright_host::gpu::cuda::CudaMark;

    fn mark(&self) -> Result<Self::Mark> {
        self.mark()
    }

    fn between(&self, start: &Self::Mark, end: &Self::Mark) -> Result<Duration> {
        self.between(start, end)
    }
}

/// What is known of the launches so far.
#[derive(Debug, Default)]
pub struct Counts {
    single: AtomicU64,
    in_graphs: AtomicU64,
}

impl Counts {
    /// All launches, and those that went to the device one by one.
    pub fn launches(&self) -> [u64; 2] {
        let single = self.single.load(Ordering::Relaxed);
        [single + self.in_graphs.load(Ordering::Relaxed), single]
    }
}

/// A launch between two marks.
struct Timed<M> {
    kernel: &'static str,
    grid: [u32; 3],
    start: M,
    end: M,
}

/// A driver, observed.
pub struct Observed<Dr: Clock> {
    driver: Dr,
    counts: Arc<Counts>,
    times: AtomicBool,
    timed: Mutex<Vec<Timed<Dr::Mark>>>,
}

/// Launches of a kernel over so many blocks. A launch's time begins when the device has done what was before it: what the host took
/// to launch counts where the device waits for it, and a launch that is timed doesn't start early.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Operation {
    /// The kernel.
    pub kernel: &'static str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Launches.
    pub count: usize,
    /// What all took together.
    pub total_us: f64,
    /// The median.
    pub median_us: f64,
}

impl<Dr: Clock> Observed<Dr> {
    /// Observes a driver.
    pub fn new(driver: Dr) -> Observed<Dr> {
        let (counts, times, timed) = (Arc::default(), AtomicBool::new(false), Mutex::default());
        Observed { driver, counts, times, timed }
    }

    /// What it counts.
    pub fn counts(&self) -> Arc<Counts> {
        self.counts.clone()
    }

    /// Times launches from here on, or no longer.
    pub fn time(&self, times: bool) {
        self.times.store(times, Ordering::Relaxed);
    }

    /// What was timed, forgotten by it; the longest in all first.
    ///
    /// # Errors
    /// The driver's own.
    pub fn operations(&self) -> Result<Vec<Operation>> {
        self.driver.synchronize()?;
        let timed = std::mem::take(&mut *self.timed.lock().unwrap_or_else(PoisonError::into_inner));
        let mut found: BTreeMap<(&'static str, [u32; 3]), Vec<f64>> = BTreeMap::new();
        for Timed { kernel, grid, start, end } in &timed {
            let took = self.driver.between(start, end)?;
            found.entry((kernel, *grid)).or_default().push(took.as_secs_f64() * 1e6);
        }
        let mut operations: Vec<Operation> = found
            .into_iter()
            .map(|((kernel, grid), mut times)| {
                times.sort_by(f64::total_cmp);
                let (count, total_us, median_us) = (times.len(), times.iter().sum(), times[times.len() / 2]);
                Operation { kernel, grid, count, total_us, median_us }
            })
            .collect();
        operations.sort_by(|a, b| b.total_us.total_cmp(&a.total_us));
        Ok(operations)
    }
}

impl<Dr: Clock> Driver for Observed<Dr> {
    type Buffer = Dr::Buffer;
    /// And how many launches it has.
    type Graph = (Dr::Graph, u64);

    fn info(&self) -> &GpuInfo {
        self.driver.info()
    }

    fn alloc(&self, bytes: usize, purpose: &'static str) -> Result<Dr::Buffer> {
        self.driver.alloc(bytes, purpose)
    }

    fn address(&self, buffer: &Dr::Buffer) -> u64 {
        self.driver.address(buffer)
    }

    fn upload(&self, dst: &Dr::Buffer, offset: usize, bytes: &[u8]) -> Result<()> {
        self.driver.upload(dst, offset, bytes)
    }

    fn download(&self, src: &Dr::Buffer, offset: usize, out: &mut [u8]) -> Result<()> {
        self.driver.download(src, offset, out)
    }

    fn zero(&self, dst: &Dr::Buffer) -> Result<()> {
        self.driver.zero(dst)
    }

    fn tensor_map(&self, spec: &TensorMapSpec<'_>) -> Result<TensorMap> {
        self.driver.tensor_map(spec)
    }

    unsafe fn launch(&self, spec: &'static KernelSpec, grid: [u32; 3], params: &[u8]) -> Result<()> {
        self.counts.single.fetch_add(1, Ordering::Relaxed);
        if !self.times.load(Ordering::Relaxed) {
            // SAFETY: the caller's promise.
            return unsafe { self.driver.launch(spec, grid, params) };
        }
        let start = self.driver.mark()?;
        // SAFETY: the caller's promise.
        unsafe { self.driver.launch(spec, grid, params)? };
        let timed = Timed { kernel: spec.name, grid, start, end: self.driver.mark()? };
        self.timed.lock().unwrap_or_else(PoisonError::into_inner).push(timed);
        Ok(())
    }

    unsafe fn graph(&self, launches: &[Launch]) -> Result<Option<(Dr::Graph, u64)>> {
        // Launches that are to be timed are made one by one.
        if self.times.load(Ordering::Relaxed) {
            return Ok(None);
        }
        // SAFETY: the caller's promise.
        let graph = unsafe { self.driver.graph(launches)? };
        Ok(graph.map(|graph| (graph, launches.len() as u64)))
    }

    unsafe fn replay(&self, (graph, launches): &(Dr::Graph, u64)) -> Result<()> {
        self.counts.in_graphs.fetch_add(*launches, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { self.driver.replay(graph) }
    }

    fn synchronize(&self) -> Result<()> {
        self.driver.synchronize()
    }
}
