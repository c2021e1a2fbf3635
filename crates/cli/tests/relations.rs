//! What processes share, told by `elision plan` and by the guest's own `/proc`; and dependents that are taken along.

mod support;

use elision_testbed::{Guest, GuestOptions, pages};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use support::{Images, copies, elision, json, refuses, restore, save, sh};

/// Processes that meet, with their ends; each after those that it needs.
const VICTIM: &str = "victim";
const ENDS: [(&str, &str); 15] = [
    // What meets the victim.
    ("server", "backlog=a"),
    ("reader", "fifo-in=f"),
    ("web", "tcp-connect=7001"),
    ("terminal", "pty=p"),
    ("store", "memory-in=m"),
    ("tail", "file-in=/run/log"),
    ("resolver", "udp=7002-7003"),
    ("client", "connect=b"),
    ("journal", "listen=/dev/log"),
    ("bus", "listen=/run/user/0/bus"),
    // What meets only those.
    ("second", "fifo-in=g"),
    ("first", "connect=c,fifo-out=g"),
    ("debugger", "trace=victim"),
    // What meets nobody.
    ("apart-a", "fifo-in=h"),
    ("apart-b", "fifo-out=h"),
];
const VICTIM_ENDS: &str = "connect=a,fifo-out=f,on-pty=p,memory=m,file=/run/log,udp=7003-7002,eventfd,child=child,\
                           connect=/dev/log,connect=/run/user/0/bus,tcp-listen=7001,listen=b,listen=c";

/// Starts them all; their process ids by name.
fn meet(guest: &mut Guest) -> BTreeMap<String, u64> {
    let all = ENDS.iter().copied().chain([(VICTIM, VICTIM_ENDS)]);
    let start: String = all
        .clone()
        .map(|(label, ends)| {
            format!("actor meet {label} {ends} </dev/null >/dev/null 2>/run/{label}.err &\n")
        })
        .collect();
    sh(guest, &format!("mkdir -p /run/user/0\n{start}"));
    let labels = all.map(|(label, _)| label).chain(["child"]);
    labels
        .map(|label| {
            let wait = format!(
                "i=0; while [ ! -e /run/meet-{label} ] && [ $i -lt 90 ]; do sleep 0.1; i=$((i+1)); done; cat /run/meet-{label} || cat /run/{label}.err"
            );
            let pid = sh(guest, &wait);
            (label.to_owned(), pid.trim().parse().unwrap_or_else(|_| panic!("{label}: {pid}")))
        })
        .collect()
}

/// What the guest's own kernel says that processes have open: `FD TARGET` by process.
fn open_files(guest: &mut Guest, pid: u64) -> BTreeSet<String> {
    let list = sh(guest, &format!("for f in /proc/{pid}/fd/*; do readlink $f; done; true"));
    list.lines().map(str::to_owned).collect()
}

fn plan(guest: &Guest, arguments: &[&str]) -> Value {
    let mut command = elision();
    command.arg("plan").arg("--qmp").arg(guest.endpoints().qmp_socket()).args(arguments);
    json(&mut command)
}

