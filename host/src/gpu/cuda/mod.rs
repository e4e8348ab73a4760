//! The driver of NVIDIA GPUs, on `cust`.
//!
//! One device, its primary context, one stream. Kernels are compiled by the driver as they are needed ([`kernels`]), which it remembers from one
//! process to the next. Memory is stream-ordered: freeing a buffer doesn't wait, and the pool keeps what
//! is freed. Uploads go through page-locked staging memory. Errors of a kernel come to light at a later call: they name the last
//! kernel launched before it.

mod api;
mod kernels;
mod library;
mod memory;
mod open;
mod spread;
mod staging;
mod tensor_map;
mod timing;

use std::{
    ffi::c_void,
    ptr::null_mut,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cust::{
    context::{Context, ContextHandle as _},
    event::{Event, EventFlags},
    stream::{Stream, StreamFlags},
    sys::CUdevice,
};
use rayon::prelude::*;
use tilewright_kernels::{
    abi::{KernelSpec, TensorMap, TensorMapSpec},
    module::kernels_for,
};

pub use self::timing::{CudaGraph, CudaMark};
use self::{
    kernels::Kernels,
    staging::{Landing, Staging},
};
use super::{Driver, GpuDevice, GpuInfo, Launch};
use crate::{Error, MemoryUse, Result};

/// The compute capability whose module waits where it may start early; that of the others would not.
const STARTS_EARLY: (u32, u32) = (9, 0);

/// A CUDA GPU.
pub type CudaDevice = GpuDevice<CudaDriver>;

impl CudaDevice {
    /// The GPU of that index, in the driver's order.
    ///
    /// # Errors
    /// [`Error::Unavailable`] without a driver, without that GPU or for one older than compute capability 8.0.
    pub fn open(index: usize) -> Result<Self> {
        CudaDriver::open(index).map(GpuDevice::new)
    }
}

/// A CUDA device, its context, stream and kernels.
pub struct CudaDriver {
    inner: Arc<Inner>,
}

/// Fields are dropped in this order: the context goes last.
struct Inner {
    info: GpuInfo,
    /// As errors name the device: `cuda:0`.
    device: String,
    ordinal: CUdevice,
    kernels: Kernels,
    staging: Mutex<Staging>,
    landing: Mutex<Landing>,
    /// The last kernel launched.
    launched: Mutex<Option<&'static str>>,
    stream: Stream,
    context: Context,
}

/// A value whose holder cannot leave it half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    /// Makes the context current on the calling thread.
    fn bind(&self) -> Result<()> {
        // SAFETY: the context is retained for as long as `self` lives.
        let code = unsafe { api::cuCtxSetCurrent(self.context.get_inner()) };
        api::check("cuCtxSetCurrent", code, || None)
    }

    /// What to name when an error comes to light.
    fn after_launch(&self, what: &str) -> Option<String> {
        Some(match *lock(&self.launched) {
            Some(kernel) => format!("{what}, the last kernel launched being {kernel}"),
            None => what.to_string(),
        })
    }

    fn synchronize(&self, what: &str) -> Result<()> {
        self.bind()?;
        // SAFETY: the stream lives as long as `self`.
        let code = unsafe { api::cuStreamSynchronize(self.stream.as_inner()) };
        api::check("cuStreamSynchronize", code, || self.after_launch(what))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The fields' destructors need the context. Nobody is left to hear an error.
        let _ = self.synchronize("closing the device");
    }
}

/// Device memory, freed in the order of the stream.
pub struct CudaBuffer {
    address: u64,
    bytes: usize,
    inner: Arc<Inner>,
}

impl CudaBuffer {
    /// The address of `offset`, if `len` bytes are there.
    fn range(&self, op: &'static str, offset: usize, len: usize) -> Result<u64> {
        match offset.checked_add(len) {
            Some(end) if end <= self.bytes => Ok(self.address + offset as u64),
            _ => Err(Error::Shape {
                op,
                what: "bytes",
                expected: format!("within {}", self.bytes),
                found: format!("{len} at {offset}"),
            }),
        }
    }
}

impl Drop for CudaBuffer {
    fn drop(&mut self) {
        if self.inner.bind().is_ok() {
            // SAFETY: allocated on this stream; whatever uses it was put on the stream before. An error has nobody to go to.
            let _ = unsafe { api::cuMemFreeAsync(self.address, self.inner.stream.as_inner()) };
        }
    }
}

