//! The invariants at the head of `src/lib.rs`, checked by reading the source; and that `docs/protocol.md` is true.
//!
//! Not a parser: comments, strings and what is compiled for unit tests alone are blanked out, and what is left is
//! searched for words and paths. Every complaint names a file and a line.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use hotpocket::{consensus::votes::Quorum, node::alerts::Kind};

/// Parts that talk to the world. Only `node` knows more than one of them.
const ADAPTERS: [&str; 7] = ["mesh", "gateway", "contract", "state", "ledger", "settlement", "http"];

/// What an adapter never imports, beside the other adapters.
const ABOVE_ADAPTERS: [&str; 2] = ["node", "cli"];

/// Crates and parts of the standard library that answer differently on two machines, or act on one.
const IMPURE: [&str; 14] = [
    "std::fs",
    "std::net",
    "std::env",
    "std::process",
    "std::thread",
    "std::time",
    "std::os",
    "tokio",
    "futures",
    "libp2p",
    "rusqlite",
    "nix",
    "getrandom",
    "rand",
];

/// Names that the core never uses: clocks, floats, and collections whose order is random.
const IMPURE_NAMES: [&str; 6] = ["HashMap", "HashSet", "Instant", "SystemTime", "f32", "f64"];

/// What the core's paths may begin with.
const CORE_MAY_USE: [&str; 6] = ["crate::types", "crate::consensus", "std", "core", "borsh", "thiserror"];

/// Pure functions over bytes.
const PURE: [&str; 8] = [
    "src/wire.rs",
    "src/signed/mod.rs",
    "src/signed/frames.rs",
    "src/signed/proof.rs",
    "src/contract/fdlist.rs",
    "src/contract/npl.rs",
    "src/http/params.rs",
    "src/http/command.rs",
];

// ---- The source -----------------------------------------------------------------------------------------------------

/// One file, as text and with comments and the content of strings blanked out; both have the same lines.
struct Source {
    /// Relative to the repository, with `/`.
    path: String,
    text: String,
    code: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Source {
        Source { path: path.to_owned(), text: text.to_owned(), code: blank(text) }
    }

    /// The code without what `#[cfg(test)]` stands before.
    fn product(&self) -> String {
        without_tests(&self.code)
    }

    fn is_under(&self, folder: &str) -> bool {
        self.path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/') || rest == ".rs")
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below `folder`, relative to the repository, ascending; built and hidden ones left out, but for those of the tools.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let skipped = name == "target"
            || name == "node_modules"
            || (name.starts_with('.') && ![".ci", ".config"].contains(&&*name));
        if !skipped && !path.is_symlink() {
            if path.is_dir() { files(&path, found) } else { found.push(path) }
        }
    }
    found.sort();
}

fn rust_files(folders: &[&str]) -> Vec<Source> {
    let mut found = Vec::new();
    folders.iter().for_each(|folder| files(&root().join(folder), &mut found));
    let rust = found.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    let sources: Vec<Source> = rust
        .map(|path| {
            let name = path.strip_prefix(root()).unwrap().to_string_lossy().replace('\\', "/");
            Source::new(&name, &fs::read_to_string(&path).unwrap())
        })
        .collect();
    assert!(!sources.is_empty(), "no source under {folders:?}");
    sources
}

/// The product's files: those of `src` that are not modules for unit tests.
fn product_files() -> Vec<Source> {
    let sources = rust_files(&["src"]);
    let test_files: BTreeSet<String> = sources.iter().flat_map(test_modules).collect();
    sources
        .into_iter()
        .filter(|source| !test_files.iter().any(|test| source.is_under(test.trim_end_matches(".rs"))))
        .collect()
}

