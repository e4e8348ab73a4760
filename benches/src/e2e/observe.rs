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

/// A driver that can tell when the device reaches a place in a graph.
pub trait Clock: Driver {
    /// A place in a graph.
    type Mark: Send;
    /// From one mark to a later one, once a replay has ended.
    ///
    /// # Errors
    /// The driver's own.
    fn between(&self, start: &Self::Mark, end: &Self::Mark) -> Result<Duration>;
    /// A graph that sets a mark before its first launch and after each, in every replay.
    ///
    /// # Safety
    /// As [`Driver::graph`].
    ///
    /// # Errors
    /// The driver's own.
    unsafe fn timed_graph(&self, launches: &[Launch]) -> Result<(Self::Graph, Vec<Self::Mark>)>;
}

#[cfg(feature = "cuda")]
impl Clock for tilewright_host::gpu::cuda::CudaDriver {
    type Mark = tilewright_host::gpu::cuda::CudaMark;

    fn between(&self, start: &Self::Mark, end: &Self::Mark) -> Result<Duration> {
        self.between(start, end)
    }

    unsafe fn timed_graph(&self, launches: &[Launch]) -> Result<(Self::Graph, Vec<Self::Mark>)> {
        // SAFETY: the caller's promise.
        unsafe { self.timed_graph(launches) }
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

/// A kernel over so many blocks.
type Kind = (&'static str, [u32; 3]);

/// A graph, observed.
pub struct ObservedGraph<Dr: Clock> {
    graph: Dr::Graph,
    launches: Vec<Kind>,
    /// Before the first launch and after each, of a graph that is timed.
    marks: Vec<Dr::Mark>,
}

/// A driver, observed.
pub struct Observed<Dr: Clock> {
    driver: Dr,
    counts: Arc<Counts>,
    times: AtomicBool,
    /// Microseconds.
    timed: Mutex<BTreeMap<Kind, Vec<f64>>>,
}

/// Launches of a kernel over so many blocks, in graphs: those outside of graphs aren't timed. A launch that is timed doesn't start
/// before the one before it has ended, and its time includes the gap between them.
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
    pub fn operations(&self) -> Vec<Operation> {
        let found = std::mem::take(&mut *self.timed.lock().unwrap_or_else(PoisonError::into_inner));
        let mut operations: Vec<Operation> = found
            .into_iter()
            .map(|((kernel, grid), mut times)| {
                times.sort_by(f64::total_cmp);
                let (count, total_us, median_us) = (times.len(), times.iter().sum(), times[times.len() / 2]);
                Operation { kernel, grid, count, total_us, median_us }
            })
            .collect();
        operations.sort_by(|a, b| b.total_us.total_cmp(&a.total_us));
        operations
    }
}

impl<Dr: Clock> Driver for Observed<Dr> {
    type Buffer = Dr::Buffer;
    type Graph = ObservedGraph<Dr>;

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

    fn prepare(&self, kernels: &[&'static KernelSpec]) -> Result<()> {
        self.driver.prepare(kernels)
    }

    unsafe fn launch(&self, spec: &'static KernelSpec, grid: [u32; 3], params: &[u8]) -> Result<()> {
        self.counts.single.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { self.driver.launch(spec, grid, params) }
    }

    unsafe fn graph(&self, launches: &[Launch]) -> Result<Option<ObservedGraph<Dr>>> {
        let kinds = launches.iter().map(|launch| (launch.spec.name, launch.grid)).collect();
        // SAFETY: the caller's promise.
        let graph = unsafe {
            match self.times.load(Ordering::Relaxed) {
                true => Some(self.driver.timed_graph(launches)?),
                false => self.driver.graph(launches)?.map(|graph| (graph, Vec::new())),
            }
        };
        Ok(graph.map(|(graph, marks)| ObservedGraph { graph, launches: kinds, marks }))
    }

    unsafe fn replay(&self, observed: &ObservedGraph<Dr>) -> Result<()> {
        let ObservedGraph { graph, launches, marks } = observed;
        self.counts.in_graphs.fetch_add(launches.len() as u64, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { self.driver.replay(graph)? };
        if marks.is_empty() {
            return Ok(());
        }
        // The next replay sets the marks anew.
        self.driver.synchronize()?;
        let mut timed = self.timed.lock().unwrap_or_else(PoisonError::into_inner);
        for (kind, marks) in launches.iter().zip(marks.windows(2)) {
            let took = self.driver.between(&marks[0], &marks[1])?;
            timed.entry(*kind).or_default().push(took.as_secs_f64() * 1e6);
        }
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        self.driver.synchronize()
    }
}
