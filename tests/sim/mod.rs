//! The deterministic simulator: one seed is one run of a whole network over the real core.
//!
//! `world` has nodes, links, disks, clocks and faults; `properties` what must hold; `plans` draws a run from a seed,
//! `search` runs many; `schedules`, `lies`, `crowds`, `members`, `overtime`, `settlements` and `silence` script the ones that
//! random search may not show; `mutations` sees that mistakes are found.

mod crowds;
mod crypto;
mod lies;
mod members;
mod mutations;
mod overtime;
mod pauses;
mod plans;
mod properties;
mod rng;
mod schedules;
mod search;
mod settlements;
mod silence;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use properties::Coverage;
use search::{Outcome, search};

/// Runs in every test run.
const SEEDS: u64 = 1000;

/// What must have happened somewhere in a thousand runs, or they prove less than they seem to.
const EXPECTED: &[&str] = &[
    "closed at attempt 0",
    "closed at attempt 1",
    "closed at attempt 2",
    "closed at attempt 3 or later",
    "POLC re-proposals",
    "restarts with a journaled vote",
    "restarts with a journaled ADVANCE",
    "crashes before a sync",
    "power cuts",
    "rollbacks of a touched state",
    "closed by certificate",
    "caught up three ledgers or more",
    "adopted out of a range",
    "caught a liar",
    "ledgers loaded for their runs",
    "evidence",
    "twins",
    "equivocators",
    "withholders",
    "silent members",
    "liars about results",
    "hiders of POLCs",
    "endless proposers",
    "spammers",
    "members that rush ahead",
    "forgers",
    "members with crowds",
    "full ledgers",
    "ledgers with every seat taken",
    "things said that nobody asked for",
    "in sync after faults ended",
    "crashes before an input is on disk",
    "crashes before a NOVEL is on disk",
    "crashes before a NOVEL on disk is sent",
    "crashes before a PREVOTE is on disk",
    "crashes before a PREVOTE on disk is sent",
    "crashes before a PRECOMMIT is on disk",
    "crashes before a PRECOMMIT on disk is sent",
    "crashes before an ADVANCE is on disk",
    "crashes before an ADVANCE on disk is sent",
    "crashes before a Tc is on disk",
    "crashes before a RESULT is on disk",
    "crashes before a RESULT on disk is sent",
    "crashes before a ledger is on disk",
    "crashes before a ledger on disk is run",
    "n = 1",
    "n = 2",
    "n = 7",
    "diverged",
    "states lost by a run",
    "states lost by damage",
    "states given up to catch up",
    "states fetched",
    "damaged states",
    "runs after a divergence that are as the others'",
    "OVERTIME to limit",
    "OVERTIME re-executed",
    "runs ended because their time was up elsewhere",
    "runs undone",
    "restarts with a journaled OVERTIME",
    "delivered",
    "UNL changed by operators",
    "UNL changed by the contract",
    "members removed",
    "restarts with a vote for the UNL",
    "disks emptied",
    "silences begun",
    "silences ended",
    "silences over restarts",
    "ledgers closed while a member was silent",
    "joins begun",
    "ledgers passed over",
    "ledgers with inputs passed over",
    "joins",
    "joins with users",
    "states asked for by joined nodes",
    "restarts while ledgers are passed over",
    "restarts before a joined node has a state",
    "settlements begun",
    "settlements recorded",
    "txv changed",
    "lies about the bus",
    "disks nearly full",
    "disks nearly full, or not any more, in the middle of a run",
    "room on a disk again",
    "restarts without room on the disk",
];

fn run(seed: u64) -> Result<Coverage, String> {
    caught(|| plans::run(seed))
}

/// What it panics with, as an error.
fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string())).unwrap_or_default()
    })
}

/// Runs a seed again, keeping what happens.
fn traced(seed: u64) -> (Result<Coverage, String>, Vec<String>) {
    world::trace_on();
    (run(seed), world::trace_take())
}

#[test]
fn a_thousand_seeds_keep_every_property() {
    let (seeds, first) = (number("HP_SIM_SEEDS"), number("HP_SIM_FIRST").unwrap_or(0));
    let seeds_asked = seeds.unwrap_or(SEEDS);
    let Outcome { coverage, failures, runs } = search(first, seeds_asked, seeds.is_some());
    for (what, count) in &coverage.0 {
        println!("{count:>9} {what}");
    }
    if let Some((seed, failure)) = failures.first() {
        let (_, lines) = traced(*seed);
        println!("{}\nthe end of its run:", plans::describe(*seed));
        println!("{}", lines[lines.len().saturating_sub(60)..].join("\n"));
        let all: Vec<String> = failures
            .iter()
            .map(|(seed, failure)| format!("{seed}: {}", failure.lines().next().unwrap_or_default()))
            .collect();
        panic!(
            "{} of {runs} seeds failed; the first is {seed}: {failure}\nreplay: HP_SIM_SEED={seed} cargo test --lib sim::replay -- --nocapture\nall:\n{}",
            failures.len(),
            all.join("\n")
        );
    }
    println!("{runs} seeds from {first} on keep every property");
    if runs >= SEEDS {
        for what in EXPECTED {
            assert!(coverage.of(what) > 0, "no run showed: {what}");
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Prints what happens in the run of `HP_SIM_SEED`; does nothing without it.
#[test]
fn replay() {
    let Some(seed) = std::env::var("HP_SIM_SEED").ok().and_then(|text| text.parse().ok()) else { return };
    let (outcome, lines) = traced(seed);
    println!("{}\n{}", plans::describe(seed), lines.join("\n"));
    match outcome {
        Ok(coverage) => println!("kept every property: {coverage:?}"),
        Err(failure) => panic!("seed {seed}: {failure}"),
    }
}
