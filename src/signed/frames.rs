//! The frames, each a JSON object in one text frame. What a node reads is strict: an unknown key, a key given twice or
//! another form of a value is refused. What a client reads may have more keys: nodes learn to say more.

use std::{fmt::Display, str::FromStr};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::proof::{Agreement, OutputProof, SignedBy, texts};
use crate::{
    consensus::{
        header::{ExecResult, UnlChange},
        messages::Closed,
    },
    types::{Attempt, Execute, Hash, NodeKey, Seq, Sig, Status, WallMs},
    wire,
};

/// Bytes of a request beside the base64 of its payload; far more than the longest one has.
pub const FRAME_OVERHEAD_BYTES: usize = 1024;

/// Characters of a text in an error that a client caused; the rest is cut.
const SHOWN_CHARS: usize = 80;

/// The longest request, where payloads have this many bytes at most.
pub const fn frame_bytes_max(payload_bytes_max: usize) -> usize {
    payload_bytes_max.div_ceil(3) * 4 + FRAME_OVERHEAD_BYTES
}

/// A value that stands as text in JSON: keys, hashes and signatures in hexadecimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Text<T>(pub T);

impl<T: Display> Serialize for Text<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de, T: FromStr<Err: Display>> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map(Text).map_err(D::Error::custom)
    }
}

/// Bytes that stand as base64 in JSON: the standard alphabet with padding, and no other form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base64(pub Vec<u8>);

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Base64).map_err(D::Error::custom)
    }
}

// ---- What a client sends --------------------------------------------------------------------------------------------

/// A frame of a client after its welcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Request {
    /// An input.
    Input(InputFrame),
    /// A question.
    Query(QueryFrame),
    /// A question to the contract.
    Read(ReadFrame),
}

/// One input with its user's signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InputFrame {
    /// Unique among the user's inputs; those of one ledger are handed to the contract in its order.
    pub nonce: u64,
    /// Last ledger it may be in.
    pub max_ledger: Seq,
    /// What the contract reads.
    pub payload: Base64,
    /// By the user, over the input's id.
    pub sig: Text<Sig>,
}

/// A question that the contract answers in a read-only run on this node alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReadFrame {
    /// Stands in the answer again.
    pub id: u64,
    /// What the contract reads as the user's input.
    pub payload: Base64,
}

/// One question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct QueryFrame {
    /// Stands in the answer again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// What is asked.
    #[serde(flatten)]
    pub query: Query,
}

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Query {
    /// The last closed ledger.
    Lcl,
    /// A closed ledger.
    Ledger {
        /// Its number.
        seq: Seq,
    },
    /// What became of an input of this user.
    Input {
        /// Its nonce.
        nonce: u64,
    },
    /// Outputs to this user of the ledgers after this one.
    Outputs {
        /// That ledger; 0 for all.
        since: Seq,
    },
    /// Changes of the UNL in the ledgers after this one.
    Unl {
        /// That ledger; 0 for all.
        since: Seq,
    },
}

/// Why a frame is no request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Not a request, or not in its one form.
    #[error("not a request: {0}")]
    Format(String),
    /// A request in form, but its payload is longer than inputs may be.
    #[error("the payload has {bytes} bytes, at most {max} are taken")]
    TooLarge {
        /// Of the input.
        nonce: u64,
        /// Its length.
        bytes: usize,
        /// The longest.
        max: usize,
    },
    /// The same of a question to the contract.
    #[error("the payload has {bytes} bytes, at most {max} are taken")]
    ReadTooLarge {
        /// Of the question.
        id: u64,
        /// Its length.
        bytes: usize,
        /// The longest.
        max: usize,
    },
}

