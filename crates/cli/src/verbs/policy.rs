//! `elision policy check`: what a policy file means, in words.

use crate::args::{PolicyArgs, PolicyCheckArgs, PolicyVerb};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::Output;
use crate::text::printable;
use elision_policy::{
    Cache, Criterion, Dependents, Dirty, KernelLog, OnRestore, Policy, Region, SaveOptions, Selector, Video,
};
use serde::Serialize;
use std::fmt::Write;
use std::path::PathBuf;

#[derive(Serialize)]
struct Checked {
    file: PathBuf,
    policy: Policy,
    /// One line for each selector.
    excluded: Vec<String>,
    /// One line for each option, given or not.
    options: Vec<String>,
}

pub(crate) fn run(args: &PolicyArgs, out: &mut Output) -> Result<Exit, Failure> {
    match &args.verb {
        PolicyVerb::Check(args) => check(args, out),
    }
}

fn check(args: &PolicyCheckArgs, out: &mut Output) -> Result<Exit, Failure> {
    let policy = Policy::from_file(&args.file)?;
    let checked = Checked {
        file: args.file.clone(),
        excluded: policy.selectors.iter().map(selector).collect(),
        options: options(policy.save),
        policy,
    };
    out.result(&checked, human)?;
    Ok(Exit::Done)
}

fn human(checked: &Checked) -> String {
    let mut text = String::new();
    let mut list = |title: &str, lines: &[String]| {
        let _ = writeln!(text, "{title}");
        for line in lines {
            let _ = writeln!(text, "  - {}", printable(line));
        }
    };
    if checked.excluded.is_empty() {
        list("Left out is freed memory only: nothing is selected.", &[]);
    } else {
        list("Left out:", &checked.excluded);
    }
    list("And:", &checked.options);
    text
}

/// What a selector selects.
fn selector(selector: &Selector) -> String {
    let args = selector.args.as_ref().map(|args| format!(" and whose arguments match {}", args.as_str()));
    let args = args.unwrap_or_default();
    let of = selector.of.as_ref().map_or_else(
        || "all processes that stay".to_owned(),
        |of| format!("those processes that stay {}{args}", process(of)),
    );
    let what = match &selector.criterion {
        Criterion::File(glob) => {
            format!("what the guest caches of files whose path matches {}", glob.as_str())
        }
        Criterion::Region(Region::Named) => format!("memory named elision:..., of {of}"),
        Criterion::Region(Region::Secretmem) => format!("memory from memfd_secret, of {of}"),
        Criterion::Region(Region::Dontdump) => format!("memory with MADV_DONTDUMP, of {of}"),
        criterion => {
            let descendants =
                if selector.children { ", with all descendants" } else { ", without descendants" };
            format!("every process {}{args}{descendants}", process(criterion))
        }
    };
    let none = if selector.optional { "there may be none" } else { "an error if there is none" };
    let then = match selector.on_restore {
        OnRestore::Leave => "",
        OnRestore::Restart => "; in a restored guest its agent restarts the services",
    };
    format!("{what} ({none}){then}")
}

/// `whose name is x`, for what selects processes.
fn process(criterion: &Criterion) -> String {
    let pattern = criterion.pattern();
    match criterion {
        Criterion::Pid(_) => format!("whose id is {pattern}"),
        Criterion::Comm(_) => format!("whose name is {pattern}"),
        Criterion::Exe(_) => format!("whose program's path matches {pattern}"),
        Criterion::Uid(_) => format!("of user id {pattern}"),
        Criterion::Cgroup(_) => format!("in a cgroup whose path matches {pattern}, or below one"),
        Criterion::Tty(_) => format!("whose terminal is {pattern}"),
        Criterion::Unit(_) => format!("in the systemd unit {pattern}"),
        Criterion::Container(_) => format!("in the container {pattern}"),
        Criterion::File(_) | Criterion::Region(_) => String::new(),
    }
}

/// What each option means.
fn options(save: SaveOptions) -> Vec<String> {
    let told = [
        if save.best_effort() {
            "what cannot be accounted for stays in the image, which says so"
        } else {
            "there is no image unless everything selected is accounted for"
        },
        match save.video() {
            Video::Auto => "video memory is blanked if an excluded process has a virtual console",
            Video::Keep => "video memory is kept",
            Video::Blank => "video memory is blanked",
        },
        match save.kernel_log() {
            KernelLog::Auto => "lines that excluded processes wrote to the kernel's log are cleared",
            KernelLog::Clear => "all of the kernel's log is cleared",
        },
        match save.dependents() {
            Dependents::Keep => "processes that share data with excluded ones stay",
            Dependents::Exclude => {
                "processes that share data with excluded ones are left out too, and those that share data with them"
            }
            Dependents::Refuse => {
                "there is no image if a process that stays shares data with an excluded one"
            }
        },
        match save.cache() {
            Cache::Keep => "the page cache of files that no entry names is kept",
            Cache::Exclude => {
                "the page cache of files that only excluded processes have open or map, or that their cgroup is charged \
                 for, is left out"
            }
        },
        match save.dirty() {
            Dirty::Refuse => "there is no image while cached data to leave out is not on its disk yet",
            Dirty::Wait => "the guest is given time to write cached data to its disk that is to be left out",
        },
    ];
    told.map(str::to_owned).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// The keys of a table, as the parser lists them when it meets one that it does not know.
    fn keys(table: &str) -> Vec<String> {
        let error = Policy::parse(&format!("{table}\nno-such-key = 1"), Path::new("p.toml")).unwrap_err();
        let text = error.to_string();
        text.split('`').skip(3).step_by(2).map(str::to_owned).collect()
    }

    #[test]
    fn the_example_is_understood_and_has_every_key() {
        let text = include_str!("../../../../docs/policy.example.toml");
        let policy = Policy::parse(text, Path::new("docs/policy.example.toml")).unwrap();
        let keys = [keys("[[exclude]]"), keys("[save]")].concat();
        assert!(keys.len() >= 19 && keys.contains(&"dirty".to_owned()), "{keys:?}");
        for key in keys {
            assert!(text.lines().any(|line| line.starts_with(&format!("{key} = "))), "{key} is not there");
        }
        for line in policy.selectors.iter().map(selector).chain(options(policy.save)) {
            println!("{line}");
        }
    }

    #[test]
    fn every_selector_is_said_in_words() {
        let told = |toml: &str| {
            let policy = Policy::parse(&format!("[[exclude]]\n{toml}"), Path::new("p.toml")).unwrap();
            selector(&policy.selectors[0])
        };
        let table = [
            ("comm = 'a'", "every process whose name is a, with all descendants (an error if there is none)"),
            (
                "uid = 3\nchildren = false\noptional = true",
                "of user id 3, without descendants (there may be none)",
            ),
            (
                "exe = '/a'\nargs = '*b*'",
                "whose program's path matches /a and whose arguments match *b*, with",
            ),
            ("unit = 'nginx'", "in the systemd unit nginx.service"),
            ("unit = 'a'\non_restore = 'restart'", "; in a restored guest its agent restarts the services"),
            ("file = '/srv/**'", "what the guest caches of files whose path matches /srv/** (an error"),
            ("region = 'named'", "memory named elision:..., of all processes that stay"),
            ("region = 'dontdump'\ncomm = 'a'", "of those processes that stay whose name is a"),
        ];
        for (toml, part) in table {
            assert!(told(toml).contains(part), "{toml}: {}", told(toml));
        }
    }
}
