//! The same cases on two drivers, and how far apart what they leave is.

use std::{collections::BTreeMap, fmt::Write as _, sync::Arc};

use tilewright_host::gpu::Driver;
use tilewright_reference::KvFormat;

use crate::{
    emulated::Emulated,
    harness::{Harness, ReadBack, bf16_values, f32_values, u32_values},
    runner::{Example, Suite},
    suites,
};

/// What a buffer is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scalar {
    Bf16,
    F16,
    F32,
    U32,
    /// Signed bytes that stand for multiples of a scale.
    Int8,
    /// e4m3.
    Fp8,
}

impl Scalar {
    /// The largest relative error of rounding to it, of signed bytes relative to the largest; of integers, none.
    fn epsilon(self) -> f64 {
        match self {
            Scalar::Bf16 => 2f64.powi(-8),
            Scalar::F16 => 2f64.powi(-11),
            Scalar::F32 => 2f64.powi(-24),
            Scalar::U32 => 0.0,
            Scalar::Int8 => 0.5 / 127.0,
            Scalar::Fp8 => 2f64.powi(-4),
        }
    }

    fn values(self, bytes: &[u8]) -> Vec<f64> {
        match self {
            Scalar::Bf16 => bf16_values(bytes).into_iter().map(f64::from).collect(),
            Scalar::F16 => {
                let value = |&pair: &[u8; 2]| f64::from(half::f16::from_le_bytes(pair).to_f32());
                bytes.as_chunks().0.iter().map(value).collect()
            }
            Scalar::F32 => f32_values(bytes).into_iter().map(f64::from).collect(),
            Scalar::U32 => u32_values(bytes).into_iter().map(f64::from).collect(),
            Scalar::Int8 => KvFormat::Int8.elements(bytes),
            Scalar::Fp8 => KvFormat::Fp8.elements(bytes),
        }
    }
}

/// How far apart the results of one kernel are.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Difference {
    pub cases: usize,
    pub elements: usize,
    /// Elements that are the same number, or NaN on both sides.
    pub exact: usize,
    /// The largest difference over the larger magnitude of the two, in units of the type's epsilon.
    pub worst_of_own: f64,
    /// The largest difference over the largest magnitude of its buffer, in units of the type's epsilon.
    pub worst_of_largest: f64,
}

impl Difference {
    /// Takes one buffer's results in. Integers that differ are infinitely far apart, and so are numbers of which one is NaN.
    ///
    /// # Errors
    /// If the two haven't the same length.
    fn take(&mut self, scalar: Scalar, one: &[u8], other: &[u8]) -> Result<(), String> {
        if one.len() != other.len() {
            return Err(format!("{} bytes against {}", one.len(), other.len()));
        }
        let (one, other) = (scalar.values(one), scalar.values(other));
        let finite = one.iter().chain(&other).filter(|value| value.is_finite());
        let largest = finite.fold(0f64, |largest, value| largest.max(value.abs()));
        for (&a, &b) in one.iter().zip(&other) {
            self.elements += 1;
            if a == b || (a.is_nan() && b.is_nan()) {
                self.exact += 1;
                continue;
            }
            let units = |magnitude: f64| {
                let units = (a - b).abs() / magnitude / scalar.epsilon();
                if units.is_nan() { f64::INFINITY } else { units }
            };
            self.worst_of_own = self.worst_of_own.max(units(a.abs().max(b.abs())));
            self.worst_of_largest = self.worst_of_largest.max(units(largest));
        }
        Ok(())
    }
}

/// The corners of `suites`, or of all, and `cases` random cases of each, on the emulator and on `other`, a recording harness: the
/// differences by kernel. Whatever fails on either side is told to `failed`, in a line.
pub fn compare<D: Driver>(
    other: &Harness<D>,
    suites: &[String],
    cases: u32,
    failed: &mut dyn FnMut(String),
) -> BTreeMap<&'static str, Difference> {
    let emulated = Harness::checked(Arc::new(Emulated::default())).recording();
    let mut differences = BTreeMap::new();
    let all: Vec<(Suite<Emulated>, Suite<D>)> = suites::all().into_iter().zip(suites::all()).collect();
    let wanted = |kernel: &str| suites.is_empty() || suites.iter().any(|suite| suite == kernel);
    for (on_emulator, on_other) in all.into_iter().filter(|(suite, _)| wanted(suite.kernel)) {
        let pairs = (on_emulator.examples)(cases).into_iter().zip((on_other.examples)(cases));
        for (one, two) in pairs {
            let words = one.words.clone();
            let compared = run(&emulated, &one)
                .map_err(|failure| format!("emulated: {failure}"))
                .and_then(|first| Ok((first, run(other, &two)?)))
                .and_then(|(first, second)| take(&mut differences, &*one.scalar, &first, &second));
            if let Err(failure) = compared {
                failed(format!("{}: {failure}; case: {words}", on_emulator.kernel));
            }
        }
    }
    differences
}

fn run<D: Driver>(harness: &Harness<D>, example: &Example<D>) -> Result<Vec<ReadBack>, String> {
    let checked = (example.check)(harness);
    let read_back = harness.take_read_back();
    checked.map(|()| read_back)
}

fn take(
    differences: &mut BTreeMap<&'static str, Difference>,
    scalar: &dyn Fn(&str) -> Scalar,
    first: &[ReadBack],
    second: &[ReadBack],
) -> Result<(), String> {
    if first.len() != second.len() {
        return Err(format!("{} buffers read back against {}", first.len(), second.len()));
    }
    let mut counted = Vec::new();
    for (one, two) in first.iter().zip(second) {
        if (one.kernel, one.name) != (two.kernel, two.name) {
            return Err(format!("{} of {} against {} of {}", one.name, one.kernel, two.name, two.kernel));
        }
        // What was read before any launch of its memory is nobody's work.
        if one.kernel.is_empty() {
            continue;
        }
        let difference = differences.entry(one.kernel).or_default();
        let taken = difference.take(scalar(one.name), &one.bytes, &two.bytes);
        taken.map_err(|what| format!("{}: {what}", one.name))?;
        if !counted.contains(&one.kernel) {
            counted.push(one.kernel);
            difference.cases += 1;
        }
    }
    Ok(())
}

