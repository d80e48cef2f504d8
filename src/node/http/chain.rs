//! Ledgers and reports for HTTP clients, read from the files of the contract folder. Blocking.

use std::path::Path;

use serde_json::{Value, json};

use super::unreadable;
use crate::{
    contract,
    divergence::folder,
    http::{Answer, Failure, Which},
    ledger::{
        Archive, Depth, PastSettlement, SettlementPage,
        view::{self, Chain},
    },
    types::Seq,
};

/// Bytes of the end of each of the contract's logs that are shown.
const LOG_BYTES_MAX: u64 = 16 << 10;

pub(super) fn ledgers(archive: &Archive, from: Option<Seq>, limit: u64) -> Answer {
    let chain = Chain::read(archive).map_err(|error| unreadable(&error))?;
    let first = from.unwrap_or_else(|| (chain.tip + 1).saturating_sub(limit)).max(1);
    let last = chain.tip.min(first.saturating_add(limit - 1));
    let mut ledgers = Vec::new();
    let read = view::read(archive, first, last, Depth::Closed, |ledger| {
        ledgers.push(view::summary(&ledger, &chain));
        Ok::<(), view::Unreadable>(())
    });
    read.map_err(|error| unreadable(&error))?;
    Ok(json!({ "ledgers": ledgers, "tip": chain.tip }))
}

pub(super) fn ledger(archive: &Archive, which: Which) -> Answer {
    let chain = Chain::read(archive).map_err(|error| unreadable(&error))?;
    let seq = match which {
        Which::Seq(seq) => seq,
        Which::Last => chain.tip,
        Which::Hash(hash) => {
            let found = archive.seq_of(hash).map_err(|error| unreadable(&error))?;
            found.ok_or_else(|| Failure::not_found(format!("There is no ledger {hash} here.")))?
        }
    };
    if seq == 0 {
        return Ok(chain.json());
    }
    let page = match seq <= chain.tip {
        true => view::read_page(archive, seq, seq, Depth::All).map_err(|error| unreadable(&error))?,
        false => Vec::new(),
    };
    let missing = || Failure::not_found(format!("There is no ledger {seq} here: the last one is {}.", chain.tip));
    let ledger = page.into_iter().next().flatten().ok_or_else(missing)?;
    Ok(view::json(&ledger, &chain))
}

pub(super) fn divergence(dir: &Path, seq: Option<Seq>) -> Answer {
    let report = |seq| folder::read_report(dir, seq).map_err(|error| unreadable(&error));
    match seq {
        Some(seq) => {
            let missing = || Failure::not_found(format!("There is no report on ledger {seq} here."));
            let report = report(seq)?.ok_or_else(missing)?;
            serde_json::to_value(report).map_err(|error| unreadable(&error))
        }
        None => {
            let mut found = Vec::new();
            for seq in folder::list(dir).map_err(|error| unreadable(&error))? {
                let report = report(seq)?;
                let (kind, groups) = (report.as_ref().map(|it| it.kind), report.as_ref().map(|it| it.groups.len()));
                found.push(json!({ "seq": seq, "kind": kind, "groups": groups }));
            }
            Ok(json!({ "divergence": found }))
        }
    }
}

/// Settlements that the chain records, ascending, and when it recorded them.
pub(super) fn settlements(archive: &Archive, page: SettlementPage, limit: u64) -> Answer {
    let (settlements, settled) = archive.settlements(page, limit).map_err(|error| unreadable(&error))?;
    let told = settlements.into_iter().map(|PastSettlement { first, recorded, settlement }| {
        json!({
            "first": first, "last": settlement.seq, "tx": settlement.tx.to_string(), "ch": settlement.ch.to_string(),
            "confirmed_length": settlement.confirmed_length, "recorded_in": recorded.header.seq,
            "time": view::utc(recorded.header.time_ms), "time_ms": recorded.header.time_ms,
        })
    });
    Ok(json!({ "settlements": told.collect::<Vec<_>>(), "settled_seq": settled }))
}

/// The ends of what the contract wrote to stdout and stderr.
pub(super) fn log(dir: &Path) -> Answer {
    let streams = contract::log_ends(dir, LOG_BYTES_MAX).map_err(|error| unreadable(&error))?;
    let streams: Vec<Value> = streams.into_iter().map(|(name, text)| json!({ "name": name, "text": text })).collect();
    Ok(json!({ "streams": streams }))
}