/// Reads a frame of a client. Payloads have `payload_bytes_max` bytes at most.
pub fn parse_request(frame: &[u8], payload_bytes_max: usize) -> Result<Request, RequestError> {
    #[derive(Deserialize)]
    struct Typed {
        r#type: String,
        what: Option<String>,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Input {
        #[serde(rename = "type")]
        _type: String,
        nonce: u64,
        max_ledger: Seq,
        payload: Base64,
        sig: Text<Sig>,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Read {
        #[serde(rename = "type")]
        _type: String,
        id: u64,
        payload: Base64,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Asked {
        #[serde(rename = "type")]
        _type: String,
        #[serde(rename = "what")]
        _what: String,
        id: Option<u64>,
        seq: Option<u64>,
        nonce: Option<u64>,
        since: Option<u64>,
    }
    let format = |error: serde_json::Error| RequestError::Format(error.to_string());
    // serde reads an array into a struct as well, in order of the fields. A request is an object.
    if frame.trim_ascii_start().first() != Some(&b'{') {
        return Err(RequestError::Format("expected a JSON object".into()));
    }
    let typed: Typed = serde_json::from_slice(frame).map_err(format)?;
    match typed.r#type.as_str() {
        "input" => {
            let Input { nonce, max_ledger, payload, sig, .. } = serde_json::from_slice(frame).map_err(format)?;
            let bytes = payload.0.len();
            if bytes > payload_bytes_max {
                return Err(RequestError::TooLarge { nonce, bytes, max: payload_bytes_max });
            }
            Ok(Request::Input(InputFrame { nonce, max_ledger, payload, sig }))
        }
        "read" => {
            let Read { id, payload, .. } = serde_json::from_slice(frame).map_err(format)?;
            let bytes = payload.0.len();
            if bytes > payload_bytes_max {
                return Err(RequestError::ReadTooLarge { id, bytes, max: payload_bytes_max });
            }
            Ok(Request::Read(ReadFrame { id, payload }))
        }
        "query" => {
            let asked: Asked = serde_json::from_slice(frame).map_err(format)?;
            let what = typed.what.unwrap_or_default();
            let query = match (what.as_str(), asked.seq, asked.nonce, asked.since) {
                ("lcl", None, None, None) => Query::Lcl,
                ("ledger", Some(seq), None, None) => Query::Ledger { seq },
                ("input", None, Some(nonce), None) => Query::Input { nonce },
                ("outputs", None, None, Some(since)) => Query::Outputs { since },
                ("unl", None, None, Some(since)) => Query::Unl { since },
                ("lcl" | "ledger" | "input" | "outputs" | "unl", ..) => {
                    let text = "a query has `what` and, of \"ledger\", `seq`; of \"input\", `nonce`; of \"outputs\" and \"unl\", \
                                `since`";
                    return Err(RequestError::Format(text.into()));
                }
                (other, ..) => return Err(RequestError::Format(format!("unknown query {:?}", shown(other)))),
            };
            Ok(Request::Query(QueryFrame { id: asked.id, query }))
        }
        other => Err(RequestError::Format(format!("unknown type {:?}", shown(other)))),
    }
}

fn shown(text: &str) -> String {
    text.chars().take(SHOWN_CHARS).collect()
}

impl Request {
    /// As a text frame.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("texts and numbers are always JSON")
    }
}

// ---- What a node sends ----------------------------------------------------------------------------------------------

/// A frame of a node after the helo.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Reply {
    /// The first one.
    Welcome(Box<Welcome>),
    /// What became of an input.
    Status(StatusFrame),
    /// An output.
    Output(OutputFrame),
    /// The result of a ledger with an input of this user is agreed on; its output, if there is any, came before.
    Executed(Executed),
    /// The chain records that a range of ledgers is settled: what they put out is final.
    Settled(Settled),
    /// A ledger was closed that changes the UNL: what comes after it is signed by others.
    Unl(UnlStep),
    /// Of a query.
    Answer(Answer),
    /// What came of a question to the contract.
    ReadResult(ReadResult),
    /// A request was not understood or cannot be answered.
    Error(ErrorFrame),
}

impl Reply {
    /// As a text frame.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("texts and numbers are always JSON")
    }
}

