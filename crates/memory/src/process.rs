//! Guest RAM in the memory of the process that runs its VM.
//!
//! ```text
//! process        address                    address + len
//!                [ pages that it has | pages that it never touched ]
//! read by         process_vm_readv     its file's content, or zeros
//! ```
//! Reading a page that the process never touched would enter it into its page tables, and may allocate it.
//! So `/proc/PID/pagemap` is asked first. It also ties the process to its number: once the process has ended
//! it tells nothing more, whoever has the number then.

use crate::PAGE_SIZE;
use crate::extents::{extents, joined};
use crate::mapping::read_process;
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Bytes for each page in a pagemap.
const ENTRY: usize = 8;
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;

/// Where a process has a guest's RAM: one run of addresses.
#[derive(Debug)]
pub struct ProcessRam {
    /// The process.
    pub pid: u32,
    /// Where it has the first byte.
    pub address: u64,
    /// The file that it maps there, from its first byte on: what pages hold that it never touched. `None` for
    /// anonymous memory.
    pub file: Option<File>,
}

/// A [`ProcessRam`], open for reading.
#[derive(Debug)]
pub(crate) struct Source {
    pid: i32,
    address: usize,
    file: Option<File>,
    pagemap: File,
}

impl Source {
    pub(crate) fn open(ram: ProcessRam) -> io::Result<Self> {
        let pagemap = File::open(format!("/proc/{}/pagemap", ram.pid))?;
        let number = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let (pid, address) = (ram.pid.try_into().map_err(number)?, ram.address.try_into().map_err(number)?);
        Ok(Self { pid, address, file: ram.file, pagemap })
    }

    /// Copies what the process has at `offset`, whole pages of it.
    pub(crate) fn read(&self, offset: usize, mut out: &mut [u8]) -> io::Result<()> {
        let mut at = offset;
        for run in self.pages(offset, out.len())?.chunk_by(|a, b| a == b) {
            let (part, rest) = out.split_at_mut(out.len().min(run.len() * PAGE_SIZE));
            if run.first() == Some(&true) {
                let address = self.address.checked_add(at).ok_or(io::ErrorKind::InvalidInput)?;
                read_process(self.pid, address, part)?;
            } else if let Some(file) = &self.file {
                file.read_exact_at(part, at as u64)?;
            } else {
                part.fill(0);
            }
            at += part.len();
            out = rest;
        }
        Ok(())
    }

    /// The parts of the first `len` bytes that may hold data, ascending, in units of `unit` bytes; what lies
    /// between is zero.
    pub(crate) fn populated(&self, len: usize, unit: usize) -> io::Result<Vec<Range<u64>>> {
        const AT_ONCE: usize = 64 << 20;
        let mut parts = self.file.as_ref().map_or_else(Vec::new, |file| extents(file, len as u64));
        for start in (0..len).step_by(AT_ONCE) {
            let pages = self.pages(start, (len - start).min(AT_ONCE))?;
            for (i, pages) in pages.chunks(unit / PAGE_SIZE).enumerate() {
                if pages.contains(&true) {
                    let at = start + i * unit;
                    parts.push(at as u64..len.min(at + unit) as u64);
                }
            }
        }
        Ok(joined(parts))
    }

    /// Whether the process has each page, in memory or in swap.
    fn pages(&self, offset: usize, len: usize) -> io::Result<Vec<bool>> {
        let first = self.address.checked_add(offset).ok_or(io::ErrorKind::InvalidInput)? / PAGE_SIZE;
        let mut entries = vec![0; len.div_ceil(PAGE_SIZE) * ENTRY];
        // A process that has ended has no pages: the pagemap is empty.
        self.pagemap.read_exact_at(&mut entries, (first * ENTRY) as u64).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => Errno::SRCH.into(),
            _ => e,
        })?;
        let is_there = |entry: &[u8]| {
            let entry = entry.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
            entry & (PRESENT | SWAPPED) != 0
        };
        Ok(entries.chunks_exact(ENTRY).map(is_there).collect())
    }
}
