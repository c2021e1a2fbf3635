//! `elision save --live`: the VM runs on while its memory is written, and the image is of one moment.

mod support;

use elision_kernel::{Kernel, ProfileCache};
use elision_memory::{FileOffset, PAGE_SIZE, Ram};
use elision_qemu::{PageSink, QemuError, Qmp, SinkClosed, Vm, check_moment};
use elision_testbed::{Guest, GuestOptions, RamMode, Spawn, Status, counters, pages};
use rustix::process::{Pid, Signal};
use serde_json::{Value, json as object};
use std::process::Stdio;
use std::time::{Duration, Instant};
use support::{Images, Window, copies, elision, end_of, json, refuses, restore, runs, save_as, sh, words};

const PLACES: &str = "heap=32M,stack,thp,shm,memfd,cow,xmm,pipe-unread";

/// Both ways to save a VM that runs on.
const PRECOPY: &str = "--live=precopy";
const SNAPSHOT: &str = "--live=snapshot";

/// A counter's slot in the RAM file.
fn slot(ram: &Ram, counter: &counters::Found) -> [u8; 64] {
    let mut bytes = [0; 64];
    ram.refresh();
    assert!(ram.read_file(counter.offset, &mut bytes));
    bytes
}

/// Two processes of one user, and one that stays.
fn play(guest: &mut Guest) -> ([i32; 2], i32) {
    let mut spawn = |label: &str, mode: &str, uid: u32| {
        let spawn = Spawn::new(label, PLACES, mode).uid(uid);
        guest.control().spawn(&spawn).unwrap_or_else(|e| panic!("{label}: {e}")).pid
    };
    let victims = [spawn("victim-spins", "spin", 1234), spawn("victim-sleeps", "sleep=20ms", 1234)];
    (victims, spawn("stays", "spin", 77))
}

fn capabilities(qmp: &mut Qmp) -> Value {
    qmp.execute("query-migrate-capabilities", object!({})).expect("capabilities")
}

fn kept_its_moment(how: &str, options: &GuestOptions) {
    let window = Window::new();
    let mut guest = window.added_to(options.clone()).boot().expect("the guest boots");
    let (victims, stays) = play(&mut guest);
    let images = Images::new();
    let plain = json(&mut save_as(Some(how), &guest, &images.path("plain"), &[]));
    assert_eq!(plain["way"], "live");
    let labels = ["victim-spins", "victim-sleeps", "stays"];
    let control = copies(&images.path("plain"), &labels);
    assert!(control.iter().all(|n| *n > 0), "control: {control:?}");

    let image = images.path("vm");
    let ram = guest.ram().expect("its RAM");
    let all = counters::find(&ram).expect("counters");
    let hash = counters::label_hash("stays");
    let counter = all.iter().find(|c| c.label == hash).expect("a counter");
    let mut watch = window.open();
    // On a busy machine the stop may be over before it is looked at.
    let exact = (0..10).any(|_| {
        let _ = std::fs::remove_dir_all(&image);
        watch.take_events();
        let saver =
            save_as(Some(how), &guest, &image, &["uid=1234"]).arg("--json").stdout(Stdio::piped()).spawn();
        let mut saver = saver.expect("elision starts");
        let mut at_stop = None;
        while saver.try_wait().expect("a saver").is_none() {
            if watch.wait_event("STOP", Duration::from_millis(20)).expect("events").is_some() {
                let bytes = slot(&ram, counter);
                let over = watch.wait_event("RESUME", Duration::from_millis(1)).expect("events").is_some();
                at_stop = (!over).then_some(bytes);
            }
        }
        let output = saver.wait_with_output().expect("a saver");
        assert!(output.status.success(), "{}", words(&output));
        let saved: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        println!("{saved}");
        assert_eq!(saved["way"], "live");
        let copy = elision_image::Image::open(&image).expect("an image").ram().expect("its RAM");
        if let Some(at_stop) = at_stop {
            assert_eq!(slot(&copy, counter), at_stop, "the image is of another moment");
        }
        at_stop.is_some()
    });
    assert!(exact, "no stop was seen in time");
    let copy = elision_image::Image::open(&image).expect("an image").ram().expect("its RAM");
    let count = counters::count(&copy, "stays").expect("a search").expect("a counter");
    assert!(guest.control().count("stays").expect("counters").expect("a count") > count, "the VM went on");
    let found = copies(&image, &labels);
    assert_eq!(found[..2], [0, 0], "left out");
    assert!(found[2] > 0, "kept");
    assert!(guest.console_problems().is_empty(), "{:?}", guest.console_problems());
    drop(guest);

    let mut restored = restore(options, &image);
    works_without(&mut restored, &victims, stays);
}

