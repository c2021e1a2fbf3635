//! `elision restore`: starts a VM from an image.

use super::clones;
use crate::agent::{self, Addresses, AgentPolicy, Order, Wanted};
use crate::args::RestoreArgs;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::guest_memory::{GuestMemory, MemoryReport, Wishes};
use crate::in_use::written_by_others;
use crate::output::Output;
use crate::sockets;
use crate::text::printable;
use elision_image::Image;
use elision_plan::EditReason;
use elision_qemu::{QemuError, RestoreOptions, RestoreRequest, Restored, for_restore, fresh_guid, restore};
use elision_wire::{Identity, NewAddress};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Instant;

#[derive(Serialize)]
pub(super) struct RestoredVm {
    image: PathBuf,
    pub(super) pid: u32,
    pub(super) qmp: PathBuf,
    running: bool,
    /// How it gets its memory.
    memory: MemoryReport,
    command: Vec<String>,
    /// From the start of this command, or of this clone, until the VM runs.
    pub(super) total_ms: f64,
    /// What the guest's agent has put in order, if there is one.
    agent: Option<Order>,
}

pub(crate) fn run(args: &RestoreArgs, out: &mut Output) -> Result<Exit, Failure> {
    let begin = Instant::now();
    refuse_without_agent(args)?;
    let image = Image::open(&args.image)?;
    // QEMU would notice some kinds of damage, and run with others.
    image.state()?;
    let wishes = Wishes { load_first: args.load_first, prefetch: args.prefetch, record: args.record };
    if let Some(number) = args.clones {
        return clones::run(args, &image, wishes, number, begin, out);
    }
    let command = if args.command.is_empty() { &image.manifest().vmm.command } else { &args.command };
    let qmp = match &args.qmp {
        Some(path) => absolute(path)?,
        None => sockets::default_path(&socket_name(&args.image))?,
    };
    let bar = out.spinner("restoring");
    let vm = GuestMemory::of(&image, wishes)
        .and_then(|memory| one(args, &image, (&memory, true), (command, !args.paused), &qmp, begin));
    bar.finish_and_clear();
    let (mut vm, _) = vm?;
    vm.put_in_order(args, &image)?;
    out.result(&vm, human)?;
    Ok(Exit::Done)
}

/// Starts one VM; it is to run, or stays paused.
pub(super) fn one(
    args: &RestoreArgs,
    image: &Image,
    (memory, is_only): (&GuestMemory, bool),
    (command, run): (&[String], bool),
    qmp: &Path,
    begin: Instant,
) -> Result<(RestoredVm, Restored), Failure> {
    sockets::check_free(qmp)?;
    let recorded = args.command.is_empty();
    let program = command.first().map(String::as_str).unwrap_or_default();
    let blocks = image.manifest().ram_blocks();
    let ram = memory.blocks(program, &blocks, is_only)?;
    let options = RestoreOptions { ram: ram.files(), qmp, guid: &fresh_guid()? };
    let command = for_restore(command, &options)?;
    refuse_clash(&command, image, recorded)?;
    let state = image.state_path();
    let log = args.log.as_deref();
    let request = RestoreRequest { command: &command, qmp, state: &state, folder: None, log, run };
    let restored = restore(&request).map_err(|e| explained(e, &args.image, recorded))?;
    let pid = restored.child.id();
    let total_ms = begin.elapsed().as_secs_f64() * 1000.0;
    let (image, qmp) = (args.image.clone(), qmp.to_owned());
    let memory = memory.report();
    Ok((RestoredVm { image, pid, qmp, running: run, memory, command, total_ms, agent: None }, restored))
}

impl RestoredVm {
    /// Lets it run, if it was started paused.
    pub(super) fn go_on(&mut self, mut restored: Restored, begin: Instant) -> Result<(), Failure> {
        restored.go_on()?;
        self.running = true;
        self.total_ms = begin.elapsed().as_secs_f64() * 1000.0;
        Ok(())
    }

    /// Lets the guest's agent put it in order. It is expected if it was marked in the image.
    pub(super) fn put_in_order(&mut self, args: &RestoreArgs, image: &Image) -> Result<(), Failure> {
        if self.running {
            let expected = image.manifest().plan.edited_bytes.contains_key(&EditReason::Agent);
            self.agent = agent::put_in_order(&args.agent, &self.qmp, wanted(args, expected))?;
        }
        Ok(())
    }

    /// The network cards that have new addresses; nothing if no agent was asked or could do that.
    pub(super) fn network_cards(&self) -> Option<&[NewAddress]> {
        self.agent.as_ref()?.report.network_cards.as_deref()
    }
}

