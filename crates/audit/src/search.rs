//! Searching memory and files by chunks, in parallel, with bounded memory.
//!
//! ```text
//! populated part   [ chunk 0 ][ chunk 1 ][ chunk 2 ]...
//! read for 1   [reach][ chunk 1 ][reach]       an occurrence counts where its anchor begins,
//!                                              so exactly once
//! ```
//! Guest memory is searched by the order of the RAM file. Where two regions are neighbours in
//! guest-physical memory and not in the file, the bytes around that border are searched as well.
//! Holes are not read: they hold zeros, and reading a hole of a VM's RAM would allocate it.

use crate::report::{Place, Report, Tally};
use crate::{AuditError, Needles};
use elision_memory::{FileOffset, Gpa, Ram, RamLayout};
use rayon::prelude::*;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

const CHUNK: u64 = 1 << 20;

impl Needles {
    /// Searches guest memory, of a running VM or of an image; lists the first `most` places of each finding.
    pub fn search_ram(
        &self,
        ram: &Ram,
        most: usize,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Report, AuditError> {
        let read = |offset: u64, out: &mut [u8]| {
            let done = ram.read_file(FileOffset(offset), out);
            done.then_some(()).ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
        };
        let populated: Vec<_> = ram.populated().into_iter().map(|part| part.start.0..part.end.0).collect();
        let place = |offset: u64| match ram.layout().gpa_of(FileOffset(offset)) {
            Some(gpa) => Place::Ram { gpa },
            None => Place::RamFile { offset: FileOffset(offset) },
        };
        let mut tally = self.search(&populated, ram.file_len(), &read, &place, most, progress)?;
        for border in borders(ram.layout()) {
            tally = tally.merge(self.search_border(ram, border, most)?, most);
        }
        Ok(tally.into_report(ram.file_len()))
    }

    /// Searches a file, such as device state. `progress` is told of bytes as they are done, from several threads.
    pub fn search_file(
        &self,
        file: &File,
        most: usize,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Report, AuditError> {
        let len = file.metadata().map_err(|source| AuditError::Source { offset: 0, source })?.len();
        let read = |offset: u64, out: &mut [u8]| file.read_exact_at(out, offset);
        let place = |offset| Place::State { offset };
        let whole = Range { start: 0, end: len };
        Ok(self.search(&[whole], len, &read, &place, most, progress)?.into_report(len))
    }

    /// Searches bytes.
    pub fn search_bytes(&self, bytes: &[u8], most: usize) -> Report {
        let mut tally = Tally::default();
        self.find(bytes, 0..bytes.len(), &mut |hit| {
            tally.add(hit, Place::State { offset: hit.start as u64 }, most);
        });
        tally.into_report(bytes.len() as u64)
    }

    fn search(
        &self,
        parts: &[Range<u64>],
        len: u64,
        read: &(dyn Fn(u64, &mut [u8]) -> io::Result<()> + Sync),
        place: &(dyn Fn(u64) -> Place + Sync),
        most: usize,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Tally, AuditError> {
        let reach = self.reach() as u64;
        let chunks: Vec<Range<u64>> = parts
            .iter()
            .flat_map(|part| {
                // An anchor may begin with zeros in the hole before.
                let early = (self.anchor_len() as u64).saturating_sub(1);
                let part = part.start.saturating_sub(early)..part.end;
                let count = (part.end - part.start).div_ceil(CHUNK);
                let starts = (0..count).map(move |i| part.start + i * CHUNK);
                starts.map(move |start| start..(start + CHUNK).min(part.end))
            })
            .collect();
        chunks
            .par_iter()
            .map_init(Vec::new, |buf, chunk| {
                // What surrounds a chunk may be a hole: a secret may hold zeros, so it is read too,
                // but never more than the pages that a pattern can reach.
                let from = chunk.start.saturating_sub(reach);
                let to = (chunk.end + reach).min(len);
                buf.resize(usize::try_from(to - from).unwrap_or(0), 0);
                read(from, buf).map_err(|source| AuditError::Source { offset: from, source })?;
                let mut tally = Tally::default();
                let within = |at: u64| usize::try_from(at - from).unwrap_or(0);
                self.find(buf, within(chunk.start)..within(chunk.end), &mut |hit| {
                    tally.add(hit, place(from + hit.start as u64), most);
                });
                progress(chunk.end - chunk.start);
                Ok(tally)
            })
            .try_reduce(Tally::default, |a, b| Ok(a.merge(b, most)))
    }

    fn search_border(&self, ram: &Ram, border: Border, most: usize) -> Result<Tally, AuditError> {
        let reach = self.reach() as u64;
        let (before, after) = (reach.min(border.before), reach.min(border.after));
        let size = |n: u64| usize::try_from(n).unwrap_or(0);
        let mut bytes = vec![0; size(before + after)];
        let (low, high) = bytes.split_at_mut(size(before));
        let start = Gpa(border.at.0 - before);
        for (gpa, part) in [(start, &mut *low), (border.at, &mut *high)] {
            ram.read(gpa, part)
                .map_err(|e| AuditError::Source { offset: gpa.0, source: io::Error::other(e) })?;
        }
        let mut tally = Tally::default();
        self.find(&bytes, 0..bytes.len(), &mut |hit| {
            // What lies on one side was found by the order of the file.
            let crosses = (hit.start as u64) < before && (hit.start + hit.len) as u64 > before;
            if crosses {
                tally.add(hit, Place::Ram { gpa: Gpa(start.0 + hit.start as u64) }, most);
            }
        });
        Ok(tally)
    }
}

/// Where two regions are neighbours in guest-physical memory and not in the file.
#[derive(Clone, Copy)]
struct Border {
    at: Gpa,
    before: u64,
    after: u64,
}

fn borders(layout: &RamLayout) -> Vec<Border> {
    let pairs = layout.regions().windows(2).filter_map(|pair| {
        let [a, b] = pair else { return None };
        let neighbours = a.gpa.0 + a.len == b.gpa.0 && a.offset.0 + a.len != b.offset.0;
        neighbours.then_some(Border { at: b.gpa, before: a.len, after: b.len })
    });
    pairs.collect()
}
