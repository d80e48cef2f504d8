//! Users: they come, go, send inputs, and send them again.

use hotpocket::{
    consensus::{
        Event, LocalInput,
        header::{Input, Origin},
        messages::Message,
    },
    types::{Challenge, Hash, Sig, UserKey},
};

use super::World;

impl World {
    pub(super) fn any_honest(&mut self) -> Option<usize> {
        // An observer takes no inputs that it would have to vouch for.
        let serves = |node: &usize| {
            let node = &self.nodes[*node];
            node.manner.is_honest() && node.core.as_ref().is_some_and(|core| core.unl().contains(&node.key))
        };
        let honest: Vec<usize> = (0..self.cfg.singles()).filter(serves).collect();
        (!honest.is_empty()).then(|| honest[self.rng.index(honest.len())])
    }

    pub(super) fn any_user(&mut self) -> UserKey {
        UserKey([100 + self.rng.index(6) as u8; 32])
    }

    /// A user opens a session at a node.
    pub fn user_up(&mut self, node: usize, user: UserKey) {
        self.sessions += 1;
        self.nodes[node].users.insert(user, self.sessions);
        self.handle(node, Event::UserUp(user));
    }

    /// Some user of the node sends an input in its session.
    pub fn input(&mut self, node: usize, payload: Vec<u8>) {
        let user = self.any_user();
        if !self.nodes[node].users.contains_key(&user) {
            self.user_up(node, user);
        }
        let Some(session) = self.nodes[node].users.get(&user) else { return };
        let mut challenge = [0; 16];
        challenge[..8].copy_from_slice(&session.to_le_bytes());
        let next = self.numbers.entry(*session).or_insert(0);
        let nonce = *next;
        *next += 1;
        let local = LocalInput { user, challenge: Challenge(challenge), helo_sig: Sig([0; 64]), nonce, payload };
        self.handle(node, Event::LocalInput(local));
    }

    pub(super) fn signed_input(&mut self) {
        let Some(tip) = self.any_honest().map(|node| self.nodes[node].disk.journal.seq()) else { return };
        let again = self.signed_nonce > 0 && self.rng.chance(30);
        let nonce = if again { self.rng.within(1, self.signed_nonce) } else { self.signed_nonce + 1 };
        self.signed_nonce = self.signed_nonce.max(nonce);
        let user = UserKey([200 + (nonce % 4) as u8; 32]);
        let max_ledger = tip + 1 + self.rng.within(0, self.cfg.input_window + 3);
        let payload = vec![b'y'; self.rng.index(50)];
        let input = Input { user, origin: Origin::User { sig: Sig([1; 64]) }, nonce, max_ledger, payload };
        if again {
            let id = input.id(&self.watch.chain_id());
            self.watch.rivals.insert(id);
            let first: Vec<Hash> = self
                .sent_inputs
                .iter()
                .filter(|other| other.key() == input.key())
                .map(|other| other.id(&self.watch.chain_id()))
                .collect();
            self.watch.rivals.extend(first);
        }
        self.sent_inputs.push(input.clone());
        if self.cfg.n == 1 {
            return;
        }
        // Half of them come from a user, who may have sent the same elsewhere; half from peers.
        let from_user = nonce.is_multiple_of(2);
        for to in 0..self.cfg.n {
            if self.rng.chance(40) {
                let from = (to + 1) % self.cfg.n;
                let event = match from_user {
                    true => Event::SignedInput(input.clone()),
                    false => Event::Message(self.nodes[from].key, Message::Input(input.clone())),
                };
                self.handle(to, event);
            }
        }
    }
}
