//! What a device has: memory, bandwidth, peaks, and the levels between.

use serde::Serialize;
use tilewright_host::cpu::{CpuDevice, READ_BYTES};

use super::weights::WeightFormat;
use crate::{Error, Result};

/// What kind of device it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// Computes in bf16 or eight bits on tensor cores; keys and values in bf16.
    Gpu,
    /// Computes in f32 whatever the weights are; keys and values in f32.
    Cpu,
}

/// How fast the same bytes are read again and again: caches keep what fits them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ReadRate {
    /// How many.
    pub bytes: u64,
    /// Bytes a second.
    pub bytes_per_second: f64,
}

/// A device's limits. Peaks are dense, a multiply-add being two operations.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DeviceProfile {
    /// Its name.
    pub name: String,
    /// What kind it is.
    pub kind: DeviceKind,
    /// Where the numbers come from.
    pub source: String,
    /// Bytes of its memory.
    pub memory_bytes: u64,
    /// Bytes a second between memory and multiprocessors.
    pub bytes_per_second: f64,
    /// Of a CPU that was measured: rates of ever more bytes, up to as many as are memory's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub read_again: Vec<ReadRate>,
    /// f32 operations a second, outside of tensor cores.
    pub f32_per_second: f64,
    /// bf16 operations a second, summed in f32.
    pub bf16_per_second: f64,
    /// Eight-bit integer operations a second.
    pub int8_per_second: f64,
    /// fp8 operations a second, where it has them.
    pub fp8_per_second: Option<f64>,
    /// Multiprocessors, or threads.
    pub units: usize,
    /// Bytes of the cache that all units share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub l2_bytes: Option<u64>,
    /// Bytes of shared memory a multiprocessor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared_bytes: Option<u64>,
    /// Bytes of registers a multiprocessor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub register_bytes: Option<u64>,
}

/// A line of the table: from NVIDIA's data sheets and architecture white papers; memory as `nvidia-smi` shows it.
struct Known {
    /// On the command line.
    name: &'static str,
    /// In full.
    title: &'static str,
    /// Part of what the driver calls it.
    driver: &'static str,
    memory_mib: u64,
    gigabytes_per_second: f64,
    /// f32, bf16 with f32 sums, int8, fp8 with f32 sums; tera-operations a second.
    peaks: [f64; 4],
    units: usize,
    l2_mib: u64,
    shared_kib: u64,
}

/// Bytes of registers of every multiprocessor in the table: 65,536 of 32 bits.
const REGISTER_BYTES: u64 = 256 << 10;

#[rustfmt::skip]
const KNOWN: [Known; 5] = [
    Known { name: "h100", title: "NVIDIA H100 SXM 80 GB", driver: "H100", memory_mib: 81_559, gigabytes_per_second: 3350.0,
        peaks: [66.9, 989.4, 1978.9, 1978.9], units: 132, l2_mib: 50, shared_kib: 228 },
    Known { name: "h200", title: "NVIDIA H200 141 GB", driver: "H200", memory_mib: 143_771, gigabytes_per_second: 4800.0,
        peaks: [66.9, 989.4, 1978.9, 1978.9], units: 132, l2_mib: 50, shared_kib: 228 },
    Known { name: "a100", title: "NVIDIA A100 SXM 80 GB", driver: "A100", memory_mib: 81_920, gigabytes_per_second: 2039.0,
        peaks: [19.5, 312.0, 624.0, 0.0], units: 108, l2_mib: 40, shared_kib: 164 },
    Known { name: "l40s", title: "NVIDIA L40S 48 GB", driver: "L40S", memory_mib: 46_068, gigabytes_per_second: 864.0,
        peaks: [91.6, 362.05, 733.0, 733.0], units: 142, l2_mib: 96, shared_kib: 100 },
    Known { name: "rtx4090", title: "NVIDIA GeForce RTX 4090 24 GB", driver: "RTX 4090", memory_mib: 24_564,
        gigabytes_per_second: 1008.0, peaks: [82.6, 165.2, 660.6, 330.3], units: 128, l2_mib: 72, shared_kib: 100 },
];

/// Numbers that the user knows better.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Given {
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
    /// Bytes a second.
    pub bytes_per_second: Option<f64>,
    /// Operations a second in bf16 (on a CPU, in f32); the other peaks keep their ratio to it.
    pub flops_per_second: Option<f64>,
}

impl Given {
    fn is_whole(&self) -> bool {
        self.memory_bytes.is_some() && self.bytes_per_second.is_some() && self.flops_per_second.is_some()
    }
}

/// The names that [`device`] takes, the CPU's aside.
pub fn devices() -> impl Iterator<Item = &'static str> {
    KNOWN.iter().map(|known| known.name)
}

