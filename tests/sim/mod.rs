//! The deterministic simulator: one seed is one run of a whole network over the real core.
//!
//! `world` has nodes, links, disks, clocks and faults; `properties` what must hold; `plans` draws a run from a seed;
//! `schedules`, `lies` and `members` script the ones that random search may not show; `mutations` sees that mistakes are found.

mod crypto;
mod lies;
mod members;
mod mutations;
mod overtime;
mod plans;
mod properties;
mod rng;
mod schedules;
mod world;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Mutex,
};

use properties::Coverage;

/// Runs in every test run.
const SEEDS: u64 = 1000;
/// Runs at once.
const THREADS: u64 = 2;

/// What must have happened somewhere in a thousand runs, or they prove less than they seem to.
const EXPECTED: &[&str] = &[
    "closed at attempt 0",
    "closed at attempt 1",
    "closed at attempt 2 or later",
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
    "diverged",
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
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = number("HP_SIM_SEEDS").unwrap_or(SEEDS);
    let first = number("HP_SIM_FIRST").unwrap_or(0);
    let total = Mutex::new((Coverage::default(), Vec::new()));
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let total = &total;
            scope.spawn(move || {
                for seed in (first..first + seeds).filter(|seed| seed % THREADS == thread) {
                    let outcome = run(seed);
                    let mut total = total.lock().expect("no panic holds it");
                    match outcome {
                        Ok(coverage) => total.0.add(&coverage),
                        Err(failure) => {
                            println!("seed {seed}: {}", failure.lines().next().unwrap_or_default());
                            total.1.push((seed, failure));
                        }
                    }
                }
            });
        }
    });
    let (coverage, failures) = total.into_inner().expect("no panic holds it");
    for (what, count) in &coverage.0 {
        println!("{count:>9} {what}");
    }
    if let Some((seed, failure)) = failures.first() {
        let (_, lines) = traced(*seed);
        let last = lines.len().saturating_sub(60);
        println!("{}", lines[last..].join("\n"));
        let all: Vec<String> = failures
            .iter()
            .map(|(seed, failure)| format!("{seed}: {}", failure.lines().next().unwrap_or_default()))
            .collect();
        panic!(
            "{} of {seeds} seeds failed; the first is {seed}: {}\n{failure}\nreplay: HP_SIM_SEED={seed} cargo test --lib sim::replay -- --nocapture\nall:\n{}",
            failures.len(),
            plans::describe(*seed),
            all.join("\n")
        );
    }
    if seeds >= SEEDS {
        for what in EXPECTED {
            assert!(coverage.of(what) > 0, "no run showed: {what}");
        }
    }
}

/// Prints what happens in the run of `HP_SIM_SEED`; does nothing without it.
#[test]
fn replay() {
    let Some(seed) = std::env::var("HP_SIM_SEED").ok().and_then(|text| text.parse().ok()) else { return };
    let (outcome, lines) = traced(seed);
    println!("{}\n{}", lines.join("\n"), plans::describe(seed));
    match outcome {
        Ok(coverage) => println!("kept every property: {coverage:?}"),
        Err(failure) => panic!("seed {seed}: {failure}"),
    }
}