/// In the restored guest the victims are killed, and everything else goes on.
fn works_without(restored: &mut Guest, victims: &[i32], stays: i32) {
    let before = restored.control().count("stays").expect("counters").expect("a count");
    for pid in victims {
        let end = end_of(restored, *pid, Duration::from_secs(20));
        assert!(matches!(end, Status::Signalled { signal: 9, .. }), "{pid}: {end:?}");
    }
    assert_eq!(restored.control().status(stays).expect("a status"), Status::Running);
    sh(restored, "echo works > /tmp/x && cat /tmp/x");
    let health = restored.control().health(3).expect("health");
    assert!(health.errors.is_empty(), "{health:?}");
    assert!(restored.control().count("stays").expect("counters").expect("a count") > before);
    assert!(restored.console_problems().is_empty(), "{:?}", restored.console_problems());
}

#[test]
fn a_live_save_is_of_one_moment() {
    kept_its_moment(SNAPSHOT, &GuestOptions::new("7").vcpus(4));
    kept_its_moment(PRECOPY, &GuestOptions::new("7").vcpus(4).qemu("10"));
    if pages::in_full() {
        for options in
            [GuestOptions::new("5.10"), GuestOptions::new("6.1"), GuestOptions::new("6.12").four_level()]
        {
            kept_its_moment(SNAPSHOT, &options);
            kept_its_moment(PRECOPY, &options.qemu("10"));
        }
    }
}

#[test]
fn a_live_save_without_shared_memory_is_of_one_moment() {
    let options = GuestOptions::new("6.1").ram(RamMode::Plain);
    kept_its_moment(PRECOPY, &options.clone().qemu("10"));
    if pages::in_full() {
        kept_its_moment(SNAPSHOT, &options);
    }
}

#[test]
fn without_shared_memory_qemu_sends_it() {
    let options = GuestOptions::new("6.12").ram(RamMode::Plain);
    let mut guest = options.boot().expect("the guest boots");
    let (victims, stays) = play(&mut guest);
    let images = Images::new();
    let labels = ["victim-spins", "victim-sleeps", "stays"];
    let plain = json(&mut save_as(None, &guest, &images.path("plain"), &[]));
    assert_eq!(plain["way"], "stream");
    let control = copies(&images.path("plain"), &labels);
    assert!(control.iter().all(|n| *n > 0), "control: {control:?}");
    let image = images.path("vm");
    assert_eq!(json(&mut save_as(None, &guest, &image, &["uid=1234"]))["way"], "stream");
    let found = copies(&image, &labels);
    assert_eq!(found[..2], [0, 0], "left out");
    assert!(found[2] > 0, "kept");
    assert!(elision().arg("verify").arg(&image).status().expect("elision starts").success(), "verify");
    assert_eq!(guest.control().status(stays).expect("a status"), Status::Running);
    assert!(guest.console_problems().is_empty(), "{:?}", guest.console_problems());
    drop(guest);
    works_without(&mut restore(&options, &image), &victims, stays);
}

