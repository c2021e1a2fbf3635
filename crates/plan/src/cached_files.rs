//! What the guest caches of files: left out by the path of a file, or because only excluded processes use it.
//!
//! | file | its pages |
//! |---|---|
//! | on a disk, clean | dropped, and marked so that the restored kernel reads them from the disk again |
//! | on a disk, not written yet | in the way: waited for, or refused by name |
//! | in memory only (tmpfs) | dropped if a selector names the file: it reads as zeros |
//! | on a file system that is not known | refused by name |
//!
//! A page that a process which stays maps is taken out of its page tables if a selector names its file, and stays
//! otherwise. It is refused if it is one of a large page, or locked into memory. A file whose name the kernel has
//! forgotten can be any file: its clean pages are dropped too, which harms nobody.

use crate::frames::FrameSurvey;
use crate::threads::Edits;
use crate::{DropReason, EditReason, PlanError, Selection};
use elision_kernel::{
    CacheForm, CachedFile, FileSystem, FolioState, Kernel, KernelError, Unmapping, WordEdit,
};
use elision_memory::{Budget, Gfn, Gva, PAGE_SIZE};
use elision_policy::{Cache, Dirty, PathGlob, Policy};
use std::collections::{BTreeMap, BTreeSet};

/// An inode takes more than this of memory.
const FILES_IN_FRAME: u64 = 16;
/// A refusal names no more files than these.
const NAMED: usize = 20;

/// Which files' caches are left out.
#[derive(Clone, Debug, Default)]
pub struct FileRules {
    named: Vec<NamedFiles>,
    private: bool,
    wait: bool,
}

/// Files chosen by path.
#[derive(Clone, Debug)]
struct NamedFiles {
    glob: PathGlob,
    selector: String,
    optional: bool,
}

impl FileRules {
    pub(crate) fn of(policy: &Policy) -> Self {
        let named = policy.files().map(|(selector, glob)| NamedFiles {
            glob: glob.clone(),
            selector: selector.to_string(),
            optional: selector.optional,
        });
        Self {
            named: named.collect(),
            private: policy.save.cache() == Cache::Exclude,
            wait: policy.save.dirty() == Dirty::Wait,
        }
    }

    /// Whether nothing is left out of the page cache.
    pub(crate) fn is_empty(&self) -> bool {
        self.named.is_empty() && !self.private
    }
}

/// Why a file's cache is left out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// A selector names it.
    Named,
    /// It has no name any more.
    Nameless,
    /// Only excluded processes use it; one of them.
    Private(u32),
    /// Only those of its pages that an excluded cgroup is charged for.
    Charged,
}

/// Leaves out what the policy asks for of the page cache.
pub(crate) fn survey<'a, 'k>(
    kernel: &'a Kernel<'k>,
    selection: &Selection,
    edits: &mut Edits<'a, 'k>,
    frames: &mut FrameSurvey<'a, 'k>,
    best_effort: bool,
) -> Result<(), PlanError> {
    let rules = &selection.files;
    if rules.is_empty() {
        return Ok(());
    }
    let private = if rules.private { private_mappings(kernel, selection, frames)? } else { BTreeMap::new() };
    let charged = if rules.private { charged_groups(kernel, selection)? } else { BTreeMap::new() };
    let mut survey = Survey {
        kernel,
        edits,
        frames,
        charged,
        matched: BTreeSet::new(),
        dirty: BTreeMap::new(),
        mapped: BTreeMap::new(),
    };
    let batches = kernel.batch_references()?;
    let file_systems = kernel.file_systems()?;
    let stacks = kernel.stacks(&file_systems)?;
    let mut budget = kernel.ram().layout().frame_limit().0.saturating_mul(FILES_IN_FRAME);
    for file_system in &file_systems {
        let mut files = Vec::new();
        kernel.for_each_cached_file(file_system, &mut budget, &mut |file| {
            files.push(file);
            Ok(())
        })?;
        for file in files {
            let names = kernel.names_of_file(file_system, &file, &stacks)?;
            let wanted = survey.wanted(rules, &private, file_system, &file, &names);
            if let Some(wanted) = wanted {
                let name = names.first().map_or("a file without a name", String::as_str);
                survey.leave_out(file_system, &file, wanted, name, &batches)?;
            }
        }
    }
    survey.unmap(selection)?;
    let Survey { matched, dirty, .. } = survey;
    if let Some((_, missed)) =
        rules.named.iter().enumerate().find(|(i, rule)| !rule.optional && !matched.contains(i))
    {
        return Err(PlanError::NoMatch { selector: missed.selector.clone() });
    }
    if !dirty.is_empty() {
        let more = dirty.len().saturating_sub(NAMED);
        let mut files: Vec<String> =
            dirty.iter().take(NAMED).map(|(name, bytes)| format!("{name} ({} KiB)", bytes / 1024)).collect();
        if more > 0 {
            files.push(format!("{more} more"));
        }
        if !best_effort {
            return Err(PlanError::Dirty { files, wait: rules.wait });
        }
        frames.unaccounted.push(format!("cached and not yet written to its disk: {}", files.join(", ")));
    }
    Ok(())
}

