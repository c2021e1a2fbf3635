//! VMs that nobody prepared are looked at and saved: whatever RAM QEMU gives them, and restored ones.

mod support;

use elision_qemu::Vm;
use elision_testbed::{Endpoints, Guest, GuestOptions, RamMode, Spawn, pages};
use serde_json::Value;
use std::process::Command;
use support::{Images, copies, elision, json, refuses, restore, save, save_as};

/// Memory of QEMU that looking at it may take, in KiB: buffers of its own, for the answers that it gives.
const ROOM: u64 = 16 << 10;
/// What is said of a VM that was restored. By a snapshot it cannot be saved: its memory is mapped from the image.
const RESTORED: &str = "restored";
/// Frames of what a victim plants in its heap.
const PLANTED: u64 = (8 << 20) / 4096;

fn asked(verb: &str, guest: &Guest) -> Command {
    let mut command = elision();
    command.arg(verb).arg("--qmp").arg(guest.endpoints().qmp_socket());
    command
}

/// Of a process: id, parent, user, name, program, number of threads.
type Facts = (u64, u64, u64, String, String, u64);

fn by_guest(guest: &mut Guest) -> Vec<Facts> {
    let processes = guest.control().processes().expect("the guest answers");
    let number = |n: i32| u64::try_from(n).expect("a process id");
    let facts = processes.into_iter().filter(|p| !p.exe.is_empty());
    let facts = facts.map(|p| (number(p.pid), number(p.ppid), p.uid.into(), p.comm, p.exe, p.threads.into()));
    facts.collect()
}

fn by_elision(guest: &Guest) -> Vec<Facts> {
    let listing = json(&mut asked("ps", guest));
    let number = |row: &Value, key: &str| row[key].as_u64().expect("a number");
    let text = |row: &Value, key: &str| row[key].as_str().expect("a text").to_owned();
    let rows = listing["processes"].as_array().expect("processes").iter();
    let facts = rows.map(|r| {
        let (pid, ppid, uid) = (number(r, "pid"), number(r, "ppid"), number(r, "uid"));
        (pid, ppid, uid, text(r, "comm"), text(r, "exe"), number(r, "threads"))
    });
    facts.collect()
}

fn play(guest: &mut Guest) {
    for (label, mode, uid) in [("victim", "spin", 1234), ("bystander", "sleep=20ms", 0)] {
        let spawn = Spawn::new(label, "heap=8M,stack,shm", mode).uid(uid);
        guest.control().spawn(&spawn).unwrap_or_else(|e| panic!("{label}: {e}"));
    }
}

