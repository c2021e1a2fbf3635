//! The arguments that say what to leave out, and the policy that they make with a policy file.

use clap::{Args, ValueEnum, ValueHint};
use elision_policy::{KernelLog, Policy, PolicyError, SaveOptions, Selector, Video};
use std::path::PathBuf;

const HEADING: &str = "Selection";

/// What to leave out, and how.
#[derive(Debug, Default, Args)]
pub(crate) struct SelectionArgs {
    /// Leave out the processes that match, and their descendants; may be repeated.
    ///
    /// KIND is pid, comm (name, at most 15 bytes), exe (path, may be a glob), uid (a number), cgroup (path,
    /// may be a glob; groups below it too) or tty (such as pts/0). A selection that matches nothing is an
    /// error.
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
}

/// What becomes of video memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum VideoArg {
    /// Blank it when an excluded process has a virtual console (the default).
    Auto,
    /// Keep it as it is.
    Keep,
    /// Blank it.
    Blank,
}

/// What becomes of the log of the guest's kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum KernelLogArg {
    /// Clear the lines that excluded processes wrote (the default).
    Auto,
    /// Clear all of it.
    Clear,
}

impl From<KernelLogArg> for KernelLog {
    fn from(arg: KernelLogArg) -> Self {
        match arg {
            KernelLogArg::Auto => Self::Auto,
            KernelLogArg::Clear => Self::Clear,
        }
    }
}

impl From<VideoArg> for Video {
    fn from(arg: VideoArg) -> Self {
        match arg {
            VideoArg::Auto => Self::Auto,
            VideoArg::Keep => Self::Keep,
            VideoArg::Blank => Self::Blank,
        }
    }
}

impl SelectionArgs {
    /// The policy of the file and of the arguments.
    pub(crate) fn policy(&self) -> Result<Policy, PolicyError> {
        let file = self.policy.as_deref().map(Policy::from_file).transpose()?;
        let save = SaveOptions {
            best_effort: self.best_effort.then_some(true),
            video: self.video.map(Video::from),
            kernel_log: self.kernel_log.map(KernelLog::from),
        };
        let args = Policy { selectors: self.exclude.clone(), save };
        Ok(Policy::merge(file.unwrap_or_default(), args))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
