use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use tilewright::{DeviceChoice, Model};

use crate::args::ModelArgs;
use crate::output::Failure;

/// Where the demo model lies below the workspace.
const DEMO: &str = "models/demo/target";
/// Where its draft model does.
const DEMO_DRAFT: &str = "models/demo/draft";

/// The folder asked for, or the demo model's.
pub fn model_dir(args: &ModelArgs) -> PathBuf {
    args.model.clone().unwrap_or_else(default_model_dir)
}

/// The demo model's folder.
pub fn default_model_dir() -> PathBuf {
    bundled(DEMO)
}

/// The folder of the demo model's draft model.
pub fn default_draft_dir() -> PathBuf {
    bundled(DEMO_DRAFT)
}

fn bundled(path: &str) -> PathBuf {
    // The workspace is the folder that this crate's folder is in.
    let built_in = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("")).join(path);
    if built_in.exists() { built_in } else { PathBuf::from(path) }
}

/// Loads a model. Standard error gets a bar where it is a terminal, and a line where a GPU would have been used but can't be.
pub fn load(args: &ModelArgs) -> Result<Model, Failure> {
    let model = load_with_bar(&model_dir(args), args.device)?;
    tell_why_no_gpu(model.no_gpu());
    Ok(model)
}

/// A line on standard error where a GPU would have been used.
pub fn tell_why_no_gpu(reason: Option<&str>) {
    if let Some(reason) = reason {
        eprintln!("note: running on the CPU: {reason}");
    }
}

/// Loads the model of a folder where another one has been loaded already.
pub fn load_beside(dir: &Path, device: DeviceChoice) -> Result<Model, Failure> {
    load_with_bar(dir, device)
}

fn load_with_bar(dir: &Path, device: DeviceChoice) -> Result<Model, Failure> {
    if !std::io::stderr().is_terminal() {
        return Ok(Model::load(dir, device)?);
    }
    let bar = ProgressBar::no_length();
    if let Ok(style) = ProgressStyle::with_template("loading {bar:30} {pos}/{len}") {
        bar.set_style(style);
    }
    let model = Model::load_with_progress(dir, device, &mut |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    Ok(model?)
}
