//! `elision inspect`: what an image says of itself.

use crate::args::InspectArgs;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::Output;
use crate::summary;
use crate::text::{count, printable, shell, size};
use elision_image::{Base, Completeness, FileSum, Guest, Image, Manifest, Times, Vmm, Way};
use elision_memory::RamLayout;
use elision_plan::PlanSummary;
use serde::Serialize;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// The manifest without the list of chunk checksums.
#[derive(Serialize)]
struct Inspected<'a> {
    image: PathBuf,
    format: u32,
    id: &'a str,
    /// The image that it builds on; null for none.
    base: Option<&'a Base>,
    elision_version: &'a str,
    created: &'a str,
    vmm: &'a Vmm,
    guest: &'a Guest,
    ram: RamFacts<'a>,
    state: &'a FileSum,
    exclusions: &'a FileSum,
    policy: &'a serde_json::Value,
    plan: &'a PlanSummary,
    completeness: &'a Completeness,
    times: Times,
    way: Way,
}

#[derive(Serialize)]
struct RamFacts<'a> {
    bytes: u64,
    stored_bytes: u64,
    layout: &'a RamLayout,
    root: &'a str,
}

pub(crate) fn run(args: &InspectArgs, out: &mut Output) -> Result<Exit, Failure> {
    let image = Image::open(&args.image)?;
    out.result(&Inspected::new(&args.image, image.manifest()), human)?;
    Ok(Exit::Done)
}

impl<'a> Inspected<'a> {
    fn new(image: &Path, manifest: &'a Manifest) -> Self {
        let files = &manifest.files;
        Self {
            image: image.to_owned(),
            format: manifest.format,
            id: &manifest.id,
            base: manifest.base.as_ref(),
            elision_version: &manifest.elision_version,
            created: &manifest.created,
            vmm: &manifest.vmm,
            guest: &manifest.guest,
            ram: RamFacts {
                bytes: files.ram.bytes,
                stored_bytes: files.ram.stored_bytes,
                layout: &manifest.ram_layout,
                root: &files.ram.root,
            },
            state: &files.state,
            exclusions: &files.exclusions,
            policy: &manifest.policy,
            plan: &manifest.plan,
            completeness: &manifest.completeness,
            times: manifest.times,
            way: manifest.way,
        }
    }
}

fn human(image: &Inspected<'_>) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<13}{}", printable(&value));
    };
    line("Image", format!("{}, format {}", image.image.display(), image.format));
    line("Created", format!("{} by elision {}", image.created, image.elision_version));
    line("Guest", format!("Linux {}, build id {}", image.guest.kernel_release, image.guest.build_id));
    let vcpus = count(u64::from(image.vmm.vcpus), "vCPU");
    line("VM", format!("QEMU {}, {}, {vcpus}", image.vmm.version, image.vmm.machine));
    line("Command", shell(&image.vmm.command));
    line(
        "Memory",
        format!("{}, of which {} are stored", size(image.ram.bytes), size(image.ram.stored_bytes)),
    );
    if let Some(base) = image.base {
        let (path, inherited) = (base.path.display(), size(base.inherited_bytes));
        line("Builds on", format!("{path}, from its folder: {inherited} are inherited"));
    }
    line("Device state", size(image.state.bytes));
    let way = summary::way(image.way);
    line(
        "Times",
        format!("paused {:.0} ms, {:.0} ms in all{way}", image.times.pause_ms, image.times.total_ms),
    );
    line("Policy", summary::policy(image.policy));
    match image.completeness {
        Completeness::Complete => line("Complete", "yes".to_owned()),
        Completeness::BestEffort { .. } => line("Complete", "no, saved with --best-effort".to_owned()),
    }
    text.push('\n');
    text.push_str(&summary::plan(image.plan));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use elision_image::{FORMAT, Files};
    use serde_json::json;

    fn manifest() -> Manifest {
        Manifest {
            format: FORMAT,
            id: String::new(),
            base: None,
            elision_version: "0.1.0".to_owned(),
            created: "2026-01-31T12:00:00Z".to_owned(),
            vmm: Vmm { version: "7.2.22".to_owned(), vcpus: 2, ..Vmm::default() },
            guest: Guest::default(),
            ram_layout: RamLayout::flat(4096).unwrap(),
            policy: json!({"selectors": [{"kind": "comm", "pattern": "a\u{1b}"}], "save": {}}),
            plan: PlanSummary::default(),
            completeness: Completeness::Complete,
            times: Times::default(),
            way: Way::Live,
            files: Files::default(),
        }
    }

    #[test]
    fn the_json_fields_are_the_documented_ones() {
        let value = serde_json::to_value(Inspected::new(Path::new("i"), &manifest())).unwrap();
        let fields: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
        let expected = [
            "base",
            "completeness",
            "created",
            "elision_version",
            "exclusions",
            "format",
            "guest",
            "id",
            "image",
            "plan",
            "policy",
            "ram",
            "state",
            "times",
            "vmm",
            "way",
        ];
        assert_eq!(fields, expected);
        assert_eq!(value["ram"]["layout"], json!([{"gpa": 0, "len": 4096, "offset": 0}]));
    }

    #[test]
    fn a_foreign_image_cannot_send_escape_sequences() {
        let text = human(&Inspected::new(Path::new("i"), &manifest()));
        assert!(text.contains("comm=a\\u{1b}") && !text.contains('\x1b'), "{text:?}");
    }
}
