//! Two runs with different results, each in a folder of its own: what one keeps, what it tells, and what the other finds
//! out, also from one that lies.

use std::{
    fs,
    os::unix::fs::symlink,
    sync::mpsc::{Sender, channel},
};

use tempfile::TempDir;

use super::{kept::*, *};
use crate::{
    consensus::merkle,
    divergence::{Kind, Proof, Report},
    node::diverge::inquiry::Ask,
    state::{self, Backend, StateStore},
    types::{Hash, Status, UserKey},
};

const SEQ: Seq = 7;
const USER: UserKey = UserKey([5; 32]);
const TIME_MS: u64 = 1_790_000_000_000;

/// A contract folder after a run of ledger 7.
struct Side {
    dir: TempDir,
    kept: KeptRun,
}

/// Runs `change` on a state that is alike on all sides.
fn ran(change: impl Fn(&Path), output: &[u8], is_own: bool) -> Side {
    let dir = tempfile::tempdir().unwrap();
    let mut store = state::open(dir.path(), Backend::Shadow, None).unwrap();
    let top = dir.path().join("state");
    fs::write(top.join("same"), "same").unwrap();
    fs::write(top.join("old"), "as it was").unwrap();
    fs::write(top.join("big"), vec![b'x'; 200_000]).unwrap();
    let root = store.scan(false).unwrap().root;
    store.snapshot(SEQ, root).unwrap();
    change(&top);
    let scan = store.scan(false).unwrap();
    let run = to_keep(scan.root, Some(scan.changed), output, is_own);
    let kept = keep(dir.path(), &Left::State(&*store), run).unwrap();
    Side { dir, kept }
}

fn to_keep(state_root: Hash, changed: Option<Vec<Vec<u8>>>, output: &[u8], is_own: bool) -> ToKeep {
    let result = ExecResult {
        of_seq: SEQ,
        of_hash: Hash([7; 32]),
        state_root,
        outputs_root: merkle::root(vec![merkle::output_leaf(&USER, output)]),
        status: Status::Ok,
        unl_req: None,
    };
    let outputs = vec![(USER, output.to_vec().into())];
    ToKeep { seq: SEQ, time_ms: TIME_MS, result, changed, outputs, recent: None, is_own }
}

fn of(path: &str, block: Option<u32>) -> PieceRef {
    PieceRef { of_seq: SEQ, of_hash: Hash([7; 32]), of: Thing::Path(path.as_bytes().to_vec()), block }
}

fn write(top: &Path, path: &str, content: &str) {
    fs::write(top.join(path), content).unwrap();
}

#[test]
fn nothing_is_answered_but_blocks_that_the_run_left() {
    let side = ran(|top| write(top, "new", "content"), b"output", true);
    let ask = |asked: &PieceRef| answer(side.dir.path(), &side.kept, asked);
    assert!(matches!(ask(&of("new", None)), Piece::Known(_)));
    assert_eq!(ask(&of("new", Some(0))), Piece::Block(b"content".to_vec()));
    let output = PieceRef { of: Thing::Output(USER), ..of("", Some(0)) };
    assert_eq!(ask(&output), Piece::Block(b"output".to_vec()));
    // What the run did not change, what never was, what is elsewhere, another ledger, a block behind the end.
    for path in ["same", "never", "../run", "../../../hist/x", "/etc/passwd", "", "new/..", "./new"] {
        assert_eq!(ask(&of(path, None)), Piece::Gone, "{path}");
        assert_eq!(ask(&of(path, Some(0))), Piece::Gone, "{path}");
    }
    assert_eq!(ask(&PieceRef { of_hash: Hash([8; 32]), ..of("new", None) }), Piece::Gone);
    assert_eq!(ask(&PieceRef { of_seq: 8, ..of("new", None) }), Piece::Gone);
    assert_eq!((ask(&of("new", Some(1))), ask(&of("new", Some(u32::MAX)))), (Piece::Gone, Piece::Gone));

    // Whoever puts something else there leads nobody to it.
    let file = folder::of(side.dir.path(), SEQ).join("state/new");
    let secret = side.dir.path().join("secret");
    fs::write(&secret, "content of the secret").unwrap();
    fs::remove_file(&file).unwrap();
    symlink(&secret, &file).unwrap();
    assert_eq!(ask(&of("new", Some(0))), Piece::Gone, "a link");
    fs::remove_file(&file).unwrap();
    fs::copy(&secret, &file).unwrap();
    assert_eq!(ask(&of("new", Some(0))), Piece::Gone, "another content");
}

