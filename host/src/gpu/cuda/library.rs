//! The driver's library, opened when it is first needed instead of when the program starts.
//!
//! `cust` declares the driver's functions as symbols of `libcuda.so.1`. Linked as it asks, a program could not start on a machine
//! without that library. So this module defines the symbols itself: each is a function that hands its arguments on to the function
//! of the same name in the library, found with `dlsym`. With them the linker needs nothing of `-lcuda` and, told `--as-needed` as
//! rustc tells it, does not record the library as one that the program needs. Where the linker makes them visible to other libraries
//! of the process, a call of theirs takes the same way and ends in the driver's function all the same.
//!
//! The list holds every function that `cust` or [`super::api`] names, and those of graphs. One that is missing would bring the library back into the
//! program: a test compares the list with their sources.

use std::{
    error::Error as _,
    ffi::{c_char, c_int, c_uchar, c_uint, c_ulonglong, c_ushort, c_void},
    mem::MaybeUninit,
    ptr::null_mut,
    sync::{
        OnceLock,
        atomic::{AtomicPtr, Ordering},
    },
};

use cust::sys::{self, *};
use libloading::Library;

/// As the driver installs it.
const NAME: &str = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };

/// `CUDA_ERROR_STUB_LIBRARY`: what a function answers where the library is not there.
const NO_LIBRARY: c_uint = 34;
/// `CUDA_ERROR_NOT_FOUND`: what a function answers that a driver of this age does not have.
const NO_FUNCTION: c_uint = 500;

/// Never closed: the driver keeps threads of its own.
static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();

/// Opens the driver's library, the first time.
///
/// # Errors
/// What the dynamic linker said, where there is none.
pub(super) fn open() -> Result<&'static Library, &'static str> {
    let library = LIBRARY.get_or_init(|| {
        // SAFETY: running the initialisers of the driver's library is what every program that links it does.
        unsafe { Library::new(NAME) }.map_err(|error| match error.source() {
            Some(said) => said.to_string(),
            None => format!("{NAME}: {error}"),
        })
    });
    library.as_ref().map_err(String::as_str)
}

/// One function of the library.
struct Function {
    /// Ends in NUL.
    name: &'static str,
    /// Null until it was first found.
    address: AtomicPtr<c_void>,
}

impl Function {
    const fn new(name: &'static str) -> Function {
        Function { name, address: AtomicPtr::new(null_mut()) }
    }

    /// Where it is, or the code that stands for its absence.
    fn address(&self) -> Result<*mut c_void, c_uint> {
        // Threads that find it at the same time store the same, and nothing else is published by it.
        let known = self.address.load(Ordering::Relaxed);
        if !known.is_null() {
            return Ok(known);
        }
        let library = open().map_err(|_| NO_LIBRARY)?;
        // SAFETY: the address of a function, which is not called here.
        let symbol = unsafe { library.get::<unsafe extern "C" fn()>(self.name.as_bytes()) };
        let address = symbol.map(|symbol| *symbol as *mut c_void).map_err(|_| NO_FUNCTION)?;
        self.address.store(address, Ordering::Relaxed);
        Ok(address)
    }
}

/// Defines each function, and holds its parameters to those of the bindings that `cust` calls it by.
///
/// Results are plain numbers, as in [`super::api`]. Parameters travel as `MaybeUninit`, which is passed as the type itself is and
/// allows for enums of a newer driver, which would be no values of the bindings' enums.
macro_rules! forward {
    ($(fn $name:ident($($type:ty),* $(,)?);)*) => {
        $(forward! { @name $name [] [a b c d e f g h i j k] $($type,)* })*

        /// What is defined here.
        #[cfg(test)]
        const FORWARDED: &[&str] = &[$(stringify!($name)),*];
    };
    // Gives the next parameter the next letter.
    (@name $name:ident [$($named:tt)*] [$letter:ident $($letters:ident)*] $type:ty, $($types:ty,)*) => {
        forward! { @name $name [$($named)* ($letter $type)] [$($letters)*] $($types,)* }
    };
    (@name $name:ident [$(($letter:ident $type:ty))*] [$($letters:ident)*]) => {
        #[unsafe(no_mangle)]
        #[allow(non_snake_case)]
        unsafe extern "C" fn $name($($letter: MaybeUninit<$type>),*) -> c_uint {
            static FUNCTION: Function = Function::new(concat!(stringify!($name), "\0"));
            match FUNCTION.address() {
                // SAFETY: the library's function of this name, whose parameters are checked against the bindings below; what they
                // must be is the caller's promise.
                Ok(address) => unsafe {
                    type Forward = unsafe extern "C" fn($(MaybeUninit<$type>),*) -> c_uint;
                    std::mem::transmute::<*mut c_void, Forward>(address)($($letter),*)
                },
                Err(code) => code,
            }
        }

        const _: unsafe extern "C" fn($($type),*) -> CUresult = sys::$name;
    };
}

