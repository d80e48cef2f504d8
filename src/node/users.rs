//! What users ask and are told: inputs in, what became of them, outputs and what proves them.
//!
//! Users in raw mode get outputs as they are, at once, or (`release`) when they are settled. For users in signed mode frames
//! are made of them with proofs, one ledger after the other; what is not in memory any more, or would take long, is made
//! beside the loop.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde_json::{Value, json};
use tracing::{debug, warn};

use super::{
    Node, NodeError,
    http::{Agreed, Became},
};
use crate::{
    consensus::{
        Event, LocalInput, LocalRef, Refused, SignedRef, SignedState,
        header::{ExecResult, Header, Input, Settlement, UnlChange},
        merkle::{self, Tree},
        messages::{Certificate, Closed, ResultCert},
    },
    gateway::{ErrorCode, GatewayEvent, SessionId},
    ledger::{Ledger, LedgerError, PastOutputs, PastSettlement},
    signed::{
        Answer, AnswerBody, Base64, ErrorFrame, Executed, Fate, InputState, LedgerFrame, Limits, OutputFrame,
        OutputsPage, Query, QueryFrame, Reason, Reply, Request, RunEnd, Settled, StatusFrame, Text, UnlPage, UnlStep,
        Welcome,
        proof::{Agreement, OutputProof},
    },
    types::{Execute, Hash, Seq, Status, UserKey},
    wire,
};

/// Sessions remembered for answers to their inputs. Past it all are forgotten: they lose refusals, no inputs.
const SESSIONS_MAX: usize = 65_536;
/// Questions of one session that the database is asked at a time. Past it a question is answered `busy`.
const ASKED_BY_SESSION_MAX: usize = 8;
/// Questions of all sessions that the database is asked at a time; past it, the same.
const ASKED_MAX: usize = 128;
/// Agreed results waiting to be told to users in signed mode. Past it the oldest is not told: who misses its output
/// asks for the outputs since.
const DELIVERIES_MAX: usize = 4_096;
/// Of how many of those the outputs stay in memory; others are read from the database again.
const DELIVERIES_IN_MEMORY_MAX: usize = 8;
/// Bytes of outputs of one ledger that are made into frames on the loop; more are made beside it.
const FRAMES_BYTES_MAX: usize = 64 << 10;

/// Changes of the UNL in one answer: at most 420 KB, where each has the signatures of 128 members.
const UNL_STEPS_MAX: usize = 16;

/// Something that users in signed mode are to be told of, in order.
#[derive(Debug)]
pub(super) enum Delivery {
    /// A result that is agreed on.
    Result {
        agreed: Box<ResultCert>,
        /// `None` when they must be read.
        outputs: Option<Outputs>,
        /// Users with input in that ledger.
        senders: Vec<UserKey>,
    },
    /// Everybody is told this frame: that what was put out is final, or that the members are others. It costs each of them some
    /// hundred bytes a member.
    ToAll(String),
}

/// What a node knows of what is final when it makes frames.
#[derive(Debug, Clone, Copy)]
pub(super) struct Finality {
    pub(super) execute: Execute,
    pub(super) settled_seq: Seq,
}

impl Finality {
    /// Whether the outputs of this ledger are, as frames say it.
    fn of(self, seq: Seq) -> Option<bool> {
        (self.execute == Execute::Settled).then_some(seq <= self.settled_seq)
    }
}

/// Outputs of one ledger, ascending by user, with the leaves of their tree.
#[derive(Debug)]
pub(super) struct Outputs {
    outputs: Vec<(UserKey, Bytes)>,
    leaves: Vec<Hash>,
}

/// What was made beside the loop.
#[derive(Debug)]
pub(super) enum Told {
    /// An answer to one session.
    Answer(SessionId, String),
    /// A question to the contract is over; what to say of it, if the session is not.
    Read(SessionId, Option<String>),
    /// To all sessions of a user: what became of an input it sent again.
    Fate(UserKey, String),
    /// Frames of the delivery under way.
    Delivered(Vec<(UserKey, String)>),
    /// Who sent something in a ledger whose run failed, of which this process knew nothing any more.
    Failed(Box<ResultCert>, Vec<UserKey>),
}

