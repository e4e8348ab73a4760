use std::process::{Command, ExitCode, Stdio};

use serde::Serialize;
use tilewright::DeviceChoice;
use tilewright_benches::machine::driver_version;
use tilewright_benches::self_test::{Tested, cpu_operations};

use crate::args::DoctorArgs;
use crate::load::{default_draft_dir, default_model_dir};
use crate::output::{Failure, print_json, print_line};

/// What became of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// It isn't needed for what was asked.
    Absent,
    Failed,
}

/// One line of the report.
#[derive(Debug, Serialize)]
struct Check {
    what: String,
    found: String,
    verdict: Verdict,
}

#[derive(Debug, Serialize)]
struct MachineReport {
    checks: Vec<Check>,
    passed: bool,
}

pub fn run(args: &DoctorArgs) -> Result<ExitCode, Failure> {
    let mut checks = surroundings();
    checks.extend(on_gpu(args.device));
    checks.extend(cpu_operations().iter().map(|tested| self_test("CPU", tested)));
    let passed = checks.iter().all(|check| check.verdict != Verdict::Failed);
    let report = MachineReport { checks, passed };
    if args.json {
        print_json(&report)?;
    } else {
        print_line(&in_words(&report))?;
    }
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn check(what: &str, found: impl Into<String>, verdict: Verdict) -> Check {
    Check { what: what.to_string(), found: found.into(), verdict }
}

/// What the program finds around itself.
fn surroundings() -> Vec<Check> {
    let cpu = tilewright::plan::cpu_in_words();
    let models = [default_model_dir(), default_draft_dir()];
    let bundled = models.iter().all(|dir| dir.join("config.json").exists());
    let driver = driver_version();
    let (driver, driver_verdict) = match &driver {
        Some(version) => (format!("NVIDIA {version}"), Verdict::Ok),
        None => ("'nvidia-smi' doesn't answer; needed for a GPU".to_string(), Verdict::Absent),
    };
    let (toolkit, toolkit_verdict) = match toolkit() {
        Some(version) => (version, Verdict::Ok),
        None => (
            "no 'nvcc'; needed to build with --features cuda, or its stand-in, not to run".to_string(),
            Verdict::Absent,
        ),
    };
    let (models, models_verdict) = match bundled {
        true => (models[0].display().to_string(), Verdict::Ok),
        false => (format!("not at {}; name one by -m", models[0].display()), Verdict::Absent),
    };
    vec![
        check("CPU", cpu, Verdict::Ok),
        check("demo models", models, models_verdict),
        check("driver", driver, driver_verdict),
        check("toolkit", toolkit, toolkit_verdict),
    ]
}

/// The release that `nvcc` says it is of.
fn toolkit() -> Option<String> {
    let output =
        Command::new("nvcc").arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let line = text.lines().find(|line| line.contains("release"))?;
    Some(line.trim().to_string())
}

fn self_test(device: &str, tested: &Tested) -> Check {
    let what = format!("{device}: {}", tested.name);
    match &tested.fault {
        Some(fault) => check(&what, fault.to_string(), Verdict::Failed),
        None if tested.problems == 0 => check(&what, "not for this GPU", Verdict::Absent),
        None => {
            let plural = if tested.problems == 1 { "" } else { "s" };
            check(&what, format!("right on {} small problem{plural}", tested.problems), Verdict::Ok)
        }
    }
}

/// The GPU, its module and its kernels; a GPU that isn't there is a failure only where one was asked for.
#[cfg(feature = "cuda")]
fn on_gpu(choice: DeviceChoice) -> Vec<Check> {
    let (index, verdict) = match choice {
        DeviceChoice::Cuda(index) => (index, Verdict::Failed),
        DeviceChoice::Auto => (0, Verdict::Absent),
        _ => return Vec::new(),
    };
    let (info, tested) = match tilewright_benches::self_test::gpu(index) {
        Ok(found) => found,
        Err(error) => return vec![check("GPU", error.to_string(), verdict)],
    };
    let (major, minor) = info.compute_capability;
    let found = format!(
        "{}, compute capability {major}.{minor}, {} multiprocessors, {:.1} GB",
        info.name,
        info.multiprocessors,
        info.memory_bytes as f64 / 1e9
    );
    // All kernels of the module that `tilewright_kernels::module::ptx_for` names have been loaded.
    let module = if (major, minor) >= (9, 0) { "sm_90a" } else { "sm_80" };
    let mut checks = vec![
        check("GPU", found, Verdict::Ok),
        check("kernels", format!("PTX for {module} loads"), Verdict::Ok),
    ];
    checks.extend(tested.iter().map(|tested| self_test("GPU", tested)));
    checks
}

#[cfg(not(feature = "cuda"))]
fn on_gpu(choice: DeviceChoice) -> Vec<Check> {
    let verdict = match choice {
        DeviceChoice::Cuda(_) => Verdict::Failed,
        DeviceChoice::Auto => Verdict::Absent,
        _ => return Vec::new(),
    };
    vec![check("GPU", "this program was built without CUDA; build it with --features cuda", verdict)]
}

fn in_words(report: &MachineReport) -> String {
    let width = report.checks.iter().map(|check| check.what.len()).max().unwrap_or(0);
    let mut lines: Vec<String> = report
        .checks
        .iter()
        .map(|check| {
            let verdict = match check.verdict {
                Verdict::Ok => "ok",
                Verdict::Absent => "-",
                Verdict::Failed => "FAILED",
            };
            format!("{:width$}  {verdict:6}  {}", check.what, check.found)
        })
        .collect();
    lines.push(if report.passed { "healthy" } else { "FAULTY" }.to_string());
    lines.join("\n")
}
