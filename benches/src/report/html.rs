use std::fmt::Write as _;

use super::{Bound, Limit, Report, bars, digits, roofline};
use crate::error::Result;

const STYLE: &str = "body{font:15px/1.5 sans-serif;max-width:1500px;margin:2em auto;padding:0 1em;color:#24292f}\
    svg{max-width:100%;height:auto;border:1px solid #e1e4e8;margin:.6em 0}\
    table{border-collapse:collapse;font-size:13px}\
    td,th{padding:2px 10px;border-bottom:1px solid #e1e4e8;text-align:right;white-space:nowrap}\
    td:first-child,th:first-child,td:nth-child(2),th:nth-child(2){text-align:left}\
    tr.ours{background:#eef4ff}";

/// The report as one page that needs nothing beside it.
///
/// # Errors
/// [`crate::Error::Chart`].
pub fn page(report: &Report) -> Result<String> {
    let machine = &report.machine;
    let mut page = String::new();
    let alone = report.peers.is_empty();
    let title = format!("{} on {}", if alone { "Kernels" } else { "Side by side" }, escaped(&machine.device));
    // A CPU has none.
    let driver = match &machine.driver[..] {
        "none" => "Commit".to_string(),
        driver => format!("Driver {}, commit", escaped(driver)),
    };
    push(
        &mut page,
        &format!(
            "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title>\n<style>{STYLE}</style>\n<h1>{title}</h1>\n"
        ),
    );
    push(
        &mut page,
        &format!(
            "<p>{driver} {}, {}. Peers: {}. Medians; inputs random; L2 cold unless a row says warm.</p>\n<ul>\n",
            escaped(&report.commit),
            escaped(&report.date),
            if alone { "none".into() } else { escaped(&report.peers.join(", ")) },
        ),
    );
    for ceiling in &report.ceilings {
        let unit = if ceiling.limit == Limit::Bandwidth { "TB/s" } else { "TFLOP/s" };
        let (name, by, rate) = (escaped(&ceiling.name), escaped(&ceiling.by), ceiling.per_second / 1e12);
        push(&mut page, &format!("<li>ceiling: {name} by {by}, {rate:.4} {unit}</li>\n"));
    }
    push(&mut page, "</ul>\n");
    for (_, svg) in bars(report)? {
        push(&mut page, &svg);
    }
    if let Some(svg) = roofline(report)? {
        push(&mut page, &svg);
    }
    rows(&mut page, report);
    end_to_end(&mut page, report);
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

fn rows(page: &mut String, report: &Report) {
    let alone = report.peers.is_empty();
    let to_peer = if alone { "" } else { "<th>to the best peer" };
    push(
        page,
        &format!(
            "<table>\n<tr><th>cell<th>by<th>median, us<th>min<th>p10<th>p90<th>TFLOP/s<th>TB/s<th>of most<th>bound{to_peer}<th>L2</tr>\n"
        ),
    );
    for row in &report.results {
        let class = if row.ours { " class=\"ours\"" } else { "" };
        let time = &row.time;
        let fraction = row.fraction.map_or("-".into(), |fraction| format!("{:.1}%", 100.0 * fraction));
        let speedup = report.speedup(row).map_or("-".into(), |speedup| format!("{speedup:.2}x"));
        let speedup = if alone { String::new() } else { format!("<td>{speedup}") };
        push(
            page,
            &format!(
                "<tr{class}><td>{}<td>{}<td>{:.2}<td>{:.2}<td>{:.2}<td>{:.2}<td>{}<td>{}<td>{fraction}<td>{}{speedup}<td>{}</tr>\n",
                escaped(&row.cell),
                escaped(&row.by),
                time.median_us,
                time.min_us,
                time.p10_us,
                time.p90_us,
                digits(row.tflops()),
                digits(row.terabytes()),
                report.bound(row).map_or("-", Bound::name),
                if row.cold { "cold" } else { "warm" },
            ),
        );
    }
    push(page, "</table>\n");
    for remark in report.remarks() {
        push(page, &format!("<p>{remark}</p>\n"));
    }
}

fn end_to_end(page: &mut String, report: &Report) {
    if report.end_to_end.is_empty() {
        return;
    }
    push(
        page,
        "<h2>Whole models</h2>\n<table>\n<tr class=\"end\"><th>model<th>what<th>tok/s<th>ceiling<th>of it</tr>\n",
    );
    for end in &report.end_to_end {
        let (ceiling, part) = match end.ceiling {
            None => ("-".to_string(), "-".to_string()),
            Some(most) => (format!("{most:.0}"), format!("{:.1}%", 100.0 * end.tokens_per_second / most)),
        };
        let (model, what) = (escaped(&end.model), escaped(&end.what));
        let rate = end.tokens_per_second;
        push(
            page,
            &format!("<tr class=\"end\"><td>{model}<td>{what}<td>{rate:.1}<td>{ceiling}<td>{part}</tr>\n"),
        );
    }
    push(page, "</table>\n");
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
}