impl CudaDriver {
    /// Runs `work` and measures how long the device took over what it put on the stream. Waits.
    ///
    /// # Errors
    /// Those of `work`, and of the device while doing it.
    pub fn elapsed<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
        self.inner.bind()?;
        let event = || api::wrapped("cuEventCreate", Event::new(EventFlags::DEFAULT));
        let (start, end) = (event()?, event()?);
        api::wrapped("cuEventRecord", start.record(&self.inner.stream))?;
        let done = work()?;
        self.inner.bind()?;
        api::wrapped("cuEventRecord", end.record(&self.inner.stream))?;
        self.inner.synchronize("timing")?;
        Ok((done, api::wrapped("cuEventElapsedTime", end.elapsed(&start))?))
    }
}

impl Driver for CudaDriver {
    type Buffer = CudaBuffer;
    type Graph = CudaGraph;

    fn info(&self) -> &GpuInfo {
        &self.inner.info
    }

    fn alloc(&self, bytes: usize, purpose: &'static str) -> Result<CudaBuffer> {
        self.inner.bind()?;
        let mut address = 0;
        // SAFETY: writes the address; the driver refuses 0 bytes.
        let code = unsafe { api::cuMemAllocAsync(&mut address, bytes, self.inner.stream.as_inner()) };
        if code == api::OUT_OF_MEMORY {
            return Err(Error::OutOfMemory {
                device: self.inner.device.clone(),
                requested_bytes: bytes,
                purpose,
            });
        }
        api::check("cuMemAllocAsync", code, || self.inner.after_launch(purpose))?;
        Ok(CudaBuffer { address, bytes, inner: self.inner.clone() })
    }

    fn address(&self, buffer: &CudaBuffer) -> u64 {
        buffer.address
    }

    fn upload(&self, dst: &CudaBuffer, offset: usize, bytes: &[u8]) -> Result<()> {
        let to = dst.range("upload", offset, bytes.len())?;
        self.inner.bind()?;
        // SAFETY: the range is in the buffer, and the context is current.
        unsafe { lock(&self.inner.staging).upload(to, bytes, &self.inner.stream) }
    }

    fn download(&self, src: &CudaBuffer, offset: usize, out: &mut [u8]) -> Result<()> {
        let from = src.range("download", offset, out.len())?;
        self.inner.bind()?;
        if Landing::holds(out.len()) {
            let wait = || self.inner.synchronize("a download");
            // SAFETY: the range is in the buffer, it has room, and the context is current.
            return unsafe { lock(&self.inner.landing).download(from, out, &self.inner.stream, wait) };
        }
        // SAFETY: the range is in the buffer; `out` is borrowed until the stream has been waited for below.
        let code = unsafe {
            api::cuMemcpyDtoHAsync_v2(out.as_mut_ptr().cast(), from, out.len(), self.inner.stream.as_inner())
        };
        // Waits in any case: a copy that was started must not outlive the borrow.
        let waited = self.inner.synchronize("a download");
        api::check("cuMemcpyDtoHAsync", code, || self.inner.after_launch("a download"))?;
        waited
    }

    fn zero(&self, dst: &CudaBuffer) -> Result<()> {
        self.inner.bind()?;
        // SAFETY: all of the buffer, in the order of the stream it was allocated on.
        let code = unsafe { api::cuMemsetD8Async(dst.address, 0, dst.bytes, self.inner.stream.as_inner()) };
        api::check("cuMemsetD8Async", code, || self.inner.after_launch("zeros"))
    }

    fn tensor_map(&self, spec: &TensorMapSpec<'_>) -> Result<TensorMap> {
        tensor_map::encode(spec)
    }

