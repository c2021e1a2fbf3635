//! The agent's loop: questions of the host, time that is over, and the word in its own memory.

use crate::args::ServeOptions;
use crate::calm::{self, Stillness};
use crate::config::Config;
use crate::error::{AgentError, chain, say};
use crate::hooks::{self, Event};
use crate::notice::{self, Watchers};
use crate::port::{Incoming, Port, VirtioPort};
use crate::watchdog::Watchdog;
use crate::{files, generation, khugepaged, procfs, restored, services, swap, sys};
use elision_wire::{
    Answer, Ask, Calm, Capability, Done, Envelope, PORT, Reader, Reason, Report, VERSIONS, Versions, encode,
    note,
};
use rustix::mm::{MlockAllFlags, mlockall};
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often the word is looked at while processes stand still, and else.
const TICK_CALM: Duration = Duration::from_millis(20);
const TICK: Duration = Duration::from_secs(1);
/// The nice value of an agent that others wait for.
const HURRIED: i32 = -20;
/// How long the kernel's maker of huge pages may take to finish, before a save and before processes are frozen.
const REST: Duration = Duration::from_secs(2);
const SHORT_REST: Duration = Duration::from_millis(200);
/// How long an answer may take on its way.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Serves for good.
pub(crate) fn run(options: &ServeOptions) -> Result<ExitCode, AgentError> {
    let config = Config::load(options.config.as_deref())?;
    for problem in calm::release_left_over() {
        say!("{problem}");
    }
    // The saver finds the word in memory, and an agent in swap could not be quick.
    if let Err(error) = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE) {
        say!("cannot lock its memory: {error}");
    }
    generation::begin()?;
    let watchdog = Watchdog::start()?;
    let mut port = VirtioPort::open(options.port.as_deref(), PORT)?;
    let watchers = Watchers::listen(Path::new(notice::SOCKET)).unwrap_or_else(|error| {
        say!("programs cannot be told of a restore: {}", chain(&error));
        Watchers::default()
    });
    let mut agent = Agent {
        config,
        watchdog,
        watchers,
        session: None,
        still: None,
        preparing: None,
        report: None,
        khugepaged: None,
    };
    let mut reader = Reader::default();
    let mut buffer = [0; 4096];
    loop {
        agent.tick();
        match port.read(&mut buffer, agent.patience())? {
            Incoming::Bytes(n) => {
                reader.feed(buffer.get(..n).unwrap_or_default());
                // A restored agent ends the session of the save. It must not be that of a host that is quick to say hello.
                agent.tick();
            }
            Incoming::Nothing => continue,
            Incoming::Gone => {
                agent.run_on("no host is connected any more");
                if agent.session.take().is_some() {
                    hurry(false);
                }
                continue;
            }
        }
        while let Some(message) = reader.message::<Ask>() {
            let answer = match message {
                Ok(message) => agent.answer(message),
                Err(error) => {
                    say!("{error}");
                    continue;
                }
            };
            // That an answer does not arrive is the host's to notice.
            if let Err(error) = send(&mut port, &answer) {
                say!("{}", chain(&error));
            }
        }
    }
}

fn send(port: &mut impl Port, answer: &Envelope<Answer>) -> Result<(), AgentError> {
    let bytes = encode(answer).map_err(|e| AgentError::Other(e.to_string()))?;
    port.write(&bytes, ANSWER_LIMIT)
}

struct Agent {
    config: Config,
    watchdog: Watchdog,
    watchers: Watchers,
    /// The host's, since its last hello.
    session: Option<u64>,
    still: Option<Stillness>,
    /// The last save's preparation, which a disk may hold up.
    preparing: Option<JoinHandle<()>>,
    /// What was put in order after a restore, until a host has heard of it.
    report: Option<Report>,
    /// The kernel's maker of huge pages, as the last preparation has found it.
    khugepaged: Option<u32>,
}

impl Agent {
    /// How long to wait for a message.
    fn patience(&self) -> Duration {
        match &self.still {
            Some(still) => TICK_CALM.min(still.until.saturating_duration_since(Instant::now())),
            None => TICK,
        }
    }

    /// What time brings.
    fn tick(&mut self) {
        if generation::is_restored() {
            self.restored();
        } else if self.still.as_ref().is_some_and(|still| Instant::now() >= still.until) {
            self.run_on("the time is over");
        }
    }

    fn restored(&mut self) {
        hurry(false);
        say!("this guest was restored from a checkpoint");
        self.session = None;
        let mut report = restored::by_itself(&self.config, self.still.take());
        self.watchdog.done();
        report.programs_told = u32::try_from(self.watchers.tell()).unwrap_or(u32::MAX);
        if let Err(error) = generation::begin() {
            say!("{}", chain(&error));
        }
        for problem in &report.notes {
            say!("{problem}");
        }
        self.report = Some(report);
    }

    /// Lets what stands still run on, if anything does and if this is no restored copy.
    fn run_on(&mut self, why: &str) {
        if let Some(done) = self.release() {
            say!("frozen processes run on: {why}");
            for problem in &done.notes {
                say!("{problem}");
            }
        }
    }

    /// The same without a word in the log, which somebody would have to wait for.
    fn release(&mut self) -> Option<Done> {
        let still = self.still.take()?;
        match still.thaw() {
            Ok(done) => {
                self.watchdog.done();
                Some(done)
            }
            Err(still) => {
                self.still = Some(*still);
                self.restored();
                None
            }
        }
    }

