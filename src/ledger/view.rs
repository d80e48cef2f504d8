//! One ledger as it is shown and exported: what is stored, read and put into JSON. `docs/export.md` explains the fields.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    LedgerError, Trouble,
    archive::{Archive, Beginning, Depth},
    decode, encode,
};
use crate::{
    consensus::{
        header::{Ancestor, ExecResult, Genesis, Header, Input, Origin, Settlement, UnlChange, unl_hash},
        messages::{Certificate, Signed},
    },
    types::{Hash, LimitKind, NodeKey, Seq, Status, UserKey, WallMs},
    verify::Stored,
};

/// Version of the JSON of a ledger. One more when a field changes its meaning or goes.
pub const FORMAT: &str = "hotpocket-ledger/1";

/// Why nothing can be shown: the database does not read.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Unreadable(#[from] LedgerError);

/// The genesis, and the members of each ledger.
#[derive(Debug)]
pub struct Chain {
    /// What the chain begins with.
    pub genesis: Genesis,
    /// Settings that all nodes share, as bytes.
    pub settings: Option<Vec<u8>>,
    /// Last closed ledger.
    pub tip: Seq,
    unls: BTreeMap<Hash, Vec<NodeKey>>,
}

impl Chain {
    /// Reads what the chain begins with.
    pub fn read(archive: &Archive) -> Result<Chain, Unreadable> {
        let beginning = archive.beginning()?;
        let mut unls = BTreeMap::from([(unl_hash(&beginning.genesis.unl), beginning.genesis.unl.clone())]);
        let mut unl = beginning.genesis.unl.clone();
        for (seq, change) in &beginning.unl_changes {
            let applied = change.apply(&unl).ok_or_else(|| {
                Trouble::Damaged(format!("the change of the UNL in ledger {seq} does not apply"))
                    .at(&archive.path, "read the UNL")
            });
            unl = applied?;
            unls.insert(unl_hash(&unl), unl.clone());
        }
        let Beginning { genesis, settings, tip, .. } = beginning;
        Ok(Chain { genesis, settings, tip, unls })
    }

    /// The members that closed a ledger, ascending; none when they are not known.
    pub fn unl(&self, header: &Header) -> &[NodeKey] {
        self.unls.get(&header.unl_hash).map_or(&[], Vec::as_slice)
    }

    /// The members from then on, of whom the ledger's run is told.
    pub fn next_unl(&self, header: &Header) -> &[NodeKey] {
        self.unls.get(&header.next_unl_hash).map_or(&[], Vec::as_slice)
    }

    /// The genesis as JSON.
    pub fn json(&self) -> Value {
        let Genesis { ver, contract_id, unl, threshold, cfg_hash, state_root, time_ms, ancestor } = &self.genesis;
        json!({
            "format": FORMAT,
            "chain_id": self.genesis.chain_id().to_string(),
            "genesis": {
                "ver": ver, "contract_id": contract_id.to_string(), "unl": texts(unl), "threshold": threshold,
                "cfg_hash": cfg_hash.to_string(), "state_root": state_root.to_string(), "time_ms": time_ms,
                "ancestor": ancestor.as_ref().map(ancestor_json),
            },
            "genesis_bytes": hex::encode(encode(&self.genesis)),
            "settings_bytes": self.settings.as_ref().map(hex::encode),
        })
    }
}

/// One ledger, read.
#[derive(Debug)]
pub struct Ledger {
    /// Its number.
    pub seq: Seq,
    /// Its hash.
    pub hash: Hash,
    /// Its header.
    pub header: Header,
    header_bytes: Vec<u8>,
    /// What closed it.
    pub qc: Certificate,
    /// What it changes of the UNL.
    pub unl_change: Option<UnlChange>,
    /// Its contents, while they are kept.
    pub body: Option<Body>,
    /// This node's.
    pub own: Option<Signed<ExecResult>>,
    /// What the next header says.
    pub agreed: Option<ExecResult>,
    /// Of this node's run, ascending by user.
    pub outputs: Option<Vec<(UserKey, Vec<u8>)>>,
}

