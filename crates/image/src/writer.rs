//! Writing an image: parts in any order into the partial folder, then checksums, sync and rename.
//!
//! Checksums are made in [`ImageWriter::finish`], when the VM runs again: hashing takes about as long
//! as writing and would double the pause, while the pages are still in the page cache afterwards.
//! It goes on beside the sync of `ram.img`, which waits for the disk and not for the processor.

use crate::partial::Partial;
use crate::ram_writer::{Late, Written};
use crate::{
    EXCLUSIONS, Exclusions, FORMAT, FileSum, Files, ImageError, MANIFEST, RAM, RamFile, RamStats, STATE,
    StreamWriter,
};
use crate::{Manifest, checksum, ram_writer};
use elision_memory::{FileOffset, Ram, RamLayout};
use elision_plan::{Edit, Plan};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

/// An image being written. Dropping it without [`ImageWriter::finish`] leaves nothing behind.
#[derive(Debug)]
pub struct ImageWriter {
    partial: Partial,
    started: Instant,
    ram: Option<RamImage>,
    state: Option<File>,
    exclusions: Option<File>,
}

/// `ram.img` as far as it is written.
#[derive(Debug)]
struct RamImage {
    file: File,
    layout: RamLayout,
    written: Written,
}

impl ImageWriter {
    /// Begins an image that will be called `target`.
    ///
    /// A partial folder that a dead saver left for the same target is removed.
    pub fn create(target: &Path) -> Result<Self, ImageError> {
        let started = Instant::now();
        Ok(Self { partial: Partial::create(target)?, started, ram: None, state: None, exclusions: None })
    }

    /// Where the image is while it is unfinished; a guardian may remove it when the saver is dead
    /// ([`crate::remove_stale`]).
    #[must_use]
    pub fn partial_path(&self) -> &Path {
        self.partial.path()
    }

    /// Writes RAM as the plan says, with `threads` threads (at least one, at most 64).
    ///
    /// The VM must be stopped: which parts of its RAM file hold data is asked here, once.
    /// The plan's late frames are kept in memory until [`ImageWriter::write_late`].
    pub fn write_ram(&mut self, ram: &Ram, plan: &Plan, threads: usize) -> Result<RamStats, ImageError> {
        self.ram = None;
        let file = self.new_file(RAM)?;
        let written = ram_writer::write(&file, self.partial.path(), ram, plan, threads)?;
        let stats = written.stats;
        self.ram = Some(RamImage { file, layout: ram.layout().clone(), written });
        Ok(stats)
    }

