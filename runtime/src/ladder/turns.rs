//! Measurements that take turns.

use std::time::{Duration, Instant};

use super::{Rate, quantile};
use crate::Result;

/// What a measurement came to over rounds in which all have their turn.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Turns {
    /// The median of its values.
    pub rate: f64,
    /// Its ratio to the first measurement in each round, in order of size.
    pub ratios: Vec<f64>,
}

impl Turns {
    /// The median of the ratios.
    pub fn ratio(&self) -> f64 {
        quantile(&self.ratios, 0.5)
    }

    /// What the first measurement gained over this one.
    pub fn inverse(&self) -> Turns {
        let ratios = self.ratios.iter().rev().map(|ratio| 1.0 / ratio).collect();
        Turns { rate: self.rate, ratios }
    }
}

/// Of each measurement what it came to; ratios are to the first one's.
pub(super) fn in_turns(rounds: usize, rates: Vec<Rate<'_>>) -> Result<Vec<Turns>> {
    in_turns_within(Duration::MAX, rounds, rates)
}

/// As [`in_turns`], of fewer rounds where `time` is over before the next one begins.
pub(super) fn in_turns_within(time: Duration, rounds: usize, mut rates: Vec<Rate<'_>>) -> Result<Vec<Turns>> {
    let mut found = vec![(Vec::new(), Vec::new()); rates.len()];
    let began = Instant::now();
    for round in 0..rounds.max(1) {
        if round > 0 && began.elapsed() >= time {
            break;
        }
        let mut first = f64::NAN;
        for (index, (rate, (values, ratios))) in rates.iter_mut().zip(&mut found).enumerate() {
            let value = rate()?;
            if index == 0 {
                first = value;
            }
            values.push(value);
            ratios.push(value / first);
        }
    }
    let sorted = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values
    };
    let turns = |(values, ratios): (Vec<f64>, Vec<f64>)| Turns {
        rate: quantile(&sorted(values), 0.5),
        ratios: sorted(ratios),
    };
    Ok(found.into_iter().map(turns).collect())
}
