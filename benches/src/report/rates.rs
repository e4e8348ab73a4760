//! Rates as they are told: a CPU's in thousandths of a GPU's units.

use super::{Limit, Report, Row};

/// What a rate counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rate {
    /// Bytes moved.
    Bytes,
    /// Operations done.
    Operations,
}

/// What a device's rates are told in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Unit {
    pub name: &'static str,
    per_second: f64,
}

impl Unit {
    /// So many a second, in this unit.
    pub fn of(self, per_second: f64) -> f64 {
        per_second / self.per_second
    }

    /// With the unit's name.
    pub fn in_words(self, per_second: f64) -> String {
        format!("{} {}", digits(self.of(per_second)), self.name)
    }
}

impl Limit {
    /// What is limited.
    pub fn rate(self) -> Rate {
        if self == Limit::Bandwidth { Rate::Bytes } else { Rate::Operations }
    }
}

impl Row {
    /// Bytes or operations a second by the median.
    pub fn per_second(&self, rate: Rate) -> f64 {
        self.work(rate) as f64 / self.time.median_us * 1e6
    }

    /// The rate that tells most.
    pub fn telling(&self) -> Rate {
        if self.problem.is_compute() { Rate::Operations } else { Rate::Bytes }
    }

    /// What it counts of one run.
    pub(super) fn work(&self, rate: Rate) -> u64 {
        match rate {
            Rate::Bytes => self.cost.bytes,
            Rate::Operations => self.cost.flops,
        }
    }
}

impl Report {
    /// What the device's rates are told in.
    pub fn unit(&self, rate: Rate) -> Unit {
        let (name, per_second) = match (rate, self.machine.is_cpu()) {
            (Rate::Bytes, false) => ("TB/s", 1e12),
            (Rate::Bytes, true) => ("GB/s", 1e9),
            (Rate::Operations, false) => ("TFLOP/s", 1e12),
            (Rate::Operations, true) => ("GFLOP/s", 1e9),
        };
        Unit { name, per_second }
    }

    /// A row's rate without its unit, as a table has it; a dash where there is nothing to count.
    pub(super) fn rate(&self, row: &Row, rate: Rate) -> String {
        match row.work(rate) {
            0 => "-".to_string(),
            _ => digits(self.unit(rate).of(row.per_second(rate))),
        }
    }
}

/// A rate in three digits or more: 0.0512, 4.17, 782.
pub(crate) fn digits(value: f64) -> String {
    let decimals = match value {
        value if value >= 100.0 => 0,
        value if value >= 1.0 || value <= 0.0 => 2,
        value => (2.0 - value.log10().floor()).min(9.0) as usize,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::{
        super::{page, sample, table},
        *,
    };

    #[test]
    fn a_device_has_one_unit_of_each_rate_everywhere() {
        for (driver, [bytes, operations], other) in
            [("580.1", ["4.20 TB/s", "780 TFLOP/s"], "G"), ("none", ["4200 GB/s", "780000 GFLOP/s"], "T")]
        {
            let mut report = sample();
            report.machine.driver = driver.into();
            let (page, table) = (page(&report).expect("a page"), table(&report));
            for text in [&page, &table] {
                assert!(text.contains(bytes) && text.contains(operations), "{driver}");
                for unit in ["B/s", "FLOP/s"] {
                    assert!(!text.contains(&format!("{other}{unit}")), "{driver}");
                }
            }
        }
    }

    #[test]
    fn what_counts_no_operations_has_no_rate_of_them() {
        let report = sample();
        let none = report.results.iter().find(|row| row.cost.flops == 0).expect("a copy");
        assert_eq!(report.rate(none, Rate::Operations), "-");
        assert_ne!(report.rate(none, Rate::Bytes), "-");
    }

    #[test]
    fn small_rates_keep_their_digits() {
        let texts = [0.000_778, 0.0512, 4.17, 31.456, 782.4].map(digits);
        assert_eq!(texts, ["0.000778", "0.0512", "4.17", "31.46", "782"]);
    }
}
