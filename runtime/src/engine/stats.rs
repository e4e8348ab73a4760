use std::time::Instant;

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
    /// Seconds spent on planning, on the device with the choice of tokens, and on answers.
    pub schedule_seconds: f64,
    /// See `schedule_seconds`.
    pub run_seconds: f64,
    /// See `schedule_seconds`.
    pub commit_seconds: f64,
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

impl EngineStats {
    /// Of the time of all steps, that of planning and committing.
    pub fn host_share(&self) -> f64 {
        let host = self.schedule_seconds + self.commit_seconds;
        let all = host + self.run_seconds;
        if all > 0.0 { host / all } else { 0.0 }
    }

    pub(crate) fn add(&mut self, plan: &Plan, said: usize, [began, planned, ran, ended]: [Instant; 4]) {
        self.steps += 1;
        self.rows += plan.rows();
        self.tokens += said;
        self.cached_tokens += plan.cached_tokens;
        self.preemptions += plan.preempted;
        self.schedule_seconds += (planned - began).as_secs_f64();
        self.run_seconds += (ran - planned).as_secs_f64();
        self.commit_seconds += (ended - ran).as_secs_f64();
    }
}
