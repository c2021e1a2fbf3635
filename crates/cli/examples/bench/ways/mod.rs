//! The ways to save a VM that are measured side by side: one file for each.

mod background;
mod dump;
mod elision;
mod incoming;
mod internal;
mod mapped;
mod stream;

use crate::Failure;
use crate::support::machine;
use elision_testbed::GuestOptions;
use std::path::Path;
use std::time::Duration;

pub(crate) use incoming::empty_start;

/// How long a save took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Saved {
    /// The VM stood still.
    pub(crate) pause: Duration,
    /// Until everything was synced.
    pub(crate) total: Duration,
    /// Bytes of the frames that were kept and are not zero, where the way says so.
    pub(crate) kept: Option<u64>,
}

/// A way to save a VM and to restore it. Files go into the current folder.
pub(crate) trait Way {
    /// What the page calls it.
    fn name(&self) -> &'static str;

    /// What it writes.
    fn file(&self) -> &'static Path;

    /// Saves the VM behind a QMP socket.
    fn save(&self, socket: &Path) -> Result<Saved, Failure>;

    /// Starts a VM in `folder` on what was saved; returns when it runs. Its process is the last one that
    /// [`cleanup`](crate::support::cleanup) knows. `false` if there is no way back.
    fn restore(&self, options: &GuestOptions, folder: &Path) -> Result<bool, Failure>;

    /// Removes what was saved.
    fn remove(&self) -> std::io::Result<()> {
        std::fs::remove_file(self.file())
    }

    /// Bytes on disk.
    fn stored(&self) -> Result<u64, Failure> {
        machine::stored(self.file())
    }
}

/// What not every QEMU or machine can.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Can {
    mapped: bool,
}

impl Can {
    /// Finds it out for these VMs.
    pub(crate) fn of(options: &GuestOptions) -> Result<Self, Failure> {
        Ok(Self { mapped: mapped::Mapped::is_known(options)? })
    }
}

/// All of them. The third is what the others are compared with.
pub(crate) fn all(can: Can) -> Vec<Box<dyn Way>> {
    let mut ways = pair();
    ways.insert(1, Box::new(elision::Elision::Excluded));
    ways.push(Box::new(internal::Internal));
    ways.push(Box::new(background::Background));
    ways.push(Box::new(elision::Elision::Live));
    if can.mapped {
        ways.push(Box::new(mapped::Mapped));
    }
    ways.push(Box::new(dump::Dump));
    ways
}

/// Elision, and what it is compared with.
pub(crate) fn pair() -> Vec<Box<dyn Way>> {
    vec![Box::new(elision::Elision::Plain), Box::new(stream::Stream)]
}
