//! Real programs in a real Debian guest, left out one after the other: nothing of a program's secret stays in the
//! image, the other programs serve after the restore, and systemd can start it again.
//!
//! ```text
//! one guest, all programs ─┬─ image without the first ── restored with a copy of the disk: others serve, start it again
//!                          ├─ image without the second ── ...
//! ```
//! The disk is copied while the guest stands still for the save. Only in the full form of the tests: the disk takes
//! minutes to build, and each program half a minute.

#[path = "../support/mod.rs"]
mod support;

mod forms;
mod relations;
mod table;

use elision_testbed::{Guest, GuestOptions, debian, pages, secret};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use support::{Images, copies_of, json, restore, save, sh, words};
use table::{PACKAGES, PROGRAMS, Program};

/// How long the guest may take for a script of the table.
const LIMIT: Duration = Duration::from_secs(240);
const HEADER: [&str; 4] = [
    "One guest with kernel 6.12 and 1 GiB runs all of them. How often each program's secret stands in an image without \
     and with a selection, and how many processes were left out. Each image was restored: all other programs \
     served, and the program itself could be started again.",
    "",
    "| program | selection | copies before | after | processes |",
    "|---|---|---|---|---|",
];
const RELATIONS_HEADER: [&str; 6] = [
    "",
    "## Relations of a session",
    "",
    "What `plan` shows of pipes, sockets and terminals is what `ss`, `lsof` and `/proc` say in the guest.",
    "",
    "| process | relations | with |\n|---|---|---|",
];

/// Runs a script of the table in the guest; every command of it must succeed.
fn script(guest: &mut Guest, program: &Program, script: &str) {
    println!("{}: {}", program.name, script.lines().last().unwrap_or_default());
    sh(guest, &format!("set -e\n{script}"));
}

/// Copies of the program's secret, in each of its forms.
fn count(image: &Path, program: &Program) -> Vec<u64> {
    let needles = program.forms.iter().map(|form| form.of(&secret(program.name)));
    needles.map(|needle| copies_of(image, &needle)).collect()
}

/// The selection of a program, with what only the guest knows.
fn selection(guest: &mut Guest, program: &Program) -> Vec<String> {
    let filled = |word: &&str| match word.contains("$(") {
        true => sh(guest, &format!("echo \"{word}\"")).trim().to_owned(),
        false => (*word).to_owned(),
    };
    program.selection.iter().map(filled).collect()
}

/// A save, with a copy of the disk as it is at that moment. What the guest wrote to a file after `sync` is not on the
/// disk yet and cannot be left out of the page cache: then once more.
fn save_with_disk(guest: &mut Guest, disk: &Path, copy: &Path, image: &Path, exclude: &[&str]) -> Value {
    for _ in 0..5 {
        sh(guest, "sync");
        guest.endpoints().stop().expect("the guest stops");
        debian::copy(disk, copy).expect("a copy");
        let output = save(guest, image, exclude).arg("--json").output().expect("elision starts");
        guest.endpoints().cont().expect("the guest goes on");
        if output.status.success() {
            return serde_json::from_slice(&output.stdout).expect("JSON on stdout");
        }
        println!("{}", words(&output));
    }
    panic!("no image without {exclude:?}");
}

/// Leaves one program out, restores and checks; gives its line of the report.
fn leave_out(
    guest: &mut Guest,
    options: &GuestOptions,
    disk: &Path,
    program: &Program,
    before: &[u64],
) -> String {
    let images = Images::new();
    let (image, copy) = (images.path("elided"), images.path("disk"));
    let selection = selection(guest, program);
    let exclude: Vec<_> = selection.iter().map(String::as_str).collect();
    let saved = save_with_disk(guest, disk, &copy, &image, &exclude);
    let after = count(&image, program);
    println!("{}: copies {before:?}, then {after:?}", program.name);

    let mut restored = restore(&options.clone().root_disk(&copy), &image);
    restored.control().set_limit(LIMIT);
    let ended = saved["excluded"].as_array().cloned().unwrap_or_default();
    assert!(!ended.is_empty(), "{saved}");
    for pid in &ended {
        sh(
            &mut restored,
            &format!("n=0; while [ -e /proc/{pid} ]; do sleep 1; n=$((n + 1)); [ $n -lt 60 ]; done"),
        );
    }
    for other in PROGRAMS.iter().filter(|other| other.name != program.name) {
        script(&mut restored, other, other.serves);
    }
    script(&mut restored, program, program.start);
    script(&mut restored, program, program.serves);
    assert_eq!(restored.console_problems(), Vec::<String>::new());
    assert!(after.iter().all(|copies| *copies == 0), "{} is in the image: {after:?}", program.name);
    let selection: Vec<_> = program.selection.iter().map(|selector| format!("`{selector}`")).collect();
    let before: u64 = before.iter().sum();
    format!("| {} | {} | {before} | 0 | {} |", program.name, selection.join(", "), ended.len())
}

#[test]
fn each_program_is_left_out_and_comes_back() {
    if !pages::in_full() {
        return;
    }
    let images = Images::new();
    let (disk, plain) = (images.path("disk"), images.path("plain"));
    debian::disk(&PACKAGES, &disk).expect("a disk");
    let options = GuestOptions::new("6.12").memory_mib(1024);
    let mut guest = options.clone().root_disk(&disk).boot().expect("the guest boots");
    guest.control().set_limit(LIMIT);
    for program in &PROGRAMS {
        script(&mut guest, program, program.plant);
        script(&mut guest, program, program.serves);
    }
    support::modules::load(&mut guest, &options, "unix_diag"); // for `ss`
    let relations = relations::check(&mut guest);
    json(&mut save(&guest, &plain, &[]));
    let mut report: Vec<_> = HEADER.iter().map(|line| (*line).to_owned()).collect();
    for program in &PROGRAMS {
        let before = count(&plain, program);
        assert!(before.first() > Some(&0), "control: {} holds {before:?}", program.name);
        report.push(leave_out(&mut guest, &options, &disk, program, &before));
    }
    report.extend(RELATIONS_HEADER.iter().map(|line| (*line).to_owned()).chain(relations));
    println!("{}", report.join("\n"));
    pages::write_result("programs", "Real programs", &report).expect("the page");
}

/// What can be told of the table without a guest.
#[test]
fn scripts_are_well_formed() {
    for program in &PROGRAMS {
        for script in [program.plant, program.serves, program.start] {
            let read = Command::new("sh").args(["-n", "-c", script]).status().expect("a shell");
            assert!(read.success(), "{}: {script}", program.name);
        }
    }
}
