use half::f16;

use super::levels;
use crate::cpu::isa::{Isa, Kernel, LANES};

struct WidenF16<'a> {
    bits: &'a [u16; LANES],
    out: &'a mut [f32; LANES],
}

impl Kernel for WidenF16<'_> {
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        // SAFETY: both hold sixteen.
        *self.out = isa.to_array(unsafe { isa.load_f16(self.bits.as_ptr()) });
    }
}

#[test]
fn every_f16_is_widened_exactly() {
    let all: Vec<u16> = (0..=u16::MAX).collect();
    for level in levels() {
        for bits in all.as_chunks().0 {
            let mut out = [0.0; LANES];
            level.run(WidenF16 { bits, out: &mut out });
            for (&bits, out) in bits.iter().zip(out) {
                let expected = f16::from_bits(bits).to_f32();
                let same = out.to_bits() == expected.to_bits() || out.is_nan() && expected.is_nan();
                assert!(same, "{level:?}: {bits:#06x} is {expected}, not {out}");
            }
        }
    }
}
