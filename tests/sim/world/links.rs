//! Links between nodes: what goes where, when, and what a liar makes of it.

use std::rc::Rc;

use hotpocket::{
    consensus::{
        Event,
        messages::{Get, Message, Precommit, Prevote, VoteKind as _},
    },
    types::Hash,
};

use super::{super::crypto::TableCrypto, Ev, Fate, Manner, World};

impl World {
    pub(super) fn heal(&mut self) {
        for a in 0..self.nodes.len() {
            for b in a + 1..self.nodes.len() {
                if std::mem::take(&mut self.links.entry((a, b)).or_default().blocked) {
                    let at = self.now + self.rng.within(1, 60);
                    self.push(at, Ev::Connect { a, b });
                }
            }
        }
    }

    pub(super) fn connect(&mut self, a: usize, b: usize) {
        let alive = a != b && self.nodes[a].core.is_some() && self.nodes[b].core.is_some();
        let link = self.links.entry((a, b)).or_default();
        if !alive || link.up || link.blocked || self.nodes[a].member == self.nodes[b].member {
            return;
        }
        link.up = true;
        link.epoch += 1;
        self.notice_link(a, b);
    }

    pub(super) fn disconnect(&mut self, a: usize, b: usize) {
        let link = self.links.entry((a, b)).or_default();
        if link.up {
            link.up = false;
            link.epoch += 1;
            self.notice_link(a, b);
        }
    }

    pub(super) fn notice_link(&mut self, a: usize, b: usize) {
        for (node, peer) in [(a, b), (b, a)] {
            let (at, life) = (self.now + self.rng.within(0, 20), self.nodes[node].life);
            self.push(at, Ev::Notice { node, life, peer });
        }
    }

    /// The node notices what its link to a peer is by now.
    pub(super) fn look_at_link(&mut self, node: usize, peer: usize) {
        let link = self.links.get(&(node.min(peer), node.max(peer))).copied().unwrap_or_default();
        let seen = self.nodes[node].view[peer];
        if self.nodes[node].core.is_none() || seen == link.up.then_some(link.epoch) {
            return;
        }
        // A second twin is not told apart from the first.
        let told = peer < self.cfg.singles();
        let key = self.nodes[peer].key;
        if seen.is_some() {
            self.nodes[node].view[peer] = None;
            if told {
                self.handle(node, Event::LinkDown(key));
            }
        }
        if link.up && self.nodes[node].core.is_some() {
            self.nodes[node].view[peer] = Some(link.epoch);
            if told {
                self.handle(node, Event::LinkUp(key));
            }
        }
    }

    pub(super) fn deliver(&mut self, from: usize, to: usize, epoch: u64, message: &Message) {
        let link = self.links.get(&(from.min(to), from.max(to))).copied().unwrap_or_default();
        if !link.up || link.epoch != epoch || self.nodes[to].core.is_none() {
            return;
        }
        if self.nodes[to].view[from] != Some(epoch) {
            self.look_at_link(to, from);
        }
        if let Message::Get(Get::Candidate(hash)) = message
            && let Some(lie) = self.nodes[to].lies.get(hash).cloned()
        {
            return self.send(to, from, &Rc::new(Message::Candidate(lie)));
        }
        if self.nodes[to].manner == Manner::Withholds && matches!(message, Message::Get(_)) {
            return;
        }
        let key = self.nodes[from].key;
        // As at the real node's edge: what is of another round is not looked at, or by the core when it gets there.
        let Some(core) = &self.nodes[to].core else { return };
        let now = message.round_seq().is_none_or(|seq| seq == core.round_seq());
        if now && !message.is_signed(&core.scope(), &TableCrypto(key)) {
            assert!(!self.nodes[from].manner.is_honest(), "node {to} refuses a signature that node {from} passes on");
            return;
        }
        let tip = |world: &World| world.nodes[to].core.as_ref().map(|core| core.summary().seq);
        let before = if matches!(message, Message::Closed(_) | Message::Range(_)) { tip(self) } else { None };
        self.handle(to, Event::Message(key, message.clone()));
        if before.is_some() && tip(self) > before {
            let range = matches!(message, Message::Range(_));
            self.watch.seen.hit(if range { "adopted out of a range" } else { "closed by certificate" });
        }
    }

