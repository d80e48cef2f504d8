//! Peers that speak the real protocol and say everything far too often: a member with its key, strangers with theirs,
//! and strangers that ask and never read. The nodes' memory stays within a bound, and rounds go on.

use std::{
    cell::Cell,
    collections::BTreeSet,
    fs,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use hotpocket::{
    consensus::{
        details::{Changed, Known, PathKind, PathState, Piece, PieceRef, Thing},
        header::{Candidate, ExecResult, Genesis, Header, Input, Origin},
        merkle::Proof,
        messages::{
            Advance, AdvanceVote, Basis, Certificate, Closed, Details, Evidence, Get, Message, Novel, Npl, NplEnd,
            Overtime, Precommit, Presence, Prevote, Propose, Range, ResultCert, Scope, Signable, Signed, StatusMsg, Tc,
            TcFwd, Vote,
        },
    },
    crypto::SecretKey,
    ledger::Store,
    mesh::{Admit, Class, Mesh, MeshConfig, MeshEvent, SendError},
    types::{Hash, NodeKey, Seq, Sig, Status, UserKey},
    wire::{self, Hello, PROTOCOL},
};
use nix::sys::signal::Signal;
use tokio::{sync::mpsc, time::sleep};

use super::crowd::Crowd;
use crate::net::{DEADLINE, Net, block_on_for, plain, record, until};

/// The most memory a node may ever have had. A quiet node of a debug build has 20 MiB; a member may fill a quarter of
/// the pool (16 MiB) and the party line of four ledgers (68 MiB), strangers another quarter; for all strangers together
/// 128 MiB may wait, and 64 MiB for the disk.
const RSS_MAX_MIB: u64 = 400;

/// Of each kind of message, to each node, from one peer: this many, or this many bytes.
const KIND_MESSAGES: u64 = 200;
const KIND_BYTES: usize = 4 << 20;

/// Strangers that read nothing. For each alone 32 MiB could wait, of inputs as long as these.
const DEAF: usize = 16;
/// How often each of them asks for 14 MiB.
const ASKED: usize = 4;

/// Where the network stands, as its nodes tell everybody.
#[derive(Clone, Copy)]
struct At {
    seq: Seq,
    lcl: Hash,
}

/// A peer with a voice.
struct Voice {
    secret: SecretKey,
    scope: Scope,
    unl: Vec<NodeKey>,
    mesh: Mesh,
    at: Arc<Mutex<At>>,
    /// So that nothing is said twice.
    number: Cell<u64>,
}

/// Everything that a peer can say.
const KINDS: [&str; 22] = [
    "INPUT",
    "INPUT, empty",
    "PRESENCE",
    "NOVEL",
    "RESULT",
    "OVERTIME",
    "PREVOTE",
    "PRECOMMIT",
    "ADVANCE",
    "TCFWD",
    "PROPOSE",
    "CLOSED",
    "GET",
    "BODY",
    "STATUS",
    "NPL",
    "NPL_END",
    "DETAILS",
    "RANGE",
    "PIECE",
    "EVIDENCE",
    "noise",
];

impl Voice {
    async fn new(secret: SecretKey, hello: &Hello, peers: &[(String, u16)], listens: bool) -> Voice {
        let genesis = hello.genesis.clone();
        let (events, mut heard) = mpsc::channel(if listens { 256 } else { 1 });
        let mesh = Mesh::start(
            MeshConfig {
                key: secret.clone(),
                listen: (std::net::Ipv4Addr::LOCALHOST, 0).into(),
                peers: peers.to_vec(),
                unl: genesis.unl.iter().copied().filter(|node| *node != secret.node_key()).collect(),
                admit: Admit::Open,
                connections_max: 50,
                hello: wire::encode(&Hello { boot: Hash(secret.seed()), ..hello.clone() }),
                check_hello: Box::new(|_, _| Ok(())),
            },
            events,
        )
        .await
        .expect("a port");
        let chain_id = genesis.chain_id();
        let at = Arc::new(Mutex::new(At { seq: 0, lcl: chain_id }));
        let known = at.clone();
        tokio::spawn(async move {
            // The channel is kept open by whoever does not read it.
            while listens && let Some(event) = heard.recv().await {
                let MeshEvent::Frame { bytes, .. } = event else { continue };
                if let Ok(Message::Novel(novel)) = wire::decode(&bytes) {
                    *known.lock().expect("no panic") = At { seq: novel.body.seq - 1, lcl: novel.body.parent };
                }
            }
            std::future::pending::<()>().await;
            drop(heard);
        });
        let scope = Scope { chain_id, unl_hash: hotpocket::consensus::header::unl_hash(&genesis.unl) };
        Voice { secret, scope, unl: genesis.unl, mesh, at, number: Cell::new(0) }
    }

    fn next(&self) -> u64 {
        self.number.set(self.number.get() + 1);
        self.number.get()
    }

    fn hash(&self) -> Hash {
        Hash::tagged("some", &(self.secret.node_key(), self.next()))
    }

    fn hashes(&self, count: usize) -> Vec<Hash> {
        (0..count).map(|_| self.hash()).collect::<BTreeSet<Hash>>().into_iter().collect()
    }

    fn users(&self, count: usize) -> Vec<UserKey> {
        self.hashes(count).into_iter().map(|hash| UserKey(hash.0)).collect()
    }

    fn sign<T: Signable>(&self, body: T) -> Signed<T> {
        let sig = self.secret.sign(&body.digest(&self.scope).0);
        Signed { from: self.secret.node_key(), body, sig }
    }

    fn input(&self, bytes: usize, max_ledger: Seq) -> Input {
        let mut input = Input {
            user: self.secret.user_key(),
            origin: Origin::User { sig: Sig([0; 64]) },
            nonce: self.next(),
            max_ledger,
            payload: vec![7; bytes],
        };
        let id = input.id(&self.scope.chain_id);
        input.origin = Origin::User { sig: self.secret.sign(&id.0) };
        input
    }

    fn result(&self, of_seq: Seq, of_hash: Hash) -> ExecResult {
        let (state_root, outputs_root) = (self.hash(), self.hash());
        ExecResult { of_seq, of_hash, state_root, outputs_root, status: Status::Ok, unl_req: None }
    }

    /// One of a kind, and another one each time.
    fn say(&self, kind: &str) -> Vec<u8> {
        let At { seq: tip, lcl } = *self.at.lock().expect("no panic");
        let number = self.next();
        // The round, the next one, and one beyond.
        let seq = tip + 1 + number % 3;
        let attempt = u32::try_from(match number % 4 {
            0 => 0,
            1 => number % 12,
            2 => number,
            _ => u64::from(u32::MAX) - number,
        })
        .expect("below the end");
        let vote = || Vote { seq, attempt, ledger_hash: self.hash() };
        // As long as a frame may be, and right to the first look.
        let certificate = |count| Certificate { vote: vote(), sigs: vec![(self.unl[0], Sig([9; 64])); count] };
        let advance = || self.sign(AdvanceVote { seq, attempt, high: None });
        let novel = || Novel {
            seq,
            parent: lcl,
            time_slot: number,
            users_add: self.users(1_000),
            users_del: self.users(1_000),
            inputs: self.hashes(4_000),
            unl_vote: None,
            settlement: None,
        };
        let header = || Header {
            ver: 1,
            chain_id: self.scope.chain_id,
            seq,
            parent: lcl,
            time_ms: number,
            unl_hash: self.scope.unl_hash,
            next_unl_hash: self.scope.unl_hash,
            users_root: self.hash(),
            n_users: 0,
            inputs_root: self.hash(),
            n_inputs: 4_000,
            inputs_bytes: 0,
            result: self.result(tip, lcl),
            settlement: None,
        };
        let message = match kind {
            // The one is ledgered, the other waits for as long as an input may.
            "INPUT" => {
                Message::Input(self.input(512 << 10, tip + [1_000, 65_536][usize::from(number.is_multiple_of(2))]))
            }
            "INPUT, empty" => Message::Input(self.input(0, tip + 65_536)),
            "PRESENCE" => {
                let (up, down) = (self.users(8_000), self.users(8_000));
                let boot = Hash(self.secret.seed());
                Message::Presence(self.sign(Presence {
                    boot,
                    counter: number,
                    full: number.is_multiple_of(2),
                    up,
                    down,
                }))
            }
            "NOVEL" => Message::Novel(self.sign(novel())),
            "RESULT" => Message::Result(self.sign(self.result(seq - 1, lcl))),
            "OVERTIME" => Message::Overtime(self.sign(Overtime { of_seq: seq - 1, of_hash: self.hash() })),
            "PREVOTE" => Message::Prevote(self.sign(Prevote(vote()))),
            "PRECOMMIT" => Message::Precommit(self.sign(Precommit(vote()))),
            "ADVANCE" => Message::Advance(Advance { vote: advance(), polc: Some(certificate(5_000)) }),
            "TCFWD" => {
                let tc = Tc { votes: vec![advance(); 10_000] };
                Message::TcFwd(TcFwd { seq, tc, polc: Some(certificate(5_000)) })
            }
            "PROPOSE" => {
                let cert = ResultCert { result: self.result(tip, lcl), sigs: certificate(5_000).sigs };
                let novels = self.hashes(5_000).into_iter().map(|hash| (self.unl[0], hash)).collect();
                let (tc, basis) = (Tc { votes: vec![advance(); 100] }, Basis::Novels(novels, cert));
                Message::Propose(self.sign(Propose { seq, attempt, ledger_hash: self.hash(), tc, basis }))
            }
            "CLOSED" => Message::Closed(Closed { header: header(), qc: certificate(10_000) }),
            "PIECE" => {
                let piece = match number % 2 {
                    0 => Piece::Block(vec![7; 64 << 10]),
                    _ => Piece::Known(known(self.hashes(16_384))),
                };
                Message::Piece(Box::new((piece_ref(tip, lcl, number), piece)))
            }
            "GET" => Message::Get(match number % 7 {
                0 => Get::Candidate(self.hash()),
                1 => Get::Novel(self.hash()),
                2 => Get::Inputs(self.hashes(1_024)),
                3 => Get::Presence,
                4 => Get::Range(1, u64::MAX),
                5 => Get::Piece(piece_ref(tip, lcl, number)),
                _ => Get::Details(tip),
            }),
            "BODY" => {
                let (inputs, users_add, users_del) = (self.hashes(4_000), self.users(1_000), Vec::new());
                Message::Candidate(Candidate { header: header(), inputs, users_add, users_del, unl_change: None })
            }
            "STATUS" => {
                let seq = [tip, tip / 2, u64::MAX - number, tip + 1][usize::try_from(number % 4).expect("small")];
                Message::Status(self.sign(StatusMsg { seq, lcl: self.hash(), attempt, synced: true }))
            }
            "NPL" => {
                // Every second one for a run that nobody knows yet.
                let ledger_hash = if number.is_multiple_of(2) { lcl } else { Hash::tagged("run", &(number % 32)) };
                Message::Npl(self.sign(Npl { ledger_hash, counter: number, data: vec![7; 64 << 10] }))
            }
            "NPL_END" => Message::NplEnd(self.sign(NplEnd { ledger_hash: self.hash(), frames: number })),
            "DETAILS" => Message::Details(Box::new(Details {
                result: self.result(tip, lcl),
                changed: self
                    .hashes(1_000)
                    .into_iter()
                    .map(|hash| changed([vec![b'x'; 100], hash.0.to_vec()].concat(), hash))
                    .collect(),
                outputs: Vec::new(),
            })),
            "RANGE" => {
                let inputs = vec![self.input(512 << 10, tip + 1_000)];
                Message::Range(Box::new(Range { first: seq, oldest: number, ledgers: Vec::new(), inputs }))
            }
            "EVIDENCE" => {
                let two = [(); 2].map(|()| wire::encode(&Message::Novel(self.sign(Novel { seq, ..novel() }))));
                let [first, second] = two;
                Message::Evidence(Evidence { signer: self.secret.node_key(), first, second })
            }
            _ => return vec![u8::try_from(number % 256).expect("a byte"); 1 << 20],
        };
        wire::encode(&message)
    }

    /// Says something to a node, as soon as it takes it.
    async fn tell(&self, to: &NodeKey, bytes: &Bytes) {
        let send = || match self.mesh.send(to, Class::Bulk, bytes.clone()) {
            Ok(()) => Some(()),
            Err(SendError::QueueFull | SendError::NotLinked) => None,
            Err(error) => panic!("{error}"),
        };
        if send().is_none() {
            until("the node takes what is said", async || send()).await;
        }
    }

    /// Says everything, to all of these nodes.
    async fn rage(&self, nodes: &[NodeKey]) {
        for kind in KINDS {
            let (mut messages, mut bytes) = (0, 0);
            while messages < KIND_MESSAGES && bytes < KIND_BYTES {
                let message = Bytes::from(self.say(kind));
                (messages, bytes) = (messages + 1, bytes + message.len());
                for node in nodes {
                    self.tell(node, &message).await;
                }
                tokio::task::yield_now().await;
            }
        }
    }
}

/// The most memory that a process has ever had.
fn changed(path: Vec<u8>, root: Hash) -> Changed {
    Changed { path, now: Some(path_state(root)) }
}

fn path_state(root: Hash) -> PathState {
    PathState { kind: PathKind::File, executable: false, size: 1, root }
}

fn known(blocks: Vec<Hash>) -> Known {
    Known { state: path_state(blocks[0]), proof: Proof { index: 0, siblings: vec![None; 32] }, blocks }
}

/// Of the last ledger, of one that never was, of a path that nobody has.
fn piece_ref(tip: Seq, of_hash: Hash, number: u64) -> PieceRef {
    let of_seq = if number.is_multiple_of(3) { number } else { tip };
    let path = [&b"../../cfg/hp.cfg"[..], &[b'/'; 4_000], b"inputs"][usize::try_from(number % 3).expect("small")];
    let block = number.is_multiple_of(2).then_some(u32::MAX);
    PieceRef { of_seq, of_hash, of: Thing::Path(path.to_vec()), block }
}

fn rss_peak_mib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux says so");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") >> 10
}

