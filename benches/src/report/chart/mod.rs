//! Charts as SVG.

mod bars;
mod head;
mod layout;
mod ratios;
mod roofline;

use plotters::prelude::*;

pub use self::{
    bars::bars,
    ratios::{Ratio, ratios},
    roofline::roofline,
};
use super::Row;
use crate::error::Error;

/// A drawing that scales with the room it is given.
#[derive(Debug, Clone, PartialEq)]
pub struct Chart {
    /// Serves as a file's.
    pub name: String,
    pub svg: String,
    /// Whether it takes the place of two beside each other.
    pub is_wide: bool,
}

const FONT: &str = "sans-serif";
/// Text and lines.
const INK: RGBColor = RGBColor(36, 41, 47);
/// Lines that only help reading.
const GRID: RGBColor = RGBColor(225, 228, 232);
/// This project's kernels: blues, in the order in which they come.
const OURS: [RGBColor; 5] = [
    RGBColor(31, 95, 208),
    RGBColor(104, 164, 250),
    RGBColor(12, 48, 120),
    RGBColor(20, 150, 170),
    RGBColor(150, 120, 220),
];
/// Peers: warm colours and grey, likewise.
const PEERS: [RGBColor; 4] =
    [RGBColor(235, 130, 50), RGBColor(150, 155, 160), RGBColor(90, 160, 70), RGBColor(200, 70, 90)];

/// What a note ends with where bars or discs are no results.
const HOLLOW: &str = "\nhollow: no result";

/// A bar or a disc of a row's.
fn fill(colour: RGBColor, row: &Row) -> ShapeStyle {
    if row.disturbed { colour.stroke_width(1) } else { colour.filled() }
}

fn drawn<T, E: std::error::Error>(result: std::result::Result<T, E>) -> Result<T, Error> {
    result.map_err(|error| Error::Chart(error.to_string().replace('\n', " ")))
}

/// Text of that many pixels. plotters' own measure is of a line of it, 1.24 times as high.
fn ink(pixels: f64) -> TextStyle<'static> {
    (FONT, pixels * 1.24).into_font().color(&INK)
}