impl Node {
    pub(super) fn on_user(&mut self, event: GatewayEvent) -> Result<(), NodeError> {
        match event {
            GatewayEvent::UserUp { user } => self.handle(Event::UserUp(user)),
            GatewayEvent::UserDown { user } => {
                self.sessions.retain(|(other, _), _| *other != user);
                self.handle(Event::UserDown(user))
            }
            GatewayEvent::Input { user, session, proof, counter, payload } => {
                if let Some(why) = self.refuses_raw_inputs() {
                    if let Some(gateway) = &self.gateway {
                        gateway.refuse(session, ErrorCode::Refused, why);
                    }
                    return Ok(());
                }
                if self.sessions.len() >= SESSIONS_MAX {
                    self.sessions.clear();
                }
                self.sessions.insert((user, proof.challenge), session);
                self.handle(Event::LocalInput(LocalInput {
                    user,
                    challenge: proof.challenge,
                    helo_sig: proof.sig,
                    nonce: counter,
                    payload: payload.to_vec(),
                }))
            }
            GatewayEvent::Opened { user, session } => {
                let welcome = self.welcome();
                if let Some(gateway) = &self.gateway {
                    gateway.welcome(&user, session, &welcome);
                }
                Ok(())
            }
            GatewayEvent::Request { user, session, request: Request::Query(asked) } => {
                self.on_query(user, session, asked);
                Ok(())
            }
            GatewayEvent::Request { user, session, request: Request::Read(asked) } => {
                self.on_read(user, session, asked);
                Ok(())
            }
            GatewayEvent::Request { user, session, request: Request::Input(frame) } => {
                let input = frame.of(user);
                let chain_id = self.core.chain_id();
                if self.edge.check_input(&input, &chain_id).is_err() {
                    self.reject_unsigned(session, &input, &chain_id);
                    return Ok(());
                }
                self.handle(Event::SignedInput(input))
            }
        }
    }

