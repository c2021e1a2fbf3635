//! Memory that a checkpoint of the virtual machine leaves out, although the program that has it goes on.
//!
//! A program keeps what must not outlive it in a [`Region`]. A user who saves the program's VM with
//! `elision save --exclude region=named` gets an image without that memory: after a restore the program finds
//! zeros there, and nothing else has changed for it. [`Region::read`] tells when that happened.
//!
//! ```
//! # fn main() -> std::io::Result<()> {
//! let mut key = elision_mark::Region::new("session-key", 32)?;
//! key.write(|bytes| bytes.fill(7)); // from where the key comes
//! let sum: Option<u32> = key.read(|bytes| bytes.iter().map(|b| u32::from(*b)).sum());
//! match sum {
//!     Some(sum) => assert_eq!(sum, 7 * 32),
//!     None => { /* the VM was restored: get the key anew and write it */ }
//! }
//! # Ok(())
//! # }
//! ```
//! What is left out is the marked memory. Copies elsewhere stay in the image: in registers, on the stack, in buffers
//! of libraries, in pipes and sockets. Clear what you copy, as soon as you can.
//!
//! How a region stands in memory, the same as of `c/elision.h`:
//! ```text
//! memfd "elision:NAME", mapped private:   generation (u64, not 0 while it is filled) | 56 bytes | data ...
//! ```

mod watch;

pub use watch::Watch;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap, munmap};
use std::ffi::{CString, c_void};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// What the name of marked memory begins with.
pub const PREFIX: &str = "elision:";
/// The longest name of a marked area, with its prefix and the byte that ends it.
const NAME_BYTES: usize = 80;
/// The program's data begins so far behind the beginning of a region.
const HEAD_BYTES: usize = 64;
const PR_SET_VMA: libc::c_int = 0x5356_4d41;
const PR_SET_VMA_ANON_NAME: libc::c_ulong = 0;

/// How memory was marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// By name: `region=named` and `region=dontdump` find it.
    Named,
    /// The kernel has no names for areas: only `region=dontdump` finds it.
    Dontdump,
}

/// Memory of a program's own that is marked as a whole. It is cleared when it is dropped.
///
/// It is locked into memory if the limits allow: what is in swap is on a disk and cannot be left out. A child has
/// its own after a fork, marked as well.
#[derive(Debug)]
pub struct Region {
    map: NonNull<c_void>,
    map_len: usize,
    len: usize,
    generation: u64,
}

// SAFETY: the mapping belongs to this value alone.
unsafe impl Send for Region {}
// SAFETY: what changes through a shared reference is an atomic word.
unsafe impl Sync for Region {}

impl Region {
    /// A region with room for `len` bytes, zero at first.
    pub fn new(name: &str, len: usize) -> io::Result<Self> {
        let name = full_name(name)?;
        let page = rustix::param::page_size();
        let whole = len.checked_add(HEAD_BYTES).and_then(|len| len.checked_next_multiple_of(page));
        let map_len = whole.filter(|_| len > 0).ok_or(io::ErrorKind::InvalidInput)?;
        let file = memfd_create(&name, MemfdFlags::CLOEXEC)?;
        ftruncate(&file, map_len as u64)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let map = unsafe { mmap(std::ptr::null_mut(), map_len, protection, MapFlags::PRIVATE, &file, 0)? };
        let map = NonNull::new(map).ok_or(io::ErrorKind::OutOfMemory)?;
        let region = Self { map, map_len, len, generation: 0 };
        // SAFETY: the range is the new mapping; neither call changes its content.
        unsafe {
            let _ = madvise(map.as_ptr(), map_len, Advice::LinuxDontDump);
            let _ = mlock(map.as_ptr(), map_len);
        }
        Ok(region)
    }

    /// Fills the region.
    pub fn write<T>(&mut self, fill: impl FnOnce(&mut [u8]) -> T) -> T {
        // SAFETY: the mapping is longer than head and data together, and `self` is borrowed alone.
        let data = unsafe { std::slice::from_raw_parts_mut(self.data(), self.len) };
        let done = fill(data);
        self.generation += 1;
        self.word().store(self.generation, Ordering::Release);
        done
    }

    /// Uses what the region was filled with. `None` if it is not there, or went while it was used: the VM was
    /// restored from an image without it. The closure may then have seen zeros.
    pub fn read<T>(&self, r#use: impl FnOnce(&[u8]) -> T) -> Option<T> {
        if !self.holds() {
            return None;
        }
        // SAFETY: the mapping is longer than head and data together, and nobody writes while `self` is shared.
        let data = unsafe { std::slice::from_raw_parts(self.data().cast_const(), self.len) };
        let done = r#use(data);
        self.holds().then_some(done)
    }

    /// Whether the region still has what it was filled with.
    #[must_use]
    pub fn holds(&self) -> bool {
        fence(Ordering::Acquire);
        self.generation != 0 && self.word().load(Ordering::Acquire) == self.generation
    }

