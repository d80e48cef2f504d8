//! A node whose driver has no room left: it promises, closes, runs and takes nothing new until it is told to go on. What it
//! promised before it goes on saying, what others ask it answers, and what was agreed on it hands out.

use super::{Consensus, mutation::mutated};

impl Consensus {
    /// Whether nothing new may be done.
    pub(super) fn is_paused(&self) -> bool {
        self.paused && !mutated!(VoteThoughPaused)
    }

    /// Stops, or goes on.
    pub(super) fn pause(&mut self, paused: bool) {
        let goes_on = std::mem::replace(&mut self.paused, paused) && !paused;
        if !goes_on {
            return;
        }
        // The timer of the attempt went off for nothing, or will be late.
        if self.round.is_bound() || self.round.first_timer_started {
            self.set_attempt_timer();
        }
        if self.trusted && !mutated!(ForgetPausedRun) {
            self.run_next();
        }
        // What came of a run that was under way is on disk and was not said.
        self.say_result();
        self.say_overtime();
        self.compare_results();
        self.fresh();
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        Effect, Event, Timer,
        hostile::Bench,
        journal::Record,
        messages::{Advance, Closed, Message},
    };

    fn persists(effects: &[Effect]) -> Vec<&Record> {
        effects
            .iter()
            .filter_map(|effect| match effect {
                Effect::Persist(record) => Some(record),
                _ => None,
            })
            .filter(|record| !matches!(record, Record::Heard(_)))
            .collect()
    }

    #[test]
    fn a_paused_node_promises_and_closes_nothing_and_does_both_when_it_goes_on() {
        let mut bench = Bench::new(&[1, 2, 3, 4], 75);
        let mut effects = bench.on(Event::Paused(true));
        for from in [2, 3, 4] {
            let novel = bench.novel(from, 7);
            effects.extend(bench.hear(from, Message::Novel(novel)));
            let advance = bench.advance(from, 1);
            effects.extend(bench.hear(from, Message::Advance(Advance { vote: advance, polc: None })));
        }
        effects.extend(bench.on(Event::Timer(Timer::Attempt(0))));
        effects.extend(bench.on(Event::Timer(Timer::Pace)));
        let ledger = bench.next_ledger(5, &[2, 3, 4]);
        let closed = Message::Closed(Closed { header: ledger.candidate.header, qc: ledger.qc });
        effects.extend(bench.hear(2, closed.clone()));
        assert_eq!(persists(&effects), Vec::<&Record>::new());
        let effects = bench.on(Event::Paused(false));
        let closes = |effects: &[Effect]| persists(effects).iter().any(|record| matches!(record, Record::Ledger(_)));
        assert!(closes(&effects) || closes(&bench.hear(2, closed)), "{effects:?}");
    }
}
