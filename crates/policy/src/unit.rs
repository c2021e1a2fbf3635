//! A systemd unit, told by the cgroups that systemd makes for its units.
//!
//! ```text
//! /system.slice/nginx.service                                         nginx.service, system.slice
//! /system.slice/system-getty.slice/getty@tty1.service                 getty@tty1.service, system-getty.slice, ...
//! /user.slice/user-1000.slice/user@1000.service/app.slice/foo.service foo.service, app.slice, user@1000.service, ...
//! ```

use crate::PathGlob;
use std::borrow::Cow;

/// The kinds of unit that have processes.
const SUFFIXES: [&str; 6] = [".service", ".scope", ".slice", ".socket", ".mount", ".swap"];

const SERVICE: &str = ".service";
/// The service that starts a user's services.
const USER_MANAGER: &str = "user@";

/// A systemd unit, or a glob over names of units.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit(PathGlob);

impl Unit {
    /// `nginx` means `nginx.service`, as it does for `systemctl`.
    pub(crate) fn full_name(pattern: &str) -> Cow<'_, str> {
        let is_whole = SUFFIXES.iter().any(|suffix| pattern.ends_with(suffix));
        if is_whole || pattern.contains(['*', '?', '[', '{']) {
            Cow::Borrowed(pattern)
        } else {
            Cow::Owned(format!("{pattern}.service"))
        }
    }

    pub(crate) fn new(glob: PathGlob) -> Self {
        Self(glob)
    }

    /// Whether a cgroup is that of this unit, or one below it.
    #[must_use]
    pub fn holds(&self, cgroup: &str) -> bool {
        cgroup.split('/').filter(|name| !name.is_empty()).any(|name| {
            // systemd puts a `_` before names that would be mistaken for files of the kernel.
            self.is(name) || name.strip_prefix('_').is_some_and(|name| self.is(name))
        })
    }

    /// The service of the guest's first service manager that a cgroup of this unit is in. None of a user's: those have a
    /// manager of their own.
    #[must_use]
    pub fn service_of<'a>(&self, cgroup: &'a str) -> Option<&'a str> {
        let name = cgroup.split('/').find(|name| name.ends_with(SERVICE))?;
        // systemd puts a `_` before names that would be mistaken for files of the kernel; no unit's name begins so.
        let name = name.strip_prefix('_').unwrap_or(name);
        (self.holds(cgroup) && !name.starts_with(USER_MANAGER)).then_some(name)
    }

    /// Names of units may hold a `\` (`a\x2db.service`), which a glob takes for its own.
    fn is(&self, name: &str) -> bool {
        name == self.as_str() || self.0.matches(name)
    }

    /// The pattern.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

#[cfg(test)]
mod tests {
    use crate::Selector;

    fn unit_of(name: &str) -> super::Unit {
        match format!("unit={name}").parse::<Selector>().unwrap().criterion {
            crate::Criterion::Unit(unit) => unit,
            other => panic!("{other:?}"),
        }
    }

    fn holds(unit: &str, cgroup: &str) -> bool {
        unit_of(unit).holds(cgroup)
    }

    #[test]
    fn a_service_is_told_by_its_cgroup() {
        let table = [
            ("nginx", "/system.slice/nginx.service", Some("nginx.service")),
            ("nginx", "/system.slice/nginx.service/worker", Some("nginx.service")),
            ("system.slice", "/system.slice/nginx.service", Some("nginx.service")),
            ("memory", "/system.slice/_memory.service", Some("memory.service")),
            (r"a\x2db", r"/system.slice/a\x2db.service", Some(r"a\x2db.service")),
            ("nginx", "/system.slice/redis.service", None),
            ("session-2.scope", "/user.slice/user-1000.slice/session-2.scope", None),
            ("foo", "/user.slice/user-1000.slice/user@1000.service/app.slice/foo.service", None),
        ];
        for (unit, cgroup, expected) in table {
            assert_eq!(unit_of(unit).service_of(cgroup), expected, "{unit} {cgroup}");
        }
    }

    #[test]
    fn a_unit_holds_its_cgroup_and_those_below() {
        let user = "/user.slice/user-1000.slice/user@1000.service/app.slice/foo.service";
        let table = [
            ("nginx.service", "/system.slice/nginx.service", true),
            ("nginx", "/system.slice/nginx.service", true),
            ("nginx", "/system.slice/nginx.service/worker", true),
            ("ngin*", "/system.slice/nginx.service", true),
            ("nginx.service", "/system.slice/nginx.service.d", false),
            ("nginx.service", "/nginx.service-like/other", false),
            ("system.slice", "/system.slice/nginx.service", true),
            ("getty@*.service", "/system.slice/system-getty.slice/getty@tty1.service", true),
            ("session-2.scope", "/user.slice/user-1000.slice/session-2.scope", true),
            ("user@1000.service", user, true),
            ("foo", user, true),
            ("app.slice", user, true),
            ("user-1000", user, false),
            ("memory.service", "/system.slice/_memory.service", true),
            (r"a\x2db.service", r"/system.slice/a\x2db.service", true),
            ("*", "/", false),
        ];
        for (unit, cgroup, expected) in table {
            assert_eq!(holds(unit, cgroup), expected, "{unit} {cgroup}");
        }
    }
}
