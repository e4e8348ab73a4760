//! What is to be said of figures that would be taken for something else without.

use tilewright::ladder::WIDEST_SPREAD;

use super::{Bound, EndToEnd, Report, Row};

/// What stands in the place of a row's part of the ceilings where the machine did something else.
pub(crate) const NO_RESULT: &str = "no result";

/// What is to be said where a row passes the ceiling of memory and its inputs were not rotated past the caches; on a CPU and elsewhere, as
/// with all pairs here.
const IN_CACHES: [&str; 2] = [
    "Over 100% of most: operands that are used again lie in caches, which give more than memory does, or the machine did something \
     else too while the ceiling was measured.",
    "Over 100% of most: operands that are used again lie in caches, which give more than memory does.",
];

/// What is to be said where one whose inputs were passes it.
const READS: &str = "Over 100% of most with cold caches: the ceiling of memory is that of a copy or a sum, and a kernel can be some percent faster.";

/// What is to be said where one passes the ceiling of arithmetic.
const ARITHMETIC: [&str; 2] = [
    "Over 100% of most where arithmetic holds a row up: its ceiling was measured while the machine did something else too.",
    "Over 100% of most where arithmetic holds a row up: its ceiling is the rate of one product, and another shape, or the clock of another \
     moment, can be some percent faster.",
];

/// What the ceiling of a whole model is.
const WHOLE: [&str; 2] = [
    "Ceiling of a whole model: the time of its operations and of the bytes that a step reads at least. Their rate was measured by reading as \
     many again and again, since caches keep what fits them from step to step. Rates are those of the fastest of three to five runs.",
    "Ceiling of a whole model: the time of its operations and of the bytes that a step reads at least, by the ceilings above. Rates are those of the \
     fastest of three to five runs.",
];

/// What is to be said where a whole model passes its ceiling.
const WHOLE_OVER: [&str; 2] = [
    "Over 100%: the ceiling was measured while the machine did something else too.",
    "Over 100%: what fits the L2 lies there from step to step, which gives more than memory does.",
];

impl Report {
    /// What is to be said of rows that pass a ceiling, and of those that are no results.
    pub(super) fn remarks(&self) -> Vec<String> {
        let over = |bound, cold: &[bool]| {
            let over = |row: &Row| !row.disturbed && row.fraction.is_some_and(|fraction| fraction > 1.0);
            let mut rows = self.results.iter().filter(|row| over(row) && cold.contains(&row.cold));
            rows.any(|row| self.bound(row) == Some(bound))
        };
        let remarks = [
            (Bound::Memory, &[false][..], IN_CACHES[self.on()]),
            (Bound::Memory, &[true], READS),
            (Bound::Compute, &[false, true], ARITHMETIC[self.on()]),
        ];
        let remarks = remarks.into_iter().filter(|&(bound, cold, _)| over(bound, cold));
        let disturbed = self.results.iter().any(|row| row.disturbed).then(no_result);
        remarks.map(|(.., remark)| remark.to_string()).chain(disturbed).collect()
    }

    /// What is to be said at the end where most rows are no results.
    pub fn disturbance(&self) -> Option<String> {
        let kernels = self.results.iter().map(|row| row.disturbed);
        let disturbed: Vec<bool> = kernels.chain(self.end_to_end.iter().map(|end| end.disturbed)).collect();
        let (rows, none) = (disturbed.len(), disturbed.iter().filter(|disturbed| **disturbed).count());
        (2 * none > rows).then(|| {
            format!(
                "{none} of {rows} rows are no results: the machine did something else while they were timed"
            )
        })
    }

    /// What is to be said of whole models.
    pub(super) fn whole_models(&self) -> Vec<String> {
        let has_ceiling = |end: &EndToEnd| end.ceiling.is_some();
        let over =
            |end: &EndToEnd| !end.disturbed && end.ceiling.is_some_and(|most| end.tokens_per_second > most);
        let on = self.on();
        let notes = [
            (self.end_to_end.iter().any(has_ceiling), WHOLE[on]),
            (self.end_to_end.iter().any(over), WHOLE_OVER[on]),
        ];
        let notes = notes.into_iter().filter(|(said, _)| *said).map(|(_, note)| note.to_string());
        notes.chain(self.end_to_end.iter().any(|end| end.disturbed).then(no_result)).collect()
    }

    /// Which of a pair of remarks holds.
    fn on(&self) -> usize {
        usize::from(!self.machine.is_cpu())
    }
}

/// What is to be said where rows are no results.
fn no_result() -> String {
    format!(
        "No result: the outer tenths of a row's timings lie more than {:.0}% of their median apart; the machine did something else.",
        100.0 * WIDEST_SPREAD
    )
}

#[cfg(test)]
mod tests {
    use super::{
        super::{page, sample, table},
        *,
    };

    #[test]
    fn more_than_a_ceiling_gives_is_explained() {
        for (on, driver) in DRIVERS.into_iter().enumerate() {
            explained_on(on, driver);
        }
    }

    /// Of a CPU and of a GPU.
    const DRIVERS: [&str; 2] = ["none", "580.1"];