    fn refuses_raw_inputs(&self) -> Option<&'static str> {
        if self.config.user.inputs == crate::config::Inputs::Signed {
            Some(
                "this network takes signed inputs only ([user] inputs = \"signed\"): say helo with \"mode\":\"signed\", as \
                 hp client does without --raw",
            )
        } else if self.syncing.is_some() {
            Some(
                "this node is fetching the network's state, so it could not hand you the answer; use another node, or try later",
            )
        } else if !self.core.unl().contains(&self.config.key) {
            Some(
                "this node is an observer, not a member of the UNL, so it cannot vouch for inputs that are not signed; \
                 signed ones it passes on (\"mode\":\"signed\")",
            )
        } else {
            None
        }
    }

    fn welcome(&self) -> Reply {
        let summary = self.core.summary();
        let genesis = self.core.genesis();
        Reply::Welcome(Box::new(Welcome {
            node: Text(self.config.key),
            contract: Text(genesis.contract_id),
            chain: Text(self.core.chain_id()),
            genesis: Base64(wire::encode(genesis)),
            unl: self.core.unl().iter().copied().map(Text).collect(),
            threshold: genesis.threshold,
            seq: summary.seq,
            lcl: Text(summary.lcl),
            time: summary.time_ms / 1000,
            execute: Text(self.config.msb.execute),
            settled_seq: self.settled_seq,
            limits: Limits {
                payload_bytes: self.config.pubmaxsize,
                messages_per_minute: self.config.pubmaxcpm,
                input_window: self.config.consensus.input_window,
            },
        }))
    }

    // ---- What became of inputs ----------------------------------------------------------------------------------

    /// Tells the users here of their signed inputs in a closed ledger.
    pub(super) fn accept(&self, seq: Seq, ledger: Hash, signed: &[SignedRef]) {
        let Some(gateway) = self.gateway.as_ref().filter(|gateway| gateway.has_any_signed()) else { return };
        for input in signed.iter().filter(|input| gateway.has_signed(&input.user)) {
            let fate = Fate::Accepted { seq, ledger: Text(ledger), run: None };
            gateway.say(&input.user, status(input, fate));
        }
    }

    fn reject_unsigned(&self, session: SessionId, input: &Input, chain_id: &Hash) {
        let id = input.id(chain_id);
        debug!(user = %input.user.short(), nonce = input.nonce, "an input with a wrong signature");
        let message = format!("sig is not pubkey's ed25519 signature over the input's id, here {id}");
        let fate = Fate::Rejected { reason: Reason::BadSig, message };
        let status = StatusFrame { nonce: input.nonce, id: Some(Text(id)), fate };
        if let Some(gateway) = &self.gateway {
            gateway.answer(session, Reply::Status(status).to_json());
        }
    }

    pub(super) fn refuse(&mut self, input: &LocalRef, why: Refused) {
        if let LocalRef::Signed(input) = input {
            self.waiting.tell(
                &input.id,
                match why {
                    Refused::Ledgered(seq) => Became::InLedger(seq),
                    why => Became::Refused(why),
                },
            );
        }
        let Some(gateway) = &self.gateway else { return };
        match input {
            LocalRef::Session { user, challenge, .. } => {
                let Some(session) = self.sessions.get(&(*user, *challenge)) else { return };
                match why {
                    Refused::Busy => gateway.refuse(*session, ErrorCode::Busy, BUSY),
                    Refused::NoRoom => gateway.refuse(*session, ErrorCode::Busy, NO_ROOM),
                    Refused::Expired | Refused::TooFar => {
                        gateway.refuse(*session, ErrorCode::Expired, "too late for the ledger it was meant for")
                    }
                    // The gateway has checked both before.
                    Refused::Ledgered(_) | Refused::TooLong | Refused::NotSigned => {}
                }
            }
            LocalRef::Signed(input) if gateway.has_signed(&input.user) => {
                let reason = match why {
                    Refused::Ledgered(seq) => return self.tell_what_became(*input, seq),
                    Refused::Busy => Reason::Busy,
                    Refused::NoRoom => {
                        let fate = Fate::Rejected { reason: Reason::Busy, message: NO_ROOM.to_owned() };
                        return gateway.say(&input.user, status(input, fate));
                    }
                    Refused::Expired => Reason::Expired,
                    Refused::TooFar => Reason::TooFar,
                    Refused::TooLong | Refused::NotSigned => Reason::TooLarge,
                };
                gateway.say(&input.user, rejected(input, reason));
            }
            LocalRef::Signed(_) => {}
        }
    }

    pub(super) fn expired(&mut self, inputs: &[LocalRef]) {
        for input in inputs {
            if let LocalRef::Signed(input) = input {
                self.waiting.tell(&input.id, Became::Expired);
            }
        }
        let Some(gateway) = &self.gateway else { return };
        for input in inputs {
            match input {
                LocalRef::Session { user, nonce, .. } => {
                    let why =
                        format!("input {nonce} of this session was not taken into a ledger in time and never will be");
                    gateway.tell(user, ErrorCode::Expired, &why);
                }
                LocalRef::Signed(input) if gateway.has_signed(&input.user) => {
                    gateway.say(&input.user, rejected(input, Reason::Expired));
                }
                LocalRef::Signed(_) => {}
            }
        }
    }

    /// An input whose nonce is in ledger `seq` already: the same one, or another?
    fn tell_what_became(&mut self, input: SignedRef, seq: Seq) {
        if self.asking.values().sum::<usize>() >= ASKED_MAX {
            if let Some(gateway) = &self.gateway {
                gateway.say(&input.user, rejected(&input, Reason::Busy));
            }
            return;
        }
        // It is nobody's session, and counted with the others.
        *self.asking.entry(NO_SESSION).or_insert(0) += 1;
        let (ledger, told, tip) = (self.ledger.clone(), self.told_tx.clone(), self.last_agreed.clone());
        tokio::spawn(async move {
            let looked = became_of(&ledger, &input, seq, tip.as_ref());
            let frame = looked.await.map(|fate| status(&input, fate)).unwrap_or_else(|error| {
                warn!(error = &error as &dyn std::error::Error, "cannot look an input up");
                rejected(&input, Reason::Busy)
            });
            let _ = told.send(Told::Fate(input.user, frame)).await;
        });
    }

    // ---- Questions ----------------------------------------------------------------------------------------------

    fn on_query(&mut self, user: UserKey, session: SessionId, asked: QueryFrame) {
        let QueryFrame { id, query } = asked;
        let answer = |body| Reply::Answer(Answer { id, body }).to_json();
        let Some(gateway) = &self.gateway else { return };
        let (ledger, told) = (self.ledger.clone(), self.told_tx.clone());
        let (tip_agreed, finality) = (self.last_agreed.clone(), self.finality());
        let ledgered = match query {
            Query::Lcl => {
                let summary = self.core.summary();
                let body = AnswerBody::Lcl { seq: summary.seq, ledger: Text(summary.lcl), time_ms: summary.time_ms };
                return gateway.answer(session, answer(body));
            }
            Query::Input { nonce } => match self.core.signed_state(user, nonce) {
                SignedState::Held => {
                    return gateway.answer(session, answer(AnswerBody::Input { nonce, state: InputState::Pending }));
                }
                SignedState::Unknown => {
                    return gateway.answer(session, answer(AnswerBody::Input { nonce, state: InputState::Unknown }));
                }
                SignedState::Ledgered(seq) => Some(seq),
            },
            Query::Ledger { .. } | Query::Outputs { .. } | Query::Unl { .. } => None,
        };
        let count = self.asking.get(&session).copied().unwrap_or(0);
        if count >= ASKED_BY_SESSION_MAX || self.asking.values().sum::<usize>() >= ASKED_MAX {
            return gateway.refuse(session, ErrorCode::Busy, "too many questions at once; ask again");
        }
        *self.asking.entry(session).or_insert(0) += 1;
        tokio::spawn(async move {
            let body = match query {
                Query::Lcl => unreachable!("answered above"),
                Query::Ledger { seq } => ledger_frame(&ledger, seq).await,
                Query::Input { nonce } => input_state(&ledger, nonce, ledgered.expect("found above"), tip_agreed).await,
                Query::Outputs { since } => outputs_page(&ledger, user, since, tip_agreed, finality).await,
                Query::Unl { since } => unl_page(&ledger, since).await,
            };
            let frame = body.map(|body| Reply::Answer(Answer { id, body }).to_json()).unwrap_or_else(|error| {
                warn!(error = &error as &dyn std::error::Error, "cannot answer a user");
                let message = "the node cannot read its database".to_owned();
                Reply::Error(ErrorFrame { code: ErrorCode::Busy.as_str().to_owned(), message }).to_json()
            });
            let _ = told.send(Told::Answer(session, frame)).await;
        });
    }

    pub(super) fn on_told(&mut self, told: Told) {
        let done = |asking: &mut BTreeMap<SessionId, usize>, session| {
            if let Some(count) = asking.get_mut(&session) {
                *count -= 1;
                if *count == 0 {
                    asking.remove(&session);
                }
            }
        };
        match told {
            Told::Answer(session, frame) => {
                done(&mut self.asking, session);
                if let Some(gateway) = &self.gateway {
                    gateway.answer(session, frame);
                }
            }
            Told::Read(session, frame) => {
                self.reads.done(session);
                if let (Some(gateway), Some(frame)) = (&self.gateway, frame) {
                    gateway.answer(session, frame);
                }
            }
            Told::Fate(user, frame) => {
                done(&mut self.asking, NO_SESSION);
                if let Some(gateway) = &self.gateway {
                    gateway.say(&user, frame);
                }
            }
            Told::Delivered(frames) => {
                self.delivering = false;
                self.say_all(frames);
                self.deliver_signed();
            }
            Told::Failed(agreed, senders) => self.deliver_to(*agreed, None, senders),
        }
    }

    // ---- Outputs ------------------------------------------------------------------------------------------------

    pub(super) fn deliver(&mut self, agreed: ResultCert) {
        let result = &agreed.result;
        self.report.agreed(result);
        self.reads.agreed(result);
        self.settled(result);
        self.delivered_seq = result.of_seq;
        self.release();
        self.last_agreed = (!agreed.sigs.is_empty()).then(|| agreed.clone());
        let (tip, finality) = (self.last_agreed.clone(), self.finality());
        self.agreed.send_replace(Agreed { seq: result.of_seq, tip, finality });
        self.events.tell("result", || {
            json!({ "seq": result.of_seq, "status": result.status.to_string(), "state_root": result.state_root.to_string() })
        });
        // Not there: executed before a restart, and its sessions ended with that process.
        let kept = self.runs.get_mut(&result.of_seq).map(|kept| {
            kept.is_agreed = kept.details.as_ref().is_some_and(|details| details.result == *result);
            // From here on the outputs are in the database alone.
            let (outputs, leaves) = (std::mem::take(&mut kept.outputs), std::mem::take(&mut kept.leaves));
            (Outputs { outputs, leaves }, std::mem::take(&mut kept.senders))
        });
        let (outputs, senders) = match kept {
            Some((outputs, senders)) => (Some(outputs), senders),
            None => (None, Vec::new()),
        };
        let Some(gateway) = &self.gateway else { return };
        // Whoever sent something in a run that failed is told so, also when it was done before a restart.
        if result.status != Status::Ok && senders.is_empty() && gateway.users() > 0 {
            let (ledger, told) = (self.ledger.clone(), self.told_tx.clone());
            tokio::spawn(async move {
                let senders = ledger.senders(agreed.result.of_seq).await.unwrap_or_else(|error| {
                    warn!(error = &error as &dyn std::error::Error, "cannot read whose inputs a failed run had");
                    Vec::new()
                });
                let _ = told.send(Told::Failed(Box::new(agreed), senders)).await;
            });
            return;
        }
        self.deliver_to(agreed, outputs, senders);
    }

    /// Hands an agreed result to the users here: outputs, or to the senders that there are none.
    fn deliver_to(&mut self, agreed: ResultCert, outputs: Option<Outputs>, senders: Vec<UserKey>) {
        let result = &agreed.result;
        let Some(gateway) = &self.gateway else { return };
        if result.status != Status::Ok {
            let why = format!(
                "the contract failed in ledger {} ({}): its outputs are dropped and its state is as before",
                result.of_seq, result.status
            );
            senders.iter().for_each(|user| gateway.tell(user, ErrorCode::ContractFailed, &why));
        } else if let Some(outputs) = outputs.as_ref().filter(|_| self.release.is_none()) {
            for (user, output) in &outputs.outputs {
                gateway.deliver(user, output.clone());
            }
        }
        if !gateway.has_any_signed() {
            return;
        }
        let outputs = outputs.filter(|_| self.deliveries.len() < DELIVERIES_IN_MEMORY_MAX);
        self.enqueue_delivery(Delivery::Result { agreed: Box::new(agreed), outputs, senders });
    }

    fn enqueue_delivery(&mut self, delivery: Delivery) {
        self.deliveries.push_back(delivery);
        if self.deliveries.len() > DELIVERIES_MAX {
            self.deliveries.pop_front();
        }
        self.deliver_signed();
    }

    /// A ledger is closed, and in the database: does it record that more is settled?
    pub(super) fn look_at_settlement(&mut self, header: &Header, qc: &Certificate) {
        let Some(settlement) = header.settlement.as_ref().filter(|settlement| settlement.seq > self.settled_seq) else {
            return;
        };
        let first = self.settled_seq + 1;
        self.settled_seq = settlement.seq;
        self.release();
        if self.config.msb.execute == Execute::Settled
            && self.gateway.as_ref().is_some_and(|gateway| gateway.has_any_signed())
        {
            let recorded = Closed { header: header.clone(), qc: qc.clone() };
            let frame = Reply::Settled(settled(first, settlement, &recorded)).to_json();
            self.enqueue_delivery(Delivery::ToAll(frame));
        }
    }

    /// A ledger is closed, and in the database, that changes the UNL. Whoever checks signatures learns it before any of the new
    /// members counts.
    pub(super) fn tell_unl_change(&mut self, header: &Header, qc: &Certificate, change: &UnlChange) {
        if self.gateway.as_ref().is_some_and(|gateway| gateway.has_any_signed()) {
            let closed = Closed { header: header.clone(), qc: qc.clone() };
            self.enqueue_delivery(Delivery::ToAll(Reply::Unl(UnlStep::of(&closed, change)).to_json()));
        }
    }

    /// Users in raw mode get what is settled, and this node has.
    fn release(&self) {
        if let Some(release) = &self.release {
            release.up_to(self.settled_seq.min(self.delivered_seq));
        }
    }

    fn finality(&self) -> Finality {
        Finality { execute: self.config.msb.execute, settled_seq: self.settled_seq }
    }

    /// Tells users in signed mode of results, one after the other.
    fn deliver_signed(&mut self) {
        while !self.delivering
            && let Some(delivery) = self.deliveries.pop_front()
        {
            let Some(gateway) = &self.gateway else { return };
            let (agreed, outputs, senders) = match delivery {
                Delivery::Result { agreed, outputs, senders } => (*agreed, outputs, senders),
                Delivery::ToAll(frame) => {
                    gateway.say_to_all_signed(frame);
                    continue;
                }
            };
            let is_final = self.finality().of(agreed.result.of_seq);
            let failed = agreed.result.status != Status::Ok;
            let outputs = if failed { Some(Outputs { outputs: Vec::new(), leaves: Vec::new() }) } else { outputs };
            match outputs {
                // Nothing to prove, or little work.
                Some(outputs) if !failed && outputs.has_none_for(|user| gateway.has_signed(user)) => {
                    self.say_all(executed(&agreed, None, &senders));
                }
                Some(outputs) if outputs.bytes() <= FRAMES_BYTES_MAX && !agreed.sigs.is_empty() => {
                    let by = Agreement::by_results(&agreed);
                    let mut frames = outputs.frames(&agreed, &by, is_final, |user| gateway.has_signed(user));
                    frames.extend(executed(&agreed, Some(&by), &senders));
                    self.say_all(frames);
                }
                outputs => {
                    self.delivering = true;
                    let (ledger, told) = (self.ledger.clone(), self.told_tx.clone());
                    let wanted = gateway.signed_users();
                    tokio::spawn(async move {
                        let made = make_frames(&ledger, agreed, outputs, wanted, senders, is_final).await;
                        let frames = made.unwrap_or_else(|error| {
                            warn!(error = &error as &dyn std::error::Error, "cannot read outputs to be delivered");
                            Vec::new()
                        });
                        let _ = told.send(Told::Delivered(frames)).await;
                    });
                }
            }
        }
    }

    fn say_all(&self, frames: Vec<(UserKey, String)>) {
        if let Some(gateway) = &self.gateway {
            frames.into_iter().for_each(|(user, frame)| gateway.say(&user, frame));
        }
    }
}

