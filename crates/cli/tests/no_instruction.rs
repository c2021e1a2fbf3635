//! No user instruction of an excluded process runs after a restore: its counter, in a page that it shares
//! with a process that stays, shows no further count. The same image is restored many times, because whether
//! a process runs first is a race.

mod support;

use elision_testbed::{GuestOptions, Spawn, Status, counters};
use std::time::Duration;
use support::{Images, end_of, in_full, json, restore, save};

const END_LIMIT: Duration = Duration::from_secs(2);

/// Saves a guest with the processes that `start` starts, restores it `times` times, and checks each time.
fn restored_many_times(
    options: &GuestOptions,
    times: u32,
    start: impl FnOnce(&mut elision_testbed::Guest) -> Vec<(String, i32)>,
) {
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
    println!(
        "{times} restores, {} processes, all gone {longest:?} of guest time after the stop",
        processes.len()
    );
    assert!(longest < END_LIMIT, "the last process ended only {longest:?} of guest time after the stop");
}

#[test]
fn spinning_sleeping_blocked_and_with_64_threads() {
    for vcpus in [1, 2] {
        let times = if in_full() { 50 } else { 4 };
        restored_many_times(&GuestOptions::new("6.1").vcpus(vcpus), times, |guest| {
            ["spin", "sleep=5ms", "block", "threads=64"]
                .iter()
                .map(|mode| {
                    let spawned =
                        guest.control().spawn(&Spawn::new(mode, "heap", mode).uid(1234)).expect(mode);
                    ((*mode).to_owned(), spawned.pid)
                })
                .collect()
        });
    }
}

#[test]
fn two_hundred_processes_at_once() {
    let kernels: &[&str] = if in_full() { &["6.1", "6.12", "7"] } else { &["6.12"] };
    for kernel in kernels {
        let times = if in_full() { 10 } else { 2 };
        restored_many_times(&GuestOptions::new(kernel), times, |guest| {
            let spawn = |label: &str, mode: &str| Spawn::new(label, "stack", mode).uid(1234);
            let mut all = guest.control().crowd(150, &spawn("asleep", "block")).expect("a crowd");
            all.extend(guest.control().crowd(50, &spawn("awake", "sleep=10ms")).expect("a crowd"));
            all.into_iter().map(|s| (s.label, s.pid)).collect()
        });
    }
}
