//! A small client for QMP, the JSON protocol of QEMU's control socket.
//!
//! ```text
//! QEMU    {"QMP": {"version": {...}, "capabilities": [...]}}             greeting
//! client  {"execute": "qmp_capabilities", "id": 1}
//! QEMU    {"return": {}, "id": 1}
//! client  {"execute": NAME, "arguments": {...}, "id": N}   (+ one descriptor, by SCM_RIGHTS)
//! QEMU    {"event": NAME, "data": {...}, "timestamp": {...}}             at any time
//! QEMU    {"return": VALUE, "id": N}  or  {"error": {"class": ..., "desc": ...}, "id": N}
//! ```
//! Every message is one line. Replies that belong to a command given up earlier are skipped by their
//! id, unknown members are ignored. Limits: 16 MiB for a line, 1024 queued events, a time for every
//! reply.

use crate::error::{QemuError, Result};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType,
};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::fmt;
use std::io::{ErrorKind, IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const GREETING_LIMIT: Duration = Duration::from_secs(2);
const REPLY_LIMIT: Duration = Duration::from_secs(30);
const LINE_LIMIT: usize = 16 << 20;
const EVENT_LIMIT: usize = 1024;

/// QEMU's version as it greets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Major number.
    pub major: u64,
    /// Minor number.
    pub minor: u64,
    /// Micro number.
    pub micro: u64,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// Something that QEMU reported by itself.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its name, such as `RESUME`.
    pub name: String,
    /// What it carries.
    pub data: Value,
}

/// A connection to QEMU's control socket.
#[derive(Debug)]
pub struct Qmp {
    socket: UnixStream,
    path: PathBuf,
    received: Vec<u8>,
    scanned: usize,
    events: VecDeque<Event>,
    version: Version,
    last_id: u64,
}

impl Qmp {
    /// Connects and negotiates.
    pub fn connect(path: &Path) -> Result<Self> {
        let deadline = Instant::now() + GREETING_LIMIT;
        let socket = open(path, deadline)?;
        let version = Version { major: 0, minor: 0, micro: 0 };
        let path = path.to_path_buf();
        let mut qmp =
            Self { socket, path, received: vec![], scanned: 0, events: VecDeque::new(), version, last_id: 0 };
        qmp.greet(deadline)?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// The socket's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// QEMU's version.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// The socket itself, to ask who is at its other end.
    #[must_use]
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Runs a command and returns what it returned.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        self.execute_within(command, arguments, None, REPLY_LIMIT)
    }

    /// Runs a command that takes a descriptor, such as `getfd`.
    pub fn execute_with_descriptor(
        &mut self,
        command: &str,
        arguments: Value,
        descriptor: BorrowedFd<'_>,
    ) -> Result<Value> {
        self.execute_within(command, arguments, Some(descriptor), REPLY_LIMIT)
    }

    /// Runs a command with a time limit of its own.
    pub fn execute_within(
        &mut self,
        command: &str,
        arguments: Value,
        descriptor: Option<BorrowedFd<'_>>,
        limit: Duration,
    ) -> Result<Value> {
        self.last_id += 1;
        let id = self.last_id;
        let mut line = json!({"execute": command, "arguments": arguments, "id": id}).to_string();
        line.push('\n');
        self.send(command, line.as_bytes(), descriptor)?;
        let deadline = Instant::now() + limit;
        loop {
            let Some(line) = self.line(command, deadline)? else {
                return Err(QemuError::Timeout { command: command.into(), seconds: limit.as_secs() });
            };
            let mut reply = parse(command, &line)?;
            if self.queue_event(&mut reply) {
                continue;
            }
            let ours = reply.get("id").and_then(Value::as_u64);
            if let Some(error) = reply.get("error") {
                // A message that QEMU could not parse is answered without an id.
                if ours.is_none() || ours == Some(id) {
                    let desc = error.get("desc").and_then(Value::as_str).unwrap_or("unknown error").into();
                    return Err(QemuError::Refused { command: command.into(), desc });
                }
            } else if ours == Some(id) {
                return Ok(reply.get_mut("return").map(Value::take).unwrap_or_default());
            }
        }
    }

    /// Runs a command of the human monitor and returns its text.
    pub fn human(&mut self, line: &str) -> Result<String> {
        match self.execute("human-monitor-command", json!({"command-line": line}))? {
            Value::String(text) => Ok(text.replace("\r\n", "\n")),
            other => Err(QemuError::BadReply { command: line.into(), why: format!("not a text: {other}") }),
        }
    }

