//! Read access to memory that another process may be writing, or has: all unsafe code of this crate.
//!
//! A VM's RAM file is mapped shared while its VM runs, so no Rust reference into the mapping may
//! exist: bytes are copied out through raw pointers, and what was copied may be torn. Callers
//! treat guest memory as hostile anyway.

use crate::RamPiece;
use memmap2::{Advice, MmapMut, MmapOptions, MmapRaw, UncheckedAdvice};
use rustix::mm::{MapFlags, ProtFlags};
use std::fs::File;
use std::io;
use std::ops::Range;

/// A mapping of a whole file, or of private copies of its pages.
#[derive(Debug)]
pub(crate) struct Mapping {
    map: MmapRaw,
    /// Memory that nothing but [`Mapping::write`] changes, but for these parts of it, which ascend.
    own: Option<Vec<Range<usize>>>,
}

impl Mapping {
    /// Maps files, each at its place, shared and read-only: writes of their other users are seen. What lies between
    /// them is zero.
    pub(crate) fn shared(len: usize, pieces: &[RamPiece]) -> io::Result<Self> {
        Self::of_files(len, pieces, MapFlags::SHARED, ProtFlags::READ)
    }

    /// Maps files copy-on-write: they are never changed by [`Mapping::write`].
    pub(crate) fn private(len: usize, pieces: &[RamPiece]) -> io::Result<Self> {
        Self::of_files(
            len,
            pieces,
            MapFlags::PRIVATE | MapFlags::NORESERVE,
            ProtFlags::READ | ProtFlags::WRITE,
        )
    }

    fn of_files(len: usize, pieces: &[RamPiece], flags: MapFlags, access: ProtFlags) -> io::Result<Self> {
        let mapping = Self::sparse(len)?;
        for RamPiece { offset, len, file } in pieces {
            let (at, len) = (usize::try_from(offset.0), usize::try_from(*len));
            let (at, len) = (at.map_err(io::Error::other)?, len.map_err(io::Error::other)?);
            put_file(&mapping.map, at, len, (file, 0), (flags, access))?;
        }
        Ok(mapping)
    }

    /// Zeroed memory of its own.
    pub(crate) fn anonymous(len: usize) -> io::Result<Self> {
        Ok(Self { map: MmapOptions::new().len(len).map_anon()?.into(), own: None })
    }

    /// Zeroed memory of which only what is filled takes room.
    pub(crate) fn sparse(len: usize) -> io::Result<Self> {
        Ok(Self { map: MmapOptions::new().len(len).no_reserve_swap().map_anon()?.into(), own: None })
    }

    /// Memory of its own of which some parts, which ascend and consist of pages, become copy-on-write views of the
    /// same parts of a file.
    pub(crate) fn staged(map: MmapMut, file: &File, views: Vec<Range<usize>>) -> io::Result<Self> {
        let map = MmapRaw::from(map);
        let how = (MapFlags::PRIVATE | MapFlags::NORESERVE, ProtFlags::READ | ProtFlags::WRITE);
        for view in &views {
            put_file(&map, view.start, view.len(), (file, view.start as u64), how)?;
        }
        Ok(Self { map, own: Some(views) })
    }

