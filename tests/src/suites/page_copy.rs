//! Whole pages of several tensors: copied within the cache, staged, brought back to other pages.

use proptest::{collection::vec, prelude::*, sample::select};
use tilewright_host::gpu::Driver;
use tilewright_kernels::{
    abi::{self, KernelSpec},
    page_copy::{self, BLOCK_BYTES, PAGE_COPY, PAGE_COPY_IN, PAGE_COPY_OUT},
};

use crate::{
    agreement::Scalar,
    harness::{Arena, Failure, Handle, Harness, POISON, same_bits},
    random::Random,
    runner::Property,
    shape::Shape,
};

pub struct PageCopy;

#[derive(Debug, Clone)]
pub struct Case {
    /// Bytes of a page of each tensor.
    page_bytes: Vec<usize>,
    /// Live pages; half of them at most are sources.
    pages: usize,
    /// Pages copied.
    copied: usize,
    /// Added to every page.
    first_page: usize,
    /// Bytes of a staged page that belong to no tensor, in sixteens.
    gap: usize,
    seed: u64,
}

impl Property for PageCopy {
    const KERNEL: &'static str = "page_copy";
    const EMULATED_CASES: u32 = 120;
    type Case = Case;

    fn cases() -> BoxedStrategy<Case> {
        let block = BLOCK_BYTES as usize;
        let sizes =
            vec![4, 12, 16, 20, 64, 2032, block - 16, block, block + 16, block + 4, 2 * block, 4 * block];
        let page_bytes = vec(select(sizes), 1..6);
        (page_bytes, 1..14usize, 0..8usize, 0..3usize, any::<u64>())
            .prop_map(|(page_bytes, pages, copied, gap, seed)| Case {
                page_bytes,
                pages,
                copied: copied.min(pages / 2),
                first_page: 0,
                gap,
                seed,
            })
            .boxed()
    }

    fn corners() -> Vec<Case> {
        let plain = Case {
            page_bytes: vec![4096, 4096, 64, 64],
            pages: 6,
            copied: 3,
            first_page: 0,
            gap: 0,
            seed: 1,
        };
        vec![
            plain.clone(),
            Case { copied: 0, ..plain.clone() },
            Case { page_bytes: vec![4], pages: 2, copied: 1, gap: 1, ..plain.clone() },
            // Page 300,000 of 16 KiB begins past byte 2^32.
            Case { page_bytes: vec![16_384, 20], first_page: 300_000, ..plain },
        ]
    }

    fn scalar(_: &Case, _: &str) -> Scalar {
        Scalar::U32
    }

    fn shaped(shape: &mut Shape) -> Option<Case> {
        let (tensors, bytes) = (
            shape.size("tensors", 2, 1, "tensors a page is of"),
            shape.size("page_bytes", 4096, 4, "bytes of a page of each, a multiple of 4"),
        );
        let copied = shape.size("copied", 3, 1, "pages copied");
        let fits = shape.fits(&[("pages", &[2, copied, tensors, bytes])]);
        Some(Case {
            page_bytes: vec![bytes; if fits { tensors } else { 0 }],
            pages: 2 * copied,
            copied,
            first_page: 0,
            gap: 0,
            seed: shape.inputs(),
        })
    }

    fn check<D: Driver>(harness: &Harness<D>, case: &Case) -> Result<(), Failure> {
        let plan = Plan::of(case);
        let within = run_within(harness, case, &plan)?;
        for (tensor, (actual, before)) in within.iter().zip(&plan.tensors).enumerate() {
            let mut expected = before.clone();
            for (&from, &to) in plan.sources.iter().zip(&plan.destinations) {
                copy_page(&mut expected, case.page_bytes[tensor], from, to);
            }
            same_bits(&format!("page_copy: tensor {tensor}"), &expected, actual)?;
        }
        // Out, and back to the destinations: the same as a copy within.
        let (staged, back) = run_staged(harness, case, &plan)?;
        same_bits("page_copy_out", &plan.staged(case), &staged)?;
        for (tensor, (actual, expected)) in back.iter().zip(&within).enumerate() {
            same_bits(&format!("page_copy_in: tensor {tensor}"), expected, actual)?;
        }
        Ok(())
    }
}

fn copy_page(tensor: &mut [u8], page_bytes: usize, from: usize, to: usize) {
    let page = tensor[from * page_bytes..(from + 1) * page_bytes].to_vec();
    tensor[to * page_bytes..(to + 1) * page_bytes].copy_from_slice(&page);
}

/// The live pages and what is done with them.
struct Plan {
    /// Random bytes, `[pages, page_bytes]` each.
    tensors: Vec<Vec<u8>>,
    sources: Vec<usize>,
    destinations: Vec<usize>,
    /// Of each tensor, in a staged page. The tensors stand in reverse, the gap before each.
    stage_offsets: Vec<usize>,
    record_bytes: usize,
}

