//! What a conversation in signed mode owes and is owed, whichever nodes it goes through. No sockets, no clock.
//!
//! Inputs are kept until a node says what became of them, and sent again, byte for byte, to whatever node comes next.
//! Outputs are shown in the order of their ledgers, each once, and only when their proof holds.

use std::collections::{BTreeMap, BTreeSet};

use super::keys::Nonces;
use crate::{
    crypto::SecretKey,
    signed::{
        AnswerBody, Base64, Change, Executed, Fate, InputFrame, OutputFrame, OutputsPage, Query, QueryFrame, ReadFate,
        ReadFrame, ReadReason, ReadResult, Reason, Reply, Request, Settled, StatusFrame, UnlStep, Welcome,
        proof::{ProofError, Trust},
        sign_input,
    },
    types::{Hash, Seq, WallMs},
};

/// Inputs without a word of what became of them. At it no further line is taken.
const PENDING_MAX: usize = 256;
/// Bytes of their frames; one may be longer.
const PENDING_BYTES_MAX: usize = 16 << 20;
/// Outputs that came while older ones were asked for. Past it they are forgotten, and asked for in turn.
const HELD_MAX: usize = 256;

/// Ledgers that are remembered as not final. Past it nothing is said of the oldest when it is.
const NOT_FINAL_MAX: usize = 4_096;
/// Failed runs that are remembered as shown. Past it an old one may be shown again.
const FAILED_MAX: usize = 256;

/// What is to be shown to a person, or told to a script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Show {
    /// The output that comes next is not final: its ledger is not settled.
    NotFinal { seq: Seq },
    /// What was shown of these ledgers, and was not final, is.
    Settled { first: Seq, last: Seq, tx: Hash },
    /// A proven output.
    Output { seq: Seq, payload: Vec<u8> },
    /// An input is in this ledger.
    Accepted { seq: Seq, nonce: u64 },
    /// An input was not taken and will not be sent again.
    Rejected { nonce: u64, reason: Reason, message: String },
    /// What the contract answered to a question, by this node's word.
    Answer { seq: Seq, payload: Vec<u8> },
    /// A question got no answer. No reason: the contract failed.
    NoAnswer { reason: Option<ReadReason>, message: String },
    /// The contract failed in a ledger with an input of ours.
    Failed { seq: Seq, status: String, proven: bool },
    /// The last closed ledger, by this node's word.
    Lcl { seq: Seq, ledger: Hash, time_ms: WallMs },
    /// Anything else that a person should know.
    Note(String),
}

/// Why a node is given up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Untrusted {
    /// An output with a wrong proof.
    #[error("the node sent an output of ledger {seq} with a wrong proof, which is not shown")]
    Output {
        seq: Seq,
        #[source]
        source: ProofError,
    },
    /// A run that failed, with a wrong proof.
    #[error("the node says with a wrong proof that the contract failed in ledger {seq}, which is not believed")]
    Run {
        seq: Seq,
        #[source]
        source: ProofError,
    },
    /// That ledgers are settled, with a wrong proof.
    #[error("the node says with a wrong proof that ledgers up to {last} are settled, which is not believed")]
    Settled {
        last: Seq,
        #[source]
        source: ProofError,
    },
    /// A change of the members, with a wrong proof.
    #[error("the node says with a wrong proof that the members change in ledger {seq}, which is not believed")]
    Members {
        seq: Seq,
        #[source]
        source: ProofError,
    },
    /// Another network than the one the conversation began with.
    #[error("the node is of another chain than the first one was")]
    Network,
}

struct Sent {
    frame: String,
    id: Hash,
}

/// One conversation.
pub(super) struct Talk {
    key: SecretKey,
    nonces: Nonces,
    trust: Option<Trust>,
    window: u64,
    /// Last ledger heard of.
    seq: Seq,
    pending: BTreeMap<u64, Sent>,
    pending_bytes: usize,
    /// Pending ones that a node had no room for.
    later: BTreeSet<u64>,
    /// Questions to the contract that have had no answer, by their ids.
    questions: BTreeMap<u64, String>,
    next_question: u64,
    /// Those that a node could not answer just now.
    questions_later: BTreeSet<u64>,
    /// Ledgers with inputs of ours whose results are not known.
    unsettled: BTreeSet<Seq>,
    /// Outputs of the ledgers up to this one were shown.
    covered: Option<Seq>,
    /// Older outputs are asked for.
    catching_up: bool,
    held: BTreeMap<Seq, OutputFrame>,
    /// Failed runs that were shown.
    failed: BTreeSet<Seq>,
    /// Held ones were forgotten.
    forgot: bool,
    /// Ledgers with outputs that were shown and are not final.
    not_final: BTreeSet<Seq>,
}

