//! Free lists and page descriptors against `/proc/kpageflags`, `/proc/kpagecount` and
//! `/proc/buddyinfo`.
//!
//! After it has told, the guest still packs its answer and sends it: the writer touches memory of
//! its own, and free frames move between the buddy lists and the lists of a CPU.

use elision_kernel::{FrameKind, FrameScan, Kernel, PageKind, Process};
use elision_memory::Gfn;
use elision_testbed::truth::Truth;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Bits of `/proc/kpageflags` (`include/uapi/linux/kernel-page-flags.h`).
const LRU: u64 = 1 << 5;
const SLAB: u64 = 1 << 7;
const BUDDY: u64 = 1 << 10;
const MMAP: u64 = 1 << 11;
const ANON: u64 = 1 << 12;
const SWAP_BACKED: u64 = 1 << 14;
const COMPOUND_HEAD: u64 = 1 << 15;
const COMPOUND_TAIL: u64 = 1 << 16;
const HUGE: u64 = 1 << 17;
const PAGE_TABLE: u64 = 1 << 26;
const RESERVED: u64 = 1 << 32;
/// What no free frame has.
const IN_USE: u64 = LRU | SLAB | MMAP | ANON | COMPOUND_HEAD | COMPOUND_TAIL | PAGE_TABLE | RESERVED;

/// Frames that the rest of the guest takes or gives back in a moment.
const DRIFT: usize = 128;
/// Free frames that move between the lists while the guest tells, first their number, then which.
const BATCHES: u64 = 1024;
/// Pages on their way to a reclaim list, in a batch of each of two CPUs.
const IN_BATCHES: usize = 2 * 31;
/// Pages of its own program that the writer maps while it packs its answer.
const MAPPED_SINCE: usize = 128;

type Frames = BTreeSet<Gfn>;

fn flags(truth: &Truth) -> BTreeMap<Gfn, u64> {
    (0..).map(Gfn).zip(truth.frame_flags()).collect()
}

fn with(flags: &BTreeMap<Gfn, u64>, test: impl Fn(u64) -> bool) -> Frames {
    flags.iter().filter(|(_, f)| test(**f)).map(|(gfn, _)| *gfn).collect()
}

/// Both kinds of free list. The same frame never stands twice.
pub(crate) fn compare_free(kernel: &Kernel<'_>, truth: &Truth) -> Frames {
    let flags = flags(truth);
    let told = with(&flags, |f| f & BUDDY != 0);
    let blocks = truth.buddy();
    let listed: u64 = blocks.iter().flat_map(|(_, counts)| (0..).zip(counts)).map(|(o, n)| n << o).sum();
    assert!(listed.abs_diff(told.len() as u64) <= BATCHES, "control: the guest itself counts otherwise");

    let (mut buddy, mut per_cpu, mut huge) = (Frames::new(), Frames::new(), Frames::new());
    let each = |block: Range<Gfn>| (block.start.0..block.end.0).map(Gfn);
    let add = |gfn, to: &mut Frames, other: &Frames| {
        assert!(!other.contains(&gfn) && to.insert(gfn), "{gfn} is on two lists");
    };
    let none = Frames::new();
    let in_buddy = &mut |block| each(block).for_each(|gfn| add(gfn, &mut buddy, &none));
    kernel.buddy_frames(in_buddy).expect("buddy lists");
    let of_cpus = &mut |block| each(block).for_each(|gfn| add(gfn, &mut per_cpu, &buddy));
    kernel.per_cpu_free_frames(of_cpus).expect("lists of the CPUs");
    kernel
        .huge_free_frames(&mut |block| each(block).for_each(|gfn| add(gfn, &mut huge, &none)))
        .expect("pools");

    let free: Frames = buddy.union(&per_cpu).copied().collect();
    let taken = told.difference(&free).count();
    let moved = told.symmetric_difference(&buddy).filter(|gfn| free.contains(gfn)).count();
    let used = |frames: &Frames| frames.iter().filter(|gfn| flags[gfn] & IN_USE != 0).count();
    let (freed_buddy, freed_cpu) = (used(&buddy), used(&per_cpu));
    println!(
        "  {} frames told free, {} seen in buddy lists and {} in those of CPUs: {moved} moved between them, \
         {taken} taken and {} freed since",
        told.len(),
        buddy.len(),
        per_cpu.len(),
        freed_buddy + freed_cpu
    );
    assert!(taken <= DRIFT && freed_buddy + freed_cpu <= DRIFT, "the guest does not say that these are free");
    // Lists of a CPU hold few of many frames: most must be equal without any excuse.
    assert!(told.intersection(&buddy).count() * 20 > told.len() * 19, "the buddy lists differ");
    assert!(told.len() > 50_000 && per_cpu.len() > 100, "control: too few free frames");

    // The pools are only used by processes, and these sleep.
    let told_huge = with(&flags, |f| f & HUGE != 0 && f & MMAP == 0);
    assert_eq!(huge, told_huge, "free huge pages");
    println!("  {} frames in pools of huge pages: no difference", huge.len());
    assert!(huge.len() >= 512, "control: no free huge pages");
    free
}

