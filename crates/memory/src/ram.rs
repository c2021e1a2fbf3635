//! Guest RAM to read: of a running VM through its shared RAM file or through its process, or of a file at rest.

use crate::error::MemoryError;
use crate::extents::whole;
use crate::layers::Layers;
use crate::mapping::Mapping;
use crate::mirror::Mirror;
use crate::pieces::{self, RamPiece};
use crate::process::ProcessRam;
use crate::{FileOffset, Gfn, Gpa, PAGE_SIZE, RamLayout};
use std::fs::File;
use std::io;
use std::ops::Range;

/// All RAM of one guest, by guest-physical address.
#[derive(Debug)]
pub struct Ram {
    pub(crate) mapping: Mapping,
    layout: RamLayout,
    /// The files that the mapping shows, by ascending offset.
    pieces: Vec<RamPiece>,
    mirror: Option<Mirror>,
    layers: Option<Layers>,
    /// What may be other than zero, where that is known.
    data: Option<Vec<Range<FileOffset>>>,
    writable: bool,
}

impl Ram {
    /// The RAM of a VM that may be running: later reads see what the guest writes.
    pub fn shared(file: &File, layout: RamLayout) -> Result<Self, MemoryError> {
        Self::shared_in(vec![RamPiece::whole(file, &layout)?], layout)
    }

    /// The same with RAM in several files, which ascend and do not overlap.
    pub fn shared_in(pieces: Vec<RamPiece>, layout: RamLayout) -> Result<Self, MemoryError> {
        let mapping = Mapping::shared(checked_len(&pieces, &layout)?, &pieces)?;
        Ok(Self { mapping, layout, pieces, mirror: None, layers: None, data: None, writable: false })
    }

    /// A copy-on-write view of a RAM file: [`Ram::poke`] changes this view and never the file.
    pub fn private(file: &File, layout: RamLayout) -> Result<Self, MemoryError> {
        let pieces = vec![RamPiece::whole(file, &layout)?];
        let mapping = Mapping::private(checked_len(&pieces, &layout)?, &pieces)?;
        Ok(Self { mapping, layout, pieces, mirror: None, layers: None, data: None, writable: true })
    }

    /// The RAM of a VM that may be running, in the memory of its process. It is copied as it is read, and what
    /// was read is not read again before [`Ram::refresh`].
    pub fn of_process(ram: ProcessRam, layout: RamLayout) -> Result<Self, MemoryError> {
        let mapping = Mapping::sparse(usize::try_from(layout.file_len()).map_err(io::Error::other)?)?;
        let mirror = Mirror::new(ram, &mapping)?;
        Ok(Self {
            mapping,
            layout,
            pieces: Vec::new(),
            mirror: Some(mirror),
            layers: None,
            data: None,
            writable: false,
        })
    }

    /// Forgets what was copied from a process: call it after each stop of the VM, and before each look at a
    /// running one. Other sources are always read as they are.
    pub fn refresh(&self) {
        if let Some(mirror) = &self.mirror {
            mirror.refresh();
        }
    }

    /// The same, and gives back the memory that the copy takes.
    pub fn release(&self) {
        if let Some(mirror) = &self.mirror {
            mirror.release(&self.mapping);
        }
    }

    /// Does some work on a VM that stands still. Meanwhile what was copied from its process before the last
    /// [`Ram::refresh`] is copied again, ahead of the work. Worth it for work that was done before.
    pub fn fetching<T>(&self, work: impl FnOnce() -> T) -> T {
        match &self.mirror {
            Some(mirror) => mirror.fetching(&self.mapping, work),
            None => work(),
        }
    }

    /// Whether everything so far could be read. [`Ram::word`] has no error of its own, so whoever concludes
    /// something from what was read asks this first.
    pub fn check(&self) -> Result<(), MemoryError> {
        self.mirror.as_ref().map_or(Ok(()), Mirror::check)
    }

    /// A copy of RAM, by its file offsets, and what of it may be other than zero, if that is known.
    pub(crate) fn staged(
        mapping: Mapping,
        layout: RamLayout,
        data: Option<Vec<Range<FileOffset>>>,
    ) -> Result<Self, MemoryError> {
        let (found, needed) = (mapping.len() as u64, layout.file_len());
        if found < needed {
            return Err(MemoryError::Short { found, needed });
        }
        Ok(Self { mapping, layout, pieces: Vec::new(), mirror: None, layers: None, data, writable: true })
    }

    /// A copy of which some parts, which consist of pages, are in files that nobody changes, each at the same offset. What else it
    /// holds stays as it is.
    pub fn over(mut self, parts: Vec<(File, Vec<Range<FileOffset>>)>) -> Result<Self, MemoryError> {
        self.layers = Some(Layers::new(self.mapping.len(), parts)?);
        Ok(self)
    }

