//! What members that lie say instead, and what they say besides.

use std::rc::Rc;

use hotpocket::{
    consensus::{
        header::{Candidate, Header, Input, Origin, UnlChange},
        messages::{
            Advance, AdvanceVote, Basis, Certificate, Closed, Message, Novel, Precommit, Presence, Prevote, Propose,
            Signed, Vote, VoteKind as _,
        },
        votes::ATTEMPTS_MAX,
    },
    types::{Attempt, Challenge, Hash, NodeKey, Sig, UserKey},
};

use super::{
    super::{crypto::TableCrypto, rng::Rng},
    Ev, Manner, World,
};

/// Messages that a spammer remembers. The oldest goes for a new one.
const HEARD_MAX: usize = 200;
/// Messages that a liar sends besides, each time.
const BURST: usize = 6;
/// How long somebody with a crowd claims the same users.
const CROWD_MS: u64 = 500;

impl Manner {
    /// Every way of lying, for random runs.
    pub const LIES: [Manner; 10] = [
        Manner::Twins,
        Manner::Equivocates,
        Manner::Withholds,
        Manner::Silent,
        Manner::LiesOfResults,
        Manner::HidesPolcs,
        Manner::Proposes,
        Manner::Spams,
        Manner::Rushes,
        Manner::Forges,
    ];

    /// Whether it says things that nobody asked for.
    fn is_busy(self) -> bool {
        matches!(self, Manner::Proposes | Manner::Spams | Manner::Rushes | Manner::Forges | Manner::Crowds)
    }
}

impl World {
    /// What a liar makes of a message for one receiver; `None` when it keeps it.
    pub(super) fn lied(&mut self, from: usize, to: usize, message: &Rc<Message>) -> Option<Rc<Message>> {
        let bus_lie = match &**message {
            Message::Novel(m) => self.bus_lie(m.body.seq),
            _ => None,
        };
        let me = &mut self.nodes[from];
        let key = me.key;
        let core = me.core.as_ref()?;
        let (scope, crypto) = (core.scope(), TableCrypto(key));
        let lie = match (me.manner, &**message) {
            (Manner::Silent, _) | (Manner::Withholds, Message::Input(_)) => return None,
            (Manner::Equivocates, _) => return self.twisted(from, to, message),
            (Manner::LiesOfResults, Message::Result(m)) if m.from == key => {
                let mut body = m.body.clone();
                body.outputs_root = Hash([65; 32]);
                Message::Result(crypto.signed(body, &scope))
            }
            // What nobody saw on the settlement bus: all of them say the same.
            (Manner::LiesOfResults | Manner::HidesPolcs | Manner::Withholds, Message::Novel(m))
                if m.from == key && bus_lie.is_some() =>
            {
                self.watch.seen.hit("lies about the bus");
                Message::Novel(crypto.signed(Novel { settlement: bus_lie, ..m.body.clone() }, &scope))
            }
            // To some it hides that there is a POLC, to the others the POLC.
            (Manner::HidesPolcs, Message::Advance(m)) if m.vote.from == key => {
                let bare = (me.mask >> to) & 1 == 1;
                let high = m.vote.body.high.filter(|_| bare);
                Message::Advance(Advance {
                    vote: crypto.signed(AdvanceVote { high, ..m.vote.body }, &scope),
                    polc: None,
                })
            }
            (Manner::HidesPolcs, Message::TcFwd(m)) => {
                let mut forward = m.clone();
                forward.polc = None;
                Message::TcFwd(forward)
            }
            (Manner::Proposes, Message::Propose(m)) if m.from == key => {
                me.proposed = Some(m.clone());
                return Some(message.clone());
            }
            // It votes for all of them, and for nobody's leaving.
            (Manner::Crowds, Message::Novel(m)) if m.from == key => {
                let crowds = (0..self.nodes.len()).flat_map(|to| self.crowd(to));
                let users_add: std::collections::BTreeSet<UserKey> = crowds.collect();
                let (users_add, users_del) = (users_add.into_iter().collect(), Vec::new());
                Message::Novel(crypto.signed(Novel { users_add, users_del, ..m.body.clone() }, &scope))
            }
            (Manner::Forges, Message::Candidate(m)) => {
                let mut body = m.clone();
                body.inputs.pop();
                body.users_add.clear();
                Message::Candidate(body)
            }
            _ => return Some(message.clone()),
        };
        Some(Rc::new(lie))
    }

    /// A spammer has heard something.
    pub(super) fn hear(&mut self, node: usize, message: &Message) {
        let heard = &mut self.nodes[node].heard;
        heard.push_back(Rc::new(message.clone()));
        if heard.len() > HEARD_MAX {
            heard.pop_front();
        }
    }

    /// A liar that has more to say than others began to run.
    pub(super) fn plan_mischief(&mut self, node: usize) {
        if self.nodes[node].manner.is_busy() {
            let (at, life) = (self.now + self.rng.within(10, 100), self.nodes[node].life);
            self.push(at, Ev::Mischief { node, life });
        }
    }

    /// It says it.
    pub(super) fn mischief(&mut self, node: usize) {
        for _ in 0..BURST {
            let to = self.rng.index(self.nodes.len());
            if let Some(epoch) = self.nodes[node].view[to]
                && let Some(message) = self.invented(node, to)
            {
                self.watch.seen.hit("things said that nobody asked for");
                self.send_as_is(node, to, epoch, Rc::new(message));
            }
        }
        self.plan_mischief(node);
    }

