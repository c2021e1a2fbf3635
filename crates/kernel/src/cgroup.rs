//! A task's place in the cgroup v2 hierarchy (`struct css_set`, `struct kernfs_node`).

use crate::layout::layout;
use crate::{Kernel, KernelError};
use elision_memory::Gva;

layout! {
    pub(crate) struct CgroupLayout {
        cgroups: optional("task_struct", &["cgroups"]),
        default_cgroup: optional("css_set", &["dfl_cgrp"]),
        node: optional("cgroup", &["kn"]),
        parent: optional("kernfs_node", &["__parent", "parent"]),
        name: optional("kernfs_node", &["name"]),
    }
}

const NAME_LIMIT: usize = 256;
/// `PATH_MAX`: the kernel itself shows no longer path.
const PATH_LIMIT: usize = 4096;
const WHAT: &str = "cgroup";

impl Kernel<'_> {
    /// The task's cgroup v2 (`struct cgroup`); `None` on a kernel without cgroups.
    pub(crate) fn default_cgroup(&self, task: Gva) -> Result<Option<Gva>, KernelError> {
        let layout = &self.profile.cgroup;
        let (Some(cgroups), Some(default)) = (layout.cgroups, layout.default_cgroup) else { return Ok(None) };
        let css_set = self.pointer(task.wrapping_add(cgroups), WHAT)?;
        let cgroup = self.pointer(css_set.wrapping_add(default), WHAT)?;
        Ok((cgroup.0 != 0).then_some(cgroup))
    }

    /// Path of a `struct cgroup` in its hierarchy, `/` for the root.
    pub(crate) fn path_of_cgroup(&self, cgroup: Gva) -> Result<Option<String>, KernelError> {
        let layout = &self.profile.cgroup;
        let (Some(node), Some(parent), Some(name)) = (layout.node, layout.parent, layout.name) else {
            return Ok(None);
        };
        let mut at = self.pointer(cgroup.wrapping_add(node), WHAT)?;
        let (mut names, mut len) = (Vec::new(), 0);
        while len < PATH_LIMIT {
            let up = self.pointer(at.wrapping_add(parent), WHAT)?;
            if up.0 == 0 {
                let path: String = names.iter().rev().flat_map(|n: &String| ["/", n]).collect();
                return Ok(Some(if path.is_empty() { "/".to_owned() } else { path }));
            }
            let text = self.pointer(at.wrapping_add(name), WHAT)?;
            let name = self.string(text, NAME_LIMIT, WHAT)?;
            len += name.len() + 1;
            names.push(name);
            at = up;
        }
        Err(KernelError::Torn { what: WHAT, at, why: "it is nested too deeply" })
    }
}
