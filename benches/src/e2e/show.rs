//! The tables.

use serde::Serialize;

use super::{observe::Operation, run::Cell, shape::Weights};
use crate::{machine::Machine, report::NO_RESULT};

/// What a model came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measured {
    /// The shape's name.
    pub shape: String,
    /// How its weights are stored.
    pub weights: Weights,
    /// Whether keys were appended by launches of their own.
    pub append_apart: bool,
    /// Bytes that a step reads of them.
    pub weight_bytes: f64,
    /// Making them and bringing them to the device.
    pub load_seconds: f64,
    /// A batch each.
    pub cells: Vec<Cell>,
    /// Where a step's time goes, of each batch that was looked into.
    pub profiles: Vec<Profile>,
}

/// Where the time of steps goes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Profile {
    /// Requests at a time.
    pub batch: usize,
    /// Steps, those of prompts included.
    pub steps: usize,
    /// Every kernel and grid, the longest in all first.
    pub operations: Vec<Operation>,
}

/// All of it, as JSON has it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// What it ran on.
    pub machine: Machine,
    /// The device in words.
    pub device: String,
    /// What was built.
    pub commit: String,
    /// When.
    pub date: String,
    /// Bytes a second that walls are made of.
    pub read_bytes_per_second: f64,
    /// A model each.
    pub models: Vec<Measured>,
}

/// A model's cells as a table.
pub fn table(measured: &Measured) -> String {
    let mut text = format!(
        "{} {:?}{}: {:.2} GB of weights a step, loaded in {:.1} s\n",
        measured.shape,
        measured.weights,
        if measured.append_apart { ", appends apart" } else { "" },
        measured.weight_bytes / 1e9,
        measured.load_seconds
    );
    text += "| batch | in/out | tok/s | decode tok/s | ms/step | wall tok/s | of wall | with cache | spread | host | launches/step (single) | prompts s |\n";
    text += "|---|---|---|---|---|---|---|---|---|---|---|---|\n";
    for cell in &measured.cells {
        let of = |part: f64| match cell.disturbed {
            true => NO_RESULT.to_string(),
            false => format!("{:.1}%", 100.0 * part),
        };
        text += &format!(
            "| {} | {}/{} | {:.1} | {:.1} | {:.3} | {:.1} | {} | {} | {:.1}% | {:.1}% | {:.0} ({:.0}) | {:.4} |\n",
            cell.batch,
            cell.prompt,
            cell.new_tokens,
            cell.tokens_per_second,
            cell.decode_tokens_per_second,
            cell.milliseconds_per_step,
            cell.wall_tokens_per_second,
            of(cell.of_wall),
            of(cell.of_wall_with_cache),
            cell.spread * 100.0,
            cell.host_share * 100.0,
            cell.launches_per_step,
            cell.single_launches_per_step,
            cell.prompt_seconds,
        );
    }
    text
}

/// A profile as a table.
pub fn profile(profile: &Profile) -> String {
    let all: f64 = profile.operations.iter().map(|operation| operation.total_us).sum();
    let mut text = format!("batch {}: {} steps, {all:.0} us in launches\n", profile.batch, profile.steps);
    text += "| kernel | blocks | launches | median us | total us | share |\n|---|---|---|---|---|---|\n";
    for operation in &profile.operations {
        let [x, y, z] = operation.grid;
        text += &format!(
            "| {} | {x}x{y}x{z} | {} | {:.2} | {:.0} | {:.1}% |\n",
            operation.kernel,
            operation.count,
            operation.median_us,
            operation.total_us,
            operation.total_us / all.max(f64::MIN_POSITIVE) * 100.0
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_of_a_busy_machine_is_no_result() {
        let cell = |disturbed| Cell {
            batch: 1,
            prompt: 4,
            new_tokens: 2,
            seconds: 1.0,
            prompt_seconds: 0.5,
            tokens_per_second: 2.0,
            decode_tokens_per_second: 2.0,
            milliseconds_per_step: 500.0,
            wall_tokens_per_second: 4.0,
            of_wall: 0.5,
            of_wall_with_cache: 0.625,
            host_share: 0.1,
            launches_per_step: 3.0,
            single_launches_per_step: 0.0,
            spread: if disturbed { 0.75 } else { 0.01 },
            disturbed,
        };
        let measured = Measured {
            shape: "tiny".into(),
            weights: Weights::Bf16,
            append_apart: false,
            weight_bytes: 1e6,
            load_seconds: 1.0,
            cells: vec![cell(false), cell(true)],
            profiles: Vec::new(),
        };
        let text = table(&measured);
        let lines: Vec<&str> = text.lines().skip(3).collect();
        assert!(lines[0].contains("| 50.0% | 62.5% | 1.0% |"), "{text}");
        assert!(lines[1].contains("| no result | no result | 75.0% |"), "{text}");
        let columns = |line: &str| line.matches('|').count();
        assert!(text.lines().skip(1).all(|line| columns(line) == columns(lines[0])), "{text}");
    }
}
