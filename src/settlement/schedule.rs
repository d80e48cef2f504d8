//! When something is settled, and what: a pure function of the chain, one header after the other.
//!
//! Costs the same for each ledger, and nothing that grows: of a range that is not settled yet a running root is kept.

use super::record::Record;
use crate::{
    consensus::header::{Header, Settlement},
    types::{Hash, Seq, WallMs},
};

/// Hashes that are looked for, of one settlement: one for each `txv` that was agreed on while it was due. The oldest make
/// room; the bus would have to change its indexers this often while it confirms nothing.
pub const TXVS_MAX: usize = 64;

/// How often a network settles. Shared by its nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Not before so many ledgers ...
    pub every: u64,
    /// ... or so long after the first ledger with outputs.
    pub max_delay_ms: u64,
}

/// What is to be settled next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// What goes to the bus.
    pub record: Record,
    /// Its content hash.
    pub ch: Hash,
    /// What it may have been signed with, oldest first: what was agreed on when it was due, and since. Never empty.
    pub txvs: Vec<Hash>,
    /// Agreed time of the first ledger with outputs in it.
    pub since_ms: WallMs,
}

/// A settlement that the chain records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// What was settled.
    pub record: Record,
    /// What the ledger says of it.
    pub settlement: Settlement,
    /// The ledger that says so.
    pub recorded_in: Seq,
}

/// A chain that is not what its members may make of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// A header is missing.
    #[error("ledger {found} where ledger {expected} was to come")]
    Gap {
        /// The ledger that was to come.
        expected: Seq,
        /// The one that came.
        found: Seq,
    },
    /// A quorum of members recorded what is no settlement of this chain.
    #[error(
        "ledger {recorded_in} records a settlement up to ledger {seq} with content {ch}, but the chain leads to {expected}"
    )]
    Recorded {
        /// The ledger that does.
        recorded_in: Seq,
        /// Up to where.
        seq: Seq,
        /// With which content.
        ch: Hash,
        /// What the chain leads to.
        expected: String,
    },
}

/// The ledgers behind the last one that is settled, or is to be settled next.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Open {
    first: Seq,
    outputs_root: Hash,
    /// Time of the first ledger with outputs.
    since_ms: Option<WallMs>,
}

/// Follows a chain.
#[derive(Debug, Clone)]
pub struct Schedule {
    contract_id: Hash,
    pace: Pace,
    /// The last settlement recorded when the following began; older ones are passed over.
    base: Seq,
    /// What the last header records, once it is not older than `base`, and the ledger that recorded that `seq` first.
    recorded: Option<(Settlement, Seq)>,
    /// The last header: its number and time.
    seq: Seq,
    time_ms: WallMs,
    due: Option<Due>,
    open: Open,
}

impl Schedule {
    /// Before ledger 1.
    pub fn new(contract_id: Hash, genesis_time_ms: WallMs, pace: Pace) -> Schedule {
        Schedule::behind(contract_id, genesis_time_ms, pace, 0)
    }

    /// As far as a chain must be read that records a settlement up to ledger `settled`: what comes next is ledger
    /// `settled + 1`. `time_ms` is that of ledger `settled`; nothing depends on it unless `settled` is 0.
    pub fn behind(contract_id: Hash, time_ms: WallMs, pace: Pace, settled: Seq) -> Schedule {
        Schedule {
            contract_id,
            pace,
            base: settled,
            recorded: None,
            seq: settled,
            time_ms,
            due: None,
            open: Open::from(settled + 1),
        }
    }

    /// Takes the next header. What it says is settled, if that is new.
    pub fn next(&mut self, header: &Header) -> Result<Option<Settled>, ScheduleError> {
        if header.seq != self.seq + 1 {
            return Err(ScheduleError::Gap { expected: self.seq + 1, found: header.seq });
        }
        let settled = self.take_recorded(header)?;
        // The header says what the run of the ledger before led to.
        let (ledger, time_ms) = (self.seq, self.time_ms);
        if ledger >= self.open.first {
            self.open.add(ledger, time_ms, header.result.outputs_root);
        }
        (self.seq, self.time_ms) = (header.seq, header.time_ms);
        if self.due.is_none() {
            self.due = self.fall_due(ledger, time_ms, header);
        }
        Ok(settled)
    }

