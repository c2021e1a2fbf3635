//! The memory of NUMA nodes in a QEMU command.
//!
//! ```text
//! -numa node,nodeid=0,cpus=0-1,memdev=ID     each node's memory is a backend of its own
//! -numa node,mem=SIZE                        old form, QEMU's own division of one backend: not supported
//! ```
//! QEMU puts the backends one after the other, by the nodes' numbers.

use super::options::{Keys, QemuCommand, bad};
use crate::error::Result;

/// The ids of the memory backends of a command's NUMA nodes; none where the command cannot be read.
pub(crate) fn node_backends(command: &[String]) -> Vec<String> {
    QemuCommand::parse(command).and_then(|command| command.node_backends()).unwrap_or_default()
}

impl QemuCommand {
    /// The ids of the memory backends of NUMA nodes, in the order in which the command has them.
    pub(crate) fn node_backends(&self) -> Result<Vec<String>> {
        let mut ids = vec![];
        for keys in self.values(&["numa"]).map(|v| Keys::parse(v, "type")) {
            if keys.get("mem").is_some() {
                return Err(bad(
                    "RAM that QEMU divides among NUMA nodes by itself (-numa node,mem=SIZE) is not \
                     supported: give each node a memory backend (memdev=ID)",
                ));
            }
            ids.extend(keys.get("memdev").map(String::from));
        }
        Ok(ids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_nodes_with_memory_count() {
        let of = |text: &str| {
            let words: Vec<String> = text.split_whitespace().map(String::from).collect();
            node_backends(&words)
        };
        let two = "qemu -m 2G -numa node,nodeid=1,memdev=b -numa node,memdev=a,cpus=0 -numa node,nodeid=2 \
                   -numa dist,src=0,dst=1,val=20 -numa cpu,node-id=0,socket-id=0";
        assert_eq!(of(two), ["b", "a"]);
        assert_eq!(of(r#"qemu -numa {"type":"node","memdev":"a"}"#), ["a"]);
        for none in ["qemu -m 1G", "qemu -numa node,mem=1G", "qemu -m", ""] {
            assert_eq!(of(none), [""; 0], "{none}");
        }
    }
}
