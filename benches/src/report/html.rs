use std::fmt::Write as _;

use super::{Bound, Chart, NO_RESULT, Rate, Report, bars, roofline, table::of_most};
use crate::error::Result;

/// Charts stand beside each other where there is room, and are drawn as large as that is, up to half as large again; what a narrow window
/// has no room for is scrolled within its own frame.
const STYLE: &str = "body{font:15px/1.5 sans-serif;max-width:1440px;margin:2em auto;padding:0 1em;color:#24292f;background:#fff}\
    .charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(600px,100%),1fr));gap:12px}\
    figure{margin:0 0 12px}.frame{max-width:100%;overflow-x:auto}\
    .narrow{max-width:900px}.wide{max-width:1290px;grid-column:1/-1}\
    svg{display:block;box-sizing:border-box;border:1px solid #e1e4e8;width:100%;min-width:600px;height:auto}\
    p{max-width:72em}\
    code{overflow-wrap:anywhere}\
    table{border-collapse:collapse;font-size:13px}\
    td,th{padding:2px 8px;border-bottom:1px solid #e1e4e8;text-align:right;white-space:nowrap}\
    td:first-child,th:first-child,td:nth-child(2),th:nth-child(2){text-align:left}\
    tr.ours{background:#eef4ff}tr.disturbed{color:#8c959f}";

/// What a column of the table holds.
const MOST: &str = "Of most: the least time that the ceilings above allow, over the median. Bound: which of them holds a row up.";

/// The report as one page that needs nothing beside it.
///
/// # Errors
/// [`crate::Error::Chart`].
pub fn page(report: &Report) -> Result<String> {
    let machine = &report.machine;
    let mut page = String::new();
    let alone = report.peers.is_empty();
    let what = match (alone, report.results.is_empty()) {
        (_, true) => "Whole models",
        (true, false) => "Kernels",
        (false, false) => "Side by side",
    };
    let title = format!("{what} on {}", escaped(&machine.device));
    push(
        &mut page,
        &format!(
            "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n<style>{STYLE}</style>\n<h1>{title}</h1>\n"
        ),
    );
    push(
        &mut page,
        &format!(
            "<p>Measured with {}. Peers: {}. Medians; inputs random{}.</p>\n<ul>\n",
            escaped(&machine.origin(&report.commit, &report.date)),
            if alone { "none".into() } else { escaped(&report.peers.join(", ")) },
            caches(report),
        ),
    );
    for ceiling in &report.ceilings {
        let rate = report.unit(ceiling.limit.rate()).in_words(ceiling.per_second);
        let (name, by) = (escaped(&ceiling.name), escaped(&ceiling.by));
        push(&mut page, &format!("<li>ceiling: {name} by {by}, {rate}</li>\n"));
    }
    push(&mut page, "</ul>\n");
    end_to_end(&mut page, report);
    let (products, others): (Vec<_>, Vec<_>) =
        bars(report)?.into_iter().partition(|chart| chart.name.starts_with("gemm"));
    charts(&mut page, "Attention and rows", &others);
    charts(&mut page, "Matrix products", &products);
    timings(&mut page, report)?;
    for failure in &report.failures {
        let (cell, by, reason) = (escaped(&failure.cell), escaped(&failure.by), escaped(&failure.reason));
        push(&mut page, &format!("<p>Not measured: {cell} by {by}: {reason}</p>\n"));
    }
    push(&mut page, &format!("<p><code>{}</code></p>\n</html>\n", escaped(&report.command)));
    Ok(page)
}

fn push(page: &mut String, text: &str) {
    // Writing to a String does not fail.
    let _ = page.write_str(text);
}

/// Charts of one kind, by their names.
fn charts(page: &mut String, title: &str, charts: &[Chart]) {
    if charts.is_empty() {
        return;
    }
    push(page, &format!("<h2>{title}</h2>\n<div class=\"charts\">\n"));
    charts.iter().for_each(|chart| figure(page, chart));
    push(page, "</div>\n");
}

fn figure(page: &mut String, chart: &Chart) {
    let width = if chart.is_wide { "wide" } else { "narrow" };
    push(page, &format!("<figure class=\"frame {width}\">{}</figure>\n", chart.svg));
}

/// What the caches held when a run began: of all rows, or that each says so itself.
fn caches(report: &Report) -> &'static str {
    match (one_of(report, true), one_of(report, false), report.machine.is_cpu()) {
        (false, false, _) => "",
        (true, true, _) => {
            "; a row says whether caches were cold (inputs rotated past them) or warm (the same ones in every run)"
        }
        (true, false, _) => "; caches cold: inputs are rotated past the L2",
        (false, true, true) => "; caches warm: every run has the same inputs, of which they keep what fits",
        (false, true, false) => "; the L2 warm: every run has the same inputs, of which it keeps what fits",
    }
}

fn one_of(report: &Report, cold: bool) -> bool {
    report.results.iter().any(|row| row.cold == cold)
}

/// Every timing: as a point under the roofline, and as a row.
fn timings(page: &mut String, report: &Report) -> Result<()> {
    if report.results.is_empty() {
        return Ok(());
    }
    push(page, &format!("<h2>Timings</h2>\n<p class=\"note\">{MOST}</p>\n"));
    for remark in report.remarks() {
        push(page, &format!("<p class=\"note\">{remark}</p>\n"));
    }
    if let Some(chart) = roofline(report)? {
        figure(page, &chart);
    }
    rows(page, report);
    Ok(())
}

