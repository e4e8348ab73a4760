//! How quantised weights are kept.

use half::{bf16, f16};
use tilewright_kernels::{
    gather_columns::MOST_COLS,
    gemm_few::{
        halves::{self, Bytes},
        pack::{Packed, Plain, Rows, groups_of_piece},
    },
};

use super::{
    Driver, GpuDevice, GpuMatrix,
    int8::is_of_bytes,
    storage::{Int4, Int4Part, Orders, Stored, shape},
};
use crate::{ActivationBits, CodeBits, DType, HostMatrix, HostQuantized, QuantizedPart, Result};

/// What a tile of 4-bit weights holds of a row, and what a scale for all of it is packed as.
const TILE_COLS: usize = 128;
/// What the kernels' tests draw columns in multiples of.
const COLS_STEP: usize = 64;
/// 16 times as much is the largest power of two that f16 holds.
const MOST_SCALE_OF_HALVES: f32 = 2048.0;

impl<Dr: Driver> GpuDevice<Dr> {
    /// Packed for [`tilewright_kernels::gemm_few`] where its kernels take all parts, else dequantised: factors of activations that keep
    /// their bits, groups and shapes that no kernel has.
    pub(super) fn make_quantized(&self, weights: &HostQuantized) -> Result<GpuMatrix<Dr>> {
        match self.packs(weights.parts()) {
            true => self.make_packed(weights.parts(), Rows::AsGiven),
            false => self.make_dequantized(weights),
        }
    }

    /// Whether there are kernels that take all parts.
    pub(super) fn packs(&self, parts: &[QuantizedPart]) -> bool {
        self.is_hopper() && (matches!(parts, [part] if is_of_bytes(part)) || group_sizes(parts).is_some())
    }

    /// For the kernels, of parts that have some.
    pub(super) fn make_packed(&self, parts: &[QuantizedPart], rows: Rows) -> Result<GpuMatrix<Dr>> {
        match (group_sizes(parts), parts) {
            (Some(group_sizes), _) => self.make_int4(parts, &group_sizes, rows),
            (None, [part]) => self.make_int8(part, rows),
            (None, _) => Err(shape("matrix", "parts", "some that have kernels", "others")),
        }
    }

    /// Dequantised on the host and rounded to bf16: right, but neither small nor fast. Activations are not rounded to eight bits.
    fn make_dequantized(&self, weights: &HostQuantized) -> Result<GpuMatrix<Dr>> {
        let dequantized = weights.dequantized();
        let parts = vec![(weights.rows(), bytemuck::cast_slice(&dequantized))];
        self.make_matrix(&HostMatrix { parts, cols: weights.cols(), dtype: DType::F32 })
    }

    /// Tiles of part after part, then the orders that they want activations in.
    fn make_int4(&self, parts: &[QuantizedPart], group_sizes: &[usize], rows: Rows) -> Result<GpuMatrix<Dr>> {
        let (cols, in_halves) = (parts[0].cols, parts[0].bits == CodeBits::Eight);
        let packed_cols = if in_halves { halves::packed_cols(cols) } else { cols };
        let (mut first_row, mut bytes, mut stored) = (0, Vec::new(), Vec::new());
        let mut orders = [OrderBytes::of(packed_cols), OrderBytes::of(cols)];
        for (part, &group_size) in parts.iter().zip(group_sizes) {
            let scales_f16 = part.scale_type == DType::F16;
            let packed = match in_halves {
                true => pack_halves(part, group_size, rows),
                false => pack(part, group_size, rows),
            };
            let order = part.permutation.as_deref();
            let order = match in_halves {
                true => [
                    Some(orders[0].add(halves::order(order, cols))),
                    order.map(|order| orders[1].add(order.iter().copied())),
                ],
                false => [order.map(|order| orders[0].add(order.iter().copied())); 2],
            };
            stored.push(Int4Part {
                g_pieces: bytes.len() as u64,
                first_row: first_row as u32,
                rows: part.rows as u32,
                order,
                groups: packed.groups,
                piece_bytes: packed.piece_bytes,
                steps: packed.steps,
                zeros: packed.zeros,
                scales_f16,
            });
            first_row += part.rows;
            match bytes.is_empty() {
                true => bytes = packed.bytes,
                false => bytes.extend(packed.bytes),
            }
        }
        let of_orders = orders[0].bytes.len() + orders[1].bytes.len();
        let (buffer, address) = self.allocate("matrix", &[bytes.len() + of_orders], "weights")?;
        self.upload(&buffer, 0, &bytes)?;
        self.upload(&buffer, bytes.len(), &orders[0].bytes)?;
        self.upload(&buffer, bytes.len() + orders[0].bytes.len(), &orders[1].bytes)?;
        stored.iter_mut().for_each(|part| part.g_pieces += address);
        let g_orders = address + bytes.len() as u64;
        let of_generated = orders[0].at(g_orders);
        let of_prompts = match in_halves {
            true => orders[1].at(g_orders + orders[0].bytes.len() as u64),
            false => of_generated,
        };
        let int4 = Int4 {
            parts: stored,
            in_halves,
            packed_cols: packed_cols as u32,
            orders: [of_generated, of_prompts],
        };
        let stored = Stored::Int4(int4);
        self.make_ready(&stored)?;
        Ok(GpuMatrix { _buffer: buffer, address, rows: first_row, cols, stored, is_paired: false })
    }
}