    /// Zeroed RAM that belongs to no VM, to be filled by [`Ram::poke`].
    pub fn zeroed(layout: RamLayout) -> Result<Self, MemoryError> {
        let len = usize::try_from(layout.file_len()).map_err(io::Error::other)?;
        Ok(Self {
            mapping: Mapping::anonymous(len)?,
            layout,
            pieces: Vec::new(),
            mirror: None,
            layers: None,
            data: None,
            writable: true,
        })
    }

    /// Where the guest's RAM stands.
    #[must_use]
    pub fn layout(&self) -> &RamLayout {
        &self.layout
    }

    /// Copies guest memory out.
    pub fn read(&self, gpa: Gpa, out: &mut [u8]) -> Result<(), MemoryError> {
        let len = out.len();
        let at = self.position(gpa, len).ok_or(MemoryError::NotRam { gpa, len })?;
        if self.copy(at, out) {
            return Ok(());
        }
        self.check()?;
        Err(MemoryError::NotRam { gpa, len })
    }

    /// Copies one frame out.
    pub fn read_frame(&self, gfn: Gfn, out: &mut [u8; PAGE_SIZE]) -> Result<(), MemoryError> {
        self.read(gfn.gpa(), out)
    }

    /// An aligned little-endian word, or `None` where there is no RAM.
    #[must_use]
    #[inline]
    pub fn word(&self, gpa: Gpa) -> Option<u64> {
        let at = self.position(gpa, 8)?;
        if let Some(layers) = &self.layers {
            return layers.word(&self.mapping, at);
        }
        let is_here = self.mirror.as_ref().is_none_or(|mirror| mirror.bring(&self.mapping, at, 8));
        if is_here { self.mapping.word(at) } else { None }
    }

    /// Copies bytes out of the RAM file by its own offsets; `false` past its end, or if they cannot be read.
    #[must_use]
    pub fn read_file(&self, offset: FileOffset, out: &mut [u8]) -> bool {
        usize::try_from(offset.0).is_ok_and(|at| self.copy(at, out))
    }

    /// The same bytes without copying them, where they are memory of a copy ([`Staging::into_ram`](crate::Staging)).
    #[must_use]
    pub fn staged_bytes(&self, part: &Range<u64>) -> Option<&[u8]> {
        let part = usize::try_from(part.start).ok()?..usize::try_from(part.end).ok()?;
        if self.layers.as_ref().is_some_and(|layers| !layers.are_own(&part)) {
            return None;
        }
        self.mapping.own(part.start, part.end.checked_sub(part.start)?)
    }

    /// Length of the RAM file in bytes.
    #[must_use]
    pub fn file_len(&self) -> u64 {
        self.mapping.len() as u64
    }

    /// The parts of the RAM file that hold data, ascending; what lies between reads as zeros.
    ///
    /// Reading a hole of a shared file on tmpfs through a mapping would allocate it, and asking
    /// the file system chunk by chunk is slow there: ask once, then read only these parts.
    #[must_use]
    pub fn populated(&self) -> Vec<Range<FileOffset>> {
        if let Some(data) = &self.data {
            return data.clone();
        }
        let parts = match &self.mirror {
            None if !self.pieces.is_empty() => return pieces::populated(&self.pieces),
            None => whole(self.file_len()),
            Some(mirror) => mirror.populated(self.mapping.len()),
        };
        parts.into_iter().map(|part| FileOffset(part.start)..FileOffset(part.end)).collect()
    }

    /// The same when `earlier` was the answer a while ago: quick where not much has changed.
    #[must_use]
    pub fn populated_since(&self, earlier: &[Range<FileOffset>]) -> Vec<Range<FileOffset>> {
        if self.pieces.is_empty() { self.populated() } else { pieces::populated_since(&self.pieces, earlier) }
    }

    /// Enters a part of the RAM file into this process's page tables, so that reading it soon takes no faults:
    /// worth its time before a VM is stopped to be read. Reading a hole of tmpfs allocates it, so the part must be
    /// populated. Kernels before 5.14 refuse; nothing depends on it. A copy of a process's memory has nothing to enter.
    pub fn prefault(&self, part: &Range<FileOffset>) -> io::Result<()> {
        if self.mirror.is_some() {
            return Ok(());
        }
        let start = usize::try_from(part.start.0).map_err(io::Error::other)?;
        let end = usize::try_from(part.end.0).map_err(io::Error::other)?.min(self.mapping.len());
        if start < end { self.mapping.prefault(start, end - start) } else { Ok(()) }
    }

