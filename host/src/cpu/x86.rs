use std::arch::x86_64::*;

use super::isa::{Isa, Kernel};

/// SSE2, which every x86-64 has: four registers a vector. Arrays of sixteen floats would do, but take the compiler far longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sse2;

/// Methods that are the same intrinsic on all quarters.
macro_rules! quarters {
    ($($name:ident($($arg:ident),*) => $intrinsic:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: Self::V),*) -> Self::V {
            // SAFETY: every x86-64 has SSE2.
            unsafe {
                [
                    { $(let $arg = $arg[0];)* $intrinsic },
                    { $(let $arg = $arg[1];)* $intrinsic },
                    { $(let $arg = $arg[2];)* $intrinsic },
                    { $(let $arg = $arg[3];)* $intrinsic },
                ]
            }
        }
    )*};
}

/// Four f16 in the low halves of the words, widened.
#[inline(always)]
fn widen_f16(halves: __m128i) -> __m128 {
    // SAFETY: every x86-64 has SSE2.
    unsafe {
        let magnitude = _mm_and_si128(halves, _mm_set1_epi32(0x7fff));
        let sign = _mm_slli_epi32::<16>(_mm_xor_si128(halves, magnitude));
        // Exponents are biased by 112 less. The product is exact, of subnormal numbers too.
        let scaled = _mm_mul_ps(
            _mm_castsi128_ps(_mm_slli_epi32::<13>(magnitude)),
            _mm_set1_ps(f32::from_bits((127 + 112) << 23)),
        );
        // Infinities and NaNs have all bits of the exponent set.
        let infinite = _mm_cmpgt_epi32(magnitude, _mm_set1_epi32(0x7bff));
        let exponent = _mm_and_si128(infinite, _mm_set1_epi32(0x7f80_0000));
        _mm_or_ps(scaled, _mm_castsi128_ps(_mm_or_si128(sign, exponent)))
    }
}

