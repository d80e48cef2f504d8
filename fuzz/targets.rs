//! Everything that reads bytes from outside, each as a function over any bytes that must neither panic nor break its word.
//!
//! One body, two drivers: `tests/it/bytes.rs` calls each with mutated examples in every test run, and the fuzzers of this
//! folder (`scripts/fuzz`) for as long as one likes.

use std::path::Path;

use hotpocket::{
    config::Config,
    consensus::{header::Genesis, messages::Message, messages::Scope},
    contract::{npl, request},
    crypto::SecretKey,
    gateway::parse_helo,
    node::control,
    settlement::{Address, Amount, Network, tx::Landed},
    signed::{Executed, OutputFrame, Reply, Welcome, parse_request, proof::Trust},
    types::{Challenge, Hash, UserKey},
    wire::{self, Edge, Hello},
};

/// Bytes of a payload that the signed frames may have here.
const PAYLOAD_BYTES_MAX: usize = 4_096;

/// That of the example, so that it is a right answer.
const CHALLENGE: &str = "ef97b2286de21927d48cc54fcab401c3";

/// One of them.
pub struct Target {
    /// What `scripts/fuzz` calls it.
    pub name: &'static str,
    /// Who these bytes come from, and what they claim to be.
    pub reads: &'static str,
    /// Where examples of them are, below `tests/golden`: a file, or a folder of them. `tests/it/bytes.rs` reads them.
    pub examples: &'static [&'static str],
    /// Panics when the reader breaks its word.
    pub check: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "peer_message", reads: "a frame of a linked node", examples: &["wire"], check: peer_message },
    Target { name: "hello", reads: "the first words of a node", examples: &["wire"], check: hello },
    Target { name: "helo", reads: "a user's answer to the challenge", examples: &["handshake-0.1.json"], check: helo },
    Target { name: "request", reads: "a frame of a user in signed mode", examples: &["signed"], check: signed_request },
    Target { name: "reply", reads: "a frame of a node, read by a client", examples: &["signed"], check: reply },
    Target {
        name: "config",
        reads: "cfg/hp.cfg",
        examples: &["legacy-node-a.hp.cfg", "legacy-node-b.hp.cfg", "../../cfg/hp.cfg"],
        check: config,
    },
    Target { name: "control", reads: "a line of the operator's socket", examples: &[], check: operator },
    Target { name: "npl", reads: "frames of the party line", examples: &["fdlist-0.1.json"], check: party_line },
    Target { name: "contract", reads: "what a run writes to its control descriptor", examples: &[], check: contract },
    Target {
        name: "bus",
        reads: "an operation, an address or an amount of the bus",
        examples: &["msb.json"],
        check: bus,
    },
];

/// The target of this name.
pub fn target(name: &str) -> &'static Target {
    TARGETS.iter().find(|target| target.name == name).unwrap_or_else(|| panic!("there is no target {name:?}"))
}

fn peer_message(bytes: &[u8]) {
    let scope = Scope { chain_id: Hash([1; 32]), unl_hash: Hash([2; 32]) };
    if let Ok(message) = wire::decode::<Message>(bytes) {
        assert_eq!(wire::encode(&message), bytes, "one form only");
        let _ = Edge::default().check(&message, &scope);
        let _ = (message.kind(), message.slot(), message.round_seq(), message.round_attempt());
        let _ = wire::is_bulk(&message, bytes.len());
    }
    let _ = wire::check_range(bytes, &scope.chain_id);
    let _ = wire::check_headers(bytes, &scope.chain_id);
}

fn hello(bytes: &[u8]) {
    if let Ok(hello) = wire::decode::<Hello>(bytes) {
        assert_eq!(wire::encode(&hello), bytes, "one form only");
        assert_eq!(hello.check(&hello), Ok(()), "every node is of its own chain");
    }
    if let Ok(genesis) = wire::decode::<Genesis>(bytes) {
        let _ = genesis.chain_id();
    }
}

fn helo(bytes: &[u8]) {
    let challenge: Challenge = CHALLENGE.parse().expect("32 digits");
    if let Ok(helo) = parse_helo(bytes, &challenge) {
        assert!(helo.proof.verify(&helo.user), "nobody is somebody else");
    }
}

fn signed_request(bytes: &[u8]) {
    if let Ok(request) = parse_request(bytes, PAYLOAD_BYTES_MAX) {
        let text = request.to_json();
        assert_eq!(parse_request(text.as_bytes(), PAYLOAD_BYTES_MAX), Ok(request), "reads back: {text}");
    }
}

fn reply(bytes: &[u8]) {
    let me = UserKey([7; 32]);
    let trust = Trust::new(Hash([1; 32]), vec![SecretKey::from_seed([3; 32]).node_key()], 80).expect("a network");
    if let Ok(reply) = serde_json::from_slice::<Reply>(bytes) {
        let text = reply.to_json();
        assert_eq!(serde_json::from_str::<Reply>(&text).ok(), Some(reply), "reads back: {text}");
    }
    if let Ok(welcome) = serde_json::from_slice::<Welcome>(bytes)
        && let Ok(trust) = Trust::of(&welcome)
    {
        assert!(trust.quorum() * 2 > trust.unl().len(), "two quorums share a member");
    }
    if let Ok(output) = serde_json::from_slice::<OutputFrame>(bytes) {
        assert!(trust.check_output(&me, &output).is_err(), "nobody signed this");
    }
    if let Ok(executed) = serde_json::from_slice::<Executed>(bytes) {
        assert_ne!(trust.check_run(executed.seq, executed.ledger.0, &executed.run), Ok(true), "nobody signed this");
    }
}

fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let key = SecretKey::from_seed([9; 32]).to_hex();
    match Config::parse(text, Path::new("cfg/hp.cfg"), Path::new("/nowhere"), &|_| Ok(key.clone())) {
        Ok(config) => assert!(config.quorum() * 2 > config.unl.len() || config.unl.is_empty()),
        Err(error) => assert!(!error.to_string().contains(&key), "a secret key is in no message"),
    }
}

fn operator(bytes: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<control::Request>(bytes) {
        serde_json::to_string(&request).expect("a request is plain data");
    }
}

fn party_line(bytes: &[u8]) {
    let mut rest = bytes::BytesMut::from(bytes);
    loop {
        let before = rest.len();
        match npl::read_frame(&mut rest) {
            Ok(Some(frame)) => {
                assert!(
                    frame.body.len() <= npl::NPL_MESSAGE_BYTES_MAX && rest.len() < before,
                    "each frame takes bytes"
                );
                let mut again = bytes::BytesMut::from(&npl::write_frame(frame.from, &frame.body)[..]);
                assert_eq!(npl::read_frame(&mut again), Ok(Some(frame)), "reads back");
            }
            Ok(None) | Err(_) => return,
        }
    }
}

fn contract(bytes: &[u8]) {
    let _ = request::parse(bytes);
}

fn bus(bytes: &[u8]) {
    if let Ok(value) = serde_json::from_slice::<serde_json::Value>(bytes) {
        for network in [Network::Mainnet, Network::Testnet, Network::Development] {
            if let Ok(landed) = Landed::parse(&value, network) {
                let _ = landed.check(&landed.signed.hash, network);
            }
        }
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        if let Ok(address) = Address::parse(text, Network::Mainnet) {
            assert_eq!(address.to_string(), text.to_lowercase(), "an address has one form");
        }
        if let Some(amount) = Amount::from_units(text) {
            assert_eq!(amount.to_string().parse().ok(), Some(amount), "reads back");
        }
    }
}
