/// Lanes of every vector, whatever the registers: results don't depend on which machine's vectors computed them, beyond whether
/// it multiplies and adds in one rounding.
pub(super) const LANES: usize = 16;

/// Sixteen-lane arithmetic. A value of an implementing type is the proof that the machine has the instructions, so that
/// arithmetic is safe to ask for; only accesses through pointers are not.
///
/// Every method, and every function generic over an `Isa`, is `#[inline(always)]`: they must end up inside the one function
/// that carries the target features (see [`Kernel`]).
pub(super) trait Isa: Copy + Send + Sync {
    /// Sixteen `f32`.
    type V: Copy;
    /// Sixteen `u32`.
    type W: Copy;

    fn splat(self, x: f32) -> Self::V;
    /// # Safety
    /// Sixteen `f32` are readable at `at`.
    unsafe fn load(self, at: *const f32) -> Self::V;
    /// # Safety
    /// Sixteen `f32` are writable at `at`.
    unsafe fn store(self, at: *mut f32, v: Self::V);
    /// Sixteen bf16 in the order of [`bf16_lane`].
    ///
    /// # Safety
    /// Sixteen `u16` are readable at `at`.
    unsafe fn load_bf16(self, at: *const u16) -> Self::V;
    /// Sixteen f16 in order.
    ///
    /// # Safety
    /// Sixteen `u16` are readable at `at`.
    unsafe fn load_f16(self, at: *const u16) -> Self::V;
    /// # Safety
    /// Sixteen `u32` are readable at `at`.
    unsafe fn load_words(self, at: *const u32) -> Self::W;
    /// The words and `MASK`, a positive number, as floats.
    fn masked<const MASK: i32>(self, words: Self::W) -> Self::V;
    /// The words shifted right by `SHIFT` of at least 1, zeros coming in, as floats.
    fn shifted<const SHIFT: i32>(self, words: Self::W) -> Self::V;
    /// `a * b + c`.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a > b ? a : b`, so that a NaN in `b` stays.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a < b ? a : b`, so that a NaN in `b` stays.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a < b ? x : y`.
    fn select_lt(self, a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V;
    /// The bits shifted left by 23: of `n + 127` in the low bits, the float `2^n`.
    fn shift_to_exponent(self, v: Self::V) -> Self::V;
    /// The largest lane.
    fn reduce_max(self, v: Self::V) -> f32;

    /// Asks for the cache line at `at`, which is read soon. Any address will do: one that isn't there is ignored.
    #[inline(always)]
    fn prefetch(self, _at: *const u8) {}
    /// As [`Isa::prefetch`], of a line that is written soon.
    #[inline(always)]
    fn prefetch_write(self, _at: *const u8) {}

    /// Asks for part `part` of `parts` of the `bytes` at `at`: the parts are asked for between other work, so that memory is
    /// fetched under it.
    #[inline(always)]
    fn prefetch_part(self, at: *const u8, bytes: usize, part: usize, parts: usize) {
        const LINE_BYTES: usize = 64;
        let lines = bytes.div_ceil(LINE_BYTES);
        for line in lines * part / parts..lines * (part + 1) / parts {
            self.prefetch(at.wrapping_add(line * LINE_BYTES));
        }
    }

    #[inline(always)]
    fn zero(self) -> Self::V {
        self.splat(0.0)
    }

    #[inline(always)]
    fn to_array(self, v: Self::V) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        // SAFETY: the array holds sixteen.
        unsafe { self.store(lanes.as_mut_ptr(), v) };
        lanes
    }

    #[inline(always)]
    fn vector(self, lanes: &[f32; LANES]) -> Self::V {
        // SAFETY: the array holds sixteen.
        unsafe { self.load(lanes.as_ptr()) }
    }

