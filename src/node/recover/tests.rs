//! Chains that are recovered: alike on all nodes, whole whenever the power goes, and with nothing lost in silence.

use std::os::unix::fs::OpenOptionsExt as _;

use tempfile::TempDir;

use super::*;
use crate::{
    config::Document,
    consensus::header::Origin,
    verify::{Ask as AskVerify, tests::made::Made, verify},
};

/// A network's chain of so many ledgers, and the configuration of one of its nodes.
struct Network {
    made: Made,
    text: String,
}

impl Network {
    fn new(ledgers: u64) -> Network {
        let mut made = Made::new(5);
        let mut document = Document::new(&made.nodes[0], made.genesis.contract_id, made.genesis.time_ms, &made.unl);
        document.set("consensus.input_window", "64");
        let config = parse(document.text());
        made.shared = config.shared();
        made.genesis.cfg_hash = config.cfg_hash();
        made.genesis.state_root = folder::look(state("old").path()).unwrap().root;
        (made.hash, made.result) = (made.genesis.chain_id(), made.genesis.result());
        let text = document.text().to_owned();
        let mut network = Network { made, text };
        (0..ledgers).for_each(|_| network.close());
        network
    }

    /// One more ledger, with two signed inputs.
    fn close(&mut self) {
        let mut plan = self.made.full();
        plan.inputs.retain(|input| matches!(input.origin, Origin::User { .. }));
        self.made.close(plan, |_| {});
    }

    /// The folder of one of the nodes, whose state is this one.
    fn folder(&self, held: &str) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        self.made.store(dir.path());
        fs::create_dir(dir.path().join("cfg")).unwrap();
        let mut options = File::options();
        let mut file = options.write(true).create_new(true).mode(0o600).open(Config::path(dir.path())).unwrap();
        io::Write::write_all(&mut file, self.text.as_bytes()).unwrap();
        fs::rename(state(held).keep(), dir.path().join("state")).unwrap();
        dir
    }
}

fn parse(text: &str) -> Config {
    Config::parse(text, Path::new("hp.cfg"), Path::new("."), &|_| unreachable!()).unwrap()
}

/// A folder with one file.
fn state(content: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), content).unwrap();
    dir
}

fn root_of(content: &str) -> Hash {
    folder::look(state(content).path()).unwrap().root
}

fn ask(dir: &Path, seq: Seq, root: Hash) -> Ask {
    Ask { dir: dir.to_owned(), seq, root, binary: None, unl: None, threshold: None, state: None }
}

/// What a folder is: its chain as an independent verifier sees it, its contract id, its state.
fn is(dir: &Path) -> (Hash, Seq, Hash, Hash) {
    let report = verify(&mut Archive::open(dir).unwrap(), AskVerify::default(), &mut |_, _| {}).unwrap();
    let config = Config::load_text(dir).unwrap().1;
    let state = folder::look(&dir.join("state")).unwrap().root;
    (report.chain_id.unwrap(), report.to, config.contract.id, state)
}

#[test]
fn all_nodes_make_the_same_chain_of_the_same_arguments_wherever_they_stand() {
    let mut network = Network::new(4);
    let here = network.folder("new");
    let at_four = network.made.result.clone();
    network.close();
    let beyond = network.folder("new");
    // The one beyond knows what was agreed on, and from nothing else can it go on there.
    let told = Plan::make(&ask(beyond.path(), 4, root_of("new"))).unwrap_err().to_string();
    assert!(
        told.contains("ledger 5 says that the run of ledger 4 led to") && told.contains("the last one here is 5"),
        "{told}"
    );

    let make = |dir: &TempDir, change: &dyn Fn(&mut Ask)| {
        let mut ask = ask(dir.path(), 4, root_of("new"));
        change(&mut ask);
        Plan::make(&ask).unwrap()
    };
    let plan = make(&here, &|_| {});
    assert_eq!(plan.heritage.hash, at_four.of_hash);
    let ancestor = plan.genesis.ancestor.clone().unwrap();
    assert_eq!((ancestor.seq, ancestor.n_users, ancestor.n_keys), (4, plan.heritage.users.len() as u32, 8));
    let first = (plan.genesis.contract_id, plan.genesis.chain_id());
    drop(plan);
    let plan = make(&beyond, &|ask| ask.seq = 5);
    assert_ne!(plan.genesis.contract_id, first.0, "after another ledger");
    drop(plan);
    let other = make(&here, &|ask| ask.threshold = Some(67));
    assert_eq!(other.settings, [("consensus.threshold", "80".to_owned(), "67".to_owned())]);
    assert_ne!(other.genesis.contract_id, first.0, "with another threshold");
    drop(other);
    let unl = network.made.unl[..3].to_vec();
    let fewer = make(&here, &|ask| ask.unl = Some(unl.iter().rev().copied().collect()));
    assert_eq!(fewer.genesis.unl, unl);
    assert_ne!(fewer.genesis.contract_id, first.0, "with other members");
    drop(fewer);
    let same = make(&here, &|_| {});
    assert_eq!((same.genesis.contract_id, same.genesis.chain_id()), first);
}

