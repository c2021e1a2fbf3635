//! Writing an image: parts in any order into the partial folder, then checksums, sync and rename.
//!
//! ```text
//! make_room            write_ram            copied_ram, write_late            finish
//! memory is taken      VM ─> copy           late frames changed in the copy   copy ─> ram.img, checksums, sync
//! VM runs              VM stands still      VM runs
//! ```

use crate::drain::{Source, drain};
use crate::link::{self, MAX_LINKS};
use crate::page_hashes::{HashFile, Key, PageHashes};
use crate::partial::Partial;
use crate::precopy::{Precopy, Settled};
use crate::ram_writer::{AtOnce, Job, Late, Written};
use crate::ranges::Runs;
use crate::room::Room;
use crate::target::{Target, open_direct};
use crate::{
    Base, EXCLUSIONS, Exclusions, FORMAT, FORMAT_LINK, FORMAT_PACKED, FileSum, Files, INHERITED, Image,
    ImageError, MANIFEST, PAGE_HASHES, RAM, RAM_PACKED, RamFile, RamStats, STATE, StreamWriter,
};
use crate::{Manifest, checksum, packed, ram_writer};
use blake3::Hash;
use elision_memory::{FileOffset, PAGE_SIZE, Ram, joined};
use elision_plan::{Edit, Plan};
use rustix::rand::{GetRandomFlags, getrandom};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

mod copied;
#[cfg(test)]
mod tests;

pub(crate) use copied::BuiltOn;
use copied::RamImage;

/// An image being written. Dropping it without [`ImageWriter::finish`] leaves nothing behind.
#[derive(Debug)]
pub struct ImageWriter {
    partial: Partial,
    started: Instant,
    room: Option<Room>,
    settled: Option<Settled>,
    ram: Option<RamImage>,
    state: Option<File>,
    exclusions: Option<File>,
    level: Option<i32>,
    base: Option<BuiltOn>,
}

impl ImageWriter {
    /// Begins an image that will be called `target`.
    ///
    /// A partial folder that a dead saver left for the same target is removed.
    pub fn create(target: &Path) -> Result<Self, ImageError> {
        let started = Instant::now();
        Ok(Self { started, ..Self::in_folder(Partial::create(target)?, None) })
    }

    fn in_folder(partial: Partial, base: Option<BuiltOn>) -> Self {
        Self {
            partial,
            started: Instant::now(),
            room: None,
            settled: None,
            ram: None,
            state: None,
            exclusions: None,
            level: None,
            base,
        }
    }

    /// Gives an image another form, in which it holds a part of `ram` and inherits another one. `key` is that of its page hashes.
    pub(crate) fn rewrite(
        partial: Partial,
        base: Option<BuiltOn>,
        ram: Ram,
        (data, inherited): (Runs, Runs),
        key: Option<Key>,
    ) -> Result<Self, ImageError> {
        let mut writer = Self::in_folder(partial, base);
        let file = writer.new_file(RAM)?;
        file.set_len(ram.file_len()).map_err(|e| writer.failed("write", RAM, e))?;
        let hash_file = writer.new_hash_file(ram.file_len(), key)?;
        let written = Written { stats: RamStats::default(), data, inherited, late: Late::default() };
        writer.ram = Some(RamImage::new((file, hash_file), written, ram, AtOnce::default()));
        Ok(writer)
    }

