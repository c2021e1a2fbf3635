//! A page that lost its mapping and kept its reference, made in a copy of a guest's RAM: dropped if it is an
//! excluded process's or if nothing in the kernel points to it, else left alone.

use elision_kernel::btf::Btf;
use elision_kernel::{Kernel, ProfileCache};
use elision_memory::{Budget, Gfn, Gpa, Gva, Node, Ram};
use elision_plan::{DropReason, Options, Outcome, PlanError, Selection, plan};
use elision_policy::Policy;
use elision_testbed::truth::Truth;
use elision_testbed::{Error, GuestOptions, Spawn};
use std::collections::BTreeSet;
use std::fs::File;

#[test]
fn lost_pages_of_6_1_are_dropped_if_nobody_can_use_them() -> Result<(), Error> {
    lost_pages("6.1")
}

#[test]
fn lost_pages_of_6_12_are_dropped_if_nobody_can_use_them() -> Result<(), Error> {
    lost_pages("6.12")
}

#[test]
fn lost_pages_of_7_are_dropped_if_nobody_can_use_them() -> Result<(), Error> {
    lost_pages("7")
}

fn lost_pages(kernel: &str) -> Result<(), Error> {
    let mut guest = GuestOptions::new(kernel).boot()?;
    let victim = guest.control().spawn(&Spawn::new("victim", "heap=512K", "block").uid(1234))?;
    let bystander = guest.control().spawn(&Spawn::new("bystander", "heap=512K", "block"))?;
    let truth = guest.truth(true, true)?;
    let file = File::open(guest.endpoints().ram_file()).expect("its RAM");
    let ram = guest.ram()?;
    let view = Kernel::open(&ram, &[], &ProfileCache::disabled()).expect("a kernel");
    guest.endpoints().stop_when(|| match try_plan(&view) {
        Err(error) if error.is_transient() => Ok(None),
        _ => Ok(Some(())),
    })?;
    let lost = [&victim, &bystander].map(|process| {
        let heap = process.planted.first().expect("a heap");
        let mut pages =
            (0..128).map(|i| entry_of(&view, process.pid, Gva((heap.address & !4095) + 4096 * i)));
        // A batch on the way to the reclaim lists, or what a freed object still holds, may point to some: the
        // heap has more pages than a batch.
        let is_pointed_to = |gfn| !view.frames_pointed_to(&BTreeSet::from([gfn])).expect("a scan").is_empty();
        let (table, gfn) = pages.find(|page| !is_pointed_to(page.1)).expect("a page of its own");
        (table, gfn, page_of(&view, &truth, gfn))
    });
    let [(_, of_victim, _), (_, of_bystander, page)] = lost;
    println!("{kernel}: the victim's frame {of_victim}, the bystander's {of_bystander}");

    let mut copy = Ram::private(&file, guest.layout().clone()).expect("a copy");
    let whole = planned(&view, &copy);
    assert_eq!(whole.of(of_victim), Some((DropReason::Anonymous, Some(victim.pid))), "control");
    assert_eq!(whole.of(of_bystander), None, "control: a page in use");

    let mapcount = offset(&truth, "_mapcount");
    for (entry, _, page) in lost {
        copy.poke(entry, &0_u64.to_le_bytes()).expect("an entry");
        copy.poke(at(&view, page.wrapping_add(mapcount)), &u32::MAX.to_le_bytes()).expect("a count");
    }
    let unheld = planned(&view, &copy);
    assert_eq!(unheld.of(of_victim), Some((DropReason::Orphan, Some(victim.pid))));
    assert_eq!(unheld.of(of_bystander), Some((DropReason::Orphan, None)));

    // Somewhere in the kernel's data: as if a pipe or a write under way held them.
    let somewhere = at(&view, symbol(&truth, "vmcoreinfo_note"));
    copy.poke(somewhere, &page.0.to_le_bytes()).expect("a pointer");
    copy.poke(Gpa(somewhere.0 + 8), &lost[0].2.0.to_le_bytes()).expect("a pointer");
    let held = planned(&view, &copy);
    assert_eq!(held.of(of_victim), Some((DropReason::Orphan, Some(victim.pid))), "it ends with its process");
    assert_eq!(held.of(of_bystander), None, "what a process that stays can still be handed is gone");
    let (before, after) = (unheld.stay(), held.stay());
    assert_eq!(after, before + 1, "what stays is counted");
    Ok(())
}

struct Decided(Outcome);

impl Decided {
    fn of(&self, gfn: Gfn) -> Option<(DropReason, Option<i32>)> {
        let run = self.0.plan.drop_of(gfn)?;
        Some((run.reason, run.owner.map(|pid| i32::try_from(pid).expect("a pid"))))
    }

    fn stay(&self) -> u64 {
        let kept = self.0.plan.summary.kept_frames.iter();
        kept.filter(|(what, _)| what.contains("no process maps")).map(|(_, frames)| frames).sum()
    }
}

fn planned(view: &Kernel<'_>, copy: &Ram) -> Decided {
    Decided(try_plan(&view.over(copy)).expect("a plan"))
}

fn try_plan(kernel: &Kernel<'_>) -> Result<Outcome, PlanError> {
    let policy = Policy { selectors: vec!["uid=1234".parse().expect("a selector")], ..Policy::default() };
    plan(kernel, &Selection::of(kernel, &policy)?, &[], Options::default())
}

/// Where the page-table entry of an address stands, and the frame that it leads to.
fn entry_of(kernel: &Kernel<'_>, pid: i32, gva: Gva) -> (Gpa, Gfn) {
    let processes = kernel.processes().expect("processes");
    let process = processes.iter().find(|p| i64::from(p.pid) == i64::from(pid)).expect("the process");
    let mm = kernel.mm(process.mm.expect("memory")).expect("its memory");
    let (mut table, mut found) = (Gpa(0), None);
    let walk =
        mm.tables.walk_nodes(
            kernel.ram(),
            gva..gva.wrapping_add(4096),
            &Budget::new(1000),
            |node| match node {
                Node::Table(at) => table = at,
                Node::Leaf(leaf) => found = found.or(Some((table, leaf.target().gfn()))),
            },
        );
    walk.expect("page tables");
    let (table, gfn) = found.expect("an entry");
    (Gpa(table.0 + 8 * (gva.0 >> 12 & 511)), gfn)
}

fn symbol(truth: &Truth, name: &str) -> Gva {
    let symbols = truth.symbols();
    Gva(symbols.iter().find(|s| s.name == name && s.module.is_empty()).expect("a symbol").address)
}

fn at(kernel: &Kernel<'_>, gva: Gva) -> Gpa {
    kernel.frames_of(gva, 8).expect("kernel memory").first().expect("a frame").0
}

fn offset(truth: &Truth, member: &str) -> u64 {
    let btf = Btf::parse(truth.btf().expect("types")).expect("types");
    btf.member(btf.struct_("page").expect("a type"), member).expect("a member").bit_offset / 8
}

fn page_of(kernel: &Kernel<'_>, truth: &Truth, gfn: Gfn) -> Gva {
    let base = kernel.ram().word(at(kernel, symbol(truth, "vmemmap_base"))).expect("a word");
    Gva(base + 64 * gfn.0)
}
