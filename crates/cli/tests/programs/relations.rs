//! The relations that `plan` shows of a session (sshd, tmux, two shells, journald, a D-Bus service), against what
//! `ss`, `lsof` and `/proc` say in the guest.

use super::support::{elision, json, sh};
use elision_testbed::Guest;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Processes whose relations are looked at: by the guest's words for their ids.
const LOOKED_AT: [(&str, &str); 6] = [
    ("the shell of an ssh session", "pgrep -u user -x bash"),
    ("the server of an ssh session", "pgrep -u user -x sshd"),
    ("a client of ssh", "pgrep -x ssh"),
    ("a shell in tmux", "pgrep -x bash -P $(pgrep -x 'tmux: server')"),
    ("a service that logs", "pgrep -P 1 -f 'sleep infinity'"),
    ("a service of D-Bus", "pgrep -x systemd-logind"),
];

/// Kind, this end, the other process.
type Ties = BTreeSet<(String, String, u32)>;

/// Who has what open, and which sockets are connected, as the guest's tools say.
#[derive(Default)]
struct Seen {
    /// Kind and name of what each process has open.
    open: BTreeMap<u32, BTreeSet<(&'static str, String)>>,
    peers: BTreeMap<String, String>,
}

impl Seen {
    fn of(guest: &mut Guest) -> Self {
        let mut seen = Self::default();
        let find = "/usr/bin/find /proc/[0-9]*/fd -type l -printf '%p %Y %l\\n' 2> /dev/null || true";
        for line in sh(guest, find).lines() {
            let words: Vec<_> = line.splitn(3, ' ').collect();
            let (Some(pid), [_, kind, name]) = (pid_of(line), &words[..]) else { continue };
            let kind = match *kind {
                "p" => "pipe",
                "s" => "socket",
                "c" if name.starts_with("/dev/pts/") => "terminal",
                _ => continue,
            };
            seen.open.entry(pid).or_default().insert((kind, name.trim_start_matches("/dev/").to_owned()));
        }
        for line in sh(guest, "grep tty-index /proc/[0-9]*/fdinfo/* 2> /dev/null || true").lines() {
            if let (Some(pid), Some(index)) = (pid_of(line), line.split_whitespace().last()) {
                seen.open.entry(pid).or_default().insert(("terminal", format!("ptm{index}")));
                seen.peers.insert(format!("ptm{index}"), format!("pts/{index}"));
                seen.peers.insert(format!("pts/{index}"), format!("ptm{index}"));
            }
        }
        // Of Unix sockets: type, state, two queues, address, inode, address of the peer, inode of the peer.
        for line in sh(guest, "/usr/bin/ss -xaH").lines() {
            let words: Vec<_> = line.split_whitespace().collect();
            if let [_, _, _, _, _, inode, _, peer, ..] = words[..] {
                seen.peers.insert(format!("socket:[{inode}]"), format!("socket:[{peer}]"));
            }
        }
        // Of TCP: two queues, address, address of the peer, more with `ino:`.
        let tcp = sh(guest, "/usr/bin/ss -tnHe state established");
        let ends = tcp.lines().filter_map(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            let inode = words.iter().find_map(|word| word.strip_prefix("ino:"))?;
            Some(((*words.get(2)?, *words.get(3)?), format!("socket:[{inode}]")))
        });
        let ends: BTreeMap<_, _> = ends.collect();
        for ((here, there), inode) in &ends {
            if let Some(peer) = ends.get(&(*there, *here)) {
                seen.peers.insert(inode.clone(), peer.clone());
            }
        }
        seen
    }

    /// What a process shares with others by pipes, sockets and terminals.
    fn ties(&self, guest: &mut Guest, pid: u32) -> Ties {
        let mut ties = Ties::new();
        for (kind, name) in self.open.get(&pid).into_iter().flatten() {
            let has = |pid: &u32, name: &String| self.open[pid].contains(&(*kind, name.clone()));
            let peer = self.peers.get(name);
            let others =
                self.open.keys().filter(|other| has(other, name) || peer.is_some_and(|p| has(other, p)));
            ties.extend(
                others.filter(|other| **other != pid).map(|other| ((*kind).to_owned(), name.clone(), *other)),
            );
            if name.starts_with("pts/") {
                let open = sh(guest, &format!("/usr/bin/lsof -t /dev/{name}"));
                let open: BTreeSet<u32> = open.lines().filter_map(|pid| pid.parse().ok()).collect();
                let same: BTreeSet<u32> = self.open.keys().filter(|pid| has(pid, name)).copied().collect();
                assert_eq!(open, same, "lsof and /proc say different things of {name}");
            }
        }
        ties
    }
}

/// The process of a line that begins with `/proc/PID/`.
fn pid_of(line: &str) -> Option<u32> {
    line.strip_prefix("/proc/")?.split('/').next()?.parse().ok()
}

/// The relations of one process, as `plan` shows them.
fn shown(planned: &Value, pid: u32) -> Ties {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let of_it = rows(planned).filter(|row| row["excluded"] == pid);
    let ties = of_it.map(|row| (word(&row["kind"]), word(&row["name"]), id(&row["other"])));
    ties.filter(|(kind, ..)| ["pipe", "socket", "terminal"].contains(&kind.as_str())).collect()
}

fn rows(planned: &Value) -> impl Iterator<Item = &Value> {
    planned["relations"].as_array().into_iter().flatten()
}

fn id(value: &Value) -> u32 {
    value.as_u64().and_then(|pid| u32::try_from(pid).ok()).expect("a process")
}

/// Compares them for each process; gives the lines of a report.
pub(crate) fn check(guest: &mut Guest) -> Vec<String> {
    let mut lines = Vec::new();
    for (what, find) in LOOKED_AT {
        let found = sh(guest, find);
        let pid: u32 = found.lines().next().and_then(|line| line.parse().ok()).expect(what);
        let mut plan = elision();
        plan.arg("plan").arg("--qmp").arg(guest.endpoints().qmp_socket());
        let planned = json(plan.args(["--exclude", &format!("pid={pid}")]));
        // With a process go its children.
        let excluded: BTreeSet<_> =
            planned["excluded"].as_array().into_iter().flatten().map(|process| id(&process["pid"])).collect();
        let mut seen = Seen::of(guest).ties(guest, pid);
        seen.retain(|(_, _, other)| !excluded.contains(other));
        let shown = shown(&planned, pid);
        assert_eq!(shown, seen, "{what}, process {pid}");
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let others = rows(&planned).filter(|row| row["excluded"] == pid);
        let others = others.map(|row| format!("{} ({})", word(&row["other_comm"]), word(&row["role"])));
        let others: BTreeSet<_> = others.collect();
        lines.push(format!(
            "| {what} | {} | {} |",
            seen.len(),
            others.into_iter().collect::<Vec<_>>().join(", ")
        ));
    }
    lines
}
