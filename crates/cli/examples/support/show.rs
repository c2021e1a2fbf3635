//! How the demo looks: commands as a shell takes them, what they said, and what was checked.

use super::text::shell;
use std::io::IsTerminal;

const WIDTH: usize = 110;

/// Prints to stdout, in colours if that is a terminal.
pub(crate) struct Show {
    colour: bool,
    failed: Vec<String>,
}

impl Show {
    pub(crate) fn new() -> Self {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { colour, failed: Vec::new() }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// The title of a step.
    pub(crate) fn step(&self, title: &str) {
        println!("\n{}", self.paint("1", title));
    }

    /// What this program says.
    pub(crate) fn say(&self, text: &str) {
        println!("  {text}");
    }

    /// An `elision` command.
    pub(crate) fn command(&self, words: &[String]) {
        let lines = wrapped("elision", words);
        println!("{} {}", self.paint("2", "$"), self.paint("36", &lines));
    }

    /// A command in words of another program.
    pub(crate) fn other_command(&self, prompt: &str, text: &str) {
        println!("{} {}", self.paint("2", prompt), self.paint("36", text));
    }

    /// What a command said.
    pub(crate) fn output(&self, text: &str) {
        for line in text.trim_end().lines() {
            println!("  {}", self.paint("2", line).trim_end());
        }
    }

    /// A claim that was checked.
    pub(crate) fn claim(&mut self, holds: bool, what: &str) {
        if holds {
            println!("  {}  {what}", self.paint("32", "yes"));
        } else {
            println!("  {}   {what}", self.paint("1;31", "NO"));
            self.failed.push(what.to_owned());
        }
    }

    /// The claims that did not hold.
    pub(crate) fn failed(&self) -> &[String] {
        &self.failed
    }
}

/// A command on as many lines as it needs, cut between options.
fn wrapped(program: &str, words: &[String]) -> String {
    let mut parts: Vec<String> = vec![program.to_owned()];
    let mut before_option = false;
    for word in words {
        let option = word.starts_with('-');
        let text = shell(std::slice::from_ref(word));
        match parts.last_mut() {
            Some(last) if before_option && !option => {
                last.push(' ');
                last.push_str(&text);
            }
            _ => parts.push(text),
        }
        before_option = option;
    }
    let mut lines = String::new();
    let mut column = 2;
    for (i, part) in parts.iter().enumerate() {
        if i > 0 && column + part.len() > WIDTH {
            lines.push_str(" \\\n    ");
            column = 4;
        } else if i > 0 {
            lines.push(' ');
        }
        lines.push_str(part);
        column += part.len() + 1;
    }
    lines
}