    pub(super) fn send(&mut self, from: usize, to: usize, message: &Rc<Message>) {
        let Some(epoch) = self.nodes[from].view[to] else { return };
        let twins = self.nodes[from].manner == Manner::Twins;
        if self.nodes[from].member == self.nodes[to].member || twins && self.nodes[from].mask >> to & 1 == 0 {
            return;
        }
        let message = match self.nodes[from].manner {
            Manner::Silent => return,
            Manner::Withholds if matches!(**message, Message::Input(_)) => return,
            Manner::Equivocates => match self.twisted(from, to, message) {
                Some(message) => message,
                None => return,
            },
            _ => message.clone(),
        };
        let fate = match &mut self.filter {
            Some(filter) => filter(self.now, from, to, &message),
            None => Fate::Pass,
        };
        if fate == Fate::Drop || self.silent.contains(&(from, to)) || self.rng.chance(self.cfg.loss) {
            return;
        }
        let copies = 1 + usize::from(self.rng.chance(self.cfg.duplicates));
        for copy in 0..copies {
            let mut at = self.now + self.rng.within(self.cfg.latency_ms.0, self.cfg.latency_ms.1);
            if let Fate::Late(late) = fate {
                at += late;
            } else if copy > 0 {
                // The second one comes late.
                at += if self.rng.chance(20) { self.rng.within(500, 5000) } else { self.rng.within(0, 500) };
            } else if !self.cfg.reorder {
                let last = self.last_arrival.entry((from, to)).or_insert(0);
                at = at.max(*last);
                *last = at;
            }
            self.push(at, Ev::Deliver { from, to, epoch, message: message.clone() });
        }
    }

    /// What an equivocator makes of a message for one receiver.
    pub(super) fn twisted(&mut self, from: usize, to: usize, message: &Rc<Message>) -> Option<Rc<Message>> {
        let other = (self.nodes[from].mask >> to) & 1 == 1;
        let both = self.rng.chance(10);
        if !other && !both {
            return Some(message.clone());
        }
        let core = self.nodes[from].core.as_ref()?;
        let (scope, crypto) = (core.scope(), TableCrypto(self.nodes[from].key));
        let twisted = match &**message {
            Message::Novel(m) if m.from == crypto.0 => {
                let mut body = m.body.clone();
                body.time_slot += 1;
                body.inputs.pop();
                Message::Novel(crypto.signed(body, &scope))
            }
            Message::Result(m) if m.from == crypto.0 => {
                let mut body = m.body.clone();
                body.state_root = Hash([66; 32]);
                Message::Result(crypto.signed(body, &scope))
            }
            Message::Prevote(m) if m.from == crypto.0 => {
                let mut vote = m.body.vote();
                vote.ledger_hash = Hash([67; 32]);
                Message::Prevote(crypto.signed(Prevote::of(vote), &scope))
            }
            Message::Precommit(m) if m.from == crypto.0 => {
                let mut vote = m.body.vote();
                vote.ledger_hash = Hash([68; 32]);
                Message::Precommit(crypto.signed(Precommit::of(vote), &scope))
            }
            Message::Advance(m) if m.vote.from == crypto.0 => {
                let mut advance = m.clone();
                let mut body = m.vote.body;
                body.high = None;
                advance.vote = crypto.signed(body, &scope);
                advance.polc = None;
                Message::Advance(advance)
            }
            Message::TcFwd(m) => {
                let mut forward = m.clone();
                forward.polc = None;
                Message::TcFwd(forward)
            }
            Message::Propose(m) if m.from == crypto.0 => {
                // A ledger with a result that nobody had; its body can be had of the liar.
                let (_, candidate) = self.nodes[from].disk.journal.prevotes.get(&m.body.attempt)?;
                let mut lie = candidate.clone();
                lie.header.result.state_root = Hash([69; 32]);
                let mut propose = m.body.clone();
                propose.ledger_hash = lie.header.hash();
                self.nodes[from].lies.insert(propose.ledger_hash, lie);
                Message::Propose(crypto.signed(propose, &scope))
            }
            _ => return Some(message.clone()),
        };
        Some(Rc::new(twisted))
    }
}
