//! Single QMP commands. Each has a connection of its own, so that the socket is free for others.

use crate::error::{Context, Error};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);
const LINE_LIMIT: u64 = 16 << 20;

/// Runs one command and returns what QEMU returns.
pub(crate) fn command(socket: &Path, name: &str, arguments: &Value) -> Result<Value, Error> {
    let mut stream = UnixStream::connect(socket).context("connect to", socket)?;
    stream.set_read_timeout(Some(LIMIT)).context("set a time limit on", socket)?;
    let mut lines = BufReader::new(stream.try_clone().context("clone", socket)?);
    read(&mut lines, socket)?; // the greeting
    for (name, arguments) in [("qmp_capabilities", &json!({})), (name, arguments)] {
        let text = json!({"execute": name, "arguments": arguments}).to_string();
        stream.write_all(text.as_bytes()).context("write to", socket)?;
        loop {
            let mut answer = read(&mut lines, socket)?;
            if let Some(error) = answer.get("error") {
                let reason = error["desc"].as_str().unwrap_or("no reason given").to_owned();
                return Err(Error::Qmp { command: name.to_owned(), reason });
            }
            if let Some(value) = answer.get_mut("return") {
                if name == "qmp_capabilities" {
                    break;
                }
                return Ok(value.take());
            }
        }
    }
    Ok(Value::Null)
}

/// The process that listens at a socket.
pub(crate) fn listener(socket: &Path) -> Result<u32, Error> {
    let stream = UnixStream::connect(socket).context("connect to", socket)?;
    let peer = rustix::net::sockopt::socket_peercred(&stream).map_err(std::io::Error::from);
    let pid = peer.context("ask who listens at", socket)?.pid.as_raw_nonzero().get();
    Ok(pid.unsigned_abs())
}

fn read(lines: &mut impl BufRead, socket: &Path) -> Result<Value, Error> {
    let mut line = String::new();
    lines.take(LINE_LIMIT).read_line(&mut line).context("read from", socket)?;
    serde_json::from_str(&line).context("understand", socket)
}
