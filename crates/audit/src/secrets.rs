//! The secrets to look for: read from a file so that they stand in no command line, never printed.

use crate::AuditError;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Shortest secret, in bytes.
pub const MIN_BYTES: usize = 4;
/// Longest secret, in bytes.
pub const MAX_BYTES: usize = 64 << 10;
/// Most secrets at once.
pub const MAX_SECRETS: usize = 4096;
/// Most bytes of a file of secrets that are read.
const FILE_BYTES: u64 = 16 << 20;

/// Byte strings to look for, known by their index.
#[derive(Clone)]
pub struct Secrets(Vec<Box<[u8]>>);

impl Secrets {
    /// One secret on each line; empty lines are skipped, a line may end in CR LF.
    pub fn from_lines(path: &Path) -> Result<Self, AuditError> {
        let text = read(path, FILE_BYTES)?;
        let mut secrets = Vec::new();
        for (line, secret) in (1..).zip(text.split(|&b| b == b'\n')) {
            let secret = secret.strip_suffix(b"\r").unwrap_or(secret);
            if secret.is_empty() {
                continue;
            }
            check(secret, path, line)?;
            if secrets.len() == MAX_SECRETS {
                return Err(AuditError::Many(path.to_owned()));
            }
            secrets.push(secret.into());
        }
        if secrets.is_empty() { Err(AuditError::Empty(path.to_owned())) } else { Ok(Self(secrets)) }
    }

    /// The whole file is one secret, with every byte of it.
    pub fn from_whole_file(path: &Path) -> Result<Self, AuditError> {
        let secret = read(path, MAX_BYTES as u64)?;
        if secret.is_empty() {
            return Err(AuditError::Empty(path.to_owned()));
        }
        check(&secret, path, 1)?;
        Ok(Self(vec![secret.into()]))
    }

    /// Secrets that the caller already has.
    pub fn from_bytes<'a>(secrets: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, AuditError> {
        let name = Path::new("the list of secrets");
        let secrets: Vec<Box<[u8]>> = secrets.into_iter().map(Into::into).collect();
        for (line, secret) in (1..).zip(&secrets) {
            check(secret, name, line)?;
        }
        match secrets.len() {
            0 => Err(AuditError::Empty(name.to_owned())),
            n if n > MAX_SECRETS => Err(AuditError::Many(name.to_owned())),
            _ => Ok(Self(secrets)),
        }
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Never: there is at least one.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(AsRef::as_ref)
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets({} of them)", self.0.len())
    }
}

fn check(secret: &[u8], path: &Path, line: usize) -> Result<(), AuditError> {
    let path = || path.to_owned();
    match secret.len() {
        n if n < MIN_BYTES => Err(AuditError::Short { path: path(), line }),
        _ if secret.iter().all(|&b| b == 0) => Err(AuditError::Zeros { path: path(), line }),
        n if n > MAX_BYTES => Err(AuditError::Long { path: path(), line }),
        _ => Ok(()),
    }
}

fn read(path: &Path, limit: u64) -> Result<Vec<u8>, AuditError> {
    let failed = |source| AuditError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).map_err(failed)?.take(limit + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > limit {
        return Err(AuditError::Long { path: path.to_owned(), line: 1 });
    }
    Ok(bytes)
}