    fn take_recorded(&mut self, header: &Header) -> Result<Option<Settled>, ScheduleError> {
        let Some(new) = header.settlement.as_ref().filter(|new| new.seq >= self.base) else { return Ok(None) };
        match &mut self.recorded {
            None => {
                self.recorded = Some((new.clone(), header.seq));
                Ok(None)
            }
            Some((last, _)) if last.seq == new.seq => {
                if let Some(due) = self.due.as_mut().filter(|_| last.txv != new.txv) {
                    due.watch(new.txv);
                }
                *last = new.clone();
                Ok(None)
            }
            Some(_) => match self.due.take() {
                Some(due) if (due.record.last, due.ch) == (new.seq, new.ch) => {
                    self.recorded = Some((new.clone(), header.seq));
                    let (settlement, recorded_in) = (new.clone(), header.seq);
                    Ok(Some(Settled { record: due.record, settlement, recorded_in }))
                }
                due => {
                    let expected = match due {
                        Some(due) => format!("one up to ledger {} with content {}", due.record.last, due.ch),
                        None => "none".to_owned(),
                    };
                    let (seq, ch, recorded_in) = (new.seq, new.ch, header.seq);
                    Err(ScheduleError::Recorded { recorded_in, seq, ch, expected })
                }
            },
        }
    }

    /// Whether the range up to `ledger`, whose result `header` says, is to be settled.
    fn fall_due(&mut self, ledger: Seq, time_ms: WallMs, header: &Header) -> Option<Due> {
        let (recorded, recorded_in) = self.recorded.as_ref()?;
        let since_ms = self.open.since_ms?;
        // What came while the last settlement was under way is one range, however much it is.
        let waited = ledger >= *recorded_in;
        let ledgers = ledger + 1 - self.open.first;
        if !waited || ledgers < self.pace.every && time_ms - since_ms < self.pace.max_delay_ms {
            return None;
        }
        let open = std::mem::replace(&mut self.open, Open::from(ledger + 1));
        let record = Record {
            contract_id: self.contract_id,
            first: open.first,
            last: ledger,
            lcl: header.parent,
            outputs_root: open.outputs_root,
            state_root: header.result.state_root,
            prev: recorded.ch,
        };
        Some(Due { ch: record.ch(), record, txvs: vec![recorded.txv], since_ms })
    }

    /// What is to be settled next, if it is time.
    pub fn due(&self) -> Option<&Due> {
        self.due.as_ref()
    }

    /// What the last header records.
    pub fn recorded(&self) -> Option<&Settlement> {
        self.recorded.as_ref().map(|(recorded, _)| recorded)
    }

    /// The last header's number.
    pub fn seq(&self) -> Seq {
        self.seq
    }

    /// The first ledger that no recorded settlement covers.
    pub fn unsettled_from(&self) -> Seq {
        self.due.as_ref().map_or(self.open.first, |due| due.record.first)
    }

    /// Agreed time of the oldest ledger with outputs that no recorded settlement covers.
    pub fn unsettled_since_ms(&self) -> Option<WallMs> {
        self.due.as_ref().map(|due| due.since_ms).or(self.open.since_ms)
    }

    /// Agreed time of the last header.
    pub fn time_ms(&self) -> WallMs {
        self.time_ms
    }
}

impl Due {
    fn watch(&mut self, txv: Hash) {
        // Signed with once, looked for once: it goes to the end, as the one that is signed with now.
        self.txvs.retain(|known| *known != txv);
        self.txvs.push(txv);
        if self.txvs.len() > TXVS_MAX {
            self.txvs.remove(0);
        }
    }

    /// What it is signed with now.
    pub fn txv(&self) -> Hash {
        *self.txvs.last().expect("there is one from the beginning on")
    }
}

impl Open {
    fn from(first: Seq) -> Open {
        Open { first, outputs_root: Hash::ZERO, since_ms: None }
    }

