//! Rotary embedding, the append of keys and values, and decode attention as one launch: see [`attention_decode`].
//!
//! Launches recorded for a graph alone. Attention then asks for keys of earlier steps before the launch before it has ended: a step's
//! metadata comes by a copy, behind all that earlier steps have written, and within a step nothing else writes the layer's keys. What is
//! computed stays the same, bit for bit, and so does what is left in memory.

use bytemuck::{bytes_of, try_pod_read_unaligned};
use tilewright_kernels::{
    abi::{AttentionDecode, AttentionDecodeAppend, RopeAppend},
    attention_decode, rope_append,
};

use super::Launch;

/// Launches that do the same, with one in place of each pair of an append and the attention that follows it, where each sequence has one query.
pub(super) fn appended(launches: Vec<Launch>) -> Vec<Launch> {
    let mut appended: Vec<Launch> = Vec::with_capacity(launches.len());
    for launch in launches {
        let one = appended.last().and_then(|last| one(last, &launch));
        match (one, appended.last_mut()) {
            (Some(one), Some(last)) => *last = one,
            _ => appended.push(launch),
        }
    }
    appended
}

/// Both launches as one, if they are such a pair.
fn one(append: &Launch, attention: &Launch) -> Option<Launch> {
    if append.spec.name != rope_append::BF16.name {
        return None;
    }
    let variant = attention_decode::appending(attention.spec.name)?;
    let rope: RopeAppend = try_pod_read_unaligned(&append.params).ok()?;
    let decode: AttentionDecode = try_pod_read_unaligned(&attention.params).ok()?;
    let of_rope = [rope.q_out, rope.k_cache, rope.v_cache];
    // Every token of a recorded step is generated and every sequence has one: as many tokens as sequences are one each.
    let fits = of_rope == [decode.q, decode.k_cache, decode.v_cache]
        && [rope.tokens, rope.q_heads, rope.kv_heads, rope.page_size]
            == [decode.seqs, decode.q_heads, decode.kv_heads, decode.page_size]
        && rope.head_dim == variant.head_dim
        && decode.row_tiles == 1
        && decode.tree_masks == 0;
    let params = AttentionDecodeAppend { rope, attention: decode };
    let spec = variant.spec_for(attention.spec.spreads);
    fits.then(|| Launch { spec, grid: attention.grid, params: bytes_of(&params).to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    use bytemuck::Pod;
    use tilewright_kernels::{KERNELS, abi::KernelSpec};

    fn launch<P: Pod>(name: &str, blocks: u32, params: &P) -> Launch {
        let spec: &'static KernelSpec = KERNELS.iter().find(|spec| spec.name == name).expect("an entry");
        Launch { spec, grid: [blocks, 1, 1], params: bytes_of(params).to_vec() }
    }

    #[test]
    fn pairs_that_do_the_same_are_one() {
        let rope = RopeAppend {
            q_out: 1,
            k_cache: 2,
            v_cache: 3,
            tokens: 4,
            q_heads: 8,
            kv_heads: 2,
            head_dim: 128,
            page_size: 16,
            ..RopeAppend::default()
        };
        let decode = AttentionDecode {
            q: 1,
            k_cache: 2,
            v_cache: 3,
            seqs: 4,
            q_heads: 8,
            kv_heads: 2,
            page_size: 16,
            row_tiles: 1,
            ..AttentionDecode::default()
        };
        let append = |params| launch("rope_append", 1, &params);
        let attend = |params| launch("attention_decode_bf16_hd128_rows8", 9, &params);
        let names = |launches: &[Launch]| {
            appended(launches.to_vec()).iter().map(|it| it.spec.name).collect::<Vec<_>>()
        };
        let [rope_launch, attention] = [append(rope), attend(decode)];
        let ones =
            appended(vec![attention.clone(), rope_launch.clone(), attention.clone(), rope_launch.clone()]);
        assert_eq!(
            ones.iter().map(|it| (it.spec.name, it.grid[0])).collect::<Vec<_>>(),
            [
                ("attention_decode_bf16_hd128_rows8", 9),
                ("attention_decode_append_hd128", 9),
                ("rope_append", 1)
            ]
        );
        let params: AttentionDecodeAppend = try_pod_read_unaligned(&ones[1].params).expect("its parameters");
        assert_eq!(bytes_of(&params), bytes_of(&AttentionDecodeAppend { rope, attention: decode }));
        let others = [
            [append(RopeAppend { q_out: 7, ..rope }), attention.clone()],
            [append(RopeAppend { k_cache: 7, ..rope }), attention.clone()],
            [append(RopeAppend { v_cache: 7, ..rope }), attention.clone()],
            [append(RopeAppend { tokens: 5, ..rope }), attention.clone()],
            [append(RopeAppend { head_dim: 64, ..rope }), attention.clone()],
            [rope_launch.clone(), attend(AttentionDecode { row_tiles: 2, ..decode })],
            [rope_launch.clone(), attend(AttentionDecode { tree_masks: 9, ..decode })],
            [rope_launch.clone(), launch("attention_decode_bf16_hd128_rows16", 9, &decode)],
            [rope_launch, launch("attention_decode_int8_hd128_rows8", 9, &decode)],
            [launch("rope_append_int8", 1, &rope), attention],
        ];
        for pair in others {
            assert_eq!(names(&pair), pair.each_ref().map(|it| it.spec.name));
        }
    }
}
