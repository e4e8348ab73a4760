//! Memory for one launch, poisoned and guarded, over any driver.

use std::sync::{Arc, Mutex, PoisonError};

use tilewright_host::gpu::Driver;
use tilewright_kernels::abi::{KernelSpec, Params, TensorMap, TensorMapSpec};
use tilewright_reference::{bf16_bits, bf16_from_bits};

/// Byte of poison: a NaN as bf16 and as f32, an impossible token or page as u32.
pub const POISON: u8 = 0xff;
/// Byte of the canaries.
const CANARY: u8 = 0xa5;

/// Why a case failed.
pub type Failure = String;

/// Where the cases run.
#[derive(Debug)]
pub struct Harness<D: Driver> {
    driver: Arc<D>,
    guard_bytes: usize,
    reorder: Option<fn(&D, Option<u64>)>,
    /// What suites read back, where somebody asked for it.
    read_back: Option<Mutex<Vec<ReadBack>>>,
}

/// What a suite read back of a launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadBack {
    /// The last kernel launched on that memory before.
    pub kernel: &'static str,
    /// The buffer.
    pub name: &'static str,
    pub bytes: Vec<u8>,
}

impl<D: Driver> Harness<D> {
    /// A driver that checks every access itself and knows what is uninitialised.
    pub fn checked(driver: Arc<D>) -> Harness<D> {
        Harness { driver, guard_bytes: 0, reorder: None, read_back: None }
    }

    /// Hardware: canaries round every buffer, and poison wherever a checked driver has uninitialised memory.
    pub fn unchecked(driver: Arc<D>) -> Harness<D> {
        Harness { driver, guard_bytes: 1024, reorder: None, read_back: None }
    }

    /// Lets cases choose the order in which lanes run: `reorder` sets it, to that of a seed or the driver's own.
    #[must_use]
    pub fn reordered_by(self, reorder: fn(&D, Option<u64>)) -> Harness<D> {
        Harness { reorder: Some(reorder), ..self }
    }

    /// Whether the order of lanes can be chosen.
    pub fn can_reorder(&self) -> bool {
        self.reorder.is_some()
    }

    /// Sets the order of lanes, where it can be chosen.
    pub fn set_order(&self, seed: Option<u64>) {
        if let Some(reorder) = self.reorder {
            reorder(&self.driver, seed);
        }
    }

    /// Keeps what suites read back, for [`Harness::take_read_back`].
    #[must_use]
    pub fn recording(self) -> Harness<D> {
        Harness { read_back: Some(Mutex::default()), ..self }
    }

    /// What suites have read back since the last call.
    pub fn take_read_back(&self) -> Vec<ReadBack> {
        let lock = |kept: &Mutex<Vec<ReadBack>>| {
            std::mem::take(&mut *kept.lock().unwrap_or_else(PoisonError::into_inner))
        };
        self.read_back.as_ref().map(lock).unwrap_or_default()
    }

    /// Fresh memory.
    pub fn arena(&self) -> Arena<'_, D> {
        Arena { harness: self, regions: Vec::new(), kernel: "" }
    }
}

/// A buffer of an [`Arena`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handle(usize);

struct Region<D: Driver> {
    name: &'static str,
    buffer: D::Buffer,
    bytes: usize,
    /// What a kernel must leave as it is.
    constant: Option<Vec<u8>>,
}

/// The buffers of one launch, or of a few that follow each other.
pub struct Arena<'h, D: Driver> {
    harness: &'h Harness<D>,
    regions: Vec<Region<D>>,
    /// The last kernel launched.
    kernel: &'static str,
}

fn failed(error: tilewright_host::Error) -> Failure {
    error.to_string()
}

