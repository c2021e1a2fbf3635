//! Takes a cached page out of page tables in the copy, as reclaim does (`mm/rmap.c`): who touches it next faults, and
//! gets what is read from the file.
//!
//! ```text
//! page-table entry := 0     page: _mapcount - n, _refcount - n     mm: file pages - n
//! ```
//! The statistics of how much is mapped stay as they are, which nothing depends on.

use crate::layout::layout;
use crate::view::WordEdit;
use crate::{Entry, Kernel, KernelError, Mm, Pte};
use elision_memory::{Budget, Gfn, Gpa, LeafSize, Node};
use std::collections::{BTreeMap, BTreeSet};

layout! {
    pub(crate) struct UnmapLayout {
        // One counter of each kind; in newer kernels each is a structure.
        counters: optional("mm_struct", &["rss_stat"]),
        old_counters: optional("mm_struct", &["rss_stat.count"]),
        counter: optional("percpu_counter", &["count"]),
        file_pages: enumerator("MM_FILEPAGES"),
        mlocked: enumerator("PG_mlocked"),
    }
}

const WHAT: &str = "mapping of a file";
const DIRTY: u64 = 1 << 6;

/// Pages to be taken out of page tables.
#[derive(Clone, Debug, Default)]
pub struct Unmapping {
    /// Pages that can be, each with how many entries map it.
    pub found: BTreeMap<Gfn, u32>,
    /// Pages that cannot be: locked into memory, or part of a larger mapping.
    pub stuck: BTreeSet<Gfn>,
    /// Pages that were written to through a mapping.
    pub dirty: BTreeSet<Gfn>,
    entries: Vec<Gpa>,
    counters: Vec<WordEdit>,
}

impl Unmapping {
    /// How many entries map the pages.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.entries.len()
    }
}

impl Kernel<'_> {
    /// Looks for entries that map `pages`, each a page of its own, in one address space.
    pub fn find_mappings(
        &self,
        mm: &Mm,
        pages: &BTreeSet<Gfn>,
        budget: &Budget,
        unmapping: &mut Unmapping,
    ) -> Result<(), KernelError> {
        let swap_areas = self.swap_areas()?;
        let (mut table, mut removed) = (Gpa(0), 0_u64);
        mm.tables.walk_nodes(self.ram, mm.tables.user_range(), budget, |node| {
            let leaf = match node {
                Node::Table(at) => {
                    table = at;
                    return;
                }
                Node::Leaf(leaf) => leaf,
            };
            let Pte::Memory(gpa) = Entry::of(leaf, swap_areas).pte else { return };
            let first = gpa.gfn();
            if leaf.size != LeafSize::Size4K {
                let end = Gfn(first.0.saturating_add(leaf.size.frames()));
                unmapping.stuck.extend(pages.range(first..end));
            } else if pages.contains(&first) {
                if leaf.entry & DIRTY != 0 {
                    unmapping.dirty.insert(first);
                }
                *unmapping.found.entry(first).or_default() += 1;
                unmapping.entries.push(table.wrapping_add(8 * (leaf.gva.0 >> 12 & 511)));
                removed += 1;
            }
        })?;
        if removed > 0 {
            unmapping.counters.push(self.fewer_file_pages(mm, removed)?);
        }
        Ok(())
    }

    fn fewer_file_pages(&self, mm: &Mm, removed: u64) -> Result<WordEdit, KernelError> {
        let layout = &self.profile.unmap;
        let newer = layout.counters.zip(layout.counter).map(|(counters, counter)| counters + counter);
        let first = layout.file_pages == Some(0);
        let unknown =
            KernelError::Torn { what: WHAT, at: mm.addr, why: "its pages are counted in an unknown way" };
        let at = mm.addr.wrapping_add(layout.old_counters.or(newer).filter(|_| first).ok_or(unknown)?);
        Ok(WordEdit::u64(at, self.u64(at, WHAT)?.wrapping_sub(removed)))
    }

    /// Whether a page of a file is kept in memory on request of a process.
    pub fn is_locked_into_memory(&self, gfn: Gfn) -> Result<bool, KernelError> {
        Ok(self.profile.page.has(&self.raw_page(gfn)?, self.profile.unmap.mlocked))
    }

    /// What takes all that was found out of the page tables.
    pub fn unmap(&self, unmapping: &Unmapping) -> Result<Vec<WordEdit>, KernelError> {
        let layout = &self.profile.page;
        let mut edits = unmapping.counters.clone();
        edits.extend(unmapping.entries.iter().map(|at| WordEdit::u64(self.direct_address(*at), 0)));
        for (gfn, entries) in &unmapping.found {
            let (page, counts) = (self.page_of(*gfn), layout.counts(&self.raw_page(*gfn)?));
            let fewer = |count: u32| count.wrapping_sub(*entries);
            edits.push(WordEdit::u32(page.wrapping_add(layout.mapcount), fewer(counts.mapped)));
            edits.push(WordEdit::u32(page.wrapping_add(layout.refcount), fewer(counts.references)));
        }
        Ok(edits)
    }
}
