//! A driver that does nothing, to see the host's part of a step: what a device would have to wait for.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tilewright_host::{
    Result,
    gpu::{Driver, GpuInfo, Launch},
};
use tilewright_kernels::abi::{KernelSpec, TensorMap, TensorMapSpec};

/// A driver whose device takes no time; all that is read from it are tokens, each of the number 100.
pub struct Idle {
    info: GpuInfo,
    /// Where the next allocation would be.
    end: AtomicU64,
    uploads: AtomicUsize,
    downloads: AtomicUsize,
}

const TOKEN: u32 = 100;

impl Default for Idle {
    fn default() -> Idle {
        let info = GpuInfo {
            name: "idle".into(),
            compute_capability: (8, 0),
            multiprocessors: 132,
            memory_bytes: 1 << 40,
        };
        Idle {
            info,
            end: AtomicU64::new(1 << 20),
            uploads: AtomicUsize::new(0),
            downloads: AtomicUsize::new(0),
        }
    }
}

impl Idle {
    /// As the default, of compute capability 9.0.
    pub fn hopper() -> Idle {
        let idle = Idle::default();
        Idle { info: GpuInfo { compute_capability: (9, 0), ..idle.info }, ..idle }
    }

    /// Copies to the device and from it, since this was asked last.
    pub fn take_copies(&self) -> (usize, usize) {
        (self.uploads.swap(0, Ordering::Relaxed), self.downloads.swap(0, Ordering::Relaxed))
    }
}

impl Driver for Idle {
    type Buffer = u64;
    type Graph = ();

    fn info(&self) -> &GpuInfo {
        &self.info
    }

    fn alloc(&self, bytes: usize, _: &'static str) -> Result<u64> {
        Ok(self.end.fetch_add(bytes.next_multiple_of(256) as u64, Ordering::Relaxed))
    }

    fn address(&self, buffer: &u64) -> u64 {
        *buffer
    }

    fn upload(&self, _: &u64, _: usize, _: &[u8]) -> Result<()> {
        self.uploads.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn download(&self, _: &u64, _: usize, out: &mut [u8]) -> Result<()> {
        self.downloads.fetch_add(1, Ordering::Relaxed);
        out.chunks_exact_mut(4).for_each(|word| word.copy_from_slice(&TOKEN.to_le_bytes()));
        Ok(())
    }

    fn zero(&self, _: &u64) -> Result<()> {
        Ok(())
    }

    fn tensor_map(&self, _: &TensorMapSpec<'_>) -> Result<TensorMap> {
        Ok(TensorMap::default())
    }

    unsafe fn launch(&self, _: &'static KernelSpec, _: [u32; 3], _: &[u8]) -> Result<()> {
        Ok(())
    }

    unsafe fn graph(&self, _: &[Launch]) -> Result<Option<()>> {
        Ok(Some(()))
    }

    unsafe fn replay(&self, (): &()) -> Result<()> {
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
}