#[test]
fn what_is_kept_is_found_again_and_kept_anew_only_for_more() {
    let side = ran(|top| write(top, "new", "content"), b"output", false);
    let files = folder::of(side.dir.path(), SEQ);
    assert_eq!(read(side.dir.path(), SEQ), Some(side.kept.clone()));
    assert!(!side.kept.whole && !files.join("state/same").exists(), "of others' the changes alone");
    let mut store = state::open(side.dir.path(), Backend::Shadow, None).unwrap();
    let root = store.scan(false).unwrap().root;
    let again = |is_own| keep(side.dir.path(), &Left::State(&*store), to_keep(root, None, b"output", is_own)).unwrap();
    assert_eq!(again(false), side.kept);
    let own = again(true);
    assert!(own.whole && files.join("state/same").exists(), "this node's own is worth all of it");
    assert_eq!(own.details, side.kept.details, "after a restart the state knows what the run changed");
    assert_eq!(again(false), own, "never less");
    fs::write(files.join("run"), "damaged").unwrap();
    assert_eq!(read(side.dir.path(), SEQ), None);
}

#[test]
fn a_small_run_is_kept_after_the_state_has_moved_on_and_a_large_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = state::open(dir.path(), Backend::Shadow, None).unwrap();
    let top = dir.path().join("state");
    let root = store.scan(false).unwrap().root;
    store.snapshot(SEQ, root).unwrap();
    fs::create_dir(top.join("deep")).unwrap();
    write(&top, "deep/file", "of ledger 7");
    let scan = store.scan(false).unwrap();
    let changed = |store: &dyn StateStore, paths: &[Vec<u8>]| -> Vec<_> {
        let now = |path: &Vec<u8>| crate::consensus::details::Changed { now: store.leaf(path), path: path.clone() };
        paths.iter().map(now).collect()
    };
    let recent = Recent::of(&top, &*store, scan.files, &changed(&*store, &scan.changed)).unwrap();
    write(&top, "deep/file", "of ledger 8");
    store.scan(false).unwrap();
    let kept = keep(dir.path(), &Left::Memory(&recent), to_keep(scan.root, Some(scan.changed), b"", true)).unwrap();
    assert_eq!(answer(dir.path(), &kept, &of("deep/file", Some(0))), Piece::Block(b"of ledger 7".to_vec()));
    let Piece::Known(known) = answer(dir.path(), &kept, &of("deep/file", None)) else { panic!("it is known") };
    assert!(state::is_in_tree(&scan.root, b"deep/file", known.state, &known.proof));

    fs::write(top.join("large"), vec![0; 200_000]).unwrap();
    let scan = store.scan(false).unwrap();
    assert!(Recent::of(&top, &*store, scan.files, &changed(&*store, &scan.changed)).is_none());
    assert!(Recent::of(&top, &*store, 1_000_000, &[]).is_none(), "of so many files no run goes through all");
}

