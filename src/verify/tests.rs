//! What nodes write verifies, and whatever is changed in it is found and named.

pub(crate) mod made;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use rusqlite::{Connection, types::Value};
use tempfile::TempDir;

use self::made::{Made, Plan, WINDOW};
use super::*;
use crate::{
    consensus::{
        header::{BareLedger, Candidate, ClosedLedger, ExecResult, Input, Settlement, UnlChange, unl_hash},
        journal::Record,
        messages::{Certificate, Precommit, Vote},
    },
    ledger::{Archive, Depth, LedgerError, Write},
    types::{LimitKind, Status},
    wire,
};

/// Writes a chain as a node does.
fn stored(made: &Made) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    made.store(dir.path());
    dir
}

fn check(dir: &Path, ask: Ask) -> Result<Report, Stopped<LedgerError>> {
    verify(&mut Archive::open(dir).map_err(Stopped::Source)?, ask, &mut |_, _| {})
}

fn verified(made: &Made) -> Result<Report, Wrong> {
    check(stored(made).path(), Ask::default()).map_err(|stopped| match stopped {
        Stopped::Wrong(wrong) => wrong,
        Stopped::Source(error) => panic!("{error}"),
    })
}

/// A chain with everything in it.
fn history(ledgers: u64) -> Made {
    let mut made = Made::new(5);
    for _ in 0..ledgers {
        let plan = made.full();
        made.close(plan, |_| {});
    }
    made
}

#[test]
fn what_nodes_write_verifies_whole() {
    let mut made = history(20);
    made.vote();
    let report = verified(&made).unwrap();
    let expected = Report {
        chain_id: Some(made.genesis.chain_id()),
        from: 1,
        to: 20,
        tip: Some(made.hash),
        members: 5,
        // A ledger: 4 precommits, 1 result, 2 users', 2 hosts', 2 openings of sessions. And the votes.
        signatures: 20 * 11 + 3 + 1 + 1 + 5 + 5 + 8 + 1 + 2 + 1,
        inputs: 80,
        outputs: 60,
        journal: 7 + 2 + 1,
        ..Report::default()
    };
    assert_eq!(report, expected);
}

#[test]
fn small_and_empty_chains_verify() {
    for n in [1, 2, 3, 4, 5, 7] {
        let mut made = Made::new(n);
        assert_eq!(verified(&made).unwrap().to, 0);
        made.close(Plan::default(), |_| {});
        assert_eq!(verified(&made).unwrap().to, 1, "{n} nodes");
    }
}

#[test]
fn a_part_of_a_chain_verifies_from_any_ledger_on() {
    let made = history(15);
    let dir = stored(&made);
    let whole = check(dir.path(), Ask::default()).unwrap();
    for from in 1..=15 {
        let report = check(dir.path(), Ask { from, genesis: None }).unwrap();
        assert_eq!((report.from, report.to, report.tip), (from, 15, whole.tip), "from {from}");
        assert_eq!((report.inputs, report.unchecked.len()), (4 * (16 - from), usize::from(from > 1)));
    }
}

#[test]
fn another_genesis_than_the_one_asked_for_is_told() {
    let dir = stored(&history(2));
    let asked = |genesis| check(dir.path(), Ask { from: 1, genesis: Some(genesis) });
    assert!(asked(Made::new(5).genesis.chain_id()).is_ok());
    match asked(Hash([9; 32])) {
        Err(Stopped::Wrong(wrong)) => assert_eq!((wrong.place, wrong.field), (Place::Genesis, "chain id")),
        other => panic!("{other:?}"),
    }
}

/// A chain that goes on from another one.
fn recovered() -> Made {
    let before = history(4);
    let keys = (1_000_000..1_000_005).map(|nonce| (before.user(0), Hash::ZERO, nonce)).collect();
    before.recovered(keys)
}

#[test]
fn a_recovered_chain_verifies_with_the_users_and_keys_that_it_began_with() {
    let mut made = recovered();
    assert!(!made.connected.is_empty());
    assert_eq!(verified(&made).unwrap().to, 0);
    for _ in 0..WINDOW {
        let plan = made.full();
        made.close(plan, |_| {});
    }
    made.vote();
    assert_eq!(verified(&made).unwrap().to, WINDOW);
    // From here on the keys of the chain before are free.
    let mut plan = made.full();
    let again = made.signed_input(0, 1_000_003, b"again");
    plan.inputs.push(again.clone());
    let mut free = recovered();
    for _ in 0..WINDOW {
        let plan = free.full();
        free.close(plan, |_| {});
    }
    free.close(plan, |_| {});
    assert_eq!(verified(&free).unwrap().to, WINDOW + 1);
}

#[test]
fn an_input_of_the_chain_before_takes_effect_no_second_time() {
    let mut made = recovered();
    for _ in 0..WINDOW - 1 {
        let plan = made.full();
        made.close(plan, |_| {});
    }
    let again = made.signed_input(0, 1_000_003, b"again");
    made.close(Plan { inputs: vec![again], ..Plan::default() }, |_| {});
    let wrong = verified(&made).unwrap_err();
    assert_eq!((wrong.place, wrong.field), (Place::Ledger(WINDOW), "input.nonce"), "{wrong}");
}

