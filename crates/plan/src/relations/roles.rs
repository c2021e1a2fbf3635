//! The services that everybody talks to, told by the names of their sockets.

use super::Role;

/// What a process is that has a connected socket, or one for datagrams, bound to this name.
pub(super) fn role_by_address(address: &str) -> Option<Role> {
    let path = address.strip_prefix("/var").filter(|rest| rest.starts_with("/run/")).unwrap_or(address);
    let is_user_bus = path.strip_prefix("/run/user/").is_some_and(|rest| rest.ends_with("/bus"));
    if path == "/dev/log" || path.starts_with("/run/systemd/journal/") {
        Some(Role::LogDaemon)
    } else if path == "/run/dbus/system_bus_socket" || is_user_bus {
        Some(Role::Bus)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_told_by_their_sockets() {
        for (address, role) in [
            ("/dev/log", Some(Role::LogDaemon)),
            ("/run/systemd/journal/stdout", Some(Role::LogDaemon)),
            ("/run/systemd/journal/dev-log", Some(Role::LogDaemon)),
            ("/run/dbus/system_bus_socket", Some(Role::Bus)),
            ("/var/run/dbus/system_bus_socket", Some(Role::Bus)),
            ("/run/user/1000/bus", Some(Role::Bus)),
            ("/run/systemd/notify", None),
            ("/run/postgresql/.s.PGSQL.5432", None),
            ("@/org/kernel/udev/monitor", None),
        ] {
            assert_eq!(role_by_address(address), role, "{address}");
        }
    }
}