/// What a member says to its peers first, and which nodes there are: of a node that runs no more.
fn hello_of(dir: &std::path::Path) -> Hello {
    let store = Store::open(dir).expect("its database");
    let genesis: Genesis = store.genesis().expect("readable").expect("it has run");
    let shared = store.settings().expect("readable").expect("it has run");
    Hello { protocol: PROTOCOL, boot: Hash::ZERO, genesis, shared: wire::decode(&shared).expect("ours") }
}

#[test]
fn peers_that_say_everything_too_often_or_read_nothing_fill_no_memory_and_stop_no_round() {
    block_on_for(3 * DEADLINE, async {
        let mut net = Net::up_with(5, record(), plain).await;
        net.closed(1).await;
        net.nodes[4].signal(Signal::SIGTERM);
        assert_eq!(net.nodes[4].ended().await, Some(0));
        let hostile = net.nodes.pop().expect("the last of five");
        let hello = hello_of(&hostile.dir);
        let peers: Vec<(String, u16)> =
            net.nodes.iter().map(|node| ("127.0.0.1".to_owned(), node.peer_port())).collect();
        let honest: Vec<NodeKey> =
            net.nodes.iter().map(|node| node.secret.as_ref().expect("made here").node_key()).collect();
        let quiet = rss_peak_mib(net.nodes[0].pid());
        let mut peaks = Vec::new();
        Crowd::around(&mut net, 4, async |net, crowd| {
            crowd.more_answers(10).await;
            let member = Voice::new(hostile.secret.clone().expect("made here"), &hello, &peers, true).await;
            let stranger = Voice::new(SecretKey::generate(), &hello, &peers, true).await;
            futures::join!(member.rage(&honest), stranger.rage(&honest), crowd.more_answers(10));

            // What waits in the pools is asked for again and again, by those who never read it.
            let inputs: Vec<Input> = (0..28).map(|_| stranger.input(512 << 10, net_seq(&stranger) + 65_536)).collect();
            let ids: Vec<Hash> = inputs.iter().map(|input| input.id(&stranger.scope.chain_id)).collect();
            for input in inputs {
                let bytes = Bytes::from(wire::encode(&Message::Input(input)));
                stranger.tell(&honest[0], &bytes).await;
            }
            let get = Bytes::from(wire::encode(&Message::Get(Get::Inputs(ids))));
            let deaf = futures::future::join_all(
                (0..DEAF).map(|_| Voice::new(SecretKey::generate(), &hello, &peers[..1], false)),
            )
            .await;
            for _ in 0..ASKED {
                for voice in &deaf {
                    voice.tell(&honest[0], &get).await;
                }
                // Its next answer is not for at once.
                sleep(Duration::from_millis(100)).await;
            }
            crowd.more_answers(10).await;
            peaks.extend(net.nodes.iter().map(|node| rss_peak_mib(node.pid())));
            for voice in deaf.into_iter().chain([member, stranger]) {
                voice.mesh.stop().await;
            }
        })
        .await;
        println!("resident memory at most: {quiet} MiB when quiet, {peaks:?} MiB in the flood");
        assert!(peaks.iter().all(|peak| *peak < RSS_MAX_MIB), "{peaks:?} MiB, {quiet} before");
    });
}

fn net_seq(voice: &Voice) -> Seq {
    voice.at.lock().expect("no panic").seq
}
