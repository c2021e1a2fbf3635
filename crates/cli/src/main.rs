//! `elision`: checkpoints of running virtual machines without chosen processes.
//!
//! This crate is the edge: arguments ([`args`]), one file for each verb ([`verbs`]), results
//! ([`output`]), errors ([`failure`]) and exit status ([`exit`]). What it does stands in the other crates.

mod agent;
mod args;
mod choices;
mod exit;
mod failure;
mod guest_memory;
mod harden;
mod in_use;
mod named;
mod output;
mod relations;
mod save;
mod selection;
mod session;
mod sockets;
mod summary;
mod text;
mod usage;
mod verbs;

use args::{Cli, Verb};
use exit::Exit;
use failure::Failure;
use output::Output;
use std::io;
use std::process::ExitCode;
use tracing_subscriber::filter::LevelFilter;

fn main() -> ExitCode {
    let cli = match usage::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(exit) => return exit.into(),
    };
    if let Verb::Guard(args) = &cli.verb {
        return verbs::guard::run(args); // it wants a process in which nothing has begun yet
    }
    if let Verb::Serve(args) = &cli.verb {
        return verbs::serve::run(args); // what it says goes to the process that has started it
    }
    log_to_stderr(cli.verbose);
    match dispatch(&cli) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            failure.print(cli.json);
            failure.exit().into()
        }
    }
}

fn dispatch(cli: &Cli) -> Result<Exit, Failure> {
    // QEMU takes the place of this process: limits set here would be its own.
    if !matches!(cli.verb, Verb::Run(_)) {
        harden::forbid_core_dumps()
            .map_err(|e| Failure::from_error(Exit::Failed, &e).with_help("Core dumps must be off"))?;
    }
    let out = &mut Output::new(cli.json);
    match &cli.verb {
        Verb::Run(args) => verbs::run::run(args, out),
        Verb::Ps(args) => verbs::ps::run(args, out),
        Verb::Plan(args) => verbs::plan::run(args, out),
        Verb::Save(args) => save::run(args, out),
        Verb::Restore(args) => verbs::restore::run(args, out),
        Verb::List(args) => verbs::list::run(args, out),
        Verb::Rm(args) => verbs::rm::run(args, out),
        Verb::Gc(args) => verbs::gc::run(args, out),
        Verb::Merge(args) => verbs::merge::run(args, out),
        Verb::Inspect(args) => verbs::inspect::run(args, out),
        Verb::Verify(args) => verbs::verify::run(args, out),
        Verb::Audit(args) => verbs::audit::run(args, out),
        Verb::Policy(args) => verbs::policy::run(args, out),
        Verb::Generate(args) => verbs::generate::run(args, out),
        Verb::Guard(_) | Verb::Serve(_) => Ok(Exit::Done), // have their own way out of `main`
    }
}

/// Log lines tell steps, numbers and addresses, never bytes of a guest.
fn log_to_stderr(verbose: u8) {
    let level = match verbose {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        _ => LevelFilter::DEBUG,
    };
    tracing_subscriber::fmt().with_writer(io::stderr).with_max_level(level).with_target(false).init();
}