/// Which network this is, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Key of the node.
    pub node: Text<NodeKey>,
    /// The contract's id.
    pub contract: Text<Hash>,
    /// The chain's, which every signature covers.
    pub chain: Text<Hash>,
    /// Ledger 0, as it is hashed to the chain's id (borsh).
    pub genesis: Base64,
    /// The UNL in force, ascending.
    pub unl: Vec<Text<NodeKey>>,
    /// Percent of it that makes a quorum.
    pub threshold: u8,
    /// Last closed ledger.
    pub seq: Seq,
    /// Its hash.
    pub lcl: Text<Hash>,
    /// Its agreed time, in seconds since 1970.
    pub time: u64,
    /// When an output is final.
    pub execute: Text<Execute>,
    /// The last ledger that is settled, as the chain records it; 0 where none is.
    pub settled_seq: Seq,
    /// What is taken.
    pub limits: Limits,
}

/// What a node takes from a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of a payload (`pubmaxsize`).
    pub payload_bytes: u64,
    /// Frames a minute (`pubmaxcpm`); null for any number.
    pub messages_per_minute: Option<u32>,
    /// How far `max_ledger` may be ahead of the ledger that is being closed.
    pub input_window: u64,
}

/// What became of one input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusFrame {
    /// The input's nonce.
    pub nonce: u64,
    /// Its id; absent when the input was refused unread. Of two inputs with one nonce at most one is accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<Text<Hash>>,
    /// What became of it.
    #[serde(flatten)]
    pub fate: Fate,
}

/// What becomes of an input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum Fate {
    /// It is in a closed ledger: it is or will be executed, once.
    Accepted {
        /// Number of that ledger.
        seq: Seq,
        /// Its hash.
        ledger: Text<Hash>,
        /// How its run ended, when that is agreed on already.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        run: Option<RunEnd>,
    },
    /// This node does not take it, or no ledger ever will.
    Rejected {
        /// For programs.
        reason: Reason,
        /// For people.
        message: String,
    },
}

/// Why an input is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The signature is not the user's over the input's id in this chain.
    BadSig,
    /// The payload is longer than inputs may be.
    TooLarge,
    /// More frames a minute than `pubmaxcpm`. It may be sent again later.
    Rate,
    /// The node has no room now. It may be sent again later.
    Busy,
    /// Ledger `max_ledger` is closed, without it.
    Expired,
    /// `max_ledger` is further ahead than inputs are kept.
    TooFar,
    /// Another input with this nonce is in a ledger already.
    NonceUsed,
}

impl Reason {
    /// The word in the `reason` field.
    pub const fn name(self) -> &'static str {
        match self {
            Reason::BadSig => "bad_sig",
            Reason::TooLarge => "too_large",
            Reason::Rate => "rate",
            Reason::Busy => "busy",
            Reason::Expired => "expired",
            Reason::TooFar => "too_far",
            Reason::NonceUsed => "nonce_used",
        }
    }
}

/// One output with its proof.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputFrame {
    /// The ledger whose run put it out.
    pub seq: Seq,
    /// Its hash.
    pub ledger: Text<Hash>,
    /// What the contract wrote.
    pub payload: Base64,
    /// Whether its ledger is settled, in a network where outputs are final only then; absent where they are at once.
    #[serde(default, rename = "final", skip_serializing_if = "Option::is_none")]
    pub is_final: Option<bool>,
    /// That a quorum agreed on it.
    pub proof: OutputProof,
}

/// A range of ledgers that is settled, as the chain records it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settled {
    /// Its first ledger: one behind the last that was settled before. By the node's word.
    pub first: Seq,
    /// Its last one. It and all before it are settled.
    pub last: Seq,
    /// The transaction on the bus.
    pub tx: Text<Hash>,
    /// What that says: the hash of the range's record.
    pub ch: Text<Hash>,
    /// Its place in the bus's order.
    pub confirmed_length: u64,
    /// The ledger that records it.
    pub recorded_in: Seq,
    /// That ledger's header, which a quorum closed.
    pub proof: Agreement,
}

/// The result of a ledger is agreed on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Executed {
    /// The ledger.
    pub seq: Seq,
    /// Its hash.
    pub ledger: Text<Hash>,
    /// How its run ended.
    #[serde(flatten)]
    pub run: RunEnd,
}

/// How the run of a ledger ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunEnd {
    /// Whether it ended well. Else its outputs are dropped and the state is as before.
    pub ok: bool,
    /// In words.
    pub status: String,
    /// That a quorum agreed on it; may be absent where it ended well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Agreement>,
}