impl Talk {
    /// Outputs of the ledgers after `since` are to be shown; `None` for those to come.
    pub(super) fn new(key: SecretKey, nonces: Nonces, since: Option<Seq>) -> Talk {
        Talk {
            key,
            nonces,
            trust: None,
            window: 0,
            seq: 0,
            pending: BTreeMap::new(),
            pending_bytes: 0,
            later: BTreeSet::new(),
            questions: BTreeMap::new(),
            next_question: 0,
            questions_later: BTreeSet::new(),
            unsettled: BTreeSet::new(),
            covered: since,
            catching_up: false,
            held: BTreeMap::new(),
            failed: BTreeSet::new(),
            forgot: false,
            not_final: BTreeSet::new(),
        }
    }

    /// A node took the connection: what it is to be sent. The first one's network is the conversation's.
    pub(super) fn welcome(&mut self, welcome: &Welcome, trust: &Trust) -> Result<Vec<String>, Untrusted> {
        if self.trust.as_ref().is_some_and(|first| first.chain_id() != trust.chain_id()) {
            return Err(Untrusted::Network);
        }
        self.trust = Some(trust.clone());
        self.window = welcome.limits.input_window;
        self.seq = self.seq.max(welcome.seq);
        self.held.clear();
        self.later.clear();
        self.questions_later.clear();
        let inputs = self.pending.values().map(|sent| &sent.frame);
        let mut frames: Vec<String> = inputs.chain(self.questions.values()).cloned().collect();
        match self.covered {
            None => self.covered = Some(welcome.seq),
            Some(since) => {
                self.catching_up = true;
                frames.push(outputs_since(since));
            }
        }
        Ok(frames)
    }

    /// What is proven of the network, once a node took the connection.
    pub(super) fn trust(&self) -> Option<&Trust> {
        self.trust.as_ref()
    }

    /// Whether another input may be taken.
    pub(super) fn has_room(&self) -> bool {
        self.pending.len() + self.questions.len() < PENDING_MAX && self.pending_bytes < PENDING_BYTES_MAX
    }

    /// Signs an input: the frame to be sent now, and again until its fate is known. A network must have said welcome.
    pub(super) fn input(&mut self, payload: Vec<u8>) -> anyhow::Result<String> {
        let trust = self.trust.as_ref().expect("a network said welcome");
        let nonce = self.nonces.next()?;
        // Half of the window: time enough, and kept by nodes that are some ledgers behind.
        let max_ledger = self.seq.saturating_add((self.window / 2).max(1));
        let input = sign_input(&self.key, &trust.chain_id(), nonce, max_ledger, payload);
        let id = input.id(&trust.chain_id());
        let frame = Request::Input(InputFrame::from(input)).to_json();
        self.pending_bytes += frame.len();
        self.pending.insert(nonce, Sent { frame: frame.clone(), id });
        Ok(frame)
    }

    /// The number of the last input.
    pub(super) fn last_nonce(&self) -> Option<u64> {
        self.pending.last_key_value().map(|(nonce, _)| *nonce)
    }

    /// Asks for the last closed ledger: the frame to be sent now. Not sent again.
    pub(super) fn ask_lcl(&self) -> String {
        Request::Query(QueryFrame { id: None, query: Query::Lcl }).to_json()
    }

    /// What is owed, in words.
    pub(super) fn standing(&self) -> String {
        let (seq, inputs, questions) = (self.seq, self.pending.len(), self.questions.len());
        format!(
            "the last ledger heard of is {seq}; {inputs} inputs are in no ledger yet, {} ledgers with inputs have no result yet, \
             {questions} questions have no answer yet",
            self.unsettled.len()
        )
    }