    fn data(&self) -> *mut u8 {
        self.map.as_ptr().cast::<u8>().wrapping_add(HEAD_BYTES)
    }

    fn word(&self) -> &AtomicU64 {
        // SAFETY: the mapping begins on a page, lives as long as `self`, and its head is used in no other way.
        unsafe { AtomicU64::from_ptr(self.map.as_ptr().cast()) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        for i in 0..self.map_len {
            // SAFETY: inside the mapping. Volatile, as the bytes are not read again.
            unsafe { self.map.as_ptr().cast::<u8>().add(i).write_volatile(0) };
        }
        // SAFETY: the mapping belongs to this value, and nobody has a reference into it.
        let _ = unsafe { munmap(self.map.as_ptr(), self.map_len) };
    }
}

/// Marks whole pages of anonymous memory that is there already: those that hold these bytes. The bytes must begin on
/// a page, and what else is on their last page is left out with them.
pub fn mark(bytes: &mut [u8], name: &str) -> io::Result<Mark> {
    let name = full_name(name)?;
    let (start, len) = (bytes.as_mut_ptr(), bytes.len());
    // SAFETY: marks change what dumps and checkpoints hold, and nothing for the program.
    unsafe { madvise(start.cast(), len, Advice::LinuxDontDump)? };
    Ok(if set_name(start, len, name.as_ptr()) { Mark::Named } else { Mark::Dontdump })
}

/// Takes the mark away. Fill the memory with something else before.
pub fn unmark(bytes: &mut [u8]) -> io::Result<()> {
    let (start, len) = (bytes.as_mut_ptr(), bytes.len());
    set_name(start, len, std::ptr::null());
    // SAFETY: as in `mark`.
    unsafe { Ok(madvise(start.cast(), len, Advice::LinuxDoDump)?) }
}

fn set_name(start: *mut u8, len: usize, name: *const libc::c_char) -> bool {
    // SAFETY: the kernel copies the name, which ends with a zero byte or is null.
    unsafe { libc::prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, start, len, name) == 0 }
}

/// `elision:NAME`, if kernels take it.
fn full_name(name: &str) -> io::Result<CString> {
    let is_fit = |b: u8| (b' '..=b'~').contains(&b) && !b"\\`$[]".contains(&b);
    if name.is_empty() || PREFIX.len() + name.len() >= NAME_BYTES || !name.bytes().all(is_fit) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "Not a name for marked memory"));
    }
    Ok(CString::new(format!("{PREFIX}{name}"))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_tells_whether_it_is_filled() {
        let mut region = Region::new("test", 5000).unwrap();
        assert!(!region.holds() && region.read(|_| ()).is_none());
        region.write(|bytes| bytes.fill(9));
        assert_eq!(region.read(|bytes| (bytes.len(), bytes[4999])), Some((5000, 9)));
        // What a restore without the region does to it.
        region.word().store(0, Ordering::Relaxed);
        assert!(region.read(|_| ()).is_none());
        region.write(|bytes| bytes.fill(8));
        assert_eq!(region.read(|bytes| bytes[0]), Some(8));
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        assert!(maps.contains("memfd:elision:test"), "{maps}");
    }

    #[test]
    fn memory_is_marked_and_unmarked() {
        let mut memory = vec![1_u8; 16 << 10];
        let start = memory.as_ptr().align_offset(4096);
        let pages = &mut memory[start..start + 8192];
        mark(pages, "buffer").unwrap();
        assert_eq!(marked_pages(pages), 2);
        unmark(pages).unwrap();
        assert_eq!(marked_pages(pages), 0);
        assert!(pages.iter().all(|b| *b == 1));
    }

    /// Pages of the memory in areas that dumps leave out, by smaps.
    fn marked_pages(pages: &[u8]) -> usize {
        let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let (start, end) = (pages.as_ptr().addr(), pages.as_ptr().addr() + pages.len());
        let (mut area, mut marked) = (0..0, 0);
        for line in text.lines() {
            let bounds = line.split(' ').next().and_then(|word| word.split_once('-'));
            let hex = |text| usize::from_str_radix(text, 16).ok();
            if let Some((from, to)) = bounds.and_then(|(a, b)| Some((hex(a)?, hex(b)?))) {
                area = from..to;
            } else if line.strip_prefix("VmFlags:").is_some_and(|flags| flags.contains(" dd")) {
                marked += area.end.min(end).saturating_sub(area.start.max(start)) / 4096;
            }
        }
        marked
    }

    #[test]
    fn names_are_what_kernels_take() {
        for name in ["", "a[b]", "new\nline", "a\\b", &"x".repeat(72)] {
            assert!(Region::new(name, 1).is_err(), "{name}");
        }
        assert!(Region::new(&"x".repeat(71), 1).is_ok());
        assert!(Region::new("x", 0).is_err() && Region::new("x", usize::MAX).is_err());
    }
}
