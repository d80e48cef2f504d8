//! Scripted schedules with members that lie, contracts that differ, and data that comes late. `World` checks every
//! property in each of them.

use std::{cell::Cell, rc::Rc};

use hotpocket::{
    consensus::{
        Event, LocalInput,
        header::{Input, Origin},
        messages::{Get, Message},
    },
    types::{Challenge, NodeKey, Sig, UserKey},
};

use super::{
    schedules::{all_at, calm, filter, inputs_in_chain, is, linked},
    world::{Config, Manner},
};

#[test]
pub fn a_node_whose_run_differed_signs_no_second_result() {
    let mut cfg = Config::calm(4, 75);
    cfg.manners[3] = Manner::Flips(1);
    let mut world = linked(cfg, 1);
    world.input(0, vec![1]);
    let done = world.run(5000, |world| all_at(world, 2) && world.watch.seen.of("diverged") == 1);
    assert!(done, "{}", world.describe());
}

#[test]
pub fn a_session_and_a_signature_with_one_number_are_two_inputs() {
    let mut world = calm(4, 75);
    let user = UserKey([9; 32]);
    let local = LocalInput { user, challenge: Challenge([3; 16]), helo_sig: Sig([0; 64]), nonce: 1, payload: vec![1] };
    let origin = Origin::User { sig: Sig([1; 64]) };
    let signed = Input { user, origin, nonce: Input::session_nonce(1, false), max_ledger: 100, payload: vec![1] };
    world.handle(0, Event::LocalInput(local));
    for node in 1..4 {
        world.handle(node, Event::Message(NodeKey([1; 32]), Message::Input(signed.clone())));
    }
    assert!(world.run(5000, |world| all_at(world, 1) && inputs_in_chain(world) == 2), "{}", world.describe());
}

#[test]
pub fn nobody_votes_for_a_header_of_its_coordinator_that_its_novels_do_not_lead_to() {
    for liar in 0..4 {
        let mut cfg = Config::calm(4, 75);
        cfg.manners[liar] = Manner::Equivocates;
        let mut world = linked(cfg, 1);
        // It shows everybody the same lie: a ledger with a result that nobody had.
        world.nodes[liar].mask = u64::MAX;
        filter(&mut world, |_, _, _, message| is(message, "PREVOTE", 1, 0));
        world.input((liar + 1) % 4, vec![1]);
        assert!(world.run(10_000, |world| all_at(world, 2)), "liar {liar}: {}", world.describe());
    }
}

#[test]
pub fn a_proposal_is_voted_for_when_the_novels_it_rests_on_come_behind_it() {
    let mut closed_at_1 = 0;
    for (deaf, other) in [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)] {
        let mut world = calm(3, 80);
        let asked = Rc::new(Cell::new(false));
        filter(&mut world, move |_, from, to, message| {
            if from == deaf && matches!(message, Message::Get(Get::Novel(_))) {
                asked.set(true);
            }
            from == other && to == deaf && is(message, "NOVEL", 1, 0) && !asked.get()
        });
        world.input(0, vec![1]);
        assert!(world.run(10_000, |world| all_at(world, 1)), "{deaf} {other}: {}", world.describe());
        closed_at_1 += u32::from(world.watch.seen.of("closed at attempt 1") == 3);
    }
    // Where the deaf one is the coordinator, it has nothing to propose.
    assert_eq!(closed_at_1, 4);
}
