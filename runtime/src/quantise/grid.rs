use half::f16;

/// The codes that a group's weights are rounded to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Grid {
    /// An f16's value, above 0.
    pub scale: f32,
    pub zero: u8,
    pub largest: u8,
}

/// How a group's weights become a grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct GridKind {
    /// 15 or 255.
    pub largest: u8,
    pub symmetric: bool,
}

impl GridKind {
    /// The grid from the smallest to the largest of `weights`, 0 among them. A group of zeros, for which every scale is right,
    /// gets a scale of 1; one too small for f16 gets its smallest scale. `None` if the scale is more than an f16 holds.
    pub fn fit(self, weights: impl Iterator<Item = f32> + Clone) -> Option<Grid> {
        let (low, high) = weights.fold((0.0_f32, 0.0_f32), |(low, high), w| (low.min(w), high.max(w)));
        let steps = f32::from(self.largest);
        let middle = self.largest / 2 + 1;
        if low == high {
            return Some(Grid { scale: 1.0, zero: middle, largest: self.largest });
        }
        if self.symmetric {
            let scale = f16_scale(2.0 * high.max(-low) / steps)?;
            return Some(Grid { scale, zero: middle, largest: self.largest });
        }
        let scale = f16_scale((high - low) / steps)?;
        let zero = (-low / scale).round_ties_even();
        // A zero point of 0 can't be told from one too many where it is stored less one: the lowest code is left out.
        let (scale, zero) = match zero < 1.0 {
            true => (f16_scale((high / (steps - 1.0)).max(-low))?, 1.0),
            false => (scale, zero.min(steps)),
        };
        Some(Grid { scale, zero: zero as u8, largest: self.largest })
    }
}

/// Parts of a group's range that [`GridKind::fit_weighted`] tries.
const SHRINKS: usize = 28;
/// How much less of it each is.
const SHRINK_STEP: f32 = 0.02;

impl GridKind {
    /// Of grids over smaller and smaller parts of the range of `weights`, the one with the least squared error, each weight's divided
    /// by its `factor`: what leaves the range costs more, what stays is rounded more finely.
    pub fn fit_weighted(self, weights: &[f32], factors: impl Iterator<Item = f32> + Clone) -> Option<Grid> {
        let whole = self.fit(weights.iter().copied())?;
        let mut best = (f32::INFINITY, whole);
        for shrink in 0..SHRINKS {
            let part = 1.0 - shrink as f32 * SHRINK_STEP;
            let Some(grid) = self.fit(weights.iter().map(|weight| weight * part)) else { continue };
            let errors = weights.iter().zip(factors.clone()).map(|(&weight, factor)| {
                let error = (weight - grid.weight(grid.code(weight))) / factor;
                error * error
            });
            let error: f32 = errors.sum();
            if error < best.0 {
                best = (error, grid);
            }
        }
        Some(best.1)
    }
}

fn f16_scale(scale: f32) -> Option<f32> {
    let rounded = f16::from_f32(scale).max(f16::MIN_POSITIVE_SUBNORMAL);
    rounded.is_finite().then(|| rounded.to_f32())
}

impl Grid {
    /// The nearest code.
    pub fn code(&self, weight: f32) -> u8 {
        let code = (weight / self.scale).round_ties_even() + f32::from(self.zero);
        code.clamp(0.0, f32::from(self.largest)) as u8
    }

    /// The weight of a code.
    pub fn weight(&self, code: u8) -> f32 {
        (f32::from(code) - f32::from(self.zero)) * self.scale
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOUR: GridKind = GridKind { largest: 15, symmetric: false };

    #[test]
    fn a_grid_spans_its_weights() {
        for (weights, symmetric) in [
            (vec![-0.7, 0.8, 0.1], false),
            (vec![-0.7, 0.8, 0.1], true),
            (vec![0.3, 0.5], false),
            (vec![-0.3, -0.5], false),
            (vec![-1e-9, 1e-9], false),
            (vec![6e4, -6e4], false),
        ] {
            let grid = GridKind { symmetric, ..FOUR }.fit(weights.iter().copied()).expect("a grid");
            assert!(grid.scale > 0.0 && grid.zero >= 1, "{grid:?}");
            for &weight in &weights {
                let error = (grid.weight(grid.code(weight)) - weight).abs();
                // Half a step; at the ends a rounded scale or zero point may cost as much again.
                assert!(error <= grid.scale * 1.02, "{weight} is off by {error} with {grid:?}");
            }
        }
    }

    #[test]
    fn zeros_stay_zeros_and_giants_are_refused() {
        let grid = FOUR.fit([0.0; 4].into_iter()).expect("a grid");
        assert_eq!((grid.scale, grid.weight(grid.code(0.0))), (1.0, 0.0));
        assert!(FOUR.fit([1e7, -1e7].into_iter()).is_none());
    }
}
