//! Products that follow each other: while one ends and the next begins, the memory would have nothing to do, so that each brings the first
//! weights of the next to the L2 once its own are on their way.
//!
//! Launches recorded for a graph alone: of others nobody knows what follows. What is computed stays the same.

use bytemuck::Pod;
use tilewright_kernels::{
    abi::{GemmChain, GemmFew, GemmWhole},
    gemm_few::{
        VARIANTS, Weights,
        launch::{Follow, Follower},
    },
    gemm_whole,
};

use super::Launch;

/// Bytes of the next product's weights, about: a third of the L2 of the devices of this class. H200, 2026-11-25, 8B shape, 4 bits, one sequence,
/// tokens a second: 450 without, 447 with 8 MiB, 457 with 16, 452 with 28.
const AHEAD_BYTES: u32 = 16 << 20;

/// Tells each product of few rows by 4-bit weights which of its kind comes after it.
pub(super) fn bring_next_weights(launches: &mut [Launch]) {
    let mut next: Option<Follower> = None;
    for launch in launches.iter_mut().rev() {
        let name = launch.spec.name;
        if gemm_whole::VARIANTS.iter().any(|variant| variant.names().contains(&name)) {
            next = followed_by::<GemmWhole>(launch, next);
        } else if gemm_whole::CHAINS.iter().any(|chain| chain.name == name) {
            next = followed_by::<GemmChain>(launch, next);
        } else if name == gemm_whole::BF16.name {
            next = None;
        } else if let Some(variant) = VARIANTS.iter().find(|variant| variant.spec.name == name) {
            next = match variant.weights {
                Weights::Int4 { .. } => followed_by::<GemmFew>(launch, next),
                _ => None,
            };
        }
    }
}

/// Tells a launch what follows it; what it is to the one before.
fn followed_by<P: Pod + Follow>(launch: &mut Launch, next: Option<Follower>) -> Option<Follower>
where
    for<'p> Follower: From<&'p P>,
{
    let mut params = bytemuck::try_pod_read_unaligned::<P>(&launch.params).ok()?;
    let own = Follower::from(&params);
    if let Some(next) = &next {
        params.follow(next, AHEAD_BYTES);
        launch.params = bytemuck::bytes_of(&params).to_vec();
    }
    Some(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_know_what_follows_them() {
        let variant = |name: &str| VARIANTS.iter().find(|it| it.spec.name == name).expect("an entry");
        let launch = |name, packed| {
            let piece_bytes = if packed == 0 { 0 } else { 16_896 };
            let params = GemmFew { packed, n: 256, steps: 2, splits: 1, piece_bytes, ..GemmFew::default() };
            let params = bytemuck::bytes_of(&params).to_vec();
            Launch { spec: &variant(name).spec, grid: [1; 3], params }
        };
        let norm = Launch {
            spec: &tilewright_kernels::rms_norm::RMS_NORM,
            params: vec![1],
            ..launch("gemm_few_bf16_8", 0)
        };
        let int4 = |packed| launch("gemm_few_int4_g128_8", packed);
        let whole = Launch { spec: &gemm_whole::BF16, params: vec![1], ..norm.clone() };
        let mut launches = [
            int4(1),
            norm.clone(),
            int4(2),
            launch("gemm_few_bf16_8", 0),
            int4(3),
            whole,
            int4(4),
            int4(5),
            norm.clone(),
        ];
        bring_next_weights(&mut launches);
        let followers = launches.each_ref().map(|launch| {
            bytemuck::try_pod_read_unaligned::<GemmFew>(&launch.params).map(|params| params.next_packed).ok()
        });
        assert_eq!(followers, [Some(2), None, Some(0), Some(0), Some(0), None, Some(5), Some(0), None]);
        assert_eq!(launches[1], norm);
    }
}