    /// The oldest queued event with this name, waiting for it up to `limit`.
    pub fn wait_event(&mut self, name: &str, limit: Duration) -> Result<Option<Event>> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(at) = self.events.iter().position(|e| e.name == name) {
                return Ok(self.events.remove(at));
            }
            let Some(line) = self.line(name, deadline)? else { return Ok(None) };
            let mut message = parse(name, &line)?;
            self.queue_event(&mut message);
        }
    }

    /// Every event queued so far.
    pub fn take_events(&mut self) -> Vec<Event> {
        self.events.drain(..).collect()
    }

    fn greet(&mut self, deadline: Instant) -> Result<()> {
        let path = self.path.clone();
        let not_qmp = |line: &[u8]| {
            let line =
                String::from_utf8_lossy(line.get(..line.len().min(60)).unwrap_or_default()).into_owned();
            QemuError::NotQmp { path: path.clone(), line }
        };
        let line = match self.line("greeting", deadline) {
            Ok(Some(line)) => line,
            Ok(None) if self.received.is_empty() => return Err(QemuError::Busy { path }),
            Ok(None) => return Err(not_qmp(&self.received)),
            Err(e) => return Err(e),
        };
        let greeting: Value = serde_json::from_slice(&line).map_err(|_| not_qmp(&line))?;
        let version = &greeting["QMP"]["version"]["qemu"];
        let part = |name: &str| version[name].as_u64();
        match (part("major"), part("minor"), part("micro")) {
            (Some(major), Some(minor), Some(micro)) => self.version = Version { major, minor, micro },
            _ => return Err(not_qmp(&line)),
        }
        Ok(())
    }

    fn queue_event(&mut self, message: &mut Value) -> bool {
        let Some(name) = message.get("event").and_then(Value::as_str).map(String::from) else { return false };
        if self.events.len() == EVENT_LIMIT {
            self.events.pop_front();
        }
        let data = message.get_mut("data").map(Value::take).unwrap_or_default();
        self.events.push_back(Event { name, data });
        true
    }

    fn send(
        &mut self,
        command: &str,
        mut bytes: &[u8],
        mut descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<()> {
        while !bytes.is_empty() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            let fds = descriptor.map(|fd| [fd]);
            if let Some(fds) = &fds {
                ancillary.push(SendAncillaryMessage::ScmRights(fds));
            }
            match rustix::net::sendmsg(
                &self.socket,
                &[IoSlice::new(bytes)],
                &mut ancillary,
                SendFlags::NOSIGNAL,
            ) {
                Ok(sent) => {
                    bytes = bytes.get(sent..).unwrap_or_default();
                    descriptor = None; // it went with the first byte
                }
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => {
                    return Err(QemuError::Closed { command: command.into() });
                }
                Err(e) => return Err(QemuError::os(format!("send {command} to QEMU"))(e)),
            }
        }
        Ok(())
    }

    /// The next line without its end, or `None` at the deadline.
    fn line(&mut self, command: &str, deadline: Instant) -> Result<Option<Vec<u8>>> {
        loop {
            let fresh = self.received.get(self.scanned..).unwrap_or_default();
            if let Some(at) = fresh.iter().position(|&b| b == b'\n') {
                let rest = self.received.split_off(self.scanned + at + 1);
                let line = std::mem::replace(&mut self.received, rest);
                self.scanned = 0;
                return Ok(Some(line.trim_ascii().to_vec()));
            }
            self.scanned = self.received.len();
            if self.scanned > LINE_LIMIT {
                let why = format!("a line of more than {LINE_LIMIT} bytes");
                return Err(QemuError::BadReply { command: command.into(), why });
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let doing = "read from the QMP socket";
            self.socket.set_read_timeout(Some(left)).map_err(QemuError::io(doing))?;
            let mut chunk = [0; 16 << 10];
            match self.socket.read(&mut chunk) {
                Ok(0) => return Err(QemuError::Closed { command: command.into() }),
                Ok(n) => self.received.extend_from_slice(chunk.get(..n).unwrap_or_default()),
                Err(e)
                    if matches!(
                        e.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) => {}
                Err(e) if e.kind() == ErrorKind::ConnectionReset => {
                    return Err(QemuError::Closed { command: command.into() });
                }
                Err(e) => return Err(QemuError::io(doing)(e)),
            }
        }
    }
}

