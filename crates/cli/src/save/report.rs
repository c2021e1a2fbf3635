//! What `elision save` says at its end.

use super::devices::Devices;
use crate::agent::AgentReport;
use crate::summary;
use crate::text::{count, printable, size};
use elision_image::{Manifest, RamStats, Way};
use elision_plan::{PlanSummary, Selection};
use serde::Serialize;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// The result of a save.
#[derive(Serialize)]
pub(super) struct Saved {
    image: PathBuf,
    /// Process ids of the processes left out.
    excluded: Vec<u32>,
    plan: PlanSummary,
    devices: Devices,
    ram: RamBytes,
    agent: AgentReport,
    /// How often the VM was stopped until every excluded process held still.
    looks: u32,
    /// How memory came out of the VM.
    way: Way,
    /// Length of the last stop.
    pause_ms: f64,
    total_ms: f64,
}

#[derive(Serialize)]
struct RamBytes {
    bytes: u64,
    dropped: u64,
    zero: u64,
    written: u64,
    /// What the file takes on disk.
    stored: u64,
    /// Of what is written, what the image that it builds on holds; null without one.
    inherited: Option<u64>,
}

impl Saved {
    pub(super) fn new(
        image: &Path,
        manifest: &Manifest,
        selection: &Selection,
        ram: RamStats,
        devices: Devices,
        looks: u32,
    ) -> Self {
        Self {
            image: image.to_owned(),
            excluded: selection.excluded.iter().copied().collect(),
            plan: manifest.plan.clone(),
            devices,
            ram: RamBytes {
                bytes: ram.ram,
                dropped: ram.dropped,
                zero: ram.zero,
                written: ram.written,
                stored: manifest.files.ram.stored_bytes,
                inherited: manifest.base.as_ref().map(|base| base.inherited_bytes),
            },
            agent: AgentReport::default(),
            looks,
            way: manifest.way,
            pause_ms: manifest.times.pause_ms,
            total_ms: manifest.times.total_ms,
        }
    }

    pub(super) fn with_agent(self, agent: AgentReport) -> Self {
        Self { agent, ..self }
    }
}

pub(super) fn human(saved: &Saved) -> String {
    let mut text = format!("Saved {}\n", printable(&saved.image.display().to_string()));
    let _ = writeln!(
        text,
        "{} left out; of {} of memory {} left out, {} zero, {} written",
        count(saved.excluded.len() as u64, "process"),
        size(saved.ram.bytes),
        size(saved.ram.dropped),
        size(saved.ram.zero),
        size(saved.ram.written),
    );
    if let Some(inherited) = saved.ram.inherited {
        let _ = writeln!(text, "{} of it inherited, {} stored", size(inherited), size(saved.ram.stored));
    }
    let way = summary::way(saved.way);
    let _ = writeln!(text, "Paused for {:.0} ms, done in {:.0} ms{way}\n", saved.pause_ms, saved.total_ms);
    text.push_str(&agent(&saved.agent));
    text.push_str(&summary::plan(&saved.plan));
    text
}

/// What the guest's agent did, if there is one.
fn agent(agent: &AgentReport) -> String {
    let mut text = String::new();
    if agent.calm {
        let processes = count(agent.processes.into(), "process");
        let _ = writeln!(text, "{processes} stood still for {:.0} ms, by the guest's agent", agent.calm_ms);
    }
    for note in &agent.notes {
        let _ = writeln!(text, "Agent: {}", printable(note));
    }
    if !text.is_empty() {
        text.push('\n');
    }
    text
}
