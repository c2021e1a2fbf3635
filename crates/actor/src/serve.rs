//! The server in the guest: process 1. Takes requests on the second serial port, keeps a clock in
//! the shared counters and a tick on the console, and never computes a secret itself.

use crate::counter::Counters;
use crate::procfs;
use crate::reaper::{Reaper, monotonic_ns};
use crate::spawn::{ACTOR, Stage};
use elision_actor::protocol::{Command, Counter, LINE_LIMIT, READY_LINE, Request, ShellResult, Spawn};
use elision_actor::slot;
use rustix::process::{Pid, Signal, kill_process};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use serde_json::{Value, json};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

const CONTROL_PORT: &str = "/dev/ttyS1";
const CONSOLE: &str = "/dev/ttyS0";
const TICK: Duration = Duration::from_millis(50);
const CLOCK: Duration = Duration::from_millis(10);

/// Serves for good.
pub(crate) fn run() -> io::Result<()> {
    let counters = Counters::create()?;
    let clock = counters.start(0, slot::CLOCK_LABEL)?;
    std::thread::spawn(move || {
        loop {
            clock.set(monotonic_ns());
            std::thread::sleep(CLOCK);
        }
    });
    let mut port = open_raw(CONTROL_PORT)?;
    let mut console = OpenOptions::new().write(true).custom_flags(libc::O_NOCTTY).open(CONSOLE)?;
    let requests = BufReader::new(port.try_clone()?);
    let mut server = Server { stage: Stage::new(counters, Reaper::start()), truth: None };
    writeln!(console, "\n{READY_LINE}")?;
    std::thread::spawn(move || {
        for n in 0_u64.. {
            let _ = writeln!(console, "TICK {n}");
            std::thread::sleep(TICK);
        }
    });
    server.serve(requests, &mut port)
}

fn open_raw(path: &str) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(path)?;
    let mut mode = tcgetattr(&file)?;
    mode.make_raw();
    mode.set_speed(115_200)?;
    tcsetattr(&file, OptionalActions::Now, &mode)?;
    Ok(file)
}

struct Server {
    stage: Stage,
    /// The process that wrote ground truth last and sleeps since.
    truth: Option<i32>,
}

impl Server {
    fn serve(&mut self, mut requests: impl BufRead, port: &mut impl Write) -> io::Result<()> {
        loop {
            let mut line = Vec::new();
            (&mut requests).take(LINE_LIMIT as u64).read_until(b'\n', &mut line)?;
            // A new connection begins with an empty line, and may follow half a request of an old one.
            let Ok(request) = serde_json::from_slice::<Request>(&line) else { continue };
            let reply = match self.answer(&request.command) {
                Ok(value) => json!({"id": request.id, "ok": value}),
                Err(e) => json!({"id": request.id, "error": e.to_string()}),
            };
            port.write_all(format!("{reply}\n").as_bytes())?;
        }
    }

    fn answer(&mut self, command: &Command) -> io::Result<Value> {
        Ok(match command {
            Command::Ping => json!({}),
            Command::Spawn(role) => {
                let starting = self.stage.start(role)?;
                json!(starting.ready(self.stage.reaper())?)
            }
            Command::Crowd { n, spawn } => self.crowd(*n, spawn)?,
            Command::Status { pid } => json!(self.stage.status(*pid)),
            Command::Counters => {
                let counter = |(label, count)| Counter { label, count };
                json!(self.stage.counts().into_iter().map(counter).collect::<Vec<_>>())
            }
            Command::Clock => json!(monotonic_ns()),
            Command::Sh { cmd } => json!(self.shell(cmd)?),
            Command::Processes => json!(procfs::processes()?),
            Command::Kill { pid, signal } => {
                let pid = Pid::from_raw(*pid).ok_or_else(|| io::Error::other("Process 0 is nobody"))?;
                let signal =
                    Signal::from_named_raw(*signal).ok_or_else(|| io::Error::other("No such signal"))?;
                kill_process(pid, signal)?;
                json!({})
            }
            Command::Truth { symbols, types } => self.truth(*symbols, *types)?,
            Command::Health { rounds } => {
                let (_, output) = self.stage.run(ACTOR, &["storm", &rounds.to_string()])?;
                serde_json::from_slice(&output)?
            }
            Command::Dmesg => {
                let (_, output) = self.stage.run("/bin/busybox", &["dmesg"])?;
                json!(String::from_utf8_lossy(&output))
            }
        })
    }

    fn crowd(&mut self, n: u32, spawn: &Spawn) -> io::Result<Value> {
        let mut starting = Vec::new();
        for i in 0..n {
            let role = Spawn { label: format!("{}-{i}", spawn.label), ..spawn.clone() };
            starting.push(self.stage.start(&role)?);
        }
        let reaper = self.stage.reaper();
        let ready: io::Result<Vec<_>> = starting.into_iter().map(|s| s.ready(reaper)).collect();
        Ok(json!(ready?))
    }

    fn shell(&self, cmd: &str) -> io::Result<ShellResult> {
        let script = format!("( {cmd}\n) 2>&1");
        let (status, output) = self.stage.run("/bin/busybox", &["timeout", "200", "sh", "-c", &script])?;
        Ok(ShellResult { output: String::from_utf8_lossy(&output).into_owned(), status })
    }

    fn truth(&mut self, symbols: bool, types: bool) -> io::Result<Value> {
        if let Some(old) = self.truth.take().and_then(Pid::from_raw) {
            let _ = kill_process(old, Signal::KILL);
        }
        let (pid, bytes) = crate::truth::start(symbols, types)?;
        self.truth = Some(pid);
        Ok(json!({"pid": pid, "bytes": bytes}))
    }
}