    /// Completes another form of `image`.
    pub(crate) fn finish_as(
        mut self,
        image: &Image,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<(), ImageError> {
        self.write_state(&image.state()?)?;
        let mut exclusions = self.new_file(EXCLUSIONS)?;
        let mut old = image.open_file(EXCLUSIONS, image.manifest().files.exclusions.bytes)?;
        io::copy(&mut old, &mut exclusions).map_err(|e| self.failed("write", EXCLUSIONS, e))?;
        self.exclusions = Some(exclusions);
        self.finish(Manifest { base: None, ..image.manifest().clone() }, progress).map(drop)
    }

    /// Has RAM compressed, with a level of zstd (1 to 19).
    pub fn compress(&mut self, level: i32) {
        self.level = Some(level);
    }

    fn check_base(&self, ram: &Ram) -> Result<(), ImageError> {
        match &self.base {
            Some(BuiltOn { image, .. }) if image.manifest().files.ram.bytes != ram.layout().file_len() => {
                let reason = "its VM has another amount of memory";
                Err(ImageError::NoBase { path: image.dir().to_owned(), reason })
            }
            _ => Ok(()),
        }
    }

    /// Has the image hold only what is not the same in another one. Its RAM must be copied by [`ImageWriter::write_ram`]
    /// or by [`ImageWriter::begin_precopy`]; it cannot be compressed.
    pub fn build_on(&mut self, base: &Path) -> Result<(), ImageError> {
        let image = Image::open(base)?;
        let bad = |reason| ImageError::NoBase { path: base.to_owned(), reason };
        if image.manifest().id.is_empty() {
            return Err(bad("it has no id, as it was made by an early version of Elision: save it anew"));
        }
        if image.chain().count() >= MAX_LINKS {
            return Err(bad("it is at the end of a long chain: merge some of its links first"));
        }
        self.base = Some(BuiltOn::new(image, self.partial.target())?);
        Ok(())
    }

    /// Where the image is while it is unfinished; a guardian may remove it when the saver is dead
    /// ([`crate::remove_stale`]).
    #[must_use]
    pub fn partial_path(&self) -> &Path {
        self.partial.path()
    }

    /// Takes memory for the copy of RAM ahead, so that copying takes no time for it. `guess` is a plan that
    /// drops about what the plan of the copy is going to drop.
    ///
    /// At most half of what the host can spare is taken. Without this, memory is taken as the copy grows.
    pub fn make_room(&mut self, ram: &Ram, guess: &Plan) -> Result<(), ImageError> {
        let mut room = self.empty_room(ram)?;
        room.populate(ram, guess, self.hashes_for_copy().is_some());
        self.room = Some(room);
        Ok(())
    }

    fn empty_room(&self, ram: &Ram) -> Result<Room, ImageError> {
        Room::new(ram).map_err(|e| self.failed("take memory for", RAM, e))
    }

    /// Copies RAM as the plan says, with `threads` threads (at least one, at most 64): into memory as far as the
    /// host has enough of it, the rest to the file.
    ///
    /// The VM must be stopped: which parts of its RAM file hold data is asked here, once.
    /// The plan's late frames are kept in memory until [`ImageWriter::write_late`].
    pub fn write_ram(&mut self, ram: &Ram, plan: &Plan, threads: usize) -> Result<RamStats, ImageError> {
        self.ram = None;
        self.check_base(ram)?;
        let file = self.new_file(RAM)?;
        let hash_file = self.new_hash_file(ram.file_len(), None)?;
        let mut room = self.room.take().map_or_else(|| self.empty_room(ram), Ok)?;
        let direct = open_direct(&self.path(RAM));
        let target = Target { file: &file, direct: direct.as_ref() };
        let (path, base) = (self.partial.path(), self.hashes_for_copy());
        let job = Job { ram, plan, target, path, hash_file: &hash_file, base };
        let (written, at_once) = ram_writer::copy(job, &mut room, threads)?;
        let stats = written.stats;
        let copy = room.staging.into_ram(ram.layout().clone(), &self.open(RAM)?, &at_once.chunks)?;
        self.ram = Some(RamImage::new((file, hash_file), written, copy, at_once));
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
        let copy = Ram::private(&self.open(RAM)?, layout)?;
        let at_once = AtOnce { chunks: vec![FileOffset(0)..FileOffset(copy.file_len())], hashes: Vec::new() };
        let hash_file = self.new_hash_file(copy.file_len(), None)?;
        self.ram = Some(RamImage::new((file, hash_file), written, copy, at_once));
        Ok(stats)
    }

    /// Begins to take RAM that comes page by page while the VM runs, before there is a plan for it: into memory. `guess`
    /// is a plan that drops about what the plan is going to drop.
    pub fn begin_precopy(&self, ram: &Ram, guess: &Plan) -> Result<Precopy, ImageError> {
        self.check_base(ram)?;
        Precopy::new(ram, guess).map_err(|e| self.failed("take memory for", RAM, e))
    }

    /// Takes RAM of which every page has come. `ram` is what the plan was made on, and the VM has not run since.
    /// [`ImageWriter::end_pause`] does the rest, when it runs again.
    pub fn settle_precopy(&mut self, precopy: Precopy, ram: &Ram, plan: &Plan) -> Result<(), ImageError> {
        self.settled = Some(precopy.settle(ram, plan)?);
        Ok(())
    }

    /// Does what could wait until the VM runs again: carries out the plan in RAM that came before it. Late frames still wait.
    pub fn end_pause(&mut self, plan: &Plan) -> Result<(), ImageError> {
        if let Some(settled) = self.settled.take() {
            self.ram = None;
            let (staging, layout, written) = settled.carry_out(plan)?;
            let file = self.new_file(RAM)?;
            file.set_len(layout.file_len()).map_err(|e| self.failed("write", RAM, e))?;
            let copy = staging.into_ram(layout, &self.open(RAM)?, &[])?;
            let hash_file = self.new_hash_file(copy.file_len(), None)?;
            self.ram = Some(RamImage::new((file, hash_file), written, copy, AtOnce::default()));
        }
        Ok(())
    }

    /// What was copied, the late frames included: the guest's memory as it was when it was copied, while
    /// the guest itself may run on. What the plan left out reads as zeros.
    pub fn copied_ram(&mut self) -> Result<&Ram, ImageError> {
        let image = self.ram.take().ok_or(ImageError::Unfinished(RAM))?;
        let files = self.base.as_ref().and_then(|base| base.files.as_deref());
        Ok(&self.ram.insert(image.completed(files.unwrap_or_default())?).copy)
    }

    /// Takes back what was written of RAM, to write it anew.
    pub fn discard_ram(&mut self) -> Result<(), ImageError> {
        self.ram = None;
        [RAM, PAGE_HASHES].into_iter().try_for_each(|name| self.remove(name))
    }

    /// Makes the changes in the late frames that a look at the copy led to.
    pub fn write_late(&mut self, edits: &[Edit]) -> Result<RamStats, ImageError> {
        let RamImage { written: Written { stats, data, late, .. }, copy, missing, unsure, .. } =
            self.ram.as_mut().ok_or(ImageError::Unfinished(RAM))?;
        late.change(edits)?;
        for (gfn, frame) in late.each() {
            copy.poke(gfn.gpa(), frame)?;
            if frame.iter().all(|byte| *byte == 0) {
                continue;
            }
            let offset = copy.layout().offset_of(gfn.gpa(), PAGE_SIZE as u64);
            let start = offset.ok_or(ImageError::BadPlan { gfn, reason: "a late frame is not RAM" })?;
            let run = start..FileOffset(start.0 + PAGE_SIZE as u64);
            missing.push(run.clone());
            unsure.push(run.clone());
            data.push(run);
            stats.written += PAGE_SIZE as u64;
            stats.zero = stats.zero.saturating_sub(PAGE_SIZE as u64);
        }
        *late = Late::default();
        for runs in [missing, unsure, data] {
            *runs = joined(std::mem::take(runs));
        }
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
    /// `format`, `base` and `files` of the manifest are filled in here, and without an `id` that and `times.total_ms`. Returns the manifest
    /// as it was written. `progress` is told of bytes of RAM as their checksums are done, from several threads.
    pub fn finish(
        mut self,
        mut manifest: Manifest,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Manifest, ImageError> {
        let mut image = self.ram.take().ok_or(ImageError::Unfinished(RAM))?;
        if !image.written.late.is_empty() {
            return Err(ImageError::Unfinished(RAM));
        }
        let state = self.state.take().ok_or(ImageError::Unfinished(STATE))?;
        let exclusions = self.exclusions.take().ok_or(ImageError::Unfinished(EXCLUSIONS))?;
        self.base.as_ref().map(|base| image.inherit(base)).transpose()?;
        let (mut ram, name, packed) = match self.level {
            Some(level) => {
                let (ram, file) = self.pack(&image, level, progress)?;
                (ram, RAM_PACKED, Some(file))
            }
            None => (self.drain(&image, progress)?, RAM, None),
        };
        let RamImage { file, hash_file, written, copy, .. } = image;
        let file = packed.unwrap_or(file);
        let inherited = self.base.as_ref().map(|_| self.write_inherited(&written.inherited, copy.file_len()));
        let inherited = inherited.transpose()?;
        let mut files =
            vec![(&file, name), (hash_file.file(), PAGE_HASHES), (&state, STATE), (&exclusions, EXCLUSIONS)];
        files.extend(inherited.as_ref().map(|file| (file, INHERITED)));
        // The disk is waited for once, and what is left to find out is found out meanwhile.
        let (base, sums) = thread::scope(|scope| {
            let this = &self;
            let synced: Vec<_> =
                files.into_iter().map(|(file, name)| scope.spawn(move || this.sync(file, name))).collect();
            let found = this.found(&written, copy);
            for sync in synced {
                sync.join().unwrap_or(Err(ImageError::Unfinished(name)))?;
            }
            found
        })?;
        manifest.base = base;
        // Only now: a file system may choose blocks as late as the sync.
        let meta = self.open(name)?.metadata().map_err(|e| self.failed("look at", name, e))?;
        ram.stored_bytes = meta.blocks() * 512;
        manifest.format = match &self.base {
            Some(_) => FORMAT_LINK,
            None if self.level.is_some() => FORMAT_PACKED,
            None => FORMAT,
        };
        if manifest.id.is_empty() {
            manifest.id = fresh_id().map_err(|e| self.failed("make an id for", MANIFEST, e))?;
            manifest.times.total_ms = self.started.elapsed().as_secs_f64() * 1000.0;
        }
        manifest.files = Files { ram, ..sums };

        let mut text = serde_json::to_vec_pretty(&manifest).map_err(ImageError::Encode)?;
        text.push(b'\n');
        let mut file = self.new_file(MANIFEST)?;
        file.write_all(&text).map_err(|e| self.failed("write", MANIFEST, e))?;
        self.sync(&file, MANIFEST)?;
        self.partial.rename()?;
        Ok(manifest)
    }

    /// What the manifest says of the base, and of the files but RAM. Ends the copy.
    fn found(&self, written: &Written, copy: Ram) -> Result<(Option<Base>, Files), ImageError> {
        let base = self.base.as_ref().map(|base| base.named(written, copy.file_len())).transpose()?;
        drop(copy); // memory, which takes time to give back
        let inherited = self.base.as_ref().map(|_| self.sum(INHERITED)).transpose()?;
        let (state, exclusions) = (self.sum(STATE)?, self.sum(EXCLUSIONS)?);
        let page_hashes = Some(self.sum(PAGE_HASHES)?);
        Ok((base, Files { ram: RamFile::default(), state, exclusions, inherited, page_hashes }))
    }

    /// Writes what a link does not hold itself.
    fn write_inherited(&self, inherited: &Runs, len: u64) -> Result<File, ImageError> {
        let failed = |e| self.failed("write", INHERITED, e);
        let map = link::encode(inherited, len).map_err(failed)?;
        let mut file = self.new_file(INHERITED)?;
        file.write_all(&map).map_err(failed)?;
        Ok(file)
    }

    /// Writes what is still in memory.
    fn drain(&self, image: &RamImage, progress: &(dyn Fn(u64) + Sync)) -> Result<RamFile, ImageError> {
        let RamImage { file, hash_file, written, copy, missing, hashes, .. } = image;
        let direct = open_direct(&self.path(RAM));
        let target = Target { file, direct: direct.as_ref() };
        let source = Source { copy, data: &written.data, hash_file };
        let (chunk_bytes, chunks) = drain(source, target, missing, hashes, progress)
            .map_err(|e| self.failed("write", RAM, e).or_full(written.stats.written))?;
        Ok(ram_file(copy.file_len(), chunk_bytes, &chunks))
    }

    /// Writes all of it compressed, and removes what was written of it plain.
    fn pack(
        &self,
        image: &RamImage,
        level: i32,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<(RamFile, File), ImageError> {
        let RamImage { written, copy, hash_file, .. } = image;
        let chunk = checksum::chunk_bytes_packed(copy.file_len());
        let mut file = self.new_file(RAM_PACKED)?;
        let chunks = packed::pack(copy, &written.data, chunk, level, &mut file, hash_file, progress)
            .map_err(|e| self.failed("write", RAM_PACKED, e).or_full(written.stats.written))?;
        let meta = file.metadata().map_err(|e| self.failed("look at", RAM_PACKED, e))?;
        self.remove(RAM)?;
        let ram = RamFile { packed_bytes: Some(meta.len()), ..ram_file(copy.file_len(), chunk, &chunks) };
        Ok((ram, file))
    }

    fn sum(&self, name: &str) -> Result<FileSum, ImageError> {
        let file = self.open(name)?;
        let (hash, bytes) = checksum::hash_file(&file).map_err(|e| self.failed("read back", name, e))?;
        Ok(FileSum { bytes, blake3: hash.to_hex().to_string() })
    }

    fn remove(&self, name: &str) -> Result<(), ImageError> {
        std::fs::remove_file(self.path(name)).map_err(|e| self.failed("remove", name, e))
    }

    fn base_hashes(&self) -> Option<&PageHashes> {
        self.base.as_ref()?.hashes.as_ref()
    }

    /// What is the same by these need not be copied: the copy can be completed from the base's files.
    fn hashes_for_copy(&self) -> Option<&PageHashes> {
        self.base.as_ref()?.files.as_ref().and_then(|_| self.base_hashes())
    }

    /// `key` is that of the base, if it has one.
    fn new_hash_file(&self, ram: u64, key: Option<Key>) -> Result<HashFile, ImageError> {
        let failed = |e| self.failed("write", PAGE_HASHES, e);
        let key = key.or_else(|| self.base_hashes().map(|hashes| hashes.key));
        HashFile::new(self.new_file(PAGE_HASHES)?, key.map_or_else(Key::fresh, Ok).map_err(failed)?, ram)
            .map_err(failed)
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

    fn failed(&self, action: &'static str, name: &str, error: io::Error) -> ImageError {
        ImageError::io(action, &self.path(name), error)
    }
}

/// A number that no other image has.
fn fresh_id() -> io::Result<String> {
    let mut bytes = [0; 16];
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn ram_file(bytes: u64, chunk_bytes: u64, chunks: &[Hash]) -> RamFile {
    RamFile {
        bytes,
        stored_bytes: 0,
        packed_bytes: None,
        chunk_bytes,
        root: checksum::root(chunks).to_hex().to_string(),
        chunks: chunks.iter().map(|hash| hash.to_hex().to_string()).collect(),
    }
}
