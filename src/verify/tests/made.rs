//! Chains to be verified, made of the very types that nodes encode, with real keys.

use std::{collections::BTreeSet, path::Path};

use crate::{
    config::{Identity, Inputs, MsbNetwork, SharedConfig},
    consensus::{
        header::{
            self, Ancestor, Candidate, ClosedLedger, ExecResult, Genesis, Header, Input, InputKey, Origin, VERSION,
        },
        journal::Record,
        merkle,
        messages::{
            Advance, AdvanceVote, Certificate, Evidence, Message, Novel, Overtime, Precommit, Prevote, Scope, Signable,
            Signed, Tc, Vote,
        },
    },
    crypto::SecretKey,
    ledger::{Outputs, Store, Write},
    types::{Challenge, Execute, Hash, NodeKey, Seq, Sig, Status, UserKey},
    wire,
};

/// Ledgers of the window: few, so that keys leave it.
pub const WINDOW: u64 = 6;

/// A chain being made.
pub struct Made {
    /// First the members at the beginning, ascending by key; then others.
    pub nodes: Vec<SecretKey>,
    /// Members now, ascending.
    pub unl: Vec<NodeKey>,
    pub users: Vec<SecretKey>,
    pub genesis: Genesis,
    pub shared: SharedConfig,
    pub seq: Seq,
    pub hash: Hash,
    pub connected: BTreeSet<UserKey>,
    /// What the last run led to.
    pub result: ExecResult,
    pub time_ms: u64,
    /// What a node writes: ledger by ledger.
    pub writes: Vec<Write>,
    /// Users and keys of inputs that the chain begins with, where it goes on from another.
    pub taken_over: Option<(BTreeSet<UserKey>, BTreeSet<InputKey>)>,
}

pub fn shared() -> SharedConfig {
    SharedConfig {
        threshold: 80,
        time_res_ms: 1_000,
        input_window: WINDOW,
        inputs: Inputs::Any,
        users_max: 4_096,
        pubmaxsize: 1 << 20,
        time_limit_s: 30,
        cpu_s: 0,
        memory_mb: 0,
        files: 1_024,
        processes: 256,
        file_mb: 4_096,
        output_mb: 64,
        output_user_mb: 16,
        npl_window_ms: 500,
        network: false,
        state_mb: 0,
        state_files: 0,
        ledger_inputs_max: 16_384,
        ledger_input_bytes_max: 16 << 20,
        novel_users_max: 4_096,
        npl_frame_bytes_max: 64 << 10,
        npl_ledger_bytes_max: 16 << 20,
        msb_network: MsbNetwork::Mainnet,
        msb_bootstrap: Identity(None),
        msb_subnet: Identity(None),
        settle_every: 1_000,
        settle_max_delay_s: 600,
        settle_slot_s: 4,
        execute: Execute::Closed,
    }
}

/// What goes into a ledger.
#[derive(Default)]
pub struct Plan {
    pub inputs: Vec<Input>,
    pub come: Vec<UserKey>,
    pub go: Vec<UserKey>,
    pub outputs: Outputs,
}

impl Made {
    /// Of `n` nodes, before its first ledger.
    pub fn new(n: u8) -> Made {
        let mut nodes: Vec<SecretKey> = (1..=n).map(|seed| SecretKey::from_seed([seed; 32])).collect();
        nodes.sort_by_key(SecretKey::node_key);
        let unl: Vec<NodeKey> = nodes.iter().map(SecretKey::node_key).collect();
        nodes.extend((50..52).map(|seed| SecretKey::from_seed([seed; 32])));
        let shared = shared();
        let genesis = Genesis {
            ver: VERSION,
            contract_id: Hash([7; 32]),
            unl: unl.clone(),
            threshold: 80,
            cfg_hash: Hash::tagged("hp/cfg/1", &shared),
            state_root: Hash([1; 32]),
            time_ms: 1_700_000_000_123,
            ancestor: None,
        };
        Made {
            nodes,
            unl,
            users: (100..105).map(|seed| SecretKey::from_seed([seed; 32])).collect(),
            seq: 0,
            hash: genesis.chain_id(),
            connected: BTreeSet::new(),
            result: genesis.result(),
            time_ms: genesis.time_ms,
            genesis,
            shared,
            writes: Vec::new(),
            taken_over: None,
        }
    }

    /// The same members with a chain that goes on from this one, with its users and these keys of inputs.
    pub fn recovered(self, keys: BTreeSet<InputKey>) -> Made {
        let users = self.connected.clone();
        let ancestor = Ancestor {
            contract_id: self.genesis.contract_id,
            chain_id: self.genesis.chain_id(),
            seq: self.seq,
            ledger_hash: self.hash,
            users_root: header::users_root(&users),
            n_users: users.len() as u32,
            keys_root: header::keys_root(&keys),
            n_keys: keys.len() as u64,
            binary: None,
        };
        let (state_root, time_ms) = (self.result.state_root, self.time_ms);
        let genesis = Genesis { unl: self.unl.clone(), state_root, time_ms, ancestor: Some(ancestor), ..self.genesis }
            .with_derived_id();
        Made {
            seq: 0,
            hash: genesis.chain_id(),
            result: genesis.result(),
            genesis,
            writes: Vec::new(),
            taken_over: Some((users, keys)),
            ..self
        }
    }

