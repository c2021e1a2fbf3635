//! Reading an image: checked when opened, nothing in it trusted.

use crate::link::{Content, MAX_LINKS};
use crate::ranges::pieces;
use crate::{
    Base, EXCLUSIONS, Exclusions, FORMAT, FORMAT_LINK, FORMAT_PACKED, FileSum, INHERITED, ImageError,
    MANIFEST, MANIFEST_BYTES, Manifest, PAGE_HASHES, RAM, RAM_PACKED, STATE, STATE_BYTES,
};
use crate::{Problem, exclusions, packed::Packed, page_hashes, verify};
use elision_memory::Ram;
use rayon::prelude::*;
use rustix::fs::MemfdFlags;
use serde::Deserialize;
use std::fs::File;
use std::io::{self, Read};
use std::iter;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// What a thread loads at a time.
const PIECE: usize = 4 << 20;

/// An image whose manifest was read and whose files have the lengths it says.
#[derive(Debug)]
pub struct Image {
    dir: PathBuf,
    manifest: Manifest,
    base: Option<Box<Image>>,
}

impl Image {
    /// Opens an image and those that it builds on; says what is wrong with one that is not whole.
    pub fn open(dir: &Path) -> Result<Self, ImageError> {
        Self::open_chain(dir, MAX_LINKS)
    }

    fn open_chain(dir: &Path, links: usize) -> Result<Self, ImageError> {
        let manifest = read_manifest(dir)?;
        let mut image = Self { dir: dir.to_owned(), manifest, base: None };
        let others = image.manifest.files.beside_ram().map(|(name, sum)| (name, sum.bytes));
        for (name, bytes) in iter::once(image.ram_file()).chain(others) {
            image.open_file(name, bytes)?;
        }
        if let Some(base) = &image.manifest.base {
            let links = links.checked_sub(1).ok_or_else(|| ImageError::LongChain(dir.to_owned()))?;
            image.base = Some(Box::new(image.open_base(base, links)?));
        }
        Ok(image)
    }

    fn open_base(&self, base: &Base, links: usize) -> Result<Self, ImageError> {
        let path = self.dir.join(&base.path);
        let opened = Self::open_chain(&path, links).and_then(|found| {
            let ours = &self.manifest.files.ram;
            let is_it = found.manifest.id == base.id && found.manifest.files.ram.bytes == ours.bytes;
            if is_it { Ok(found) } else { Err(ImageError::OtherBase(path.clone())) }
        });
        opened.map_err(|error| match error {
            long @ ImageError::LongChain(_) => long,
            source => {
                let source = Box::new(source);
                ImageError::BrokenBase { image: self.dir.clone(), base: path, source }
            }
        })
    }

    /// The image that it builds on.
    #[must_use]
    pub fn base(&self) -> Option<&Self> {
        self.base.as_deref()
    }

