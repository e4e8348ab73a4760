//! Where the operands of `wgmma` lie in shared memory.
//!
//! A matrix descriptor gives a start address, two strides and a swizzle. Chunks of 16 bytes (8 elements, all of 16 bits here)
//! move together. With `W` the bytes that the swizzle spans, 16 without one, chunk addresses before the swizzle are, for
//! row `r` (of M or N) and `c` the chunk along k of a K-major operand:
//!
//! - swizzled: `start + r % 8 * W + r / 8 * SBO + 16 * c`
//! - not swizzled: `start + r % 8 * 16 + r / 8 * SBO + c * LBO`
//!
//! and for row `k` and chunk `c` along M or N of an MN-major ("transposed") one:
//!
//! - swizzled: `start + c % (W / 16) * 16 + c / (W / 16) * LBO + k % 8 * W + k / 8 * SBO`
//! - not swizzled: `start + c * SBO + k % 8 * 16 + k / 8 * LBO`
//!
//! The swizzle then XORs bits of that address, as tensor copies do. An offset along k within a swizzled row is made by
//! advancing the start address.
//!
//! Source: PTX ISA, "Asynchronous warpgroup-level matrix shared memory layout"; the canonical layouts as CUTLASS documents
//! them for `make_gmma_desc`, where T is a chunk: K-major `((8,m),(T,2)):((W,SBO),(1,T or LBO))`, MN-major
//! `((T,W/T,m),(8,k)):((1,T,LBO),(W,SBO))`, and without a swizzle `((T,1,m),(8,k)):((1,T,SBO),(T,LBO))`.

use crate::tensor_map::Swizzle;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Descriptor {
    start: u32,
    leading_bytes: u32,
    stride_bytes: u32,
    swizzle: Swizzle,
}

impl Descriptor {
    /// # Errors
    /// The field that isn't emulated or means nothing.
    pub fn decode(bits: u64) -> Result<Self, String> {
        const FIELDS: u64 = 0x3fff | 0x3fff << 16 | 0x3fff << 32 | 7 << 49 | 3 << 62;
        if bits & !FIELDS != 0 {
            return Err(format!("matrix descriptor {bits:#018x}: expected 0 outside its fields"));
        }
        if bits >> 49 & 7 != 0 {
            let offset = bits >> 49 & 7;
            return Err(format!(
                "matrix descriptor with base offset {offset}: expected 0, tiles aligned to the swizzle"
            ));
        }
        let field = |shift: u32| (bits >> shift & 0x3fff) as u32 * 16;
        let swizzle = match bits >> 62 {
            0 => Swizzle::None,
            1 => Swizzle::B128,
            2 => Swizzle::B64,
            _ => Swizzle::B32,
        };
        Ok(Self { start: field(0), leading_bytes: field(16), stride_bytes: field(32), swizzle })
    }

    /// Address of chunk `chunk` along k of row `row`, K-major.
    pub fn k_major(&self, row: u32, chunk: u32) -> u32 {
        let along = if self.swizzle == Swizzle::None { self.leading_bytes } else { 16 };
        let row_bytes = row % 8 * self.swizzle.span_bytes() + row / 8 * self.stride_bytes;
        self.swizzle.apply(self.start + row_bytes + chunk * along)
    }

    /// Address of chunk `chunk` along M or N of row `k`, MN-major.
    pub fn mn_major(&self, chunk: u32, k: u32) -> u32 {
        let span_bytes = self.swizzle.span_bytes();
        let chunks = span_bytes / 16;
        let (across, along) = match self.swizzle {
            Swizzle::None => (self.stride_bytes, self.leading_bytes),
            _ => (self.leading_bytes, self.stride_bytes),
        };
        let chunk_bytes = chunk % chunks * 16 + chunk / chunks * across;
        self.swizzle.apply(self.start + chunk_bytes + k % 8 * span_bytes + k / 8 * along)
    }
}
