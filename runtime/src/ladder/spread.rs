//! How far apart repeated measurements lie.

/// The widest [`spread`] of what is a result. That of a machine with nothing else to do is some percent.
pub const WIDEST_SPREAD: f64 = 0.5;

/// The value that `part` of sorted values don't pass, between two of them where it falls there; NaN of none.
pub fn quantile(sorted: &[f64], part: f64) -> f64 {
    let place = part * sorted.len().saturating_sub(1) as f64;
    let at = |place: f64| sorted.get(place as usize).copied().unwrap_or(f64::NAN);
    let (below, above) = (at(place.floor()), at(place.ceil()));
    below + (above - below) * place.fract()
}

/// How far apart the outer tenths of sorted values are, as a part of their median.
pub fn spread(sorted: &[f64]) -> f64 {
    (quantile(sorted, 0.9) - quantile(sorted, 0.1)) / quantile(sorted, 0.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_values() {
        let five = [1.0, 2.0, 3.0, 4.0, 5.0];
        assert_eq!([0.0, 0.1, 0.5, 0.9, 1.0].map(|part| quantile(&five, part)), [1.0, 1.4, 3.0, 4.6, 5.0]);
        assert!((spread(&five) - 3.2 / 3.0).abs() < 1e-12);
        assert_eq!((quantile(&[2.0], 0.9), spread(&[2.0])), (2.0, 0.0));
        assert!(quantile(&[], 0.5).is_nan() && spread(&[]).is_nan());
    }
}
