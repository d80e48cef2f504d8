//! Of each mistake in `consensus::mutation`: what finds it. A mistake that is not found any more fails here.

use hotpocket::consensus::{
    explore::{Explorer, Model},
    hostile, late,
    mutation::{Mutated, Mutation},
};

use super::{caught, lies, members, pauses, run, schedules, settlements, silence};

/// What shows that something is wrong.
enum Finder {
    /// The exhaustive checker of the vote rule: this is what breaks first, and where nobody looks at that, two values
    /// are certified.
    Checker(&'static str),
    /// A scripted schedule, by name.
    Schedule(&'static str, fn()),
    /// The simulator, in one of so many seeds from 0 on, with a failure that says this.
    Seeds(u64, &'static str),
}

macro_rules! schedule {
    ($module:ident :: $name:ident) => {
        Finder::Schedule(stringify!($name), $module::$name)
    };
}

/// Also in `docs/verification.md`.
fn finders(mutation: Mutation) -> Vec<Finder> {
    use Finder::{Checker, Seeds};
    match mutation {
        Mutation::HidePolc => vec![Checker("I3"), Seeds(200, "I3")],
        Mutation::IgnoreTcMaximum => vec![Checker("I4")],
        Mutation::PrecommitAfterAdvance => vec![Checker("I2"), Seeds(200, "I2")],
        Mutation::ForgetPrevote => vec![Checker("I1"), Seeds(200, "one PREVOTE an attempt")],
        Mutation::ForgetPolc => vec![Checker("I3"), Seeds(200, "I3")],
        Mutation::ForgetAdvance => vec![Checker("I2")],
        Mutation::ForgetTc => {
            vec![schedule!(schedules::who_left_an_attempt_alone_before_a_power_cut_shows_the_others_the_way_into_it)]
        }
        Mutation::CountTwice => vec![Seeds(20, "S2")],
        Mutation::OneVoteLess => vec![Checker("two values"), Seeds(20, "S2")],
        Mutation::NoParentCheck => vec![schedule!(hostile::what_follows_another_ledger_is_not_taken)],
        Mutation::UnsignedField => vec![schedule!(hostile::every_field_of_a_message_is_signed), Seeds(20, "S2")],
        Mutation::ArrivalOrder => vec![schedule!(schedules::inputs_that_arrive_in_another_order_make_one_ledger)],
        Mutation::BytesNotDurable => {
            vec![schedule!(schedules::a_power_cut_after_the_precommits_loses_no_input), Seeds(20, "disk")]
        }
        Mutation::RestartedTimer => {
            vec![schedule!(schedules::a_certificate_sent_again_and_again_does_not_hold_up_the_attempt)]
        }
        Mutation::SecondResult => {
            vec![schedule!(lies::a_node_whose_run_differed_signs_no_second_result), Seeds(200, "S7")]
        }
        Mutation::KeyWithoutOrigin => vec![schedule!(lies::a_session_and_a_signature_with_one_number_are_two_inputs)],
        Mutation::Overtake => {
            vec![
                schedule!(schedules::an_input_that_was_lost_on_its_way_takes_effect_before_the_next_of_its_session),
                Seeds(200, "S11"),
            ]
        }
        Mutation::NoProposeAfterRestart => {
            vec![schedule!(schedules::who_left_an_attempt_alone_before_a_power_cut_shows_the_others_the_way_into_it)]
        }
        Mutation::UnderivedPrevote => {
            vec![schedule!(lies::nobody_votes_for_a_header_of_its_coordinator_that_its_novels_do_not_lead_to)]
        }
        Mutation::TcFwdWithoutPolc => {
            vec![schedule!(hostile::a_forwarded_certificate_is_taken_with_the_polc_it_names)]
        }
        Mutation::ProposeOnce => {
            vec![schedule!(lies::a_proposal_is_voted_for_when_the_novels_it_rests_on_come_behind_it)]
        }
        Mutation::UncheckedFuture => {
            vec![schedule!(hostile::what_was_kept_for_the_next_round_is_checked_when_it_begins)]
        }
        Mutation::OneUnlVoteLess | Mutation::KeptUnlVote => vec![schedule!(
            members::the_votes_of_a_quorum_decide_and_fewer_do_not_and_what_a_node_voted_for_survives_its_end
        )],
        Mutation::OldQuorum => vec![schedule!(members::one_node_grows_into_a_network_and_shrinks_to_another_one)],
        Mutation::VoteThoughSilent => vec![
            schedule!(silence::a_member_that_lost_what_it_voted_for_says_nothing_else_and_the_others_go_on_without_it),
            Seeds(200, "S9"),
        ],
        Mutation::VoteWithGap => {
            vec![schedule!(late::who_passed_over_inputs_votes_when_they_may_not_be_in_a_ledger_again)]
        }
        Mutation::OneSettlementVoteLess => {
            vec![schedule!(settlements::what_a_quorum_saw_is_recorded_and_what_one_less_saw_is_not)]
        }
        Mutation::AnySettlement => {
            vec![schedule!(settlements::what_does_not_follow_is_not_recorded_whoever_says_it)]
        }
        Mutation::VoteThoughPaused => vec![Seeds(50, "S12")],
        Mutation::ForgetPausedRun => {
            vec![schedule!(pauses::a_run_that_waits_for_room_is_done_when_there_is_some)]
        }
        Mutation::OldScope => vec![Seeds(50, "a signature")],
    }
}

impl Finder {
    /// How it found the mistake under way; an error when it did not.
    fn find(&self) -> Result<String, String> {
        match self {
            Finder::Checker(first) => {
                let explored = |invariants| Explorer::new(Model::Facts, 1, invariants).run().violation;
                let broken = explored(true).unwrap_or_default();
                let fork = explored(false).unwrap_or_default();
                if broken.starts_with(first) && fork.starts_with("two values are certified") {
                    Ok(format!("checker: {}", broken.lines().next().unwrap_or_default()))
                } else {
                    Err(format!("the checker finds {broken:?} and {fork:?}"))
                }
            }
            Finder::Schedule(name, schedule) => match caught(schedule) {
                Err(failure) => Ok(format!("schedule {name}: {}", failure.lines().next().unwrap_or_default())),
                Ok(()) => Err(format!("{name} passes")),
            },
            Finder::Seeds(seeds, says) => {
                // Some seeds may show something else first.
                let mut last = String::new();
                for seed in 0..*seeds {
                    if let Err(failure) = run(seed) {
                        last = format!("seed {seed}: {}", failure.lines().next().unwrap_or_default());
                        if failure.contains(says) {
                            return Ok(last);
                        }
                    }
                }
                Err(format!("no seed of {seeds} shows {says:?}; the last failure is {last:?}"))
            }
        }
    }
}

/// What the documentation says.
const VERIFICATION: &str = include_str!("../../docs/verification.md");

#[test]
fn the_documentation_says_of_every_mistake_what_finds_it() {
    for mutation in Mutation::ALL {
        let begin = format!("| `{mutation:?}`: ");
        let row = VERIFICATION.lines().find_map(|line| line.strip_prefix(&begin)).unwrap_or_default();
        let (_, found_by) = row.split_once(" | ").unwrap_or_else(|| panic!("{mutation:?} is not in the table"));
        for finder in finders(mutation) {
            let named = match finder {
                Finder::Checker("two values") => found_by.contains("the checker (a fork)"),
                Finder::Checker(first) => found_by.contains(&format!("the checker ({first})")),
                Finder::Schedule(name, _) => found_by.contains(&format!("`{name}`")),
                Finder::Seeds(..) => found_by.contains("seeds"),
            };
            assert!(named, "{mutation:?}: {found_by}");
        }
    }
}

#[test]
fn every_mistake_is_found() {
    let mut unfound = Vec::new();
    for mutation in Mutation::ALL {
        let finders = finders(mutation);
        assert!(!finders.is_empty(), "{mutation:?} is found by something");
        for finder in finders {
            let started = std::time::Instant::now();
            let _on = Mutated::by(mutation);
            match finder.find() {
                Ok(how) => println!("{mutation:?} {:?}: {how}", started.elapsed()),
                Err(why) => unfound.push(format!("{mutation:?}: {why}")),
            }
        }
    }
    assert!(unfound.is_empty(), "not found:\n{}", unfound.join("\n"));
}