    fn answer(&mut self, message: Envelope<Ask>) -> Envelope<Answer> {
        let Envelope { session, id, body } = message;
        let answer = match body {
            Ask::Hello { versions } => self.hello(session, versions),
            _ if self.session != Some(session) => {
                refused(Reason::Order, "This session has not begun with a hello")
            }
            Ask::Prepare(ask) => self.prepare(&ask),
            Ask::Freeze(ask) => self.freeze(&ask),
            Ask::Thaw => self.thaw(),
            Ask::Saved => self.saved(),
            Ask::Restored { unix_time_ns, seed, identity } => {
                let mut report = self.report.take().unwrap_or_default();
                restored::with_host(&self.config, &mut report, unix_time_ns, seed.as_deref(), &identity);
                Answer::Restored(report)
            }
        };
        Envelope { session, id, body: answer }
    }

    fn hello(&mut self, session: u64, versions: Versions) -> Answer {
        if self.session != Some(session) {
            self.run_on("another host has come");
        }
        if VERSIONS.common(versions).is_none() {
            let Versions { from, to } = VERSIONS;
            return refused(Reason::Version, &format!("This agent speaks versions {from} to {to}"));
        }
        self.session = Some(session);
        Answer::Hello {
            versions: VERSIONS,
            agent: env!("CARGO_PKG_VERSION").to_owned(),
            may: self.config.allow.clone(),
            generation: generation::of_this_agent(),
        }
    }

    fn limit(&self, ask: &Calm) -> Duration {
        Duration::from_millis(ask.limit_ms.into()).min(self.config.longest_calm)
    }

    fn prepare(&mut self, ask: &Calm) -> Answer {
        if self.still.is_some() {
            return refused(Reason::Order, "Processes stand still already");
        }
        let until = Instant::now() + self.limit(ask);
        let mut done = Done::default();
        if self.config.allows(Capability::Hooks) {
            let outcome = hooks::run(&self.config.hooks, Event::BeforeSave, self.config.hook_limit, until);
            outcome.notes.iter().for_each(|text| note(&mut done.notes, text));
        }
        if !self.config.allows(Capability::Prepare) {
            return Answer::Done(done);
        }
        if self.preparing.as_ref().is_some_and(|thread| !thread.is_finished()) {
            note(&mut done.notes, "files are still written for a save before");
            return Answer::Done(done);
        }
        // A disk that does not answer must not make the agent one that does not.
        let (sender, receiver) = mpsc::channel();
        let ask = ask.clone();
        self.preparing = Some(std::thread::spawn(move || {
            let mut meant = procfs::present(&ask.processes);
            meant.extend(calm::processes_of(&ask.groups));
            swap::bring_in(&meant, until);
            files::write_back(&meant);
            if ask.write_all {
                rustix::fs::sync();
            }
            let _ = sender.send(meant.len());
        }));
        let left = until.saturating_duration_since(Instant::now());
        match receiver.recv_timeout(left) {
            Ok(processes) => done.processes = u32::try_from(processes).unwrap_or(u32::MAX),
            Err(_) => note(&mut done.notes, "writing files and bringing pages in from swap took too long"),
        }
        self.khugepaged = khugepaged::find();
        if let Some(pid) = self.khugepaged {
            khugepaged::rest(pid, REST.min(until.saturating_duration_since(Instant::now())));
        }
        hurry(true);
        Answer::Done(done)
    }

    fn freeze(&mut self, ask: &Calm) -> Answer {
        if !self.config.allows(Capability::Calm) {
            return refused(
                Reason::NotAllowed,
                "The guest's owner does not allow to let processes stand still",
            );
        }
        if self.still.is_some() {
            return refused(Reason::Order, "Processes stand still already");
        }
        if let Some(pid) = self.khugepaged {
            khugepaged::rest(pid, SHORT_REST);
        }
        let limit = self.limit(ask);
        if let Err(error) = self.watchdog.hold(limit) {
            // The next one asks again; without one nothing is frozen.
            if let Ok(watchdog) = Watchdog::start() {
                self.watchdog = watchdog;
            }
            return refused(Reason::Failed, &chain(&error));
        }
        match calm::freeze(ask, limit) {
            Ok(mut still) => {
                let mut notes = std::mem::take(&mut still.notes);
                if self.config.allows(Capability::Restart) {
                    still.restart = services::check(&ask.restart, &mut notes);
                } else if !ask.restart.is_empty() {
                    note(&mut notes, "the guest's owner does not allow to restart services");
                }
                let done = Done { processes: still.processes, notes, ..Done::default() };
                self.still = Some(still);
                Answer::Done(done)
            }
            Err(error) => {
                self.watchdog.done();
                let reason = if matches!(error, AgentError::Late(_)) { Reason::Late } else { Reason::Failed };
                refused(reason, &chain(&error))
            }
        }
    }

    fn thaw(&mut self) -> Answer {
        if self.still.is_none() {
            return refused(Reason::Late, "Nothing stands still: the time was over");
        }
        match self.release() {
            Some(done) => Answer::Done(done),
            None => refused(Reason::Order, "This guest was restored"),
        }
    }

    fn saved(&mut self) -> Answer {
        let mut done = Done::default();
        if self.still.is_some() {
            return refused(Reason::Order, "Processes stand still");
        }
        hurry(false);
        if self.config.allows(Capability::Hooks) {
            let until = Instant::now() + self.config.longest_calm;
            let outcome = hooks::run(&self.config.hooks, Event::AfterSave, self.config.hook_limit, until);
            outcome.notes.iter().for_each(|text| note(&mut done.notes, text));
        }
        Answer::Done(done)
    }
}

/// While a save is under way, nobody in the guest shall have to wait for the agent longer than need be.
fn hurry(on: bool) {
    // Where a control group has no share of real time, the nice value has to do.
    let _ = sys::go_first(on);
    let _ = rustix::process::setpriority_process(None, if on { HURRIED } else { 0 });
}

fn refused(reason: Reason, text: &str) -> Answer {
    Answer::Refused { reason, text: text.to_owned() }
}