#[test]
fn what_makes_no_sense_is_refused_and_says_why() {
    let network = Network::new(3);
    let dir = network.folder("new");
    let told = |change: &dyn Fn(&mut Ask)| {
        let mut ask = ask(dir.path(), 3, root_of("new"));
        change(&mut ask);
        Plan::make(&ask).unwrap_err().to_string()
    };
    let twice = network.made.unl[0];
    for (told, expected) in [
        (told(&|ask| ask.seq = 4), "ledger 4 is not closed here: the last one is 3"),
        (told(&|ask| ask.threshold = Some(66)), "--threshold: expected 67 to 100, got 66"),
        (told(&|ask| ask.unl = Some(vec![])), "--unl: expected 1 to 128 keys, got 0"),
        (told(&|ask| ask.unl = Some(vec![twice, twice])), "stands twice"),
        (told(&|ask| ask.unl = Some(vec![NodeKey([2; 32])])), "is no public key"),
        (told(&|ask| ask.root = Hash([9; 32])), "--state FOLDER"),
        (told(&|ask| ask.root = Hash([9; 32])), "/state  root "),
        (told(&|ask| ask.binary = Some("/etc/passwd".into())), "is not a file that can be executed"),
        (told(&|ask| ask.state = Some("/nowhere".into())), "no state of root"),
    ] {
        assert!(told.contains(expected), "{told}");
    }
    let plan = Plan::make(&ask(dir.path(), 3, root_of("new"))).unwrap();
    let locked = told(&|_| {});
    assert!(locked.contains("is locked"), "{locked}");
    drop(plan);
    fs::remove_file(dir.path().join("hist/ledger.db")).unwrap();
    assert!(told(&|_| {}).contains("has no chain to go on from"));
}

/// Prepares a switch in a copy of the folder: with another state, which `given` holds.
fn prepared(network: &Network, given: &TempDir) -> (TempDir, Genesis) {
    let dir = network.folder("old");
    let mut ask = ask(dir.path(), 4, root_of("given"));
    ask.state = Some(given.path().to_owned());
    let plan = Plan::make(&ask).unwrap();
    plan.prepare(&mut |_| {}).unwrap();
    (dir, plan.genesis.clone())
}

/// Finishes the switch of a folder, which is cut after so many steps.
fn cut_after(mut steps: u32, dir: &Path) -> Result<(), RecoverError> {
    switch::finish_locked(dir, &mut |_| match steps {
        0 => Err(io::ErrorKind::Interrupted.into()),
        _ => {
            steps -= 1;
            Ok(())
        }
    })
}

#[test]
fn a_switch_that_is_cut_at_any_step_is_finished_by_the_next_who_opens_the_folder() {
    let mut network = Network::new(4);
    network.made.vote();
    let given = state("given");
    let mut steps = 0;
    loop {
        let (dir, genesis) = prepared(&network, &given);
        assert!(switch::is_begun(dir.path()));
        let cut = cut_after(steps, dir.path());
        if cut.is_ok() {
            break;
        }
        // Cut again at each of the steps that are left.
        for more in 0.. {
            let cut = cut_after(more, dir.path());
            if cut.is_ok() {
                break;
            }
            assert!(switch::is_begun(dir.path()), "cut at {steps} and {more}");
        }
        assert!(!switch::finish(dir.path()).unwrap(), "it is finished");
        let expected = (genesis.chain_id(), 0, genesis.contract_id, root_of("given"));
        assert_eq!(is(dir.path()), expected, "cut at step {steps}");
        let kept = dir.path().join(switch::before(&network.made.genesis.chain_id()));
        let before = (network.made.genesis.chain_id(), 4, network.made.genesis.contract_id, root_of("old"));
        assert_eq!(is(&kept), before, "cut at step {steps}");
        assert_eq!(fs::read_to_string(Config::path(&kept)).unwrap(), network.text);
        steps += 1;
    }
    assert_eq!(steps, 7, "each rename was cut");
}

#[test]
fn before_all_is_prepared_the_folder_is_the_old_one_and_the_next_try_begins_anew() {
    let network = Network::new(4);
    let given = state("given");
    let (dir, genesis) = prepared(&network, &given);
    // As if it had been cut just before it was sealed, with half of it there.
    fs::rename(dir.path().join(".recover"), dir.path().join(".recover.new")).unwrap();
    fs::remove_file(dir.path().join(".recover.new/hp.cfg")).unwrap();
    assert!(!switch::finish(dir.path()).unwrap());
    let old = (network.made.genesis.chain_id(), 4, network.made.genesis.contract_id, root_of("old"));
    assert_eq!(is(dir.path()), old);
    let mut ask = ask(dir.path(), 4, root_of("given"));
    ask.state = Some(given.path().to_owned());
    let plan = Plan::make(&ask).unwrap();
    assert_eq!(plan.genesis, genesis);
    plan.prepare(&mut |_| {}).unwrap();
    switch::finish_planned(&plan).unwrap();
    drop(plan);
    assert_eq!(is(dir.path()), (genesis.chain_id(), 0, genesis.contract_id, root_of("given")));
}

