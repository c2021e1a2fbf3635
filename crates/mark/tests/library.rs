//! The C library as it is installed: what it exports, and programs that are built with what `pkg-config` says of it.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

/// The functions of `elision.h`.
const FUNCTIONS: [&str; 8] = [
    "elision_alloc",
    "elision_filled",
    "elision_free",
    "elision_holds",
    "elision_mark",
    "elision_restored",
    "elision_unmark",
    "elision_watch",
];

fn output_of(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// `KEY: VALUE` of a pkg-config file, its variables replaced, as `pkg-config` does it.
fn flags(file: &Path, key: &str) -> Vec<String> {
    let text = std::fs::read_to_string(file).unwrap();
    let value = |start: String| text.lines().find_map(|line| line.strip_prefix(&start)).unwrap().trim();
    let mut flags = value(format!("{key}:")).to_owned();
    for name in ["libdir", "includedir"] {
        flags = flags.replace(&format!("${{{name}}}"), value(format!("{name}=")));
    }
    flags.split(' ').map(str::to_owned).collect()
}

#[test]
fn programs_are_built_with_the_installed_library() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("c");
    let folder = tempfile::tempdir().unwrap();
    let prefix = folder.path().join("usr");
    let variable = |name: &str, path: &Path| format!("{name}={}", path.display());
    let mut make = Command::new("make");
    make.args(["-s", "-C"]).arg(&sources).arg("install").arg("CFLAGS=-O1 -Werror");
    make.arg(variable("BUILD", &folder.path().join("build"))).arg(variable("PREFIX", &prefix));
    output_of(make.env_remove("MAKEFLAGS"));

    let library = prefix.join("lib/libelision.so");
    let exported = output_of(Command::new("nm").args(["-D", "--defined-only"]).arg(&library));
    let exported: Vec<&str> = exported.lines().filter_map(|line| line.split(' ').nth(2)).collect();
    assert_eq!(exported, FUNCTIONS);

    let pc = prefix.join("lib/pkgconfig/elision.pc");
    let archive = prefix.join("lib/libelision.a");
    let shared = flags(&pc, "Libs");
    let ways = [("header alone", vec![], vec![]), ("shared", flags(&pc, "Cflags"), shared)];
    let fixed = ("static", flags(&pc, "Cflags"), vec![archive.display().to_string()]);
    for (what, cflags, libs) in ways.into_iter().chain([fixed]) {
        let program = folder.path().join("keeper");
        let mut cc = Command::new("cc");
        cc.args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&program);
        output_of(cc.args(cflags).arg(sources.join("keeper.c")).args(libs));
        let needed = output_of(Command::new("readelf").arg("-d").arg(&program));
        assert_eq!(needed.contains("[libelision.so.0]"), what == "shared", "{what}: {needed}");
        let mut keeper = Command::new(&program);
        keeper.env("LD_LIBRARY_PATH", prefix.join("lib")).stdout(Stdio::piped());
        let mut keeper = keeper.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(keeper.stdout.take().unwrap()).read_line(&mut line).unwrap();
        keeper.kill().unwrap();
        keeper.wait().unwrap();
        assert!(line.starts_with("tick 0 of key "), "{what}: {line}");
    }
}
