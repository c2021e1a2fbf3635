//! Memory of a played process that holds secrets: mappings of every kind, filled through bounded copies.
//!
//! ```text
//! filled:    secret secret secret ...            every 32 bytes
//! scattered: ...[secret]......[sec|ret]...       odd offsets, and across each page border
//! ```

use elision_actor::secret::SECRET_LEN;
use rustix::fd::BorrowedFd;
use rustix::mm::{self, Advice, MapFlags, ProtFlags};
use std::io;

pub(crate) const PAGE: usize = 4096;
/// Size of a transparent or reserved huge page.
pub(crate) const HUGE: usize = 2 << 20;

/// A mapping that lives as long as its process.
#[derive(Clone, Copy)]
pub(crate) struct Region {
    start: *mut u8,
    len: usize,
}

// SAFETY: the mapping is never unmapped, and bytes are only written through raw pointers.
unsafe impl Send for Region {}

impl Region {
    /// Anonymous memory.
    pub(crate) fn anonymous(len: usize, shared: bool, huge: bool) -> io::Result<Self> {
        let mut flags = if shared { MapFlags::SHARED } else { MapFlags::PRIVATE };
        if huge {
            flags |= MapFlags::HUGETLB;
        }
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let start = unsafe {
            mm::mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, flags)
        }?;
        Ok(Self { start: start.cast(), len })
    }

    /// Private memory aligned to huge pages, which the kernel is asked to use.
    pub(crate) fn transparent_huge(len: usize) -> io::Result<Self> {
        let whole = Self::anonymous(len + HUGE, false, false)?;
        let skip = whole.start.align_offset(HUGE);
        // SAFETY: `skip` is below HUGE, so `len` bytes from there are inside the mapping.
        let start = unsafe { whole.start.add(skip) };
        // SAFETY: the range is inside a mapping of our own; this advice changes no content.
        unsafe { mm::madvise(start.cast(), len, Advice::LinuxHugepage) }?;
        Ok(Self { start, len })
    }

    /// A file's bytes, shared or private.
    pub(crate) fn of_file(file: BorrowedFd<'_>, len: usize, shared: bool) -> io::Result<Self> {
        let flags = if shared { MapFlags::SHARED } else { MapFlags::PRIVATE };
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let start = unsafe { mm::mmap(std::ptr::null_mut(), len, protection, flags, file, 0) }?;
        Ok(Self { start: start.cast(), len })
    }

    /// Memory that the allocator or the stack gave and that is never given back while it is used here.
    pub(crate) fn of_slice(bytes: &mut [u8]) -> Self {
        Self { start: bytes.as_mut_ptr(), len: bytes.len() }
    }

    pub(crate) fn address(self) -> u64 {
        self.start.addr() as u64
    }

    pub(crate) fn len(self) -> usize {
        self.len
    }

    pub(crate) fn write(self, at: usize, bytes: &[u8]) {
        assert!(at.checked_add(bytes.len()).is_some_and(|end| end <= self.len), "write past a region");
        // SAFETY: the range is inside the mapping (checked above), which lives as long as the process.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.add(at), bytes.len()) }
    }

    /// A part of it.
    pub(crate) fn part(self, at: usize, len: usize) -> Self {
        assert!(at.checked_add(len).is_some_and(|end| end <= self.len), "a part past a region");
        // SAFETY: inside the mapping (checked above).
        Self { start: unsafe { self.start.add(at) }, len }
    }

    /// Pointer to the aligned word at `at`.
    pub(crate) fn word(self, at: usize) -> *mut u64 {
        assert!(at % 8 == 0 && at + 8 <= self.len, "no word there");
        // SAFETY: inside the mapping (checked above).
        unsafe { self.start.add(at).cast() }
    }

    /// Reads one byte of each page, so that it is mapped.
    pub(crate) fn touch(self) {
        for at in (0..self.len).step_by(PAGE) {
            // SAFETY: `at` is inside the mapping.
            unsafe { self.start.add(at).read_volatile() };
        }
    }

    /// Gives everything behind the first page back to the kernel, which may keep what a huge page held.
    pub(crate) fn give_back_all_but_the_first_page(self) -> io::Result<()> {
        assert!(self.len > PAGE, "nothing to give back");
        // SAFETY: the range is inside the mapping, and nothing there is used again.
        unsafe { mm::madvise(self.start.add(PAGE).cast(), self.len - PAGE, Advice::LinuxDontNeed) }?;
        Ok(())
    }

    /// The secret everywhere.
    pub(crate) fn fill(self, secret: &[u8; SECRET_LEN]) {
        for at in (0..=self.len.saturating_sub(SECRET_LEN)).step_by(SECRET_LEN) {
            self.write(at, secret);
        }
    }

    /// The secret once at an odd offset of each page and once across each page border.
    pub(crate) fn scatter(self, secret: &[u8; SECRET_LEN]) {
        let mut state = 0x1234_5678_usize;
        let border = |address: usize| address.next_multiple_of(PAGE) - self.start.addr();
        let mut page = border(self.start.addr());
        while page + PAGE <= self.len {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            self.write(page + 64 + (state >> 40) % (PAGE - 256), secret);
            if page >= SECRET_LEN {
                self.write(page - SECRET_LEN / 2 - (state >> 33) % 8, secret);
            }
            page += PAGE;
        }
    }
}
