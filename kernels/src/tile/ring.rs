/// A place in a ring of `stages` (a power of two): how many were filled before it. One register, where a stage and a parity of
/// their own would be two.
#[derive(Clone, Copy)]
pub struct Ring(u32);

impl Ring {
    /// The first place.
    #[inline(always)]
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self(0)
    }

    /// Its stage.
    #[inline(always)]
    pub fn stage(self, stages: u32) -> u32 {
        self.0 % stages
    }

    /// Parity of the phase of the stage's barriers.
    #[inline(always)]
    pub fn parity(self, stages: u32) -> u32 {
        self.0 / stages % 2
    }

    /// The place after it.
    #[inline(always)]
    pub fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }

    /// The place before it.
    #[inline(always)]
    pub fn previous(self) -> Self {
        Self(self.0.wrapping_sub(1))
    }

    /// The same; what follows from it is computed here, see [`ptx::here`](crate::ptx::here).
    #[inline(always)]
    pub fn again(self) -> Self {
        Self(crate::ptx::here(self.0))
    }

    /// A bit that goes along: no launch fills 2^31 stages in a block.
    #[inline(always)]
    pub fn mark(self) -> u32 {
        self.0 >> 31
    }

    /// The same place with the other mark.
    #[inline(always)]
    #[must_use]
    pub fn turn_mark(self) -> Self {
        Self(self.0 ^ 1 << 31)
    }
}
