//! Memory for a copy of RAM that goes to a file later, when the VM runs again.
//!
//! ```text
//! [ memory of its own, as it fills | a view of the file | memory ]     by offsets of the RAM file
//! ```
//! It may also begin as the memory of another copy, of which it changes what differs.
//! Nothing of it is in a core dump, and only what is filled, or populated ahead, takes room.

use crate::mapping::{Mapping, view};
use crate::{FileOffset, MemoryError, PAGE_SIZE, Ram, RamLayout};
use memmap2::{Advice, MmapMut, MmapOptions};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Memory that is filled in pieces and then read as [`Ram`].
#[derive(Debug)]
pub struct Staging {
    map: MmapMut,
}

impl Staging {
    /// Address space for a RAM file of `len` bytes.
    pub fn new(len: u64) -> io::Result<Self> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let map = MmapOptions::new().len(len).no_reserve_swap().map_anon()?;
        map.advise(Advice::DontDump)?;
        Ok(Self { map })
    }

    /// Memory that begins as the first `len` bytes of a file, which does not change.
    pub fn over(file: &File, len: u64) -> io::Result<Self> {
        let map = view(file, usize::try_from(len).map_err(io::Error::other)?)?;
        map.advise(Advice::DontDump)?;
        Ok(Self { map })
    }

    /// Reads a part of a file to the same place.
    pub fn read_in(&mut self, file: &File, part: &Range<FileOffset>) -> io::Result<()> {
        let place = |offset: FileOffset| usize::try_from(offset.0).map_err(io::Error::other);
        let memory =
            self.map.get_mut(place(part.start)?..place(part.end)?).ok_or(io::ErrorKind::InvalidInput)?;
        file.read_exact_at(memory, part.start.0)
    }

    /// Writes a part to the same place of a file.
    pub fn write_out(&self, file: &File, part: &Range<FileOffset>) -> io::Result<()> {
        let place = |offset: FileOffset| usize::try_from(offset.0).map_err(io::Error::other);
        let memory = self.map.get(place(part.start)?..place(part.end)?).ok_or(io::ErrorKind::InvalidInput)?;
        file.write_all_at(memory, part.start.0)
    }

    /// Makes a part zero.
    pub fn clear(&mut self, part: &Range<FileOffset>) {
        let place = |offset: FileOffset| usize::try_from(offset.0).unwrap_or(usize::MAX).min(self.map.len());
        let place = place(part.start)..place(part.end);
        self.map.get_mut(place).unwrap_or_default().fill(0);
    }

    /// Asks for huge pages in a part of it: for parts that are going to be filled densely.
    pub fn prefer_huge(&self, part: &Range<FileOffset>) -> io::Result<()> {
        self.advise(Advice::HugePage, part)
    }

    /// Takes the memory for a part of it now, so that filling it soon takes no time for that.
    pub fn populate(&self, part: &Range<FileOffset>) -> io::Result<()> {
        self.advise(Advice::PopulateWrite, part)
    }

    /// All of it, in pieces of `bytes`; the last may be shorter.
    pub fn pieces(&mut self, bytes: usize) -> impl Iterator<Item = &mut [u8]> {
        self.map.chunks_mut(bytes)
    }

    /// One page of it.
    pub fn page(&mut self, offset: FileOffset) -> Option<&mut [u8; PAGE_SIZE]> {
        let start = usize::try_from(offset.0).ok()?;
        self.map.get_mut(start..start.checked_add(PAGE_SIZE)?)?.try_into().ok()
    }

    /// The memory as RAM, of which `views`, which ascend and consist of pages, are private views of `file`.
    pub fn into_ram(
        self,
        layout: RamLayout,
        file: &File,
        views: &[Range<FileOffset>],
    ) -> Result<Ram, MemoryError> {
        let place = |offset: FileOffset| usize::try_from(offset.0).map_err(io::Error::other);
        let views = views.iter().map(|view| Ok(place(view.start)?..place(view.end)?));
        let mapping = Mapping::staged(self.map, file, views.collect::<io::Result<_>>()?)?;
        Ram::staged(mapping, layout, None)
    }

    /// All of it as RAM, where it began as a file. `data` is what may be other than zero.
    pub fn into_whole_ram(self, layout: RamLayout, data: Vec<Range<FileOffset>>) -> Result<Ram, MemoryError> {
        Ram::staged(Mapping::unowned(self.map), layout, Some(data))
    }

    fn advise(&self, advice: Advice, part: &Range<FileOffset>) -> io::Result<()> {
        let start = usize::try_from(part.start.0).map_err(io::Error::other)?;
        let end = usize::try_from(part.end.0).map_err(io::Error::other)?.min(self.map.len());
        if start < end { self.map.advise_range(advice, start, end - start) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Gpa;

    #[test]
    fn it_reads_as_what_was_filled_in_and_then_as_the_file() {
        const PAGE: u64 = PAGE_SIZE as u64;
        let file = tempfile::tempfile().unwrap();
        file.set_len(4 * PAGE).unwrap();
        file.write_all_at(b"hidden", 0).unwrap();
        file.write_all_at(b"of the file", 3 * PAGE).unwrap();
        let layout = RamLayout::flat(4 * PAGE).unwrap();
        let view = |pages: (u64, u64)| FileOffset(pages.0 * PAGE)..FileOffset(pages.1 * PAGE);
        let cases: [(&[(u64, u64)], _); 3] =
            [(&[], [1, 0]), (&[(2, 4)], [1, 1]), (&[(0, 1), (3, 4)], [0, 1])];
        for (views, words) in cases {
            let views: Vec<_> = views.iter().copied().map(view).collect();
            let mut staging = Staging::new(4 * PAGE).unwrap();
            staging.populate(&(FileOffset(0)..FileOffset(PAGE))).unwrap();
            staging.pieces(PAGE_SIZE).next().unwrap()[..6].copy_from_slice(b"filled");
            let mut ram = staging.into_ram(layout.clone(), &file, &views).unwrap();
            let first_is_memory = ram.staged_bytes(&(0..PAGE)).is_some();
            assert_eq!(first_is_memory, words[0] == 1, "{views:?}");
            assert!(ram.staged_bytes(&(PAGE..2 * PAGE)).is_some(), "{views:?}");
            assert_eq!(ram.staged_bytes(&(0..4 * PAGE)).is_some(), views.is_empty());
            let starts = |at, with: &[u8]| {
                let mut bytes = vec![0; with.len()];
                ram.read(Gpa(at), &mut bytes).unwrap();
                usize::from(bytes == with)
            };
            assert_eq!([starts(0, b"filled"), starts(3 * PAGE, b"of the file")], words, "{views:?}");
            ram.poke(Gpa(3 * PAGE), b"changed").unwrap();
            let mut bytes = [0; 11];
            file.read_exact_at(&mut bytes, 3 * PAGE).unwrap();
            assert_eq!(&bytes, b"of the file", "the file is not changed");
        }
        let short = Staging::new(4 * PAGE).unwrap();
        assert!(short.into_ram(RamLayout::flat(8 * PAGE).unwrap(), &file, &[]).is_err());
        let beyond = FileOffset(3 * PAGE)..FileOffset(5 * PAGE);
        assert!(Staging::new(4 * PAGE).unwrap().into_ram(layout, &file, &[beyond]).is_err());
    }
}
