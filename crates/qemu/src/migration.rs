//! One migration through a pipe or a socket, from `migrate` to its end.
//!
//! ```text
//! getfd ─> migrate fd: ──pipe──> a thread that reads the stream
//!            <─socket── "the VM may be stopped", if QEMU is to wait for that
//!   meanwhile: query-migrate until completed
//! ```
//! If anything fails, the migration is cancelled, but for a snapshot, which is read to its end
//! ([`guardian`](crate::guardian) tells why).

use crate::error::{QemuError, Result};
use crate::guardian::Guardian;
use crate::qmp::Qmp;
use crate::stream::{DeviceState, PageSink, SinkClosed};
use crate::vm::run_state;
use elision_memory::{FileOffset, PAGE_SIZE};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// A stream that stands still for this long is given up: QEMU's fault, or a disk that takes no more.
const STALL_LIMIT: Duration = Duration::from_secs(60);
/// Between two questions how it goes.
const LONGEST_BREAK: Duration = Duration::from_millis(4);
const CANCEL_LIMIT: Duration = Duration::from_secs(5);
const PIPE_SIZE: usize = 1 << 20;
const FD_NAME: &str = "elision-state";
/// What a destination tells on the return path (`migration/migration.c`): that the VM may be stopped, and that this was
/// all: type, length, data.
const MAY_STOP: [u8; 4] = [0, 7, 0, 0];
const THAT_IS_ALL: [u8; 8] = [0, 1, 0, 4, 0, 0, 0, 0];
/// How often the first page is looked for, and after how many looks QEMU is asked how it goes.
pub(crate) const LOOK: Duration = Duration::from_micros(500);
const LOOKS: u32 = 20;

/// How far the reading thread is.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    bytes: AtomicU64,
    memory: AtomicBool,
}

/// A migration that QEMU has begun, and whose stream nobody reads yet.
#[derive(Debug)]
pub(crate) struct Begun {
    pipe: Arc<File>,
    /// So many bytes come before the stream.
    filling: u64,
}

/// The way back to a QEMU that asks before it stops the VM.
#[derive(Debug)]
pub(crate) struct ReturnPath(Weak<File>);

impl ReturnPath {
    /// Lets QEMU stop the VM when it is ready to.
    pub(crate) fn allow_stop(&self) -> Result<()> {
        // Whoever has ended reading has an error of its own.
        self.0.upgrade().map_or(Ok(()), |socket| {
            let doing = "tell QEMU that it may stop the VM";
            (&*socket).write_all(&[&MAY_STOP[..], &THAT_IS_ALL].concat()).map_err(QemuError::io(doing))
        })
    }
}

impl Begun {
    /// Begins one. That of a snapshot has a guardian.
    pub(crate) fn start(qmp: &mut Qmp, guardian: Option<&Guardian>) -> Result<Self> {
        Self::with_filling(qmp, guardian, false)
    }

    /// Begins one into a full pipe: QEMU cannot send a byte before [`receive`] makes room.
    pub(crate) fn start_blocked(qmp: &mut Qmp, guardian: &Guardian) -> Result<Self> {
        Self::with_filling(qmp, Some(guardian), true)
    }

    fn with_filling(qmp: &mut Qmp, guardian: Option<&Guardian>, blocked: bool) -> Result<Self> {
        let (pipe, write_end) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(QemuError::os("make a pipe for the device state"))?;
        // A larger pipe only saves time.
        let _ = rustix::pipe::fcntl_setpipe_size(&write_end, PIPE_SIZE);
        let mut filling = 0;
        let mut write_end = File::from(write_end);
        if blocked {
            let doing = "fill the pipe for a snapshot";
            filling = rustix::pipe::fcntl_getpipe_size(&write_end).map_err(QemuError::os(doing))?;
            write_end.write_all(&vec![0; filling]).map_err(QemuError::io(doing))?;
        }
        if let Some(guardian) = guardian {
            guardian.hold(pipe.as_fd())?;
        }
        Self::between(qmp, File::from(pipe), write_end, filling as u64)
    }

    /// Begins one in which QEMU asks before it stops the VM.
    pub(crate) fn start_held(qmp: &mut Qmp) -> Result<(Self, ReturnPath)> {
        let (ours, its) = UnixStream::pair().map_err(QemuError::io("make a socket for the migration"))?;
        let begun = Self::between(qmp, OwnedFd::from(ours).into(), OwnedFd::from(its).into(), 0)?;
        let path = ReturnPath(Arc::downgrade(&begun.pipe));
        Ok((begun, path))
    }

    /// Begins one from a descriptor to another.
    fn between(qmp: &mut Qmp, pipe: File, write_end: File, filling: u64) -> Result<Self> {
        qmp.execute_with_descriptor("getfd", json!({"fdname": FD_NAME}), write_end.as_fd())?;
        drop(write_end);
        if let Err(error) = qmp.execute("migrate", json!({"uri": format!("fd:{FD_NAME}")})) {
            // The descriptor still waits in QEMU under its name.
            let _ = qmp.execute("closefd", json!({"fdname": FD_NAME}));
            return Err(error);
        }
        Ok(Self { pipe: Arc::new(pipe), filling })
    }

    /// Reads a snapshot to its end, of which nothing is wanted.
    pub(crate) fn discard(self, qmp: &mut Qmp) -> Result<()> {
        let reader = std::thread::spawn(move || std::io::copy(&mut &*self.pipe, &mut std::io::sink()));
        wait_patiently(qmp)?;
        let _ = reader.join();
        Ok(())
    }
}