/// Memory that counts as used, in KiB.
fn used(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("QEMU runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// The plan without the victim, which is in user mode when it is not interrupted just then.
fn plan(guest: &Guest) -> Value {
    for _ in 0..20 {
        let planned = json(asked("plan", guest).args(["--exclude", "uid=1234"]));
        let vcpus = planned["vcpus"].as_array().expect("vCPUs");
        if vcpus.iter().any(|vcpu| vcpu["clear_general"] == true) {
            return planned;
        }
    }
    panic!("the victim is on no vCPU");
}

/// What `ps` says must be the truth, and QEMU must not grow by it, nor by a plan, which is given back.
fn look_at(guest: &mut Guest, what: &str) -> Value {
    let pid = Vm::attach(&guest.endpoints().qmp_socket()).expect("a VM").process().pid;
    let truth = by_guest(guest);
    let before = used(pid);
    assert_eq!(by_elision(guest), truth, "{what}");
    let listed = used(pid);
    let planned = plan(guest);
    let grown = used(pid);
    println!(
        "{what}: QEMU has {before}, then {listed}, then {grown} KiB; planned in {} ms of {} ms",
        planned["planning_ms"], planned["pause_ms"]
    );
    assert!(listed < before + ROOM, "{what}: {before} KiB grew to {listed}");
    assert!(grown < before + ROOM, "{what}: {before} KiB grew to {grown}");
    planned
}

/// Frames of the processes that are left out, and of memory that is free.
fn frames(planned: &Value) -> (u64, u64) {
    let rows = planned["excluded"].as_array().expect("processes");
    let excluded = rows.iter().map(|row| row["frames"].as_u64().expect("a number")).sum();
    let dropped = &planned["plan"]["dropped_frames"];
    (excluded, dropped["free"].as_u64().expect("free memory"))
}

fn close(a: u64, b: u64) -> bool {
    a.abs_diff(b) <= b / 4
}

/// An image without the victim runs by the command that was recorded, and the bystander with it.
fn saved_and_restored(guest: Guest, options: &GuestOptions, what: &str) {
    let images = Images::new();
    let image = images.path("image");
    let mut command = save(&guest, &image, &["uid=1234"]);
    if what == RESTORED {
        let parts = ["snapshot", "a restored VM"];
        refuses(&mut save_as(Some("--live=snapshot"), &guest, &image, &["uid=1234"]), 4, &parts);
        command = save_as(None, &guest, &image, &["uid=1234"]);
    }
    json(&mut command);
    let found = copies(&image, &["victim", "bystander"]);
    assert!(found[0] == 0 && found[1] > 1000, "{what}: {found:?}");
    // The command names files and sockets of the guest's folder, which goes with the guest.
    let folder = guest.endpoints().folder().to_owned();
    drop(guest);
    std::fs::create_dir(&folder).expect("the folder is gone");
    json(elision().arg("restore").arg(&image).arg("--qmp").arg(Endpoints::new(&folder).qmp_socket()));
    let mut restored = options.attach(&folder).expect("the restored guest answers");
    let before = restored.control().count("bystander").expect("counters");
    assert!(restored.control().health(1).expect("it answers").errors.is_empty(), "{what}");
    assert!(restored.control().count("bystander").expect("counters") > before, "{what}: it stands still");
}

#[test]
fn any_ram_is_read_as_shared_ram_is() {
    let mut modes = vec![
        ("shared", GuestOptions::new("6.12").ram(RamMode::Shared)),
        ("plain", GuestOptions::new("6.12").ram(RamMode::Plain)),
        ("plain, pc", GuestOptions::new("6.12").ram(RamMode::Plain).pc()),
        ("ram", GuestOptions::new("6.12").ram(RamMode::Backend("memory-backend-ram"))),
        ("memfd", GuestOptions::new("6.12").ram(RamMode::Backend("memory-backend-memfd,share=off"))),
        ("file", GuestOptions::new("6.12").ram(RamMode::Backend("memory-backend-file,share=off"))),
    ];
    if !pages::in_full() {
        modes.retain(|(name, _)| ["shared", "plain", "file"].contains(name));
    }
    let mut by_shared = None;
    for (name, options) in modes {
        let mut guest = options.boot().unwrap_or_else(|e| panic!("{name}: {e}"));
        play(&mut guest);
        let found = frames(&look_at(&mut guest, name));
        let expected = *by_shared.get_or_insert(found);
        println!("{name}: {found:?} frames of the victim, and free");
        assert!(found.0 >= PLANTED, "{name}: {found:?}");
        assert!(close(found.0, expected.0) && close(found.1, expected.1), "{name}: {found:?}, {expected:?}");
        assert!(guest.console_problems().is_empty(), "{name}: {:?}", guest.console_problems());
        saved_and_restored(guest, &options, name);
    }
}

#[test]
fn ram_on_both_sides_of_the_pci_hole_is_read_in_qemu() {
    let options = GuestOptions::new("6.1").memory_mib(5120).ram(RamMode::Plain);
    let mut guest = options.boot().expect("the guest boots");
    play(&mut guest);
    let found = frames(&look_at(&mut guest, "5 GiB"));
    assert!(found.0 >= PLANTED && found.1 > (4 << 30) / 4096, "{found:?}");
}

/// So many more huge pages of the host, for as long as a test needs them.
struct HugePages(u64);

impl HugePages {
    const COUNT: &str = "/proc/sys/vm/nr_hugepages";

    fn count() -> u64 {
        std::fs::read_to_string(Self::COUNT).ok().and_then(|n| n.trim().parse().ok()).unwrap_or(0)
    }

    /// Reserves more of them, 2 MiB each, if this host and its rights allow it.
    fn reserve(more: u64) -> Option<Self> {
        let before = Self::count();
        std::fs::write(Self::COUNT, (before + more).to_string()).ok()?;
        let pages = Self(Self::count().saturating_sub(before));
        (pages.0 >= more).then_some(pages)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        // Another run of the test may have some too.
        let _ = std::fs::write(Self::COUNT, Self::count().saturating_sub(self.0).to_string());
    }
}

#[test]
fn huge_pages_of_the_host_are_read_and_not_taken() {
    const MIB: u64 = 256;
    let Some(_pages) = HugePages::reserve(MIB / 2) else {
        println!("Skipped: no huge pages can be reserved on this host");
        return;
    };
    for (backend, shared) in [
        ("memory-backend-memfd,hugetlb=on,hugetlbsize=2M,share=off", false),
        ("memory-backend-memfd,hugetlb=on,hugetlbsize=2M,share=on", true),
    ] {
        let options = GuestOptions::new("5.10").memory_mib(MIB).ram(RamMode::Backend(backend));
        let mut guest = options.boot().unwrap_or_else(|e| panic!("{backend}: {e}"));
        play(&mut guest);
        let free = || std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
        let before = free().expect("huge pages");
        by_elision(&guest);
        assert_eq!(free().expect("huge pages"), before, "{backend}: ps took huge pages");
        let found = frames(&look_at(&mut guest, backend));
        assert!(found.0 >= PLANTED && found.1 > 0, "{backend}: {found:?}");
        if shared {
            saved_and_restored(guest, &options, backend);
        } else {
            // QEMU 10 itself takes pages for all of a shared memfd when it is asked for its device state.
            assert_eq!(free().expect("huge pages"), before, "{backend}: a plan took huge pages");
        }
    }
}

#[test]
fn a_restored_vm_is_looked_at() {
    let options = GuestOptions::new("7");
    let mut guest = options.boot().expect("the guest boots");
    play(&mut guest);
    let images = Images::new();
    let image = images.path("image");
    json(&mut save(&guest, &image, &[]));
    drop(guest);
    let mut restored = restore(&options, &image);
    let found = frames(&look_at(&mut restored, RESTORED));
    assert!(found.0 >= PLANTED, "{found:?}");
    saved_and_restored(restored, &options, RESTORED);
    assert!(elision().arg("verify").arg(&image).status().expect("elision starts").success(), "verify");
}
