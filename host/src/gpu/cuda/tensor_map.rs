use std::ffi::c_void;

use tilewright_kernels::abi::{TensorMap, TensorMapSpec};

use super::{api, library::tensor_map_encode_tiled};
use crate::{Error, Result};

/// `CU_TENSOR_MAP_DATA_TYPE_UINT8` and `_UINT16`: the engine moves bits.
const DATA_TYPES: [u32; 2] = [0, 1];
/// `CU_TENSOR_MAP_INTERLEAVE_NONE`.
const NO_INTERLEAVE: u32 = 0;
/// `CU_TENSOR_MAP_SWIZZLE_128B`.
const SWIZZLE_128B: u32 = 3;
/// `CU_TENSOR_MAP_L2_PROMOTION_L2_256B`.
const PROMOTE_256B: u32 = 3;
/// `CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE`: zeros.
const FILL_ZEROS: u32 = 0;
const MAX_RANK: usize = 5;

/// The driver's own alignment, which is more than a parameter's.
#[repr(C, align(64))]
struct Aligned([u64; 16]);

/// Has the driver encode a map.
pub(super) fn encode(spec: &TensorMapSpec<'_>) -> Result<TensorMap> {
    let rank = spec.dims.len();
    let fits =
        (1..=MAX_RANK).contains(&rank) && spec.box_dims.len() == rank && spec.strides_bytes.len() + 1 == rank;
    let data_type = match spec.element_bytes {
        bytes @ 1..=2 if fits => DATA_TYPES[bytes as usize - 1],
        _ => {
            return Err(Error::Shape {
                op: "tensor map",
                what: "dimensions",
                expected: "1 to 5, a box and strides to match, elements of 1 or 2 bytes".into(),
                found: format!("{spec:?}"),
            });
        }
    };
    let mut map = Aligned([0; 16]);
    let element_strides = [1u32; MAX_RANK];
    // SAFETY: arrays of `rank` and one less, as checked; the map has the size and alignment asked for.
    let code = unsafe {
        tensor_map_encode_tiled(
            map.0.as_mut_ptr().cast(),
            data_type,
            rank as u32,
            spec.base as *mut c_void,
            spec.dims.as_ptr(),
            spec.strides_bytes.as_ptr(),
            spec.box_dims.as_ptr(),
            element_strides.as_ptr(),
            NO_INTERLEAVE,
            SWIZZLE_128B,
            PROMOTE_256B,
            FILL_ZEROS,
        )
    };
    api::check("cuTensorMapEncodeTiled", code, || Some(format!("{spec:?}")))?;
    Ok(TensorMap(map.0))
}
