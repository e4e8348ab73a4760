//! Device code of [`super::TILES`].

use super::SharedPlan;
use crate::{
    abi::Gemm,
    entry::kernel,
    ptx,
    tile::{
        fragment::{load_a, load_b_pair},
        swizzle, tile_bytes,
    },
};

/// Starts the copy of rows `first_row..first_row + ROWS`, columns `k0..k0 + 8 * CHUNKS` of the row-major `[rows, k]` matrix at
/// `g_matrix`; zeros where the matrix ends.
///
/// # Safety
/// `s_tile` must be a tile of the block that nobody reads.
#[inline(always)]
unsafe fn copy_tile<const ROWS: u32, const CHUNKS: u32, const THREADS: u32>(
    s_tile: u32,
    g_matrix: u64,
    first_row: u32,
    rows: u32,
    k0: u32,
    k: u32,
) {
    for step in 0..ROWS * CHUNKS / THREADS {
        let index = step * THREADS + ptx::tid_x();
        let (row, chunk) = (index / CHUNKS, index % CHUNKS);
        let (g_row, col) = (first_row + row, k0 + chunk * 8);
        let inside = g_row < rows && col < k;
        // Outside, the copy reads nothing but wants a valid address.
        let offset = if inside { (u64::from(g_row) * u64::from(k) + u64::from(col)) * 2 } else { 0 };
        // SAFETY: `inside` bounds the address (`k` is a multiple of 8); the tile is free by the caller's promise.
        unsafe {
            ptx::cp_async_16(s_tile + swizzle::<CHUNKS>(row, chunk), g_matrix + offset, 16 * inside as u32)
        };
    }
}

/// Adds bias and residual to one element and stores it.
///
/// # Safety
/// `row < m`, `col < n`.
#[inline(always)]
unsafe fn store_one(p: &Gemm, row: u32, col: u32, value: f32) {
    let index = u64::from(row) * u64::from(p.n) + u64::from(col);
    let mut value = value;
    // SAFETY: the caller's promise bounds every index; an odd `n` leaves elements aligned to themselves.
    unsafe {
        if p.bias != 0 {
            value += f32::from_bits(ptx::ld_global_nc_b32(p.bias + u64::from(col) * 4));
        }
        if p.residual != 0 {
            value += ptx::bf16_lo(u32::from(ptx::ld_global_b16(p.residual + index * 2)));
        }
        if p.out_f32 != 0 {
            ptx::st_global_b32(p.out + index * 4, value.to_bits());
        } else {
            ptx::st_global_b16(p.out + index * 2, ptx::pack_bf16(value, 0.0) as u16);
        }
    }
}

/// As [`store_one`] for `col` and `col + 1`.
///
/// # Safety
/// `row < m`, `col + 1 < n`, both `col` and `n` even.
#[inline(always)]
unsafe fn store_two(p: &Gemm, row: u32, col: u32, values: [f32; 2]) {
    let index = u64::from(row) * u64::from(p.n) + u64::from(col);
    let mut values = values;
    // SAFETY: the caller's promise bounds every index, and makes `index` even.
    unsafe {
        if p.bias != 0 {
            let bias = ptx::ld_global_nc_v2_b32(p.bias + u64::from(col) * 4);
            values[0] += f32::from_bits(bias[0]);
            values[1] += f32::from_bits(bias[1]);
        }
        if p.residual != 0 {
            let residual = ptx::ld_global_b32(p.residual + index * 2);
            values[0] += ptx::bf16_lo(residual);
            values[1] += ptx::bf16_hi(residual);
        }
        if p.out_f32 != 0 {
            ptx::st_global_v2_b32(p.out + index * 4, [values[0].to_bits(), values[1].to_bits()]);
        } else {
            ptx::st_global_b32(p.out + index * 2, ptx::pack_bf16(values[0], values[1]));
        }
    }
}

/// Stores columns `col` and `col + 1` of `row`, as far as they exist. `col` is even.
///
/// # Safety
/// The parameters are those of the launch.
#[inline(always)]
unsafe fn store(p: &Gemm, row: u32, col: u32, values: [f32; 2]) {
    if row >= p.m {
        return;
    }
    // SAFETY: each call's condition is what it asks for.
    unsafe {
        if p.n & 1 == 0 && col < p.n {
            store_two(p, row, col, values);
        } else {
            if col < p.n {
                store_one(p, row, col, values[0]);
            }
            if col + 1 < p.n {
                store_one(p, row, col + 1, values[1]);
            }
        }
    }
}

/// A block's tile, `8 * CHUNKS` of `k` a stage. A warp computes `M_TILES` x `N_TILES` products of 16 x 8. `AHEAD` is `STAGES - 2`.
///
/// # Safety
/// As the entries.
#[inline(always)]
unsafe fn gemm<
    const BLOCK_M: u32,
    const BLOCK_N: u32,
    const BLOCK_K: u32,
    const CHUNKS: u32,
    const M_TILES: usize,
    const N_TILES: usize,
    const STAGES: u32,
    const AHEAD: u32,
    const THREADS: u32,
