//! A file system with one file: the plain RAM file of an image.
//!
//! Nothing can be written to it. QEMU opens the file for writing even where it maps it private, so that is allowed.

use crate::chunks::{Chunk, Chunks};
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, OpenFlags,
    ReplyAttr, ReplyData, ReplyEntry, ReplyLseek, ReplyOpen, Request,
};
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::{Deref, Range};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

/// The file's number.
pub(crate) const FILE: INodeNo = INodeNo(2);
/// Nothing ever changes.
const FOREVER: Duration = Duration::from_secs(1 << 30);
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

/// The chunks that were needed, in the order in which they were.
#[derive(Debug, Default)]
pub(crate) struct Needed {
    seen: BTreeSet<u64>,
    order: Vec<u64>,
}

impl Needed {
    fn add(&mut self, chunk: u64) {
        if self.seen.insert(chunk) {
            self.order.push(chunk);
        }
    }

    pub(crate) fn order(&self) -> &[u64] {
        &self.order
    }
}

/// What a read is answered with. What lies in one chunk is not copied for it.
enum Bytes {
    Part(Chunk, Range<usize>),
    Gathered(Vec<u8>),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Part(chunk, range) => chunk.get(range.clone()).unwrap_or_default(),
            Self::Gathered(bytes) => bytes,
        }
    }
}

/// The file system.
#[derive(Debug)]
pub(crate) struct OneFile {
    chunks: Arc<Chunks>,
    name: OsString,
    needed: Option<Arc<Mutex<Needed>>>,
}

impl OneFile {
    pub(crate) fn new(chunks: Arc<Chunks>, name: OsString, needed: Option<Arc<Mutex<Needed>>>) -> Self {
        Self { chunks, name, needed }
    }

    fn attributes(&self, inode: INodeNo) -> FileAttr {
        let is_file = inode == FILE;
        FileAttr {
            ino: inode,
            size: if is_file { self.chunks.ram().bytes() } else { 0 },
            blocks: if is_file { self.chunks.ram().bytes().div_ceil(512) } else { 0 },
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if is_file { FileType::RegularFile } else { FileType::Directory },
            perm: if is_file { 0o600 } else { 0o700 },
            nlink: 1,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    /// What stands from `offset` on, cut at the end of the file.
    fn bytes(&self, offset: u64, size: u32) -> io::Result<Bytes> {
        let ram = self.chunks.ram();
        let end = offset.saturating_add(size.into()).min(ram.bytes());
        let mut gathered = Vec::new();
        let mut at = offset;
        while at < end {
            let i = at / ram.chunk_bytes();
            if let Some(needed) = &self.needed {
                needed.lock().unwrap_or_else(PoisonError::into_inner).add(i);
            }
            let start = i * ram.chunk_bytes();
            let stop = end.min(start + ram.chunk_bytes());
            let index = |at: u64| usize::try_from(at - start).map_err(io::Error::other);
            let range = index(at)?..index(stop)?;
            if ram.is_zero(i) {
                gathered.resize(gathered.len() + range.len(), 0);
            } else {
                let chunk = self.chunks.get(i)?;
                let part = chunk.get(range.clone()).ok_or(io::ErrorKind::UnexpectedEof)?;
                if (at, stop) == (offset, end) {
                    return Ok(Bytes::Part(chunk, range));
                }
                gathered.extend_from_slice(part);
            }
            at = stop;
        }
        Ok(Bytes::Gathered(gathered))
    }

    /// Data and holes by chunks: a chunk that is not known to be zero is data.
    fn seek(&self, offset: i64, whence: i32) -> Result<i64, Errno> {
        let end = self.chunks.ram().bytes();
        let offset = u64::try_from(offset).ok().filter(|offset| *offset < end).ok_or(Errno::ENXIO)?;
        let data = match whence {
            SEEK_DATA => true,
            SEEK_HOLE => false,
            _ => return Err(Errno::EINVAL),
        };
        let chunk_bytes = self.chunks.ram().chunk_bytes();
        let found = (offset / chunk_bytes..self.chunks.ram().chunks())
            .find(|i| self.chunks.ram().is_zero(*i) != data);
        let found = match found {
            Some(i) => offset.max(i * chunk_bytes),
            None if data => return Err(Errno::ENXIO),
            None => end,
        };
        i64::try_from(found).map_err(|_| Errno::EINVAL)
    }
}

impl Filesystem for OneFile {
    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent == INodeNo::ROOT && name == self.name {
            reply.entry(&FOREVER, &self.attributes(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _req: &Request, inode: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&FOREVER, &self.attributes(inode));
    }

    fn open(&self, _req: &Request, _inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // What one VM has read, the next one finds.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _req: &Request,
        _inode: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.bytes(offset, size) {
            Ok(bytes) => reply.data(&bytes),
            Err(_) => reply.error(Errno::EIO),
        }
    }

    fn lseek(
        &self,
        _req: &Request,
        _inode: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        match self.seek(offset, whence) {
            Ok(found) => reply.offset(found),
            Err(errno) => reply.error(errno),
        }
    }
}
