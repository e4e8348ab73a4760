use super::params;

/// What [`Argmax`] and [`Sample`] answer for a row that holds a NaN, or no finite logit.
pub const INVALID_TOKEN: u32 = u32::MAX;

params! {
    /// The index of the largest logit of each row; the lowest index wins a tie. Grid: `(rows, parts, 1)`.
    pub struct Argmax {
        /// f32 `[rows, cols]`.
        pub logits: u64,
        /// u32 `[rows]`, [`INVALID_TOKEN`] for a row with a NaN or without a finite logit.
        pub out: u64,
        /// 16 bytes `[rows, parts]`, of more than one part: what blocks leave for the last of their row.
        pub partials: u64,
        /// u32 `[rows]`, of more than one part: zeros, which every launch leaves zero.
        pub counters: u64,
        pub rows: u32,
        pub cols: u32,
    }
}

params! {
    /// How one row is sampled.
    pub struct SampleRow {
        /// Above 0.
        pub temperature: f32,
        /// In (0, 1]; 1 keeps all.
        pub top_p: f32,
        /// In [0, 1]; 0 keeps all.
        pub min_p: f32,
        /// In [0, 1): the draw.
        pub uniform: f32,
        /// 0 keeps all.
        pub top_k: u32,
        pub reserved: u32,
    }
}

params! {
    /// Draws a token a row. One block a row.
    ///
    /// Tokens are ranked by logit, the lower index first among equals. Of `softmax(logits / temperature)`: the first `top_k`
    /// are kept; of those, renormalised, the shortest prefix whose sum reaches `top_p`; of those, the ones whose probability is
    /// at least `min_p` times the largest. The draw is the first kept token, in ascending order of index, at which the running
    /// sum of the kept probabilities exceeds `uniform` times their total.
    pub struct Sample {
        /// f32 `[rows, cols]`.
        pub logits: u64,
        /// [`SampleRow`] `[rows]`.
        pub row_params: u64,
        /// u32 `[rows]`, [`INVALID_TOKEN`] for a row with a NaN or without a finite logit.
        pub out: u64,
        pub rows: u32,
        pub cols: u32,
    }
}

params! {
    /// How the logit of one token is changed, by [`LogitChange::of`].
    pub struct LogitChange {
        pub token: u32,
        /// Divides a positive logit and multiplies another; 1 for neither.
        pub repetition: f32,
        /// Is subtracted after that; 0 for nothing.
        pub less: f32,
        /// Is added after that; -0 for nothing, as 0 would make 0 of -0.
        pub bias: f32,
    }
}

impl LogitChange {
    /// A change that leaves every logit as it is.
    pub const fn none(token: u32) -> LogitChange {
        LogitChange { token, repetition: 1.0, less: 0.0, bias: -0.0 }
    }

    /// The logit, changed: each step rounded to f32, on every device.
    #[inline(always)]
    pub fn of(&self, logit: f32) -> f32 {
        let repeated = if logit > 0.0 { logit / self.repetition } else { logit * self.repetition };
        repeated - self.less + self.bias
    }
}

params! {
    /// A row of logits that has changes.
    pub struct ChangedRow {
        pub row: u32,
        /// Its first change, and how many there are.
        pub first: u32,
        pub count: u32,
        pub reserved: u32,
    }
}

params! {
    /// Changes logits in place. One block a row that has changes.
    pub struct AdjustLogits {
        /// f32 `[rows, cols]`.
        pub logits: u64,
        /// [`ChangedRow`] `[blocks]`; no row is there twice.
        pub rows: u64,
        /// [`LogitChange`], row after row: tokens below `cols`, none twice in a row (the launcher checks).
        pub changes: u64,
        pub cols: u32,
        pub reserved: u32,
    }
}
