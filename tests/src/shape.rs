//! A case from numbers that somebody named: what the suites draw at random, chosen by hand.

use std::{fmt::Display, str::FromStr};

/// Sizes no larger than this: a larger one is a slip of the keyboard.
const LARGEST: usize = 1 << 24;
/// Elements of all tensors of a case. With the host's copies and the oracle's, each takes some 30 bytes.
const MOST_ELEMENTS: u128 = 1 << 27;

/// Numbers by name. A suite takes those it knows, each with a default, and thereby says what there is to name.
#[derive(Debug, Default)]
pub struct Shape {
    given: Vec<(String, String)>,
    parameters: Vec<Parameter>,
    wrong: Vec<String>,
}

/// One number that a suite takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    pub name: &'static str,
    pub default: String,
    /// What it is, and what it may be.
    pub about: String,
}

impl FromStr for Shape {
    type Err = String;

    /// Reads `name=value`, separated by commas.
    fn from_str(text: &str) -> Result<Shape, String> {
        let mut shape = Shape::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (name, value) =
                part.split_once('=').ok_or_else(|| format!("shape: expected name=value, found '{part}'"))?;
            shape.set(name.trim(), value.trim());
        }
        Ok(shape)
    }
}

impl Shape {
    /// Names a number, again if it was named before.
    pub fn set(&mut self, name: &str, value: impl Display) {
        self.given.retain(|(given, _)| given != name);
        self.given.push((name.to_string(), value.to_string()));
    }

    /// A size of at least 1, and a multiple of `step`.
    pub fn size(&mut self, name: &'static str, default: usize, step: usize, about: &str) -> usize {
        let rule = if step > 1 { format!("a multiple of {step}") } else { "at least 1".to_string() };
        self.take(name, default, about, &rule, |&size| {
            size > 0 && size <= LARGEST && size.is_multiple_of(step)
        })
    }

    /// A number that may be 0.
    pub fn count(&mut self, name: &'static str, default: usize, about: &str) -> usize {
        self.take(name, default, about, "at least 0", |&count| count <= LARGEST)
    }

    /// One of a few numbers.
    pub fn one_of(&mut self, name: &'static str, default: usize, allowed: &[usize], about: &str) -> usize {
        let words: Vec<String> = allowed.iter().map(usize::to_string).collect();
        self.take(name, default, about, &words.join(" or "), |size| allowed.contains(size))
    }

    /// 0 or 1.
    pub fn flag(&mut self, name: &'static str, default: bool, about: &str) -> bool {
        self.one_of(name, usize::from(default), &[0, 1], about) == 1
    }

    /// A finite number.
    pub fn number(&mut self, name: &'static str, default: f32, about: &str) -> f32 {
        self.take(name, default, about, "a number", |number| number.is_finite())
    }

    /// The seed that the inputs are filled from.
    pub fn inputs(&mut self) -> u64 {
        self.take("inputs", 1, "seed of the inputs", "an integer", |_| true)
    }

    fn take<T: FromStr + Display>(
        &mut self,
        name: &'static str,
        default: T,
        about: &str,
        rule: &str,
        allowed: impl Fn(&T) -> bool,
    ) -> T {
        let about = format!("{about}: {rule}");
        self.parameters.push(Parameter { name, default: default.to_string(), about });
        let Some(at) = self.given.iter().position(|(given, _)| given == name) else {
            return default;
        };
        let (_, text) = self.given.remove(at);
        match text.parse() {
            Ok(value) if allowed(&value) => value,
            _ => {
                self.wrong.push(format!("{name}: expected {rule}, found '{text}'"));
                default
            }
        }
    }

    /// Whether the case's tensors, by name and extents, are few elements enough to be held; if not, the shape is refused.
    pub fn fits(&mut self, tensors: &[(&str, &[usize])]) -> bool {
        let elements = |extents: &[usize]| {
            extents.iter().fold(1u128, |product, &extent| product.saturating_mul(extent as u128))
        };
        let counted = || tensors.iter().map(|(name, extents)| (elements(extents), *name));
        let total = counted().fold(0u128, |sum, (count, _)| sum.saturating_add(count));
        if total <= MOST_ELEMENTS {
            return true;
        }
        let (most, name) = counted().max().unwrap_or_default();
        self.refuse(format!(
            "shape: expected tensors of at most {MOST_ELEMENTS} elements in all, found {total}, {most} of them in {name}"
        ));
        false
    }

    /// Takes note that the numbers don't go together.
    pub fn refuse(&mut self, why: String) {
        self.wrong.push(why);
    }

    /// What was taken.
    ///
    /// # Errors
    /// Numbers that are out of range or don't go together, and names that nobody took.
    pub fn finish(self) -> Result<Vec<Parameter>, String> {
        let names: Vec<&str> = self.parameters.iter().map(|parameter| parameter.name).collect();
        let unknown = self
            .given
            .first()
            .map(|(name, _)| format!("shape: expected names among {}, found '{name}'", names.join(", ")));
        match self.wrong.into_iter().next().or(unknown) {
            Some(wrong) => Err(wrong),
            None => Ok(self.parameters),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a suite of these parameters would make of `text`.
    fn taken(text: &str) -> Result<(usize, usize, bool), String> {
        let mut shape: Shape = text.parse()?;
        let values = (
            shape.size("cols", 64, 8, "columns"),
            shape.one_of("head_dim", 128, &[64, 128], "size of a head"),
            shape.flag("causal", true, "no key past the query"),
        );
        shape.finish().map(|_| values)
    }

    #[test]
    fn what_is_named_is_taken_and_the_rest_has_defaults() {
        assert_eq!(taken(""), Ok((64, 128, true)));
        assert_eq!(taken("cols=8, causal=0"), Ok((8, 128, false)));
        assert_eq!(taken("head_dim=64,head_dim=128"), Ok((64, 128, true)));
    }

    #[test]
    fn what_cannot_be_is_refused_in_a_line() {
        let refused = |text: &str| taken(text).unwrap_err();
        assert_eq!(refused("cols=12"), "cols: expected a multiple of 8, found '12'");
        assert_eq!(refused("cols=0"), "cols: expected a multiple of 8, found '0'");
        assert_eq!(refused("head_dim=80"), "head_dim: expected 64 or 128, found '80'");
        assert_eq!(refused("rows=2"), "shape: expected names among cols, head_dim, causal, found 'rows'");
        assert_eq!(refused("cols"), "shape: expected name=value, found 'cols'");
        let mut shape = Shape::default();
        assert!(shape.fits(&[("x", &[1 << 20, 127]), ("w", &[1 << 20])]));
        assert!(!shape.fits(&[("x", &[1 << 20, 127]), ("w", &[1 << 20, 2])]));
        let refused_for_size = shape.finish().unwrap_err();
        assert!(refused_for_size.ends_with("found 135266304, 133169152 of them in x"), "{refused_for_size}");
        assert!(!Shape::default().fits(&[("x", &[usize::MAX; 5]), ("w", &[usize::MAX; 5])]));
        assert_eq!(refused("cols=-8"), "cols: expected a multiple of 8, found '-8'");
        assert_eq!(
            refused("cols=99999999999999999999"),
            "cols: expected a multiple of 8, found '99999999999999999999'"
        );
    }
}
