//! What the tests on real guests share: the `elision` command as a user runs it, and what to ask of a VM.

#![allow(dead_code)] // each test file uses its part

pub(crate) mod modules;
pub(crate) mod swap;

use elision_qemu::Qmp;
use elision_testbed::{Endpoints, Guest, GuestOptions, RamMode, Status, pages, secret};
use serde_json::{Value, json as object};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// The command under test.
pub(crate) fn elision() -> Command {
    Command::new(env!("CARGO_BIN_EXE_elision"))
}

/// Runs `elision --json` and gives its result; the test fails with its words when it fails.
pub(crate) fn json(command: &mut Command) -> Value {
    let output = command.arg("--json").output().expect("elision starts");
    assert!(output.status.success(), "{command:?} failed: {}", words(&output));
    serde_json::from_slice(&output.stdout).expect("JSON on stdout")
}

/// Everything a command said.
pub(crate) fn words(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{:?} {}{}", output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// A save of a guest, not started yet; live where `ELISION_WAY` says so.
pub(crate) fn save(guest: &Guest, image: &Path, exclude: &[&str]) -> Command {
    let way = std::env::var("ELISION_WAY").unwrap_or_default();
    let live = [("live", "--live"), ("snapshot", "--live=snapshot")];
    let live = live.into_iter().find_map(|(name, argument)| (name == way).then_some(argument));
    save_as(live, guest, image, exclude)
}

/// A save of a guest with an option that makes it live, or none, not started yet.
pub(crate) fn save_as(live: Option<&str>, guest: &Guest, image: &Path, exclude: &[&str]) -> Command {
    let mut command = elision();
    command.arg("save").arg("--qmp").arg(guest.endpoints().qmp_socket());
    command.args(live);
    for selector in exclude {
        command.args(["--exclude", selector]);
    }
    command.arg(image);
    command
}

/// Stops a guest and saves it while it stands still. One that was stopped in the middle of something runs on for a
/// moment first, as the saver itself cannot let it.
pub(crate) fn save_stopped(guest: &Guest, image: &Path, exclude: &[&str]) -> Output {
    for _ in 0..50 {
        guest.endpoints().stop().expect("a stop");
        let output = save(guest, image, exclude).output().expect("elision starts");
        if output.status.code() != Some(3) {
            return output;
        }
        println!("stopped at a bad moment: {}", words(&output));
        guest.endpoints().cont().expect("it runs on");
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("the guest never holds still");
}

/// Restores an image beside its source and waits until the guest takes requests.
pub(crate) fn restore(options: &GuestOptions, image: &Path) -> Guest {
    restore_with(options, image, &[]).0
}

/// The same with arguments more, and what the restore has said.
pub(crate) fn restore_with(options: &GuestOptions, image: &Path, more: &[&str]) -> (Guest, Value) {
    let folder = GuestOptions::new_folder().expect("a folder");
    let told = restore_in(&folder, options, image, more);
    let options = options.clone().ram(RamMode::Plain);
    (options.attach(&folder).expect("the restored guest answers"), told)
}

/// The same for a VM that need not run; the caller ends it.
pub(crate) fn restore_in(folder: &Path, options: &GuestOptions, image: &Path, more: &[&str]) -> Value {
    let qemu = options.clone().ram(RamMode::Plain).command_in(folder).expect("a command");
    let mut command = elision();
    command.arg("restore").arg(image).args(more).arg("--qmp").arg(Endpoints::new(folder).qmp_socket());
    let output = command.arg("--json").arg("--").args(qemu).output().expect("elision starts");
    assert!(output.status.success(), "{command:?} failed: {}", words(&output));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// A shell command in the guest that must succeed.
pub(crate) fn sh(guest: &mut Guest, cmd: &str) -> String {
    let result = guest.control().sh(cmd).unwrap_or_else(|e| panic!("{cmd}: {e}"));
    let ended_well = matches!(result.status, Status::Exited { code: 0, .. });
    assert!(ended_well, "{cmd}: {:?} {}", result.status, result.output);
    result.output
}

/// How often the secret of each label stands in an image, in RAM and in the device state together.
pub(crate) fn copies(image: &Path, labels: &[&str]) -> Vec<u64> {
    labels.iter().map(|label| copies_of(image, &secret(label))).collect()
}

/// The same for any bytes.
pub(crate) fn copies_of(image: &Path, needle: &[u8]) -> u64 {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("secret");
    std::fs::write(&file, needle).expect("a file");
    let mut command = elision();
    command.arg("audit").arg(image).arg("--secret-binary").arg(&file).arg("--json");
    let output = command.output().expect("elision starts");
    let found: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("audit failed: {}", words(&output)));
    let findings = found["searched"].as_array().into_iter().flatten().flat_map(|s| s["findings"].as_array());
    let total = findings.flatten().map(|f| f["count"].as_u64().expect("a count")).sum();
    assert_eq!(output.status.code(), Some(i32::from(total > 0)), "exit status of audit");
    total
}

/// Guest time within which every excluded process must have ended after a restore. A guest's clock goes on
/// while a busy machine keeps the guest waiting, so only the long form of the tests holds to what is promised.
pub(crate) fn end_limit() -> Duration {
    Duration::from_secs(if pages::in_full() { 2 } else { 20 })
}

/// Waits until the guest's parent process has seen a process end, within guest time `limit`.
pub(crate) fn end_of(guest: &mut Guest, pid: i32, limit: Duration) -> Status {
    let begin = Instant::now();
    loop {
        let status = guest.control().status(pid).expect("the guest answers");
        if status != Status::Running || begin.elapsed() > limit {
            return status;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Removes an image at the end of a test.
pub(crate) struct Images(tempfile::TempDir);

impl Images {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Everything that is in the folder.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).expect("a folder");
        entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
    }
}

/// Runs a command that must fail with an exit status, and whose error must hold some words.
pub(crate) fn refuses(command: &mut Command, status: i32, parts: &[&str]) {
    let output = command.arg("--json").output().expect("elision starts");
    assert_eq!(output.status.code(), Some(status), "{command:?}: {}", words(&output));
    assert!(output.stdout.is_empty(), "{command:?} has a result: {}", words(&output));
    let told: Value = serde_json::from_slice(&output.stderr).unwrap_or_else(|_| panic!("{}", words(&output)));
    let error = &told["error"];
    assert_eq!(error["exit_status"], status, "{told}");
    let causes = error["causes"].as_array().into_iter().flatten();
    let lines = [&error["message"], &error["help"]].into_iter().chain(causes);
    let text = lines.filter_map(Value::as_str).collect::<Vec<_>>().join("\n");
    for part in parts {
        assert!(text.contains(part), "{command:?} does not say {part:?}: {text}");
    }
    println!("exit {status}: {}", text.replace('\n', " / "));
}

/// A second QMP socket, on which a VM is watched while the first is in use.
pub(crate) struct Window {
    folder: tempfile::TempDir,
}

impl Window {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder") }
    }

    /// Options with the socket added.
    pub(crate) fn added_to(&self, options: GuestOptions) -> GuestOptions {
        options.extra(&["-qmp", &format!("unix:{},server=on,wait=off", self.socket().display())])
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.beside("watch")
    }

    /// A file in the socket's folder.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn open(&self) -> Qmp {
        Qmp::connect(&self.socket()).expect("the second QMP socket")
    }
}

/// Whether the vCPUs run.
pub(crate) fn runs(qmp: &mut Qmp) -> bool {
    qmp.execute("query-status", object!({})).expect("a status")["running"] == true
}
