//! A saver that dies leaves a running VM and no unfinished image.
//!
//! This file is its own program: it starts itself as the guardian and as a saver that it then kills.

mod common;

use common::{Machine, wait_until};
use elision_qemu::{Guardian, Qmp, Vm, guard_main};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("guard") => {
            return guard_main(&arguments[2], |partial| std::fs::remove_dir_all(partial).is_ok());
        }
        Some("saver") => saver(Path::new(&arguments[2]), &arguments[3]),
        Some("--list") => return ExitCode::SUCCESS,
        _ => {}
    }
    let tests: [(&str, fn()); 5] = [
        ("a_killed_saver_leaves_a_running_vm", a_killed_saver_leaves_a_running_vm),
        ("a_killed_group_does_not_take_the_guardian_along", a_killed_group_does_not_take_the_guardian_along),
        ("a_vm_that_was_paused_stays_paused", a_vm_that_was_paused_stays_paused),
        ("a_dismissed_guardian_does_nothing", a_dismissed_guardian_does_nothing),
        ("without_a_guardian_the_vm_stays_stopped", without_a_guardian_the_vm_stays_stopped),
    ];
    let wanted = arguments.iter().skip(1).find(|a| !a.starts_with('-'));
    for (name, test) in tests.iter().filter(|(name, _)| wanted.is_none_or(|w| name.contains(w.as_str()))) {
        let begin = Instant::now();
        test();
        println!("test {name} ... ok ({} ms)", begin.elapsed().as_millis());
    }
    ExitCode::SUCCESS
}

/// Stops the VM and never comes to an end, at one of the points where a saver can be.
fn saver(folder: &Path, point: &str) -> ! {
    let mut vm = Vm::attach(&folder.join("qmp")).unwrap();
    let partial = folder.join("image.partial");
    let duty = vm.duty(Some(&partial)).unwrap();
    let guardian = (point != "alone")
        .then(|| Guardian::spawn(&std::env::current_exe().unwrap(), &["guard"], &duty).unwrap());
    std::fs::create_dir(&partial).unwrap();
    std::fs::write(partial.join("ram.img"), "half").unwrap();
    let ready = || std::fs::write(folder.join("ready"), "").unwrap();
    if point != "before" {
        vm.stop().unwrap();
    }
    if point == "again" {
        ready();
        loop {
            vm.device_state().unwrap();
            vm.cont().unwrap();
            vm.stop().unwrap();
        }
    }
    if point == "after" {
        vm.device_state().unwrap();
    }
    ready();
    std::thread::sleep(Duration::from_secs(60));
    drop(guardian);
    std::process::exit(1)
}

fn start_saver(m: &Machine, point: &str) -> Child {
    use std::os::unix::process::CommandExt;
    let ready = m.path("ready");
    let _ = std::fs::remove_file(&ready);
    let child = Command::new(std::env::current_exe().unwrap())
        .args([Path::new("saver"), m.folder.path(), Path::new(point)])
        .process_group(0)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the saver", || ready.exists());
    child
}

fn partial(m: &Machine) -> PathBuf {
    m.path("image.partial")
}

fn is_running(m: &Machine) -> bool {
    Vm::attach(&m.qmp()).is_ok_and(|mut vm| vm.status().unwrap().running)
}

/// QEMU's migration settings, which a dead saver must not leave changed.
fn settings(m: &Machine) -> String {
    let mut vm = Vm::attach(&m.qmp()).unwrap();
    format!("{:?}", vm.duty(None).unwrap())
}

/// Kills the saver and waits until its work is undone. Returns when the VM was seen to run and when all was done.
fn kill(m: &Machine, mut child: Child, mut runs: impl FnMut() -> bool) -> (Duration, Duration) {
    assert!(partial(m).exists());
    let begin = Instant::now();
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until("the VM", &mut runs);
    let running = begin.elapsed();
    // The guardian needs the QMP socket: it removes the partial image when it is done with it.
    wait_until("the guardian", || !partial(m).exists());
    (running, begin.elapsed())
}

fn a_killed_saver_leaves_a_running_vm() {
    let folder = tempfile::tempdir().unwrap();
    let second = folder.path().join("qmp");
    let option = format!("unix:{},server=on,wait=off", second.display());
    let m = Machine::start("pc.ram", 64, &["-qmp", &option]);
    let before = settings(&m);
    let mut watch = Qmp::connect(&second).unwrap();
    for (point, delay) in
        [("before", 0), ("stopped", 0), ("after", 0), ("again", 3), ("again", 11), ("again", 20)]
    {
        let child = start_saver(&m, point);
        std::thread::sleep(Duration::from_millis(delay));
        let runs = |watch: &mut Qmp| watch.execute("query-status", json!({})).unwrap()["running"] == true;
        assert!(point == "again" || runs(&mut watch) == (point == "before"), "{point}");
        let (running, took) = kill(&m, child, || runs(&mut watch));
        assert!(running < Duration::from_secs(1), "{point}: {running:?}");
        assert!(is_running(&m), "{point}");
        assert!(took < Duration::from_secs(4), "{point}: {took:?}");
        assert_eq!(settings(&m), before, "{point}");
    }
}

fn a_killed_group_does_not_take_the_guardian_along() {
    let m = Machine::start("pc.ram", 64, &[]);
    let mut child = start_saver(&m, "stopped");
    let group = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process_group(group, rustix::process::Signal::KILL).unwrap();
    child.wait().unwrap();
    wait_until("the guardian", || !partial(&m).exists());
    assert!(is_running(&m));
}

fn a_vm_that_was_paused_stays_paused() {
    let m = Machine::start("pc.ram", 64, &["-S"]);
    let child = start_saver(&m, "stopped");
    kill(&m, child, || true);
    assert!(!is_running(&m));
}

fn a_dismissed_guardian_does_nothing() {
    let m = Machine::start("pc.ram", 64, &[]);
    std::fs::create_dir(partial(&m)).unwrap();
    let mut vm = Vm::attach(&m.qmp()).unwrap();
    let duty = vm.duty(Some(&partial(&m))).unwrap();
    let program = std::env::current_exe().unwrap();
    let guardian = Guardian::spawn(&program, &["guard"], &duty).unwrap();
    vm.stop().unwrap();
    drop(vm);
    guardian.dismiss().unwrap();
    assert!(partial(&m).exists());
    assert!(!is_running(&m));
    let guardian = Guardian::spawn(&program, &["guard"], &duty).unwrap();
    guardian.act().unwrap();
    assert!(!partial(&m).exists());
    assert!(is_running(&m));
    assert!(Guardian::spawn(Path::new("/bin/true"), &[], &duty).is_err(), "a program that does not answer");
}

/// The control: it is the guardian that resumes the VM.
fn without_a_guardian_the_vm_stays_stopped() {
    let m = Machine::start("pc.ram", 64, &[]);
    let mut child = start_saver(&m, "alone");
    child.kill().unwrap();
    child.wait().unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    assert!(!is_running(&m));
    assert!(partial(&m).exists());
}