/// Stands for questions that are no session's.
const NO_SESSION: SessionId = SessionId(u64::MAX);

const BUSY: &str = "the node holds as many inputs as it can; send it again later";
const NO_ROOM: &str = "the disk of this node is nearly full; send it to another node, or again later";

fn status(input: &SignedRef, fate: Fate) -> String {
    Reply::Status(StatusFrame { nonce: input.nonce, id: Some(Text(input.id)), fate }).to_json()
}

fn rejected(input: &SignedRef, reason: Reason) -> String {
    status(input, rejection(reason))
}

fn rejection(reason: Reason) -> Fate {
    let message = match reason {
        Reason::Busy => BUSY,
        Reason::Expired => "no ledger up to its max_ledger holds it, and none ever will",
        Reason::TooFar => "its max_ledger is further ahead than inputs are kept",
        Reason::NonceUsed => "another input with this nonce is in a ledger already",
        Reason::TooLarge => "it is longer than this network allows",
        Reason::BadSig | Reason::Rate => "refused",
    };
    Fate::Rejected { reason, message: message.to_owned() }
}

/// What became of an input whose nonce ledger `seq` has: the same one, or another?
pub(super) async fn became_of(
    ledger: &Ledger,
    input: &SignedRef,
    seq: Seq,
    tip: Option<&ResultCert>,
) -> Result<Fate, LedgerError> {
    Ok(match ledger.closed(seq).await? {
        Some(closed) if closed.candidate.inputs.binary_search(&input.id).is_ok() => {
            let run = run_end(ledger, seq, tip).await?;
            Fate::Accepted { seq, ledger: Text(closed.qc.vote.ledger_hash), run }
        }
        _ => rejection(Reason::NonceUsed),
    })
}

