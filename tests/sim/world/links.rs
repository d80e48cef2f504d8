//! Links between nodes: what goes where, and when.

use std::rc::Rc;

use hotpocket::consensus::{
    Event,
    messages::{Get, Message},
};

use super::{super::crypto::TableCrypto, Ev, Fate, Manner, World};

/// How late a message may be that is late.
const LATE_MS_MAX: u64 = 3_000;

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
        if self.nodes[to].manner == Manner::Spams {
            self.hear(to, message);
        }
        let tip = |world: &World| world.nodes[to].core.as_ref().map(|core| core.summary().seq);
        let before = if matches!(message, Message::Closed(_) | Message::Range(_) | Message::Headers(_)) {
            tip(self)
        } else {
            None
        };
        self.handle(to, Event::Message(key, message.clone()));
        if before.is_some() && tip(self) > before {
            self.watch.seen.hit(match message {
                Message::Range(_) => "adopted out of a range",
                Message::Headers(_) => "ledgers passed over",
                _ => "closed by certificate",
            });
        }
    }

    pub(super) fn send(&mut self, from: usize, to: usize, message: &Rc<Message>) {
        let Some(epoch) = self.nodes[from].view[to] else { return };
        let twins = self.nodes[from].manner == Manner::Twins;
        if self.nodes[from].member == self.nodes[to].member || twins && self.nodes[from].mask >> to & 1 == 0 {
            return;
        }
        let message = match self.nodes[from].manner.is_honest() {
            true => message.clone(),
            false => match self.lied(from, to, message) {
                Some(message) => message,
                None => return,
            },
        };
        self.send_as_is(from, to, epoch, message);
    }

    /// Whatever a liar made of it.
    pub(super) fn send_as_is(&mut self, from: usize, to: usize, epoch: u64, message: Rc<Message>) {
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
            } else if copy == 0 && self.rng.chance(self.cfg.late) {
                at += self.rng.within(100, LATE_MS_MAX);
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
}
