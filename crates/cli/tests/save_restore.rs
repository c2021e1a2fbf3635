//! The main job on real guests: what is excluded is gone from the image and ends after the restore,
//! everything else goes on.

mod support;

use elision_memory::Ram;
use elision_testbed::{GuestOptions, Spawn, Status, counters, kernels, pages, search, secret};
use std::time::Duration;
use support::{Images, copies, elision, end_limit, end_of, json, restore, save};

const PLACES: &str = "heap,stack,thp,thp-rest,shm,memfd,cow";
/// The same of a process that stays, but for what it has given back of a huge page: the kernel may have taken that.
const KEPT_PLACES: &str = "heap,stack,thp,shm,memfd,cow";
/// How each excluded process behaves while it is saved.
const MODES: [&str; 5] = ["spin", "sleep", "block", "threads", "fork"];

const HEADER: [&str; 2] = [
    "| kernel | vCPUs | levels | MiB | copies before (excluded, ended) | after | bystander before | after | longest end, ms |",
    "|---|---|---|---|---|---|---|---|---|",
];

/// One guest through the whole job; gives its line of the report.
fn whole_job(options: &GuestOptions, name: &str) -> String {
    let mut guest = options.boot().expect("the guest boots");
    let spawned: Vec<_> = MODES
        .iter()
        .map(|mode| {
            let spawn = Spawn::new(mode, PLACES, mode).uid(1234);
            guest.control().spawn(&spawn).unwrap_or_else(|e| panic!("{mode}: {e}"))
        })
        .collect();
    guest.control().spawn(&Spawn::new("bystander", KEPT_PLACES, "sleep=20ms")).expect("a bystander");
    // Last, because what it frees is the first to be used again.
    guest.control().spawn(&Spawn::new("ended", PLACES, "end")).expect("a process that ends");

    // Freed memory is left out of every image, so the control for it is the VM's own memory.
    let live = guest.ram().expect("its RAM");
    let freed = search::find(&live, &[secret("ended")]).expect("a search")[0].len();
    assert!(freed > 1000, "control: only {freed} copies of the ended process");

    let images = Images::new();
    let (plain, elided) = (images.path("plain"), images.path("elided"));
    json(&mut save(&guest, &plain, &[]));
    let saved = json(&mut save(&guest, &elided, &["uid=1234"]));
    assert!(saved["excluded"].as_array().is_some_and(|pids| pids.len() >= MODES.len()), "{saved}");

    let labels: Vec<&str> = MODES.iter().copied().chain(["bystander", "ended"]).collect();
    let before = copies(&plain, &labels);
    let after = copies(&elided, &labels);
    for (i, mode) in MODES.iter().enumerate() {
        assert!(before[i] > 1000, "control: {mode} has only {} copies", before[i]);
        assert_eq!(after[i], 0, "{mode} is in the elided image");
    }
    assert_eq!(after[MODES.len() + 1], 0, "freed memory of an ended process is in the image");
    let bystanders = (before[MODES.len()], after[MODES.len()]);
    assert!(
        bystanders.0 > 1000 && bystanders.1 >= bystanders.0 - 16,
        "the bystander's memory is gone: {bystanders:?}"
    );

    assert!(elision().arg("verify").arg(&elided).status().expect("elision starts").success(), "verify");
    let image = elision_image::Image::open(&elided).expect("an image");
    let ram: Ram = image.ram().expect("its RAM");
    let stopped_at = counters::clock(&ram).expect("a clock").expect("the clock's slot");
    let counts: Vec<_> =
        MODES.iter().map(|m| counters::count(&ram, m).expect("RAM").expect("a counter")).collect();

    let mut restored = restore(options, &elided);
    let mut longest = Duration::ZERO;
    let bystander = restored.control().count("bystander").expect("counters").expect("its counter");
    for (i, process) in spawned.iter().enumerate() {
        match end_of(&mut restored, process.pid, Duration::from_secs(20)) {
            Status::Signalled { signal: 9, at_ns } => {
                let took = Duration::from_nanos(at_ns.saturating_sub(stopped_at));
                longest = longest.max(took);
                assert!(took < end_limit(), "{}: ended only {took:?} of guest time after the stop", MODES[i]);
            }
            other => panic!("{} after the restore: {other:?}", MODES[i]),
        }
        let count = restored.control().count(MODES[i]).expect("counters").expect("its counter");
        assert_eq!(count, counts[i], "{} ran after the restore", MODES[i]);
    }
    let health = restored.control().health(3).expect("the guest answers");
    assert!(health.errors.is_empty(), "{health:?}");
    let later = restored.control().count("bystander").expect("counters").expect("its counter");
    assert!(later > bystander, "the bystander stands still");
    assert!(restored.console_problems().is_empty(), "{:?}", restored.console_problems());
    let log = restored.control().dmesg().expect("the kernel log");
    assert_eq!(elision_testbed::console::problems(&log), Vec::<String>::new());
    // The source never noticed.
    for process in &spawned {
        assert_eq!(guest.control().status(process.pid).expect("the source runs"), Status::Running);
    }
    assert!(guest.console_problems().is_empty(), "{:?}", guest.console_problems());
    let excluded: u64 = before[..MODES.len()].iter().sum::<u64>() + freed as u64;
    let (copies_before, copies_after) = bystanders;
    format!("| {name} | {excluded} | 0 | {copies_before} | {copies_after} | {} |", longest.as_millis())
}

/// Every kernel with 1 and 2 vCPUs, four- and five-level paging, below and above the PCI hole; in the short
/// form of the tests a few of them that together have each of these.
#[test]
fn whole_matrix() {
    const SHORT: [(&str, u32, bool, u64); 3] =
        [("6.1", 1, true, 512), ("6.12", 2, false, 5120), ("7", 2, false, 512)];
    let all = kernels::NAMES.iter().flat_map(|kernel| {
        [1, 2].into_iter().flat_map(move |vcpus| {
            [false, true]
                .into_iter()
                .flat_map(move |four_level| [512, 5120].map(|mib| (*kernel, vcpus, four_level, mib)))
        })
    });
    let can_be = |kernel: &str, four_level: bool| four_level || kernel != "5.10"; // built without five levels
    let all = all.filter(|(kernel, _, four_level, _)| can_be(kernel, *four_level));
    let cases: Vec<_> = if pages::in_full() { all.collect() } else { SHORT.to_vec() };
    let mut report = Vec::new();
    for (kernel, vcpus, four_level, mib) in cases {
        let mut options = GuestOptions::new(kernel).vcpus(vcpus).memory_mib(mib);
        if four_level {
            options = options.four_level();
        }
        report.push(whole_job(
            &options,
            &format!("{kernel} | {vcpus} | {} | {mib}", if four_level { 4 } else { 5 }),
        ));
        println!("{}", report.last().map_or("", String::as_str));
    }
    if pages::in_full() {
        pages::write_section(
            "docs/supported-kernels.md",
            "matrix",
            &HEADER.iter().map(|l| (*l).to_owned()).chain(report).collect::<Vec<_>>(),
        )
        .expect("the page");
    }
}
