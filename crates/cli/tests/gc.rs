//! `elision gc`: what the dead have left goes; what the living use, and what is somebody else's, stays.

use rustix::fs::{FlockOperation, flock};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Everything below a folder, by its path from there.
fn tree(folder: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut left = vec![folder.to_owned()];
    while let Some(next) = left.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let entry = entry.unwrap();
            found.insert(entry.path().strip_prefix(folder).unwrap().to_str().unwrap().to_owned());
            if entry.file_type().unwrap().is_dir() {
                left.push(entry.path());
            }
        }
    }
    found
}

fn gc(folder: &Path, more: &[&str]) -> Value {
    let run =
        Command::new(env!("CARGO_BIN_EXE_elision")).args(["gc", "--json"]).args(more).arg(folder).output();
    let run = run.unwrap();
    assert_eq!(run.status.code(), Some(0), "{}", String::from_utf8_lossy(&run.stderr));
    serde_json::from_slice(&run.stdout).unwrap()
}

/// Paths in one of the result's lists, from the folder.
fn paths(result: &Value, list: &str, folder: &Path) -> BTreeSet<String> {
    let paths = result[list].as_array().unwrap().iter().map(|entry| entry["path"].as_str().unwrap());
    paths.map(|path| Path::new(path).strip_prefix(folder).unwrap().to_str().unwrap().to_owned()).collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// A file with this text, and the folders above it.
fn file(path: PathBuf, text: &[u8]) -> PathBuf {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, text).unwrap();
    path
}

/// A socket that nobody listens on any more.
fn dead_socket(path: PathBuf) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    drop(UnixListener::bind(path).unwrap());
}

/// A process that has a file open.
fn user_of(file: &Path) -> Child {
    Command::new("sleep").arg("600").stdin(File::open(file).unwrap()).stdout(Stdio::null()).spawn().unwrap()
}

#[test]
fn what_the_dead_have_left_goes_and_all_else_stays() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let at = |name: &str| folder.join(name);
    // Two images, and what looks like something of Elision and is not.
    let formats = Path::new(env!("CARGO_MANIFEST_DIR")).join("../image/tests/formats");
    assert!(Command::new("cp").arg("-r").arg(formats).arg(at("images")).status().unwrap().success());
    let before_all = tree(folder);
    let image = file(at("web.elision/manifest.json"), b"{}").parent().unwrap().to_owned();
    file(image.join("ram.img"), b"memory");
    file(at("notes.qmp"), b"no socket");
    file(at("elision-partial/ram.img"), b"no unfinished image");
    file(at(".x.elision-partial"), b"no folder");
    file(at(".mixed.elision-partial/ram.img"), b"half");
    file(at(".mixed.elision-partial/letter.txt"), b"mine");
    file(at("7/letter.txt"), b"mine");
    dead_socket(at("other.sock"));
    let mut foreign = tree(folder);
    // Of living processes.
    let busy = file(at(".busy.elision-partial/ram.img"), b"half").parent().unwrap().to_owned();
    let saver = File::open(busy).unwrap();
    flock(&saver, FlockOperation::LockExclusive).unwrap();
    let used = file(at(".used.elision-partial/ram.img"), b"of a VM");
    let mut vm = user_of(&used);
    let mut listeners: Vec<_> =
        ["live.qmp", "live.agent"].map(|name| UnixListener::bind(at(name)).unwrap()).into();
    fs::create_dir_all(at("web-clones/3")).unwrap();
    listeners.push(UnixListener::bind(at("web-clones/3/qmp.sock")).unwrap());
    let starting = at("new-clones");
    fs::create_dir_all(starting.join("1")).unwrap();
    let restore = File::open(&starting).unwrap();
    flock(&restore, FlockOperation::LockExclusive).unwrap();
    let of_living = &tree(folder) - &foreign;
    // Of dead ones. A clone's disk is its owner's.
    let ram = file(at(".dead.elision-partial/ram.img"), &[7; 1 << 20]);
    File::open(&ram).unwrap().sync_all().unwrap();
    ["dead.qmp", "dead.agent"].into_iter().for_each(|name| dead_socket(at(name)));
    let of_disk = file(at("web-clones/1/disk-1.qcow2"), b"written");
    foreign.extend(["web-clones/1", "web-clones/1/disk-1.qcow2"].map(str::to_owned));
    ["1/qmp.sock", "1/serial.sock", "2/qmp.sock"]
        .into_iter()
        .for_each(|name| dead_socket(at("web-clones").join(name)));
    dead_socket(at("elsewhere/1/qmp.sock")); // no folder of clones by its name: given itself, it is one
    foreign.extend(["elsewhere", "elsewhere/1", "elsewhere/1/qmp.sock"].map(str::to_owned));
    fs::create_dir(at("web-clones/4")).unwrap();

    let expected = set(&[
        ".dead.elision-partial",
        "dead.qmp",
        "dead.agent",
        "web-clones/1/qmp.sock",
        "web-clones/1/serial.sock",
        "web-clones/2",
        "web-clones/2/qmp.sock",
        "web-clones/4",
    ]);
    let all = tree(folder);
    let said = gc(folder, &["--dry-run"]);
    assert_eq!((paths(&said, "removed", folder), tree(folder)), (expected.clone(), all), "a dry run");
    let done = gc(folder, &[]);
    assert_eq!(paths(&done, "removed", folder), expected);
    assert!(done["bytes"].as_u64() >= Some(1 << 20) && done["bytes"] == said["bytes"], "{done}");
    assert_eq!(&of_living | &foreign, tree(folder));
    assert!(before_all.len() > 5 && before_all.is_subset(&tree(folder)), "control: images");
    assert!(of_disk.exists());
    let kept = [
        ".busy.elision-partial",
        ".mixed.elision-partial",
        ".used.elision-partial",
        ".x.elision-partial",
        "new-clones",
    ];
    assert_eq!(paths(&done, "kept", folder), set(&kept), "{done}");
    let reasons = done["kept"].to_string();
    for part in [
        "at work in it",
        &format!("process {}", vm.id()),
        "letter.txt",
        "no folder of this user",
        "being started",
    ] {
        assert!(reasons.contains(part), "{part}: {reasons}");
    }
    assert_eq!(gc(folder, &[])["removed"], serde_json::json!([]), "once more");

    // The control: what the living used is a leftover when they are dead.
    vm.kill().unwrap();
    vm.wait().unwrap();
    drop((saver, restore, listeners));
    let done = paths(&gc(folder, &[]), "removed", folder);
    let now = set(&[
        ".busy.elision-partial",
        ".used.elision-partial",
        "live.qmp",
        "live.agent",
        "web-clones/3",
        "web-clones/3/qmp.sock",
        "new-clones/1",
    ]);
    assert_eq!(done, now);
    assert_eq!(paths(&gc(&at("elsewhere"), &[]), "removed", &at("elsewhere")), set(&["1", "1/qmp.sock"]));
}

#[test]
fn a_folder_that_is_not_there_is_wrong_usage() {
    let run = Command::new(env!("CARGO_BIN_EXE_elision")).args(["gc", "/no/such/folder"]).output().unwrap();
    assert_eq!(run.status.code(), Some(2));
}