/// The device of that name, of the table, or `cpu`: this machine's, measured unless all numbers are given.
///
/// # Errors
/// A name that isn't known; a number that isn't positive.
pub fn device(name: &str, given: Given) -> Result<DeviceProfile> {
    for (what, value) in [("bandwidth", given.bytes_per_second), ("flops", given.flops_per_second)] {
        if let Some(value) = value.filter(|value| !(value.is_finite() && *value > 0.0)) {
            return Err(Error::request(what, "a number above 0", value));
        }
    }
    if given.memory_bytes == Some(0) {
        return Err(Error::request("memory", "bytes above 0", 0));
    }
    let profile = match KNOWN.iter().find(|known| known.name.eq_ignore_ascii_case(name)) {
        Some(known) => known.profile(),
        None if name.eq_ignore_ascii_case("cpu") => this_cpu(given),
        None => {
            let names: Vec<&str> = devices().collect();
            return Err(Error::request(
                "device",
                format!("{} or cpu", names.join(", ")),
                format!("{name:?}"),
            ));
        }
    };
    Ok(profile.with(given))
}

/// The device of the table that a driver calls by a name.
pub fn device_of_driver(driver_name: &str) -> Option<&'static str> {
    KNOWN.iter().find(|known| driver_name.contains(known.driver)).map(|known| known.name)
}

impl Known {
    fn profile(&self) -> DeviceProfile {
        let [f32, bf16, int8, fp8] = self.peaks.map(|tera| tera * 1e12);
        DeviceProfile {
            name: self.title.to_string(),
            kind: DeviceKind::Gpu,
            source: "data sheet".to_string(),
            memory_bytes: self.memory_mib << 20,
            bytes_per_second: self.gigabytes_per_second * 1e9,
            read_again: Vec::new(),
            f32_per_second: f32,
            bf16_per_second: bf16,
            int8_per_second: int8,
            fp8_per_second: (fp8 > 0.0).then_some(fp8),
            units: self.units,
            l2_bytes: Some(self.l2_mib << 20),
            shared_bytes: Some(self.shared_kib << 10),
            register_bytes: Some(REGISTER_BYTES),
        }
    }
}

/// This machine's CPU in words, unmeasured.
pub fn cpu_in_words() -> String {
    tilewright_host::Device::describe(&CpuDevice::new())
}

/// This machine's CPU. Nothing is measured where all that would be is given.
fn this_cpu(given: Given) -> DeviceProfile {
    let device = CpuDevice::new();
    let (read, fma, source) = match given.is_whole() {
        true => (1.0, 1.0, "given"),
        false => {
            let ceilings = device.measure_ceilings();
            (
                ceilings.read_bytes_per_second,
                ceilings.flops_per_second,
                "measured here, beside what else it did",
            )
        }
    };
    let read_again =
        if given.bytes_per_second.is_some() { Vec::new() } else { rates_up_to_memory(&device, read) };
    DeviceProfile {
        name: cpu_in_words(),
        kind: DeviceKind::Cpu,
        source: source.to_string(),
        memory_bytes: host_memory().unwrap_or(8 << 30),
        bytes_per_second: read,
        read_again,
        f32_per_second: fma,
        bf16_per_second: fma,
        int8_per_second: fma,
        fp8_per_second: None,
        units: std::thread::available_parallelism().map_or(1, |threads| threads.get()),
        l2_bytes: None,
        shared_bytes: None,
        register_bytes: None,
    }
}

/// Rates of as many bytes as caches have, and memory's. None is below that of more bytes: what a step can be held to isn't, either.
fn rates_up_to_memory(device: &CpuDevice, memory: f64) -> Vec<ReadRate> {
    const MIB: [u64; 7] = [1, 4, 8, 16, 32, 64, 128];
    let mut rates = vec![ReadRate { bytes: READ_BYTES as u64, bytes_per_second: memory }];
    let mut best = memory;
    for bytes in MIB.iter().rev().map(|mib| mib << 20) {
        best = best.max(device.read_rate(bytes as usize));
        rates.push(ReadRate { bytes, bytes_per_second: best });
    }
    rates.reverse();
    rates
}

/// Bytes of this machine's memory, where the system tells.
fn host_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib << 10)
}

impl DeviceProfile {
    /// The same with what the user knows better.
    fn with(mut self, given: Given) -> DeviceProfile {
        let changed = given.memory_bytes.is_some()
            || given.bytes_per_second.is_some()
            || given.flops_per_second.is_some();
        if changed && self.source != "given" {
            self.source += ", partly given";
        }
        self.memory_bytes = given.memory_bytes.unwrap_or(self.memory_bytes);
        if let Some(bytes_per_second) = given.bytes_per_second {
            (self.bytes_per_second, self.read_again) = (bytes_per_second, Vec::new());
        }
        if let Some(flops) = given.flops_per_second {
            let ratio = flops / self.bf16_per_second;
            self.f32_per_second *= ratio;
            self.bf16_per_second = flops;
            self.int8_per_second *= ratio;
            self.fp8_per_second = self.fp8_per_second.map(|peak| peak * ratio);
        }
        self
    }

