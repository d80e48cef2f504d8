//! A node whose driver has no room left: it promises nothing new, closes and runs nothing, until it is told to go on. What it
//! promised before it goes on saying, and what others ask it answers.

use super::Consensus;

impl Consensus {
    /// Stops, or goes on.
    pub(super) fn pause(&mut self, paused: bool) {
        let goes_on = std::mem::replace(&mut self.paused, paused) && !paused;
        // The timer of the attempt went off for nothing, or will be late.
        if goes_on && (self.round.is_bound() || self.round.first_timer_started) {
            self.set_attempt_timer();
        }
        if goes_on {
            self.fresh();
        }
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
        for from in [1, 3, 4] {
            let novel = bench.novel(from, 7);
            effects.extend(bench.hear(from, Message::Novel(novel)));
            let advance = bench.advance(from, 1);
            effects.extend(bench.hear(from, Message::Advance(Advance { vote: advance, polc: None })));
        }
        effects.extend(bench.on(Event::Timer(Timer::Attempt(0))));
        effects.extend(bench.on(Event::Timer(Timer::Pace)));
        let ledger = bench.next_ledger(5, &[1, 3, 4]);
        let closed = Message::Closed(Closed { header: ledger.candidate.header, qc: ledger.qc });
        effects.extend(bench.hear(1, closed.clone()));
        assert_eq!(persists(&effects), Vec::<&Record>::new());
        let effects = bench.on(Event::Paused(false));
        let closes = |effects: &[Effect]| persists(effects).iter().any(|record| matches!(record, Record::Ledger(_)));
        assert!(closes(&effects) || closes(&bench.hear(1, closed)), "{effects:?}");
    }
}