/// Orders of columns as they are kept.
struct OrderBytes {
    bytes: Vec<u8>,
    count: u32,
    cols: usize,
}

impl OrderBytes {
    fn of(cols: usize) -> Self {
        Self { bytes: Vec::new(), count: 0, cols }
    }

    /// The number of another.
    fn add(&mut self, order: impl Iterator<Item = u32>) -> u32 {
        self.bytes.extend(order.flat_map(|from| (from as u16).to_le_bytes()));
        self.count += 1;
        self.count - 1
    }

    fn at(&self, g_orders: u64) -> Orders {
        Orders { g_orders, count: self.count, cols: self.cols as u32 }
    }
}

fn pack(part: &QuantizedPart, group_size: usize, rows: Rows) -> Packed {
    let bits = |&scale: &f32| match part.scale_type {
        DType::F16 => f16::from_f32(scale).to_bits(),
        _ => bf16::from_f32(scale).to_bits(),
    };
    let scales: Vec<u16> = part.scales.iter().map(bits).collect();
    let plain = Plain {
        n: part.rows,
        k: part.cols,
        group_size,
        values: &part.codes,
        scales: &scales,
        zeros: Some(&part.zeros),
    };
    Packed::new(&plain, rows)
}

fn pack_halves(part: &QuantizedPart, group_size: usize, rows: Rows) -> Packed {
    let bytes = Bytes {
        n: part.rows,
        k: part.cols,
        group_size,
        values: &part.codes,
        scales: &part.scales,
        scales_f16: part.scale_type == DType::F16,
        zeros: &part.zeros,
    };
    halves::pack(&bytes, rows)
}

/// The group size that each part is packed with, if the kernels take all of them.
fn group_sizes(parts: &[QuantizedPart]) -> Option<Vec<usize>> {
    let alike = parts.iter().all(|part| part.bits == parts[0].bits);
    if alike { parts.iter().map(group_in_tiles).collect() } else { None }
}

/// The group size that a part is packed with, if the kernels take it.
fn group_in_tiles(part: &QuantizedPart) -> Option<usize> {
    // One scale a row is one for each of its tiles.
    let group_size = if part.group == part.cols { part.cols.next_multiple_of(TILE_COLS) } else { part.group };
    let in_halves = part.bits == CodeBits::Eight;
    let scales_fit = match part.scale_type {
        DType::F16 => !in_halves || part.scales.iter().all(|scale| scale.abs() <= MOST_SCALE_OF_HALVES),
        DType::Bf16 => true,
        DType::F32 => false,
    };
    let taken = part.activations == ActivationBits::Full
        && (part.permutation.is_none() && !in_halves || part.cols <= MOST_COLS as usize)
        && part.pre_scale.is_none()
        && scales_fit
        && part.rows > 0
        && part.rows.is_multiple_of(8)
        && part.cols.is_multiple_of(COLS_STEP)
        && groups_of_piece(group_size).is_some();
    taken.then_some(group_size)
}
