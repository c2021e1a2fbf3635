//! The port of the guest's agent: guests that have one, a client that asks what no saver would, and false agents.

use elision_testbed::{Guest, GuestOptions, modules, programs};
use elision_wire::{Answer, Ask, Calm, Envelope, Reader, VERSIONS, encode};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Where the agent writes its log in a guest without systemd.
pub(crate) const LOG: &str = "/run/agent.log";

/// A place for the socket of an agent's port.
pub(crate) struct Port(tempfile::TempDir);

impl Port {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.0.path().join("agent")
    }

    /// Options for a guest with the port.
    pub(crate) fn added_to(&self, options: &GuestOptions) -> GuestOptions {
        let chardev = format!("socket,id=agent,path={},server=on,wait=off", self.socket().display());
        let port = "virtserialport,chardev=agent,name=org.elision.agent.0";
        options.clone().extra(&["-device", "virtio-serial-pci", "-chardev", &chardev, "-device", port])
    }
}

/// Modules between a virtio-serial port and its guest, where they are no part of the kernel; in the order of loading.
const MODULES: [&str; 2] = ["virtio_pci", "virtio_console"];

/// A guest with the agent's program, which is not started yet.
pub(crate) fn options(kernel: &str) -> GuestOptions {
    options_with(kernel, &[])
}

/// The same with more modules, which are loaded when the agent is started.
pub(crate) fn options_with(kernel: &str, more: &[&str]) -> GuestOptions {
    let options = GuestOptions::new(kernel);
    let kernel = options.kernel().expect("a kernel");
    let mut files = vec![("bin/elision-agent".to_owned(), programs::agent().expect("the agent"))];
    let mut order = String::new();
    for module in MODULES.iter().chain(more) {
        for (name, file) in modules::with_needs(&kernel, &[module]).unwrap_or_default() {
            if !files.iter().any(|(known, _)| *known == name) {
                order.push_str(&format!(" /{name}"));
                files.push((name, file));
            }
        }
    }
    options.files(files).append(&format!("AGENT_MODULES={}", order.trim_start().replace(' ', ",")))
}

/// Starts the agent in a guest without systemd.
pub(crate) fn start(guest: &mut Guest) {
    // Those that are loaded already are told so.
    let load = "for m in $(tr ' ' '\n' </proc/cmdline | sed -n 's/^AGENT_MODULES=//p' | tr , ' '); do insmod $m; done; true";
    crate::support::sh(guest, load);
    let serve = format!(
        "setsid elision-agent >>{LOG} 2>&1 </dev/null & echo $! > /run/agent.pid; sleep 1; cat {LOG}"
    );
    crate::support::sh(guest, &serve);
}

/// A host that asks what it likes.
pub(crate) struct Client {
    socket: UnixStream,
    reader: Reader,
    session: u64,
    id: u32,
}

impl Client {
    /// Connects and says hello until it is answered.
    pub(crate) fn connect(port: &Port) -> Self {
        let mut client = Self::silent(port);
        let until = Instant::now() + Duration::from_secs(60);
        while Instant::now() < until {
            if let Some(Answer::Hello { .. }) = client.ask(&Ask::Hello { versions: VERSIONS }) {
                return client;
            }
        }
        panic!("the agent does not answer");
    }

    /// Connects and says nothing.
    pub(crate) fn silent(port: &Port) -> Self {
        let socket = UnixStream::connect(port.socket()).expect("the agent's port");
        socket.set_read_timeout(Some(Duration::from_secs(3))).expect("a time limit");
        static CLIENTS: AtomicU32 = AtomicU32::new(0);
        let session =
            u64::from(std::process::id()) << 32 | u64::from(CLIENTS.fetch_add(1, Ordering::Relaxed));
        Self { socket, reader: Reader::default(), session, id: 0 }
    }

    /// The answer, if it comes within 3 seconds.
    pub(crate) fn ask(&mut self, ask: &Ask) -> Option<Answer> {
        self.id += 1;
        self.bytes(
            &encode(&Envelope { session: self.session, id: self.id, body: ask.clone() }).expect("a frame"),
        );
        let mut bytes = [0; 4096];
        loop {
            match self.reader.message::<Answer>() {
                Some(Ok(answer)) if answer.id == self.id && answer.session == self.session => {
                    return Some(answer.body);
                }
                Some(_) => {}
                None => match self.socket.read(&mut bytes) {
                    Ok(n @ 1..) => self.reader.feed(&bytes[..n]),
                    _ => return None,
                },
            }
        }
    }

    /// Any bytes.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).expect("the port takes bytes");
    }

    /// Freezes a control group; it must work.
    pub(crate) fn freeze(&mut self, group: &str, limit: Duration) {
        let limit_ms = u32::try_from(limit.as_millis()).expect("a short time");
        let calm = Calm { limit_ms, groups: vec![group.to_owned()], ..Calm::default() };
        let answer = self.ask(&Ask::Freeze(calm));
        assert!(matches!(answer, Some(Answer::Done(_))), "{answer:?}");
    }
}

/// A false agent: a socket on which `answer` says which bytes follow a question, or that the connection ends.
pub(crate) fn false_agent(
    path: &Path,
    mut answer: impl FnMut(&Envelope<Ask>) -> Option<Vec<u8>> + Send + 'static,
) {
    let listener = UnixListener::bind(path).expect("a socket");
    std::thread::spawn(move || {
        while let Ok((mut socket, _)) = listener.accept() {
            let mut reader = Reader::default();
            let mut bytes = [0; 4096];
            'connection: while let Ok(n @ 1..) = socket.read(&mut bytes) {
                reader.feed(&bytes[..n]);
                while let Some(Ok(ask)) = reader.message::<Ask>() {
                    let Some(bytes) = answer(&ask) else { break 'connection };
                    if socket.write_all(&bytes).is_err() {
                        break 'connection;
                    }
                }
            }
        }
    });
}

/// How often a save, told with `-vv`, has let the guest run on because its kernel was about to clear memory: that is not
/// frozen. No process may have been in the way.
pub(crate) fn held_up_by_kernel(output: &Output) -> usize {
    let told = String::from_utf8_lossy(&output.stderr);
    let (by_kernel, by_others): (Vec<_>, Vec<_>) = told
        .lines()
        .filter(|line| line.contains("bad moment"))
        .partition(|line| line.contains("be clearing"));
    assert_eq!(by_others, [""; 0]);
    by_kernel.len()
}
