//! What the routes answer, for the document. The node writes the JSON and these types describe it; `tests/it/cluster/document.rs`
//! holds what real nodes answer against the document, field by field.

#![expect(dead_code, reason = "they describe answers, which are written as JSON")]

use std::collections::BTreeMap;

use serde_json::Value;
use utoipa::ToSchema;

/// What is wrong, with which value.
#[derive(ToSchema)]
pub(super) struct Error {
    /// For people.
    error: String,
}

/// That the node works and is in sync.
#[derive(ToSchema)]
pub(super) struct Health {
    /// Always true.
    ok: bool,
}

/// Where the node stands.
#[derive(ToSchema)]
pub(super) struct Status {
    /// The node, in the words of Trac's peers and its own.
    peer: PeerStatus,
    /// Its settlement bus, in the same words.
    msb: MsbStatus,
    /// As `hp status --json` shows it.
    node: NodeStatus,
}

/// The node as wallets know it.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
pub(super) struct PeerStatus {
    pub_key_hex: String,
    writer_key_hex: String,
    msb_address: Option<String>,
    base_writable: bool,
    is_indexer: bool,
    is_writer: bool,
    subnet_bootstrap_hex: String,
    subnet_signed_length: u64,
    subnet_unsigned_length: Option<u64>,
    node: String,
    contract: String,
    chain: String,
    role: Role,
    seq: u64,
    lcl: String,
    synced: bool,
    attempt: u32,
    stage: String,
    unl: Vec<LiveMember>,
    /// Links to other nodes.
    peers: u64,
    users: u64,
    #[schema(rename = "last_run")]
    last_run: Option<LastRun>,
    version: String,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(super) enum Role {
    Member,
    Observer,
}

#[derive(ToSchema)]
pub(super) struct LiveMember {
    node: String,
    live: bool,
}

#[derive(ToSchema)]
pub(super) struct MsbStatus {
    /// `off`, `http` or `embedded`.
    mode: String,
    /// Whether the bus answered last.
    ready: bool,
    #[schema(rename = "networkId")]
    network_id: u64,
    bootstrap: Option<String>,
    #[schema(rename = "bootstrapHex")]
    bootstrap_hex: Option<String>,
    settled_seq: Option<u64>,
    unsettled_ledgers: Option<u64>,
    oldest_unsettled_age_s: Option<u64>,
    /// In TNK.
    balance: Option<String>,
    address: Option<String>,
}

/// As `hp status --json` shows it; there may be more fields than are described here.
#[derive(ToSchema)]
pub(super) struct NodeStatus {
    version: String,
    node: String,
    peer_id: String,
    contract: String,
    chain: String,
    role: Role,
    /// The last closed ledger.
    seq: u64,
    /// Its hash.
    lcl: String,
    time_ms: u64,
    attempt: u32,
    stage: String,
    synced: bool,
    split: bool,
    diverged: bool,
    diverging: bool,
    /// The ledger on which the network stands, because results differ and none has a quorum.
    halted: Option<u64>,
    /// Why this node signs nothing.
    silent: Option<Value>,
    state_root: String,
    unl: Vec<String>,
    live: Vec<String>,
    suspects: Vec<String>,
    quorum: u64,
    threshold: u64,
    links: Vec<Link>,
    users: u64,
    local_users: u64,
    /// Inputs held, and in no ledger yet.
    pool: u64,
    overtimes: u64,
    /// Closed ledgers that the contract has not run yet.
    unexecuted: u64,
    last_run: Option<LastRun>,
    failed_runs: u64,
    ledgers: u64,
    inputs: u64,
    evidence: Vec<Evidence>,
    liars: Vec<Liar>,
    network_seq: Option<u64>,
    alerts: Vec<String>,
    peer_address: String,
    user_address: Option<String>,
    http_url: Option<String>,
    user_tls: bool,
    up_s: u64,
    settlement: Option<Settling>,
    rounds: Vec<Round>,
    rounds_per_s: Option<f64>,
}

/// A link to another node.
#[derive(ToSchema)]
pub(super) struct Link {
    peer: String,
    address: String,
    /// `inbound` or `outbound`.
    direction: String,
    /// What a ping takes there and back, queues included.
    rtt_us: Option<u64>,
    member: bool,
    /// The last ledger that it has closed, by what it said.
    seq: Option<u64>,
}

/// The last run of the contract.
#[derive(ToSchema)]
pub(super) struct LastRun {
    seq: u64,
    /// `ok`, or how it failed.
    status: String,
    contract_ms: Option<f64>,
    elapsed_ms: Option<f64>,
    outputs: Option<u64>,
    output_bytes: Option<u64>,
}

/// A node signed two different messages for one slot.
#[derive(ToSchema)]
pub(super) struct Evidence {
    node: String,
    kind: String,
    /// How often.
    count: u64,
    /// The last ledger for which it did.
    seq: Option<u64>,
    attempt: Option<u32>,
}

/// A node sent false ledgers.
#[derive(ToSchema)]
pub(super) struct Liar {
    node: String,
    what: String,
    count: u64,
}

/// Where settling stands.
#[derive(ToSchema)]
pub(super) struct Settling {
    url: String,
    network: String,
    /// Who pays for what this node posts.
    address: String,
    subnet: String,
    /// Whether the bus answered last.
    reachable: Option<bool>,
    settled_seq: Option<u64>,
    settled_tx: Option<String>,
    unsettled_ledgers: u64,
    oldest_unsettled_ms: Option<u64>,
    pending: Option<PendingSettlement>,
    /// In TNK.
    balance: Option<String>,
    settlements_left: Option<u64>,
    alerts: Vec<String>,
}

/// What is being settled.
#[derive(ToSchema)]
pub(super) struct PendingSettlement {
    first: u64,
    last: u64,
    ch: String,
    tx: String,
    /// `due`, `signed`, `posted` or `confirmed`.
    state: String,
    posts: u64,
    rank: Option<u64>,
    confirmed_length: Option<u64>,
}

/// What was settled, and where settling stands.
#[derive(ToSchema)]
pub(super) struct Settlements {
    /// Ascending, each once.
    settlements: Vec<Settlement>,
    /// The last ledger that is settled; 0 for none.
    settled_seq: u64,
    /// Null where this node settles nothing.
    settlement: Option<Settling>,
}

/// A range of ledgers that is settled, as the chain records it.
#[derive(ToSchema)]
pub(super) struct Settlement {
    first: u64,
    last: u64,
    /// The transaction on the bus.
    tx: String,
    /// What that says: the hash of the range's record.
    ch: String,
    /// Its place in the bus's order.
    confirmed_length: u64,
    /// The ledger that recorded it first.
    recorded_in: u64,
    /// When that was closed, in UTC.
    time: String,
    /// The same, in milliseconds since 1970.
    time_ms: u64,
}

/// Links to other nodes.
#[derive(ToSchema)]
pub(super) struct Peers {
    node: String,
    peers: Vec<Link>,
    /// Members that are not waited for.
    suspects: Vec<String>,
}

/// Who decides.
#[derive(ToSchema)]
pub(super) struct Unl {
    node: String,
    role: Role,
    seq: u64,
    threshold: u64,
    /// Members that must vote alike.
    quorum: u64,
    may_be_down: u64,
    may_lie: u64,
    members: Vec<Member>,
    observers: Vec<String>,
    /// For which change this node votes.
    vote: Option<UnlChange>,
    pending: Vec<PendingChange>,
}

#[derive(ToSchema)]
pub(super) struct Member {
    node: String,
    /// Whether it is this node.
    me: bool,
    live: bool,
    vote: Option<UnlChange>,
}

/// A change of the UNL.
#[derive(ToSchema)]
pub(super) struct UnlChange {
    /// `add` or `remove`.
    change: String,
    node: String,
}

/// A change that members vote for.
#[derive(ToSchema)]
pub(super) struct PendingChange {
    change: String,
    node: String,
    by: Vec<String>,
    needed: u64,
}

/// The last rounds, the newest last.
#[derive(ToSchema)]
pub(super) struct Rounds {
    rounds: Vec<Round>,
}

/// What one ledger took.
#[derive(ToSchema)]
pub(super) struct Round {
    seq: u64,
    hash: String,
    /// The attempt that closed it, from 0.
    attempt: u32,
    attempts: u32,
    closed_at_ms: u64,
    round_ms: Option<f64>,
    /// By stage; null for one that this node took no part in.
    stages_ms: BTreeMap<String, Option<f64>>,
    inputs: u64,
    input_bytes: u64,
    users: u64,
    run: Option<Run>,
    late: Vec<LateVote>,
    /// Of the newest round alone: when each member's votes came.
    votes: Option<Vec<Votes>>,
    received_bytes: u64,
    received_frames: u64,
    sent_bytes: u64,
    sent_frames: u64,
}

#[derive(ToSchema)]
pub(super) struct Run {
    status: String,
    contract_ms: f64,
    state_hash_ms: f64,
    elapsed_ms: f64,
    outputs: u64,
    output_bytes: u64,
}

#[derive(ToSchema)]
pub(super) struct LateVote {
    node: String,
    vote: String,
    /// By how much; null when it never came.
    by_ms: Option<f64>,
}

#[derive(ToSchema)]
pub(super) struct Votes {
    node: String,
    novel_ms: Option<f64>,
    prevote_ms: Option<f64>,
    precommit_ms: Option<f64>,
    result_ms: Option<f64>,
}

/// The ends of what the contract printed.
#[derive(ToSchema)]
pub(super) struct Log {
    streams: Vec<LogStream>,
}

#[derive(ToSchema)]
pub(super) struct LogStream {
    /// `stdout` or `stderr`.
    name: String,
    text: String,
}

/// What nodes have signed twice, or sent false.
#[derive(ToSchema)]
pub(super) struct EvidenceList {
    evidence: Vec<Evidence>,
    liars: Vec<Liar>,
}

/// Some ledgers, ascending.
#[derive(ToSchema)]
pub(super) struct Ledgers {
    ledgers: Vec<LedgerSummary>,
    /// The last closed one.
    tip: u64,
}

#[derive(ToSchema)]
pub(super) struct LedgerSummary {
    seq: u64,
    time: String,
    hash: String,
    inputs: u64,
    users: u64,
    signers: u64,
    members: u64,
    attempt: u32,
    run: Option<String>,
    agreed: bool,
}

/// A ledger, or of number 0 the genesis. docs/export.md explains the fields.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(super) struct Ledger {
    /// `hotpocket-ledger/1`.
    format: String,
    seq: Option<u64>,
    hash: Option<String>,
    time: Option<String>,
    header: Option<Value>,
    header_bytes: Option<String>,
    certificate: Option<LedgerCertificate>,
    unl: Option<Vec<String>>,
    unl_change: Option<Value>,
    body: Option<LedgerBody>,
    result: Option<Value>,
    own_result: Option<Value>,
    outputs: Option<Vec<UserOutput>>,
    chain_id: Option<String>,
    genesis: Option<Value>,
    genesis_bytes: Option<String>,
    settings_bytes: Option<String>,
}