/// What QEMU's monitor says of the vCPUs before the copy is what the device state says at its end.
#[test]
fn both_sources_agree_on_the_vcpus() {
    for name in ["5.10", "6.1", "6.12", "7"] {
        let mut guest = GuestOptions::new(name).vcpus(3).append("maxcpus=2").boot().expect("the guest boots");
        guest.control().spawn(&Spawn::new("spins", "heap=64K", "spin")).expect("a process");
        let (mut user, mut kernel) = (0, 0);
        let mut vm = Vm::attach(&guest.endpoints().qmp_socket()).expect("the VM");
        let ram = guest.ram().expect("its RAM");
        let view = Kernel::open(&ram, &[], &ProfileCache::disabled()).expect("a kernel");
        for round in 0..40 {
            vm.stop().expect("a stop");
            let seen = vm.registers().expect("vCPUs");
            let state = vm.device_state().expect("a device state");
            vm.cont().expect("it runs on");
            check_moment(&seen, &state).expect("the same moment");
            for (seen, vcpu) in seen.iter().zip(state.vcpus().expect("vCPUs")) {
                let found = view.per_cpu_by_gdt(seen.gdt).expect("a kernel");
                assert_eq!(seen.long_mode, vcpu.index < 2, "{name}: vCPU {} was never started", vcpu.index);
                if !seen.long_mode {
                    continue;
                }
                let base = if vcpu.in_user_mode() { vcpu.kernel_gs_base } else { vcpu.gs_base };
                // Between an entry to the kernel and `swapgs` it is the other way round.
                let swapped = !vcpu.in_user_mode() && view.cpu_by_gs(vcpu.gs_base).is_none();
                assert!(found == Some(base) || swapped, "{name}, round {round}: {found:?} {vcpu:x?}");
                user += u32::from(vcpu.in_user_mode());
                kernel += u32::from(!vcpu.in_user_mode() && !swapped);
            }
            // The comparison fails where it must: of another moment, and of another number of vCPUs.
            let mut other = seen.clone();
            other[0].rsp = other[0].rsp.wrapping_add(8);
            assert!(matches!(check_moment(&other, &state), Err(QemuError::Moved { .. })));
            assert!(check_moment(&seen[1..], &state).is_err());
            assert!(check_moment(&seen[..2], &state).is_err());
        }
        println!("{name}: {user} times in user mode, {kernel} times in the kernel");
        assert!(user > 0 && kernel > 0, "control: {name}: {user} {kernel}");
    }
}

/// Somebody else continues the VM between the look at its processes and the snapshot.
#[test]
fn a_vm_that_somebody_else_continued_is_refused() {
    let window = Window::new();
    let mut guest = window.added_to(GuestOptions::new("6.1")).boot().expect("the guest boots");
    guest.control().spawn(&Spawn::new("victim", PLACES, "sleep=20ms").uid(1234)).expect("a process");
    let images = Images::new();
    let image = images.path("vm");
    json(&mut save_as(None, &guest, &image, &["uid=1234"])); // and the kernel's profile is compiled
    std::fs::remove_dir_all(&image).expect("an image");
    let mut watch = window.open();
    let mut refused = 0;
    for live in [Some(SNAPSHOT), Some(SNAPSHOT), Some(SNAPSHOT), None] {
        runs(&mut watch);
        watch.take_events();
        let mut command = save_as(live, &guest, &image, &["uid=1234"]);
        let saver = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("elision starts");
        assert!(watch.wait_event("STOP", Duration::from_secs(60)).expect("events").is_some());
        watch.execute("cont", object!({})).expect("it runs on");
        let output = saver.wait_with_output().expect("a saver");
        let told = words(&output);
        println!("{told}");
        if output.status.success() {
            // The disturber came too late.
            std::fs::remove_dir_all(&image).expect("an image");
        } else {
            refused += u32::from(told.contains("ran on between"));
            assert_eq!(images.names(), Vec::<String>::new());
        }
        assert!(runs(&mut watch), "the VM runs on");
    }
    assert!(refused > 0, "control: the VM was never continued at the wrong moment");
    json(&mut save_as(Some(SNAPSHOT), &guest, &image, &["uid=1234"]));
    assert!(guest.console_problems().is_empty(), "{:?}", guest.console_problems());
}

