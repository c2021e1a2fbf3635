//! The command line: one definition for parsing, help, man pages and completions.

use crate::agent::AgentArgs;
use crate::choices::LiveArg;
use crate::selection::SelectionArgs;
use clap::{ArgGroup, Args, Parser, Subcommand, ValueHint};
use std::path::PathBuf;

const EXIT_STATUS: &str = "\
Exit status:
  0  done
  1  the answer is no: audit found a secret, or an image is damaged
  2  wrong usage; nothing was looked at
  3  refused: the checkpoint would not have been clean, so none was made
  4  the hypervisor, the guest or the host failed";

/// Checkpoints of running virtual machines without the processes that you name.
///
/// Elision saves a running VM and leaves chosen processes out of the copy, with all freed memory. The
/// running VM is only read. The image is restored by stock QEMU, and the guest's own kernel ends the
/// processes that were left out.
#[derive(Debug, Parser)]
#[command(name = "elision", version, max_term_width = 100, after_long_help = EXIT_STATUS)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) verb: Verb,
    /// Write the result to stdout, and an error to stderr, as one JSON object.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Say on stderr what is done; twice for every step.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Run(RunArgs),
    Ps(PsArgs),
    Plan(PlanArgs),
    Save(SaveArgs),
    Restore(RestoreArgs),
    List(ListArgs),
    Rm(RmArgs),
    Gc(GcArgs),
    Merge(MergeArgs),
    Inspect(InspectArgs),
    Verify(VerifyArgs),
    Audit(AuditArgs),
    Policy(PolicyArgs),
    Generate(GenerateArgs),
    #[command(hide = true)]
    Guard(GuardArgs),
    #[command(hide = true)]
    Serve(ServeArgs),
}

/// Start a VM so that it can be saved well.
///
/// Adds to a QEMU command what a save needs and what is missing: shared RAM and a QMP socket. Says on
/// stderr what was added, then becomes QEMU: terminal, signals and exit status are QEMU's own. With --json
/// it says it as JSON, on stderr too, as stdout is QEMU's.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  elision run --name web -- qemu-system-x86_64 -m 2G -drive file=web.qcow2,if=virtio
  elision run --dry-run -- qemu-system-x86_64 -m 2G web.img")]
pub(crate) struct RunArgs {
    /// Name of the VM, for its QMP socket: NAME.qmp in the user's runtime folder.
    #[arg(long, value_name = "NAME", default_value = "vm")]
    pub(crate) name: String,
    /// Where the VM's QMP socket shall stand, if the command has none.
    #[arg(long, value_name = "SOCK", value_hint = ValueHint::FilePath)]
    pub(crate) qmp: Option<PathBuf>,
    /// Give the VM a port for the guest's agent; its socket is NAME.agent beside that of QMP.
    #[arg(long)]
    pub(crate) agent: bool,
    /// Say on stdout what would be added and start nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// The command that starts the VM.
    #[arg(last = true, required = true, value_name = "QEMU COMMAND", value_hint = ValueHint::CommandWithArguments)]
    pub(crate) command: Vec<String>,
}

/// List the guest's processes, seen from outside.
///
/// A running VM is read while it runs. If its process list keeps changing in between, the VM is paused for
/// some milliseconds.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("source").required(true).args(["qmp", "image"]))]
#[command(after_long_help = "\
Examples:
  elision ps --qmp web.qmp
  elision ps --all web.elision")]
pub(crate) struct PsArgs {
    /// A running VM, by its QMP socket.
    #[arg(long, value_name = "SOCK", value_hint = ValueHint::FilePath)]
    pub(crate) qmp: Option<PathBuf>,
    /// An image.
    #[arg(value_name = "IMAGE", value_hint = ValueHint::DirPath)]
    pub(crate) image: Option<PathBuf>,
    /// List threads of the guest's kernel too.
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Pause the VM at once for a list that is exact.
    #[arg(long, requires = "qmp")]
    pub(crate) pause: bool,
}

/// Show what a save would leave out; changes nothing.
///
/// The VM is paused shortly while its memory is looked at, and runs on afterwards. Shown are the frames
/// left out and the bytes changed, by reason and by process, what the excluded processes share with others
/// and what therefore stays, and what stands in the way of a clean checkpoint.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  elision plan --qmp web.qmp --exclude comm=gpg-agent
  elision plan --qmp web.qmp --policy web.toml --json")]