#[derive(ToSchema)]
pub(super) struct LedgerCertificate {
    seq: u64,
    attempt: u32,
    ledger_hash: String,
    signatures: Vec<MemberSignature>,
}

#[derive(ToSchema)]
pub(super) struct MemberSignature {
    node: String,
    sig: String,
}

#[derive(ToSchema)]
pub(super) struct LedgerBody {
    inputs: Vec<LedgerInput>,
    users_add: Vec<String>,
    users_del: Vec<String>,
}

#[derive(ToSchema)]
pub(super) struct LedgerInput {
    id: String,
    /// True when only the id is kept; then nothing follows.
    missing: Option<bool>,
    user: Option<String>,
    origin: Option<Value>,
    nonce: Option<u64>,
    max_ledger: Option<u64>,
    payload: Option<String>,
}

#[derive(ToSchema)]
pub(super) struct UserOutput {
    user: String,
    bytes: String,
}

/// Ledgers on which results differed.
#[derive(ToSchema)]
pub(super) struct Divergences {
    divergence: Vec<DivergenceSummary>,
}

#[derive(ToSchema)]
pub(super) struct DivergenceSummary {
    seq: u64,
    /// `open`, `split`, `diverged` or `others`.
    kind: Option<String>,
    /// How many different results there were.
    groups: Option<u64>,
}

