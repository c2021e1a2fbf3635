//! One `[[exclude]]` entry of a policy file, and the selector that it makes.

use crate::{Criterion, Kind, OnRestore, PathGlob, PolicyError, Selector};
use serde::Deserialize;
use std::ops::Range;
use toml::Spanned;

/// An entry as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    pid: Option<Spanned<u32>>,
    comm: Option<Spanned<String>>,
    exe: Option<Spanned<String>>,
    uid: Option<Spanned<u32>>,
    cgroup: Option<Spanned<String>>,
    tty: Option<Spanned<String>>,
    unit: Option<Spanned<String>>,
    container: Option<Spanned<String>>,
    file: Option<Spanned<String>>,
    region: Option<Spanned<String>>,
    args: Option<Spanned<String>>,
    #[serde(default)]
    optional: bool,
    children: Option<Spanned<bool>>,
    on_restore: Option<Spanned<OnRestore>>,
}

/// What is wrong with an entry, and where in the text; `None` is the entry as a whole.
pub(crate) struct Wrong {
    pub(crate) at: Option<usize>,
    pub(crate) reason: String,
}

/// A kind with its pattern and its place in the text.
type Given = (Kind, String, Range<usize>);

impl Entry {
    /// The selector, or what is wrong.
    pub(crate) fn selector(&self) -> Result<Selector, Wrong> {
        let (criterion, of) = self.criteria()?;
        let mut selector = Selector::new(criterion);
        selector.of = of;
        selector.optional = self.optional;
        if let Some(args) = &self.args {
            let exe = [Some(&selector.criterion), selector.of.as_ref()];
            if !exe.into_iter().flatten().any(|c| c.kind() == Kind::Exe) {
                return Err(wrong(args, "`args` narrows `exe`, and this entry has none"));
            }
            let glob = PathGlob::over_text(args.get_ref()).map_err(|reason| {
                wrong(args, format!("The pattern of `args={}` is not a valid glob: {reason}", args.get_ref()))
            })?;
            selector.args = Some(glob);
        }
        if let Some(children) = &self.children {
            let kind = selector.criterion.kind();
            if !kind.is_of_processes() {
                return Err(wrong(children, format!("`children` has no meaning for a {kind}")));
            }
            selector.children = *children.get_ref();
        }
        if let Some(on_restore) = &self.on_restore {
            if selector.criterion.kind() != Kind::Unit {
                return Err(wrong(on_restore, "`on_restore` is about a `unit`, and this entry has none"));
            }
            selector.on_restore = *on_restore.get_ref();
        }
        Ok(selector)
    }

    /// What is selected, and of which processes if it is a region.
    fn criteria(&self) -> Result<(Criterion, Option<Criterion>), Wrong> {
        let given = self.given();
        let new = |(kind, pattern, span): &Given| {
            Criterion::new(*kind, pattern)
                .map_err(|e: PolicyError| Wrong { at: Some(span.start), reason: e.to_string() })
        };
        match given.as_slice() {
            [one] => Ok((new(one)?, None)),
            [of, region] if region.0 == Kind::Region && of.0.is_of_processes() => {
                Ok((new(region)?, Some(new(of)?)))
            }
            _ => {
                let found = given.iter().map(|g| g.0.name()).collect::<Vec<_>>().join(", ");
                let found = if found.is_empty() { "none" } else { &found };
                let kinds = Kind::ALL.map(Kind::name).join(", ");
                let reason = format!(
                    "an exclude entry needs exactly one of {kinds} (a region may name one kind of process); \
                     this one has {found}"
                );
                Err(Wrong { at: None, reason })
            }
        }
    }

    /// The kinds that the entry has, in the order of [`Kind::ALL`].
    fn given(&self) -> Vec<Given> {
        let number = |n: &Option<Spanned<u32>>| n.as_ref().map(|n| (n.get_ref().to_string(), n.span()));
        let text = |t: &Option<Spanned<String>>| t.as_ref().map(|t| (t.get_ref().clone(), t.span()));
        let value = |kind| match kind {
            Kind::Pid => number(&self.pid),
            Kind::Comm => text(&self.comm),
            Kind::Exe => text(&self.exe),
            Kind::Uid => number(&self.uid),
            Kind::Cgroup => text(&self.cgroup),
            Kind::Tty => text(&self.tty),
            Kind::Unit => text(&self.unit),
            Kind::Container => text(&self.container),
            Kind::File => text(&self.file),
            Kind::Region => text(&self.region),
        };
        let all = Kind::ALL.into_iter().filter_map(|kind| value(kind).map(|(text, at)| (kind, text, at)));
        all.collect()
    }
}

fn wrong<T>(at: &Spanned<T>, reason: impl Into<String>) -> Wrong {
    Wrong { at: Some(at.span().start), reason: reason.into() }
}