#[test]
fn of_a_failed_run_of_its_own_a_node_keeps_the_whole_state_which_is_that_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = state::open(dir.path(), Backend::Shadow, None).unwrap();
    write(&dir.path().join("state"), "file", "as it was");
    let root = store.scan(false).unwrap().root;
    store.snapshot(SEQ, root).unwrap();
    let run = |is_own| {
        let mut run = to_keep(root, None, b"", is_own);
        (run.result.status, run.outputs) = (Status::Exit(3), Vec::new());
        run.result.outputs_root = Hash::ZERO;
        keep(dir.path(), &Left::State(&*store), run).unwrap()
    };
    assert!(!run(false).whole);
    assert!(run(true).whole);
    let kept = folder::of(dir.path(), SEQ).join("state");
    assert_eq!(state::folder::look(&kept).unwrap().root, root, "`hp recover` can go on from it");
}

#[test]
fn an_alert_of_a_split_counts_the_sides_there_are_and_says_what_is_missing() {
    let result = |root| ExecResult { state_root: Hash([root; 32]), ..to_keep(Hash::ZERO, None, b"", true).result };
    let results = |roots: &[u8]| -> Vec<(NodeKey, ExecResult)> {
        (0..).zip(roots).map(|(node, root)| (NodeKey([node; 32]), result(*root))).collect()
    };
    let text = split_text(&results(&[1, 1, 2]), Some((2, 4)));
    assert!(text.contains("ledger 7 are split 2 ways") && text.contains("one of 2 missing results"), "{text}");
    let text = split_text(&results(&[1, 1, 2, 3]), Some((1, 4)));
    assert!(text.contains("3 ways") && text.contains("the missing result completes"), "{text}");
    let text = split_text(&results(&[1, 2, 2, 3, 3]), None);
    assert!(text.contains("3 ways, and no quorum is possible"), "{text}");
}

/// The other node, which answers at once; what it says may be changed on the way.
struct Other {
    tells: Sender<Tell>,
    side: (std::path::PathBuf, KeptRun),
    lie: fn(Piece) -> Piece,
}

const ME: NodeKey = NodeKey([1; 32]);
const THEM: NodeKey = NodeKey([2; 32]);

impl Ask for Other {
    fn ask(&self, to: NodeKey, get: Get) {
        assert_eq!(to, THEM);
        let tell = match get {
            Get::Details(SEQ) => Tell::Details(THEM, self.side.1.details.clone()),
            Get::Piece(asked) => {
                let piece = (self.lie)(answer(&self.side.0, &self.side.1, &asked));
                Tell::Piece(THEM, asked, piece)
            }
            other => panic!("{other:?} is not asked"),
        };
        let _ = self.tells.send(tell);
    }

    fn linked(&self) -> Vec<NodeKey> {
        vec![THEM]
    }
}

/// What the first finds out about the second.
fn find_out(mine: &Side, theirs: &Side, lie: fn(Piece) -> Piece) -> Report {
    let (tells, told) = channel();
    let results = BTreeMap::from([(ME, mine.kept.details.result.clone()), (THEM, theirs.kept.details.result.clone())]);
    let facts = Facts { results, members: vec![ME, THEM], quorum: 2, agreed: None, is_split: true };
    let side = (theirs.dir.path().to_path_buf(), theirs.kept.clone());
    let dir = mine.dir.path().to_path_buf();
    let inquiry = Inquiry::new(dir.clone(), ME, Arc::new(mine.kept.clone()), facts, Other { tells, side, lie }, told);
    inquiry.once();
    folder::read_report(&dir, SEQ).unwrap().expect("it is written")
}

