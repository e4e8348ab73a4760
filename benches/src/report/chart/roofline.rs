use plotters::{coord::combinators::LogCoord, prelude::*};

use super::{
    Chart, GRID, HOLLOW, INK, OURS, PEERS, drawn, fill,
    head::{Head, MARK, WIDE},
    ink,
};
use crate::{
    error::Result,
    report::{Limit, Rate, Report, Row, digits, multiplies_bytes},
};

/// Pixels of the plot's height, its axis included.
const PLOT: i32 = 500;
/// What a name of the legend that is no kind of cells says.
const PEER: &str = "the fastest peer";

type Plot<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<LogCoord<f64>, LogCoord<f64>>>;

/// Rates over operations a byte, under the ceilings: a disc for this project's timing of a cell, a cross for its fastest peer's. None
/// where a ceiling was not measured or no cell counts operations.
///
/// # Errors
/// [`crate::Error::Chart`].
pub fn roofline(report: &Report) -> Result<Option<Chart>> {
    let (Some(bandwidth), Some(flops)) = (report.ceiling(Limit::Bandwidth), report.compute_ceiling()) else {
        return Ok(None);
    };
    let units = [Rate::Bytes, Rate::Operations].map(|rate| report.unit(rate));
    let rate = |row: &Row| units[1].of(row.per_second(Rate::Operations));
    let ceilings = [units[0].in_words(bandwidth), units[1].in_words(flops)];
    let (bandwidth, flops) = (units[0].of(bandwidth), units[1].of(flops));
    let rows: Vec<&Row> =
        report.results.iter().filter(|row| row.cost.flops > 0 && shown(report, row)).collect();
    let Some((left, right)) = extent(rows.iter().map(|row| intensity(row))) else { return Ok(None) };
    let (left, right) = (left.min(0.5) / 1.5, right.max(4.0 * flops / bandwidth) * 1.5);
    let lowest = rows.iter().map(|row| rate(row)).fold(left * bandwidth, f64::min);
    let kinds = kinds(&rows);
    let head = head(report, &rows, &kinds, &ceilings);
    let highest = rows.iter().map(|row| rate(row)).fold(flops, f64::max);
    let mut svg = String::new();
    let size = (head.width as u32, (head.height() + PLOT) as u32);
    let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
    drawn(root.fill(&WHITE))?;
    head.draw(&root, |root, index, (x, y)| {
        let middle = (x + MARK / 2, y + MARK / 2);
        drawn(match index < kinds.len() {
            true => root.draw(&Circle::new(middle, 5, colour(index).filled())),
            false => root.draw(&Cross::new(middle, 4, INK.stroke_width(1))),
        })
    })?;
    let (_, below) = root.split_vertically(head.height());
    let mut chart = drawn(
        ChartBuilder::on(&below)
            .margin(14)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d((left..right).log_scale(), (lowest / 1.5..highest * 1.5).log_scale()),
    )?;
    drawn(
        chart
            .configure_mesh()
            .axis_style(INK)
            .bold_line_style(GRID)
            .light_line_style(TRANSPARENT)
            .label_style(ink(12.0))
            .axis_desc_style(ink(13.0))
            .x_desc("operations a byte")
            .y_desc(units[1].name)
            .x_label_formatter(&|value| tick(*value))
            .y_label_formatter(&|value| tick(*value))
            .draw(),
    )?;
    let ridge = flops / bandwidth;
    let roof = [(left, left * bandwidth), (ridge, flops), (right, flops)];
    drawn(chart.draw_series(LineSeries::new(roof, INK.stroke_width(2))))?;
    points(&mut chart, &rows, &kinds, rate)?;
    drop((chart, below));
    drawn(root.present())?;
    drop(root);
    Ok(Some(Chart { name: "roofline".into(), svg, is_wide: true }))
}

/// A number of an axis, which is a round one but for what logarithms leave of it.
fn tick(value: f64) -> String {
    let text = digits(value);
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_string() } else { text }
}

/// This project's rows, and of the peers' the fastest.
fn shown(report: &Report, row: &Row) -> bool {
    row.ours || report.best_peer(&row.cell).is_some_and(|best| best.by == row.by)
}