forward! {
    fn cuArray3DCreate_v2(*mut CUarray, *const CUDA_ARRAY3D_DESCRIPTOR);
    fn cuArray3DGetDescriptor_v2(*mut CUDA_ARRAY3D_DESCRIPTOR, CUarray);
    fn cuArrayDestroy(CUarray);
    fn cuCtxCreate_v2(*mut CUcontext, c_uint, CUdevice);
    fn cuCtxDestroy_v2(CUcontext);
    fn cuCtxGetApiVersion(CUcontext, *mut c_uint);
    fn cuCtxGetCacheConfig(*mut CUfunc_cache);
    fn cuCtxGetCurrent(*mut CUcontext);
    fn cuCtxGetDevice(*mut CUdevice);
    fn cuCtxGetFlags(*mut c_uint);
    fn cuCtxGetLimit(*mut usize, CUlimit);
    fn cuCtxGetSharedMemConfig(*mut CUsharedconfig);
    fn cuCtxGetStreamPriorityRange(*mut c_int, *mut c_int);
    fn cuCtxPopCurrent_v2(*mut CUcontext);
    fn cuCtxPushCurrent_v2(CUcontext);
    fn cuCtxSetCacheConfig(CUfunc_cache);
    fn cuCtxSetCurrent(CUcontext);
    fn cuCtxSetLimit(CUlimit, usize);
    fn cuCtxSetSharedMemConfig(CUsharedconfig);
    fn cuCtxSynchronize();
    fn cuDestroyExternalMemory(CUexternalMemory);
    fn cuDeviceGet(*mut CUdevice, c_int);
    fn cuDeviceGetAttribute(*mut c_int, CUdevice_attribute, CUdevice);
    fn cuDeviceGetCount(*mut c_int);
    fn cuDeviceGetDefaultMemPool(*mut CUmemoryPool, CUdevice);
    fn cuDeviceGetName(*mut c_char, c_int, CUdevice);
    fn cuDevicePrimaryCtxRelease_v2(CUdevice);
    fn cuDevicePrimaryCtxReset_v2(CUdevice);
    fn cuDevicePrimaryCtxRetain(*mut CUcontext, CUdevice);
    fn cuDevicePrimaryCtxSetFlags_v2(CUdevice, c_uint);
    fn cuDeviceTotalMem_v2(*mut usize, CUdevice);
    fn cuDriverGetVersion(*mut c_int);
    fn cuEventCreate(*mut CUevent, c_uint);
    fn cuEventDestroy_v2(CUevent);
    fn cuEventElapsedTime(*mut f32, CUevent, CUevent);
    fn cuEventQuery(CUevent);
    fn cuEventRecord(CUevent, CUstream);
    fn cuEventRecordWithFlags(CUevent, CUstream, c_uint);
    fn cuEventSynchronize(CUevent);
    fn cuExternalMemoryGetMappedBuffer(
        *mut CUdeviceptr, CUexternalMemory,
        *const CUDA_EXTERNAL_MEMORY_BUFFER_DESC
    );
    fn cuFuncGetAttribute(*mut c_int, CUfunction_attribute, CUfunction);
    fn cuFuncSetAttribute(CUfunction, CUfunction_attribute, c_int);
    fn cuFuncSetCacheConfig(CUfunction, CUfunc_cache);
    fn cuFuncSetSharedMemConfig(CUfunction, CUsharedconfig);
    fn cuGetErrorName(CUresult, *mut *const c_char);
    fn cuGetErrorString(CUresult, *mut *const c_char);
    fn cuGraphAddKernelNode(
        *mut CUgraphNode, CUgraph, *const CUgraphNode,
        usize, *const CUDA_KERNEL_NODE_PARAMS
    );
    fn cuGraphCreate(*mut CUgraph, c_uint);
    fn cuGraphDebugDotPrint(CUgraph, *const c_char, c_uint);
    fn cuGraphDestroy(CUgraph);
    fn cuGraphExecDestroy(CUgraphExec);
    fn cuGraphGetEdges(CUgraph, *mut CUgraphNode, *mut CUgraphNode, *mut usize);
    fn cuGraphGetNodes(CUgraph, *mut CUgraphNode, *mut usize);
    fn cuGraphInstantiateWithFlags(*mut CUgraphExec, CUgraph, c_ulonglong);
    fn cuGraphKernelNodeGetParams(CUgraphNode, *mut CUDA_KERNEL_NODE_PARAMS);
    fn cuGraphLaunch(CUgraphExec, CUstream);
    fn cuGraphNodeGetType(CUgraphNode, *mut CUgraphNodeType);
    fn cuImportExternalMemory(*mut CUexternalMemory, *const CUDA_EXTERNAL_MEMORY_HANDLE_DESC);
    fn cuInit(c_uint);
    fn cuLaunchHostFunc(CUstream, CUhostFn, *mut c_void);
    fn cuLaunchKernel(
        CUfunction, c_uint, c_uint, c_uint, c_uint, c_uint,
        c_uint, c_uint, CUstream, *mut *mut c_void, *mut *mut c_void
    );
    fn cuLinkAddData_v2(
        CUlinkState, CUjitInputType, *mut c_void, usize,
        *const c_char, c_uint, *mut CUjit_option, *mut *mut c_void
    );
    fn cuLinkComplete(CUlinkState, *mut *mut c_void, *mut usize);
    fn cuLinkCreate_v2(c_uint, *mut CUjit_option, *mut *mut c_void, *mut CUlinkState);
    fn cuLinkDestroy(CUlinkState);
    fn cuMemAdvise(CUdeviceptr, usize, CUmem_advise, CUdevice);
    fn cuMemAllocAsync(*mut CUdeviceptr, usize, CUstream);
    fn cuMemAllocHost_v2(*mut *mut c_void, usize);
    fn cuMemAllocManaged(*mut CUdeviceptr, usize, c_uint);
    fn cuMemAlloc_v2(*mut CUdeviceptr, usize);
    fn cuMemFreeAsync(CUdeviceptr, CUstream);
    fn cuMemFreeHost(*mut c_void);
    fn cuMemFree_v2(CUdeviceptr);
    fn cuMemGetInfo_v2(*mut usize, *mut usize);
    fn cuMemHostAlloc(*mut *mut c_void, usize, c_uint);
    fn cuMemPoolGetAttribute(CUmemoryPool, CUmemPool_attribute, *mut c_void);
    fn cuMemPoolSetAttribute(CUmemoryPool, CUmemPool_attribute, *mut c_void);
    fn cuMemPrefetchAsync(CUdeviceptr, usize, CUdevice, CUstream);
    fn cuMemcpy2D_v2(*const CUDA_MEMCPY2D);
    fn cuMemcpyAtoH_v2(*mut c_void, CUarray, usize, usize);
    fn cuMemcpyDtoDAsync_v2(CUdeviceptr, CUdeviceptr, usize, CUstream);
    fn cuMemcpyDtoD_v2(CUdeviceptr, CUdeviceptr, usize);
    fn cuMemcpyDtoHAsync_v2(*mut c_void, CUdeviceptr, usize, CUstream);
    fn cuMemcpyDtoH_v2(*mut c_void, CUdeviceptr, usize);
    fn cuMemcpyHtoA_v2(CUarray, usize, *const c_void, usize);
    fn cuMemcpyHtoDAsync_v2(CUdeviceptr, *const c_void, usize, CUstream);
    fn cuMemcpyHtoD_v2(CUdeviceptr, *const c_void, usize);
    fn cuMemsetD16Async(CUdeviceptr, c_ushort, usize, CUstream);
    fn cuMemsetD16_v2(CUdeviceptr, c_ushort, usize);
    fn cuMemsetD32Async(CUdeviceptr, c_uint, usize, CUstream);
    fn cuMemsetD32_v2(CUdeviceptr, c_uint, usize);
    fn cuMemsetD8Async(CUdeviceptr, c_uchar, usize, CUstream);
    fn cuMemsetD8_v2(CUdeviceptr, c_uchar, usize);
    fn cuModuleGetFunction(*mut CUfunction, CUmodule, *const c_char);
    fn cuModuleGetGlobal_v2(*mut CUdeviceptr, *mut usize, CUmodule, *const c_char);
    fn cuModuleLoad(*mut CUmodule, *const c_char);
    fn cuModuleLoadData(*mut CUmodule, *const c_void);
    fn cuModuleLoadDataEx(*mut CUmodule, *const c_void, c_uint, *mut CUjit_option, *mut *mut c_void);
    fn cuModuleUnload(CUmodule);
    fn cuOccupancyAvailableDynamicSMemPerBlock(*mut usize, CUfunction, c_int, c_int);
    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(*mut c_int, CUfunction, c_int, usize);
    fn cuOccupancyMaxPotentialBlockSize(*mut c_int, *mut c_int, CUfunction, CUoccupancyB2DSize, usize, c_int);
    fn cuStreamBeginCapture_v2(CUstream, CUstreamCaptureMode);
    fn cuStreamCreateWithPriority(*mut CUstream, c_uint, c_int);
    fn cuStreamDestroy_v2(CUstream);
    fn cuStreamEndCapture(CUstream, *mut CUgraph);
    fn cuStreamGetFlags(CUstream, *mut c_uint);
    fn cuStreamGetPriority(CUstream, *mut c_int);
    fn cuStreamSynchronize(CUstream);
    fn cuStreamWaitEvent(CUstream, CUevent, c_uint);
    fn cuSurfObjectCreate(*mut CUsurfObject, *const CUDA_RESOURCE_DESC);
    fn cuSurfObjectDestroy(CUsurfObject);
    fn cuSurfObjectGetResourceDesc(*mut CUDA_RESOURCE_DESC, CUsurfObject);
    fn cuTexObjectCreate(
        *mut CUtexObject, *const CUDA_RESOURCE_DESC,
        *const CUDA_TEXTURE_DESC, *const CUDA_RESOURCE_VIEW_DESC
    );
    fn cuTexObjectDestroy(CUtexObject);
    fn cuTexObjectGetResourceDesc(*mut CUDA_RESOURCE_DESC, CUtexObject);
    fn cuTexObjectGetResourceViewDesc(*mut CUDA_RESOURCE_VIEW_DESC, CUtexObject);
}