pub(crate) struct PlanArgs {
    /// The running VM, by its QMP socket.
    #[arg(long, value_name = "SOCK", value_hint = ValueHint::FilePath)]
    pub(crate) qmp: PathBuf,
    #[command(flatten)]
    pub(crate) selection: SelectionArgs,
}

/// Save a running VM without the chosen processes.
///
/// The VM is paused while its memory is written, then runs on; with --live it runs meanwhile. The image is
/// whole or absent: nothing appears at IMAGE unless everything of the chosen processes was accounted for.
/// Without a selection only freed memory is left out.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  elision save --qmp web.qmp --exclude exe=/usr/bin/psql web.elision
  elision save --qmp web.qmp --exclude uid=1000 --exclude comm=gpg-agent web.elision
  elision save --qmp web.qmp --exclude cgroup=/system.slice/vault.service web.elision
  elision save --qmp web.qmp --live --policy web.toml web.elision")]
pub(crate) struct SaveArgs {
    /// The running VM, by its QMP socket.
    #[arg(long, value_name = "SOCK", value_hint = ValueHint::FilePath)]
    pub(crate) qmp: PathBuf,
    #[command(flatten)]
    pub(crate) selection: SelectionArgs,
    #[command(flatten)]
    pub(crate) agent: AgentArgs,
    /// Let the VM run while its memory is copied or written, as it was at one moment.
    ///
    /// QEMU fills in all of the VM's memory then, also what the guest never touched.
    #[arg(long, value_enum, value_name = "HOW", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "auto")]
    pub(crate) live: Option<LiveArg>,
    /// Store only what differs from another image of the same VM.
    ///
    /// The image is then of use only with that one, which it finds from its own folder: keep both where they are to each
    /// other. Needs shared RAM, or with --live a VM of which memory is copied while it runs.
    #[arg(long, value_name = "IMAGE", value_hint = ValueHint::DirPath, conflicts_with = "compress")]
    pub(crate) base: Option<PathBuf>,
    /// Compress the image's memory, by a level of zstd.
    ///
    /// Higher levels make smaller images and take longer; the VM runs meanwhile. Memory of such an image is
    /// unpacked before it is restored, so that restores take longer and clones share no memory.
    #[arg(long, value_name = "LEVEL", num_args = 0..=1, require_equals = true, default_missing_value = "1")]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=19))]
    pub(crate) compress: Option<u8>,
    /// Number of threads that write memory; by default one for each processor. With --live it is one.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) threads: Option<u16>,
    /// The image to make: a directory that does not exist yet.
    #[arg(value_name = "IMAGE", value_hint = ValueHint::DirPath)]
    pub(crate) image: PathBuf,
}

/// Start a VM from an image; returns when it runs.
///
/// Without a command the recorded one is started, so restore only images that you trust. It names the same
/// disks and sockets as the VM that was saved: while that VM still runs, give a command with others. Relative
/// paths in the command stand in the current folder. Prints the process id and the QMP socket.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  elision restore web.elision
  elision restore web.elision --clones 10
  elision restore web.elision --qmp clone.qmp -- \\
      qemu-system-x86_64 -m 2G -drive file=clone.qcow2,if=virtio")]
