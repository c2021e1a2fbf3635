//! A socket between a saver and an agent's port, which waits at one message for what a test has to say.

use elision_wire::{Ask, Envelope, Reader, encode};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

/// How long the saver may take to the message.
const LIMIT: Duration = Duration::from_secs(120);

/// What becomes of the message.
pub(crate) enum Then {
    PassOn,
    /// These bytes come back instead.
    Answer(Vec<u8>),
    /// Both connections end.
    CutOff,
}

/// The socket. It serves one connection.
pub(crate) struct Relay {
    folder: tempfile::TempDir,
    reached: Receiver<Envelope<Ask>>,
    then: Sender<Then>,
}

impl Relay {
    /// Passes on everything up to the first message of this name, and all after it.
    pub(crate) fn new(port: &Path, at: &'static str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let listener = UnixListener::bind(folder.path().join("agent")).expect("a socket");
        let (tell, reached) = channel();
        let (then, said) = channel();
        let port = port.to_owned();
        thread::spawn(move || {
            let saver = listener.accept().expect("a saver").0;
            let agent = UnixStream::connect(port).expect("the agent's port");
            let back = (agent.try_clone().expect("a socket"), saver.try_clone().expect("a socket"));
            thread::spawn(move || copy(back.0, back.1));
            pass_on(&saver, &agent, at, &tell, &said);
            let _ = (saver.shutdown(Shutdown::Both), agent.shutdown(Shutdown::Both));
        });
        Self { folder, reached, then }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("agent")
    }

    /// Waits for the message, which is held up then.
    pub(crate) fn reached(&self) -> Option<Envelope<Ask>> {
        self.reached.recv_timeout(LIMIT).ok()
    }

    /// Says what becomes of it.
    pub(crate) fn go_on(&self, then: Then) {
        self.then.send(then).expect("the relay waits");
    }
}

fn copy(mut from: UnixStream, mut to: UnixStream) {
    let _ = std::io::copy(&mut from, &mut to);
}

fn pass_on(
    mut saver: &UnixStream,
    mut agent: &UnixStream,
    at: &str,
    tell: &Sender<Envelope<Ask>>,
    said: &Receiver<Then>,
) {
    let mut reader = Reader::default();
    let mut bytes = [0; 4096];
    let mut held = false;
    while let Ok(n @ 1..) = saver.read(&mut bytes) {
        reader.feed(&bytes[..n]);
        while let Some(Ok(ask)) = reader.message::<Ask>() {
            let then = if !held && name(&ask.body) == at {
                held = true;
                let _ = tell.send(ask.clone());
                said.recv().unwrap_or(Then::CutOff)
            } else {
                Then::PassOn
            };
            let sent = match then {
                Then::PassOn => agent.write_all(&encode(&ask).expect("a frame")),
                Then::Answer(bytes) => saver.write_all(&bytes),
                Then::CutOff => return,
            };
            if sent.is_err() {
                return;
            }
        }
    }
}

fn name(ask: &Ask) -> &'static str {
    match ask {
        Ask::Hello { .. } => "hello",
        Ask::Prepare(_) => "prepare",
        Ask::Freeze(_) => "freeze",
        Ask::Thaw => "thaw",
        Ask::Saved => "saved",
        Ask::Restored { .. } => "restored",
    }
}