    /// Writes the chain as a node does.
    pub fn store(&self, dir: &Path) {
        let mut store = Store::open(dir).unwrap();
        let settings = wire::encode(&self.shared);
        match &self.taken_over {
            None => {
                store.set_settings(&settings).unwrap();
                store.set_genesis(&self.genesis).unwrap();
            }
            Some((users, keys)) => store.set_recovered(&settings, &self.genesis, users, keys).unwrap(),
        }
        store.load(self.shared.input_window).unwrap();
        // As after its first ledgers.
        store.commit(&[Record::Silence(None).into()]).unwrap();
        store.commit(&self.writes).unwrap();
        store.close().unwrap();
    }

    pub fn scope(&self) -> Scope {
        Scope { chain_id: self.genesis.chain_id(), unl_hash: header::unl_hash(&self.unl) }
    }

    pub fn user(&self, at: usize) -> UserKey {
        self.users[at].user_key()
    }

    pub fn signed<T: Signable>(&self, node: usize, body: T) -> Signed<T> {
        let key = &self.nodes[node];
        let sig = key.sign(&body.digest(&self.scope()).0);
        Signed { from: key.node_key(), body, sig }
    }

    /// An input that its user signed.
    pub fn signed_input(&self, user: usize, nonce: u64, payload: &[u8]) -> Input {
        let origin = Origin::User { sig: Sig([0; 64]) };
        let max_ledger = self.seq + WINDOW;
        let mut input = Input { user: self.user(user), origin, nonce, max_ledger, payload: payload.to_vec() };
        self.sign(&mut input, user);
        input
    }

    /// Signs an input as its user.
    pub fn sign(&self, input: &mut Input, user: usize) {
        let id = input.id(&self.genesis.chain_id());
        input.origin = Origin::User { sig: self.users[user].sign(&id.0) };
    }

    /// An input of a session at a node.
    pub fn session_input(&self, user: usize, host: usize, nonce: u64, payload: &[u8]) -> Input {
        let challenge = Challenge([user as u8; 16]);
        let helo_sig = self.users[user].sign(challenge.to_string().as_bytes());
        let origin = |host_sig| Origin::Session { host: self.nodes[host].node_key(), challenge, helo_sig, host_sig };
        let mut input = Input {
            user: self.user(user),
            origin: origin(Sig([0; 64])),
            nonce,
            max_ledger: self.seq + WINDOW,
            payload: payload.to_vec(),
        };
        let chain_id = self.genesis.chain_id();
        let digest = Input::host_digest(&chain_id, &input.id(&chain_id));
        input.origin = origin(self.nodes[host].sign(&digest.0));
        input
    }

    /// A certificate by these nodes, as lax as they are.
    pub fn certificate<T: Signable>(&self, nodes: &[usize], vote: Vote, wrap: impl Fn(Vote) -> T) -> Certificate {
        let sigs = nodes.iter().map(|node| {
            let signed = self.signed(*node, wrap(vote));
            (signed.from, signed.sig)
        });
        let mut sigs: Vec<_> = sigs.collect();
        sigs.sort_unstable();
        Certificate { vote, sigs }
    }

    /// Members that are enough; one of them after the other is left out.
    pub fn quorum(&self, round: usize) -> Vec<usize> {
        let mut members: Vec<usize> =
            (0..self.nodes.len()).filter(|node| self.unl.contains(&self.node(*node))).collect();
        if members.len() >= 5 {
            members.remove(round % members.len());
        }
        members
    }

    /// The body of the next ledger.
    pub fn candidate(&self, plan: &Plan) -> Candidate {
        let chain_id = self.genesis.chain_id();
        let mut inputs: Vec<Hash> = plan.inputs.iter().map(|input| input.id(&chain_id)).collect();
        inputs.sort_unstable();
        let sorted = |users: &[UserKey]| users.iter().copied().collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>();
        let mut candidate = Candidate {
            header: Header {
                ver: VERSION,
                chain_id,
                seq: self.seq + 1,
                parent: self.hash,
                time_ms: (self.time_ms / 1_000 + 1) * 1_000,
                unl_hash: self.scope().unl_hash,
                next_unl_hash: self.scope().unl_hash,
                users_root: Hash::ZERO,
                n_users: 0,
                inputs_root: header::inputs_root(&inputs),
                n_inputs: inputs.len() as u32,
                inputs_bytes: plan.inputs.iter().map(|input| input.payload.len() as u64).sum(),
                result: self.result.clone(),
                settlement: None,
            },
            inputs,
            users_add: sorted(&plan.come),
            users_del: sorted(&plan.go),
            unl_change: None,
        };
        let users = candidate.users_after(&self.connected);
        candidate.header.users_root = header::users_root(&users);
        candidate.header.n_users = users.len() as u32;
        candidate
    }

