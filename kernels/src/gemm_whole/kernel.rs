//! Device code of [`super::VARIANTS`].

use super::{
    HALF_WARPS, PHASE_BYTES, PHASE_MAIL_BYTES, PIECES, Plan, WARPS,
    finish::{End, SUMS, finish},
    rows::{Rows, norm_weights},
    weights::{Cursor, Part, Slots, next_weights},
};
use crate::{
    abi::{GemmChain, GemmWhole},
    element::{Bf16, F16},
    entry::kernel,
    gemm_few::{
        int4::Stored,
        int4_warp::{PAIRS, piece},
        layout,
        nibbles::{Nibbles, whole},
    },
    ptx::{self, param_address},
    tile::Ring,
};

/// Bytes of the columns of one.
const PAIR_COLUMNS: u32 = 64;
/// Pieces that each warp of a chain asks for into the L2 behind those that it has room for, before the launch waits for the one before. H200, 30 November:
/// 3 to 6 are worth 1% of a step, 16 slow attention down.
const AHEAD: u32 = 3;

/// The phases of a launch.
#[derive(Clone, Copy)]
enum Phases<'p> {
    One(&'p GemmWhole),
    /// They are copied to shared memory: an index into the parameters would have them copied to local memory.
    Chain(&'p GemmChain, Plan),
}

impl Phases<'_> {
    #[inline(always)]
    fn count(self) -> u32 {
        match self {
            Phases::One(_) => 1,
            Phases::Chain(p, _) => p.count,
        }
    }

    /// Where the rows go that phase `index` makes for the next one.
    #[inline(always)]
    fn mail(self, index: u32) -> u64 {
        match self {
            Phases::One(_) => 0,
            Phases::Chain(p, _) => p.mail + u64::from(index * PHASE_MAIL_BYTES),
        }
    }

    /// # Safety
    /// Of a chain, after [`copy_phases`] and a barrier.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    unsafe fn get(self, index: u32) -> GemmWhole {
        let plan = match self {
            Phases::One(p) => return *p,
            Phases::Chain(_, plan) => plan,
        };
        let at = ptx::shared_base() + plan.phases() + index * size_of::<GemmWhole>() as u32;
        // In as few loads as there can be: all warps begin a phase by them.
        let mut quads = [[0; 4]; size_of::<GemmWhole>() / 16];
        for quad in 0..quads.len() {
            // SAFETY: below `count`: copied.
            quads[quad] = unsafe { ptx::ld_shared_v4_b32(at + quad as u32 * 16) };
        }
        let word = |i: usize| quads[i / 4][i % 4];
        let address = |i: usize| u64::from(word(i * 2)) | u64::from(word(i * 2 + 1)) << 32;
        GemmWhole {
            a: address(0),
            norm_x: address(1),
            norm_weight: address(2),
            packed: address(3),
            bias: address(4),
            residual: address(5),
            out: address(6),
            next_packed: address(7),
            m: word(16),
            n: word(17),
            k: word(18),
            steps: word(19),
            splits: word(20),
            row_groups: word(21),
            piece_bytes: word(22),
            zeros: word(23),
            scales_f16: word(24),
            out_f32: word(25),
            silu: word(26),
            next_items: word(27),
            next_splits: word(28),
            next_steps: word(29),
            next_piece_bytes: word(30),
            next_ahead: word(31),
            norm_eps: f32::from_bits(word(32)),
            out_stride: word(33),
            reserved: [0; 2],
        }
    }
}

/// Copies a chain's phases to shared memory.
///
/// # Safety
/// All threads call it, `address` is that of the parameters, which begin with the phases.
#[inline(always)]
unsafe fn copy_phases(address: u64, plan: Plan) {
    let thread = ptx::tid_x();
    if thread < PHASE_BYTES / 4 {
        // SAFETY: the caller's promise: a word of the phases. Nobody writes parameters.
        unsafe {
            let word = *core::ptr::with_exposed_provenance::<u32>((address + u64::from(thread) * 4) as usize);
            ptx::st_shared_b32(ptx::shared_base() + plan.phases() + thread * 4, word);
        }
    }
}

