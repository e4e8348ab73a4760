use std::process::{Command, ExitCode, Stdio};
#[cfg(feature = "cuda")]
use std::time::Instant;

use serde::Serialize;
use tilewright::DeviceChoice;
use tilewright_benches::machine::driver_version;
#[cfg(feature = "cuda")]
use tilewright_benches::self_test::Gpu;
use tilewright_benches::self_test::{Tested, cpu_operations};

use crate::args::DoctorArgs;
#[cfg(feature = "cuda")]
use crate::load::with_bar;
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

/// What has been checked so far.
struct Checks {
    done: Vec<Check>,
    /// Each is printed once it is known, rather than all of them in the end.
    telling: bool,
}

impl Checks {
    fn add(&mut self, check: Check) -> Result<(), Failure> {
        if self.telling {
            print_line(&in_words(&check))?;
        }
        self.done.push(check);
        Ok(())
    }
}

#[derive(Debug, Serialize)]
struct MachineReport {
    checks: Vec<Check>,
    passed: bool,
}

pub fn run(args: &DoctorArgs) -> Result<ExitCode, Failure> {
    let mut checks = Checks { done: Vec::new(), telling: !args.json };
    surroundings().into_iter().try_for_each(|check| checks.add(check))?;
    on_gpu(args.device, &mut checks)?;
    cpu_operations().try_for_each(|tested| checks.add(self_test("CPU", &tested)))?;
    let passed = checks.done.iter().all(|check| check.verdict != Verdict::Failed);
    if args.json {
        print_json(&MachineReport { checks: checks.done, passed })?;
    } else {
        print_line(if passed { "healthy" } else { "FAULTY" })?;
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

/// The GPU, what its driver makes of the kernels, and each kernel; a GPU that isn't there is a failure only where one was asked for.
#[cfg(feature = "cuda")]
fn on_gpu(choice: DeviceChoice, checks: &mut Checks) -> Result<(), Failure> {
    let (index, verdict) = match choice {
        DeviceChoice::Cuda(index) => (index, Verdict::Failed),
        DeviceChoice::Auto => (0, Verdict::Absent),
        _ => return Ok(()),
    };
    let gpu = match Gpu::open(index) {
        Ok(gpu) => gpu,
        Err(error) => return checks.add(check("GPU", error.to_string(), verdict)),
    };
    let info = gpu.info();
    let (major, minor) = info.compute_capability;
    let found = format!(
        "{}, compute capability {major}.{minor}, {} multiprocessors, {:.1} GB",
        info.name,
        info.multiprocessors,
        info.memory_bytes as f64 / 1e9
    );
    checks.add(check("GPU", found, Verdict::Ok))?;
    let (start, mut count) = (Instant::now(), 0);
    let compiled = with_bar("compiling kernels {bar:30} {pos}/{len} {elapsed}", |progress| {
        gpu.compile(&mut |done, all| {
            count = all;
            progress(done, all);
        })
    });
    if let Err(error) = compiled {
        return checks.add(check("kernels", error.to_string(), Verdict::Failed));
    }
    let found = format!("the driver took all {count}, in {:.1} s", start.elapsed().as_secs_f64());
    checks.add(check("kernels", found, Verdict::Ok))?;
    gpu.kernels().try_for_each(|tested| checks.add(self_test("GPU", &tested)))
}

#[cfg(not(feature = "cuda"))]
fn on_gpu(choice: DeviceChoice, checks: &mut Checks) -> Result<(), Failure> {
    let verdict = match choice {
        DeviceChoice::Cuda(_) => Verdict::Failed,
        DeviceChoice::Auto => Verdict::Absent,
        _ => return Ok(()),
    };
    checks.add(check("GPU", "this program was built without CUDA; build it with --features cuda", verdict))
}

/// Columns of what is checked: the longest name of a kernel and of its device.
const WHAT_COLUMNS: usize = 27;

fn in_words(check: &Check) -> String {
    let verdict = match check.verdict {
        Verdict::Ok => "ok",
        Verdict::Absent => "-",
        Verdict::Failed => "FAILED",
    };
    format!("{:WHAT_COLUMNS$}  {verdict:6}  {}", check.what, check.found)
}