    /// A question to the contract: the frame to be sent now, and again until there is an answer.
    pub(super) fn question(&mut self, payload: Vec<u8>) -> String {
        let id = self.next_question;
        self.next_question += 1;
        let frame = Request::Read(ReadFrame { id, payload: Base64(payload) }).to_json();
        self.pending_bytes += frame.len();
        self.questions.insert(id, frame.clone());
        frame
    }

    /// Inputs that no node has said anything final about.
    pub(super) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Whether everything sent has had its answer.
    pub(super) fn is_settled(&self) -> bool {
        self.pending.is_empty() && self.questions.is_empty() && self.unsettled.is_empty() && !self.catching_up
    }

    /// Whether a node owes an answer.
    pub(super) fn waits(&self) -> bool {
        !self.is_settled()
    }

    /// Some time has passed: what to send again.
    pub(super) fn again(&mut self) -> Vec<String> {
        let later = std::mem::take(&mut self.later);
        let mut frames: Vec<String> =
            later.iter().filter_map(|nonce| self.pending.get(nonce)).map(|sent| sent.frame.clone()).collect();
        let later = std::mem::take(&mut self.questions_later);
        frames.extend(later.iter().filter_map(|id| self.questions.get(id)).cloned());
        // The result of a ledger may have been told before we came.
        if let Some(since) = self.covered.filter(|_| !self.unsettled.is_empty() && !self.catching_up) {
            frames.push(outputs_since(since));
        }
        frames
    }

    /// A frame of a node: what to show, and what to send.
    pub(super) fn reply(&mut self, reply: Reply) -> Result<(Vec<Show>, Vec<String>), Untrusted> {
        let (mut shows, mut frames) = (Vec::new(), Vec::new());
        match reply {
            Reply::Status(status) => self.status(status, &mut shows)?,
            Reply::Output(output) => {
                self.check(&output)?;
                self.hold(output);
                if !self.catching_up {
                    self.release(Seq::MAX, &mut shows);
                }
            }
            Reply::Executed(executed) => {
                self.seq = self.seq.max(executed.seq);
                let seq = executed.seq;
                if self.unsettled.contains(&seq) {
                    shows.extend(self.fail(executed)?);
                }
                if !self.catching_up {
                    // Its output, if there was one, came before.
                    self.cover(seq);
                }
            }
            Reply::Settled(settled) => shows.extend(self.settled(&settled)?),
            Reply::Unl(step) => shows.extend(self.follow(&step)?),
            Reply::Answer(answer) => match answer.body {
                AnswerBody::Outputs(page) => self.page(page, &mut shows, &mut frames)?,
                AnswerBody::Lcl { seq, ledger, time_ms } => {
                    self.seq = self.seq.max(seq);
                    shows.push(Show::Lcl { seq, ledger: ledger.0, time_ms });
                }
                AnswerBody::Ledger { .. } | AnswerBody::Input { .. } | AnswerBody::Unl(_) => {}
            },
            Reply::ReadResult(result) => shows.extend(self.answered(result)),
            Reply::Error(error) => shows.push(Show::Note(format!("{}: {}", error.code, error.message))),
            Reply::Welcome(_) => {}
        }
        Ok((shows, frames))
    }

    fn status(&mut self, status: StatusFrame, shows: &mut Vec<Show>) -> Result<(), Untrusted> {
        let StatusFrame { nonce, id, fate } = status;
        // Else of another session with our key.
        let ours = |sent: &&Sent| id.is_none_or(|id| id.0 == sent.id);
        if self.pending.get(&nonce).filter(ours).is_none() {
            return Ok(());
        }
        match fate {
            Fate::Accepted { seq, ledger, run } => {
                self.seq = self.seq.max(seq);
                shows.push(Show::Accepted { seq, nonce });
                // One that was sent again may have been run long ago.
                if let Some(run) = run {
                    shows.extend(self.fail(Executed { seq, ledger, run })?);
                }
                if self.covered.is_none_or(|covered| covered < seq) {
                    self.unsettled.insert(seq);
                }
            }
            Fate::Rejected { reason: reason @ (Reason::Busy | Reason::Rate), message } => {
                // Not for ever: the same bytes go out again.
                if self.later.insert(nonce) {
                    shows.push(Show::Note(format!("{}: {message}; trying again", reason.name())));
                }
                return Ok(());
            }
            Fate::Rejected { reason, message } => shows.push(Show::Rejected { nonce, reason, message }),
        }
        let sent = self.pending.remove(&nonce).expect("just seen");
        self.pending_bytes -= sent.frame.len();
        Ok(())
    }

