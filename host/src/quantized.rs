use std::ops::Deref;

use rayon::prelude::*;

use crate::{DType, Error, Result};

/// Codes that a thread checks at a time.
const CHECKED_CODES: usize = 1 << 16;

/// Bits of a weight's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CodeBits {
    /// Codes 0 to 15.
    Four,
    /// Codes 0 to 255.
    Eight,
}

impl CodeBits {
    /// The number of bits.
    pub const fn bits(self) -> usize {
        match self {
            CodeBits::Four => 4,
            CodeBits::Eight => 8,
        }
    }

    /// The largest code.
    pub const fn largest(self) -> u8 {
        match self {
            CodeBits::Four => 15,
            CodeBits::Eight => 255,
        }
    }

    /// The zero point of a symmetric code: half of all codes.
    pub const fn middle(self) -> u8 {
        match self {
            CodeBits::Four => 8,
            CodeBits::Eight => 128,
        }
    }
}

/// What activations are rounded to before they meet quantised weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActivationBits {
    /// Nothing beyond the device's own precision: weights alone are quantised.
    Full,
    /// Eight bits a token (W8A8): `x` becomes `round(x / s) * s`, ties to even, with `s = max|x| / 127` over the token's row.
    /// Integers multiplied and summed exactly, then scaled by `s` and the channel's scale, are the same product.
    Eight,
}

/// The fields of a [`QuantizedPart`].
///
/// # Shapes
/// `rows` outputs by `cols` inputs; `groups = ceil(cols / group)`, of which the last may be short.
///
/// # Units
/// The weight of output `r` and stored column `c` is `(codes[r, c] - zeros[r, c / group]) * scales[r, c / group]`; it multiplies
/// activation `permutation[c]` (or `c`), which `pre_scale` has multiplied first and `activations` has rounded next.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedSpec {
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// Bits a code.
    pub bits: CodeBits,
    /// Stored columns that share a scale and a zero point; `cols` for one a channel.
    pub group: usize,
    /// Unsigned codes, `[rows, cols]`, one a byte whatever `bits`. Columns are stored so that groups are contiguous.
    pub codes: Vec<u8>,
    /// Scales, `[rows, groups]`, finite.
    pub scales: Vec<f32>,
    /// The type that the file stores scales in, which holds each of them exactly.
    pub scale_type: DType,
    /// Zero points as codes, `[rows, groups]`: all [`CodeBits::middle`] where the code is symmetric.
    pub zeros: Vec<u8>,
    /// For each stored column the activation it multiplies, `[cols]`, where that isn't its own number (act-order).
    pub permutation: Option<Vec<u32>>,
    /// Factors of the activations, `[cols]` in their own order (SmoothQuant).
    pub pre_scale: Option<Vec<f32>>,
    /// What activations are rounded to.
    pub activations: ActivationBits,
}

impl QuantizedSpec {
    /// Groups a row.
    pub fn groups(&self) -> usize {
        self.cols.div_ceil(self.group)
    }

