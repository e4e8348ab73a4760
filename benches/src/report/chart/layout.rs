//! Where a chart of bars has its parts, so that it can be read however many there are.

use std::ops::Range;

use super::{
    bars::Family,
    head::{Head, WIDE, text_width},
};
use crate::problem::Problem;

/// Pixels of a bar, and between groups of bars.
pub const BAR: i32 = 20;
pub const GAP: i32 = 26;
/// Pixels of the text under a group.
pub const GROUP: f64 = 12.0;
/// Pixels of the axis' numbers, and of the names under a strip.
pub const LEFT: i32 = 76;
const BOTTOM: i32 = 36;
/// Pixels of the highest bar's axis, in a chart of one strip and of several.
const PLOT: i32 = 240;
const PLOT_OF_STRIPS: i32 = 180;

/// Where a chart's parts lie, in pixels.
pub struct Layout {
    pub head: Head,
    pub group_width: i32,
    /// The groups of each strip.
    pub strips: Vec<Range<usize>>,
    plot: i32,
    /// The rate at the axis' top, and between its lines.
    pub top: f64,
    pub step: f64,
}

impl Layout {
    pub fn of(family: &Family<'_>) -> Layout {
        let longest = family.groups.iter().map(|name| text_width(name, GROUP)).max().unwrap_or(0);
        // Room for as many bars as there are in a group, and for its name.
        let bars = GAP + BAR * family.series.len() as i32;
        let group_width = bars.max(longest + GAP / 2);
        let strips = strips(family, ((WIDE - LEFT - GAP) / group_width).max(1) as usize);
        let longest = strips.iter().map(|strip| strip.len() as i32).max().unwrap_or(0);
        let largest = family.bars.iter().map(|(_, _, value, _)| *value).fold(0.0, f64::max);
        let step = nice_step(largest);
        let names = family.series.iter().map(|(name, _)| name.clone()).collect();
        let head = Head::new(&family.title(), &family.note(), names, LEFT + group_width * longest + GAP);
        Layout {
            // Few groups stand apart over the whole width.
            group_width: (head.width - LEFT - GAP) / longest.max(1),
            head,
            plot: if strips.len() > 1 { PLOT_OF_STRIPS } else { PLOT },
            strips,
            // Room for the values, which stand upright on the bars.
            top: ((largest * 1.2 / step).ceil() * step).max(step),
            step,
        }
    }

    pub fn height(&self) -> i32 {
        self.head.height() + (self.plot + BOTTOM) * self.strips.len().max(1) as i32
    }

    pub fn y(&self, strip: usize, value: f64) -> i32 {
        let zero = self.head.height() + self.plot + (self.plot + BOTTOM) * strip as i32;
        zero - (value / self.top * f64::from(self.plot)).round() as i32
    }
}

/// Columns and rows of a group's weights, where it is of products.
fn weights(family: &Family<'_>, group: usize) -> Option<(usize, usize)> {
    let (.., row) = family.bars.iter().find(|(of, ..)| *of == group)?;
    match row.problem {
        Problem::Gemm(gemm) => Some((gemm.n, gemm.k)),
        _ => None,
    }
}

/// The groups in strips of at most `most`.
fn strips(family: &Family<'_>, most: usize) -> Vec<Range<usize>> {
    let groups: Vec<usize> = (0..family.groups.len()).collect();
    let alike = |a: &usize, b: &usize| weights(family, *a).is_some_and(|of| weights(family, *b) == Some(of));
    even(&groups.chunk_by(alike).collect::<Vec<_>>(), most)
}

/// As few strips of at most `most` groups as there can be, and as even as they are without cutting what fits.
fn even(same: &[&[usize]], most: usize) -> Vec<Range<usize>> {
    let fewest = filled(same, most);
    let longest = same.iter().map(|same| same.len()).max().unwrap_or(1).min(most);
    let shorter = (longest..most).map(|most| filled(same, most));
    shorter.into_iter().find(|strips| strips.len() == fewest.len()).unwrap_or(fewest)
}

/// Neighbours in strips of at most `most` groups. What is in one piece of `same` stays together where it fits.
fn filled(same: &[&[usize]], most: usize) -> Vec<Range<usize>> {
    let mut strips: Vec<Range<usize>> = Vec::new();
    for same in same {
        let pieces = same.len().div_ceil(most);
        for piece in same.chunks(same.len().div_ceil(pieces)) {
            match strips.last_mut() {
                Some(strip) if strip.len() + piece.len() <= most => strip.end += piece.len(),
                _ => strips.push(piece[0]..piece[0] + piece.len()),
            }
        }
    }
    strips
}

