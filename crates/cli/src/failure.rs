//! An error at the command's edge: what happened, to what, what to do, and the exit status.
//!
//! For people miette draws it, with its chain of causes once. With `--json` it is one line on stderr:
//!
//! ```json
//! {"error": {"message": "...", "causes": ["..."], "help": "...", "exit_status": 4}}
//! ```
//! Messages may quote names that a guest chose, so control characters are escaped.

use crate::exit::Exit;
use crate::text::printable;
use elision_audit::AuditError;
use elision_image::ImageError;
use elision_kernel::KernelError;
use elision_memory::MemoryError;
use elision_plan::PlanError;
use elision_policy::PolicyError;
use elision_qemu::QemuError;
use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme};
use serde_json::json;
use std::error::Error;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::path::Path;

/// Why a verb failed.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    cause: Option<Cause>,
    help: Option<String>,
    exit: Exit,
}

/// One link of the chain, already made printable.
#[derive(Debug)]
struct Cause {
    message: String,
    cause: Option<Box<Cause>>,
}

impl Failure {
    /// A failure with its own words.
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { message: message.into(), cause: None, help: None, exit }
    }

    /// A failure that says what an error says.
    pub(crate) fn from_error(exit: Exit, error: &dyn Error) -> Self {
        let message = lines(error);
        let cause = Cause::of(error.source(), &message);
        Self { message, cause, help: None, exit }
    }

    /// The operating system refused something.
    pub(crate) fn io(action: &str, path: &Path, error: &io::Error) -> Self {
        let cause = Some(Cause { message: printable(&error.to_string()), cause: None });
        let message = format!("Cannot {action} {}", printable(&path.display().to_string()));
        Self { message, cause, help: None, exit: Exit::Failed }
    }

    /// The same with another exit status.
    #[must_use]
    pub(crate) fn with_exit(self, exit: Exit) -> Self {
        Self { exit, ..self }
    }

    /// The same with advice.
    #[must_use]
    pub(crate) fn with_help(self, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..self }
    }

    /// The exit status that it leads to.
    pub(crate) fn exit(&self) -> Exit {
        self.exit
    }

    /// Prints it on stderr. That stderr is closed must not hide the exit status, so nothing is returned.
    pub(crate) fn print(&self, as_json: bool) {
        let mut text = if as_json { format!("{}\n", self.json()) } else { self.drawn() };
        if !text.ends_with('\n') {
            text.push('\n');
        }
        let _ = io::stderr().write_all(text.as_bytes());
    }

    fn json(&self) -> serde_json::Value {
        let mut causes = Vec::new();
        let mut next = self.cause.as_ref();
        while let Some(cause) = next {
            causes.push(cause.message.as_str());
            next = cause.cause.as_deref();
        }
        let (message, help, status) = (&self.message, &self.help, self.exit.status());
        json!({"error": {"message": message, "causes": causes, "help": help, "exit_status": status}})
    }

    fn drawn(&self) -> String {
        let stderr = io::stderr();
        let coloured = stderr.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        let theme = if coloured { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
        let width = rustix::termios::tcgetwinsize(&stderr).map_or(100, |size| usize::from(size.ws_col));
        let handler = GraphicalReportHandler::new_themed(theme).with_width(width.clamp(40, 120));
        let mut text = String::new();
        if handler.render_report(&mut text, self).is_err() {
            text = format!("{}\n", self.message);
        }
        text
    }
}

impl Cause {
    fn of(error: Option<&(dyn Error + 'static)>, above: &str) -> Option<Self> {
        /// More links than any error has.
        const LONGEST: usize = 16;
        let mut messages: Vec<String> = Vec::new();
        let mut next = error;
        while let Some(error) = next.filter(|_| messages.len() < LONGEST) {
            messages.push(lines(error));
            next = error.source();
        }
        messages.dedup();
        messages.retain(|message| message != above);
        let chain = messages.into_iter().rev();
        chain.fold(None, |cause, message| Some(Self { message, cause: cause.map(Box::new) }))
    }
}

/// A message whose lines are printable.
fn lines(error: &dyn Error) -> String {
    error.to_string().lines().map(printable).collect::<Vec<_>>().join("\n")
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_ref().map(|cause| cause as _)
    }
}

impl Error for Cause {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as _)
    }
}

impl Diagnostic for Failure {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|help| Box::new(help) as _)
    }
}

macro_rules! from_error {
    ($($error:ty),*) => {$(
        impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::from_error(Exit::from(&error), &error)
            }
        }
    )*};
}
from_error!(AuditError, ImageError, KernelError);

impl From<PlanError> for Failure {
    fn from(error: PlanError) -> Self {
        let failure = Self::from_error(Exit::from(&error), &error);
        match error {
            PlanError::Dirty { .. } => failure.with_help(
                "Run `sync` in the guest and save again, or let the guest have the time to write by `--dirty wait`",
            ),
            _ => failure,
        }
    }
}

impl From<QemuError> for Failure {
    fn from(error: QemuError) -> Self {
        let failure = Self::from_error(Exit::from(&error), &error);
        match error {
            QemuError::Connect { .. } => failure.with_help(
                "Is the VM running, and is this its QMP socket? A VM gets one by `elision run -- QEMU COMMAND`, \
                 or by `-qmp unix:PATH,server=on,wait=off` in its command",
            ),
            QemuError::NoSnapshot { .. } => failure.with_help(
                "The VM runs on, nothing was saved. Save it without --live, which pauses it while its memory is \
                 written; or give QEMU the right to use userfaultfd: run it as root, let its user open \
                 /dev/userfaultfd, or set the sysctl vm.unprivileged_userfaultfd to 1. The memory of a restored VM \
                 is mapped from its image, which no userfaultfd guards",
            ),
            QemuError::State { .. } => failure.with_help(
                "A paused VM is continued by `cont` in its monitor, or by {\"execute\": \"cont\"} on its QMP socket",
            ),
            _ => failure,
        }
    }
}

impl From<PolicyError> for Failure {
    fn from(error: PolicyError) -> Self {
        Self::from_error(Exit::Usage, &error)
    }
}

impl From<MemoryError> for Failure {
    fn from(error: MemoryError) -> Self {
        Self::from_error(Exit::Failed, &error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use elision_image::ExclusionsError;

    fn damaged() -> Failure {
        ImageError::Exclusions { path: "image/exclusions.bin".into(), source: ExclusionsError::Magic }.into()
    }

    #[test]
    fn the_chain_is_printed_once() {
        let text = damaged().drawn();
        for part in ["Cannot read image/exclusions.bin", "This is not an exclusion map"] {
            assert_eq!(text.matches(part).count(), 1, "{text}");
        }
    }

    #[test]
    fn a_json_error_has_its_documented_fields() {
        let error = damaged().with_help("Take another image").json();
        let expected = json!({"error": {
            "message": "Cannot read image/exclusions.bin",
            "causes": ["This is not an exclusion map"],
            "help": "Take another image",
            "exit_status": 1,
        }});
        assert_eq!(error, expected);
    }

    #[test]
    fn a_guest_cannot_send_escape_sequences_to_the_terminal() {
        let busy = PlanError::Busy { pid: 7, comm: "\x1b[2Jx".into(), what: "it is exiting" };
        let text = Failure::from(busy).drawn();
        assert!(!text.contains('\x1b') && text.contains("\\u{1b}[2Jx"), "{text:?}");
    }
}