#[test]
fn inputs_that_are_not_part_of_the_new_chain_are_counted_and_listed() {
    let mut network = Network::new(4);
    let (agreed, users) = (network.made.result.state_root, network.made.connected.clone());
    network.close();
    network.made.vote();
    let dir = network.folder("old");
    let archive = Archive::open(dir.path()).unwrap();
    assert_eq!(archive.heritage(4, 64).unwrap().unwrap().users, users);
    let lost = Lost::count(&archive, 4, &network.made.node(0)).unwrap();
    assert_eq!(lost, Lost { undone: 2, signed: 1, raw: 1, of_others: 0 });
    let lost = Lost::count(&archive, 5, &network.made.node(1)).unwrap();
    assert_eq!(lost, Lost { undone: 0, signed: 1, raw: 0, of_others: 1 });
    let list = dir.path().join("diag/lost.jsonl");
    lost::write(&archive, 4, &list).unwrap();
    let text = fs::read_to_string(&list).unwrap();
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 4, "{text}");
    assert_eq!((&lines[0]["ledger"], &lines[0]["by"]), (&5.into(), &"user".into()));
    assert_eq!((&lines[2]["ledger"], &lines[2]["nonce"]), (&serde_json::Value::Null, &77.into()));
    assert_ne!(agreed, Hash::ZERO);
}

#[test]
fn another_executable_is_copied_under_a_name_of_its_own_and_is_part_of_the_id() {
    let network = Network::new(2);
    let dir = network.folder("new");
    let bin = dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    fs::write(bin.join("contract"), "old").unwrap();
    let given = tempfile::tempdir().unwrap();
    let program = given.path().join("program");
    let write = |content: &str| {
        fs::write(&program, content).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
    };
    write("first");
    let ask = Ask { binary: Some(program.clone()), ..ask(dir.path(), 2, root_of("new")) };
    let first = Plan::make(&ask).unwrap().genesis;
    write("second");
    let plan = Plan::make(&ask).unwrap();
    assert_ne!(plan.genesis.contract_id, first.contract_id);
    plan.prepare(&mut |_| {}).unwrap();
    switch::finish_planned(&plan).unwrap();
    let config = Config::load_text(dir.path()).unwrap().1;
    let hash = plan.genesis.ancestor.as_ref().unwrap().binary.unwrap();
    assert_eq!(config.binary, dir.path().join(format!("bin/program.{}", hash.short())));
    assert_eq!(fs::read_to_string(&config.binary).unwrap(), "second");
    assert_eq!(fs::metadata(&config.binary).unwrap().permissions().mode() & 0o777, 0o755);
    assert_eq!(fs::read_to_string(bin.join("contract")).unwrap(), "old");
    drop(plan);
    // Recovered again, and again with the same: its name does not grow.
    let ask = Ask { binary: Some(config.binary.clone()), seq: 0, ..ask };
    let plan = Plan::make(&ask).unwrap();
    assert_eq!(dir.path().join(&plan.binary.as_ref().unwrap().to), config.binary);
    assert_eq!(plan.heritage.keys.len(), 4, "keys of the chain before the last one");
}

#[test]
fn a_chain_is_recovered_again_and_all_that_were_before_stay() {
    let network = Network::new(3);
    let dir = network.folder("new");
    let plan = Plan::make(&ask(dir.path(), 3, root_of("new"))).unwrap();
    assert_eq!(plan.source, Source::Present);
    plan.prepare(&mut |_| {}).unwrap();
    switch::finish_planned(&plan).unwrap();
    let first = plan.genesis.clone();
    drop(plan);
    let mut ask = ask(dir.path(), 0, root_of("new"));
    ask.unl = Some(vec![network.made.unl[1]]);
    let plan = Plan::make(&ask).unwrap();
    assert_eq!(plan.heritage.users, network.made.connected);
    plan.prepare(&mut |_| {}).unwrap();
    switch::finish_planned(&plan).unwrap();
    let second = plan.genesis.clone();
    drop(plan);
    assert_eq!(is(dir.path()).0, second.chain_id());
    assert_eq!(second.ancestor.as_ref().unwrap().chain_id, first.chain_id());
    let chain = |dir: &Path| {
        verify(&mut Archive::open(dir).unwrap(), AskVerify::default(), &mut |_, _| {}).unwrap().chain_id.unwrap()
    };
    let one_before = dir.path().join(switch::before(&first.chain_id()));
    assert_eq!(chain(&one_before), first.chain_id());
    let two_before = one_before.join(switch::before(&network.made.genesis.chain_id()));
    assert_eq!(chain(&two_before), network.made.genesis.chain_id());
}
