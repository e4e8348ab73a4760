//! Plants the bugs of `mutants.txt` in a scratch copy of the workspace, one of a kernel at a time, runs each kernel's suite there and
//! prints which check caught each: `cargo run -p tilewright-tests --bin mutants [-- SUITE-OR-PART-OF-A-TITLE...]`. Exits 1 if any survives.
//!
//! With `--check` it only looks whether every bug's text is in its file, once.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Output},
    time::Instant,
};

const KERNELS: &str = "kernels/src/";

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
    for round in rounds(&scratch, mutants.iter().filter(|mutant| wanted(mutant, parts)).collect())? {
        for (mutant, caught) in round.iter().zip(plant(&scratch, &round)) {
            let verdict = match &caught {
                Ok(Some(reason)) => reason,
                Ok(None) => "**survived**",
                Err(error) => {
                    eprintln!("mutants: {error}");
                    "**not run**"
                }
            };
            let file = mutant.file.trim_start_matches(KERNELS);
            println!("| {} | `{file}` | {} | {verdict} |", mutant.title, mutant.suite);
            survivors += usize::from(!matches!(caught, Ok(Some(_))));
            planted += 1;
        }
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

/// Mutants that are planted together, for compiling takes longest: each in its own kernel's folder, of kernels of which neither names the
/// other. Those in files that kernels share stand alone.
fn rounds<'m>(scratch: &Path, mutants: Vec<&'m Mutant>) -> Result<Vec<Vec<&'m Mutant>>, String> {
    let mut texts = BTreeMap::new();
    for mutant in &mutants {
        if !texts.contains_key(mutant.suite.as_str()) {
            texts.insert(mutant.suite.as_str(), texts_of(scratch, &mutant.suite)?);
        }
    }
    let apart = |a: &Mutant, b: &Mutant| {
        let names = |a: &Mutant, b: &Mutant| {
            let mut words = texts[a.suite.as_str()].split(|c: char| !c.is_alphanumeric() && c != '_');
            words.any(|word| word == b.suite)
        };
        a.suite != b.suite && is_own(a) && is_own(b) && !names(a, b) && !names(b, a)
    };
    let mut rounds: Vec<Vec<&Mutant>> = Vec::new();
    for mutant in mutants {
        match rounds.iter_mut().find(|round| round.iter().all(|other| apart(mutant, other))) {
            Some(round) => round.push(mutant),
            None => rounds.push(vec![mutant]),
        }
    }
    Ok(rounds)
}

/// Whether the mutant is in its own kernel's folder.
fn is_own(mutant: &Mutant) -> bool {
    mutant
        .file
        .strip_prefix(KERNELS)
        .and_then(|file| file.split_once('/'))
        .is_some_and(|(folder, _)| folder == mutant.suite)
}

/// All that a kernel's folder and its suite say. A kernel may lie in another's folder: its bugs stand alone anyway ([`is_own`]).
fn texts_of(scratch: &Path, kernel: &str) -> Result<String, String> {
    let folder = scratch.join(KERNELS).join(kernel);
    let entries = match folder.is_dir() {
        true => Some(fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?),
        false => None,
    };
    let mut text = read(&scratch.join("tests/src/suites").join(format!("{kernel}.rs")))?;
    for entry in entries.into_iter().flatten() {
        text += &read(&entry.map_err(|error| format!("{}: {error}", folder.display()))?.path())?;
    }
    Ok(text)
}

/// What caught each of the mutants of a round, if anything did.
fn plant(scratch: &Path, round: &[&Mutant]) -> Vec<Result<Option<String>, String>> {
    let originals: Vec<_> = round.iter().map(|mutant| read(&scratch.join(&mutant.file))).collect();
    let place = |mutant: &Mutant, original: &Result<String, String>| {
        write(&scratch.join(&mutant.file), &planted(original.as_ref().map_err(String::clone)?, mutant)?)
    };
    let placed: Vec<_> =
        round.iter().zip(&originals).map(|(mutant, original)| place(mutant, original)).collect();
    let built = build(scratch);
    let outcomes = round.iter().zip(placed).map(|(mutant, placed)| {
        placed?;
        built.clone().map_err(|error| format!("'{}' doesn't compile:\n{error}", mutant.title))?;
        test(scratch, mutant)
    });
    let outcomes = outcomes.collect();
    for (mutant, original) in round.iter().zip(originals) {
        // What can't be written back can't be planted either: the next round says so.
        let _ = original.and_then(|original| write(&scratch.join(&mutant.file), &original));
    }
    outcomes
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

/// The suites' program.
const PROGRAM: [&str; 5] = ["--offline", "-q", "-p=tilewright-tests", "--test", "kernels"];

fn cargo(scratch: &Path, arguments: &[&str]) -> Result<Output, String> {
    // Compiling takes longer than what is run: of the host crate only its driver trait is used, and a suite's own part is small.
    let quick = ["tilewright-host", "tilewright-tests"];
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into()))
        .arg("test")
        .args(quick.map(|package| format!("--config=profile.dev.package.{package}.opt-level=0")))
        .args(PROGRAM)
        .args(arguments)
        .current_dir(scratch)
        .env("CARGO_TARGET_DIR", scratch.join("target"))
        // The table tells which check failed, not the smallest case: a millisecond is none.
        .env("PROPTEST_MAX_SHRINK_TIME", "1")
        .output()
        .map_err(|error| format!("cargo: {error}"))
}

fn build(scratch: &Path) -> Result<(), String> {
    let built = cargo(scratch, &["--no-run"])?;
    if built.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&built.stderr).into_owned()) }
}

/// What of the mutant's suite fails, if anything does.
fn test(scratch: &Path, mutant: &Mutant) -> Result<Option<String>, String> {
    let regressions = scratch.join("tests/regressions");
    let _ = fs::remove_dir_all(&regressions);
    let ran = cargo(scratch, &["--", "--exact", &format!("emulated::{}", mutant.suite)])?;
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
