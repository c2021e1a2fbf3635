//! `inspect`, `verify` and `audit` on an image made here: results, JSON and exit status.

use elision_image::{Completeness, FORMAT, Files, Guest, ImageWriter, Manifest, Times, Vmm, Way};
use elision_memory::{Gfn, Gpa, PAGE_SIZE, Ram, RamLayout};
use elision_plan::{DropReason, DropRun, Plan};
use serde_json::{Value, json};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const PAGES: u64 = 64;
/// In a frame that is dropped, and across the border of two that stay.
const LEFT_OUT: &[u8] = b"left-out-secret-1";
const KEPT: &[u8] = b"kept-secret-22222";

struct Fixture {
    folder: tempfile::TempDir,
    image: PathBuf,
}

/// An image of 64 frames: one dropped, one secret in it, another secret in what stays.
fn fixture() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("vm.elision");
    let layout = RamLayout::flat(PAGES * PAGE_SIZE as u64).unwrap();
    let mut ram = Ram::zeroed(layout.clone()).unwrap();
    ram.poke(Gfn(5).gpa(), LEFT_OUT).unwrap();
    ram.poke(Gpa(Gfn(9).gpa().0 - 3), KEPT).unwrap();
    let mut plan = Plan {
        drops: vec![DropRun { first: Gfn(5), count: 1, reason: DropReason::Anonymous, owner: Some(812) }],
        ..Plan::default()
    };
    plan.summary.dropped_frames.insert(DropReason::Anonymous, 1);
    plan.summary.frames_by_owner.insert(812, 1);
    let mut writer = ImageWriter::create(&image).unwrap();
    writer.write_ram(&ram, &plan, 1).unwrap();
    writer.write_state(b"no device state of a real VM").unwrap();
    writer.write_exclusions(&plan).unwrap();
    let listens =
        format!("socket,id=agent,path={},server=on,wait=off", folder.path().join("agent").display());
    let command = ["no-such-qemu", "-m", "1", "-chardev", &listens, "-serial", "file:console.log"];
    let manifest = Manifest {
        format: FORMAT,
        id: String::new(),
        base: None,
        elision_version: "0.1.0".to_owned(),
        created: "2026-01-31T12:00:00Z".to_owned(),
        vmm: Vmm {
            version: "7.2.22".to_owned(),
            command: command.map(str::to_owned).to_vec(),
            ram_block: "pc.ram".to_owned(),
            ram_blocks: Vec::new(),
            vcpus: 1,
            ..Vmm::default()
        },
        guest: Guest { kernel_release: "6.1.0-test".to_owned(), build_id: "ab".to_owned() },
        ram_layout: layout,
        policy: json!({"selectors": [{"kind": "pid", "pattern": "812"}], "save": {}}),
        plan: plan.summary,
        completeness: Completeness::Complete,
        times: Times::default(),
        way: Way::Shared,
        files: Files::default(),
    };
    writer.finish(manifest, &|_| ()).unwrap();
    fs::write(folder.path().join("left-out"), [LEFT_OUT, b"\n"].concat()).unwrap();
    fs::write(folder.path().join("kept"), [b"unknown-secret\n", KEPT, b"\n"].concat()).unwrap();
    Fixture { folder, image }
}

fn elision(folder: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_elision")).args(words).current_dir(folder).output().unwrap()
}

/// What a failed restore says.
fn restore_error(folder: &Path, status: i32) -> String {
    let run = elision(folder, &["restore", "vm.elision", "--qmp", "new.qmp", "--json"]);
    assert_eq!(run.status.code(), Some(status), "{}", String::from_utf8_lossy(&run.stderr));
    let error: Value = serde_json::from_slice(&run.stderr).unwrap();
    format!("{} {}", error["error"]["message"], error["error"]["help"])
}

fn answer(run: &Output, status: i32) -> Value {
    let stderr = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(status), "{stderr}");
    serde_json::from_slice(&run.stdout).unwrap_or_else(|e| panic!("{e}: {stderr}"))
}