impl Isa for Sse2 {
    type V = [__m128; 4];
    type W = [__m128i; 4];

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        // SAFETY: every x86-64 has SSE2.
        unsafe { [_mm_set1_ps(x); 4] }
    }
    #[inline(always)]
    unsafe fn load(self, at: *const f32) -> Self::V {
        // SAFETY: sixteen are readable.
        unsafe {
            [_mm_loadu_ps(at), _mm_loadu_ps(at.add(4)), _mm_loadu_ps(at.add(8)), _mm_loadu_ps(at.add(12))]
        }
    }
    #[inline(always)]
    unsafe fn store(self, at: *mut f32, v: Self::V) {
        // SAFETY: sixteen are writable.
        unsafe {
            _mm_storeu_ps(at, v[0]);
            _mm_storeu_ps(at.add(4), v[1]);
            _mm_storeu_ps(at.add(8), v[2]);
            _mm_storeu_ps(at.add(12), v[3]);
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, at: *const u16) -> Self::V {
        // SAFETY: 32 bytes are readable.
        unsafe {
            let words = [_mm_loadu_si128(at.cast()), _mm_loadu_si128(at.add(8).cast())];
            let low = |words| _mm_castsi128_ps(_mm_slli_epi32::<16>(words));
            let high = |words| _mm_castsi128_ps(_mm_and_si128(words, _mm_set1_epi32(0xffff_0000_u32 as i32)));
            [low(words[0]), low(words[1]), high(words[0]), high(words[1])]
        }
    }
    #[inline(always)]
    unsafe fn load_f16(self, at: *const u16) -> Self::V {
        // SAFETY: 32 bytes are readable.
        unsafe {
            let (a, b) = (_mm_loadu_si128(at.cast()), _mm_loadu_si128(at.add(8).cast()));
            let zero = _mm_setzero_si128();
            [
                widen_f16(_mm_unpacklo_epi16(a, zero)),
                widen_f16(_mm_unpackhi_epi16(a, zero)),
                widen_f16(_mm_unpacklo_epi16(b, zero)),
                widen_f16(_mm_unpackhi_epi16(b, zero)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn load_words(self, at: *const u32) -> Self::W {
        // SAFETY: 64 bytes are readable.
        unsafe {
            [
                _mm_loadu_si128(at.cast()),
                _mm_loadu_si128(at.add(4).cast()),
                _mm_loadu_si128(at.add(8).cast()),
                _mm_loadu_si128(at.add(12).cast()),
            ]
        }
    }
    #[inline(always)]
    fn masked<const MASK: i32>(self, words: Self::W) -> Self::V {
        // SAFETY: every x86-64 has SSE2.
        words.map(|words| unsafe { _mm_cvtepi32_ps(_mm_and_si128(words, _mm_set1_epi32(MASK))) })
    }
    #[inline(always)]
    fn shifted<const SHIFT: i32>(self, words: Self::W) -> Self::V {
        // SAFETY: every x86-64 has SSE2.
        words.map(|words| unsafe { _mm_cvtepi32_ps(_mm_srli_epi32::<SHIFT>(words)) })
    }
    quarters! {
        fma(a, b, c) => _mm_add_ps(_mm_mul_ps(a, b), c);
        add(a, b) => _mm_add_ps(a, b);
        sub(a, b) => _mm_sub_ps(a, b);
        mul(a, b) => _mm_mul_ps(a, b);
        div(a, b) => _mm_div_ps(a, b);
        max(a, b) => _mm_max_ps(a, b);
        min(a, b) => _mm_min_ps(a, b);
        select_lt(a, b, x, y) => {
            let less = _mm_cmplt_ps(a, b);
            _mm_or_ps(_mm_and_ps(less, x), _mm_andnot_ps(less, y))
        };
        shift_to_exponent(v) => _mm_castsi128_ps(_mm_slli_epi32::<23>(_mm_castps_si128(v)));
    }
    #[inline(always)]
    fn reduce_max(self, v: Self::V) -> f32 {
        // SAFETY: every x86-64 has SSE2.
        unsafe {
            let four = _mm_max_ps(_mm_max_ps(v[0], v[1]), _mm_max_ps(v[2], v[3]));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
}

/// AVX2, FMA and F16C: two registers a vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Avx2(());

impl Avx2 {
    pub(super) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        found.then_some(Avx2(()))
    }

    #[inline]
    pub(super) fn dispatch<K: Kernel>(self, kernel: K) {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn with_features<K: Kernel>(isa: Avx2, kernel: K) {
            kernel.run(isa);
        }
        // SAFETY: the token exists only where these features were detected.
        unsafe { with_features(self, kernel) }
    }
}

/// Methods that are the same intrinsic on both halves.
macro_rules! halves {
    ($($name:ident($($arg:ident),*) => $intrinsic:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: Self::V),*) -> Self::V {
            // SAFETY: the token exists only where AVX2 and FMA were detected.
            unsafe {
                [{ $(let $arg = $arg[0];)* $intrinsic }, { $(let $arg = $arg[1];)* $intrinsic }]
            }
        }
    )*};
}

impl Isa for Avx2 {
    type V = [__m256; 2];
    type W = [__m256i; 2];

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        // SAFETY: the token exists only where AVX was detected.
        unsafe { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    unsafe fn load(self, at: *const f32) -> Self::V {
        // SAFETY: the token, and sixteen are readable.
        unsafe { [_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))] }
    }
    #[inline(always)]
    unsafe fn store(self, at: *mut f32, v: Self::V) {
        // SAFETY: the token, and sixteen are writable.
        unsafe {
            _mm256_storeu_ps(at, v[0]);
            _mm256_storeu_ps(at.add(8), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, at: *const u16) -> Self::V {
        // SAFETY: the token, and 32 bytes are readable.
        unsafe {
            let words = _mm256_loadu_si256(at.cast());
            let low = _mm256_slli_epi32::<16>(words);
            let high = _mm256_and_si256(words, _mm256_set1_epi32(0xffff_0000_u32 as i32));
            [_mm256_castsi256_ps(low), _mm256_castsi256_ps(high)]
        }
    }
    #[inline(always)]
    unsafe fn load_f16(self, at: *const u16) -> Self::V {
        // SAFETY: the token, and 32 bytes are readable.
        unsafe {
            [_mm256_cvtph_ps(_mm_loadu_si128(at.cast())), _mm256_cvtph_ps(_mm_loadu_si128(at.add(8).cast()))]
        }
    }
    #[inline(always)]
    unsafe fn load_words(self, at: *const u32) -> Self::W {
        // SAFETY: the token, and 64 bytes are readable.
        unsafe { [_mm256_loadu_si256(at.cast()), _mm256_loadu_si256(at.add(8).cast())] }
    }
    #[inline(always)]
    fn masked<const MASK: i32>(self, words: Self::W) -> Self::V {
        // SAFETY: the token exists only where AVX2 was detected.
        unsafe {
            let mask = _mm256_set1_epi32(MASK);
            [
                _mm256_cvtepi32_ps(_mm256_and_si256(words[0], mask)),
                _mm256_cvtepi32_ps(_mm256_and_si256(words[1], mask)),
            ]
        }
    }
    #[inline(always)]
    fn shifted<const SHIFT: i32>(self, words: Self::W) -> Self::V {
        // SAFETY: the token exists only where AVX2 was detected.
        unsafe {
            [
                _mm256_cvtepi32_ps(_mm256_srli_epi32::<SHIFT>(words[0])),
                _mm256_cvtepi32_ps(_mm256_srli_epi32::<SHIFT>(words[1])),
            ]
        }
    }
    halves! {
        fma(a, b, c) => _mm256_fmadd_ps(a, b, c);
        add(a, b) => _mm256_add_ps(a, b);
        sub(a, b) => _mm256_sub_ps(a, b);
        mul(a, b) => _mm256_mul_ps(a, b);
        div(a, b) => _mm256_div_ps(a, b);
        max(a, b) => _mm256_max_ps(a, b);
        min(a, b) => _mm256_min_ps(a, b);
        select_lt(a, b, x, y) => _mm256_blendv_ps(y, x, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b));
        shift_to_exponent(v) => _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(v)));
    }
    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        // SAFETY: a prefetch reads nothing that a program can see, and faults nowhere.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
    #[inline(always)]
    fn prefetch_write(self, at: *const u8) {
        // SAFETY: as above.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(at.cast()) }
    }
    #[inline(always)]
    fn reduce_max(self, v: Self::V) -> f32 {
        // SAFETY: the token exists only where AVX was detected.
        unsafe {
            let eight = _mm256_max_ps(v[0], v[1]);
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
}

/// AVX-512F: one register a vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Avx512(());

impl Avx512 {
    pub(super) fn detect() -> Option<Self> {
        let found = Avx2::detect().is_some() && is_x86_feature_detected!("avx512f");
        found.then_some(Avx512(()))
    }

    #[inline]
    pub(super) fn dispatch<K: Kernel>(self, kernel: K) {
        #[target_feature(enable = "avx512f,avx2,fma,f16c")]
        fn with_features<K: Kernel>(isa: Avx512, kernel: K) {
            kernel.run(isa);
        }
        // SAFETY: the token exists only where these features were detected.
        unsafe { with_features(self, kernel) }
    }
}

/// Methods that are one intrinsic.
macro_rules! whole {
    ($($name:ident($($arg:ident),*) => $intrinsic:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: Self::V),*) -> Self::V {
            // SAFETY: the token exists only where AVX-512F was detected.
            unsafe { $intrinsic }
        }
    )*};
}

impl Isa for Avx512 {
    type V = __m512;
    type W = __m512i;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        // SAFETY: the token exists only where AVX-512F was detected.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(self, at: *const f32) -> Self::V {
        // SAFETY: the token, and sixteen are readable.
        unsafe { _mm512_loadu_ps(at) }
    }
    #[inline(always)]
    unsafe fn store(self, at: *mut f32, v: Self::V) {
        // SAFETY: the token, and sixteen are writable.
        unsafe { _mm512_storeu_ps(at, v) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, at: *const u16) -> Self::V {
        // SAFETY: the token, and 32 bytes are readable.
        unsafe {
            let words = _mm256_loadu_si256(at.cast());
            let low = _mm256_slli_epi32::<16>(words);
            let high = _mm256_and_si256(words, _mm256_set1_epi32(0xffff_0000_u32 as i32));
            _mm512_castsi512_ps(_mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high))
        }
    }
    #[inline(always)]
    unsafe fn load_f16(self, at: *const u16) -> Self::V {
        // SAFETY: the token, and 32 bytes are readable.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
    }
    #[inline(always)]
    unsafe fn load_words(self, at: *const u32) -> Self::W {
        // SAFETY: the token, and 64 bytes are readable.
        unsafe { _mm512_loadu_si512(at.cast()) }
    }
    #[inline(always)]
    fn masked<const MASK: i32>(self, words: Self::W) -> Self::V {
        // SAFETY: the token exists only where AVX-512F was detected.
        unsafe { _mm512_cvtepi32_ps(_mm512_and_si512(words, _mm512_set1_epi32(MASK))) }
    }
    #[inline(always)]
    fn shifted<const SHIFT: i32>(self, words: Self::W) -> Self::V {
        // SAFETY: the token exists only where AVX-512F was detected.
        unsafe { _mm512_cvtepi32_ps(_mm512_srlv_epi32(words, _mm512_set1_epi32(SHIFT))) }
    }
    whole! {
        fma(a, b, c) => _mm512_fmadd_ps(a, b, c);
        add(a, b) => _mm512_add_ps(a, b);
        sub(a, b) => _mm512_sub_ps(a, b);
        mul(a, b) => _mm512_mul_ps(a, b);
        div(a, b) => _mm512_div_ps(a, b);
        max(a, b) => _mm512_max_ps(a, b);
        min(a, b) => _mm512_min_ps(a, b);
        select_lt(a, b, x, y) => _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), y, x);
        shift_to_exponent(v) => _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(v)));
    }
    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        // SAFETY: a prefetch reads nothing that a program can see, and faults nowhere.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
    #[inline(always)]
    fn prefetch_write(self, at: *const u8) {
        // SAFETY: as above.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(at.cast()) }
    }
    #[inline(always)]
    fn reduce_max(self, v: Self::V) -> f32 {
        // SAFETY: the token exists only where AVX-512F was detected.
        unsafe { _mm512_reduce_max_ps(v) }
    }
}