struct Survey<'s, 'a, 'k> {
    kernel: &'a Kernel<'k>,
    edits: &'s mut Edits<'a, 'k>,
    frames: &'s mut FrameSurvey<'a, 'k>,
    /// Memory cgroups of excluded processes, each with one of them.
    charged: BTreeMap<Gva, u32>,
    /// Which rules have matched something.
    matched: BTreeSet<usize>,
    /// Bytes that are not on disk yet, by file.
    dirty: BTreeMap<String, u64>,
    /// Pages that processes which stay map, each with its file and the marks to be taken from it.
    mapped: BTreeMap<Gfn, (String, Vec<WordEdit>)>,
}

impl Survey<'_, '_, '_> {
    fn wanted(
        &mut self,
        rules: &FileRules,
        private: &BTreeMap<Gva, u32>,
        file_system: &FileSystem,
        file: &CachedFile,
        names: &[String],
    ) -> Option<Wanted> {
        let is_named = |rule: &NamedFiles| {
            names.iter().any(|name| {
                rule.glob.matches(name)
                    || name.strip_suffix(" (deleted)").is_some_and(|name| rule.glob.matches(name))
            })
        };
        let hits: Vec<usize> =
            rules.named.iter().enumerate().filter(|(_, rule)| is_named(rule)).map(|(i, _)| i).collect();
        let on_disk = file_system.form != CacheForm::Memory;
        if !hits.is_empty() {
            self.matched.extend(hits);
            return Some(Wanted::Named);
        }
        if names.is_empty() && !rules.named.is_empty() && on_disk && !file_system.read_only {
            return Some(Wanted::Nameless);
        }
        if !on_disk {
            return None; // the memory of processes, and left out as such
        }
        let owner = private.get(&file.mapping).map(|pid| Wanted::Private(*pid));
        owner.or((!self.charged.is_empty()).then_some(Wanted::Charged))
    }

    fn leave_out(
        &mut self,
        file_system: &FileSystem,
        file: &CachedFile,
        wanted: Wanted,
        name: &str,
        batches: &BTreeMap<Gfn, u32>,
    ) -> Result<(), PlanError> {
        match file_system.form {
            CacheForm::Memory => return self.drop_memory(file, name),
            CacheForm::Unknown | CacheForm::Stacked => {
                if wanted != Wanted::Charged {
                    self.frames.unaccounted.push(format!(
                        "{name} is cached by the file system {}, whose pages Elision cannot leave out",
                        file_system.name
                    ));
                }
                return Ok(());
            }
            CacheForm::Buffers | CacheForm::Iomap | CacheForm::Btrfs => {}
        }
        if file.may_be_inline && matches!(wanted, Wanted::Named | Wanted::Private(_)) {
            self.frames.unaccounted.push(format!(
                "{name} is so small that the file system {} may cache it with others, in blocks of its own",
                file_system.name
            ));
            return Ok(());
        }
        let mut in_use = 0_u64;
        for folio in self.kernel.folios(file, file_system.form, batches, &mut self.frames.cached_left)? {
            let owner = match wanted {
                Wanted::Named | Wanted::Nameless => None,
                Wanted::Private(pid) => Some(pid),
                Wanted::Charged => match self.kernel.charged_to(Gfn(folio.frames.start), &self.charged)? {
                    Some(pid) => Some(pid),
                    None => continue,
                },
            };
            let bytes = (folio.frames.end - folio.frames.start) * PAGE_SIZE as u64;
            // Who asks for files has all page tables walked before.
            let is_kept = folio.frames.clone().any(|frame| self.frames.table.is_kept(Gfn(frame)));
            if is_kept && wanted != Wanted::Named {
                continue;
            }
            match folio.state {
                FolioState::Clean(marks) if is_kept => {
                    let head = Gfn(folio.frames.start);
                    if bytes > PAGE_SIZE as u64 || self.kernel.is_locked_into_memory(head)? {
                        in_use += bytes;
                    } else {
                        self.mapped.insert(head, (name.to_owned(), marks));
                    }
                }
                FolioState::Clean(marks) => self.drop_folio(folio.frames, &marks, owner)?,
                FolioState::Dirty => *self.dirty.entry(name.to_owned()).or_default() += bytes,
                FolioState::Busy(what) => {
                    return Err(PlanError::FileBusy { file: name.to_owned(), what });
                }
                FolioState::Unknown => {
                    self.frames.unaccounted.push(format!(
                        "{name} is cached by the file system {} in a way that is not known",
                        file_system.name
                    ));
                    return Ok(());
                }
            }
        }
        if in_use > 0 {
            self.refuse_mapped(name, in_use);
        }
        Ok(())
    }

    fn refuse_mapped(&mut self, name: &str, bytes: u64) {
        self.frames.unaccounted.push(format!(
            "{} KiB of {name} are mapped by processes that stay, in large pages or locked into memory; leave those out too",
            bytes / 1024
        ));
    }

    fn drop_folio(
        &mut self,
        frames: std::ops::Range<u64>,
        marks: &[WordEdit],
        owner: Option<u32>,
    ) -> Result<(), PlanError> {
        for mark in marks {
            self.edits.write(mark, EditReason::PageCache, owner)?;
        }
        for frame in frames.map(Gfn) {
            if let Some(pid) = owner {
                self.frames.table.set_owner(frame, pid);
            }
            self.frames.table.drop_frame(frame, DropReason::PageCache);
        }
        Ok(())
    }

    /// Takes pages out of the page tables of processes that stay, and drops them.
    fn unmap(&mut self, selection: &Selection) -> Result<(), PlanError> {
        if self.mapped.is_empty() {
            return Ok(());
        }
        let pages: BTreeSet<Gfn> = self.mapped.keys().copied().collect();
        let spaces: BTreeSet<Gva> =
            selection.kept().filter(|p| !p.kernel_thread).filter_map(|p| p.mm).collect();
        let mut unmapping = Unmapping::default();
        let budget = Budget::new(self.kernel.ram().layout().frame_limit().0);
        for addr in spaces {
            let mm = self.kernel.mm(addr)?;
            let before = unmapping.entries();
            self.kernel.find_mappings(&mm, &pages, &budget, &mut unmapping)?;
            if mm.write_locked && unmapping.entries() > before {
                let file = self.mapped.values().next().map(|(name, _)| name.clone()).unwrap_or_default();
                return Err(PlanError::FileBusy {
                    file,
                    what: "an address space that maps it is being changed",
                });
            }
        }
        // One that cannot be is one too many: then nothing is taken out.
        let all = unmapping.stuck.is_empty() && unmapping.dirty.is_empty();
        for (gfn, (name, marks)) in std::mem::take(&mut self.mapped) {
            if unmapping.dirty.contains(&gfn) {
                *self.dirty.entry(name).or_default() += PAGE_SIZE as u64;
            } else if all {
                self.drop_folio(gfn.0..gfn.0 + 1, &marks, None)?;
            } else {
                self.refuse_mapped(&name, PAGE_SIZE as u64);
            }
        }
        if all {
            for edit in self.kernel.unmap(&unmapping)? {
                self.edits.write(&edit, EditReason::PageCache, None)?;
            }
        }
        Ok(())
    }

    fn drop_memory(&mut self, file: &CachedFile, name: &str) -> Result<(), PlanError> {
        let (frames, evicted) = self.kernel.cached_frames(file.mapping, &mut self.frames.cached_left)?;
        for frame in frames {
            self.frames.table.drop_frame(frame, DropReason::PageCache);
        }
        if evicted > 0 {
            self.frames.unaccounted.push(format!(
                "{name} has {} KiB in swap, which stays on the guest's disk",
                evicted * (PAGE_SIZE as u64 / 1024)
            ));
        }
        Ok(())
    }
}