/// What the roots of the header stand for.
#[derive(Debug)]
pub struct Body {
    /// Ids, and the inputs that are still kept.
    pub inputs: Vec<(Hash, Option<Input>)>,
    /// Who came.
    pub users_add: Vec<UserKey>,
    /// Who went.
    pub users_del: Vec<UserKey>,
}

impl Ledger {
    /// The agreed result, or else this node's own.
    pub fn result(&self) -> Option<&ExecResult> {
        self.agreed.as_ref().or(self.own.as_ref().map(|own| &own.body))
    }
}

/// The ledgers from `first` to `last`, in order, each given to `each`. What is not stored is left out.
pub fn read<E: From<Unreadable>>(
    archive: &Archive,
    first: Seq,
    last: Seq,
    depth: Depth,
    mut each: impl FnMut(Ledger) -> Result<(), E>,
) -> Result<(), E> {
    let mut next = first.max(1);
    while next <= last {
        let ledgers = read_page(archive, next, last, depth)?;
        next += ledgers.len().max(1) as u64;
        ledgers.into_iter().flatten().try_for_each(&mut each)?;
    }
    Ok(())
}

/// Some of the ledgers from `first` to `last`, from the first on without a gap; at least one. `None` is not stored.
pub fn read_page(archive: &Archive, first: Seq, last: Seq, depth: Depth) -> Result<Vec<Option<Ledger>>, Unreadable> {
    let page = archive.page(first, last, depth)?;
    let after = first + page.ledgers.len() as u64;
    // The result of the last one stands in the next.
    let next = archive.page(after, after, Depth::Closed)?;
    let followers = page.ledgers.iter().skip(1).chain(&next.ledgers);
    let read = |(stored, follower)| ledger(stored, next_result(follower)?);
    let ledgers: Result<_, Trouble> = page.ledgers.iter().zip(followers).map(read).collect();
    Ok(ledgers.map_err(|trouble| trouble.at(&archive.path, "read ledgers"))?)
}

fn next_result(next: &Stored) -> Result<Option<ExecResult>, Trouble> {
    let Some(closed) = &next.closed else { return Ok(None) };
    Ok(Some(decode::<Header>(&closed.header, "a header")?.result))
}

fn ledger(stored: &Stored, agreed: Option<ExecResult>) -> Result<Option<Ledger>, Trouble> {
    let Some(closed) = &stored.closed else { return Ok(None) };
    let body = match &stored.body {
        None => None,
        Some(body) => {
            let ids: Vec<Hash> = decode(&body.inputs, "the inputs of a ledger")?;
            let mut inputs = Vec::with_capacity(ids.len());
            for (at, id) in ids.into_iter().enumerate() {
                let input = match stored.inputs.get(at) {
                    Some(Some(bytes)) => Some(decode(bytes, "an input")?),
                    _ => None,
                };
                inputs.push((id, input));
            }
            let users_add = decode(&body.users_add, "the users of a ledger")?;
            Some(Body { inputs, users_add, users_del: decode(&body.users_del, "the users of a ledger")? })
        }
    };
    let mut outputs = Vec::with_capacity(stored.outputs.len());
    for output in &stored.outputs {
        outputs.push((decode(&output.user, "a user")?, output.bytes.clone()));
    }
    Ok(Some(Ledger {
        seq: stored.seq,
        hash: decode(&closed.hash, "a hash")?,
        header: decode(&closed.header, "a header")?,
        header_bytes: closed.header.clone(),
        qc: decode(&closed.qc, "a certificate")?,
        unl_change: stored.unl_change.as_ref().map(|bytes| decode(bytes, "a change of the UNL")).transpose()?,
        body,
        own: stored.result.as_ref().map(|bytes| decode(bytes, "a result")).transpose()?,
        agreed,
        outputs: stored.run.map(|_| outputs),
    }))
}

// ---- JSON -----------------------------------------------------------------------------------------------------------