/// QEMU is ready for the snapshot when the plan is refused.
#[test]
fn a_refused_snapshot_leaves_the_vm_as_it_was() {
    let window = Window::new();
    let mut guest = window.added_to(GuestOptions::new("7").qemu("7.2")).boot().expect("the guest boots");
    let mut victim = |place: &str| {
        guest.control().spawn(&Spawn::new(place, place, "block").uid(1234)).expect("a process").pid
    };
    let [unknown, known] = ["mptcp", "tcp-unread"].map(|place| format!("pid={}", victim(place)));
    let images = Images::new();
    let image = images.path("vm");
    let mut watch = window.open();
    let before = capabilities(&mut watch);
    refuses(&mut save_as(Some(SNAPSHOT), &guest, &image, &[&unknown]), 3, &["MPTCP"]);
    assert!(runs(&mut watch)); // and all events are here
    assert!(watch.take_events().iter().any(|e| e.name == "STOP"), "control: it was stopped");
    let sent = watch.execute("query-migrate", object!({})).expect("a migration");
    assert_eq!(sent["status"], "completed", "it was read to its end");
    assert_eq!(capabilities(&mut watch), before);
    assert_eq!(images.names(), Vec::<String>::new());
    json(&mut save_as(Some(SNAPSHOT), &guest, &image, &[&known]));
    guest.control().ping().expect("the guest answers");
    assert!(guest.console_problems().is_empty(), "{:?}", guest.console_problems());
}

/// A guest that changes its memory all the time, with a vCPU for each writer, is stopped all the same.
#[test]
fn a_guest_that_never_rests_is_stopped_in_the_end() {
    let window = Window::new();
    let options = GuestOptions::new("6.1").qemu("10").memory_mib(1024);
    let mut guest = window.added_to(options).boot().expect("the guest boots");
    guest.control().spawn(&Spawn::new("victim", PLACES, "sleep=20ms").uid(1234)).expect("a process");
    let rewrites =
        "while :; do dd if=/dev/zero of=/tmp/rewritten bs=1M count=200 conv=notrunc 2>/dev/null; done";
    sh(&mut guest, &format!("({rewrites}) > /dev/null 2>&1 &"));
    let images = Images::new();
    let image = images.path("vm");
    let saved = json(&mut save_as(Some(PRECOPY), &guest, &image, &["uid=1234"]));
    println!("{saved}");
    assert_eq!(copies(&image, &["victim"]), [0]);
    guest.control().ping().expect("the guest answers");
    assert!(guest.console_problems().is_empty(), "{:?}", guest.console_problems());
}

struct Unwanted;

impl PageSink for Unwanted {
    fn page(&mut self, _: FileOffset, _: &[u8; PAGE_SIZE]) -> Result<(), SinkClosed> {
        Ok(())
    }

    fn fill(&mut self, _: FileOffset, _: u8) -> Result<(), SinkClosed> {
        Ok(())
    }
}

/// A guest that rests leaves QEMU nothing to send, but it must answer first: so must an agent that makes ready.
#[test]
fn a_guest_that_makes_ready_is_not_stopped_before_it_has() {
    let mut guest = GuestOptions::new("6.1").qemu("10").memory_mib(512).boot().expect("the guest boots");
    let mut vm = Vm::attach(&guest.endpoints().qmp_socket()).expect("the VM");
    let settings = capabilities(vm.qmp());
    let mut ready = None;
    let make_ready = || {
        for _ in 0..5 {
            std::thread::sleep(Duration::from_millis(200));
            guest.control().ping().map_err(|_| SinkClosed)?;
        }
        ready = Some(Instant::now());
        Ok(())
    };
    let (_, since, ()) = vm.precopy(&mut Unwanted, Some(make_ready), |_| ()).expect("a precopy");
    assert!(ready.expect("it was asked") <= since);
    assert_eq!(capabilities(vm.qmp()), settings);
    vm.cont().expect("the VM runs on");
    guest.control().ping().expect("the guest answers");
}

