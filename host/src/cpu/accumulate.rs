//! Sums of products in registers: the inner loop of every product on a CPU.
use super::isa::Isa;

/// An element that widens to f32 sixteen at a time.
pub(super) trait Element: Copy {
    /// # Safety
    /// Sixteen elements are readable at `at`.
    unsafe fn load<I: Isa>(isa: I, at: *const Self) -> I::V;
}

#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Bf16(u16);
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct F16(u16);

impl Element for Bf16 {
    #[inline(always)]
    unsafe fn load<I: Isa>(isa: I, at: *const Self) -> I::V {
        // SAFETY: the caller's.
        unsafe { isa.load_bf16(at.cast()) }
    }
}
impl Element for F16 {
    #[inline(always)]
    unsafe fn load<I: Isa>(isa: I, at: *const Self) -> I::V {
        // SAFETY: the caller's.
        unsafe { isa.load_f16(at.cast()) }
    }
}
impl Element for f32 {
    #[inline(always)]
    unsafe fn load<I: Isa>(isa: I, at: *const Self) -> I::V {
        // SAFETY: the caller's.
        unsafe { isa.load(at) }
    }
}

/// With more rows than this the optimiser would derive their addresses from the first's on every turn of the loop, which costs as
/// many instructions as the loads; it is kept from seeing how they hang together.
const OPAQUE_ROWS: usize = 3;
/// Products of each sum a turn of the loop: the 64 of attention's tiles are then few enough turns for the end to be foreseen.
const UNROLLED: usize = 4;

/// `ROWS` rows `stride` apart, of a stride that only the running program knows.
///
/// # Safety
/// The rows are there.
#[inline(always)]
pub(super) unsafe fn strided<const ROWS: usize>(a: *const f32, stride: usize) -> [*const f32; ROWS] {
    // SAFETY: the caller's.
    let rows = std::array::from_fn(|r| unsafe { a.add(r * stride) });
    if ROWS > OPAQUE_ROWS { std::hint::black_box(rows) } else { rows }
}

/// Adds `rows[r][i * A_STEP] * b[p][i][0..16]` to `acc[r][p]` for `i` in `0..k`, in that order.
///
/// # Safety
/// The rows have `k` elements, `A_STEP` apart. `b` has `PANELS` panels, `b_panel` apart, of `k` vectors, `b_step` apart.
#[inline(always)]
pub(super) unsafe fn accumulate<
    I: Isa,
    E: Element,
    const ROWS: usize,
    const PANELS: usize,
    const A_STEP: usize,
>(
    isa: I,
    mut acc: [[I::V; PANELS]; ROWS],
    rows: [*const f32; ROWS],
    b: *const E,
    b_step: usize,
    b_panel: usize,
    k: usize,
) -> [[I::V; PANELS]; ROWS] {
    let mut i = 0;
    while i + UNROLLED <= k {
        for step in 0..UNROLLED {
            // SAFETY: `i + step < k`.
            unsafe {
                let column = b.add((i + step) * b_step);
                add_products(isa, &mut acc, rows, column, b_panel, (i + step) * A_STEP);
            }
        }
        i += UNROLLED;
    }
    while i < k {
        // SAFETY: `i < k`.
        unsafe { add_products(isa, &mut acc, rows, b.add(i * b_step), b_panel, i * A_STEP) };
        i += 1;
    }
    acc
}

/// Adds `rows[r][at] * b[p][0..16]` to `acc[r][p]`.
///
/// # Safety
/// The rows have an element `at`. `b` has a vector of `PANELS` panels, `b_panel` apart.
#[inline(always)]
// Iterators' helpers might stay calls, in the innermost of all loops.
#[allow(clippy::needless_range_loop)]
unsafe fn add_products<I: Isa, E: Element, const ROWS: usize, const PANELS: usize>(
    isa: I,
    acc: &mut [[I::V; PANELS]; ROWS],
    rows: [*const f32; ROWS],
    b: *const E,
    b_panel: usize,
    at: usize,
) {
    let mut columns = [isa.zero(); PANELS];
    for p in 0..PANELS {
        // SAFETY: the caller's; `p < PANELS`.
        columns[p] = unsafe { E::load(isa, b.add(p * b_panel)) };
    }
    for r in 0..ROWS {
        // SAFETY: the caller's.
        let x = isa.splat(unsafe { *rows[r].add(at) });
        for p in 0..PANELS {
            acc[r][p] = isa.fma(x, columns[p], acc[r][p]);
        }
    }
}
