//! A settlement bus: what it confirmed, what it takes signatures for, and which nodes see it.

use hotpocket::{
    consensus::{Event, header::Settlement},
    types::{Hash, Seq},
};

use super::{World, trace::trace};

/// What the bus holds.
#[derive(Debug, Default)]
pub struct Bus {
    /// Whether this network settles anything.
    pub used: bool,
    /// How often what it takes signatures for has changed.
    turns: u64,
    /// The last that it confirmed, with what that was signed with.
    confirmed: Option<Settlement>,
}

/// What happens to the bus, or of it.
#[derive(Debug, Clone, Copy)]
pub enum BusHappening {
    /// It confirms what the chain has not settled, if there is something.
    Confirm,
    /// From now on it takes signatures for something else.
    Rotate,
    /// So many percent of the honest nodes look at it and vote.
    Look(u64),
    /// So many percent of the honest nodes cannot see it any more.
    OutOfSight(u64),
}

impl Bus {
    fn txv(&self) -> Hash {
        Hash::tagged("sim/txv", &self.turns)
    }

    /// What somebody votes for who sees it, and whose chain records this.
    fn vote(&self, recorded: Option<&Settlement>) -> Option<Settlement> {
        let txv = self.txv();
        let Some(recorded) = recorded else { return Some(Settlement::begin(txv)) };
        match &self.confirmed {
            Some(next) if next.seq > recorded.seq => Some(Settlement { txv, ..next.clone() }),
            _ => (recorded.txv != txv).then(|| Settlement { txv, ..recorded.clone() }),
        }
    }
}

impl World {
    fn recorded(&self) -> Option<&Settlement> {
        self.watch.chain.last().and_then(|(_, ledger)| ledger.candidate.header.settlement.as_ref())
    }

    /// Whether the chain records all that there is to see.
    pub fn is_settled(&self) -> bool {
        !self.bus.used || self.bus.vote(self.recorded()).is_none()
    }

    pub(super) fn on_bus(&mut self, what: BusHappening) {
        self.bus.used = true;
        match what {
            BusHappening::Confirm => self.confirm(),
            BusHappening::Rotate => self.bus.turns += 1,
            BusHappening::Look(percent) => {
                for node in 0..self.nodes.len() {
                    if self.nodes[node].manner.is_honest() && self.rng.chance(percent) {
                        self.look(node);
                    }
                }
            }
            BusHappening::OutOfSight(percent) => {
                for node in 0..self.nodes.len() {
                    if self.nodes[node].manner.is_honest() && self.rng.chance(percent) {
                        self.handle(node, Event::SettlementVote(None));
                    }
                }
            }
        }
    }

    /// The settlement of all but the last ledger is confirmed, if the chain records the one before.
    pub fn confirm(&mut self) {
        let seq: Seq = self.watch.tip().saturating_sub(1);
        let Some(recorded) = self.recorded().cloned() else { return };
        let in_flight = self.bus.confirmed.as_ref().is_some_and(|last| last.seq > recorded.seq);
        if seq <= recorded.seq || in_flight {
            return;
        }
        let ch = Hash::tagged("sim/ch", &seq);
        let tx = Hash::tagged("sim/tx", &(ch, recorded.txv));
        self.bus.confirmed =
            Some(Settlement { seq, ch, tx, confirmed_length: recorded.confirmed_length + 1, txv: recorded.txv });
    }

    /// A node looks at the bus and votes for what it sees, by its own chain.
    pub fn look(&mut self, node: usize) {
        let me = &self.nodes[node];
        let Some(core) = &me.core else { return };
        let recorded = me.disk.journal.tip.as_ref().and_then(|tip| tip.candidate.header.settlement.as_ref());
        let vote = self.bus.vote(recorded);
        self.vote_for_settlement(node, core.unl().contains(&me.key), vote);
    }

    /// A node votes, whatever the bus says.
    pub fn vote_for_settlement(&mut self, node: usize, is_member: bool, vote: Option<Settlement>) {
        trace(|| format!("{:>7} n{node} saw {vote:?}", self.now));
        if let Some(vote) = vote.clone().filter(|_| is_member) {
            self.watch.saw(self.nodes[node].key, vote);
        }
        self.handle(node, Event::SettlementVote(vote));
    }

    /// What liars say of the bus, all alike: what might follow in ledger `seq`, and what nobody saw.
    pub(super) fn bus_lie(&self, seq: Seq) -> Option<Settlement> {
        let lie = Hash([0xba; 32]);
        match self.recorded() {
            _ if !self.bus.used => None,
            None => Some(Settlement::begin(lie)),
            Some(recorded) if recorded.seq + 2 < seq => {
                Some(Settlement { seq: seq - 2, ch: lie, tx: lie, confirmed_length: 1, txv: lie })
            }
            Some(recorded) => Some(Settlement { txv: lie, ..recorded.clone() }),
        }
    }
}