    /// What came of a question; what to show of it.
    fn answered(&mut self, result: ReadResult) -> Option<Show> {
        let ReadResult { id, fate } = result;
        let frame = self.questions.get(&id)?;
        let show = match fate {
            ReadFate::Refused {
                reason: reason @ (ReadReason::Busy | ReadReason::Rate | ReadReason::NotReady),
                message,
            } => {
                // Asked again, and said so once.
                let is_new = self.questions_later.insert(id);
                return is_new.then(|| Show::Note(format!("{}: {message}; trying again", reason.name())));
            }
            ReadFate::Refused { reason, message } => Show::NoAnswer { reason: Some(reason), message },
            ReadFate::Failed { seq, run, .. } => Show::NoAnswer {
                reason: None,
                message: format!("the contract failed on the state after ledger {seq} ({run})"),
            },
            ReadFate::Ok { seq, payload, .. } => Show::Answer { seq, payload: payload.0 },
        };
        self.pending_bytes -= frame.len();
        self.questions.remove(&id);
        Some(show)
    }

    /// What to show of a run with an input of ours: that it failed, once.
    fn fail(&mut self, executed: Executed) -> Result<Option<Show>, Untrusted> {
        let Executed { seq, ledger, run } = executed;
        if run.ok {
            return Ok(None);
        }
        let trust = self.trust.as_ref().expect("a network said welcome");
        let proven = trust.check_run(seq, ledger.0, &run).map_err(|source| Untrusted::Run { seq, source })?;
        if self.failed.len() == FAILED_MAX {
            self.failed.pop_first();
        }
        Ok(self.failed.insert(seq).then_some(Show::Failed { seq, status: run.status, proven }))
    }

    /// What to show of a settlement: that what was shown is final now, if something was not.
    fn settled(&mut self, settled: &Settled) -> Result<Option<Show>, Untrusted> {
        let Settled { first, last, tx, .. } = *settled;
        if self.not_final.first().is_none_or(|seq| *seq > last) {
            return Ok(None);
        }
        let trust = self.trust.as_ref().expect("a network said welcome");
        trust.check_settled(settled).map_err(|source| Untrusted::Settled { last, source })?;
        self.not_final.retain(|seq| *seq > last);
        Ok(Some(Show::Settled { first, last, tx: tx.0 }))
    }

    /// What to show of a change of the members, once it is proven.
    fn follow(&mut self, step: &UnlStep) -> Result<Option<Show>, Untrusted> {
        let trust = self.trust.as_mut().expect("a network said welcome");
        let followed = trust.follow(step).map_err(|source| Untrusted::Members { seq: step.seq, source })?;
        let (what, members) = (if step.change == Change::Add { "joined" } else { "left" }, trust.unl().len());
        Ok(followed.then(|| {
            Show::Note(format!(
                "node {} {what} the network with ledger {}: {members} members",
                step.node.0.short(),
                step.seq
            ))
        }))
    }

    fn page(&mut self, page: OutputsPage, shows: &mut Vec<Show>, frames: &mut Vec<String>) -> Result<(), Untrusted> {
        let since = self.covered.unwrap_or(0);
        for output in page.outputs {
            self.check(&output)?;
            self.hold(output);
        }
        for executed in page.failed.into_iter().filter(|executed| executed.seq > since) {
            shows.extend(self.fail(executed)?);
        }
        if page.kept_from > since.saturating_add(1) {
            let text = format!("outputs of ledgers {} to {} are not kept by this node", since + 1, page.kept_from - 1);
            shows.push(Show::Note(text));
        }
        if !page.missing.is_empty() {
            let missing: Vec<String> = page.missing.iter().map(Seq::to_string).collect();
            shows.push(Show::Note(format!("this node lacks the outputs of ledgers {}", missing.join(", "))));
        }
        self.release(page.to, shows);
        for settled in &page.settlements {
            shows.extend(self.settled(settled)?);
        }
        self.cover(page.to);
        if page.more && page.to > since {
            frames.push(outputs_since(page.to));
        } else if std::mem::take(&mut self.forgot) {
            frames.push(outputs_since(self.covered.unwrap_or(0)));
        } else {
            self.catching_up = false;
            self.release(Seq::MAX, shows);
        }
        Ok(())
    }

