//! `hp diverge show`: one report, for the contract's author and the operators.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _},
    path::{Path, PathBuf},
};

use super::{headline, list, read};
use crate::{
    cli::{Exit, Failure, Outcome, answer},
    divergence::{Bytes, Comparison, Group, Kind, Proof, Report, Side, What, folder},
    types::Seq,
};

/// Bytes in a line of the hexadecimal view.
const LINE_BYTES: usize = 16;

const EXAMPLES: &str = "\
Examples:
  hp diverge show mynode                    the last ledger on which results differed
  hp diverge show mynode --seq 17 --json    all that is known of ledger 17, for programs";

/// Show in what the results of one ledger differed, to the byte.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Show {
    /// The contract folder of the node
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// Which ledger [default: the last one on which results differed]
    #[arg(long, value_name = "N")]
    seq: Option<Seq>,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

impl Show {
    pub(super) fn run(self) -> Outcome {
        let seqs = list(&self.dir)?;
        let wanted: Vec<Seq> = seqs.iter().rev().copied().filter(|seq| self.seq.is_none_or(|it| it == *seq)).collect();
        for seq in wanted {
            if let Some(report) = read(&self.dir, seq)? {
                let colours =
                    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
                return match self.json {
                    true => answer(&format!("{:#}\n", serde_json::to_value(&report)?)),
                    false => answer(&text(&report, &self.dir, Paint(colours))),
                };
            }
        }
        let dir = self.dir.display();
        let what = match (self.seq, &seqs[..]) {
            (Some(seq), []) => format!("nothing is kept of ledger {seq}: no results differed, as far as {dir} knows"),
            (Some(seq), seqs) => {
                let known = seqs.iter().map(Seq::to_string).collect::<Vec<_>>().join(", ");
                format!("nothing is kept of ledger {seq} in {dir}; there are {known}")
            }
            (None, []) => format!("no results differed, as far as {dir} knows"),
            (None, _) => format!("there is no report in {dir}/diag yet; a node writes it within some seconds"),
        };
        Err(Failure::new(Exit::Failed, anyhow::anyhow!(what)))
    }
}

/// Colours, in a terminal alone.
#[derive(Clone, Copy)]
pub(super) struct Paint(pub(super) bool);

