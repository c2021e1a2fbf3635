//! Which memory cgroup a page is charged to (`mm/memcontrol.c`).
//!
//! ```text
//! task: cgroups ─> css_set: subsys[memory] ─> mem_cgroup
//! page: memcg_data ─> mem_cgroup, or obj_cgroup: memcg ─> mem_cgroup
//! ```

use crate::layout::layout;
use crate::{Kernel, KernelError, Process};
use elision_memory::{Gfn, Gva};
use std::collections::BTreeMap;

layout! {
    pub(crate) struct MemoryGroupLayout {
        subsystems: optional("css_set", &["subsys"]),
        memory: enumerator("memory_cgrp_id"),
        group_of_objects: optional("obj_cgroup", &["memcg"]),
    }
}

const WHAT: &str = "memory cgroup";
/// The low bits of the word tell what it points to.
const POINTER: u64 = !7;

impl Kernel<'_> {
    /// The memory cgroup (`mem_cgroup`) that a process's memory is charged to.
    pub fn memory_group(&self, process: &Process) -> Result<Option<Gva>, KernelError> {
        let layout = &self.profile.memory_groups;
        let (Some(cgroups), Some(subsystems), Some(memory), Some(thread)) =
            (self.profile.cgroup.cgroups, layout.subsystems, layout.memory, process.threads.first())
        else {
            return Ok(None);
        };
        let css_set = self.pointer(thread.task.wrapping_add(cgroups), WHAT)?;
        let group = self.pointer(css_set.wrapping_add(subsystems + 8 * memory), WHAT)?;
        Ok((group.0 != 0).then_some(group))
    }

    /// What `groups` has for the memory cgroup that a page is charged to, given by its first frame.
    pub fn charged_to<T: Copy>(
        &self,
        head: Gfn,
        groups: &BTreeMap<Gva, T>,
    ) -> Result<Option<T>, KernelError> {
        let Some(charge) = self.profile.page.charge_word(&self.raw_page(head)?) else { return Ok(None) };
        let charge = Gva(charge & POINTER);
        if charge.0 == 0 || groups.is_empty() {
            return Ok(None);
        }
        if let Some(found) = groups.get(&charge) {
            return Ok(Some(*found));
        }
        let Some(offset) = self.profile.memory_groups.group_of_objects else { return Ok(None) };
        Ok(groups.get(&self.pointer(charge.wrapping_add(offset), WHAT)?).copied())
    }
}
