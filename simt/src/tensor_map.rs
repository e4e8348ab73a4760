//! Tensor maps: what a bulk tensor copy needs to know of a tensor and of the box it moves.

/// How the 16-byte chunks of a box are permuted in shared memory: bits of the shared address from bit 4 on are XORed with as
/// many from bit 7 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Swizzle {
    /// Chunks lie as they come.
    #[default]
    None,
    /// Bit 4 ^= bit 7.
    B32,
    /// Bits 4-5 ^= bits 7-8.
    B64,
    /// Bits 4-6 ^= bits 7-9.
    B128,
}

impl Swizzle {
    /// Bytes of a row within which chunks change places; 16, a chunk, without a swizzle.
    pub const fn span_bytes(self) -> u32 {
        match self {
            Swizzle::None => 16,
            Swizzle::B32 => 32,
            Swizzle::B64 => 64,
            Swizzle::B128 => 128,
        }
    }

    /// Where the byte at `address` lies.
    #[inline(always)]
    pub const fn apply(self, address: u32) -> u32 {
        address ^ address >> 3 & (self.span_bytes() - 16)
    }
}

/// An encoded [`TensorMapSpec`], of the size and alignment of CUDA's `CUtensorMap`. Opaque; its bits mean nothing to a driver.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorMap(pub [u64; 16]);

/// A tensor and the box that one copy moves. Dimension 0 is the innermost.
///
/// # Units
/// `dims` and `box_dims` in elements; entries past the rank are ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorMapSpec {
    /// Bytes of an element: 1, 2, 4 or 8.
    pub element_bytes: u32,
    /// Dimensions: 1 to 5.
    pub rank: u32,
    /// Global address of element 0, a multiple of 16.
    pub base: u64,
    /// Extent of each dimension.
    pub dims: [u64; 5],
    /// Stride of each dimension but the first (`strides_bytes[i]` of dimension `i + 1`), multiples of 16.
    pub strides_bytes: [u64; 4],
    /// Extent of the box in each dimension: 1 to 256.
    pub box_dims: [u32; 5],
    /// The permutation of the box in shared memory.
    pub swizzle: Swizzle,
}

/// "tilemap1" in ASCII: tells an encoded map from other memory.
const MAGIC: u64 = 0x7469_6c65_6d61_7031;

impl TensorMapSpec {
    /// Checks what `cuTensorMapEncodeTiled` checks, and encodes.
    ///
    /// # Errors
    /// The rule that isn't kept: what was expected, and what was found.
    pub fn encode(&self) -> Result<TensorMap, String> {
        self.check()?;
        let rank = self.rank as usize;
        let mut words = [0; 16];
        let swizzle = self.swizzle as u64;
        words[0] = MAGIC;
        words[1] = u64::from(self.element_bytes) | u64::from(self.rank) << 8 | swizzle << 16;
        words[2] = self.base;
        words[3..3 + rank].copy_from_slice(&self.dims[..rank]);
        words[8..7 + rank].copy_from_slice(&self.strides_bytes[..rank - 1]);
        for (i, &extent) in self.box_dims[..rank].iter().enumerate() {
            // 12 bits each: 256 fits.
            words[12] |= u64::from(extent) << (12 * i);
        }
        Ok(TensorMap(words))
    }

