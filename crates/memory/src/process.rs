//! Guest RAM in the memory of the process that runs its VM.
//!
//! ```text
//! RAM file       offset                     offset + len
//! process        address                    address + len           a run; there may be several
//!                [ pages that it has | pages that it never touched ]
//! read by         process_vm_readv     its file's content, or zeros
//! ```
//! Reading a page that the process never touched would enter it into its page tables, and may allocate it.
//! So `/proc/PID/pagemap` is asked first. It also ties the process to its number: once the process has ended
//! it tells nothing more, whoever has the number then.

use crate::extents::{extents, joined};
use crate::mapping::read_process;
use crate::{FileOffset, PAGE_SIZE};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Bytes for each page in a pagemap.
const ENTRY: usize = 8;
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;

/// Where a process has a guest's RAM.
#[derive(Debug)]
pub struct ProcessRam {
    /// The process.
    pub pid: u32,
    /// Its runs of addresses, by ascending offset and without overlap.
    pub runs: Vec<ProcessRun>,
}

/// A part of the RAM that a process has in one run of addresses.
#[derive(Debug)]
pub struct ProcessRun {
    /// Where it begins in the RAM file.
    pub offset: FileOffset,
    /// Length in bytes.
    pub len: u64,
    /// Where the process has the first byte.
    pub address: u64,
    /// The file that it maps there, and from which of its bytes on: what pages hold that it never touched. `None`
    /// for anonymous memory.
    pub file: Option<(File, u64)>,
}

impl ProcessRam {
    /// All RAM in one run, with its file from its first byte on.
    #[must_use]
    pub fn one(pid: u32, address: u64, len: u64, file: Option<File>) -> Self {
        let file = file.map(|file| (file, 0));
        Self { pid, runs: vec![ProcessRun { offset: FileOffset(0), len, address, file }] }
    }
}

/// A [`ProcessRam`], open for reading.
#[derive(Debug)]
pub(crate) struct Source {
    pid: i32,
    runs: Vec<Run>,
    pagemap: File,
}

/// A [`ProcessRun`] in numbers of this machine.
#[derive(Debug)]
struct Run {
    offset: usize,
    len: usize,
    address: usize,
    file: Option<(File, u64)>,
}

impl TryFrom<ProcessRun> for Run {
    type Error = std::num::TryFromIntError;

    fn try_from(run: ProcessRun) -> Result<Self, Self::Error> {
        let ProcessRun { offset, len, address, file } = run;
        Ok(Self { offset: offset.0.try_into()?, len: len.try_into()?, address: address.try_into()?, file })
    }
}

impl Source {
    pub(crate) fn open(ram: ProcessRam) -> io::Result<Self> {
        let pagemap = File::open(format!("/proc/{}/pagemap", ram.pid))?;
        let number = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let runs = ram.runs.into_iter().map(Run::try_from).collect::<Result<_, _>>().map_err(number)?;
        Ok(Self { pid: ram.pid.try_into().map_err(number)?, runs, pagemap })
    }

    /// Copies what the process has at `offset`, whole pages of it. Between its runs there are zeros.
    pub(crate) fn read(&self, offset: usize, mut out: &mut [u8]) -> io::Result<()> {
        let mut at = offset;
        while !out.is_empty() {
            let next =
                self.runs.get(self.runs.partition_point(|run| run.offset.saturating_add(run.len) <= at));
            let (part, within) = match next {
                Some(run) if run.offset <= at => (run.len - (at - run.offset), Some((run, at - run.offset))),
                Some(run) => (run.offset - at, None),
                None => (out.len(), None),
            };
            let (part, rest) = out.split_at_mut(out.len().min(part));
            match within {
                Some((run, from)) => self.read_run(run, from, part)?,
                None => part.fill(0),
            }
            at += part.len();
            out = rest;
        }
        Ok(())
    }

    /// The same from `from` bytes behind the start of a run on.
    fn read_run(&self, run: &Run, from: usize, mut out: &mut [u8]) -> io::Result<()> {
        let mut at = from;
        for pages in self.pages(run, from, out.len())?.chunk_by(|a, b| a == b) {
            let (part, rest) = out.split_at_mut(out.len().min(pages.len() * PAGE_SIZE));
            if pages.first() == Some(&true) {
                let address = run.address.checked_add(at).ok_or(io::ErrorKind::InvalidInput)?;
                read_process(self.pid, address, part)?;
            } else if let Some((file, start)) = &run.file {
                file.read_exact_at(part, start.saturating_add(at as u64))?;
            } else {
                part.fill(0);
            }
            at += part.len();
            out = rest;
        }
        Ok(())
    }

    /// The parts of the RAM file that may hold data, ascending, in units of `unit` bytes; what lies between is zero.
    pub(crate) fn populated(&self, unit: usize) -> io::Result<Vec<Range<u64>>> {
        const AT_ONCE: usize = 64 << 20;
        let mut parts = Vec::new();
        for run in &self.runs {
            let mut add = |part: Range<u64>| {
                parts.push(run.offset as u64 + part.start..run.offset as u64 + part.end);
            };
            if let Some((file, start)) = &run.file {
                let of_file = extents(file, *start..start.saturating_add(run.len as u64));
                of_file.into_iter().for_each(|part| add(part.start - start..part.end - start));
            }
            for start in (0..run.len).step_by(AT_ONCE) {
                let pages = self.pages(run, start, (run.len - start).min(AT_ONCE))?;
                for (i, pages) in pages.chunks(unit / PAGE_SIZE).enumerate() {
                    if pages.contains(&true) {
                        let at = start + i * unit;
                        add(at as u64..run.len.min(at + unit) as u64);
                    }
                }
            }
        }
        Ok(joined(parts))
    }

    /// Whether the process has each page of a run, in memory or in swap.
    fn pages(&self, run: &Run, from: usize, len: usize) -> io::Result<Vec<bool>> {
        let first = run.address.checked_add(from).ok_or(io::ErrorKind::InvalidInput)? / PAGE_SIZE;
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