impl RunEnd {
    /// Of an agreed result.
    pub fn of(result: &ExecResult, proof: Option<Agreement>) -> RunEnd {
        RunEnd { ok: result.status == Status::Ok, status: result.status.to_string(), proof }
    }
}

/// What came of a question to the contract. It is this node's word alone: nothing proves it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadResult {
    /// Of the question.
    pub id: u64,
    /// What came of it.
    #[serde(flatten)]
    pub fate: ReadFate,
}

/// What comes of a question to the contract.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum ReadFate {
    /// The contract has answered.
    Ok {
        /// The ledger whose run left the state that it saw.
        seq: Seq,
        /// Its hash.
        ledger: Text<Hash>,
        /// What it wrote to the user; may be nothing.
        payload: Base64,
    },
    /// The run failed, and what it wrote is dropped.
    Failed {
        /// The ledger whose run left the state that it saw.
        seq: Seq,
        /// Its hash.
        ledger: Text<Hash>,
        /// How it ended, in words.
        run: String,
    },
    /// The contract was not run.
    Refused {
        /// For programs.
        reason: ReadReason,
        /// For people.
        message: String,
    },
}

/// Why a question to the contract is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadReason {
    /// The payload is longer than inputs may be.
    TooLarge,
    /// More frames a minute than `pubmaxcpm`.
    Rate,
    /// As many wait as this node, or this session, may have wait. It may be asked again.
    Busy,
    /// This node answers none (`reads_max = 0`).
    Off,
    /// No state of this node is agreed on now, as when it is fetching one. It may be asked again, or another node.
    NotReady,
    /// The node could not run the contract, by a fault of its machine. Another node may.
    Trouble,
}

impl ReadReason {
    /// The word in the `reason` field.
    pub const fn name(self) -> &'static str {
        match self {
            ReadReason::TooLarge => "too_large",
            ReadReason::Rate => "rate",
            ReadReason::Busy => "busy",
            ReadReason::Off => "off",
            ReadReason::NotReady => "not_ready",
            ReadReason::Trouble => "trouble",
        }
    }
}

/// Of a query.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Of the query, if it had one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// The answer itself.
    #[serde(flatten)]
    pub body: AnswerBody,
}

/// What a query is answered with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum AnswerBody {
    /// The last closed ledger.
    Lcl {
        /// Its number.
        seq: Seq,
        /// Its hash.
        ledger: Text<Hash>,
        /// Its agreed time.
        time_ms: WallMs,
    },
    /// A closed ledger; null when there is none yet.
    Ledger {
        /// Its number.
        seq: Seq,
        /// With its certificate.
        ledger: Option<LedgerFrame>,
    },
    /// What became of an input.
    Input {
        /// Its nonce.
        nonce: u64,
        /// What is known.
        #[serde(flatten)]
        state: InputState,
    },
    /// Outputs of the past.
    Outputs(OutputsPage),
    /// Changes of the UNL.
    Unl(UnlPage),
}

/// A header and the votes that closed it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerFrame {
    /// The ledger's hash.
    pub hash: Text<Hash>,
    /// The header, as it is hashed (borsh).
    pub header: Base64,
    /// The attempt in which it was closed; the precommits name it.
    pub attempt: Attempt,
    /// A quorum of precommits, ascending by signer.
    pub sigs: SignedBy,
}

impl LedgerFrame {
    /// Of a closed ledger.
    pub fn of(closed: &Closed) -> LedgerFrame {
        LedgerFrame {
            hash: Text(closed.qc.vote.ledger_hash),
            header: Base64(wire::encode(&closed.header)),
            attempt: closed.qc.vote.attempt,
            sigs: texts(&closed.qc.sigs),
        }
    }
}

/// A ledger that changes the UNL: the members before it closed it, so they prove those after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnlStep {
    /// The ledger.
    pub seq: Seq,
    /// What becomes of whom. Makes of the UNL of the header's `unl_hash` the one of its `next_unl_hash`.
    pub change: Change,
    /// Who comes or goes.
    pub node: Text<NodeKey>,
    /// The ledger's header and who closed it.
    #[serde(flatten)]
    pub ledger: LedgerFrame,
}

