//! One product of bf16 weights: device code of [`super::BF16`].

use super::{
    Plan,
    finish::{End, SUMS, finish},
    rows::{HELD, Rows},
    weights::{Part, Slots},
};
use crate::{
    abi::GemmWholeBf16,
    element::{Bf16, Element},
    entry::kernel,
    gemm_few::{LINE_BYTES, layout},
    ptx::{self, MapRef, param_address},
    tile::Ring,
};

const PLAN: Plan = Plan::BF16;
/// Products along `k` of a step: 16 columns each.
const PRODUCTS: u32 = PLAN.step_k / 16;

/// The warp's lines that are copied next.
struct Feed {
    map: MapRef,
    slots: Slots,
    /// The first of the 16 rows.
    row: u32,
    /// In steps along `k`.
    next: u32,
    end: u32,
}

impl Feed {
    /// Starts the copy of the next step, if there is one.
    ///
    /// # Safety
    /// The whole warp calls it; its barriers are initialised, and the slot is free.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    unsafe fn load(&mut self, slot: u32) {
        if self.next < self.end && ptx::lane() == 0 {
            let coords = [(self.next * PLAN.step_k) as i32, self.row as i32];
            // SAFETY: the caller's promise; the box is as large as the slot. What is outside of the weights becomes zeros.
            unsafe { self.slots.load_box(slot, self.map, coords) };
        }
        self.next += 1;
    }
}

/// The warp's sums of its part: the steps of a split as [`gemm_few`](crate::gemm_few) adds them, one behind the other.
///
/// # Safety
/// The whole warp calls it, its first slots on their way and the rows of `a` there.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
unsafe fn multiply(part: Part, rows: Rows, mut feed: Feed) -> [f32; SUMS] {
    let (mut s_columns, is_there) = rows.operands(part.first);
    // The lane's place in the four matrices of a product: upper and lower rows of its first eight columns, then those of the others.
    let lane = ptx::here(ptx::tid_x()) % 32;
    let (row, half) = (lane % 16, lane / 16);
    let mut sums = [0.0f32; SUMS];
    // Tokens that aren't there stay zeros, and are never read.
    let mut a = [0; 4];
    let mut ring = Ring::new();
    for _ in 0..part.pieces {
        // SAFETY: the whole warp takes the same branches; a slot is read once it has landed, and filled again once all lanes have read it.
        unsafe {
            let (slot, s_slot) = feed.slots.landed(ring);
            for product in 0..PRODUCTS {
                let pair = product % 2;
                if pair == 0 {
                    a = ptx::ld_shared_v4_b32_if(is_there, s_columns + product * 32, a);
                }
                // Lines lie as the copy engine turned them.
                let chunk = (product * 2 + half) ^ (row % 8);
                let w = ptx::ldmatrix_x4(s_slot + row * LINE_BYTES + chunk * 16);
                let of_pair = if pair == 0 { [a[0], a[1]] } else { [a[2], a[3]] };
                sums = Bf16::mma(w, of_pair, sums);
            }
            ptx::bar_warp_sync();
            feed.load(slot);
        }
        s_columns += PLAN.step_bytes();
        ring = ring.next();
    }
    sums
}

/// All of a block.
///
/// # Safety
/// As the entry; the map is that of the parameters.
#[inline(always)]
unsafe fn run(p: &GemmWholeBf16, map: MapRef) {
    let mut p = p.product;
    // Products by themselves have no norm: none of its code either.
    p.norm_x = 0;
    let warp = ptx::tid_x() / 32;
    let (slots, part) = (Slots::new(PLAN, warp), Part::new(&p, warp));
    let row = part.group * layout::PIECE_ROWS;
    let mut feed = Feed { map, slots, row, next: part.first, end: part.first + part.pieces };
    // SAFETY: the whole block takes the same branches, and a warp those of its part. Slots are free before their first use.
    unsafe {
        if ptx::lane() == 0 {
            slots.init();
        }
        ptx::bar_warp_sync();
        for slot in 0..PLAN.slots {
            feed.load(slot);
        }
        ptx::grid_launch_dependents();
        // What is read beside the weights, and where results go, may be the launch's before.
        ptx::grid_wait();
        let (rows, end) = (Rows::new(&p, PLAN), End::new(&p, part));
        rows.bring(&p, None, &[[0.0; 8]; HELD as usize]);
        ptx::bar_sync();
        let sums = multiply(part, rows, feed);
        finish::<Bf16>(&p, PLAN, end, 0, sums);
    }
}

kernel! {
    /// See [`GemmWholeBf16`].
    pub fn gemm_whole_bf16(p: GemmWholeBf16) {
        run(&p, MapRef::new(param_address!(gemm_whole_bf16, p)));
    }
}
