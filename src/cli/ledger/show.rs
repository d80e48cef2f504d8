//! `hp ledger show`: everything of one ledger.

use std::{fmt::Write as _, path::PathBuf};

use super::{open, view};
use crate::{
    cli::{Exit, Failure, Outcome, answer},
    consensus::header::{ExecResult, Origin, UnlChange},
    ledger::Depth,
    types::Seq,
};

/// Characters shown of an input or output; `--json` has all of it.
const PREVIEW: usize = 60;
/// Inputs, users and outputs listed each; `--json` has all.
const LISTED: usize = 50;

const EXAMPLES: &str = "\
Examples:
  hp ledger show mynode 17             ledger 17
  hp ledger show mynode                the newest
  hp ledger show mynode 17 --json      every byte of it; docs/export.md explains the fields";

/// Show everything of one ledger.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Show {
    /// The contract folder of the node
    dir: PathBuf,
    /// Which ledger [default: the newest]
    seq: Option<Seq>,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

impl Show {
    pub(super) fn run(self) -> Outcome {
        let archive = open(&self.dir)?;
        let chain = view::Chain::read(&archive)?;
        let seq = self.seq.unwrap_or(chain.tip);
        if seq == 0 {
            return answer(&format!("{:#}\n", chain.json()));
        }
        let mut shown = None;
        view::read(&archive, seq, seq, Depth::All, |ledger| {
            shown =
                Some(if self.json { format!("{:#}\n", view::json(&ledger, &chain)) } else { text(&ledger, &chain) });
            Ok::<(), Failure>(())
        })?;
        match shown {
            Some(shown) => answer(&shown),
            None => {
                let what = format!("there is no ledger {seq}: the last one is {}", chain.tip);
                Err(Failure::new(Exit::Failed, anyhow::anyhow!(what)))
            }
        }
    }
}

fn text(ledger: &view::Ledger, chain: &view::Chain) -> String {
    let header = &ledger.header;
    let unl = chain.unl(header);
    let mut text = String::new();
    let mut line = |name: &str, value: String| writeln!(text, "{name:<10} {value}").expect("into memory");
    line("ledger", format!("{} of chain {}", ledger.seq, header.chain_id));
    line("hash", ledger.hash.to_string());
    line("parent", header.parent.to_string());
    line("time", format!("{} ({} ms)", view::utc(header.time_ms), header.time_ms));
    line("attempt", ledger.qc.vote.attempt.to_string());
    let signed = ledger.qc.sigs.iter().map(|(node, _)| node);
    line("signed", format!("by {} of {} members", ledger.qc.sigs.len(), unl.len()));
    signed.for_each(|node| line("", node.to_string()));
    unl.iter()
        .filter(|node| !ledger.qc.sigs.iter().any(|(signer, _)| signer == *node))
        .for_each(|node| line("", format!("{node} (not in the certificate)")));
    line("UNL", header.unl_hash.to_string());
    if header.next_unl_hash != header.unl_hash {
        line("next UNL", header.next_unl_hash.to_string());
        ledger.unl_change.iter().for_each(|change| line("", describe(change)));
    }
    line("users", format!("{}, root {}", header.n_users, header.users_root));
    line("inputs", format!("{} with {} bytes, root {}", header.n_inputs, header.inputs_bytes, header.inputs_root));
    if let Some(settlement) = &header.settlement {
        line("settled", format!("up to ledger {}, transaction {}", settlement.seq, settlement.tx));
    }
    match &ledger.body {
        None => line("", "(its contents are no longer kept)".to_owned()),
        Some(body) => {
            for (id, input) in body.inputs.iter().take(LISTED) {
                let Some(input) = input else {
                    line("input", format!("{id} (its bytes are no longer kept)"));
                    continue;
                };
                let by = match &input.origin {
                    Origin::User { .. } => "signed".to_owned(),
                    Origin::Session { host, .. } => format!("session at {}", host.short()),
                };
                line("input", id.to_string());
                line(
                    "",
                    format!("user {}, {by}, nonce {}, until ledger {}", input.user, input.nonce, input.max_ledger),
                );
                line("", format!("{} bytes: {}", input.payload.len(), view::preview(&input.payload, PREVIEW)));
            }
            rest(&mut line, body.inputs.len(), "inputs");
            body.users_add.iter().take(LISTED).for_each(|user| line("came", user.to_string()));
            rest(&mut line, body.users_add.len(), "users that came");
            body.users_del.iter().take(LISTED).for_each(|user| line("went", user.to_string()));
            rest(&mut line, body.users_del.len(), "users that went");
        }
    }
    match (&ledger.agreed, &ledger.own) {
        (Some(agreed), own) => {
            result(&mut line, "result", agreed);
            if own.as_ref().is_some_and(|own| own.body != *agreed) {
                line("", "this node's own is another:".to_owned());
                result(&mut line, "own", &own.as_ref().expect("just seen").body);
            }
        }
        (None, Some(own)) => {
            result(&mut line, "result", &own.body);
            line("", "(this node's own: the agreed one stands in the next ledger)".to_owned());
        }
        (None, None) => line("result", "not known yet".to_owned()),
    }
    if let Some(outputs) = &ledger.outputs {
        for (user, bytes) in outputs.iter().take(LISTED) {
            line("output", format!("to {user}"));
            line("", format!("{} bytes: {}", bytes.len(), view::preview(bytes, PREVIEW)));
        }
        rest(&mut line, outputs.len(), "outputs");
    }
    text
}

fn rest(line: &mut impl FnMut(&str, String), count: usize, what: &str) {
    if count > LISTED {
        line("", format!("and {} more {what} (--json has all)", count - LISTED));
    }
}

fn result(line: &mut impl FnMut(&str, String), name: &str, result: &ExecResult) {
    line(name, result.status.to_string());
    line("", format!("state root   {}", result.state_root));
    line("", format!("outputs root {}", result.outputs_root));
    result.unl_req.iter().for_each(|change| line("", format!("the contract asks: {}", describe(change))));
}

fn describe(change: &UnlChange) -> String {
    match change {
        UnlChange::Add(node) => format!("add member {node}"),
        UnlChange::Remove(node) => format!("remove member {node}"),
    }
}