    /// The users that somebody with a crowd claims to one node now.
    fn crowd(&self, to: usize) -> Vec<UserKey> {
        let user = |at: usize| UserKey(Hash::tagged("sim/crowd", &(to as u64, at as u64, self.now / CROWD_MS)).0);
        let mut users: Vec<UserKey> = (0..self.cfg.users_max).map(user).collect();
        users.sort_unstable();
        users
    }

    fn invented(&mut self, node: usize, to: usize) -> Option<Message> {
        let me = &self.nodes[node];
        let core = me.core.as_ref()?;
        let (scope, crypto, seq) = (core.scope(), TableCrypto(me.key), core.round_seq());
        let attempt = core.summary().attempt;
        let message = match me.manner {
            Manner::Spams if me.heard.is_empty() => return None,
            Manner::Spams => (*me.heard[self.rng.index(me.heard.len())]).clone(),
            Manner::Rushes => {
                let far = [1, 2, 7, 8, 9, 10, 1000, ATTEMPTS_MAX - 1, ATTEMPTS_MAX];
                let attempt = attempt.saturating_add(self.rng.pick(&far));
                let high = self.rng.pick(&[None, None, Some((attempt - 1, Hash([64; 32])))]);
                Message::Advance(Advance {
                    vote: crypto.signed(AdvanceVote { seq, attempt, high }, &scope),
                    polc: None,
                })
            }
            Manner::Proposes => {
                // Its turn comes now and then; it proposes for it without end, each time by novels that nobody has.
                let Signed { body, .. } = me.proposed.clone().filter(|propose| propose.body.seq == seq)?;
                let mut body: Propose = body;
                if let Basis::Novels(novels, _) = &mut body.basis {
                    for (_, id) in novels.iter_mut() {
                        *id = Hash([self.rng.index(256) as u8; 32]);
                    }
                }
                body.ledger_hash = Hash([self.rng.index(256) as u8; 32]);
                Message::Propose(crypto.signed(body, &scope))
            }
            Manner::Crowds if self.rng.chance(30) => {
                let (boot, counter, up) = (Hash([70; 32]), self.now, self.crowd(to));
                Message::Presence(crypto.signed(Presence { boot, counter, full: true, up, down: vec![] }, &scope))
            }
            Manner::Crowds => {
                let mut user = [0; 32];
                user[..8].copy_from_slice(&self.rng.next().to_le_bytes());
                let (challenge, sig) = (Challenge([0; 16]), Sig([1; 64]));
                let origin = Origin::Session { host: me.key, challenge, helo_sig: sig, host_sig: sig };
                let max_ledger = seq + self.cfg.input_window - 1;
                Message::Input(Input { user: UserKey(user), origin, nonce: 0, max_ledger, payload: vec![b'z'] })
            }
            Manner::Forges => {
                let (last, _) = me.disk.history.last()?;
                let Candidate { header, .. } = &last.candidate;
                let next = Header { seq: header.seq + 1, parent: header.hash(), ..header.clone() };
                // A ledger that nobody voted for, or the last one with a certificate that is none.
                let header = if self.rng.chance(50) { next } else { header.clone() };
                let vote = Vote { seq: header.seq, attempt: self.rng.index(3) as Attempt, ledger_hash: header.hash() };
                let mine = crypto.signed(Precommit::of(vote), &scope).sig;
                let signers = core.unl().iter().copied();
                let sigs = match self.rng.index(3) {
                    // Mine under each name, mine as often as is needed, too few.
                    0 => signers.map(|signer| (signer, if signer == me.key { mine } else { Sig([1; 64]) })).collect(),
                    1 => signers.map(|_| (me.key, mine)).collect(),
                    _ => vec![(me.key, mine)],
                };
                Message::Closed(Closed { header, qc: Certificate { vote, sigs } })
            }
            _ => return None,
        };
        Some(message)
    }

    /// What an equivocator makes of a message for one receiver.
    fn twisted(&mut self, from: usize, to: usize, message: &Rc<Message>) -> Option<Rc<Message>> {
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

/// What a forger makes of an answer about closed ledgers.
pub(super) fn forged(mut answer: Message, rng: &mut Rng) -> Message {
    match &mut answer {
        Message::Closed(closed) => closed.header.time_ms += 1,
        Message::Candidate(candidate) => candidate.users_add.push(UserKey([77; 32])),
        Message::Range(range) => {
            let count = range.ledgers.len();
            let Some(ledger) = (count > 0).then(|| &mut range.ledgers[rng.index(count)]) else { return answer };
            match rng.index(6) {
                0 => ledger.candidate.header.time_ms += 1,
                1 => ledger.qc.sigs[0].1 = Sig([7; 64]),
                2 => ledger.qc.sigs.truncate(1),
                3 => ledger.candidate.users_add.push(UserKey([77; 32])),
                4 => ledger.candidate.inputs.push(Hash([0xff; 32])),
                _ => range.ledgers.reverse(),
            }
        }
        Message::Headers(headers) => {
            let count = headers.ledgers.len();
            let Some(ledger) = (count > 0).then(|| &mut headers.ledgers[rng.index(count)]) else { return answer };
            match rng.index(6) {
                0 => ledger.header.time_ms += 1,
                1 => ledger.qc.sigs[0].1 = Sig([7; 64]),
                2 => ledger.qc.sigs.truncate(1),
                3 => ledger.unl_change = Some(UnlChange::Add(NodeKey([99; 32]))),
                4 => headers.oldest = 1,
                _ => headers.ledgers.reverse(),
            }
        }
        Message::Users(page) => match rng.index(3) {
            0 => page.users.push(UserKey([0xff; 32])),
            1 => page.users = vec![UserKey([0; 32])],
            _ => page.users.reverse(),
        },
        _ => {}
    }
    answer
}