/// What each frame is, frame by frame.
pub(crate) fn compare_kinds(kernel: &Kernel<'_>, truth: &Truth, free: &Frames) {
    let flags = flags(truth);
    let mut of_kind: BTreeMap<PageKind, Frames> = BTreeMap::new();
    let mut tails = Frames::new();
    for gfn in kernel.ram().layout().frames() {
        let page = kernel.page(gfn).expect("a page descriptor");
        of_kind.entry(page.kind).or_default().insert(gfn);
        if page.head != gfn {
            tails.insert(gfn);
        }
    }
    let kind = |kind| of_kind.get(&kind).cloned().unwrap_or_default();
    let is_ram = |gfn: &Gfn| kernel.ram().layout().contains(*gfn);
    let told =
        |test: &dyn Fn(u64) -> bool| -> Frames { with(&flags, test).into_iter().filter(is_ram).collect() };
    // Free frames keep the last word of their former life.
    let anonymous: Frames = kind(PageKind::Anonymous).difference(free).copied().collect();
    let shared = kind(PageKind::SharedMemory);
    let on_lists = told(&|f| f & (LRU | ANON | SWAP_BACKED) == LRU | SWAP_BACKED);
    let waiting = &told(&|f| f & (LRU | ANON | SWAP_BACKED) == SWAP_BACKED) & &shared;
    assert!(waiting.len() <= IN_BATCHES, "pages of shared memory that are on no list: {waiting:?}");
    let rows = [
        ("anonymous", anonymous, told(&|f| f & (ANON | SLAB) == ANON && f & BUDDY == 0), DRIFT),
        ("shared memory", shared, &on_lists | &waiting, 0),
        ("page cache of files", kind(PageKind::File), Frames::new(), 0),
        ("reserved", kind(PageKind::Reserved), told(&|f| f & RESERVED != 0), 0),
        ("tails of compound pages", tails, told(&|f| f & COMPOUND_TAIL != 0), DRIFT),
    ];
    for (what, mine, told, drift) in rows {
        let difference: Vec<_> = mine.symmetric_difference(&told).map(|gfn| (gfn, flags.get(gfn))).collect();
        println!("  {} frames {what}: {} differ", told.len(), difference.len());
        assert!(difference.len() <= drift, "{what}: {difference:x?}");
        assert!(told.len() > 500 || what == "page cache of files", "control: too few frames {what}");
    }
    let slab = told(&|f| f & SLAB != 0);
    let misnamed = slab.difference(&kind(PageKind::Other)).count();
    println!("  {} frames of slabs: {misnamed} differ", slab.len());
    assert!(misnamed <= DRIFT && slab.len() > 1000, "slabs are taken for memory of processes");
}

/// How often each small page is mapped. Only the writer maps more pages after it has counted.
pub(crate) fn compare_counts(kernel: &Kernel<'_>, truth: &Truth) {
    let small = with(&flags(truth), |f| f & MMAP != 0 && f & (COMPOUND_HEAD | COMPOUND_TAIL | HUGE) == 0);
    let counts = truth.frame_counts();
    let mut different = 0;
    for gfn in &small {
        let told = usize::try_from(gfn.0).ok().and_then(|i| counts.get(i)).copied();
        let mine = kernel.page(*gfn).expect("a page descriptor").mapcount.wrapping_add(1);
        different += usize::from(Some(u64::from(mine)) != told);
    }
    println!("  {} mapping counts: {different} differ", small.len());
    assert!(different <= MAPPED_SINCE && small.len() > 3000, "mapping counts differ");
}

/// So many of a thousand frames in use may be of a kind that nothing tells.
const UNKNOWN_IN_1000: usize = 5;

