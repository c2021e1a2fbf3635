//! What of a VM's memory goes into a checkpoint, and how: a pure function of memory, kernel and policy.

mod entry;

pub use entry::{Change, DropReason, DropRun, Edit, EditReason, Owner, Plan, PlanSummary};
