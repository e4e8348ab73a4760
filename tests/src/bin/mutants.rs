//! Plants the bugs of `mutants.txt`, one at a time, in a scratch copy of the workspace, runs the kernel's suite there and
//! prints which check caught each: `cargo run -p tilewright-tests --bin mutants [-- SUITE-OR-PART-OF-A-TITLE...]`. Exits 1 if any survives.
//!
//! With `--check` it only looks whether every bug's text is in its file, once.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Instant,
};

struct Mutant {
    title: String,
    suite: String,
    file: String,
    find: String,
    replace: String,
}

fn main() -> ExitCode {
    let mut parts: Vec<String> = std::env::args().skip(1).collect();
    let checks = parts.iter().any(|part| part == "--check");
    parts.retain(|part| part != "--check");
    match if checks { check(&parts) } else { run(&parts) } {
        Ok(0) => ExitCode::SUCCESS,
        Ok(survivors) => {
            eprintln!("mutants: {survivors} not caught");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("mutants: {error}");
            ExitCode::FAILURE
        }
    }
}

fn root() -> Result<&'static Path, String> {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("the crate has no parent folder".to_string())
}

fn mutants() -> Result<Vec<Mutant>, String> {
    parse(&read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("mutants.txt"))?)
}

/// How many of the bugs can't be planted.
fn check(parts: &[String]) -> Result<usize, String> {
    let (root, mutants) = (root()?, mutants()?);
    let wanted: Vec<&Mutant> = mutants.iter().filter(|mutant| wanted(mutant, parts)).collect();
    let mut misplaced = 0;
    for mutant in &wanted {
        if let Err(error) = planted(&read(&root.join(&mutant.file))?, mutant) {
            eprintln!("mutants: {error}");
            misplaced += 1;
        }
    }
    println!("{} bugs, {misplaced} without their place", wanted.len());
    Ok(misplaced)
}

fn run(parts: &[String]) -> Result<usize, String> {
    let (root, mutants) = (root()?, mutants()?);
    let scratch = root.join("target/mutants");
    copy_workspace(root, &scratch)?;
    println!("| planted bug | in | suite | caught by |\n|---|---|---|---|");
    let (mut survivors, mut planted) = (0, 0);
    let began = Instant::now();
    for mutant in mutants.iter().filter(|mutant| wanted(mutant, parts)) {
        let caught = plant(&scratch, mutant);
        let verdict = match &caught {
            Ok(Some(reason)) => reason,
            Ok(None) => "**survived**",
            Err(error) => {
                eprintln!("mutants: {error}");
                "**not run**"
            }
        };
        let file = mutant.file.trim_start_matches("kernels/src/");
        println!("| {} | `{file}` | {} | {verdict} |", mutant.title, mutant.suite);
        survivors += usize::from(!matches!(caught, Ok(Some(_))));
        planted += 1;
    }
    println!(
        "\n{planted} planted, {} caught, in {:.0} s.",
        planted - survivors,
        began.elapsed().as_secs_f64()
    );
    Ok(survivors)
}

/// Whether the title has one of `parts`, or the suite's name is one; without parts, all are wanted.
fn wanted(mutant: &Mutant, parts: &[String]) -> bool {
    parts.is_empty() || parts.iter().any(|part| mutant.title.contains(part.as_str()) || mutant.suite == *part)
}

/// `== title`, `suite file`, then the text to find after `<<`, and what replaces it after `>>`.
fn parse(text: &str) -> Result<Vec<Mutant>, String> {
    text.split("\n== ")
        .skip(1)
        .map(|entry| {
            let malformed =
                || format!("mutants.txt: '{}' is malformed", entry.lines().next().unwrap_or_default());
            let (head, patch) = entry.split_once("\n<<\n").ok_or_else(malformed)?;
            let (find, replace) = patch.split_once("\n>>").ok_or_else(malformed)?;
            let (title, place) = head.split_once('\n').ok_or_else(malformed)?;
            let (suite, file) = place.split_once(' ').ok_or_else(malformed)?;
            Ok(Mutant {
                title: title.to_string(),
                suite: suite.to_string(),
                file: file.to_string(),
                find: find.to_string(),
                replace: replace.trim_matches('\n').to_string(),
            })
        })
        .collect()
}

