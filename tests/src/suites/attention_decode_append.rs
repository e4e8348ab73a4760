use proptest::{prelude::*, sample::select};
use tilewright_host::gpu::Driver;
use tilewright_kernels::{
    abi::{self, KV_BF16},
    attention_decode::{self, Variant},
    gather_rows::GATHER_ROWS,
    rope_append,
};
use tilewright_reference::RopeScaling;

use super::{
    attention_decode::{params, plane},
    attention_decode_case::{self, Input},
    rotation::Rotation,
};
use crate::{
    harness::{Failure, Harness, POISON, bf16_values, same_bits},
    random::Random,
    runner::Property,
    shape::Shape,
};

pub struct AttentionDecodeAppend;

/// One query a sequence, over a bf16 cache that lacks its newest key and value.
#[derive(Debug, Clone)]
pub struct Case {
    of: attention_decode_case::Case,
    q_norm: bool,
    k_norm: bool,
}

impl Case {
    fn new(of: attention_decode_case::Case, [q_norm, k_norm]: [bool; 2]) -> Case {
        let seqs = of.seqs.iter().map(|&(queries, keys)| (1, (keys + 1).saturating_sub(queries))).collect();
        let of = attention_decode_case::Case {
            seqs,
            group: of.group.min(8),
            format: KV_BF16,
            tree: false,
            wide_scales: false,
            ..of
        };
        Case { of, q_norm, k_norm }
    }

    /// Heads of a token's queries, keys and values.
    fn heads(&self) -> usize {
        self.of.q_heads() + 2 * self.of.kv_heads
    }
}

impl Property for AttentionDecodeAppend {
    const KERNEL: &'static str = "attention_decode_append";
    const EMULATED_CASES: u32 = 120;
    type Case = Case;

    fn cases() -> BoxedStrategy<Case> {
        let norms = select(vec![[false; 2], [true; 2], [true, false], [false, true]]);
        (attention_decode_case::cases(), norms).prop_map(|(of, norms)| Case::new(of, norms)).boxed()
    }

    fn corners() -> Vec<Case> {
        let plain = attention_decode_case::Case::plain();
        let wide = attention_decode_case::Case { head_dim: 128, ..plain.clone() };
        let one = |keys: &[usize]| keys.iter().map(|&keys| (1, keys)).collect::<Vec<_>>();
        // Contexts of one key; a page's first and last token; a tile's; a round's.
        let ends = one(&[1, 15, 16, 17, 32, 33, 64, 65, 127, 128, 129]);
        // The last key is a chunk's first, or alone in it; whole chunks.
        let chunks = one(&[512, 513, 768, 769, 1024, 1025, 1537]);
        let mut corners = Vec::new();
        for of in [plain, wide] {
            let with = |seqs: &Vec<(usize, usize)>, group, kv_heads, page_size| attention_decode_case::Case {
                seqs: seqs.clone(),
                group,
                kv_heads,
                page_size,
                ..of.clone()
            };
            corners.extend([
                Case::new(with(&ends, 4, 2, 16), [false; 2]),
                Case::new(with(&ends, 8, 1, 1), [true; 2]),
                Case::new(with(&chunks, 1, 2, 64), [true, false]),
                Case::new(with(&chunks, 3, 1, 7), [false, true]),
                // No key: the append all the same, and zeros.
                Case::new(with(&one(&[40, 0, 2]), 4, 2, 16), [true; 2]),
            ]);
            let window = with(&one(&[800, 20, 130, 1030]), 4, 2, 16);
            corners.push(Case::new(attention_decode_case::Case { window: 10, ..window }, [false; 2]));
            let far = with(&one(&[130]), 2, 1, 64);
            corners.push(Case::new(attention_decode_case::Case { first_page: 600_000, ..far }, [false; 2]));
        }
        corners
    }

