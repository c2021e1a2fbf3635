//! The pages of files in the page cache: whether their content can go, and what makes the kernel read it again.
//!
//! ```text
//! folio: flags (locked, writeback, dirty, uptodate), references, private ─┬─> buffer_head ─> b_this_page ─┐
//!                                                                         │        └──────── ring <───────┘
//!                                                                         └─> iomap_folio_state: a bit for each block
//! ```
//! A clean page is a copy of what is on disk. With the marks that say "read" taken from it, the kernel reads it
//! again before anybody sees it. Who was past these marks when the guest stopped holds a reference.

use crate::layout::layout;
use crate::page::{Raw, UNMAPPED};
use crate::view::WordEdit;
use crate::{CacheForm, CachedFile, Kernel, KernelError};
use elision_memory::{Gfn, Gva, PAGE_SIZE};
use std::collections::{BTreeMap, BTreeSet};

layout! {
    pub(crate) struct FolioLayout {
        private: offset("page", &["private"]),
        large_mapcount: optional("folio", &["_large_mapcount"]),
        uptodate: enumerator("PG_uptodate"),
        dirty: enumerator("PG_dirty"),
        // Pages that a file system has work of its own with.
        in_work: enumerator("PG_private_2"),
        has_private: enumerator("PG_private"),
        buffer_state: offset("buffer_head", &["b_state"]),
        next_buffer: offset("buffer_head", &["b_this_page"]),
        page_of_buffer: offset("buffer_head", &["b_page", "b_folio"]),
        buffer_uptodate: enumerator("BH_Uptodate"),
        buffer_dirty: enumerator("BH_Dirty"),
        buffer_lock: enumerator("BH_Lock"),
        buffer_reads: enumerator("BH_Async_Read"),
        buffer_writes: enumerator("BH_Async_Write"),
        buffer_delay: enumerator("BH_Delay"),
        buffer_journal: enumerator("BH_JBD"),
        blocks: optional("iomap_folio_state", &["state"]),
        old_blocks: optional("iomap_page", &["uptodate"]),
    }
}

const WHAT: &str = "page of a file";
const SECTOR_BITS: u8 = 9;

/// A page, or several that are one, in the page cache of a file on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folio {
    /// Its frames.
    pub frames: std::ops::Range<u64>,
    /// What can be done with its content.
    pub state: FolioState,
}

/// What can be done with the content of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FolioState {
    /// It is also on disk, and read again with these changes.
    Clean(Vec<WordEdit>),
    /// It is not on disk yet.
    Dirty,
    /// Somebody works with it.
    Busy(&'static str),
    /// It is kept track of in an unknown way.
    Unknown,
}

