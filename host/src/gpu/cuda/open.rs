use std::sync::{Arc, Mutex};

use cust::{
    context::Context,
    device::{Device, DeviceAttribute},
    stream::{Stream, StreamFlags},
};
use tilewright_kernels::{gather_rows::GATHER_ROWS, module::ptx_for};

use super::{
    CudaDriver, GpuInfo, Inner, api,
    kernels::Kernels,
    library, memory,
    staging::{Landing, Staging},
};
use crate::{Error, Result};

/// The oldest compute capability: bf16 tensor cores and `cp.async` came with 8.0.
const LEAST_CAPABILITY: (u32, u32) = (8, 0);

impl CudaDriver {
    /// The GPU of that index, in the driver's order, with the kernels made for its architecture.
    ///
    /// # Errors
    /// [`Error::Unavailable`] without a driver, without that GPU or for one that is too old; what a driver says that doesn't take the kernels.
    pub fn open(index: usize) -> Result<CudaDriver> {
        let name = format!("cuda:{index}");
        let unavailable = |reason: String| Error::Unavailable { device: name.clone(), reason };
        let device = find(index).map_err(unavailable)?;
        let info = describe(device)?;
        let (major, minor) = info.compute_capability;
        let ptx = ptx_for(info.compute_capability).filter(|_| info.compute_capability >= LEAST_CAPABILITY);
        let Some(ptx) = ptx else {
            let (least, least_minor) = LEAST_CAPABILITY;
            return Err(unavailable(format!(
                "{} has compute capability {major}.{minor}; use a GPU of {least}.{least_minor} (Ampere) or newer, or the CPU",
                info.name
            )));
        };
        // Retained before anything is made in it; current on this thread from here on.
        let context = api::wrapped("cuDevicePrimaryCtxRetain", Context::new(device))?;
        memory::keep_freed(device.as_raw()).map_err(unavailable)?;
        let stream = api::wrapped("cuStreamCreate", Stream::new(StreamFlags::DEFAULT, None))?;
        let kernels = Kernels::new(ptx, info.compute_capability);
        // A driver too old for the PTX says so here, where the CPU may still be taken instead. Every model gathers rows.
        kernels.function(&GATHER_ROWS)?;
        let staging = Mutex::new(Staging::new()?);
        let launched = Mutex::new(None);
        let landing = Mutex::new(Landing::new()?);
        let ordinal = device.as_raw();
        let inner =
            Inner { info, device: name, ordinal, kernels, staging, landing, launched, stream, context };
        Ok(CudaDriver { inner: Arc::new(inner) })
    }
}

/// The device of that index, or why there is none and what to do.
fn find(index: usize) -> Result<Device, String> {
    library::open().map_err(|absent| {
        format!("no driver library ({absent}); install NVIDIA's driver, so that 'nvidia-smi' lists a GPU, or use the CPU")
    })?;
    // SAFETY: may be called any number of times, from any thread.
    let code = unsafe { api::cuInit(0) };
    if code != 0 {
        return Err(format!(
            "cuInit answered {}; check that 'nvidia-smi' lists a GPU, or use the CPU",
            api::name(code)
        ));
    }
    let devices = Device::num_devices().map_err(|error| format!("cuDeviceGetCount answered {error:?}"))?;
    match u32::try_from(index) {
        Ok(ordinal) if ordinal < devices => {
            Device::get_device(ordinal).map_err(|error| format!("cuDeviceGet answered {error:?}"))
        }
        _ => Err(format!("the driver has {devices} of them; 'nvidia-smi -L' lists them, counted from 0")),
    }
}

fn describe(device: Device) -> Result<GpuInfo> {
    let attribute = |attribute| -> Result<u32> {
        let value = api::wrapped("cuDeviceGetAttribute", device.get_attribute(attribute))?;
        Ok(u32::try_from(value).unwrap_or(0))
    };
    Ok(GpuInfo {
        name: api::wrapped("cuDeviceGetName", device.name())?,
        compute_capability: (
            attribute(DeviceAttribute::ComputeCapabilityMajor)?,
            attribute(DeviceAttribute::ComputeCapabilityMinor)?,
        ),
        multiprocessors: attribute(DeviceAttribute::MultiprocessorCount)?,
        memory_bytes: api::wrapped("cuDeviceTotalMem", device.total_memory())? as u64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Holds with a driver and without one, and under the stand-in library.
    #[test]
    fn a_gpu_that_is_not_there_says_what_to_do() {
        match CudaDriver::open(9_999) {
            Err(Error::Unavailable { device, reason }) => {
                assert_eq!(device, "cuda:9999");
                assert!(reason.contains("nvidia-smi") && !reason.contains('\n'), "{reason}");
            }
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("opened"),
        }
    }
}
