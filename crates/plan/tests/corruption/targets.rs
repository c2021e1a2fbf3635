//! Every word of the kernel's memory that a plan depends on, found by the guest's own types.
//!
//! Structures are reached from the tasks along pointers, as the walkers do; each word has a name,
//! so that rare members are damaged as often as frequent ones.

use crate::members::{EDGES, FIELDS, PER_CPU, VARIABLES};
use elision_kernel::Kernel;
use elision_kernel::btf::Btf;
use elision_memory::{Gfn, Gpa, Gva, PageTables, Ram};
use elision_testbed::truth::Truth;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// One aligned word.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Word {
    /// Where it stands.
    pub(crate) gpa: Gpa,
    /// Its address in the kernel; of a page-table entry, what would make an entry lead to its table.
    pub(crate) gva: Gva,
}

/// All words by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Targets {
    pub(crate) words: BTreeMap<String, Vec<Word>>,
    /// Frames that a user of the guest can fill as he likes.
    pub(crate) user: Vec<Gfn>,
    /// Where the direct map begins.
    pub(crate) direct_map: Gva,
}

impl Targets {
    /// Everything that leads anywhere in a guest.
    pub(crate) fn collect(kernel: &Kernel<'_>, truth: &Truth, user_pid: i32) -> Self {
        let btf = Btf::parse(truth.btf().expect("types")).expect("types");
        let symbols = truth.symbols().into_iter().filter(|s| s.module.is_empty());
        let symbols = symbols.map(|s| (s.name, Gva(s.address))).collect();
        let mut search =
            Search { kernel, btf: &btf, symbols, seen: BTreeSet::new(), targets: Self::default() };
        search.targets.user = truth.pagemap(user_pid).iter().filter_map(|page| page.gfn()).collect();
        search.targets.direct_map = search.variable("page_offset_base").expect("a region");
        for process in kernel.processes().expect("processes") {
            for thread in &process.threads {
                search.object("task_struct", thread.task);
                if let Ok(Some(stack)) = kernel.stack(thread) {
                    // The saved registers.
                    search.range("stack", stack.base.wrapping_add(stack.size - 192), 24);
                }
            }
            if let Some(mm) = process.mm {
                search.page_tables(kernel.mm(mm).expect("an address space").tables);
            }
        }
        search.variables();
        search.free_lists();
        search.targets
    }

    /// The words of one name.
    pub(crate) fn named(&self, name: &str) -> &[Word] {
        self.words.get(name).map_or(&[], Vec::as_slice)
    }
}

struct Search<'a, 'k> {
    kernel: &'a Kernel<'k>,
    btf: &'a Btf,
    symbols: BTreeMap<String, Gva>,
    seen: BTreeSet<(&'static str, Gva)>,
    targets: Targets,
}

impl Search<'_, '_> {
    fn ram(&self) -> &Ram {
        self.kernel.ram()
    }

    fn offset(&self, ty: &str, names: &[&str]) -> Option<u64> {
        let id = self.btf.struct_(ty)?;
        names.iter().find_map(|name| self.btf.member(id, name)).map(|m| m.bit_offset / 8)
    }

    fn size(&self, ty: &str) -> u64 {
        self.btf.struct_(ty).and_then(|id| self.btf.size_of(id)).unwrap_or_else(|| panic!("no type {ty}"))
    }

    /// Notes the word that holds `at`, and gives its value.
    fn note(&mut self, name: &str, at: Gva) -> Option<u64> {
        let gva = Gva(at.0 & !7);
        let gpa = self.kernel.frames_of(gva, 8).ok()?.first()?.0;
        let value = self.ram().word(gpa)?;
        self.targets.words.entry(name.to_owned()).or_default().push(Word { gpa, gva });
        Some(value)
    }

    fn range(&mut self, name: &str, at: Gva, words: u64) {
        for i in 0..words {
            self.note(name, at.wrapping_add(8 * i));
        }
    }

    fn object(&mut self, ty: &'static str, at: Gva) {
        if at.0 >> 63 == 0 || !self.seen.insert((ty, at)) {
            return;
        }
        for (_, names) in FIELDS.iter().filter(|(from, _)| *from == ty) {
            if let Some(offset) = self.offset(ty, names) {
                self.note(&format!("{ty}.{}", names[0]), at.wrapping_add(offset));
            }
        }
        if ty == "vfsmount" {
            let inside = self.offset("mount", &["mnt"]).unwrap_or(0);
            for member in ["mnt_parent", "mnt_mountpoint"] {
                let offset = self.offset("mount", &[member]).unwrap_or(0);
                self.note(&format!("mount.{member}"), Gva(at.0 - inside).wrapping_add(offset));
            }
        }
        if ty == "fdtable" {
            let slots = self.targets.named("fdtable.fd").last().and_then(|w| self.ram().word(w.gpa));
            self.range("fdtable slots", Gva(slots.unwrap_or(0)), 4);
        }
        for (_, names, to) in EDGES.iter().filter(|(from, ..)| *from == ty) {
            let Some(offset) = self.offset(ty, names) else { continue };
            let Some(value) = self.note(&format!("{ty}.{}", names[0]), at.wrapping_add(offset)) else {
                continue;
            };
            match *to {
                "maple" => self.maple(value),
                "xarray" => self.xarray(value),
                to => self.object(to, Gva(value)),
            }
        }
    }

