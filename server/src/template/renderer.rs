//! The process that renders chats. A template can overflow its stack, fill its memory or never end, and then only this process is lost.

use std::io::{self, BufRead, Read, Write};

use serde::de::DeserializeOwned;

use super::jinja::{Jinja, Refusal};
use super::pool::{RENDER_TIME, START_TIME};

/// Bytes of a line. A template and its special tokens, from a file of 16 MiB each, are 112 MiB as JSON where every byte of the template is
/// written as an escape of six; a chat is about as long as its request's body.
const MAX_LINE_BYTES: u64 = 128 << 20;

/// Renders chats for a [`Server`](crate::Server): all that the process of [`ServerConfig::renderer`](crate::ServerConfig::renderer)
/// does. It reads a template and then chats from standard input, JSON on one line each, answers each by a line on standard output, and
/// ends when its input does.
///
/// The process limits itself for good, where the system has such limits: 512 MiB of address space, no core dumps, and an alarm that ends
/// it when an answer takes longer than the server waits for one. It ignores interrupts and SIGTERM, which are the server's to act on.
///
/// # Errors
/// Limits that can't be set, input that isn't a server's, output that nobody reads; the message names which.
pub fn render_chats() -> io::Result<()> {
    #[cfg(unix)]
    limits::set().map_err(named("limits"))?;
    let mut input = io::stdin().lock();
    let Some(line) = next_line(&mut input)? else { return Ok(()) };
    limits::end_after(START_TIME);
    let jinja = match Jinja::compile(parsed("a template", &line)?) {
        Ok(jinja) => jinja,
        Err(refusal) => return answer(&Err(refusal)),
    };
    answer(&Ok(String::new()))?;
    while let Some(line) = next_line(&mut input)? {
        limits::end_after(RENDER_TIME);
        answer(&jinja.render(parsed("a chat", &line)?))?;
    }
    Ok(())
}

/// The next line of input, while there are any.
fn next_line(input: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    input.take(MAX_LINE_BYTES + 1).read_until(b'\n', &mut line).map_err(named("standard input"))?;
    if line.len() as u64 > MAX_LINE_BYTES {
        let message = format!("standard input: expected lines of at most {MAX_LINE_BYTES} bytes, found more");
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok((!line.is_empty()).then_some(line))
}

/// The same error, with the name of what it's about.
fn named(what: &'static str) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{what}: {error}"))
}

fn parsed<T: DeserializeOwned>(what: &str, line: &[u8]) -> io::Result<T> {
    serde_json::from_slice(line).map_err(|error| {
        let message = format!("standard input: expected {what} as JSON on a line, found {error}");
        io::Error::new(io::ErrorKind::InvalidData, message)
    })
}

fn answer(answer: &Result<String, Refusal>) -> io::Result<()> {
    let mut line = serde_json::to_string(answer)?;
    line.push('\n');
    io::stdout().write_all(line.as_bytes()).map_err(named("standard output"))?;
    limits::end_never();
    Ok(())
}

#[cfg(unix)]
mod limits {
    use std::io;
    use std::time::Duration;

    use rlimit::Resource;

    /// Address space of the process, its program included.
    const MAX_ADDRESS_BYTES: u64 = 512 << 20;

    pub fn set() -> io::Result<()> {
        for (resource, most) in [(Resource::AS, MAX_ADDRESS_BYTES), (Resource::CORE, 0)] {
            let (_, hard) = resource.get()?;
            resource.set(most.min(hard), most.min(hard))?;
        }
        // SAFETY: no handler is installed, two signals are ignored.
        unsafe {
            libc::signal(libc::SIGINT, libc::SIG_IGN);
            libc::signal(libc::SIGTERM, libc::SIG_IGN);
        }
        Ok(())
    }

    /// Ends the process unless it is told otherwise in time. The server does so earlier, if it still is there.
    pub fn end_after(time: Duration) {
        alarm(time.as_secs() as u32 + 1);
    }

    pub fn end_never() {
        alarm(0);
    }

    fn alarm(seconds: u32) {
        // SAFETY: sets a timer. Nobody handles its signal, which then ends the process.
        unsafe { libc::alarm(seconds) };
    }
}

#[cfg(not(unix))]
mod limits {
    use std::time::Duration;

    pub fn end_after(_: Duration) {}

    pub fn end_never() {}
}