/// All of a block.
///
/// # Safety
/// As the entries.
#[inline(always)]
unsafe fn run<E: Nibbles, const GROUPS: usize>(phases: Phases<'_>, plan: Plan) {
    let warp = ptx::tid_x() / 32;
    let slots = Slots::new(plan, warp);
    let count = phases.count();
    let (mut cursor, mut ring) = (Cursor::new(), Ring::new());
    // SAFETY: the whole block takes the same branches, and a warp those of its part. Slots are free before their first use.
    unsafe {
        if ptx::lane() == 0 {
            slots.init();
        }
        Part::note_all(plan, |index| phases.get(index), count);
        ptx::bar_sync();
        for slot in 0..plan.slots {
            cursor.load(count, slots, slot);
        }
        if let Phases::Chain(..) = phases {
            cursor.ask(AHEAD);
        }
        if count == 1 {
            ptx::grid_launch_dependents();
        }
        // What is read beside the weights, and where results go, may be the launch's before.
        ptx::grid_wait();
        let mut index = 0;
        while index < count {
            let mut p = phases.get(index);
            if let Phases::One(_) = phases {
                // Products by themselves have none, and entries without them are a quarter shorter.
                p.norm_x = 0;
            }
            let weights = norm_weights(&p);
            let is_last = index + 1 == count;
            let mut mail = None;
            if index > 0 {
                mail = Some(phases.mail(index - 1));
                // The last phase's rows and sums have been read.
                ptx::bar_sync();
            }
            let (rows, part) = (Rows::new(&p, plan), Part::of(plan, index, warp));
            let end = End::new(&p, part);
            // A block without a part of the phase doesn't wait for rows: nobody would wait until it has read them.
            if ptx::ctaid_x() * p.row_groups * layout::PIECE_ROWS < p.n {
                rows.bring(&p, mail, &weights);
            }
            ptx::bar_sync();
            if let Phases::Chain(chain, _) = phases
                && is_last
            {
                if index > 0 {
                    ptx::grid_launch_dependents();
                }
                leave(chain, |index| phases.get(index));
            }
            // The next launch's weights, once all of this one's are on their way; not while anyone waits for rows, who would wait for those weights
            // too.
            let ask = |cursor: &Cursor| {
                if is_last && cursor.is_at_end(count) && ptx::lane() == 0 {
                    next_weights(&p, plan);
                }
            };
            ask(&cursor);
            let refill = |cursor: &mut Cursor, slot| {
                let was_at_end = cursor.is_at_end(count);
                cursor.load(count, slots, slot);
                if !was_at_end {
                    ask(cursor);
                }
            };
            let mut work = Work { part, slots, rows, ring, cursor };
            let sums = match p.zeros {
                0 => multiply::<E, GROUPS, false>(&p, &mut work, refill),
                _ => multiply::<E, GROUPS, true>(&p, &mut work, refill),
            };
            (ring, cursor) = (work.ring, work.cursor);
            // Found again rather than kept in registers through the products.
            let (p, mail) = (phases.get(ptx::here(index)), if is_last { 0 } else { phases.mail(index) });
            finish::<E>(&p, plan, end, mail, sums);
            index += 1;
        }
    }
}

/// The warp that counts the block: the last, which often has no part.
const LEAVING: u32 = WARPS - 1;

/// Counts the block as one that has all that it waits for. After the last one the mail and the counter are as they were.
///
/// # Safety
/// All threads call it behind a barrier, at which the block's last rows were there.
#[inline(always)]
unsafe fn leave(p: &GemmChain, phase_of: impl Fn(u32) -> GemmWhole) {
    if ptx::tid_x() / 32 != LEAVING {
        return;
    }
    // SAFETY: one lane counts; what it finds is what the last addition of all released, and the vote hands it to the warp. Nobody reads the mail
    // any more.
    unsafe {
        let is_last = ptx::lane() == 0 && ptx::atom_add_acq_rel_gpu_u32(p.arrivals, 1) + 1 == ptx::nctaid_x();
        if ptx::ballot(is_last) == 0 {
            return;
        }
        for index in 1..p.count {
            let reader = phase_of(index);
            let bytes = reader.m * reader.k * 2;
            let mut at = ptx::lane() * 16;
            while at < bytes {
                ptx::st_global_v4_b32(p.mail + u64::from((index - 1) * PHASE_MAIL_BYTES + at), [0; 4]);
                at += 32 * 16;
            }
        }
        if ptx::lane() == 0 {
            ptx::st_global_b32(p.arrivals, 0);
        }
    }
}