/// What a user got in one ledger: the frame `output`, or `executed` where the run failed; null for neither, and none while the
/// result is not agreed on.
pub(super) async fn output_of(
    ledger: &Ledger,
    user: UserKey,
    seq: Seq,
    tip: Option<ResultCert>,
    finality: Finality,
) -> Result<Option<Value>, LedgerError> {
    let Some(before) = seq.checked_sub(1) else { return Ok(None) };
    let AnswerBody::Outputs(page) = outputs_page(ledger, user, before, tip, finality).await? else { return Ok(None) };
    if page.to < seq {
        return Ok(None);
    }
    let output = page.outputs.into_iter().find(|output| output.seq == seq);
    let failed = page.failed.into_iter().find(|failed| failed.seq == seq);
    Ok(Some(json!({ "output": output, "executed": failed, "missing": page.missing.contains(&seq) })))
}

/// Where an input stands that ledger `seq` has.
pub(super) async fn state_of(ledger: &Ledger, seq: Seq, tip: Option<ResultCert>) -> Result<InputState, LedgerError> {
    let found = ledger.header_range(seq, 1).await?;
    Ok(match found.first() {
        None => InputState::Pending,
        Some(closed) => {
            let run = run_end(ledger, seq, tip.as_ref()).await?;
            let settled = ledger.settlements(vec![seq]).await?.first().map(|it| Box::new(past_settled(it)));
            InputState::Accepted { seq, ledger: Text(closed.qc.vote.ledger_hash), run, settled }
        }
    })
}

