//! The emulated device: memory that outlives launches, and launches.

use crate::accumulators::WarpProducts;
use crate::bulk_store::Stores;
use crate::clock::{LAST_SERIAL, WARPS};
use crate::cluster::{ClusterBarrier, MOST_BLOCKS, Peer};
use crate::context::{Context, Current};
use crate::fault::{Fault, FaultKind};
use crate::lane::{Lane, State};
use crate::problem::Problem;
use crate::random::Random;
use crate::release::Fenced;
use crate::report::Report;
use crate::scheduler::{Block, LaneStack};

/// In which order lanes run between the points that order them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// Blocks, warps and lanes in ascending order, each as far as it gets.
    #[default]
    Deterministic,
    /// Blocks, warps and lanes in an order drawn from the seed, interrupted at random. The same seed gives the same order.
    Seeded(u64),
}

/// One launch of a kernel.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// What faults call the kernel.
    pub name: &'a str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads a block, all in x: 1 to 1024.
    pub threads: u32,
    /// Dynamic shared memory of a block, in bytes: up to 227 KiB, as on the largest device.
    pub shared_bytes: u32,
    /// The order in which lanes run.
    pub order: Order,
}

/// A device: global memory and what it takes to run blocks on it. See the crate's documentation for an example.
pub struct Device {
    context: Box<Context>,
    stacks: Vec<LaneStack>,
    next_serial: u64,
    /// Serial of the first cluster that may still run when a launch begins that starts early.
    ended_floor: u64,
    starts_early: bool,
}

impl Default for Device {
    fn default() -> Self {
        Self::new()
    }
}

impl Device {
    /// A device with nothing on it.
    pub fn new() -> Self {
        Self {
            context: Box::new(Context::new()),
            stacks: Vec::new(),
            next_serial: 1,
            ended_floor: 1,
            starts_early: false,
        }
    }

    /// Reserves `bytes` of global memory and answers their address, aligned to 256 bytes and to no more.
    ///
    /// The memory is uninitialised; whatever lies before and after it belongs to nobody. Pages are backed when first
    /// touched, so a tensor of gigabytes of which little is used costs little.
    ///
    /// # Panics
    /// If `bytes` exceed 2^38.
    pub fn alloc(&mut self, bytes: usize, name: &str) -> u64 {
        self.context.global.alloc(bytes as u64, name)
    }

    /// Gives an allocation back. Using its address later is a fault.
    ///
    /// # Panics
    /// If `address` isn't the start of a live allocation.
    #[track_caller]
    pub fn free(&mut self, address: u64) {
        self.context.global.free(address);
    }

    /// Copies `bytes` to global memory.
    ///
    /// # Panics
    /// If they don't fit an allocation.
    #[track_caller]
    pub fn write(&mut self, address: u64, bytes: &[u8]) {
        if let Err(failed) = self.context.global.host_write(address, bytes) {
            panic!("{}", self.host_fault("write", address, bytes.len(), failed));
        }
    }

    /// Makes memory uninitialised again.
    ///
    /// # Panics
    /// If the range doesn't lie in an allocation.
    #[track_caller]
    pub fn poison(&mut self, address: u64, bytes: usize) {
        if let Err(failed) = self.context.global.poison(address, bytes) {
            panic!("{}", self.host_fault("poison", address, bytes, failed));
        }
    }

    /// Copies global memory to `out`.
    ///
    /// # Errors
    /// If the range doesn't lie in an allocation, or holds bytes that nobody wrote.
    pub fn read(&mut self, address: u64, out: &mut [u8]) -> Result<(), Fault> {
        let read = self.context.global.host_read(address, out, true);
        read.map_err(|failed| self.host_fault("read", address, out.len(), failed))
    }

    /// As [`Device::read`], but takes unwritten bytes as they come.
    ///
    /// # Errors
    /// If the range doesn't lie in an allocation.
    pub fn read_raw(&mut self, address: u64, out: &mut [u8]) -> Result<(), Fault> {
        let read = self.context.global.host_read(address, out, false);
        read.map_err(|failed| self.host_fault("read", address, out.len(), failed))
    }

    fn host_fault(&self, operation: &str, address: u64, length: usize, failed: (usize, Problem)) -> Fault {
        let (at, problem) = failed;
        let kind = match problem {
            Problem::Uninitialised => FaultKind::Uninitialised,
            _ => FaultKind::OutOfBounds,
        };
        let place = self.context.global.describe(address.wrapping_add(at as u64));
        let detail = format!("{operation} of {length} bytes at {address:#x} fails at {place}");
        Fault { kind, kernel: "host".into(), at: None, other: None, detail: detail.into(), seed: None }
    }

