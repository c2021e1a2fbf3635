//! The counter of a played process or of the server: one word in the shared page of slots.

use crate::region::Region;
use elision_actor::slot;
use rustix::fd::AsFd;
use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::sync::atomic::{AtomicU64, Ordering};

/// One slot's count, shared with all who map the file.
#[derive(Clone, Copy)]
pub(crate) struct Counter {
    count: &'static AtomicU64,
}

impl Counter {
    pub(crate) fn bump(self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn set(self, value: u64) {
        self.count.store(value, Ordering::Relaxed);
    }

    pub(crate) fn get(self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    pub(crate) fn address(self) -> *const AtomicU64 {
        self.count
    }
}

/// The file of slots.
pub(crate) struct Counters {
    file: File,
    region: Region,
}

impl Counters {
    /// Makes the file; every user may count in it.
    pub(crate) fn create() -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(slot::PATH)?;
        file.set_permissions(Permissions::from_mode(0o666))?;
        file.set_len((slot::SLOTS * slot::SLOT_LEN) as u64)?;
        Self::map(file)
    }

    /// Opens the file the server made.
    pub(crate) fn open() -> io::Result<Self> {
        Self::map(OpenOptions::new().read(true).write(true).open(slot::PATH)?)
    }

    fn map(file: File) -> io::Result<Self> {
        let region = Region::of_file(file.as_fd(), slot::SLOTS * slot::SLOT_LEN, true)?;
        region.touch();
        Ok(Self { file, region })
    }

    /// Writes a new slot.
    pub(crate) fn start(&self, index: usize, label: &str) -> io::Result<Counter> {
        let bytes = slot::encode(slot::label_hash(label), index as u64);
        self.file.write_all_at(&bytes, (index * slot::SLOT_LEN) as u64)?;
        Ok(self.counter(index))
    }

    /// The count of slot `index`.
    pub(crate) fn counter(&self, index: usize) -> Counter {
        assert!(index < slot::SLOTS, "no such slot");
        let at = index * slot::SLOT_LEN + slot::COUNT_AT;
        // SAFETY: inside the mapping and aligned to 8 bytes; the mapping is never removed, and
        // every process touches the count only atomically.
        let count = unsafe { AtomicU64::from_ptr(self.region.word(at)) };
        Counter { count }
    }
}
