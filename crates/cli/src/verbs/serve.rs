//! `elision serve`: the process that reads an image's memory as VMs need it.

use crate::args::ServeArgs;
use elision_serve::{ServeOptions, serve_main};
use std::process::ExitCode;

pub(crate) fn run(args: &ServeArgs) -> ExitCode {
    let options = ServeOptions { prefetch: args.prefetch, record: args.record };
    match crate::harden::forbid_core_dumps() {
        Ok(()) => serve_main(&args.image, options),
        Err(_) => ExitCode::FAILURE,
    }
}