/// A warp's work on a phase.
struct Work {
    part: Part,
    slots: Slots,
    rows: Rows,
    ring: Ring,
    cursor: Cursor,
}

/// The warp's sums of its part; `refill` makes use of a slot that has been read.
///
/// # Safety
/// The whole warp calls it, its ring begun and the rows of `a` there; `ZEROS` is whether there are zero points.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
unsafe fn multiply<E: Nibbles, const GROUPS: usize, const ZEROS: bool>(
    p: &GemmWhole,
    work: &mut Work,
    refill: impl Fn(&mut Cursor, u32),
) -> [f32; SUMS] {
    let stored = Stored { scales_f16: p.scales_f16 != 0, zeros: ZEROS };
    let (mut s_columns, is_there) = work.rows.operands(work.part.first);
    let mut total = [0.0f32; SUMS];
    // Tokens that aren't there stay zeros, and are never read.
    let (mut first, mut second) = ([[0; 4]; PAIRS], [[0; 4]; PAIRS]);
    let mut left = work.part.pieces;
    // SAFETY: the whole warp takes the same branches; a slot is read once it has landed, and filled again once all lanes have read it.
    unsafe {
        while left > 0 {
            let (slot, mut s_piece) = work.slots.landed(work.ring);
            let mut of_slot = left.min(PIECES);
            left -= of_slot;
            let mut next = |operands: &mut [[u32; 4]; PAIRS]| {
                let load = |_, pair: u32| {
                    let operand = &mut operands[pair as usize];
                    *operand = ptx::ld_shared_v4_b32_if(is_there, s_columns + pair * PAIR_COLUMNS, *operand);
                    *operand
                };
                piece::<E, SUMS, GROUPS>(stored, s_piece, load, &mut total);
                s_columns += work.rows.plan.step_bytes();
                s_piece += p.piece_bytes;
            };
            // Two at a time: the one's conversions fill what the other's products leave.
            while of_slot >= 2 {
                next(&mut first);
                next(&mut second);
                of_slot -= 2;
            }
            if of_slot != 0 {
                next(&mut first);
            }
            ptx::bar_warp_sync();
            refill(&mut work.cursor, slot);
            work.ring = work.ring.next();
        }
    }
    whole::<E, SUMS>(total)
}

macro_rules! entries {
    ($($one:ident, $half:ident, $chain:ident, $f16:ident, $f16_half:ident: $groups:literal,)*) => {
        $(
            kernel! {
                /// See [`GemmWhole`].
                pub fn $one(p: GemmWhole) {
                    run::<Bf16, $groups>(Phases::One(&p), Plan::four_bits($groups, WARPS));
                }
            }
            kernel! {
                /// See [`GemmWhole`].
                pub fn $half(p: GemmWhole) {
                    run::<Bf16, $groups>(Phases::One(&p), Plan::four_bits($groups, HALF_WARPS));
                }
            }
            kernel! {
                /// See [`GemmChain`].
                pub fn $chain(p: GemmChain) {
                    let plan = Plan::four_bits($groups, WARPS);
                    copy_phases(param_address!($chain, p), plan);
                    ptx::bar_sync();
                    run::<Bf16, $groups>(Phases::Chain(&p, plan), plan);
                }
            }
            kernel! {
                /// See [`GemmWhole`].
                pub fn $f16(p: GemmWhole) {
                    run::<F16, $groups>(Phases::One(&p), Plan::four_bits($groups, WARPS));
                }
            }
            kernel! {
                /// See [`GemmWhole`].
                pub fn $f16_half(p: GemmWhole) {
                    run::<F16, $groups>(Phases::One(&p), Plan::four_bits($groups, HALF_WARPS));
                }
            }
        )*
    };
}

entries! {
    gemm_whole_int4_g128, gemm_whole_half_int4_g128, gemm_whole_chain_int4_g128, gemm_whole_int4_g128_f16, gemm_whole_half_int4_g128_f16: 1,
    gemm_whole_int4_g64, gemm_whole_half_int4_g64, gemm_whole_chain_int4_g64, gemm_whole_int4_g64_f16, gemm_whole_half_int4_g64_f16: 2,
    gemm_whole_int4_g32, gemm_whole_half_int4_g32, gemm_whole_chain_int4_g32, gemm_whole_int4_g32_f16, gemm_whole_half_int4_g32_f16: 4,
}
