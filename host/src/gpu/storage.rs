use half::{bf16, f16};
use rayon::prelude::*;
use tilewright_kernels::abi::{KV_BF16, KV_FP8, KV_INT8, TensorMap};

use super::{Driver, GpuDevice};
use crate::{CacheSpec, DType, Error, HostMatrix, KvDType, Result, Tensor};

/// Elements a head that both prefill and decode attention take, ascending.
pub(super) const HEAD_DIMS: [usize; 2] = [64, 128];
/// Bytes of a bf16.
pub(super) const BF16: usize = 2;
/// Bytes of an f32 or a u32.
pub(super) const WORD: usize = 4;
/// Elements converted at a time on their way to the device: 2 MiB of bf16.
const CONVERT_ELEMS: usize = 1 << 20;
/// Of them those that are worth a thread.
const LEAST_ELEMS: usize = 1 << 14;

/// A shape error.
pub(super) fn shape(
    op: &'static str,
    what: &'static str,
    expected: impl ToString,
    found: impl ToString,
) -> Error {
    Error::Shape { op, what, expected: expected.to_string(), found: found.to_string() }
}

/// A shape error unless `holds`.
pub(super) fn require(
    holds: bool,
    op: &'static str,
    what: &'static str,
    expected: impl ToString,
    found: impl ToString,
) -> Result<()> {
    if holds { Ok(()) } else { Err(shape(op, what, expected, found)) }
}

/// A size as the kernels take it.
pub(super) fn dim(op: &'static str, what: &'static str, value: usize) -> Result<u32> {
    u32::try_from(value).map_err(|_| shape(op, what, "below 2^32", value))
}

/// The product of `dims`, in bytes where one of them is the element's.
fn bytes_of(op: &'static str, dims: &[usize]) -> Result<usize> {
    dims.iter()
        .try_fold(1usize, |product, &dim| product.checked_mul(dim))
        .filter(|&bytes| bytes <= isize::MAX as usize)
        .ok_or_else(|| shape(op, "shape", "below 2^63 bytes", format!("{dims:?}")))
}

/// bf16 activations, `[rows, cols]`, of which those of generated tokens come first.
pub struct GpuTensor<Dr: Driver> {
    pub(super) buffer: Dr::Buffer,
    pub(super) address: u64,
    pub(super) rows: usize,
    /// Rows of generated tokens: they choose the kernels, so every operation passes them on.
    pub(super) generated: usize,
    pub(super) cols: usize,
    capacity: usize,
    /// The address of the weights that the rows are codes for, `[rows, cols]` bytes and then f32 scales; 0 where they are bf16.
    pub(super) codes_for: u64,
}

/// Where the scales are of codes `[rows, cols]` at `codes`.
pub(super) fn scales_of_codes(codes: u64, rows: usize, cols: usize) -> u64 {
    codes + (rows * cols) as u64
}

impl<Dr: Driver> GpuTensor<Dr> {
    /// The address of rows of bf16, for operations that read such.
    pub(super) fn numbers(&self, op: &'static str, what: &'static str) -> Result<u64> {
        require(self.codes_for == 0, op, what, "rows of bf16", "codes for one product")?;
        Ok(self.address)
    }

    /// Uses the first `rows` for `op`, `generated` of them for generated tokens.
    pub(super) fn resize(
        &mut self,
        op: &'static str,
        what: &'static str,
        rows: usize,
        generated: usize,
    ) -> Result<()> {
        require(rows <= self.capacity, op, what, format!("capacity for {rows} rows"), self.capacity)?;
        (self.rows, self.generated, self.codes_for) = (rows, generated, 0);
        Ok(())
    }
}

impl<Dr: Driver> Tensor for GpuTensor<Dr> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn set_rows(&mut self, rows: usize) -> Result<()> {
        self.resize("set_rows", "rows", rows, self.generated.min(rows))
    }
}

/// A weight matrix, `[rows, cols]`.
pub struct GpuMatrix<Dr: Driver> {
    pub(super) _buffer: Dr::Buffer,
    pub(super) address: u64,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) stored: Stored,
    /// Rows are eights of a gate and of what it gates in turn: an operand of `linear_gated` alone.
    pub(super) is_paired: bool,
}

