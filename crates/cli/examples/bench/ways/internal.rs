//! QEMU's internal snapshot: memory and state go into a qcow2 file, as with `savevm`.

use super::incoming::stopped_vm;
use super::{Saved, Way};
use crate::Failure;
use elision_qemu::Qmp;
use elision_testbed::GuestOptions;
use serde_json::{Value, json};
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(300);

/// `snapshot-save` into an otherwise empty qcow2 file.
pub(crate) struct Internal;

impl Way for Internal {
    fn name(&self) -> &'static str {
        "QEMU, `savevm` into qcow2"
    }

    fn file(&self) -> &'static Path {
        Path::new("vm.qcow2")
    }

    fn save(&self, socket: &Path) -> Result<Saved, Failure> {
        let begin = Instant::now();
        let file = File::create_new(self.file())?;
        let mut qmp = Qmp::connect(socket)?;
        add_file(&mut qmp, self.file())?;
        let options = json!({"driver": "qcow2", "file": "bench-file", "size": 1 << 20});
        job(&mut qmp, "blockdev-create", json!({"options": options}))?;
        add_qcow2(&mut qmp)?;
        let asked = Instant::now();
        // The VM stands still for the whole job.
        let job = job(&mut qmp, "snapshot-save", snapshot());
        let pause = asked.elapsed();
        for node in ["bench-qcow2", "bench-file"] {
            qmp.execute("blockdev-del", json!({"node-name": node}))?;
        }
        job?;
        file.sync_all()?;
        Ok(Saved { pause, total: begin.elapsed(), kept: None })
    }

    fn restore(&self, options: &GuestOptions, folder: &Path) -> Result<bool, Failure> {
        let mut qmp = stopped_vm(options, folder, &[])?;
        add_file(&mut qmp, self.file())?;
        add_qcow2(&mut qmp)?;
        job(&mut qmp, "snapshot-load", snapshot())?;
        qmp.execute("cont", json!({}))?;
        Ok(true)
    }
}

fn snapshot() -> Value {
    json!({"tag": "bench", "vmstate": "bench-qcow2", "devices": ["bench-qcow2"]})
}

fn add_file(qmp: &mut Qmp, path: &Path) -> Result<(), Failure> {
    let path = std::fs::canonicalize(path)?;
    let node = json!({"driver": "file", "filename": path, "node-name": "bench-file"});
    qmp.execute("blockdev-add", node)?;
    Ok(())
}

fn add_qcow2(qmp: &mut Qmp) -> Result<(), Failure> {
    let node = json!({"driver": "qcow2", "file": "bench-file", "node-name": "bench-qcow2"});
    qmp.execute("blockdev-add", node)?;
    Ok(())
}

/// Runs a job to its end.
fn job(qmp: &mut Qmp, command: &str, mut arguments: Value) -> Result<(), Failure> {
    arguments["job-id"] = json!("bench");
    qmp.execute(command, arguments)?;
    let begin = Instant::now();
    while begin.elapsed() < LIMIT {
        let jobs = qmp.execute("query-jobs", json!({}))?;
        let job = jobs.as_array().into_iter().flatten().find(|job| job["id"] == "bench");
        let job = job.ok_or("QEMU's job is gone")?;
        if job["status"] == "concluded" {
            qmp.execute("job-dismiss", json!({"id": "bench"}))?;
            return match &job["error"] {
                Value::Null => Ok(()),
                error => Err(format!("{command} failed: {error}").into()),
            };
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Err(format!("{command} took longer than {} s", LIMIT.as_secs()).into())
}