    fn add(&mut self, seq: Seq, time_ms: WallMs, outputs_root: Hash) {
        if outputs_root != Hash::ZERO {
            self.outputs_root = Record::outputs_root(self.outputs_root, seq, outputs_root);
            self.since_ms.get_or_insert(time_ms);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        consensus::header::{ExecResult, VERSION},
        types::Status,
    };

    const PACE: Pace = Pace { every: 10, max_delay_ms: 60_000 };
    const ID: Hash = Hash([7; 32]);

    /// A chain of which every header is kept, and what follows it.
    struct Chain {
        headers: Vec<Header>,
        schedule: Schedule,
        settled: Vec<Settled>,
    }

    impl Chain {
        fn new() -> Chain {
            Chain { headers: Vec::new(), schedule: Schedule::new(ID, 0, PACE), settled: Vec::new() }
        }

        fn header(&self, outputs: bool, settlement: Option<Settlement>) -> Header {
            let seq = self.headers.len() as Seq + 1;
            let parent = self.headers.last().map_or(Hash::ZERO, Header::hash);
            Header {
                ver: VERSION,
                chain_id: Hash::ZERO,
                seq,
                parent,
                time_ms: 1_000 * seq,
                unl_hash: Hash::ZERO,
                next_unl_hash: Hash::ZERO,
                users_root: Hash::ZERO,
                n_users: 0,
                inputs_root: Hash::ZERO,
                n_inputs: 0,
                inputs_bytes: 0,
                result: ExecResult {
                    of_seq: seq - 1,
                    of_hash: parent,
                    state_root: Hash::tagged("test/state", &(seq - 1)),
                    outputs_root: if outputs { Hash::tagged("test/outputs", &(seq - 1)) } else { Hash::ZERO },
                    status: Status::Ok,
                    unl_req: None,
                },
                settlement,
            }
        }

        /// The next ledger; `outputs` are those of the one before.
        fn close(&mut self, outputs: bool, settlement: Option<Settlement>) {
            let header = self.header(outputs, settlement);
            self.settled.extend(self.schedule.next(&header).unwrap());
            self.headers.push(header);
        }

        fn recorded(&self) -> Option<Settlement> {
            self.headers.last().and_then(|header| header.settlement.clone())
        }

        /// So many more ledgers, each with outputs or not, that record what the last does.
        fn go_on(&mut self, ledgers: usize, outputs: bool) {
            for _ in 0..ledgers {
                self.close(outputs, self.recorded());
            }
        }

        /// What is due is confirmed and recorded by the next ledger, which has no outputs before it.
        fn settle(&mut self) {
            let due = self.schedule.due().expect("something is due").clone();
            let tx = Hash::tagged("test/tx", &due.ch);
            let settlement = Settlement { seq: due.record.last, ch: due.ch, tx, confirmed_length: 5, txv: due.txv() };
            self.close(false, Some(settlement));
        }

        fn due(&self) -> Option<(Seq, Seq)> {
            self.schedule.due().map(|due| (due.record.first, due.record.last))
        }

        /// Whoever comes now, and reads what the tip's settlement asks for, expects the same.
        fn check_late(&self) {
            let settled = self.recorded().map_or(0, |recorded| recorded.seq);
            let mut late = Schedule::behind(ID, 0, PACE, settled);
            for header in &self.headers[settled as usize..] {
                assert_eq!(late.next(header), Ok(None), "of older settlements nothing is said");
            }
            assert_eq!((late.due(), &late.open), (self.schedule.due(), &self.schedule.open));
            assert_eq!(late.recorded(), self.schedule.recorded());
        }
    }

    fn begun() -> Chain {
        let mut chain = Chain::new();
        chain.close(false, Some(Settlement::begin(Hash([1; 32]))));
        chain
    }

    #[test]
    fn nothing_is_due_where_nothing_is_put_out_or_nobody_agreed_on_what_to_sign_with() {
        let mut chain = begun();
        chain.go_on(100, false);
        assert_eq!(chain.due(), None);
        let mut chain = Chain::new();
        chain.go_on(100, true);
        assert_eq!(chain.due(), None);
        chain.close(true, Some(Settlement::begin(Hash([1; 32]))));
        assert_eq!(chain.due(), None, "the range ends with a ledger that is not older than the agreement");
        chain.go_on(1, true);
        assert_eq!(chain.due(), Some((1, 101)));
        chain.check_late();
    }

    #[test]
    fn what_is_kept_of_a_chain_does_not_grow_with_what_is_not_settled() {
        let mut chain = begun();
        // All that it holds is in what it shows, to the digits of the numbers.
        let mut kept = |ledgers| {
            chain.go_on(ledgers, true);
            format!("{:?}", chain.schedule).len()
        };
        let (little, much) = (kept(100), kept(5_000));
        assert!(much < little + 100, "{little} and {much} characters");
        assert!(chain.schedule.due().is_some());
    }

    #[test]
    fn a_range_is_due_after_so_many_ledgers_or_so_long_after_its_first_output() {
        let mut chain = begun();
        chain.go_on(9, true);
        assert_eq!(chain.due(), None, "nine ledgers");
        chain.go_on(1, false);
        assert_eq!(chain.due(), Some((1, 10)));
        chain.check_late();
        let due = chain.schedule.due().unwrap();
        assert_eq!(due.record.lcl, chain.headers[9].hash());
        assert_eq!(due.record.state_root, chain.headers[10].result.state_root);
        let outputs = (1..10).map(|seq| (seq, chain.headers[seq as usize].result.outputs_root));
        let root = outputs.fold(Hash::ZERO, |root, (seq, outputs)| Record::outputs_root(root, seq, outputs));
        assert_eq!(due.record.outputs_root, root);
        assert_eq!((due.record.prev, due.txv()), (Hash::ZERO, Hash([1; 32])));

        let pace = Pace { every: 1_000, ..PACE };
        let mut chain = Chain { schedule: Schedule::new(ID, 0, pace), ..begun() };
        let begin = chain.headers.remove(0);
        chain.schedule.next(&begin).unwrap();
        chain.headers.push(begin);
        chain.go_on(30, false);
        chain.go_on(1, true);
        assert_eq!(chain.schedule.unsettled_since_ms(), Some(31_000));
        chain.go_on(59, false);
        assert_eq!(chain.due(), None, "59 seconds");
        chain.go_on(1, false);
        assert_eq!(chain.due(), Some((1, 91)));
    }

    #[test]
    fn one_settlement_is_under_way_and_what_comes_meanwhile_is_one_range_with_no_hole_between() {
        let mut chain = begun();
        chain.go_on(10, true);
        let first = chain.schedule.due().unwrap().clone();
        // The bus is away for a thousand ledgers.
        chain.go_on(1_000, true);
        assert_eq!(chain.schedule.due(), Some(&first), "what is due does not change");
        chain.settle();
        assert_eq!(chain.settled.len(), 1);
        assert_eq!(chain.due(), None);
        chain.check_late();
        chain.go_on(1, false);
        assert_eq!(chain.due(), Some((11, 1_012)), "all the rest at once, up to the ledger that recorded the first");
        chain.check_late();
        chain.settle();
        assert_eq!(chain.settled[1].record.prev, first.ch);
        chain.go_on(50, false);
        assert_eq!(chain.due(), None, "nothing was put out since");
        chain.go_on(1, true);
        assert_eq!(
            chain.due(),
            Some((1_013, 1_064)),
            "empty ledgers count, so the first output after a pause is settled"
        );
        chain.settle();
        let ranges: Vec<(Seq, Seq)> = chain.settled.iter().map(|it| (it.record.first, it.record.last)).collect();
        assert_eq!(ranges, [(1, 10), (11, 1_012), (1_013, 1_064)]);
        for pair in chain.settled.windows(2) {
            assert_eq!((pair[1].record.prev, pair[1].record.first), (pair[0].record.ch(), pair[0].record.last + 1));
        }
    }

    #[test]
    fn whatever_it_may_have_been_signed_with_is_known_from_the_chain_and_bounded() {
        let mut chain = begun();
        chain.go_on(10, true);
        let change = |chain: &mut Chain, txv: u8| {
            let recorded = chain.recorded().unwrap();
            chain.close(true, Some(Settlement { txv: Hash([txv; 32]), ..recorded }));
        };
        change(&mut chain, 2);
        change(&mut chain, 1);
        assert_eq!(
            chain.schedule.due().unwrap().txvs,
            [Hash([2; 32]), Hash([1; 32])],
            "the last one is signed with now"
        );
        chain.check_late();
        for txv in 3..200 {
            change(&mut chain, txv);
        }
        assert_eq!(chain.schedule.due().unwrap().txvs.len(), TXVS_MAX);
        assert_eq!(chain.schedule.due().unwrap().txv(), Hash([199; 32]));
        chain.settle();
        chain.go_on(1, true);
        assert_eq!(chain.schedule.due().unwrap().txvs, [Hash([199; 32])], "of older settlements nothing is left");
    }

    #[test]
    fn a_record_that_the_chain_does_not_lead_to_is_told_and_so_is_a_gap() {
        let mut chain = begun();
        chain.go_on(10, true);
        let due = chain.schedule.due().unwrap().clone();
        let said = |seq, ch| Settlement { seq, ch, tx: Hash([1; 32]), confirmed_length: 1, txv: Hash([1; 32]) };
        for wrong in [said(9, due.ch), said(10, Hash([3; 32])), said(11, due.ch)] {
            let header = chain.header(false, Some(wrong.clone()));
            let error = chain.schedule.clone().next(&header).unwrap_err();
            assert!(matches!(error, ScheduleError::Recorded { recorded_in: 12, .. }), "{wrong:?}: {error}");
        }
        let mut early = begun();
        let header = early.header(false, Some(said(1, due.ch)));
        assert!(early.schedule.next(&header).unwrap_err().to_string().ends_with("leads to none"));
        let header = chain.header(false, chain.recorded());
        let gap = Header { seq: header.seq + 1, ..header };
        assert_eq!(chain.schedule.next(&gap), Err(ScheduleError::Gap { expected: 12, found: 13 }));
    }
}
