//! Products that follow each other, and the norms between them, as one launch: see [`gemm_whole`].
//!
//! Launches recorded for a graph alone: of others nobody knows what follows. What is computed stays the same, bit for bit.

use bytemuck::{Pod, bytes_of, try_pod_read_unaligned};
use tilewright_kernels::{
    abi::{GemmChain, GemmWhole, KernelSpec, RmsNorm},
    gemm_whole::{
        self, MOST_PHASES,
        launch::{as_phase, blocks, follows},
    },
    rms_norm::RMS_NORM,
};

use super::{Driver, GpuDevice, Launch, scratch, storage::WORD};
use crate::Result;

/// What a launch can be to a chain.
enum Part {
    /// Of rows as they are, into others.
    Norm(RmsNorm),
    /// As a phase of its chain's entry.
    Product(&'static KernelSpec, GemmWhole),
    Other,
}

fn params<P: Pod>(launch: &Launch) -> Option<P> {
    try_pod_read_unaligned(&launch.params).ok()
}

impl Part {
    fn of(launch: &Launch, multiprocessors: u32) -> Part {
        let name = launch.spec.name;
        if name == RMS_NORM.name {
            let norm = params::<RmsNorm>(launch).filter(|norm| norm.residual == 0 && norm.out != norm.x);
            return norm.map_or(Part::Other, Part::Norm);
        }
        let product = params(launch).and_then(|product| as_phase(name, product, multiprocessors));
        product.map_or(Part::Other, |(chain, product)| Part::Product(chain, product))
    }
}

/// Several launches as one.
struct Chain {
    spec: &'static KernelSpec,
    params: GemmChain,
    blocks: u32,
    /// How many launches.
    taken: usize,
}

/// The longest chain that starts with the first of some launches, of products whose blocks run at the same time.
fn longest(launches: &[Launch], most_blocks: u32) -> Option<Chain> {
    let mut params = GemmChain::default();
    let (mut kind, mut taken, mut most) = (None::<&'static KernelSpec>, 0, 0);
    while (params.count as usize) < MOST_PHASES {
        let mut rest = launches[taken..].iter();
        let mut part = || rest.next().map_or(Part::Other, |launch| Part::of(launch, most_blocks));
        let (norm, next) = match part() {
            Part::Norm(norm) => (Some(norm), part()),
            other => (None, other),
        };
        let Part::Product(spec, mut product) = next else { break };
        let blocks = blocks(product.n, product.row_groups);
        if let Some(norm) = norm {
            if norm.out != product.a || norm.rows != product.m || norm.cols != product.k {
                break;
            }
            (product.norm_x, product.norm_weight, product.norm_eps) = (norm.x, norm.weight, norm.eps);
        }
        let is_of_kind = kind.is_none_or(|kind| kind.name == spec.name);
        let before = &params.phases[..params.count as usize];
        if blocks > most_blocks || !is_of_kind || !follows(before, &product) {
            break;
        }
        params.phases[params.count as usize] = product;
        params.count += 1;
        (kind, most) = (Some(spec), blocks.max(most));
        taken += 1 + usize::from(norm.is_some());
    }
    kind.filter(|_| taken > 1).map(|spec| Chain { spec, params, blocks: most, taken })
}

impl<Dr: Driver> GpuDevice<Dr> {
    /// Launches that do the same, with chains wherever some of these make one.
    pub(super) fn chained(&self, launches: Vec<Launch>) -> Result<Vec<Launch>> {
        let most_blocks = self.driver.info().multiprocessors;
        let mut chained = Vec::with_capacity(launches.len());
        let mut rest = &launches[..];
        while let [first, others @ ..] = rest {
            let Some(Chain { spec, params, blocks, taken }) = longest(rest, most_blocks) else {
                chained.push(first.clone());
                rest = others;
                continue;
            };
            let bytes = gemm_whole::MAIL_BYTES as usize + WORD;
            let mail = scratch::lock(&self.mail).at_least(self, bytes, true)?;
            let arrivals = mail + u64::from(gemm_whole::MAIL_BYTES);
            let params = bytes_of(&GemmChain { arrivals, mail, ..params }).to_vec();
            chained.push(Launch { spec, grid: [blocks, 1, 1], params });
            rest = &rest[taken..];
        }
        Ok(chained)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch<P: Pod>(name: &str, blocks: u32, params: &P) -> Launch {
        let specs = gemm_whole::VARIANTS.iter().map(|variant| &variant.one);
        let spec = specs.chain([&RMS_NORM]).find(|spec| spec.name == name).expect("an entry");
        Launch { spec, grid: [blocks, 1, 1], params: bytes_of(params).to_vec() }
    }

    /// Of four groups of 16 rows.
    fn in_blocks(product: GemmWhole, blocks: u32) -> GemmWhole {
        GemmWhole { row_groups: 4 / blocks, ..product }
    }

    #[test]
    fn half_blocks_are_a_phase_in_whole_ones() {
        let of = |name: &str, n: u32| {
            let product = GemmWhole { row_groups: 1, m: 1, n, k: 4096, splits: 8, ..GemmWhole::default() };
            as_phase(name, product, 132).map(|(chain, product)| (chain.name, product.row_groups))
        };
        let chain = |row_groups| Some(("gemm_whole_chain_int4_g128", row_groups));
        assert_eq!(of("gemm_whole_half_int4_g128", 4096), chain(2));
        assert_eq!(of("gemm_whole_int4_g128", 4096), chain(1));
        // More than one round of whole blocks; activations of which there is no chain; another kernel.
        assert_eq!(of("gemm_whole_half_int4_g128", 4352), None);
        assert_eq!(of("gemm_whole_half_int4_g128_f16", 4096), None);
        assert_eq!(of("gemm_few_int4_g128_8", 4096), None);
    }

    #[test]
    fn chains_end_where_one_launch_would_do_something_else() {
        let product = GemmWhole {
            a: 7,
            out: 3,
            row_groups: 1,
            m: 1,
            n: 64,
            k: 64,
            out_stride: 64,
            ..GemmWhole::default()
        };
        let g128 = |blocks| launch("gemm_whole_int4_g128", blocks, &in_blocks(product, blocks));
        let g64 = launch("gemm_whole_int4_g64", 4, &product);
        let in_two = in_blocks(product, 2);
        let first = &launch("gemm_whole_int4_g128", 2, &GemmWhole { a: 9, ..in_two });
        let straight = &launch("gemm_whole_int4_g128", 2, &GemmWhole { a: 3, ..in_two });
        let norm = |params: RmsNorm| launch("rms_norm", 1, &params);
        let fitting = RmsNorm { x: 3, out: 7, rows: 1, cols: 64, ..RmsNorm::default() };
        let found = |launches: &[&Launch]| {
            let launches: Vec<Launch> = launches.iter().map(|&launch| launch.clone()).collect();
            longest(&launches, 4).map(|chain| {
                let phases = &chain.params.phases[..chain.params.count as usize];
                let norms = phases.iter().map(|phase| phase.norm_x).collect::<Vec<_>>();
                (chain.spec.name, norms, chain.blocks, chain.taken)
            })
        };
        let (few, more) = (&g128(2), &g128(4));
        let many = &launch("gemm_whole_int4_g128", 5, &GemmWhole { a: 3, n: 80, ..product });
        let of = |norms, blocks, taken| Some(("gemm_whole_chain_int4_g128", norms, blocks, taken));
        let between = &norm(fitting);
        assert_eq!(found(&[first, between, more, straight, between, few]), of(vec![0, 3, 0, 3], 4, 6));
        assert_eq!(found(&[first, straight, between, &g64]), of(vec![0, 0], 2, 2));
        assert_eq!(found(&[first, straight, many]), of(vec![0, 0], 2, 2));
        assert_eq!(found(&[between, few]), of(vec![3], 2, 2));
        assert_eq!(found(&[first, straight, straight, straight, straight]), of(vec![0; 4], 2, 4));
        let others = [
            RmsNorm { residual: 1, ..fitting },
            RmsNorm { out: 3, ..fitting },
            RmsNorm { out: 8, ..fitting },
            RmsNorm { rows: 2, ..fitting },
            RmsNorm { cols: 128, ..fitting },
        ];
        for other in others.map(norm) {
            assert_eq!(found(&[first, straight, &other, few]), of(vec![0, 0], 2, 2));
        }
        for nothing in [
            &[few, between] as &[_],
            &[between, between, few],
            &[many, few],
            &[first, few],
            &[few, between, few],
            &[few],
            &[],
        ] {
            assert!(found(nothing).is_none());
        }
    }
}
