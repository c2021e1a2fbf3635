//! Areas with names. No kernel of the tests was built with them, but 6.1 has the member: a name is written into a copy
//! of a guest's RAM as such a kernel would do it.

use elision_kernel::btf::Btf;
use elision_kernel::{Kernel, ProfileCache};
use elision_memory::{Gfn, Gpa, Gva, PAGE_SIZE, Ram};
use elision_plan::{DropReason, Options, Outcome, PlanError, Selection, plan};
use elision_policy::Policy;
use elision_testbed::truth::Truth;
use elision_testbed::{Error, GuestOptions, Spawn};
use std::fs::File;

const VM_DONTDUMP: u64 = 0x400_0000;

#[test]
fn an_area_is_marked_by_its_name() -> Result<(), Error> {
    let mut guest = GuestOptions::new("6.1").boot()?;
    let process = guest.control().spawn(&Spawn::new("marker", "dontdump,shm=256K", "block"))?;
    let truth = guest.truth(true, true)?;
    let file = File::open(guest.endpoints().ram_file()).expect("its RAM");
    let ram = guest.ram()?;
    let view = Kernel::open(&ram, &[], &ProfileCache::disabled()).expect("a kernel");
    guest.endpoints().stop_when(|| match try_plan(&view, "region=dontdump") {
        Err(error) if error.is_transient() => Ok(None),
        _ => Ok(Some(())),
    })?;
    let mut copy = Ram::private(&file, guest.layout().clone()).expect("a copy");
    let marked = &process.planted[0];
    assert_eq!(marked.place, "dontdump");
    let range = Gva(marked.address)..Gva(marked.address + marked.len);

    let unnamed = try_plan(&view.over(&copy), "region=named");
    assert!(matches!(unnamed, Err(PlanError::NoMatch { .. })), "control: {unnamed:?}");
    let member = |ty: &str, name: &str| offset(&truth, ty, name);
    let area =
        area_of(&copy, &range, member("vm_area_struct", "vm_flags"), member("vm_area_struct", "vm_file"));
    // The name stands behind a counter, here in memory that the process shares with nobody.
    let text = frame_of(&view, process.pid, Gva(process.planted[1].address)).gpa();
    let name = Gpa(text.0 + member("anon_vma_name", "name"));
    let base = ram.word(at(&view, symbol(&truth, "page_offset_base"))).expect("a word");
    copy.poke(Gpa(area.0 + member("vm_area_struct", "anon_name")), &(base + text.0).to_le_bytes())
        .expect("an area");

    for other in ["heap", "not elision:", "elision"] {
        copy.poke(name, format!("{other}\0").as_bytes()).expect("a name");
        let planned = try_plan(&view.over(&copy), "region=named");
        assert!(matches!(planned, Err(PlanError::NoMatch { .. })), "{other}: {planned:?}");
    }
    copy.poke(name, b"elision:test\0").expect("a name");
    let by_name = try_plan(&view.over(&copy), "region=named").expect("a plan").plan;
    let by_advice = try_plan(&view.over(&copy), "region=dontdump").expect("a plan").plan;
    for plan in [&by_name, &by_advice] {
        assert_eq!(plan.summary.dropped_frames[&DropReason::Region], marked.len / PAGE_SIZE as u64);
    }
    for gva in (range.start.0..range.end.0).step_by(PAGE_SIZE) {
        let run = by_name.drop_of(frame_of(&view, process.pid, Gva(gva))).expect("it is dropped");
        assert_eq!(
            (run.reason, run.owner.map(i64::from)),
            (DropReason::Region, Some(i64::from(process.pid)))
        );
    }
    for beside in [range.start.wrapping_add(0_u64.wrapping_sub(PAGE_SIZE as u64)), range.end] {
        assert!(by_name.drop_of(frame_of(&view, process.pid, beside)).is_none(), "{beside} is not marked");
    }
    Ok(())
}

fn try_plan(kernel: &Kernel<'_>, selector: &str) -> Result<Outcome, PlanError> {
    let policy = Policy { selectors: vec![selector.parse().expect("a selector")], ..Policy::default() };
    plan(kernel, &Selection::of(kernel, &policy)?, &[], Options::default())
}

/// The `vm_area_struct` of an area: its bounds stand in it, one after the other.
fn area_of(ram: &Ram, range: &std::ops::Range<Gva>, flags: u64, file: u64) -> Gpa {
    let bounds = [range.start.0.to_le_bytes(), range.end.0.to_le_bytes()].concat();
    let found = elision_testbed::search::find(ram, &[bounds.as_slice()]).expect("a search");
    let is_area = |at: &Gpa| {
        let word = |offset| ram.word(Gpa(at.0 + offset)).unwrap_or(0);
        at.0 % 8 == 0 && word(flags) & VM_DONTDUMP != 0 && word(file) == 0
    };
    // A guest of this size has all its RAM in one piece.
    found[0].iter().map(|at| Gpa(at.0)).find(is_area).expect("the area")
}

fn frame_of(kernel: &Kernel<'_>, pid: i32, gva: Gva) -> Gfn {
    let processes = kernel.processes().expect("processes");
    let process = processes.iter().find(|p| i64::from(p.pid) == i64::from(pid)).expect("the process");
    let mm = kernel.mm(process.mm.expect("memory")).expect("its memory");
    mm.tables.translate(kernel.ram(), gva).expect("it is mapped").gpa.gfn()
}

fn symbol(truth: &Truth, name: &str) -> Gva {
    let symbols = truth.symbols();
    Gva(symbols.iter().find(|s| s.name == name && s.module.is_empty()).expect("a symbol").address)
}

fn at(kernel: &Kernel<'_>, gva: Gva) -> Gpa {
    kernel.frames_of(gva, 8).expect("kernel memory").first().expect("a frame").0
}

fn offset(truth: &Truth, ty: &str, member: &str) -> u64 {
    let btf = Btf::parse(truth.btf().expect("types")).expect("types");
    btf.member(btf.struct_(ty).expect("a type"), member).expect("a member").bit_offset / 8
}