#[test]
fn what_a_recovered_chain_begins_with_is_what_its_genesis_names() {
    let changes = [
        ("DELETE FROM ancestor_key", "genesis: ancestor.n_keys"),
        ("DELETE FROM ancestor_user WHERE user = (SELECT min(user) FROM ancestor_user)", "genesis: ancestor.n_users"),
        (
            "UPDATE ancestor_user SET user = zeroblob(32) WHERE user = (SELECT max(user) FROM ancestor_user)",
            "genesis: ancestor.users_root",
        ),
        ("INSERT INTO ancestor_key SELECT 7, keys FROM ancestor_key", "genesis: ancestor.n_keys"),
    ];
    for (statement, expected) in changes {
        let dir = stored(&recovered());
        Connection::open(dir.path().join("hist/ledger.db")).unwrap().execute_batch(statement).unwrap();
        match check(dir.path(), Ask::default()) {
            Err(Stopped::Wrong(wrong)) => assert!(wrong.to_string().starts_with(expected), "{statement}: {wrong}"),
            other => panic!("{statement}: {other:?}"),
        }
    }
    let mut made = recovered();
    made.genesis.contract_id = Hash([7; 32]);
    let wrong = verified(&made).unwrap_err();
    assert_eq!((wrong.place, wrong.field), (Place::Genesis, "genesis.contract_id"), "{wrong}");
    // A chain that begins by itself has nothing to take over.
    let dir = stored(&history(1));
    let insert = "INSERT INTO ancestor_user VALUES (zeroblob(32))";
    Connection::open(dir.path().join("hist/ledger.db")).unwrap().execute_batch(insert).unwrap();
    match check(dir.path(), Ask::default()) {
        Err(Stopped::Wrong(wrong)) => assert_eq!(wrong.field, "ancestor_user"),
        other => panic!("{other:?}"),
    }
}

/// A chain in which all nodes together closed a ledger as they must not, and then went on.
fn lies(change: impl FnOnce(&Made, &mut Plan, &mut Vec<Box<dyn FnOnce(&mut Candidate)>>)) -> Result<Report, Wrong> {
    let mut made = history(10);
    let mut plan = made.full();
    let mut changes = Vec::new();
    change(&made, &mut plan, &mut changes);
    made.close(plan, |candidate| changes.into_iter().for_each(|change| change(candidate)));
    let plan = made.full();
    made.close(plan, |_| {});
    verified(&made)
}

#[track_caller]
fn told(outcome: Result<Report, Wrong>, field: &str) {
    let wrong = outcome.expect_err(field);
    assert_eq!((wrong.place, wrong.field), (Place::Ledger(11), field), "{wrong}");
}

