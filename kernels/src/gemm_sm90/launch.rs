use super::{
    BF16_NARROW, BF16_WIDE, BLOCK_M, F16_NARROW, F16_WIDE, INT8_NARROW, INT8_WIDE, LINE_BYTES, NARROW, Tile,
    WIDE,
};
use crate::abi::{KernelSpec, TensorMapSpec};

/// Tile rows of a band: with tiles twice as wide as they are high, 132 blocks then share about as much of `a` as of `w`.
pub const BAND: u32 = 16;

/// What `a` and `w` are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// bf16.
    Bf16,
    /// f16; what is written too.
    F16,
    /// Signed bytes.
    Int8,
}

impl Element {
    /// Bytes an element.
    pub fn bytes(self) -> u32 {
        match self {
            Element::Bf16 | Element::F16 => 2,
            Element::Int8 => 1,
        }
    }
}

/// The tile and the entry for `[m, n]` on `multiprocessors`: the wide one unless the narrow one's blocks end sooner. Both give the
/// same bits.
pub fn choose(element: Element, m: u32, n: u32, multiprocessors: u32) -> (Tile, &'static KernelSpec) {
    let cost = |tile: Tile| {
        let tiles = u64::from(m.div_ceil(BLOCK_M)) * u64::from(n.div_ceil(tile.block_n));
        // Beside its products, a tile has its ends.
        tiles.div_ceil(u64::from(multiprocessors.max(1))) * u64::from(tile.block_n + 32)
    };
    let wide = cost(WIDE) <= cost(NARROW);
    match (element, wide) {
        (Element::Bf16, true) => (WIDE, &BF16_WIDE),
        (Element::Bf16, false) => (NARROW, &BF16_NARROW),
        (Element::F16, true) => (WIDE, &F16_WIDE),
        (Element::F16, false) => (NARROW, &F16_NARROW),
        (Element::Int8, true) => (WIDE, &INT8_WIDE),
        (Element::Int8, false) => (NARROW, &INT8_NARROW),
    }
}

/// Tiles of a product.
pub fn tiles(tile: Tile, m: u32, n: u32) -> u64 {
    u64::from(m.div_ceil(BLOCK_M)) * u64::from(n.div_ceil(tile.block_n))
}

/// Dimensions, stride and box of a matrix.
#[derive(Debug, Clone, Copy)]
pub struct MapShape {
    element_bytes: u32,
    dims: [u64; 2],
    strides_bytes: [u64; 1],
    box_dims: [u32; 2],
}

impl MapShape {
    /// A row-major matrix whose boxes are a line by `box_rows` rows.
    pub fn new(element_bytes: u32, rows: u32, cols: u32, box_rows: u32) -> MapShape {
        MapShape {
            element_bytes,
            dims: [u64::from(cols), u64::from(rows)],
            strides_bytes: [u64::from(cols) * u64::from(element_bytes)],
            box_dims: [LINE_BYTES / element_bytes, box_rows],
        }
    }

    /// Of a matrix that is columns of a wider one, of `stride` elements a row.
    #[must_use]
    pub fn spaced(self, stride: u32) -> MapShape {
        MapShape { strides_bytes: [u64::from(stride) * u64::from(self.element_bytes)], ..self }
    }

    /// The map of a matrix that starts at `base`.
    pub fn at(&self, base: u64) -> TensorMapSpec<'_> {
        TensorMapSpec {
            base,
            element_bytes: self.element_bytes,
            dims: &self.dims,
            strides_bytes: &self.strides_bytes,
            box_dims: &self.box_dims,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_products_take_the_narrow_tile() {
        let block_n = |m, n| choose(Element::Bf16, m, n, 132).0.block_n;
        assert_eq!(block_n(8192, 8192), 256);
        assert_eq!(block_n(4096, 4096), 256);
        assert_eq!(block_n(512, 4096), 128);
        assert_eq!(block_n(128, 4096), 128);
        assert_eq!(block_n(0, 0), 256);
    }

    #[test]
    fn stages_and_stores_fit_a_multiprocessor() {
        for tile in [WIDE, NARROW] {
            assert!(tile.shared_bytes() <= 227 << 10, "{tile:?}");
            assert!(tile.stage_bytes() % 1024 == 0 && tile.s_store() % 1024 == 0);
        }
    }
}
