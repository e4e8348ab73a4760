//! What stands over a chart: a title that says all of it, a note, and which mark is whose.

use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::{drawn, ink};
use crate::error::Result;

pub type Area<'b> = DrawingArea<SVGBackend<'b>, Shift>;

/// The widths of charts: a page of 1280 pixels shows two narrow ones beside each other, one of 900 a wide one unscaled.
pub const NARROW: i32 = 600;
pub const WIDE: i32 = 860;
/// Pixels of a title's text, a note's and a name's, and of a line of each.
const TITLE: (f64, i32) = (16.0, 22);
const NOTE: (f64, i32) = (13.0, 19);
const NAME: (f64, i32) = (13.0, 22);
/// Pixels round all of it.
const MARGIN: i32 = 16;
/// Pixels of a mark in the legend.
pub const MARK: i32 = 12;

/// Where a chart's head has its parts, in pixels.
pub struct Head {
    /// Of the whole chart.
    pub width: i32,
    title: Vec<String>,
    note: Vec<String>,
    /// Of each name in the legend: the left, and the line.
    legend: Vec<(i32, i32)>,
    names: Vec<String>,
}

impl Head {
    /// Over a chart whose body takes at least `body` pixels.
    pub fn new(title: &str, note: &str, names: Vec<String>, body: i32) -> Head {
        let width = if body <= NARROW { NARROW } else { body.max(WIDE) };
        let room = width - 2 * MARGIN;
        let legend = legend(&names, width);
        Head { width, title: lines(title, TITLE.0, room), note: lines(note, NOTE.0, room), legend, names }
    }

    fn legend_top(&self) -> i32 {
        MARGIN / 2 + TITLE.1 * self.title.len() as i32 + NOTE.1 * self.note.len() as i32 + 8
    }

    /// Where the chart below it begins.
    pub fn height(&self) -> i32 {
        self.legend_top() + NAME.1 * self.legend.last().map_or(0, |(_, line)| line + 1) + 4
    }

    /// Draws it. `mark` draws the mark of the name of an index, whose upper left corner is given.
    pub fn draw<'b>(
        &self,
        root: &Area<'b>,
        mark: impl Fn(&Area<'b>, usize, (i32, i32)) -> Result<()>,
    ) -> Result<()> {
        let mut y = MARGIN / 2;
        let titles = self.title.iter().map(|line| (line, TITLE));
        for (line, (pixels, height)) in titles.chain(self.note.iter().map(|line| (line, NOTE))) {
            drawn(root.draw(&Text::new(line.clone(), (MARGIN, y), ink(pixels))))?;
            y += height;
        }
        for (index, (name, &(x, line))) in self.names.iter().zip(&self.legend).enumerate() {
            let y = self.legend_top() + NAME.1 * line;
            mark(root, index, (x, y))?;
            let style = ink(NAME.0).pos(Pos::new(HPos::Left, VPos::Center));
            drawn(root.draw(&Text::new(name.clone(), (x + MARK + 6, y + MARK / 2), style)))?;
        }
        Ok(())
    }
}

/// Pixels that a text takes, about, in a wide font: DejaVu Sans.
pub fn text_width(text: &str, pixels: f64) -> i32 {
    let of = |letter: char| match letter {
        ' ' | ',' | ';' | ':' | '.' | '|' | '\'' | 'i' | 'j' | 'l' | 'I' => 0.33,
        'f' | 'r' | 't' | '(' | ')' | '-' | '/' => 0.41,
        'm' | 'w' | 'M' | 'W' | '%' => 0.97,
        'A'..='Z' => 0.76,
        _ => 0.63,
    };
    (text.chars().map(of).sum::<f64>() * pixels).ceil() as i32
}

/// A text in lines of at most so many pixels, as far as its words allow.
fn lines(text: &str, pixels: f64, width: i32) -> Vec<String> {
    let mut lines = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let mut line = words.next().unwrap_or_default().to_string();
        for word in words {
            let longer = format!("{line} {word}");
            if text_width(&longer, pixels) <= width {
                line = longer;
            } else {
                lines.push(std::mem::replace(&mut line, word.to_string()));
            }
        }
        lines.push(line);
    }
    lines
}

/// Names from left to right, and on the next line where this one has no room.
fn legend(names: &[String], room: i32) -> Vec<(i32, i32)> {
    let (mut x, mut line) = (MARGIN, 0);
    let mut places = Vec::new();
    for name in names {
        let width = legend_width(name);
        if x > MARGIN && x + width > room {
            (x, line) = (MARGIN, line + 1);
        }
        places.push((x, line));
        x += width;
    }
    places
}

/// Pixels that a name takes in the legend, its mark and the gap after it included.
fn legend_width(name: &str) -> i32 {
    MARK + 6 + text_width(name, NAME.0) + 18
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_have_places_of_their_own_within_the_chart() {
        let names: Vec<String> = (0..9).map(|index| format!("attention_prefill_{index}")).collect();
        for body in [0, NARROW, NARROW + 1, WIDE] {
            let head = Head::new("a title", "", names.clone(), body);
            assert!([NARROW, WIDE].contains(&head.width) && head.width >= body, "{body}: {}", head.width);
            assert_eq!(head.legend.iter().collect::<HashSet<_>>().len(), names.len());
            for (name, (left, _)) in names.iter().zip(&head.legend) {
                assert!(left + legend_width(name) <= head.width, "{body}: {name}");
            }
            let of_one = Head::new("a title", "", names[..1].to_vec(), body);
            assert!(of_one.height() < head.height());
        }
    }

    #[test]
    fn a_text_takes_what_its_letters_do() {
        // By the advances of DejaVu Sans at 13 pixels: names stand as far apart as each other in a legend, and don't meet.
        for (text, real) in [
            ("prefill", 37.0),
            ("gemm", 41.5),
            ("rope_append", 85.0),
            ("the fastest peer", 103.5),
            ("attention_prefill_sm90", 145.3),
            ("Roofline of NVIDIA H200", 157.7),
        ] {
            let width = f64::from(text_width(text, 13.0));
            assert!((real..1.1 * real).contains(&width), "{text}: {width}");
        }
    }

    #[test]
    fn long_titles_go_on_in_the_next_line() {
        let title = "products of some model ".repeat(6);
        let head = Head::new(&title, "", Vec::new(), 0);
        assert!(head.title.len() > 1);
        assert!(head.title.iter().all(|line| text_width(line, TITLE.0) <= NARROW - 2 * MARGIN));
        assert_eq!(head.title.join(" "), title.trim());
        // A word that is longer than a line has one.
        assert_eq!(lines(&"x".repeat(300), 16.0, 100).len(), 1);
        assert_eq!(lines("one two\nthree", 10.0, 500), ["one two", "three"]);
    }
}