    fn shaped(shape: &mut Shape) -> Option<Case> {
        let of = attention_decode_case::Case::shaped(shape);
        let odd = of.format != KV_BF16
            || of.tree
            || of.group > 8
            || of.seqs.iter().any(|&(queries, _)| queries != 1);
        if odd {
            shape
                .refuse("expected format=0, tree=0, queries=1 and a group of at most 8, found others".into());
        }
        let norms = ["q_norm", "k_norm"].map(|name| shape.flag(name, false, "whether such heads are normed"));
        Some(Case::new(of, norms))
    }

    fn check<D: Driver>(harness: &Harness<D>, case: &Case) -> Result<(), Failure> {
        let tokens = Tokens::of(case);
        let all: Vec<u32> = (0..case.of.seqs.len() as u32).rev().collect();
        let one = run(harness, case, &tokens, &all, Launches::One)?;
        let apart = run(harness, case, &tokens, &all, Launches::Apart)?;
        // The two launches have oracles of their own; this one judges what attention made of what the append left.
        let input = Input {
            q: bf16_values(&apart.q),
            k: bf16_values(&apart.k[case.page_bytes()..]),
            v: bf16_values(&apart.v[case.page_bytes()..]),
            ..case.of.input()
        };
        case.of.compare(&input, &bf16_values(&one.out))?;
        one.same_as(&apart, "two launches")?;
        one.same_as(&run(harness, case, &tokens, &all, Launches::OneBehindProjection)?, "behind projection")?;
        for seq in [0, case.of.seqs.len() - 1] {
            let alone = run(harness, case, &tokens, &[seq as u32], Launches::One)?;
            let row_bytes = case.of.row_elems() * 2;
            let own = seq * row_bytes..(seq + 1) * row_bytes;
            same_bits("a sequence alone", &one.out[own.clone()], &alone.out[own])?;
        }
        Ok(())
    }
}

impl Case {
    fn page_bytes(&self) -> usize {
        self.of.page_rows() * self.of.row_bytes()
    }
}

/// What projection left of the step's tokens, one a sequence, and where they go.
struct Tokens {
    input: Input,
    qkv: Vec<f32>,
    rotation: Rotation,
    slots: Vec<u32>,
}

impl Tokens {
    /// The newest keys and values of `input` are poison, which the append is to replace.
    fn of(case: &Case) -> Tokens {
        let (mut random, mut input) = (Random::new(case.of.seed ^ 0x5eed), case.of.input());
        let (head_dim, page_size) = (case.of.head_dim, case.of.page_size);
        let mut slots = Vec::new();
        for (seq, &(_, keys)) in case.of.seqs.iter().enumerate() {
            let Some(last) = keys.checked_sub(1) else {
                // In the dead page before the live ones.
                slots.push((case.of.first_page * page_size) as u32);
                continue;
            };
            let page = input.block_table[seq * input.block_table_stride + last / page_size] as usize;
            slots.push(((page + case.of.first_page + 1) * page_size + last % page_size) as u32);
            for head in 0..case.of.kv_heads {
                let row = (page * case.of.kv_heads + head) * page_size + last % page_size;
                let bytes = row * case.of.row_bytes()..(row + 1) * case.of.row_bytes();
                input.k_bytes[bytes.clone()].fill(POISON);
                input.v_bytes[bytes].fill(POISON);
            }
        }
        let normed = [case.q_norm, case.k_norm];
        Tokens {
            qkv: random.bf16s(slots.len() * case.heads() * head_dim, 1.5),
            rotation: Rotation::draw(&mut random, head_dim, RopeScaling::Default, normed, slots.len()),
            slots,
            input,
        }
    }
}

/// What a step leaves behind: attention's output, rotated queries, the cache from the dead page before the live ones on.
struct Left {
    out: Vec<u8>,
    q: Vec<u8>,
    k: Vec<u8>,
    v: Vec<u8>,
}

