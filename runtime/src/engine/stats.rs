use std::time::Duration;

use serde::Serialize;

use super::schedule::Plan;

/// What an engine has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct EngineStats {
    /// Steps.
    pub steps: usize,
    /// Rows of all steps: tokens computed, drafts among them.
    pub rows: usize,
    /// Tokens of answers.
    pub tokens: usize,
    /// Tokens that newly admitted sequences found computed.
    pub cached_tokens: usize,
    /// Sequences that gave their pages up to be computed anew.
    pub preemptions: usize,
    /// Steps that the device failed.
    pub failed_steps: usize,
    /// Drafts verified.
    pub drafts: usize,
    /// Of those, the ones that stood.
    pub accepted: usize,
    /// Sequences' steps that verified drafts: `accepted / verified + 1` tokens came of each on average.
    pub verified: usize,
    /// Seconds of all steps are spent on planning,
    pub schedule_seconds: f64,
    /// on the device with drafts and the choice of tokens, less what was delivered meanwhile,
    pub run_seconds: f64,
    /// on moving sequences on by their tokens,
    pub commit_seconds: f64,
    /// and on delivering: tokens become text, and listeners hear of them.
    pub deliver_seconds: f64,
    /// Of `deliver_seconds`, those for which the device had a step to work on, launched before and waited for afterwards. It may have been done
    /// earlier.
    pub hidden_seconds: f64,
    /// Pages of the cache.
    pub pages: usize,
    /// Pages that sequences hold; what the prefix cache alone holds is free to be taken.
    pub pages_held: usize,
    /// Sequences that run.
    pub running: usize,
    /// Sequences that wait, preempted ones among them.
    pub waiting: usize,
    /// Bytes of keys and values.
    pub cache_bytes: usize,
}

/// How long the parts of a step took.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Times {
    pub plan: Duration,
    /// With what was delivered meanwhile: `hidden`.
    pub run: Duration,
    pub hidden: Duration,
    pub commit: Duration,
    /// After the commit.
    pub delivered: Duration,
}

impl EngineStats {
    /// Seconds of all steps.
    pub fn step_seconds(&self) -> f64 {
        self.schedule_seconds + self.run_seconds + self.commit_seconds + self.deliver_seconds
    }

    /// Of them, those in which the device had nothing to do for certain: of planning, committing, and delivering that isn't hidden.
    pub fn host_seconds(&self) -> f64 {
        self.schedule_seconds + self.commit_seconds + self.deliver_seconds - self.hidden_seconds
    }

    /// [`EngineStats::host_seconds`] of [`EngineStats::step_seconds`]; 0 before the first step.
    pub fn host_share(&self) -> f64 {
        let all = self.step_seconds();
        if all > 0.0 { self.host_seconds() / all } else { 0.0 }
    }

    pub(crate) fn add(&mut self, plan: &Plan, said: usize, times: Times) {
        let Times { plan: planning, run, hidden, commit, delivered } = times;
        self.steps += 1;
        self.rows += plan.rows();
        self.tokens += said;
        self.cached_tokens += plan.cached_tokens;
        self.preemptions += plan.preempted;
        self.schedule_seconds += planning.as_secs_f64();
        self.run_seconds += (run - hidden).as_secs_f64();
        self.commit_seconds += commit.as_secs_f64();
        self.deliver_seconds += (hidden + delivered).as_secs_f64();
        self.hidden_seconds += hidden.as_secs_f64();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_share_leaves_out_what_is_told_beside_the_device() {
        let seconds = Duration::from_secs;
        let mut stats = EngineStats::default();
        assert_eq!(stats.host_share(), 0.0);
        // The run's ten seconds hold four in which the last step's tokens were told.
        let times = Times {
            plan: seconds(1),
            run: seconds(10),
            hidden: seconds(4),
            commit: seconds(2),
            delivered: seconds(3),
        };
        stats.add(&Plan::default(), 0, times);
        let parts = [stats.schedule_seconds, stats.run_seconds, stats.commit_seconds, stats.deliver_seconds];
        assert_eq!(parts, [1.0, 6.0, 2.0, 7.0]);
        assert_eq!((stats.hidden_seconds, stats.step_seconds(), stats.host_seconds()), (4.0, 16.0, 6.0));
        assert_eq!(stats.host_share(), 6.0 / 16.0);
    }
}
