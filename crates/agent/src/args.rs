//! The agent's command line. It is small enough to be read by hand.

use std::ffi::OsString;
use std::path::PathBuf;

pub(crate) const HELP: &str = "\
The part of Elision that runs in a guest.

Usage:
  elision-agent [serve] [--port PATH] [--config FILE]
  elision-agent run NAME -- COMMAND [ARGUMENT]...
  elision-agent private

  serve    Answers the host on the virtio-serial port org.elision.agent.0 (the default)
  run      Runs COMMAND as container NAME: the host leaves it and all that it starts out of a
           checkpoint with --exclude container=NAME
  private  Makes the terminal session that it is called in a container, and says its name

Options:
  --port PATH    The port's device, instead of the one with that name
  --config FILE  Instead of /etc/elision/agent.toml and /etc/elision/agent.d/*.toml
  --help, --version
";

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Answer the host.
    Serve(ServeOptions),
    /// Let everything run on if the agent does not; started by the agent.
    Watch,
    /// Start a container.
    Run {
        name: String,
        command: Vec<OsString>,
    },
    /// Make the terminal session a container.
    Private,
    Help,
    Version,
}

/// How to serve.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ServeOptions {
    pub(crate) port: Option<PathBuf>,
    pub(crate) config: Option<PathBuf>,
}

/// Reads the arguments behind the program's name; an error is in words.
pub(crate) fn parse(args: impl Iterator<Item = OsString>) -> Result<Command, String> {
    let mut args = args.peekable();
    let Some(first) = args.peek().map(|word| word.to_string_lossy().into_owned()) else { return serve(args) };
    let verb = match first.as_str() {
        "--help" | "-h" => return Ok(Command::Help),
        "--version" | "-V" => return Ok(Command::Version),
        option if option.starts_with('-') => return serve(args),
        verb => verb,
    };
    args.next();
    match verb {
        "serve" => serve(args),
        "run" => run(args),
        "private" => nothing_more(args).map(|()| Command::Private),
        "watch" => nothing_more(args).map(|()| Command::Watch),
        other => Err(unknown(other)),
    }
}

fn serve(mut args: impl Iterator<Item = OsString>) -> Result<Command, String> {
    let mut options = ServeOptions::default();
    while let Some(word) = args.next() {
        let value = match word.to_str() {
            Some("--port") => &mut options.port,
            Some("--config") => &mut options.config,
            _ => return Err(unknown(&word.to_string_lossy())),
        };
        let path = args.next().ok_or_else(|| format!("{} needs a path", word.to_string_lossy()))?;
        *value = Some(path.into());
    }
    Ok(Command::Serve(options))
}

fn run(mut args: impl Iterator<Item = OsString>) -> Result<Command, String> {
    let name = args.next().and_then(|word| word.into_string().ok()).unwrap_or_default();
    if !is_name(&name) {
        return Err("run needs a name of letters, digits, `-`, `_` and `.`, at most 64 of them".to_owned());
    }
    if args.next().is_none_or(|word| word != "--") {
        return Err("run needs `--` before the command".to_owned());
    }
    let command: Vec<OsString> = args.collect();
    if command.is_empty() {
        return Err("run needs a command".to_owned());
    }
    Ok(Command::Run { name, command })
}

/// Whether a container may be called so: it becomes the name of a folder.
pub(crate) fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (1..=64).contains(&name.len()) && name.chars().all(plain) && !name.starts_with('.')
}

fn nothing_more(mut args: impl Iterator<Item = OsString>) -> Result<(), String> {
    args.next().map_or(Ok(()), |word| Err(unknown(&word.to_string_lossy())))
}

fn unknown(word: &str) -> String {
    format!("{} is not understood; `elision-agent --help` says what is", word.escape_debug())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Command, String> {
        parse(words.iter().map(OsString::from))
    }

    #[test]
    fn arguments_are_read() {
        assert_eq!(parsed(&[]), Ok(Command::Serve(ServeOptions::default())));
        let options = ServeOptions { port: Some("/dev/vport0p1".into()), config: None };
        assert_eq!(parsed(&["--port", "/dev/vport0p1"]), Ok(Command::Serve(options)));
        let run = Command::Run { name: "vault".to_owned(), command: vec!["sh".into(), "-c".into()] };
        assert_eq!(parsed(&["run", "vault", "--", "sh", "-c"]), Ok(run));
        assert_eq!(parsed(&["private"]), Ok(Command::Private));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for wrong in [
            &["run"] as &[&str],
            &["run", "../up", "--", "sh"],
            &["run", ".", "--", "sh"],
            &["run", "vault", "sh"],
            &["run", "vault", "--"],
            &["private", "x"],
            &["--port"],
            &["fly"],
        ] {
            assert!(parsed(wrong).is_err(), "{wrong:?}");
        }
    }
}
