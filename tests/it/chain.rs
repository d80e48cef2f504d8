//! A chain that many nodes have closed and run, written into their folders without running them: a network that is far
//! ahead, in a moment. Its contract is `true`, which changes nothing and says nothing.

use std::collections::{BTreeMap, BTreeSet};

use hotpocket::{
    config::Config,
    consensus::{
        header::{
            Candidate, ClosedLedger, ExecResult, Genesis, Header, Input, Origin, VERSION, inputs_root, unl_hash,
            users_root,
        },
        journal::Record,
        messages::{Certificate, Precommit, Scope, Signable, Signed, Vote},
    },
    crypto::SecretKey,
    ledger::{Store, Write},
    types::{Hash, Status, UserKey},
    wire,
};

use crate::net::TestNode;

/// The contract of such a chain.
pub const CONTRACT: &str = "/bin/true";
/// Ledgers in one commit.
const BATCH: usize = 250;

/// How a chain looks.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Ledgers.
    pub len: u64,
    /// Every how many ledgers there is one with an input of a few bytes, of one of ten users; 0 for never.
    pub input_every: u64,
    /// A ledger with three inputs of 600,000 bytes, which do not fit into one answer.
    pub large_at: Option<u64>,
}

/// Ledgers, and what each run led to.
pub struct Chain {
    genesis: Genesis,
    pub ledgers: Vec<(ClosedLedger, Vec<Input>, ExecResult)>,
}

impl Chain {
    /// For the network that the first of these nodes is configured for, certified by the first quorum of them.
    pub fn new(nodes: &[TestNode], shape: Shape) -> Chain {
        let config = Config::load(&nodes[0].dir).expect("a configuration");
        // Of a folder without files.
        let root = Hash::ZERO;
        let genesis = Genesis {
            ver: VERSION,
            contract_id: config.contract.id,
            unl: config.unl.clone(),
            threshold: u8::try_from(config.consensus.threshold).expect("at most 100"),
            cfg_hash: config.cfg_hash(),
            state_root: root,
            time_ms: config.contract.genesis_time_ms,
            ancestor: None,
        };
        let quorum = (genesis.unl.len() * usize::from(genesis.threshold)).div_ceil(100);
        let signers: BTreeMap<_, &SecretKey> = nodes
            .iter()
            .take(quorum)
            .filter_map(|node| node.secret.as_ref())
            .map(|key| (key.node_key(), key))
            .collect();
        let scope = Scope { chain_id: genesis.chain_id(), unl_hash: unl_hash(&genesis.unl) };
        let mut chain = Chain { genesis, ledgers: Vec::new() };
        let mut users: BTreeSet<UserKey> = BTreeSet::new();
        for seq in 1..=shape.len {
            let inputs = inputs(seq, &shape, &scope.chain_id, config.consensus.input_window);
            let parent = chain.ledgers.last().map_or(scope.chain_id, |(ledger, ..)| ledger.qc.vote.ledger_hash);
            let result = chain.ledgers.last().map_or_else(|| chain.genesis.result(), |(.., result)| result.clone());
            let came: BTreeSet<UserKey> =
                inputs.iter().map(|input| input.user).filter(|it| !users.contains(it)).collect();
            users.extend(&came);
            let mut ids: Vec<Hash> = inputs.iter().map(|input| input.id(&scope.chain_id)).collect();
            ids.sort_unstable();
            let header = Header {
                ver: VERSION,
                chain_id: scope.chain_id,
                seq,
                parent,
                time_ms: chain.genesis.time_ms,
                unl_hash: scope.unl_hash,
                next_unl_hash: scope.unl_hash,
                users_root: users_root(&users),
                n_users: users.len() as u32,
                inputs_root: inputs_root(&ids),
                n_inputs: ids.len() as u32,
                inputs_bytes: inputs.iter().map(|input| input.payload.len() as u64).sum(),
                result,
                settlement: None,
            };
            let vote = Vote { seq, attempt: 0, ledger_hash: header.hash() };
            let digest = Precommit(vote).digest(&scope);
            let sigs = signers.iter().map(|(signer, key)| (*signer, key.sign(&digest.0))).collect();
            let result = ExecResult {
                of_seq: seq,
                of_hash: vote.ledger_hash,
                state_root: root,
                outputs_root: Hash::ZERO,
                status: Status::Ok,
                unl_req: None,
            };
            let users_add = came.into_iter().collect();
            let candidate = Candidate { header, inputs: ids, users_add, users_del: vec![], unl_change: None };
            chain.ledgers.push((ClosedLedger { candidate, qc: Certificate { vote, sigs } }, inputs, result));
        }
        chain
    }

    /// Signs something in this chain.
    pub fn signed<T: Signable>(&self, key: &SecretKey, body: T) -> Signed<T> {
        let scope = Scope { chain_id: self.genesis.chain_id(), unl_hash: unl_hash(&self.genesis.unl) };
        let sig = key.sign(&body.digest(&scope).0);
        Signed { from: key.node_key(), body, sig }
    }

    /// Writes it into a node's folder, as if the node had closed and run all of it.
    pub fn write(&self, node: &TestNode) {
        self.write_first(node, self.ledgers.len());
    }

    /// The same of so many ledgers.
    pub fn write_first(&self, node: &TestNode, len: usize) {
        let secret = node.secret.as_ref().expect("a node of this network");
        let config = Config::load(&node.dir).expect("a configuration");
        let mut store = Store::open(&node.dir).expect("a new database");
        store.set_settings(&wire::encode(&config.shared())).expect("stored");
        store.set_genesis(&self.genesis).expect("stored");
        // What is too old by the window is deleted as it is by a node.
        store.load(config.consensus.input_window).expect("a new database");
        for ledgers in self.ledgers[..len].chunks(BATCH) {
            let mut batch: Vec<Write> = Vec::new();
            for (ledger, inputs, result) in ledgers {
                batch.extend(inputs.iter().map(|input| Record::Input(Box::new(input.clone())).into()));
                batch.push(Record::Ledger(Box::new(ledger.clone())).into());
                batch.push(Write::Outputs { seq: result.of_seq, outputs: vec![] });
                batch.push(Record::Result(Box::new(self.signed(secret, result.clone()))).into());
            }
            store.commit(&batch).expect("stored");
        }
        store.close().expect("closed");
    }
}

fn inputs(seq: u64, shape: &Shape, chain_id: &Hash, input_window: u64) -> Vec<Input> {
    let sizes: &[usize] = match seq {
        seq if Some(seq) == shape.large_at => &[600_000; 3],
        seq if shape.input_every > 0 && seq % shape.input_every == 0 => &[20],
        _ => &[],
    };
    let signed = |(at, size): (usize, &usize)| {
        let key = SecretKey::from_seed([100 + (seq % 10) as u8; 32]);
        let (origin, nonce) = (Origin::User { sig: key.sign(b"") }, 10 * seq + at as u64);
        let payload = vec![b'x'; *size];
        let mut input =
            Input { user: key.user_key(), origin, nonce, max_ledger: seq + (input_window - 1).min(1_000), payload };
        input.origin = Origin::User { sig: key.sign(&input.id(chain_id).0) };
        input
    };
    sizes.iter().enumerate().map(signed).collect()
}
