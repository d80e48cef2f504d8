//! What wallets and apps ask: the contract's state, what to sign, what became of it.

use std::{path::Path, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tokio::{
    sync::{oneshot, watch},
    task::spawn_blocking,
    time::timeout,
};

use super::{
    super::{
        Node,
        reads::FileRead,
        settle,
        users::{became_of, output_of},
    },
    Agreed, Asked, Became, Door, unreadable,
};
use crate::{
    consensus::{
        Refused, SignedRef,
        header::{Input, Origin, unl_hash},
    },
    crypto,
    http::{Answer, Draft, Failure, SignedTx, Wait},
    signed::{Fate, InputState, ReadFate, ReadReason, Reason},
    small_file,
    types::{Hash, Seq, UserKey},
};

/// Bytes of a file of the state that is shown. A longer one is refused with 413.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Bytes of `bin/schema.json`. A longer one is as none.
const SCHEMA_BYTES_MAX: u64 = 1 << 20;

/// Ledgers for which an input may wait, unless its user says otherwise.
const MAX_LEDGER_AHEAD: u64 = 1_000;

impl Door {
    /// A file of the contract's state.
    pub(super) async fn state(&self, key: String, confirmed: bool) -> Answer {
        let read = self.files.read(key.as_bytes(), FILE_BYTES_MAX, confirmed).await;
        let (seq, read) = match read.map_err(|error| unreadable(&*error))? {
            Some(read) => read,
            None => return Err(Failure::busy("No state is agreed on here yet; ask again, or another node.")),
        };
        let mut said =
            json!({ "key": key, "confirmed": confirmed, "value": null, "size": null, "hash": null, "seq": seq });
        match read {
            FileRead::Nothing => {}
            FileRead::Other(kind) => said["kind"] = kind.into(),
            FileRead::Long(bytes) => {
                let why = format!("The file has {bytes} bytes; over HTTP it may have {FILE_BYTES_MAX}.");
                return Err(Failure { status: 413, error: why });
            }
            FileRead::File { bytes, root } => {
                said["size"] = bytes.len().into();
                said["hash"] = root.to_string().into();
                put_bytes(&mut said, "value", bytes);
            }
        }
        Ok(said)
    }

    /// What the contract takes and gives.
    pub(super) async fn schema(self: Arc<Door>) -> Answer {
        let path = self.dir.join("bin/schema.json");
        let shipped = spawn_blocking(move || read_schema(&path)).await.unwrap_or(None);
        let generic = || {
            json!({
                "$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Any contract",
                "description": "This contract ships no bin/schema.json: any JSON value is an input, and it may answer with anything.",
            })
        };
        let status = self.known(super::Want::Status).await?;
        let name = shipped.as_ref().and_then(|schema| schema["title"].as_str().map(str::to_owned));
        Ok(json!({
            "schemaVersion": 1,
            "schemaFormat": "json-schema",
            "contract": {
                "id": status["contract"], "name": name, "shipped": shipped.is_some(),
                "schema": shipped.unwrap_or_else(generic),
            },
            "api": { "methods": ["/v1/contract/tx/prepare", "/v1/contract/tx", "/v1/state"] },
            "version": status["version"],
            "limits": { "input_bytes": self.input_bytes_max, "input_window": self.input_window, "file_bytes": FILE_BYTES_MAX },
        }))
    }

    /// What is to be signed.
    pub(super) async fn prepare(&self, draft: Draft) -> Answer {
        let Draft { user, nonce, max_ledger, payload } = draft;
        self.check_length(&payload)?;
        let context = self.known(super::Want::Context).await?;
        let seq = context["seq"].as_u64().unwrap_or(0);
        let max_ledger = max_ledger.unwrap_or_else(|| seq + MAX_LEDGER_AHEAD.min(self.input_window / 2));
        let sig = crate::types::Sig([0; 64]);
        let input = Input { user, origin: Origin::User { sig }, nonce, max_ledger, payload };
        Ok(json!({
            "tx": input.id(&self.chain_id).to_string(), "payload": STANDARD.encode(&input.payload), "nonce": nonce,
            "max_ledger": max_ledger, "context": &*context,
        }))
    }

    /// The input that somebody says he signed, when he did.
    fn checked(&self, tx: SignedTx) -> Result<(Input, Hash), Failure> {
        let SignedTx { tx, user, nonce, max_ledger, payload, sig } = tx;
        self.check_length(&payload)?;
        let input = Input { user, origin: Origin::User { sig }, nonce, max_ledger, payload };
        let id = input.id(&self.chain_id);
        if id != tx {
            return Err(Failure::bad("Invalid TX."));
        }
        match crypto::verify(&user.0, &id.0, &sig) {
            true => Ok((input, id)),
            false => Err(Failure::bad("Invalid signature.")),
        }
    }

    fn check_length(&self, payload: &[u8]) -> Result<(), Failure> {
        let (bytes, max) = (payload.len(), self.input_bytes_max);
        let why = || format!("The input has {bytes} bytes; this network takes {max}.");
        if bytes > max { Err(Failure { status: 413, error: why() }) } else { Ok(()) }
    }

    /// What the contract would answer.
    pub(super) async fn simulate(&self, tx: SignedTx) -> Answer {
        let (input, id) = self.checked(tx)?;
        let (_here, left) = watch::channel(());
        let (user, payload) = (input.user, input.payload);
        let fate = self.ask_loop(|answer| Asked::Simulate(user, payload, left, answer)).await?;
        match fate {
            ReadFate::Ok { seq, ledger, payload } => {
                let mut said =
                    json!({ "sim": true, "tx": id.to_string(), "status": "ok", "seq": seq, "ledger": ledger });
                put_bytes(&mut said, "output", payload.0);
                Ok(said)
            }
            ReadFate::Failed { seq, ledger, run } => Ok(json!({
                "sim": true, "tx": id.to_string(), "status": run, "seq": seq, "ledger": ledger, "output": null,
            })),
            ReadFate::Refused { reason: ReadReason::Off, message } => Err(Failure::forbidden(message)),
            ReadFate::Refused { reason: ReadReason::TooLarge, message } => Err(Failure { status: 413, error: message }),
            ReadFate::Refused { message, .. } => Err(Failure::busy(message)),
        }
    }

    /// Takes an input, and waits for what becomes of it as long as is wanted.
    pub(super) async fn submit(&self, tx: SignedTx, wait: Wait, longest: Duration) -> Answer {
        let (input, id) = self.checked(tx)?;
        let (user, nonce) = (input.user, input.nonce);
        let (answer, answered) = oneshot::channel();
        let stops = || Failure::busy("The node is stopping.");
        self.asks.send(Asked::Submit(Box::new(input), id, answer)).await.map_err(|_| stops())?;
        let pending = || json!({ "status": "pending", "tx": id.to_string(), "nonce": nonce });
        let became = match wait {
            // What is refused is refused at once; anything else takes a ledger.
            Wait::Not => {
                self.ask_loop(|answer| Asked::Nonce(user, answer)).await?;
                let mut answered = answered;
                match answered.try_recv() {
                    Ok(became) => became,
                    Err(_) => return Ok(pending()),
                }
            }
            Wait::Accepted | Wait::Output => match timeout(longest, answered).await {
                Ok(Ok(became)) => became,
                Ok(Err(_)) | Err(_) => return Ok(pending()),
            },
        };
        let (seq, ledger) = match became {
            Became::Accepted { seq, ledger } => (seq, ledger),
            Became::InLedger(seq) => self.accepted_before(SignedRef { user, nonce, id }, seq).await?,
            Became::Refused(why) => return Err(refused(why)),
            Became::Rate => {
                return Err(Failure {
                    status: 429,
                    error: "Too many inputs a minute; send it again later.".to_owned(),
                });
            }
            Became::Expired => return Err(refused(Refused::Expired)),
        };
        let accepted = json!({
            "status": "accepted", "tx": id.to_string(), "nonce": nonce, "seq": seq, "ledger": ledger.to_string(),
        });
        if wait != Wait::Output {
            return Ok(accepted);
        }
        let mut agreed = self.agreed.clone();
        let waits = agreed.wait_for(|agreed| agreed.seq >= seq);
        match timeout(longest, waits).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => return Ok(accepted),
        }
        let mut said = accepted;
        if let Some(outcome) = self.outcome(seq, user).await? {
            said["status"] = "executed".into();
            said["outcome"] = outcome;
        }
        Ok(said)
    }

    /// The ledger that holds this input, not another one with its nonce.
    async fn accepted_before(&self, input: SignedRef, seq: Seq) -> Result<(Seq, Hash), Failure> {
        let _turn = self.looks.acquire().await.map_err(|_| Failure::internal())?;
        match became_of(&self.ledger, &input, seq, None).await.map_err(|error| unreadable(&error))? {
            Fate::Accepted { seq, ledger, .. } => Ok((seq, ledger.0)),
            Fate::Rejected { reason: Reason::Busy, message } => Err(Failure::busy(message)),
            Fate::Rejected { message, .. } => Err(Failure { status: 409, error: message }),
        }
    }

    /// What a user got in a ledger, with its proof, or that the run failed; none when neither is known here.
    async fn outcome(&self, seq: Seq, user: UserKey) -> Result<Option<Value>, Failure> {
        let _turn = self.looks.acquire().await.map_err(|_| Failure::internal())?;
        let Agreed { tip, finality, .. } = self.agreed.borrow().clone();
        output_of(&self.ledger, user, seq, tip, finality).await.map_err(|error| unreadable(&error))
    }

    /// What a user got in a ledger.
    pub(super) async fn proof(&self, seq: Seq, user: UserKey) -> Answer {
        let missing = || {
            Failure::not_found(format!(
                "There is no output of ledger {seq} for {user} here, or its result is not agreed on yet."
            ))
        };
        let found = self.outcome(seq, user).await?.ok_or_else(missing)?;
        if found["output"].is_null() && found["executed"].is_null() { Err(missing()) } else { Ok(found) }
    }

    /// What is known of an input.
    pub(super) async fn input(self: Arc<Door>, id: Hash) -> Answer {
        let kept = self.clone().read(move |archive| {
            let input = archive.input(id).map_err(|error| unreadable(&error))?;
            let input = input.ok_or_else(|| Failure::not_found(format!("No input {id} is kept here.")))?;
            let kind = match &input.origin {
                Origin::User { .. } => "signed",
                Origin::Session { .. } => "session",
            };
            let mut said = json!({
                "id": id.to_string(), "user": input.user.to_string(), "kind": kind, "nonce": input.nonce,
                "max_ledger": input.max_ledger, "key": crate::wire::encode(&input.key()),
            });
            put_bytes(&mut said, "payload", input.payload);
            Ok(said)
        });
        let mut said = kept.await?;
        let key = said.as_object_mut().and_then(|said| said.remove("key")).unwrap_or_default();
        let key: Vec<u8> = serde_json::from_value(key).unwrap_or_default();
        let key = crate::wire::decode(&key).map_err(|error| unreadable(&error))?;
        let found = self.ask_loop(|answer| Asked::Find(key, answer)).await?;
        let state = match found {
            None => json!({ "status": "pending" }),
            Some(seq) => {
                let _turn = self.looks.acquire().await.map_err(|_| Failure::internal())?;
                let tip = self.agreed.borrow().tip.clone();
                let state = super::super::users::state_of(&self.ledger, seq, tip).await;
                let state: InputState = state.map_err(|error| unreadable(&error))?;
                serde_json::to_value(state).map_err(|error| unreadable(&error))?
            }
        };
        if let (Some(said), Value::Object(state)) = (said.as_object_mut(), state) {
            said.extend(state);
        }
        Ok(said)
    }
}

