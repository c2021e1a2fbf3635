//! What excluded processes share with those that stay, as a tree.
//!
//! ```text
//! 812 psql
//! ├─ socket:[123]
//! │  └─ 790 postgres by socket:[124], /run/postgresql/.s.PGSQL.5432: dependent
//! └─ pts/0
//!    ├─ 700 sshd by ptm0: terminal server, dependent
//!    └─ 800 bash: shell, dependent
//! ```

use crate::text::printable;
use elision_plan::{Relation, RelationKind, Role, Selection};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// One relation, with the names of both processes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Row {
    #[serde(flatten)]
    pub(crate) relation: Relation,
    pub(crate) excluded_comm: String,
    pub(crate) other_comm: String,
}

/// Names the processes of relations.
pub(crate) fn rows(relations: Vec<Relation>, selection: &Selection) -> Vec<Row> {
    let names: BTreeMap<u32, &str> = selection.processes.iter().map(|p| (p.pid, p.comm.as_str())).collect();
    let name = |pid: u32| names.get(&pid).copied().unwrap_or_default().to_owned();
    let row = |relation: Relation| Row {
        excluded_comm: name(relation.excluded),
        other_comm: name(relation.other),
        relation,
    };
    relations.into_iter().map(row).collect()
}

/// Of each excluded process what it shares, and of that with whom.
pub(crate) fn tree(rows: &[Row]) -> String {
    let mut processes: BTreeMap<(u32, &str), BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    for row in rows {
        let things = processes.entry((row.relation.excluded, &row.excluded_comm)).or_default();
        things.entry(thing(&row.relation)).or_default().insert(other(row));
    }
    let mut text = String::new();
    for ((pid, comm), things) in &processes {
        let _ = writeln!(text, "{pid} {}", printable(comm));
        branches(&mut text, "", things.iter(), |text, stem, (name, others)| {
            let _ = writeln!(text, "{name}");
            branches(text, stem, others.iter(), |text, _, other| {
                let _ = writeln!(text, "{other}");
            });
        });
    }
    text
}

/// Draws the lines to some items; each is written by `draw`, which gets the stem for what is below it.
fn branches<T>(
    text: &mut String,
    stem: &str,
    items: impl ExactSizeIterator<Item = T>,
    mut draw: impl FnMut(&mut String, &str, T),
) {
    let last = items.len().saturating_sub(1);
    for (i, item) in items.enumerate() {
        let (turn, below) = if i == last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        text.push_str(stem);
        text.push_str(turn);
        draw(text, &format!("{stem}{below}"), item);
    }
}

fn thing(relation: &Relation) -> String {
    let kind = match relation.kind {
        RelationKind::Memory => "memory ",
        RelationKind::File => "file ",
        _ => "",
    };
    format!("{kind}{}", printable(&relation.name))
}

fn other(row: &Row) -> String {
    let Relation { other, role, peer, address, carries, .. } = &row.relation;
    let by: Vec<String> = [peer, address].into_iter().flatten().map(|text| printable(text)).collect();
    let by = if by.is_empty() { String::new() } else { format!(" by {}", by.join(", ")) };
    let role = match role {
        Role::Peer => None,
        Role::TerminalServer => Some("terminal server"),
        Role::Shell => Some("shell"),
        Role::Tracer => Some("tracer"),
        Role::LogDaemon => Some("log daemon"),
        Role::Bus => Some("message bus"),
        Role::Init => Some("first process"),
    };
    let what: Vec<&str> = role.into_iter().chain(carries.then_some("dependent")).collect();
    let what = if what.is_empty() { String::new() } else { format!(": {}", what.join(", ")) };
    format!("{other} {}{by}{what}", printable(&row.other_comm))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(other: u32, role: Role, kind: RelationKind, name: &str, peer: Option<&str>) -> Row {
        let carries = role != Role::Peer || kind == RelationKind::Socket;
        let (peer, address) = (peer.map(str::to_owned), peer.map(|_| "/run/a.sock".to_owned()));
        let relation =
            Relation { excluded: 812, other, role, kind, name: name.to_owned(), peer, address, carries };
        Row { relation, excluded_comm: "psql\x1b".to_owned(), other_comm: format!("p{other}") }
    }

    #[test]
    fn a_tree_leads_from_a_process_by_a_thing_to_others() {
        let text = tree(&[
            row(9, Role::Shell, RelationKind::Terminal, "pts/0", None),
            row(8, Role::Peer, RelationKind::Terminal, "pts/0", None),
            row(7, Role::Peer, RelationKind::Socket, "socket:[1]", Some("socket:[2]")),
        ]);
        let expected = "\
812 psql\\u{1b}
├─ pts/0
│  ├─ 8 p8
│  └─ 9 p9: shell, dependent
└─ socket:[1]
   └─ 7 p7 by socket:[2], /run/a.sock: dependent
";
        assert_eq!(text, expected);
    }
}
