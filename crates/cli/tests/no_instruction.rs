//! No user instruction of an excluded process runs after a restore: its counter, in a page that it shares
//! with a process that stays, shows no further count. The same image is restored many times, because whether
//! a process runs first is a race.

mod support;

use elision_testbed::{GuestOptions, Spawn, Status, counters, kernels, pages};
use std::time::Duration;
use support::{Images, end_limit, end_of, json, restore, save};

/// Saves a guest with the processes that `start` starts, restores it `times` times, and checks each time.
/// Gives a line of the report.
fn restored_many_times(
    name: &str,
    options: &GuestOptions,
    times: u32,
    start: impl FnOnce(&mut elision_testbed::Guest) -> Vec<(String, i32)>,
) -> String {
    let mut guest = options.boot().expect("the guest boots");
    let processes = start(&mut guest);
    let images = Images::new();
    let image = images.path("image");
    json(&mut save(&guest, &image, &["uid=1234"]));
    let ram = elision_image::Image::open(&image).expect("an image").ram().expect("its RAM");
    let counted = counters::find(&ram).expect("counters");
    let count = |label: &str| {
        let hash = counters::label_hash(label);
        counted.iter().find(|c| c.label == hash).expect("a counter").count
    };
    let stopped_at = counters::clock(&ram).expect("a search").expect("a clock");

    // The control: in the VM that goes on, they do count.
    let moved = |guest: &mut elision_testbed::Guest| {
        let now = guest.control().counters().expect("counters");
        processes
            .iter()
            .filter(|(label, _)| now.iter().any(|c| c.label == *label && c.count > count(label)))
            .count()
    };
    std::thread::sleep(Duration::from_millis(200));
    assert!(moved(&mut guest) > 0, "control: nobody counts even in the VM that goes on");
    drop(guest);

    let mut longest = Duration::ZERO;
    for round in 0..times {
        let mut restored = restore(options, &image);
        for (label, pid) in &processes {
            match end_of(&mut restored, *pid, Duration::from_secs(20)) {
                Status::Signalled { signal: 9, at_ns } => {
                    longest = longest.max(Duration::from_nanos(at_ns.saturating_sub(stopped_at)));
                }
                other => panic!("round {round}: {label} is {other:?}"),
            }
        }
        assert_eq!(moved(&mut restored), 0, "round {round}: somebody ran after the restore");
        assert!(restored.console_problems().is_empty(), "round {round}: {:?}", restored.console_problems());
    }
    assert!(longest < end_limit(), "the last process ended only {longest:?} of guest time after the stop");
    let millis = longest.as_millis();
    let line = format!("| {name} | {times} | {} | 0 | {millis} |", processes.len());
    println!("{line}");
    line
}

const HEADER: [&str; 2] = [
    "| guest | restores | excluded processes | that ran a user instruction | last end, ms of guest time |",
    "|---|---|---|---|---|",
];

/// Writes the page of a test that ran in full.
fn record(page: &str, title: &str, lines: Vec<String>) {
    if pages::in_full() {
        let lines: Vec<_> = HEADER.iter().map(|line| (*line).to_owned()).chain(lines).collect();
        pages::write_result(page, title, &lines).expect("the page");
    }
}

#[test]
fn spinning_sleeping_blocked_and_with_64_threads() {
    let times = if pages::in_full() { 50 } else { 4 };
    let guests = [1, 2].map(|vcpus| {
        let name = format!("6.1, {vcpus} vCPUs: spinning, sleeping, blocked, 64 threads");
        restored_many_times(&name, &GuestOptions::new("6.1").vcpus(vcpus), times, |guest| {
            ["spin", "sleep=5ms", "block", "threads=64"]
                .iter()
                .map(|mode| {
                    let spawned =
                        guest.control().spawn(&Spawn::new(mode, "heap", mode).uid(1234)).expect(mode);
                    ((*mode).to_owned(), spawned.pid)
                })
                .collect()
        })
    });
    record("no-instruction", "No instruction of an excluded process runs after a restore", guests.to_vec());
}

#[test]
fn two_hundred_processes_at_once() {
    let kernels: &[&str] = if pages::in_full() { &kernels::NAMES } else { &["6.12"] };
    let times = if pages::in_full() { 10 } else { 2 };
    let guests = kernels.iter().map(|kernel| {
        let name = format!("{kernel}, 2 vCPUs: 150 blocked, 50 sleeping for 10 ms");
        restored_many_times(&name, &GuestOptions::new(kernel), times, |guest| {
            let spawn = |label: &str, mode: &str| Spawn::new(label, "stack", mode).uid(1234);
            let mut all = guest.control().crowd(150, &spawn("asleep", "block")).expect("a crowd");
            all.extend(guest.control().crowd(50, &spawn("awake", "sleep=10ms")).expect("a crowd"));
            all.into_iter().map(|s| (s.label, s.pid)).collect()
        })
    });
    record("two-hundred-processes", "Two hundred excluded processes end at once", guests.collect());
}
