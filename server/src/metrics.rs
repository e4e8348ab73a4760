//! What Prometheus is told.

use std::time::Duration;

use metrics::{Key, Label, Level, Metadata, Recorder, SharedString, Unit};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use tilewright::engine::EngineStats;

/// Bounds of the histograms, in seconds: from a token on a fast GPU to a long answer on a CPU.
const BUCKETS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];

const FIRST_TOKEN: &str = "tilewright_time_to_first_token_seconds";
const INTER_TOKEN: &str = "tilewright_inter_token_seconds";
const REQUEST: &str = "tilewright_request_seconds";
const REQUESTS: &str = "tilewright_requests_total";

/// Each metric's name, and what it says.
const GAUGES: [(&str, &str); 6] = [
    ("tilewright_sequences_running", "Sequences that run"),
    ("tilewright_sequences_waiting", "Sequences in the queue, preempted ones among them"),
    ("tilewright_kv_pages", "Pages of the key-value cache"),
    ("tilewright_kv_pages_used", "Pages that sequences hold"),
    ("tilewright_kv_used_ratio", "Of the pages, the part that sequences hold"),
    ("tilewright_kv_bytes", "Bytes of the key-value cache"),
];
const COUNTERS: [(&str, &str); 7] = [
    ("tilewright_steps_total", "Steps of the engine"),
    ("tilewright_failed_steps_total", "Steps that the device failed"),
    ("tilewright_tokens_total", "Tokens generated"),
    ("tilewright_cached_tokens_total", "Tokens of prompts that the prefix cache had"),
    ("tilewright_preemptions_total", "Sequences that gave their pages up to be computed anew"),
    ("tilewright_drafts_total", "Drafts verified"),
    ("tilewright_drafts_accepted_total", "Drafts that stood"),
];

/// A recorder of this server's own: two servers of one process don't mix.
pub(crate) struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
}

const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, Some(module_path!()));

impl Metrics {
    pub fn new() -> Metrics {
        let builder = PrometheusBuilder::new();
        // The bounds are a constant that isn't empty, which is all that could be wrong with them.
        let builder = builder.set_buckets(&BUCKETS).unwrap_or_else(|_| PrometheusBuilder::new());
        let recorder = builder.build_recorder();
        for (name, text) in GAUGES {
            recorder.describe_gauge(name.into(), None, text.into());
        }
        for (name, text) in COUNTERS {
            recorder.describe_counter(name.into(), None, text.into());
        }
        let describe = |name: &'static str, text: &'static str| {
            recorder.describe_histogram(name.into(), Some(Unit::Seconds), SharedString::const_str(text));
        };
        describe(FIRST_TOKEN, "From a request's submission to its first token, waiting included");
        describe(INTER_TOKEN, "From a token of an answer to its next");
        describe(REQUEST, "From a request's head to its response's");
        recorder.describe_counter(REQUESTS.into(), None, "Requests answered".into());
        let handle = recorder.handle();
        Metrics { recorder, handle }
    }

    fn record(&self, name: &'static str, time: Duration) {
        self.recorder.register_histogram(&Key::from_name(name), &METADATA).record(time.as_secs_f64());
    }

    pub fn first_token(&self, time: Duration) {
        self.record(FIRST_TOKEN, time);
    }

    pub fn inter_token(&self, time: Duration) {
        self.record(INTER_TOKEN, time);
    }

    /// A request to `route`, which must be one of few.
    pub fn answered(&self, route: &'static str, status: u16, time: Duration) {
        self.record(REQUEST, time);
        let labels = vec![Label::new("route", route), Label::new("status", status.to_string())];
        let key = Key::from_parts(REQUESTS, labels);
        self.recorder.register_counter(&key, &METADATA).increment(1);
    }

    /// The exposition text.
    pub fn render(&self, stats: Option<EngineStats>) -> String {
        if let Some(stats) = stats {
            let used = stats.pages_held as f64 / stats.pages.max(1) as f64;
            let gauges = [
                stats.running as f64,
                stats.waiting as f64,
                stats.pages as f64,
                stats.pages_held as f64,
                used,
                stats.cache_bytes as f64,
            ];
            for ((name, _), value) in GAUGES.into_iter().zip(gauges) {
                self.recorder.register_gauge(&Key::from_name(name), &METADATA).set(value);
            }
            let counters = [
                stats.steps,
                stats.failed_steps,
                stats.tokens,
                stats.cached_tokens,
                stats.preemptions,
                stats.drafts,
                stats.accepted,
            ];
            for ((name, _), value) in COUNTERS.into_iter().zip(counters) {
                self.recorder.register_counter(&Key::from_name(name), &METADATA).absolute(value as u64);
            }
        }
        self.handle.run_upkeep();
        self.handle.render()
    }

    /// Moves what was recorded from a growing list into the histograms; to be called now and then.
    pub fn tidy(&self) {
        self.handle.run_upkeep();
    }
}
