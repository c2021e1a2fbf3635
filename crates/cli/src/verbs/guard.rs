//! `elision guard`: the process that lets a VM run on when its saver dies.
//!
//! It must run before anything opens a descriptor: it closes all that it inherited.

use crate::args::GuardArgs;
use std::process::ExitCode;

pub(crate) fn run(args: &GuardArgs) -> ExitCode {
    elision_qemu::guard_main(&args.duty, |partial| elision_image::remove_unfinished(partial).is_ok())
}