#[test]
fn the_first_byte_that_differs_is_found_in_every_kind_of_difference() {
    let big = |top: &Path, at: usize, byte: u8| {
        let mut content = vec![b'x'; 200_000];
        content[at] = byte;
        fs::write(top.join("big"), content).unwrap();
    };
    let mine = ran(
        |top| {
            big(top, 150_000, b'A');
            write(top, "both", "alike");
            write(top, "differs", "at 1790000001 here");
            write(top, "mine alone", "x");
            fs::remove_file(top.join("old")).unwrap();
        },
        b"output 1",
        true,
    );
    let theirs = ran(
        |top| {
            big(top, 150_000, b'B');
            write(top, "both", "alike");
            write(top, "differs", "at 1790000002 here");
            fs::create_dir(top.join("folder")).unwrap();
            write(top, "same", "changed there");
        },
        b"output 2",
        true,
    );
    let report = find_out(&mine, &theirs, |piece| piece);
    assert_eq!((report.kind, report.groups.len(), report.silent.len()), (Kind::Split, 2, 0));
    let comparison = &report.compared[0];
    let text = |bytes: &Option<crate::divergence::Bytes>| {
        bytes.as_ref().map(|bytes| String::from_utf8(hex::decode(&bytes.hex).unwrap()).unwrap())
    };
    let found: Vec<_> = comparison
        .paths
        .iter()
        .map(|it| (&it.path[..], &it.mine.is[..], &it.theirs.is[..], it.what.offset, it.theirs.proof))
        .collect();
    assert_eq!(
        found,
        [
            ("big", "file", "file", Some(150_000), Proof::Proven),
            ("differs", "file", "file", Some(12), Proof::Proven),
            ("folder", "nothing", "folder", None, Proof::Says),
            ("mine alone", "file", "nothing", Some(0), Proof::Says),
            ("old", "nothing", "file", Some(0), Proof::Says),
            ("same", "file", "file", Some(0), Proof::Proven),
        ]
    );
    let bytes = |at: usize| {
        let what = &comparison.paths[at].what;
        (text(&what.mine_bytes), text(&what.theirs_bytes))
    };
    let x = |count| "x".repeat(count);
    assert_eq!(bytes(0), (Some(x(16) + "A" + &x(63)), Some(x(16) + "B" + &x(63))));
    assert_eq!(bytes(1), (Some("at 1790000001 here".to_owned()), Some("at 1790000002 here".to_owned())));
    assert!(comparison.paths[1].what.looks_like[0].contains("time stamp"));
    assert_eq!(bytes(3), (Some("x".to_owned()), None));
    assert_eq!(bytes(4), (None, Some("as it was".to_owned())), "what the other run left alone is known here");
    assert_eq!(bytes(5), (Some("same".to_owned()), Some("changed there".to_owned())));
    let output = &comparison.outputs[0];
    assert_eq!((output.what.offset, output.theirs.proof), (Some(7), Proof::Proven));
    assert_eq!(text(&output.what.theirs_bytes).as_deref(), Some("output 2"));
}

#[test]
fn bytes_that_do_not_lead_to_the_signed_result_are_not_shown() {
    let mine = ran(|top| write(top, "file", "mine"), b"output 1", true);
    let theirs = ran(|top| write(top, "file", "theirs"), b"output 2", true);
    let of = |report: &Report| {
        let comparison = report.compared[0].clone();
        let (path, output) = (comparison.paths[0].clone(), comparison.outputs[0].clone());
        ((path.what, path.theirs.proof), (output.what, output.theirs.proof))
    };
    let report = find_out(&mine, &theirs, |piece| match piece {
        Piece::Block(mut bytes) => {
            bytes[0] ^= 1;
            Piece::Block(bytes)
        }
        other => other,
    });
    let ((path, _), (output, _)) = of(&report);
    assert!(path.theirs_bytes.is_none() && path.no_bytes.unwrap().contains("other bytes"));
    assert!(output.theirs_bytes.is_none() && output.no_bytes.unwrap().contains("other bytes"));

    // Other blocks, and bytes that fit to them: no proof, and said so.
    fs::remove_file(folder::of(mine.dir.path(), SEQ).join("report.json")).unwrap();
    let report = find_out(&mine, &theirs, |piece| match piece {
        Piece::Known(mut known) => {
            known.blocks = vec![crate::state::block_hash(b"lies")];
            Piece::Known(known)
        }
        Piece::Block(_) => Piece::Block(b"lies".to_vec()),
        Piece::Gone => Piece::Gone,
    });
    let ((path, path_proof), (output, output_proof)) = of(&report);
    assert!(path.theirs_bytes.is_some() && output.theirs_bytes.is_some());
    assert_eq!((path_proof, output_proof), (Proof::Says, Proof::Says));

    // What was proven once stays when nobody tells it any more.
    let proven = find_out(&mine, &theirs, |piece| piece);
    let silent = find_out(&mine, &theirs, |_| Piece::Gone);
    assert_eq!(of(&silent), of(&proven));
}

