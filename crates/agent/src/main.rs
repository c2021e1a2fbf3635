//! `elision-agent`: the part of Elision that runs in a guest.
//!
//! ```text
//! elision-agent [serve]                    answers the host on its virtio-serial port
//! elision-agent run NAME -- COMMAND        runs a command as the container NAME
//! elision-agent private                    makes the terminal session of the caller a container
//! ```
//! Elision needs no agent, and no checkpoint is less clean for the want of one. With one, the processes that are left
//! out stand still at the stop, and a restored guest is put in order at once. What the host may ask for is said by the
//! guest's owner ([`config`]); nothing that the host sends can make the agent do more.

mod args;
mod calm;
mod cards;
mod cgroup;
mod config;
mod container;
mod error;
mod files;
mod generation;
mod hooks;
mod identity;
mod khugepaged;
mod notice;
mod port;
mod procfs;
mod random;
mod restored;
mod serve;
mod services;
mod swap;
mod sys;
mod watchdog;

use args::Command;
use error::AgentError;
use std::process::ExitCode;

fn main() -> ExitCode {
    let command = match args::parse(std::env::args_os().skip(1)) {
        Ok(command) => command,
        Err(text) => {
            eprintln!("elision-agent: {text}");
            return ExitCode::from(2);
        }
    };
    match run(command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("elision-agent: {}", error::chain(&error));
            ExitCode::from(4)
        }
    }
}

fn run(command: Command) -> Result<ExitCode, AgentError> {
    match command {
        Command::Help => {
            print!("{}", args::HELP);
            Ok(ExitCode::SUCCESS)
        }
        Command::Version => {
            println!("elision-agent {}", env!("CARGO_PKG_VERSION"));
            Ok(ExitCode::SUCCESS)
        }
        Command::Serve(options) => serve::run(&options),
        Command::Watch => watchdog::run(),
        Command::Run { name, command } => Err(container::run(&name, &command)),
        Command::Private => container::private(),
    }
}