/// Takes a migration. `read` reads the stream in a thread of its own; `during` follows it, to its end. One that must not
/// be cancelled, as a snapshot, is read to its end whatever happens.
pub(crate) fn receive<T>(
    qmp: &mut Qmp,
    begun: Begun,
    can_cancel: bool,
    read: impl FnOnce(Counted<'_>) -> Result<DeviceState> + Send,
    during: impl FnOnce(&mut Qmp, &Progress) -> Result<T>,
) -> Result<(DeviceState, T)> {
    let Begun { pipe, filling } = begun;
    let progress = &Progress::default();
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let skipped = std::io::copy(&mut (&*pipe).take(filling), &mut std::io::sink());
            let state = match skipped {
                Ok(_) => read(Counted { pipe: &pipe, progress }),
                Err(error) => Err(QemuError::io("read the migration's pipe")(error)),
            };
            if !can_cancel {
                let _ = std::io::copy(&mut &*pipe, &mut std::io::sink());
            }
            // The pipe is closed now, so that a QEMU with more to say fails instead of hanging.
            state
        });
        let sent = during(qmp, progress);
        if sent.is_err() && can_cancel {
            if let Err(e) = cancel(qmp) {
                tracing::warn!("cannot cancel the migration: {e}");
            }
        }
        let read = reader.join().unwrap_or_else(|_| {
            Err(QemuError::Migration { why: "the thread that reads the stream died".into() })
        });
        match (sent, read) {
            (Ok(done), read) => read.map(|state| (state, done)),
            // A stream that cannot be read is why QEMU could not go on writing it.
            (Err(_), Err(e)) if !matches!(e, QemuError::Truncated { .. }) => Err(e),
            (Err(e), _) => Err(e),
        }
    })
}

/// A stream whose bytes are counted.
pub(crate) struct Counted<'a> {
    pipe: &'a File,
    pub(crate) progress: &'a Progress,
}

impl Read for Counted<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let n = self.pipe.read(out)?;
        self.progress.bytes.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// A sink that tells when the first page comes.
pub(crate) struct Watched<'a> {
    pub(crate) sink: &'a mut dyn PageSink,
    pub(crate) progress: &'a Progress,
}

impl Watched<'_> {
    fn see(&self) {
        self.progress.memory.store(true, Ordering::Release);
    }
}

impl PageSink for Watched<'_> {
    fn page(&mut self, offset: FileOffset, bytes: &[u8; PAGE_SIZE]) -> Result<(), SinkClosed> {
        self.see();
        self.sink.page(offset, bytes)
    }

    fn fill(&mut self, offset: FileOffset, byte: u8) -> Result<(), SinkClosed> {
        self.see();
        self.sink.fill(offset, byte)
    }
}

/// Waits for the first page of the main memory. Before it comes, QEMU may have to fill in all of the memory.
pub(crate) fn wait_for_memory(qmp: &mut Qmp, progress: &Progress) -> Result<()> {
    let mut look = 1_u32;
    while !progress.memory.load(Ordering::Acquire) {
        // Without a page there was no stream that could be read.
        if look % LOOKS == 0 && is_completed(qmp)? {
            break;
        }
        look = look.wrapping_add(1);
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// Waits for the end, however long it takes: a snapshot is not cancelled.
pub(crate) fn wait_patiently(qmp: &mut Qmp) -> Result<()> {
    while !is_completed(qmp)? {
        std::thread::sleep(LONGEST_BREAK);
    }
    Ok(())
}

/// Waits for the end, but not for a stream that stands still.
pub(crate) fn wait(qmp: &mut Qmp, progress: &Progress) -> Result<()> {
    poll(qmp, progress, LONGEST_BREAK, |_, info| Ok(is_end(info)))
}

/// The same for an end that is near.
pub(crate) fn wait_shortly(qmp: &mut Qmp, progress: &Progress) -> Result<()> {
    poll(qmp, progress, LOOK, |_, info| Ok(is_end(info)))
}

/// Asks how it goes until `done` says that this is it, but not of a stream that stands still. A migration that has ended
/// too early is an error.
pub(crate) fn poll(
    qmp: &mut Qmp,
    progress: &Progress,
    longest_break: Duration,
    mut done: impl FnMut(&mut Qmp, &Value) -> Result<bool>,
) -> Result<()> {
    let mut pause = LOOK;
    let mut seen = (0, Instant::now());
    loop {
        let info = ask(qmp)?;
        if done(qmp, &info)? {
            return Ok(());
        }
        if is_end(&info) {
            return Err(QemuError::Migration { why: "it ended before it was expected".into() });
        }
        let now = progress.bytes.load(Ordering::Relaxed);
        if now != seen.0 {
            seen = (now, Instant::now());
        } else if seen.1.elapsed() > STALL_LIMIT {
            let why = format!("nothing came for {} s", STALL_LIMIT.as_secs());
            return Err(QemuError::Migration { why });
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(longest_break);
    }
}

fn is_completed(qmp: &mut Qmp) -> Result<bool> {
    ask(qmp).map(|info| is_end(&info))
}

fn is_end(info: &Value) -> bool {
    info["status"] == "completed"
}

/// How the migration goes; an error if it failed.
fn ask(qmp: &mut Qmp) -> Result<Value> {
    let info = qmp.execute("query-migrate", json!({}))?;
    match info["status"].as_str().unwrap_or_default() {
        status @ ("failed" | "cancelled" | "cancelling") => {
            let why = info["error-desc"].as_str().unwrap_or(status).to_string();
            Err(QemuError::Migration { why })
        }
        _ => Ok(info),
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

pub(crate) fn is_migrating(qmp: &mut Qmp) -> Result<bool> {
    let info = qmp.execute("query-migrate", json!({}))?;
    let ended = matches!(info["status"].as_str(), None | Some("none" | "completed" | "failed" | "cancelled"));
    Ok(!ended || run_state(qmp)?.name == "finish-migrate")
}