    fn explained_on(on: usize, driver: &str) {
        let mut report = sample();
        report.machine.driver = driver.into();
        let told = |report: &Report| {
            let page = page(report).expect("a page");
            let text = table(report);
            let told = |remark: &str| {
                assert_eq!(page.contains(remark), text.contains(remark), "{remark}");
                page.contains(remark)
            };
            assert!(!told(ARITHMETIC[1 - on]) && !told(IN_CACHES[1 - on]));
            (told(IN_CACHES[on]), told(READS), told(ARITHMETIC[on]))
        };
        assert_eq!(told(&report), (false, false, false));
        let at = |report: &Report, bound| {
            report.results.iter().position(|row| report.bound(row) == Some(bound)).expect("a row")
        };
        let (memory, compute) = (at(&report, Bound::Memory), at(&report, Bound::Compute));
        report.results[memory].fraction = Some(1.2);
        assert_eq!(told(&report), (false, true, false));
        report.results[memory].cold = false;
        assert_eq!(told(&report), (true, false, false));
        report.results[compute].fraction = Some(1.2);
        assert_eq!(told(&report), (true, false, true));
    }

    #[test]
    fn rows_of_a_busy_machine_are_no_results() {
        let mut report = sample();
        let rows = report.results.len();
        let ours = report.results.iter().position(|row| report.speedup(row).is_some()).expect("a row");
        let peer = report.best_peer(&report.results[ours].beside).expect("a peer").by.clone();
        let told = |report: &Report| {
            let (page, text) = (page(report).expect("a page"), table(report));
            assert_eq!(page.contains(&no_result()), text.contains(&no_result()));
            assert_eq!(page.matches(&format!("<td>{NO_RESULT}<")).count(), text.matches(NO_RESULT).count());
            (text.contains(&no_result()), text.matches(NO_RESULT).count())
        };
        assert_eq!(told(&report), (false, 0));
        let mut disturb = |index: usize| {
            report.results[index].disturbed = true;
            // What it would be part of isn't said, whatever it is.
            report.results[index].fraction = Some(160.0);
        };
        disturb(ours);
        assert_eq!(told(&report), (true, 1));
        assert_eq!((report.speedup(&report.results[ours]), report.disturbance()), (None, None));
        assert!(!table(&report).contains("Over 100%"));
        // Nor is anything compared with a peer's that is none.
        report.results[ours].disturbed = false;
        assert!(report.speedup(&report.results[ours]).is_some());
        let of = report.results[ours].beside.clone();
        let theirs = report.results.iter().position(|row| row.by == peer && row.cell == of).expect("it");
        report.results[theirs].disturbed = true;
        assert_eq!(report.speedup(&report.results[ours]), None);
        report.results.iter_mut().enumerate().for_each(|(index, row)| row.disturbed = 2 * index > rows);
        let none = report.results.iter().filter(|row| row.disturbed).count();
        assert_eq!((report.disturbance(), 2 * none < rows), (None, true));
        report.results.iter_mut().enumerate().for_each(|(index, row)| row.disturbed = 2 * index <= rows);
        let note = report.disturbance().expect("more than half");
        assert!(note.starts_with(&format!("{} of {rows} rows are no results", rows - none)), "{note}");
    }

    #[test]
    fn whole_models_say_what_their_ceiling_is() {
        for (on, driver) in DRIVERS.into_iter().enumerate() {
            let mut report = sample();
            report.machine.driver = driver.into();
            let mut told = |ceiling| {
                report.end_to_end = vec![EndToEnd::new("decode".into(), "demo", &[99.0, 100.0], ceiling)];
                let (page, table) = (page(&report).expect("a page"), table(&report));
                [WHOLE[on], WHOLE_OVER[on]].map(|note| (page.contains(note), table.contains(note)))
            };
            let (no, yes) = ((false, false), (true, true));
            assert_eq!(told(None), [no, no]);
            assert_eq!(told(Some(200.0)), [yes, no]);
            assert_eq!(told(Some(90.0)), [yes, yes]);
        }
    }

    #[test]
    fn whole_models_of_a_busy_machine_are_no_results() {
        let mut report = sample();
        report.results.clear();
        let end = |rates: &[f64]| EndToEnd::new("decode".into(), "demo", rates, Some(90.0));
        let told = |report: &Report| {
            let (page, text) = (page(report).expect("a page"), table(report));
            let said = text.matches(NO_RESULT).count();
            assert_eq!(page.matches(&format!("<td>{NO_RESULT}<")).count(), said, "{text}");
            assert_eq!(page.matches("class=\"end disturbed\"").count(), said);
            assert_eq!(page.contains(&no_result()), text.contains(&no_result()));
            (said, text.contains(&no_result()), text.contains("Over 100%"))
        };
        report.end_to_end = vec![end(&[100.0, 95.0, 98.0]), end(&[80.0, 79.0, 81.0])];
        assert_eq!((told(&report), report.disturbance()), ((0, false, true), None));
        // What it would be part of isn't said, nor why it is more than that.
        report.end_to_end[0] = end(&[100.0, 50.0, 30.0]);
        assert_eq!((told(&report), report.disturbance()), ((1, true, false), None));
        let json = serde_json::to_value(&report).expect("JSON");
        assert_eq!(json["end_to_end"][0]["disturbed"], true);
        assert_eq!(
            (&json["end_to_end"][1]["disturbed"], &json["end_to_end"][1]["runs"]),
            (&false.into(), &3.into())
        );
        // A rate that is none.
        report.end_to_end[1] = end(&[0.0, 80.0]);
        let note = report.disturbance().expect("all of them");
        assert!(note.starts_with("2 of 2 rows are no results"), "{note}");
        // Beside kernels' rows the reason is told once.
        report.results = sample().results;
        report.results[0].disturbed = true;
        assert_eq!(table(&report).matches(&no_result()).count(), 1);
    }
}