    fn check(&self, output: &OutputFrame) -> Result<(), Untrusted> {
        let trust = self.trust.as_ref().expect("a network said welcome");
        let checked = trust.check_output(&self.key.user_key(), output);
        checked.map_err(|source| Untrusted::Output { seq: output.seq, source })
    }

    fn hold(&mut self, output: OutputFrame) {
        self.seq = self.seq.max(output.seq);
        self.held.insert(output.seq, output);
        if self.held.len() > HELD_MAX {
            self.held.pop_last();
            self.forgot = true;
        }
    }

    /// Shows what is held of the ledgers up to `to`, unless it was shown.
    fn release(&mut self, to: Seq, shows: &mut Vec<Show>) {
        while let Some(first) = self.held.first_entry().filter(|first| *first.key() <= to) {
            let OutputFrame { seq, payload, is_final, .. } = first.remove();
            if self.covered.is_none_or(|covered| covered < seq) {
                if is_final == Some(false) {
                    self.not_final.insert(seq);
                    if self.not_final.len() > NOT_FINAL_MAX {
                        self.not_final.pop_first();
                    }
                    shows.push(Show::NotFinal { seq });
                }
                shows.push(Show::Output { seq, payload: payload.0 });
                self.cover(seq);
            }
        }
    }

    fn cover(&mut self, seq: Seq) {
        self.covered = self.covered.max(Some(seq));
        let covered = self.covered.expect("just set");
        self.unsettled.retain(|seq| *seq > covered);
    }
}

fn outputs_since(since: Seq) -> String {
    Request::Query(QueryFrame { id: None, query: Query::Outputs { since } }).to_json()
}

