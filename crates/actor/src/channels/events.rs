//! Files that tell of events: `epoll`, `eventfd`, `inotify`, `fanotify`.

use super::Scene;
use super::lent::pieces;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::{FromRawFd, OwnedFd};
use rustix::fs::inotify;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::path::PathBuf;

/// Files that are made while somebody watches.
const FILES: usize = 16;

/// What a process registered together with descriptors.
pub(super) fn epoll(scene: &mut Scene<'_>) -> io::Result<()> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let watched = numbers()?;
    scene.whisper(|secret| {
        for (fd, piece) in watched.iter().zip(pieces(secret)) {
            epoll::add(&epoll, fd, EventData::new_u64(piece), EventFlags::IN)?;
        }
        Ok(())
    })?;
    watched.into_iter().for_each(|fd| scene.hold(fd));
    scene.hold(epoll);
    Ok(())
}

/// Numbers that nobody has read.
pub(super) fn numbers_unread(scene: &mut Scene<'_>) -> io::Result<()> {
    let numbers = numbers()?;
    scene.whisper(|secret| {
        for (fd, piece) in numbers.iter().zip(pieces(secret)) {
            rustix::io::write(fd, &piece.to_ne_bytes())?;
        }
        Ok(())
    })?;
    numbers.into_iter().for_each(|fd| scene.hold(fd));
    Ok(())
}

fn numbers() -> io::Result<Vec<OwnedFd>> {
    (0..4).map(|_| Ok(eventfd(0, EventfdFlags::CLOEXEC)?)).collect()
}

/// Names of files that somebody made, and of which nobody has read.
pub(super) fn inotify(scene: &mut Scene<'_>) -> io::Result<()> {
    let folder = folder(scene)?;
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC)?;
    inotify::add_watch(&watch, &folder, inotify::WatchFlags::CREATE)?;
    make_files(scene, &folder)?;
    scene.hold(watch);
    Ok(())
}

/// The same, with the interface that tells names since 5.9.
pub(super) fn fanotify(scene: &mut Scene<'_>) -> io::Result<()> {
    const WITH_NAMES: u32 = 0xc00; // FAN_REPORT_DFID_NAME
    let folder = folder(scene)?;
    let path = CString::new(folder.as_os_str().as_encoded_bytes())?;
    // SAFETY: no pointers; the descriptor is new and owned by nobody.
    let watch = unsafe {
        let flags = WITH_NAMES | libc::FAN_CLOEXEC;
        OwnedFd::from_raw_fd(check(libc::fanotify_init(flags, libc::O_RDONLY.unsigned_abs()))?)
    };
    let fd = rustix::fd::AsRawFd::as_raw_fd(&watch);
    let made = libc::FAN_CREATE;
    // SAFETY: the path outlives the call.
    check(unsafe { libc::fanotify_mark(fd, libc::FAN_MARK_ADD, made, libc::AT_FDCWD, path.as_ptr()) })?;
    make_files(scene, &folder)?;
    scene.hold(watch);
    Ok(())
}

fn folder(scene: &Scene<'_>) -> io::Result<PathBuf> {
    let folder = PathBuf::from(format!("/tmp/{}.watched", scene.label));
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

fn make_files(scene: &Scene<'_>, folder: &std::path::Path) -> io::Result<()> {
    scene.whisper(|secret| {
        let name = String::from_utf8_lossy(secret);
        for i in 0..FILES {
            let path = folder.join(format!("{i:02}.{name}"));
            File::create(&path)?;
            std::fs::remove_file(&path)?;
        }
        Ok(())
    })
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