    /// Whether launches count requests, sectors and bank conflicts. Off at first: it costs time and memory.
    pub fn count_requests(&mut self, on: bool) {
        self.context.requests.enabled = on;
    }

    /// Whether launches look for races. On at first; without, they are faster and use less memory.
    pub fn check_races(&mut self, on: bool) {
        self.context.clocks.enabled = on;
    }

    /// Whether launches from here on may start before those before them have ended, as far back as a copy, the host's wait
    /// ([`Device::end_launches`]) or a launch that may not. What such launches have written is a race until `griddepcontrol.wait`. Off at first.
    pub fn start_early(&mut self, on: bool) {
        self.starts_early = on;
    }

    /// All launches so far have ended: whatever comes is behind them.
    pub fn end_launches(&mut self) {
        self.ended_floor = self.next_serial;
    }

    /// Stops launches that take more than about `lane_steps` steps with [`FaultKind::Deadlock`]: what a loop that never ends
    /// looks like. Without a limit at first.
    pub fn limit_steps(&mut self, lane_steps: u64) {
        self.context.step_limit = lane_steps;
    }

    /// Runs `kernel` once for every thread of the grid. It calls [`crate::intrinsic`] for all that it does to memory and to
    /// other threads; what else it touches must not change.
    ///
    /// # Errors
    /// The first fault, which ends the launch. What blocks and lanes did until then stays done.
    pub fn launch(&mut self, launch: &Launch<'_>, kernel: &dyn Fn()) -> Result<Report, Fault> {
        self.launch_clusters(launch, 1, kernel)
    }

    /// As [`Device::launch`], in clusters of `cluster_blocks` blocks, neighbours in x, that run together.
    ///
    /// # Errors
    /// As [`Device::launch`]; of clusters, the grid must be whole ones of at most 16 blocks, whole warps, 10240 threads in all.
    pub fn launch_clusters(
        &mut self,
        launch: &Launch<'_>,
        cluster_blocks: u32,
        kernel: &dyn Fn(),
    ) -> Result<Report, Fault> {
        let clusters = self.begin(launch, cluster_blocks)?;
        while self.stacks.len() < self.context.all_threads() {
            let stack = LaneStack::new(self.stacks.len()).map_err(|error| {
                self.invalid(format!("no memory for the stack of thread {}: {error}", self.stacks.len()))
            })?;
            self.stacks.push(stack);
        }
        let first_serial = self.next_serial;
        self.next_serial += clusters;
        let context: *mut Context = &raw mut *self.context;
        let current = Current::set(context);
        let mut random = match launch.order {
            Order::Deterministic => None,
            Order::Seeded(seed) => Some(Random::new(seed)),
        };
        // SAFETY: as below.
        unsafe { &mut *context }.random = random.as_mut().map(|random| Random::new(random.next()));
        let shuffle = random.as_mut().map(|random| Shuffle::new(clusters, random));
        for turn in 0..clusters {
            let index = shuffle.as_ref().map_or(turn, |shuffle| shuffle.at(turn));
            // SAFETY: the context lives in the device, which is borrowed for the whole launch; no lane runs now.
            unsafe { &mut *context }.begin_cluster(index, first_serial + index, launch.shared_bytes as usize);
            let lanes_random = random.as_mut().map(|random| Random::new(random.next()));
            // SAFETY: `kernel` outlives this call, and the block is ended before it returns.
            let mut block = unsafe { Block::new(kernel, &mut self.stacks, lanes_random) };
            let ended = block.run();
            block.end(&mut self.stacks);
            ended?;
        }
        drop(current);
        Ok(std::mem::take(&mut self.context.report))
    }

    fn invalid(&self, detail: String) -> Fault {
        self.context.fault(FaultKind::InvalidLaunch, None, None, detail)
    }

