//! apt with a state and cache of its own: nothing on the machine is changed, and signatures are
//! checked against the machine's keyrings as always.

use crate::error::{Context, Error, output_of};
use std::cmp::Ordering;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A private apt.
pub(crate) struct Apt {
    folder: PathBuf,
}

/// One package as apt's index describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) depends: String,
}

impl Apt {
    /// Prepares an apt in `folder` that knows only `sources`, and fetches its indexes.
    pub(crate) fn new(folder: &Path, sources: &str) -> Result<Self, Error> {
        for sub in ["state/lists/partial", "cache/archives/partial", "empty"] {
            let sub = folder.join(sub);
            std::fs::create_dir_all(&sub).context("create", &sub)?;
        }
        let list = folder.join("chosen.sources");
        std::fs::write(&list, sources).context("write", &list)?;
        let apt = Self { folder: folder.to_path_buf() };
        output_of(apt.command("apt-get").arg("update"))?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let at = |name: &str| self.folder.join(name).display().to_string();
        let mut command = Command::new(program);
        command.env("LC_ALL", "C");
        for option in [
            format!("Dir::State={}", at("state")),
            "Dir::State::status=/dev/null".to_owned(),
            format!("Dir::Cache={}", at("cache")),
            format!("Dir::Etc::sourcelist={}", at("chosen.sources")),
            format!("Dir::Etc::sourceparts={}", at("empty")),
            "Dir::Etc::preferences=/dev/null".to_owned(),
            format!("Dir::Etc::preferencesparts={}", at("empty")),
            "APT::Architecture=amd64".to_owned(),
            "APT::Architectures=amd64".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
            "APT::Update::Error-Mode=any".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::Retries=3".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            "Acquire::IndexTargets::deb::CNF::DefaultEnabled=false".to_owned(),
            "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        command
    }

    /// Every version on offer of a package; empty if there is none.
    pub(crate) fn show(&self, names: &[String]) -> Result<Vec<Package>, Error> {
        match output_of(self.command("apt-cache").args(["show", "--all-versions"]).args(names)) {
            Ok(text) => Ok(parse_index(&text)),
            Err(Error::Failed { stderr, .. }) if stderr.contains("No packages found") => Ok(Vec::new()),
            Err(e) => Err(e),
        }
    }

    /// Names that match a regular expression.
    pub(crate) fn names(&self, pattern: &str) -> Result<Vec<String>, Error> {
        let text = output_of(self.command("apt-cache").args(["search", "--names-only", pattern]))?;
        Ok(text.lines().filter_map(|l| l.split(' ').next()).map(str::to_owned).collect())
    }

    /// Downloads a package and unpacks it into `folder` without installing it.
    pub(crate) fn unpack(&self, package: &Package, folder: &Path) -> Result<(), Error> {
        let downloads = self.folder.join("downloads");
        let _ = std::fs::remove_dir_all(&downloads);
        std::fs::create_dir_all(&downloads).context("create", &downloads)?;
        let wanted = format!("{}={}", package.name, package.version);
        output_of(self.command("apt-get").args(["download", &wanted]).current_dir(&downloads))?;
        let entries = std::fs::read_dir(&downloads).context("list", &downloads)?;
        for file in entries.flatten().map(|e| e.path()) {
            output_of(Command::new("dpkg-deb").arg("-x").arg(&file).arg(folder))?;
        }
        let _ = std::fs::remove_dir_all(&downloads);
        Ok(())
    }
}

/// The package with the highest version.
pub(crate) fn newest(packages: Vec<Package>) -> Option<Package> {
    packages.into_iter().max_by(|a, b| compare_versions(&a.version, &b.version))
}

fn compare_versions(a: &str, b: &str) -> Ordering {
    let is = |relation: &str| {
        Command::new("dpkg").args(["--compare-versions", a, relation, b]).status().is_ok_and(|s| s.success())
    };
    if is("lt") {
        Ordering::Less
    } else if is("gt") {
        Ordering::Greater
    } else {
        Ordering::Equal
    }
}

fn parse_index(text: &str) -> Vec<Package> {
    let mut packages = vec![Package::default()];
    for line in text.lines() {
        if line.is_empty() {
            packages.push(Package::default());
        }
        let (Some((name, value)), Some(package)) = (line.split_once(": "), packages.last_mut()) else {
            continue;
        };
        match name {
            "Package" => package.name = value.to_owned(),
            "Version" => package.version = value.to_owned(),
            "Depends" => package.depends = value.to_owned(),
            _ => {}
        }
    }
    packages.retain(|p| !p.name.is_empty() && !p.version.is_empty());
    packages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_read_and_its_newest_version_chosen() {
        let text = "Package: k\nVersion: 6.1.9-1\nDepends: a (= 1), b\nDescription: x\n y: z\n\n\
            Package: k\nVersion: 6.1.10-1\nDepends: c\n\n";
        let packages = parse_index(text);
        assert_eq!(packages.len(), 2);
        assert_eq!(packages[0].depends, "a (= 1), b");
        assert_eq!(newest(packages).unwrap().version, "6.1.10-1", "versions are not compared as text");
    }
}
