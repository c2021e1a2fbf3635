//! Everything a user asked for: selectors, and how to save.

use crate::{Criterion, PathGlob, Region, Selector};
use serde::{Deserialize, Serialize};

/// What becomes of the guest's video memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Video {
    /// Blanked when an excluded process has a virtual console.
    #[default]
    Auto,
    /// Kept as it is.
    Keep,
    /// Blanked.
    Blank,
}

/// What becomes of the log of the guest's kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KernelLog {
    /// Lines that excluded processes wrote are cleared.
    #[default]
    Auto,
    /// All of it is cleared.
    Clear,
}

/// What becomes of kept processes that share data with excluded ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dependents {
    /// They stay.
    #[default]
    Keep,
    /// They are left out too, and those that share data with them.
    Exclude,
    /// There is no image if there is one.
    Refuse,
}

/// What becomes of the page cache of files that no selector names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cache {
    /// It stays.
    #[default]
    Keep,
    /// What only excluded processes have open or mapped, or what an excluded cgroup is charged for, is left out.
    Exclude,
}

/// What happens when cached data that is to be left out is not on its disk yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dirty {
    /// There is no image.
    #[default]
    Refuse,
    /// The guest is given time to write it.
    Wait,
}

/// How to save. What is not set has its default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SaveOptions {
    /// Save even when something of an excluded process is not accounted for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best_effort: Option<bool>,
    /// What becomes of video memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub video: Option<Video>,
    /// What becomes of the kernel's log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_log: Option<KernelLog>,
    /// What becomes of processes that share data with excluded ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dependents: Option<Dependents>,
    /// What becomes of the page cache that belongs to excluded processes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<Cache>,
    /// What happens when cached data to be left out is not on disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dirty: Option<Dirty>,
}

impl SaveOptions {
    /// Whether to save even when something is not accounted for; not by default.
    #[must_use]
    pub fn best_effort(&self) -> bool {
        self.best_effort.unwrap_or(false)
    }

    /// What becomes of video memory.
    #[must_use]
    pub fn video(&self) -> Video {
        self.video.unwrap_or_default()
    }

    /// What becomes of the kernel's log.
    #[must_use]
    pub fn kernel_log(&self) -> KernelLog {
        self.kernel_log.unwrap_or_default()
    }

    /// What becomes of processes that share data with excluded ones.
    #[must_use]
    pub fn dependents(&self) -> Dependents {
        self.dependents.unwrap_or_default()
    }

    /// What becomes of the page cache that belongs to excluded processes.
    #[must_use]
    pub fn cache(&self) -> Cache {
        self.cache.unwrap_or_default()
    }

    /// What happens when cached data to be left out is not on disk.
    #[must_use]
    pub fn dirty(&self) -> Dirty {
        self.dirty.unwrap_or_default()
    }
}

/// What a user wants left out, and how to save.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Policy {
    /// What; a process, file or region that any of them selects is left out.
    pub selectors: Vec<Selector>,
    /// How to save.
    pub save: SaveOptions,
}

impl Policy {
    /// A policy file and the arguments of one run together: the selectors of both, and of each
    /// option the argument, if there is one.
    #[must_use]
    pub fn merge(file: Self, args: Self) -> Self {
        let mut selectors = file.selectors;
        for selector in args.selectors {
            if !selectors.contains(&selector) {
                selectors.push(selector);
            }
        }
        let save = SaveOptions {
            best_effort: args.save.best_effort.or(file.save.best_effort),
            video: args.save.video.or(file.save.video),
            kernel_log: args.save.kernel_log.or(file.save.kernel_log),
            dependents: args.save.dependents.or(file.save.dependents),
            cache: args.save.cache.or(file.save.cache),
            dirty: args.save.dirty.or(file.save.dirty),
        };
        Self { selectors, save }
    }

    /// The selectors of processes.
    pub fn processes(&self) -> impl Iterator<Item = &Selector> {
        self.selectors.iter().filter(|s| s.criterion.kind().is_of_processes())
    }

    /// The selectors of files.
    pub fn files(&self) -> impl Iterator<Item = (&Selector, &PathGlob)> {
        self.selectors.iter().filter_map(|selector| match &selector.criterion {
            Criterion::File(glob) => Some((selector, glob)),
            _ => None,
        })
    }

    /// The selectors of memory regions; see [`Selector::is_about`].
    pub fn regions(&self) -> impl Iterator<Item = (&Selector, Region)> {
        self.selectors.iter().filter_map(|selector| match &selector.criterion {
            Criterion::Region(region) => Some((selector, *region)),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_add_to_a_file_and_override_its_options() {
        let selector = |text: &str| text.parse::<Selector>().unwrap();
        let file = Policy {
            selectors: vec![selector("uid=7"), selector("comm=a")],
            save: SaveOptions {
                best_effort: Some(true),
                video: Some(Video::Blank),
                kernel_log: Some(KernelLog::Clear),
                dependents: Some(Dependents::Refuse),
                cache: Some(Cache::Exclude),
                dirty: None,
            },
        };
        let args = Policy {
            selectors: vec![selector("comm=a"), selector("pid=3")],
            save: SaveOptions {
                video: Some(Video::Keep),
                dependents: Some(Dependents::Exclude),
                dirty: Some(Dirty::Wait),
                ..SaveOptions::default()
            },
        };
        let both = Policy::merge(file, args);
        let names: Vec<_> = both.selectors.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["uid=7", "comm=a", "pid=3"]);
        assert!(both.save.best_effort());
        assert_eq!(both.save.video(), Video::Keep);
        assert_eq!(both.save.kernel_log(), KernelLog::Clear);
        assert_eq!(both.save.dependents(), Dependents::Exclude);
        assert_eq!((both.save.cache(), both.save.dirty()), (Cache::Exclude, Dirty::Wait));
        let default = SaveOptions::default();
        assert!(!default.best_effort());
        assert_eq!(default.dependents(), Dependents::Keep);
        assert_eq!((default.cache(), default.dirty()), (Cache::Keep, Dirty::Refuse));
    }

    #[test]
    fn the_manifest_form_is_plain() {
        let policy = Policy { selectors: vec!["exe=/bin/a*".parse().unwrap()], save: SaveOptions::default() };
        let expected = serde_json::json!({
            "selectors": [{"kind": "exe", "pattern": "/bin/a*", "optional": false, "children": true}],
            "save": {},
        });
        assert_eq!(serde_json::to_value(policy).unwrap(), expected);
    }
}