    /// Checks a launch and prepares the context for it; the number of clusters.
    fn begin(&mut self, launch: &Launch<'_>, cluster_blocks: u32) -> Result<u64, Fault> {
        let context = &mut *self.context;
        launch.name.clone_into(&mut context.kernel);
        context.grid = launch.grid;
        context.threads = launch.threads;
        context.cluster = 1;
        context.seed = match launch.order {
            Order::Deterministic => None,
            Order::Seeded(seed) => Some(seed),
        };
        context.report = Report::default();
        context.polls = 0;
        context.requests.clear();
        let [x, y, z] = launch.grid;
        if x == 0 || y == 0 || z == 0 || x > i32::MAX as u32 || y > 65535 || z > 65535 {
            return Err(
                self.invalid(format!("grid {:?}: expected 1 to (2^31 - 1, 65535, 65535)", launch.grid))
            );
        }
        if !(1..=1024).contains(&launch.threads) {
            return Err(self.invalid(format!("{} threads a block: expected 1 to 1024", launch.threads)));
        }
        if launch.shared_bytes > 227 << 10 {
            return Err(self.invalid(format!(
                "{} bytes of shared memory: expected at most 227 KiB",
                launch.shared_bytes
            )));
        }
        self.check_cluster(launch, cluster_blocks)?;
        self.context.cluster = cluster_blocks as usize;
        let clusters = u128::from(x / cluster_blocks) * u128::from(y) * u128::from(z);
        if clusters >= u128::from(LAST_SERIAL) {
            return Err(
                self.invalid(format!("{clusters} blocks or clusters: expected fewer than {LAST_SERIAL}"))
            );
        }
        let clusters = clusters as u64;
        if self.next_serial + clusters > LAST_SERIAL {
            self.context.global.clear_shadow();
            self.context.shared.clear_shadow();
            (self.next_serial, self.ended_floor) = (1, 1);
        }
        let clocks = &mut self.context.clocks;
        clocks.launch_floor = self.next_serial;
        if !self.starts_early {
            self.ended_floor = self.next_serial;
        }
        clocks.ended_floor = self.ended_floor;
        self.context.clocks.releases.begin_launch();
        Ok(clusters)
    }

    fn check_cluster(&self, launch: &Launch<'_>, blocks: u32) -> Result<(), Fault> {
        if !(1..=MOST_BLOCKS).contains(&blocks) || !launch.grid[0].is_multiple_of(blocks) {
            let columns = launch.grid[0];
            return Err(self.invalid(format!(
                "clusters of {blocks} blocks: expected 1 to {MOST_BLOCKS}, and a divisor of the grid's {columns} in x"
            )));
        }
        let (each, most) = (launch.threads, 32 * WARPS as u32);
        if blocks > 1 && (!each.is_multiple_of(32) || blocks * each > most) {
            return Err(self.invalid(format!(
                "clusters of {blocks} blocks of {each} threads: expected whole warps, and at most {most} threads in all"
            )));
        }
        Ok(())
    }
}

impl Context {
    fn begin_cluster(&mut self, index: u64, serial: u64, shared_bytes: usize) {
        let threads = self.all_threads();
        self.first_block = index * self.cluster as u64;
        self.block = self.block_of(self.first_block);
        (self.rank, self.first_thread) = (0, 0);
        self.shared.begin(shared_bytes, threads, self.cluster);
        self.peers.clear();
        self.peers.resize_with(self.cluster, || Peer::new(self.threads as usize));
        self.cluster_barrier = ClusterBarrier::default();
        self.mbarriers.clear();
        self.flights.clear();
        self.products.clear();
        self.products.resize_with(threads.div_ceil(32), WarpProducts::default);
        self.woken.clear();
        self.forget_polls();
        self.clocks.begin(serial, threads.div_ceil(32));
        self.states.clear();
        self.states.resize(threads, State::Ready);
        self.lanes.resize_with(threads, Lane::default);
        for lane in &mut self.lanes {
            lane.copies.clear();
            lane.copies_issued = 0;
            lane.groups = 0;
            lane.stores = Stores::default();
            lane.fenced = Fenced::default();
            lane.take_accumulators_back();
            lane.site = crate::site::Site::default();
        }
        self.report.blocks += self.cluster as u64;
    }
}

/// A permutation of the clusters, an affine map so that it needs no memory.
struct Shuffle {
    clusters: u64,
    start: u64,
    stride: u64,
}

impl Shuffle {
    fn new(clusters: u64, random: &mut Random) -> Self {
        let gcd = |mut a: u64, mut b: u64| {
            while b != 0 {
                (a, b) = (b, a % b);
            }
            a
        };
        let mut stride = 1 + random.next() % clusters;
        while gcd(stride, clusters) != 1 {
            stride = 1 + random.next() % clusters;
        }
        Self { clusters, start: random.next() % clusters, stride }
    }

    fn at(&self, turn: u64) -> u64 {
        ((u128::from(self.start) + u128::from(turn) * u128::from(self.stride)) % u128::from(self.clusters))
            as u64
    }
}
