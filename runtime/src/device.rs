use std::str::FromStr;
use std::sync::Arc;

use tilewright_host::cpu::{CpuDevice, Precision};
use tilewright_host::{Device, KvDType};

use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
use crate::model::{Decoder, DecoderRunner, DecoderSequence, Runner, RunnerSizes, Sequence};
use crate::{Error, Result};

/// Which device runs a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The first GPU where there is one and the crate was built for it; else the CPU.
    #[default]
    Auto,
    /// The CPU, in f32.
    Cpu,
    /// The CPU, rounding activations to bf16 wherever a GPU does: what a GPU's error is held against.
    CpuBf16,
    /// The GPU of that number.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<DeviceChoice> {
        let wrong = || Error::request("device", "auto, cpu, cpu-bf16, cuda or cuda:N", format!("{text:?}"));
        match text {
            "auto" => Ok(DeviceChoice::Auto),
            "cpu" => Ok(DeviceChoice::Cpu),
            "cpu-bf16" => Ok(DeviceChoice::CpuBf16),
            "cuda" => Ok(DeviceChoice::Cuda(0)),
            _ => match text.strip_prefix("cuda:").map(str::parse) {
                Some(Ok(index)) => Ok(DeviceChoice::Cuda(index)),
                _ => Err(wrong()),
            },
        }
    }
}

/// A model on some device.
pub(crate) trait AnyDecoder: Send + Sync {
    fn sequence(&self, capacity: usize, dtype: KvDType) -> Result<Box<dyn Sequence + '_>>;
    /// What serves many sequences.
    fn runner(self: Arc<Self>, sizes: RunnerSizes) -> Result<Box<dyn Runner>>;
    fn describe(&self) -> String;
}

impl<D: Device> AnyDecoder for Decoder<D> {
    fn sequence(&self, capacity: usize, dtype: KvDType) -> Result<Box<dyn Sequence + '_>> {
        Ok(Box::new(DecoderSequence::new(self, capacity, dtype)?))
    }

    fn runner(self: Arc<Self>, sizes: RunnerSizes) -> Result<Box<dyn Runner>> {
        Ok(Box::new(DecoderRunner::new(self, sizes)?))
    }

    fn describe(&self) -> String {
        self.device().describe()
    }
}

/// A model on the device chosen for it.
pub(crate) struct Loaded {
    pub engine: Arc<dyn AnyDecoder>,
    /// Whether the device keeps activations in f32.
    pub computes_in_f32: bool,
    /// Why it isn't a GPU, where the choice was left open and the program knows GPUs.
    pub no_gpu: Option<String>,
}

/// Loads a checkpoint's weights onto the device chosen.
pub(crate) fn load(
    choice: DeviceChoice,
    config: ModelConfig,
    checkpoint: &Checkpoint,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Loaded> {
    let (gpu, no_gpu) = match choice {
        DeviceChoice::Cpu | DeviceChoice::CpuBf16 => (None, None),
        DeviceChoice::Cuda(index) => (Some(open_cuda(index)?), None),
        DeviceChoice::Auto => match open_cuda(0) {
            Ok(device) => (Some(device), None),
            Err(error) => (None, cfg!(feature = "cuda").then(|| error.to_string())),
        },
    };
    if let Some(device) = gpu {
        let engine = engine(Arc::new(device), config, checkpoint, progress)?;
        return Ok(Loaded { engine, computes_in_f32: false, no_gpu });
    }
    let (cpu, computes_in_f32) = match choice {
        DeviceChoice::CpuBf16 => (CpuDevice::with_precision(Precision::Bf16), false),
        _ => (CpuDevice::new(), true),
    };
    Ok(Loaded { engine: engine(Arc::new(cpu), config, checkpoint, progress)?, computes_in_f32, no_gpu })
}

/// Work that any device can do.
pub(crate) trait DeviceJob {
    type Output;
    /// `in_f32`: whether the device keeps activations in f32.
    fn run<D: Device>(self, device: Arc<D>, in_f32: bool) -> Result<Self::Output>;
}

/// Does work on the device chosen.
pub(crate) fn on_device<J: DeviceJob>(choice: DeviceChoice, job: J) -> Result<J::Output> {
    let gpu = match choice {
        DeviceChoice::Cpu | DeviceChoice::CpuBf16 => None,
        DeviceChoice::Cuda(index) => Some(open_cuda(index)?),
        DeviceChoice::Auto => open_cuda(0).ok(),
    };
    match (gpu, choice) {
        (Some(device), _) => job.run(Arc::new(device), false),
        (None, DeviceChoice::CpuBf16) => job.run(Arc::new(CpuDevice::with_precision(Precision::Bf16)), false),
        (None, _) => job.run(Arc::new(CpuDevice::new()), true),
    }
}

/// Why work on the device chosen didn't go to a GPU, where the choice was left open and the program knows GPUs.
pub(crate) fn why_no_gpu(choice: DeviceChoice) -> Option<String> {
    if choice != DeviceChoice::Auto || !cfg!(feature = "cuda") {
        return None;
    }
    open_cuda(0).err().map(|error| error.to_string())
}

/// A checkpoint's weights on a device.
pub(crate) fn engine<D: Device>(
    device: Arc<D>,
    config: ModelConfig,
    checkpoint: &Checkpoint,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Arc<dyn AnyDecoder>> {
    Ok(Arc::new(Decoder::load(device, config, checkpoint, progress)?))
}

#[cfg(feature = "cuda")]
fn open_cuda(index: usize) -> Result<tilewright_host::gpu::cuda::CudaDevice> {
    Ok(tilewright_host::gpu::cuda::CudaDevice::open(index)?)
}

/// Never a device; the type stands in for the one that isn't built.
#[cfg(not(feature = "cuda"))]
fn open_cuda(index: usize) -> Result<CpuDevice> {
    Err(Error::Device(tilewright_host::Error::Unavailable {
        device: format!("cuda:{index}"),
        reason: "this program was built without CUDA; build it with --features cuda".to_string(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named() {
        let parse = |text: &str| text.parse::<DeviceChoice>().ok();
        assert_eq!(parse("auto"), Some(DeviceChoice::Auto));
        assert_eq!(parse("cuda"), Some(DeviceChoice::Cuda(0)));
        assert_eq!(parse("cuda:3"), Some(DeviceChoice::Cuda(3)));
        assert_eq!([parse("cuda:"), parse("cuda:x"), parse("gpu"), parse("")], [None; 4]);
    }
}