impl std::fmt::Display for Show {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Show::NotFinal { seq } => write!(f, "not final yet: ledger {seq} is not settled"),
            Show::Settled { first, last, tx } => {
                write!(f, "final: ledgers {first} to {last} are settled, in transaction {tx}")
            }
            Show::Output { seq, payload } => write!(f, "{} bytes of ledger {seq}", payload.len()),
            Show::Accepted { seq, .. } => write!(f, "accepted in ledger {seq}"),
            Show::Rejected { nonce, reason, message } => {
                write!(f, "input {nonce} rejected ({}): {message}", reason.name())
            }
            Show::Failed { seq, status, proven } => {
                write!(
                    f,
                    "the contract failed in ledger {seq} ({status}): its outputs are dropped and its state is as before{}",
                    if *proven { "" } else { ", as this node says without a proof" }
                )
            }
            Show::Answer { seq, payload } => write!(f, "{} bytes from the state after ledger {seq}", payload.len()),
            Show::NoAnswer { reason: Some(reason), message } => {
                write!(f, "no answer to a question ({}: {message})", reason.name())
            }
            Show::NoAnswer { reason: None, message } => write!(f, "no answer to a question ({message})"),
            Show::Lcl { seq, ledger, time_ms } => {
                write!(
                    f,
                    "ledger {seq}, hash {ledger}, time {}.{:03}, by this node's word",
                    time_ms / 1_000,
                    time_ms % 1_000
                )
            }
            Show::Note(text) => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        consensus::{
            header::{ExecResult, Genesis, Header, Settlement, VERSION},
            merkle,
            messages::{Certificate, Closed, Precommit, ResultCert, Scope, Signable, Vote},
        },
        signed::{
            Answer, Limits, RunEnd, Text,
            proof::{Agreement, OutputProof},
        },
        types::Status,
        wire,
    };

    fn node() -> SecretKey {
        SecretKey::from_seed([1; 32])
    }

    fn me() -> SecretKey {
        SecretKey::from_seed([2; 32])
    }

    fn welcome(seq: Seq) -> Welcome {
        let genesis = Genesis {
            ver: VERSION,
            contract_id: Hash([1; 32]),
            unl: vec![node().node_key()],
            threshold: 80,
            cfg_hash: Hash::ZERO,
            state_root: Hash::ZERO,
            time_ms: 0,
            ancestor: None,
        };
        Welcome {
            node: Text(node().node_key()),
            contract: Text(genesis.contract_id),
            chain: Text(genesis.chain_id()),
            genesis: Base64(wire::encode(&genesis)),
            unl: genesis.unl.iter().copied().map(Text).collect(),
            threshold: 80,
            seq,
            lcl: Text(Hash::ZERO),
            time: 0,
            execute: Text(crate::types::Execute::Settled),
            settled_seq: 0,
            limits: Limits { payload_bytes: 100, messages_per_minute: None, input_window: 1_000 },
        }
    }

    fn trust() -> Trust {
        Trust::of(&welcome(1)).unwrap()
    }

    fn output(seq: Seq, text: &str) -> OutputFrame {
        let leaf = merkle::output_leaf(&me().user_key(), text.as_bytes());
        let ledger = Hash([seq as u8; 32]);
        let result = ExecResult {
            of_seq: seq,
            of_hash: ledger,
            state_root: Hash::ZERO,
            outputs_root: leaf,
            status: Status::Ok,
            unl_req: None,
        };
        let agreed = agreed(result);
        let path = merkle::proof(vec![leaf], 0).unwrap().into();
        let proof = OutputProof { agreed, path };
        OutputFrame { seq, ledger: Text(ledger), payload: Base64(text.into()), is_final: None, proof }
    }

    /// That the ledgers up to `last` are settled, as ledger `last` + 2 records it.
    fn settled(first: Seq, last: Seq) -> Settled {
        let scope = Scope { chain_id: trust().chain_id(), unl_hash: crate::consensus::header::unl_hash(trust().unl()) };
        let settlement =
            Settlement { seq: last, ch: Hash([3; 32]), tx: Hash([4; 32]), confirmed_length: 5, txv: Hash([6; 32]) };
        let result = ExecResult {
            of_seq: last + 1,
            of_hash: Hash::ZERO,
            state_root: Hash::ZERO,
            outputs_root: Hash::ZERO,
            status: Status::Ok,
            unl_req: None,
        };
        let header = Header {
            ver: VERSION,
            chain_id: trust().chain_id(),
            seq: last + 2,
            parent: Hash::ZERO,
            time_ms: 0,
            unl_hash: scope.unl_hash,
            next_unl_hash: scope.unl_hash,
            users_root: Hash::ZERO,
            n_users: 0,
            inputs_root: Hash::ZERO,
            n_inputs: 0,
            inputs_bytes: 0,
            result,
            settlement: Some(settlement),
        };
        let vote = Vote { seq: last + 2, attempt: 0, ledger_hash: header.hash() };
        let sigs = vec![(node().node_key(), node().sign(&Precommit(vote).digest(&scope).0))];
        let proof = Agreement::by_header(&Closed { header, qc: Certificate { vote, sigs } });
        let (tx, ch) = (Text(Hash([4; 32])), Text(Hash([3; 32])));
        Settled { first, last, tx, ch, confirmed_length: 5, recorded_in: last + 2, proof }
    }

    #[test]
    fn what_is_not_final_is_marked_and_said_to_be_once_it_is_with_proof() {
        let mut talk = begun();
        let early = |seq, text| OutputFrame { is_final: Some(false), ..output(seq, text) };
        let told = shows(&mut talk, Reply::Output(early(11, "a")));
        let mark = Show::NotFinal { seq: 11 };
        assert_eq!(told, [mark, Show::Output { seq: 11, payload: b"a".to_vec() }]);
        let last = OutputFrame { is_final: Some(true), ..output(12, "b") };
        assert_eq!(shows(&mut talk, Reply::Output(last)), [Show::Output { seq: 12, payload: b"b".to_vec() }]);
        // Of what came before nobody need be told.
        assert_eq!(shows(&mut talk, Reply::Settled(settled(1, 10))), []);
        let mut forged = settled(11, 13);
        forged.tx = Text(Hash([9; 32]));
        assert!(matches!(talk.reply(Reply::Settled(forged)), Err(Untrusted::Settled { last: 13, .. })));
        let is_final = Show::Settled { first: 11, last: 13, tx: Hash([4; 32]) };
        assert_eq!(shows(&mut talk, Reply::Settled(settled(11, 13))), [is_final]);
        assert_eq!(shows(&mut talk, Reply::Settled(settled(11, 13))), [], "once");
    }

    fn failed(seq: Seq) -> Executed {
        let ledger = Hash([seq as u8; 32]);
        let result = ExecResult {
            of_seq: seq,
            of_hash: ledger,
            state_root: Hash::ZERO,
            outputs_root: Hash::ZERO,
            status: Status::Exit(3),
            unl_req: None,
        };
        let proof = agreed(result.clone());
        Executed { seq, ledger: Text(ledger), run: RunEnd::of(&result, Some(proof)) }
    }

    fn agreed(result: ExecResult) -> Agreement {
        let scope = Scope { chain_id: trust().chain_id(), unl_hash: crate::consensus::header::unl_hash(trust().unl()) };
        let sigs = vec![(node().node_key(), node().sign(&result.digest(&scope).0))];
        Agreement::by_results(&ResultCert { result, sigs })
    }

    fn begun() -> Talk {
        let mut talk = Talk::new(me(), Nonces::of(None), None);
        assert_eq!(talk.welcome(&welcome(10), &trust()).unwrap(), Vec::<String>::new());
        talk
    }

    fn status(talk: &Talk, nonce: u64, fate: Fate) -> Reply {
        let id = talk.pending.get(&nonce).map(|sent| Text(sent.id));
        Reply::Status(StatusFrame { nonce, id, fate })
    }

    fn accepted(talk: &Talk, nonce: u64, seq: Seq) -> Reply {
        status(talk, nonce, Fate::Accepted { seq, ledger: Text(Hash::ZERO), run: None })
    }

    fn shows(talk: &mut Talk, reply: Reply) -> Vec<Show> {
        talk.reply(reply).unwrap().0
    }

    fn page(since: Seq, to: Seq, more: bool, outputs: Vec<OutputFrame>) -> Reply {
        let page = OutputsPage {
            since,
            to,
            more,
            kept_from: 1,
            missing: vec![],
            failed: vec![],
            outputs,
            settlements: vec![],
        };
        Reply::Answer(Answer { id: None, body: AnswerBody::Outputs(page) })
    }

    fn shown(seq: Seq, text: &str) -> Show {
        Show::Output { seq, payload: text.into() }
    }

    fn nonce_of(talk: &Talk) -> u64 {
        *talk.pending.keys().next_back().unwrap()
    }

    #[test]
    fn an_input_is_owed_until_it_is_accepted_and_its_ledgers_result_is_known() {
        let mut talk = begun();
        assert!(talk.is_settled());
        talk.input(b"a".to_vec()).unwrap();
        let nonce = nonce_of(&talk);
        // Another session's input with this number is none of ours.
        let other = Reply::Status(StatusFrame {
            nonce,
            id: Some(Text(Hash([9; 32]))),
            fate: Fate::Rejected { reason: Reason::NonceUsed, message: String::new() },
        });
        assert_eq!(shows(&mut talk, other), []);
        let reply = accepted(&talk, nonce, 11);
        assert_eq!(shows(&mut talk, reply), [Show::Accepted { seq: 11, nonce }]);
        assert_eq!((talk.pending(), talk.is_settled()), (0, false));
        assert_eq!(shows(&mut talk, Reply::Executed(failed(11))), [shown_failed(11)]);
        assert!(talk.is_settled());
    }

    #[test]
    fn a_failed_run_with_an_input_of_ours_is_shown_once_however_it_is_told_and_with_a_wrong_proof_never() {
        let mut talk = begun();
        talk.input(b"a".to_vec()).unwrap();
        let nonce = nonce_of(&talk);
        // Sent again to a node that has run it long ago.
        let Executed { seq, ledger, run } = failed(11);
        let reply = status(&talk, nonce, Fate::Accepted { seq, ledger, run: Some(run) });
        assert_eq!(shows(&mut talk, reply), [Show::Accepted { seq: 11, nonce }, shown_failed(11)]);
        let with = |failed: Vec<Executed>| {
            let (outputs, missing, settlements) = (vec![], vec![], vec![]);
            let page =
                OutputsPage { since: 10, to: 12, more: false, kept_from: 1, missing, failed, outputs, settlements };
            Reply::Answer(Answer { id: None, body: AnswerBody::Outputs(page) })
        };
        assert_eq!(shows(&mut talk, with(vec![failed(11), failed(12)])), [shown_failed(12)]);
        assert!(talk.is_settled());

        let mut forged = failed(11);
        forged.run.status = "exit code 4".into();
        let mut other = failed(11);
        other.ledger.0.0[0] ^= 1;
        let mut good = failed(11);
        (good.run.ok, good.run.status) = (true, "ok".into());
        for lie in [forged, other] {
            assert!(matches!(begun().reply(with(vec![lie])), Err(Untrusted::Run { seq: 11, .. })));
        }
        assert!(trust().check_run(11, good.ledger.0, &good.run).is_err(), "that it went well is not proven by that");
        let bare = Executed { run: RunEnd { proof: None, ..failed(11).run }, ..failed(11) };
        let Show::Failed { status, .. } = shown_failed(11) else { panic!("it failed") };
        assert_eq!(shows(&mut begun(), with(vec![bare])), [Show::Failed { seq: 11, status, proven: false }]);
    }

    fn shown_failed(seq: Seq) -> Show {
        Show::Failed { seq, status: "exit code 3".into(), proven: true }
    }

    #[test]
    fn a_node_that_lies_about_an_output_is_given_up_and_nothing_of_it_is_shown() {
        let mut forged = output(11, "right");
        forged.payload.0 = b"wrong".to_vec();
        assert!(matches!(begun().reply(Reply::Output(forged.clone())), Err(Untrusted::Output { seq: 11, .. })));
        assert!(begun().reply(page(10, 11, false, vec![forged])).is_err(), "in a page too");
        let mut unsigned = output(11, "right");
        if let Agreement::Results { sigs, .. } = &mut unsigned.proof.agreed {
            sigs.clear();
        }
        assert!(begun().reply(Reply::Output(unsigned)).is_err());
        let mut talk = begun();
        let other = Trust::new(Hash([9; 32]), trust().unl().to_vec(), 80).unwrap();
        assert_eq!(talk.welcome(&welcome(10), &other), Err(Untrusted::Network));
    }

    #[test]
    fn after_a_change_of_nodes_the_same_bytes_go_out_and_every_output_is_shown_once_in_order() {
        let mut talk = begun();
        let frame = talk.input(b"a".to_vec()).unwrap();
        assert_eq!(shows(&mut talk, Reply::Output(output(11, "eleven"))), [shown(11, "eleven")]);
        assert_eq!(talk.welcome(&welcome(13), &trust()).unwrap(), [frame, outputs_since(11)]);
        // What comes meanwhile waits for what is older.
        assert_eq!(shows(&mut talk, Reply::Output(output(14, "fourteen"))), []);
        let (first, frames) = talk.reply(page(11, 12, true, vec![output(12, "twelve")])).unwrap();
        assert_eq!((first, frames), (vec![shown(12, "twelve")], vec![outputs_since(12)]));
        let rest = shows(&mut talk, page(12, 13, false, vec![output(13, "thirteen")]));
        assert_eq!(rest, [shown(13, "thirteen"), shown(14, "fourteen")]);
        assert_eq!(shows(&mut talk, Reply::Output(output(13, "thirteen"))), [], "not again");
        // Its ledger was shown already: nothing more is owed.
        let reply = accepted(&talk, nonce_of(&talk), 12);
        shows(&mut talk, reply);
        assert!(talk.is_settled());
    }

    #[test]
    fn what_a_node_had_no_room_for_is_sent_again_and_what_it_refuses_is_not() {
        let mut talk = begun();
        let frame = talk.input(b"a".to_vec()).unwrap();
        let rejected =
            |talk: &Talk, reason| status(talk, nonce_of(talk), Fate::Rejected { reason, message: "why".into() });
        for reason in [Reason::Busy, Reason::Rate] {
            let reply = rejected(&talk, reason);
            assert!(matches!(shows(&mut talk, reply)[..], [Show::Note(_)]));
            assert_eq!(talk.again(), std::slice::from_ref(&frame));
        }
        assert_eq!(talk.again(), Vec::<String>::new(), "once a time");
        let reply = rejected(&talk, Reason::Expired);
        assert!(matches!(shows(&mut talk, reply)[..], [Show::Rejected { reason: Reason::Expired, .. }]));
        assert!(talk.is_settled());
        // Numbers go on, and room is bounded.
        while talk.has_room() {
            talk.input(vec![0; 50]).unwrap();
        }
        assert_eq!(talk.pending(), PENDING_MAX);
    }
}
