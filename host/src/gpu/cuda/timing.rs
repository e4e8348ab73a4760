//! What a benchmark needs beyond [`Driver`](crate::gpu::Driver): event timings, captured graphs, copies within the device.

use std::{ffi::c_int, ptr::null_mut, sync::Arc, time::Duration};

use cust::{
    device::Device,
    event::{Event, EventFlags},
    stream::{Stream, StreamFlags},
    sys::{CUevent, CUgraph, CUgraphExec},
};

use super::{CudaBuffer, CudaDriver, Inner, api};
use crate::Result;
use crate::gpu::Launch;

/// Launches captured once and replayed as one, without the gaps that separate launches have.
pub struct CudaGraph {
    graph: CUgraph,
    exec: CUgraphExec,
    inner: Arc<Inner>,
}

// SAFETY: the handles name objects of the driver, which any thread with the context current may use, one at a time.
unsafe impl Send for CudaGraph {}

/// A place in a graph, as the device reached it in the last replay.
pub struct CudaMark {
    event: CUevent,
    inner: Arc<Inner>,
}

// SAFETY: the handle names an object of the driver, which any thread with the context current may use.
unsafe impl Send for CudaMark {}

impl Drop for CudaMark {
    fn drop(&mut self) {
        if self.inner.bind().is_ok() {
            // SAFETY: made by `CudaDriver::new_mark`; the driver keeps what a replay under way needs. An error has nobody to go to.
            let _ = unsafe { api::cuEventDestroy_v2(self.event) };
        }
    }
}

impl CudaDriver {
    fn new_mark(&self) -> Result<CudaMark> {
        let mut mark = CudaMark { event: null_mut(), inner: self.inner.clone() };
        // SAFETY: writes the handle of a new event.
        let code = unsafe { api::cuEventCreate(&mut mark.event, 0) };
        api::check("cuEventCreate", code, || None)?;
        Ok(mark)
    }