    fn maple(&mut self, entry: u64) {
        let (node, is_leaf) = (Gva(entry & !0xff), entry >> 3 & 15 == 1);
        if entry & 3 == 1 || entry >> 63 == 0 || !self.seen.insert(("maple", node)) {
            return;
        }
        for i in 0..32 {
            let Some(word) = self.note("maple node", node.wrapping_add(8 * i)) else { continue };
            if i > 0 && word >> 63 == 1 {
                if is_leaf && word & 7 == 0 {
                    self.object("vm_area_struct", Gva(word));
                } else if !is_leaf && word & 4 != 0 {
                    self.maple(word);
                }
            }
        }
    }

    fn xarray(&mut self, entry: u64) {
        if entry & 1 != 0 || entry >> 63 == 0 || self.seen.len() > 40_000 {
            return;
        }
        let at = Gva(entry & !3);
        if entry & 3 == 0 {
            self.range("page in a cache", at, 8);
        } else if self.seen.insert(("xarray", at)) {
            self.note("xa_node.shift", at);
            let slots = at.wrapping_add(self.offset("xa_node", &["slots"]).unwrap_or(0));
            for i in 0..64 {
                if let Some(word) = self.note("xa_node.slots", slots.wrapping_add(8 * i)) {
                    self.xarray(word);
                }
            }
        }
    }

    fn page_tables(&mut self, tables: PageTables) {
        let top = if tables.la57() { 4 } else { 3 };
        self.page_table(tables.root(), top);
    }

    fn page_table(&mut self, table: Gpa, level: u32) {
        let half = if level >= 3 { 256 } else { 512 };
        for i in 0..half {
            let gpa = table.wrapping_add(8 * i);
            let Some(entry) = self.ram().word(gpa).filter(|e| *e != 0) else { continue };
            let word = Word { gpa, gva: Gva(table.0 | 7) };
            self.targets.words.entry(format!("page table {level}")).or_default().push(word);
            if level > 0 && entry & 0x81 == 1 {
                self.page_table(Gpa(entry & 0x000f_ffff_ffff_f000), level - 1);
            }
        }
    }

    /// Value of a variable.
    fn variable(&self, name: &str) -> Option<Gva> {
        let gpa = self.kernel.frames_of(*self.symbols.get(name)?, 8).ok()?.first()?.0;
        self.ram().word(gpa).map(Gva)
    }

    fn variables(&mut self) {
        for (name, words) in VARIABLES {
            if let Some(at) = self.symbols.get(*name).copied() {
                self.range(name, at, *words);
            }
        }
        for cpu in self.per_cpu() {
            for (name, words) in PER_CPU {
                if let Some(at) = self.symbols.get(*name).copied() {
                    self.range(name, at.wrapping_add(cpu), *words);
                }
            }
        }
    }

    fn per_cpu(&self) -> Vec<u64> {
        let array = self.targets.named("__per_cpu_offset").iter();
        array.filter_map(|word| self.ram().word(word.gpa)).take(self.kernel.cpu_count()).collect()
    }

    fn free_lists(&mut self) {
        let node = self.variable("node_data").expect("a memory node");
        let zones = node.wrapping_add(self.offset("pglist_data", &["node_zones"]).expect("zones"));
        let area = self.offset("zone", &["free_area"]).expect("free lists");
        let pcp = self.offset("zone", &["per_cpu_pageset"]).expect("lists of CPUs");
        for i in 0..3 {
            let zone = zones.wrapping_add(i * self.size("zone"));
            self.range("zone.free_area", zone.wrapping_add(area), 11 * self.size("free_area") / 8);
            let Some(lists) = self.note("zone.per_cpu_pageset", zone.wrapping_add(pcp)) else { continue };
            for cpu in self.per_cpu() {
                self.range("per_cpu_pages", Gva(lists).wrapping_add(cpu), self.size("per_cpu_pages") / 8);
            }
        }
        let (mut free, mut count) = (Vec::new(), 0_u64);
        let visit = &mut |block: Range<Gfn>| {
            for gfn in (block.start.0..block.end.0).map(Gfn) {
                // Blocks of each size are listed in turn: the first and a few of their tails.
                if count % 61 == 0 {
                    free.push(gfn);
                }
                count += 1;
            }
        };
        self.kernel.buddy_frames(visit).expect("buddy lists");
        self.kernel.per_cpu_free_frames(visit).expect("lists of CPUs");
        let (array, size) = (self.variable("vmemmap_base").expect("a region"), self.size("page"));
        let user = self.targets.user.clone();
        for (name, frames) in [("free page", &free), ("page of a process", &user)] {
            for gfn in frames {
                self.range(name, array.wrapping_add(gfn.0 * size), size / 8);
            }
        }
    }
}
