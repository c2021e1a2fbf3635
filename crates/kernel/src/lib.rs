//! A Linux kernel seen from outside: found in guest RAM, typed by its own BTF, walked structure by
//! structure. It knows what is there and nothing of what is private.
//!
//! [`Kernel::open`] finds the kernel, then each subsystem has its own file with its layout (members
//! asked for by name) and its walk. Everything read is the guest's word: bounded, checked, and an
//! error where it contradicts itself.

pub mod btf;
pub mod kallsyms;

mod aio;
mod batches;
mod bpf_maps;
mod buddy;
mod calls;
mod cgroup;
mod command_line;
mod compressed;
mod content;
#[cfg(test)]
mod corpus;
mod cpus;
mod error;
mod event_files;
mod file_systems;
mod files;
mod folios;
mod fpu;
mod frames;
mod given_back;
mod hugetlb;
mod idle_stacks;
mod io_uring;
mod irq_work;
mod keys;
mod layout;
mod le;
mod list;
mod locate;
mod log;
mod maple;
mod marks;
mod memory_groups;
mod message_queues;
mod names;
mod notifications;
mod orc;
mod page;
mod page_cache;
mod paths;
mod pcp;
mod per_cpu_memory;
mod perf;
mod pipes;
mod profile;
mod pte;
mod queued_signals;
mod screens;
mod secret_memory;
mod signal;
mod skb;
mod slab;
mod sockets;
mod stacks;
mod swap;
mod symbols;
mod system_v;
mod tasks;
mod terminals;
mod ties;
mod tree;
mod unmap;
mod unwind;
mod view;
mod vmas;
mod xarray;

pub use calls::{Call, CallCopy};
pub use content::Content;
pub use cpus::{Cpu, FpuOwner};
pub use error::KernelError;
pub use file_systems::{CacheForm, CachedFile, FileSystem};
pub use files::{FileKind, OpenFile};
pub use folios::{Folio, FolioState};
pub use fpu::FpuArea;
pub use frames::{Census, FrameKind, FrameOwner, FrameScan, Fresh, Slabs, Unmapped};
pub use irq_work::SignalWork;
pub use keys::KeySet;
pub use log::{Log, LogRecord};
pub use page::{Page, PageKind};
pub use profile::{Profile, ProfileCache};
pub use pte::{Entry, Pte};
pub use skb::Packets;
pub use slab::FreeObject;
pub use sockets::{Socket, TcpTable, UdpEnd};
pub use stacks::{SavedRegisters, Stack};
pub use swap::{SwapArea, SwapSlot};
pub use system_v::{IpcUsers, MessageQueue, SharedSegment};
pub use tasks::{Process, Thread};
pub use ties::{Tie, Tied};
pub use unmap::Unmapping;
pub use view::{Kernel, WordEdit};
pub use vmas::{Mm, Vma};
