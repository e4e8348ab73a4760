//! What is timed beside the peers: every cell by name, and how the names are asked for.

use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    problem::{Decode, Gemm, GemmWeights, KvFormat, Prefill, Problem, RopeAppend, Rows},
};

/// Below this many bytes a launch is short enough for the gap before it to show.
const GRAPH_BELOW_BYTES: u64 = 300 << 20;
/// Below this many operations, likewise.
const GRAPH_BELOW_FLOPS: u64 = 50_000_000_000;

/// How runs are timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// An event before and after each run.
    Events,
    /// A graph of several runs, an event before and after each replay.
    Graph,
    /// The host's clock before and after runs that take long enough for it: a CPU's.
    Clock,
}

impl Mode {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Events => "events",
            Mode::Graph => "graph",
            Mode::Clock => "clock",
        }
    }
}

/// One problem that is timed, whoever solves it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// Its name, parts divided by '/': what `--only` and `--cell` take.
    #[serde(rename = "cell")]
    pub key: String,
    /// What is asked for.
    pub problem: Problem,
    /// How it is timed.
    pub mode: Mode,
    /// The cell whose peers it is compared with: another one where no peer solves the very same problem.
    pub beside: String,
}

impl Cell {
    pub(crate) fn new(key: String, problem: Problem) -> Cell {
        let cost = problem.cost();
        let short = cost.bytes < GRAPH_BELOW_BYTES && cost.flops < GRAPH_BELOW_FLOPS;
        let mode = if short { Mode::Graph } else { Mode::Events };
        Cell { beside: key.clone(), key, problem, mode }
    }

    /// Whether the peers are asked for it.
    pub fn has_peers(&self) -> bool {
        self.beside == self.key
    }

