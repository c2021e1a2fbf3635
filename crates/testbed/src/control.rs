//! Requests to the server in the guest, over the socket of its second serial port.

use crate::endpoints::Endpoints;
use crate::error::{Context, Error};
use elision_actor::protocol::{
    Command, Counter, Health, LINE_LIMIT, Process, Request, ShellResult, Spawned, Status,
};
use elision_actor::secret::DEFAULT_SEED;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A process to play; see the actor's places and modes.
#[derive(Clone, Debug)]
pub struct Spawn(elision_actor::protocol::Spawn);

impl Spawn {
    /// A process of root with the secret of `label` in `places` (a comma list), that goes on in `mode`.
    #[must_use]
    pub fn new(label: &str, places: &str, mode: &str) -> Self {
        Self(elision_actor::protocol::Spawn {
            label: label.to_owned(),
            places: places.to_owned(),
            mode: mode.to_owned(),
            seed: DEFAULT_SEED.to_owned(),
            ..Default::default()
        })
    }

    /// As this user and group.
    #[must_use]
    pub fn uid(mut self, uid: u32) -> Self {
        self.0.uid = Some(uid);
        self
    }

    /// In this control group.
    #[must_use]
    pub fn cgroup(mut self, path: &str) -> Self {
        self.0.cgroup = Some(path.to_owned());
        self
    }

    /// With a controlling terminal: `pty` or a device path.
    #[must_use]
    pub fn tty(mut self, tty: &str) -> Self {
        self.0.tty = Some(tty.to_owned());
        self
    }

    /// Under this name.
    #[must_use]
    pub fn comm(mut self, comm: &str) -> Self {
        self.0.comm = Some(comm.to_owned());
        self
    }

    /// From a copy of the actor at this path.
    #[must_use]
    pub fn exe(mut self, path: &str) -> Self {
        self.0.exe = Some(path.to_owned());
        self
    }
}

/// A connection to the server in a guest.
#[derive(Debug)]
pub struct Control {
    port: UnixStream,
    lines: BufReader<UnixStream>,
    partial: Vec<u8>,
    next: u64,
    limit: Duration,
    endpoints: Endpoints,
}

