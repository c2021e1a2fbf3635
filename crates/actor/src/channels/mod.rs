//! Channels of the kernel in which a played process's secret can stand: one file for each kind.
//!
//! The process itself never sees the secret, so every copy that lives is the kernel's: a child that ends
//! at once derives it and passes it on.

mod aio;
mod bpf_maps;
mod calls;
mod events;
mod freed;
mod io_uring;
mod keys;
mod lent;
mod log;
mod messages;
mod names;
mod networks;
mod orphans;
mod perf;
mod pipes;
mod secret_memory;
mod signals;
mod sockets;
mod terminals;

use elision_actor::secret::{SECRET_LEN, secret};
use rustix::fd::OwnedFd;
use std::io;

type Stage = fn(&mut Scene) -> io::Result<()>;

/// Every channel, by name.
const CHANNELS: &[(&str, Stage)] = &[
    ("kmsg", log::kmsg),
    ("pipe-unread", pipes::unread),
    ("pipe-read", pipes::read),
    ("vmsplice-unmapped", orphans::vmspliced),
    ("unix-stream-unread", sockets::unix_stream_unread),
    ("unix-stream-read", sockets::unix_stream_read),
    ("unix-dgram-unread", sockets::unix_dgram_unread),
    ("unix-dgram-sent", sockets::unix_dgram_sent),
    ("unix-seqpacket-unread", sockets::unix_seqpacket_unread),
    ("unix-abstract-name", sockets::unix_abstract_name),
    ("unix-scm-inflight", sockets::unix_scm_inflight),
    ("udp-unread", sockets::udp_unread),
    ("udp-read", sockets::udp_read),
    ("tcp-unread", sockets::tcp_unread),
    ("tcp-read", sockets::tcp_read),
    ("tcp-32k", sockets::tcp_32k),
    ("tcp-unsent", sockets::tcp_unsent),
    ("tcp-backlog-accept", sockets::tcp_backlog_accept),
    ("tcp-fragment", sockets::tcp_fragment),
    ("tcp-sent", sockets::tcp_sent),
    ("tcp-shared", sockets::tcp_shared),
    ("udp-sent", sockets::udp_sent),
    ("tcp6-unread", networks::tcp6),
    ("udp6-unread", networks::udp6),
    ("tcp-in-namespace", networks::namespace),
    ("packet-unread", networks::packets),
    ("packet-ring", networks::ring),
    ("mptcp-backlog-accept", networks::mptcp_backlog),
    ("mptcp", networks::mptcp),
    ("af-alg", networks::cryptography),
    ("tls", networks::tls),
    ("netlink", sockets::netlink),
    ("socket-server", sockets::server),
    ("tty-pty-unread", terminals::pty_unread),
    ("tty-pty-output", terminals::pty_output),
    ("tty-pty-echo", terminals::pty_echo),
    ("tty-vt-text", terminals::vt_text),
    ("tty-serial", terminals::serial),
    ("sysv-msg", messages::system_v),
    ("posix-mq", messages::posix),
    ("sysv-shm-detached", messages::detached),
    ("key-user", keys::user),
    ("call-open", calls::open),
    ("call-msgsnd", calls::send_message),
    ("call-send", calls::send_datagram),
    ("call-connect", calls::connect),
    ("io-uring", io_uring::mapped),
    ("io-uring-unmapped", io_uring::unmapped),
    ("io-uring-requests", io_uring::requests),
    ("aio-ring", aio::ring),
    ("aio-requests", aio::requests),
    ("epoll", events::epoll),
    ("eventfd", events::numbers_unread),
    ("inotify", events::inotify),
    ("fanotify", events::fanotify),
    ("signal-queued", signals::queued),
    ("posix-timer", signals::timers),
    ("name-deleted", names::deleted),
    ("name-negative", names::negative),
    ("bpf-array", bpf_maps::array),
    ("bpf-cpus", bpf_maps::of_cpus),
    ("bpf-hash", bpf_maps::hashes),
    ("bpf-queue", bpf_maps::queue),
    ("perf-records", perf::mapped),
    ("secretmem", secret_memory::mapped),
    ("secretmem-open", secret_memory::open),
    ("freed-msg", freed::messages),
    ("freed-unix", freed::datagrams),
    ("freed-xattr", freed::attributes),
    ("freed-fpu", freed::registers),
    ("freed-stack", freed::stacks),
];

/// A channel being filled, and what keeps it there.
pub(crate) struct Scene<'a> {
    pub(crate) label: &'a str,
    pub(crate) seed: &'a str,
    held: &'a mut Vec<OwnedFd>,
}

/// Fills a channel. `None` if there is none of that name.
pub(crate) fn fill(name: &str, label: &str, seed: &str, held: &mut Vec<OwnedFd>) -> Option<io::Result<()>> {
    let (_, stage) = CHANNELS.iter().find(|(n, _)| *n == name)?;
    Some(stage(&mut Scene { label, seed, held }))
}

impl Scene<'_> {
    /// Runs `act` in a child that knows the secret; the child must succeed.
    pub(crate) fn whisper(&self, act: impl FnOnce(&[u8; SECRET_LEN]) -> io::Result<()>) -> io::Result<()> {
        // SAFETY: played processes have one thread while they plant, and the child ends without returning.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                let done = act(&secret(self.seed, self.label));
                if let Err(error) = &done {
                    eprintln!("{}: {error}", self.label);
                }
                // SAFETY: ends this process at once.
                unsafe { libc::_exit(i32::from(done.is_err())) }
            }
            child => {
                let pid = rustix::process::Pid::from_raw(child);
                let status = rustix::process::waitpid(pid, rustix::process::WaitOptions::empty())?;
                match status {
                    Some((_, status)) if status.exit_status() == Some(0) => Ok(()),
                    _ => Err(io::Error::other("the child that knows the secret failed")),
                }
            }
        }
    }

    /// Keeps a descriptor open as long as the process lives.
    pub(crate) fn hold(&mut self, fd: impl Into<OwnedFd>) {
        self.held.push(fd.into());
    }
}
