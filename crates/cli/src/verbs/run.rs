//! `elision run`: becomes a QEMU that can be saved well.

use crate::agent;
use crate::args::RunArgs;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::Output;
use crate::sockets;
use crate::text::{printable, shell};
use elision_qemu::{Prepared, prepare};
use serde::Serialize;
use std::fmt::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

#[derive(Serialize)]
struct Prepares<'a> {
    command: &'a [String],
    additions: &'a [String],
    qmp: &'a Path,
}

pub(crate) fn run(args: &RunArgs, out: &mut Output) -> Result<Exit, Failure> {
    let socket = match &args.qmp {
        Some(path) => absolute(path)?,
        None => sockets::default_path(&args.name)?,
    };
    let (mut command, mut port) = (args.command.clone(), None);
    if args.agent {
        let socket = socket.with_extension("agent");
        sockets::check_free(&socket)?;
        command.extend(agent::port_words(&socket));
        port = Some(format!("a port for the guest's agent: {}", socket.display()));
    }
    let mut prepared = prepare(&command, &socket)?;
    prepared.additions.extend(port);
    sockets::check_free(&prepared.qmp)?;
    let words = Prepares { command: &prepared.command, additions: &prepared.additions, qmp: &prepared.qmp };
    if args.dry_run {
        out.result(&words, human)?;
        return Ok(Exit::Done);
    }
    out.announce(&words, human);
    Err(replace(&prepared))
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|e| Failure::io("find", path, &e).with_exit(Exit::Usage))
}

/// Becomes QEMU; returns only if that is not possible. The RAM file must stay open until then.
fn replace(prepared: &Prepared) -> Failure {
    let error = prepared.to_command().exec();
    let program = prepared.command.first().map(String::as_str).unwrap_or_default();
    let help = "The first word after `--` is the program; it is sought in PATH";
    Failure::io("start", Path::new(program), &error).with_help(help)
}

fn human(words: &Prepares<'_>) -> String {
    let mut text = String::new();
    for addition in words.additions {
        let _ = writeln!(text, "Added {}", printable(addition));
    }
    if words.additions.is_empty() {
        text.push_str("Nothing had to be added\n");
    }
    let _ = writeln!(text, "QMP socket: {}", printable(&words.qmp.display().to_string()));
    let _ = writeln!(text, "Command: {}", printable(&shell(words.command)));
    text
}
