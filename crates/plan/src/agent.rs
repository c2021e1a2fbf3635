//! The word that tells a restored guest agent that it is one.
//!
//! The agent says where in its memory it keeps some bytes that nobody can guess, and a word behind them. What it says is
//! not trusted: only where all of these bytes stand, in the agent's own memory, the word is changed, and only in the copy.

use crate::{Change, Edit, EditReason, Plan, PlanError, Selection};
use elision_kernel::Kernel;
use elision_memory::{Gva, PAGE_SIZE};

/// What stands in an agent's memory, and what shall stand in the copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentMark {
    /// The agent's process id.
    pub pid: u32,
    /// Where it stands.
    pub address: Gva,
    /// What stands there now. It does not cross a page's end.
    pub now: Vec<u8>,
    /// What stands there in the copy; of the same length.
    pub copy: Vec<u8>,
}

/// Adds the change to the plan of a stopped VM. False if the agent's memory is not as the mark has it: it has
/// ended, or it has let processes run on.
pub fn mark_agent(
    kernel: &Kernel<'_>,
    selection: &Selection,
    plan: &mut Plan,
    mark: &AgentMark,
) -> Result<bool, PlanError> {
    let room = PAGE_SIZE - mark.address.page_offset();
    let agent = selection.kept().find(|process| process.pid == mark.pid);
    let Some(mm) = agent.and_then(|agent| agent.mm).filter(|_| mark.now.len() <= room) else {
        return Ok(false);
    };
    let tables = kernel.mm(mm)?.tables;
    if mark.now.len() != mark.copy.len() || !tables.user_range().contains(&mark.address) {
        return Ok(false);
    }
    let Some(found) = tables.translate(kernel.ram(), mark.address) else { return Ok(false) };
    let mut bytes = vec![0; mark.now.len()];
    let is_as_said = kernel.ram().read(found.gpa, &mut bytes).is_ok() && bytes == mark.now;
    let gfn = found.gpa.gfn();
    let is_late = plan.late.iter().any(|run| run.contains(&gfn));
    if !is_as_said || is_late || plan.drop_of(gfn).is_some() || !plan.edits_in(gfn).is_empty() {
        return Ok(false);
    }
    let change = Change::Write(mark.copy.clone().into());
    plan.add_late(vec![Edit { gpa: found.gpa, change, reason: EditReason::Agent, owner: Some(mark.pid) }]);
    Ok(true)
}
