use serde::{Deserialize, Serialize};
use tilewright::ladder::{WIDEST_SPREAD, quantile};

/// What a number of timings come to, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Half of the timings took no longer. The number that is reported.
    pub median_us: f64,
    /// The shortest.
    pub min_us: f64,
    /// A tenth took no longer.
    pub p10_us: f64,
    /// Nine tenths took no longer.
    pub p90_us: f64,
    /// How many there were.
    pub samples: usize,
}

impl Stats {
    /// Of timings in microseconds; none of no timings, or if one of them is no positive number.
    pub fn of(times_us: &[f64]) -> Option<Stats> {
        if times_us.is_empty() || times_us.iter().any(|&time| !(time.is_finite() && time > 0.0)) {
            return None;
        }
        let mut sorted = times_us.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |part| rounded(quantile(&sorted, part));
        Some(Stats {
            median_us: at(0.5),
            min_us: at(0.0),
            p10_us: at(0.1),
            p90_us: at(0.9),
            samples: sorted.len(),
        })
    }

    /// How far apart the outer tenths are, as a part of the median.
    pub fn spread(&self) -> f64 {
        (self.p90_us - self.p10_us) / self.median_us
    }

    /// Whether they lie so far apart that the machine must have done something else: then they are no result.
    pub fn is_disturbed(&self) -> bool {
        self.spread() > WIDEST_SPREAD
    }
}

/// To a tenth of a nanosecond, far below what a timer resolves: short in JSON, and the same number when read back.
fn rounded(microseconds: f64) -> f64 {
    (microseconds * 1e4).round() / 1e4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_of_no_account() {
        let stats = Stats::of(&[5.0, 1.0, 4.0, 2.0, 3.0]).expect("five timings");
        assert_eq!(stats, Stats { median_us: 3.0, min_us: 1.0, p10_us: 1.4, p90_us: 4.6, samples: 5 });
        assert!((stats.spread() - 3.2 / 3.0).abs() < 1e-12);
        assert_eq!(Stats::of(&[2.0, 4.0]).map(|stats| stats.median_us), Some(3.0));
    }

    #[test]
    fn timings_far_apart_are_no_result() {
        let disturbed = |times: &[f64]| Stats::of(times).expect("timings").is_disturbed();
        assert!(!disturbed(&[1.0]) && !disturbed(&[1.0, 1.1, 1.2]) && disturbed(&[1.0, 1.1, 2.0]));
        // One turn of twenty that was lost to another program is no matter to the median.
        let mut times = vec![1.0; 20];
        times[7] = 160.0;
        assert!(!disturbed(&times));
        times[..4].fill(160.0);
        assert!(disturbed(&times));
    }

    #[test]
    fn what_is_no_time_has_no_stats() {
        for times in [&[][..], &[1.0, f64::NAN], &[0.0], &[-1.0], &[f64::INFINITY]] {
            assert_eq!(Stats::of(times), None, "{times:?}");
        }
    }
}