/// What of a ledger stands in a list.
pub fn summary(ledger: &Ledger, chain: &Chain) -> Value {
    let header = &ledger.header;
    json!({
        "seq": ledger.seq, "time": utc(header.time_ms), "hash": ledger.hash.to_string(),
        "inputs": header.n_inputs, "users": header.n_users, "signers": ledger.qc.sigs.len(),
        "members": chain.unl(header).len(), "attempt": ledger.qc.vote.attempt,
        "run": ledger.result().map(|result| result.status.to_string()), "agreed": ledger.agreed.is_some(),
    })
}

/// Everything of a ledger.
pub fn json(ledger: &Ledger, chain: &Chain) -> Value {
    let Header { ver, chain_id, seq, parent, time_ms, unl_hash, next_unl_hash, .. } = &ledger.header;
    let Header { users_root, n_users, inputs_root, n_inputs, inputs_bytes, result, settlement, .. } = &ledger.header;
    let signatures: Vec<Value> =
        ledger.qc.sigs.iter().map(|(node, sig)| json!({ "node": node.to_string(), "sig": sig.to_string() })).collect();
    json!({
        "format": FORMAT,
        "seq": ledger.seq,
        "hash": ledger.hash.to_string(),
        "time": utc(*time_ms),
        "header": {
            "ver": ver, "chain_id": chain_id.to_string(), "seq": seq, "parent": parent.to_string(), "time_ms": time_ms,
            "unl_hash": unl_hash.to_string(), "next_unl_hash": next_unl_hash.to_string(),
            "users_root": users_root.to_string(), "n_users": n_users, "inputs_root": inputs_root.to_string(),
            "n_inputs": n_inputs, "inputs_bytes": inputs_bytes, "result": result_json(result),
            "settlement": settlement.as_ref().map(settlement_json),
        },
        "header_bytes": hex::encode(&ledger.header_bytes),
        "certificate": {
            "seq": ledger.qc.vote.seq, "attempt": ledger.qc.vote.attempt,
            "ledger_hash": ledger.qc.vote.ledger_hash.to_string(), "signatures": signatures,
        },
        "unl": texts(chain.unl(&ledger.header)),
        "unl_change": ledger.unl_change.as_ref().map(change_json),
        "body": ledger.body.as_ref().map(body_json),
        "result": ledger.agreed.as_ref().map(result_json),
        "own_result": ledger.own.as_ref().map(|own| json!({
            "result": result_json(&own.body), "node": own.from.to_string(), "sig": own.sig.to_string(),
        })),
        "outputs": ledger.outputs.as_ref().map(|outputs| outputs.iter().map(|(user, bytes)| json!({
            "user": user.to_string(), "bytes": hex::encode(bytes),
        })).collect::<Vec<_>>()),
    })
}

fn ancestor_json(ancestor: &Ancestor) -> Value {
    let Ancestor { contract_id, chain_id, seq, ledger_hash, users_root, n_users, keys_root, n_keys, binary } = ancestor;
    json!({
        "contract_id": contract_id.to_string(), "chain_id": chain_id.to_string(), "seq": seq,
        "ledger_hash": ledger_hash.to_string(), "users_root": users_root.to_string(), "n_users": n_users,
        "keys_root": keys_root.to_string(), "n_keys": n_keys, "binary": binary.map(|hash| hash.to_string()),
    })
}

fn texts<T: ToString>(items: &[T]) -> Vec<String> {
    items.iter().map(T::to_string).collect()
}

fn body_json(body: &Body) -> Value {
    let inputs: Vec<Value> = body
        .inputs
        .iter()
        .map(|(id, input)| match input {
            None => json!({ "id": id.to_string(), "missing": true }),
            Some(input) => json!({
                "id": id.to_string(), "user": input.user.to_string(), "origin": origin_json(&input.origin),
                "nonce": input.nonce, "max_ledger": input.max_ledger, "payload": hex::encode(&input.payload),
            }),
        })
        .collect();
    json!({ "inputs": inputs, "users_add": texts(&body.users_add), "users_del": texts(&body.users_del) })
}

