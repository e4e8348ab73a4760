//! Shared memory as a means to place blocks, for [`KernelSpec::spreads`].

use tilewright_kernels::abi::KernelSpec;

/// Shared memory of a multiprocessor of compute capability 9.0, in bytes.
const OF_MULTIPROCESSOR: u32 = 228 << 10;
/// What each block takes of it beside its own.
const OF_BLOCK: u32 = 1 << 10;
/// What shared memory is given in.
const UNIT: u32 = 128;

/// What a launch of `spec` is given: of one that spreads so much that a multiprocessor has room for an even share of the blocks and no more. One block a
/// multiprocessor is left alone: to spread those has gained nothing, and given more they have no room beside a block of the launch before.
pub(super) fn shared_bytes(spec: &KernelSpec, grid: [u32; 3], multiprocessors: u32) -> u32 {
    let blocks = grid.iter().try_fold(1u32, |product, &side| product.checked_mul(side));
    match blocks.map(|blocks| blocks.div_ceil(multiprocessors.max(1))) {
        Some(share) if spec.spreads && (2..spec.min_blocks).contains(&share) => {
            without_room_for(spec, share + 1)
        }
        _ => spec.shared_bytes,
    }
}

/// The most that [`shared_bytes`] answers, whether this launch of the entry spreads or others do.
pub(super) fn most_shared_bytes(spec: &KernelSpec) -> u32 {
    if spec.min_blocks > 2 { without_room_for(spec, 3) } else { spec.shared_bytes }
}

/// The least of which a multiprocessor can't give `blocks` blocks theirs, or what they use if that is more.
fn without_room_for(spec: &KernelSpec, blocks: u32) -> u32 {
    let each = OF_MULTIPROCESSOR / blocks - OF_BLOCK;
    ((each / UNIT + 1) * UNIT).max(spec.shared_bytes)
}

#[cfg(test)]
mod tests {
    use tilewright_kernels::attention_decode::VARIANTS;

    use super::*;

    #[test]
    fn a_multiprocessor_takes_its_share() {
        let variant = VARIANTS.iter().find(|variant| variant.spec.min_blocks == 3);
        let variant = variant.expect("an entry of three blocks a multiprocessor");
        let spec = variant.spec_for(true);
        let given = |blocks| shared_bytes(spec, [blocks, 1, 1], 132);
        let room = |bytes: u32| OF_MULTIPROCESSOR / (bytes + OF_BLOCK);
        assert_eq!(room(given(256)), 2);
        assert_eq!([given(133), given(264)], [given(256); 2]);
        for blocks in [1, 132, 265, 396, 4096] {
            assert_eq!(given(blocks), spec.shared_bytes, "{blocks} blocks");
        }
        assert_eq!(most_shared_bytes(spec), given(256));
        assert_eq!(shared_bytes(spec, [u32::MAX, 2, 1], 132), spec.shared_bytes);
        let short = variant.spec_for(false);
        assert_eq!(shared_bytes(short, [256, 1, 1], 132), spec.shared_bytes);
        assert_eq!(most_shared_bytes(short), given(256));
    }
}
