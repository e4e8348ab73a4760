use proptest::{collection::vec, prelude::*};
use tilewright_host::gpu::Driver;
use tilewright_kernels::{abi, gather_rows::GATHER_ROWS};
use tilewright_reference::gather;

use super::eights;
use crate::{
    harness::{Failure, Harness, bf16_bytes, same_bits},
    random::Random,
    runner::Property,
    shape::Shape,
};

pub struct GatherRows;

#[derive(Debug, Clone)]
pub struct Case {
    table_rows: usize,
    cols: usize,
    /// Taken modulo `table_rows`.
    ids: Vec<u32>,
    seed: u64,
}

impl Property for GatherRows {
    const KERNEL: &'static str = "gather_rows";
    const EMULATED_CASES: u32 = 200;
    type Case = Case;

    fn cases() -> BoxedStrategy<Case> {
        (1..40usize, eights(1024, 2100), vec(any::<u32>(), 1..9), any::<u64>())
            .prop_map(|(table_rows, cols, ids, seed)| Case { table_rows, cols, ids, seed })
            .boxed()
    }

    fn corners() -> Vec<Case> {
        let case = |table_rows, cols, ids: &[u32]| Case { table_rows, cols, ids: ids.to_vec(), seed: 1 };
        vec![
            case(1, 8, &[0]),
            case(3, 1016, &[2, 0, 2]),
            case(2, 1024, &[1]),
            case(2, 1032, &[1, 1]),
            // Row 550,000 begins past element 2^31, and past byte 2^32.
            case(550_001, 4096, &[550_000, 0, 524_288, 524_287]),
        ]
    }

    fn shaped(shape: &mut Shape) -> Option<Case> {
        let rows = shape.size("rows", 8, 1, "rows gathered");
        let table_rows = shape.size("table_rows", 1000, 1, "rows of the table");
        let cols = shape.size("cols", 4096, 8, "columns");
        let seed = shape.inputs();
        let mut random = Random::new(seed);
        // Rows of the table that nobody asks for are addresses alone.
        let fits = shape.fits(&[("out", &[rows, cols]), ("table", &[table_rows.div_ceil(64), cols])]);
        let ids = (0..if fits { rows } else { 0 }).map(|_| random.below(table_rows) as u32).collect();
        Some(Case { table_rows, cols, ids, seed })
    }

    fn check<D: Driver>(harness: &Harness<D>, case: &Case) -> Result<(), Failure> {
        let ids: Vec<u32> = case.ids.iter().map(|id| id % case.table_rows as u32).collect();
        // Only the rows that are asked for exist; whoever reads another reads poison.
        let mut live = ids.clone();
        live.sort_unstable();
        live.dedup();
        let rows = Random::new(case.seed).bf16s(live.len() * case.cols, 1.0);
        let run = |ids: &[u32]| -> Result<Vec<u8>, Failure> {
            let mut arena = harness.arena();
            let table = arena.alloc("table", case.table_rows * case.cols * 2)?;
            for (&id, row) in live.iter().zip(rows.chunks(case.cols)) {
                arena.write(table, id as usize * case.cols * 2, &bf16_bytes(row))?;
            }
            let g_ids = arena.input_u32("ids", ids)?;
            let out = arena.alloc("out", ids.len() * case.cols * 2)?;
            let params = abi::GatherRows {
                table: arena.address(table),
                ids: arena.address(g_ids),
                out: arena.address(out),
                rows: ids.len() as u32,
                cols: case.cols as u32,
            };
            arena.launch(&GATHER_ROWS, [ids.len() as u32, 1, 1], &params)?;
            arena.all_bytes(out)
        };
        let actual = run(&ids)?;
        let local: Vec<u32> =
            ids.iter().map(|id| live.binary_search(id).unwrap_or_default() as u32).collect();
        same_bits(
            "gathered rows against the oracle",
            &actual,
            &bf16_bytes(&gather(&rows, case.cols, &local)),
        )?;
        same_bits("the second run", &actual, &run(&ids)?)
    }
}
