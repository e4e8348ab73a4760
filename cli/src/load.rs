use std::fmt::Display;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tilewright::checkpoint::{check_folder, read_any};
use tilewright::config::ModelConfig;
use tilewright::{DeviceChoice, Model};

use crate::args::ModelArgs;
use crate::output::Failure;

/// Where the demo model lies below the workspace.
const DEMO: &str = "models/demo/target";
/// Where its draft model does.
const DEMO_DRAFT: &str = "models/demo/draft";

/// Bytes of a text, which is made into tokens as a whole: that takes some 200 to 300 times as much memory.
const MAX_TEXT_BYTES: u64 = 64 << 20;
/// Bytes of a prompt: some four million tokens.
const MAX_PROMPT_BYTES: u64 = 16 << 20;

/// The shape of the demo model, which needs nothing beside the program.
const DEMO_CONFIG: &str = include_str!("../../models/demo/target/config.json");

/// The folder asked for, or the demo model's, where that is still to be found.
pub fn model_dir(asked: Option<&PathBuf>) -> Result<PathBuf, Failure> {
    if let Some(dir) = asked {
        check_dir("--model", dir)?;
        return Ok(dir.clone());
    }
    let dir = default_model_dir();
    if !dir.exists() {
        return Err(Failure::Message(format!(
            "--model: expected a folder, as the demo model is neither where this program was built ({}) nor below the current folder; found none",
            built_in(DEMO).display()
        )));
    }
    Ok(dir)
}

/// Refuses a path that `flag` gave where there is no folder.
pub fn check_dir(flag: &str, path: &Path) -> Result<(), Failure> {
    check_folder(path).map_err(|error| Failure::Message(format!("{flag}: {error}")))
}

/// What a page calls the model: the folder as the user gave it.
pub fn model_name(asked: Option<&PathBuf>) -> String {
    asked.map_or("the bundled demo model".to_string(), |dir| dir.display().to_string())
}

/// The demo model's folder.
pub fn default_model_dir() -> PathBuf {
    bundled(DEMO)
}

/// The folder of the demo model's draft model.
pub fn default_draft_dir() -> PathBuf {
    bundled(DEMO_DRAFT)
}

/// The demo model's shape.
pub fn demo_config() -> Result<ModelConfig, Failure> {
    Ok(ModelConfig::from_json("the demo model's config.json", DEMO_CONFIG)?)
}

/// A folder of the workspace that this program was built in, or of the current folder's.
fn bundled(path: &str) -> PathBuf {
    let built_in = built_in(path);
    if built_in.exists() { built_in } else { PathBuf::from(path) }
}

fn built_in(path: &str) -> PathBuf {
    // The workspace is the folder that this crate's folder is in.
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("")).join(path)
}

/// UTF-8 text of a file, or of a pipe, that `flag` names.
pub fn read_text(flag: &str, path: &Path) -> Result<String, Failure> {
    let bytes = read_any(path, MAX_TEXT_BYTES);
    let bytes = bytes.map_err(|error| Failure::Message(format!("{flag}: {error}")))?;
    utf8(&format!("{flag}: {}", path.display()), bytes)
}

/// Standard input, which is UTF-8 text.
pub fn read_stdin() -> Result<String, Failure> {
    let wrong = |error: &dyn Display| Failure::Message(format!("standard input: {error}"));
    let mut bytes = Vec::new();
    let input = std::io::stdin().lock();
    input.take(MAX_PROMPT_BYTES + 1).read_to_end(&mut bytes).map_err(|error| wrong(&error))?;
    if bytes.len() as u64 > MAX_PROMPT_BYTES {
        return Err(wrong(&format!("expected at most {MAX_PROMPT_BYTES} bytes, found more")));
    }
    utf8("standard input", bytes)
}

fn utf8(name: &str, bytes: Vec<u8>) -> Result<String, Failure> {
    String::from_utf8(bytes).map_err(|error| {
        Failure::Message(format!("{name}: expected UTF-8 text, found {}", error.utf8_error()))
    })
}

/// Says on standard error, where that is a terminal, what takes its time.
pub fn measuring(what: impl std::fmt::Display) {
    if std::io::stderr().is_terminal() {
        eprintln!("measuring: {what}");
    }
}

/// A bar on standard error where that is a terminal, told of parts that are done; it is gone once `work` is.
pub fn with_bar<T>(template: &str, work: impl FnOnce(&mut (dyn FnMut(usize, usize) + Send)) -> T) -> T {
    let bar = ProgressBar::no_length();
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    let done = work(&mut |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    done
}

/// Loads a model. Standard error gets a bar where it is a terminal, and a line where a GPU would have been used but can't be.
pub fn load(args: &ModelArgs) -> Result<Model, Failure> {
    let model = load_with_bar(&model_dir(args.model.as_ref())?, args.device)?;
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
    let loaded =
        with_bar("loading {bar:30} {pos}/{len}", |progress| Model::load_with_progress(dir, device, progress));
    Ok(loaded?)
}