/// What a matrix is made of.
pub(super) enum Stored {
    /// bf16, row-major, and how Hopper's copy engine walks it, where device and shape have kernels for that.
    Bf16(Option<Box<WeightMaps>>),
    /// 4 bits, in the tiles of `gemm_few`.
    Int4(Int4),
    /// Signed bytes, row-major, for activations of bytes.
    Int8(Int8),
}

/// Maps of a matrix, in boxes of one line by 256 rows, by 128 and by 16.
pub(super) struct WeightMaps {
    pub wide: TensorMap,
    pub narrow: TensorMap,
    pub sixteen: TensorMap,
}

/// Weights of bytes.
pub(super) struct Int8 {
    pub maps: Box<WeightMaps>,
    /// f32 `[rows]`.
    pub g_scales: u64,
    /// f32 `[cols]`, of the activations; 0 where there are none.
    pub g_factors: u64,
}

/// Weights in tiles, part below part: of 4 bits, or of 8 in halves.
pub(super) struct Int4 {
    pub parts: Vec<Int4Part>,
    pub in_halves: bool,
    /// Columns of the tiles: of halves, twice those of the matrix, or a few more.
    pub packed_cols: u32,
    /// For rows of generated tokens, and of prompts, whose weights of 8 bits become bf16 in whole.
    pub orders: [Orders; 2],
}

/// The orders that parts want activations in.
#[derive(Clone, Copy)]
pub(super) struct Orders {
    /// u16 `[count, cols]`.
    pub g_orders: u64,
    pub count: u32,
    pub cols: u32,
}

/// What `gemm_few` is told of weights in its tiles.
#[derive(Clone, Copy)]
pub(super) struct Int4Part {
    pub g_pieces: u64,
    pub first_row: u32,
    pub rows: u32,
    /// Of each of the matrix's orders, that of the part; without one activations are as they come.
    pub order: [Option<u32>; 2],
    /// Groups to 128 columns.
    pub groups: u32,
    pub piece_bytes: u32,
    /// Tiles along the columns.
    pub steps: u32,
    pub zeros: bool,
    pub scales_f16: bool,
}

/// An f32 vector.
pub struct GpuVector<Dr: Driver> {
    _buffer: Dr::Buffer,
    pub(super) address: u64,
    pub(super) len: usize,
}

/// f32 cosines and sines, `[max_position, head_dim]`.
pub struct GpuRope<Dr: Driver> {
    _buffer: Dr::Buffer,
    pub(super) address: u64,
    pub(super) max_position: usize,
    pub(super) head_dim: usize,
}

/// Keys and values in one allocation: `[layers, 2, pages, kv_heads, page_size, head_dim]` elements. Of quantised ones there follow
/// `[2, pages, kv_heads, page_size, head_dim]` of bf16, what prompts' attention reads of the layer that it is at, and
/// `[layers, 2, pages, kv_heads, page_size]` f32 scales.
pub struct GpuCache<Dr: Driver> {
    _buffer: Dr::Buffer,
    address: u64,
    /// Vectors of keys, or of values, of a layer.
    vectors: usize,
    pub(super) spec: CacheSpec,
}

/// Addresses of a layer's keys and of its values.
#[derive(Debug, Clone, Copy)]
pub(super) struct LayerPlanes {
    pub elements: [u64; 2],
    /// 0 for bf16.
    pub scales: [u64; 2],
    /// Where they are in bf16: in place, or where pages are widened to.
    pub wide: [u64; 2],
}

impl<Dr: Driver> GpuCache<Dr> {
    /// [`KV_BF16`] or another.
    pub(super) fn format(&self) -> u32 {
        match self.spec.dtype {
            KvDType::Native => KV_BF16,
            KvDType::Int8 => KV_INT8,
            KvDType::Fp8 => KV_FP8,
        }
    }

    fn is_quantised(&self) -> bool {
        self.spec.dtype != KvDType::Native
    }

    /// Bytes of a vector.
    pub(super) fn vector_bytes(&self) -> usize {
        vector_bytes(&self.spec)
    }