    fn check(&self) -> Result<()> {
        let &QuantizedSpec { rows, cols, bits, group, .. } = self;
        require(cols > 0, "cols", "at least 1", cols)?;
        require((1..=cols).contains(&group), "group", format!("1 to {cols}, the columns"), group)?;
        let groups = self.groups();
        let all = |len: usize, a: usize, b: usize| a.checked_mul(b) == Some(len);
        let shape = |a, b| format!("{a} * {b} of them");
        require(all(self.codes.len(), rows, cols), "codes", shape(rows, cols), self.codes.len())?;
        require(all(self.scales.len(), rows, groups), "scales", shape(rows, groups), self.scales.len())?;
        require(all(self.zeros.len(), rows, groups), "zeros", shape(rows, groups), self.zeros.len())?;
        let largest = bits.largest();
        for (what, values) in [("codes", &self.codes), ("zeros", &self.zeros)] {
            // The largest of a run is found faster than the first that is too large.
            let runs = values.par_chunks(CHECKED_CODES);
            let run = runs.find_first(|run| most(run) > largest).unwrap_or(&[]);
            if let Some(value) = run.iter().find(|&&value| value > largest) {
                return Err(wrong(what, format!("at most {largest}"), value));
            }
        }
        check_finite("scales", &self.scales)?;
        if let Some(pre_scale) = &self.pre_scale {
            require(pre_scale.len() == cols, "pre_scale", format!("{cols} of them"), pre_scale.len())?;
            check_finite("pre_scale", pre_scale)?;
        }
        if let Some(permutation) = &self.permutation {
            check_permutation(permutation, cols)?;
        }
        if self.activations == ActivationBits::Eight {
            require(bits == CodeBits::Eight, "bits", "8 where activations have 8", bits.bits())?;
            require(
                group == cols,
                "group",
                format!("{cols}, the columns, where activations have 8 bits"),
                group,
            )?;
        }
        Ok(())
    }
}

/// A quantised weight matrix `[rows, cols]` of a linear layer, whatever file format it came from. Checked when made: sizes agree,
/// codes fit their bits, scales are finite, the permutation is one.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedPart(QuantizedSpec);

impl Deref for QuantizedPart {
    type Target = QuantizedSpec;

    fn deref(&self) -> &QuantizedSpec {
        &self.0
    }
}

impl QuantizedPart {
    /// Checks a description.
    ///
    /// # Errors
    /// [`Error::Shape`] naming the field, what it must be and what it is.
    pub fn new(spec: QuantizedSpec) -> Result<QuantizedPart> {
        spec.check()?;
        Ok(QuantizedPart(spec))
    }

    /// Whether every zero point is the middle code.
    pub fn is_symmetric(&self) -> bool {
        self.zeros.iter().all(|&zero| zero == self.bits.middle())
    }

    /// The weights of output `row` by stored column, in f32: one rounding each.
    pub fn stored_row(&self, row: usize) -> impl Iterator<Item = f32> + '_ {
        let first = row * self.groups();
        let codes = self.codes[row * self.cols..][..self.cols].chunks(self.group);
        codes.enumerate().flat_map(move |(group, codes)| {
            let (scale, zero) = (self.scales[first + group], self.zeros[first + group]);
            codes.iter().map(move |&code| (f32::from(code) - f32::from(zero)) * scale)
        })
    }

    /// The weights of output `row` by activation, without `pre_scale`, into `out`, `[cols]`.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        match &self.permutation {
            None => out.iter_mut().zip(self.stored_row(row)).for_each(|(out, weight)| *out = weight),
            Some(order) => {
                for (&activation, weight) in order.iter().zip(self.stored_row(row)) {
                    out[activation as usize] = weight;
                }
            }
        }
    }

    /// Whether the rows of `other` could be more rows of this.
    fn takes(&self, other: &QuantizedPart) -> bool {
        self.bits == other.bits
            && self.group == other.group
            && self.scale_type == other.scale_type
            && self.activations == other.activations
            && self.permutation == other.permutation
            && self.pre_scale == other.pre_scale
    }
}

/// Quantised weights of one or more linear layers with the same input, stacked along their outputs as [`crate::HostMatrix`]
/// stacks its parts. Neighbours that agree in all but their rows are one part; others (act-order draws an order a layer) keep
/// their own, and a device works on part after part.
///
/// ```
/// use tilewright_host::{ActivationBits, CodeBits, DType, HostQuantized, QuantizedPart, QuantizedSpec};
///
/// let part = QuantizedPart::new(QuantizedSpec {
///     rows: 1,
///     cols: 4,
///     bits: CodeBits::Four,
///     group: 2,
///     codes: vec![8, 9, 0, 15],
///     scales: vec![0.5, 2.0],
///     scale_type: DType::F16,
///     zeros: vec![8, 1],
///     permutation: None,
///     pre_scale: None,
///     activations: ActivationBits::Full,
/// })?;
/// assert_eq!(part.stored_row(0).collect::<Vec<_>>(), [0.0, 0.5, -2.0, 28.0]);
/// let weights = HostQuantized::new(vec![part.clone(), part])?;
/// assert_eq!((weights.rows(), weights.parts().len()), (2, 1));
/// # Ok::<(), tilewright_host::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct HostQuantized {
    parts: Vec<QuantizedPart>,
}