    /// Whether `prefix` is its name, or whole parts at the start of it.
    fn is_under(&self, prefix: &str) -> bool {
        let rest = self.key.strip_prefix(prefix.trim_end_matches('/'));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

/// Every cell.
pub fn all() -> Vec<Cell> {
    let mut cells = prefill();
    cells.extend(decode());
    cells.extend(rope_append());
    cells.extend(matrices());
    cells.extend(rows());
    cells
}

/// 16k tokens in all, cut into prompts of 512 to 16k.
fn prefill() -> Vec<Cell> {
    const TOKENS: usize = 16_384;
    let mut cells = Vec::new();
    const LENGTHS: [usize; 6] = [512, 1024, 2048, 4096, 8192, 16_384];
    // Heads that fewer models have are timed at fewer lengths.
    const FEW_LENGTHS: [usize; 3] = [512, 2048, 8192];
    let heads = [
        (128, 16, &LENGTHS[..]),
        (64, 32, &LENGTHS),
        (96, 16, &FEW_LENGTHS),
        (192, 8, &FEW_LENGTHS),
        (256, 8, &FEW_LENGTHS),
    ];
    for (head_dim, heads, lengths) in heads {
        for causal in [false, true] {
            for &seq_len in lengths {
                let mask = if causal { "causal" } else { "full" };
                let key = format!("prefill/hd{head_dim}/{mask}/{seq_len}");
                let problem = Prefill {
                    seqs: TOKENS / seq_len,
                    seq_len,
                    q_heads: heads,
                    kv_heads: heads,
                    head_dim,
                    causal,
                    page_size: None,
                };
                let paged = Problem::Prefill(Prefill { page_size: Some(16), ..problem });
                let paged = Cell { beside: key.clone(), ..Cell::new(format!("{key}/page16"), paged) };
                cells.extend([Cell::new(key, Problem::Prefill(problem)), paged]);
            }
        }
    }
    cells
}

fn decode() -> Vec<Cell> {
    let shapes = [
        (1, 1024),
        (1, 4096),
        (1, 32_768),
        (1, 131_072),
        (8, 4096),
        (16, 8192),
        (64, 4096),
        (128, 2048),
        (256, 1024),
    ];
    let mut cells = Vec::new();
    for kv in KvFormat::ALL {
        for (seqs, context) in shapes {
            let (q_heads, kv_heads, head_dim, page_size) = (32, 8, 128, 16);
            let problem = Decode { seqs, context, q_heads, kv_heads, head_dim, page_size, kv };
            let cell = Cell::new(format!("decode/{}/{seqs}x{context}", kv.name()), Problem::Decode(problem));
            // What a quantised cache is for is to be faster than bf16.
            cells.push(Cell { beside: format!("decode/bf16/{seqs}x{context}"), ..cell });
        }
    }
    cells
}

fn rope_append() -> Vec<Cell> {
    let cell = |kv: KvFormat| {
        let (tokens, q_heads, kv_heads, head_dim, page_size) = (8192, 32, 8, 128, 16);
        let problem = RopeAppend { tokens, q_heads, kv_heads, head_dim, page_size, kv };
        Cell::new(format!("rope_append/{}/{tokens}", kv.name()), Problem::RopeAppend(problem))
    };
    KvFormat::ALL.into_iter().map(cell).collect()
}

fn matrices() -> Vec<Cell> {
    // Columns by rows of the weights: those of models of 8 and 70 billion parameters.
    let weights = [(4096, 4096), (4096, 14_336), (14_336, 4096), (8192, 28_672)];
    let cell = |weights: GemmWeights, m, n, k| {
        let key = format!("gemm/{}/{m}x{n}x{k}", weights.name());
        Cell::new(key, Problem::Gemm(Gemm { weights, m, n, k }))
    };
    let mut cells = Vec::new();
    for (k, n) in weights {
        for m in [1, 8, 16, 64, 128] {
            cells.extend([GemmWeights::Bf16, GemmWeights::Int4].map(|weights| cell(weights, m, n, k)));
        }
        cells.push(cell(GemmWeights::Int4, 4096, n, k));
        // Activations of f16 stand beside the peers that bf16 is compared with.
        cells.extend([1, 8, 16, 64, 128, 4096].map(|m| {
            let beside = format!("gemm/int4/{m}x{n}x{k}");
            Cell { beside, ..cell(GemmWeights::Int4F16, m, n, k) }
        }));
        cells.extend([1, 16, 8192].map(|m| cell(GemmWeights::Int8, m, n, k)));
    }
    let square = |weights, size| cell(weights, size, size, size);
    cells.extend([1024, 2048, 4096, 8192].map(|size| square(GemmWeights::Bf16, size)));
    cells.extend([256, 512].map(|m| cell(GemmWeights::Bf16, m, 4096, 4096)));
    cells.push(square(GemmWeights::Int8, 8192));
    cells
}

fn rows() -> Vec<Cell> {
    let cell = |op: &str, problem: fn(Rows) -> Problem, rows, cols| {
        Cell::new(format!("{op}/{rows}x{cols}"), problem(Rows { rows, cols }))
    };
    vec![
        cell("rms_norm", Problem::RmsNorm, 8192, 4096),
        cell("silu_mul", Problem::SiluMul, 8192, 14_336),
        cell("gather_rows", Problem::GatherRows, 8192, 4096),
        cell("argmax", Problem::Argmax, 64, 128_256),
        cell("sample", Problem::Sample, 64, 128_256),
    ]
}

/// The cells under any of `only` (all of them if that is empty) and those called by one of `names`, in their own order.
///
/// # Errors
/// [`Error::UnknownCell`] for a name or start of a name that no cell has.
pub fn select(only: &[String], names: &[String]) -> Result<Vec<Cell>> {
    let all = all();
    for prefix in only {
        if !all.iter().any(|cell| cell.is_under(prefix)) {
            return Err(unknown(&all, prefix));
        }
    }
    for name in names {
        if !all.iter().any(|cell| cell.key == *name) {
            return Err(unknown(&all, name));
        }
    }
    let everything = only.is_empty() && names.is_empty();
    let wanted = |cell: &Cell| {
        everything || only.iter().any(|prefix| cell.is_under(prefix)) || names.contains(&cell.key)
    };
    Ok(all.into_iter().filter(wanted).collect())
}

fn unknown(all: &[Cell], name: &str) -> Error {
    let shared = |key: &str| key.bytes().zip(name.bytes()).take_while(|(a, b)| a == b).count();
    let nearest = all.iter().rev().max_by_key(|cell| shared(&cell.key)).filter(|cell| shared(&cell.key) > 2);
    let hint = nearest.map(|cell| format!(", the nearest is '{}'", cell.key)).unwrap_or_default();
    Error::UnknownCell { name: name.to_string(), hint }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(only: &[&str], names: &[&str]) -> Result<Vec<String>> {
        let owned = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
        Ok(select(&owned(only), &owned(names))?.into_iter().map(|cell| cell.key).collect())
    }

    #[test]
    fn names_are_unique_and_neighbours_exist() {
        let cells = all();
        for (index, cell) in cells.iter().enumerate() {
            assert!(cells[..index].iter().all(|other| other.key != cell.key), "{}", cell.key);
            assert!(
                cells.iter().any(|other| other.key == cell.beside && other.has_peers()),
                "{}",
                cell.beside
            );
        }
    }

    #[test]
    fn parts_of_names_select_what_is_under_them() {
        assert_eq!(keys(&["prefill/hd128/causal"], &[]).expect("there are some").len(), 12);
        assert_eq!(keys(&["decode/bf16/"], &[]).expect("there are some").len(), 9);
        // Not the start of another number.
        assert_eq!(keys(&["decode/bf16/1x1024"], &[]).expect("there is one"), ["decode/bf16/1x1024"]);
        assert_eq!(keys(&[], &["prefill/hd64/full/512"]).expect("there is one"), ["prefill/hd64/full/512"]);
        assert_eq!(keys(&[], &[]).expect("all").len(), all().len());
    }

    #[test]
    fn an_unknown_cell_is_refused_by_name() {
        for (only, names) in [(&["prefill/hd12"][..], &[][..]), (&[], &["prefill/hd12"])] {
            let error = keys(only, names).expect_err("no such cell").to_string();
            assert_eq!(
                error,
                "no cell 'prefill/hd12', the nearest is 'prefill/hd128/full/512'; 'sidebyside --list' names them all"
            );
        }
        assert_eq!(
            keys(&[], &["xyz"]).expect_err("no such cell").to_string(),
            "no cell 'xyz'; 'sidebyside --list' names them all"
        );
    }

    #[test]
    fn short_cells_are_replayed_from_a_graph() {
        let mode = |key: &str| all().into_iter().find(|cell| cell.key == key).map(|cell| cell.mode);
        assert_eq!(mode("decode/bf16/1x1024"), Some(Mode::Graph));
        assert_eq!(mode("decode/bf16/8x4096"), Some(Mode::Graph));
        assert_eq!(mode("decode/bf16/64x4096"), Some(Mode::Events));
        assert_eq!(mode("prefill/hd128/causal/4096"), Some(Mode::Events));
        assert_eq!(mode("rope_append/bf16/8192"), Some(Mode::Graph));
    }
}
