//! What the walkers read out of a stopped guest's RAM, compared with what the guest's own kernel
//! said just before: processes, areas, page tables, free lists and page descriptors.
//!
//! The guest runs on for a moment between its answer and the stop. What may move in that moment is
//! named at each comparison and bounded; everything else must be equal.

mod frames;
mod memory;
mod processes;

use elision_kernel::{Kernel, ProfileCache};
use elision_memory::Ram;
use elision_testbed::truth::Truth;
use elision_testbed::{Error, GuestOptions, Spawn, Status, pages};
use std::time::{Duration, Instant};

const EVERYWHERE: &str = "heap,stack,thp,hugetlb,shm,memfd,tmpfs,file,cow,xmm,pipe-unread";

#[test]
fn walks_of_5_10_equal_what_the_guest_says() -> Result<(), Error> {
    compare(&GuestOptions::new("5.10"), false, Some("5.10"))
}

#[test]
fn walks_of_6_1_equal_what_the_guest_says() -> Result<(), Error> {
    compare(&GuestOptions::new("6.1"), true, Some("6.1"))
}

#[test]
fn walks_of_6_1_with_four_levels_equal_what_the_guest_says() -> Result<(), Error> {
    compare(&GuestOptions::new("6.1").four_level(), false, None)
}

#[test]
fn walks_of_6_12_equal_what_the_guest_says() -> Result<(), Error> {
    compare(&GuestOptions::new("6.12"), true, Some("6.12"))
}

#[test]
fn walks_of_7_equal_what_the_guest_says() -> Result<(), Error> {
    compare(&GuestOptions::new("7"), true, Some("7"))
}

/// `page` names the kernel in the documentation's page on its frames, which the full tests write.
fn compare(options: &GuestOptions, la57: bool, page: Option<&str>) -> Result<(), Error> {
    let mut guest = options.boot()?;
    let control = guest.control();
    let victim = Spawn::new("victim", EVERYWHERE, "threads").uid(1234).cgroup("/elision.slice/pod-abc");
    control.spawn(&victim.comm("a (b) c").exe("/opt/victim"))?;
    control.spawn(&Spawn::new("forked", "heap,shm,cow", "fork").uid(77).tty("pty"))?;
    control.spawn(&Spawn::new("on-a-terminal", "heap=64K", "block").tty("pty"))?;
    // It reports before it ends: nobody must be about to go while the truth is told.
    let ended = control.spawn(&Spawn::new("ended", EVERYWHERE, "end"))?;
    let until = Instant::now() + Duration::from_secs(60);
    while control.status(ended.pid)? == Status::Running {
        assert!(Instant::now() < until, "the process that ends goes on");
        std::thread::sleep(Duration::from_millis(20));
    }
    let truth = guest.truth(false, false)?;
    guest.endpoints().stop()?;
    let (release, lines) = compare_with(&guest.ram()?, &truth, la57);
    if let Some(kernel) = page.filter(|_| pages::in_full()) {
        let title = format!("What the frames of a guest with kernel {release} are used for");
        pages::write_result(&format!("frames-{kernel}"), &title, &lines)?;
    }
    Ok(())
}

fn compare_with(ram: &Ram, truth: &Truth, la57: bool) -> (String, Vec<String>) {
    let kernel = Kernel::open(ram, &[], &ProfileCache::disabled()).expect("a kernel");
    println!("{}, {} levels of page tables", kernel.release(), if kernel.la57() { 5 } else { 4 });
    assert_eq!(kernel.la57(), la57, "the guest is not what it was to be");
    let all = kernel.processes().expect("processes");
    let both = processes::compare(&all, truth);
    processes::compare_command_lines(&kernel, &both, truth);
    memory::compare_areas(&kernel, &both, truth);
    memory::compare_pages(&kernel, &both, truth);
    let free = frames::compare_free(&kernel, truth);
    frames::compare_kinds(&kernel, truth, &free);
    frames::compare_counts(&kernel, truth);
    let scan = frames::compare_scan(&kernel, &all, truth);
    frames::compare_unlisted(&kernel, &free, &scan, truth);
    (kernel.release().to_owned(), frames::table(&kernel, &scan))
}