/// A step of 1, 2 or 5 times a power of ten that divides `largest` into about five.
fn nice_step(largest: f64) -> f64 {
    let rough = largest.max(1e-9) / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .map(|factor| factor * power)
        .into_iter()
        .find(|step| *step >= rough)
        .unwrap_or(rough)
}

/// What stands beside a line of the axis.
pub fn shown(value: f64, step: f64) -> String {
    let decimals = if step >= 1.0 { 0 } else { (-step.log10()).ceil() as usize };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::{
        super::{bars::families, head::NARROW},
        *,
    };
    use crate::report::{Report, Row, sample};

    /// The sample with `kernels` of this project's in each of its cells.
    fn crowded(kernels: usize) -> Report {
        let mut report = sample();
        let ours: Vec<_> = report.results.iter().filter(|row| row.ours).cloned().collect();
        for kernel in 1..kernels {
            report.results.extend(ours.iter().cloned().map(|mut row| {
                row.by = format!("kernel_{kernel}");
                row
            }));
        }
        report
    }

    /// A report, and two more products like each of its.
    fn thrice(mut report: Report) -> Report {
        let products = |row: &&Row| matches!(row.problem, Problem::Gemm(_));
        let rows: Vec<Row> = report.results.iter().filter(products).cloned().collect();
        for copy in ["1", "2"] {
            report.results.extend(rows.iter().cloned().map(|mut row| {
                (row.cell, row.beside) = (row.cell + copy, row.beside + copy);
                row
            }));
        }
        report
    }

    #[test]
    fn no_chart_is_wider_than_a_page_however_much_it_holds() {
        for report in [sample(), crowded(3), crowded(6), thrice(crowded(3))] {
            for family in families(&report) {
                let layout = Layout::of(&family);
                let width = layout.head.width;
                assert!([NARROW, WIDE].contains(&width), "{}: {width}", family.name);
                let groups: Vec<usize> = layout.strips.iter().cloned().flatten().collect();
                assert_eq!(groups, (0..family.groups.len()).collect::<Vec<_>>(), "{}", family.name);
            }
        }
    }

    #[test]
    fn strips_are_even() {
        let lengths = |groups: &[usize], most| {
            let mut next = 0;
            let groups: Vec<Vec<usize>> = groups
                .iter()
                .map(|len| {
                    next += len;
                    (next - len..next).collect()
                })
                .collect();
            let same: Vec<&[usize]> = groups.iter().map(|group| &group[..]).collect();
            even(&same, most).into_iter().map(|strip| strip.len()).collect::<Vec<_>>()
        };
        assert_eq!(lengths(&[1; 8], 7), [4, 4]);
        assert_eq!(lengths(&[1; 7], 7), [7]);
        assert_eq!(lengths(&[1; 13], 6), [5, 5, 3]);
        // What is the same stays together, even where that is uneven, and is cut where it must be.
        assert_eq!(lengths(&[5, 1], 5), [5, 1]);
        assert_eq!(lengths(&[5, 5, 5, 5], 6), [5, 5, 5, 5]);
        assert_eq!(lengths(&[9], 6), [5, 4]);
        assert_eq!(lengths(&[], 6), [0; 0]);
    }

    #[test]
    fn products_with_the_same_weights_share_a_strip() {
        let report = crowded(3);
        let families = families(&report);
        let few = families.iter().find(|family| family.name == "gemm of few rows bf16").expect("a family");
        let layout = Layout::of(few);
        assert!(layout.strips.len() > 1, "all in one strip");
        for edge in layout.strips.windows(2) {
            assert_ne!(weights(few, edge[0].end - 1), weights(few, edge[1].start), "{edge:?}");
        }
    }

    #[test]
    fn strips_lie_below_each_other() {
        let report = crowded(3);
        for family in families(&report) {
            let layout = Layout::of(&family);
            let mut above = layout.head.height();
            for strip in 0..layout.strips.len() {
                assert_eq!(layout.y(strip, layout.top), above, "{}", family.name);
                above = layout.y(strip, 0.0) + BOTTOM;
            }
            assert_eq!(above, layout.height(), "{}", family.name);
        }
    }

    #[test]
    fn steps_are_round_numbers() {
        for (largest, step) in [(700.0, 200.0), (4.3, 1.0), (0.9, 0.2), (10.0, 2.0)] {
            assert!((nice_step(largest) - step).abs() < 1e-9, "{largest}: {}", nice_step(largest));
        }
        assert_eq!((shown(0.4, 0.2), shown(400.0, 200.0)), ("0.4".to_string(), "400".to_string()));
    }
}
