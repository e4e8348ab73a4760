use std::fmt::Write;

use tilewright::config::ModelConfig;
use tilewright::plan::{DeviceKind, DeviceProfile, Phase, Plan, ReadRate};

/// The plan as a page of text.
pub fn in_words(name: &str, config: &ModelConfig, plan: &Plan) -> String {
    let mut text = String::new();
    head(&mut text, name, config, plan);
    memory(&mut text, plan);
    phases(&mut text, plan);
    advice(&mut text, plan);
    text.truncate(text.trim_end().len());
    text
}

/// Writing to a string can't fail.
macro_rules! line {
    ($text:expr, $($arg:tt)*) => { let _ = writeln!($text, $($arg)*); };
}

fn head(text: &mut String, name: &str, config: &ModelConfig, plan: &Plan) {
    line!(
        text,
        "model    {name}: {} parameters, {} layers, hidden {}, {} query / {} key heads of {}, context {}",
        count(plan.parameters as f64),
        config.layers,
        config.hidden_size,
        config.q_heads,
        config.kv_heads,
        config.head_dim,
        config.context
    );
    let device = &plan.device;
    line!(text, "device   {} ({})", device.name, device.source);
    line!(text, "         {}", levels(device));
}

/// The memory hierarchy and the peaks.
fn levels(device: &DeviceProfile) -> String {
    let mut parts =
        vec![format!("memory {} at {}", decimal(device.memory_bytes), rate(device.bytes_per_second, "B/s"))];
    for (what, bytes) in [
        ("L2", device.l2_bytes),
        ("shared memory a multiprocessor", device.shared_bytes),
        ("registers a multiprocessor", device.register_bytes),
    ] {
        parts.extend(bytes.map(|bytes| format!("{what} {}", binary(bytes))));
    }
    parts.extend(faster_than_memory(device).map(|read| {
        let (bytes, rate) = (binary(read.bytes), rate(read.bytes_per_second, "B/s"));
        format!("the same {bytes} again and again at {rate}")
    }));
    match device.kind {
        DeviceKind::Cpu => {
            parts.push(format!("{} threads", device.units));
            parts.push(format!("f32 {}", rate(device.f32_per_second, "FLOP/s")));
        }
        DeviceKind::Gpu => {
            parts.push(format!("{} multiprocessors", device.units));
            parts.push(format!("bf16 {}", rate(device.bf16_per_second, "FLOP/s")));
            parts.push(format!("int8 {}", rate(device.int8_per_second, "OP/s")));
            parts.extend(device.fp8_per_second.map(|peak| format!("fp8 {}", rate(peak, "FLOP/s"))));
        }
    }
    parts.join("; ")
}

/// Of sizes with about one rate the largest.
fn faster_than_memory(device: &DeviceProfile) -> impl Iterator<Item = &ReadRate> {
    let mut told = device.bytes_per_second;
    let mut faster: Vec<&ReadRate> = device.read_again.iter().collect();
    faster.reverse();
    faster.retain(|read| {
        let is_faster = read.bytes_per_second > 1.1 * told;
        told = if is_faster { read.bytes_per_second } else { told };
        is_faster
    });
    faster.into_iter().rev()
}

fn memory(text: &mut String, plan: &Plan) {
    line!(text, "");
    line!(text, "weights");
    let largest = plan.weights.iter().find(|weights| weights.format.name() == "bf16");
    for weights in &plan.weights {
        let total = weights.total_bytes();
        let ratio = largest.map_or(String::new(), |largest| {
            format!("{:5.2}x", largest.total_bytes() as f64 / total.max(1) as f64)
        });
        line!(
            text,
            "  {:5} {:>9}  {ratio}  linear layers {}, head {}, embedding {}{}",
            weights.format.name(),
            decimal(total),
            decimal(weights.linear_bytes),
            decimal(weights.head_bytes),
            decimal(weights.embedding_bytes),
            if weights.format == plan.format { "   <- planned" } else { "" }
        );
    }
    let cache = &plan.cache;
    line!(text, "");
    let name = cache.format.name();
    line!(
        text,
        "keys and values ({}, pages of {} tokens)",
        if name == "bf16" { "bf16 or fp16" } else { name },
        cache.page_size
    );
    line!(text, "  a token                {:>10}", both(cache.token_bytes));
    line!(text, "  {:>7} tokens         {:>10}", cache.context, both(cache.sequence_bytes));
    line!(
        text,
        "  in {:>4} whole pages    {:>10}   slack {}{}",
        cache.sequence_pages,
        both(cache.paged_bytes),
        decimal(cache.slack_bytes()),
        match cache.widened_bytes {
            0 => String::new(),
            bytes => format!(", a layer in bf16 for prompts {}", decimal(bytes)),
        }
    );
    line!(text, "  of {:>4} sequences      {:>10}", cache.batch, both(cache.batch_bytes));
    line!(text, "");
    let verdict = if plan.fits { "fits" } else { "DOES NOT FIT" };
    line!(
        text,
        "memory   {} weights + {} cache + {} activations + {} left free = {} of {}: {verdict}",
        decimal(plan.weight_bytes),
        decimal(cache.batch_bytes),
        decimal(plan.activation_bytes),
        decimal(plan.reserved_bytes),
        decimal(plan.total_bytes),
        decimal(plan.device.memory_bytes)
    );
    line!(
        text,
        "         at most {} sequences of {} tokens; with {}, at most {} tokens each{}",
        plan.largest_batch,
        cache.context,
        cache.batch,
        plan.largest_context,
        if plan.largest_context == plan.model_context as u64 { " (the model's context)" } else { "" }
    );
}

