//! The processes that render chats, as the server sees them: started on need, kept, and killed with a chat that is too much for one.

use std::ffi::OsString;
use std::io;
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::Semaphore;

use super::Conversation;
use super::jinja::{Refusal, Template};
use crate::error::{ApiError, ApiResult};

/// Time that a rendering may take.
pub(super) const RENDER_TIME: Duration = Duration::from_secs(2);
/// Time for a process to start and to compile the template.
pub(super) const START_TIME: Duration = Duration::from_secs(10);
/// Processes at a time.
const MAX_RENDERERS: usize = 4;
/// Bytes of an answer: JSON, on one line.
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// Renders chats by one template, in processes of its own.
pub(crate) struct Renderers {
    command: Vec<OsString>,
    /// What each process hears first.
    template: Vec<u8>,
    places: Semaphore,
    idle: Mutex<Vec<Renderer>>,
}

/// Why a process isn't there to render.
#[derive(Debug)]
pub(super) enum NoRenderer {
    /// There never was one.
    Start(io::Error),
    /// It can't do anything with the template: what was found instead of one.
    Template(String),
}

impl Renderers {
    /// Renderers that a command starts. One is tried out.
    pub(super) fn new(command: Vec<OsString>, template: &Template) -> Result<Renderers, NoRenderer> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let renderers = Renderers {
            command,
            template: line(template).map_err(NoRenderer::Start)?,
            places: Semaphore::new(processors.min(MAX_RENDERERS)),
            idle: Mutex::new(Vec::new()),
        };
        renderers.try_out()?;
        Ok(renderers)
    }

    /// Has a process compile the template. It belongs to a runtime of its own, as the server's may not be there yet, and ends with that.
    fn try_out(&self) -> Result<(), NoRenderer> {
        let try_out = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map_err(NoRenderer::Start)?.block_on(self.start()).map(drop)
        };
        let thread = std::thread::scope(|scope| scope.spawn(try_out).join());
        thread
            .unwrap_or_else(|_| Err(NoRenderer::Start(io::Error::other("the thread that starts it failed"))))
    }

    /// The prompt of a chat. The process is killed if nobody waits for it any more.
    pub async fn render(&self, conversation: &Conversation) -> ApiResult<String> {
        let budget = |found: &str| {
            ApiError::field("messages", "a chat that the template renders within its budget", found)
        };
        let line = line(conversation).map_err(|error| ApiError::internal(error.to_string()))?;
        let _place = self.places.acquire().await;
        let (mut renderer, is_new) = match self.waiting() {
            Some(renderer) => (renderer, false),
            None => (self.started().await?, true),
        };
        let mut answer = renderer.ask(&line, RENDER_TIME).await;
        if answer.is_err() && !is_new && renderer.has_ended() {
            // Perhaps of what chats before have left in its memory, or at somebody else's hands.
            renderer = self.started().await?;
            answer = renderer.ask(&line, RENDER_TIME).await;
        }
        let answer = answer.map_err(|found| budget(&found))?;
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(renderer);
        answer.map_err(|refusal| match refusal {
            Refusal::OutOfFuel => budget("one that takes more work"),
            Refusal::Said(found) => ApiError::field("messages", "a chat that the template takes", found),
        })
    }

    /// A process that waits for a chat. One may have ended since its last, at somebody else's hands.
    fn waiting(&self) -> Option<Renderer> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        std::iter::from_fn(|| idle.pop()).find_map(|mut renderer| (!renderer.has_ended()).then_some(renderer))
    }

    /// A new process.
    async fn started(&self) -> ApiResult<Renderer> {
        self.start().await.map_err(|error| {
            tracing::error!(?error, "no process to render a chat");
            ApiError::unavailable("the process that renders chats can't be started")
        })
    }

    async fn start(&self) -> Result<Renderer, NoRenderer> {
        let mut renderer = Renderer::spawn(&self.command).map_err(NoRenderer::Start)?;
        match renderer.ask(&self.template, START_TIME).await {
            Ok(Ok(_)) => Ok(renderer),
            Ok(Err(Refusal::Said(found))) | Err(found) => Err(NoRenderer::Template(found)),
            Ok(Err(Refusal::OutOfFuel)) => Err(NoRenderer::Template("one that takes too much work".into())),
        }
    }
}

/// A process that renders chats. It is killed when dropped.
struct Renderer {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Renderer {
    fn spawn(command: &[OsString]) -> io::Result<Renderer> {
        let (program, arguments) =
            command.split_first().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let mut process = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // How it ended says enough.
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let pipes = process.stdin.take().zip(process.stdout.take());
        let (input, output) = pipes.ok_or_else(|| io::Error::other("no pipes"))?;
        Ok(Renderer { process, input, output: BufReader::new(output) })
    }

    /// Whether the process has ended, or nothing is known of it.
    fn has_ended(&mut self) -> bool {
        !matches!(self.process.try_wait(), Ok(None))
    }

    /// The answer to a line, or what was found in the place of a line that can be answered; the process is of no use then.
    async fn ask(&mut self, line: &[u8], time: Duration) -> Result<Result<String, Refusal>, String> {
        let answer = tokio::time::timeout(time, self.exchange(line)).await;
        answer.unwrap_or_else(|_| Err(format!("one that takes more than {} seconds", time.as_secs())))
    }