fn shows_relations(kernel: &str) {
    let mut guest = GuestOptions::new(kernel).boot().expect("the guest boots");
    let pids = meet(&mut guest);
    let names: BTreeMap<u64, &str> = pids.iter().map(|(label, pid)| (*pid, label.as_str())).collect();
    let folder = Images::new();
    let file = folder.path("policy.toml");
    let policy = format!("[[exclude]]\npid = {}\nchildren = false\n", pids[VICTIM]);
    std::fs::write(&file, policy).expect("a file");
    let planned = plan(&guest, &["--policy", file.to_str().expect("a path")]);

    let rows = planned["relations"].as_array().expect("a list");
    let mut found = BTreeSet::new();
    for row in rows {
        let text = |field: &str| row[field].as_str().unwrap_or("").to_owned();
        let other = row["other"].as_u64().expect("a process id");
        let name = names.get(&other).copied().unwrap_or("?");
        found.insert(format!("{name} {} {} {}", text("kind"), text("role"), row["carries"]));
        // By name, as the guest's own kernel shows it.
        let own = open_files(&mut guest, pids[VICTIM]);
        let others = open_files(&mut guest, other);
        let shows = |files: &BTreeSet<String>, name: &str| files.contains(name);
        match text("kind").as_str() {
            "terminal" => {
                assert!(shows(&own, &format!("/dev/{}", text("name"))), "{row} {own:?}");
                assert!(others.iter().any(|f| f.starts_with("/dev/pt")), "{row} {others:?}");
            }
            // One is mapped, the other open.
            "memory" => assert!(text("name") == "/run/meet-m" || shows(&own, &text("name")), "{row} {own:?}"),
            "trace" => {
                let status = sh(&mut guest, &format!("grep TracerPid /proc/{}/status", pids[VICTIM]));
                assert_eq!(status.split_whitespace().last(), Some(other.to_string().as_str()), "{row}");
            }
            _ => {
                assert!(shows(&own, &text("name")), "{row} {own:?}");
                let peer = if row["peer"].is_null() { text("name") } else { text("peer") };
                let waits = peer == "a connection that waits to be accepted";
                assert!(waits || shows(&others, &peer), "{row} {others:?}");
            }
        }
    }
    let expected = [
        "server socket peer true",
        "reader pipe peer true",
        "web socket peer true",
        "terminal terminal terminal-server true",
        "store memory peer true",
        "tail memory peer true", // `/run` is in memory
        "resolver socket peer true",
        "client socket peer true",
        "journal socket log-daemon true",
        "bus socket bus true",
        "first socket peer true",
        "debugger trace tracer true",
        // It has inherited everything but the terminal's session, of which it is not the leader.
        "child pipe peer false",
        "child socket peer true",
        "child terminal peer false",
        "child memory peer true",
        "child descriptor peer false",
    ];
    let expected: BTreeSet<String> = expected.into_iter().map(str::to_owned).collect();
    assert_eq!(found, expected, "{planned:#}");

    // A process on the terminal of its parent, which leads the session.
    let of_child = plan(&guest, &["--exclude", &format!("pid={}", pids["child"])]);
    let rows = of_child["relations"].as_array().expect("a list");
    let shell = rows.iter().find(|row| row["role"] == "shell").unwrap_or_else(|| panic!("{of_child:#}"));
    assert_eq!(shell["other"], pids[VICTIM]);
    assert!(shell["kind"] == "terminal" && shell["carries"] == true, "{shell}");

    let mut command = elision();
    command.arg("plan").arg("--qmp").arg(guest.endpoints().qmp_socket()).arg("--policy").arg(&file);
    let output = command.output().expect("elision starts");
    println!("{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn relations_are_those_of_the_guest_s_own_kernel() {
    if pages::in_full() {
        ["5.10", "6.1", "6.12", "7"].into_iter().for_each(shows_relations);
    } else {
        shows_relations("7");
    }
}

fn takes_dependents_along(kernel: &str) {
    let options = GuestOptions::new(kernel);
    let mut guest = options.boot().expect("the guest boots");
    let pids = meet(&mut guest);
    let images = Images::new();
    let victim = format!("pid={}", pids[VICTIM]);

    let refused = images.path("refused");
    let mut command = save(&guest, &refused, &[&victim]);
    refuses(
        command.args(["--dependents", "refuse"]),
        3,
        &["a terminal server", "/run/meet-f", "a tracer", "a log daemon"],
    );
    assert!(!refused.exists());

    let dependents = [
        "server", "reader", "web", "terminal", "store", "tail", "resolver", "client", "first", "second",
        "debugger",
    ];
    let stay = ["journal", "bus", "apart-a", "apart-b"];
    let planned = plan(&guest, &["--exclude", &victim, "--dependents", "exclude"]);
    let rows = planned["excluded"].as_array().expect("a list");
    let taken = rows.iter().filter(|row| !row["dependent_of"].is_null());
    let taken: BTreeSet<u64> = taken.map(|row| row["pid"].as_u64().expect("a process id")).collect();
    assert_eq!(taken, dependents.iter().map(|label| pids[*label]).collect(), "{planned:#}");

    let (plain, elided) = (images.path("plain"), images.path("elided"));
    json(&mut save(&guest, &plain, &[]));
    let saved = json(save(&guest, &elided, &[&victim]).args(["--dependents", "exclude"]));
    let second = &saved["plan"]["dependents"][pids["second"].to_string()];
    assert_eq!(second.as_u64(), Some(pids["first"]), "{saved}");
    let labels: Vec<&str> = dependents.into_iter().chain([VICTIM, "child"]).chain(stay).collect();
    let (before, after) = (copies(&plain, &labels), copies(&elided, &labels));
    println!("copies of {labels:?}: {before:?}, then {after:?}");
    let left_out = labels.len() - stay.len();
    assert!(before.iter().all(|n| *n >= 2048), "control: {before:?}");
    assert!(after[..left_out].iter().all(|n| *n == 0), "{after:?}");
    assert!(after[left_out..].iter().all(|n| *n >= 2048), "processes that stay have lost data: {after:?}");
    let inspected = json(elision().arg("inspect").arg(&elided));
    assert_eq!(inspected["plan"]["dependents"].as_object().map(|d| d.len()), Some(dependents.len()));
    drop(guest);

    let mut restored = restore(&options, &elided);
    let living = |guest: &mut Guest, label: &str| {
        // One that has ended may wait for its parent.
        let state = format!("grep -q 'State:.[^ZX]' /proc/{}/status && echo lives; true", pids[label]);
        sh(guest, &state).contains("lives")
    };
    for label in &labels[..left_out] {
        let ended = (0..200).any(|_| {
            let ended = !living(&mut restored, label);
            if !ended {
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
            ended
        });
        assert!(ended, "{label} still runs");
    }
    for label in stay {
        assert!(living(&mut restored, label), "{label} has ended");
    }
    assert!(restored.console_problems().is_empty(), "{:?}", restored.console_problems());
}

#[test]
fn dependents_are_refused_or_left_out_with_theirs() {
    if pages::in_full() {
        ["5.10", "6.1", "6.12", "7"].into_iter().for_each(takes_dependents_along);
    } else {
        takes_dependents_along("7");
    }
}
