//! Takes the device state of a stopped VM, without its RAM, through a pipe.
//!
//! ```text
//! remember capabilities and bandwidth limit ─> x-ignore-shared on, what changes the stream's form off
//!   getfd ─> migrate fd: ──pipe──> DeviceState::read            (another thread)
//!   query-migrate until completed
//! put capabilities and limit back
//! ```
//! Afterwards the VM is in QEMU's state `postmigrate`: it runs on by `cont`, and only then can it be
//! captured again. A VM that was paused before stays so until somebody continues it. If anything fails, the
//! migration is cancelled and the settings are put back; whether the VM runs on is the caller's business.

use crate::error::{QemuError, Result};
use crate::guardian::Duty;
use crate::qmp::Qmp;
use crate::stream::DeviceState;
use crate::vm::{Vm, run_state};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const IGNORE_SHARED: &str = "x-ignore-shared";
/// Capabilities under which the stream has another form, other content or another way.
const DISTURBING: [&str; 13] = [
    "background-snapshot",
    "block",
    "compress",
    "dirty-bitmaps",
    "mapped-ram",
    "multifd",
    "postcopy-ram",
    "release-ram",
    "return-path",
    "switchover-ack",
    "x-colo",
    "xbzrle",
    "zero-blocks",
];
/// A stream that stands still for this long is given up.
const STALL_LIMIT: Duration = Duration::from_secs(10);
const CANCEL_LIMIT: Duration = Duration::from_secs(5);
const PIPE_SIZE: usize = 1 << 20;
const FD_NAME: &str = "elision-state";

/// Settings of QEMU's migration that a capture changes, as they were before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationSettings {
    /// Capabilities that matter, and whether they are on.
    capabilities: BTreeMap<String, bool>,
    max_bandwidth: Option<u64>,
}

impl Vm {
    /// The state of all devices and vCPUs of the stopped VM.
    pub fn device_state(&mut self) -> Result<DeviceState> {
        let state = self.status()?;
        if state.running {
            return Err(QemuError::State {
                found: state.name,
                needed: "its devices can be read only while it is stopped",
            });
        }
        if state.name == "postmigrate" {
            let needed = "QEMU can send its devices again only after the VM has run: continue it first";
            return Err(QemuError::State { found: state.name, needed });
        }
        let block = self.ram().block.clone();
        let before = MigrationSettings::read(&mut self.qmp)?;
        let wanted = before.for_capture();
        let result = wanted.apply(&mut self.qmp, &before).and_then(|()| receive(&mut self.qmp, &block));
        let put_back = before.put_back(&mut self.qmp);
        if let (Err(_), Err(e)) = (&result, &put_back) {
            tracing::warn!("cannot put QEMU's migration settings back: {e}");
        }
        let state = result?;
        put_back?;
        Ok(state)
    }

    /// What a guardian must do should this process die during a save. Ask before the VM is stopped.
    pub fn duty(&mut self, partial: Option<&Path>) -> Result<Duty> {
        Ok(Duty {
            socket: self.qmp.path().to_path_buf(),
            resume: self.status()?.running,
            partial: partial.map(Path::to_path_buf),
            settings: MigrationSettings::read(&mut self.qmp)?,
        })
    }
}

impl MigrationSettings {
    /// The settings as they are.
    pub(crate) fn read(qmp: &mut Qmp) -> Result<Self> {
        let list = qmp.execute("query-migrate-capabilities", json!({}))?;
        let mut capabilities = BTreeMap::new();
        for c in list.as_array().map(Vec::as_slice).unwrap_or_default() {
            if let (Some(name), Some(on)) = (c["capability"].as_str(), c["state"].as_bool()) {
                if name == IGNORE_SHARED || DISTURBING.contains(&name) {
                    capabilities.insert(name.to_string(), on);
                }
            }
        }
        let parameters = qmp.execute("query-migrate-parameters", json!({}))?;
        Ok(Self { capabilities, max_bandwidth: parameters["max-bandwidth"].as_u64() })
    }

    /// The same settings as a capture needs them.
    fn for_capture(&self) -> Self {
        let capabilities =
            self.capabilities.keys().map(|name| (name.clone(), name == IGNORE_SHARED)).collect();
        Self { capabilities, max_bandwidth: self.max_bandwidth.map(|_| 0) }
    }