    /// The device's time from one mark to a later one of the same replay, which has ended.
    ///
    /// # Errors
    /// Where it hasn't, and the driver's own.
    pub fn between(&self, start: &CudaMark, end: &CudaMark) -> Result<Duration> {
        self.inner.bind()?;
        let mut milliseconds = 0.0f32;
        // SAFETY: writes one float; both are events of this context.
        let code = unsafe { api::cuEventElapsedTime(&mut milliseconds, start.event, end.event) };
        api::check("cuEventElapsedTime", code, || None)?;
        Ok(Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) / 1e3))
    }

    /// As [`Driver::graph`], with a mark before the first launch and after each, which every replay sets anew. A launch that has a mark
    /// before it doesn't start early.
    ///
    /// # Safety
    /// As [`Driver::graph`].
    ///
    /// # Errors
    /// The driver's own.
    pub unsafe fn timed_graph(&self, launches: &[Launch]) -> Result<(CudaGraph, Vec<CudaMark>)> {
        self.prepare_launches(launches)?;
        self.inner.bind()?;
        let stream = api::wrapped("cuStreamCreate", Stream::new(StreamFlags::NON_BLOCKING, None))?;
        let mut marks = Vec::with_capacity(launches.len() + 1);
        for _ in 0..=launches.len() {
            marks.push(self.new_mark()?);
        }
        let record = |mark: &CudaMark| {
            // SAFETY: both live until the capture has ended, and marks are handed out beside the graph that sets them.
            let code =
                unsafe { api::cuEventRecordWithFlags(mark.event, stream.as_inner(), api::RECORD_EXTERNAL) };
            api::check("cuEventRecordWithFlags", code, || None)
        };
        let graph = self.capture_of(&stream, || {
            record(&marks[0])?;
            for (Launch { spec, grid, params }, mark) in launches.iter().zip(&marks[1..]) {
                // SAFETY: the caller's promise.
                unsafe { self.launch_on(&stream, spec, *grid, params)? };
                record(mark)?;
            }
            Ok(())
        })?;
        Ok((graph, marks))
    }

    /// The second-level cache, in bytes.
    ///
    /// # Errors
    /// The driver's own.
    pub fn l2_bytes(&self) -> Result<usize> {
        self.inner.bind()?;
        let device: Device = api::wrapped("cuCtxGetDevice", cust::context::CurrentContext::get_device())?;
        let mut bytes: c_int = 0;
        // SAFETY: writes one integer.
        let code = unsafe { api::cuDeviceGetAttribute(&mut bytes, api::L2_CACHE_BYTES, device.as_raw()) };
        api::check("cuDeviceGetAttribute", code, || Some("the size of the L2 cache".into()))?;
        Ok(usize::try_from(bytes).unwrap_or(0))
    }

    /// Puts `work(0)` to `work(runs - 1)` on the stream, an event before and after each, and waits once, at the end: as long as
    /// the host is ahead of the device, what it takes to launch is not in the times.
    ///
    /// # Errors
    /// Those of `work`, and of the device while doing it.
    pub fn time_each(&self, runs: usize, mut work: impl FnMut(usize) -> Result<()>) -> Result<Vec<Duration>> {
        self.inner.bind()?;
        let event = || api::wrapped("cuEventCreate", Event::new(EventFlags::DEFAULT));
        let mut events = Vec::with_capacity(runs);
        for _ in 0..runs {
            events.push((event()?, event()?));
        }
        for (run, (start, end)) in events.iter().enumerate() {
            api::wrapped("cuEventRecord", start.record(&self.inner.stream))?;
            work(run)?;
            api::wrapped("cuEventRecord", end.record(&self.inner.stream))?;
        }
        self.inner.synchronize("timing")?;
        events.iter().map(|(start, end)| api::wrapped("cuEventElapsedTime", end.elapsed(start))).collect()
    }

    /// Captures what `work` launches: kernels that were launched before, or prepared. Memory that it names must outlive the graph;
    /// allocations, uploads and downloads have no place in it.
    ///
    /// # Errors
    /// Those of `work`, and of the driver.
    pub fn capture(&self, work: impl FnOnce() -> Result<()>) -> Result<CudaGraph> {
        self.capture_of(&self.inner.stream, work)
    }

    /// As [`CudaDriver::capture`], of a stream that captures nothing yet.
    pub(super) fn capture_of(&self, stream: &Stream, work: impl FnOnce() -> Result<()>) -> Result<CudaGraph> {
        self.inner.bind()?;
        let stream = stream.as_inner();
        // SAFETY: the stream is borrowed until the capture has ended, and captures nothing yet.
        let code = unsafe { api::cuStreamBeginCapture_v2(stream, api::CAPTURE_THREAD_LOCAL) };
        api::check("cuStreamBeginCapture", code, || None)?;
        let done = work();
        let mut captured = CudaGraph { graph: null_mut(), exec: null_mut(), inner: self.inner.clone() };
        // SAFETY: the capture that began above; it must end in any case, or the stream is of no more use.
        let code = unsafe { api::cuStreamEndCapture(stream, &mut captured.graph) };
        done?;
        api::check("cuStreamEndCapture", code, || self.inner.after_launch("capturing a graph"))?;
        // SAFETY: a graph that was captured; writes the handle of the executable one.
        let code = unsafe { api::cuGraphInstantiateWithFlags(&mut captured.exec, captured.graph, 0) };
        api::check("cuGraphInstantiateWithFlags", code, || None)?;
        Ok(captured)
    }

    /// Copies all of `src` to the start of `dst`, in the order of the stream.
    ///
    /// # Errors
    /// If `dst` is smaller than `src`, and the driver's own.
    pub fn copy(&self, dst: &CudaBuffer, src: &CudaBuffer) -> Result<()> {
        let to = dst.range("copy", 0, src.bytes)?;
        self.inner.bind()?;
        // SAFETY: both ranges are in their buffers, and the context is current.
        let code =
            unsafe { api::cuMemcpyDtoDAsync_v2(to, src.address, src.bytes, self.inner.stream.as_inner()) };
        api::check("cuMemcpyDtoDAsync", code, || self.inner.after_launch("a copy"))
    }
}

impl CudaGraph {
    /// Puts what was captured on the stream.
    ///
    /// # Errors
    /// The driver's own.
    pub fn replay(&self) -> Result<()> {
        self.inner.bind()?;
        // SAFETY: an executable graph of this context.
        let code = unsafe { api::cuGraphLaunch(self.exec, self.inner.stream.as_inner()) };
        api::check("cuGraphLaunch", code, || self.inner.after_launch("replaying a graph"))
    }
}

impl Drop for CudaGraph {
    fn drop(&mut self) {
        if self.inner.bind().is_err() {
            return;
        }
        if !self.exec.is_null() {
            // SAFETY: made by `capture`; a replay under way keeps what it needs. An error has nobody to go to.
            let _ = unsafe { api::cuGraphExecDestroy(self.exec) };
        }
        if !self.graph.is_null() {
            // SAFETY: as above.
            let _ = unsafe { api::cuGraphDestroy(self.graph) };
        }
    }
}
