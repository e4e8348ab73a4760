use super::{Bound, EndToEnd, NO_RESULT, Rate, Report, Row};

/// The report as text: the machine, the ceilings, a line a timing.
pub fn table(report: &Report) -> String {
    let machine = &report.machine;
    let mut lines = vec![format!("{}, {}", machine.device, machine.origin(&report.commit, &report.date))];
    for ceiling in &report.ceilings {
        let rate = report.unit(ceiling.limit.rate()).in_words(ceiling.per_second);
        lines.push(format!("ceiling {} by {}: {rate}", ceiling.name, ceiling.by));
    }
    lines.extend(rows(report));
    lines.extend(report.remarks());
    lines.extend(report.end_to_end.iter().map(whole_model));
    for note in report.whole_models() {
        if !lines.contains(&note) {
            lines.push(note);
        }
    }
    for failure in &report.failures {
        lines.push(format!("not measured: {} by {}: {}", failure.cell, failure.by, failure.reason));
    }
    lines.join("\n") + "\n"
}

/// A line a timing under what stands in it, where there is one.
fn rows(report: &Report) -> Vec<String> {
    if report.results.is_empty() {
        return Vec::new();
    }
    let cell_width = report.results.iter().map(|row| row.cell.len()).max().unwrap_or(0).max(4);
    let by_width = report.results.iter().map(|row| row.by.len()).max().unwrap_or(0).max(2);
    let mut lines = vec![format!(
        "{:cell_width$}  {:by_width$}  {:>10}  {:>10}  {:>7}  {:>8}  {:>8}  {:>9}  {:7}  {:>7}  {}",
        "cell",
        "by",
        "median us",
        "min us",
        "spread",
        report.unit(Rate::Operations).name,
        report.unit(Rate::Bytes).name,
        "of most",
        "bound",
        "to peer",
        "how"
    )];
    for row in &report.results {
        let time = &row.time;
        let percent = of_most(row);
        let speedup = report.speedup(row).map_or("-".to_string(), |speedup| format!("{speedup:.2}x"));
        lines.push(format!(
            "{:cell_width$}  {:by_width$}  {:10.2}  {:10.2}  {:6.1}%  {:>8}  {:>8}  {:>9}  {:7}  {:>7}  {}",
            row.cell,
            row.by,
            time.median_us,
            time.min_us,
            100.0 * time.spread(),
            report.rate(row, Rate::Operations),
            report.rate(row, Rate::Bytes),
            percent,
            report.bound(row).map_or("-", Bound::name),
            speedup,
            how(row)
        ));
    }
    lines
}

/// A whole model's rate, and what it is part of, if it is a result.
fn whole_model(end: &EndToEnd) -> String {
    let of = match end.ceiling {
        _ if end.disturbed => {
            format!(", {NO_RESULT}: {} runs whose spread is {:.1}%", end.runs, 100.0 * end.spread)
        }
        None => String::new(),
        Some(ceiling) => {
            let percent = 100.0 * end.tokens_per_second / ceiling;
            format!(", {percent:.1}% of the {ceiling:.0} that the ceilings allow")
        }
    };
    format!("{}, {}: {:.1} tok/s{of}", end.model, end.what, end.tokens_per_second)
}

/// The part of the ceilings that a row reaches, if it is a result.
pub(super) fn of_most(row: &Row) -> String {
    match row.fraction {
        _ if row.disturbed => NO_RESULT.to_string(),
        Some(fraction) => format!("{:.1}%", 100.0 * fraction),
        None => "-".to_string(),
    }
}

/// How a row was timed.
fn how(row: &Row) -> String {
    let mode = row.mode.name();
    let sets = if row.sets == 1 { String::new() } else { format!(", {} sets", row.sets) };
    let clock = row.clocks.map(|clocks| format!(", {:.0} MHz {:.0} W", clocks.sm_mhz, clocks.power_watts));
    let cache = if row.cold { "cold" } else { "warm" };
    format!("{mode} {cache}{sets}{}", clock.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::super::{Failure, sample};
    use super::*;

    #[test]
    fn every_row_and_failure_is_a_line() {
        let mut report = sample();
        report.failures.push(Failure { cell: "x/y".into(), by: "fa2".into(), reason: "gone".into() });
        let text = table(&report);
        assert_eq!(text.lines().count(), 2 + report.ceilings.len() + report.results.len() + 1);
        for row in &report.results {
            let line = text.lines().find(|line| line.starts_with(&row.cell) && line.contains(&row.by));
            assert!(line.is_some_and(|line| line.contains(&report.rate(row, Rate::Bytes))), "{}", row.cell);
        }
        assert!(text.ends_with("not measured: x/y by fa2: gone\n"));
    }

    #[test]
    fn nothing_stands_under_no_heading() {
        let mut report = sample();
        assert!(table(&report).contains("median us"));
        report.results.clear();
        assert_eq!(table(&report).lines().count(), 1 + report.ceilings.len());
    }
}
