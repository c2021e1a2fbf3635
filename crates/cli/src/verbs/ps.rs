//! `elision ps`: the guest's processes, of a running VM or of an image.

use crate::args::PsArgs;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{Output, table};
use crate::session::{Session, open_kernel, retry, roots_of_state, sound, while_paused};
use crate::text::{or_dash, printable};
use elision_image::{Exclusions, Guest, Image};
use elision_kernel::{Kernel, KernelError, Process, ProfileCache};
use elision_plan::EditReason;
use elision_qemu::DeviceState;
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::Path;

#[derive(Serialize)]
struct Listing {
    guest: Guest,
    /// Whether the VM was paused for this list.
    paused: bool,
    processes: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    pid: u32,
    ppid: u32,
    uid: u32,
    gid: u32,
    threads: usize,
    comm: String,
    exe: Option<String>,
    /// Its words, if the guest has them in memory.
    command_line: Option<Vec<String>>,
    cgroup: Option<String>,
    tty: Option<String>,
    kernel_thread: bool,
    /// In an image: whether its memory was left out, so that it ends when the image is restored.
    excluded: bool,
}

pub(crate) fn run(args: &PsArgs, out: &mut Output) -> Result<Exit, Failure> {
    let mut listing = match (&args.qmp, &args.image) {
        (Some(socket), _) => of_vm(socket, args.pause)?,
        (None, Some(image)) => of_image(image)?,
        (None, None) => return Err(Failure::new(Exit::Usage, "Give --qmp SOCK or an image")),
    };
    listing.processes.retain(|row| args.all || !row.kernel_thread);
    out.result(&listing, human)?;
    Ok(Exit::Done)
}

fn of_vm(socket: &Path, pause: bool) -> Result<Listing, Failure> {
    let Session { mut vm, ram } = Session::attach(socket)?;
    let kernel = open_kernel(&mut vm, &ram)?;
    let running = if pause { None } else { Some(retry(|| look(&kernel))) };
    ram.check()?;
    let (processes, paused) = match running {
        Some(Ok(processes)) => (processes, false),
        Some(Err(error)) if !error.is_transient() => return Err(error.into()),
        _ => (while_paused(&mut vm, |_| sound(&ram, look(&kernel)))?.0, true),
    };
    Ok(Listing::new(&kernel, paused, processes, &BTreeSet::new()))
}

fn of_image(dir: &Path) -> Result<Listing, Failure> {
    let image = Image::open(dir)?;
    let ram = image.ram()?;
    let state = DeviceState::read(image.state()?.as_slice(), &image.manifest().ram_blocks())?;
    let kernel = Kernel::open(&ram, &roots_of_state(&state), &ProfileCache::of_user())?;
    let excluded = excluded(&image.exclusions()?);
    Ok(Listing::new(&kernel, true, look(&kernel)?, &excluded))
}

/// A process and the words of its command line.
type Seen = (Process, Option<Vec<String>>);

fn look(kernel: &Kernel<'_>) -> Result<Vec<Seen>, KernelError> {
    kernel.ram().refresh();
    let processes = kernel.processes()?.into_iter();
    processes
        .map(|process| {
            let words = kernel.command_line(&process)?;
            Ok((process, words))
        })
        .collect()
}

/// Each excluded process has a kill made pending, and it alone.
fn excluded(map: &Exclusions) -> BTreeSet<u32> {
    let kills = map.edits.iter().filter(|edit| edit.reason == EditReason::PendingKill);
    kills.filter_map(|edit| edit.owner).collect()
}

impl Listing {
    fn new(kernel: &Kernel<'_>, paused: bool, processes: Vec<Seen>, excluded: &BTreeSet<u32>) -> Self {
        let guest =
            Guest { kernel_release: kernel.release().to_owned(), build_id: kernel.build_id().to_owned() };
        let mut processes: Vec<Row> =
            processes.into_iter().map(|process| Row::new(process, excluded)).collect();
        processes.sort_by_key(|row| row.pid);
        Self { guest, paused, processes }
    }
}

impl Row {
    fn new((process, command_line): Seen, excluded: &BTreeSet<u32>) -> Self {
        Self {
            pid: process.pid,
            ppid: process.parent,
            uid: process.uid,
            gid: process.gid,
            threads: process.threads.len(),
            excluded: excluded.contains(&process.pid),
            comm: process.comm,
            exe: process.exe,
            command_line,
            cgroup: process.cgroup,
            tty: process.tty,
            kernel_thread: process.kernel_thread,
        }
    }
}

fn human(listing: &Listing) -> String {
    let any_excluded = listing.processes.iter().any(|row| row.excluded);
    let mut titles = vec![">PID", ">PPID", ">UID", ">THREADS", "TTY", "COMM", "EXE", "CGROUP", "COMMAND"];
    if any_excluded {
        titles.insert(4, "LEFT OUT");
    }
    let rows = listing.processes.iter().map(|row| {
        let comm = printable(&row.comm);
        let mut cells = vec![
            row.pid.to_string(),
            row.ppid.to_string(),
            row.uid.to_string(),
            row.threads.to_string(),
            or_dash(row.tty.as_deref()),
            if row.kernel_thread { format!("[{comm}]") } else { comm },
            or_dash(row.exe.as_deref()),
            or_dash(row.cgroup.as_deref()),
            row.command_line.as_deref().map_or_else(|| "-".to_owned(), cut),
        ];
        if any_excluded {
            cells.insert(4, if row.excluded { "yes" } else { "" }.to_owned());
        }
        cells
    });
    table(&titles, rows)
}

/// A command line in the room that a table has for it.
fn cut(words: &[String]) -> String {
    const ROOM: usize = 60;
    let line = words.join(" ");
    let start: String = line.chars().take(ROOM).collect();
    printable(&if start.len() < line.len() { format!("{start}...") } else { start })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn listing() -> Listing {
        let row = Row {
            pid: 812,
            ppid: 1,
            uid: 101,
            gid: 102,
            threads: 3,
            comm: "a\x1b[2J".to_owned(),
            exe: Some("/usr/bin/a".to_owned()),
            command_line: Some(vec!["a".to_owned(), "\x1b".repeat(100)]),
            cgroup: Some("/system.slice/a.service".to_owned()),
            tty: None,
            kernel_thread: false,
            excluded: true,
        };
        let guest = Guest { kernel_release: "6.1.0".to_owned(), build_id: "ab".to_owned() };
        Listing { guest, paused: false, processes: vec![row] }
    }

    #[test]
    fn the_json_fields_are_the_documented_ones() {
        let expected = json!({
            "guest": {"kernel_release": "6.1.0", "build_id": "ab"},
            "paused": false,
            "processes": [{
                "pid": 812, "ppid": 1, "uid": 101, "gid": 102, "threads": 3, "comm": "a\u{1b}[2J",
                "exe": "/usr/bin/a", "command_line": ["a", "\u{1b}".repeat(100)], "cgroup": "/system.slice/a.service", "tty": null,
                "kernel_thread": false, "excluded": true,
            }],
        });
        assert_eq!(serde_json::to_value(listing()).unwrap(), expected);
    }

    #[test]
    fn the_table_is_safe_for_a_terminal() {
        let text = human(&listing());
        assert!(text.contains("LEFT OUT") && text.contains("/usr/bin/a"), "{text}");
        assert!(!text.contains('\x1b') && text.contains("\\u{1b}..."), "{text:?}");
    }
}
