//! `elision verify`: whether an image is the one that was written, and holds nothing it should not.

use crate::args::VerifyArgs;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::Output;
use crate::text::count;
use elision_image::{Image, Problem};
use serde::Serialize;
use std::fmt::Write;
use std::path::PathBuf;

#[derive(Serialize)]
struct Verified {
    image: PathBuf,
    ok: bool,
    problems: Vec<Described>,
}

#[derive(Serialize)]
struct Described {
    message: String,
    #[serde(flatten)]
    problem: Problem,
}

pub(crate) fn run(args: &VerifyArgs, out: &mut Output) -> Result<Exit, Failure> {
    let image = Image::open(&args.image)?;
    let bar = out.progress("verifying", image.manifest().files.ram.bytes);
    let problems = image.verify(&|bytes| bar.inc(bytes));
    bar.finish_and_clear();
    let described = problems?.into_iter().map(|problem| Described { message: problem.to_string(), problem });
    let problems: Vec<Described> = described.collect();
    let ok = problems.is_empty();
    out.result(&Verified { image: args.image.clone(), ok, problems }, human)?;
    Ok(if ok { Exit::Done } else { Exit::Negative })
}

fn human(verified: &Verified) -> String {
    let name = verified.image.display();
    if verified.ok {
        return format!("{name} is undamaged, and what was left out of it is not there");
    }
    let mut text = format!("{name} is damaged: {}\n", count(verified.problems.len() as u64, "problem"));
    for problem in &verified.problems {
        let _ = writeln!(text, "  {}", problem.message);
    }
    text
}
