//! Roll call: every node says hello on the node party line, hears who else is there, and notes it in its log.
//!
//! Build: contracts/build rollcall DESTDIR. Interface: contracts/README.md.
//!
//! Who was heard may differ from node to node, so it goes to stderr and nowhere else. Users and state get only what
//! is alike everywhere: the ledger's number and the UNL.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Write},
    os::fd::{FromRawFd, RawFd},
};

/// Most bytes of one message on the party line, and most that is taken of one.
const MESSAGE_BYTES_MAX: u64 = 64 * 1024;

/// Longest header line of a frame: `Pubkey: ` and 64 digits, with some room.
const HEADER_BYTES_MAX: u64 = 128;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let mut text = String::new();
    io::stdin().read_to_string(&mut text)?;
    let ledger = Json::parse(&text).ok_or("stdin is not JSON")?;
    let seq = ledger.get("seq").and_then(Json::number).ok_or("no seq on stdin")?;
    let unl: Vec<&str> = ledger.get("unl").map(Json::list).unwrap_or_default().iter().filter_map(Json::text).collect();
    let [from_nodes, to_nodes] = ledger.get("npl").and_then(Json::fds).ok_or("no npl on stdin")?;
    let (from_nodes, mut to_nodes) = (open(from_nodes), open(to_nodes));

    to_nodes.write_all(b"hello")?;
    // Without this the line would stay open: it ends when every node has closed its end.
    drop(to_nodes);
    let present = listen(BufReader::new(from_nodes))?;
    eprintln!("ledger {seq}: {} of {} nodes are present", present.len(), unl.len());
    for key in &unl {
        eprintln!("{} {key}", if present.contains(*key) { "present" } else { "missing" });
    }

    let roll = format!("ledger {seq}, {} nodes: {}\n", unl.len(), unl.join(" "));
    fs::write("state/roll", &roll)?;
    for pair in ledger.get("user").map(Json::values).unwrap_or_default() {
        let [_, output] = pair.fds().ok_or("a user without descriptors on stdin")?;
        open(output).write_all(roll.as_bytes())?;
    }
    Ok(())
}

/// The file behind a descriptor named on stdin; closed when it is dropped.
fn open(fd: RawFd) -> File {
    // SAFETY: each descriptor is named once on stdin and opened once here, so nobody else owns it.
    unsafe { File::from_raw_fd(fd) }
}

/// The keys of all nodes that said hello, at the end of the party line.
fn listen(mut line: impl BufRead) -> Result<BTreeSet<String>> {
    let mut present = BTreeSet::new();
    while let Some(length) = header(&mut line, "Length: ")? {
        let length: u64 = length.parse()?;
        let key = header(&mut line, "Pubkey: ")?.ok_or("the party line ended inside a frame")?;
        header(&mut line, "")?;
        if length > MESSAGE_BYTES_MAX {
            return Err(format!("a frame of {length} bytes").into());
        }
        let mut message = Vec::new();
        line.by_ref().take(length).read_to_end(&mut message)?;
        if message == b"hello" {
            present.insert(key);
        }
    }
    Ok(present)
}

/// The rest of a header line after its name; `None` at the end of the party line.
fn header(line: &mut impl BufRead, name: &str) -> Result<Option<String>> {
    let mut text = String::new();
    if line.take(HEADER_BYTES_MAX).read_line(&mut text)? == 0 {
        return Ok(None);
    }
    let value = text.strip_suffix('\n').and_then(|text| text.strip_prefix(name));
    Ok(Some(value.ok_or_else(|| format!("not the header {name:?}: {text:?}"))?.to_string()))
}

/// As much JSON as the supervisor writes.
enum Json {
    Text(String),
    List(Vec<Json>),
    Map(BTreeMap<String, Json>),
    /// A number, `true`, `false` or `null`, as written.
    Word(String),
}

impl Json {
    fn parse(text: &str) -> Option<Json> {
        let mut rest = text.trim_start();
        let value = Json::value(&mut rest)?;
        rest.is_empty().then_some(value)
    }

    fn value(rest: &mut &str) -> Option<Json> {
        match rest.chars().next()? {
            '"' => Json::string(rest).map(Json::Text),
            '[' => {
                let mut list = Vec::new();
                Json::items(rest, '[', ']', |rest| {
                    list.push(Json::value(rest)?);
                    Some(())
                })?;
                Some(Json::List(list))
            }
            '{' => {
                let mut map = BTreeMap::new();
                Json::items(rest, '{', '}', |rest| {
                    let key = Json::string(rest)?;
                    take(rest, ':').then_some(())?;
                    map.insert(key, Json::value(rest)?);
                    Some(())
                })?;
                Some(Json::Map(map))
            }
            _ => {
                let end = rest.find([',', ']', '}', ' ', '\t', '\r', '\n']).unwrap_or(rest.len());
                let (word, after) = rest.split_at(end);
                *rest = after.trim_start();
                (end > 0).then(|| Json::Word(word.to_string()))
            }
        }
    }

    fn items(rest: &mut &str, open: char, close: char, mut item: impl FnMut(&mut &str) -> Option<()>) -> Option<()> {
        take(rest, open).then_some(())?;
        while !take(rest, close) {
            item(rest)?;
            if !take(rest, ',') {
                return take(rest, close).then_some(());
            }
        }
        Some(())
    }

    /// Escapes other than of a single character are kept as written: nothing that is read here has any.
    fn string(rest: &mut &str) -> Option<String> {
        let body = rest.strip_prefix('"')?;
        let (mut text, mut escaped) = (String::new(), false);
        for (at, character) in body.char_indices() {
            match character {
                '\\' if !escaped => escaped = true,
                '"' if !escaped => {
                    *rest = body[at + 1..].trim_start();
                    return Some(text);
                }
                _ => {
                    text.push(character);
                    escaped = false;
                }
            }
        }
        None
    }

    fn get(&self, key: &str) -> Option<&Json> {
        if let Json::Map(map) = self { map.get(key) } else { None }
    }

    fn values(&self) -> Vec<&Json> {
        if let Json::Map(map) = self { map.values().collect() } else { Vec::new() }
    }

    fn list(&self) -> &[Json] {
        if let Json::List(list) = self { list } else { &[] }
    }

    fn text(&self) -> Option<&str> {
        if let Json::Text(text) = self { Some(text) } else { None }
    }

    fn number(&self) -> Option<u64> {
        if let Json::Word(word) = self { word.parse().ok() } else { None }
    }

    /// `[input, output]`.
    fn fds(&self) -> Option<[RawFd; 2]> {
        let [input, output] = self.list() else { return None };
        Some([input.number()?.try_into().ok()?, output.number()?.try_into().ok()?])
    }
}

/// Takes this character and the space behind it off the front, if it is there.
fn take(rest: &mut &str, character: char) -> bool {
    let after = rest.strip_prefix(character);
    *rest = after.map_or(*rest, str::trim_start);
    after.is_some()
}
