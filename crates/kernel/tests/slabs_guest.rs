//! Free slab objects of real guests: nothing that is in use is called free, what was freed is found, and the
//! walk holds at whatever moment the guest is stopped.

use elision_kernel::{FreeObject, Kernel, KernelError, ProfileCache};
use elision_memory::{Budget, FileOffset, Gpa, Gva, Ram};
use elision_testbed::{Error, GuestOptions, Spawn, search, secret};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const FREED: [&str; 3] = ["freed-msg", "freed-unix", "freed-xattr"];
const STOPS: u32 = 20;

#[test]
fn free_objects_of_5_10_are_free() -> Result<(), Error> {
    look(&GuestOptions::new("5.10"))
}

#[test]
fn free_objects_of_6_1_are_free() -> Result<(), Error> {
    look(&GuestOptions::new("6.1"))
}

#[test]
fn free_objects_of_6_12_are_free() -> Result<(), Error> {
    look(&GuestOptions::new("6.12"))
}

#[test]
fn free_objects_of_7_are_free() -> Result<(), Error> {
    look(&GuestOptions::new("7"))
}

fn look(options: &GuestOptions) -> Result<(), Error> {
    let mut guest = options.boot()?;
    guest.control().spawn(&Spawn::new("threads", "heap=1M,pipe-unread,tmpfs,memfd", "threads"))?;
    guest.control().spawn(&Spawn::new("forked", "heap=1M,file,pipe-read", "fork"))?;
    let ram = guest.ram()?;
    let kernel = Kernel::open(&ram, &[], &ProfileCache::disabled()).expect("a kernel");
    let (mut whole, mut torn) = (0, 0);
    for i in 0..STOPS {
        // Something is always being born or about to end.
        guest.control().spawn(&Spawn::new(&format!("short{i}"), "heap=64K,pipe-read", "end"))?;
        guest.endpoints().stop()?;
        match compare(&kernel) {
            Ok((free, live)) => {
                whole += 1;
                assert!(free > 2000 && live > 200, "control: only {free} free and {live} known objects");
            }
            Err(error) if error.is_transient() => {
                println!("  stop {i}: {error}");
                torn += 1;
            }
            Err(error) => panic!("{error}"),
        }
        guest.endpoints().cont()?;
        std::thread::sleep(Duration::from_millis(u64::from(7 * i % 11)));
    }
    println!("{}: {whole} of {STOPS} stops without a contradiction", kernel.release());
    assert!(torn <= STOPS / 4, "{torn} of {STOPS} stops with a contradiction");

    for label in FREED {
        guest.control().spawn(&Spawn::new(label, label, "block"))?;
    }
    guest.endpoints().stop()?;
    let content = content_of(&kernel);
    for (label, found) in FREED.iter().zip(search::find(&ram, &FREED.map(secret))?) {
        let inside = found.iter().filter(|at| is_inside(&content, &ram, **at)).count();
        println!("  {label}: {} copies, {inside} of them in free objects", found.len());
        assert!(inside >= 8, "{label}: only {inside} of {} copies are in free objects", found.len());
    }
    // Stacks: what a guest that is stopped now has left there.
    guest.endpoints().cont()?;
    guest.control().spawn(&Spawn::new("freed-stack", "freed-stack", "block"))?;
    guest.endpoints().stop()?;
    let mut stacks = BTreeMap::new();
    let mut sizes = 0;
    let walk = kernel.idle_stacks(&[], &mut |range| {
        sizes += range.end.0 - range.start.0;
        let parts = kernel.frames_of(range.start, range.end.0 - range.start.0).expect("its frames");
        stacks.extend(parts.into_iter().map(|(gpa, len)| (gpa, gpa.wrapping_add(len))));
    });
    walk.expect("idle stacks");
    let found = search::find(&ram, &[secret("freed-stack")])?.remove(0);
    let inside = found.iter().filter(|at| is_inside(&stacks, &ram, **at)).count();
    println!("  freed-stack: {} copies, {inside} of them in {sizes} bytes of idle stacks", found.len());
    assert!(sizes >= 2 * (48 << 10), "control: only {sizes} bytes of idle stacks");
    let idle = kernel.idle_threads().expect("idle threads");
    assert_eq!(idle.len(), kernel.cpu_count(), "each CPU has an idle task");
    for thread in idle {
        assert!(thread.tid == 0 && kernel.stack(&thread).expect("its stack").is_some(), "{thread:?}");
    }
    Ok(())
}

/// Counts of free objects, and of objects known to be in use; none is both.
fn compare(kernel: &Kernel<'_>) -> Result<(usize, usize), KernelError> {
    let mut free: BTreeMap<Gva, FreeObject> = BTreeMap::new();
    let mut twice = None;
    kernel.free_objects(&mut |object| twice = free.insert(object.at, object).or(twice))?;
    assert_eq!(twice, None, "an object is free twice");
    let mut live = BTreeSet::new();
    let slots = Budget::new(1 << 20);
    for process in kernel.processes()? {
        live.extend(process.threads.iter().map(|thread| thread.task));
        live.extend(process.mm);
        kernel.for_each_file(&process, &slots, &mut |file| {
            let open = kernel.open_file(file)?;
            live.extend([file, open.inode, open.private]);
            Ok(())
        })?;
        if let Some(mm) = process.mm {
            live.extend(kernel.vmas(kernel.mm(mm)?)?.into_iter().filter_map(|vma| vma.file));
        }
    }
    live.remove(&Gva(0));
    for at in &live {
        let before = free.range(..=*at).next_back().map(|(_, object)| object);
        let inside = before.filter(|object| at.0 - object.at.0 < object.size);
        assert_eq!(inside, None, "{at} is in use");
    }
    Ok((free.len(), live.len()))
}

fn content_of(kernel: &Kernel<'_>) -> BTreeMap<Gpa, Gpa> {
    let mut content = BTreeMap::new();
    for _ in 0..3 {
        content.clear();
        let walk = kernel.free_objects(&mut |object| {
            content.extend(object.content().into_iter().filter(|p| !p.is_empty()).map(|p| (p.start, p.end)));
        });
        if walk.is_ok() {
            return content;
        }
    }
    panic!("the guest stands in the middle of a change");
}

fn is_inside(content: &BTreeMap<Gpa, Gpa>, ram: &Ram, at: FileOffset) -> bool {
    let at = ram.layout().gpa_of(at).expect("an address");
    content.range(..=at).next_back().is_some_and(|(_, end)| at < *end)
}
