//! QEMU's settings for migrations: remembered, changed for a capture, put back.

use crate::error::Result;
use crate::qmp::Qmp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

const IGNORE_SHARED: &str = "x-ignore-shared";
const SNAPSHOT: &str = "background-snapshot";
const PAUSES: &str = "pause-before-switchover";
const TWO_WAYS: &str = "return-path";
const ASKS: &str = "switchover-ack";
/// Other capabilities under which the stream has another form, other content or another way.
const DISTURBING: [&str; 17] = [
    "auto-converge",
    "block",
    "compress",
    "dirty-bitmaps",
    "late-block-activate",
    "mapped-ram",
    "multifd",
    "postcopy-blocktime",
    "postcopy-preempt",
    "postcopy-ram",
    "rdma-pin-all",
    "release-ram",
    "validate-uuid",
    "x-colo",
    "xbzrle",
    "zero-blocks",
    "zero-copy-send",
];

/// What a capture wants of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Devices only: the RAM is read from its file.
    Devices,
    /// Devices and RAM of a VM that stands still.
    Whole,
    /// Devices and RAM of one moment of a VM that runs on.
    Snapshot,
    /// RAM of a VM that runs, again and again what it changes, until it is stopped; then its devices.
    Precopy,
    /// The same, but QEMU stops the VM only once it is allowed to on the return path (QEMU 8.1 and later).
    HeldPrecopy,
}

impl Form {
    /// The capabilities that bring it about.
    fn capabilities(self) -> &'static [&'static str] {
        match self {
            Self::Devices => &[IGNORE_SHARED],
            Self::Whole => &[],
            Self::Snapshot => &[SNAPSHOT],
            Self::Precopy => &[PAUSES],
            Self::HeldPrecopy => &[PAUSES, TWO_WAYS, ASKS],
        }
    }
}

/// Settings of QEMU's migration that a capture changes, as they were before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationSettings {
    /// Capabilities that matter, and whether they are on.
    capabilities: BTreeMap<String, bool>,
    max_bandwidth: Option<u64>,
    downtime_limit: Option<u64>,
}

impl MigrationSettings {
    /// The settings as they are.
    pub(crate) fn read(qmp: &mut Qmp) -> Result<Self> {
        let list = qmp.execute("query-migrate-capabilities", json!({}))?;
        let mut capabilities = BTreeMap::new();
        for c in list.as_array().map(Vec::as_slice).unwrap_or_default() {
            if let (Some(name), Some(on)) = (c["capability"].as_str(), c["state"].as_bool()) {
                if [IGNORE_SHARED, SNAPSHOT, PAUSES, TWO_WAYS, ASKS].contains(&name)
                    || DISTURBING.contains(&name)
                {
                    capabilities.insert(name.to_string(), on);
                }
            }
        }
        let parameters = qmp.execute("query-migrate-parameters", json!({}))?;
        let number = |name| parameters[name].as_u64();
        Ok(Self {
            capabilities,
            max_bandwidth: number("max-bandwidth"),
            downtime_limit: number("downtime-limit"),
        })
    }

    /// The same settings as a capture needs them.
    pub(crate) fn for_capture(&self, form: Form) -> Self {
        let is_on = |name: &String| form.capabilities().contains(&name.as_str());
        let capabilities = self.capabilities.keys().map(|name| (name.clone(), is_on(name))).collect();
        let downtime_limit = match form {
            Form::Precopy | Form::HeldPrecopy => self.downtime_limit.map(|_| 0),
            _ => self.downtime_limit,
        };
        Self { capabilities, max_bandwidth: self.max_bandwidth.map(|_| 0), downtime_limit }
    }

    /// Whether this QEMU can take the stream in this form at all.
    pub(crate) fn knows(&self, form: Form) -> bool {
        form.capabilities().iter().all(|name| self.capabilities.contains_key(*name))
    }

    /// Makes the settings these, changing only what differs from `now`.
    pub(crate) fn apply(&self, qmp: &mut Qmp, now: &Self) -> Result<()> {
        let differs = |(name, on): &(&String, &bool)| now.capabilities.get(*name) != Some(*on);
        let list = self.capabilities.iter().filter(differs);
        let list: Vec<Value> = list.map(|(name, on)| json!({"capability": name, "state": on})).collect();
        let capabilities = set_capabilities(qmp, &list);
        let numbers = [
            ("max-bandwidth", self.max_bandwidth, now.max_bandwidth),
            ("downtime-limit", self.downtime_limit, now.downtime_limit),
        ];
        let differing = numbers.into_iter().filter(|(_, wanted, now)| wanted.is_some() && wanted != now);
        let parameters: Map<String, Value> =
            differing.map(|(name, wanted, _)| (name.to_string(), json!(wanted))).collect();
        capabilities.and(if parameters.is_empty() {
            Ok(())
        } else {
            qmp.execute("migrate-set-parameters", parameters.into()).map(drop)
        })
    }

    /// Puts the settings back to these, whatever they are now.
    pub(crate) fn put_back(&self, qmp: &mut Qmp) -> Result<()> {
        let now = Self::read(qmp)?;
        self.apply(qmp, &now)
    }
}

fn set_capabilities(qmp: &mut Qmp, list: &[Value]) -> Result<()> {
    if list.is_empty() {
        return Ok(());
    }
    qmp.execute("migrate-set-capabilities", json!({"capabilities": list})).map(drop)
}
