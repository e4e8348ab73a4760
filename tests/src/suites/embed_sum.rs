use proptest::{collection::vec, prelude::*};
use tilewright_host::gpu::Driver;
use tilewright_kernels::{abi, embed_sum::EMBED_SUM};
use tilewright_reference::{bf16_bits, embed_sum};

use super::eights;
use crate::{
    harness::{Failure, Harness, bf16_bytes, same_bits},
    random::Random,
    runner::Property,
    shape::Shape,
};

pub struct EmbedSum;

#[derive(Debug, Clone)]
pub struct Case {
    /// Of the table and of the places.
    rows: [usize; 2],
    cols: usize,
    /// A row of the table and one of the places for each row of the result, modulo how many there are.
    picks: Vec<(u32, u32)>,
    seed: u64,
}

/// A table of which only the rows in use exist: whoever reads another reads poison.
struct Table {
    rows: usize,
    live: Vec<u32>,
    values: Vec<f32>,
}

impl Table {
    fn of(rows: usize, ids: &[u32], cols: usize, random: &mut Random) -> Table {
        let mut live = ids.to_vec();
        live.sort_unstable();
        live.dedup();
        let values = random.bf16s(live.len() * cols, 1.0);
        Table { rows, live, values }
    }

    /// Where the rows stand among those in use.
    fn local(&self, ids: &[u32]) -> Vec<u32> {
        ids.iter().map(|id| self.live.binary_search(id).unwrap_or_default() as u32).collect()
    }
}

impl Property for EmbedSum {
    const KERNEL: &'static str = "embed_sum";
    const EMULATED_CASES: u32 = 200;
    type Case = Case;

    fn cases() -> BoxedStrategy<Case> {
        let picks = vec((any::<u32>(), any::<u32>()), 1..9);
        (1..40usize, 1..40usize, eights(1024, 2100), picks, any::<u64>())
            .prop_map(|(table, places, cols, picks, seed)| Case { rows: [table, places], cols, picks, seed })
            .boxed()
    }

    fn corners() -> Vec<Case> {
        let case = |rows, cols, picks: &[(u32, u32)]| Case { rows, cols, picks: picks.to_vec(), seed: 1 };
        vec![
            case([1, 1], 8, &[(0, 0)]),
            case([3, 2], 1016, &[(2, 0), (0, 1), (2, 1)]),
            case([2, 3], 1024, &[(1, 2)]),
            case([2, 2], 1032, &[(1, 0), (1, 0)]),
            // Row 550,000 begins past element 2^31, and past byte 2^32.
            case([550_001, 2], 4096, &[(550_000, 1), (524_288, 0)]),
            case([2, 550_001], 4096, &[(1, 550_000), (0, 524_287)]),
        ]
    }

    fn shaped(shape: &mut Shape) -> Option<Case> {
        let count = shape.size("rows", 8, 1, "rows of the result");
        let table_rows = shape.size("table_rows", 1000, 1, "rows of the table");
        let place_rows = shape.size("place_rows", 1000, 1, "rows of the places");
        let cols = shape.size("cols", 4096, 8, "columns");
        let seed = shape.inputs();
        let mut random = Random::new(seed);
        let fits = shape.fits(&[
            ("out", &[count, cols]),
            ("table", &[table_rows.div_ceil(64), cols]),
            ("places", &[place_rows.div_ceil(64), cols]),
        ]);
        let mut pick = || (random.below(table_rows) as u32, random.below(place_rows) as u32);
        let picks = (0..if fits { count } else { 0 }).map(|_| pick()).collect();
        Some(Case { rows: [table_rows, place_rows], cols, picks, seed })
    }

    fn check<D: Driver>(harness: &Harness<D>, case: &Case) -> Result<(), Failure> {
        let ids: Vec<u32> = case.picks.iter().map(|pick| pick.0 % case.rows[0] as u32).collect();
        let positions: Vec<u32> = case.picks.iter().map(|pick| pick.1 % case.rows[1] as u32).collect();
        let mut random = Random::new(case.seed);
        let table = Table::of(case.rows[0], &ids, case.cols, &mut random);
        let places = Table::of(case.rows[1], &positions, case.cols, &mut random);
        let actual = run(harness, case.cols, &table, &places, (&ids, &positions))?;
        let sums: Vec<f64> = embed_sum(
            &table.values,
            &places.values,
            case.cols,
            &table.local(&ids),
            &places.local(&positions),
        );
        // The sum is exact in f64, so this rounds as an addition in f32 does.
        let expected: Vec<u8> = sums.iter().flat_map(|&sum| bf16_bits(sum as f32).to_le_bytes()).collect();
        same_bits("summed rows against the oracle", &actual, &expected)?;
        let again = run(harness, case.cols, &table, &places, (&ids, &positions))?;
        same_bits("the second run", &actual, &again)
    }
}

fn run<D: Driver>(
    harness: &Harness<D>,
    cols: usize,
    table: &Table,
    places: &Table,
    (ids, positions): (&[u32], &[u32]),
) -> Result<Vec<u8>, Failure> {
    let mut arena = harness.arena();
    let mut tables = Vec::new();
    for (name, table) in [("table", table), ("places", places)] {
        let buffer = arena.alloc(name, table.rows * cols * 2)?;
        for (&id, row) in table.live.iter().zip(table.values.chunks(cols)) {
            arena.write(buffer, id as usize * cols * 2, &bf16_bytes(row))?;
        }
        tables.push(buffer);
    }
    let (g_ids, g_positions) = (arena.input_u32("ids", ids)?, arena.input_u32("positions", positions)?);
    let out = arena.alloc("out", ids.len() * cols * 2)?;
    let params = abi::EmbedSum {
        table: arena.address(tables[0]),
        places: arena.address(tables[1]),
        ids: arena.address(g_ids),
        positions: arena.address(g_positions),
        out: arena.address(out),
        rows: ids.len() as u32,
        cols: cols as u32,
    };
    arena.launch(&EMBED_SUM, [ids.len() as u32, 1, 1], &params)?;
    arena.all_bytes(out)
}