fn origin_json(origin: &Origin) -> Value {
    match origin {
        Origin::User { sig } => json!({ "kind": "user", "sig": sig.to_string() }),
        Origin::Session { host, challenge, helo_sig, host_sig } => json!({
            "kind": "session", "host": host.to_string(), "challenge": challenge.to_string(),
            "helo_sig": helo_sig.to_string(), "host_sig": host_sig.to_string(),
        }),
    }
}

/// A result, whoever says so.
pub fn result_json(result: &ExecResult) -> Value {
    let ExecResult { of_seq, of_hash, state_root, outputs_root, status, unl_req } = result;
    let status = match status {
        Status::Ok => json!("ok"),
        Status::Exit(code) => json!({ "exit": code }),
        Status::Signal(number) => json!({ "signal": number }),
        Status::Limit(kind) => json!({ "limit": match kind {
            LimitKind::Time => "time",
            LimitKind::Output => "output",
            LimitKind::Npl => "npl",
            LimitKind::FileSize => "file_size",
            LimitKind::State => "state",
            LimitKind::StateSize => "state_size",
        } }),
    };
    json!({
        "of_seq": of_seq, "of_hash": of_hash.to_string(), "state_root": state_root.to_string(),
        "outputs_root": outputs_root.to_string(), "status": status, "unl_req": unl_req.as_ref().map(change_json),
    })
}

fn change_json(change: &UnlChange) -> Value {
    match change {
        UnlChange::Add(node) => json!({ "add": node.to_string() }),
        UnlChange::Remove(node) => json!({ "remove": node.to_string() }),
    }
}

fn settlement_json(settlement: &Settlement) -> Value {
    let Settlement { seq, ch, tx, confirmed_length, txv } = settlement;
    json!({
        "seq": seq, "ch": ch.to_string(), "tx": tx.to_string(), "confirmed_length": confirmed_length,
        "txv": txv.to_string(),
    })
}

// ---- Text -----------------------------------------------------------------------------------------------------------

/// An agreed time as people write it, in UTC: `2026-11-21T12:00:00.000Z`.
pub fn utc(time_ms: WallMs) -> String {
    const DAY_MS: u64 = 86_400_000;
    let (year, month, day) = date(time_ms / DAY_MS);
    let (rest, ms) = (time_ms % DAY_MS / 1_000, time_ms % 1_000);
    let (hour, minute, second) = (rest / 3_600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

/// Year, month and day of a number of days since 1970-01-01 in the Gregorian calendar.
fn date(days: u64) -> (u64, u64, u64) {
    const CYCLE_DAYS: u64 = 146_097; // 400 years
    // From 0000-03-01, so that a leap day is the last day of its year.
    let days = days + 719_468;
    let (cycle, day) = (days / CYCLE_DAYS, days % CYCLE_DAYS);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day_of_month = day - (153 * month + 2) / 5 + 1;
    let month_of_year = if month < 10 { month + 3 } else { month - 9 };
    (cycle * 400 + year + u64::from(month_of_year <= 2), month_of_year, day_of_month)
}

/// The beginning of bytes on one line: as text where it is text, else as hexadecimal digits.
pub fn preview(bytes: &[u8], characters_max: usize) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => {
            let mut shown: String = text.chars().take(characters_max).collect();
            if shown.len() < text.len() {
                shown.push('…');
            }
            format!("{shown:?}")
        }
        Err(_) => {
            let shown = &bytes[..bytes.len().min(characters_max / 2)];
            format!("0x{}{}", hex::encode(shown), if shown.len() < bytes.len() { "…" } else { "" })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (time_ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (951_868_799_999, "2000-02-29T23:59:59.999Z"),
            (1_700_000_000_123, "2023-11-14T22:13:20.123Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(utc(time_ms), text);
        }
        // No header makes it panic.
        assert!(utc(u64::MAX).ends_with('Z'));
    }

    #[test]
    fn a_preview_is_one_line_of_bounded_length() {
        assert_eq!(preview(b"hello\nyou", 40), "\"hello\\nyou\"");
        assert_eq!(preview("ää".repeat(9).as_bytes(), 3), "\"äää…\"");
        assert_eq!(preview(&[0xff; 20], 8), "0xffffffff…");
        assert_eq!(preview(&[0xff], 8), "0xff");
    }
}