impl<D: Driver> Arena<'_, D> {
    /// Uninitialised under emulation, poison on hardware.
    pub fn alloc(&mut self, name: &'static str, bytes: usize) -> Result<Handle, Failure> {
        let (driver, guard) = (&self.harness.driver, self.harness.guard_bytes);
        let buffer = driver.alloc(bytes.max(1) + 2 * guard, name).map_err(failed)?;
        if guard > 0 {
            // In pieces: some cases want gigabytes.
            let piece = vec![POISON; bytes.min(64 << 20)];
            for offset in (0..bytes).step_by(piece.len().max(1)) {
                let length = piece.len().min(bytes - offset);
                driver.upload(&buffer, guard + offset, &piece[..length]).map_err(failed)?;
            }
            driver.upload(&buffer, 0, &vec![CANARY; guard]).map_err(failed)?;
            driver.upload(&buffer, guard + bytes.max(1), &vec![CANARY; guard]).map_err(failed)?;
        }
        self.regions.push(Region { name, buffer, bytes, constant: None });
        Ok(Handle(self.regions.len() - 1))
    }

    /// Poison that may be read, and whose survival may be asked for.
    pub fn poisoned(&mut self, name: &'static str, bytes: usize) -> Result<Handle, Failure> {
        let handle = self.alloc(name, bytes)?;
        self.write(handle, 0, &vec![POISON; bytes])?;
        Ok(handle)
    }

    /// Bytes that a kernel may only read.
    pub fn input(&mut self, name: &'static str, bytes: &[u8]) -> Result<Handle, Failure> {
        let handle = self.alloc(name, bytes.len())?;
        self.write(handle, 0, bytes)?;
        self.regions[handle.0].constant = Some(bytes.to_vec());
        Ok(handle)
    }

    pub fn input_bytes(&mut self, name: &'static str, bytes: &[u8]) -> Result<Handle, Failure> {
        self.input(name, bytes)
    }

    pub fn input_bf16(&mut self, name: &'static str, values: &[f32]) -> Result<Handle, Failure> {
        self.input(name, &bf16_bytes(values))
    }

    pub fn input_f32(&mut self, name: &'static str, values: &[f32]) -> Result<Handle, Failure> {
        self.input(name, bytemuck::cast_slice(values))
    }

    pub fn input_u32(&mut self, name: &'static str, values: &[u32]) -> Result<Handle, Failure> {
        self.input(name, bytemuck::cast_slice(values))
    }

    /// Values that a kernel may overwrite.
    pub fn inout_bf16(&mut self, name: &'static str, values: &[f32]) -> Result<Handle, Failure> {
        let handle = self.alloc(name, values.len() * 2)?;
        self.write(handle, 0, &bf16_bytes(values))?;
        Ok(handle)
    }

    pub fn write(&mut self, handle: Handle, offset: usize, bytes: &[u8]) -> Result<(), Failure> {
        if bytes.is_empty() {
            return Ok(());
        }
        let region = &self.regions[handle.0];
        assert!(offset + bytes.len() <= region.bytes, "{}: the case writes past its own buffer", region.name);
        self.harness.driver.upload(&region.buffer, self.harness.guard_bytes + offset, bytes).map_err(failed)
    }

    pub fn address(&self, handle: Handle) -> u64 {
        self.harness.driver.address(&self.regions[handle.0].buffer) + self.harness.guard_bytes as u64
    }

    /// How the copy engine walks a tensor.
    pub fn tensor_map(&self, spec: &TensorMapSpec<'_>) -> Result<TensorMap, Failure> {
        self.harness.driver.tensor_map(spec).map_err(failed)
    }

    /// Launches, waits, and checks canaries and inputs.
    pub fn launch(
        &mut self,
        spec: &'static KernelSpec,
        grid: [u32; 3],
        params: &impl Params,
    ) -> Result<(), Failure> {
        self.launch_ahead(spec, grid, params)?;
        self.harness.driver.synchronize().map_err(failed)?;
        for index in 0..self.regions.len() {
            self.check(index).map_err(|what| format!("{}: {what}", spec.name))?;
        }
        Ok(())
    }

    /// Launches and doesn't wait: the next launch may begin before this one has ended.
    pub fn launch_ahead(
        &mut self,
        spec: &'static KernelSpec,
        grid: [u32; 3],
        params: &impl Params,
    ) -> Result<(), Failure> {
        self.kernel = spec.name;
        // SAFETY: the suites size every buffer by the shapes they pass; that this suffices is what canaries, the emulator and
        // compute-sanitizer check.
        unsafe { self.harness.driver.launch(spec, grid, bytemuck::bytes_of(params)) }.map_err(failed)
    }

    fn check(&self, index: usize) -> Result<(), Failure> {
        let Region { name, buffer, bytes, constant } = &self.regions[index];
        let (driver, guard) = (&self.harness.driver, self.harness.guard_bytes);
        for (side, offset) in [("before", 0), ("after", guard + (*bytes).max(1))] {
            let mut canary = vec![0; guard];
            if guard > 0 {
                driver.download(buffer, offset, &mut canary).map_err(failed)?;
            }
            if let Some(at) = canary.iter().position(|&byte| byte != CANARY) {
                return Err(format!("the canary {side} '{name}' was overwritten at its byte {at}"));
            }
        }
        if let Some(constant) = constant {
            let now = self.download(Handle(index), 0, *bytes)?;
            if let Some(at) = (0..*bytes).find(|&at| now[at] != constant[at]) {
                return Err(format!("the input '{name}' was overwritten at byte {at}"));
            }
        }
        Ok(())
    }

    pub fn bytes(&self, handle: Handle, offset: usize, bytes: usize) -> Result<Vec<u8>, Failure> {
        let out = self.download(handle, offset, bytes)?;
        if let Some(kept) = &self.harness.read_back {
            let read =
                ReadBack { kernel: self.kernel, name: self.regions[handle.0].name, bytes: out.clone() };
            kept.lock().unwrap_or_else(PoisonError::into_inner).push(read);
        }
        Ok(out)
    }

    fn download(&self, handle: Handle, offset: usize, bytes: usize) -> Result<Vec<u8>, Failure> {
        let region = &self.regions[handle.0];
        let mut out = vec![0; bytes];
        if bytes > 0 {
            let offset = self.harness.guard_bytes + offset;
            self.harness
                .driver
                .download(&region.buffer, offset, &mut out)
                .map_err(|error| format!("reading '{}': {error}", region.name))?;
        }
        Ok(out)
    }

    pub fn all_bytes(&self, handle: Handle) -> Result<Vec<u8>, Failure> {
        self.bytes(handle, 0, self.regions[handle.0].bytes)
    }

    pub fn bf16s(&self, handle: Handle) -> Result<Vec<f32>, Failure> {
        Ok(bf16_values(&self.all_bytes(handle)?))
    }

    pub fn f32s(&self, handle: Handle) -> Result<Vec<f32>, Failure> {
        Ok(f32_values(&self.all_bytes(handle)?))
    }

    pub fn u32s(&self, handle: Handle) -> Result<Vec<u32>, Failure> {
        Ok(u32_values(&self.all_bytes(handle)?))
    }
}

/// As they lie in memory.
pub fn bf16_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|&value| bf16_bits(value).to_le_bytes()).collect()
}

/// The values of bf16 in memory.
pub fn bf16_values(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(2).map(|pair| bf16_from_bits(u16::from_le_bytes([pair[0], pair[1]]))).collect()
}

/// The values of f32 in memory.
pub fn f32_values(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&word| f32::from_le_bytes(word)).collect()
}

/// The values of u32 in memory.
pub fn u32_values(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks().0.iter().map(|&word| u32::from_le_bytes(word)).collect()
}

/// Fails unless two runs left the same bits.
pub fn same_bits(what: &str, first: &[u8], second: &[u8]) -> Result<(), Failure> {
    if first.len() != second.len() {
        return Err(format!("{what}: {} bytes against {}", first.len(), second.len()));
    }
    match (0..first.len()).find(|&at| first[at] != second[at]) {
        None => Ok(()),
        Some(at) => {
            Err(format!("{what}: bits differ, first at byte {at}: {:#04x}, {:#04x}", first[at], second[at]))
        }
    }
}
