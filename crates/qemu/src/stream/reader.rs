//! Bounded big-endian reading with a position, so that every error can say where.

use crate::error::{QemuError, Result};
use std::io::{ErrorKind, Read};

/// Reads a stream front to back.
#[derive(Debug)]
pub(crate) struct BigEndian<R> {
    input: R,
    at: u64,
}

impl<R: Read> BigEndian<R> {
    pub(crate) fn new(input: R) -> Self {
        Self { input, at: 0 }
    }

    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    pub(crate) fn fill(&mut self, out: &mut [u8]) -> Result<()> {
        self.input.read_exact(out).map_err(|e| match e.kind() {
            ErrorKind::UnexpectedEof => QemuError::Truncated { at: self.at },
            _ => QemuError::io("read the migration stream")(e),
        })?;
        self.at += out.len() as u64;
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    pub(crate) fn u8(&mut self) -> Result<u8> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    pub(crate) fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    /// `len` bytes, which the caller has bounded.
    pub(crate) fn bytes(&mut self, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    /// A name: one byte for its length, then its text.
    pub(crate) fn name(&mut self) -> Result<String> {
        let len = usize::from(self.u8()?);
        let bytes = self.bytes(len)?;
        String::from_utf8(bytes).map_err(|_| self.error("a name is not text"))
    }

    /// Everything up to the end of the stream, at most `limit` bytes.
    pub(crate) fn rest(&mut self, limit: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![];
        let mut bounded = (&mut self.input).take(limit.saturating_add(1));
        bounded.read_to_end(&mut bytes).map_err(QemuError::io("read the migration stream"))?;
        if bytes.len() as u64 > limit {
            return Err(QemuError::TooLarge { limit });
        }
        self.at += bytes.len() as u64;
        Ok(bytes)
    }

    pub(crate) fn error(&self, why: impl Into<String>) -> QemuError {
        QemuError::Stream { at: self.at, why: why.into() }
    }
}