    fn prepare(&self, kernels: &[&'static KernelSpec]) -> Result<()> {
        let missing: Vec<_> = kernels.iter().filter(|spec| !self.inner.kernels.holds(spec)).collect();
        missing.par_iter().with_max_len(1).try_for_each(|spec| self.prepare_one(spec))
    }

    unsafe fn launch(&self, spec: &'static KernelSpec, grid: [u32; 3], params: &[u8]) -> Result<()> {
        self.inner.bind()?;
        // SAFETY: the caller's promise.
        unsafe { self.launch_on(&self.inner.stream, spec, grid, params) }
    }

    unsafe fn graph(&self, launches: &[Launch]) -> Result<Option<CudaGraph>> {
        self.prepare_launches(launches)?;
        self.inner.bind()?;
        // A stream of its own: what other threads launch meanwhile goes to the device's.
        let stream = api::wrapped("cuStreamCreate", Stream::new(StreamFlags::NON_BLOCKING, None))?;
        let captured = self.capture_of(&stream, || {
            launches.iter().try_for_each(|Launch { spec, grid, params }| {
                // SAFETY: the caller's promise.
                unsafe { self.launch_on(&stream, spec, *grid, params) }
            })
        });
        captured.map(Some)
    }

    unsafe fn replay(&self, graph: &CudaGraph) -> Result<()> {
        graph.replay()
    }

    fn synchronize(&self) -> Result<()> {
        self.inner.synchronize("synchronize")
    }

    fn memory(&self) -> Result<Option<MemoryUse>> {
        self.inner.synchronize("counting memory")?;
        memory::in_use(self.inner.ordinal).map(Some)
    }
}

impl CudaDriver {
    /// Compiles what isn't yet of the kernels of launches: what loads a module has no place in a capture.
    fn prepare_launches(&self, launches: &[Launch]) -> Result<()> {
        let kernels: Vec<_> = launches.iter().map(|launch| launch.spec).collect();
        self.prepare(&kernels)
    }

    /// Compiles all kernels of this device, of which a process needs few: tells whether the driver takes them. `progress` gets how many of how
    /// many are done, from the threads that do them, one at a time.
    ///
    /// # Errors
    /// The driver's own, with what its compiler says.
    pub fn prepare_all(&self, progress: &mut (dyn FnMut(usize, usize) + Send)) -> Result<()> {
        let kernels: Vec<_> = kernels_for(self.inner.info.compute_capability).collect();
        progress(0, kernels.len());
        let told = Mutex::new((0, progress));
        kernels.par_iter().with_max_len(1).try_for_each(|spec| {
            self.prepare_one(spec)?;
            let (done, progress) = &mut *lock(&told);
            *done += 1;
            progress(*done, kernels.len());
            Ok(())
        })
    }

    /// Compiles a kernel if it isn't yet, on any thread: the context is current on one at a time, or on many.
    fn prepare_one(&self, spec: &KernelSpec) -> Result<()> {
        self.inner.bind()?;
        self.inner.kernels.function(spec).map(drop)
    }

    /// # Safety
    /// As [`Driver::launch`]; the context is current.
    unsafe fn launch_on(
        &self,
        stream: &Stream,
        spec: &'static KernelSpec,
        grid: [u32; 3],
        params: &[u8],
    ) -> Result<()> {
        let function = self.inner.kernels.function(spec)?;
        let mut param: *mut c_void = params.as_ptr().cast_mut().cast();
        // SAFETY: the driver reads the one parameter before it returns; that it is this kernel's is the caller's promise.
        let code = unsafe {
            let stream = stream.as_inner();
            let early = spec.starts_early && self.inner.info.compute_capability == STARTS_EARLY;
            let threads = spec.threads;
            let shared_bytes = match early {
                true => spread::shared_bytes(spec, grid, self.inner.info.multiprocessors),
                false => spec.shared_bytes,
            };
            let asked = library::Asked { early, cooperative: spec.cooperative };
            if asked.anything() {
                library::launch_kernel_asking(
                    asked,
                    function,
                    grid,
                    threads,
                    shared_bytes,
                    stream,
                    &mut param,
                )
            } else {
                let [x, y, z] = grid;
                api::cuLaunchKernel(
                    function,
                    x,
                    y,
                    z,
                    threads,
                    1,
                    1,
                    shared_bytes,
                    stream,
                    &mut param,
                    null_mut(),
                )
            }
        };
        let previous = lock(&self.inner.launched).replace(spec.name);
        api::check("cuLaunchKernel", code, || {
            let before = previous.map(|kernel| format!(", after {kernel}")).unwrap_or_default();
            Some(format!("{} over {grid:?} blocks{before}", spec.name))
        })
    }
}