/// That the run of a ledger is agreed on, for each user with input in it. That it failed is proven; that it ended well the
/// outputs prove.
fn executed(agreed: &ResultCert, by: Option<&Agreement>, senders: &[UserKey]) -> Vec<(UserKey, String)> {
    if senders.is_empty() {
        return Vec::new();
    }
    let result = &agreed.result;
    let proof = by.filter(|_| result.status != Status::Ok).cloned();
    let run = RunEnd::of(result, proof);
    let frame = Reply::Executed(Executed { seq: result.of_seq, ledger: Text(result.of_hash), run }).to_json();
    senders.iter().map(|user| (*user, frame.clone())).collect()
}

impl Outputs {
    fn bytes(&self) -> usize {
        self.outputs.iter().map(|(_, output)| output.len()).sum()
    }

    fn has_none_for(&self, wanted: impl Fn(&UserKey) -> bool) -> bool {
        !self.outputs.iter().any(|(user, _)| wanted(user))
    }

    /// One frame for each wanted user with an output.
    fn frames(
        self,
        agreed: &ResultCert,
        by: &Agreement,
        is_final: Option<bool>,
        wanted: impl Fn(&UserKey) -> bool,
    ) -> Vec<(UserKey, String)> {
        let tree = Tree::new(self.leaves);
        if tree.root() != agreed.result.outputs_root {
            // Not what was agreed on: nothing of it could be proven.
            return Vec::new();
        }
        let wanted = (0..).zip(self.outputs).filter(|(_, (user, _))| wanted(user));
        let frame = |(index, (user, output)): (u32, (UserKey, Bytes))| {
            let path = tree.proof(index).expect("a leaf for each output").into();
            let proof = OutputProof { agreed: by.clone(), path };
            let result = &agreed.result;
            let payload = Base64(output.to_vec());
            let frame = OutputFrame { seq: result.of_seq, ledger: Text(result.of_hash), payload, is_final, proof };
            (user, Reply::Output(frame).to_json())
        };
        wanted.map(frame).collect()
    }
}