/// `cuTensorMapEncodeTiled` (CUDA 12), which the bindings don't know: map, data type, rank, base address, dimensions, strides, box,
/// element strides, interleave, swizzle, promotion in the L2, fill.
///
/// # Safety
/// The arrays are as long as the rank says (strides one less), and the map is 128 writable bytes aligned to 64.
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn tensor_map_encode_tiled(
    map: *mut c_void,
    data_type: c_uint,
    rank: c_uint,
    base: *mut c_void,
    dims: *const u64,
    strides_bytes: *const u64,
    box_dims: *const u32,
    element_strides: *const u32,
    interleave: c_uint,
    swizzle: c_uint,
    promotion: c_uint,
    fill: c_uint,
) -> c_uint {
    type Encode = unsafe extern "C" fn(
        *mut c_void,
        c_uint,
        c_uint,
        *mut c_void,
        *const u64,
        *const u64,
        *const u32,
        *const u32,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
    ) -> c_uint;
    static FUNCTION: Function = Function::new("cuTensorMapEncodeTiled\0");
    match FUNCTION.address() {
        // SAFETY: the library's function of this name has these parameters; what they must be is the caller's promise.
        Ok(address) => unsafe {
            std::mem::transmute::<*mut c_void, Encode>(address)(
                map,
                data_type,
                rank,
                base,
                dims,
                strides_bytes,
                box_dims,
                element_strides,
                interleave,
                swizzle,
                promotion,
                fill,
            )
        },
        Err(code) => code,
    }
}