/// What the scan of all descriptors tells of each frame.
pub(crate) fn compare_scan(kernel: &Kernel<'_>, processes: &[Process], truth: &Truth) -> FrameScan {
    let mut scan = kernel.scan_frames().expect("frames");
    scan.explain(kernel, processes).expect("frames of processes");
    scan.find_holders(kernel);
    let flags = flags(truth);
    let mine = |kinds: &[FrameKind]| -> Frames {
        scan.frames().filter(|(_, kind)| kinds.contains(kind)).map(|(gfn, _)| gfn).collect()
    };
    let told = |test: &dyn Fn(u64) -> bool| -> Frames {
        with(&flags, test).into_iter().filter(|gfn| kernel.ram().layout().contains(*gfn)).collect()
    };
    use FrameKind as Kind;
    let free = [Kind::Free, Kind::FreePerCpu];
    let anonymous = [Kind::Anonymous, Kind::Orphan, Kind::Merged, Kind::HugeTlb];
    let reserved = [Kind::Reserved, Kind::KernelImage, Kind::StructPages];
    let huge = [Kind::FreeHuge, Kind::HugeTlb, Kind::Anonymous, Kind::File];
    // What the guest says, of which kind that must be, and whether nothing else may be.
    let rows: [(&str, Frames, &[Kind], bool); 7] = [
        ("free", told(&|f| f & BUDDY != 0), &free, false),
        ("anonymous", told(&|f| f & (ANON | SLAB | BUDDY) == ANON), &anonymous, true),
        (
            "shared memory",
            told(&|f| f & (LRU | ANON | SWAP_BACKED) == LRU | SWAP_BACKED),
            &[Kind::SharedMemory],
            true,
        ),
        ("slab", told(&|f| f & SLAB != 0), &[Kind::Slab], false),
        ("page tables", told(&|f| f & PAGE_TABLE != 0), &[Kind::PageTable], false),
        ("reserved", told(&|f| f & RESERVED != 0), &reserved, true),
        ("huge pages", told(&|f| f & HUGE != 0), &huge, false),
    ];
    for (what, told, kinds, both) in rows {
        let mine = mine(kinds);
        let missing = told.difference(&mine).count();
        let more = if both { mine.difference(&told).count() } else { 0 };
        println!("  {} frames told {what}: {missing} of another kind, {more} more", told.len());
        assert!(missing <= DRIFT && more <= DRIFT, "{what}: the scan says otherwise");
        assert!(told.len() > 50, "control: too few frames {what}");
    }
    // Tails and heads of compound pages: what is one cannot be free or in single pages of the kernel.
    let compound = told(&|f| f & (COMPOUND_HEAD | COMPOUND_TAIL) != 0);
    let single = mine(&[Kind::Free, Kind::FreePerCpu, Kind::KernelBlock, Kind::PageTable, Kind::Unknown]);
    assert!(compound.intersection(&single).count() <= DRIFT, "compound pages are taken for single ones");

    let in_use: Frames = scan.frames().filter(|(_, kind)| !kind.is_free()).map(|(gfn, _)| gfn).collect();
    let unknown = mine(&[Kind::Unknown]);
    println!("  {} frames in use, {} of them unknown", in_use.len(), unknown.len());
    for gfn in &unknown {
        println!("    {gfn}: flags {:#x}", flags.get(gfn).copied().unwrap_or(0));
    }
    assert!(in_use.len() > 10_000, "control: too few frames in use");
    assert!(unknown.len() * 1000 <= in_use.len() * UNKNOWN_IN_1000, "too many frames are of no known kind");
    // What nothing explains must not be what processes fill: those are mapped or on a reclaim list.
    assert!(unknown.iter().all(|gfn| flags.get(gfn).is_none_or(|f| f & (LRU | MMAP | ANON) == 0)));
    scan
}

/// What is on no free list and yet free: next to nothing in a guest that rests, and nothing that a table of the kernel's
/// leads to.
pub(crate) fn compare_unlisted(kernel: &Kernel<'_>, free: &Frames, scan: &FrameScan, truth: &Truth) {
    let (flags, census) = (flags(truth), kernel.census().expect("descriptors"));
    let unlisted = kernel.unlisted_frames(&census.unlisted, |gfn| free.contains(&gfn)).expect("few frames");
    println!("  {} frames are free and on no list", unlisted.len());
    assert!(unlisted.len() <= DRIFT, "{unlisted:?}");
    for gfn in unlisted {
        assert_eq!(scan.kind(gfn), FrameKind::Free, "{gfn}");
        assert_eq!(flags[&gfn] & IN_USE, 0, "{gfn}");
    }
    assert!(!census.unlisted.is_empty(), "control: bodies of blocks on lists of CPUs look the same");
}

/// A page for the documentation: how many frames are of each kind, and whose.
pub(crate) fn table(kernel: &Kernel<'_>, scan: &FrameScan) -> Vec<String> {
    let mut rows: BTreeMap<FrameKind, (usize, BTreeMap<String, usize>)> = BTreeMap::new();
    for (gfn, kind) in scan.frames() {
        let row = rows.entry(kind).or_default();
        row.0 += 1;
        if let Ok(Some(owner)) = kernel.frame_owner(scan, gfn) {
            *row.1.entry(owner.to_string()).or_default() += 1;
        }
    }
    let all: usize = rows.values().map(|(count, _)| count).sum();
    let in_use: usize = rows.iter().filter(|(kind, _)| !kind.is_free()).map(|(_, (count, _))| count).sum();
    let unknown = rows.get(&FrameKind::Unknown).map_or(0, |(count, _)| *count);
    let percent = |part: usize, whole: usize| format!("{:.2} %", part as f64 * 100.0 / whole as f64);
    let mut lines = vec![
        format!(
            "{} frames, {in_use} in use, of which {} are of a known kind.",
            all,
            percent(in_use - unknown, in_use)
        ),
        String::new(),
        "| kind | frames | share of RAM | owned | owners, the largest |".to_owned(),
        "|---|---|---|---|---|".to_owned(),
    ];
    for (kind, (count, owners)) in rows {
        let owned: usize = owners.values().sum();
        let mut largest: Vec<_> = owners.into_iter().collect();
        largest.sort_by_key(|(_, frames)| std::cmp::Reverse(*frames));
        let largest = largest.iter().take(4).map(|(name, frames)| format!("{name} ({frames})"));
        lines.push(format!(
            "| {} | {count} | {} | {owned} | {} |",
            kind.name(),
            percent(count, all),
            largest.collect::<Vec<_>>().join(", ")
        ));
    }
    lines
}
