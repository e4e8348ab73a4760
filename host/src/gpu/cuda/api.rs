//! The driver's functions that `cust` lacks, or whose error codes it would lose.
//!
//! Results are plain numbers here: `cust`'s enum knows the codes of CUDA 11.4, and a code it doesn't know must not become an
//! enum value. The symbols are those that [`super::library`] defines.

use std::ffi::{CStr, c_char, c_int, c_uchar, c_uint, c_void};

use cust::{
    error::CudaError,
    sys::{
        CUcontext, CUdevice, CUdeviceptr, CUevent, CUfunction, CUgraph, CUgraphExec, CUmemoryPool, CUmodule,
        CUstream,
    },
};

use crate::{Error, Result};

pub(super) const OUT_OF_MEMORY: u32 = 2;
/// `CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED`.
pub(super) const MEMORY_POOLS_SUPPORTED: c_int = 115;
/// `CU_MEMPOOL_ATTR_RELEASE_THRESHOLD`, a `u64` of bytes.
pub(super) const RELEASE_THRESHOLD: c_int = 4;
/// `CU_MEMPOOL_ATTR_USED_MEM_CURRENT`, a `u64` of bytes.
pub(super) const USED_BYTES: c_int = 7;
/// `CU_MEMPOOL_ATTR_USED_MEM_HIGH`: the most of them since 0 was last written to it.
pub(super) const MOST_USED_BYTES: c_int = 8;
/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`.
pub(super) const MAX_DYNAMIC_SHARED_BYTES: c_int = 8;
/// `CU_JIT_ERROR_LOG_BUFFER`, a pointer.
pub(super) const JIT_ERROR_LOG: c_int = 5;
/// `CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES`, the number itself in the place of a pointer.
pub(super) const JIT_ERROR_LOG_BYTES: c_int = 6;
/// `CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE`.
pub(super) const L2_CACHE_BYTES: c_int = 38;
/// `CU_EVENT_RECORD_EXTERNAL`: of a captured event, every replay records it.
pub(super) const RECORD_EXTERNAL: c_uint = 1;
/// `CU_STREAM_CAPTURE_MODE_THREAD_LOCAL`.
pub(super) const CAPTURE_THREAD_LOCAL: c_uint = 1;

// SAFETY: the signatures of cuda.h, enums as the integers that they are there.
unsafe extern "C" {
    pub(super) fn cuInit(flags: c_uint) -> u32;
    pub(super) fn cuGetErrorName(code: u32, name: *mut *const c_char) -> u32;
    pub(super) fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, device: CUdevice) -> u32;
    pub(super) fn cuDeviceGetDefaultMemPool(pool: *mut CUmemoryPool, device: CUdevice) -> u32;
    pub(super) fn cuMemPoolGetAttribute(pool: CUmemoryPool, attribute: c_int, value: *mut c_void) -> u32;
    pub(super) fn cuMemPoolSetAttribute(pool: CUmemoryPool, attribute: c_int, value: *mut c_void) -> u32;
    pub(super) fn cuCtxSetCurrent(context: CUcontext) -> u32;
    pub(super) fn cuModuleLoadDataEx(
        module: *mut CUmodule,
        image: *const c_void,
        options: c_uint,
        option_names: *const c_int,
        option_values: *mut *mut c_void,
    ) -> u32;
    pub(super) fn cuModuleUnload(module: CUmodule) -> u32;
    pub(super) fn cuModuleGetFunction(
        function: *mut CUfunction,
        module: CUmodule,
        name: *const c_char,
    ) -> u32;
    pub(super) fn cuFuncSetAttribute(function: CUfunction, attribute: c_int, value: c_int) -> u32;
    pub(super) fn cuMemAllocAsync(address: *mut CUdeviceptr, bytes: usize, stream: CUstream) -> u32;
    pub(super) fn cuMemsetD8Async(to: CUdeviceptr, value: c_uchar, bytes: usize, stream: CUstream) -> u32;
    pub(super) fn cuMemFreeAsync(address: CUdeviceptr, stream: CUstream) -> u32;
    pub(super) fn cuMemHostAlloc(address: *mut *mut c_void, bytes: usize, flags: c_uint) -> u32;
    pub(super) fn cuMemFreeHost(address: *mut c_void) -> u32;
    pub(super) fn cuMemcpyHtoDAsync_v2(
        to: CUdeviceptr,
        from: *const c_void,
        bytes: usize,
        stream: CUstream,
    ) -> u32;
    pub(super) fn cuMemcpyDtoHAsync_v2(
        to: *mut c_void,
        from: CUdeviceptr,
        bytes: usize,
        stream: CUstream,
    ) -> u32;
    pub(super) fn cuStreamSynchronize(stream: CUstream) -> u32;
    pub(super) fn cuLaunchKernel(
        function: CUfunction,
        grid_x: c_uint,
        grid_y: c_uint,
        grid_z: c_uint,
        block_x: c_uint,
        block_y: c_uint,
        block_z: c_uint,
        shared_bytes: c_uint,
        stream: CUstream,
        params: *mut *mut c_void,
        extra: *mut *mut c_void,
    ) -> u32;
    pub(super) fn cuMemcpyDtoDAsync_v2(
        to: CUdeviceptr,
        from: CUdeviceptr,
        bytes: usize,
        stream: CUstream,
    ) -> u32;
    pub(super) fn cuEventCreate(event: *mut CUevent, flags: c_uint) -> u32;
    pub(super) fn cuEventDestroy_v2(event: CUevent) -> u32;
    pub(super) fn cuEventElapsedTime(milliseconds: *mut f32, start: CUevent, end: CUevent) -> u32;
    pub(super) fn cuEventRecordWithFlags(event: CUevent, stream: CUstream, flags: c_uint) -> u32;
    pub(super) fn cuStreamBeginCapture_v2(stream: CUstream, mode: c_uint) -> u32;
    pub(super) fn cuStreamEndCapture(stream: CUstream, graph: *mut CUgraph) -> u32;
    pub(super) fn cuGraphInstantiateWithFlags(exec: *mut CUgraphExec, graph: CUgraph, flags: u64) -> u32;
    pub(super) fn cuGraphLaunch(exec: CUgraphExec, stream: CUstream) -> u32;
    pub(super) fn cuGraphExecDestroy(exec: CUgraphExec) -> u32;
    pub(super) fn cuGraphDestroy(graph: CUgraph) -> u32;
}

/// The driver's name of a code, or the code.
pub(super) fn name(code: u32) -> String {
    let mut name = std::ptr::null();
    // SAFETY: writes the address of a static string, or nothing for a code the driver doesn't know.
    let found = unsafe { cuGetErrorName(code, &mut name) };
    if found != 0 || name.is_null() {
        return format!("error {code}");
    }
    // SAFETY: a static string of the driver.
    unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
}

/// The answer of `call` as a result. `observed` names what was asked for, which need not be what failed: errors of kernels come
/// to light at a later call.
pub(super) fn check(call: &'static str, code: u32, observed: impl FnOnce() -> Option<String>) -> Result<()> {
    match code {
        0 => Ok(()),
        _ => Err(Error::Driver { call, code: name(code), observed: observed() }),
    }
}

/// As [`check`], of a call that `cust` made.
pub(super) fn wrapped<T>(call: &'static str, result: Result<T, CudaError>) -> Result<T> {
    result.map_err(|error| Error::Driver { call, code: name(error as u32), observed: None })
}
