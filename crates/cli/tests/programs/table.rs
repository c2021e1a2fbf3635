//! The programs: how each gets a secret, what is left out with it, and how it shows that it serves.

use super::forms::Form;

/// A program in the guest.
pub(crate) struct Program {
    pub(crate) name: &'static str,
    /// Starts it with its secret in it.
    pub(crate) plant: &'static str,
    /// How it keeps its secret; in the first form for sure.
    pub(crate) forms: &'static [Form],
    /// What is left out; a command in `$( )` is run by the guest.
    pub(crate) selection: &'static [&'static str],
    /// Succeeds while it serves.
    pub(crate) serves: &'static str,
    /// Brings it back after it was left out.
    pub(crate) start: &'static str,
}

/// What the programs come with.
pub(crate) const PACKAGES: [&str; 14] = [
    "nginx-light",
    "openssl",
    "openssh-server",
    "openssh-client",
    "gpg",
    "gpg-agent",
    "postgresql",
    "redis-server",
    "python3-minimal",
    "vim",
    "tmux",
    "podman",
    "crun",
    "lsof",
];

pub(crate) const PROGRAMS: [Program; 11] = [
    Program {
        name: "redis",
        plant: include_str!("redis.sh"),
        forms: &[Form::Plain],
        selection: &["unit=redis-server.service"],
        serves: "redis-cli ping | grep PONG",
        start: "systemctl start redis-server",
    },
    Program {
        name: "nginx",
        plant: include_str!("nginx.sh"),
        forms: &[Form::Number, Form::Pem],
        selection: &["unit=nginx.service", "file=/etc/nginx/tls/*"],
        serves: "echo | openssl s_client -connect 127.0.0.1:443 2>&1 | grep 'CN = guest'",
        start: "systemctl start nginx",
    },
    Program {
        name: "postgres",
        plant: include_str!("postgres.sh"),
        forms: &[Form::Plain],
        selection: &["unit=postgresql@*.service", "file=/var/lib/postgresql/**"],
        serves: "runuser -u postgres -- psql -tc 'select 1' | grep 1",
        start: "systemctl start postgresql@15-main",
    },
    Program {
        name: "sshd",
        plant: include_str!("sshd.sh"),
        forms: &[Form::Plain],
        selection: &["unit=ssh-client.service", "unit=session-*.scope"],
        serves: "nc 127.0.0.1 22 < /dev/null | grep SSH-2.0",
        start: "rm /home/user/*; systemctl start ssh-client; until [ -e /home/user/typed ]; do sleep 1; done",
    },
    Program {
        name: "ssh-agent",
        plant: include_str!("ssh-agent.sh"),
        forms: &[Form::Plain],
        selection: &["comm=ssh-agent"],
        serves: "SSH_AUTH_SOCK=/run/agent.sock ssh-add -l > /dev/null || [ $? = 1 ]",
        start: "systemctl start agent; sleep 2",
    },
    Program {
        name: "gpg",
        plant: include_str!("gpg.sh"),
        forms: &[Form::Plain],
        selection: &["cgroup=/system.slice/gpg-agent.service"],
        serves: "GNUPGHOME=/root/gpg gpg-connect-agent --no-autostart 'getinfo pid' /bye | grep OK",
        start: "systemctl start gpg-agent",
    },
    Program {
        name: "python",
        plant: include_str!("python.sh"),
        forms: &[Form::Plain],
        selection: &["exe=/usr/bin/python3*"],
        serves: "nc 127.0.0.1 8000 < /dev/null | grep bytes",
        start: "systemctl start python; until nc 127.0.0.1 8000 < /dev/null; do sleep 1; done",
    },
    Program {
        name: "vim",
        plant: include_str!("vim.sh"),
        forms: &[Form::Plain],
        selection: &["tty=tty3"],
        serves: "systemctl is-active vim",
        start: "systemctl start vim",
    },
    Program {
        name: "tmux",
        plant: include_str!("tmux.sh"),
        forms: &[Form::TmuxCells, Form::Plain],
        selection: &["unit=tmux.service"],
        serves: "tmux list-sessions",
        start: "systemctl start tmux",
    },
    Program {
        name: "podman",
        plant: include_str!("podman.sh"),
        forms: &[Form::Plain],
        selection: &["container=$(podman ps -q --no-trunc)"],
        serves: "podman ps | grep box",
        start: "podman start box",
    },
    Program {
        name: "journal",
        plant: include_str!("journal.sh"),
        forms: &[Form::Plain],
        selection: &["unit=logger.service", "unit=systemd-journald.service", "file=/var/log/journal/**"],
        serves: "systemctl is-active logger && logger -t probe again && journalctl --sync && journalctl -t probe | grep again",
        start: "systemctl start logger",
    },
];