impl Paint {
    fn with(self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
    fn strong(self, text: &str) -> String {
        self.with("1", text)
    }
    fn bad(self, text: &str) -> String {
        self.with("1;31", text)
    }
    fn mine(self, text: &str) -> String {
        self.with("32", text)
    }
    fn theirs(self, text: &str) -> String {
        self.with("31", text)
    }
    fn faint(self, text: &str) -> String {
        self.with("2", text)
    }
    fn hint(self, text: &str) -> String {
        self.with("33", text)
    }
}

pub(super) fn text(report: &Report, dir: &Path, paint: Paint) -> String {
    let mut text = String::new();
    let mut line = |words: String| writeln!(text, "{words}").expect("into memory");
    let title = format!("Ledger {}: {}", report.seq, headline(report));
    line(match report.kind {
        Kind::Split | Kind::Diverged => paint.bad(&title),
        Kind::Others | Kind::Open => paint.strong(&title),
    });
    line(format!("hash {}", report.ledger));
    line(String::new());
    for group in &report.groups {
        groups(group, &report.node, paint, &mut line);
    }
    if !report.silent.is_empty() {
        line("not known    results of these members are not known here".to_owned());
        report.silent.iter().for_each(|node| line(format!("             {node}")));
    }
    let Some(own) = report.own_group() else { return text };
    for group in report.groups.iter().filter(|group| !group.this_node) {
        line(String::new());
        line(paint.strong(&format!("{} (this node) and {}", own.name, group.name)));
        if let Some(comparison) = report.comparison(group) {
            compared(own, group, comparison, paint, &mut line);
        }
    }
    line(String::new());
    what_to_do(report, dir, paint, &mut line);
    text
}

fn groups(group: &Group, me: &str, paint: Paint, line: &mut impl FnMut(String)) {
    let mut marks = Vec::new();
    if group.agreed {
        marks.push("agreed on by the network");
    }
    if group.this_node {
        marks.push("this node");
    }
    let marks = if marks.is_empty() { String::new() } else { format!(", {}", marks.join(", ")) };
    let count = group.nodes.len();
    let nodes = if count == 1 { "1 node".to_owned() } else { format!("{count} nodes") };
    line(paint.strong(&format!("result {:<5} {nodes}{marks}", group.name)));
    line(format!("  run        {}", group.status));
    line(format!("  state      {}", root(&group.state_root)));
    line(format!("  outputs    {}", root(&group.outputs_root)));
    if let Some(request) = &group.unl_request {
        line(format!("  asks for   {request}"));
    }
    for node in &group.nodes {
        let me = if node == me { "  (this node)" } else { "" };
        line(format!("  {:<10} {node}{me}", if *node == group.nodes[0] { "nodes" } else { "" }));
    }
}

/// The root of nothing is zero.
fn root(root: &str) -> &str {
    if root.bytes().all(|digit| digit == b'0') { "none" } else { root }
}

fn compared(own: &Group, group: &Group, comparison: &Comparison, paint: Paint, line: &mut impl FnMut(String)) {
    if own.status != group.status {
        line(format!("  run: {} here, {} there", paint.mine(&own.status), paint.theirs(&group.status)));
        if own.status != "ok" {
            line(
                "  log/contract/ says what the contract printed here; a failed run has no outputs and changes nothing"
                    .to_owned(),
            );
        } else {
            line("  log/contract/ of the other nodes says what the contract printed there; a failed run has no outputs and \
                  changes nothing".to_owned());
        }
    }
    if own.unl_request != group.unl_request {
        let request = |request: &Option<String>| request.clone().unwrap_or("none".to_owned());
        line(format!(
            "  UNL change asked for: {} here, {} there",
            request(&own.unl_request),
            request(&group.unl_request)
        ));
    }
    let Some(with) = &comparison.with else {
        let why = "  no node of that group has told what its run did: it is not linked, or has moved on";
        return line(paint.faint(why));
    };
    line(paint.faint(&format!("  compared with {with}")));
    if comparison.paths.is_empty() && own.state_root != group.state_root {
        line("  state: the difference is not among the paths that both told of".to_owned());
    }
    for difference in &comparison.paths {
        line(String::new());
        line(format!("  {}", paint.strong(&format!("state/{}", difference.path))));
        sides("  ", own, group, &difference.mine, &difference.theirs, paint, line);
        bytes(own, group, &difference.what, paint, line);
    }
    if comparison.paths_more > 0 {
        line(format!("  and {} more paths", comparison.paths_more));
    }
    for difference in &comparison.outputs {
        line(String::new());
        line(format!("  {}", paint.strong(&format!("output to user {}", difference.user))));
        sides("  ", own, group, &difference.mine, &difference.theirs, paint, line);
        bytes(own, group, &difference.what, paint, line);
    }
    if comparison.outputs_more > 0 {
        line(format!("  and outputs to {} more users", comparison.outputs_more));
    }
    if comparison.cut {
        line("  nodes tell of the first 1,000 changed paths and users: there may be more that differ".to_owned());
    }
}

fn sides(
    indent: &str,
    own: &Group,
    group: &Group,
    mine: &Side,
    theirs: &Side,
    paint: Paint,
    line: &mut impl FnMut(String),
) {
    line(format!("{indent}  {} {}", paint.mine(&format!("{:<3}", own.name)), side(mine)));
    line(format!("{indent}  {} {}", paint.theirs(&format!("{:<3}", group.name)), side(theirs)));
}

fn side(side: &Side) -> String {
    let mut words = match &side.is[..] {
        "nothing" => "nothing is there".to_owned(),
        "unknown" => "not known".to_owned(),
        other => other.to_owned(),
    };
    if let Some(size) = side.size {
        write!(words, ", {size} byte{}", if size == 1 { "" } else { "s" }).expect("into memory");
    }
    if side.executable {
        words.push_str(", executable");
    }
    if side.as_before {
        words.push_str(", as before the run");
    }
    if side.proof == Proof::Says && side.is != "unknown" && !side.as_before {
        words.push_str(" (that node says so, not proven)");
    }
    words
}

fn bytes(own: &Group, group: &Group, what: &What, paint: Paint, line: &mut impl FnMut(String)) {
    if let Some(offset) = what.offset
        && (what.mine_bytes.is_some() && what.theirs_bytes.is_some())
    {
        line(format!("    the first byte that differs is at offset {offset}"));
    }
    let name = |group: &Group| format!("{:<3}", group.name);
    let offset = what.offset.unwrap_or(0);
    if let Some(bytes) = &what.mine_bytes {
        view(&paint.mine(&name(own)), bytes, offset, paint, Paint::mine, line);
    }
    if let Some(bytes) = &what.theirs_bytes {
        view(&paint.theirs(&name(group)), bytes, offset, paint, Paint::theirs, line);
    }
    if let Some(why) = &what.no_bytes {
        line(paint.faint(&format!("    no bytes to show: {why}")));
    }
    for guess in &what.looks_like {
        line(paint.hint(&format!("    looks like {guess}")));
    }
}

/// Sixteen bytes a line, as numbers and as text. Those from `offset` on stand out.
fn view(
    name: &str,
    bytes: &Bytes,
    offset: u64,
    paint: Paint,
    colour: fn(Paint, &str) -> String,
    line: &mut impl FnMut(String),
) {
    let content = hex::decode(&bytes.hex).unwrap_or_default();
    if content.is_empty() {
        return line(format!("    {name} {:>8}  (ends here)", bytes.from));
    }
    for (at, row) in content.chunks(LINE_BYTES).enumerate() {
        let from = bytes.from + (at * LINE_BYTES) as u64;
        let (mut numbers, mut text) = (String::new(), String::new());
        for (position, byte) in (from..).zip(row) {
            let (number, letter) =
                (format!("{byte:02x}"), if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '.' });
            let letter = letter.to_string();
            let differs = position >= offset;
            // Without colours the first one is marked.
            let mark = if position == offset && !paint.0 { '>' } else { ' ' };
            write!(numbers, "{mark}{}", if differs { colour(paint, &number) } else { number }).expect("into memory");
            text.push_str(&if differs { colour(paint, &letter) } else { letter });
        }
        let padding = " ".repeat(3 * (LINE_BYTES - row.len()));
        line(format!("    {name} {from:>8} {numbers}{padding}  {text}"));
    }
    let end = bytes.from + content.len() as u64;
    if end == offset {
        line(format!("    {name} {end:>8}  (ends here)"));
    }
}