impl Kernel<'_> {
    /// Whether the kernel's btrfs keeps nothing that outlives the mark on a page. Up to Linux 6.4 it notes in a
    /// tree of its own, of which only the module has the types, which bytes were read; the name below is of 6.6.
    pub(crate) fn tracks_pages_only(&self) -> bool {
        self.profile.folios.blocks.is_some()
    }

    /// The pages of a file on disk. `budget` bounds frames and tree nodes, over all calls that share it.
    pub fn folios(
        &self,
        file: &CachedFile,
        form: CacheForm,
        batches: &BTreeMap<Gfn, u32>,
        budget: &mut u64,
    ) -> Result<Vec<Folio>, KernelError> {
        let mut folios = Vec::new();
        // Older kernels enter a large page at each of its places.
        let heads: BTreeSet<Gfn> = self.cached_entries(file.mapping, budget)?.0.into_iter().collect();
        for head in heads {
            let frames = self.compound_frames(head)?;
            let held = batches.get(&head).copied().unwrap_or(0);
            let state = self.folio_state(head, &frames, file, form, held)?;
            folios.push(Folio { frames, state });
        }
        Ok(folios)
    }

    fn folio_state(
        &self,
        head: Gfn,
        frames: &std::ops::Range<u64>,
        file: &CachedFile,
        form: CacheForm,
        held: u32,
    ) -> Result<FolioState, KernelError> {
        let (layout, page) = (&self.profile.folios, &self.profile.page);
        let raw = self.raw_page(head)?;
        if page.is_locked(&raw) {
            return Ok(FolioState::Busy("a page of it is locked"));
        }
        if page.is_written_back(&raw) || page.has(&raw, layout.dirty) {
            return Ok(FolioState::Dirty);
        }
        if page.has(&raw, layout.in_work) {
            return Ok(FolioState::Busy("its file system works with a page of it"));
        }
        let private = if page.has(&raw, layout.has_private) { Gva(raw.u64(layout.private)) } else { Gva(0) };
        let size = (frames.end - frames.start) * PAGE_SIZE as u64;
        let mut edits = match form {
            _ if private.0 == 0 => Vec::new(),
            CacheForm::Buffers => match self.buffers(private, head, size)? {
                Buffers::Clean(edits) => edits,
                Buffers::Dirty => return Ok(FolioState::Dirty),
                Buffers::Busy => return Ok(FolioState::Busy("a block of it is being read or written")),
            },
            CacheForm::Iomap => match self.block_marks(private, size, file.block_bits)? {
                Some(edits) => edits,
                None => return Ok(FolioState::Unknown),
            },
            CacheForm::Btrfs if private.0 == 1 => Vec::new(),
            _ => return Ok(FolioState::Unknown),
        };
        let expected = u64::from(self.mapped(&raw, frames)?)
            + (frames.end - frames.start)
            + u64::from(private.0 != 0)
            + u64::from(held);
        if u64::from(page.counts(&raw).references) != expected {
            return Ok(FolioState::Busy("a page of it is in use"));
        }
        if let Some(bit) = layout.uptodate.filter(|&bit| bit < 64) {
            let flags = raw.u64(page.flags);
            edits.push(WordEdit::u64(self.page_of(head).wrapping_add(page.flags), flags & !(1 << bit)));
            return Ok(FolioState::Clean(edits));
        }
        Ok(FolioState::Unknown)
    }

    /// How many page-table entries map a folio.
    fn mapped(&self, head: &Raw, frames: &std::ops::Range<u64>) -> Result<u32, KernelError> {
        let count = |raw: &Raw| self.profile.page.counts(raw).mapped.wrapping_sub(UNMAPPED);
        if frames.end - frames.start == 1 {
            return Ok(count(head));
        }
        if let Some(offset) = self.profile.folios.large_mapcount {
            let at = self.page_of(Gfn(frames.start)).wrapping_add(offset);
            return Ok(self.u32(at, WHAT)?.wrapping_sub(UNMAPPED));
        }
        let mut total = count(head);
        for tail in (frames.start + 1..frames.end).map(Gfn) {
            total = total.wrapping_add(count(&self.raw_page(tail)?));
        }
        Ok(total)
    }

    /// The ring of buffers of a page.
    fn buffers(&self, first: Gva, head: Gfn, size: u64) -> Result<Buffers, KernelError> {
        let layout = &self.profile.folios;
        let mask = |bits: &[Option<u64>]| {
            bits.iter().flatten().filter(|&&bit| bit < 64).fold(0_u64, |mask, bit| mask | 1 << bit)
        };
        let busy = mask(&[layout.buffer_lock, layout.buffer_reads, layout.buffer_writes]);
        let dirty = mask(&[layout.buffer_dirty, layout.buffer_delay, layout.buffer_journal]);
        let uptodate = mask(&[layout.buffer_uptodate]);
        let torn = |at, why| KernelError::Torn { what: WHAT, at, why };
        let (mut at, mut edits) = (first, Vec::new());
        for _ in 0..size >> SECTOR_BITS {
            if self.pointer(at.wrapping_add(layout.page_of_buffer), WHAT)? != self.page_of(head) {
                return Err(torn(at, "a buffer belongs to another page"));
            }
            let state = self.u64(at.wrapping_add(layout.buffer_state), WHAT)?;
            if state & busy != 0 {
                return Ok(Buffers::Busy);
            }
            if state & dirty != 0 {
                return Ok(Buffers::Dirty);
            }
            if state & uptodate != 0 {
                edits.push(WordEdit::u64(at.wrapping_add(layout.buffer_state), state & !uptodate));
            }
            at = self.pointer(at.wrapping_add(layout.next_buffer), WHAT)?;
            if at == first {
                return Ok(Buffers::Clean(edits));
            }
        }
        Err(torn(first, "the ring of its buffers does not end"))
    }

    /// Clears the bits of the blocks that were read; those of dirty blocks stand behind them.
    fn block_marks(
        &self,
        state: Gva,
        size: u64,
        block_bits: u8,
    ) -> Result<Option<Vec<WordEdit>>, KernelError> {
        let layout = &self.profile.folios;
        let Some(offset) = layout.blocks.or(layout.old_blocks) else { return Ok(None) };
        if !(SECTOR_BITS..=20).contains(&block_bits) {
            return Ok(None);
        }
        let (mut blocks, mut at, mut edits) = (size >> block_bits, state.wrapping_add(offset), Vec::new());
        while blocks > 0 {
            let here = blocks.min(64);
            let word = self.u64(at, WHAT)?;
            let kept = if here == 64 { 0 } else { word >> here << here };
            edits.push(WordEdit::u64(at, kept));
            at = at.wrapping_add(8);
            blocks -= here;
        }
        Ok(Some(edits))
    }
}

/// What the buffers of a page say.
enum Buffers {
    Clean(Vec<WordEdit>),
    Dirty,
    Busy,
}
