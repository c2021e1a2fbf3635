//! The machine's package sources: which mirrors its owner chose for which distribution.
//!
//! Two forms are read: paragraphs in `*.sources` (deb822) and lines in `*.list`.
//! ```text
//! Types: deb                                 deb [signed-by=KEYRING] URI SUITE COMPONENT...
//! URIs: URI...
//! Suites: SUITE...
//! Components: COMPONENT...
//! Signed-By: KEYRING, or a key on indented lines
//! ```

use std::fmt::Write;
use std::path::Path;

/// One source of binary packages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) uris: Vec<String>,
    pub(crate) suites: Vec<String>,
    pub(crate) components: Vec<String>,
    /// Keyring path, or a key with its indented lines.
    pub(crate) signed_by: Option<String>,
}

const DEBIAN_SUITES: [&str; 11] = [
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "duke",
    "sid",
    "unstable",
    "testing",
    "stable",
    "oldstable",
    "oldoldstable",
];

impl Source {
    /// Whether this is the distribution Debian, its security archive included.
    pub(crate) fn is_debian(&self) -> bool {
        self.components.iter().any(|c| c == "main")
            && self.suites.iter().any(|s| {
                let base = s.split(['-', '/']).next().unwrap_or(s);
                let rest = &s[base.len()..];
                DEBIAN_SUITES.contains(&base)
                    && matches!(rest, "" | "-updates" | "-security" | "-backports" | "/updates")
            })
    }

    /// Whether every suite is a security archive.
    pub(crate) fn is_security(&self) -> bool {
        self.suites.iter().all(|s| s.ends_with("-security") || s.ends_with("/updates"))
    }

    /// The same mirror as a deb822 paragraph for another suite.
    pub(crate) fn paragraph(&self, suite: &str) -> String {
        let mut text =
            format!("Types: deb\nURIs: {}\nSuites: {suite}\nComponents: main\n", self.uris.join(" "));
        if let Some(key) = &self.signed_by {
            let _ = writeln!(text, "Signed-By: {key}");
        }
        text
    }
}

/// The source to take packages of the distribution from, or those of its security archive.
pub(crate) fn best(debian: &[Source], security: bool) -> Option<&Source> {
    // Debian's own keyring first, then a mirror that calls itself so.
    let rank = |s: &&Source| {
        let key = s.signed_by.as_deref().is_some_and(|k| k.contains("debian-archive"));
        let named =
            |u: &String| u.trim_end_matches('/').ends_with("/debian") || u.contains("debian-security");
        (key, s.uris.iter().any(named))
    };
    debian.iter().filter(|s| s.is_security() == security).rev().max_by_key(rank)
}

/// All sources of the machine.
pub(crate) fn of_machine(etc_apt: &Path) -> Vec<Source> {
    let mut files = vec![etc_apt.join("sources.list")];
    if let Ok(entries) = std::fs::read_dir(etc_apt.join("sources.list.d")) {
        let mut more: Vec<_> = entries.flatten().map(|e| e.path()).collect();
        more.sort();
        files.extend(more);
    }
    let mut sources = Vec::new();
    for file in files {
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        match file.extension().and_then(|e| e.to_str()) {
            Some("sources") => sources.extend(parse_paragraphs(&text)),
            Some("list") => sources.extend(text.lines().filter_map(parse_line)),
            _ => {}
        }
    }
    sources
}

fn parse_paragraphs(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            sources.extend(source_of(&std::mem::take(&mut fields)));
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                value.push('\n');
                value.push_str(line);
            }
        } else if let Some((name, value)) = line.split_once(':') {
            fields.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    sources
}

fn source_of(fields: &[(String, String)]) -> Option<Source> {
    let field = |name: &str| fields.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    let words = |name: &str| -> Vec<String> {
        field(name).unwrap_or("").split_whitespace().map(str::to_owned).collect()
    };
    let off =
        field("enabled").is_some_and(|v| matches!(v.to_ascii_lowercase().as_str(), "no" | "false" | "0"));
    if off || !words("types").iter().any(|t| t == "deb") || words("uris").is_empty() {
        return None;
    }
    Some(Source {
        uris: words("uris"),
        suites: words("suites"),
        components: words("components"),
        signed_by: field("signed-by").map(str::to_owned),
    })
}

fn parse_line(line: &str) -> Option<Source> {
    let rest = line.split('#').next()?.trim().strip_prefix("deb")?;
    let mut rest = rest.strip_prefix([' ', '\t'])?.trim_start();
    let mut signed_by = None;
    if let Some(options) = rest.strip_prefix('[') {
        let (options, after) = options.split_once(']')?;
        signed_by = options.split_whitespace().find_map(|o| o.strip_prefix("signed-by=")).map(str::to_owned);
        rest = after;
    }
    let mut words = rest.split_whitespace().map(str::to_owned);
    Some(Source {
        uris: vec![words.next()?],
        suites: vec![words.next()?],
        components: words.collect(),
        signed_by,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARAGRAPHS: &str = "Types: deb deb-src\n# a comment\nURIs: http://mirror.example/debian\n\
        Suites: bookworm bookworm-updates\nComponents: main contrib\nSigned-By:\n -----BEGIN KEY-----\n .\n abc\n\n\
        Types: deb\nURIs: http://mirror.example/debian-security\nSuites: bookworm-security\nComponents: main\n\n\
        Types: deb\nEnabled: no\nURIs: http://off.example/debian\nSuites: sid\nComponents: main\n\n\
        Types: deb-src\nURIs: http://src.example/debian\nSuites: sid\nComponents: main\n";

    #[test]
    fn paragraphs_are_read_with_keys_and_without_what_is_off() {
        let sources = parse_paragraphs(PARAGRAPHS);
        assert_eq!(sources.len(), 2);
        assert!(sources[0].is_debian() && !sources[0].is_security());
        assert!(sources[1].is_debian() && sources[1].is_security());
        let text = sources[0].paragraph("trixie");
        assert!(text.contains("Suites: trixie\n"), "{text}");
        assert!(text.contains("Signed-By: \n -----BEGIN KEY-----\n .\n abc\n"), "{text}");
        assert_eq!(parse_paragraphs(&text)[0].uris, sources[0].uris, "what is written can be read");
    }

    #[test]
    fn lines_are_read_with_options() {
        let source =
            parse_line("deb [arch=amd64 signed-by=/k.gpg] http://m.example/debian/ sid main # x").unwrap();
        assert_eq!(source.uris, ["http://m.example/debian/"]);
        assert_eq!(source.signed_by.as_deref(), Some("/k.gpg"));
        assert!(source.is_debian());
        assert_eq!(parse_line("deb-src http://m.example/debian sid main"), None);
        assert_eq!(parse_line("# deb http://m.example/debian sid main"), None);
        assert_eq!(parse_line("deb http://m.example"), None);
    }

    #[test]
    fn other_distributions_and_vendors_are_not_debian() {
        for line in [
            "deb http://m.example/ubuntu noble main",
            "deb http://m.example/linux/debian bookworm stable",
            "deb http://m.example/apt cloud-sdk-bookworm main",
            "deb http://m.example/pub bookworm-pgdg main",
        ] {
            assert!(!parse_line(line).unwrap().is_debian(), "{line}");
        }
    }
}