impl Plan {
    fn of(case: &Case) -> Plan {
        let mut random = Random::new(case.seed);
        let tensors = case.page_bytes.iter().map(|&bytes| {
            let words = (0..case.pages * bytes / 4).map(|_| random.bits() as u32);
            words.flat_map(u32::to_le_bytes).collect()
        });
        let tensors = tensors.collect();
        let order: Vec<usize> = random.shuffled(case.pages).into_iter().map(|page| page as usize).collect();
        let (mut stage_offsets, mut end) = (vec![0; case.page_bytes.len()], 0);
        for (offset, bytes) in stage_offsets.iter_mut().zip(&case.page_bytes).rev() {
            *offset = end + case.gap * 16;
            end = (*offset + bytes).next_multiple_of(16);
        }
        Plan {
            tensors,
            sources: order[..case.copied].to_vec(),
            destinations: order[case.copied..2 * case.copied].to_vec(),
            stage_offsets,
            record_bytes: end,
        }
    }

    /// What staging the sources leaves of poison.
    fn staged(&self, case: &Case) -> Vec<u8> {
        let mut staged = vec![POISON; self.sources.len() * self.record_bytes];
        for (record, &page) in staged.chunks_mut(self.record_bytes).zip(&self.sources) {
            for (tensor, &bytes) in case.page_bytes.iter().enumerate() {
                let from = &self.tensors[tensor][page * bytes..(page + 1) * bytes];
                record[self.stage_offsets[tensor]..][..bytes].copy_from_slice(from);
            }
        }
        staged
    }
}

/// The device's side of a cache.
struct Cache {
    tensors: Vec<Handle>,
    table: Handle,
}

impl Cache {
    fn upload<D: Driver>(arena: &mut Arena<'_, D>, case: &Case, plan: &Plan) -> Result<Cache, Failure> {
        let (mut tensors, mut table) = (Vec::new(), Vec::new());
        for ((bytes, live), &offset) in case.page_bytes.iter().zip(&plan.tensors).zip(&plan.stage_offsets) {
            let handle = arena.alloc("a tensor of the cache", (case.first_page + case.pages) * bytes)?;
            arena.write(handle, case.first_page * bytes, live)?;
            let (address, page_bytes, stage_offset) = (arena.address(handle), *bytes as u64, offset as u64);
            table.push(abi::PageTensor { address, page_bytes, stage_offset });
            tensors.push(handle);
        }
        let table = arena.input("tensors", bytemuck::cast_slice(&table))?;
        Ok(Cache { tensors, table })
    }

    fn live<D: Driver>(&self, arena: &Arena<'_, D>, case: &Case) -> Result<Vec<Vec<u8>>, Failure> {
        let tensors = self.tensors.iter().zip(&case.page_bytes);
        tensors
            .map(|(&handle, bytes)| arena.bytes(handle, case.first_page * bytes, case.pages * bytes))
            .collect()
    }

    fn launch<D: Driver>(
        &self,
        arena: &mut Arena<'_, D>,
        spec: &'static KernelSpec,
        case: &Case,
        pages: &[usize],
        (staging, record_bytes): (u64, usize),
    ) -> Result<(), Failure> {
        let pages: Vec<u32> = pages.iter().map(|&page| (case.first_page + page) as u32).collect();
        let list = arena.input_u32("pages", &pages)?;
        let largest = case.page_bytes.iter().copied().max().unwrap_or(0) as u64;
        let params = abi::PageCopy {
            tensors: arena.address(self.table),
            pages: arena.address(list),
            staging,
            record_bytes: record_bytes as u64,
            blocks_per_page: page_copy::blocks_per_page(largest),
            reserved: 0,
        };
        let tensors = case.page_bytes.len() as u32;
        let grid = page_copy::grid(largest, tensors, case.copied as u32).ok_or("the grid is too large")?;
        if grid.contains(&0) { Ok(()) } else { arena.launch(spec, grid, &params) }
    }
}

fn run_within<D: Driver>(harness: &Harness<D>, case: &Case, plan: &Plan) -> Result<Vec<Vec<u8>>, Failure> {
    let mut arena = harness.arena();
    let cache = Cache::upload(&mut arena, case, plan)?;
    let pairs: Vec<usize> = plan.sources.iter().zip(&plan.destinations).flat_map(|(&s, &d)| [s, d]).collect();
    cache.launch(&mut arena, &PAGE_COPY, case, &pairs, (0, 0))?;
    cache.live(&arena, case)
}

/// What staging left, and the cache after the staged pages went to the destinations.
fn run_staged<D: Driver>(
    harness: &Harness<D>,
    case: &Case,
    plan: &Plan,
) -> Result<(Vec<u8>, Vec<Vec<u8>>), Failure> {
    let mut arena = harness.arena();
    let cache = Cache::upload(&mut arena, case, plan)?;
    let staging = arena.poisoned("staging", case.copied * plan.record_bytes)?;
    let at = (arena.address(staging), plan.record_bytes);
    cache.launch(&mut arena, &PAGE_COPY_OUT, case, &plan.sources, at)?;
    for (tensor, (actual, before)) in cache.live(&arena, case)?.iter().zip(&plan.tensors).enumerate() {
        same_bits(&format!("page_copy_out: tensor {tensor} of the cache"), before, actual)?;
    }
    let staged = arena.all_bytes(staging)?;
    cache.launch(&mut arena, &PAGE_COPY_IN, case, &plan.destinations, at)?;
    same_bits("page_copy_in: the staging buffer", &staged, &arena.all_bytes(staging)?)?;
    Ok((staged, cache.live(&arena, case)?))
}