fn wanted(args: &RestoreArgs, expected: bool) -> Wanted {
    let identity = Identity {
        hostname: args.hostname.clone(),
        new_machine_id: args.new_machine_id,
        new_boot_id: args.new_boot_id,
        ..Identity::default()
    };
    let addresses = match (args.new_mac, args.clones) {
        (true, _) => Addresses::New,
        (false, Some(_)) if !args.keep_mac => Addresses::NewIfPossible,
        (false, _) => Addresses::Kept,
    };
    Wanted { expected, identity, addresses, side_by_side: args.clones.unwrap_or(1).into() }
}

fn refuse_without_agent(args: &RestoreArgs) -> Result<(), Failure> {
    if args.agent.agent_policy != AgentPolicy::Off || !wanted(args, false).needs_agent() {
        return Ok(());
    }
    let message =
        "A new name, new ids and new addresses are given by the guest's agent, and --agent-policy is `off`";
    Err(Failure::new(Exit::Usage, message).with_help("Leave out one of both"))
}

/// A name for the socket that no other restore of the image uses.
fn socket_name(image: &Path) -> String {
    let stem = image.file_stem().unwrap_or_default().to_string_lossy();
    let plain = stem.chars().filter(|c| c.is_ascii_alphanumeric() || "-_".contains(*c)).take(40);
    format!("restored-{}-{}", plain.collect::<String>(), std::process::id())
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|e| Failure::io("find", path, &e))
}

/// QEMU would take sockets away from a VM that listens on them, and overwrite what another VM writes, so
/// this is checked before it starts. Which files a command of the user's own shares is the user's choice.
fn refuse_clash(command: &[String], image: &Image, recorded: bool) -> Result<(), Failure> {
    let mut in_use = sockets::in_use(command)?;
    if recorded {
        in_use.extend(written_by_others(command, &image.ram_path()));
    }
    let Some(first) = in_use.first() else { return Ok(()) };
    let first = printable(&first.display().to_string());
    let message = if recorded {
        format!("The recorded command uses {first}, which is in use: the VM that was saved seems to run")
    } else {
        format!("The command listens on {first}, and another program does already")
    };
    Err(Failure::new(Exit::Failed, message).with_help(other_command(image.dir())))
}

fn explained(error: QemuError, image: &Path, recorded: bool) -> Failure {
    let start_failed = matches!(error, QemuError::Restore { .. } | QemuError::Io { .. });
    let failure = Failure::from(error);
    if !start_failed {
        return failure;
    }
    failure.with_help(if recorded {
        format!(
            "The recorded command uses the disks, sockets and ports of the VM that was saved, with relative \
             paths from the current folder. {}",
            other_command(image)
        )
    } else {
        format!(
            "Machine type, processor and devices must be those of the VM that was saved: elision inspect {} shows \
             its command",
            printable(&image.display().to_string())
        )
    })
}

fn other_command(image: &Path) -> String {
    let image = printable(&image.display().to_string());
    format!(
        "End the VM that uses them, or give a command with disks and sockets of its own: \
         elision restore {image} -- QEMU COMMAND (the recorded one: elision inspect {image})"
    )
}

fn human(vm: &RestoredVm) -> String {
    let state = if vm.running { "runs" } else { "is loaded and paused" };
    let qmp = printable(&vm.qmp.display().to_string());
    let mut text =
        format!("The VM {state} after {:.0} ms: process {}, QMP socket {qmp}", vm.total_ms, vm.pid);
    if let Some(problem) = &vm.memory.problem {
        text.push_str(&format!(
            "\nIts memory was loaded first, as it cannot be served: {}",
            printable(problem)
        ));
    }
    for line in vm.agent.iter().flat_map(agent::lines) {
        text.push('\n');
        text.push_str(&printable(&line));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_json_fields_are_the_documented_ones() {
        let vm = RestoredVm {
            image: "web.elision".into(),
            pid: 7,
            qmp: "/run/q".into(),
            running: true,
            memory: MemoryReport { way: "mapped", problem: None },
            command: vec!["qemu".to_owned()],
            total_ms: 1.5,
            agent: None,
        };
        let expected = json!({
            "image": "web.elision", "pid": 7, "qmp": "/run/q", "running": true,
            "memory": {"way": "mapped", "problem": null}, "command": ["qemu"],
            "total_ms": 1.5, "agent": null,
        });
        assert_eq!(serde_json::to_value(&vm).unwrap(), expected);
        assert!(human(&vm).contains("process 7, QMP socket /run/q"));
    }

    #[test]
    fn a_socket_s_name_is_plain_whatever_the_image_is_called() {
        let name = socket_name(Path::new("/a/../b c\u{1b}.elision"));
        assert!(name.starts_with("restored-bc-"), "{name}");
    }
}