/// What becomes of a node in a change of the UNL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// It comes.
    Add,
    /// It goes.
    Remove,
}

impl UnlStep {
    /// Of a closed ledger and the change in it.
    pub fn of(closed: &Closed, change: &UnlChange) -> UnlStep {
        let (change, node) = match change {
            UnlChange::Add(node) => (Change::Add, *node),
            UnlChange::Remove(node) => (Change::Remove, *node),
        };
        UnlStep { seq: closed.header.seq, change, node: Text(node), ledger: LedgerFrame::of(closed) }
    }

    /// As ledgers hold it.
    pub fn change(&self) -> UnlChange {
        match self.change {
            Change::Add => UnlChange::Add(self.node.0),
            Change::Remove => UnlChange::Remove(self.node.0),
        }
    }
}

/// Some changes of the UNL, ascending by ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnlPage {
    /// As it was asked.
    pub since: Seq,
    /// The changes in the ledgers after it.
    pub changes: Vec<UnlStep>,
    /// Whether there are more: ask again, since the last one's ledger.
    pub more: bool,
}

/// What a node knows of an input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum InputState {
    /// In a closed ledger.
    Accepted {
        /// Its number.
        seq: Seq,
        /// Its hash.
        ledger: Text<Hash>,
        /// How its run ended; absent until that is agreed on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        run: Option<RunEnd>,
        /// What settled that ledger; absent until the chain records it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        settled: Option<Box<Settled>>,
    },
    /// Held, and not in a ledger yet.
    Pending,
    /// Not held, and in none of the last `input_window` ledgers.
    Unknown,
}

/// Some outputs of the past, ascending by ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputsPage {
    /// As it was asked.
    pub since: Seq,
    /// All outputs of the ledgers after `since` up to this one are here, but for those of `missing`.
    pub to: Seq,
    /// Whether there is more: ask again, since `to`.
    pub more: bool,
    /// First ledger whose outputs this node keeps; older ones are gone.
    pub kept_from: Seq,
    /// Ledgers up to `to` whose agreed outputs this node does not have. Another node may.
    pub missing: Vec<Seq>,
    /// Ledgers up to `to` with inputs of this user whose runs failed.
    #[serde(default)]
    pub failed: Vec<Executed>,
    /// The outputs.
    pub outputs: Vec<OutputFrame>,
    /// What settled their ledgers, as far as the chain records it, ascending.
    #[serde(default)]
    pub settlements: Vec<Settled>,
}

