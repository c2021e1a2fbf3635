//! Address spaces against `/proc/PID/maps` and `/proc/PID/pagemap`.

use crate::processes::{Seen, is_writer};
use elision_kernel::{Entry, Kernel, Mm, Pte};
use elision_memory::{Budget, Gva, LeafSize, PAGE_SIZE};
use elision_testbed::truth::{PageMapEntry, Truth};
use std::collections::BTreeMap;

/// Start, end, permissions; offset and path of a file.
type Area = (Gva, Gva, String, Option<(u64, String)>);

/// Pages that a running process may touch for the first time in a moment.
const TOUCHED: usize = 16;

fn spaces<'a>(
    kernel: &'a Kernel<'_>,
    processes: &'a [Seen<'_>],
    truth: &'a Truth,
) -> impl Iterator<Item = (i32, Mm)> + 'a {
    let with_memory = processes.iter().filter(|(pid, p)| !p.kernel_thread && !is_writer(truth, *pid));
    with_memory.map(|(pid, p)| (*pid, kernel.mm(p.mm.expect("memory")).expect("an address space")))
}

/// Nobody maps or unmaps memory between the answer and the stop: there is no difference at all.
pub(crate) fn compare_areas(kernel: &Kernel<'_>, processes: &[Seen<'_>], truth: &Truth) {
    let (mut areas, mut files, mut shared) = (0, 0, 0);
    for (pid, mm) in spaces(kernel, processes, truth) {
        let mine: Vec<Area> = areas_of(kernel, mm);
        let told = truth.maps(pid).into_iter().filter(|map| map.path != "[vsyscall]");
        let told: Vec<Area> = told
            .map(|map| {
                let file = map.path.starts_with('/').then_some((map.offset, map.path));
                (map.start, map.end, map.permissions, file)
            })
            .collect();
        assert_eq!(mine, told, "process {pid}");
        areas += mine.len();
        files += mine.iter().filter(|area| area.3.is_some()).count();
        shared += mine.iter().filter(|area| area.2.ends_with('s')).count();
    }
    println!("  {areas} areas, {files} of files, {shared} shared: no difference");
    assert!(areas > 250 && files > 40 && shared > 10, "control: too few areas");
}

fn areas_of(kernel: &Kernel<'_>, mm: Mm) -> Vec<Area> {
    let vmas = kernel.vmas(mm).expect("areas");
    let area = vmas.iter().map(|vma| {
        let path = kernel.vma_path(vma).expect("a path");
        let file = path.map(|path| (vma.pgoff * PAGE_SIZE as u64, path));
        (vma.range.start, vma.range.end, vma.permissions(), file)
    });
    area.collect()
}

/// Every page that the guest named leads to the frame that it named. Pages touched since then are few.
pub(crate) fn compare_pages(kernel: &Kernel<'_>, processes: &[Seen<'_>], truth: &Truth) {
    let (mut pages, mut large, mut touched) = (0, 0, 0);
    for (pid, mm) in spaces(kernel, processes, truth) {
        let (mine, large_here) = pages_of(kernel, mm);
        let told = truth.pagemap(pid);
        for page in &told {
            assert_eq!(mine.get(&page.gva), Some(&meaning(page)), "{} of process {pid}", page.gva);
        }
        pages += told.len();
        large += large_here;
        touched += mine.len() - told.len();
    }
    println!("  {pages} pages, {large} large entries: no difference; {touched} pages touched since");
    assert!(touched <= TOUCHED, "{touched} pages are mapped that the guest did not name");
    assert!(pages > 5000 && large >= 3, "control: too few pages");
}

fn meaning(page: &PageMapEntry) -> Pte {
    let swap = || Pte::Swap {
        area: u8::try_from(page.entry & 31).expect("five bits"),
        slot: page.entry >> 5 & ((1 << 50) - 1),
    };
    page.gfn().map_or_else(swap, |gfn| Pte::Memory(gfn.gpa()))
}

/// Each base page of an address space, and the number of entries that cover more than one.
fn pages_of(kernel: &Kernel<'_>, mm: Mm) -> (BTreeMap<Gva, Pte>, usize) {
    let swap_areas = kernel.swap_areas().expect("swap areas");
    let budget = Budget::new(kernel.ram().layout().frame_limit().0);
    let (mut pages, mut large) = (BTreeMap::new(), 0);
    let walk = mm.tables.walk(kernel.ram(), mm.tables.user_range(), &budget, |leaf| {
        let entry = Entry::of(leaf, swap_areas);
        large += usize::from(entry.size != LeafSize::Size4K);
        for offset in (0..entry.size.bytes()).step_by(PAGE_SIZE) {
            let pte = match entry.pte {
                Pte::Memory(gpa) => Pte::Memory(gpa.wrapping_add(offset)),
                other => other,
            };
            pages.insert(leaf.gva.wrapping_add(offset), pte);
        }
    });
    walk.expect("page tables");
    (pages, large)
}
