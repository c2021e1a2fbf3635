//! A running VM, looked at from outside.

use crate::access::RamAccess;
use crate::command::node_backends;
use crate::error::{QemuError, Result};
use crate::flat_view::{parse_flat_view, parse_ram_blocks};
use crate::layout::{VmRam, vm_ram};
use crate::migration::Begun;
use crate::process::QemuProcess;
use crate::qmp::Qmp;
use crate::settings::Form;
use elision_memory::{Ram, RamLayout};
use serde_json::{Value, json};
use std::fs::File;
use std::path::Path;

/// What a VM is doing, by QEMU's own word for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunState {
    /// Whether the vCPUs run.
    pub running: bool,
    /// QEMU's word: `running`, `paused`, `postmigrate`, ...
    pub name: String,
}

/// A VM, attached through its QMP socket.
#[derive(Debug)]
pub struct Vm {
    pub(crate) qmp: Qmp,
    process: QemuProcess,
    ram: VmRam,
    access: RamAccess,
    kvm: bool,
    /// What QEMU's settings are made for.
    pub(crate) prepared: Option<Form>,
    /// A snapshot that is not yet taken.
    pub(crate) begun: Option<Begun>,
}

impl Vm {
    /// Connects to the VM and finds its RAM.
    pub fn attach(socket: &Path) -> Result<Self> {
        let mut qmp = Qmp::connect(socket)?;
        let process = QemuProcess::behind(&qmp)?;
        let ram = read_layout(&mut qmp, &process)?;
        let access = RamAccess::find(&process, &mut qmp, &ram)?;
        let kvm = qmp.execute("query-kvm", json!({}))?["enabled"].as_bool().unwrap_or(false);
        tracing::debug!(pid = process.pid, blocks = ram.blocks.len(), bytes = ram.file_len, kvm, "attached");
        Ok(Self { qmp, process, ram, access, kvm, prepared: None, begun: None })
    }

    /// The QMP connection.
    pub fn qmp(&mut self) -> &mut Qmp {
        &mut self.qmp
    }

    /// The QEMU process.
    #[must_use]
    pub fn process(&self) -> &QemuProcess {
        &self.process
    }

    /// The RAM file's blocks, length and layout.
    #[must_use]
    pub fn ram(&self) -> &VmRam {
        &self.ram
    }

    /// Where guest-physical RAM stands in the RAM file.
    #[must_use]
    pub fn layout(&self) -> &RamLayout {
        &self.ram.layout
    }

    /// The RAM, open for reading.
    pub fn open_ram(&self) -> Result<Ram> {
        self.access.open(self.process.pid, &self.ram)
    }

    /// Whether all RAM is in files that others can map. Otherwise some is in QEMU's own memory.
    #[must_use]
    pub fn shares_ram(&self) -> bool {
        self.access.is_shared()
    }

    /// The files that are the RAM, open for reading, one for each block; an error that says how to get one where there
    /// is none.
    pub fn ram_files(&self) -> Result<Vec<&File>> {
        self.access.shared_files()
    }

    /// Whether KVM runs the vCPUs (otherwise QEMU translates their code).
    #[must_use]
    pub fn uses_kvm(&self) -> bool {
        self.kvm
    }

    /// Whether QEMU knows of every write of the guest while it sends memory. Under KVM it does; when it translates the
    /// guest's code, versions before 9.0 forget some. (Mended by "physmem: Fix migration dirty bitmap coherency with
    /// TCG memory access"; seen here with 7.2: stacks arrived as they had been before the stop.)
    #[must_use]
    pub fn tracks_writes(&self) -> bool {
        const MENDED: u64 = 9;
        self.kvm || self.qmp.version().major >= MENDED
    }

    /// Reads the layout again: firmware and drivers of old switch parts of the first megabyte.
    pub fn refresh_layout(&mut self) -> Result<()> {
        let ram = read_layout(&mut self.qmp, &self.process)?;
        if ram.blocks != self.ram.blocks {
            return Err(QemuError::RamLayout { why: "the RAM was exchanged while it was in use".into() });
        }
        self.ram = ram;
        Ok(())
    }

    /// What the VM is doing.
    pub fn status(&mut self) -> Result<RunState> {
        run_state(&mut self.qmp)
    }

    /// Stops the vCPUs. Returns when they stand still.
    pub fn stop(&mut self) -> Result<()> {
        self.qmp.execute("stop", json!({}))?;
        self.qmp.take_events();
        Ok(())
    }

    /// Makes sure that nobody else has continued the VM since [`Vm::stop`].
    pub fn check_still(&mut self) -> Result<()> {
        let state = self.status()?; // whatever QEMU has to report comes before the answer
        if state.running || self.qmp.take_events().iter().any(|event| event.name == "RESUME") {
            return Err(QemuError::Moved { sign: "QEMU says so".into() });
        }
        Ok(())
    }

    /// Lets the vCPUs run.
    pub fn cont(&mut self) -> Result<()> {
        self.qmp.execute("cont", json!({})).map(drop)
    }

    /// The machine type with its version, such as `pc-q35-7.2`.
    pub fn machine_type(&mut self) -> Result<Option<String>> {
        let path = json!({"path": "/machine", "property": "type"});
        let kind = self.qmp.execute("qom-get", path)?;
        Ok(kind.as_str().map(|k| k.strip_suffix("-machine").unwrap_or(k).to_string()))
    }
}

/// What the VM behind a QMP connection is doing.
pub(crate) fn run_state(qmp: &mut Qmp) -> Result<RunState> {
    let status = qmp.execute("query-status", json!({}))?;
    match (status["running"].as_bool(), status["status"].as_str()) {
        (Some(running), Some(name)) => Ok(RunState { running, name: name.into() }),
        _ => Err(QemuError::BadReply { command: "query-status".into(), why: status.to_string() }),
    }
}

fn read_layout(qmp: &mut Qmp, process: &QemuProcess) -> Result<VmRam> {
    let view = parse_flat_view(&qmp.human("info mtree -f")?)?;
    let blocks = parse_ram_blocks(&qmp.human("info ramblock")?)?;
    let backends = qmp.execute("query-memdev", json!({}))?;
    let backends = backends.as_array().map(Vec::as_slice).unwrap_or_default();
    let id = |b: &Value| b["id"].as_str().map(String::from);
    let ids: Vec<String> = backends.iter().filter_map(id).collect();
    vm_ram(&view, &blocks, &ids, &node_backends(&process.command))
}
