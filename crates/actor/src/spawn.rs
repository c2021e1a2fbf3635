//! Starts played processes and other helpers of the server.

use crate::counter::Counters;
use crate::reaper::{Reaper, monotonic_ns};
use elision_actor::protocol::{Spawn, Spawned, Status};
use elision_actor::slot;
use rustix::fd::AsFd;
use rustix::pty::OpenptFlags;
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{ChildStdout, Command, Stdio};
use std::time::Duration;

/// The program itself, as the initramfs holds it.
pub(crate) const ACTOR: &str = "/bin/actor";
/// A started process reports or ends within this time, even in a busy emulated guest.
const READY_SECONDS: i64 = 120;

/// Starts processes and keeps what they need.
pub(crate) struct Stage {
    counters: Counters,
    labels: Vec<String>,
    terminals: Vec<File>,
    started: HashMap<i32, u64>,
    reaper: Reaper,
}

/// A process that was started and has not reported yet.
pub(crate) struct Starting {
    pid: i32,
    since: u64,
    label: String,
    report: ChildStdout,
}

impl Stage {
    pub(crate) fn new(counters: Counters, reaper: Reaper) -> Self {
        Self {
            counters,
            labels: vec![slot::CLOCK_LABEL.to_owned()],
            terminals: Vec::new(),
            started: HashMap::new(),
            reaper,
        }
    }

    /// Every label with its count.
    pub(crate) fn counts(&self) -> Vec<(String, u64)> {
        let count = |(i, label): (usize, &String)| (label.clone(), self.counters.counter(i).get());
        self.labels.iter().enumerate().map(count).collect()
    }

    /// Starts a process; [`Starting::ready`] waits for it.
    pub(crate) fn start(&mut self, role: &Spawn) -> io::Result<Starting> {
        let index = self.labels.len();
        if index >= slot::SLOTS {
            return Err(io::Error::other(format!("More than {} processes were played", slot::SLOTS)));
        }
        self.counters.start(index, &role.label)?;
        self.labels.push(role.label.clone());

        let exe = role.exe.as_deref().unwrap_or(ACTOR);
        if exe != ACTOR && !Path::new(exe).exists() {
            if let Some(folder) = Path::new(exe).parent() {
                std::fs::create_dir_all(folder)?;
            }
            std::fs::copy(ACTOR, exe)?;
        }
        let mut command = Command::new(exe);
        command
            .args(["play", &role.label, &role.places, &role.mode, &role.seed, &index.to_string()])
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        if let Some(comm) = &role.comm {
            command.env("ACTOR_COMM", comm);
        }
        if let Some(gid) = role.gid.or(role.uid) {
            command.gid(gid);
        }
        if let Some(uid) = role.uid {
            command.uid(uid);
        }
        let cgroup = role.cgroup.as_deref().map(open_cgroup).transpose()?;
        let terminal = role.tty.as_deref().map(|t| self.open_terminal(t)).transpose()?;
        // SAFETY: the closure only writes to an open file and makes two system calls.
        unsafe {
            command.pre_exec(move || {
                if let Some(mut procs) = cgroup.as_ref() {
                    procs.write_all(b"0")?;
                }
                if let Some(terminal) = &terminal {
                    rustix::process::setsid()?;
                    rustix::process::ioctl_tiocsctty(terminal)?;
                }
                Ok(())
            });
        }
        let since = monotonic_ns();
        let mut child = command.spawn()?;
        let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
        self.started.insert(pid, since);
        let report = child.stdout.take().ok_or_else(|| io::Error::other("No pipe to the process"))?;
        Ok(Starting { pid, since, label: role.label.clone(), report })
    }

    /// A controlling terminal: `pty`, whose master stays open here, or a device.
    fn open_terminal(&mut self, name: &str) -> io::Result<File> {
        let open = |path: &Path| {
            let flags = libc::O_NOCTTY | libc::O_NONBLOCK;
            OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)
        };
        if name != "pty" {
            return open(Path::new(name));
        }
        let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        rustix::pty::grantpt(&master)?;
        rustix::pty::unlockpt(&master)?;
        let slave = rustix::pty::ptsname(&master, Vec::new())?;
        let slave = open(Path::new(slave.to_str().map_err(io::Error::other)?))?;
        self.terminals.push(master.into());
        Ok(slave)
    }

    /// Runs a helper; returns its output and how it ended.
    pub(crate) fn run(&self, program: &str, args: &[&str]) -> io::Result<(Status, Vec<u8>)> {
        let since = monotonic_ns();
        let mut child =
            Command::new(program).args(args).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
        let mut output = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            stdout.take(3 << 20).read_to_end(&mut output)?;
        }
        let end = self.reaper.wait_for(pid, since, Duration::from_secs(10));
        Ok((end.unwrap_or(Status::Running), output))
    }

    /// How a started process is.
    pub(crate) fn status(&self, pid: i32) -> Status {
        let Some(since) = self.started.get(&pid) else { return Status::Unknown };
        self.reaper.end_of(pid, *since).unwrap_or(Status::Running)
    }

    pub(crate) fn reaper(&self) -> &Reaper {
        &self.reaper
    }
}

impl Starting {
    /// Waits until the process has planted everything.
    pub(crate) fn ready(self, reaper: &Reaper) -> io::Result<Spawned> {
        let line = read_line(&self.report)?;
        if line.is_empty() {
            let end = reaper.wait_for(self.pid, self.since, Duration::from_secs(2));
            return Err(io::Error::other(format!("{} ended before it was ready: {end:?}", self.label)));
        }
        Ok(serde_json::from_str(&line)?)
    }
}

/// One line from a process, within a time limit.
fn read_line(pipe: &ChildStdout) -> io::Result<String> {
    let limit = rustix::event::Timespec { tv_sec: READY_SECONDS, tv_nsec: 0 };
    let mut fds = [rustix::event::PollFd::new(pipe, rustix::event::PollFlags::IN)];
    if rustix::event::poll(&mut fds, Some(&limit))? == 0 {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "The process did not get ready in time"));
    }
    let mut line = String::new();
    let pipe = File::from(pipe.as_fd().try_clone_to_owned()?);
    BufReader::new(pipe.take(1 << 20)).read_line(&mut line)?;
    Ok(line)
}

fn open_cgroup(path: &str) -> io::Result<File> {
    let folder = format!("/sys/fs/cgroup/{}", path.trim_matches('/'));
    std::fs::create_dir_all(&folder)?;
    OpenOptions::new().write(true).open(format!("{folder}/cgroup.procs"))
}