/// A request was not understood or cannot be answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorFrame {
    /// For programs.
    pub code: String,
    /// For people.
    pub message: String,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const PAYLOAD_MAX: usize = 9;

    fn input() -> Value {
        json!({"type": "input", "nonce": 5, "max_ledger": 9, "payload": "aGVsbG8=", "sig": "ab".repeat(64)})
    }

    fn parse(value: &Value) -> Result<Request, RequestError> {
        parse_request(value.to_string().as_bytes(), PAYLOAD_MAX)
    }

    fn with(mut value: Value, key: &str, to: Value) -> Value {
        value[key] = to;
        value
    }

    #[test]
    fn a_request_reads_back_as_it_was_written() {
        let sig = Text(Sig([0xab; 64]));
        let inputs = [(0, 0), (5, 9), (u64::MAX, u64::MAX)].map(|(nonce, max_ledger)| {
            Request::Input(InputFrame { nonce, max_ledger, payload: Base64(b"hello".to_vec()), sig })
        });
        let queries = [Query::Lcl, Query::Ledger { seq: 1 }, Query::Input { nonce: 2 }, Query::Outputs { since: 3 }];
        let queries = queries.map(|query| Request::Query(QueryFrame { id: None, query }));
        let named = Request::Query(QueryFrame { id: Some(u64::MAX), query: Query::Lcl });
        let read = Request::Read(ReadFrame { id: u64::MAX, payload: Base64(b"hello".to_vec()) });
        for request in inputs.into_iter().chain(queries).chain([named, read]) {
            assert_eq!(parse_request(request.to_json().as_bytes(), PAYLOAD_MAX), Ok(request));
        }
    }

    #[test]
    fn what_is_no_request_in_its_one_form_is_refused() {
        assert!(parse(&input()).is_ok());
        let twice = input().to_string().replacen('{', "{\"nonce\":5,", 1);
        let sequence = json!(["input", 5, 9, "aGVsbG8=", "ab".repeat(64)]).to_string();
        for frame in ["", "null", "[]", "{}", "1", "\"input\"", "{\"type\":", "\u{feff}{}", &twice, &sequence] {
            assert!(matches!(parse_request(frame.as_bytes(), 9), Err(RequestError::Format(_))), "{frame}");
        }
        let query = || json!({"type": "query", "what": "ledger", "seq": 1});
        let read = || json!({"type": "read", "id": 1, "payload": "aGVsbG8="});
        assert!(parse(&query()).is_ok() && parse(&read()).is_ok());
        for wrong in [
            with(input(), "type", json!("Input")),
            with(input(), "type", json!("x".repeat(10_000))),
            with(input(), "extra", json!(1)),
            with(input(), "nonce", json!(-1)),
            with(input(), "nonce", json!(1.0)),
            with(input(), "nonce", json!("1")),
            with(input(), "nonce", json!(null)),
            with(input(), "max_ledger", json!(1e30)),
            with(input(), "payload", json!("aGVsbG8")),
            with(input(), "payload", json!("aGVsbG9=")),
            with(input(), "payload", json!("aGVs bG8=")),
            with(input(), "payload", json!("_-__")),
            with(input(), "payload", json!([104])),
            with(input(), "sig", json!("ab".repeat(63))),
            with(input(), "sig", json!(format!("{}zz", "ab".repeat(63)))),
            with(query(), "what", json!("ledgers")),
            with(query(), "what", json!("lcl")),
            with(query(), "nonce", json!(1)),
            with(query(), "seq", json!(-1)),
            with(query(), "id", json!("1")),
            with(query(), "why", json!(null)),
            with(read(), "id", json!(null)),
            with(read(), "payload", json!("aGVsbG8")),
            with(read(), "sig", json!("ab".repeat(64))),
            json!({"type": "read", "payload": ""}),
        ] {
            let Err(RequestError::Format(text)) = parse(&wrong) else { panic!("{wrong}") };
            assert!(text.len() < 400, "{text}");
        }
    }

    #[test]
    fn a_payload_of_the_longest_size_is_read_and_one_byte_more_names_its_nonce() {
        let request = |bytes: usize| with(input(), "payload", json!(STANDARD.encode(vec![0; bytes])));
        assert!(parse(&request(PAYLOAD_MAX)).is_ok());
        assert_eq!(parse(&request(10)), Err(RequestError::TooLarge { nonce: 5, bytes: 10, max: 9 }));
        let read = json!({"type": "read", "id": 6, "payload": STANDARD.encode([0; 10])});
        assert_eq!(parse(&read), Err(RequestError::ReadTooLarge { id: 6, bytes: 10, max: 9 }));
        // Every request that may be taken fits the longest frame.
        let longest = with(with(request(PAYLOAD_MAX), "nonce", json!(u64::MAX)), "max_ledger", json!(u64::MAX));
        assert!(longest.to_string().len() <= frame_bytes_max(PAYLOAD_MAX));
    }

    #[test]
    fn an_upper_case_signature_is_the_same() {
        assert_eq!(parse(&with(input(), "sig", json!("AB".repeat(64)))), parse(&input()));
    }

    #[test]
    fn a_client_reads_replies_with_more_keys() {
        let reply = Reply::Executed(Executed {
            seq: 1,
            ledger: Text(Hash([1; 32])),
            run: RunEnd { ok: true, status: "ok".into(), proof: None },
        });
        let mut value: Value = serde_json::from_str(&reply.to_json()).unwrap();
        value["more"] = json!({"a": []});
        assert_eq!(serde_json::from_value::<Reply>(value).unwrap(), reply);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(frame in proptest::collection::vec(any::<u8>(), 0..200), brace in any::<bool>()) {
            let frame = if brace { [b"{".as_slice(), &frame].concat() } else { frame };
            prop_assert!(parse_request(&frame, PAYLOAD_MAX).is_err());
        }
    }
}
