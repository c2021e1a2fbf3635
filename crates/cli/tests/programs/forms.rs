//! How programs keep a secret in memory.

use std::io::Write;
use std::process::{Command, Stdio};

/// A form of a secret.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Form {
    /// As it is, or as `elision audit` knows it.
    Plain,
    /// A number of OpenSSL: its lowest byte first.
    Number,
    /// A private key as a PEM file of the curve P-256 has it.
    Pem,
    /// Cells of a tmux pane: attributes, colours (8 is the default), character, flags.
    TmuxCells,
}

impl Form {
    /// The secret in this form.
    pub(crate) fn of(self, secret: &[u8]) -> Vec<u8> {
        match self {
            Self::Plain => secret.to_vec(),
            Self::Number => secret.iter().rev().copied().collect(),
            // Seven bytes stand before it; groups of three begin two bytes further on.
            Self::Pem => base64(&secret[2..]),
            Self::TmuxCells => secret.iter().flat_map(|&c| [0, 8, 8, c, 0]).collect(),
        }
    }
}

fn base64(bytes: &[u8]) -> Vec<u8> {
    let mut child =
        Command::new("base64").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("base64");
    child.stdin.take().expect("a pipe").write_all(bytes).expect("base64 reads");
    child.wait_with_output().expect("base64 ends").stdout.trim_ascii_end().to_vec()
}
