use std::ops::Range;

use plotters::{
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::{
    Chart, GRID, HOLLOW, INK, OURS, PEERS, drawn, fill,
    head::{Area, MARK, NARROW},
    ink,
    layout::{BAR, GAP, GROUP, LEFT, Layout, shown},
};
use crate::{
    error::Result,
    problem::Problem,
    report::{Bound, Rate, Report, Row, Unit, digits},
};

/// One chart's worth: cells that differ in one number, or in whether they are paged or quantised.
pub struct Family<'r> {
    pub name: String,
    rate: Rate,
    unit: Unit,
    device: &'r str,
    /// Names under the groups.
    pub groups: Vec<String>,
    /// Names in the legend, this project's first.
    pub series: Vec<(String, bool)>,
    /// `(group, series, value, row)`.
    pub bars: Vec<(usize, usize, f64, &'r Row)>,
}

/// A chart of grouped bars for each family of cells.
///
/// A cell that stands beside another's peers is a bar in that cell's group, its rate counted as if it did that cell's work.
///
/// # Errors
/// [`crate::Error::Chart`].
pub fn bars(report: &Report) -> Result<Vec<Chart>> {
    families(report).iter().map(Family::draw).collect()
}

/// The family of a cell, its name there, and what its rate counts.
fn place(report: &Report, row: &Row) -> (String, String, Rate) {
    match row.problem {
        Problem::Gemm(gemm) => {
            // How few rows are few depends on the device; without ceilings nobody knows better than the problem.
            let bound = report.bound(row);
            let few = bound.map_or(!row.problem.is_compute(), |bound| bound == Bound::Memory);
            let (name, rate) =
                if few { ("gemm of few rows", Rate::Bytes) } else { ("gemm", Rate::Operations) };
            let cell = row.cell.rsplit('/').next().unwrap_or_default();
            let model = model(row).map_or(String::new(), |model| format!(" {model}"));
            (format!("{name} {}{model}", gemm.weights.name()), cell.to_string(), rate)
        }
        Problem::Prefill(_) | Problem::Decode(_) => {
            let (family, group) = row.beside.rsplit_once('/').unwrap_or(("", &row.beside));
            (family.trim_end_matches("/bf16").to_string(), group.to_string(), row.telling())
        }
        _ => ("rows".to_string(), row.cell.clone(), row.telling()),
    }
}

/// The model whose product a row is of: cells of one are called `gemm/MODEL/WEIGHTS/SHAPE`.
fn model(row: &Row) -> Option<&str> {
    let parts: Vec<&str> = row.cell.split('/').collect();
    (parts.len() == 4).then(|| parts[1])
}

/// The places of rows. Families of one name each are one family of their operation, or each would be a chart of one bar.
fn places(report: &Report, rows: &[&Row]) -> Vec<(String, String, Rate)> {
    let places: Vec<_> = rows.iter().map(|row| place(report, row)).collect();
    let is_alone = |family: &str| {
        let mut groups = places.iter().filter(|(name, ..)| name == family).map(|(_, group, _)| group);
        let first = groups.next();
        groups.all(|group| Some(group) == first)
    };
    let merged = |(name, group, rate): &(String, String, Rate)| match name.split_once('/') {
        Some((operation, rest)) if is_alone(name) => {
            (operation.to_string(), format!("{rest}/{group}"), *rate)
        }
        _ => (name.clone(), group.clone(), *rate),
    };
    places.iter().map(merged).collect()
}

/// Who it is, and what sets its cell apart from the one it stands beside.
fn series_name(row: &Row) -> String {
    let known: Vec<&str> = row.beside.split('/').collect();
    let apart: Vec<&str> = row.cell.split('/').filter(|part| !known.contains(part)).collect();
    if apart.is_empty() { row.by.clone() } else { format!("{}, {}", row.by, apart.join(", ")) }
}

pub fn families(report: &Report) -> Vec<Family<'_>> {
    let mut families: Vec<Family<'_>> = Vec::new();
    // This project's first, in every legend.
    let of = |ours| report.results.iter().filter(move |row| row.ours == ours);
    let rows: Vec<&Row> = of(true).chain(of(false)).collect();
    for (row, (name, group, rate)) in rows.iter().zip(places(report, &rows)) {
        let index = families.iter().position(|family| family.name == name).unwrap_or_else(|| {
            let (groups, series, bars) = (Vec::new(), Vec::new(), Vec::new());
            let (unit, device) = (report.unit(rate), &*report.machine.device);
            families.push(Family { name, rate, unit, device, groups, series, bars });
            families.len() - 1
        });
        let family = &mut families[index];
        let group = position(&mut family.groups, group);
        let series = position(&mut family.series, (series_name(row), row.ours));
        let beside = report.results.iter().find(|other| other.cell == row.beside).unwrap_or(row);
        let per_second = beside.work(family.rate) as f64 / row.time.median_us * 1e6;
        family.bars.push((group, series, family.unit.of(per_second), row));
    }
    families
}

