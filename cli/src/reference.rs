//! The command's reference, made of what its parser knows.

use std::fmt::Write;
use std::process::ExitCode;

use clap::{Arg, ArgAction, Command, CommandFactory};

use crate::args::Cli;
use crate::output::{Failure, print_line};

const HEAD: &str = "# The `tilewright` command

Made by `cargo xtask cli-docs` from the command's own help; a test holds it to that.

Results go to standard output, all else to standard error. Bad input ends with one line that names what was expected and what was found, and
exit code 1, or 2 where the arguments themselves are wrong.
";

pub fn run() -> Result<ExitCode, Failure> {
    print_line(markdown(&Cli::command()).trim_end())?;
    Ok(ExitCode::SUCCESS)
}

fn markdown(command: &Command) -> String {
    let mut text = HEAD.to_string();
    let shown: Vec<&Command> = command.get_subcommands().filter(|command| !command.is_hide_set()).collect();
    text.push_str("\n| command | |\n|---|---|\n");
    for command in &shown {
        let name = command.get_name();
        // Writing to a string can't fail, here and below.
        let _ = writeln!(text, "| [`{name}`](#{name}) | {} |", about(command));
    }
    for command in shown {
        section(&mut text, command);
    }
    text
}

fn about(command: &Command) -> String {
    command.get_about().map(ToString::to_string).unwrap_or_default()
}

fn section(text: &mut String, command: &Command) {
    let _ = writeln!(text, "\n## {}\n\n{}.\n", command.get_name(), about(command));
    let args: Vec<&Arg> =
        command.get_arguments().filter(|arg| !arg.is_hide_set() && arg.get_id() != "help").collect();
    let positional = args.iter().filter(|arg| arg.is_positional()).map(|arg| format!(" {}", form(arg)));
    let _ = writeln!(
        text,
        "```sh\ntilewright {}{} [OPTIONS]\n```\n",
        command.get_name(),
        positional.collect::<String>()
    );
    text.push_str("| argument | | default |\n|---|---|---|\n");
    for arg in args {
        let help = arg.get_help().map(|help| cell(&help.to_string())).unwrap_or_default();
        let (help, written) = match help.split_once(" [default: ") {
            Some((help, default)) => (help.to_string(), default.trim_end_matches(']').to_string()),
            None => (help, String::new()),
        };
        let defaults: Vec<String> =
            arg.get_default_values().iter().map(|value| format!("`{}`", value.to_string_lossy())).collect();
        // A switch is off by default, which goes without saying.
        let default = match (takes_value(arg), defaults.is_empty()) {
            (false, _) => String::new(),
            (true, true) => written,
            (true, false) => defaults.join(" "),
        };
        let choices: Vec<String> = arg
            .get_possible_values()
            .iter()
            .filter(|_| takes_value(arg))
            .map(|value| format!("`{}`", value.get_name()))
            .collect();
        let choices = if choices.is_empty() { String::new() } else { format!(": {}", choices.join(", ")) };
        let _ = writeln!(text, "| `{}` | {help}{choices} | {default} |", cell(&form(arg)));
    }
}

fn takes_value(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Set | ArgAction::Append)
}

/// How an argument is written: `-m, --model <DIR>`, `<DIR>`, `[PROMPT]`.
fn form(arg: &Arg) -> String {
    let names = arg.get_value_names().unwrap_or_default();
    let value = names.first().map_or_else(|| arg.get_id().to_string().to_uppercase(), ToString::to_string);
    if arg.is_positional() {
        return if arg.is_required_set() { format!("<{value}>") } else { format!("[{value}]") };
    }
    let short = arg.get_short().map(|short| format!("-{short}"));
    let long = arg.get_long().map(|long| format!("--{long}"));
    let names: Vec<String> = short.into_iter().chain(long).collect();
    let value = if takes_value(arg) { format!(" <{value}>") } else { String::new() };
    format!("{}{value}", names.join(", "))
}

/// Text within a table's cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_page_is_what_the_parser_knows() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cli.md");
        let page = std::fs::read_to_string(path).expect("docs/cli.md");
        let known = markdown(&Cli::command());
        let differ =
            page.trim_end().lines().zip(known.trim_end().lines()).find(|(page, known)| page != known);
        assert_eq!(differ, None, "run 'cargo xtask cli-docs'");
        assert_eq!(page.trim_end(), known.trim_end(), "run 'cargo xtask cli-docs'");
    }

    #[test]
    fn every_argument_has_help() {
        for command in Cli::command().get_subcommands() {
            for arg in command.get_arguments() {
                assert!(
                    arg.get_help().is_some() || arg.get_id() == "help",
                    "{} {}",
                    command.get_name(),
                    arg.get_id()
                );
            }
        }
        let page = markdown(&Cli::command());
        assert!(page.contains("| `-n, --max-tokens <N>` | Tokens to generate at most | `128` |"), "{page}");
        assert!(!page.contains("reference"), "hidden");
    }
}
