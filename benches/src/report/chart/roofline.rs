use plotters::{
    coord::combinators::LogCoord,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::{FONT, GRID, INK, OURS, PEERS, drawn, ink};
use crate::{
    error::Result,
    report::{Limit, Report, Row, digits},
};

const SIZE: (u32, u32) = (980, 560);

type Plot<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<LogCoord<f64>, LogCoord<f64>>>;

/// Rates over operations a byte, under the ceilings: a disc for this project's timing of a cell, a cross for its fastest peer's. None
/// where a ceiling was not measured or no cell counts operations.
///
/// # Errors
/// [`crate::Error::Chart`].
pub fn roofline(report: &Report) -> Result<Option<String>> {
    let (Some(bandwidth), Some(flops)) = (report.ceiling(Limit::Bandwidth), report.compute_ceiling()) else {
        return Ok(None);
    };
    let (bandwidth, flops) = (bandwidth / 1e12, flops / 1e12);
    let rows: Vec<&Row> =
        report.results.iter().filter(|row| row.cost.flops > 0 && shown(report, row)).collect();
    let Some((left, right)) = extent(rows.iter().map(|row| intensity(row))) else { return Ok(None) };
    let (left, right) = (left.min(0.5) / 1.5, right.max(4.0 * flops / bandwidth) * 1.5);
    let lowest = rows.iter().map(|row| row.tflops()).fold(left * bandwidth, f64::min);
    let mut svg = String::new();
    let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
    drawn(root.fill(&WHITE))?;
    let mut chart = drawn(
        ChartBuilder::on(&root)
            .caption("Roofline: TFLOP/s over operations a byte", (FONT, 17).into_font().color(&INK))
            .margin(14)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d((left..right).log_scale(), (lowest / 1.5..flops * 2.0).log_scale()),
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
            .y_desc("TFLOP/s")
            .draw(),
    )?;
    let ridge = flops / bandwidth;
    let roof = [(left, left * bandwidth), (ridge, flops), (right, flops)];
    drawn(chart.draw_series(LineSeries::new(roof, INK.stroke_width(2))))?;
    let label = |text: String, x: f64, from: HPos| {
        Text::new(text, (x, flops * 1.06), ink(13.0).pos(Pos::new(from, VPos::Bottom)))
    };
    // Over the roof, where no point can be: what lies in caches passes the slope.
    let labels = [
        label(format!("{} TFLOP/s measured", digits(flops)), right / 1.05, HPos::Right),
        label(format!("slope: {} TB/s measured", digits(bandwidth)), left * 1.05, HPos::Left),
    ];
    drawn(chart.draw_series(labels))?;
    points(&mut chart, &rows)?;
    drop(chart);
    drawn(root.present())?;
    drop(root);
    Ok(Some(svg))
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

/// The kinds of cells, each in a colour of its own, and the legend that says so.
fn points<'a>(chart: &mut Plot<'a, 'a>, rows: &[&Row]) -> Result<()> {
    let mut kinds: Vec<&str> = Vec::new();
    for row in rows {
        let kind = row.cell.split('/').next().unwrap_or_default();
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    let colours = [OURS[0], PEERS[0], PEERS[2], PEERS[3], OURS[3], OURS[4], PEERS[1]];
    for (index, kind) in kinds.into_iter().enumerate() {
        let colour = colours[index % colours.len()];
        let of_kind = || rows.iter().filter(|row| row.cell.split('/').next() == Some(kind));
        let at = |row: &&&Row| (intensity(row), row.tflops());
        let peers =
            of_kind().filter(|row| !row.ours).map(|row| Cross::new(at(&row), 4, colour.stroke_width(1)));
        drawn(chart.draw_series(peers))?;
        let ours = of_kind().filter(|row| row.ours).map(|row| Circle::new(at(&row), 4, colour.filled()));
        let series = drawn(chart.draw_series(ours))?;
        series.label(kind).legend(move |(x, y)| Circle::new((x + 8, y), 4, colour.filled()));
    }
    if rows.iter().any(|row| !row.ours) {
        let series = drawn(chart.draw_series(std::iter::empty::<Circle<(f64, f64), i32>>()))?;
        series.label("the fastest peer").legend(|(x, y)| Cross::new((x + 8, y), 4, INK.stroke_width(1)));
    }
    drawn(
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .margin(14)
            .background_style(WHITE.filled())
            .border_style(GRID)
            .label_font(ink(13.0))
            .draw(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn every_cell_that_counts_operations_is_a_point() {
        let mut report = sample();
        let svg = roofline(&report).expect("a chart").expect("both ceilings are there");
        let ours = report.results.iter().filter(|row| row.ours && row.cost.flops > 0);
        let mut kinds: Vec<&str> = ours.clone().filter_map(|row| row.cell.split('/').next()).collect();
        kinds.dedup();
        // A disc a row, and one a kind in the legend.
        assert_eq!(svg.matches("<circle").count(), ours.count() + kinds.len());
        for kind in kinds {
            assert!(svg.contains(kind), "{kind}");
        }
        assert!(svg.contains("780 TFLOP/s measured") && svg.contains("4.20 TB/s measured"));
        assert!(svg.contains("the fastest peer"));
        report.results.retain(|row| row.ours);
        let svg = roofline(&report).expect("a chart").expect("both ceilings are there");
        assert!(!svg.contains("the fastest peer"));
        report.ceilings.clear();
        assert_eq!(roofline(&report).expect("nothing to draw"), None);
    }
}
