//! A plan's counts and a policy in words: the same for `plan`, `save` and `inspect`.

use crate::output::table;
use crate::text::{count, printable, size};
use elision_image::Way;
use elision_memory::PAGE_SIZE;
use elision_plan::{DropReason, EditReason, PlanSummary};
use serde_json::Value;

/// Bytes of a number of frames.
pub(crate) fn frame_bytes(frames: u64) -> u64 {
    frames.saturating_mul(PAGE_SIZE as u64)
}

/// How memory came out of the VM, to be added to how long it took.
pub(crate) fn way(way: Way) -> &'static str {
    match way {
        Way::Shared => "",
        Way::Stream => ", memory sent by QEMU",
        Way::Live => ", memory sent by QEMU while the VM ran",
    }
}

/// The selectors of a policy in its JSON form, which comes from an image and may be anything.
pub(crate) fn policy(policy: &Value) -> String {
    let selectors = policy["selectors"].as_array().map(Vec::as_slice).unwrap_or_default();
    let text = |value: &Value| value.as_str().map(printable).unwrap_or_default();
    let selectors: Vec<String> =
        selectors.iter().map(|s| format!("{}={}", text(&s["kind"]), text(&s["pattern"]))).collect();
    if selectors.is_empty() { "nothing was selected".to_owned() } else { selectors.join(" ") }
}

/// What was left out, what was changed, what stays, and what stands in the way.
pub(crate) fn plan(summary: &PlanSummary) -> String {
    let mut text = String::new();
    let mut section = |title: &str, rows: Vec<Vec<String>>| {
        if rows.is_empty() {
            return;
        }
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&table(&[title, ">", ">"], rows));
    };
    let frames = |n: u64| vec![count(n, "frame"), size(frame_bytes(n))];
    let mut rows = Vec::new();
    for (reason, n) in &summary.dropped_frames {
        rows.push([vec![dropped(*reason).to_owned()], frames(*n)].concat());
    }
    if rows.len() > 1 {
        rows.push([vec!["total".to_owned()], frames(summary.dropped_frames.values().sum())].concat());
    }
    section("Left out", rows);
    let owners = summary.frames_by_owner.iter();
    section(
        "Left out of",
        owners.map(|(pid, n)| [vec![format!("process {pid}")], frames(*n)].concat()).collect(),
    );
    let dependents = summary.dependents.iter();
    section(
        "Left out as dependents",
        dependents
            .map(|(pid, of)| vec![format!("process {pid}"), format!("of {of}"), String::new()])
            .collect(),
    );
    let edits = summary.edited_bytes.iter();
    section(
        "Changed",
        edits.map(|(reason, n)| vec![edited(*reason).to_owned(), String::new(), size(*n)]).collect(),
    );
    let kept = summary.kept_frames.iter();
    section("Shared, stays", kept.map(|(what, n)| [vec![printable(what)], frames(*n)].concat()).collect());
    let unaccounted = summary.unaccounted.iter();
    section("Not accounted for", unaccounted.map(|what| vec![printable(what)]).collect());
    text
}

/// A reason in words.
fn dropped(reason: DropReason) -> &'static str {
    match reason {
        DropReason::Free => "free memory",
        DropReason::FreePerCpu => "free memory held by a CPU",
        DropReason::FreeHuge => "free huge pages",
        DropReason::DeadInBatch => "freed just now",
        DropReason::Anonymous => "private memory",
        DropReason::SharedMemory => "shared memory",
        DropReason::HugeTlb => "huge pages",
        DropReason::Orphan => "private memory that nobody maps any more",
        DropReason::Region => "marked memory of processes that stay",
        DropReason::PageCache => "cached files",
    }
}

/// A reason in words.
fn edited(reason: EditReason) -> &'static str {
    match reason {
        EditReason::DeadStack => "unused kernel stack, cleared",
        EditReason::UserRegisters => "saved registers, cleared",
        EditReason::FpuState => "saved vector registers, cleared",
        EditReason::PendingKill => "end of the excluded processes, prepared",
        EditReason::WakeUp => "wake-up of the excluded processes, prepared",
        EditReason::Pipe => "pipes, cleared",
        EditReason::Socket => "sockets, cleared",
        EditReason::Terminal => "terminals, cleared",
        EditReason::Message => "message queues, cleared",
        EditReason::Key => "keys, cleared",
        EditReason::FreeObject => "freed kernel objects, cleared",
        EditReason::IdleStack => "idle kernel stacks, cleared",
        EditReason::Name => "names, cleared",
        EditReason::Event => "queued events and requests, cleared",
        EditReason::KernelLog => "lines of the kernel log, cleared",
        EditReason::PageFragment => "used buffer pages, cleared",
        EditReason::ConnectionReset => "TCP connections, to end by reset",
        EditReason::IdleMapping => "idle kernel mappings, cleared",
        EditReason::BpfMap => "BPF maps, cleared",
        EditReason::PageCache => "cached files, to be read again",
        EditReason::Agent => "the guest's agent, told that it is a copy",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_names_counts_and_sizes() {
        let summary = PlanSummary {
            dropped_frames: [(DropReason::Free, 512), (DropReason::Anonymous, 1)].into(),
            frames_by_owner: [(812, 1)].into(),
            kept_frames: [("page cache of a file".to_owned(), 3)].into(),
            ..PlanSummary::default()
        };
        let text = plan(&summary);
        for part in
            ["free memory", "512 frames", "2.0 MiB", "513 frames", "process 812", "1 frame ", "3 frames"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("Changed") && !text.contains("Not accounted for"));
    }

    #[test]
    fn any_json_is_a_policy_in_words() {
        assert_eq!(policy(&Value::Null), "nothing was selected");
        assert_eq!(policy(&serde_json::json!({"selectors": [1]})), "=");
    }
}