    async fn exchange(&mut self, line: &[u8]) -> Result<Result<String, Refusal>, String> {
        let mut answer = Vec::new();
        // If either fails the process has ended.
        let _ = self.input.write_all(line).await;
        let most = MAX_ANSWER_BYTES as u64;
        let _ = (&mut self.output).take(most).read_until(b'\n', &mut answer).await;
        if answer.last() == Some(&b'\n') {
            return serde_json::from_slice(&answer)
                .map_err(|error| format!("one that is answered so: {error}"));
        }
        if answer.len() == MAX_ANSWER_BYTES {
            return Err(format!("one that becomes more than {MAX_ANSWER_BYTES} bytes"));
        }
        let ended = self.process.wait().await;
        Err(format!(
            "one that ends its process ({})",
            ended.map_or_else(|e| e.to_string(), |e| e.to_string())
        ))
    }
}

fn line(value: &impl serde::Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(all(test, unix))]
mod tests {
    use serde_json::Map;

    use super::*;

    /// Renderers whose processes run a shell's script.
    fn renderers(script: &str) -> Result<Renderers, NoRenderer> {
        let template = Template { source: String::new(), special_tokens: Map::new() };
        Renderers::new(["sh", "-c", script].map(OsString::from).to_vec(), &template)
    }

    fn chat() -> Conversation {
        Conversation { messages: Vec::new(), add_generation_prompt: true, variables: Map::new() }
    }

    #[tokio::test]
    async fn a_process_that_fails_is_the_chats_loss() {
        let budget = "messages: expected a chat that the template renders within its budget, found";
        for (behind_the_chat, found) in [
            ("exit 3", "one that ends its process (exit status: 3)"),
            ("kill -9 $$", "one that ends its process (signal: 9 (SIGKILL))"),
            ("exec sleep 60", "one that takes more than 2 seconds"),
            ("exec tr '\\0' x < /dev/zero", "one that becomes more than 16777216 bytes"),
            ("echo what; read again", "one that is answered so: expected value at line 1 column 1"),
            (r#"echo '{"Err":"OutOfFuel"}'; read again"#, "one that takes more work"),
        ] {
            let script = format!("read template; echo '{{\"Ok\":\"\"}}'; read chat; {behind_the_chat}");
            let renderers = renderers(&script).expect("renderers");
            let error = renderers.render(&chat()).await.expect_err(behind_the_chat);
            assert_eq!((error.status.as_u16(), error.message), (400, format!("{budget} {found}")));
        }
    }

    #[tokio::test]
    async fn a_process_is_used_again_while_it_lives() {
        let script =
            r#"read template; echo '{"Ok":""}'; for turn in 1 2; do read chat; echo '{"Ok":"'$$'"}'; done"#;
        let renderers = renderers(script).expect("renderers");
        let first = renderers.render(&chat()).await.expect("a prompt");
        assert_eq!(renderers.render(&chat()).await.as_deref(), Ok(&first[..]));
        let mut ended = renderers.idle.lock().expect("no panic").pop().expect("a process");
        ended.process.wait().await.expect("its end");
        renderers.idle.lock().expect("no panic").push(ended);
        assert_ne!(renderers.render(&chat()).await.expect("a prompt"), first);
    }

    #[tokio::test]
    async fn what_chats_before_left_in_a_process_is_nobodys_loss() {
        let script = r#"read template; echo '{"Ok":""}'; read chat; echo '{"Ok":"'$$'"}'; read chat; exit 1"#;
        let renderers = renderers(script).expect("renderers");
        let first = renderers.render(&chat()).await.expect("a prompt");
        assert_ne!(renderers.render(&chat()).await.expect("a prompt"), first);
    }

    #[tokio::test]
    async fn a_process_that_nobody_waits_for_is_killed() {
        let script = r#"read template; echo '{"Ok":""}'; read chat; exec sleep 60"#;
        let renderers = renderers(script).expect("renderers");
        let renderer = renderers.start().await.expect("a process");
        let number = renderer.process.id().expect("a process that runs").to_string();
        renderers.idle.lock().expect("no panic").push(renderer);
        let runs = async || {
            let look = Command::new("kill").args(["-0", &number]).stderr(Stdio::null()).status().await;
            look.expect("kill").success()
        };
        let given_up = tokio::time::timeout(Duration::from_millis(100), renderers.render(&chat())).await;
        assert!(given_up.is_err(), "{given_up:?}");
        while runs().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn a_process_that_cannot_start_is_no_fault_of_the_chats() {
        let dir = tempfile::tempdir().expect("a folder");
        let flag = dir.path().join("flag").display().to_string();
        let script = format!("read template; [ -e {flag} ] && exit 1; echo '{{\"Ok\":\"\"}}'; read chat");
        let renderers = renderers(&script).expect("renderers");
        std::fs::write(&flag, "").expect("written");
        assert_eq!(renderers.render(&chat()).await.expect_err("a refusal").status.as_u16(), 503);
    }

    #[test]
    fn a_template_that_no_process_takes_is_told() {
        let refused = |script| renderers(script).err().expect("a refusal");
        let said = r#"read template; echo '{"Err":{"Said":"it is none"}}'"#;
        assert!(matches!(refused(said), NoRenderer::Template(found) if found == "it is none"));
        let ended = "one that ends its process (exit status: 1)";
        assert!(matches!(refused("exit 1"), NoRenderer::Template(found) if found == ended));
        let template = Template { source: String::new(), special_tokens: Map::new() };
        let nowhere = Renderers::new(vec!["/nowhere/at/all".into()], &template);
        assert!(matches!(nowhere, Err(NoRenderer::Start(_))));
    }
}
