use tilewright_kernels::gemm_bf16::{TILES, Tile};

/// Blocks that the second dimension of a grid can have.
pub(super) const MAX_GRID_Y: u32 = 65_535;

/// What bringing one element of `a` or `w` into shared memory costs, in multiply-adds: a square tile of this size spends as long
/// on either, which is about where a bf16 product of an Ampere or Hopper GPU with its data in L2 stands.
const LOAD_COST: u64 = 64;

/// The tile of [`TILES`] for `[m, k] x [k, n]` on `multiprocessors`, the largest of the cheapest.
///
/// A tile's cost is its waves (blocks over multiprocessors, rounded up) times what one block multiplies and loads for a step of
/// `k`. Every tile gives the same bits, so the choice is free. `None` if `m` has more blocks than a grid's second dimension.
pub fn select_tile(m: u32, n: u32, multiprocessors: u32) -> Option<&'static Tile> {
    let cost = |tile: &Tile| {
        let (block_m, block_n) = (u64::from(tile.block_m), u64::from(tile.block_n));
        let blocks = u64::from(m.div_ceil(tile.block_m)) * u64::from(n.div_ceil(tile.block_n));
        blocks.div_ceil(u64::from(multiprocessors.max(1)))
            * (block_m * block_n + LOAD_COST * (block_m + block_n))
    };
    TILES.iter().filter(|tile| m.div_ceil(tile.block_m) <= MAX_GRID_Y).min_by_key(|tile| cost(tile))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_m(m: u32, n: u32, multiprocessors: u32) -> Option<u32> {
        select_tile(m, n, multiprocessors).map(|tile| tile.block_m)
    }

    #[test]
    fn few_rows_take_the_flat_tile() {
        for m in 1..=16 {
            assert_eq!(block_m(m, 4096, 132), Some(16));
            assert_eq!(block_m(m, 151_936, 108), Some(16));
        }
    }

    #[test]
    fn many_rows_take_the_square_tile() {
        assert_eq!(block_m(4096, 4096, 132), Some(128));
        assert_eq!(block_m(2048, 14_336, 108), Some(128));
        assert_eq!(block_m(8192, 8192, 16), Some(128));
    }

    #[test]
    fn a_product_that_leaves_the_device_idle_takes_a_smaller_tile() {
        assert_eq!(block_m(128, 1024, 132), Some(16));
        assert_eq!(block_m(256, 1024, 132), Some(64));
        assert_eq!(block_m(256, 2048, 132), Some(64));
        // The same product fills a small device with fewer, larger blocks.
        assert_eq!(block_m(256, 1024, 16), Some(128));
    }

    #[test]
    fn the_second_grid_dimension_is_respected() {
        assert_eq!(block_m(16 * (MAX_GRID_Y + 1), 1, 132).map(|m| m > 16), Some(true));
        assert_eq!(block_m(128 * MAX_GRID_Y + 1, 64, 132), None);
    }

    #[test]
    fn odd_arguments_have_an_answer() {
        assert!(select_tile(0, 0, 0).is_some());
        assert!(select_tile(1, u32::MAX, 1).is_some());
    }
}