#[test]
fn inspect_shows_what_was_left_out() {
    let vm = fixture();
    let facts = answer(&elision(vm.folder.path(), &["inspect", "vm.elision", "--json"]), 0);
    assert_eq!(facts["plan"]["frames_by_owner"], json!({"812": 1}));
    assert_eq!(facts["guest"]["kernel_release"], "6.1.0-test");
    assert!(facts["ram"].get("chunks").is_none(), "the list of checksums is not for people");
    let run = elision(vm.folder.path(), &["inspect", "vm.elision"]);
    let text = String::from_utf8(run.stdout).unwrap();
    for part in ["Linux 6.1.0-test", "pid=812", "private memory", "1 frame", "4.0 KiB", "process 812"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn verify_answers_no_for_a_damaged_image() {
    let vm = fixture();
    let facts = answer(&elision(vm.folder.path(), &["verify", "vm.elision", "--json"]), 0);
    assert_eq!(facts, json!({"image": "vm.elision", "ok": true, "problems": []}));

    let ram = OpenOptions::new().write(true).open(vm.image.join("ram.img")).unwrap();
    ram.write_all_at(LEFT_OUT, 5 * PAGE_SIZE as u64).unwrap();
    let facts = answer(&elision(vm.folder.path(), &["verify", "vm.elision", "--json"]), 1);
    assert_eq!(facts["ok"], false);
    let kinds: Vec<_> = facts["problems"].as_array().unwrap().iter().map(|p| &p["problem"]).collect();
    assert!(kinds.contains(&&json!("not-dropped")) && kinds.contains(&&json!("ram-chunk")), "{kinds:?}");
}

#[test]
fn a_truncated_image_is_a_negative_answer_in_every_verb() {
    let vm = fixture();
    fs::write(vm.image.join("state.bin"), "x").unwrap();
    for verb in [&["verify"][..], &["inspect"], &["restore"], &["ps"]] {
        let run = elision(vm.folder.path(), &[verb, &["vm.elision", "--json"]].concat());
        assert_eq!(run.status.code(), Some(1), "{verb:?}");
        let error: Value = serde_json::from_slice(&run.stderr).unwrap();
        assert_eq!(error["error"]["exit_status"], 1);
        assert!(error["error"]["message"].as_str().unwrap().contains("truncated"), "{error}");
    }
}

#[test]
fn audit_finds_what_stays_and_not_what_was_left_out() {
    let vm = fixture();
    let run = elision(vm.folder.path(), &["audit", "vm.elision", "--secret-file", "left-out", "--json"]);
    let facts = answer(&run, 0);
    assert_eq!((&facts["clean"], &facts["secrets"]), (&json!(true), &json!(1)));
    let files = facts["searched"].as_array().unwrap();
    assert_eq!(files.len(), 4);
    assert!(files.iter().all(|file| file["bytes"].as_u64().unwrap() > 0), "{files:?}");

    let run = elision(vm.folder.path(), &["audit", "vm.elision", "--secret-file", "kept", "--json"]);
    let facts = answer(&run, 1);
    let found = &facts["searched"][0]["findings"];
    let expected = json!([{
        "secret_file": "kept", "number": 2, "secret": 1, "encoding": "raw", "count": 1,
        "places": [{"in": "ram", "gpa": Gfn(9).gpa().0 - 3}],
    }]);
    assert_eq!(*found, expected);
}

#[test]
fn audit_never_prints_a_secret() {
    let vm = fixture();
    let run = elision(vm.folder.path(), &["audit", "vm.elision", "--secret-file", "kept", "-vv"]);
    assert_eq!(run.status.code(), Some(1));
    let said = [run.stdout, run.stderr].concat();
    let text = String::from_utf8_lossy(&said);
    assert!(text.contains("secret 2 of kept, raw: once"), "{text}");
    assert!(!text.contains("kept-secret"), "{text}");
}

#[test]
fn audit_searches_any_file() {
    let vm = fixture();
    fs::write(vm.folder.path().join("stream"), [b"....", LEFT_OUT].concat()).unwrap();
    let run =
        elision(vm.folder.path(), &["audit", "--file", "stream", "--secret-binary", "left-out", "--json"]);
    answer(&run, 0); // as a whole, with its line end, it is not there
    let run =
        elision(vm.folder.path(), &["audit", "--file", "stream", "--secret-file", "left-out", "--json"]);
    let facts = answer(&run, 1);
    assert_eq!(facts["searched"][0]["findings"][0]["places"], json!([{"in": "state", "offset": 4}]));
}

#[test]
fn restore_refuses_what_a_running_vm_uses_and_says_how_to_go_on() {
    let vm = fixture();
    let folder = vm.folder.path();
    let socket = UnixListener::bind(folder.join("agent")).unwrap();
    let said = restore_error(folder, 4);
    assert!(said.contains("agent, which is in use"), "{said}");
    assert!(said.contains("elision restore vm.elision -- QEMU COMMAND"), "{said}");
    drop(socket);

    let log = fs::File::create(folder.join("console.log")).unwrap();
    let mut writer = Command::new("sleep").arg("60").stdout(log).spawn().unwrap();
    let said = restore_error(folder, 4);
    writer.kill().unwrap();
    writer.wait().unwrap();
    assert!(said.contains("console.log, which is in use"), "{said}");

    let said = restore_error(folder, 4);
    assert!(said.contains("start no-such-qemu"), "with nothing in use it goes on: {said}");
}

#[test]
fn restore_never_removes_a_file_for_its_socket() {
    let vm = fixture();
    let notes = vm.folder.path().join("new.qmp");
    fs::write(&notes, "notes").unwrap();
    let said = restore_error(vm.folder.path(), 2);
    assert!(said.contains("is not a socket"), "{said}");
    assert_eq!(fs::read(&notes).unwrap(), b"notes");
}
