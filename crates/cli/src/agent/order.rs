//! What the agent of a restored VM is asked for: time, random numbers, identity; and what it has put in order.

use super::client::{AgentError, Client};
use super::{AgentArgs, AgentPolicy, RANDOM, find, random};
use crate::exit::Exit;
use crate::failure::Failure;
use elision_qemu::Vm;
use elision_wire::{Answer, Ask, Identity, MOST_CARDS, Mac, Report};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long a restored agent may take for its hello: it first puts in order what needs no host.
const HELLO_LIMIT: Duration = Duration::from_secs(30);
/// And for the rest.
const ORDER_LIMIT: Duration = Duration::from_secs(60);
/// Between two looks whether the agent has opened its port.
const BREAK: Duration = Duration::from_millis(50);
const SEED_BYTES: usize = 64;
/// Said of an agent that has not understood that it was asked for them.
const OLD_AGENT: &str =
    "the agent does not know how to give network cards new addresses: they keep those of the image";

/// What a restored guest was put in.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Order {
    /// Version of the agent.
    pub(crate) version: String,
    #[serde(flatten)]
    pub(crate) report: Report,
}

/// What the agent is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// The image has an agent that knows that it is in a copy.
    pub(crate) expected: bool,
    /// Of this, addresses of network cards come from `addresses`.
    pub(crate) identity: Identity,
    pub(crate) addresses: Addresses,
    /// How many guests of this machine are asked at the same time, and wait for each other.
    pub(crate) side_by_side: u32,
}

/// Which addresses the network cards are to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Addresses {
    /// Those of the image.
    Kept,
    /// New ones, if there is an agent.
    NewIfPossible,
    /// New ones.
    New,
}

impl Wanted {
    /// Whether the user has asked for something that only an agent does.
    pub(crate) fn needs_agent(&self) -> bool {
        self.addresses == Addresses::New || !self.identity.is_same()
    }

    /// How long to wait for what takes one guest at most `limit`.
    fn patience(&self, limit: Duration) -> Duration {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        limit * (self.side_by_side / u32::try_from(processors).unwrap_or(u32::MAX)).max(1)
    }
}

/// Asks the agent of the VM behind a QMP socket.
pub(crate) fn put_in_order(
    args: &AgentArgs,
    qmp: &Path,
    mut wanted: Wanted,
) -> Result<Option<Order>, Failure> {
    let needed = args.agent_policy == AgentPolicy::Require || args.agent.is_some() || wanted.needs_agent();
    let hoped_for = wanted.expected || wanted.addresses == Addresses::NewIfPossible;
    if args.agent_policy == AgentPolicy::Off || !(needed || hoped_for) {
        return Ok(None);
    }
    if wanted.addresses != Addresses::Kept {
        wanted.identity.macs = macs()?;
    }
    let hello_limit = wanted.patience(HELLO_LIMIT);
    let order = match socket(args, qmp, needed || wanted.expected, hello_limit) {
        Ok(Some(socket)) => ask(&socket, wanted, hello_limit).map(Some),
        Ok(None) => Ok(None),
        Err(failure) => Err(failure),
    };
    match order {
        Err(failure) if needed => Err(failure
            .with_exit(Exit::Failed)
            .with_help("The VM runs; look at the log of elision-agent in it")),
        Err(failure) => {
            tracing::warn!("{failure}");
            Ok(None)
        }
        order => order,
    }
}

/// Addresses that no other clone has: two of a million clones have the same one with a chance of less than one in a hundred.
fn macs() -> Result<Vec<Mac>, Failure> {
    let bytes: [u8; 6 * MOST_CARDS] = random().map_err(|e| Failure::io("read", Path::new(RANDOM), &e))?;
    Ok(bytes.chunks_exact(6).filter_map(|six| six.try_into().ok().map(Mac::from_random)).collect())
}

fn failed(error: &AgentError) -> Failure {
    Failure::new(Exit::Failed, format!("The agent has not put the restored guest in order: {error}"))
}

/// The socket of the agent's port. If there `must` be an agent it is waited for; else there may be none.
fn socket(args: &AgentArgs, qmp: &Path, must: bool, limit: Duration) -> Result<Option<PathBuf>, Failure> {
    if let Some(socket) = &args.agent {
        return Ok(Some(socket.clone()));
    }
    let mut vm = Vm::attach(qmp)?;
    let until = Instant::now() + limit;
    loop {
        match find::port(&mut vm)? {
            Some(port) if port.open => return Ok(Some(port.socket)),
            _ if !must => return Ok(None),
            Some(_) if Instant::now() < until => std::thread::sleep(BREAK),
            Some(_) => return Err(failed(&AgentError::Silent(limit))),
            None => return Err(Failure::new(Exit::Failed, "The restored VM has no port for an agent")),
        }
    }
}

fn ask(socket: &Path, wanted: Wanted, hello_limit: Duration) -> Result<Order, Failure> {
    let failed = |error: AgentError| failed(&error);
    let mut client = Client::connect(socket, hello_limit).map_err(failed)?;
    let seed: [u8; SEED_BYTES] = random().map_err(|e| Failure::io("read", Path::new(RANDOM), &e))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let limit = wanted.patience(ORDER_LIMIT);
    let identity = wanted.identity;
    let new_addresses = !identity.macs.is_empty();
    let ask = Ask::Restored {
        unix_time_ns: u64::try_from(now.as_nanos()).ok(),
        seed: Some(seed.iter().map(|byte| format!("{byte:02x}")).collect()),
        identity,
    };
    let Answer::Restored(mut report) = client.ask(&ask, limit).map_err(failed)? else {
        return Err(failed(AgentError::OtherAnswer));
    };
    if new_addresses && report.network_cards.is_none() {
        report.notes.push(OLD_AGENT.to_owned());
    }
    Ok(Order { version: client.version.clone(), report })
}

/// In words, one line for each thing.
pub(crate) fn lines(order: &Order) -> Vec<String> {
    let Order { version, report } = order;
    let mut lines = vec![format!("Agent {version}:")];
    let mut add = |text: String| lines.push(format!("  {text}"));
    if report.noticed {
        add(format!(
            "ended {} control groups with {} processes",
            report.groups_ended, report.processes_ended
        ));
    } else {
        add("did not know that it is in a copy: nothing was frozen for the save".to_owned());
    }
    if report.reseeded {
        add("stirred the kernel's random numbers".to_owned());
    }
    if let Some(ms) = report.clock_ms {
        add(format!(
            "set the clock by {:.3} s",
            std::time::Duration::from_millis(ms.unsigned_abs()).as_secs_f64()
        ));
    }
    let given =
        [("name", &report.hostname), ("machine id", &report.machine_id), ("boot id", &report.boot_id)];
    for (what, value) in given {
        if let Some(value) = value {
            add(format!("gave the machine the {what} {value}"));
        }
    }
    for card in report.network_cards.iter().flatten() {
        add(format!("gave {} the address {} in place of {}", card.name, card.to, card.from));
    }
    if report.network_cards.as_ref().is_some_and(Vec::is_empty) {
        add("gave no network card a new address".to_owned());
    }
    if report.hooks > 0 {
        add(format!("ran {} hooks", report.hooks));
    }
    if !report.restarted.is_empty() {
        add(format!("had systemd restart {}", report.restarted.join(", ")));
    }
    if report.programs_told > 0 {
        add(format!("told {} programs", report.programs_told));
    }
    report.notes.iter().for_each(|text| add(text.clone()));
    lines
}