impl HostQuantized {
    /// Stacks `parts`.
    ///
    /// # Errors
    /// No part, or parts of different columns.
    pub fn new(parts: Vec<QuantizedPart>) -> Result<HostQuantized> {
        let cols = parts.first().map(|part| part.cols);
        let mut stacked: Vec<QuantizedPart> = Vec::with_capacity(parts.len());
        for part in parts {
            require(Some(part.cols) == cols, "cols of a part", format!("{cols:?}"), part.cols)?;
            match stacked.last_mut() {
                Some(last) if last.takes(&part) => {
                    last.0.rows += part.0.rows;
                    last.0.codes.extend(part.0.codes);
                    last.0.scales.extend(part.0.scales);
                    last.0.zeros.extend(part.0.zeros);
                }
                _ => stacked.push(part),
            }
        }
        require(!stacked.is_empty(), "parts", "at least one", 0)?;
        Ok(HostQuantized { parts: stacked })
    }

    /// The parts, top to bottom.
    pub fn parts(&self) -> &[QuantizedPart] {
        &self.parts
    }

    /// Outputs of all parts.
    pub fn rows(&self) -> usize {
        self.parts.iter().map(|part| part.rows).sum()
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.parts[0].cols
    }

    /// All weights by output and activation, `[rows, cols]`, `pre_scale` multiplied in: what a device without kernels for
    /// quantised weights may use in their place, where `activations` is [`ActivationBits::Full`].
    pub fn dequantized(&self) -> Vec<f32> {
        let cols = self.cols();
        let mut all = vec![0.0; self.rows() * cols];
        let mut rows = all.chunks_exact_mut(cols);
        for part in &self.parts {
            for (row, out) in rows.by_ref().take(part.rows).enumerate() {
                part.read_row(row, out);
                if let Some(pre_scale) = &part.pre_scale {
                    out.iter_mut().zip(pre_scale).for_each(|(weight, factor)| *weight *= factor);
                }
            }
        }
        all
    }
}

fn wrong(what: &'static str, expected: impl ToString, found: impl ToString) -> Error {
    Error::Shape { op: "quantized", what, expected: expected.to_string(), found: found.to_string() }
}

fn require(holds: bool, what: &'static str, expected: impl ToString, found: impl ToString) -> Result<()> {
    if holds { Ok(()) } else { Err(wrong(what, expected, found)) }
}

/// The largest of some codes. A loop, since the closures of iterators stayed calls here, one a code.
fn most(codes: &[u8]) -> u8 {
    let mut most = 0;
    for &code in codes {
        most = code.max(most);
    }
    most
}

fn check_finite(what: &'static str, values: &[f32]) -> Result<()> {
    match values.iter().find(|value| !value.is_finite()) {
        None => Ok(()),
        Some(value) => Err(wrong(what, "finite numbers", value)),
    }
}