pub(crate) struct RestoreArgs {
    /// The image.
    #[arg(value_name = "IMAGE", value_hint = ValueHint::DirPath)]
    pub(crate) image: PathBuf,
    /// Where the restored VM's QMP socket shall stand; by default in the user's runtime folder.
    #[arg(long, value_name = "SOCK", value_hint = ValueHint::FilePath)]
    pub(crate) qmp: Option<PathBuf>,
    /// Start so many VMs, each with a folder of its own for its sockets, its logs and what it writes to its disks.
    ///
    /// Disks must be given by -drive with their format; each VM gets an overlay over each disk that it may write.
    /// Memory of the image is shared by all. The guest's agent, if there is one, gives the network cards of each new
    /// addresses. Without one all have those of the image: give each VM a network of its own.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000), conflicts_with_all = ["qmp", "log"])]
    pub(crate) clones: Option<u16>,
    /// The folder for the clones, which must not exist yet; by default IMAGE-clones.
    #[arg(long, value_name = "FOLDER", value_hint = ValueHint::DirPath, requires = "clones")]
    pub(crate) folder: Option<PathBuf>,
    /// Leave the VM paused.
    #[arg(long)]
    pub(crate) paused: bool,
    /// Unpack a compressed image to memory before the VM starts, instead of each part when it is needed.
    ///
    /// Then the VM needs neither the image nor the process any more that unpacks it.
    #[arg(long, help_heading = "Memory", conflicts_with_all = ["prefetch", "record"])]
    pub(crate) load_first: bool,
    /// Read all of it in the background if the image does not say what is needed first (--record).
    #[arg(long, help_heading = "Memory")]
    pub(crate) prefetch: bool,
    /// Record in the image what the VM needs within ten seconds; later restores read that ahead.
    #[arg(long, help_heading = "Memory")]
    pub(crate) record: bool,
    #[command(flatten)]
    pub(crate) agent: AgentArgs,
    /// Give the restored machine this name, by its agent.
    #[arg(long, help_heading = "Guest agent", value_name = "NAME", conflicts_with = "paused")]
    pub(crate) hostname: Option<String>,
    /// Give the restored machine a new machine id, by its agent.
    #[arg(long, help_heading = "Guest agent", conflicts_with = "paused")]
    pub(crate) new_machine_id: bool,
    /// Give the restored machine a new id of its boot, by its agent.
    #[arg(long, help_heading = "Guest agent", conflicts_with = "paused")]
    pub(crate) new_boot_id: bool,
    /// Give the restored machine's network cards new addresses at random, by its agent.
    ///
    /// With --clones this is done also without the option, if the guest has an agent; with it an agent is needed.
    #[arg(long, help_heading = "Guest agent", conflicts_with = "paused")]
    pub(crate) new_mac: bool,
    /// Leave the clones' network cards the addresses of the image.
    #[arg(long, help_heading = "Guest agent", requires = "clones", conflicts_with = "new_mac")]
    pub(crate) keep_mac: bool,
    /// Where QEMU's error messages go, at the end of the file; by default nowhere once the VM runs.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) log: Option<PathBuf>,
    /// The command that starts the VM; its devices must be those of the VM that was saved.
    #[arg(last = true, value_name = "QEMU COMMAND", value_hint = ValueHint::CommandWithArguments)]
    pub(crate) command: Vec<String>,
}

/// List the images in folders, and the VMs that run from them.
///
/// An image that cannot be used is listed with the reason. Of VMs of other users nothing is seen without
/// privileges, nor of those whose memory was loaded before they started: they do not need the image any more.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example:
  elision list /var/lib/images")]
pub(crate) struct ListArgs {
    /// The folders that hold the images.
    #[arg(value_name = "FOLDER", value_hint = ValueHint::DirPath, default_value = ".")]
    pub(crate) folders: Vec<PathBuf>,
}

/// Remove images, unless a VM runs from one of them.
///
/// An image is gone as a whole: what is left when this is interrupted has another name, and the next save
/// under the image's name removes it.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example:
  elision rm web.elision")]
pub(crate) struct RmArgs {
    /// The images.
    #[arg(value_name = "IMAGE", value_hint = ValueHint::DirPath, required = true)]
    pub(crate) images: Vec<PathBuf>,
    /// Remove also what a VM runs from; it runs on.
    #[arg(short, long)]
    pub(crate) force: bool,
}

/// Remove what ended saves and ended VMs have left in a folder.
///
/// Removed are unfinished images of savers that are dead, sockets that nobody has any more (NAME.qmp and NAME.agent, and
/// those in the folders of clones), and folders of clones that are empty. Nothing else is touched: no image, no disk, no log,
/// and nothing that a running save, restore or VM uses. Of other users' processes nothing is seen without privileges.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  elision gc --dry-run /var/lib/images
  elision gc $XDG_RUNTIME_DIR/elision")]
