//! Marked memory of processes that stay: dropped, so that they read zeros there after a restore.
//!
//! | mark | what is dropped |
//! |---|---|
//! | a memfd named `elision:...`, secret memory | all pages of the file, mapped or not, whoever maps it |
//! | an area named `elision:...` or with `MADV_DONTDUMP` | what it maps of private memory and huge pages; the part of a shared memory object that it covers |
//!
//! A page that a process which stays maps outside of marked memory too (after a fork, say) is refused: it can
//! neither stay nor go. So is what is in swap or has a copy there, as the process would read it again from its
//! disk. Pages of files and of the kernel in marked areas stay. What the process has of the data elsewhere
//! (registers, stacks, pipes) is not marked, and stays.

use crate::frame_table::FrameTable;
use crate::frames::FrameSurvey;
use crate::select::Arguments;
use crate::{DropReason, PlanError, PlanSummary};
use elision_kernel::{Kernel, PageKind, Process, Vma};
use elision_memory::{Budget, Gfn, Gva, PAGE_SIZE};
use elision_policy::{Policy, Region};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// One kind of mark, and the processes of which it counts.
#[derive(Clone, Debug)]
pub struct RegionRule {
    /// The kind of mark.
    pub region: Region,
    /// Process ids.
    pub pids: BTreeSet<u32>,
    /// The selector as the user wrote it.
    pub selector: String,
    /// Whether it may match nothing.
    pub optional: bool,
}

/// The rules of a policy. `excluded` processes are left out as a whole.
pub(crate) fn rules(
    policy: &Policy,
    processes: &[Process],
    excluded: &BTreeSet<u32>,
    arguments: &Arguments,
) -> Vec<RegionRule> {
    let rule = |(selector, region): (&elision_policy::Selector, Region)| {
        let stays =
            processes.iter().filter(|p| p.mm.is_some() && !p.kernel_thread && !excluded.contains(&p.pid));
        let pids = stays.filter(|p| selector.is_about(&arguments.facts(p))).map(|p| p.pid).collect();
        RegionRule { region, pids, selector: selector.to_string(), optional: selector.optional }
    };
    policy.regions().map(rule).collect()
}

/// What is marked, as it is found.
pub(crate) struct Regions<'s> {
    rules: &'s [RegionRule],
    processes: &'s [Process],
    matched: BTreeSet<usize>,
    /// Address spaces in which marks may count, each with a process that they are of.
    spaces: BTreeMap<Gva, u32>,
    /// Marked frames by their mappings: of which process, and whether on hugetlbfs.
    frames: BTreeMap<Gfn, (u32, bool)>,
    /// Whole objects, each with a process, and whether on hugetlbfs.
    objects: BTreeMap<Gva, (u32, bool)>,
    /// Shared memory objects of which parts are marked: which pages, by which process.
    parts: BTreeMap<Gva, Vec<(Range<u64>, u32)>>,
    /// KiB of each process that cannot be left out, with the reason.
    left: BTreeMap<(u32, &'static str), u64>,
}

const IN_SWAP: &str =
    "in swap, which stays on the guest's disk; `swapoff` in the guest brings it back into memory";
const IN_SWAP_TOO: &str = "with a copy in swap, which stays on the guest's disk; `swapoff` in the guest frees it, `mlock` keeps memory out of it";
const ELSEWHERE: &str = "that another process, which stays, maps outside of marked memory; mark it there as well, or write to it anew";

/// The marked areas of one address space.
pub(crate) struct MarkedAreas {
    pub(crate) pid: u32,
    areas: Vec<Vma>,
}

impl MarkedAreas {
    /// Whether an address is marked, and on hugetlbfs.
    pub(crate) fn at(&self, gva: Gva) -> Option<bool> {
        let i = self.areas.partition_point(|vma| vma.range.start <= gva).checked_sub(1)?;
        self.areas.get(i).filter(|vma| gva < vma.range.end).map(Vma::is_hugetlb)
    }
}

impl<'s> Regions<'s> {
    pub(crate) fn new(rules: &'s [RegionRule], processes: &'s [Process]) -> Self {
        let is_meant = |pid: u32| rules.iter().any(|rule| rule.pids.contains(&pid));
        let marking = processes.iter().rev().filter(|process| is_meant(process.pid));
        Self {
            rules,
            processes,
            matched: BTreeSet::new(),
            // Of those that share one, the first.
            spaces: marking.filter_map(|process| Some((process.mm?, process.pid))).collect(),
            frames: BTreeMap::new(),
            objects: BTreeMap::new(),
            parts: BTreeMap::new(),
            left: BTreeMap::new(),
        }
    }