    /// Memory of which any part may be a file's.
    pub(crate) fn unowned(map: MmapMut) -> Self {
        Self { map: map.into(), own: None }
    }

    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }

    /// Says that it will be read here and there: a page at a time then comes from its file.
    pub(crate) fn reads_are_scattered(&self) -> io::Result<()> {
        self.map.advise(Advice::Random)
    }

    /// Enters a range into the page tables ahead of its first reading.
    pub(crate) fn prefault(&self, offset: usize, len: usize) -> io::Result<()> {
        self.map.advise_range(Advice::PopulateRead, offset, len)
    }

    /// Copies bytes out. `false` if the range is not inside the mapping.
    #[must_use]
    pub(crate) fn read(&self, offset: usize, out: &mut [u8]) -> bool {
        if !self.holds(offset, out.len()) {
            return false;
        }
        // SAFETY: the range was just checked to lie inside the mapping, which lives as long as
        // `self`; `out` is a different object. Other writers can only make the copy stale or torn.
        unsafe { self.map.as_ptr().add(offset).copy_to_nonoverlapping(out.as_mut_ptr(), out.len()) };
        true
    }

    /// Bytes of a staged mapping; `None` if any of them is in a file.
    pub(crate) fn own(&self, offset: usize, len: usize) -> Option<&[u8]> {
        let views = self.own.as_ref().filter(|_| self.holds(offset, len))?;
        let next = views.get(views.partition_point(|view| view.end <= offset));
        if next.is_some_and(|view| view.start < offset + len) {
            return None;
        }
        // SAFETY: the range was just checked to lie inside the mapping. It is private memory of this process that
        // only `Mapping::write` changes, which takes `&mut self` (`fill` is for sparse mappings, which own nothing).
        Some(unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(offset), len) })
    }

    /// Reads an aligned little-endian word. `None` outside the mapping or when unaligned.
    #[inline]
    pub(crate) fn word(&self, offset: usize) -> Option<u64> {
        if offset % 8 != 0 || !self.holds(offset, 8) {
            return None;
        }
        // SAFETY: inside the mapping (just checked) and aligned, as mappings begin on a page.
        let word = unsafe { self.map.as_ptr().add(offset).cast::<u64>().read_volatile() };
        Some(u64::from_le(word))
    }

    /// Overwrites bytes of a private or anonymous mapping. `false` outside the mapping.
    #[must_use]
    pub(crate) fn write(&mut self, offset: usize, bytes: &[u8]) -> bool {
        if !self.holds(offset, bytes.len()) {
            return false;
        }
        // SAFETY: only private and anonymous mappings, which are writable, are reached by callers
        // (`Ram::poke` checks); the range was just checked; `&mut self` excludes other users here.
        unsafe { self.map.as_mut_ptr().add(offset).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        true
    }

    /// Overwrites bytes of a sparse mapping that other threads may be reading. `false` outside the mapping.
    #[must_use]
    pub(crate) fn fill(&self, offset: usize, bytes: &[u8]) -> bool {
        if !self.holds(offset, bytes.len()) {
            return false;
        }
        // SAFETY: only sparse mappings, which are writable, are filled (`Mirror` owns its mapping); the range
        // was just checked. Readers copy through raw pointers and can at most see a torn copy.
        unsafe { self.map.as_mut_ptr().add(offset).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        true
    }

    /// Gives the room of a sparse mapping back: it is zeroed.
    pub(crate) fn empty(&self) -> io::Result<()> {
        // SAFETY: no reference into the mapping exists, and its owner expects zeros from now on.
        unsafe { self.map.unchecked_advise(UncheckedAdvice::DontNeed) }
    }

    /// Takes a mapping of files that are mapped shared out of the page tables: nothing is lost. By pieces, as the process
    /// can map nothing else meanwhile, which starting a thread needs.
    pub(crate) fn unmap_pages(&self) -> io::Result<()> {
        const PIECE: usize = 8 << 20;
        for start in (0..self.len()).step_by(PIECE) {
            let len = PIECE.min(self.len() - start);
            // SAFETY: no reference into the mapping exists, and what is read next comes from the files again.
            unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, len)? };
        }
        Ok(())
    }

    /// Address of the first byte.
    #[cfg(test)]
    pub(crate) fn address(&self) -> usize {
        self.map.as_ptr().addr()
    }

    fn holds(&self, offset: usize, len: usize) -> bool {
        offset.checked_add(len).is_some_and(|end| end <= self.map.len())
    }
}

/// A copy-on-write view of the first `len` bytes of a file that nobody changes.
pub(crate) fn view(file: &File, len: usize) -> io::Result<MmapMut> {
    if file.metadata()?.len() < len as u64 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    // SAFETY: what is written stays in this process. An image's files do not change; if somebody does change or
    // truncate one, the view shows other bytes, or this process ends by SIGBUS.
    unsafe { MmapOptions::new().len(len).no_reserve_swap().map_copy(file) }
}

/// Maps a part of a file, from an offset of it on, over a part of a mapping that nobody else knows of yet.
fn put_file(
    map: &MmapRaw,
    at: usize,
    len: usize,
    (file, offset): (&File, u64),
    (flags, access): (MapFlags, ProtFlags),
) -> io::Result<()> {
    if len == 0 || at.checked_add(len).is_none_or(|end| end > map.len()) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the range was just checked to lie inside the mapping, into which no reference exists yet, and
    // unmapping it later unmaps what takes its place.
    unsafe {
        rustix::mm::mmap(
            map.as_mut_ptr().add(at).cast(),
            len,
            access,
            flags | MapFlags::FIXED,
            file,
            offset,
        )?;
    }
    Ok(())
}

/// Copies memory of another process. An address that it has not mapped is an error.
pub(crate) fn read_process(pid: i32, address: usize, out: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while let Some(rest) = out.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let from = std::ptr::without_provenance_mut(address.wrapping_add(done));
        let remote = libc::iovec { iov_base: from, iov_len: rest.len() };
        let local = libc::iovec { iov_base: rest.as_mut_ptr().cast(), iov_len: rest.len() };
        // SAFETY: the kernel writes at most `rest.len()` bytes to `rest`, which is borrowed mutably meanwhile.
        // The other address is never used here.
        let n = unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
        match usize::try_from(n) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => done += n,
            Err(_) => return Err(io::Error::last_os_error()),
        }
    }
    Ok(())
}
