use std::fmt::Display;
use std::io::{self, Write};
use std::path::Path;

/// Why a command ended early.
pub enum Failure {
    /// Standard output was closed.
    BrokenPipe,
    /// One line for the user.
    Message(String),
}

/// Parameters of the runtime and the server, and the flags that they are given by.
const FLAGS: &[(&str, &str)] = &[
    ("act-order", "--act-order"),
    ("bandwidth", "--bandwidth"),
    ("batch", "--batch"),
    ("bits", "--bits"),
    ("body bytes", "--max-body-bytes"),
    ("cache_tokens", "--cache-tokens"),
    ("calib", "--calib"),
    ("choices", "--max-choices"),
    ("connections", "--max-connections"),
    ("context", "--context"),
    ("ctx", "--ctx"),
    ("damp", "--damp"),
    ("device", "--device"),
    ("draft model", "--draft"),
    ("drain time", "--drain-timeout"),
    ("drafts", "--speculate"),
    ("flops", "--flops"),
    ("group", "--group"),
    ("head time", "--head-timeout"),
    ("max_running", "--max-running"),
    ("max_tokens", "--max-tokens"),
    ("memory", "--memory-gb"),
    ("min_p", "--min-p"),
    ("page_size", "--page-size"),
    ("pooling", "--pooling"),
    ("preset", "--preset"),
    ("queue", "--max-queue"),
    ("request time", "--request-timeout"),
    ("rows", "--rows"),
    ("samples", "--samples"),
    ("seq", "--seq"),
    ("stop", "--stop"),
    ("temperature", "--temp"),
    ("top_p", "--top-p"),
    ("weights", "--weights"),
];

impl Failure {
    /// A parameter that can't be used, by the name that the user gave it.
    pub fn expected(what: &str, expected: &str, found: &dyn Display) -> Failure {
        let name = FLAGS.iter().find(|(parameter, _)| *parameter == what).map_or(what, |(_, flag)| flag);
        Failure::Message(format!("{name}: expected {expected}, found {found}"))
    }
}

impl From<tilewright::Error> for Failure {
    fn from(error: tilewright::Error) -> Failure {
        match error {
            tilewright::Error::Request { what, expected, found } => {
                Failure::expected(what, &expected, &found)
            }
            other => Failure::Message(other.to_string()),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::BrokenPipe,
            _ => Failure::Message(format!("standard output: {error}")),
        }
    }
}

/// Prints `text` and a line's end.
pub fn print_line(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()?;
    Ok(())
}

/// Prints a value as indented JSON.
pub fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Failure::Message(error.to_string()))?;
    print_line(&text)
}

/// Fails before the work where its page couldn't be written after it. The file is there afterwards, empty if it wasn't there before.
pub fn check_writable(path: Option<&Path>) -> Result<(), Failure> {
    let Some(path) = path else { return Ok(()) };
    let opened = std::fs::OpenOptions::new().append(true).create(true).open(path);
    opened.map(drop).map_err(|error| Failure::Message(format!("{}: {error}", path.display())))
}

/// Writes a file, whose name is in what is said if that fails.
pub fn write_file(path: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text).map_err(|error| Failure::Message(format!("{}: {error}", path.display())))
}

/// Writes the page of `--html` where there is one to write, and prints what was measured, in words or as JSON, even where that fails.
pub fn print_and_write(
    print: impl FnOnce() -> Result<(), Failure>,
    page: Option<(&Path, String)>,
) -> Result<(), Failure> {
    let written = page.map_or(Ok(()), |(path, page)| write_file(path, &page));
    print()?;
    written
}

/// Bytes in words.
pub fn bytes_in_words(bytes: usize) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut amount = bytes as f64;
    let mut unit = 0;
    while amount >= 1024.0 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{amount:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::bytes_in_words;

    #[test]
    fn bytes_are_rounded_to_the_unit() {
        assert_eq!(bytes_in_words(1023), "1023 B");
        assert_eq!(bytes_in_words(1536), "1.5 KiB");
        assert_eq!(bytes_in_words(5 << 30), "5.0 GiB");
    }
}