fn intensity(row: &Row) -> f64 {
    row.cost.flops as f64 / row.cost.bytes as f64
}

fn extent(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |extent, value| {
        let (low, high) = extent.unwrap_or((value, value));
        Some((low.min(value), high.max(value)))
    })
}

/// The kinds of cells, in the order in which they come.
fn kinds<'r>(rows: &[&'r Row]) -> Vec<&'r str> {
    let mut kinds: Vec<&str> = Vec::new();
    for row in rows {
        if !kinds.contains(&kind(row)) {
            kinds.push(kind(row));
        }
    }
    kinds
}

fn kind(row: &Row) -> &str {
    row.cell.split('/').next().unwrap_or_default()
}

fn colour(kind: usize) -> RGBColor {
    const COLOURS: [RGBColor; 7] = [OURS[0], PEERS[0], PEERS[2], PEERS[3], OURS[3], OURS[4], PEERS[1]];
    COLOURS[kind % COLOURS.len()]
}

/// The title and the legend, which stands over the plot: in it there is no place where no point can be.
fn head(report: &Report, rows: &[&Row], kinds: &[&str], [bandwidth, flops]: &[String; 2]) -> Head {
    let mut names: Vec<String> = kinds.iter().map(|kind| kind.to_string()).collect();
    if rows.iter().any(|row| !row.ours) {
        names.push(PEER.to_string());
    }
    let bytes = rows.iter().any(|row| multiplies_bytes(row));
    let title = format!("Roofline of {}", report.machine.device);
    let note = format!(
        "a point a timing: {} over operations a byte; the lines are what was measured, {bandwidth} and {flops}{}{}",
        report.unit(Rate::Operations).name,
        if bytes { "\nproducts of int8 have another roof, which was not measured" } else { "" },
        if rows.iter().any(|row| row.disturbed) { HOLLOW } else { "" },
    );
    Head::new(&title, &note, names, WIDE)
}

/// The rows, each kind in a colour of its own.
fn points<'a>(
    chart: &mut Plot<'a, 'a>,
    rows: &[&Row],
    kinds: &[&str],
    rate: impl Fn(&Row) -> f64,
) -> Result<()> {
    for (index, of) in kinds.iter().enumerate() {
        let of_kind = |ours| rows.iter().filter(move |row| row.ours == ours && kind(row) == *of);
        let at = |row: &&Row| (intensity(row), rate(row));
        let peers = of_kind(false).map(|row| Cross::new(at(row), 4, colour(index).stroke_width(1)));
        drawn(chart.draw_series(peers))?;
        let ours = of_kind(true).map(|row| Circle::new(at(row), 4, fill(colour(index), row)));
        drawn(chart.draw_series(ours))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn axes_have_short_numbers() {
        let texts = [0.004, 0.1 + 0.2, 1.0, 10.0, 1000.0].map(tick);
        assert_eq!(texts, ["0.004", "0.3", "1", "10", "1000"]);
    }

    #[test]
    fn every_cell_that_counts_operations_is_a_point() {
        let mut report = sample();
        let svg = roofline(&report).expect("a chart").expect("both ceilings are there").svg;
        let ours = report.results.iter().filter(|row| row.ours && row.cost.flops > 0);
        let mut kinds: Vec<&str> = ours.clone().filter_map(|row| row.cell.split('/').next()).collect();
        kinds.dedup();
        // A disc a row, and one a kind in the legend.
        assert_eq!(svg.matches("<circle").count(), ours.count() + kinds.len());
        for kind in kinds {
            assert!(svg.contains(kind), "{kind}");
        }
        assert!(svg.contains("4.20 TB/s and 780 TFLOP/s"));
        assert!(svg.contains(PEER));
        report.results.retain(|row| row.ours);
        assert!(!svg.contains(HOLLOW.trim()));
        let point = report.results.iter().position(|row| row.cost.flops > 0).expect("a point");
        report.results[point].disturbed = true;
        let svg = roofline(&report).expect("a chart").expect("both ceilings are there").svg;
        assert!(!svg.contains(PEER) && svg.contains(HOLLOW.trim()));
        report.ceilings.clear();
        assert_eq!(roofline(&report).expect("nothing to draw"), None);
    }
}
