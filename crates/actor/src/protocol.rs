//! Requests and replies between host and guest: one JSON object for each line.
//!
//! ```text
//! host -> guest  {"id":7,"op":"status","pid":61}
//! guest -> host  {"id":7,"ok":{...}}   or   {"id":7,"error":"..."}
//! ```
//! A restored guest may answer a request of its former life: replies with another id are skipped.

use serde::{Deserialize, Serialize};

/// Longest request or reply in bytes.
pub const LINE_LIMIT: usize = 4 << 20;

/// Printed on the console once the guest takes requests.
pub const READY_LINE: &str = "ACTOR READY";

/// One request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the host, repeated in the reply.
    pub id: u64,
    /// What to do.
    #[serde(flatten)]
    pub command: Command,
}

/// What the guest can be asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Command {
    /// Nothing; answers with an empty object.
    Ping,
    /// Starts a played process; answers with [`Spawned`] when all is planted.
    Spawn(Spawn),
    /// Starts `n` processes at once, labelled `LABEL-0`, `LABEL-1` and so on; answers with a list of [`Spawned`].
    Crowd {
        /// How many.
        n: u32,
        /// What each of them plays.
        spawn: Spawn,
    },
    /// How a started process is; answers with [`Status`].
    Status {
        /// Process id.
        pid: i32,
    },
    /// All counters; answers with a list of [`Counter`].
    Counters,
    /// The monotonic clock in nanoseconds.
    Clock,
    /// Runs a shell command; answers with [`ShellResult`].
    Sh {
        /// The command.
        cmd: String,
    },
    /// Lists processes; answers with a list of [`Process`].
    Processes,
    /// Sends a signal.
    Kill {
        /// Process id.
        pid: i32,
        /// Signal number.
        signal: i32,
    },
    /// Writes ground truth to the debug port. The writer stays asleep afterwards, so that its end changes nothing.
    Truth {
        /// Include `/proc/kallsyms`.
        symbols: bool,
        /// Include `/sys/kernel/btf/vmlinux`.
        types: bool,
    },
    /// Runs a small storm of ordinary work and checks its data; answers with [`Health`].
    Health {
        /// How many rounds.
        rounds: u32,
    },
    /// The kernel log, as text.
    Dmesg,
}

/// A played process.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Spawn {
    /// Label from which its secret is derived.
    pub label: String,
    /// Where the secret is planted: a comma list, each `NAME` or `NAME=SIZE`.
    pub places: String,
    /// What it does then: `spin`, `sleep[=TIME]`, `block`, `threads[=N]`, `fork[=N]`, `crowd[=N]` or `end`.
    pub mode: String,
    /// Public seed of the secrets.
    pub seed: String,
    /// User id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Group id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// Control group below the cgroup2 root; made if it is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// Controlling terminal: `pty` for a new one, or a device path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tty: Option<String>,
    /// Name of the main thread.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comm: Option<String>,
    /// Path of the executable: the actor is copied there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exe: Option<String>,
}

/// Answer to [`Command::Spawn`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Spawned {
    /// Its label.
    pub label: String,
    /// Process id.
    pub pid: i32,
    /// What was planted and where.
    pub planted: Vec<Planted>,
    /// Process ids of its children.
    pub children: Vec<i32>,
    /// Number of its threads.
    pub threads: usize,
}

/// One place where a secret stands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Planted {
    /// Name of the place.
    pub place: String,
    /// First address in the process.
    pub address: u64,
    /// Length in bytes.
    pub len: u64,
    /// Bytes of it in huge pages, by the process's own smaps.
    pub huge: u64,
}

/// Whether a started process still runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Status {
    /// It has not ended.
    Running,
    /// It ended by itself.
    Exited {
        /// Exit status.
        code: i32,
        /// Monotonic clock when its parent saw it.
        at_ns: u64,
    },
    /// A signal ended it.
    Signalled {
        /// Signal number.
        signal: i32,
        /// Monotonic clock when its parent saw it.
        at_ns: u64,
    },
    /// The server never started it.
    Unknown,
}

/// One counter.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Counter {
    /// Label.
    pub label: String,
    /// Count of user-mode iterations.
    pub count: u64,
}

/// What a shell command left.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ShellResult {
    /// Standard output and standard error.
    pub output: String,
    /// How it ended.
    pub status: Status,
}

/// A process as `/proc` tells it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Process {
    /// Process id.
    pub pid: i32,
    /// Parent.
    pub ppid: i32,
    /// Name.
    pub comm: String,
    /// State letter.
    pub state: String,
    /// Real user id.
    pub uid: u32,
    /// Path in the cgroup2 hierarchy.
    pub cgroup: String,
    /// Device number of the controlling terminal, 0 without one.
    pub tty_nr: u32,
    /// Executable; empty for kernel threads.
    pub exe: String,
    /// Number of threads.
    pub threads: u32,
}

/// Result of a storm.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Health {
    /// Checks made.
    pub checks: u64,
    /// What was wrong.
    pub errors: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_one_flat_object() {
        let request = Request { id: 7, command: Command::Status { pid: 61 } };
        assert_eq!(serde_json::to_string(&request).unwrap(), r#"{"id":7,"op":"status","pid":61}"#);
        let spawn = r#"{"id":1,"op":"spawn","label":"a","places":"heap","mode":"spin","seed":"s","uid":5}"#;
        let back: Request = serde_json::from_str(spawn).unwrap();
        assert!(matches!(back.command, Command::Spawn(Spawn { uid: Some(5), cgroup: None, .. })));
    }
}