    fn check(&self) -> Result<(), String> {
        let rank = self.rank as usize;
        if !(1..=5).contains(&rank) {
            return Err(format!("tensor map of rank {rank}: expected 1 to 5"));
        }
        if !matches!(self.element_bytes, 1 | 2 | 4 | 8) {
            return Err(format!("elements of {} bytes: expected 1, 2, 4 or 8", self.element_bytes));
        }
        if !self.base.is_multiple_of(16) {
            return Err(format!("tensor at {:#x}: expected a multiple of 16", self.base));
        }
        for (i, &extent) in self.dims[..rank].iter().enumerate() {
            if !(1..=1 << 32).contains(&extent) {
                return Err(format!("extent {extent} of dimension {i}: expected 1 to 2^32"));
            }
        }
        for (i, &stride) in self.strides_bytes[..rank - 1].iter().enumerate() {
            if !stride.is_multiple_of(16) || stride >= 1 << 40 {
                let dimension = i + 1;
                return Err(format!(
                    "stride of {stride} bytes of dimension {dimension}: expected a multiple of 16 below 2^40"
                ));
            }
        }
        for (i, &extent) in self.box_dims[..rank].iter().enumerate() {
            if !(1..=256).contains(&extent) {
                return Err(format!("box extent {extent} of dimension {i}: expected 1 to 256"));
            }
        }
        let inner_bytes = self.box_dims[0] * self.element_bytes;
        if !inner_bytes.is_multiple_of(16) {
            return Err(format!("rows of the box of {inner_bytes} bytes: expected a multiple of 16"));
        }
        let span_bytes = self.swizzle.span_bytes();
        if self.swizzle != Swizzle::None && inner_bytes > span_bytes {
            return Err(format!(
                "rows of the box of {inner_bytes} bytes: expected at most {span_bytes}, what the swizzle spans"
            ));
        }
        Ok(())
    }

    /// What `map` was made of; none if it wasn't made by [`TensorMapSpec::encode`].
    pub(crate) fn decode(map: &TensorMap) -> Option<Self> {
        let words = &map.0;
        if words[0] != MAGIC {
            return None;
        }
        let spec = Self {
            element_bytes: words[1] as u32 & 0xff,
            rank: (words[1] >> 8) as u32 & 0xff,
            base: words[2],
            dims: words[3..8].try_into().ok()?,
            strides_bytes: words[8..12].try_into().ok()?,
            box_dims: std::array::from_fn(|i| (words[12] >> (12 * i)) as u32 & 0xfff),
            swizzle: match words[1] >> 16 {
                0 => Swizzle::None,
                1 => Swizzle::B32,
                2 => Swizzle::B64,
                3 => Swizzle::B128,
                _ => return None,
            },
        };
        spec.check().is_ok().then_some(spec)
    }

    /// Bytes of a box.
    pub(crate) fn box_bytes(&self) -> u32 {
        self.box_dims[..self.rank as usize].iter().product::<u32>() * self.element_bytes
    }

    /// The rows of the box at `coords`, innermost dimension first: where each starts in global memory, or none if it lies
    /// outside the tensor in any but the innermost dimension.
    pub(crate) fn rows(&self, coords: [i32; 5]) -> impl Iterator<Item = Option<u64>> + use<> {
        let spec = *self;
        let rank = spec.rank as usize;
        let count: u32 = spec.box_dims[1..rank].iter().product();
        (0..count).map(move |row| {
            let mut rest = row;
            // Wrapping: a start left of the tensor is no address until the columns inside are added.
            let first = i64::from(coords[0]) * i64::from(spec.element_bytes);
            let mut address = spec.base.wrapping_add_signed(first);
            for (dimension, &coord) in coords.iter().enumerate().take(rank).skip(1) {
                let at = i64::from(coord) + i64::from(rest % spec.box_dims[dimension]);
                rest /= spec.box_dims[dimension];
                if at < 0 || at as u64 >= spec.dims[dimension] {
                    return None;
                }
                address = address.wrapping_add(at as u64 * spec.strides_bytes[dimension - 1]);
            }
            Some(address)
        })
    }

    /// The bytes of a row of the box at `coords` that lie inside the tensor.
    pub(crate) fn columns(&self, coords: [i32; 5]) -> std::ops::Range<usize> {
        let (first, extent) = (i64::from(coords[0]), self.dims[0] as i64);
        let clamp = |column: i64| column.clamp(0, i64::from(self.box_dims[0])) as usize;
        let (start, end) = (clamp(-first), clamp(extent - first));
        let bytes = self.element_bytes as usize;
        start.min(end) * bytes..end * bytes
    }
}