fn check_permutation(order: &[u32], cols: usize) -> Result<()> {
    require(order.len() == cols, "permutation", format!("{cols} of them"), order.len())?;
    let mut seen = vec![false; cols];
    for &activation in order {
        match seen.get_mut(activation as usize) {
            None => return Err(wrong("permutation", format!("below {cols}"), activation)),
            Some(true) => {
                return Err(wrong("permutation", "each activation once", format!("{activation} twice")));
            }
            Some(seen) => *seen = true,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> QuantizedSpec {
        QuantizedSpec {
            rows: 2,
            cols: 5,
            bits: CodeBits::Four,
            group: 2,
            codes: vec![0, 1, 2, 3, 4, 15, 14, 13, 12, 11],
            scales: vec![1.0, 2.0, 4.0, 0.5, 0.25, 0.0],
            scale_type: DType::F32,
            zeros: vec![0, 1, 2, 8, 9, 15],
            permutation: Some(vec![4, 0, 3, 1, 2]),
            pre_scale: None,
            activations: ActivationBits::Full,
        }
    }

    fn refusal(change: impl FnOnce(&mut QuantizedSpec)) -> String {
        let mut spec = spec();
        change(&mut spec);
        QuantizedPart::new(spec).expect_err("refused").to_string()
    }

    #[test]
    fn weights_follow_groups_and_permutation() {
        let part = QuantizedPart::new(spec()).expect("valid");
        assert_eq!(part.stored_row(0).collect::<Vec<_>>(), [0.0, 1.0, 2.0, 4.0, 8.0]);
        let all = HostQuantized::new(vec![part]).expect("valid").dequantized();
        assert_eq!(all, [1.0, 4.0, 8.0, 2.0, 0.0, 3.0, 0.75, 0.0, 1.0, 3.5]);
    }

    #[test]
    fn parts_join_where_they_agree() {
        let part = |change: fn(&mut QuantizedSpec)| {
            let mut spec = spec();
            change(&mut spec);
            QuantizedPart::new(spec).expect("valid")
        };
        let parts =
            || vec![part(|_| ()), part(|spec| spec.zeros[0] = 3), part(|spec| spec.permutation = None)];
        let stacked = HostQuantized::new(parts()).expect("stacked");
        assert_eq!((stacked.rows(), stacked.parts().len()), (6, 2));
        let apart: Vec<f32> = parts()
            .into_iter()
            .flat_map(|part| HostQuantized::new(vec![part]).expect("one part").dequantized())
            .collect();
        assert_eq!(stacked.dequantized(), apart);
        let narrow = part(|spec| (spec.cols, spec.codes, spec.permutation) = (6, vec![0; 12], None));
        assert!(HostQuantized::new(vec![part(|_| ()), narrow]).is_err());
        assert!(HostQuantized::new(Vec::new()).is_err());
    }

    #[test]
    fn what_does_not_fit_is_named() {
        type Change = fn(&mut QuantizedSpec);
        let cases: [(Change, &str); 13] = [
            (|s| s.group = 0, "group: expected 1 to 5, the columns, found 0"),
            (|s| s.group = 6, "group: expected 1 to 5, the columns, found 6"),
            (|s| s.cols = 0, "cols: expected at least 1, found 0"),
            (|s| s.rows = 3, "codes: expected 3 * 5 of them, found 10"),
            (|s| s.rows = usize::MAX, "codes: expected"),
            (|s| s.scales.truncate(5), "scales: expected 2 * 3 of them, found 5"),
            (|s| s.zeros.push(0), "zeros: expected 2 * 3 of them, found 7"),
            (|s| s.codes[3] = 16, "codes: expected at most 15, found 16"),
            (|s| s.zeros[3] = 16, "zeros: expected at most 15, found 16"),
            (|s| s.scales[3] = f32::NAN, "scales: expected finite numbers, found NaN"),
            (|s| s.permutation = Some(vec![0, 1, 2, 3, 5]), "permutation: expected below 5, found 5"),
            (
                |s| s.permutation = Some(vec![0, 1, 2, 3, 3]),
                "permutation: expected each activation once, found 3 twice",
            ),
            (|s| s.activations = ActivationBits::Eight, "bits: expected 8 where activations have 8, found 4"),
        ];
        for (change, expected) in cases {
            let message = refusal(change);
            assert!(message.contains(expected), "{message:?} is not {expected:?}");
        }
    }
}
