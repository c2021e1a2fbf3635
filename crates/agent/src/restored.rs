//! A restored guest is put in order.
//!
//! ```text
//! at once, by the word in the agent's memory     frozen groups ended ─ random numbers stirred ─ clock ─ hooks ─ services
//! when a host asks                               random numbers, clock, identity ─ hooks, if cards have new addresses ─ report
//! ```
//! The first needs nobody: it is done too when stock QEMU has restored the image and no Elision is on the host.

use crate::calm::Stillness;
use crate::config::Config;
use crate::error::{AgentError, Context, chain};
use crate::hooks::{self, Event};
use crate::{cards, identity, random, services};
use elision_wire::{Capability, Identity, Report, note};
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};
use std::fs;
use std::time::{Duration, Instant};

/// What all hooks together may take.
const HOOKS_LIMIT: Duration = Duration::from_secs(60);
/// The same while a host waits for an answer.
const HOOKS_LIMIT_OF_HOST: Duration = Duration::from_secs(30);
const NANOS: i128 = 1_000_000_000;
/// A clock that differs by less is left alone when it is compared with one that counts seconds.
const SECONDS_APART: i128 = 2;

/// What needs no host.
pub(crate) fn by_itself(config: &Config, still: Option<Stillness>) -> Report {
    let mut report = Report { noticed: true, ..Report::default() };
    let mut restart = Vec::new();
    if let Some(mut still) = still {
        restart = std::mem::take(&mut still.restart);
        let ended = still.end();
        report.groups_ended = ended.groups;
        report.processes_ended = ended.processes;
        report.notes.extend(ended.notes);
    }
    if let Err(error) = random::stir(&[]) {
        note(&mut report.notes, &chain(&error));
    }
    match real_time_clock() {
        Some(seconds) if config.allows(Capability::Clock) => {
            let wanted = i128::from(seconds) * NANOS;
            if (wanted - now()).abs() >= SECONDS_APART * NANOS {
                set_clock(wanted, &mut report);
            }
        }
        _ => {}
    }
    run_hooks(config, Event::AfterRestore, HOOKS_LIMIT, &mut report);
    // Last: a hook may bring back what a service needs.
    report.restarted = services::restart(restart, &mut report.notes);
    report
}

/// What a host adds. Each that the guest's owner does not allow is left out, and said.
pub(crate) fn with_host(
    config: &Config,
    report: &mut Report,
    unix_time_ns: Option<u64>,
    seed: Option<&str>,
    wanted: &Identity,
) {
    let mut may = |what: &str, capability| {
        let allowed = config.allows(capability);
        if !allowed {
            note(&mut report.notes, &format!("the guest's owner does not allow to {what}"));
        }
        allowed
    };
    let seed = seed.filter(|_| may("stir the random numbers", Capability::Random));
    let time = unix_time_ns.filter(|_| may("set the clock", Capability::Clock));
    let identity = !wanted.is_same() && may("change the machine's identity", Capability::Identity);
    if let Some(seed) = seed {
        match random::parse_seed(seed).and_then(|bytes| random::stir(&bytes)) {
            Ok(()) => report.reseeded = true,
            Err(error) => note(&mut report.notes, &chain(&error)),
        }
    }
    if let Some(time) = time {
        set_clock(time.into(), report);
    }
    if let Some(name) = wanted.hostname.as_deref().filter(|_| identity) {
        match identity::set_hostname(name) {
            Ok(()) => report.hostname = Some(name.to_owned()),
            Err(error) => note(&mut report.notes, &chain(&error)),
        }
    }
    if wanted.new_machine_id && identity {
        match identity::new_machine_id() {
            Ok(id) => report.machine_id = Some(id),
            Err(error) => note(&mut report.notes, &chain(&error)),
        }
    }
    if wanted.new_boot_id && identity {
        match identity::new_boot_id() {
            Ok(id) => report.boot_id = Some(id),
            Err(error) => note(&mut report.notes, &chain(&error)),
        }
    }
    if !wanted.macs.is_empty() {
        let changed =
            if identity { cards::set_addresses(&wanted.macs, &mut report.notes) } else { Vec::new() };
        // Leases belong to an address, so whoever asks for them is to ask again. Last, as they may tell the machine's name.
        if !changed.is_empty() {
            run_hooks(config, Event::NewAddress, HOOKS_LIMIT_OF_HOST, report);
        }
        report.network_cards = Some(changed);
    }
}

fn run_hooks(config: &Config, event: Event, limit: Duration, report: &mut Report) {
    if config.allows(Capability::Hooks) {
        let outcome = hooks::run(&config.hooks, event, config.hook_limit, Instant::now() + limit);
        report.hooks = report.hooks.saturating_add(outcome.well);
        outcome.notes.iter().for_each(|text| note(&mut report.notes, text));
    }
}

/// The machine's clock that runs while the guest does not, in seconds since 1970.
pub(crate) fn real_time_clock() -> Option<u64> {
    fs::read_to_string("/sys/class/rtc/rtc0/since_epoch").ok()?.trim().parse().ok()
}

fn now() -> i128 {
    let now = clock_gettime(ClockId::Realtime);
    i128::from(now.tv_sec) * NANOS + i128::from(now.tv_nsec)
}

fn set_clock(wanted: i128, report: &mut Report) {
    let by = wanted - now();
    match set_realtime(wanted) {
        Ok(()) => {
            let millis = i64::try_from(by / 1_000_000).unwrap_or(i64::MAX);
            // Of two steps, the sum is what the machine's users see.
            report.clock_ms = Some(report.clock_ms.unwrap_or(0).saturating_add(millis));
        }
        Err(error) => note(&mut report.notes, &chain(&error)),
    }
}

fn set_realtime(wanted: i128) -> Result<(), AgentError> {
    let wrong = || AgentError::Other("The host's time is none".to_owned());
    let tv_sec = i64::try_from(wanted / NANOS).map_err(|_| wrong())?;
    let tv_nsec = i64::try_from(wanted % NANOS).map_err(|_| wrong())?;
    clock_settime(ClockId::Realtime, Timespec { tv_sec, tv_nsec }).context("set", "the clock")
}
