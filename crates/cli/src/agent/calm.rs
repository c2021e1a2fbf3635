//! What the agent does for a save: the processes that are left out stand still at the stop.
//!
//! ```text
//! before   hello ─> prepare: hooks, files written, pages brought in from swap
//! pause    freeze ─> stop ─> plan ─> the agent's word in the plan ─> copy ─> thaw ─> cont
//! at last  the image is whole: hooks
//! ```
//! The agent is told which processes by number and by when they were started, and whole control groups where the policy
//! selects by these. Freezing comes last before the stop, so that the processes stand still for little longer than the VM. For the same
//! reason they are let run before the VM is: QEMU hands the message over as soon as the VM runs, and not before, so that it
//! is in no copy.

use super::client::{AgentError, Client};
use super::{AgentArgs, AgentPolicy, find};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::session::retry;
use elision_kernel::{Kernel, Process};
use elision_memory::Gva;
use elision_plan::{AgentMark, Outcome, PlanError, Selection, mark_agent};
use elision_policy::{Cache, Criterion, Kind, OnRestore, Policy};
use elision_qemu::Vm;
use elision_wire::{Answer, Ask, Calm, Mark, ProcessId, Word};
use serde::Serialize;
use std::collections::BTreeSet;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long an agent may take for its hello.
const HELLO_LIMIT: Duration = Duration::from_secs(3);
/// For what it does while everything runs.
const PREPARE_LIMIT: Duration = Duration::from_secs(20);
/// For the processes to stand still.
const FREEZE_LIMIT: Duration = Duration::from_secs(3);
/// For the kernel to leave their memory alone then.
const SETTLE_LIMIT: Duration = Duration::from_millis(100);
/// For which time they may stand still.
const CALM_LIMIT: Duration = Duration::from_secs(30);
/// For the answer that they run on.
const THAW_LIMIT: Duration = Duration::from_secs(10);
/// For the hooks after the save.
const SAVED_LIMIT: Duration = Duration::from_secs(20);
/// Said where a policy wants services restarted.
const NO_RESTART: &str =
    "No service is restarted in a restored guest, as no agent in it knows that it is a copy";
/// Of hundredths of a second, as `/proc` counts them.
const TICK_NS: u64 = 10_000_000;

/// The client again, with its answer and when that came.
type Thawed = (Client, Result<Answer, AgentError>, Instant);

/// What came of the agent, for the result of a save.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct AgentReport {
    /// Its version; null if there was none.
    pub(crate) version: Option<String>,
    /// Whether the processes stood still, and the agent in the image knows that it is in a copy.
    pub(crate) calm: bool,
    /// How many processes stood still.
    pub(crate) processes: u32,
    /// For how long, in milliseconds: the pause and what the agent counted beside it, at most from the question to the answer.
    pub(crate) calm_ms: f64,
    /// What was not as it should be, in words.
    pub(crate) notes: Vec<String>,
}

/// The agent during one save. Without one, every step does nothing.
#[derive(Debug)]
pub(crate) struct SaveAgent {
    client: Option<Client>,
    policy: AgentPolicy,
    frozen: Option<Instant>,
    thawing: Option<JoinHandle<Thawed>>,
    /// Whom it was asked for last.
    meant: Calm,
    report: AgentReport,
}

impl SaveAgent {
    /// Says hello, if the VM has an agent and the user wants it.
    pub(crate) fn meet(args: &AgentArgs, vm: &mut Vm, runs: bool) -> Result<Self, Failure> {
        let mut agent = Self {
            client: None,
            policy: args.agent_policy,
            frozen: None,
            thawing: None,
            meant: Calm::default(),
            report: AgentReport::default(),
        };
        if args.agent_policy == AgentPolicy::Off || (!runs && args.agent_policy == AgentPolicy::Use) {
            return Ok(agent);
        }
        if !runs {
            return Err(agent.missing("it cannot answer, as the VM is paused"));
        }
        let socket = match &args.agent {
            Some(socket) => Some(socket.clone()),
            None => match find::port(vm) {
                Ok(Some(port)) if port.open => Some(port.socket),
                Ok(Some(_)) => return agent.without("nothing in the guest listens on its port"),
                Ok(None) => return agent.without("the VM has no port for it"),
                Err(error) => {
                    tracing::debug!(%error, "the agent's port");
                    return agent.without("QEMU does not tell whether the VM has a port for it");
                }
            },
        };
        match socket.map(|socket| Client::connect(&socket, HELLO_LIMIT)) {
            Some(Ok(client)) => {
                agent.report.version = Some(client.version.clone());
                agent.client = Some(client);
            }
            Some(Err(error)) => agent.failed("hello", &error)?,
            None => {}
        }
        Ok(agent)
    }

