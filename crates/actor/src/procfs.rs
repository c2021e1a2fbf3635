//! Processes as `/proc` tells them.

use elision_actor::protocol::Process;
use std::io;

/// All process ids, ascending.
pub(crate) fn pids() -> io::Result<Vec<i32>> {
    let entries = std::fs::read_dir("/proc")?;
    let mut pids: Vec<i32> = entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    Ok(pids)
}

/// All processes that live while they are read.
pub(crate) fn processes() -> io::Result<Vec<Process>> {
    Ok(pids()?.into_iter().filter_map(process).collect())
}

fn process(pid: i32) -> Option<Process> {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).ok();
    let stat = read("stat")?;
    let status = read("status")?;
    let field = |name: &str| {
        status.lines().find_map(|l| l.strip_prefix(name)).and_then(|v| v.split_whitespace().next())
    };
    // The name in parentheses may itself hold parentheses and blanks.
    let after_name: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let exe = std::fs::read_link(format!("/proc/{pid}/exe")).map(|p| p.display().to_string());
    Some(Process {
        pid,
        ppid: after_name.get(1)?.parse().ok()?,
        comm: read("comm")?.trim_end().to_owned(),
        state: (*after_name.first()?).to_owned(),
        uid: field("Uid:")?.parse().ok()?,
        cgroup: read("cgroup")?.lines().find_map(|l| l.strip_prefix("0::")).unwrap_or("").to_owned(),
        tty_nr: after_name.get(4)?.parse().ok()?,
        exe: exe.unwrap_or_default(),
        threads: field("Threads:")?.parse().ok()?,
    })
}