/// In what results differed on one ledger.
#[derive(ToSchema)]
pub(super) struct Divergence {
    seq: u64,
    ledger: String,
    time_ms: u64,
    node: String,
    kind: String,
    quorum: u64,
    silent: Vec<String>,
    groups: Vec<ResultGroup>,
    compared: Vec<Comparison>,
    kept: Value,
}

/// Nodes with one result.
#[derive(ToSchema)]
pub(super) struct ResultGroup {
    name: String,
    nodes: Vec<String>,
    this_node: bool,
    agreed: bool,
    status: String,
    state_root: String,
    outputs_root: String,
    unl_request: Option<String>,
}

/// This node's run against another node's.
#[derive(ToSchema)]
pub(super) struct Comparison {
    state_root: String,
    outputs_root: String,
    status: String,
    with: Option<String>,
    paths: Vec<Value>,
    paths_more: u64,
    outputs: Vec<Value>,
    outputs_more: u64,
    cut: bool,
}

/// A file of the contract's state.
#[derive(ToSchema)]
pub(super) struct File {
    key: String,
    confirmed: bool,
    /// Text, or base64 with `encoding`; null when there is none.
    value: Option<String>,
    /// `base64` when it is that.
    encoding: Option<String>,
    size: Option<u64>,
    hash: Option<String>,
    /// The ledger after whose run it is so.
    seq: u64,
    /// What else than a file is there.
    kind: Option<String>,
}

