//! How a restored VM gets the memory that an image holds.
//!
//! ```text
//! mapped    a plain image: QEMU maps its file
//! served    a compressed one, or one that builds on another: QEMU maps a file whose pages a server reads when they are needed
//! loaded    where that is not possible, or not wanted: read to memory before the VM starts
//! ```

use crate::failure::Failure;
use elision_image::Image;
use elision_memory::RamBlock;
use elision_qemu::RestoredRam;
use elision_serve::{Served, read_ahead_of};
use serde::Serialize;
use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};

/// What the user wants of it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wishes {
    pub(crate) load_first: bool,
    pub(crate) prefetch: bool,
    pub(crate) record: bool,
}

/// An image's memory, ready for any number of VMs.
pub(crate) struct GuestMemory {
    source: Source,
    /// Why it was loaded, if that was not asked for.
    problem: Option<String>,
}

enum Source {
    Mapped(PathBuf),
    Served(Served),
    Loaded(File),
}

/// What is said of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct MemoryReport {
    pub(crate) way: &'static str,
    pub(crate) problem: Option<String>,
}

impl GuestMemory {
    pub(crate) fn of(image: &Image, wishes: Wishes) -> Result<Self, Failure> {
        let path = image.ram_path();
        let path = std::path::absolute(&path).map_err(|e| Failure::io("find", &path, &e))?;
        if wishes.load_first && !image.is_mappable() {
            return Ok(Source::Loaded(image.load()?).into());
        }
        if image.is_mappable() && !wishes.record {
            read_ahead_of(image, wishes.prefetch)?;
            return Ok(Source::Mapped(path).into());
        }
        // A damaged table is not the server's to tell.
        image.check_ram()?;
        let error = match serve(image, wishes) {
            Ok(served) => return Ok(Source::Served(served).into()),
            Err(error) => error,
        };
        let source = if image.is_mappable() { Source::Mapped(path) } else { Source::Loaded(image.load()?) };
        Ok(Self { source, problem: Some(error) })
    }

    /// The blocks of it for one VM, which is the only one or one of several.
    pub(crate) fn blocks(
        &self,
        program: &str,
        blocks: &[RamBlock],
        is_only: bool,
    ) -> elision_qemu::Result<RestoredRam> {
        match &self.source {
            Source::Mapped(path) => RestoredRam::new(program, path, blocks),
            Source::Served(served) => RestoredRam::inherited(program, served.file(), blocks, false),
            Source::Loaded(file) => RestoredRam::inherited(program, file, blocks, is_only),
        }
    }

    pub(crate) fn report(&self) -> MemoryReport {
        let way = match &self.source {
            Source::Mapped(_) => "mapped",
            Source::Served(_) => "served",
            Source::Loaded(_) => "loaded",
        };
        MemoryReport { way, problem: self.problem.clone() }
    }
}

impl From<Source> for GuestMemory {
    fn from(source: Source) -> Self {
        Self { source, problem: None }
    }
}

fn serve(image: &Image, wishes: Wishes) -> Result<Served, String> {
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let image = std::path::absolute(image.dir()).map_err(|e| e.to_string())?;
    let mut arguments = vec![OsStr::new("serve")];
    arguments.extend(wishes.prefetch.then_some(OsStr::new("--prefetch")));
    arguments.extend(wishes.record.then_some(OsStr::new("--record")));
    arguments.extend([OsStr::new("--"), Path::as_os_str(&image)]);
    Served::start(&program, &arguments).map_err(|e| e.to_string())
}