    /// Whether nothing is asked for.
    pub(crate) fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Which rules are about a process.
    fn rules_for(&self, pid: u32) -> impl Iterator<Item = (usize, Region)> + use<'s> {
        let rules = self.rules.iter().enumerate();
        rules.filter(move |(_, rule)| rule.pids.contains(&pid)).map(|(i, rule)| (i, rule.region))
    }

    /// Whether marks count in an address space.
    pub(crate) fn are_marked_by(&self, addr: Gva) -> bool {
        self.spaces.contains_key(&addr)
    }

    /// The marked ones of an address space's areas. Whole objects behind them are noted.
    pub(crate) fn marked_areas(
        &mut self,
        kernel: &Kernel<'_>,
        addr: Gva,
        areas: &[Vma],
    ) -> Result<Option<MarkedAreas>, PlanError> {
        let Some(&pid) = self.spaces.get(&addr) else { return Ok(None) };
        let mut marked = Vec::new();
        for vma in areas {
            let mut is_marked = false;
            for (rule, region) in self.rules_for(pid) {
                let whole =
                    vma.file.map(|file| self.whole_object(kernel, file, region)).transpose()?.flatten();
                let by_area = match region {
                    Region::Named => kernel.is_marked_by_name(vma)?,
                    Region::Secretmem => false,
                    Region::Dontdump => vma.is_left_out_of_dumps(),
                };
                if let Some(object) = whole {
                    self.objects.entry(object).or_insert((pid, vma.is_hugetlb()));
                } else if by_area {
                    self.note_part(kernel, pid, vma)?;
                } else {
                    continue;
                }
                self.matched.insert(rule);
                is_marked = true;
            }
            if is_marked {
                marked.push(vma.clone());
            }
        }
        Ok(Some(MarkedAreas { pid, areas: marked }))
    }

    /// The object behind a file, if all of it is marked.
    fn whole_object(&self, kernel: &Kernel<'_>, file: Gva, region: Region) -> Result<Option<Gva>, PlanError> {
        Ok(match region {
            Region::Named if kernel.is_marked_memfd(file)? => kernel.file_mapping(file)?,
            // An area of secret memory is left out of dumps.
            Region::Secretmem | Region::Dontdump => kernel.secret_memory(file)?,
            Region::Named => None,
        })
    }

    /// Shared memory is marked by the pages of its object: not all of them need to be mapped.
    fn note_part(&mut self, kernel: &Kernel<'_>, pid: u32, vma: &Vma) -> Result<(), PlanError> {
        if vma.is_shared() && !vma.is_hugetlb() {
            if let Some(mapping) = kernel.vma_mapping(vma)? {
                let pages = (vma.range.end.0.saturating_sub(vma.range.start.0)) / PAGE_SIZE as u64;
                let end = vma.pgoff.saturating_add(pages);
                self.parts.entry(mapping).or_default().push((vma.pgoff..end, pid));
            }
        }
        Ok(())
    }

    /// Notes marked files that a process has open, mapped or not.
    pub(crate) fn open_files(
        &mut self,
        kernel: &Kernel<'_>,
        process: &Process,
        slots_left: &Budget,
    ) -> Result<(), PlanError> {
        let wanted: Vec<_> = self.rules_for(process.pid).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let mut files = Vec::new();
        kernel.for_each_file(process, slots_left, &mut |file| {
            files.push(file);
            Ok(())
        })?;
        for file in files {
            for (rule, region) in &wanted {
                if let Some(object) = self.whole_object(kernel, file, *region)? {
                    self.matched.insert(*rule);
                    self.objects.entry(object).or_insert((process.pid, kernel.is_hugetlb_file(file)?));
                }
            }
        }
        Ok(())
    }

    /// Notes a frame that a marked area maps.
    pub(crate) fn mark(&mut self, gfn: Gfn, pid: u32, hugetlb: bool) {
        self.frames.entry(gfn).or_insert((pid, hugetlb));
    }

    /// Notes pages that cannot be left out: in swap.
    pub(crate) fn swapped(&mut self, pid: u32, pages: u64) {
        self.stays(pid, IN_SWAP, pages);
    }

    fn stays(&mut self, pid: u32, why: &'static str, pages: u64) {
        if pages > 0 {
            *self.left.entry((pid, why)).or_default() += pages.saturating_mul(PAGE_SIZE as u64 / 1024);
        }
    }

    /// Drops what is marked. All processes that stay must have been looked at.
    pub(crate) fn drop_marked(
        mut self,
        survey: &mut FrameSurvey<'_, '_>,
        summary: &mut PlanSummary,
    ) -> Result<(), PlanError> {
        let FrameSurvey { kernel, table, cached_left, unaccounted, .. } = survey;
        self.check_matches()?;
        for (mapping, (pid, hugetlb)) in std::mem::take(&mut self.objects) {
            self.parts.remove(&mapping);
            self.drop_object(kernel, mapping, pid, hugetlb, table, cached_left)?;
        }
        for (mapping, parts) in std::mem::take(&mut self.parts) {
            self.mark_parts(kernel, mapping, &parts, cached_left)?;
        }
        self.drop_frames(kernel, table, summary)?;
        unaccounted.extend(self.left.iter().map(|((pid, why), kib)| {
            let comm = self.processes.iter().find(|p| p.pid == *pid).map_or("", |p| p.comm.as_str());
            format!("process {pid} ({comm}) has {kib} KiB of marked memory {why}")
        }));
        Ok(())
    }

    fn check_matches(&self) -> Result<(), PlanError> {
        let mut rules = self.rules.iter().enumerate();
        match rules.find(|(i, rule)| !rule.optional && !self.matched.contains(i)) {
            Some((_, rule)) => Err(PlanError::NoMatch { selector: rule.selector.clone() }),
            None => Ok(()),
        }
    }

    fn drop_object(
        &mut self,
        kernel: &Kernel<'_>,
        mapping: Gva,
        pid: u32,
        hugetlb: bool,
        table: &mut FrameTable,
        cached_left: &mut u64,
    ) -> Result<(), PlanError> {
        let is_whole = hugetlb || kernel.is_secret_memory(mapping)?;
        let (frames, swapped) = kernel.cached_frames(mapping, cached_left)?;
        self.stays(pid, IN_SWAP, swapped);
        for gfn in frames {
            if is_whole || kernel.page(gfn)?.kind == PageKind::SharedMemory {
                table.set_owner(gfn, pid);
                table.drop_frame(gfn, DropReason::Region);
            }
        }
        Ok(())
    }

    /// Marks the pages of an object that are in parts of it, mapped or not.
    fn mark_parts(
        &mut self,
        kernel: &Kernel<'_>,
        mapping: Gva,
        parts: &[(Range<u64>, u32)],
        cached_left: &mut u64,
    ) -> Result<(), PlanError> {
        let (frames, swapped) = kernel.cached_frames(mapping, cached_left)?;
        if let Some((_, pid)) = parts.first() {
            self.stays(*pid, IN_SWAP, swapped); // of the whole object: where each page belongs is not told
        }
        for gfn in frames {
            let index = kernel.page_index(gfn)?;
            if let Some((_, pid)) = parts.iter().find(|(range, _)| range.contains(&index)) {
                self.mark(gfn, *pid, false);
            }
        }
        Ok(())
    }

    fn drop_frames(
        &mut self,
        kernel: &Kernel<'_>,
        table: &mut FrameTable,
        summary: &mut PlanSummary,
    ) -> Result<(), PlanError> {
        let mut folios = BTreeSet::new();
        for (gfn, (pid, hugetlb)) in std::mem::take(&mut self.frames) {
            if table.is_dropped(gfn) {
                continue;
            }
            let page = kernel.page(gfn)?;
            let is_private = matches!(page.kind, PageKind::Anonymous | PageKind::Merged);
            let is_wanted = is_private || hugetlb || page.kind == PageKind::SharedMemory;
            let why = match page.kind {
                // The zero page, and what the kernel shows to processes of its own.
                PageKind::Reserved | PageKind::Other => None,
                PageKind::File if !is_wanted => {
                    *summary.kept_frames.entry("page cache of a file".to_owned()).or_default() += 1;
                    None
                }
                _ if table.is_kept(gfn) => Some(ELSEWHERE),
                _ if !hugetlb && kernel.is_in_swap_cache(page.head)? => Some(IN_SWAP_TOO),
                _ => {
                    table.set_owner(gfn, pid);
                    table.drop_frame(gfn, DropReason::Region);
                    if page.kind == PageKind::Anonymous {
                        folios.insert((page.head, pid));
                    }
                    continue;
                }
            };
            table.keep(gfn);
            if let Some(why) = why {
                self.stays(pid, why, 1);
            }
        }
        // What was given back of a large folio is in no page table and still there.
        for (head, pid) in folios {
            table.drop_rest_of_folio(kernel, head, DropReason::Region, pid)?;
        }
        Ok(())
    }
}
