//! What of a VM's memory goes into a checkpoint, and how: a pure function of memory, kernel and
//! policy. The same code plans for a live VM and for a file.
//!
//! [`Selection::of`] turns a policy into processes; [`plan`] turns processes into frames to drop,
//! bytes to change, and what must happen to each vCPU. Nothing is written here.

mod agent;
mod assemble;
mod cached_files;
mod channels;
mod entry;
mod error;
mod frame_table;
mod frames;
mod free_objects;
mod fresh;
mod guess;
mod idle_stacks;
mod kept;
mod late;
mod orphans;
mod regions;
mod relations;
mod select;
mod swap;
mod threads;
mod vcpus;

pub use agent::{AgentMark, mark_agent};
pub use assemble::{Options, Outcome, plan};
pub use cached_files::FileRules;
pub use entry::{Change, DropReason, DropRun, Edit, EditReason, Owner, Plan, PlanSummary};
pub use error::PlanError;
pub use fresh::SeenBlocks;
pub use guess::guess;
pub use late::plan_late;
pub use regions::RegionRule;
pub use relations::{Relation, RelationKind, Role};
pub use select::Selection;
pub use vcpus::{VcpuAction, VcpuState};