fn rows(page: &mut String, report: &Report) {
    let mixed = one_of(report, true) && one_of(report, false);
    let alone = report.peers.is_empty();
    let to_peer = if alone { "" } else { "<th>to the best peer" };
    let caches = if mixed { "<th>caches" } else { "" };
    let [operations, bytes] = [Rate::Operations, Rate::Bytes].map(|rate| report.unit(rate).name);
    push(
        page,
        &format!(
            "<div class=\"frame\"><table>\n<tr><th>cell<th>by<th>median, us<th>min<th>p10<th>p90<th>{operations}<th>{bytes}<th>of most<th>bound{to_peer}{caches}</tr>\n"
        ),
    );
    for row in &report.results {
        let class = match (row.ours, row.disturbed) {
            (true, true) => " class=\"ours disturbed\"",
            (true, false) => " class=\"ours\"",
            (false, true) => " class=\"disturbed\"",
            (false, false) => "",
        };
        let time = &row.time;
        let fraction = of_most(row);
        let speedup = report.speedup(row).map_or("-".into(), |speedup| format!("{speedup:.2}x"));
        let speedup = if alone { String::new() } else { format!("<td>{speedup}") };
        let caches = match row.cold {
            _ if !mixed => "",
            true => "<td>cold",
            false => "<td>warm",
        };
        push(
            page,
            &format!(
                "<tr{class}><td>{}<td>{}<td>{:.2}<td>{:.2}<td>{:.2}<td>{:.2}<td>{}<td>{}<td>{fraction}<td>{}{speedup}{caches}</tr>\n",
                escaped(&row.cell),
                escaped(&row.by),
                time.median_us,
                time.min_us,
                time.p10_us,
                time.p90_us,
                report.rate(row, Rate::Operations),
                report.rate(row, Rate::Bytes),
                report.bound(row).map_or("-", Bound::name),
            ),
        );
    }
    push(page, "</table></div>\n");
}

fn end_to_end(page: &mut String, report: &Report) {
    if report.end_to_end.is_empty() {
        return;
    }
    push(page, "<h2>Whole models</h2>\n");
    for note in report.whole_models() {
        push(page, &format!("<p class=\"note\">{note}</p>\n"));
    }
    push(
        page,
        "<div class=\"frame\"><table>\n<tr class=\"end\"><th>model<th>what<th>tok/s<th>runs<th>spread<th>ceiling, tok/s<th>of it</tr>\n",
    );
    for end in &report.end_to_end {
        let ceiling = end.ceiling.map_or("-".to_string(), |most| format!("{most:.0}"));
        let part = match end.ceiling {
            _ if end.disturbed => NO_RESULT.to_string(),
            None => "-".to_string(),
            Some(most) => format!("{:.1}%", 100.0 * end.tokens_per_second / most),
        };
        let class = if end.disturbed { "end disturbed" } else { "end" };
        let (model, what) = (escaped(&end.model), escaped(&end.what));
        let (rate, runs) = (end.tokens_per_second, end.runs);
        let spread = format!("{:.1}%", 100.0 * end.spread);
        push(
            page,
            &format!(
                "<tr class=\"{class}\"><td>{model}<td>{what}<td>{rate:.1}<td>{runs}<td>{spread}<td>{ceiling}<td>{part}</tr>\n"
            ),
        );
    }
    push(page, "</table></div>\n");
}

/// Text for a page.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::{Failure, sample};
    use super::*;

    #[test]
    fn the_page_holds_every_row_and_needs_nothing_else() {
        let mut report = sample();
        report.failures.push(Failure {
            cell: "a/b".into(),
            by: "fa2".into(),
            reason: "1 < 2 & \"so\"".into(),
        });
        let page = page(&report).expect("a page");
        for row in &report.results {
            assert!(page.contains(&format!("<td>{}<td>{}<td>", row.cell, row.by)), "{}", row.cell);
        }
        assert_eq!(page.matches("<tr").count(), report.results.len() + 1);
        assert!(page.contains("1 &lt; 2 &amp; &quot;so&quot;"));
        for outside in ["src=", "href=", "@import"] {
            assert!(!page.contains(outside), "{outside}");
        }
    }

    #[test]
    fn the_head_says_how_caches_were_on_this_device() {
        let head = |driver: &str, cold: &[bool]| {
            let mut report = sample();
            report.machine.driver = driver.into();
            report.results.iter_mut().zip(cold.iter().cycle()).for_each(|(row, cold)| row.cold = *cold);
            let page = page(&report).expect("a page");
            let column = page.contains("<th>caches");
            (page.split("<ul>").next().expect("a head").to_string(), column)
        };
        let (cold, column) = head("580.1", &[true]);
        assert!(cold.contains("caches cold") && !cold.contains("warm") && !column, "{cold}");
        for driver in ["none", "580.1"] {
            let (warm, column) = head(driver, &[false]);
            assert!(warm.contains("warm") && !warm.contains("cold") && !column, "{warm}");
        }
        let (mixed, column) = head("580.1", &[true, false]);
        assert!(mixed.contains("a row says") && column, "{mixed}");
    }
}