    /// Makes the settings these, changing only what differs from `now`.
    fn apply(&self, qmp: &mut Qmp, now: &Self) -> Result<()> {
        let differs = |(name, on): &(&String, &bool)| now.capabilities.get(*name) != Some(*on);
        let list = self.capabilities.iter().filter(differs);
        let list: Vec<Value> = list.map(|(name, on)| json!({"capability": name, "state": on})).collect();
        let capabilities = set_capabilities(qmp, &list);
        let bandwidth = match self.max_bandwidth {
            Some(limit) if now.max_bandwidth != Some(limit) => {
                qmp.execute("migrate-set-parameters", json!({"max-bandwidth": limit})).map(drop)
            }
            _ => Ok(()),
        };
        capabilities.and(bandwidth)
    }

    /// Puts the settings back to these, whatever they are now.
    pub(crate) fn put_back(&self, qmp: &mut Qmp) -> Result<()> {
        let now = Self::read(qmp)?;
        self.apply(qmp, &now)
    }
}

fn set_capabilities(qmp: &mut Qmp, list: &[Value]) -> Result<()> {
    if list.is_empty() {
        return Ok(());
    }
    qmp.execute("migrate-set-capabilities", json!({"capabilities": list})).map(drop)
}

fn receive(qmp: &mut Qmp, block: &str) -> Result<DeviceState> {
    let (read_end, write_end) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(QemuError::os("make a pipe for the device state"))?;
    // A larger pipe only saves time.
    let _ = rustix::pipe::fcntl_setpipe_size(&write_end, PIPE_SIZE);
    qmp.execute_with_descriptor("getfd", json!({"fdname": FD_NAME}), write_end.as_fd())?;
    drop(write_end);
    let bytes = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read_all(read_end, block, &bytes));
        let sent = qmp.execute("migrate", json!({"uri": format!("fd:{FD_NAME}")})).map(drop);
        let sent = match sent {
            Ok(()) => wait(qmp, &bytes),
            Err(e) => {
                // The descriptor still waits in QEMU under its name; closing it ends the reader.
                let _ = qmp.execute("closefd", json!({"fdname": FD_NAME}));
                Err(e)
            }
        };
        if sent.is_err() {
            if let Err(e) = cancel(qmp) {
                tracing::warn!("cannot cancel the migration: {e}");
            }
        }
        let read = reader.join().unwrap_or_else(|_| {
            Err(QemuError::Migration { why: "the thread that reads the stream died".into() })
        });
        match (sent, read) {
            (Ok(()), read) => read,
            // A stream that cannot be read is why QEMU could not go on writing it.
            (Err(_), Err(e)) if !matches!(e, QemuError::Truncated { .. }) => Err(e),
            (Err(e), _) => Err(e),
        }
    })
}

/// Reads the state; the pipe is closed at the end, so that a QEMU with more to say fails instead of hanging.
fn read_all(pipe: OwnedFd, block: &str, bytes: &AtomicU64) -> Result<DeviceState> {
    DeviceState::read(Counted { input: std::fs::File::from(pipe), bytes }, block)
}

struct Counted<'a, R> {
    input: R,
    bytes: &'a AtomicU64,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let n = self.input.read(out)?;
        self.bytes.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

fn wait(qmp: &mut Qmp, bytes: &AtomicU64) -> Result<()> {
    let mut pause = Duration::from_millis(1);
    let mut seen = (0, Instant::now());
    loop {
        let info = qmp.execute("query-migrate", json!({}))?;
        match info["status"].as_str().unwrap_or_default() {
            "completed" => return Ok(()),
            status @ ("failed" | "cancelled" | "cancelling") => {
                let why = info["error-desc"].as_str().unwrap_or(status).to_string();
                return Err(QemuError::Migration { why });
            }
            _ => {}
        }
        let now = bytes.load(Ordering::Relaxed);
        if now != seen.0 {
            seen = (now, Instant::now());
        } else if seen.1.elapsed() > STALL_LIMIT {
            return Err(QemuError::Migration {
                why: format!("nothing came for {} s", STALL_LIMIT.as_secs()),
            });
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(4));
    }
}

/// Ends a migration that may be going on, and waits until it has ended.
pub(crate) fn cancel(qmp: &mut Qmp) -> Result<()> {
    let deadline = Instant::now() + CANCEL_LIMIT;
    while is_migrating(qmp)? {
        if Instant::now() > deadline {
            return Err(QemuError::Migration { why: "it does not end after being cancelled".into() });
        }
        qmp.execute("migrate_cancel", json!({}))?;
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn is_migrating(qmp: &mut Qmp) -> Result<bool> {
    let info = qmp.execute("query-migrate", json!({}))?;
    let ended = matches!(info["status"].as_str(), None | Some("none" | "completed" | "failed" | "cancelled"));
    Ok(!ended || run_state(qmp)?.name == "finish-migrate")
}