>(
    p: &Gemm,
) {
    const {
        assert!(BLOCK_K == CHUNKS * 8 && AHEAD + 2 == STAGES);
        assert!(BLOCK_M * BLOCK_N / (M_TILES as u32 * 16 * N_TILES as u32 * 8) * 32 == THREADS);
        assert!((BLOCK_M * CHUNKS).is_multiple_of(THREADS) && (BLOCK_N * CHUNKS).is_multiple_of(THREADS));
    }
    let (block_row, block_col) = (ptx::ctaid_y() * BLOCK_M, ptx::ctaid_x() * BLOCK_N);
    let s_a = ptx::shared_base() + SharedPlan::<BLOCK_M, BLOCK_N, BLOCK_K, STAGES>::A;
    let s_w = ptx::shared_base() + SharedPlan::<BLOCK_M, BLOCK_N, BLOCK_K, STAGES>::W;
    let warps_n = BLOCK_N / (N_TILES as u32 * 8);
    let warp_row = ptx::warp() / warps_n * (M_TILES as u32 * 16);
    let warp_col = ptx::warp() % warps_n * (N_TILES as u32 * 8);
    let k_tiles = p.k.div_ceil(BLOCK_K);

    // SAFETY: a stage is written only after the barrier that follows its last reading, and read only after its group was
    // waited for by all and the barrier.
    unsafe {
        let copy = |stage: u32, k_tile: u32| {
            if k_tile < k_tiles {
                let k0 = k_tile * BLOCK_K;
                let (s_a, s_w) =
                    (s_a + stage * tile_bytes(BLOCK_M, BLOCK_K), s_w + stage * tile_bytes(BLOCK_N, BLOCK_K));
                copy_tile::<BLOCK_M, CHUNKS, THREADS>(s_a, p.a, block_row, p.m, k0, p.k);
                copy_tile::<BLOCK_N, CHUNKS, THREADS>(s_w, p.w, block_col, p.n, k0, p.k);
            }
            // Empty groups keep the count of groups in flight the same at the end of `k`.
            ptx::cp_async_commit();
        };
        for stage in 0..STAGES - 1 {
            copy(stage, stage);
        }

        let mut acc = [[[0.0f32; 4]; N_TILES]; M_TILES];
        let (mut stage, mut free) = (0, STAGES - 1);
        for k_tile in 0..k_tiles {
            ptx::cp_async_wait::<AHEAD>();
            // Everybody's part of the tile has landed, and everybody is done with the tile before it.
            ptx::bar_sync();
            copy(free, k_tile + STAGES - 1);
            let s_a = s_a + stage * tile_bytes(BLOCK_M, BLOCK_K);
            let s_w = s_w + stage * tile_bytes(BLOCK_N, BLOCK_K);
            for step in 0..CHUNKS / 2 {
                let mut a = [[0u32; 4]; M_TILES];
                for i in 0..M_TILES {
                    a[i] = load_a::<CHUNKS>(s_a, warp_row + i as u32 * 16, step * 2);
                }
                for j in 0..N_TILES / 2 {
                    let b = load_b_pair::<CHUNKS>(s_w, warp_col + j as u32 * 16, step * 2);
                    for i in 0..M_TILES {
                        acc[i][2 * j] = ptx::mma_m16n8k16_bf16(a[i], b[0], acc[i][2 * j]);
                        acc[i][2 * j + 1] = ptx::mma_m16n8k16_bf16(a[i], b[1], acc[i][2 * j + 1]);
                    }
                }
            }
            free = stage;
            stage = if stage + 1 == STAGES { 0 } else { stage + 1 };
        }

        let row = block_row + warp_row + ptx::lane() / 4;
        let col = block_col + warp_col + ptx::lane() % 4 * 2;
        for i in 0..M_TILES {
            for j in 0..N_TILES {
                let (row, col, c) = (row + i as u32 * 16, col + j as u32 * 8, acc[i][j]);
                store(p, row, col, [c[0], c[1]]);
                store(p, row + 8, col, [c[2], c[3]]);
            }
        }
    }
}

kernel! {
    /// See [`Gemm`] and [`super::TILE_128X128`].
    pub fn gemm_bf16_128x128(p: Gemm) {
        gemm::<128, 128, 32, 4, 4, 4, 3, 1, 256>(&p);
    }
}

kernel! {
    /// See [`Gemm`] and [`super::TILE_64X64`].
    pub fn gemm_bf16_64x64(p: Gemm) {
        gemm::<64, 64, 32, 4, 2, 4, 4, 2, 128>(&p);
    }
}

kernel! {
    /// See [`Gemm`] and [`super::TILE_16X64`].
    pub fn gemm_bf16_16x64(p: Gemm) {
        gemm::<16, 64, 64, 8, 1, 2, 4, 2, 128>(&p);
    }
}