/// A node that is not ready at first, while something new is heard with each answer.
struct Late {
    tells: Sender<Tell>,
    facts: Facts,
    side: (std::path::PathBuf, KeptRun),
    not_ready: std::cell::Cell<u32>,
}

impl Ask for Late {
    fn ask(&self, to: NodeKey, get: Get) {
        let tell = match get {
            Get::Details(SEQ) => Tell::Details(to, self.side.1.details.clone()),
            Get::Piece(asked) if self.not_ready.get() > 0 => {
                self.not_ready.set(self.not_ready.get() - 1);
                let _ = self.tells.send(Tell::Facts(self.facts.clone()));
                Tell::Piece(to, asked, Piece::Gone)
            }
            Get::Piece(asked) => {
                let piece = answer(&self.side.0, &self.side.1, &asked);
                Tell::Piece(to, asked, piece)
            }
            other => panic!("{other:?} is not asked"),
        };
        let _ = self.tells.send(tell);
    }

    fn linked(&self) -> Vec<NodeKey> {
        vec![THEM]
    }
}

#[test]
fn a_node_that_was_not_ready_is_asked_again_though_there_was_news_meanwhile() {
    let mine = ran(|top| write(top, "file", "mine"), b"output", true);
    let theirs = ran(|top| write(top, "file", "theirs"), b"output", true);
    let (tells, told) = channel();
    let results = BTreeMap::from([(ME, mine.kept.details.result.clone()), (THEM, theirs.kept.details.result.clone())]);
    let facts = Facts { results, members: vec![ME, THEM], quorum: 2, agreed: None, is_split: true };
    let side = (theirs.dir.path().to_path_buf(), theirs.kept.clone());
    let dir = mine.dir.path().to_path_buf();
    let late = Late { tells, facts: facts.clone(), side, not_ready: 4.into() };
    let inquiry = Inquiry::new(dir.clone(), ME, Arc::new(mine.kept.clone()), facts, late, told);
    let asking = std::thread::spawn(move || inquiry.run());
    let deadline = Instant::now() + Duration::from_secs(60);
    let is_known = || {
        let report = folder::read_report(&dir, SEQ).ok().flatten()?;
        report.compared.first()?.paths.first()?.what.theirs_bytes.clone()
    };
    while is_known().is_none() {
        assert!(!asking.is_finished(), "it goes on asking");
        assert!(Instant::now() < deadline, "it finds out");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

#[test]
fn lists_that_were_cut_are_compared_up_to_where_both_know_all() {
    let list = |keys: &[u32]| keys.iter().map(|key| (*key, ())).collect::<BTreeMap<_, _>>();
    assert_eq!(differing_keys(&list(&[1, 2, 5]), &list(&[1, 4]), 10), (vec![2, 4, 5], false));
    assert_eq!(differing_keys(&list(&[1, 2, 3]), &list(&[1, 2, 4, 5]), 4), (vec![3, 4, 5], true));
    assert_eq!(differing_keys(&list(&[1, 2, 3]), &list(&[1, 4]), 3), (vec![2, 3], true), "4 may be in the rest");
}

#[test]
fn a_member_makes_this_node_keep_a_run_once_in_a_while() {
    let mut records = Records::default();
    assert!(records.may_keep_for(THEM) && !records.may_keep_for(THEM) && records.may_keep_for(ME));
    for seq in 1..=100 {
        records.of(seq);
    }
    assert_eq!(records.by_seq.len(), RECORDS_MAX);
    assert!(records.by_seq.contains_key(&100));
}
