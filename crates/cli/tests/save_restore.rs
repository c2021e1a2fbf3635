//! The main job on real guests: what is excluded is gone from the image and ends after the restore,
//! everything else goes on.

mod support;

use elision_testbed::{GuestOptions, Spawn, Status, counters};
use elision_memory::Ram;
use std::time::Duration;
use support::{Images, copies, end_of, json, restore, save};

const PLACES: &str = "heap,stack,thp,shm,memfd,cow";
/// How each excluded process behaves while it is saved.
const MODES: [&str; 5] = ["spin", "sleep", "block", "threads", "fork"];
/// Guest time within which every excluded process must have ended.
const END_LIMIT: Duration = Duration::from_secs(2);

fn whole_job(options: &GuestOptions) {
    let mut guest = options.boot().expect("the guest boots");
    let spawned: Vec<_> = MODES
        .iter()
        .map(|mode| {
            let spawn = Spawn::new(mode, PLACES, mode).uid(1234);
            guest.control().spawn(&spawn).unwrap_or_else(|e| panic!("{mode}: {e}"))
        })
        .collect();
    guest.control().spawn(&Spawn::new("ended", PLACES, "end")).expect("a process that ends");
    guest.control().spawn(&Spawn::new("bystander", PLACES, "sleep=20ms")).expect("a bystander");

    let images = Images::new();
    let (plain, elided) = (images.path("plain"), images.path("elided"));
    json(&mut save(&guest, &plain, &[]));
    let saved = json(&mut save(&guest, &elided, &["uid=1234"]));
    assert!(saved["excluded"].as_array().is_some_and(|pids| pids.len() >= MODES.len()), "{saved}");

    let labels: Vec<&str> = MODES.iter().copied().chain(["bystander", "ended"]).collect();
    let before = copies(&plain, &labels);
    let after = copies(&elided, &labels);
    println!("copies {labels:?} plain {before:?} elided {after:?}");
    for (i, mode) in MODES.iter().enumerate() {
        assert!(before[i] > 1000, "control: {mode} has only {} copies", before[i]);
        assert_eq!(after[i], 0, "{mode} is in the elided image");
    }
    assert_eq!(after[MODES.len() + 1], 0, "freed memory of an ended process is in the image");
    assert!(after[MODES.len()] > 1000, "the bystander's memory is gone");

    let image = elision_image::Image::open(&elided).expect("an image");
    let ram: Ram = image.ram().expect("its RAM");
    let stopped_at = counters::clock(&ram).expect("a clock").expect("the clock's slot");
    let counts: Vec<_> = MODES.iter().map(|m| counters::count(&ram, m).expect("RAM").expect("a counter")).collect();

    let mut restored = restore(options, &elided);
    let bystander = restored.control().count("bystander").expect("counters").expect("its counter");
    for (i, process) in spawned.iter().enumerate() {
        match end_of(&mut restored, process.pid, Duration::from_secs(20)) {
            Status::Signalled { signal: 9, at_ns } => {
                let took = Duration::from_nanos(at_ns.saturating_sub(stopped_at));
                assert!(took < END_LIMIT, "{}: ended only {took:?} of guest time after the stop", MODES[i]);
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
}

#[test]
fn kernel_6_1_two_vcpus() {
    whole_job(&GuestOptions::new("6.1"));
}
