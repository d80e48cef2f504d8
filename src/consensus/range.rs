//! Closed ledgers in a row, as one node hands them to another that lacks them, and what is checked before they count.
//!
//! The check needs nothing of the receiver's state but the chain's name, so that it is made beside the loop: whether each
//! ledger follows the one before, each certificate's signatures are those of the keys it names, and each body is what its
//! header stands for. Whether those keys are a quorum of the UNL in force, and the users those that the chain led to, is
//! checked when a ledger is adopted.

use std::collections::BTreeMap;

use super::{
    HEADERS_MAX, INPUTS_MAX, RANGE_LEDGERS_MAX, UNL_MAX,
    header::{BareLedger, ClosedLedger, Header, Input, inputs_root},
    messages::{Certificate, Headers, Precommit, Range, Scope, Signable as _},
};
use crate::types::{Hash, NodeKey, Seq, Sig};

/// What a peer sent as closed ledgers that are none. Nobody who runs this program does that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Lie {
    /// The message does not read, or is over its bounds.
    #[error("closed ledgers that cannot be read")]
    Malformed,
    /// Ledgers that do not follow each other, or this chain.
    #[error("ledgers that do not follow each other")]
    Chain,
    /// A certificate that is none.
    #[error("a false certificate")]
    Certificate,
    /// A body that is not what its header stands for.
    #[error("a false body of a ledger")]
    Body,
    /// An input that nobody answers for, or that belongs to none of the ledgers.
    #[error("a false input of a ledger")]
    Input,
    /// A list of users that is not the one that a header stands for.
    #[error("a false list of users")]
    Users,
}

/// Ledgers without contents, each of which is what its certificate is for, with each certificate's signatures valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedHeaders {
    /// The first ledger that was asked for.
    pub(super) first: Seq,
    /// The oldest ledger whose contents the sender keeps.
    pub(super) oldest: Seq,
    pub(super) ledgers: Vec<BareLedger>,
}

impl Headers {
    /// Checks everything that can be checked of it by itself. `verify` says whether a key signed a digest.
    pub fn check(self, chain_id: &Hash, verify: impl Fn(&NodeKey, &Hash, &Sig) -> bool) -> Result<CheckedHeaders, Lie> {
        let Headers { first, oldest, ledgers } = self;
        if ledgers.len() > HEADERS_MAX {
            return Err(Lie::Malformed);
        }
        let mut parent: Option<Hash> = None;
        for (at, BareLedger { header, qc, .. }) in ledgers.iter().enumerate() {
            let hash = check_link(header, first, at, parent, chain_id)?;
            parent = Some(hash);
            check_signatures(header, qc, hash, chain_id, &verify)?;
        }
        Ok(CheckedHeaders { first, oldest, ledgers })
    }
}

/// A range whose every ledger is what its certificate is for, with each certificate's signatures valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedRange {
    /// The first ledger that was asked for.
    pub(super) first: Seq,
    /// The oldest ledger whose contents the sender keeps.
    pub(super) oldest: Seq,
    pub(super) ledgers: Vec<CheckedLedger>,
}

/// One of its ledgers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CheckedLedger {
    pub closed: ClosedLedger,
    /// Those of its inputs that came with it, by id.
    pub inputs: BTreeMap<Hash, Input>,
}

impl Range {
    /// Checks everything that can be checked of it by itself. `verify` says whether a key signed a digest; who answers
    /// for an input is checked by the caller.
    pub fn check(self, chain_id: &Hash, verify: impl Fn(&NodeKey, &Hash, &Sig) -> bool) -> Result<CheckedRange, Lie> {
        let Range { first, oldest, ledgers, inputs } = self;
        if ledgers.len() > RANGE_LEDGERS_MAX {
            return Err(Lie::Malformed);
        }
        let mut whose: BTreeMap<Hash, usize> = BTreeMap::new();
        let mut parent: Option<Hash> = None;
        for (at, ledger) in ledgers.iter().enumerate() {
            let header = &ledger.candidate.header;
            let hash = check_link(header, first, at, parent, chain_id)?;
            parent = Some(hash);
            check_signatures(header, &ledger.qc, hash, chain_id, &verify)?;
            check_lists(ledger)?;
            whose.extend(ledger.candidate.inputs.iter().map(|id| (*id, at)));
        }
        let mut checked: Vec<CheckedLedger> =
            ledgers.into_iter().map(|closed| CheckedLedger { closed, inputs: BTreeMap::new() }).collect();
        for input in inputs {
            let id = input.id(chain_id);
            // Each once, and of one of these ledgers.
            let at = whose.remove(&id).ok_or(Lie::Input)?;
            checked[at].inputs.insert(id, input);
        }
        Ok(CheckedRange { first, oldest, ledgers: checked })
    }
}

/// The hash of a header that is in its place, so far behind the first one.
fn check_link(header: &Header, first: Seq, at: usize, parent: Option<Hash>, chain_id: &Hash) -> Result<Hash, Lie> {
    let seq = first.checked_add(at as Seq).ok_or(Lie::Malformed)?;
    let follows = parent.is_none_or(|parent| parent == header.parent);
    if header.seq != seq || header.chain_id != *chain_id || !follows {
        return Err(Lie::Chain);
    }
    Ok(header.hash())
}

fn check_signatures(
    header: &Header,
    qc: &Certificate,
    hash: Hash,
    chain_id: &Hash,
    verify: impl Fn(&NodeKey, &Hash, &Sig) -> bool,
) -> Result<(), Lie> {
    // Signed under the UNL that closed it, which its header names.
    let digest = Precommit(qc.vote).digest(&Scope { chain_id: *chain_id, unl_hash: header.unl_hash });
    let valid = qc.vote.seq == header.seq
        && qc.vote.ledger_hash == hash
        && qc.sigs.len() <= UNL_MAX
        && qc.sigs.is_sorted_by(|a, b| a.0 < b.0)
        && qc.sigs.iter().all(|(key, sig)| verify(key, &digest, sig));
    if valid { Ok(()) } else { Err(Lie::Certificate) }
}

fn check_lists(ledger: &ClosedLedger) -> Result<(), Lie> {
    let candidate = &ledger.candidate;
    let fits = candidate.inputs.len() <= INPUTS_MAX
        && candidate.inputs.len() == candidate.header.n_inputs as usize
        && candidate.inputs.is_sorted_by(|a, b| a < b)
        && inputs_root(&candidate.inputs) == candidate.header.inputs_root;
    if fits { Ok(()) } else { Err(Lie::Body) }
}