/// Bytes as text where they are text, else in base64, with a word that says so.
fn put_bytes(said: &mut Value, name: &str, bytes: Vec<u8>) {
    said[name] = match String::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(bytes) => {
            said["encoding"] = "base64".into();
            STANDARD.encode(bytes.as_bytes()).into()
        }
    };
}

fn read_schema(path: &Path) -> Option<Value> {
    let bytes = small_file::read(path, SCHEMA_BYTES_MAX).ok()??;
    serde_json::from_slice(&bytes).ok()
}

fn refused(why: Refused) -> Failure {
    let gone = |error: &str| Failure { status: 409, error: error.to_owned() };
    match why {
        Refused::Busy => Failure::busy("The node holds as many inputs as it can; send it again later."),
        Refused::NoRoom => {
            Failure::busy("The disk of this node is nearly full; send it to another node, or again later.")
        }
        Refused::Expired => gone("Expired: no ledger up to its max_ledger holds it, and none ever will."),
        Refused::TooFar => Failure::bad("Invalid max_ledger: it is further ahead than inputs are kept."),
        Refused::Ledgered(seq) => gone(&format!("Another input with this nonce is in ledger {seq} already.")),
        Refused::TooLong | Refused::NotSigned => {
            Failure { status: 413, error: "The input is longer than this network allows.".to_owned() }
        }
    }
}

impl Node {
    /// What is needed to compute and sign an input elsewhere.
    pub(super) fn tx_context(&self) -> Value {
        let summary = self.core.summary();
        let msb = &self.config.msb;
        let contract = self.core.genesis().contract_id;
        json!({
            "chain": self.core.chain_id().to_string(), "contract": contract.to_string(),
            "unl_hash": unl_hash(self.core.unl()).to_string(), "seq": summary.seq, "lcl": summary.lcl.to_string(),
            "tag": "hp/input/1", "origin": Hash::ZERO.to_string(),
            "max_ledger_offset": MAX_LEDGER_AHEAD.min(self.config.consensus.input_window / 2),
            "input_window": self.config.consensus.input_window, "input_bytes": self.config.pubmaxsize,
            "msb": {
                "networkId": settle::network(msb.network).id(),
                "txv": summary.settlement.map(|settlement| settlement.txv.to_string()),
                "iw": contract.to_string(), "bs": self.config.subnet().to_string(),
                "mbs": msb.bootstrap.map(|hash| hash.to_string()), "operationType": 12,
            },
        })
    }
}