    /// The sum of the lanes, as a balanced tree.
    #[inline(always)]
    fn reduce_sum(self, v: Self::V) -> f32 {
        let mut lanes = self.to_array(v);
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
            width /= 2;
        }
        lanes[0]
    }

    /// `e^x` within two units in the last place; 0 below -87 and for -inf, 1 for 0, no larger than `2^127`.
    #[inline(always)]
    fn exp(self, x: Self::V) -> Self::V {
        // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits of the sum.
        const MAGIC: f32 = 12_582_912.0;
        let clamped = self.min(self.splat(88.0), self.max(self.splat(-87.0), x));
        let shifted = self.fma(clamped, self.splat(std::f32::consts::LOG2_E), self.splat(MAGIC));
        let n = self.sub(shifted, self.splat(MAGIC));
        // ln 2 in two parts, the first with so few bits that its product with n is exact.
        let r = self.fma(n, self.splat(-0.693_359_4), clamped);
        let r = self.fma(n, self.splat(2.121_944_4e-4), r);
        // The minimax polynomial of the Cephes library for (e^r - 1 - r) / r^2 on |r| <= ln(2) / 2.
        let mut p = self.splat(1.987_569_1e-4);
        for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = self.fma(p, r, self.splat(c));
        }
        let y = self.add(self.fma(p, self.mul(r, r), r), self.splat(1.0));
        let power = self.shift_to_exponent(self.add(shifted, self.splat(127.0)));
        self.select_lt(x, self.splat(-87.0), self.zero(), self.mul(y, power))
    }

    /// `e^x` of an `x` of at most 0, off by 1.5e-7 + 8e-8 |x| of itself; 0 below -87.7 and for -inf, 1 for 0. Fewer instructions than
    /// [`Isa::exp`], and the weights of attention, whose sum is 1 or more before it is divided by, need no more.
    #[inline(always)]
    fn exp_of_loss(self, x: Self::V) -> Self::V {
        // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits of the sum, here with an exponent's bias.
        const MAGIC: f32 = 12_582_912.0 + 127.0;
        let clamped = self.max(self.splat(-88.0), x);
        let log2_e = self.splat(std::f32::consts::LOG2_E);
        let shifted = self.fma(clamped, log2_e, self.splat(MAGIC));
        let r = self.fma(clamped, log2_e, self.sub(self.splat(MAGIC), shifted));
        // The minimax polynomial of degree 5 for (2^r - 1) / r on |r| <= 1/2, error relative to 2^r: 4e-9.
        let mut p = self.splat(1.546_973_2e-4);
        for c in [1.341e-3, 9.618_031e-3, 5.550_297_3e-2, 2.402_265e-1, 6.931_472_4e-1, 1.0] {
            p = self.fma(p, r, self.splat(c));
        }
        // An exponent of 0 makes 0, not a subnormal number.
        self.mul(p, self.shift_to_exponent(shifted))
    }

    /// `tanh x` within a few units in the last place.
    #[inline(always)]
    fn tanh(self, x: Self::V) -> Self::V {
        let (one, square) = (self.splat(1.0), self.mul(x, x));
        let e = self.exp(self.add(x, x));
        let large = self.sub(one, self.div(self.splat(2.0), self.add(e, one)));
        // Near 0 that difference cancels; there the polynomial of the Cephes library, good to |x| = 0.625.
        let mut p = self.splat(-5.704_988_7e-3);
        for c in [2.063_909e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1] {
            p = self.fma(p, square, self.splat(c));
        }
        let small = self.fma(self.mul(p, square), x, x);
        self.select_lt(square, self.splat(0.39), small, large)
    }
}

/// Where lane `lane` of a group of sixteen bf16 is stored: lanes `i` and `i + 8` share a 32-bit word, so that a shift and a mask
/// make two vectors of eight floats out of one load.
pub(super) const fn bf16_lane(lane: usize) -> usize {
    if lane < LANES / 2 { 2 * lane } else { 2 * (lane - LANES / 2) + 1 }
}

/// Work written over any [`Isa`]. `run` must be `#[inline(always)]`.
pub(super) trait Kernel {
    fn run<I: Isa>(self, isa: I);
}

/// The vectors that the machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    /// Tried on every machine, used where there is nothing better.
    #[cfg(any(test, not(target_arch = "x86_64")))]
    Portable,
    #[cfg(target_arch = "x86_64")]
    Sse2,
    #[cfg(target_arch = "x86_64")]
    Avx2(super::x86::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(super::x86::Avx512),
}

impl Level {
    pub(super) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if let Some(isa) = super::x86::Avx512::detect() {
                return Level::Avx512(isa);
            }
            if let Some(isa) = super::x86::Avx2::detect() {
                return Level::Avx2(isa);
            }
            Level::Sse2
        }
        #[cfg(not(target_arch = "x86_64"))]
        Level::Portable
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            #[cfg(any(test, not(target_arch = "x86_64")))]
            Level::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Level::Sse2 => "SSE2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(_) => "AVX2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(_) => "AVX-512",
        }
    }

    #[inline]
    pub(super) fn run<K: Kernel>(self, kernel: K) {
        match self {
            #[cfg(any(test, not(target_arch = "x86_64")))]
            Level::Portable => kernel.run(super::portable::Portable),
            #[cfg(target_arch = "x86_64")]
            Level::Sse2 => kernel.run(super::x86::Sse2),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(isa) => isa.dispatch(kernel),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(isa) => isa.dispatch(kernel),
        }
    }
}