/// The frames of a delivery, with what has to be read for them.
async fn make_frames(
    ledger: &Ledger,
    agreed: ResultCert,
    outputs: Option<Outputs>,
    wanted: BTreeSet<UserKey>,
    senders: Vec<UserKey>,
    is_final: Option<bool>,
) -> Result<Vec<(UserKey, String)>, LedgerError> {
    let seq = agreed.result.of_seq;
    let by = match agreed.sigs.is_empty() {
        false => Some(Agreement::by_results(&agreed)),
        true => ledger.header_range(seq + 1, 1).await?.first().map(Agreement::by_header),
    };
    let outputs = match outputs {
        Some(outputs) => Some(outputs),
        None => ledger.outputs(seq).await?.map(|read| Outputs {
            leaves: read.iter().map(|(user, output)| merkle::output_leaf(user, output)).collect(),
            outputs: read.into_iter().map(|(user, output)| (user, output.into())).collect(),
        }),
    };
    let make = move || {
        let mut frames = match (&by, outputs) {
            (Some(by), Some(outputs)) => outputs.frames(&agreed, by, is_final, |user| wanted.contains(user)),
            _ => Vec::new(),
        };
        frames.extend(executed(&agreed, by.as_ref(), &senders));
        frames
    };
    Ok(tokio::task::spawn_blocking(make).await.expect("making frames does not panic"))
}

async fn ledger_frame(ledger: &Ledger, seq: Seq) -> Result<AnswerBody, LedgerError> {
    let found = ledger.header_range(seq, 1).await?.into_iter().find(|closed| closed.header.seq == seq);
    Ok(AnswerBody::Ledger { seq, ledger: found.as_ref().map(LedgerFrame::of) })
}

async fn unl_page(ledger: &Ledger, since: Seq) -> Result<AnswerBody, LedgerError> {
    let mut steps = ledger.unl_steps(since, UNL_STEPS_MAX + 1).await?;
    let more = steps.len() > UNL_STEPS_MAX;
    steps.truncate(UNL_STEPS_MAX);
    let changes = steps.iter().map(|(closed, change)| UnlStep::of(closed, change)).collect();
    Ok(AnswerBody::Unl(UnlPage { since, changes, more }))
}

async fn input_state(
    ledger: &Ledger,
    nonce: u64,
    seq: Seq,
    tip: Option<ResultCert>,
) -> Result<AnswerBody, LedgerError> {
    Ok(AnswerBody::Input { nonce, state: state_of(ledger, seq, tip).await? })
}