    /// Begins to write RAM that comes page by page, as the plan says. `ram` is what the plan was made on, and the
    /// VM has not run since: what the plan changes must come as it is there, or the pages are refused.
    pub fn begin_stream<'p>(&mut self, ram: &Ram, plan: &'p Plan) -> Result<StreamWriter<'p>, ImageError> {
        self.ram = None;
        StreamWriter::new(self.new_file(RAM)?, self.partial.path(), ram, plan)
    }

    /// Takes RAM of which every page has come. As after [`ImageWriter::write_ram`] the late frames still wait.
    pub fn end_stream(&mut self, stream: StreamWriter<'_>) -> Result<RamStats, ImageError> {
        let (file, layout, written) = stream.finish()?;
        let stats = written.stats;
        self.ram = Some(RamImage { file, layout, written });
        Ok(stats)
    }

    /// What was copied, the late frames included: the guest's memory as it was when it was written, while
    /// the guest itself may run on. What the plan left out reads as zeros.
    pub fn copied_ram(&self) -> Result<Ram, ImageError> {
        let image = self.ram.as_ref().ok_or(ImageError::Unfinished(RAM))?;
        let mut ram = Ram::private(&self.open(RAM)?, image.layout.clone())?;
        for (gfn, frame) in image.written.late.each() {
            ram.poke(gfn.gpa(), frame)?;
        }
        Ok(ram)
    }

    /// Takes back what was written of RAM, to write it anew.
    pub fn discard_ram(&mut self) -> Result<(), ImageError> {
        self.ram = None;
        std::fs::remove_file(self.path(RAM)).map_err(|e| self.failed("remove", RAM, e))
    }

    /// Writes the late frames with the changes that a look at the copy led to.
    pub fn write_late(&mut self, edits: &[Edit]) -> Result<RamStats, ImageError> {
        let image = self.ram.as_mut().ok_or(ImageError::Unfinished(RAM))?;
        let Written { stats, data, late } = &mut image.written;
        late.change(edits)?;
        ram_writer::write_late(&image.file, self.partial.path(), &image.layout, late, stats, data)?;
        *late = Late::default();
        Ok(*stats)
    }

    /// Writes the device state.
    pub fn write_state(&mut self, bytes: &[u8]) -> Result<(), ImageError> {
        let mut file = self.new_file(STATE)?;
        file.write_all(bytes).map_err(|e| self.failed("write", STATE, e))?;
        self.state = Some(file);
        Ok(())
    }

    /// Writes the map of what the plan leaves out.
    pub fn write_exclusions(&mut self, plan: &Plan) -> Result<(), ImageError> {
        let mut file = self.new_file(EXCLUSIONS)?;
        Exclusions::from(plan).encode(&mut file).map_err(|e| self.failed("write", EXCLUSIONS, e))?;
        self.exclusions = Some(file);
        Ok(())
    }

    /// Makes the image whole and gives it its name: checksums, manifest, sync, rename.
    ///
    /// `format`, `files` and `times.total_ms` of the manifest are filled in here. Returns the manifest
    /// as it was written. `progress` is told of bytes of RAM as their checksums are done, from several threads.
    pub fn finish(
        mut self,
        mut manifest: Manifest,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Manifest, ImageError> {
        let RamImage { file: ram, written: Written { data, late, .. }, .. } =
            self.ram.take().ok_or(ImageError::Unfinished(RAM))?;
        if !late.is_empty() {
            return Err(ImageError::Unfinished(RAM));
        }
        let state = self.state.take().ok_or(ImageError::Unfinished(STATE))?;
        let exclusions = self.exclusions.take().ok_or(ImageError::Unfinished(EXCLUSIONS))?;
        let (synced, sums) = thread::scope(|scope| {
            let sync = scope.spawn(|| {
                self.sync(&ram, RAM)?;
                self.sync(&state, STATE)?;
                self.sync(&exclusions, EXCLUSIONS)
            });
            let sums = self.sum_ram(&data, progress);
            (sync.join().unwrap_or(Err(ImageError::Unfinished(RAM))), sums)
        });
        synced?;
        let mut ram = sums?;
        // Only now: a file system may choose blocks as late as the sync.
        let meta = self.open(RAM)?.metadata().map_err(|e| self.failed("look at", RAM, e))?;
        ram.stored_bytes = meta.blocks() * 512;
        manifest.format = FORMAT;
        manifest.files = Files { ram, state: self.sum(STATE)?, exclusions: self.sum(EXCLUSIONS)? };
        manifest.times.total_ms = self.started.elapsed().as_secs_f64() * 1000.0;

        let mut text = serde_json::to_vec_pretty(&manifest).map_err(ImageError::Encode)?;
        text.push(b'\n');
        let mut file = self.new_file(MANIFEST)?;
        file.write_all(&text).map_err(|e| self.failed("write", MANIFEST, e))?;
        self.sync(&file, MANIFEST)?;
        self.partial.rename()?;
        Ok(manifest)
    }

    fn sum_ram(
        &self,
        data: &[Range<FileOffset>],
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<RamFile, ImageError> {
        let file = self.open(RAM)?;
        let meta = file.metadata().map_err(|e| self.failed("look at", RAM, e))?;
        let chunk_bytes = checksum::chunk_bytes(meta.len());
        let chunks = checksum::chunk_hashes(&file, meta.len(), chunk_bytes, data, progress)
            .map_err(|e| self.failed("read back", RAM, e))?;
        Ok(RamFile {
            bytes: meta.len(),
            stored_bytes: 0,
            chunk_bytes,
            root: checksum::root(&chunks).to_hex().to_string(),
            chunks: chunks.iter().map(|hash| hash.to_hex().to_string()).collect(),
        })
    }

    fn sum(&self, name: &str) -> Result<FileSum, ImageError> {
        let file = self.open(name)?;
        let (hash, bytes) = checksum::hash_file(&file).map_err(|e| self.failed("read back", name, e))?;
        Ok(FileSum { bytes, blake3: hash.to_hex().to_string() })
    }

    fn new_file(&self, name: &str) -> Result<File, ImageError> {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.path(name))
            .map_err(|e| self.failed("create", name, e))
    }

    fn open(&self, name: &str) -> Result<File, ImageError> {
        File::open(self.path(name)).map_err(|e| self.failed("read back", name, e))
    }

    fn sync(&self, file: &File, name: &str) -> Result<(), ImageError> {
        file.sync_all().map_err(|e| self.failed("sync", name, e))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.partial.path().join(name)
    }

    fn failed(&self, action: &'static str, name: &str, error: std::io::Error) -> ImageError {
        ImageError::io(action, &self.path(name), error)
    }
}