/// The files that excluded processes have open or mapped and no other process has, each with one of them.
fn private_mappings(
    kernel: &Kernel<'_>,
    selection: &Selection,
    frames: &mut FrameSurvey<'_, '_>,
) -> Result<BTreeMap<Gva, u32>, PlanError> {
    let mut private = BTreeMap::new();
    for process in selection.excluded() {
        for mapping in mappings(kernel, process, frames)? {
            private.entry(mapping).or_insert(process.pid);
        }
    }
    for process in selection.kept() {
        for mapping in mappings(kernel, process, frames)? {
            private.remove(&mapping);
        }
    }
    Ok(private)
}

/// The files that a process has open or mapped, by their page cache.
fn mappings(
    kernel: &Kernel<'_>,
    process: &elision_kernel::Process,
    frames: &mut FrameSurvey<'_, '_>,
) -> Result<BTreeSet<Gva>, PlanError> {
    let mut found = BTreeSet::new();
    kernel.for_each_open_mapping(process, &frames.slots_left, &mut |mapping| {
        found.insert(mapping);
    })?;
    for file in frames.mapped_files(process)? {
        found.extend(kernel.file_mapping(file)?);
    }
    Ok(found)
}

/// The memory cgroups in which excluded processes live and no other process does, each with one of them.
fn charged_groups(kernel: &Kernel<'_>, selection: &Selection) -> Result<BTreeMap<Gva, u32>, KernelError> {
    let mut groups = BTreeMap::new();
    for process in selection.excluded() {
        groups.extend(kernel.memory_group(process)?.map(|group| (group, process.pid)));
    }
    for process in selection.kept() {
        if let Some(group) = kernel.memory_group(process)? {
            groups.remove(&group);
        }
    }
    Ok(groups)
}
