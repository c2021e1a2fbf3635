//! What the agent of a restored VM is asked for: time, random numbers, identity; and what it has put in order.

use super::client::{AgentError, Client};
use super::{AgentArgs, AgentPolicy, RANDOM, find, random};
use crate::exit::Exit;
use crate::failure::Failure;
use elision_qemu::Vm;
use elision_wire::{Answer, Ask, Identity, Report};
use serde::Serialize;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long a restored agent may take for its hello: it first puts in order what needs no host.
const HELLO_LIMIT: Duration = Duration::from_secs(30);
/// And for the rest.
const ORDER_LIMIT: Duration = Duration::from_secs(60);
/// Between two looks whether the agent has opened its port.
const BREAK: Duration = Duration::from_millis(50);
const SEED_BYTES: usize = 64;

/// What a restored guest was put in.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Order {
    /// Version of the agent.
    pub(crate) version: String,
    #[serde(flatten)]
    pub(crate) report: Report,
}

/// Asks the agent of the VM behind a QMP socket. `expected`: the image has one that knows that it is a copy.
pub(crate) fn put_in_order(
    args: &AgentArgs,
    qmp: &Path,
    expected: bool,
    identity: Identity,
) -> Result<Option<Order>, Failure> {
    let wanted = args.agent_policy == AgentPolicy::Require || args.agent.is_some() || !identity.is_same();
    if args.agent_policy == AgentPolicy::Off || !(wanted || expected) {
        return Ok(None);
    }
    match ask(args, qmp, identity) {
        Ok(order) => Ok(Some(order)),
        Err(failure) if wanted => Err(failure
            .with_exit(Exit::Failed)
            .with_help("The VM runs; look at the log of elision-agent in it")),
        Err(failure) => {
            tracing::warn!("{failure}");
            Ok(None)
        }
    }
}

fn ask(args: &AgentArgs, qmp: &Path, identity: Identity) -> Result<Order, Failure> {
    let failed = |error: AgentError| {
        Failure::new(Exit::Failed, format!("The agent has not put the restored guest in order: {error}"))
    };
    let socket = match &args.agent {
        Some(socket) => socket.clone(),
        None => {
            let mut vm = Vm::attach(qmp)?;
            let until = Instant::now() + HELLO_LIMIT;
            loop {
                match find::port(&mut vm)? {
                    Some(port) if port.open => break port.socket,
                    Some(_) if Instant::now() < until => std::thread::sleep(BREAK),
                    Some(_) => return Err(failed(AgentError::Silent(HELLO_LIMIT))),
                    None => {
                        return Err(Failure::new(Exit::Failed, "The restored VM has no port for an agent"));
                    }
                }
            }
        }
    };
    let mut client = Client::connect(&socket, HELLO_LIMIT).map_err(failed)?;
    let seed: [u8; SEED_BYTES] = random().map_err(|e| Failure::io("read", Path::new(RANDOM), &e))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let ask = Ask::Restored {
        unix_time_ns: u64::try_from(now.as_nanos()).ok(),
        seed: Some(seed.iter().map(|byte| format!("{byte:02x}")).collect()),
        identity,
    };
    match client.ask(&ask, ORDER_LIMIT).map_err(failed)? {
        Answer::Restored(report) => Ok(Order { version: client.version.clone(), report }),
        _ => Err(failed(AgentError::OtherAnswer)),
    }
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