pub(crate) struct GcArgs {
    /// The folder that holds images, clones or sockets.
    #[arg(value_name = "FOLDER", value_hint = ValueHint::DirPath)]
    pub(crate) folder: PathBuf,
    /// Only say what would be removed.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// Fold the image that another one builds on into it.
///
/// Afterwards IMAGE builds on what that image built on, or on nothing, and that image is needed by it no more. What
/// IMAGE is stays the same, and what builds on it finds it as before. It is replaced at once: an interruption
/// leaves the old one.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  elision merge monday.elision
  elision merge --all monday.elision")]
pub(crate) struct MergeArgs {
    /// The image.
    #[arg(value_name = "IMAGE", value_hint = ValueHint::DirPath)]
    pub(crate) image: PathBuf,
    /// Fold in all images down to the first one, so that IMAGE builds on none.
    #[arg(long)]
    pub(crate) all: bool,
}

/// Show what an image holds and what was left out of it.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  elision inspect web.elision
  elision inspect web.elision --json | jq .plan.frames_by_owner")]
pub(crate) struct InspectArgs {
    /// The image.
    #[arg(value_name = "IMAGE", value_hint = ValueHint::DirPath)]
    pub(crate) image: PathBuf,
}

/// Check that an image is undamaged and that what it says was left out is not there.
///
/// Exit status 1 when it is damaged, with a list of what is wrong.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example:
  elision verify web.elision")]
pub(crate) struct VerifyArgs {
    /// The image.
    #[arg(value_name = "IMAGE", value_hint = ValueHint::DirPath)]
    pub(crate) image: PathBuf,
}

/// Search an image for secrets that must not be in it.
///
/// Each secret is searched as it is, as UTF-16 and UTF-32, as hexadecimal digits, as cells of a text screen
/// and as key presses, in memory, also across page borders, and in the device state. Exit status 1 when one
/// is found. Secrets are never printed: a secret is named by its number in its file.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("searched").required(true).multiple(true).args(["image", "files"]))]
#[command(group = ArgGroup::new("secrets").required(true).multiple(true).args(["secret_file", "secret_binary"]))]
#[command(after_long_help = "\
Examples:
  elision audit web.elision --secret-file secrets.txt
  elision audit --file vm.migration --secret-file secrets.txt")]
pub(crate) struct AuditArgs {
    /// The image.
    #[arg(value_name = "IMAGE", value_hint = ValueHint::DirPath)]
    pub(crate) image: Option<PathBuf>,
    /// Any other file to search, such as a RAM file or a migration stream; may be repeated.
    #[arg(long = "file", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) files: Vec<PathBuf>,
    /// A file with one secret on each line; may be repeated.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) secret_file: Vec<PathBuf>,
    /// A file that is one secret with every byte of it, such as a key; may be repeated.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) secret_binary: Vec<PathBuf>,
}

/// Look at policy files, without a VM.
#[derive(Debug, Args)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct PolicyArgs {
    /// What to do.
    #[command(subcommand)]
    pub(crate) verb: PolicyVerb,
}

/// What can be done with a policy file.
#[derive(Debug, Subcommand)]
pub(crate) enum PolicyVerb {
    Check(PolicyCheckArgs),
}

/// Check a policy file, and say in words what it means.
///
/// Exit status 2 when it is not understood, with the line where it is wrong.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example:
  elision policy check web.toml")]
pub(crate) struct PolicyCheckArgs {
    /// The policy file.
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) file: PathBuf,
}

/// Write man pages and shell completions into a folder.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example:
  elision generate target/dist")]
pub(crate) struct GenerateArgs {
    /// The folder, which is made when needed: man pages go into man1, completions into completions.
    #[arg(value_name = "FOLDER", value_hint = ValueHint::DirPath)]
    pub(crate) folder: PathBuf,
}

/// Resume a VM whose saver has died; started by `elision save` only.
#[derive(Debug, Args)]
pub(crate) struct GuardArgs {
    /// The duty, in JSON.
    #[arg(allow_hyphen_values = true)]
    pub(crate) duty: String,
}

/// Read an image's memory as VMs need it; started by `elision restore` only.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// The image.
    pub(crate) image: PathBuf,
    /// Read ahead all of it if what is needed first was not recorded.
    #[arg(long)]
    pub(crate) prefetch: bool,
    /// Record what is needed first.
    #[arg(long)]
    pub(crate) record: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_verb_and_argument_has_help() {
        for verb in Cli::command().get_subcommands() {
            assert!(verb.get_about().is_some(), "{}", verb.get_name());
            for argument in verb.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {}", verb.get_name(), argument.get_id());
            }
        }
    }
}