/// What the contract takes and gives.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
pub(super) struct Schema {
    schema_version: u64,
    schema_format: String,
    contract: ContractSchema,
    api: Value,
    version: String,
    limits: Limits,
}

#[derive(ToSchema)]
pub(super) struct ContractSchema {
    id: String,
    name: Option<String>,
    /// Whether the contract ships it.
    shipped: bool,
    /// A JSON Schema.
    schema: Value,
}

#[derive(ToSchema)]
pub(super) struct Limits {
    input_bytes: u64,
    input_window: u64,
    file_bytes: u64,
}

/// The next nonce of a user.
#[derive(ToSchema)]
pub(super) struct Nonce {
    nonce: u64,
}

/// What is needed to compute and sign an input elsewhere.
#[derive(ToSchema)]
pub(super) struct Context {
    chain: String,
    contract: String,
    unl_hash: String,
    seq: u64,
    lcl: String,
    tag: String,
    origin: String,
    max_ledger_offset: u64,
    input_window: u64,
    input_bytes: u64,
    msb: MsbContext,
}

#[derive(ToSchema)]
pub(super) struct MsbContext {
    #[schema(rename = "networkId")]
    network_id: u64,
    txv: Option<String>,
    iw: String,
    bs: String,
    mbs: Option<String>,
    #[schema(rename = "operationType")]
    operation_type: u64,
}

/// What is to be signed.
#[derive(ToSchema)]
pub(super) struct Prepared {
    /// The id: its 32 bytes are signed.
    tx: String,
    /// What the contract will get, in base64.
    payload: String,
    nonce: u64,
    max_ledger: u64,
    context: Context,
}

/// What became of an input.
#[derive(ToSchema)]
pub(super) struct TxResult {
    result: Tx,
}

#[derive(ToSchema)]
pub(super) struct Tx {
    /// `pending`, `accepted` or `executed`; of one that is tried `ok`, or how the run failed.
    status: String,
    tx: String,
    nonce: Option<u64>,
    /// In which ledger; of one that is tried, after which.
    seq: Option<u64>,
    ledger: Option<String>,
    outcome: Option<Outcome>,
    /// True for one that is tried.
    sim: Option<bool>,
    output: Option<String>,
    /// `base64` when the output is that.
    encoding: Option<String>,
}

/// What a user got in a ledger.
#[derive(ToSchema)]
pub(super) struct Outcome {
    /// As the frame `output` of signed mode, with its proof.
    output: Option<Value>,
    /// How the run failed, as the frame `executed`.
    executed: Option<Value>,
    /// Whether this node lacks what the network agreed on.
    missing: bool,
}

/// What is known of an input.
#[derive(ToSchema)]
pub(super) struct Input {
    id: String,
    user: String,
    /// `signed` or `session`.
    kind: String,
    nonce: u64,
    max_ledger: u64,
    payload: String,
    /// `base64` when the payload is that.
    encoding: Option<String>,
    /// `accepted`, `pending` or `unknown`.
    status: String,
    seq: Option<u64>,
    ledger: Option<String>,
    run: Option<Value>,
    settled: Option<Value>,
}

/// That the node ends.
#[derive(ToSchema)]
pub(super) struct Stopping {
    stopping: bool,
}

/// Whom the operator wants no link with.
#[derive(ToSchema)]
pub(super) struct Bans {
    bans: Vec<Banned>,
}

#[derive(ToSchema)]
pub(super) struct Banned {
    node: String,
    /// Milliseconds since 1970.
    until_ms: u64,
    left_s: u64,
    reason: Option<String>,
}