fn what_to_do(report: &Report, dir: &Path, paint: Paint, line: &mut impl FnMut(String)) {
    let (dir_shown, seq) = (dir.display(), report.seq);
    let kept = folder::of(dir, seq);
    line(paint.strong("What to do"));
    match report.kind {
        Kind::Split | Kind::Open => {
            if !report.silent.is_empty() {
                line("  Start the members whose results are not known: one that completes a quorum decides, and the network goes \
                      on by itself.".to_owned());
            }
            let begin = if report.silent.is_empty() { "All" } else { "Else all" };
            line(format!("  {begin} operators decide on one of the results. On every node, with the same arguments:"));
            for group in report.groups.iter().filter(|group| group.status == "ok") {
                line(format!(
                    "    hp recover {dir_shown} --seq {seq} --root {}    (result {})",
                    group.state_root, group.name
                ));
            }
            for group in report.groups.iter().filter(|group| group.status != "ok") {
                line(format!(
                    "    hp recover {dir_shown} --seq {seq} --root {}    (result {}, the state before the run)",
                    group.state_root, group.name
                ));
            }
        }
        Kind::Diverged => {
            line("  Compare the executable, its interpreter and libraries with the other nodes'; if they are the same, the \
                  contract is not deterministic.".to_owned());
        }
        Kind::Others => {
            line("  If the other node has the same executable, the contract is not deterministic.".to_owned());
        }
    }
    let whole = if report.kept.whole_state {
        "this node's state after the run"
    } else {
        "the files that this node's run changed"
    };
    line(format!(
        "  {}/ has in state/ {whole}, in before/ files as they were, in outputs/ what users got.",
        kept.display()
    ));
    line("  What a contract must not use is in contracts/README.md, \"Same inputs, same result\".".to_owned());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::divergence::{Kept, PathDifference};

    fn group(name: &str, node: &str, this_node: bool, status: &str) -> Group {
        Group {
            name: name.to_owned(),
            nodes: vec![node.to_owned()],
            this_node,
            agreed: false,
            status: status.to_owned(),
            state_root: format!("{name}0"),
            outputs_root: "00".to_owned(),
            unl_request: None,
        }
    }

    #[test]
    fn a_report_names_sides_bytes_and_what_to_do_in_plain_text() {
        let (a, b) = (group("A", "n1", true, "ok"), group("B", "n2", false, "exit code 3"));
        let bytes = |text: &str| Some(Bytes { from: 16, hex: hex::encode(text) });
        let mine = Side { is: "file".to_owned(), size: Some(20), ..Side::nothing(Proof::Own) };
        let what = What {
            offset: Some(18),
            mine_bytes: bytes("at 1"),
            theirs_bytes: bytes("at"),
            no_bytes: None,
            looks_like: vec!["something".to_owned()],
        };
        let path = PathDifference {
            path: "file".to_owned(),
            mine,
            theirs: Side { is: "file".to_owned(), size: Some(18), executable: true, ..Side::nothing(Proof::Says) },
            what,
        };
        let compared = Comparison {
            state_root: b.state_root.clone(),
            outputs_root: b.outputs_root.clone(),
            status: b.status.clone(),
            with: Some("n2".to_owned()),
            paths: vec![path],
            paths_more: 3,
            outputs: Vec::new(),
            outputs_more: 0,
            cut: false,
        };
        let report = Report {
            seq: 9,
            ledger: "1f".to_owned(),
            time_ms: 0,
            node: "n1".to_owned(),
            kind: Kind::Split,
            quorum: 3,
            silent: vec!["n3".to_owned()],
            groups: vec![a, b],
            compared: vec![compared],
            kept: Kept::default(),
        };
        let expected = "\
Ledger 9: SPLIT: 2 nodes, 2 results, none with a quorum of 3
hash 1f

result A     1 node, this node
  run        ok
  state      A0
  outputs    none
  nodes      n1  (this node)
result B     1 node
  run        exit code 3
  state      B0
  outputs    none
  nodes      n2
not known    results of these members are not known here
             n3

A (this node) and B
  run: ok here, exit code 3 there
  log/contract/ of the other nodes says what the contract printed there; a failed run has no outputs and changes nothing
  compared with n2

  state/file
    A   file, 20 bytes
    B   file, 18 bytes, executable (that node says so, not proven)
    the first byte that differs is at offset 18
    A         16  61 74>20 31                                      at 1
    B         16  61 74                                            at
    B         18  (ends here)
    looks like something
  and 3 more paths

What to do
  Start the members whose results are not known: one that completes a quorum decides, and the network goes on by itself.
  Else all operators decide on one of the results. On every node, with the same arguments:
    hp recover node --seq 9 --root A0    (result A)
    hp recover node --seq 9 --root B0    (result B, the state before the run)
  node/diag/9/ has in state/ the files that this node's run changed, in before/ files as they were, in outputs/ what users got.
  What a contract must not use is in contracts/README.md, \"Same inputs, same result\".
";
        assert_eq!(text(&report, Path::new("node"), Paint(false)), expected);
        assert!(text(&report, Path::new("node"), Paint(true)).contains("\x1b[32m20\x1b[0m"), "coloured in a terminal");
    }
}