    /// It and all that it builds on.
    pub fn chain(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |image| image.base())
    }

    /// What the image says of itself.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The image's directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The image's own RAM file: what a restore gives to the hypervisor if it is all of the RAM ([`Image::is_mappable`]).
    #[must_use]
    pub fn ram_path(&self) -> PathBuf {
        self.dir.join(self.ram_file().0)
    }

    /// Whether the RAM file is compressed: then [`Image::unpack`] it before it is used.
    #[must_use]
    pub fn is_packed(&self) -> bool {
        self.manifest.files.ram.packed_bytes.is_some()
    }

    /// Whether [`Image::ram_path`] is all of its RAM and can be mapped. Otherwise [`Image::load`] it.
    #[must_use]
    pub fn is_mappable(&self) -> bool {
        !self.is_packed() && self.base.is_none()
    }

    /// The whole plain RAM file, in memory and without a name.
    pub fn load(&self) -> Result<File, ImageError> {
        if self.is_packed() {
            return self.unpack();
        }
        let path = self.ram_path();
        let failed = |e: io::Error| ImageError::io("load", &path, e);
        let memory = self.memory_file().map_err(failed)?;
        let content = self.content()?;
        let parts = content.data.par_iter().flat_map_iter(|run| pieces(run, PIECE));
        parts.try_for_each(|part| content.memory.write_out(&memory, &part)).map_err(failed)?;
        Ok(memory)
    }

    /// The plain RAM file of a compressed image, in memory and without a name.
    pub(crate) fn unpack(&self) -> Result<File, ImageError> {
        let (packed, path) = (self.packed()?, self.ram_path());
        let failed = |e: io::Error| match e.kind() {
            io::ErrorKind::InvalidData => ImageError::Damaged(path.clone()),
            _ => ImageError::io("unpack", &path, e),
        };
        let memory = self.memory_file().map_err(failed)?;
        packed.unpack(|offset, bytes| memory.write_all_at(bytes, offset)).map_err(failed)?;
        Ok(memory)
    }

    fn memory_file(&self) -> io::Result<File> {
        let memory = File::from(rustix::fs::memfd_create("elision-ram", MemfdFlags::CLOEXEC)?);
        memory.set_len(self.manifest.files.ram.bytes)?;
        Ok(memory)
    }

    /// Checks what can be checked of the RAM file without reading its chunks.
    pub fn check_ram(&self) -> Result<(), ImageError> {
        if self.is_packed() { self.packed().map(drop) } else { self.open_ram().map(drop) }
    }

    /// The file that holds RAM, and its length.
    fn ram_file(&self) -> (&'static str, u64) {
        let ram = &self.manifest.files.ram;
        ram.packed_bytes.map_or((RAM, ram.bytes), |bytes| (RAM_PACKED, bytes))
    }

    pub(crate) fn open_ram(&self) -> Result<File, ImageError> {
        let (name, bytes) = self.ram_file();
        self.open_file(name, bytes)
    }

    pub(crate) fn packed(&self) -> Result<Packed, ImageError> {
        let (path, ram) = (self.ram_path(), &self.manifest.files.ram);
        Packed::open(self.open_ram()?, ram.bytes, ram.chunk_bytes)
            .map_err(|e| ImageError::io("read", &path, e))?
            .map_err(|reason| ImageError::Table { path, reason })
    }

    /// The device state's file.
    #[must_use]
    pub fn state_path(&self) -> PathBuf {
        self.dir.join(STATE)
    }

    /// The guest's memory, mapped private: what is written to it never reaches the file. That of a compressed image
    /// is unpacked to memory; of one that builds on another its own part is.
    pub fn ram(&self) -> Result<Ram, ImageError> {
        if self.base.is_some() {
            let Content { memory, data } = self.content()?;
            return Ok(memory.into_whole_ram(self.manifest.ram_layout.clone(), data)?);
        }
        let file = if self.is_packed() { self.unpack()? } else { self.open_ram()? };
        Ok(Ram::private(&file, self.manifest.ram_layout.clone())?)
    }

    /// The device state, if it is the one that was written.
    pub fn state(&self) -> Result<Vec<u8>, ImageError> {
        self.read_whole(STATE, &self.manifest.files.state)
    }

    /// A file that is not RAM, if it is the one that was written.
    pub(crate) fn read_whole(&self, name: &str, sum: &FileSum) -> Result<Vec<u8>, ImageError> {
        let (file, path) = (self.open_file(name, sum.bytes)?, self.dir.join(name));
        let failed = |e| ImageError::io("read", &path, e);
        let mut bytes = Vec::new();
        let expected = usize::try_from(sum.bytes).map_err(|e| failed(io::Error::other(e)))?;
        bytes.try_reserve_exact(expected).map_err(|e| failed(io::Error::other(e)))?;
        file.take(sum.bytes).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() != expected {
            return Err(ImageError::Size { path, found: bytes.len() as u64, expected: sum.bytes });
        }
        if blake3::hash(&bytes).to_hex().as_str() != sum.blake3 {
            return Err(ImageError::Damaged(path));
        }
        Ok(bytes)
    }

    /// What was left out and changed.
    pub fn exclusions(&self) -> Result<Exclusions, ImageError> {
        let file = self.open_file(EXCLUSIONS, self.manifest.files.exclusions.bytes)?;
        let source = |source| ImageError::Exclusions { path: self.dir.join(EXCLUSIONS), source };
        Exclusions::decode(io::BufReader::new(file.take(exclusions::FILE_BYTES))).map_err(source)
    }

    /// Checks everything that can be checked without restoring. No problem means an empty list.
    ///
    /// `progress` is told of bytes of RAM as they are done, from several threads.
    pub fn verify(&self, progress: &(dyn Fn(u64) + Sync)) -> Result<Vec<Problem>, ImageError> {
        verify::verify(self, progress)
    }

    pub(crate) fn open_file(&self, name: &str, expected: u64) -> Result<File, ImageError> {
        let path = self.dir.join(name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(ImageError::Missing(path)),
            Err(e) => return Err(ImageError::io("open", &path, e)),
        };
        let meta = file.metadata().map_err(|e| ImageError::io("look at", &path, e))?;
        if !meta.is_file() {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file");
            return Err(ImageError::io("open", &path, error));
        }
        if meta.len() == expected {
            Ok(file)
        } else {
            Err(ImageError::Size { path, found: meta.len(), expected })
        }
    }
}

