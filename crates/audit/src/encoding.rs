//! The forms that a secret takes in memory.
//!
//! A pattern is one or more pieces at fixed distances, because the reversed form has gaps:
//! ```text
//! secret "secret-key" in a register's words, from byte 5 of the first word on:
//! memory     . . . . . s e c | r e t - k e y .
//! stream     c e s . . . . . | . y e k - t e r      each 8-byte word reversed (big-endian)
//!            piece   5 + 1 unknown bytes   piece
//! ```

use crate::typed::{Set, codes};
use serde::Serialize;
use std::fmt;
use std::fmt::Write;

/// Bytes of a word that is stored reversed.
const WORD: usize = 8;
/// Shortest piece that is searched for; shorter ones occur too often.
const MIN_PIECE: usize = 4;
/// Grey on black: the colours of a text console where no program chose others.
const COLOURS: u8 = 0x07;

/// How a secret was written where it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Encoding {
    /// As it is.
    Raw,
    /// UTF-16, low byte first.
    Utf16Le,
    /// UTF-16, high byte first.
    Utf16Be,
    /// Hexadecimal digits, `a` to `f`.
    HexLower,
    /// Hexadecimal digits, `A` to `F`.
    HexUpper,
    /// Each 8-byte word reversed, as a migration stream stores vector registers. A secret of fewer
    /// than 7 bytes that crosses a word's end with fewer than 4 bytes on each side is not looked for.
    ReversedWords,
    /// UTF-32, low byte first, as Linux keeps the characters of a text console.
    Utf32Le,
    /// Cells of a text mode: a character and its colours, which are looked for as grey on black.
    TextCells,
    /// What a keyboard sends when it is typed: codes of set 1.
    TypedSet1,
    /// What a keyboard sends when it is typed: codes of set 2.
    TypedSet2,
}

impl Encoding {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Raw,
        Self::Utf16Le,
        Self::Utf16Be,
        Self::HexLower,
        Self::HexUpper,
        Self::ReversedWords,
        Self::Utf32Le,
        Self::TextCells,
        Self::TypedSet1,
        Self::TypedSet2,
    ];

    /// The patterns that show the secret in this encoding.
    pub(crate) fn patterns(self, secret: &[u8]) -> Vec<Pattern> {
        match self {
            Self::Raw => vec![Pattern::plain(secret.to_vec())],
            Self::Utf16Le => vec![Pattern::plain(utf16(secret, u16::to_le_bytes))],
            Self::Utf16Be => vec![Pattern::plain(utf16(secret, u16::to_be_bytes))],
            Self::HexLower => vec![Pattern::plain(hex(secret, |out, b| write!(out, "{b:02x}")))],
            // Without letters the two are the same, and are found as lower case.
            Self::HexUpper => {
                let upper = hex(secret, |out, b| write!(out, "{b:02X}"));
                let differs = upper != hex(secret, |out, b| write!(out, "{b:02x}"));
                if differs { vec![Pattern::plain(upper)] } else { vec![] }
            }
            Self::ReversedWords => reversed(secret),
            Self::Utf32Le => vec![Pattern::plain(utf32(secret))],
            Self::TextCells => {
                vec![Pattern::plain(secret.iter().flat_map(|&character| [character, COLOURS]).collect())]
            }
            Self::TypedSet1 => codes(secret, Set::One).map(Pattern::plain).into_iter().collect(),
            Self::TypedSet2 => codes(secret, Set::Two).map(Pattern::plain).into_iter().collect(),
        }
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Utf16Le => "UTF-16LE",
            Self::Utf16Be => "UTF-16BE",
            Self::HexLower => "hex (lower case)",
            Self::HexUpper => "hex (upper case)",
            Self::ReversedWords => "8-byte words reversed",
            Self::Utf32Le => "UTF-32LE",
            Self::TextCells => "cells of a text screen",
            Self::TypedSet1 => "typed (scan codes, set 1)",
            Self::TypedSet2 => "typed (scan codes, set 2)",
        })
    }
}

/// Pieces of bytes at fixed distances, by ascending position from the pattern's start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pattern {
    pub(crate) pieces: Vec<(usize, Vec<u8>)>,
}

impl Pattern {
    fn plain(bytes: Vec<u8>) -> Self {
        Self { pieces: vec![(0, bytes)] }
    }

    /// Bytes from the start of the first piece to the end of the last.
    pub(crate) fn len(&self) -> usize {
        self.pieces.last().map_or(0, |(at, bytes)| at + bytes.len())
    }
}

/// A text becomes UTF-16 by its characters; what is no UTF-8 text, each byte as a character.
fn utf16(secret: &[u8], bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
    match std::str::from_utf8(secret) {
        Ok(text) => text.encode_utf16().flat_map(bytes).collect(),
        Err(_) => secret.iter().flat_map(|&b| bytes(u16::from(b))).collect(),
    }
}

/// As [`utf16`], with four bytes for each character.
fn utf32(secret: &[u8]) -> Vec<u8> {
    match std::str::from_utf8(secret) {
        Ok(text) => text.chars().flat_map(|c| u32::from(c).to_le_bytes()).collect(),
        Err(_) => secret.iter().flat_map(|&b| u32::from(b).to_le_bytes()).collect(),
    }
}

fn hex(secret: &[u8], digit: impl Fn(&mut String, u8) -> fmt::Result) -> Vec<u8> {
    let mut out = String::with_capacity(2 * secret.len());
    for &byte in secret {
        let _ = digit(&mut out, byte); // writing to a String does not fail
    }
    out.into_bytes()
}

/// One pattern for each place in a word where the secret may begin.
fn reversed(secret: &[u8]) -> Vec<Pattern> {
    let mut patterns: Vec<Pattern> = Vec::new();
    for start in 0..WORD {
        let (head, rest) = secret.split_at(secret.len().min(WORD - start));
        let back = |part: &[u8]| part.iter().rev().copied().collect::<Vec<u8>>();
        // In its word, reversed, a part that began at `start` ends at `WORD - start`.
        let mut pieces: Vec<(usize, Vec<u8>)> = vec![(WORD - start - head.len(), back(head))];
        for (i, word) in (1..).zip(rest.chunks(WORD)) {
            let at = i * WORD + (WORD - word.len());
            match pieces.last_mut() {
                Some((before, bytes)) if *before + bytes.len() == at => bytes.extend(back(word)),
                _ => pieces.push((at, back(word))),
            }
        }
        let first = pieces.first().map_or(0, |(at, _)| *at);
        pieces.iter_mut().for_each(|(at, _)| *at -= first);
        let pattern = Pattern { pieces };
        let findable = pattern.pieces.iter().any(|(_, bytes)| bytes.len() >= MIN_PIECE);
        if findable && !patterns.contains(&pattern) {
            patterns.push(pattern);
        }
    }
    patterns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drawing_is_true() {
        let all = reversed(b"secret-key");
        let drawn = Pattern { pieces: vec![(0, b"ces".to_vec()), (9, b"yek-ter".to_vec())] };
        assert!(all.contains(&drawn), "{all:?}");
        assert_eq!(all.len(), WORD);
    }

    #[test]
    fn a_secret_of_7_bytes_is_found_from_every_start() {
        assert_eq!(reversed(b"1234567").len(), 1 + 6, "whole in a word from 0 and 1, split from 2 to 7");
        assert_eq!(reversed(b"12345678").len(), 8);
    }
}
