//! Products with weights in pieces of 4 bits, those of 8 bits in halves among them. Parts that differ (in act-order each layer has an order of
//! its own) are multiplied one after the other, each into its columns of the output.

use tilewright_kernels::{
    abi,
    dequantize_int4::{DEQUANTIZE_HALVES, DEQUANTIZE_INT4},
    gather_columns::GATHER_COLUMNS,
    gemm_few::{self, Activations, Weights},
};

use super::{
    Driver, GpuDevice,
    gemm::Product,
    scratch::{self, Scratch},
    storage::{BF16, Int4, Int4Part, shape},
};
use crate::Result;

/// Activations as weights want them: in the orders of their columns, or as bytes.
pub(super) struct PreparedScratch<Dr: Driver>(pub Scratch<Dr>);

impl<Dr: Driver> Default for PreparedScratch<Dr> {
    fn default() -> Self {
        Self(Scratch::new("linear", "activations made ready"))
    }
}

impl Int4Part {
    /// The weights' part of a launch's parameters.
    fn operand(&self, k: u32) -> abi::GemmFew {
        abi::GemmFew {
            packed: self.g_pieces,
            steps: self.steps,
            splits: gemm_few::launch::splits(self.rows, k, gemm_few::layout::TILE_K),
            piece_bytes: self.piece_bytes,
            zeros: u32::from(self.zeros),
            scales_f16: u32::from(self.scales_f16),
            ..abi::GemmFew::default()
        }
    }
}

impl<Dr: Driver> GpuDevice<Dr> {
    /// A product of generated tokens' rows, those before `first_of_prompts`, and of prompts', which may be stored elsewhere: as the first of
    /// `products` says and the second. Where they aren't stored alike, there is one part.
    pub(super) fn launch_int4(
        &self,
        op: &'static str,
        products: [Product; 2],
        first_of_prompts: u32,
        int4: &Int4,
    ) -> Result<()> {
        let Product { m, n, .. } = products[0];
        // Held until the launches that read it are in the stream.
        let mut held = scratch::lock(&self.prepared_scratch);
        for (class, rows) in [(0, 0..first_of_prompts), (1, first_of_prompts..m)] {
            let product = products[class].rows(rows.start, rows.end);
            if product.m == 0 {
                continue;
            }
            let orders = int4.orders[class];
            let ordered_bytes = product.m as usize * orders.cols as usize * BF16;
            let g_ordered = match orders.count {
                0 => 0,
                count => held.0.at_least(self, count as usize * ordered_bytes, false)?,
            };
            let params = abi::GatherColumns {
                x: product.a,
                orders: orders.g_orders,
                out: g_ordered,
                rows: product.m,
                cols: product.k,
                out_cols: orders.cols,
                reserved: 0,
            };
            // SAFETY: `a` is `[m, k]`, no more columns than the kernel takes; orders are of columns below `k`, and the scratch holds all of them.
            unsafe { self.launch(&GATHER_COLUMNS, [product.m, orders.count, 1], params)? };
            for part in &int4.parts {
                let ordered = |order| g_ordered + u64::from(order) * ordered_bytes as u64;
                let a = part.order[class].map_or(product.a, ordered);
                let own = match part.rows == n {
                    true => Product { a, ..product },
                    false => Product { a, ..product }.cols(part.first_row, part.rows),
                };
                if class == 0 {
                    let weights = Weights::Int4 { groups: part.groups, activations: Activations::Bf16 };
                    let own = Product { k: int4.packed_cols, ..own };
                    self.launch_few_in_parts(op, own, weights, part.operand(own.k))?;
                } else {
                    self.launch_dequantized(own, part, int4.in_halves)?;
                }
            }
        }
        Ok(())
    }

    /// A product of prompts' rows with weights that become bf16 first: whatever the number of rows, so that a row's bits don't
    /// depend on it.
    fn launch_dequantized(&self, product: Product, part: &Int4Part, in_halves: bool) -> Result<()> {
        let Product { n, k, .. } = product;
        let (kernel, steps) = match in_halves {
            true => (&DEQUANTIZE_HALVES, part.steps / 2),
            false => (&DEQUANTIZE_INT4, part.steps),
        };
        let mut held = scratch::lock(&self.gemm_scratch);
        let out = held.dequantized.at_least(self, n as usize * k as usize * BF16, false)?;
        let params = abi::DequantizeInt4 {
            packed: part.g_pieces,
            out,
            n,
            k,
            steps,
            piece_bytes: part.piece_bytes,
            groups: part.groups,
            zeros: u32::from(part.zeros),
            scales_f16: u32::from(part.scales_f16),
            reserved: 0,
        };
        let tiles = n.div_ceil(gemm_few::ROWS) * steps;
        // SAFETY: the part's pieces are of weights `[n, k]`, and `out` is as large. Launches that share it follow each other on one stream; the
        // lock is held until both are in it.
        unsafe { self.launch(kernel, [tiles, 1, 1], params)? };
        match self.weight_maps(out, n as usize, k as usize, BF16)? {
            Some(maps) => self.launch_many(product, &maps),
            None => Err(shape("linear", "rows of w", "a multiple of 8", n)),
        }
    }
}