/// How the run of a ledger ended: by the next one, or, of the last one, by its signatures.
async fn run_end(ledger: &Ledger, seq: Seq, tip: Option<&ResultCert>) -> Result<Option<RunEnd>, LedgerError> {
    let next = ledger.header_range(seq.saturating_add(1), 1).await?.into_iter().find(|next| next.header.seq == seq + 1);
    Ok(match (next, tip.filter(|tip| tip.result.of_seq == seq)) {
        (Some(next), _) => Some(RunEnd::of(&next.header.result, Some(Agreement::by_header(&next)))),
        (None, Some(tip)) => Some(RunEnd::of(&tip.result, Some(Agreement::by_results(tip)))),
        (None, None) => None,
    })
}

async fn outputs_page(
    ledger: &Ledger,
    user: UserKey,
    since: Seq,
    tip: Option<ResultCert>,
    finality: Finality,
) -> Result<AnswerBody, LedgerError> {
    let tip_seq = tip.as_ref().map(|tip| tip.result.of_seq);
    let past = ledger.outputs_since(user, since, tip_seq).await?;
    // The ledger that the page ends with may be the last one, of which no next one tells.
    let failed_tip = tip
        .as_ref()
        .filter(|tip| tip.result.status != Status::Ok && tip.result.of_seq == past.to && past.to > since && !past.more);
    let told = |past: &PastOutputs| past.failed.iter().any(|(seq, _)| *seq == past.to);
    let in_tip = match failed_tip {
        Some(tip) if !told(&past) => ledger.senders(tip.result.of_seq).await?.binary_search(&user).is_ok(),
        _ => false,
    };
    let seqs = past.outputs.iter().map(|output| output.seq).collect();
    let settlements = ledger.settlements(seqs).await?.iter().map(past_settled).collect();
    let make = move || {
        let last = tip.as_ref().filter(|_| in_tip).map(|tip| failed_by(&tip.result, Agreement::by_results(tip)));
        let mut page = past_frames(past, since, tip.as_ref(), finality);
        page.failed.extend(last);
        page.settlements = settlements;
        page
    };
    Ok(AnswerBody::Outputs(tokio::task::spawn_blocking(make).await.expect("making frames does not panic")))
}

fn failed_by(result: &ExecResult, proof: Agreement) -> Executed {
    Executed { seq: result.of_seq, ledger: Text(result.of_hash), run: RunEnd::of(result, Some(proof)) }
}

/// Proves what can be proven; names what this node has another output of, or none, as missing.
fn past_frames(past: PastOutputs, since: Seq, tip: Option<&ResultCert>, finality: Finality) -> OutputsPage {
    let PastOutputs { outputs, mut missing, failed, to, more, kept_from } = past;
    let failed = failed.iter().map(|(_, next)| failed_by(&next.header.result, Agreement::by_header(next))).collect();
    let mut frames = Vec::new();
    for past in outputs {
        let (by, result) = match (&past.next, tip.filter(|tip| tip.result.of_seq == past.seq)) {
            (Some(next), _) => (Agreement::by_header(next), &next.header.result),
            (None, Some(tip)) => (Agreement::by_results(tip), &tip.result),
            (None, None) => continue,
        };
        let tree = Tree::new(past.leaves);
        match tree.proof(past.index) {
            Some(path) if tree.root() == result.outputs_root => frames.push(OutputFrame {
                seq: past.seq,
                ledger: Text(result.of_hash),
                payload: Base64(past.output),
                is_final: finality.of(past.seq),
                proof: OutputProof { agreed: by, path: path.into() },
            }),
            _ => missing.push(past.seq),
        }
    }
    missing.sort_unstable();
    OutputsPage { since, to, more, kept_from, missing, failed, outputs: frames, settlements: Vec::new() }
}

fn past_settled(past: &PastSettlement) -> Settled {
    settled(past.first, &past.settlement, &past.recorded)
}

/// What a settlement is to users: `recorded` is the ledger that recorded it.
fn settled(first: Seq, settlement: &Settlement, recorded: &Closed) -> Settled {
    Settled {
        first,
        last: settlement.seq,
        tx: Text(settlement.tx),
        ch: Text(settlement.ch),
        confirmed_length: settlement.confirmed_length,
        recorded_in: recorded.header.seq,
        proof: Agreement::by_header(recorded),
    }
}
