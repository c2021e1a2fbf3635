//! `elision audit`: whether secrets stand where they must not.

use crate::args::AuditArgs;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::Output;
use crate::text::{count, printable, size};
use elision_audit::{Finding, Needles, Place, Report, Secrets};
use elision_image::{EXCLUSIONS, Image, MANIFEST, STATE};
use serde::Serialize;
use std::fmt::Write;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Most places listed of one finding.
const PLACES: usize = 8;

#[derive(Serialize)]
struct Audited {
    clean: bool,
    /// Number of secrets that were searched for.
    secrets: usize,
    searched: Vec<Searched>,
}

/// One file that was searched.
#[derive(Serialize)]
struct Searched {
    file: PathBuf,
    bytes: u64,
    findings: Vec<Found>,
}

#[derive(Serialize)]
struct Found {
    secret_file: PathBuf,
    /// Which secret of that file, from 1; empty lines are not counted.
    number: usize,
    #[serde(flatten)]
    finding: Finding,
}

/// The secrets of one file.
struct Wanted {
    file: PathBuf,
    needles: Needles,
    secrets: usize,
}

pub(crate) fn run(args: &AuditArgs, out: &mut Output) -> Result<Exit, Failure> {
    let wanted = wanted(args)?;
    let mut searched = Vec::new();
    if let Some(dir) = &args.image {
        let image = Image::open(dir)?;
        let ram = image.ram()?;
        let bytes = ram.populated().iter().map(|part| part.end.0 - part.start.0).sum();
        searched.push(search(&image.ram_path(), bytes, &wanted, out, |needles, progress| {
            Ok(needles.search_ram(&ram, PLACES, progress)?)
        })?);
        for name in [STATE, MANIFEST, EXCLUSIONS] {
            searched.push(search_file(&dir.join(name), &wanted, out)?);
        }
    }
    for path in &args.files {
        searched.push(search_file(path, &wanted, out)?);
    }
    let clean = searched.iter().all(|file| file.findings.is_empty());
    let secrets = wanted.iter().map(|w| w.secrets).sum();
    out.result(&Audited { clean, secrets, searched }, human)?;
    Ok(if clean { Exit::Done } else { Exit::Negative })
}

fn wanted(args: &AuditArgs) -> Result<Vec<Wanted>, Failure> {
    let lines = args.secret_file.iter().map(|file| (file, Secrets::from_lines(file)));
    let whole = args.secret_binary.iter().map(|file| (file, Secrets::from_whole_file(file)));
    let all = lines.chain(whole).map(|(file, secrets)| {
        let secrets = secrets?;
        Ok(Wanted { file: file.clone(), needles: Needles::new(&secrets)?, secrets: secrets.len() })
    });
    all.collect()
}

fn search_file(path: &Path, wanted: &[Wanted], out: &Output) -> Result<Searched, Failure> {
    let file = File::open(path).map_err(|e| Failure::io("open", path, &e).with_exit(Exit::Usage))?;
    let bytes = file.metadata().map_err(|e| Failure::io("look at", path, &e))?.len();
    search(path, bytes, wanted, out, |needles, progress| Ok(needles.search_file(&file, PLACES, progress)?))
}

/// Searches one file of so many bytes for the secrets of each list.
fn search(
    path: &Path,
    bytes: u64,
    wanted: &[Wanted],
    out: &Output,
    report: impl Fn(&Needles, &(dyn Fn(u64) + Sync)) -> Result<Report, Failure>,
) -> Result<Searched, Failure> {
    let mut searched = Searched { file: path.to_owned(), bytes: 0, findings: Vec::new() };
    for secrets in wanted {
        let bar = out.progress("searching", bytes);
        let report = report(&secrets.needles, &|bytes| bar.inc(bytes));
        bar.finish_and_clear();
        let report = report?;
        searched.bytes = report.searched;
        searched.findings.extend(report.findings.into_iter().map(|finding| Found {
            secret_file: secrets.file.clone(),
            number: finding.secret + 1,
            finding,
        }));
    }
    Ok(searched)
}

fn human(audited: &Audited) -> String {
    let mut text = String::new();
    let secrets = count(audited.secrets as u64, "secret");
    for file in &audited.searched {
        let name = printable(&file.file.display().to_string());
        let found: u64 = file.findings.iter().map(|found| found.finding.count).sum();
        let _ = writeln!(text, "{name}: {secrets} searched in {}, found {}", size(file.bytes), times(found));
        for found in &file.findings {
            let _ = writeln!(text, "  {}", describe(found));
        }
    }
    text.push_str(if audited.clean { "Nothing was found\n" } else { "Secrets were found\n" });
    text
}

fn describe(found: &Found) -> String {
    let Finding { encoding, count, places, .. } = &found.finding;
    let file = printable(&found.secret_file.display().to_string());
    let mut text = format!("secret {} of {file}, {encoding}: {}, at", found.number, times(*count));
    for place in places {
        let _ = match place {
            Place::Ram { gpa } => write!(text, " {gpa}"),
            Place::RamFile { offset } => write!(text, " file offset {offset}"),
            Place::State { offset } => write!(text, " {offset:#x}"),
        };
    }
    if *count > places.len() as u64 {
        text.push_str(" ...");
    }
    text
}

fn times(n: u64) -> String {
    if n == 1 { "once".to_owned() } else { format!("{n} times") }
}
