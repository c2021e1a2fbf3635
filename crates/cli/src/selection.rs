//! The arguments that say what to leave out, and the policy that they make with a policy file.

use crate::choices::{CacheArg, DependentsArg, DirtyArg, KernelLogArg, VideoArg};
use clap::{Args, ValueHint};
use elision_policy::{Policy, PolicyError, SaveOptions, Selector};
use std::path::PathBuf;

const HEADING: &str = "Selection";

/// What to leave out, and how.
#[derive(Debug, Default, Args)]
pub(crate) struct SelectionArgs {
    /// Leave out the processes that match, and their descendants; may be repeated.
    ///
    /// KIND is pid, comm (name, at most 15 bytes), exe (path, may be a glob), uid (a number), cgroup (path,
    /// may be a glob; groups below it too), tty (such as pts/0), unit (of systemd, may be a glob) or container
    /// (id, or name where cgroups have it). Two kinds leave out no process: file (path, may be a glob) what the
    /// guest caches of files, region (named, secretmem or dontdump) marked memory of processes that stay. A
    /// selection that matches nothing is an error.
    #[arg(long, help_heading = HEADING, value_name = "KIND=PATTERN")]
    pub(crate) exclude: Vec<Selector>,
    /// Leave out what a policy file selects, together with --exclude.
    #[arg(long, help_heading = HEADING, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) policy: Option<PathBuf>,
    /// Leave out what can be, and list what cannot, instead of refusing; recorded in the image.
    #[arg(long, help_heading = HEADING)]
    pub(crate) best_effort: bool,
    /// What becomes of video memory.
    #[arg(long, help_heading = HEADING, value_name = "WHAT")]
    pub(crate) video: Option<VideoArg>,
    /// What becomes of the log of the guest's kernel.
    #[arg(long, help_heading = HEADING, value_name = "WHAT")]
    pub(crate) kernel_log: Option<KernelLogArg>,
    /// What becomes of processes that share data with those left out.
    #[arg(long, help_heading = HEADING, value_name = "WHAT")]
    pub(crate) dependents: Option<DependentsArg>,
    /// What becomes of the page cache that belongs to processes left out.
    #[arg(long, help_heading = HEADING, value_name = "WHAT")]
    pub(crate) cache: Option<CacheArg>,
    /// What happens when cached data to leave out is not on its disk yet.
    #[arg(long, help_heading = HEADING, value_name = "WHAT")]
    pub(crate) dirty: Option<DirtyArg>,
}

impl SelectionArgs {
    /// The policy of the file and of the arguments.
    pub(crate) fn policy(&self) -> Result<Policy, PolicyError> {
        let file = self.policy.as_deref().map(Policy::from_file).transpose()?;
        let save = SaveOptions {
            best_effort: self.best_effort.then_some(true),
            video: self.video.map(Into::into),
            kernel_log: self.kernel_log.map(Into::into),
            dependents: self.dependents.map(Into::into),
            cache: self.cache.map(Into::into),
            dirty: self.dirty.map(Into::into),
        };
        let args = Policy { selectors: self.exclude.clone(), save };
        Ok(Policy::merge(file.unwrap_or_default(), args))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use elision_policy::Video;

    #[test]
    fn a_file_s_best_effort_holds_unless_an_argument_says_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.toml");
        std::fs::write(&path, "[[exclude]]\nuid = 7\n[save]\nbest-effort = true\nvideo = 'keep'\n").unwrap();
        let args = SelectionArgs {
            exclude: vec!["pid=3".parse().unwrap()],
            policy: Some(path),
            video: Some(VideoArg::Blank),
            ..SelectionArgs::default()
        };
        let policy = args.policy().unwrap();
        let names: Vec<_> = policy.selectors.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["uid=7", "pid=3"]);
        assert!(policy.save.best_effort());
        assert_eq!(policy.save.video(), Video::Blank);
        assert!(!SelectionArgs::default().policy().unwrap().save.best_effort());
    }
}