    /// Lets the guest make ready, while everything runs.
    pub(crate) fn prepare(&mut self, kernel: &Kernel<'_>, policy: &Policy) -> Result<(), Failure> {
        if self.client.is_none() {
            return Ok(());
        }
        self.look(kernel, policy)?;
        let ask = Ask::Prepare(Calm { limit_ms: millis(PREPARE_LIMIT), ..self.meant.clone() });
        if let Some(done) = self.ask("prepare", &ask, PREPARE_LIMIT + FREEZE_LIMIT)? {
            self.report.notes.extend(done.notes);
        }
        Ok(())
    }

    /// Lets the processes stand still.
    pub(crate) fn freeze(&mut self, kernel: &Kernel<'_>, policy: &Policy) -> Result<(), Failure> {
        if self.client.is_none() {
            return Ok(());
        }
        let selection = self.look(kernel, policy)?;
        let ask = Ask::Freeze(Calm { limit_ms: millis(CALM_LIMIT), ..self.meant.clone() });
        let begin = Instant::now();
        let done = self.ask("freeze", &ask, FREEZE_LIMIT)?;
        if let Some(done) = done {
            self.frozen = Some(begin);
            self.report.processes = done.processes;
            self.report.notes.extend(done.notes);
            selection.iter().for_each(|selection| settle(kernel, selection));
        }
        tracing::debug!(took = ?begin.elapsed(), frozen = self.frozen.is_some(), "the agent was asked to freeze");
        Ok(())
    }

    /// Whether there is an agent to make the guest ready.
    pub(crate) fn is_met(&self) -> bool {
        self.client.is_some()
    }

    /// The VM ran on and is to be stopped once more: lets the processes stand still again.
    pub(crate) fn freeze_again(&mut self, kernel: &Kernel<'_>, policy: &Policy) -> Result<(), Failure> {
        if self.frozen.is_some() { Ok(()) } else { self.freeze(kernel, policy) }
    }