#[test]
fn a_lie_of_all_nodes_is_found_in_each_field_of_a_header() {
    type Lie = (&'static str, fn(&mut Candidate));
    let lies_of: Vec<Lie> = vec![
        ("header.ver", |c| c.header.ver = 2),
        ("header.chain_id", |c| c.header.chain_id = Hash([9; 32])),
        ("header.time_ms", |c| c.header.time_ms -= 60_000),
        ("header.time_ms", |c| c.header.time_ms += 1),
        ("header.unl_hash", |c| c.header.unl_hash = Hash([9; 32])),
        ("header.next_unl_hash", |c| c.header.next_unl_hash = Hash([9; 32])),
        ("header.users_root", |c| c.header.users_root = Hash([9; 32])),
        ("header.n_users", |c| c.header.n_users += 1),
        ("header.inputs_root", |c| c.header.inputs_root = Hash([9; 32])),
        ("header.n_inputs", |c| c.header.n_inputs += 1),
        ("header.inputs_bytes", |c| c.header.inputs_bytes += 1),
        ("header.result.of_seq", |c| c.header.result.of_seq += 1),
        ("header.result.of_hash", |c| c.header.result.of_hash = Hash([9; 32])),
        // A run that failed, but changed something.
        ("header.result.state_root", |c| c.header.result.status = Status::Exit(1)),
    ];
    for (field, lie) in lies_of {
        let outcome = lies(|_, _, changes| changes.push(Box::new(lie)));
        match field {
            // Nobody's precommits are for that, so that is what is seen first.
            "header.unl_hash" | "header.chain_id" => told(outcome, "certificate"),
            // Results are votes of the next round: this node's own is not signed for those members.
            "header.next_unl_hash" => told(outcome, "own result"),
            _ => told(outcome, field),
        }
    }
}

#[test]
fn a_ledger_that_follows_another_one_or_is_another_is_found() {
    let ledger_5 = |executed: bool, change: fn(&mut Candidate)| {
        let mut made = history(4);
        let mut candidate = made.candidate(&Plan::default());
        change(&mut candidate);
        let Candidate { header, .. } = &candidate;
        let vote = Vote { seq: header.seq, attempt: 0, ledger_hash: header.hash() };
        let qc = made.certificate(&[0, 1, 2, 3], vote, Precommit);
        made.close(Plan::default(), |_| {});
        let dir = stored(&made);
        // The node itself would not store it.
        let db = Connection::open(dir.path().join("hist/ledger.db")).unwrap();
        let row = (header.hash().0, wire::encode(header), wire::encode(&qc));
        db.execute("UPDATE ledger SET hash = ?1, header = ?2, qc = ?3 WHERE seq = 5", row).unwrap();
        if !executed {
            db.execute("DELETE FROM result WHERE seq = 5", []).unwrap();
        }
        match check(dir.path(), Ask::default()) {
            Err(Stopped::Wrong(wrong)) => (wrong.place, wrong.field),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(ledger_5(false, |c| c.header.parent = Hash([9; 32])), (Place::Ledger(5), "header.parent"));
    assert_eq!(ledger_5(false, |c| c.header.seq = 6), (Place::Ledger(5), "header.seq"));
    // It fits, but this node's result is of the one that was there.
    assert_eq!(ledger_5(true, |c| c.header.time_ms += 1_000), (Place::Ledger(5), "own result.of_hash"));
}

#[test]
fn settlements_are_recorded_one_step_after_the_other() {
    let at = |byte| Hash([byte; 32]);
    let settled = |seq, txv| Some(Settlement { seq, ch: at(1), tx: at(2), confirmed_length: 7, txv: at(txv) });
    let begin = |txv| Some(Settlement { seq: 0, ch: at(0), tx: at(0), confirmed_length: 0, txv: at(txv) });
    // What ledgers 1, 2, ... record.
    let chain = |recorded: &[Option<Settlement>]| {
        let mut made = Made::new(5);
        for settlement in recorded {
            made.close(Plan::default(), |c| c.header.settlement = settlement.clone());
        }
        verified(&made).map(|_| ()).map_err(|wrong| (wrong.place, wrong.field))
    };
    let steps = [None, begin(3), begin(4), begin(4), settled(3, 4), settled(3, 5), settled(4, 5)];
    assert_eq!(chain(&steps), Ok(()));
    let after = |last: Option<Settlement>| {
        let mut recorded = steps.to_vec();
        recorded.push(last);
        chain(&recorded)
    };
    assert_eq!(after(settled(6, 5)), Ok(()));
    let wrong = Err((Place::Ledger(8), "header.settlement"));
    assert_eq!(after(None), wrong, "forgotten");
    assert_eq!(after(settled(3, 5)), wrong, "back");
    assert_eq!(after(settled(7, 5)), wrong, "the result of ledger 7 is in ledger 8");
    assert_eq!(after(settled(5, 0)), wrong, "nothing to sign with");
    assert_eq!(after(settled(5, 5).map(|it| Settlement { ch: at(0), ..it })), wrong, "no content");
    assert_eq!(after(settled(5, 5).map(|it| Settlement { tx: at(0), ..it })), wrong, "no transaction");
    assert_eq!(after(settled(4, 6).map(|it| Settlement { tx: at(9), ..it })), wrong, "another transaction");
    assert_eq!(after(settled(4, 6).map(|it| Settlement { confirmed_length: 8, ..it })), wrong, "another place");
    assert_eq!(chain(&[settled(1, 3)]), Err((Place::Ledger(1), "header.settlement")), "no beginning");
    assert_eq!(chain(&[begin(0)]), Err((Place::Ledger(1), "header.settlement")));
}

#[test]
fn a_failed_run_leaves_state_and_outputs_as_they_were() {
    let mut made = history(3);
    let before = made.result.state_root;
    made.close(Plan::default(), |_| {});
    made.result.status = Status::Limit(LimitKind::Output);
    made.result.state_root = before;
    let result = made.signed(0, made.result.clone());
    *made.writes.last_mut().unwrap() = Record::Result(Box::new(result)).into();
    made.close(Plan::default(), |_| {});
    assert_eq!(verified(&made).unwrap().to, 5);
}

#[test]
fn a_lie_of_all_nodes_is_found_in_what_the_header_stands_for() {
    // Nobody answers for it.
    told(
        lies(|made, plan, _| plan.inputs.push(Input { payload: b"forged".to_vec(), ..made.signed_input(0, 99, b"x") })),
        "input.origin",
    );
    told(
        lies(|made, plan, _| {
            let input = made.session_input(0, 1, 99, b"x");
            plan.inputs.push(Input { user: made.user(1), ..input });
        }),
        "input.origin",
    );
    // A session of a node that is no member.
    told(
        lies(|made, plan, _| {
            let mut stranger = Made::new(7);
            stranger.genesis = made.genesis.clone();
            let outside = (0..7).find(|at| !made.genesis.unl.contains(&stranger.node(*at))).unwrap();
            stranger.seq = made.seq;
            plan.inputs.push(stranger.session_input(0, outside, 99, b"x"));
        }),
        "input.origin",
    );
    // Used in the window before, or twice in one ledger.
    told(
        lies(|made, plan, _| {
            let mut input = made.signed_input(0, made.seq - 1, b"again");
            made.sign(&mut input, 0);
            plan.inputs.push(input);
        }),
        "input.nonce",
    );
    told(lies(|made, plan, _| plan.inputs.push(made.signed_input(0, made.seq, b"twice"))), "input.nonce");
    // Before the one of its session that it follows.
    told(lies(|made, plan, _| plan.inputs.push(made.session_input(0, 1, 2 * 60 + 1, b"early"))), "input.nonce");
    // Too late, too early.
    for max_ledger in [10, 11 + WINDOW] {
        told(
            lies(|made, plan, _| {
                let mut input = Input { max_ledger, ..made.signed_input(0, 99, b"x") };
                made.sign(&mut input, 0);
                plan.inputs.push(input);
            }),
            "input.max_ledger",
        );
    }
    // Users: one that goes twice, one that comes twice, and an input of one who is not there.
    told(
        lies(|made, _, changes| {
            let user = made.user(0);
            changes.push(Box::new(move |c| {
                c.users_add.push(user);
                c.users_add.sort()
            }))
        }),
        "users_add",
    );
    told(lies(|_, _, changes| changes.push(Box::new(|c| c.users_del = vec![UserKey([3; 32])]))), "users_del");
    told(lies(|made, plan, _| plan.go.push(made.user(0))), "users");
    let crowd = |at: u64| UserKey(Hash::tagged("crowd", &at).0);
    told(lies(|_, plan, _| plan.come.extend((0..4_097).map(crowd))), "header.n_users");
    // Outputs for somebody who is not there.
    told(lies(|_, plan, _| plan.outputs.push((UserKey([0xff; 32]), b"x".to_vec()))), "outputs");
}

#[test]
fn an_input_may_come_again_after_its_window() {
    let again = |after: u64| {
        let mut made = Made::new(5);
        let come = vec![made.user(0)];
        let plan = Plan { inputs: vec![made.signed_input(0, 7, b"once")], come, ..Plan::default() };
        made.close(plan, |_| {});
        (1..after).for_each(|_| made.close(Plan::default(), |_| {}));
        let plan = Plan { inputs: vec![made.signed_input(0, 7, b"again")], ..Plan::default() };
        made.close(plan, |_| {});
        verified(&made).map_err(|wrong| wrong.field)
    };
    assert_eq!(again(WINDOW).err(), Some("input.nonce"));
    assert!(again(WINDOW + 1).is_ok());
}

#[test]
fn raw_inputs_are_found_in_a_chain_that_takes_signed_ones_only() {
    let mut made = Made::new(5);
    made.shared.inputs = crate::config::Inputs::Signed;
    made.genesis.cfg_hash = Hash::tagged("hp/cfg/1", &made.shared);
    (made.hash, made.result) = (made.genesis.chain_id(), made.genesis.result());
    let plan = made.full();
    made.close(plan, |_| {});
    assert_eq!(verified(&made).unwrap_err().field, "input.origin");
}

#[test]
fn a_result_taken_over_is_the_agreed_one_and_outputs_may_be_its() {
    let outcome = |change: fn(&mut ExecResult)| {
        let mut made = history(3);
        // This node says that the run took too long; a quorum says what it led to.
        let agreed = made.result.clone();
        let mine = ExecResult {
            status: Status::Limit(LimitKind::Time),
            state_root: Hash([3; 32]),
            outputs_root: Hash::ZERO,
            ..agreed.clone()
        };
        let mine = made.signed(0, mine);
        *made.writes.last_mut().unwrap() = Record::Result(Box::new(mine)).into();
        made.close(Plan::default(), |_| {});
        made.writes.truncate(made.writes.len() - 2);
        let mut adopted = agreed;
        change(&mut adopted);
        made.writes.push(Record::Adopted(Box::new(adopted)).into());
        verified(&made).map(|report| report.diverged).map_err(|wrong| wrong.field)
    };
    assert_eq!(outcome(|_| {}), Ok(vec![3]));
    assert_eq!(outcome(|result| result.state_root = Hash([4; 32])), Err("adopted"));
    assert_eq!(outcome(|result| result.status = Status::Exit(1)), Err("adopted"));
}

/// Makes the contract ask for something in the last run.
fn ask(made: &mut Made, change: UnlChange) {
    made.result.unl_req = Some(change);
    let result = made.signed(0, made.result.clone());
    *made.writes.last_mut().unwrap() = Record::Result(Box::new(result)).into();
}

/// Closes a ledger with a change of the UNL; `hash` may lie about what it leads to.
fn close_changed(made: &mut Made, change: Option<UnlChange>, lie: Option<Hash>) {
    let next = change.and_then(|change| change.apply(&made.unl)).map_or(made.scope().unl_hash, |unl| unl_hash(&unl));
    made.close(Plan::default(), |candidate| {
        candidate.unl_change = change;
        candidate.header.next_unl_hash = lie.unwrap_or(next);
    });
}

#[test]
fn a_unl_that_changes_is_followed_from_the_next_ledger_on() {
    let mut made = history(2);
    // By votes: one goes, one comes. On request of the contract another comes, whatever was voted for.
    let [gone, came, asked] = [4, 5, 6].map(|at| made.node(at));
    close_changed(&mut made, Some(UnlChange::Remove(gone)), None);
    close_changed(&mut made, None, None);
    close_changed(&mut made, Some(UnlChange::Add(came)), None);
    ask(&mut made, UnlChange::Add(asked));
    close_changed(&mut made, Some(UnlChange::Add(asked)), None);
    // What does not apply is not done.
    ask(&mut made, UnlChange::Add(asked));
    for _ in 0..3 {
        close_changed(&mut made, None, None);
    }
    made.vote();
    let dir = stored(&made);
    let report = check(dir.path(), Ask::default()).unwrap();
    assert_eq!((report.to, report.members, report.unl_changes), (9, 6, 3));
    for from in 2..=9 {
        let report = check(dir.path(), Ask { from, genesis: None }).unwrap();
        assert_eq!(report.members, 6, "from {from}");
    }
}

#[test]
fn members_change_only_as_something_says() {
    let outcome = |ask_for: Option<UnlChange>, change: Option<UnlChange>, lie: Option<Hash>| {
        let mut made = history(3);
        if let Some(change) = ask_for {
            ask(&mut made, change);
        }
        close_changed(&mut made, change, lie);
        // A node that has not run it.
        made.writes.truncate(made.writes.len() - 2);
        verified(&made).map(|report| report.members).map_err(|wrong| (wrong.place, wrong.field))
    };
    let made = Made::new(5);
    let [first, fifth, other] = [0, 4, 5].map(|at| made.node(at));
    let wrong = |field| Err((Place::Ledger(4), field));
    assert_eq!(outcome(None, Some(UnlChange::Remove(fifth)), None), Ok(4));
    assert_eq!(outcome(None, None, Some(Hash([9; 32]))), wrong("header.next_unl_hash"));
    assert_eq!(outcome(None, Some(UnlChange::Add(other)), Some(Hash([9; 32]))), wrong("header.next_unl_hash"));
    let same = Some(made.scope().unl_hash);
    assert_eq!(outcome(None, Some(UnlChange::Add(other)), same), wrong("header.next_unl_hash"));
    assert_eq!(outcome(None, Some(UnlChange::Add(first)), same), wrong("unl_change"), "it is there");
    assert_eq!(outcome(None, Some(UnlChange::Remove(other)), same), wrong("unl_change"), "it is not there");
    // The contract's word counts.
    assert_eq!(outcome(Some(UnlChange::Add(other)), None, None), wrong("unl_change"));
    assert_eq!(outcome(Some(UnlChange::Add(other)), Some(UnlChange::Remove(first)), None), wrong("unl_change"));
    assert_eq!(outcome(Some(UnlChange::Remove(other)), Some(UnlChange::Remove(first)), None), Ok(4));
}

#[test]
fn who_left_the_unl_closes_no_ledger() {
    let mut made = history(2);
    let gone = made.node(0);
    close_changed(&mut made, Some(UnlChange::Remove(gone)), None);
    // The one that is gone signs on, in the place of one that did not.
    let candidate = made.candidate(&Plan::default());
    let vote = Vote { seq: candidate.header.seq, attempt: 0, ledger_hash: candidate.header.hash() };
    let qc = made.certificate(&[0, 2, 3, 4], vote, Precommit);
    made.writes.push(Record::Ledger(Box::new(ClosedLedger { candidate, qc })).into());
    let wrong = verified(&made).unwrap_err();
    assert_eq!((wrong.place, wrong.field), (Place::Ledger(4), "certificate"));
    assert!(wrong.found.starts_with(&format!("signed by {gone}")), "{wrong}");
}

#[test]
fn certificates_need_a_quorum_of_distinct_members() {
    let with = |change: fn(&Made, &mut Certificate)| {
        let mut made = history(3);
        let plan = made.full();
        made.close(plan, |_| {});
        let other = Made::new(5);
        for write in made.writes.clone().iter_mut().rev() {
            if let Write::Record(Record::Ledger(closed)) = write {
                change(&other, &mut closed.qc);
                let at = made.writes.iter().rposition(|write| matches!(write, Write::Record(Record::Ledger(_))));
                made.writes[at.unwrap()] = write.clone();
                break;
            }
        }
        let wrong = verified(&made).unwrap_err();
        assert_eq!(wrong.place, Place::Ledger(4), "{wrong}");
        (wrong.field, wrong.found)
    };
    assert_eq!(
        with(|_, qc| {
            qc.sigs.pop();
        }),
        ("certificate", "signed by 3 of 5".into())
    );
    assert_eq!(with(|_, qc| { qc.sigs[1] = qc.sigs[0] }), ("certificate", "in disorder".into()));
    assert_eq!(with(|_, qc| qc.sigs.reverse()), ("certificate", "in disorder".into()));
    let (field, found) = with(|_, qc| qc.sigs[2].1.0[5] ^= 1);
    assert!(field == "certificate" && found.starts_with("an invalid signature of"), "{found}");
    let (field, found) = with(|_, qc| qc.vote.attempt += 1);
    assert!(field == "certificate" && found.starts_with("an invalid signature of"), "{found}");
    // A stranger who signs validly is still none.
    let (field, found) = with(|made, qc| {
        let signed = made.signed(5, Precommit(qc.vote));
        qc.sigs.push((signed.from, signed.sig));
        qc.sigs.sort();
    });
    assert_eq!((field, found), ("certificate", format!("signed by {}", Made::new(5).node(5))));
}

// ---- Every byte of a database ---------------------------------------------------------------------------------------

/// Columns in which a change means nothing, and why.
///
/// And `meta.value` where the key is `unl_vote`: what the operator wishes. It is signed, and checked, in NOVELs. And where
/// it is `adopted`, of the very last ledger: what the agreed result was is written in the next one.
const IRRELEVANT: [(&str, &str, &str); 6] = [
    ("ancestor_key", "n", "the order of lists, of which there is one here; in a wrong one they do not ascend"),
    ("input", "n", "numbers the row; of an input in a ledger nothing refers to it"),
    ("evidence", "n", "the order in which proofs came"),
    ("evidence", "kind", "an index of the proofs, whose bytes say it"),
    ("evidence", "seq", "the same"),
    ("evidence", "attempt", "the same"),
];

/// Deterministic numbers (splitmix64), so that a seed replays.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// Another value that differs by a bit.
fn flipped(value: Value, rng: &mut Rng) -> Option<Value> {
    Some(match value {
        Value::Blob(mut bytes) if !bytes.is_empty() => {
            let at = rng.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << rng.below(8);
            Value::Blob(bytes)
        }
        Value::Integer(number) => Value::Integer(number ^ (1 << rng.below(40))),
        Value::Text(text) => Value::Text(format!("{}x", &text[..text.len() - 1])),
        _ => return None,
    })
}

#[test]
fn a_bit_flipped_in_any_column_of_a_real_database_is_found() {
    const FLIPS: u64 = 12;
    let mut made = recovered();
    for _ in 0..12 {
        let plan = made.full();
        made.close(plan, |_| {});
    }
    // Three that were not run, because the state after them was fetched.
    for _ in 0..3 {
        let plan = made.full();
        made.close(plan, |_| {});
        made.writes.truncate(made.writes.len() - 2);
    }
    let fetched = Record::Synced(Box::new(made.result.clone()));
    let plan = made.full();
    made.close(plan, |_| {});
    made.writes.insert(made.writes.len() - 2, fetched.into());
    let gone = made.node(4);
    close_changed(&mut made, Some(UnlChange::Remove(gone)), None);
    let plan = made.full();
    made.close(plan, |_| {});
    made.vote();
    let whole = stored(&made);
    check(whole.path(), Ask::default()).unwrap();
    let columns: Vec<(String, String)> = {
        let db = Connection::open(whole.path().join("hist/ledger.db")).unwrap();
        let sql = "SELECT m.name, p.name FROM sqlite_schema m, pragma_table_info(m.name) p WHERE m.type = 'table'";
        db.prepare(sql)
            .unwrap()
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap()
            .map(Result::unwrap)
            .collect()
    };
    assert!(columns.len() > 30, "{columns:?}");
    let mut rng = Rng(7);
    let (mut missed, mut flips) = (Vec::new(), BTreeMap::new());
    for (table, column) in &columns {
        if IRRELEVANT.iter().any(|(t, c, _)| t == table && c == column) {
            continue;
        }
        for _ in 0..FLIPS {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("hist")).unwrap();
            let file = dir.path().join("hist/ledger.db");
            fs::copy(whole.path().join("hist/ledger.db"), &file).unwrap();
            let db = Connection::open(&file).unwrap();
            let rows: i64 = db.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap();
            assert!(rows > 0, "nothing is in {table}, so nothing is tried");
            let at = rng.below(rows as u64) as i64;
            // Rows are told apart by all of their values.
            let select = format!("SELECT {column} FROM {table} LIMIT 1 OFFSET {at}");
            let old: Value = db.query_row(&select, [], |row| row.get(0)).unwrap();
            let Some(new) = flipped(old.clone(), &mut rng) else { continue };
            let key: String = db
                .query_row("SELECT group_concat(name, ', ') FROM pragma_table_info(?1) WHERE pk > 0", [table], |row| {
                    row.get(0)
                })
                .unwrap();
            let update = format!(
                "UPDATE {table} SET {column} = ?1 WHERE ({key}) = (SELECT {key} FROM {table} LIMIT 1 OFFSET {at})"
            );
            match db.execute(&update, [&new]) {
                Ok(1) => {}
                // Another row has that key.
                Err(rusqlite::Error::SqliteFailure(..)) => continue,
                other => panic!("{update}: {other:?}"),
            }
            db.close().unwrap();
            *flips.entry((table.clone(), column.clone())).or_insert(0) += 1;
            if check(dir.path(), Ask::default()).is_ok() {
                missed.push(format!("{table}.{column} row {at}: {old:?} to {new:?}"));
            }
        }
    }
    assert_eq!(missed, Vec::<String>::new());
    let tried: BTreeSet<&(String, String)> = flips.keys().collect();
    let untried: Vec<_> = columns
        .iter()
        .filter(|(t, c)| !IRRELEVANT.iter().any(|(table, column, _)| t == table && c == column))
        .filter(|column| !tried.contains(column))
        .collect();
    assert!(untried.is_empty(), "no value of these could be changed: {untried:?}");
}

#[test]
fn what_is_lost_whole_is_found() {
    let statements = [
        ("DELETE FROM ledger WHERE seq = 5", "ledger 5: ledger"),
        ("DELETE FROM body WHERE seq = 5", "ledger 5: body"),
        ("DELETE FROM body WHERE seq < 5", "ledger 1: body"),
        ("DELETE FROM input WHERE n = 9", "ledger 3: inputs"),
        ("DELETE FROM result WHERE seq = 5", "ledger 5: own result"),
        ("DELETE FROM output WHERE seq = 5", "ledger 5: run.outputs"),
        ("DELETE FROM run WHERE seq = 5", "ledger 5: outputs"),
        ("DELETE FROM run WHERE seq = 5; DELETE FROM output WHERE seq = 5", "ledger 5: outputs_root"),
        ("DELETE FROM input_key WHERE seq = 14", "ledger 14: input_key"),
        ("DELETE FROM pooled WHERE n = (SELECT max(n) FROM pooled)", "journal: input"),
        ("DELETE FROM candidate", "journal: PREVOTE"),
        ("DELETE FROM user_tip", "journal: user_tip"),
        ("DELETE FROM user_executed", "journal: user_executed"),
        ("DELETE FROM meta", "genesis: genesis"),
        ("INSERT INTO body SELECT 99, inputs, users_add, users_del FROM body WHERE seq = 5", "journal: body"),
        ("UPDATE output SET bytes = X'00' WHERE seq = 5", "ledger 5: output.leaf"),
    ];
    let mut made = history(14);
    made.vote();
    let whole = stored(&made);
    for (statement, expected) in statements {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("hist")).unwrap();
        let file = dir.path().join("hist/ledger.db");
        fs::copy(whole.path().join("hist/ledger.db"), &file).unwrap();
        Connection::open(&file).unwrap().execute_batch(statement).unwrap();
        match check(dir.path(), Ask::default()) {
            Err(Stopped::Wrong(wrong)) => assert!(wrong.to_string().starts_with(expected), "{statement}: {wrong}"),
            other => panic!("{statement}: {other:?}"),
        }
    }
}

#[test]
fn contents_that_a_node_may_forget_are_named_as_unchecked() {
    // A source that has forgotten the contents of all ledgers before the 9th, as after 65,536 more.
    struct Old(Archive);
    const GONE: u64 = 9;
    impl Source for Old {
        type Error = LedgerError;
        fn head(&mut self) -> Result<Head, LedgerError> {
            let head = self.0.head()?;
            let mut users = BTreeSet::new();
            for ledger in self.0.page(1, GONE - 1, Depth::Users)?.ledgers {
                let body = ledger.body.expect("it is there in truth");
                let read = |bytes: &[u8]| borsh::from_slice::<Vec<UserKey>>(bytes).expect("users");
                read(&body.users_del).iter().for_each(|user| {
                    users.remove(user);
                });
                users.extend(read(&body.users_add));
            }
            let users_base = users.into_iter().map(|user| user.0.to_vec()).collect();
            let head = Head { users_base, ..head };
            Ok(Head { kept_from: Some(GONE), inputs: 4 * (head.tip + 1 - GONE), ..head })
        }
        fn page(&mut self, first: Seq, last: Seq) -> Result<Page, LedgerError> {
            self.look(first, last, Depth::All)
        }
        fn changes(&mut self, first: Seq, last: Seq) -> Result<Page, LedgerError> {
            self.look(first, last, Depth::Users)
        }
    }
    impl Old {
        fn look(&self, first: Seq, last: Seq, depth: Depth) -> Result<Page, LedgerError> {
            let page = self.0.page(first, last, depth)?;
            let forget = |mut ledger: Stored| {
                if ledger.seq < GONE {
                    let Stored { seq, closed, keys, .. } = ledger;
                    ledger = Stored { seq, closed, keys, ..Stored::default() };
                }
                ledger
            };
            // As old as that takes.
            let tip = page.tip + made::shared().input_window + (1 << 20);
            Ok(Page { ledgers: page.ledgers.into_iter().map(forget).collect(), tip, kept_from: Some(GONE), base: 0 })
        }
    }
    let made = history(14);
    let dir = stored(&made);
    let report = verify(&mut Old(Archive::open(dir.path()).unwrap()), Ask::default(), &mut |_, _| {}).unwrap();
    assert_eq!((report.to, report.inputs, report.outputs), (14, 4 * 6, 3 * 6));
    assert_eq!(report.unchecked.len(), 1);
    assert!(report.unchecked[0].contains("ledgers 1 to 8"), "{:?}", report.unchecked);
}

/// The same chain in the folder of a node that passed over the ledgers up to `base`, and fetched the state after the next one.
fn joined(mut made: Made, base: Seq) -> Made {
    let chain_id = made.genesis.chain_id();
    let writes = std::mem::take(&mut made.writes);
    let (mut passed, mut users) = (BTreeSet::new(), BTreeSet::new());
    for write in &writes {
        if let Write::Record(Record::Ledger(closed)) = write
            && closed.candidate.header.seq <= base
        {
            passed.extend(closed.candidate.inputs.clone());
            users = closed.candidate.users_after(&users);
        }
    }
    for write in writes {
        match &write {
            Write::Record(Record::Input(input)) if passed.contains(&input.id(&chain_id)) => {}
            Write::Record(Record::Result(result)) if result.body.of_seq <= base + 1 => {}
            Write::Outputs { seq, .. } if *seq <= base + 1 => {}
            Write::Record(Record::Ledger(closed)) => {
                let ClosedLedger { candidate, qc } = (**closed).clone();
                let (seq, result) = (candidate.header.seq, candidate.header.result.clone());
                let Candidate { header, unl_change, .. } = candidate;
                let bare = Record::Bare(Box::new(BareLedger { header, unl_change, qc }));
                made.writes.push(if seq <= base { bare.into() } else { write });
                if seq == base {
                    made.writes.push(Record::Base(users.clone()).into());
                } else if seq == base + 2 {
                    made.writes.push(Record::Synced(Box::new(result)).into());
                }
            }
            _ => made.writes.push(write),
        }
    }
    made
}

#[test]
fn a_chain_whose_node_joined_late_verifies_and_what_it_begins_with_is_checked() {
    const BASE: Seq = 6;
    let made = joined(history(10), BASE);
    let report = verified(&made).unwrap();
    assert_eq!((report.to, report.inputs, report.unchecked.len()), (10, 4 * (10 - BASE), 2), "{:?}", report.unchecked);
    assert!(report.unchecked[0].contains("inputs and outputs of ledgers 1 to 6"), "{:?}", report.unchecked);
    assert!(report.unchecked[1].contains("joined the chain behind them"), "{:?}", report.unchecked);
    let join = |base: u8, unknown: u8, lacks: u8| {
        let number = |number: u8| format!("{number:02x}00000000000000");
        format!("UPDATE meta SET value = x'{}{}{lacks:02x}' WHERE key = 'join'", number(base), number(unknown))
    };
    for (statement, expected) in [
        (join(6, 0, 2), "input_key is missing"),
        (join(6, 7, 2), "journal: join is to ledger 6, with inputs to 7"),
        (join(99, 6, 2), "journal: join is to ledger 99"),
        (join(6, 6, 0), "journal: join is to ledger 6"),
        ("DELETE FROM user_base".to_owned(), "journal: user_base is without user"),
        ("DELETE FROM body WHERE seq = 7".to_owned(), "ledger 7: body is missing"),
        ("DELETE FROM ledger WHERE seq = 3".to_owned(), "ledger 3: ledger is missing"),
    ] {
        let dir = stored(&made);
        Connection::open(dir.path().join("hist/ledger.db")).unwrap().execute_batch(&statement).unwrap();
        match check(dir.path(), Ask::default()) {
            Err(Stopped::Wrong(wrong)) => assert!(wrong.to_string().contains(expected), "{statement}: {wrong}"),
            other => panic!("{statement}: {other:?}"),
        }
    }
}

#[test]
fn bytes_that_nobody_wrote_are_refused_and_never_panic() {
    let mut rng = Rng(3);
    let made = history(6);
    let dir = stored(&made);
    let archive = Archive::open(dir.path()).unwrap();
    let page = archive.page(1, 6, Depth::All).unwrap();
    let rules = Chain::begin(&archive.head().unwrap(), Ask::default()).unwrap().rules();
    for _ in 0..300 {
        let mut stored = page.ledgers[rng.below(6) as usize].clone();
        let cut = |bytes: &mut Vec<u8>, rng: &mut Rng| match rng.below(3) {
            0 => bytes.truncate(rng.below(bytes.len() as u64 + 1) as usize),
            1 => bytes.push(0),
            _ => bytes.iter_mut().for_each(|byte| *byte = rng.below(256) as u8),
        };
        let before = stored.clone();
        let closed = stored.closed.as_mut().unwrap();
        let body = stored.body.as_mut().unwrap();
        match rng.below(8) {
            0 => cut(&mut closed.header, &mut rng),
            1 => cut(&mut closed.qc, &mut rng),
            2 => cut(&mut closed.hash, &mut rng),
            3 => cut(&mut body.inputs, &mut rng),
            4 => cut(&mut body.users_add, &mut rng),
            5 => cut(stored.inputs[0].as_mut().unwrap(), &mut rng),
            6 => cut(stored.result.as_mut().unwrap(), &mut rng),
            _ => cut(stored.keys.as_mut().unwrap(), &mut rng),
        }
        if stored != before {
            assert!(alone::check(&stored, &page, &rules).is_err());
        }
    }
}

fn cpu_s() -> f64 {
    use nix::sys::{
        resource::{UsageWho, getrusage},
        time::TimeValLike as _,
    };
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    (usage.user_time() + usage.system_time()).num_microseconds() as f64 / 1e6
}

/// How fast a chain is checked: `HP_VERIFY_LEDGERS=10000 cargo test --release --lib verify::tests::speed -- --nocapture`.
#[test]
fn speed() {
    let Some(ledgers) = std::env::var("HP_VERIFY_LEDGERS").ok().and_then(|text| text.parse().ok()) else { return };
    for (what, full) in [("empty ledgers", false), ("ledgers with 4 inputs, 3 outputs", true)] {
        let mut made = Made::new(5);
        for _ in 0..ledgers {
            let plan = if full { made.full() } else { Plan::default() };
            made.close(plan, |_| {});
        }
        // What was not run is not deleted when it is old, which in unit tests is soon.
        made.writes.retain(|write| !matches!(write, Write::Record(Record::Result(_))));
        let dir = stored(&made);
        let (began, cpu) = (std::time::Instant::now(), cpu_s());
        let report = check(dir.path(), Ask::default()).unwrap();
        let (took, cpu) = (began.elapsed().as_secs_f64(), cpu_s() - cpu);
        let speed = report.to as f64 / took;
        println!(
            "{} {what}, {} signatures: {took:.2} s, {speed:.0} ledgers/s, {cpu:.2} s of processor time",
            report.to, report.signatures
        );
    }
}
