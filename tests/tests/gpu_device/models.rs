//! Whole checkpoints through the decoder on the emulated GPU device: the logits of every position of a prompt and a greedy
//! continuation, against what another implementation answered, within twice the error of a plain bf16 computation.

use std::{path::Path, sync::Arc};

use tilewright::verify::verify_on;

use tilewright_host::gpu::GpuDevice;
use tilewright_tests::emulated::Emulated;

use super::setup::{gpu, hopper};

fn verifies(fixture: &str, device: GpuDevice<Emulated>) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(fixture);
    let found = verify_on(&dir, None, Arc::new(device)).expect("the fixture runs");
    for tensor in &found.tensors {
        println!(
            "{fixture} {}: worst error {:.3e} at {:?}, bound {:.3e}, largest {:.3e}",
            tensor.name, tensor.worst_error, tensor.coordinate, tensor.bound, tensor.largest
        );
        // A bound as large as the logits would prove nothing.
        assert!(tensor.bound < 0.1 * tensor.largest, "{fixture}: bound {}", tensor.bound);
    }
    for row in &found.greedy {
        println!(
            "{fixture} row {}: {} of {} steps equal, {} decided",
            row.row, row.equal_steps, row.steps, row.decided_steps
        );
    }
    assert!(found.greedy.iter().any(|row| row.decided_steps > 0), "{fixture}: no step is decided");
    assert!(found.passed, "{found:#?}");
}

#[test]
fn llama_with_grouped_queries_and_scaled_frequencies() {
    verifies("llama-gqa-rope3", gpu());
}

#[test]
fn qwen2_with_biases() {
    verifies("qwen2-bias", gpu());
}

#[test]
fn qwen3_with_query_and_key_norms() {
    verifies("qwen3-qknorm", gpu());
}

#[test]
fn mistral_with_a_window() {
    verifies("mistral-window16", gpu());
}

#[test]
fn llama_on_hopper() {
    verifies("llama-gqa-rope3", hopper());
}

#[test]
fn mistral_with_a_window_on_hopper() {
    verifies("mistral-window16", hopper());
}

#[test]
fn llama_quantised_by_gptq() {
    verifies("llama-gptq-g128", gpu());
}

#[test]
fn llama_quantised_by_gptq_in_act_order() {
    verifies("llama-gptq-actorder-g64", gpu());
}
