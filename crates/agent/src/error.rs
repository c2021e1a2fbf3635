//! Why the agent could not do something.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// What went wrong, where.
#[derive(Debug, Error)]
pub(crate) enum AgentError {
    /// The kernel refused something.
    #[error("Cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A configuration file is wrong.
    #[error("{path} is not understood: {reason}")]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// There is no port.
    #[error("No virtio-serial port is called {0}: does the VM have one?")]
    NoPort(String),
    /// There is no cgroup v2.
    #[error("No cgroup v2 hierarchy is mounted")]
    NoCgroups,
    /// Time is over.
    #[error("{0} took too long")]
    Late(&'static str),
    /// Something else, in words.
    #[error("{0}")]
    Other(String),
}

/// Adds what was tried to an error of the kernel.
pub(crate) trait Context<T> {
    fn context(self, action: &'static str, path: impl AsRef<Path>) -> Result<T, AgentError>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, action: &'static str, path: impl AsRef<Path>) -> Result<T, AgentError> {
        self.map_err(|e| AgentError::Io { action, path: path.as_ref().to_owned(), source: e.into() })
    }
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// Writes a line to the agent's log. A log that does not take it must not end the agent.
macro_rules! say {
    ($($words:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), "elision-agent: {}", format_args!($($words)*));
    }};
}
pub(crate) use say;
