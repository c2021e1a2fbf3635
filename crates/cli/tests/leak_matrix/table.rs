//! The channels of the matrix: a line for each.

/// One channel.
pub(crate) struct Channel {
    /// Its name, also as a place of the actor.
    pub(crate) name: &'static str,
    /// Whether the kernel has freed it already: it is nobody's, and is left out of every image.
    pub(crate) freed: bool,
    /// Whether the kernel keeps it 8 bytes at a time: the control counts those.
    pub(crate) pieces: bool,
    /// Why a process that has ended leaves nothing there to look for, or why it is not looked for.
    pub(crate) not_ended: Option<&'static str>,
    /// A kernel that does not have it, and why.
    not_on: Option<(&'static str, &'static str)>,
}

const fn held(name: &'static str) -> Channel {
    Channel { name, freed: false, pieces: false, not_ended: None, not_on: None }
}

const fn freed(name: &'static str) -> Channel {
    Channel { name, freed: true, pieces: false, not_ended: None, not_on: None }
}

/// One that a process leaves behind, or of which nothing is looked for when it has ended.
const fn alive(name: &'static str, reason: &'static str) -> Channel {
    Channel { name, freed: false, pieces: false, not_ended: Some(reason), not_on: None }
}

impl Channel {
    /// The same, kept 8 bytes at a time.
    const fn in_pieces(self) -> Self {
        Self { pieces: true, ..self }
    }

    /// The same, which 5.10 does not have.
    const fn not_on_5_10(self, reason: &'static str) -> Self {
        Self { not_on: Some(("5.10", reason)), ..self }
    }

    /// Why a kernel does not have it, if it does not.
    pub(crate) fn absent_from(&self, kernel: &str) -> Option<&'static str> {
        self.not_on.filter(|(name, _)| *name == kernel).map(|(_, reason)| reason)
    }
}

/// On 6.12 for seconds, and on 7.x until there are enough of them.
const GRACE_PERIOD: &str =
    "the kernel frees it some time after its process, and until then readers may look at it";

/// All of them.
pub(crate) const CHANNELS: &[Channel] = &[
    held("heap=1M"),
    held("stack"),
    held("thp"),
    held("thp-rest"),
    held("shm"),
    held("memfd"),
    held("hugetlb"),
    held("secretmem").not_on_5_10("memfd_secret() came with 5.14"),
    held("secretmem-open").not_on_5_10("memfd_secret() came with 5.14"),
    held("cow"),
    held("pipe-unread"),
    held("pipe-read"),
    held("vmsplice-unmapped"),
    held("unix-stream-unread"),
    freed("unix-stream-read"),
    held("unix-dgram-unread"),
    alive("unix-dgram-sent", "a message belongs to its receiver when its sender has ended"),
    held("unix-seqpacket-unread"),
    held("unix-abstract-name"),
    held("unix-scm-inflight"),
    held("udp-unread"),
    freed("udp-read"),
    held("tcp-unread"),
    freed("tcp-read"),
    held("tcp-32k"),
    held("tcp-unsent"),
    held("tcp-backlog-accept"),
    held("tcp-fragment"),
    alive("udp-sent", "a datagram belongs to its receiver when its sender has ended"),
    held("tcp6-unread"),
    held("udp6-unread"),
    held("tcp-in-namespace"),
    held("mptcp-backlog-accept").not_on_5_10("Debian's has no MPTCP"),
    held("packet-unread"),
    held("packet-ring"),
    held("netlink"),
    held("tty-pty-unread"),
    held("tty-pty-output"),
    held("tty-pty-echo"),
    alive("tty-vt-text", "a screen stays as it is when its process ends"),
    alive("tty-serial", "the guests have two spare serial ports: one for each process that lives"),
    alive("sysv-msg", "a queue is named by no process that lives: see the hazards"),
    alive("posix-mq", "a queue with a name is a file that outlives its process"),
    alive("sysv-shm-detached", "a segment outlives its process"),
    alive(
        "key-user",
        "a key is freed some time after its process, and until then held by nothing that is followed",
    ),
    alive("kmsg", "one copy was seen in a slab after the end, and not traced yet"),
    held("call-open"),
    held("call-msgsnd"),
    held("call-send"),
    held("call-connect"),
    held("io-uring"),
    held("io-uring-unmapped"),
    held("io-uring-requests").in_pieces(),
    held("aio-ring"),
    held("aio-requests").in_pieces(),
    alive("epoll", GRACE_PERIOD).in_pieces(),
    held("eventfd").in_pieces(),
    held("inotify"),
    held("fanotify")
        .not_on_5_10("its file systems in memory have no identity to report events by; they got one in 5.13"),
    held("signal-queued").in_pieces(), // a free one has a pointer in the middle
    alive("posix-timer", GRACE_PERIOD).in_pieces(),
    held("name-deleted"),
    freed("name-negative").not_on_5_10(
        "its kernfs keeps no names of files that do not exist, and the guest has no file system that does",
    ),
    held("bpf-array"),
    held("bpf-cpus"),
    held("bpf-hash"),
    held("bpf-queue"),
    held("perf-records"),
    freed("freed-msg"),
    freed("freed-unix"),
    freed("freed-xattr"),
    freed("freed-fpu"),
    freed("freed-stack"),
];

/// What is known to exist and is in no guest of the matrix.
pub(crate) const NOT_EXERCISED: &[(&str, &str)] = &[
    ("AF_ALG, kTLS, MPTCP connections, vsock", "not walked: a process that has such a socket is refused"),
    ("virtio and network card leftovers", "the guests have neither; their device state is opaque"),
    ("zram, zswap", "modules that the guests do not have"),
];