    /// The same with what is not populated, which fills the holes of a shared file: for a VM whose QEMU is about to
    /// fill them itself, and had better not do it while the VM stands still.
    pub fn fill_in(&self) -> io::Result<()> {
        if self.mirror.is_some() { Ok(()) } else { self.mapping.prefault(0, self.mapping.len()) }
    }

    /// Takes a VM's own memory out of this process's page tables, when little of it will be read any more: what
    /// would take time when the process ends can be done beside other work. Nothing depends on it.
    pub fn unmap_pages(&self) {
        if self.mirror.is_none() && !self.writable {
            let _ = self.mapping.unmap_pages();
        }
    }

    /// Every frame that may hold data, by the order of the RAM file.
    ///
    /// Whoever looks at all of them would have a copy of a whole process's memory in the end, so what was read is
    /// [released](Ram::release) now and then.
    pub fn populated_frames(&self) -> impl Iterator<Item = Gfn> + '_ {
        const PAGE: u64 = PAGE_SIZE as u64;
        const MOST: u64 = (256 << 20) / PAGE;
        let mut seen = 0;
        let frames = self.populated().into_iter().flat_map(move |part| {
            (part.start.0 / PAGE..part.end.0.div_ceil(PAGE))
                .filter_map(|page| self.layout.gpa_of(FileOffset(page * PAGE)))
                .map(Gpa::gfn)
        });
        frames.inspect(move |_| {
            seen += 1;
            if seen % MOST == 0 {
                self.release();
            }
        })
    }

    /// Overwrites memory of a private or zeroed `Ram`.
    ///
    /// # Panics
    /// On the memory of a VM ([`Ram::shared`], [`Ram::of_process`]): a VM's memory is only ever read.
    pub fn poke(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), MemoryError> {
        assert!(self.writable, "the memory of a VM is only read");
        let len = bytes.len();
        let at = self.position(gpa, len).ok_or(MemoryError::NotRam { gpa, len })?;
        if self.mapping.write(at, bytes) { Ok(()) } else { Err(MemoryError::NotRam { gpa, len }) }
    }

    /// Makes a part of the RAM file zero, in memory of which [`Ram::poke`] may change something.
    ///
    /// # Panics
    /// As [`Ram::poke`].
    pub fn clear(&mut self, part: &Range<FileOffset>) {
        const ZEROS: [u8; PAGE_SIZE] = [0; PAGE_SIZE];
        assert!(self.writable, "the memory of a VM is only read");
        let whole = self.mapping.len();
        let place = |offset: FileOffset| usize::try_from(offset.0).unwrap_or(usize::MAX).min(whole);
        for at in (place(part.start)..place(part.end)).step_by(PAGE_SIZE) {
            let len = PAGE_SIZE.min(place(part.end) - at);
            let _ = self.mapping.write(at, ZEROS.get(..len).unwrap_or(&ZEROS)); // inside, as it was just cut
        }
    }

    #[inline]
    fn copy(&self, at: usize, out: &mut [u8]) -> bool {
        match (&self.mirror, &self.layers) {
            (Some(mirror), _) => mirror.read(&self.mapping, at, out),
            (None, Some(layers)) => layers.read(&self.mapping, at, out),
            (None, None) => self.mapping.read(at, out),
        }
    }

    #[inline]
    fn position(&self, gpa: Gpa, len: usize) -> Option<usize> {
        usize::try_from(self.layout.offset_of(gpa, len as u64)?.0).ok()
    }
}

