//! What can go wrong with a test guest.

use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// Why a test guest could not be had or asked.
#[derive(Debug, Error)]
pub enum Error {
    /// A file or socket operation failed.
    #[error("Cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A program could not be run.
    #[error("Cannot run {program}: install it")]
    Run {
        /// The program.
        program: String,
        /// Why not.
        source: io::Error,
    },
    /// A program failed.
    #[error("{program} failed ({status}): {stderr}")]
    Failed {
        /// The program and its first argument.
        program: String,
        /// Exit status.
        status: String,
        /// End of its error output.
        stderr: String,
    },
    /// There is no such kernel.
    #[error("There is no kernel named {0}: the testbed knows 6.1, 6.12 and 7")]
    UnknownKernel(String),
    /// No package source offers a kernel.
    #[error("The package sources of this machine offer no kernel for {name}: {reason}")]
    NoKernel {
        /// Name of the kernel.
        name: String,
        /// What was looked for.
        reason: String,
    },
    /// A version of QEMU cannot be had.
    #[error("QEMU {name} cannot be had on this machine: {reason}")]
    NoHypervisor {
        /// Name of the version.
        name: String,
        /// What was looked for.
        reason: String,
    },
    /// The guest did not come up.
    #[error("The guest was not ready: {reason}. Its console ended with:\n{console}")]
    NotReady {
        /// What happened.
        reason: String,
        /// Last lines of the console.
        console: String,
    },
    /// The guest's port was closed before it answered.
    #[error("The guest's QEMU ended before it answered '{request}'. Its console ended with:\n{console}")]
    Ended {
        /// The request.
        request: String,
        /// Last lines of the console.
        console: String,
    },
    /// The guest did not answer in time.
    #[error("The guest did not answer '{request}' within {seconds} s")]
    Silent {
        /// The request.
        request: String,
        /// Time limit.
        seconds: u64,
    },
    /// The guest answered with an error.
    #[error("The guest refused '{request}': {reason}")]
    Refused {
        /// The request.
        request: String,
        /// Its reason.
        reason: String,
    },
    /// An answer was not what its request promises.
    #[error("The guest's answer to '{request}' makes no sense")]
    Answer {
        /// The request.
        request: String,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// QEMU refused a QMP command.
    #[error("QEMU refused {command}: {reason}")]
    Qmp {
        /// The command.
        command: String,
        /// Its reason.
        reason: String,
    },
    /// Ground truth is missing or cut.
    #[error("Ground truth is not whole: {0}")]
    Truth(String),
    /// A caller asked for something that cannot be.
    #[error("Cannot do that: {0}")]
    Input(String),
    /// The RAM file cannot be read.
    #[error("Cannot read the guest's RAM")]
    Memory(#[from] elision_memory::MemoryError),
    /// QEMU does not tell where the guest's RAM is.
    #[error("QEMU does not tell where it has the guest's RAM: {0}")]
    NoAddress(String),
}

/// Adds what was tried to an I/O error.
pub(crate) trait Context<T> {
    fn context(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T, Error> {
        self.map_err(|e| Error::File { action, path: path.into(), source: e.into() })
    }
}

/// Runs a program to its end and returns its output.
pub(crate) fn output_of(command: &mut std::process::Command) -> Result<String, Error> {
    let mut program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|source| Error::Run { program: program.clone(), source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    if let Some(verb) = command.get_args().find(|a| !a.to_string_lossy().starts_with('-')) {
        program = format!("{program} {}", verb.to_string_lossy());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = text.lines().collect();
    let stderr = lines[lines.len().saturating_sub(12)..].join("\n");
    Err(Error::Failed { program, status: output.status.to_string(), stderr })
}
