//! Tells programs of the guest that it was restored: each that has connected to a socket gets a line, so that its
//! descriptor becomes readable. `crates/mark` is their side.

use crate::error::{AgentError, Context};
use rustix::net::sockopt::socket_peercred;
use std::fs::{self, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;

/// Where programs connect; any program may.
pub(crate) const SOCKET: &str = "/run/elision-agent/restored";
/// What each is told, once for each restore.
const LINE: &[u8] = b"restored\n";
const STACK_BYTES: usize = 128 << 10;
/// Most programs that are told, and most of one user: nobody can take the places of all, or all descriptors of the agent.
const MOST: usize = 256;
const MOST_OF_USER: usize = 64;

/// The programs that want to know.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watchers(Arc<Mutex<Vec<Watcher>>>);

#[derive(Debug)]
struct Watcher {
    stream: UnixStream,
    user: u32,
}

impl Watchers {
    /// Listens from now on.
    pub(crate) fn listen(path: &Path) -> Result<Self, AgentError> {
        let folder = path.parent().unwrap_or(path);
        fs::create_dir_all(folder).context("create", folder)?;
        match fs::remove_file(path) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e).context("remove", path),
            _ => {} // of an agent before
        }
        let listener = UnixListener::bind(path).context("listen on", path)?;
        fs::set_permissions(path, Permissions::from_mode(0o666)).context("open up", path)?;
        let watchers = Self::default();
        let taken = watchers.clone();
        let accept = move || {
            for stream in listener.incoming() {
                match stream {
                    Ok(stream) => taken.add(stream),
                    // Too many open files, for instance: they become fewer.
                    Err(_) => std::thread::sleep(std::time::Duration::from_millis(100)),
                }
            }
        };
        // All memory of the agent is locked, that of stacks too.
        let thread = Builder::new().stack_size(STACK_BYTES).spawn(accept);
        thread.context("start", "a thread for programs that want to know of restores")?;
        Ok(watchers)
    }

    fn add(&self, stream: UnixStream) {
        let Ok(peer) = socket_peercred(&stream) else { return };
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        let user = peer.uid.as_raw();
        let mut all = self.all();
        all.retain_mut(Watcher::is_there);
        let of_user = all.iter().filter(|watcher| watcher.user == user).count();
        if all.len() < MOST && of_user < MOST_OF_USER {
            all.push(Watcher { stream, user });
        }
    }

    /// Tells all of them. One that does not read what it was told before is not told again.
    pub(crate) fn tell(&self) -> usize {
        let mut all = self.all();
        all.retain_mut(Watcher::is_there);
        all.iter_mut().filter_map(|watcher| watcher.stream.write(LINE).ok()).count()
    }

    fn all(&self) -> MutexGuard<'_, Vec<Watcher>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watcher {
    /// Whether the other end is open. What it sends means nothing.
    fn is_there(&mut self) -> bool {
        match self.stream.read(&mut [0; 64]) {
            Ok(n) => n > 0,
            Err(e) => e.kind() == ErrorKind::WouldBlock,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn who_is_connected_is_told_and_who_has_gone_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/restored");
        let watchers = Watchers::listen(&path).unwrap();
        assert_eq!(watchers.tell(), 0);
        let (mut stays, goes) = (UnixStream::connect(&path).unwrap(), UnixStream::connect(&path).unwrap());
        let until = Instant::now() + Duration::from_secs(20);
        while watchers.all().len() < 2 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(goes);
        // A child that another test starts at this moment has the other end too, until it becomes another program.
        let is_there = || {
            let mut all = watchers.all();
            all.retain_mut(Watcher::is_there);
            all.len()
        };
        while is_there() > 1 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(watchers.tell(), 1);
        let mut line = [0; LINE.len()];
        stays.read_exact(&mut line).unwrap();
        assert_eq!(line, LINE);
        assert_eq!(watchers.all().len(), 1);
        // One user cannot take all places.
        let _many: Vec<_> = (0..MOST_OF_USER + 10).map(|_| UnixStream::connect(&path).unwrap()).collect();
        while watchers.all().len() < MOST_OF_USER && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(watchers.all().len(), MOST_OF_USER);
    }
}
