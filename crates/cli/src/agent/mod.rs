//! The agent in the guest, seen from here: where its port is ([`find`]), how to talk to it ([`client`]), and what it
//! does for a save ([`calm`]) and after a restore ([`order`]).
//!
//! An agent is never needed: without one, or with one that fails, a save goes on as it would have, unless the user
//! requires one. What an agent says is as much to be trusted as the guest: not at all.

mod calm;
mod client;
mod find;
mod order;

pub(crate) use calm::{AgentReport, SaveAgent};
pub(crate) use order::{Addresses, Order, Wanted, lines, put_in_order};

use clap::{Args, ValueEnum, ValueHint};
use elision_wire::PORT;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Where random numbers come from.
const RANDOM: &str = "/dev/urandom";

fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open(RANDOM)?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// What QEMU's command needs for the agent's port, with its socket there.
pub(crate) fn port_words(socket: &Path) -> [String; 6] {
    // A comma in a value is doubled.
    let path = socket.display().to_string().replace(',', ",,");
    [
        "-device".to_owned(),
        "virtio-serial-pci,id=elision-serial".to_owned(),
        "-chardev".to_owned(),
        format!("socket,id=elision-agent,path={path},server=on,wait=off"),
        "-device".to_owned(),
        format!("virtserialport,bus=elision-serial.0,chardev=elision-agent,name={PORT}"),
    ]
}

/// Which agent, and whether there must be one.
#[derive(Debug, Default, Args)]
pub(crate) struct AgentArgs {
    /// Socket of the guest agent's port; by default the one of QEMU's port org.elision.agent.0.
    #[arg(long, help_heading = "Guest agent", value_name = "SOCK", value_hint = ValueHint::FilePath)]
    pub(crate) agent: Option<PathBuf>,
    /// Whether the guest's agent is used.
    #[arg(long, help_heading = "Guest agent", value_name = "WHAT", default_value = "use")]
    pub(crate) agent_policy: AgentPolicy,
}

/// Whether an agent is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum AgentPolicy {
    /// If there is one; if it fails, go on without it.
    #[default]
    Use,
    /// Refuse to go on without one that does what it is asked for.
    Require,
    /// Do not ask for one.
    Off,
}