fn position<T: PartialEq>(known: &mut Vec<T>, item: T) -> usize {
    known.iter().position(|other| *other == item).unwrap_or_else(|| {
        known.push(item);
        known.len() - 1
    })
}

impl Family<'_> {
    fn colour(&self, series: usize) -> RGBColor {
        let ours = self.series[series].1;
        let before = self.series[..series].iter().filter(|(_, other)| *other == ours).count();
        if ours { OURS[before % OURS.len()] } else { PEERS[before % PEERS.len()] }
    }

    /// What it shows, for somebody who sees nothing but the chart.
    pub fn title(&self) -> String {
        let rest: Vec<String> = self.name.split('/').skip(1).map(in_words).collect();
        let of = if rest.is_empty() { String::new() } else { format!(": {}", rest.join(", ")) };
        let Some((.., row)) = self.bars.first() else { return self.name.clone() };
        match row.problem {
            Problem::Prefill(_) => format!("Attention of prompts{of}"),
            Problem::Decode(_) => format!("Attention of new tokens over cached ones{of}"),
            Problem::Gemm(gemm) => {
                let model = model(row).map_or(String::new(), |model| format!(" of {model}"));
                let rows = if self.rate == Rate::Bytes {
                    "few rows, as in decoding"
                } else {
                    "many rows, as in prompts"
                };
                format!("Matrix products{model}: {}, {rows}", gemm.weights.in_words())
            }
            _ if self.bars.iter().all(|(.., row)| matches!(row.problem, Problem::RopeAppend(_))) => {
                "Rotating queries and keys, caching keys and values".to_string()
            }
            _ => "Kernels that take rows one by one".to_string(),
        }
    }

    /// What was counted, where, and what stands under the bars.
    pub fn note(&self) -> String {
        let under = match self.bars.first().map(|(.., row)| row.problem) {
            Some(Problem::Prefill(_)) if self.groups.iter().any(|group| group.contains('x')) => {
                "prompts x tokens of each".to_string()
            }
            Some(Problem::Prefill(of)) => format!("tokens of a prompt ({} in all)", of.seqs * of.seq_len),
            Some(Problem::Decode(_)) => "sequences x tokens cached of each".to_string(),
            Some(Problem::Gemm(_)) => "m x n x k: m rows by weights of n columns and k rows".to_string(),
            _ => "cells, as the table names them".to_string(),
        };
        let by = match self.bars.iter().any(|(_, _, _, row)| row.cost != self.work_of(row)) {
            true => "; quantised caches by the bytes of bf16",
            false => "",
        };
        let hollow = if self.bars.iter().any(|(.., row)| row.disturbed) { HOLLOW } else { "" };
        format!("{} on {}{by}\nunder the bars: {under}{hollow}", self.unit.name, self.device)
    }

    fn draw(&self) -> Result<Chart> {
        let layout = Layout::of(self);
        let mut svg = String::new();
        let root = SVGBackend::with_string(&mut svg, (layout.head.width as u32, layout.height() as u32));
        let root = root.into_drawing_area();
        drawn(root.fill(&WHITE))?;
        layout.head.draw(&root, |root, index, (x, y)| {
            let square = Rectangle::new([(x, y), (x + MARK, y + MARK)], self.colour(index).filled());
            drawn(root.draw(&square))
        })?;
        for (strip, groups) in layout.strips.iter().enumerate() {
            draw_axis(&root, &layout, strip)?;
            self.draw_bars(&root, &layout, strip, groups.clone())?;
        }
        drawn(root.present())?;
        drop(root);
        Ok(Chart { name: self.name.replace(['/', ' '], "-"), svg, is_wide: layout.head.width > NARROW })
    }

    /// The cost that a row's bar was reckoned by.
    fn work_of(&self, row: &Row) -> crate::problem::Cost {
        let beside = self.bars.iter().map(|(_, _, _, other)| other).find(|other| other.cell == row.beside);
        beside.map_or(row.cost, |beside| beside.cost)
    }

    fn draw_bars(&self, root: &Area<'_>, layout: &Layout, strip: usize, groups: Range<usize>) -> Result<()> {
        let width = layout.group_width;
        let y = |value| layout.y(strip, value);
        for (place, group) in groups.enumerate() {
            let first = LEFT + GAP / 2 + place as i32 * width;
            let mut here: Vec<_> = self.bars.iter().filter(|(of, ..)| *of == group).collect();
            here.sort_by_key(|(_, series, ..)| *series);
            // Bars that a group lacks leave no holes.
            let start = first + (width - GAP - BAR * here.len() as i32) / 2;
            for (place, (_, series, value, row)) in here.iter().enumerate() {
                let left = start + BAR * place as i32;
                let corners = [(left + 1, y(*value)), (left + BAR - 1, y(0.0))];
                drawn(root.draw(&Rectangle::new(corners, fill(self.colour(*series), row))))?;
                let upright = ink(11.0).transform(FontTransform::Rotate270);
                let upright = upright.pos(Pos::new(HPos::Left, VPos::Center));
                let text = digits(*value);
                drawn(root.draw(&Text::new(text, (left + BAR / 2, y(*value) - 4), upright)))?;
            }
            let middle = first + (width - GAP) / 2;
            let style = ink(GROUP).pos(Pos::new(HPos::Center, VPos::Top));
            drawn(root.draw(&Text::new(self.groups[group].clone(), (middle, y(0.0) + 8), style)))?;
        }
        Ok(())
    }
}

