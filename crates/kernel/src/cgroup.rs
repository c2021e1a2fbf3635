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
    /// Path of the task's cgroup v2, `/` for the root; `None` on a kernel without cgroups.
    pub(crate) fn cgroup_path(&self, task: Gva) -> Result<Option<String>, KernelError> {
        let layout = &self.profile.cgroup;
        let (Some(cgroups), Some(default)) = (layout.cgroups, layout.default_cgroup) else { return Ok(None) };
        let css_set = self.pointer(task.wrapping_add(cgroups), WHAT)?;
        let cgroup = self.pointer(css_set.wrapping_add(default), WHAT)?;
        if cgroup.0 == 0 { Ok(None) } else { self.path_of_cgroup(cgroup) }
    }

    /// Path of a `struct cgroup` in its hierarchy.
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
