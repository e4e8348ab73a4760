use std::fmt;

/// What a comparison may be off by even where the plain computation happens to be exact.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Floor {
    /// Times the magnitude of the expected value.
    pub relative: f64,
    pub absolute: f64,
}

impl Floor {
    /// One rounding to bf16 in either direction (half a unit in the last place is `2^-8` of the value at most), and what
    /// flushing a denormal costs.
    pub const BF16: Floor = Floor { relative: 1.0 / 256.0, absolute: 1e-30 };
    /// As [`Floor::BF16`], of f16, whose denormals are `2^-24` apart.
    pub const F16: Floor = Floor { relative: 1.0 / 2048.0, absolute: 1.0 / (1 << 25) as f64 };
    /// A few roundings of f32.
    pub const F32: Floor = Floor { relative: 1.0 / (1 << 21) as f64, absolute: 1e-30 };

    /// The same with another absolute part.
    pub fn with_absolute(self, absolute: f64) -> Floor {
        Floor { absolute, ..self }
    }
}

/// How far each element may be off, and the shape it is reported by.
#[derive(Debug, Clone, PartialEq)]
pub struct Bound {
    pub shape: Vec<usize>,
    pub limits: Vec<f64>,
}

impl Bound {
    /// Twice the worst error that the plain computation makes in an element's row (the last dimension), plus the floor.
    ///
    /// # Panics
    /// If the lengths don't agree with `shape`.
    pub fn from_plain(shape: &[usize], truth: &[f64], plain: &[f32], floor: Floor) -> Bound {
        assert_eq!(shape.iter().product::<usize>(), truth.len(), "the shape of a bound");
        assert_eq!(truth.len(), plain.len(), "the plain computation's length");
        let cols = shape.last().copied().unwrap_or(1).max(1);
        let mut limits = Vec::with_capacity(truth.len());
        for (truth, plain) in truth.chunks(cols).zip(plain.chunks(cols)) {
            let worst = truth.iter().zip(plain).map(|(t, p)| (t - f64::from(*p)).abs()).fold(0.0, f64::max);
            limits.extend(truth.iter().map(|t| 2.0 * worst + floor.relative * t.abs() + floor.absolute));
        }
        Bound { shape: shape.to_vec(), limits }
    }

    /// Bits must agree.
    pub fn exact(shape: &[usize]) -> Bound {
        Bound { shape: shape.to_vec(), limits: vec![0.0; shape.iter().product()] }
    }

    fn coordinate(&self, index: usize) -> Vec<usize> {
        let mut rest = index;
        let mut coordinate: Vec<usize> = self
            .shape
            .iter()
            .rev()
            .map(|&dim| {
                let c = rest % dim.max(1);
                rest /= dim.max(1);
                c
            })
            .collect();
        coordinate.reverse();
        coordinate
    }
}

/// The worst element of a comparison.
#[derive(Debug, Clone, PartialEq)]
pub struct Worst {
    pub coordinate: Vec<usize>,
    pub actual: f32,
    pub expected: f64,
    pub limit: f64,
}

/// A comparison that passed.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Summary {
    pub elements: usize,
    /// The largest error over its own limit; at most 1.
    pub worst_ratio: f64,
    /// The largest absolute error.
    pub worst_error: f64,
}

/// A comparison that failed.
#[derive(Debug, Clone, PartialEq)]
pub struct Mismatch {
    pub name: String,
    pub wrong: usize,
    pub elements: usize,
    pub worst: Option<Worst>,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mismatch { name, wrong, elements, worst } = self;
        match worst {
            None => {
                write!(f, "{name}: the lengths of actual, expected and bound differ ({elements} expected)")
            }
            Some(Worst { coordinate, actual, expected, limit }) => write!(
                f,
                "{name}: {wrong} of {elements} elements are wrong; worst at {coordinate:?}: {actual:e}, expected {expected:e} within {limit:e}"
            ),
        }
    }
}

impl std::error::Error for Mismatch {}

/// Compares element by element. An element passes only if its error is at most its limit, so a NaN never does.
pub fn compare(name: &str, actual: &[f32], expected: &[f64], bound: &Bound) -> Result<Summary, Mismatch> {
    let elements = expected.len();
    let mismatch = |wrong, worst| Mismatch { name: name.to_string(), wrong, elements, worst };
    if actual.len() != elements || bound.limits.len() != elements {
        return Err(mismatch(0, None));
    }
    let mut summary = Summary { elements, ..Summary::default() };
    let mut wrong = 0;
    let mut worst: Option<(f64, usize)> = None;
    for (index, ((&actual, &expected), &limit)) in actual.iter().zip(expected).zip(&bound.limits).enumerate()
    {
        let actual = f64::from(actual);
        let error = if actual == expected { 0.0 } else { (actual - expected).abs() };
        if error <= limit {
            summary.worst_error = summary.worst_error.max(error);
            if limit > 0.0 {
                summary.worst_ratio = summary.worst_ratio.max(error / limit);
            }
            continue;
        }
        wrong += 1;
        let excess = if error.is_nan() { f64::INFINITY } else { error / limit.max(f64::MIN_POSITIVE) };
        if worst.is_none_or(|(most, _)| excess > most) {
            worst = Some((excess, index));
        }
    }
    match worst {
        None => Ok(summary),
        Some((_, index)) => Err(mismatch(
            wrong,
            Some(Worst {
                coordinate: bound.coordinate(index),
                actual: actual[index],
                expected: expected[index],
                limit: bound.limits[index],
            }),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_coordinate_is_named() {
        let bound = Bound { shape: vec![2, 3], limits: vec![0.1; 6] };
        let mismatch = compare("t", &[0.0, 0.2, 0.0, 0.0, 0.0, 0.9], &[0.0; 6], &bound).unwrap_err();
        assert_eq!(mismatch.wrong, 2);
        assert_eq!(mismatch.worst.unwrap().coordinate, [1, 2]);
    }

    #[test]
    fn nan_and_infinity_never_pass_by_accident() {
        let bound = Bound { shape: vec![1], limits: vec![1e9] };
        assert!(compare("t", &[f32::NAN], &[0.0], &bound).is_err());
        assert!(compare("t", &[f32::NAN], &[f64::NAN], &bound).is_err());
        assert!(compare("t", &[f32::INFINITY], &[0.0], &bound).is_err());
        assert!(compare("t", &[f32::NEG_INFINITY], &[f64::NEG_INFINITY], &bound).is_ok());
        assert!(compare("t", &[], &[0.0], &bound).is_err());
    }

    #[test]
    fn a_bound_is_twice_the_plain_error_of_its_row() {
        let floor = Floor { relative: 0.0, absolute: 0.5 };
        let bound = Bound::from_plain(&[2, 2], &[1.0, 2.0, 3.0, 4.0], &[1.0, 2.25, 3.0, 4.0], floor);
        assert_eq!(bound.limits, [1.0, 1.0, 0.5, 0.5]);
    }
}
