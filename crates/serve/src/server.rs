//! Starting a server, and what it does.
//!
//! ```text
//! elision ── starts, stdin is a socket ──> elision serve IMAGE
//!         <── READY and the file ──        or a text that says why not
//! ```

use crate::ahead::first_needed;
use crate::chunks::Chunks;
use crate::file_name;
use crate::file_system::{FILE, Needed, OneFile};
use crate::mount::{DEVICE, mount};
use elision_image::{Image, RamReader};
use fuser::{Config, Session, SessionACL};
use rustix::fs::{Mode, OFlags};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

const READY: u8 = b'r';
/// How long a server has to be ready. It reads a table and starts threads.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How long it is recorded what a restored VM needs.
const RECORD_FOR: Duration = Duration::from_secs(10);
/// Longest reason that is read.
const REASON: u64 = 4096;
const THREADS: usize = 4;

/// Why memory cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ServeError(String);

impl ServeError {
    fn new(doing: &str, error: impl Into<io::Error>) -> Self {
        let error = error.into();
        let reason = match error.kind() {
            io::ErrorKind::PermissionDenied => "not permitted".to_owned(),
            io::ErrorKind::NotFound => "there is none".to_owned(),
            _ => error.to_string(),
        };
        Self(format!("Cannot {doing}: {reason}"))
    }
}

/// What a server does besides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServeOptions {
    /// Read everything before it is needed if the image has no working set. That is read ahead anyway.
    pub prefetch: bool,
    /// Record the image's working set, for ten seconds. What is read ahead would be in it, so none is by itself.
    pub record: bool,
}

/// Memory that a server serves. The server ends when this and all that opened or mapped the file are gone.
#[derive(Debug)]
pub struct Served {
    file: File,
}

impl Served {
    /// Starts `program` with `arguments`; it must then call [`serve_main`].
    pub fn start(program: &Path, arguments: &[&std::ffi::OsStr]) -> Result<Self, ServeError> {
        let failed = |e| ServeError::new("start the process that serves memory", e);
        let (mut socket, other) = UnixStream::pair().map_err(failed)?;
        socket.set_read_timeout(Some(START_LIMIT)).map_err(failed)?;
        Command::new(program)
            .args(arguments)
            .stdin(Stdio::from(OwnedFd::from(other)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let mut told = [0];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut told)];
        rustix::net::recvmsg(&socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
            .map_err(|e| failed(e.into()))?;
        let mut files = ancillary.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(files) => Some(files.map(File::from)),
            _ => None,
        });
        match (told, files.next().and_then(|mut files| files.next())) {
            ([READY], Some(file)) => Ok(Self { file }),
            _ => {
                let mut reason = told.to_vec();
                let _ = (&mut socket).take(REASON).read_to_end(&mut reason);
                let reason = String::from_utf8_lossy(&reason).trim_matches('\0').to_owned();
                Err(ServeError(if reason.is_empty() { "The server has ended".to_owned() } else { reason }))
            }
        }
    }

    /// The plain RAM file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }
}

/// A server's whole life: returns when nobody uses its file any more. Its standard input is [`Served::start`]'s.
#[must_use]
pub fn serve_main(image: &Path, options: ServeOptions) -> ExitCode {
    let _ = rustix::process::setsid(); // a terminal's signals are not for it
    match serve(image, options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = socket().map(|mut socket| socket.write_all(error.0.as_bytes()));
            ExitCode::FAILURE
        }
    }
}

fn socket() -> io::Result<UnixStream> {
    Ok(UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?))
}

fn serve(path: &Path, options: ServeOptions) -> Result<(), ServeError> {
    let bad = |e: elision_image::ImageError| ServeError(e.to_string());
    let image = Image::open(path).map_err(bad)?;
    let ram = RamReader::open(&image).map_err(bad)?;
    let ServeOptions { prefetch, record: records } = options;
    let ahead = if prefetch || !records { first_needed(&image, &ram, prefetch) } else { Vec::new() };
    let needed = records.then(Arc::<Mutex<Needed>>::default);
    let chunks = Arc::new(Chunks::new(ram));

    let failed = |e: io::Error| ServeError::new("make a FUSE file system", e);
    let device = File::options().read(true).write(true).open(DEVICE);
    let device = device.map_err(|e| ServeError::new(&format!("open {DEVICE}"), e))?;
    let root = mount(&device).map_err(failed)?;
    let name = file_name(std::process::id());
    let mut config = Config::default();
    config.n_threads = Some(std::thread::available_parallelism().map_or(1, usize::from).min(THREADS));
    let files = OneFile::new(Arc::clone(&chunks), name.clone(), needed.clone());
    // The kernel lets in this user alone; a page that a VM needs it may read in another's name.
    let session = Session::from_fd(files, device.into(), SessionACL::All, config).map_err(failed)?;
    let notifier = session.notifier();
    let session = std::thread::spawn(move || session.run());

    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&root, &name, flags, Mode::empty()).map_err(|e| failed(e.into()))?;
    drop(root);
    hand_over(file.as_fd()).map_err(|e| ServeError::new("hand the file over", e))?;
    // Goes into the kernel's cache before QEMU asks for it. It ends by itself.
    std::thread::spawn(move || {
        let stored = chunks.read_ahead(&ahead, |at, bytes| notifier.store(FILE, at, bytes));
        drop((file, stored)); // whoever needs what was not read is told
    });
    let recorder = needed.map(|needed| std::thread::spawn(move || record(&image, &needed)));
    let _ = session.join();
    if let Some(recorder) = recorder {
        recorder.thread().unpark();
        let _ = recorder.join();
    }
    Ok(())
}

fn hand_over(file: BorrowedFd<'_>) -> io::Result<()> {
    let socket = socket()?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let files = [file];
    ancillary.push(SendAncillaryMessage::ScmRights(&files));
    rustix::net::sendmsg(&socket, &[IoSlice::new(&[READY])], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn record(image: &Image, needed: &Mutex<Needed>) {
    std::thread::park_timeout(RECORD_FOR);
    let needed = needed.lock().unwrap_or_else(PoisonError::into_inner);
    let _ = image.record_working_set(needed.order());
}