fn checked_len(pieces: &[RamPiece], layout: &RamLayout) -> Result<usize, MemoryError> {
    pieces.iter().try_for_each(RamPiece::check)?;
    usize::try_from(layout.file_len()).map_err(|e| io::Error::other(e).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RamRegion;
    use std::io::Write;

    #[test]
    fn a_shared_view_sees_later_writes_and_a_private_one_keeps_the_file() {
        let mut file = tempfile();
        file.write_all(&[0; 2 * PAGE_SIZE]).unwrap();
        let layout = RamLayout::flat(2 * PAGE_SIZE as u64).unwrap();
        let shared = Ram::shared(&file, layout.clone()).unwrap();
        let mut private = Ram::private(&file, layout).unwrap();
        private.poke(Gpa(8), &7_u64.to_le_bytes()).unwrap();
        assert_eq!(private.word(Gpa(8)), Some(7));
        assert_eq!(shared.word(Gpa(8)), Some(0), "a poke must not reach the file");
        std::os::unix::fs::FileExt::write_all_at(&file, &9_u64.to_le_bytes(), 16).unwrap();
        assert_eq!(shared.word(Gpa(16)), Some(9));
    }

    #[test]
    fn prefaulting_changes_nothing_and_fills_no_hole() {
        let file = tempfile();
        file.set_len(1 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"data", 512 << 10).unwrap();
        let ram = Ram::shared(&file, RamLayout::flat(1 << 20).unwrap()).unwrap();
        let before = ram.populated();
        for part in &before {
            ram.prefault(part).unwrap();
        }
        ram.prefault(&(FileOffset(2 << 20)..FileOffset(3 << 20))).unwrap();
        assert_eq!(ram.populated(), before);
        let mut bytes = [0; 4];
        ram.read(Gpa(512 << 10), &mut bytes).unwrap();
        assert_eq!(&bytes, b"data");
    }

    #[test]
    fn holes_are_filled_on_request_only() {
        let file = File::from(rustix::fs::memfd_create("ram", rustix::fs::MemfdFlags::empty()).unwrap());
        file.set_len(1 << 20).unwrap();
        let ram = Ram::shared(&file, RamLayout::flat(1 << 20).unwrap()).unwrap();
        assert_eq!(ram.populated(), []);
        ram.fill_in().unwrap();
        assert_eq!(ram.populated(), [FileOffset(0)..FileOffset(1 << 20)]);
        assert_eq!(ram.word(Gpa(4096)), Some(0));
    }

    #[test]
    fn holes_are_not_populated() {
        let file = tempfile();
        file.set_len(1 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"data", 512 << 10).unwrap();
        let ram = Ram::shared(&file, RamLayout::flat(1 << 20).unwrap()).unwrap();
        let frames: Vec<_> = ram.populated_frames().collect();
        assert!(frames.contains(&Gfn(128)));
        assert!(!frames.contains(&Gfn(0)) && !frames.contains(&Gfn(255)));
    }

    #[test]
    fn reads_outside_ram_are_errors() {
        let ram = Ram::zeroed(RamLayout::flat(PAGE_SIZE as u64).unwrap()).unwrap();
        let mut buf = [0; 16];
        assert!(ram.read(Gpa(PAGE_SIZE as u64 - 8), &mut buf).is_err());
        assert!(ram.read(Gpa(u64::MAX - 4), &mut buf).is_err());
        assert!(ram.read(Gpa(PAGE_SIZE as u64 - 16), &mut buf).is_ok());
        assert_eq!(ram.word(Gpa(4)), None, "an unaligned word is not read");
    }

    #[test]
    fn ram_in_several_files_is_one() {
        const MIB: u64 = 1 << 20;
        let file = |byte: u8| {
            let mut file = tempfile();
            file.write_all(&[byte; 1 << 20]).unwrap();
            file
        };
        let region = |gpa, len, offset| RamRegion { gpa: Gpa(gpa), len, offset: FileOffset(offset) };
        // The first file and half of the second, a hole, the other half: as with two NUMA nodes around a PCI hole.
        let half = MIB / 2;
        let layout = RamLayout::new(vec![
            region(0, MIB, 0),
            region(MIB, half, 2 * MIB),
            region(4 * MIB, half, 2 * MIB + half),
        ]);
        let pieces = || {
            let piece = |offset, byte| RamPiece { offset: FileOffset(offset), len: MIB, file: file(byte) };
            vec![piece(0, 1), piece(2 * MIB, 2)]
        };
        let layout = layout.unwrap();
        let ram = Ram::shared_in(pieces(), layout.clone()).unwrap();
        let byte = |gpa| ram.word(Gpa(gpa)).map(|word| word.to_le_bytes()[0]);
        assert_eq!([0, MIB, 4 * MIB].map(byte), [Some(1), Some(2), Some(2)]);
        assert_eq!([MIB + half, 4 * MIB + half].map(byte), [None, None]);
        let (first, second) = (FileOffset(0)..FileOffset(MIB), FileOffset(2 * MIB)..FileOffset(3 * MIB));
        assert_eq!(ram.populated(), [first, second]);
        let mut between = [7; 16];
        assert!(ram.read_file(FileOffset(2 * MIB - 8), &mut between));
        assert_eq!((&between[..8], &between[8..]), (&[0; 8][..], &[2; 8][..]));
        let short = pieces();
        short[1].file.set_len(half).unwrap();
        assert!(matches!(Ram::shared_in(short, layout), Err(MemoryError::Short { .. })));
    }

    #[test]
    fn a_short_file_is_refused() {
        let file = tempfile();
        let err = Ram::shared(&file, RamLayout::flat(PAGE_SIZE as u64).unwrap()).unwrap_err();
        assert!(matches!(err, MemoryError::Short { found: 0, .. }));
    }

    fn tempfile() -> File {
        tempfile::tempfile().unwrap()
    }
}
