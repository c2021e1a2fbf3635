//! `elision generate`: man pages and completions, from the definition that parses the command line.

use crate::args::{Cli, GenerateArgs};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::Output;
use clap::{CommandFactory, ValueEnum};
use clap_complete::Shell;
use serde::Serialize;
use std::fs;
use std::path::PathBuf;

#[derive(Serialize)]
struct Written {
    files: Vec<PathBuf>,
}

pub(crate) fn run(args: &GenerateArgs, out: &mut Output) -> Result<Exit, Failure> {
    let (man, completions) = (args.folder.join("man1"), args.folder.join("completions"));
    for folder in [&man, &completions] {
        fs::create_dir_all(folder).map_err(|e| Failure::io("create", folder, &e))?;
    }
    let mut files = Vec::new();
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let hidden: Vec<String> =
        command.get_subcommands().filter(|c| c.is_hide_set()).map(|c| c.get_name().to_owned()).collect();
    let verbs: Vec<_> = command.get_subcommands().filter(|c| !c.is_hide_set()).collect();
    let nested = verbs.iter().flat_map(|verb| verb.get_subcommands()).filter(|c| c.get_name() != "help");
    for page in std::iter::once(&command).chain(verbs.iter().copied()).chain(nested).cloned() {
        let name = page.get_display_name().unwrap_or_else(|| page.get_name()).to_owned();
        let path = man.join(format!("{name}.1"));
        let mut text = Vec::new();
        // With its version, and with the name that its synopsis shall have.
        let page = page.version(env!("CARGO_PKG_VERSION")).display_name(name);
        clap_mangen::Man::new(page).render(&mut text).map_err(|e| Failure::io("write", &path, &e))?;
        fs::write(&path, text).map_err(|e| Failure::io("write", &path, &e))?;
        files.push(path);
    }
    let mut visible = Cli::command();
    for name in hidden {
        visible = visible.mut_subcommand(name, |c| c.hide(true));
    }
    for shell in Shell::value_variants() {
        let path = clap_complete::generate_to(*shell, &mut visible, "elision", &completions)
            .map_err(|e| Failure::io("write completions into", &completions, &e))?;
        files.push(path);
    }
    out.result(&Written { files }, |written| {
        written.files.iter().map(|path| format!("{}\n", path.display())).collect()
    })?;
    Ok(Exit::Done)
}
