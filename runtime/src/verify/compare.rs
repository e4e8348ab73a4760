/// The largest difference and its index; a difference that isn't a number counts as infinite, and so does a missing value.
pub(super) fn worst(expected: &[f32], found: &[f32]) -> (f64, usize) {
    let mut worst = (0.0, 0);
    for (index, &value) in expected.iter().enumerate() {
        let found = found.get(index).copied().unwrap_or(f32::NAN);
        let difference = (f64::from(value) - f64::from(found)).abs();
        let difference = if difference.is_nan() { f64::INFINITY } else { difference };
        if difference > worst.0 {
            worst = (difference, index);
        }
    }
    worst
}

/// The largest magnitude.
pub(super) fn largest_magnitude(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(value.abs())).fold(0.0, f64::max)
}

/// How far the best logit lies above the second best.
pub(super) fn top_two_gap(logits: &[f32]) -> f64 {
    let (mut best, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
    for &logit in logits {
        if logit > best {
            (best, second) = (logit, best);
        } else if logit > second {
            second = logit;
        }
    }
    f64::from(best) - f64::from(second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nan_is_the_worst_error() {
        assert_eq!(worst(&[1.0, 2.0, 3.0], &[1.0, 2.5, 2.0]), (1.0, 2));
        assert_eq!(worst(&[1.0, 2.0, 3.0], &[1.0, f32::NAN, 2.0]), (f64::INFINITY, 1));
        assert_eq!(worst(&[1.0, f32::NAN], &[1.0, 2.0]), (f64::INFINITY, 1));
        assert_eq!(worst(&[1.0, 2.0], &[1.0]), (f64::INFINITY, 1));
        assert_eq!(worst(&[1.0], &[1.0]), (0.0, 0));
    }

    #[test]
    fn the_gap_is_between_the_two_best() {
        assert_eq!(top_two_gap(&[1.0, 5.0, 3.5, -2.0]), 1.5);
        assert_eq!(top_two_gap(&[5.0, 5.0]), 0.0);
    }
}