    /// Looks whom the policy selects at this moment, while the guest runs. A list that changes too fast to be read
    /// stays as it was: the agent finds descendants by itself, and the plan of the stopped VM decides.
    fn look(&mut self, kernel: &Kernel<'_>, policy: &Policy) -> Result<Option<Selection>, Failure> {
        let found = retry(|| {
            kernel.ram().refresh();
            match Selection::of(kernel, policy) {
                Err(PlanError::Kernel(error)) => Err(error),
                found => Ok(found),
            }
        });
        match found {
            Ok(found) => {
                let found = found?;
                self.meant = meant(policy, &found);
                Ok(Some(found))
            }
            Err(error) if error.is_transient() => {
                tracing::debug!(%error, "the guest changes while its processes are listed");
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Adds to the plan of the stopped VM that the agent in the copy knows that it is one.
    pub(crate) fn mark(
        &mut self,
        kernel: &Kernel<'_>,
        selection: &Selection,
        outcome: &mut Outcome,
    ) -> Result<(), Failure> {
        let Some(client) = self.client.as_ref().filter(|_| self.frozen.is_some()) else { return Ok(()) };
        let Some(nonce) = client.generation.nonce.bytes() else {
            return self.failed("mark", &AgentError::OtherAnswer);
        };
        let text = |word: Word| [&Mark::MAGIC[..], &nonce, &word.bytes()].concat();
        let mark = AgentMark {
            pid: client.generation.pid,
            address: Gva(client.generation.address),
            now: text(Word::Calm),
            copy: text(Word::Restored),
        };
        self.report.calm = match mark_agent(kernel, selection, &mut outcome.plan, &mark) {
            Ok(marked) => marked,
            Err(PlanError::Kernel(error)) => {
                tracing::debug!(%error, "the agent's memory");
                false
            }
            Err(error) => return Err(error.into()),
        };
        if self.report.calm {
            return Ok(());
        }
        let why = "the agent has let the processes run on before the VM was stopped";
        if self.policy == AgentPolicy::Require {
            return Err(self.missing(why));
        }
        self.report.notes.push(why.to_owned());
        Ok(())
    }

    /// Lets the processes run on, as soon as the VM does. The answer is waited for by a thread, so that its time is known.
    pub(crate) fn thaw(&mut self) {
        if self.frozen.is_none() {
            return;
        }
        let Some(mut client) = self.client.take() else { return };
        let sent = client.send(&Ask::Thaw, THAW_LIMIT);
        self.thawing = Some(std::thread::spawn(move || {
            let answer = sent.and_then(|id| match client.answer_to(id, Instant::now() + THAW_LIMIT) {
                Err(AgentError::Silent(_)) => Err(AgentError::Silent(THAW_LIMIT)),
                answer => answer,
            });
            (client, answer, Instant::now())
        }));
    }

    /// Waits until the processes run on. The pause is not known if there were several.
    pub(crate) fn thawed(&mut self, pause: Option<Duration>) {
        self.thaw();
        let (Some(thawing), Some(begin)) = (self.thawing.take(), self.frozen.take()) else { return };
        let Ok((client, answer, end)) = thawing.join() else { return };
        self.client = Some(client);
        let by_agent = match &answer {
            Ok(Answer::Done(done)) => done.still_us.map(Duration::from_micros),
            _ => None,
        };
        let most = end.saturating_duration_since(begin);
        let counted = by_agent.zip(pause).map(|(still, pause)| still.saturating_add(pause));
        self.report.calm_ms = counted.map_or(most, |counted| counted.min(most)).as_secs_f64() * 1000.0;
        tracing::debug!(?most, ?by_agent, ?pause, "the processes run on");
        match answer {
            Ok(Answer::Done(done)) => self.report.notes.extend(done.notes),
            Ok(_) => self.report.notes.push(AgentError::OtherAnswer.to_string()),
            Err(error) => {
                self.report.notes.push(format!("the agent, asked to let processes run on: {error}"))
            }
        }
    }

    /// The image is whole: hooks may know. Whatever an agent does now, there is an image.
    pub(crate) fn saved(mut self, policy: &Policy) -> AgentReport {
        if !self.report.calm && policy.selectors.iter().any(|s| s.on_restore == OnRestore::Restart) {
            tracing::warn!("{NO_RESTART}");
            self.report.notes.push(NO_RESTART.to_owned());
        }
        if let Some(client) = self.client.as_mut() {
            match client.ask(&Ask::Saved, SAVED_LIMIT) {
                Ok(Answer::Done(done)) => self.report.notes.extend(done.notes),
                Ok(_) => self.report.notes.push(AgentError::OtherAnswer.to_string()),
                Err(error) => self.report.notes.push(format!("the agent, after the save: {error}")),
            }
        }
        self.report
    }

    fn ask(&mut self, what: &str, ask: &Ask, limit: Duration) -> Result<Option<elision_wire::Done>, Failure> {
        let Some(client) = self.client.as_mut() else { return Ok(None) };
        match client.ask(ask, limit) {
            Ok(Answer::Done(done)) => Ok(Some(done)),
            Ok(_) => self.failed(what, &AgentError::OtherAnswer).map(|()| None),
            Err(error) => self.failed(what, &error).map(|()| None),
        }
    }

    /// The agent failed: from now on there is none. What it may have frozen runs on when the connection ends.
    fn failed(&mut self, what: &str, error: &AgentError) -> Result<(), Failure> {
        self.client = None;
        self.frozen = None;
        if self.policy == AgentPolicy::Require {
            return Err(self.missing(&format!("it failed ({what}): {error}")));
        }
        tracing::warn!(%error, "The guest's agent failed ({what}); the save goes on without it");
        self.report.notes.push(format!("the agent failed ({what}): {error}"));
        Ok(())
    }

    fn without(self, why: &'static str) -> Result<Self, Failure> {
        if self.policy == AgentPolicy::Require {
            return Err(self.missing(why));
        }
        tracing::debug!(why, "no agent");
        Ok(self)
    }

    fn missing(&self, why: &str) -> Failure {
        Failure::new(Exit::Refused, format!("An agent in the guest is required, but {why}"))
            .with_help("Install elision-agent in the guest, or leave out `--agent-policy require`")
    }
}

/// Waits until the kernel does not change the memory of processes that stand still.
fn settle(kernel: &Kernel<'_>, selection: &Selection) {
    let begin = Instant::now();
    while selection.is_being_changed(kernel) && begin.elapsed() < SETTLE_LIMIT {
        std::thread::sleep(Duration::from_millis(1));
        kernel.ram().refresh();
    }
}

/// The processes of a selection as the agent is told them, without a time limit.
fn meant(policy: &Policy, selection: &Selection) -> Calm {
    let groups = whole_groups(policy, selection);
    let in_group = |process: &Process| {
        let path = process.cgroup.as_deref();
        path.is_some_and(|path| groups.iter().any(|group| is_below(path, group)))
    };
    // Those that are there now are in the list anyway; this is about those that are started until the freeze.
    let descendants = selection.dependents.is_empty() && policy.processes().all(|selector| selector.children);
    let processes = selection.excluded().filter(|p| !in_group(p)).map(|p| ProcessId {
        pid: p.pid,
        started: p.started / TICK_NS,
        descendants,
    });
    let processes = processes.collect();
    let chooses_files = policy.selectors.iter().any(|s| s.criterion.kind() == Kind::File);
    let write_all = chooses_files || policy.save.cache() == Cache::Exclude;
    let restart = to_restart(policy, selection);
    Calm { limit_ms: 0, processes, groups: groups.into_iter().collect(), write_all, restart }
}

/// The services of excluded processes that a restored guest shall have restarted.
fn to_restart(policy: &Policy, selection: &Selection) -> Vec<String> {
    let restarted = policy.selectors.iter().filter(|selector| selector.on_restore == OnRestore::Restart);
    let units = restarted.filter_map(|selector| match &selector.criterion {
        Criterion::Unit(unit) => Some(unit),
        _ => None,
    });
    let paths: BTreeSet<&str> = selection.excluded().filter_map(|p| p.cgroup.as_deref()).collect();
    let services: BTreeSet<&str> =
        units.flat_map(|unit| paths.iter().filter_map(|path| unit.service_of(path))).collect();
    services.into_iter().map(str::to_owned).collect()
}

fn millis(limit: Duration) -> u32 {
    u32::try_from(limit.as_millis()).unwrap_or(u32::MAX)
}

/// The control groups of excluded processes that are selected as such, without those below another of them.
fn whole_groups(policy: &Policy, selection: &Selection) -> BTreeSet<String> {
    let by_group: Vec<&Criterion> = policy.selectors.iter().map(|s| &s.criterion).collect();
    let mut groups: BTreeSet<String> = BTreeSet::new();
    let paths: BTreeSet<&str> = selection.excluded().filter_map(|p| p.cgroup.as_deref()).collect();
    for path in paths {
        let is_selected = by_group.iter().any(|criterion| match criterion {
            Criterion::Cgroup(glob) => glob.matches_or_holds(path),
            Criterion::Unit(unit) => unit.holds(path),
            Criterion::Container(container) => container.holds(path),
            _ => false,
        });
        if is_selected && !groups.iter().any(|group| is_below(path, group)) {
            groups.insert(path.to_owned());
        }
    }
    groups
}

/// Whether a path is a group's or one below it.
fn is_below(path: &str, group: &str) -> bool {
    path.strip_prefix(group).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::is_below;

    #[test]
    fn a_group_holds_itself_and_what_is_below() {
        assert!(is_below("/a", "/a") && is_below("/a/b", "/a"));
        assert!(!is_below("/ab", "/a") && !is_below("/", "/a"));
    }
}