/// Files of the modules that are declared behind `#[cfg(test)]`.
fn test_modules(source: &Source) -> Vec<String> {
    let folder = match source.path.rsplit_once('/') {
        Some((folder, "mod.rs" | "lib.rs" | "main.rs")) => folder.to_owned(),
        _ => source.path.trim_end_matches(".rs").to_owned(),
    };
    let items = source.code.split("#[cfg(test)]").skip(1);
    let module = |item: &'_ str| {
        let item = item.trim_start();
        item.strip_prefix("pub(crate) ").unwrap_or(item).strip_prefix("mod ").map(str::to_owned)
    };
    let declared = items.filter_map(module).filter_map(|item| Some(item.split_once(';')?.0.to_owned()));
    declared.filter(|name| name.chars().all(is_word)).map(|name| format!("{folder}/{name}.rs")).collect()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Replaces comments, and what stands between the quotes of strings and characters, by spaces. Lines stay.
fn blank(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    let hide = |out: &mut String, chars: &[char]| out.extend(chars.iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
    while at < chars.len() {
        let rest = &chars[at..];
        let after_word = at > 0 && is_word(chars[at - 1]);
        let len = if rest.starts_with(&['/', '/']) {
            rest.iter().position(|c| *c == '\n').unwrap_or(rest.len())
        } else if rest.starts_with(&['/', '*']) {
            block_comment(rest)
        } else if let Some(len) = raw_string(rest).filter(|_| !after_word) {
            len
        } else if rest[0] == '"' {
            quoted(rest, '"')
        } else if rest[0] == '\'' && is_char(rest) {
            quoted(rest, '\'')
        } else {
            out.push(rest[0]);
            at += 1;
            continue;
        };
        hide(&mut out, &rest[..len]);
        at += len;
    }
    out
}

fn block_comment(chars: &[char]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < chars.len() {
        match chars[at..] {
            ['/', '*', ..] => (depth, at) = (depth + 1, at + 2),
            ['*', '/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// Length of a raw string (`r"`, `r#"`, `br"`, `cr"`), if there is one.
fn raw_string(chars: &[char]) -> Option<usize> {
    let prefix = usize::from(matches!(chars[0], 'b' | 'c'));
    if chars.get(prefix) != Some(&'r') {
        return None;
    }
    let hashes = chars[prefix + 1..].iter().take_while(|c| **c == '#').count();
    let open = prefix + 1 + hashes;
    if chars.get(open) != Some(&'"') {
        return None;
    }
    let end: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
    let close = chars[open + 1..].windows(end.len()).position(|window| window == end);
    Some(close.map_or(chars.len(), |close| open + 1 + close + end.len()))
}

fn quoted(chars: &[char], quote: char) -> usize {
    let mut at = 1;
    while at < chars.len() && chars[at] != quote {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(chars.len())
}

/// Whether a quote begins a character and not a lifetime.
fn is_char(chars: &[char]) -> bool {
    matches!(chars, ['\'', '\\', ..] | ['\'', _, '\'', ..])
}

/// Blanks out each item behind `#[cfg(test)]`, to its closing brace or semicolon.
fn without_tests(code: &str) -> String {
    let mut out = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(at) = rest.find("#[cfg(test)]") {
        let (before, item) = rest.split_at(at);
        out.push_str(before);
        let len = item_len(item);
        out.extend(item[..len].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        rest = &item[len..];
    }
    out + rest
}

/// Length of an item with its attributes. A `use` ends at its semicolon, whatever braces it has.
fn item_len(item: &str) -> usize {
    let body = item.trim_start_matches("#[cfg(test)]").trim_start();
    let is_use = body.starts_with("use ") || body.starts_with("pub use ");
    let mut depth = 0;
    for (at, c) in item.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => {
                depth -= 1;
                if depth == 0 && !is_use {
                    return at + 1;
                }
            }
            ';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    item.len()
}

/// Paths used in code, each with its line: those of `use`, written out, and those inside expressions and types.
fn paths(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let chars: Vec<char> = code.chars().collect();
    let mut at = 0;
    let mut line = 1;
    while at < chars.len() {
        let c = chars[at];
        if c == '\n' {
            line += 1;
        }
        if !is_word(c) {
            at += 1;
            continue;
        }
        let end = at + chars[at..].iter().take_while(|c| is_word(**c)).count();
        let word: String = chars[at..end].iter().collect();
        let continues = at >= 2 && chars[at - 1] == ':' && chars[at - 2] == ':';
        if word == "use" {
            let tree: Vec<char> = chars[end..].iter().copied().take_while(|c| *c != ';').collect();
            use_tree(&mut tree.as_slice(), String::new(), &mut line, &mut found);
            at = end + tree.len();
            continue;
        }
        if !continues {
            let tail = chars[end..].iter().take_while(|c| is_word(**c) || **c == ':').collect::<String>();
            // `word::` alone stands before the types of a call.
            let tail = tail.trim_end_matches(':');
            if tail.starts_with("::") {
                found.push((line, word + tail));
            }
        }
        at = end;
    }
    found
}

/// Reads one `use` tree: `a::{b, c::d as e}` is `a::b` and `a::c::d`.
fn use_tree(chars: &mut &[char], prefix: String, line: &mut usize, found: &mut Vec<(usize, String)>) {
    let mut path = prefix.clone();
    let mut renamed = false;
    let mut closed = false;
    let mut started = *line;
    while let [c, rest @ ..] = *chars {
        *chars = rest;
        match c {
            '{' => {
                use_tree(chars, path.clone(), line, found);
                closed = true;
            }
            '}' | ',' => {
                if !closed && path != prefix {
                    found.push((started, path.clone()));
                }
                if *c == '}' {
                    return;
                }
                (path, renamed, closed, started) = (prefix.clone(), false, false, *line);
            }
            '\n' => {
                *line += 1;
                if path == prefix {
                    started = *line;
                }
            }
            c if c.is_whitespace() => renamed |= rest.starts_with(&['a', 's', ' ']),
            c if !renamed => path.push(*c),
            _ => {}
        }
    }
    if !closed && path != prefix {
        found.push((started, path));
    }
}

/// Words of the code, each with its line.
fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    code.lines().enumerate().flat_map(|(line, text)| {
        text.split(|c| !is_word(c)).filter(|word| !word.is_empty()).map(move |word| (line + 1, word))
    })
}

fn begins_with(path: &str, start: &str) -> bool {
    path.strip_prefix(start).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// What is wrong, gathered, so that one run shows all of it.
#[derive(Default)]
struct Complaints(String);

impl Complaints {
    fn add(&mut self, source: &str, line: usize, what: impl std::fmt::Display) {
        writeln!(self.0, "  {source}:{line}: {what}").unwrap();
    }

    #[track_caller]
    fn end(self) {
        assert!(self.0.is_empty(), "the source breaks a rule of src/lib.rs:\n{}", self.0);
    }
}

// ---- The rules ------------------------------------------------------------------------------------------------------

fn core_complaints(source: &Source, complaints: &mut Complaints) {
    let code = source.product();
    for (line, path) in paths(&code) {
        let outside = (begins_with(&path, "crate") && !CORE_MAY_USE.iter().any(|allowed| begins_with(&path, allowed)))
            || path.starts_with("super::super");
        if outside {
            complaints.add(&source.path, line, format!("the core imports {path}; it may import crate::types alone"));
        }
        if let Some(impure) = IMPURE.iter().find(|impure| begins_with(&path, impure)) {
            complaints.add(&source.path, line, format!("the core uses {impure}, and must be pure"));
        }
    }
    for (line, word) in words(&code) {
        if IMPURE_NAMES.contains(&word) {
            complaints.add(&source.path, line, format!("the core names {word}, and must be alike on every machine"));
        }
    }
}

#[test]
fn the_core_imports_types_alone_and_nothing_that_differs_between_machines() {
    let mut complaints = Complaints::default();
    let core: Vec<Source> = product_files().into_iter().filter(|source| source.is_under("src/consensus")).collect();
    assert!(core.len() > 5, "the core is not where this test looks for it");
    core.iter().for_each(|source| core_complaints(source, &mut complaints));
    for source in &core {
        for (line, path) in paths(&source.product()) {
            let first = path.split("::").next().unwrap_or("");
            // `clippy` stands in attributes alone.
            let is_crate =
                ["crate", "super", "self", "Self", "std", "core", "borsh", "thiserror", "clippy"].contains(&first);
            // Types and modules of its own are the rest.
            let is_own = first.starts_with(char::is_uppercase)
                || source.code.contains(&format!("macro_rules! {first} "))
                || core.iter().any(|file| file.path.ends_with(&format!("/{first}.rs")))
                || ["u8", "u16", "u32", "u64", "u128", "usize", "i32", "str"].contains(&first);
            if !is_crate && !is_own {
                complaints.add(&source.path, line, format!("the core imports {path}"));
            }
        }
    }
    complaints.end();
}

#[test]
fn adapters_know_neither_each_other_nor_what_stands_above_them() {
    let mut complaints = Complaints::default();
    for source in product_files() {
        let Some(adapter) = ADAPTERS.iter().find(|adapter| source.is_under(&format!("src/{adapter}"))) else {
            continue;
        };
        for (line, path) in paths(&source.product()) {
            let Some(module) = path.strip_prefix("crate::").and_then(|path| path.split("::").next()) else { continue };
            let is_other = ADAPTERS.contains(&module) && module != *adapter;
            if is_other || ABOVE_ADAPTERS.contains(&module) {
                complaints.add(&source.path, line, format!("{adapter} imports {module}; only node knows both"));
            }
            let votes = ["crate::consensus::Consensus", "crate::consensus::rules"];
            if votes.iter().any(|start| begins_with(&path, start)) {
                complaints.add(&source.path, line, format!("{adapter} imports {path}; adapters hold no votes"));
            }
        }
    }
    complaints.end();
}

#[test]
fn the_verifier_shares_nothing_with_what_it_checks() {
    // Keys, hashes and numbers, and the primitives of signing and hashing.
    const MAY_USE: [&str; 3] = ["crate::types", "crate::crypto", "crate::verify"];
    let mut complaints = Complaints::default();
    let verifier: Vec<Source> = product_files().into_iter().filter(|source| source.is_under("src/verify")).collect();
    assert!(verifier.len() > 4, "the verifier is not where this test looks for it");
    for source in &verifier {
        for (line, path) in paths(&source.product()) {
            let ours = begins_with(&path, "crate") && !MAY_USE.iter().any(|allowed| begins_with(&path, allowed));
            if ours || path.starts_with("super::super") {
                complaints.add(
                    &source.path,
                    line,
                    format!("the verifier imports {path}; it is worth what it does itself"),
                );
            }
            let impure = IMPURE.iter().filter(|impure| **impure != "std::thread");
            if let Some(impure) = impure.clone().find(|impure| begins_with(&path, impure)) {
                complaints.add(&source.path, line, format!("the verifier uses {impure}, and must be pure"));
            }
        }
    }
    complaints.end();
}

#[test]
fn functions_over_bytes_touch_nothing_else() {
    let mut complaints = Complaints::default();
    let sources = product_files();
    for pure in PURE {
        let source = sources.iter().find(|source| source.path == pure).unwrap_or_else(|| panic!("{pure} is gone"));
        for (line, path) in paths(&source.product()) {
            if let Some(impure) = IMPURE.iter().find(|impure| begins_with(&path, impure)) {
                complaints.add(pure, line, format!("uses {impure}, and must be pure"));
            }
        }
    }
    complaints.end();
}

#[test]
fn unsafe_stands_under_contract_alone_and_says_why_it_is_safe() {
    // Comment lines above a piece of `unsafe` among which its reason must stand.
    const REASON_LINES: usize = 12;
    let mut complaints = Complaints::default();
    for source in rust_files(&["src", "tests"]) {
        let lines: Vec<&str> = source.text.lines().collect();
        for (line, _) in words(&source.code).filter(|(_, word)| *word == "unsafe") {
            if !source.is_under("src/contract") {
                complaints.add(&source.path, line, "unsafe outside src/contract");
            }
            let above = &lines[line.saturating_sub(REASON_LINES)..line];
            if !above.iter().any(|text| text.contains("SAFETY:") || text.contains("# Safety")) {
                complaints.add(&source.path, line, "unsafe without a SAFETY comment");
            }
        }
    }
    complaints.end();
}

#[test]
fn only_node_and_the_making_of_a_genesis_read_the_wall_clock() {
    let mut complaints = Complaints::default();
    for source in product_files() {
        if source.path == "src/node.rs" || source.is_under("src/cli") {
            continue;
        }
        for (line, _) in words(&source.product()).filter(|(_, word)| *word == "SystemTime") {
            complaints.add(&source.path, line, "SystemTime; times come from node");
        }
    }
    complaints.end();
}

#[test]
fn nothing_is_left_undone_and_no_test_waits_for_a_while() {
    let mut complaints = Complaints::default();
    for source in rust_files(&["src", "tests"]) {
        for (line, text) in source.code.lines().enumerate() {
            for unfinished in ["todo!", "unimplemented!", "dbg!"] {
                if text.contains(unfinished) {
                    complaints.add(&source.path, line + 1, unfinished);
                }
            }
        }
        if source.is_under("tests") {
            for (line, path) in paths(&source.code).into_iter().filter(|(_, path)| path.ends_with("thread::sleep")) {
                complaints.add(&source.path, line, format!("{path}; wait for a condition with a deadline"));
            }
        }
    }
    complaints.end();
}

#[test]
fn every_file_opens_with_what_it_is_for() {
    let mut complaints = Complaints::default();
    for source in product_files().into_iter().chain(rust_files(&["tests"])) {
        if !source.text.starts_with("//!") {
            complaints.add(&source.path, 1, "does not begin with a //! comment");
        }
    }
    complaints.end();
}

#[test]
fn no_file_names_a_folder_of_somebodys_machine() {
    // Put together here, so that this file does not contain them.
    let homes = ["home", "root", "Users", "work"].map(|home| format!("/{home}/"));
    let mut complaints = Complaints::default();
    let mut found = Vec::new();
    files(&root(), &mut found);
    for path in found {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let name = path.strip_prefix(root()).unwrap().display().to_string();
        for (line, text) in text.lines().enumerate() {
            // Part of a longer path or of an address is no folder at the top of a machine.
            let is_top = |at: usize| !text[..at].ends_with(|c: char| is_word(c) || "./-}$:~".contains(c));
            for home in &homes {
                if text.match_indices(home.as_str()).any(|(at, _)| is_top(at)) {
                    complaints.add(&name, line + 1, format!("names a folder under {home}"));
                }
            }
        }
    }
    complaints.end();
}

// ---- The documentation ----------------------------------------------------------------------------------------------

const PROTOCOL: &str = include_str!("../../docs/protocol.md");

/// Hash tags in a text, between these quotes: `hp/`, a name, a version.
fn tags(text: &str, quote: char) -> BTreeSet<String> {
    let is_tag = |part: &&str| {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "/-".contains(c);
        part.starts_with("hp/") && part.ends_with(|c: char| c.is_ascii_digit()) && part.chars().all(plain)
    };
    text.split(quote).filter(is_tag).map(str::to_owned).collect()
}

#[test]
fn every_hash_tag_of_the_source_is_in_the_protocol_and_no_other() {
    let mut used = BTreeSet::new();
    for source in product_files() {
        // Comments may name a tag that is gone; what `#[cfg(test)]` covers is not looked for, tags there are the same.
        let code: Vec<&str> = source.text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        used.extend(tags(&code.join("\n"), '"'));
    }
    let written: BTreeSet<String> = tags(PROTOCOL, '`').union(&tags(PROTOCOL, '"')).cloned().collect();
    assert!(used.len() > 20, "tags are not where this test looks for them");
    assert_eq!(written, used, "docs/protocol.md and the source name different tags");
}

#[test]
fn every_limit_the_protocol_names_is_in_the_source() {
    let sources = rust_files(&["src"]);
    let is_constant = |part: &&str| {
        part.starts_with(|c: char| c.is_ascii_uppercase())
            && part.contains('_')
            && part.chars().all(|c| c.is_ascii_uppercase() || c == '_')
    };
    let names: BTreeSet<&str> = PROTOCOL.split('`').filter(is_constant).filter(|name| *name != "NPL_END").collect();
    assert!(names.len() > 20, "limits are not where this test looks for them");
    for name in names {
        let declared = format!("const {name}: ");
        assert!(sources.iter().any(|source| source.code.contains(&declared)), "{name} is in docs/protocol.md alone");
    }
}

#[test]
fn the_bounds_and_tests_that_the_table_of_memory_names_are_in_the_source() {
    let text = include_str!("../../docs/verification.md");
    let (_, table) = text.split_once("## Memory").expect("the table is there");
    let (table, _) = table.split_once("\n## ").expect("it is not the last");
    let sources = rust_files(&["src", "tests"]);
    let names: BTreeSet<&str> = table.split('`').skip(1).step_by(2).collect();
    assert!(names.len() > 60, "names are not where this test looks for them");
    for name in names {
        let is = |kind: fn(&char) -> bool| name.chars().all(|c| c == '_' || kind(&c)) && name.contains('_');
        let declared = if is(char::is_ascii_uppercase) {
            format!("const {name}: ")
        } else if is(char::is_ascii_lowercase) && name.matches('_').count() > 2 {
            format!("fn {name}()")
        } else {
            continue;
        };
        assert!(
            sources.iter().any(|source| source.code.contains(&declared)),
            "{name} is in docs/verification.md alone"
        );
    }
}

#[test]
fn the_quorums_of_the_protocol_are_those_of_the_code() {
    let rows = PROTOCOL.lines().filter_map(|line| {
        let cells: Vec<usize> = line.split('|').filter_map(|cell| cell.trim().parse().ok()).collect();
        <[usize; 5]>::try_from(cells).ok()
    });
    let rows: Vec<[usize; 5]> = rows.collect();
    assert!(rows.len() > 10, "the table is not where this test looks for it");
    for [n, threshold, q, safe, live] in rows {
        let quorum = Quorum::new(n, u8::try_from(threshold).unwrap());
        assert_eq!((quorum.q, quorum.safe(), quorum.live()), (q, safe, live), "n {n} threshold {threshold}");
    }
}

#[test]
fn every_alert_has_its_row_in_the_operators_manual_and_every_row_its_alert() {
    let text = include_str!("../../docs/operating.md");
    let (_, section) = text.split_once("\n## Alerts and what to do\n").expect("the section is there");
    let (section, _) = section.split_once("\n## ").expect("it is not the last");
    let rows: Vec<Vec<&str>> = section
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.strip_suffix(" |"))
        .map(|row| row.split(" | ").collect())
        .collect();
    let full = |row: &&Vec<&str>| row.len() == 4 && row.iter().all(|cell| !cell.trim().is_empty());
    assert_eq!(rows.iter().find(|row| !full(row)), None, "kind, text, meaning, what to do");
    let written: BTreeSet<&str> = rows.iter().map(|row| row[0].trim_end_matches('`')).collect();
    let raised: BTreeSet<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
    assert_eq!(written, raised, "docs/operating.md and src/node/alerts.rs name different alerts");
    // The words that people look for are those that the product says.
    let sources = product_files();
    let source: String = sources.iter().map(|source| source.text.replace("\\\n", "")).collect();
    let squeezed: String = source.split_whitespace().collect::<Vec<_>>().join(" ");
    for row in rows {
        for quoted in row[1].split('`').skip(1).step_by(2) {
            let is_unsaid = |part: &&str| !squeezed.contains(*part);
            // Capitals and dots stand for what is another one each time.
            let parts = quoted.split(|c: char| c.is_ascii_uppercase() || c == '.').map(str::trim);
            let unsaid: Vec<&str> = parts.filter(|part| part.len() >= 9).filter(is_unsaid).collect();
            assert!(unsaid.is_empty(), "no alert says {unsaid:?}, of the row `{}`", row[0]);
        }
    }
}

// ---- The reader itself ----------------------------------------------------------------------------------------------

#[test]
fn comments_strings_and_characters_are_no_code() {
    let text = "a // tokio\nb /* x /* y */ z */ c \"un\\\"safe\" d r#\"f64\"# e '\"' f 'x g<'x> '\\'' h\n";
    let code = blank(text);
    assert_eq!(words(&code).map(|(_, word)| word).collect::<String>(), "abcdefxgxh");
    assert_eq!(code.lines().count(), text.lines().count());
}

#[test]
fn what_is_compiled_for_tests_alone_is_no_product() {
    let code = "a\n#[cfg(test)]\nuse b::{c};\nd\n#[cfg(test)]\nmod tests {\n fn e() { {} }\n}\nf #[cfg(test)] mod g; h";
    let product = without_tests(code);
    assert_eq!(words(&product).collect::<Vec<_>>(), [(1, "a"), (4, "d"), (9, "f"), (9, "h")]);
    let declared = test_modules(&Source::new("src/x/mod.rs", code));
    assert_eq!(declared, ["src/x/g.rs"]);
    assert_eq!(test_modules(&Source::new("src/y.rs", code)), ["src/y/g.rs"]);
}

#[test]
fn paths_are_read_out_of_use_trees_and_out_of_code() {
    let code = "use std::{\n    fs as files,\n    net::{self, TcpStream},\n};\nfn f() { crate::mesh::g(a::b); h::<u8>(); }\nuse x;";
    let expected = [
        (2, "std::fs"),
        (3, "std::net::self"),
        (3, "std::net::TcpStream"),
        (5, "crate::mesh::g"),
        (5, "a::b"),
        (6, "x"),
    ];
    assert_eq!(paths(code), expected.map(|(line, path)| (line, path.to_owned())));
}

#[test]
fn a_core_that_is_not_pure_is_found_out() {
    let code = "//! The core.\nuse std::{collections::HashMap, fs};\nuse crate::{types::Hash, wire};\n\
                fn f() -> f64 { super::super::node::now() }\n// tokio::spawn\n#[cfg(test)]\nmod tests { use std::fs; }\n";
    let mut complaints = Complaints::default();
    core_complaints(&Source::new("src/consensus/x.rs", code), &mut complaints);
    let lines: Vec<&str> = complaints.0.lines().map(|line| line.trim_start().split(": ").next().unwrap()).collect();
    let at = |line: usize| format!("src/consensus/x.rs:{line}");
    assert_eq!(lines, [at(2), at(3), at(4), at(2), at(4)], "{}", complaints.0);
}

#[test]
fn every_test_that_the_documentation_names_is_there() {
    let code: String = rust_files(&["src", "tests"]).into_iter().map(|source| source.code).collect();
    let is_test = |part: &&str| part.matches('_').count() >= 3 && part.chars().all(|c| is_word(c) && !c.is_uppercase());
    let document = include_str!("../../docs/verification.md");
    let named: BTreeSet<&str> = document.split('`').filter(is_test).collect();
    assert!(named.len() > 20, "tests are not where this test looks for them");
    for name in named {
        assert!(code.contains(&format!("fn {name}(")), "docs/verification.md names a test {name}, which is gone");
    }
}