/// Connects without ever blocking: a full queue of waiting clients would block `connect` for good.
fn open(path: &Path, deadline: Instant) -> Result<UnixStream> {
    let fail = |e: Errno| QemuError::Connect { path: path.into(), source: e.into() };
    let address = SocketAddrUnix::new(path).map_err(fail)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(fail)?;
    loop {
        match rustix::net::connect(&socket, &address) {
            Ok(()) => break,
            Err(Errno::AGAIN) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
            Err(Errno::AGAIN) => return Err(QemuError::Busy { path: path.into() }),
            Err(Errno::INTR) => {}
            Err(e) => return Err(fail(e)),
        }
    }
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false).map_err(|source| QemuError::Connect { path: path.into(), source })?;
    Ok(stream)
}

fn parse(command: &str, line: &[u8]) -> Result<Value> {
    serde_json::from_slice(line)
        .map_err(|e| QemuError::BadReply { command: command.into(), why: e.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixListener;

    /// A server that sends `greeting` and then, for each line received, the next of `replies`.
    fn serve(greeting: &'static str, replies: Vec<&'static str>) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            let (mut peer, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(peer.try_clone().unwrap()).lines();
            peer.write_all(greeting.as_bytes()).unwrap();
            for reply in replies {
                lines.next();
                peer.write_all(reply.as_bytes()).unwrap();
            }
            lines.next();
        });
        (dir, path)
    }

    const GREETING: &str = "{\"QMP\":{\"version\":{\"qemu\":{\"major\":7,\"minor\":2,\"micro\":1},\"new\":0},\"capabilities\":[]}}\r\n";
    const READY: &str = "{\"return\":{},\"id\":1}\r\n";

    #[test]
    fn events_are_queued_and_stale_replies_skipped() {
        let reply = "{\"event\":\"STOP\",\"data\":{\"x\":1},\"timestamp\":{}}\r\n{\"return\":7,\"id\":1}\r\n{\"return\":{\"ok\":true},\"id\":2,\"unknown\":0}\r\n";
        let (_dir, path) = serve(GREETING, vec![READY, reply]);
        let mut qmp = Qmp::connect(&path).unwrap();
        assert_eq!(qmp.version(), Version { major: 7, minor: 2, micro: 1 });
        assert_eq!(qmp.execute("anything", json!({})).unwrap(), json!({"ok": true}));
        let event = qmp.wait_event("STOP", Duration::ZERO).unwrap().unwrap();
        assert_eq!(event.data, json!({"x": 1}));
        assert!(qmp.wait_event("STOP", Duration::ZERO).unwrap().is_none());
    }

    #[test]
    fn an_error_carries_qemus_text() {
        let refusal = "{\"error\":{\"class\":\"GenericError\",\"desc\":\"no such thing\"},\"id\":2}\r\n";
        let (_dir, path) = serve(GREETING, vec![READY, refusal]);
        let err = Qmp::connect(&path).unwrap().execute("stop", json!({})).unwrap_err();
        assert!(matches!(err, QemuError::Refused { ref desc, .. } if desc == "no such thing"), "{err}");
    }

    #[test]
    fn a_silent_peer_is_reported_as_busy_and_a_wrong_one_as_such() {
        let (_dir, path) = serve("", vec![]);
        let before = Instant::now();
        assert!(matches!(Qmp::connect(&path), Err(QemuError::Busy { .. })));
        assert!(before.elapsed() < GREETING_LIMIT * 2);
        let (_dir, path) = serve("QEMU 7.2 monitor\r\n", vec![]);
        assert!(matches!(Qmp::connect(&path), Err(QemuError::NotQmp { .. })));
    }

    #[test]
    fn a_full_queue_of_clients_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let _first = UnixStream::connect(&path).unwrap();
        assert!(matches!(Qmp::connect(&path), Err(QemuError::Busy { .. })));
    }

    #[test]
    fn a_broken_line_or_a_closed_socket_is_an_error() {
        let (_dir, path) = serve(GREETING, vec![READY, "{\"return\":\r\n"]);
        let err = Qmp::connect(&path).unwrap().execute("stop", json!({})).unwrap_err();
        assert!(matches!(err, QemuError::BadReply { .. }), "{err}");
        let (_dir, path) = serve(GREETING, vec![READY]);
        let err = Qmp::connect(&path).unwrap().execute("stop", json!({})).unwrap_err();
        assert!(matches!(err, QemuError::Closed { .. }), "{err}");
        let missing = Path::new("/nonexistent/qmp");
        assert!(matches!(Qmp::connect(missing), Err(QemuError::Connect { .. })));
    }
}
