//! The program that plays processes inside a test guest, and the server that starts them.
//!
//! ```text
//! actor serve                                   process 1: requests on the second serial port
//! actor play LABEL PLACES MODE SEED SLOT        a played process
//! actor meet LABEL ENDS                         a process that shares things with others
//! actor truth [symbols] [types]                 ground truth to the debug port
//! actor storm ROUNDS                            ordinary work with checks
//! actor secret LABEL [COPIES]                   a secret, for the input of another program
//! ```

mod channels;
mod counter;
mod debug_port;
mod idle;
mod marks;
mod meet;
mod places;
mod play;
mod procfs;
mod reaper;
mod region;
mod serve;
mod spawn;
mod storm;
mod truth;

use std::io::{self, Write};
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("actor {}: {e}", words.join(" "));
            ExitCode::FAILURE
        }
    }
}

/// Writes the secret of a label, so often.
fn say(label: &str, copies: usize) -> io::Result<()> {
    let secret = elision_actor::secret::secret(elision_actor::secret::DEFAULT_SEED, label);
    io::stdout().write_all(&secret.repeat(copies))
}

fn run(words: &[&str]) -> io::Result<()> {
    let bad = || io::Error::new(io::ErrorKind::InvalidInput, "Bad arguments");
    match words {
        ["serve"] => serve::run(),
        ["play", label, places, mode, seed, slot] => {
            let role = play::Role {
                label: (*label).to_owned(),
                places: (*places).to_owned(),
                mode: (*mode).to_owned(),
                seed: (*seed).to_owned(),
                slot: slot.parse().map_err(|_| bad())?,
                comm: std::env::var("ACTOR_COMM").ok(),
            };
            role.play()
        }
        ["truth", options @ ..] => truth::run(options.contains(&"symbols"), options.contains(&"types")),
        ["secret", label] => say(label, 1),
        ["secret", label, copies] => say(label, copies.parse().map_err(|_| bad())?),
        ["meet", label, ends] => meet::run(label, ends),
        ["storm", rounds] => storm::run(rounds.parse().map_err(|_| bad())?),
        _ => Err(bad()),
    }
}