/// The entries of a GPU's module that `differences` says nothing of.
pub fn left_out(
    differences: &BTreeMap<&'static str, Difference>,
    compute_capability: (u32, u32),
) -> Vec<&'static str> {
    let entries = tilewright_kernels::module::kernels_for(compute_capability).map(|spec| spec.name);
    entries.filter(|name| differences.get(name).is_none_or(|difference| difference.elements == 0)).collect()
}

/// A table of [`compare`]'s answer.
pub fn in_words(differences: &BTreeMap<&'static str, Difference>) -> String {
    let mut text = String::from(
        "| kernel | cases | elements | the same | worst, in epsilons of its own magnitude | of the buffer's largest |\n|---|---|---|---|---|---|\n",
    );
    for (kernel, difference) in differences {
        let Difference { cases, elements, exact, worst_of_own, worst_of_largest } = difference;
        let share = 100.0 * *exact as f64 / (*elements).max(1) as f64;
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "| {kernel} | {cases} | {elements} | {exact} ({share:.3}%) | {worst_of_own:.3} | {worst_of_largest:.3} |"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::bf16_bytes;

    fn difference(scalar: Scalar, one: &[u8], other: &[u8]) -> Difference {
        let mut difference = Difference::default();
        difference.take(scalar, one, other).unwrap();
        difference
    }

    #[test]
    fn differences_are_counted_in_epsilons() {
        // The last bit of 1.0 as bf16 is two epsilons; of a buffer whose largest is 4, half of one.
        let (one, other) = (bf16_bytes(&[4.0, 1.0, -0.0]), bf16_bytes(&[4.0, 1.0078125, 0.0]));
        let found = difference(Scalar::Bf16, &one, &other);
        assert_eq!((found.elements, found.exact), (3, 2));
        assert!((found.worst_of_own - 2.0).abs() < 0.02, "{found:?}");
        assert!((found.worst_of_largest - 0.5).abs() < 1e-9, "{found:?}");
    }

    #[test]
    fn an_entry_without_elements_is_left_out() {
        let entries: Vec<&str> =
            tilewright_kernels::module::kernels_for((9, 0)).map(|spec| spec.name).collect();
        let compared = Difference { cases: 1, elements: 1, exact: 1, ..Difference::default() };
        let mut all: BTreeMap<&'static str, Difference> =
            entries.iter().map(|&name| (name, compared.clone())).collect();
        assert!(left_out(&all, (9, 0)).is_empty());
        all.insert(entries[0], Difference { elements: 0, ..compared });
        all.remove(entries[entries.len() - 1]);
        assert_eq!(left_out(&all, (9, 0)), [entries[0], entries[entries.len() - 1]]);
        assert_eq!(left_out(&all, (8, 0)), [entries[0]]);
    }

    #[test]
    fn a_nan_and_another_integer_are_infinitely_far() {
        let (nan, one) = (bf16_bytes(&[f32::NAN]), bf16_bytes(&[1.0]));
        assert_eq!(difference(Scalar::Bf16, &nan, &nan).exact, 1);
        assert_eq!(difference(Scalar::Bf16, &nan, &one).worst_of_own, f64::INFINITY);
        let found = difference(Scalar::U32, &7u32.to_le_bytes(), &8u32.to_le_bytes());
        assert_eq!((found.exact, found.worst_of_own), (0, f64::INFINITY));
        assert!(Difference::default().take(Scalar::F32, &[0; 4], &[0; 8]).is_err());
    }

    #[test]
    fn each_buffer_is_read_as_what_it_is_made_of() {
        let example = |kernel: &str, words: &str| {
            let suite = suites::all::<Emulated>().into_iter().find(|suite| suite.kernel == kernel).unwrap();
            (suite.examples)(40).into_iter().find(|example| example.words.contains(words)).unwrap()
        };
        let prefill = example("attention_prefill_sm90", "half: F16");
        let made_of = ["out", "lse", "counters"].map(|buffer| (prefill.scalar)(buffer));
        assert_eq!(made_of, [Scalar::F16, Scalar::F32, Scalar::U32]);
        let append = example("rope_append", "format: Fp8");
        let made_of = ["q_out", "k_cache", "v_scales"].map(|buffer| (append.scalar)(buffer));
        assert_eq!(made_of, [Scalar::Bf16, Scalar::Fp8, Scalar::F32]);
        // 1.5 and its negative, in bytes of either kind.
        assert_eq!(Scalar::Fp8.values(&[0x3c, 0xbc]), [1.5, -1.5]);
        assert_eq!(Scalar::Int8.values(&[3, 0xfd]), [3.0, -3.0]);
    }

    #[test]
    fn the_emulator_agrees_with_itself() {
        let mut failures = Vec::new();
        let other = Harness::checked(Arc::new(Emulated::default())).recording();
        let suites = ["gemm_bf16", "rms_norm", "sample"].map(str::to_string);
        let differences = compare(&other, &suites, 1, &mut |failure| failures.push(failure));
        assert_eq!(failures, [""; 0]);
        assert_eq!(differences.len(), 5, "{differences:?}");
        for (kernel, found) in &differences {
            assert!(found.elements > 0 && found.exact == found.elements, "{kernel}: {found:?}");
        }
    }
}