    /// Bytes a second where every step reads the same `bytes`. Between two sizes that were measured, each byte more takes the same time.
    pub fn read_rate(&self, bytes: f64) -> f64 {
        let seconds = |rate: &ReadRate| rate.bytes as f64 / rate.bytes_per_second;
        let more = self.read_again.partition_point(|rate| rate.bytes as f64 <= bytes);
        match (self.read_again[..more].last(), self.read_again.get(more)) {
            (Some(fewer), Some(more)) => {
                let part = (bytes - fewer.bytes as f64) / (more.bytes - fewer.bytes) as f64;
                bytes / (seconds(fewer) + part * (seconds(more) - seconds(fewer)))
            }
            (None, Some(least)) => least.bytes_per_second,
            (_, None) => self.bytes_per_second,
        }
    }

    /// Operations a second of products with weights of a format.
    pub fn peak(&self, format: WeightFormat) -> f64 {
        match (self.kind, format) {
            (DeviceKind::Cpu, _) => self.f32_per_second,
            (DeviceKind::Gpu, WeightFormat::Int8) => self.int8_per_second,
            (DeviceKind::Gpu, _) => self.bf16_per_second,
        }
    }

    /// Bytes that are left to the driver, the program and fragmentation: a sixteenth of a GPU's memory, an eighth of a host's.
    pub fn reserved_bytes(&self) -> u64 {
        self.memory_bytes / if self.kind == DeviceKind::Gpu { 16 } else { 8 }
    }

    /// Bytes of an activation.
    pub fn activation_bytes(&self) -> usize {
        if self.kind == DeviceKind::Gpu { 2 } else { 4 }
    }

    /// The formats that weights can have there.
    pub fn formats(&self) -> &'static [WeightFormat] {
        match self.kind {
            DeviceKind::Gpu => &[WeightFormat::Bf16, WeightFormat::Int8, WeightFormat::Int4],
            DeviceKind::Cpu => &WeightFormat::ALL,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_drivers_find_the_table() {
        assert_eq!(device_of_driver("NVIDIA H200"), Some("h200"));
        assert_eq!(device_of_driver("NVIDIA H100 80GB HBM3"), Some("h100"));
        assert_eq!(device_of_driver("NVIDIA GeForce RTX 4090"), Some("rtx4090"));
        assert_eq!(device_of_driver("Tesla T4"), None);
    }

    #[test]
    fn what_is_given_replaces_what_is_known() {
        let given = Given { flops_per_second: Some(494.7e12), ..Given::default() };
        let half = device("h100", given).expect("of the table");
        assert!((half.int8_per_second / 989.45e12 - 1.0).abs() < 1e-9);
        assert_eq!(half.source, "data sheet, partly given");
        let whole =
            Given { memory_bytes: Some(1 << 34), bytes_per_second: Some(2e10), flops_per_second: Some(1e11) };
        let cpu = device("cpu", whole).expect("given");
        assert_eq!((cpu.bytes_per_second, cpu.f32_per_second, cpu.source.as_str()), (2e10, 1e11, "given"));
        for (bad, message) in [
            (
                Given { bytes_per_second: Some(f64::NAN), ..Given::default() },
                "bandwidth: expected a number above 0, found NaN",
            ),
            (
                Given { flops_per_second: Some(-1.0), ..Given::default() },
                "flops: expected a number above 0, found -1",
            ),
            (Given { memory_bytes: Some(0), ..Given::default() }, "memory: expected bytes above 0, found 0"),
        ] {
            assert_eq!(device("h100", bad).expect_err("refused").to_string(), message);
        }
        assert!(device("h900", Given::default()).is_err());
    }

    #[test]
    fn fewer_bytes_are_read_no_slower() {
        let cpu = device("cpu", Given::default()).expect("measured");
        assert!(cpu.read_again.is_sorted_by(|a, b| a.bytes < b.bytes));
        assert!(cpu.read_again.is_sorted_by(|a, b| a.bytes_per_second >= b.bytes_per_second), "{cpu:?}");
        assert_eq!(cpu.read_rate(1e12), cpu.bytes_per_second);
        let of = |mib: u64, bytes_per_second| ReadRate { bytes: mib << 20, bytes_per_second };
        let read_again = vec![of(4, 9e10), of(16, 3e10), of(256, 1e10)];
        let cpu = DeviceProfile { read_again, bytes_per_second: 1e10, ..cpu };
        let rate = |mib: u64| cpu.read_rate((mib << 20) as f64);
        assert_eq!([0, 3, 4, 16, 256, 9999].map(rate), [9e10, 9e10, 9e10, 3e10, 1e10, 1e10]);
        // 4 MiB at 90 GB/s, and half of what another 12 take.
        let seconds = |mib: u64| (mib << 20) as f64 / rate(mib);
        assert!((2.0 * seconds(10) / (seconds(4) + seconds(16)) - 1.0).abs() < 1e-12);
        assert!((1..300).collect::<Vec<u64>>().is_sorted_by(|a, b| rate(*a) >= rate(*b)));
        // What the user says is what counts.
        let given = cpu.with(Given { bytes_per_second: Some(2e10), ..Given::default() });
        assert_eq!([0.0, 1e12].map(|bytes| given.read_rate(bytes)), [2e10; 2]);
        assert_eq!(device("h200", Given::default()).map(|gpu| gpu.read_rate(1.0)).ok(), Some(4.8e12));
    }
}
