//! A connection to an agent: questions and answers, each with a time limit.

use super::random;
use elision_wire::{Answer, Ask, Capability, Envelope, Generation, Reader, Reason, VERSIONS, encode};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};
use thiserror::Error;

/// A hello that does not arrive is said again: a guest that was just restored can lose the first.
const HELLO_AGAIN: Duration = Duration::from_millis(500);
/// Most messages for others that are skipped before one is taken for a flood.
const MOST_SKIPPED: u32 = 1000;

/// Why an agent was of no use.
#[derive(Debug, Error)]
pub(crate) enum AgentError {
    #[error("Cannot talk to it")]
    Io(#[from] io::Error),
    #[error("It did not answer within {} ms", .0.as_millis())]
    Silent(Duration),
    #[error("It speaks no version of the protocol that this Elision speaks: {0}")]
    Version(String),
    #[error("It refused: {text}")]
    Refused { reason: Reason, text: String },
    #[error("It answered something else than it was asked for")]
    OtherAnswer,
    #[error("{0}")]
    Message(#[from] elision_wire::WireError),
}

/// An agent that has said hello.
#[derive(Debug)]
pub(crate) struct Client {
    socket: UnixStream,
    reader: Reader,
    session: u64,
    last: u32,
    pub(crate) version: String,
    pub(crate) may: Vec<Capability>,
    pub(crate) generation: Generation,
}

impl Client {
    /// Connects and says hello.
    pub(crate) fn connect(path: &Path, limit: Duration) -> Result<Self, AgentError> {
        let socket = UnixStream::connect(path)?;
        let mut client = Self {
            socket,
            reader: Reader::default(),
            session: u64::from_le_bytes(random()?),
            last: 0,
            version: String::new(),
            may: Vec::new(),
            generation: Generation::default(),
        };
        let until = Instant::now() + limit;
        let hello = Ask::Hello { versions: VERSIONS };
        let answer = loop {
            let left = until.saturating_duration_since(Instant::now());
            match client.ask(&hello, left.min(HELLO_AGAIN)) {
                Err(AgentError::Silent(_)) if left > HELLO_AGAIN => {}
                Err(AgentError::Silent(_)) => return Err(AgentError::Silent(limit)),
                Err(AgentError::Refused { reason: Reason::Version, text }) => {
                    return Err(AgentError::Version(text));
                }
                answer => break answer?,
            }
        };
        let Answer::Hello { versions, agent, may, generation } = answer else {
            return Err(AgentError::OtherAnswer);
        };
        if VERSIONS.common(versions).is_none() {
            return Err(AgentError::Version(format!("it speaks {} to {}", versions.from, versions.to)));
        }
        (client.version, client.may, client.generation) = (agent, may, generation);
        Ok(client)
    }

    /// Asks, and waits for the answer.
    pub(crate) fn ask(&mut self, ask: &Ask, limit: Duration) -> Result<Answer, AgentError> {
        let until = Instant::now() + limit;
        let id = self.send(ask, limit)?;
        self.answer_to(id, until).map_err(|error| match error {
            AgentError::Silent(_) => AgentError::Silent(limit),
            error => error,
        })
    }

    /// Asks without waiting. Gives the number of the question.
    pub(crate) fn send(&mut self, ask: &Ask, limit: Duration) -> Result<u32, AgentError> {
        self.last = self.last.wrapping_add(1);
        let bytes = encode(&Envelope { session: self.session, id: self.last, body: ask.clone() })?;
        self.socket.set_write_timeout(Some(limit.max(Duration::from_millis(1))))?;
        self.socket.write_all(&bytes)?;
        Ok(self.last)
    }

    /// Waits for the answer to a question.
    pub(crate) fn answer_to(&mut self, id: u32, until: Instant) -> Result<Answer, AgentError> {
        let mut bytes = [0; 4096];
        let mut skipped = 0;
        loop {
            while let Some(message) = self.reader.message::<Answer>() {
                match message {
                    Ok(message) if (message.session, message.id) == (self.session, id) => {
                        return match message.body {
                            Answer::Refused { reason, text } => Err(AgentError::Refused { reason, text }),
                            answer => Ok(answer),
                        };
                    }
                    // For somebody who was here before.
                    _ => skipped += 1,
                }
                if skipped > MOST_SKIPPED {
                    return Err(AgentError::OtherAnswer);
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(AgentError::Silent(Duration::ZERO));
            }
            self.socket.set_read_timeout(Some(left))?;
            match self.socket.read(&mut bytes) {
                Ok(0) => return Err(io::Error::from(ErrorKind::UnexpectedEof).into()),
                Ok(n) => self.reader.feed(bytes.get(..n).unwrap_or_default()),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// An agent that answers with what `answers` gives for each message.
    fn agent(
        answers: impl Fn(Envelope<Ask>) -> Vec<u8> + Send + 'static,
    ) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent");
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            let mut socket = listener.accept().unwrap().0;
            let mut reader = Reader::default();
            let mut bytes = [0; 512];
            while let Ok(n @ 1..) = socket.read(&mut bytes) {
                reader.feed(&bytes[..n]);
                while let Some(Ok(ask)) = reader.message::<Ask>() {
                    let _ = socket.write_all(&answers(ask));
                }
            }
        });
        (folder, path)
    }

    fn hello(ask: &Envelope<Ask>, from: u16) -> Vec<u8> {
        let body = Answer::Hello {
            versions: elision_wire::Versions { from, to: from },
            agent: "x".to_owned(),
            may: vec![Capability::Calm],
            generation: Generation::default(),
        };
        encode(&Envelope { session: ask.session, id: ask.id, body }).unwrap()
    }

    #[test]
    fn answers_for_others_and_broken_ones_are_skipped() {
        let (_folder, path) = agent(|ask| {
            let other = Envelope { session: ask.session ^ 1, ..ask.clone() };
            [&b"\xff\x05\x00\x00{]\xff"[..], &hello(&other, 1), b"{}", &hello(&ask, 1)].concat()
        });
        let client = Client::connect(&path, Duration::from_secs(5)).unwrap();
        assert_eq!(client.may, [Capability::Calm]);
    }

    #[test]
    fn another_version_a_flood_and_silence_are_errors() {
        let (_folder, path) = agent(|ask| hello(&ask, 9));
        let error = Client::connect(&path, Duration::from_secs(5)).unwrap_err();
        assert!(matches!(error, AgentError::Version(_)), "{error:?}");

        let (_folder, path) = agent(|ask| {
            hello(&Envelope { session: 0, ..ask }, 1).repeat(usize::try_from(MOST_SKIPPED).unwrap() + 1)
        });
        let error = Client::connect(&path, Duration::from_secs(5)).unwrap_err();
        assert!(matches!(error, AgentError::OtherAnswer), "{error:?}");

        let (_folder, path) = agent(|_| Vec::new());
        let begin = Instant::now();
        let error = Client::connect(&path, Duration::from_millis(700)).unwrap_err();
        assert!(matches!(error, AgentError::Silent(_)), "{error:?}");
        assert!(begin.elapsed() < Duration::from_secs(5));
    }
}
