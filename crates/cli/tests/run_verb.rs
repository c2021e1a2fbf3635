//! `elision run`: what it adds, and that it becomes the program.

use serde_json::Value;
use std::process::Command;

fn run(words: &[&str]) -> std::process::Output {
    let folder = tempfile::tempdir().unwrap();
    Command::new(env!("CARGO_BIN_EXE_elision"))
        .arg("run")
        .args(words)
        .env("XDG_RUNTIME_DIR", folder.path())
        .output()
        .unwrap()
}

#[test]
fn a_dry_run_says_what_would_be_added() {
    let run = run(&["--dry-run", "--json", "--name", "web", "--", "qemu-system-x86_64", "-m", "1G"]);
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let facts: Value = serde_json::from_slice(&run.stdout).unwrap();
    assert!(facts["qmp"].as_str().unwrap().ends_with("/elision/web.qmp"), "{facts}");
    let command = facts["command"].to_string();
    assert!(command.contains("share=on") && command.contains("web.qmp"), "{facts}");
    assert_eq!(facts["additions"].as_array().unwrap().len(), 3, "{facts}");
}

/// `sh` takes the place of QEMU: it has the words, and the RAM file as a descriptor.
#[test]
fn it_becomes_the_program_and_hands_the_ram_file_down() {
    let script = "for word; do echo \"$word\"; done; readlink /proc/self/fd/* 2>&1; ulimit -c; exit 7";
    let run = run(&["--name", "web", "--", "sh", "-c", script, "-m", "64"]);
    let (out, err) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert_eq!(run.status.code(), Some(7), "{out}{err}");
    assert!(err.contains("Added shared RAM of 64 MiB"), "{err}");
    assert!(err.contains("web.qmp"), "{err}");
    assert!(out.contains("elision-ram"), "{out}");
}

#[test]
fn a_program_that_is_not_there_is_named() {
    let run = run(&["--", "no-such-qemu", "-m", "64"]);
    assert_eq!(run.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&run.stderr).contains("Cannot start no-such-qemu"));
}