impl Left {
    fn same_as(&self, other: &Left, what: &str) -> Result<(), Failure> {
        let parts = |it: &Left| [it.out.clone(), it.q.clone(), it.k.clone(), it.v.clone()];
        for ((name, own), others) in ["out", "q", "k", "v"].into_iter().zip(parts(self)).zip(parts(other)) {
            same_bits(&format!("{what}: {name}"), &others, &own)?;
        }
        Ok(())
    }
}

/// The entry of the two launches, and the one that does both.
fn variants(case: &Case) -> Option<[&'static Variant; 2]> {
    let apart = attention_decode::select(KV_BF16, case.of.head_dim as u32, case.of.group as u32)?;
    Some([apart, attention_decode::appending(apart.spec.name)?])
}

/// What a run launches.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Launches {
    One,
    /// That, and a projection before it, which may not have ended when it begins.
    OneBehindProjection,
    Apart,
}

fn run<D: Driver>(
    harness: &Harness<D>,
    case: &Case,
    tokens: &Tokens,
    seq_ids: &[u32],
    launches: Launches,
) -> Result<Left, Failure> {
    let [apart, one] = variants(case).ok_or("no entry for the case")?;
    let (of, input) = (&case.of, &tokens.input);
    let mut arena = harness.arena();
    let rotation = tokens.rotation.params(&mut arena, 0..tokens.slots.len())?;
    let handles = [
        match launches {
            Launches::OneBehindProjection => arena.alloc("qkv", tokens.qkv.len() * 2)?,
            _ => arena.input_bf16("qkv", &tokens.qkv)?,
        },
        arena.input_u32("slots", &tokens.slots)?,
        arena.poisoned("q", input.q.len() * 2)?,
        plane(&mut arena, of, "k_cache", of.row_bytes(), &input.k_bytes)?,
        plane(&mut arena, of, "v_cache", of.row_bytes(), &input.v_bytes)?,
    ];
    let [qkv, _, q, k, v] = handles;
    let before = of.first_page * case.page_bytes();
    for handle in [k, v] {
        arena.write(handle, before, &vec![POISON; case.page_bytes()])?;
    }
    let [_, slots, q_out, k_cache, v_cache] = handles.map(|handle| arena.address(handle));
    let rope = abi::RopeAppend {
        qkv: arena.address(qkv),
        slots,
        q_out,
        k_cache,
        v_cache,
        q_heads: of.q_heads() as u32,
        kv_heads: of.kv_heads as u32,
        head_dim: of.head_dim as u32,
        page_size: of.page_size as u32,
        ..rotation
    };
    let (attention, blocks, out) = params(&mut arena, of, input, seq_ids, apart.rows)?;
    let attention = abi::AttentionDecode { q: q_out, k_cache, v_cache, ..attention };
    if launches == Launches::OneBehindProjection {
        let projected = arena.input_bf16("projected", &tokens.qkv)?;
        let ids = arena.input_u32("ids", &(0..tokens.slots.len() as u32).collect::<Vec<_>>())?;
        let projection = abi::GatherRows {
            table: arena.address(projected),
            ids: arena.address(ids),
            out: arena.address(qkv),
            rows: tokens.slots.len() as u32,
            cols: (case.heads() * of.head_dim) as u32,
        };
        arena.launch_ahead(&GATHER_ROWS, [projection.rows, 1, 1], &projection)?;
    }
    if launches != Launches::Apart {
        arena.launch(&one.spec, [blocks + 3, 1, 1], &abi::AttentionDecodeAppend { rope, attention })?;
    } else {
        let grid = rope_append::grid(rope.tokens, rope.q_heads, rope.kv_heads, rope.head_dim);
        arena.launch_ahead(&rope_append::BF16, grid, &rope)?;
        arena.launch(&apart.spec, [blocks + 3, 1, 1], &attention)?;
    }
    let bytes = case.page_bytes() + input.k_bytes.len();
    Ok(Left {
        out: arena.all_bytes(out)?,
        q: arena.all_bytes(q)?,
        k: arena.bytes(k, before, bytes)?,
        v: arena.bytes(v, before, bytes)?,
    })
}
