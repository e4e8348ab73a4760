//! What a timing was taken on: the device, its driver and clocks, the commit, the date.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

/// Clocks and power at one moment, as `nvidia-smi` reads them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Clocks {
    pub sm_mhz: f64,
    pub memory_mhz: f64,
    pub power_watts: f64,
}

/// What it ran on.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Machine {
    pub device: String,
    pub compute_capability: String,
    pub multiprocessors: u32,
    /// A GPU's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// A GPU's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub l2_bytes: Option<u64>,
    /// NVIDIA's driver, or "unknown"; a CPU's is "none".
    pub driver: String,
    /// Before the first timing.
    pub idle: Option<Clocks>,
}

impl Machine {
    /// Whether it has no driver.
    pub fn is_cpu(&self) -> bool {
        self.driver == "none"
    }

    /// What stands beside every figure: the driver where there is one, the commit, the date.
    pub fn origin(&self, commit: &str, date: &str) -> String {
        let driver = if self.is_cpu() { String::new() } else { format!("driver {}, ", self.driver) };
        format!("{driver}commit {commit}, {date}")
    }
}

/// The version of NVIDIA's driver, if `nvidia-smi` answers.
pub fn driver_version() -> Option<String> {
    let output = smi("driver_version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.lines().next().map(|line| line.trim().to_string()).filter(|version| !version.is_empty())
}

fn smi(fields: &str) -> Command {
    let mut command = Command::new("nvidia-smi");
    command.args([&format!("--query-gpu={fields}"), "--format=csv,noheader,nounits", "--id=0"]);
    command.stderr(Stdio::null()).stdin(Stdio::null());
    command
}

fn parse(line: &str) -> Option<Clocks> {
    let mut numbers = line.split(',').map(|field| field.trim().parse().ok());
    let mut next = || numbers.next().flatten();
    Some(Clocks { sm_mhz: next()?, memory_mhz: next()?, power_watts: next()? })
}

/// Reads the clocks often enough that every row's timing sees a reading: the warming up alone takes longer than the pause between two.
pub struct Sampler {
    child: Option<Child>,
    reader: Option<JoinHandle<()>>,
    readings: Arc<Mutex<Vec<(Instant, Clocks)>>>,
}

impl Sampler {
    /// Starts `nvidia-smi`; without it there are no readings.
    pub fn start() -> Sampler {
        let readings = Arc::new(Mutex::new(Vec::new()));
        let mut sampler = Sampler { child: None, reader: None, readings: readings.clone() };
        let mut command = smi("clocks.sm,clocks.mem,power.draw");
        let Ok(mut child) = command.arg("--loop-ms=25").stdout(Stdio::piped()).spawn() else {
            return sampler;
        };
        if let Some(stdout) = child.stdout.take() {
            sampler.reader = Some(std::thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    if let Some(clocks) = parse(&line) {
                        readings
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .push((Instant::now(), clocks));
                    }
                }
            }));
        }
        sampler.child = Some(child);
        sampler
    }

    /// The latest reading.
    pub fn latest(&self) -> Option<Clocks> {
        let readings = self.readings.lock().unwrap_or_else(PoisonError::into_inner);
        readings.last().map(|(_, clocks)| *clocks)
    }

    /// The clocks under load since `began`: those of the reading with the highest power.
    pub fn since(&self, began: Instant) -> Option<Clocks> {
        let readings = self.readings.lock().unwrap_or_else(PoisonError::into_inner);
        let during = readings.iter().rev().take_while(|(at, _)| *at >= began).map(|(_, clocks)| *clocks);
        during.max_by(|a, b| a.power_watts.total_cmp(&b.power_watts))
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended by itself; nobody is left to hear why.
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// The commit of the working tree: as told, or as the environment says, or as git says.
pub fn commit(told: Option<&str>) -> String {
    let from_git = || {
        let output = Command::new("git")
            .args(["rev-parse", "--short=12", "HEAD"])
            .stderr(Stdio::null())
            .output()
            .ok()?;
        let text = String::from_utf8(output.stdout).ok()?.trim().to_string();
        (output.status.success() && !text.is_empty()).then_some(text)
    };
    let told = told.map(str::to_string).or_else(|| std::env::var("TILEWRIGHT_COMMIT").ok());
    told.or_else(from_git).unwrap_or_else(|| "unknown".to_string())
}

/// The date and time in UTC, `2026-01-31T12:34:56Z`.
pub fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    date_time(since)
}

/// Of seconds since 1970. Source: Hinnant, "chrono-compatible low-level date algorithms", `civil_from_days`.
fn date_time(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date_time(0), "1970-01-01T00:00:00Z");
        assert_eq!(date_time(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(date_time(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(date_time(1_798_761_599), "2026-12-31T23:59:59Z");
    }

    #[test]
    fn a_cpu_has_no_driver_to_tell_of() {
        let of = |driver: &str| {
            let machine = Machine { driver: driver.into(), ..Machine::default() };
            machine.origin("abc", "today")
        };
        assert_eq!(of("580.1"), "driver 580.1, commit abc, today");
        assert_eq!(of("none"), "commit abc, today");
    }

    #[test]
    fn what_a_cpu_has_none_of_is_left_out() {
        let cpu = Machine { driver: "none".into(), ..Machine::default() };
        let gpu = Machine { memory_bytes: Some(1 << 37), l2_bytes: Some(50 << 20), ..cpu.clone() };
        for (machine, is_told) in [(&cpu, false), (&gpu, true)] {
            let json = serde_json::to_value(machine).expect("JSON");
            let back: Machine = serde_json::from_value(json.clone()).expect("what was just written");
            assert_eq!(&back, machine);
            for field in ["memory_bytes", "l2_bytes"] {
                assert_eq!(json.get(field).is_some(), is_told, "{field}");
            }
        }
    }

    #[test]
    fn readings_are_three_numbers() {
        let clocks = Clocks { sm_mhz: 1980.0, memory_mhz: 3201.0, power_watts: 123.45 };
        assert_eq!(parse("1980, 3201, 123.45"), Some(clocks));
        assert_eq!(parse("[N/A], 3201, 123.45"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn the_commit_that_is_told_wins() {
        assert_eq!(commit(Some("abc")), "abc");
    }
}
