//! Tiles by the copy engine: a box of rows of one page at a time.

use super::{
    BOX_ROWS, Plan, STAGE_BYTES, TILE_BYTES,
    producer::Feed,
    work::{Tiles, Work},
};
use crate::{
    abi::AttentionDecodeSm90,
    ptx::{self, MapRef},
};

/// The launch's maps.
#[derive(Clone, Copy)]
pub(super) struct Maps {
    pub k: MapRef,
    pub v: MapRef,
}

/// The row of a box that is out of the tensor, all of it: zeros.
const NONE: u32 = BOX_ROWS.wrapping_neg();

/// A lane's box, its page still on its way: nothing is computed from it before it is needed.
#[derive(Clone, Copy)]
struct Entry {
    page: u32,
    /// Of its first row in the page; [`NONE`] for a box that no query sees.
    offset: u32,
}

/// Boxes of an item: 32 looked up at a time, one by each lane.
#[derive(Clone, Copy)]
pub(super) struct Boxes {
    here: Entry,
    /// The 32 after them.
    ahead: Entry,
    /// The tile that `here` begins with.
    first: u32,
    /// The next tile.
    tile: u32,
}

impl Feed for Maps {
    type Places = Boxes;

    #[inline(always)]
    unsafe fn look_up(&self, p: &AttentionDecodeSm90, plan: Plan, work: &Work) -> Boxes {
        let first = Tiles::new(&work.item, plan).first;
        // SAFETY: the caller's promise.
        let (here, ahead) =
            unsafe { (look_up(p, plan, work, first), look_up(p, plan, work, first + 32 / plan.boxes())) };
        Boxes { here, ahead, first, tile: first }
    }

    #[inline(always)]
    unsafe fn bring(
        &self,
        p: &AttentionDecodeSm90,
        plan: Plan,
        work: &Work,
        boxes: &mut Boxes,
        s_stage: u32,
        full: u32,
    ) {
        // SAFETY: the caller's promise; `full` expects the copies.
        unsafe {
            if boxes.tile - boxes.first == 32 / plan.boxes() {
                (boxes.first, boxes.here) = (boxes.tile, boxes.ahead);
                boxes.ahead = look_up(p, plan, work, boxes.tile + 32 / plan.boxes());
            }
            if ptx::lane() == 0 {
                ptx::mbarrier_arrive_expect_tx(full, STAGE_BYTES);
            }
            let Entry { page, offset } = boxes.here;
            let row = page.wrapping_mul(p.shared.kv_heads).wrapping_add(work.item.kv_head);
            let row =
                if offset == NONE { NONE } else { row.wrapping_mul(p.shared.page_size).wrapping_add(offset) };
            for part in 0..plan.boxes() {
                let row = ptx::shfl_idx(row, (boxes.tile - boxes.first) * plan.boxes() + part);
                if ptx::lane() == 0 {
                    let s_box = s_stage + part * (TILE_BYTES / plan.boxes());
                    let coords = [0, row as i32, 0];
                    ptx::bulk_tensor_load_3d(s_box, self.k, coords, full);
                    ptx::bulk_tensor_load_3d(s_box + TILE_BYTES, self.v, coords, full);
                }
            }
            boxes.tile += 1;
        }
    }
}

/// A lane's box of the 32 from tile `tile` on.
///
/// # Safety
/// The block table covers the item's keys.
#[inline(always)]
unsafe fn look_up(p: &AttentionDecodeSm90, plan: Plan, work: &Work, tile: u32) -> Entry {
    let (p, item) = (&p.shared, &work.item);
    let page_size = p.page_size.max(1);
    let key = item.chunk_start + tile * plan.tile_keys() + ptx::lane() * BOX_ROWS;
    // The pages of what no query sees may be dead.
    if key + BOX_ROWS <= item.begin || key >= item.end {
        return Entry { page: 0, offset: NONE };
    }
    let entry = u64::from(item.table_row) * u64::from(p.block_table_stride) + u64::from(key / page_size);
    // SAFETY: a box that is seen has a key below `kv_len`, whose page the table names.
    let page = unsafe { ptx::ld_global_nc_b32(p.block_table + entry * 4) };
    Entry { page, offset: key % page_size }
}