/// `CUlaunchAttribute` (CUDA 12): an identifier, and 64 bytes of which an `int` is used here.
#[repr(C)]
struct LaunchAttribute {
    id: c_uint,
    pad: c_uint,
    value: c_int,
    rest: [c_int; 15],
}

/// `CUlaunchConfig` (CUDA 12).
#[repr(C)]
struct LaunchConfig {
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared_bytes: c_uint,
    stream: CUstream,
    attributes: *mut LaunchAttribute,
    count: c_uint,
}

/// `CU_LAUNCH_ATTRIBUTE_COOPERATIVE`.
const COOPERATIVE: c_uint = 2;
/// `CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION`.
const PROGRAMMATIC_SERIALIZATION: c_uint = 6;

/// What a launch asks for beyond its grid.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    /// It may start before what is before it on the stream has ended.
    pub early: bool,
    /// All its blocks run at the same time, or it is refused.
    pub cooperative: bool,
}

impl Asked {
    /// Whether there is anything that `cuLaunchKernel` doesn't take.
    pub(super) fn anything(self) -> bool {
        self.early || self.cooperative
    }

    /// The attributes that say so, of all that there are.
    fn of(self, all: &mut [LaunchAttribute; 2]) -> &mut [LaunchAttribute] {
        &mut all[usize::from(!self.cooperative)..1 + usize::from(self.early)]
    }
}

/// An attribute of a launch that is asked for.
const fn attribute(id: c_uint) -> LaunchAttribute {
    LaunchAttribute { id, pad: 0, value: 1, rest: [0; 15] }
}

