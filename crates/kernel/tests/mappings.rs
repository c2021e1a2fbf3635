//! How often real guests' kernels say that private pages are mapped, compared with their page tables: a page has never
//! more entries than are told, at whatever moment the guest is stopped.

use elision_kernel::{Entry, Kernel, KernelError, PageKind, ProfileCache, Pte};
use elision_memory::{Budget, Gfn};
use elision_testbed::{Error, GuestOptions, Spawn, pages};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// At each of them a process forks, touches, ends.
const WORK: &str =
    "(while :; do head -c 300000 /dev/zero | tr '\\0' x | md5sum; ls /proc; done) >/dev/null 2>&1 &";

#[test]
fn no_page_of_5_10_has_more_mappings_than_are_told() -> Result<(), Error> {
    look(&GuestOptions::new("5.10"))
}

#[test]
fn no_page_of_6_1_has_more_mappings_than_are_told() -> Result<(), Error> {
    look(&GuestOptions::new("6.1"))
}

#[test]
fn no_page_of_6_12_has_more_mappings_than_are_told() -> Result<(), Error> {
    look(&GuestOptions::new("6.12"))
}

#[test]
fn no_page_of_7_has_more_mappings_than_are_told() -> Result<(), Error> {
    look(&GuestOptions::new("7"))
}

/// How many pages there are, by what is told of them.
#[derive(Debug, Default)]
struct Told {
    exactly: u32,
    more: u32,
    nothing: u32,
    /// Of those told exactly.
    large: u32,
    shared: u32,
}

fn look(options: &GuestOptions) -> Result<(), Error> {
    let mut guest = options.boot()?;
    let control = guest.control();
    control.spawn(&Spawn::new("alone", "heap,stack,thp,hugetlb,cow", "threads"))?;
    control.spawn(&Spawn::new("forked", "heap,thp,thp-rest,cow", "fork"))?;
    control.spawn(&Spawn::new("crowd", "heap=64K", "crowd=20"))?;
    for _ in 0..2 {
        control.sh(WORK)?;
    }
    let ram = guest.ram()?;
    let kernel = Kernel::open(&ram, &[], &ProfileCache::disabled()).expect("a kernel");
    let stops = if pages::in_full() { 200 } else { 30 };
    let (mut told, mut torn) = (Told::default(), 0);
    for i in 0..stops {
        guest.endpoints().stop()?;
        match compare(&kernel, &mut told) {
            Ok(()) => {}
            Err(error) if error.is_transient() => torn += 1,
            Err(error) => panic!("{error}"),
        }
        guest.endpoints().cont()?;
        std::thread::sleep(Duration::from_millis(7 * i % 11));
    }
    println!("{}: {told:?} in {stops} stops, {torn} of them with a contradiction", kernel.release());
    assert!(torn <= stops / 4, "{torn} of {stops} stops with a contradiction");
    // Nearly all are told: a plan depends on that for its speed, if not for what it says.
    assert!(told.exactly > 20 * (told.more + told.nothing), "{told:?}");
    assert!(told.large > 0 && told.shared > 0, "control: {told:?}");
    Ok(())
}

fn compare(kernel: &Kernel<'_>, told: &mut Told) -> Result<(), KernelError> {
    let budget = Budget::new(kernel.ram().layout().frame_limit().0);
    let mut entries: BTreeMap<Gfn, u32> = BTreeMap::new();
    let spaces: BTreeSet<_> = kernel.processes()?.iter().filter_map(|process| process.mm).collect();
    let swap_areas = kernel.swap_areas()?;
    for space in spaces {
        let mm = kernel.mm(space)?;
        mm.tables.walk(kernel.ram(), mm.tables.user_range(), &budget, |leaf| {
            if let Pte::Memory(gpa) = Entry::of(leaf, swap_areas).pte {
                *entries.entry(gpa.gfn()).or_default() += 1;
            }
        })?;
    }
    let mut by_page: BTreeMap<Gfn, u32> = BTreeMap::new();
    for (gfn, count) in entries {
        *by_page.entry(kernel.page(gfn)?.head).or_default() += count;
    }
    for (head, count) in by_page {
        let page = kernel.page(head)?;
        if !matches!(page.kind, PageKind::Anonymous | PageKind::Merged) {
            continue;
        }
        match page.mappings {
            None => told.nothing += 1,
            Some(most) if most == count => {
                told.exactly += 1;
                told.large += u32::from(kernel.compound_frames(head)?.count() > 1);
                told.shared += u32::from(count > 1);
            }
            Some(most) => {
                assert!(most > count, "{head:?}: {count} entries lead to it, and {most} are told: {page:?}");
                told.more += 1;
            }
        }
    }
    Ok(())
}
