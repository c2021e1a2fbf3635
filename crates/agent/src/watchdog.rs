//! A second process that lets everything run on when the agent does not: it was killed, or it hangs.
//!
//! ```text
//! agent    "hold 5000\n"     groups will be frozen, for at most 5000 ms
//! agent    "done\n"          they run on
//! agent    end of the pipe   it is gone
//! ```
//! In a restored copy it may act as well, if the agent hangs there. What it lets run on then has been ended already: by the
//! signal that the saver left pending for each process.

use crate::calm;
use crate::error::{AgentError, Context, say};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::io::Write;
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// The agent has this much more time than it gave itself.
const GRACE: Duration = Duration::from_millis(500);

/// The agent's side.
#[derive(Debug)]
pub(crate) struct Watchdog {
    child: Child,
    pipe: Option<ChildStdin>,
}

impl Watchdog {
    pub(crate) fn start() -> Result<Self, AgentError> {
        let program = std::env::current_exe().context("find", "the agent's program")?;
        let mut command = Command::new(&program);
        command.arg("watch").stdin(Stdio::piped()).stdout(Stdio::null());
        let mut child = command.spawn().context("start", &program)?;
        Ok(Self { pipe: child.stdin.take(), child })
    }

    /// From now on it acts after this time. An error when it is not there.
    pub(crate) fn hold(&mut self, limit: Duration) -> Result<(), AgentError> {
        self.say(&format!("hold {}\n", limit.as_millis()))
    }

    /// Everything runs on.
    pub(crate) fn done(&mut self) {
        let _ = self.say("done\n");
    }

    fn say(&mut self, line: &str) -> Result<(), AgentError> {
        let gone = || AgentError::Other("The agent's watchdog is gone".to_owned());
        self.pipe
            .as_mut()
            .ok_or_else(gone)?
            .write_all(line.as_bytes())
            .context("write to", "the agent's watchdog")
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.pipe.take());
        let _ = self.child.wait();
    }
}

/// The watchdog's own side: `elision-agent watch`.
pub(crate) fn run() -> Result<ExitCode, AgentError> {
    let pipe = rustix::stdio::stdin(); // not buffered, as it is waited for by `poll`
    let mut until: Option<Instant> = None;
    let mut said = Vec::new();
    loop {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            say!("the agent hangs, so its watchdog lets the frozen processes run on");
            act();
            until = None;
            continue;
        }
        let limit = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut [PollFd::new(&pipe, PollFlags::IN)], limit.as_ref()) {
            Ok(0) | Err(Errno::INTR) => continue,
            done => done.context("wait for", "the agent")?,
        };
        let mut bytes = [0; 64];
        let n = rustix::io::read(pipe, &mut bytes).context("read from", "the agent")?;
        if n == 0 {
            if until.is_some() {
                eprintln!(
                    "elision-agent: the agent is gone, so its watchdog lets the frozen processes run on"
                );
                act();
            }
            return Ok(ExitCode::SUCCESS);
        }
        said.extend_from_slice(bytes.get(..n).unwrap_or_default());
        while let Some(end) = said.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = said.drain(..=end).collect();
            let millis = String::from_utf8_lossy(&line).trim().strip_prefix("hold ").map(str::parse);
            let limit = millis.and_then(Result::ok).map(Duration::from_millis);
            until = limit.map(|limit| Instant::now() + limit + GRACE);
        }
    }
}

fn act() {
    for problem in calm::release_left_over() {
        say!("{problem}");
    }
}