/// What caught the mutant, if anything did.
fn plant(scratch: &Path, mutant: &Mutant) -> Result<Option<String>, String> {
    let path = scratch.join(&mutant.file);
    let original = read(&path)?;
    write(&path, &planted(&original, mutant)?)?;
    let outcome = test(scratch, mutant);
    write(&path, &original)?;
    outcome
}

/// A file's text with the bug in it.
fn planted(original: &str, mutant: &Mutant) -> Result<String, String> {
    match original.matches(&mutant.find).count() {
        1 => Ok(original.replace(&mutant.find, &mutant.replace)),
        found => {
            Err(format!("'{}': its text occurs {found} times in {}, expected 1", mutant.title, mutant.file))
        }
    }
}

fn test(scratch: &Path, mutant: &Mutant) -> Result<Option<String>, String> {
    let cargo = |arguments: &[&str]| {
        Command::new(std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into()))
            .args(arguments)
            .current_dir(scratch)
            .env("CARGO_TARGET_DIR", scratch.join("target"))
            .env("PROPTEST_MAX_SHRINK_TIME", "1000")
            .output()
            .map_err(|error| format!("cargo: {error}"))
    };
    // The host crate is compiled anew for each mutant, and only its driver trait is used.
    let quick = "profile.dev.package.tilewright-host.opt-level=0";
    let base = ["test", "--config", quick, "--offline", "-q", "-p", "tilewright-tests", "--test", "kernels"];
    let built = cargo(&[&base[..], &["--no-run"]].concat())?;
    if !built.status.success() {
        return Err(format!(
            "'{}' doesn't compile:\n{}",
            mutant.title,
            String::from_utf8_lossy(&built.stderr)
        ));
    }
    let regressions = scratch.join("tests/regressions");
    let _ = fs::remove_dir_all(&regressions);
    let ran = cargo(&[&base[..], &["--", &format!("emulated::{}", mutant.suite)]].concat())?;
    if ran.status.success() {
        return Ok(None);
    }
    let output = String::from_utf8_lossy(&ran.stdout).into_owned() + &String::from_utf8_lossy(&ran.stderr);
    Ok(Some(reason(&output)))
}

/// The first line of the failure, without what makes it too long for a table.
fn reason(output: &str) -> String {
    let mut lines = output.lines().skip_while(|line| !line.starts_with("---- emulated::")).skip(1);
    let line = lines.find(|line| !line.trim().is_empty()).unwrap_or("the suite fails without a message");
    let line = line.trim_start_matches("launch failed with ").replace('|', "/");
    if line.chars().count() > 150 { line.chars().take(150).collect::<String>() + "..." } else { line }
}

/// Every tracked and new file, without the runtime, which the kernels' suites don't need, and without the binaries, which cargo would
/// link anew for each bug.
fn copy_workspace(root: &Path, scratch: &Path) -> Result<(), String> {
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .map_err(|error| format!("git: {error}"))?;
    // Of an older copy.
    let _ = fs::remove_dir_all(scratch.join("tests/src/bin"));
    for name in String::from_utf8_lossy(&listed.stdout).lines() {
        if name.starts_with("tests/src/bin/") {
            continue;
        }
        let (from, to) = (root.join(name), scratch.join(name));
        if !from.is_file() || fs::read(&from).ok() == fs::read(&to).ok() {
            continue;
        }
        let folder: PathBuf = to.parent().map(Path::to_path_buf).unwrap_or_default();
        fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        fs::copy(&from, &to).map_err(|error| format!("{name}: {error}"))?;
    }
    let manifest = scratch.join("tests/Cargo.toml");
    let text = read(&manifest)?;
    write(&manifest, &text.replace("tilewright.workspace = true\n", "").replace("\"tilewright/cuda\", ", ""))
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}