#[test]
fn a_qemu_that_forgets_writes_is_not_trusted_with_a_precopy() {
    let guest = GuestOptions::new("6.1").qemu("7.2").boot().expect("the guest boots");
    let vm = Vm::attach(&guest.endpoints().qmp_socket()).expect("the VM");
    let trusted = vm.tracks_writes();
    assert_eq!(trusted, vm.uses_kvm());
    drop(vm);
    let images = Images::new();
    if !trusted {
        let parts = ["forgets writes", "9.0", "--live=snapshot"];
        refuses(&mut save_as(Some(PRECOPY), &guest, &images.path("vm"), &[]), 4, &parts);
        assert_eq!(images.names(), Vec::<String>::new());
    }
}

#[test]
fn without_rights_to_userfaultfd_it_is_refused_and_nothing_is_lost() {
    let window = Window::new();
    let options = GuestOptions::new("6.1").ram(RamMode::Shared).extra(&["-runas", "nobody"]);
    let options = window.added_to(options);
    let mut guest = options.boot().expect("the guest boots");
    guest.control().spawn(&Spawn::new("victim", PLACES, "sleep=20ms").uid(1234)).expect("a process");
    let images = Images::new();
    let image = images.path("vm");
    let mut watch = window.open();
    let before = capabilities(&mut watch);
    let parts = ["snapshot", "without --live", "userfaultfd"];
    refuses(&mut save_as(Some(SNAPSHOT), &guest, &image, &["uid=1234"]), 4, &parts);
    assert_eq!(capabilities(&mut watch), before); // and all events are here
    assert!(watch.take_events().iter().all(|e| e.name != "STOP"), "it was not even stopped");
    assert_eq!(images.names(), Vec::<String>::new());
    assert_eq!(json(&mut save_as(None, &guest, &image, &["uid=1234"]))["way"], "shared");
    guest.control().ping().expect("the guest answers");
}

#[test]
fn a_paused_vm_is_copied_while_it_stands_still() {
    let mut guest = GuestOptions::new("6.1").boot().expect("the guest boots");
    guest.control().spawn(&Spawn::new("victim", PLACES, "sleep=20ms").uid(1234)).expect("a process");
    let images = Images::new();
    let image = images.path("vm");
    let output = (0..50).find_map(|_| {
        guest.endpoints().stop().expect("a stop");
        let output = save_as(Some("--live"), &guest, &image, &["uid=1234"]).output().expect("elision starts");
        if output.status.code() != Some(3) {
            return Some(output);
        }
        guest.endpoints().cont().expect("it runs on");
        std::thread::sleep(Duration::from_millis(20));
        None
    });
    let told = words(&output.expect("the guest holds still"));
    assert!(told.contains("stands still") && told.starts_with("Some(0)"), "{told}");
    assert_eq!(copies(&image, &["victim"]), [0]);
    assert_eq!(guest.endpoints().run_state().expect("a state"), "postmigrate");
}

#[test]
fn a_qemu_that_dies_in_the_middle_leaves_no_image() {
    let window = Window::new();
    let mut guest = window.added_to(GuestOptions::new("6.1")).boot().expect("the guest boots");
    guest.control().spawn(&Spawn::new("victim", PLACES, "spin").uid(1234)).expect("a process");
    let images = Images::new();
    let mut watch = window.open();
    let mut command = save_as(Some(SNAPSHOT), &guest, &images.path("vm"), &["uid=1234"]);
    let saver = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("elision starts");
    assert!(watch.wait_event("RESUME", Duration::from_secs(60)).expect("events").is_some());
    let pid = guest.qemu_pid().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    rustix::process::kill_process(pid.expect("its QEMU"), Signal::KILL).expect("a process");
    let output = saver.wait_with_output().expect("a saver");
    let told = words(&output);
    println!("{told}");
    assert_eq!(output.status.code(), Some(4), "{told}");
    assert!(told.contains("QEMU"), "{told}");
    assert_eq!(images.names(), Vec::<String>::new());
}