    /// A layer's part.
    pub(super) fn layer(&self, op: &'static str, layer: usize) -> Result<LayerPlanes> {
        require(layer < self.spec.layers, op, "layer", format!("below {}", self.spec.layers), layer)?;
        let plane = self.vectors * self.vector_bytes();
        let both = |start: usize, plane: usize| [0, 1].map(|of| self.address + (start + of * plane) as u64);
        let elements = both(2 * layer * plane, plane);
        if !self.is_quantised() {
            return Ok(LayerPlanes { elements, scales: [0; 2], wide: elements });
        }
        let wide = self.vectors * self.spec.head_dim * BF16;
        let (wide_start, scales) = (2 * self.spec.layers * plane, self.vectors * WORD);
        let scales_start = wide_start + 2 * wide + 2 * layer * scales;
        Ok(LayerPlanes { elements, scales: both(scales_start, scales), wide: both(wide_start, wide) })
    }

    /// All of it.
    pub(super) fn bytes(&self) -> usize {
        2 * self.vectors * bytes_of_a_vector(&self.spec)
    }
}

/// Bytes of a vector as it is stored, without its scale.
fn vector_bytes(spec: &CacheSpec) -> usize {
    spec.head_dim * if spec.dtype == KvDType::Native { BF16 } else { 1 }
}

/// Bytes that a key (or a value) of one head takes of a cache: of all layers, and, of a quantised one, in bf16 too.
fn bytes_of_a_vector(spec: &CacheSpec) -> usize {
    match spec.dtype {
        KvDType::Native => spec.layers * vector_bytes(spec),
        KvDType::Int8 | KvDType::Fp8 => spec.layers * (vector_bytes(spec) + WORD) + spec.head_dim * BF16,
    }
}

/// f32 logits, `[rows, vocab]`.
pub struct GpuLogits<Dr: Driver> {
    pub(super) buffer: Dr::Buffer,
    pub(super) address: u64,
    pub(super) rows: usize,
    pub(super) vocab: usize,
    capacity: usize,
}

impl<Dr: Driver> GpuLogits<Dr> {
    pub(super) fn resize(&mut self, op: &'static str, rows: usize) -> Result<()> {
        require(rows <= self.capacity, op, "logits", format!("capacity for {rows} rows"), self.capacity)?;
        self.rows = rows;
        Ok(())
    }
}

impl<Dr: Driver> GpuDevice<Dr> {
    /// Memory and its address; at least 16 bytes, so that an empty thing has an address too.
    pub(super) fn allocate(
        &self,
        op: &'static str,
        dims: &[usize],
        purpose: &'static str,
    ) -> Result<(Dr::Buffer, u64)> {
        let buffer = self.driver.alloc(bytes_of(op, dims)?.max(16), purpose)?;
        let address = self.driver.address(&buffer);
        Ok((buffer, address))
    }

    /// Copies `bytes` to `offset` of `dst`; nothing for none.
    pub(super) fn upload(&self, dst: &Dr::Buffer, offset: usize, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() { Ok(()) } else { self.driver.upload(dst, offset, bytes) }
    }

    pub(super) fn make_tensor(&self, max_rows: usize, cols: usize) -> Result<GpuTensor<Dr>> {
        require(cols > 0 && cols.is_multiple_of(8), "tensor", "cols", "a multiple of 8", cols)?;
        let (buffer, address) = self.allocate("tensor", &[max_rows, cols, BF16], "activations")?;
        Ok(GpuTensor { buffer, address, rows: 0, generated: 0, cols, capacity: max_rows, codes_for: 0 })
    }

    pub(super) fn make_logits(&self, max_rows: usize, vocab: usize) -> Result<GpuLogits<Dr>> {
        require(vocab > 0, "logits", "vocab", "above 0", vocab)?;
        let (buffer, address) = self.allocate("logits", &[max_rows, vocab, WORD], "logits")?;
        Ok(GpuLogits { buffer, address, rows: 0, vocab, capacity: max_rows })
    }

    pub(super) fn make_matrix(&self, weights: &HostMatrix<'_>) -> Result<GpuMatrix<Dr>> {
        let (rows, cols) = (weights.rows(), weights.cols);
        require(cols > 0 && cols.is_multiple_of(8), "matrix", "cols", "a multiple of 8", cols)?;
        for &(rows, bytes) in &weights.parts {
            let expected = bytes_of("matrix", &[rows, cols, weights.dtype.bytes()])?;
            require(bytes.len() == expected, "matrix", "bytes of a part", expected, bytes.len())?;
        }
        let (buffer, address) = self.allocate("matrix", &[rows, cols, BF16], "weights")?;
        let mut offset = 0;
        for &(rows, bytes) in &weights.parts {
            self.upload_bf16(&buffer, offset, bytes, weights.dtype)?;
            offset += rows * cols * BF16;
        }
        let stored = Stored::Bf16(self.weight_maps(address, rows, cols, BF16)?);
        self.make_ready(&stored)?;
        Ok(GpuMatrix { _buffer: buffer, address, rows, cols, stored, is_paired: false })
    }

