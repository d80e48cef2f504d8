//! Runs many seeds on several threads, and tells how far it is.

use std::{
    io::{IsTerminal, Write as _},
    num::NonZero,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::{properties::Coverage, run};

/// Threads of a test run; a search that was asked for takes every core.
const THREADS: usize = 2;
/// Failures after which a search ends: more of them tell no more.
const FAILURES_MAX: usize = 20;
/// How often a terminal shows how far it is.
const BAR_EVERY: Duration = Duration::from_millis(200);
/// Width of the bar.
const BAR_CHARS: usize = 40;
/// Lines in a pipe, from the beginning to the end.
const LINES: u64 = 20;

/// What many seeds showed.
#[derive(Default)]
pub struct Outcome {
    /// Sum over all runs that kept every property.
    pub coverage: Coverage,
    /// Seeds that did not, ascending, and what they violated.
    pub failures: Vec<(u64, String)>,
    /// Seeds run.
    pub runs: u64,
}

/// Runs these seeds; on every core and with a report of its progress when it was `asked` for.
pub fn search(first: u64, seeds: u64, asked: bool) -> Outcome {
    let threads = if asked { std::thread::available_parallelism().map_or(THREADS, NonZero::get) } else { THREADS };
    let next = AtomicU64::new(first);
    let progress = Mutex::new((Outcome::default(), Progress::new(seeds, asked)));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + seeds {
                        return;
                    }
                    let result = run(seed);
                    let (outcome, progress) = &mut *progress.lock().expect("no panic holds it");
                    outcome.runs += 1;
                    match result {
                        Ok(coverage) => outcome.coverage.add(&coverage),
                        Err(failure) => {
                            progress.line(&format!("seed {seed}: {}", failure.lines().next().unwrap_or_default()));
                            outcome.failures.push((seed, failure));
                            if outcome.failures.len() >= FAILURES_MAX {
                                next.store(first + seeds, Ordering::Relaxed);
                            }
                        }
                    }
                    progress.show(outcome.runs, outcome.failures.len());
                }
            });
        }
    });
    let (mut outcome, progress) = progress.into_inner().expect("no panic holds it");
    progress.end();
    outcome.failures.sort();
    outcome
}

/// How far it is: a bar in a terminal, a few lines in a pipe.
struct Progress {
    seeds: u64,
    asked: bool,
    bar: bool,
    started: Instant,
    shown: Instant,
}

impl Progress {
    fn new(seeds: u64, asked: bool) -> Progress {
        let now = Instant::now();
        Progress { seeds, asked, bar: asked && std::io::stderr().is_terminal(), started: now, shown: now }
    }

    fn show(&mut self, runs: u64, failures: usize) {
        let last = runs == self.seeds;
        if self.bar && (last || self.shown.elapsed() >= BAR_EVERY) {
            self.shown = Instant::now();
            let done = usize::try_from(runs * BAR_CHARS as u64 / self.seeds).expect("at most the bar's width");
            let bar = "#".repeat(done) + &"-".repeat(BAR_CHARS - done);
            eprint!("\r\x1b[K[{bar}] {}", self.text(runs, failures));
            std::io::stderr().flush().ok();
        } else if self.asked && !self.bar && runs * LINES / self.seeds > (runs - 1) * LINES / self.seeds {
            eprintln!("{}", self.text(runs, failures));
        }
    }

    fn text(&self, runs: u64, failures: usize) -> String {
        let elapsed = self.started.elapsed();
        let left = elapsed.mul_f64((self.seeds - runs) as f64 / runs as f64);
        let (elapsed, left) = (elapsed.as_secs(), left.as_secs());
        format!("{runs} of {} seeds, {failures} failed, {elapsed} s, {left} s left", self.seeds)
    }

    /// A line of its own, not in the bar's.
    fn line(&self, text: &str) {
        if self.bar {
            eprint!("\r\x1b[K");
        }
        eprintln!("{text}");
    }

    fn end(&self) {
        if self.bar {
            eprintln!();
        }
    }
}