impl Control {
    /// Connects and waits until the guest answers. Replies of a former life of the guest, or to a
    /// former connection, are skipped.
    pub(crate) fn connect(endpoints: &Endpoints, limit: Duration) -> Result<Self, Error> {
        let socket = &endpoints.control_socket();
        let until = Instant::now() + limit;
        let port = loop {
            match UnixStream::connect(socket) {
                Ok(port) => break port,
                Err(e) if Instant::now() > until => return Err(e).context("connect to", socket),
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        port.set_read_timeout(Some(Duration::from_millis(100))).context("set a time limit on", socket)?;
        let lines = BufReader::new(port.try_clone().context("clone", socket)?);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let next = u64::try_from(now.as_micros()).unwrap_or(0) << 10;
        let mut control = Self {
            port,
            lines,
            partial: Vec::new(),
            next,
            limit: Duration::from_secs(240),
            endpoints: endpoints.clone(),
        };
        loop {
            // The guest may not listen yet, or read this as the end of half a request.
            let left = until.saturating_duration_since(Instant::now());
            let slice = left.min(Duration::from_millis(1000));
            control.send_bytes(b"\n").context("write to", socket)?;
            match control.ask(&Command::Ping, slice) {
                Err(Error::Silent { .. } | Error::Ended { .. }) if !left.is_zero() => {}
                Err(Error::Silent { request, .. }) => {
                    return Err(Error::Silent { request, seconds: limit.as_secs() });
                }
                Err(e) => return Err(e),
                Ok(_) => return Ok(control),
            }
        }
    }

    /// Sets how long a request may take.
    pub fn set_limit(&mut self, limit: Duration) {
        self.limit = limit;
    }

    /// Waits for an answer.
    pub fn ping(&mut self) -> Result<(), Error> {
        self.request::<Value>(&Command::Ping).map(drop)
    }

    /// Starts a played process; returns when it has planted everything.
    pub fn spawn(&mut self, spawn: &Spawn) -> Result<Spawned, Error> {
        self.request(&Command::Spawn(spawn.0.clone()))
    }

    /// Starts `n` played processes at once, labelled `LABEL-0` and so on.
    pub fn crowd(&mut self, n: u32, spawn: &Spawn) -> Result<Vec<Spawned>, Error> {
        self.request(&Command::Crowd { n, spawn: spawn.0.clone() })
    }

    /// How a played process is, as its parent sees it.
    pub fn status(&mut self, pid: i32) -> Result<Status, Error> {
        self.request(&Command::Status { pid })
    }

    /// All counters.
    pub fn counters(&mut self) -> Result<Vec<Counter>, Error> {
        self.request(&Command::Counters)
    }

    /// The count of one label.
    pub fn count(&mut self, label: &str) -> Result<Option<u64>, Error> {
        Ok(self.counters()?.into_iter().find(|c| c.label == label).map(|c| c.count))
    }

    /// The guest's monotonic clock in nanoseconds.
    pub fn clock(&mut self) -> Result<u64, Error> {
        self.request(&Command::Clock)
    }

    /// Runs a shell command.
    pub fn sh(&mut self, cmd: &str) -> Result<ShellResult, Error> {
        self.request(&Command::Sh { cmd: cmd.to_owned() })
    }

    /// All processes.
    pub fn processes(&mut self) -> Result<Vec<Process>, Error> {
        self.request(&Command::Processes)
    }

    /// Sends a signal.
    pub fn kill(&mut self, pid: i32, signal: i32) -> Result<(), Error> {
        self.request::<Value>(&Command::Kill { pid, signal }).map(drop)
    }

    /// Runs a small storm of ordinary work in the guest and checks its data.
    pub fn health(&mut self, rounds: u32) -> Result<Health, Error> {
        self.request(&Command::Health { rounds })
    }

    /// The kernel log.
    pub fn dmesg(&mut self) -> Result<String, Error> {
        self.request(&Command::Dmesg)
    }

    pub(crate) fn truth(&mut self, symbols: bool, types: bool) -> Result<(), Error> {
        self.request::<Value>(&Command::Truth { symbols, types }).map(drop)
    }

    fn request<T: DeserializeOwned>(&mut self, command: &Command) -> Result<T, Error> {
        let value = self.ask(command, self.limit)?;
        serde_json::from_value(value).map_err(|source| Error::Answer { request: name(command), source })
    }

    fn ask(&mut self, command: &Command, limit: Duration) -> Result<Value, Error> {
        let until = Instant::now() + limit;
        let silent = || Error::Silent { request: name(command), seconds: limit.as_secs() };
        let id = self.next;
        self.next += 1;
        let request = serde_json::to_vec(&Request { id, command: command.clone() })
            .map_err(|source| Error::Answer { request: name(command), source })?;
        self.send_bytes(&request).and_then(|()| self.send_bytes(b"\n")).map_err(|_| silent())?;
        loop {
            let Some(line) = self.line(until) else {
                if Instant::now() >= until {
                    return Err(silent());
                }
                return Err(Error::Ended { request: name(command), console: self.endpoints.last_words() });
            };
            let Ok(mut reply) = serde_json::from_slice::<Value>(&line) else { continue };
            if reply["id"] != id {
                continue;
            }
            if let Some(reason) = reply["error"].as_str() {
                return Err(Error::Refused { request: name(command), reason: reason.to_owned() });
            }
            return Ok(reply["ok"].take());
        }
    }

    fn send_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.port.write_all(bytes)
    }

    /// The next whole line, or `None` at the time limit or the end of the connection.
    fn line(&mut self, until: Instant) -> Option<Vec<u8>> {
        loop {
            let room = LINE_LIMIT.checked_sub(self.partial.len())?;
            let end = (&mut self.lines).take(room as u64).read_until(b'\n', &mut self.partial);
            if self.partial.ends_with(b"\n") {
                return Some(std::mem::take(&mut self.partial));
            }
            match end {
                Ok(0) => return None,
                Ok(_) => {}
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(_) => return None,
            }
            if Instant::now() > until {
                return None;
            }
        }
    }
}

fn name(command: &Command) -> String {
    let value = serde_json::to_value(command).unwrap_or_default();
    value["op"].as_str().unwrap_or("?").to_owned()
}