/// A part of a cell's name.
fn in_words(part: &str) -> String {
    match part.strip_prefix("hd") {
        Some(head_dim) if head_dim.parse::<u32>().is_ok() => format!("head dim {head_dim}"),
        _ if matches!(part, "full" | "causal") => format!("{part} mask"),
        _ => part.to_string(),
    }
}

fn draw_axis(root: &Area<'_>, layout: &Layout, strip: usize) -> Result<()> {
    let right = ink(12.0).pos(Pos::new(HPos::Right, VPos::Center));
    for tick in 0..=(layout.top / layout.step).round() as usize {
        let value = tick as f64 * layout.step;
        let y = layout.y(strip, value);
        let line = [(LEFT, y), (layout.head.width - GAP / 2, y)];
        drawn(root.draw(&PathElement::new(line, if tick == 0 { INK } else { GRID })))?;
        drawn(root.draw(&Text::new(shown(value, layout.step), (LEFT - 8, y), right.clone())))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        problem::GemmWeights,
        report::sample,
        shapes::{self, ModelShape, Sizes},
    };

    #[test]
    fn every_cell_has_a_bar_with_its_value_and_its_name() {
        let report = sample();
        let families = families(&report);
        let bars: usize = families.iter().map(|family| family.bars.len()).sum();
        assert_eq!(bars, report.results.len());
        for family in &families {
            let svg = family.draw().expect("a chart").svg;
            // The background, the legend and the bars.
            assert_eq!(svg.matches("<rect").count(), 1 + family.series.len() + family.bars.len());
            for (group, _, value, row) in &family.bars {
                assert!(svg.contains(&format!("\n{}\n", family.groups[*group])), "{}", row.cell);
                let text = format!("\n{}\n", digits(*value));
                assert!(svg.contains(&text), "{}: {text}", row.cell);
            }
        }
    }

    #[test]
    fn a_quantised_cache_is_reckoned_by_the_work_it_replaces() {
        let report = sample();
        let families = families(&report);
        let decode = families.iter().find(|family| family.name == "decode").expect("a family");
        let find =
            |cell: &str| decode.bars.iter().find(|bar| bar.3.cell == cell && bar.3.ours).expect("a bar");
        let (int8, bf16) = (find("decode/int8/64x4096"), find("decode/bf16/64x4096"));
        let expected = bf16.3.cost.bytes as f64 / int8.3.time.median_us / 1e6;
        assert!((int8.2 - expected).abs() < 1e-9 && int8.0 == bf16.0 && int8.1 != bf16.1);
    }

    #[test]
    fn no_chart_is_of_one_bar_where_its_operation_has_more() {
        let mut report = sample();
        report.results.retain(|row| row.ours && row.cell.starts_with("prefill/hd128/full/"));
        report.results.truncate(2);
        for (row, name) in report.results.iter_mut().zip(["prefill/one/1x512", "prefill/two/1x512"]) {
            (row.cell, row.beside) = (name.into(), name.into());
        }
        let families = families(&report);
        assert_eq!((families.len(), families[0].name.as_str()), (1, "prefill"));
        assert_eq!(families[0].groups, ["one/1x512", "two/1x512"]);
    }

    #[test]
    fn bars_of_what_is_no_result_are_hollow() {
        let mut report = sample();
        let hollow = |report: &Report| {
            let svgs = bars(report).expect("charts");
            let charts = svgs.iter().filter(|chart| chart.svg.contains(HOLLOW.trim())).count();
            (
                charts,
                svgs.iter().map(|chart| chart.svg.matches("fill=\"none\" stroke=").count()).sum::<usize>(),
            )
        };
        let (charts, lines) = hollow(&report);
        assert_eq!(charts, 0);
        report.results[0].disturbed = true;
        assert_eq!(hollow(&report), (1, lines + 1));
    }

    #[test]
    fn products_are_told_by_what_holds_them_up() {
        let mut report = sample();
        report.results.retain(|row| row.ours && matches!(row.problem, Problem::Gemm(_)));
        for family in families(&report) {
            let expected = if family.rate == Rate::Bytes { Bound::Memory } else { Bound::Compute };
            assert!(
                family.bars.iter().all(|(.., row)| report.bound(row) == Some(expected)),
                "{}",
                family.name
            );
            assert_eq!(family.name.contains("few rows"), family.rate == Rate::Bytes);
        }
    }

    #[test]
    fn a_chart_says_of_what_it_is() {
        let mut report = sample();
        let shape = ModelShape {
            name: "some-8b".into(),
            hidden: 4096,
            inter: 8192,
            q_heads: 32,
            kv_heads: 8,
            head_dim: 128,
        };
        let (rows, weights) = (vec![1, 4096], vec![GemmWeights::Bf16, GemmWeights::Int4]);
        let sizes = Sizes { seq_len: 512, batch: 2, context: 1000, rows, weights };
        let row = report.results[0].clone();
        let cells = shapes::Family::ALL.map(|family| shapes::cells(&shape, &sizes, family)).concat();
        let timed = |cell| Row::new(cell, &row.by, true, row.mode, 1, true, row.time);
        report.results.extend(cells.iter().map(timed));
        let svgs = bars(&report).expect("charts");
        let families = families(&report);
        let titles: Vec<String> = families.iter().map(Family::title).collect();
        for title in [
            "Attention of prompts: head dim 128, causal mask",
            "Matrix products of some-8b: bf16 weights, few rows, as in decoding",
            "Matrix products of some-8b: 4-bit weights, many rows, as in prompts",
            "Matrix products: int8 weights, few rows, as in decoding",
        ] {
            assert!(titles.iter().any(|other| other == title), "{title} is not in {titles:?}");
        }
        for (family, Chart { name, svg, .. }) in families.iter().zip(&svgs) {
            let says = |text: &str| svg.contains(&format!("\n{text}\n"));
            assert!(says(&format!("{} on an imaginary GPU", family.unit.name)) || name == "decode", "{name}");
            assert!(svg.contains("\nunder the bars: "), "{name}");
            assert_eq!(titles.iter().filter(|title| **title == family.title()).count(), 1, "{name}");
        }
    }
}
