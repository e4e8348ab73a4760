use std::fmt::Write;

use tilewright::ladder::{Claim, Rung, Verdict};
use tilewright_benches::report::{Ratio, escaped, ratios};

use super::{CPU, ROUNDS, Report, device_name, measured, trial};
use crate::output::Failure;

const STYLE: &str = "body{font:15px/1.5 sans-serif;max-width:1200px;margin:2em auto;padding:0 1em;color:#24292f}\
    svg{box-sizing:border-box;width:100%;height:auto;border:1px solid #e1e4e8;margin:.6em 0}\
    table{border-collapse:collapse;font-size:14px}\
    td,th{padding:4px 10px;border-bottom:1px solid #e1e4e8;text-align:left;vertical-align:top}\
    .met{color:#1a7f37}.partly{color:#9a6700}.not_here{color:#57606a}.no_result{color:#8c959f}small{color:#57606a}";

/// The ladder as one page that needs nothing beside it.
pub(super) fn page(report: &Report, model: &str) -> Result<String, Failure> {
    let ladder = &report.ladder;
    let bar = |rung: &Rung| match (rung.limits, rung.measured) {
        (Claim::Times { from, to }, Some(measured)) => {
            let disturbed = rung.verdict == Verdict::NoResult;
            Some(Ratio { name: rung.name.to_string(), from, to, measured, disturbed })
        }
        _ => None,
    };
    let bars: Vec<Ratio> = ladder.rungs.iter().filter_map(bar).collect();
    let name = match device_name(ladder) {
        CPU => "a CPU",
        name => name,
    };
    let title = format!("What each optimisation is worth on {name}");
    let hollow = if bars.iter().any(|bar| bar.disturbed) { "; hollow: no result" } else { "" };
    let chart = ratios(&format!("Times gained: measured, and the claim as a band{hollow}"), &bars)
        .map_err(|error| Failure::Message(error.to_string()))?;
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>{0}</title>\n<style>{STYLE}</style>\n<h1>{0}</h1>\n<p>{1}; {2}.<br>Model: {3}{4}; {5:.0} s.</p>\n{chart}\n<p>{ROUNDS}</p>\n<table>\n<tr><th>what<th>claim<th>measured<th>verdict<th>of what</tr>\n",
        escaped(&title),
        escaped(&ladder.device),
        escaped(&report.origin()),
        escaped(model),
        trial(ladder),
        ladder.seconds,
    );
    for rung in &ladder.rungs {
        let class = match rung.verdict {
            Verdict::Met => "met",
            Verdict::Partly => "partly",
            Verdict::NotHere => "not_here",
            Verdict::NoResult => "no_result",
        };
        let mut of = escaped(&rung.of);
        for also in &rung.also {
            // Writing to a string can't fail.
            let _ = write!(of, "<br><small>{}: {}</small>", escaped(&also.what), escaped(&also.value));
        }
        if let Some(reason) = &rung.reason {
            let _ = write!(of, "<br><small>{}: {}</small>", rung.verdict.name(), escaped(reason));
        }
        let _ = writeln!(
            page,
            "<tr><td>{}<td>{}<td>{}<td class=\"{class}\">{}<td>{of}</tr>",
            escaped(rung.name),
            escaped(rung.claim),
            escaped(&measured(rung)),
            rung.verdict.name()
        );
    }
    page.push_str("</table>\n</html>\n");
    Ok(page)
}