    /// Closes a ledger; `change` may lie in its body, and the nodes all sign that.
    pub fn close(&mut self, plan: Plan, change: impl FnOnce(&mut Candidate)) {
        let mut candidate = self.candidate(&plan);
        change(&mut candidate);
        let hash = candidate.header.hash();
        let vote = Vote { seq: candidate.header.seq, attempt: 0, ledger_hash: hash };
        // One of the quorum after the other is missing.
        let signers = self.quorum(self.seq as usize);
        let qc = self.certificate(&signers, vote, Precommit);
        self.writes.extend(plan.inputs.iter().map(|input| Record::Input(Box::new(input.clone())).into()));
        self.connected = candidate.users_after(&self.connected);
        if let Some(unl) = candidate.unl_change.and_then(|change| change.apply(&self.unl)) {
            self.unl = unl;
        }
        self.seq += 1;
        self.hash = hash;
        self.time_ms = candidate.header.time_ms;
        self.writes.push(Record::Ledger(Box::new(ClosedLedger { candidate, qc })).into());

        let leaves = plan.outputs.iter().map(|(user, output)| merkle::output_leaf(user, output)).collect();
        self.result = ExecResult {
            of_seq: self.seq,
            of_hash: hash,
            state_root: Hash::tagged("test/state", &(self.result.state_root, self.seq)),
            outputs_root: merkle::root(leaves),
            status: Status::Ok,
            unl_req: None,
        };
        self.writes.push(Write::Outputs { seq: self.seq, outputs: plan.outputs });
        self.writes.push(Record::Result(Box::new(self.signed(0, self.result.clone()))).into());
    }

    /// A ledger with a bit of everything.
    pub fn full(&mut self) -> Plan {
        let nonce = self.seq;
        let mut come: Vec<UserKey> =
            (0..4).map(|at| self.user(at)).filter(|user| !self.connected.contains(user)).collect();
        // One user comes and goes with every ledger.
        let guest = self.user(4);
        let go: Vec<UserKey> = self.connected.get(&guest).copied().into_iter().collect();
        if go.is_empty() {
            come.push(guest);
        }
        Plan {
            inputs: vec![
                self.signed_input(0, nonce, b"signed"),
                self.signed_input(1, nonce, &[nonce as u8; 300]),
                self.session_input(0, 1, 2 * nonce, b"raw"),
                self.session_input(2, 2, 2 * (1_000 + nonce), b""),
            ],
            come,
            go,
            outputs: vec![self.user(0), self.user(1), self.user(3)]
                .into_iter()
                .map(|user| (user, nonce.to_le_bytes().to_vec()))
                .collect::<std::collections::BTreeMap<_, _>>()
                .into_iter()
                .collect(),
        }
    }

    /// What the first node says about the next ledger, in two attempts, and an input and a proof that lie about.
    pub fn vote(&mut self) {
        let inputs = vec![self.signed_input(3, 77, b"waits"), self.session_input(1, 0, 78, b"waits too")];
        let plan = Plan { inputs, ..Plan::default() };
        let candidate = self.candidate(&plan);
        let seq = self.seq + 1;
        let novel = |slot: u64| Novel {
            seq,
            parent: self.hash,
            time_slot: slot,
            users_add: vec![],
            users_del: vec![],
            inputs: candidate.inputs.clone(),
            unl_vote: None,
            settlement: None,
        };
        let vote = |attempt| Vote { seq, attempt, ledger_hash: candidate.header.hash() };
        let quorum = self.quorum(4);
        let polc = |attempt| self.certificate(&quorum, vote(attempt), Prevote);
        let high = Some((0, candidate.header.hash()));
        let advance = |node| self.signed(node, AdvanceVote { seq, attempt: 1, high });
        let mut votes: Vec<_> = quorum.iter().map(|node| advance(*node)).collect();
        votes.sort_by_key(|vote| vote.from);
        let body = || Box::new(candidate.clone());
        let conflict = |slot| wire::encode(&Message::Novel(self.signed(4, novel(slot))));
        let mut said: Vec<Write> =
            plan.inputs.iter().map(|input| Record::Input(Box::new(input.clone())).into()).collect();
        said.extend([
            Record::Novel(Box::new(self.signed(0, novel(1)))).into(),
            Record::Prevote(self.signed(0, Prevote(vote(0))), body()).into(),
            Record::Precommit(self.signed(0, Precommit(vote(0))), body(), polc(0)).into(),
            Record::Advance(Box::new(Advance { vote: advance(0), polc: Some(polc(0)) })).into(),
            Record::Entered(Tc { votes }, Some(polc(0))).into(),
            Record::Prevote(self.signed(0, Prevote(vote(1))), body()).into(),
            Record::Overtime(Box::new(self.signed(0, Overtime { of_seq: self.seq, of_hash: self.hash }))).into(),
            Write::Evidence(Box::new(Evidence {
                signer: self.nodes[4].node_key(),
                first: conflict(1),
                second: conflict(2),
            })),
        ]);
        self.writes.extend(said);
    }

    pub fn node(&self, at: usize) -> NodeKey {
        self.nodes[at].node_key()
    }
}
