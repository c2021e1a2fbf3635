//! The kernel symbols that the walkers ask for.
//!
//! Addresses inside the image are kept relative to its base, so that one profile serves every boot
//! of a kernel with address space randomisation; per-CPU symbols of older kernels are small
//! numbers and kept as they are.

use crate::KernelError;
use crate::kallsyms::Kallsyms;
use elision_memory::Gva;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Every symbol looked up anywhere in this crate. Which of them a kernel must have is decided
/// where they are used.
const WANTED: &[&str] = &[
    "__per_cpu_offset",
    "__start_orc_unwind",
    "__start_orc_unwind_ip",
    "__stop_orc_unwind_ip",
    "anon_pipe_buf_ops",
    "asm_sysvec_irq_work",
    "bpf_map_fops",
    "cached_stacks",
    "con_ops",
    "console_fops",
    "contig_page_data",
    "cpu_fbatches",
    "current_task",
    "do_bpf_send_signal",
    "do_syscall_64",
    "entry_stack_storage",
    "eventfd_fops",
    "eventpoll_fops",
    "exception_stacks",
    "fanotify_fops",
    "fpu_fpregs_owner_ctx",
    "gdt_page",
    "hardirq_stack_inuse",
    "hardirq_stack_ptr",
    "hstates",
    "hugetlb_max_hstate",
    "hugetlbfs_aops",
    "hugetlbfs_file_operations",
    "hung_up_tty_fops",
    "hvc_ops",
    "idt_table",
    "in_kernel_fpu",
    "init_on_alloc",
    "init_task",
    "init_top_pgt",
    "init_user_ns",
    "inotify_fops",
    "io_uring_fops",
    "kernel_fpu_allowed",
    "key_type_keyring",
    "key_type_logon",
    "key_type_user",
    "kiocb_cachep",
    "lazy_list",
    "lru_pvecs",
    "lru_rotate",
    "mlock_fbatch",
    "modules",
    "mqueue_file_operations",
    "n_tty_ops",
    "net_hotdata",
    "node_data",
    "nr_cpu_ids",
    "nr_node_ids",
    "nr_swapfiles",
    "page_cache_pipe_buf_ops",
    "page_offset_base",
    "pcpu_chunk_lists",
    "pcpu_hot",
    "pcpu_nr_slots",
    "pcpu_unit_offsets",
    "perf_fops",
    "prb",
    "ptmx_fops",
    "ram_aops",
    "randomize_kstack_offset",
    "req_cachep",
    "runqueues",
    "secretmem_aops",
    "shmem_aops",
    "signal_wake_up_state",
    "slab_caches",
    "socket_file_ops",
    "softnet_data",
    "super_blocks",
    "swap_info",
    "task_struct_cachep",
    "tcp_hashinfo",
    "tty_fops",
    "uart_ops",
    "vc_sel",
    "vmemmap_base",
    "zswap_stored_pages",
];

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Place {
    Image(u64),
    Absolute(u64),
}

/// The symbols of one kernel build.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Symbols(BTreeMap<String, Place>);

impl Symbols {
    pub(crate) fn collect(kallsyms: &Kallsyms, base: Gva) -> Self {
        let place = |at: Gva| match at.0.checked_sub(base.0) {
            Some(offset) => Place::Image(offset),
            None => Place::Absolute(at.0),
        };
        let found = WANTED.iter().filter_map(|name| {
            let at = kallsyms.address(name)?;
            Some(((*name).to_owned(), place(at)))
        });
        Self(found.collect())
    }

    pub(crate) fn get(&self, name: &'static str, base: Gva) -> Option<Gva> {
        debug_assert!(WANTED.contains(&name), "{name} is not collected");
        Some(match self.0.get(name)? {
            Place::Image(offset) => base.wrapping_add(*offset),
            Place::Absolute(at) => Gva(*at),
        })
    }

    pub(crate) fn require(&self, name: &'static str, base: Gva) -> Result<Gva, KernelError> {
        self.get(name, base).ok_or(KernelError::NoSymbol(name))
    }
}
