//! A container, told by the cgroups that container runtimes make.
//!
//! | cgroup | made by | names |
//! |---|---|---|
//! | `docker-ID.scope`, `/docker/ID` | Docker | ID |
//! | `libpod-ID.scope`, `libpod-ID.scope/container`, `/libpod_parent/libpod-ID` | Podman | ID |
//! | `cri-containerd-ID.scope`, `crio-ID.scope`, `/kubepods/.../podUID/ID` | Kubernetes, by containerd or CRI-O | ID |
//! | `kubepods-besteffort-podUID.slice`, `/kubepods/besteffort/podUID` | Kubernetes, a pod | `podUID` |
//! | `lxc.payload.NAME`, `/lxc/NAME` | LXC, Incus | NAME |
//! | `/machine.slice/machine-NAME.scope`, `systemd-nspawn@NAME.service` | systemd-machined | NAME |
//! | `/elision.slice/NAME` | the guest agent of Elision | NAME |
//!
//! An ID has 64 hexadecimal digits; the first 12 or more of them are enough. The name that Docker and Podman give a
//! container stands in files only, so `docker inspect -f '{{.Id}}' NAME` tells what to write. `libpod-conmon-ID.scope` and its like
//! hold the container's monitor, which outlives it to clean up, and are not of the container.

/// Hexadecimal digits of a whole id.
const ID_DIGITS: usize = 64;
/// What the tools print as the short form of an id.
const SHORT_ID_DIGITS: usize = 12;

/// A container, by id or by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container(String);

impl Container {
    pub(crate) fn new(pattern: &str) -> Self {
        Self(pattern.to_owned())
    }

    /// Whether a cgroup is one of this container.
    #[must_use]
    pub fn holds(&self, cgroup: &str) -> bool {
        let mut above = "";
        cgroup.split('/').filter(|name| !name.is_empty()).any(|name| {
            let is_this = self.is_id_in(name) || name_of(name, above).is_some_and(|n| self.is_name(&n));
            above = name;
            is_this
        })
    }

    /// The id or name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn is_name(&self, name: &str) -> bool {
        !name.is_empty() && name == self.0
    }

    fn is_id_in(&self, component: &str) -> bool {
        let is_long_enough = self.0.len() >= SHORT_ID_DIGITS;
        is_long_enough && id_of(component).is_some_and(|id| id.starts_with(&self.0.to_ascii_lowercase()))
    }
}

/// The id in `ID`, `RUNTIME-ID` or `RUNTIME-ID.scope`.
fn id_of(component: &str) -> Option<&str> {
    let name = component.strip_suffix(".scope").unwrap_or(component);
    let (runtime, id) = name.rsplit_once('-').unwrap_or(("", name));
    let is_id = id.len() == ID_DIGITS && id.bytes().all(|b| b.is_ascii_hexdigit());
    (is_id && !runtime.ends_with("conmon")).then_some(id)
}

/// The name that a component gives to what is below it.
fn name_of(component: &str, above: &str) -> Option<String> {
    let between = |start, end| component.strip_prefix(start).and_then(|c| c.strip_suffix(end));
    if let Some((_, pod)) = between("kubepods", ".slice").and_then(|pod| pod.rsplit_once("-pod")) {
        return Some(format!("pod{}", pod.replace('_', "-"))); // `-` parts the names of slices
    }
    if let Some(machine) = between("machine-", ".scope").or_else(|| between("systemd-nspawn@", ".service")) {
        return Some(machine.replace(r"\x2d", "-"));
    }
    if let Some(name) = component.strip_prefix("lxc.payload.") {
        return Some(name.to_owned());
    }
    let is_pod = component.starts_with("pod") && ["kubepods", "besteffort", "burstable"].contains(&above);
    (is_pod || above == "lxc" || above == "elision.slice").then(|| component.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_runtime_s_cgroups_are_known() {
        let id = "0123456789ab".to_owned() + &"c".repeat(52);
        let uid = "8a1b2c3d-0000-1111-2222-333344445555";
        let slice = format!(
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{}.slice",
            uid.replace('-', "_")
        );
        for cgroup in [
            format!("/system.slice/docker-{id}.scope"),
            format!("/docker/{id}"),
            format!("/docker/{id}/init"),
            format!("/machine.slice/libpod-{id}.scope/container"),
            format!("/libpod_parent/libpod-{id}"),
            format!("{slice}/cri-containerd-{id}.scope"),
            format!("{slice}/crio-{id}.scope"),
            format!("/kubepods/besteffort/pod{uid}/{id}"),
        ] {
            for (pattern, expected) in [
                (id.as_str(), true),
                ("0123456789ab", true),
                ("0123456789abcc", true),
                ("0123456789AB", true),
                ("0123456789a", false), // too short to be meant
                ("0123456789abd", false),
                ("docker", false),
            ] {
                assert_eq!(Container::new(pattern).holds(&cgroup), expected, "{pattern} {cgroup}");
            }
            let pod = Container::new(&format!("pod{uid}"));
            assert_eq!(pod.holds(&cgroup), cgroup.contains("kubepods"), "{cgroup}");
        }
    }

    #[test]
    fn names_are_those_of_machines_and_of_lxc() {
        let table = [
            ("web", "/lxc.payload.web/system.slice/nginx.service", true),
            ("web", "/lxc/web", true),
            ("web", "/lxc.monitor.web", false),
            ("my-vm", r"/machine.slice/machine-my\x2dvm.scope", true),
            ("web", "/machine.slice/systemd-nspawn@web.service/payload", true),
            ("vault", "/elision.slice/vault", true),
            ("vault", "/elision.slice/vault/below", true),
            ("below", "/elision.slice/vault/below", false),
            ("vault", "/other.slice/vault", false),
            ("web", "/", false),
        ];
        for (pattern, cgroup, expected) in table {
            assert_eq!(Container::new(pattern).holds(cgroup), expected, "{pattern} {cgroup}");
        }
    }

    #[test]
    fn a_container_s_monitor_is_not_of_it() {
        let id = "a".repeat(64);
        let monitored = format!("/machine.slice/libpod-{id}.scope");
        let monitor = format!("/machine.slice/libpod-conmon-{id}.scope");
        assert!(Container::new(&id).holds(&monitored) && !Container::new(&id).holds(&monitor));
    }
}