/// As [`Asked::of`] takes them.
const ATTRIBUTES: [LaunchAttribute; 2] = [attribute(COOPERATIVE), attribute(PROGRAMMATIC_SERIALIZATION)];

/// `cuLaunchKernelEx` (CUDA 12), which the bindings don't know, of a kernel that asks for something: function, grid, threads a block, shared
/// memory, stream, parameters.
///
/// # Safety
/// As of `cuLaunchKernel`.
pub(super) unsafe fn launch_kernel_asking(
    asked: Asked,
    function: CUfunction,
    grid: [c_uint; 3],
    threads: c_uint,
    shared_bytes: c_uint,
    stream: CUstream,
    params: *mut *mut c_void,
) -> c_uint {
    type Launch =
        unsafe extern "C" fn(*const LaunchConfig, CUfunction, *mut *mut c_void, *mut *mut c_void) -> c_uint;
    static FUNCTION: Function = Function::new("cuLaunchKernelEx\0");
    let mut all = ATTRIBUTES;
    let attributes = asked.of(&mut all);
    let (block, count) = ([threads, 1, 1], attributes.len() as c_uint);
    let attributes = attributes.as_mut_ptr();
    let config = LaunchConfig { grid, block, shared_bytes, stream, attributes, count };
    match FUNCTION.address() {
        // SAFETY: the library's function of this name has these parameters, and the attributes live until it returns; what the others must be is the
        // caller's promise.
        Ok(address) => unsafe {
            std::mem::transmute::<*mut c_void, Launch>(address)(&config, function, params, null_mut())
        },
        Err(code) => code,
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path, process::Command};

    use super::*;

    /// Words `cuXyz` of Rust text.
    fn driver_names(text: &str) -> impl Iterator<Item = &str> {
        text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| {
            word.strip_prefix("cu").is_some_and(|tail| tail.starts_with(|c: char| c.is_ascii_uppercase()))
        })
    }

    /// The text of every source file of a package that this crate depends on.
    fn sources(package: &str) -> Vec<String> {
        let output = Command::new(env!("CARGO"))
            .args(["metadata", "--format-version", "1", "--offline", "--features", "cuda", "--manifest-path"])
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
            .output()
            .expect("cargo starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let mut packages = metadata["packages"].as_array().expect("packages").iter();
        let found = packages.find(|one| one["name"] == package).expect("a dependency");
        let manifest = found["manifest_path"].as_str().expect("a path");
        texts(&Path::new(manifest).with_file_name("src"))
    }

    fn texts(folder: &Path) -> Vec<String> {
        let paths = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
        paths
            .flat_map(|path| match path.is_dir() {
                true => texts(&path),
                false => vec![fs::read_to_string(path).expect("text")],
            })
            .collect()
    }

    #[test]
    fn every_function_that_is_called_is_forwarded() {
        let declared = sources("cust_raw").concat();
        let declared: BTreeSet<&str> =
            declared.split("pub fn ").filter_map(|after| driver_names(after).next()).collect();
        let (api, cust) = (include_str!("api.rs"), sources("cust").concat());
        let called: BTreeSet<&str> = driver_names(&cust).filter(|name| declared.contains(name)).collect();
        assert!(called.contains("cuInit") && called.contains("cuMemAlloc_v2"), "{called:?}");
        let ours = api.split("fn ").skip(1).filter_map(|after| {
            let name = after.split('(').next().unwrap_or_default();
            driver_names(name).next()
        });
        let missing: Vec<&str> =
            called.into_iter().chain(ours).filter(|name| !FORWARDED.contains(name)).collect();
        assert_eq!(missing, [""; 0], "add them to the list of this module");
    }

    #[test]
    fn attributes_are_those_asked_for() {
        let ids = |early, cooperative| {
            let (mut all, asked) = (ATTRIBUTES, Asked { early, cooperative });
            asked.of(&mut all).iter().map(|attribute| (attribute.id, attribute.value)).collect::<Vec<_>>()
        };
        assert_eq!(ids(false, false), []);
        assert_eq!(ids(true, false), [(6, 1)]);
        assert_eq!(ids(false, true), [(2, 1)]);
        assert_eq!(ids(true, true), [(2, 1), (6, 1)]);
        assert_eq!(size_of::<LaunchAttribute>(), 72);
    }

    #[test]
    fn a_function_that_no_driver_has_answers_a_code() {
        static FUNCTION: Function = Function::new("cuNoSuchFunction\0");
        let code = if open().is_ok() { NO_FUNCTION } else { NO_LIBRARY };
        assert_eq!(FUNCTION.address(), Err(code));
    }
}