/// The one field that every format has.
#[derive(Deserialize)]
struct FormatOnly {
    format: u64,
}

fn read_manifest(dir: &Path) -> Result<Manifest, ImageError> {
    let path = dir.join(MANIFEST);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Err(ImageError::NotAnImage(dir.to_owned()));
        }
        Err(e) => return Err(ImageError::io("open", &path, e)),
    };
    let mut text = Vec::new();
    file.take(MANIFEST_BYTES + 1).read_to_end(&mut text).map_err(|e| ImageError::io("read", &path, e))?;
    let bad = |reason: String| ImageError::Manifest { path: path.clone(), reason };
    if text.len() as u64 > MANIFEST_BYTES {
        return Err(bad(format!("it has more than {MANIFEST_BYTES} bytes")));
    }
    let format: FormatOnly = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
    if !(u64::from(FORMAT)..=u64::from(FORMAT_LINK)).contains(&format.format) {
        return Err(ImageError::Format { path: dir.to_owned(), found: format.format, known: FORMAT_LINK });
    }
    let manifest: Manifest = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
    let files = &manifest.files;
    let (needed, ram) = (manifest.ram_layout.file_len(), files.ram.bytes);
    if ram < needed {
        return Err(bad(format!("its RAM layout needs {needed} bytes, but it says that {RAM} has {ram}")));
    }
    manifest.check_blocks().map_err(&bad)?;
    if files.ram.packed_bytes.is_some() != (manifest.format == FORMAT_PACKED) {
        return Err(bad(format!("it does not say clearly whether RAM is in {RAM} or in {RAM_PACKED}")));
    }
    let is_link = manifest.format == FORMAT_LINK;
    if manifest.base.is_some() != is_link || files.inherited.is_some() != is_link {
        return Err(bad("it does not say clearly whether it builds on another image".to_owned()));
    }
    if files.inherited.as_ref().is_some_and(|sum| sum.bytes > ram) {
        return Err(bad(format!("it says that {INHERITED} is larger than any such file")));
    }
    if files.ram.chunk_hashes().is_none() {
        return Err(bad(format!("its list of checksums does not fit the length of {RAM}")));
    }
    if files.page_hashes.as_ref().is_some_and(|sum| sum.bytes != page_hashes::file_bytes(ram)) {
        return Err(bad(format!("the length of {PAGE_HASHES} does not fit that of {RAM}")));
    }
    if files.state.bytes > STATE_BYTES || files.exclusions.bytes > exclusions::FILE_BYTES {
        return Err(bad(format!("it says that {STATE} or {EXCLUSIONS} is larger than any such file")));
    }
    Ok(manifest)
}