    /// Uploads little-endian elements as bf16, rounded to nearest, ties to even, through one scratch of bounded size.
    fn upload_bf16(&self, dst: &Dr::Buffer, offset: usize, bytes: &[u8], dtype: DType) -> Result<()> {
        if dtype == DType::Bf16 {
            return self.upload(dst, offset, bytes);
        }
        let width = dtype.bytes();
        let mut scratch = vec![[0; BF16]; CONVERT_ELEMS.min(bytes.len() / width)];
        for (chunk, source) in bytes.chunks(CONVERT_ELEMS * width).enumerate() {
            let converted = &mut scratch[..source.len() / width];
            let elements = source.par_chunks_exact(width).with_min_len(LEAST_ELEMS);
            converted.par_iter_mut().zip(elements).for_each(|(converted, element)| {
                let value = match *element {
                    [a, b] => f16::from_le_bytes([a, b]).to_f32(),
                    [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
                    _ => f32::NAN,
                };
                *converted = bf16::from_f32(value).to_le_bytes();
            });
            self.upload(dst, offset + chunk * CONVERT_ELEMS * BF16, converted.as_flattened())?;
        }
        Ok(())
    }

    pub(super) fn make_vector(&self, values: &[f32]) -> Result<GpuVector<Dr>> {
        let (buffer, address) = self.allocate("vector", &[values.len(), WORD], "weights")?;
        self.upload(&buffer, 0, bytemuck::cast_slice(values))?;
        Ok(GpuVector { _buffer: buffer, address, len: values.len() })
    }

    pub(super) fn make_rope(
        &self,
        inv_freq: &[f32],
        attention_factor: f32,
        max_position: usize,
    ) -> Result<GpuRope<Dr>> {
        let head_dim = 2 * inv_freq.len();
        require(head_dim > 0, "rope", "frequencies", "at least 1", 0)?;
        let (buffer, address) = self.allocate("rope", &[max_position, head_dim, WORD], "rotary table")?;
        let factor = f64::from(attention_factor);
        let mut table = Vec::with_capacity(max_position * head_dim);
        for position in 0..max_position {
            let angles = inv_freq.iter().map(|&f| position as f64 * f64::from(f));
            table.extend(angles.clone().map(|angle| (angle.cos() * factor) as f32));
            table.extend(angles.map(|angle| (angle.sin() * factor) as f32));
        }
        self.upload(&buffer, 0, bytemuck::cast_slice(&table))?;
        Ok(GpuRope { _buffer: buffer, address, max_position, head_dim })
    }

    pub(super) fn make_cache(&self, spec: CacheSpec) -> Result<GpuCache<Dr>> {
        let CacheSpec { layers, pages, page_size, kv_heads, head_dim, .. } = spec;
        require(HEAD_DIMS.contains(&head_dim), "cache", "head_dim", "64 or 128", head_dim)?;
        for (what, value) in [("kv_heads", kv_heads), ("page_size", page_size)] {
            require(value > 0, "cache", what, "above 0", value)?;
        }
        require(
            pages.checked_mul(page_size).is_some_and(|slots| slots <= u32::MAX as usize),
            "cache",
            "pages * page_size",
            "below 2^32",
            format!("{pages} * {page_size}"),
        )?;
        require(layers < 1 << 20, "cache", "layers", "below 2^20", layers)?;
        let dims = [2, pages, kv_heads, page_size, bytes_of_a_vector(&spec)];
        let (buffer, address) = self.allocate("cache", &dims, "the KV cache")?;
        // Hopper's products read whole tiles, past a sequence's last key too: what they read there must be something.
        self.driver.zero(&buffer)?;
        Ok(GpuCache { _buffer: buffer, address, vectors: pages * kv_heads * page_size, spec })
    }
}
