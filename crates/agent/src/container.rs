//! Containers of Elision: a control group below `elision.slice` whose every process, page and buffer the host can leave out
//! by `--exclude container=NAME`.

use crate::cgroup::{Group, Tree};
use crate::error::{AgentError, Context};
use crate::procfs;
use rustix::process::getsid;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

const SLICE: &str = "/elision.slice";

/// Becomes a command that runs in a container; returns only if that is not possible.
pub(crate) fn run(name: &str, command: &[OsString]) -> AgentError {
    let Some((program, arguments)) = command.split_first() else {
        return AgentError::Other("There is no command".to_owned());
    };
    if let Err(error) = group(name).and_then(|group| group.take(std::process::id())) {
        return error;
    }
    let error = Command::new(program).args(arguments).exec();
    AgentError::Io { action: "start", path: program.into(), source: error }
}

/// Puts the caller's terminal session into a container of its own: all processes of the session, and all that they start.
pub(crate) fn private() -> Result<ExitCode, AgentError> {
    let session = getsid(None).context("find", "the terminal session")?;
    let session = u32::try_from(session.as_raw_nonzero().get()).unwrap_or(0);
    let name = format!("private-{session}");
    let group = group(&name)?;
    let me = std::process::id();
    // Those that are started meanwhile come from one that was moved, or are found by the next round.
    for _ in 0..8 {
        let inside = group.processes()?;
        let all = procfs::pids();
        let outside = all.into_iter().filter(|pid| *pid != me && !inside.contains(pid));
        let outside: Vec<_> =
            outside.filter(|pid| procfs::stat(*pid).is_some_and(|stat| stat.session == session)).collect();
        if outside.is_empty() {
            break;
        }
        for pid in outside {
            group.take(pid)?;
        }
    }
    println!("This session is container {name}: the host leaves it out with --exclude container={name}");
    Ok(ExitCode::SUCCESS)
}

fn group(name: &str) -> Result<Group, AgentError> {
    let tree = Tree::find()?;
    let slice = tree.group(SLICE)?;
    slice.create()?;
    // Then the cache of files that were closed belongs to the container too. Some machines have the controller elsewhere.
    for above in [&tree.group("/")?, &slice] {
        let _ = above.charge_memory();
    }
    let group = slice.child(name);
    group.create()?;
    Ok(group)
}