fn phases(text: &mut String, plan: &Plan) {
    line!(text, "");
    line!(
        text,
        "roofline with {} weights: below {} operations a byte (the ridge point) a product waits for memory, above it for arithmetic",
        plan.format.name(),
        figure(plan.ridge)
    );
    for phase in &plan.phases {
        line!(text, "  {}", title(phase));
        for part in &phase.parts {
            line!(
                text,
                "    {:12} {:>9} {:>10}  {:>9} a byte   at least {:>10}  {}-bound",
                part.name,
                operations(part.flops),
                decimal(part.bytes as u64),
                figure(part.intensity),
                time(part.seconds),
                part.bound.name()
            );
        }
    }
}

fn title(phase: &Phase) -> String {
    let what = match phase.name {
        "prefill" => format!("prefill of {} tokens", phase.tokens),
        _ => {
            format!("a step of decoding, {} sequence{}", phase.batch, if phase.batch == 1 { "" } else { "s" })
        }
    };
    format!(
        "{what}: {}-bound, at least {}, at most {:.1} tok/s",
        phase.bound.name(),
        time(phase.seconds),
        phase.tokens_per_second
    )
}

fn advice(text: &mut String, plan: &Plan) {
    let advice = &plan.advice;
    let goal = format!("{:?}", advice.goal).to_lowercase();
    line!(text, "");
    match advice.weights {
        None => {
            line!(text, "for {goal}: nothing fits");
        }
        Some(weights) => {
            line!(
                text,
                "for {goal}: {} weights, {} sequence{} at a time, cache_tokens {}; at most {:.1} tok/s",
                weights.name(),
                advice.batch,
                if advice.batch == 1 { "" } else { "s" },
                advice.cache_tokens,
                advice.tokens_per_second
            );
        }
    }
    for reason in &advice.reasons {
        line!(text, "  - {reason}");
    }
}

/// Bytes in both ways of counting, since both are about.
fn both(bytes: u64) -> String {
    format!("{} ({})", decimal(bytes), binary(bytes))
}

fn decimal(bytes: u64) -> String {
    scaled(bytes as f64, 1000.0, &["B", "kB", "MB", "GB", "TB", "PB"])
}

fn binary(bytes: u64) -> String {
    scaled(bytes as f64, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB"])
}

fn count(parameters: f64) -> String {
    scaled(parameters, 1000.0, &["", "thousand", "million", "billion"])
}

fn operations(flops: f64) -> String {
    scaled(flops, 1000.0, &["FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP"])
}

fn rate(per_second: f64, unit: &str) -> String {
    const PREFIXES: [&str; 6] = ["", "k", "M", "G", "T", "P"];
    let units = PREFIXES.map(|prefix| format!("{prefix}{unit}"));
    scaled(per_second, 1000.0, &units.each_ref().map(String::as_str))
}

/// Three digits at least, whole units where they are exact.
fn scaled(mut amount: f64, step: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while amount >= step && unit + 1 < units.len() {
        amount /= step;
        unit += 1;
    }
    let number = if amount.fract() == 0.0 { format!("{amount:.0}") } else { figure(amount) };
    format!("{number} {}", units[unit])
}

/// Three digits at least.
fn figure(amount: f64) -> String {
    let decimals = match amount {
        amount if amount >= 100.0 => 0,
        amount if amount >= 10.0 => 1,
        _ => 2,
    };
    format!("{amount:.decimals$}")
}

fn time(seconds: f64) -> String {
    match seconds {
        seconds if seconds >= 1.0 => format!("{seconds:.2} s"),
        seconds if seconds >= 1e-3 => format!("{:.2} ms", 1e3 * seconds),
        _ => format!("{:.1} us", 1e6 * seconds),
    }
}

#[cfg(test)]
mod tests {
    use tilewright::plan::{Given, device};

    use super::*;

    #[test]
    fn bytes_are_counted_in_both_ways() {
        assert_eq!(both(671_088_640), "671 MB (640 MiB)");
        assert_eq!(both(327_680), "328 kB (320 KiB)");
        assert_eq!(both(0), "0 B (0 B)");
        assert_eq!(rate(3.35e12, "B/s"), "3.35 TB/s");
        assert_eq!(time(0.0005), "500.0 us");
    }

    #[test]
    fn few_operations_a_byte_are_told_in_parts() {
        assert_eq!([0.974, 3.917, 29.53, 295.4].map(figure), ["0.97", "3.92", "29.5", "295"]);
    }

    #[test]
    fn of_sizes_with_one_rate_the_largest_is_told() {
        let given =
            Given { memory_bytes: Some(1 << 34), bytes_per_second: Some(1e10), flops_per_second: Some(1e11) };
        let of = |mib: u64, bytes_per_second| ReadRate { bytes: mib << 20, bytes_per_second };
        let mut cpu = device("cpu", given).expect("given");
        cpu.read_again =
            vec![of(1, 3.1e10), of(4, 3e10), of(16, 3e10), of(32, 2e10), of(64, 1.05e10), of(256, 1e10)];
        let told: Vec<u64> = faster_than_memory(&cpu).map(|read| read.bytes >> 20).collect();
        assert_eq!(told, [16, 32]);
        cpu.read_again.clear();
        assert_eq!(faster_than_memory(&cpu).count(), 0);
    }
}
