//! The gap that the kernel reserves by chance on the stack of each system call holds what earlier calls left there:
//! it is found, and cleared for processes that are left out, and for nobody else.

#[path = "support/mod.rs"]
mod support;

use elision_image::Image;
use elision_kernel::{Kernel, ProfileCache};
use elision_testbed::{GuestOptions, Spawn, pages};
use std::collections::BTreeMap;
use std::path::Path;
use support::{Images, json, save};

const GROUP: &str = "/left-out";
/// A gap may be too narrow to be told from the frame above it.
const PROCESSES: usize = 12;
const ENOUGH: usize = PROCESSES / 2;

/// Bytes that are not zero in the gaps of each process that has some.
fn gaps(image: &Path, comm: &str) -> BTreeMap<u32, usize> {
    let image = Image::open(image).expect("an image");
    let ram = image.ram().expect("its RAM");
    let kernel = Kernel::open(&ram, &[], &ProfileCache::disabled()).expect("its kernel");
    let mut found = BTreeMap::new();
    for process in kernel.processes().expect("its processes").iter().filter(|p| p.comm == comm) {
        for thread in process.threads.iter().filter(|t| !t.dead && !t.on_cpu) {
            let stack = kernel.stack(thread).expect("a stack").expect("one that is there");
            let Some(gap) = kernel.unused_gap(&stack).expect("its frames") else { continue };
            for (gpa, len) in kernel.frames_of(gap.start, gap.end.0 - gap.start.0).expect("its memory") {
                let mut bytes = vec![0; usize::try_from(len).expect("a part of a frame")];
                ram.read(gpa, &mut bytes).expect("RAM");
                *found.entry(process.pid).or_default() += bytes.iter().filter(|b| **b != 0).count();
            }
        }
    }
    found
}

#[test]
fn gaps_on_stacks_of_excluded_processes_are_cleared() {
    let kernels: &[&str] = if pages::in_full() { &["6.1", "6.12", "7"] } else { &["7"] };
    for kernel in kernels {
        let mut guest = GuestOptions::new(kernel).boot().expect("the guest boots");
        for i in 0..PROCESSES {
            let spawn = |form: &str| Spawn::new(&format!("{form}{i}"), "pipe-unread", "block").comm(form);
            guest.control().spawn(&spawn("gone").cgroup(GROUP)).expect("a process");
            guest.control().spawn(&spawn("stays")).expect("a process");
        }
        let images = Images::new();
        let (plain, elided) = (images.path("plain"), images.path("elided"));
        json(&mut save(&guest, &plain, &[]));
        json(&mut save(&guest, &elided, &[&format!("cgroup={GROUP}")]));
        let filled = |image: &Path, comm: &str| gaps(image, comm).values().filter(|n| **n > 0).count();
        let words =
            |form: &str| format!("{kernel}: {form}: {:?}, {:?}", gaps(&plain, form), gaps(&elided, form));
        println!("{}\n{}", words("gone"), words("stays"));
        for form in ["gone", "stays"] {
            assert!(filled(&plain, form) >= ENOUGH, "control: {}", words(form));
        }
        assert!(gaps(&elided, "gone").len() >= ENOUGH, "{}", words("gone"));
        assert_eq!(filled(&elided, "gone"), 0, "{}", words("gone"));
        assert!(filled(&elided, "stays") >= ENOUGH, "{}", words("stays"));
    }
}
