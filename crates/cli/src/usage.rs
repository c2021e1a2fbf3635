//! Parsing, and what is said when the command line is wrong.

use crate::args::Cli;
use crate::exit::Exit;
use crate::failure::Failure;
use clap::Parser;
use clap::error::ErrorKind;
use std::ffi::OsString;

/// The parsed command line; or, when help was asked for or something is wrong, the exit status after
/// saying so.
pub(crate) fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Cli, Exit> {
    let words: Vec<OsString> = words.into_iter().collect();
    // What stands after `--` is another program's.
    let wants_json = words.iter().take_while(|word| *word != "--").any(|word| word == "--json");
    Cli::try_parse_from(words).map_err(|error| {
        let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
        if wants_json && !asked {
            let text = error.render().to_string();
            let text = text.strip_prefix("error: ").unwrap_or(&text);
            Failure::new(Exit::Usage, text.trim_end()).print(true);
        } else {
            let _ = error.print();
        }
        if asked { Exit::Done } else { Exit::Usage }
    })
}
