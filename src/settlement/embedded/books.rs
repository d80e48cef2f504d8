//! Who has what, and what is on the bus: a pure function of the entries of the log. Here an operation is accepted or refused.
//!
//! There are two views, as on the real bus: what is confirmed (in the log), and what is accepted and waits. Source of the
//! order of the checks, the fees and the codes: the real bus, as measured.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
};

use serde::{Deserialize, Serialize};

use crate::{
    settlement::{
        Address, Amount, Network,
        tx::{Landed, Operation, Signed, Transfer, Tx},
    },
    types::Hash,
};

/// What any operation costs: 0.03 TNK.
pub const FEE: Amount = Amount(30_000_000_000_000_000);

/// Why an operation is refused: the real bus's codes, which its HTTP clients never see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the real bus's and say it")]
pub enum Code {
    SchemaValidationFailed = 12,
    RequesterAddressInvalid = 13,
    RequesterPublicKeyInvalid = 14,
    TxHashMismatch = 15,
    TxSignatureInvalid = 16,
    TxExpired = 17,
    TxAlreadyExists = 18,
    RequesterNotFound = 20,
    InsufficientFeeBalance = 21,
    ExternalBootstrapEqualsMsbBootstrap = 22,
    SelfValidationForbidden = 23,
    MsbBootstrapMismatch = 34,
    ExternalBootstrapNotDeployed = 35,
    BootstrapAlreadyExists = 38,
    TransferRecipientAddressInvalid = 39,
    TransferRecipientPublicKeyInvalid = 40,
    TransferSenderNotFound = 42,
    TransferInsufficientBalance = 43,
    TransferRecipientBalanceOverflow = 44,
}

/// As the real bus writes it: `TX_ALREADY_EXISTS`.
impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, c) in format!("{self:?}").char_indices() {
            let gap = if at > 0 && c.is_ascii_uppercase() { "_" } else { "" };
            write!(f, "{gap}{}", c.to_ascii_uppercase())?;
        }
        Ok(())
    }
}

/// An operation that is refused, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The real bus's code.
    pub code: Code,
    /// What is wrong, with the values.
    pub why: String,
}

fn refused<T>(code: Code, why: impl Into<String>) -> Result<T, Refused> {
    Err(Refused { code, why: why.into() })
}

/// One entry of the log, behind its head. Everything the books hold comes from these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Entry {
    /// Money out of nothing: the beginning, and the faucet.
    Fund { address: String, units: String },
    /// Money into nothing: for tests.
    Impoverish { address: String },
    /// A subnet that is there from the beginning; its deployer is the validator.
    Bootstrap { bs: String },
    /// Other indexers, as it were.
    Txv { txv: String },
    /// An operation, completed by the validator.
    Operation { json: serde_json::Value },
}

/// An [`Entry`], read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    Fund(Address, Amount),
    Impoverish(Address),
    Bootstrap(Hash),
    Txv(Hash),
    Operation(Box<Landed>),
}

impl Change {
    pub(super) fn to_entry(&self) -> Entry {
        match self {
            Change::Fund(address, amount) => Entry::Fund { address: address.to_string(), units: amount.0.to_string() },
            Change::Impoverish(address) => Entry::Impoverish { address: address.to_string() },
            Change::Bootstrap(bs) => Entry::Bootstrap { bs: bs.to_string() },
            Change::Txv(txv) => Entry::Txv { txv: txv.to_string() },
            Change::Operation(landed) => {
                let json = serde_json::from_str(&landed.to_json()).expect("it was written here");
                Entry::Operation { json }
            }
        }
    }

    pub(super) fn read(entry: Entry, network: Network) -> Result<Change, String> {
        let address = |text: &str| Address::parse(text, network).map_err(|error| error.to_string());
        let hash = |text: &str| text.parse::<Hash>().map_err(|error| error.to_string());
        Ok(match entry {
            Entry::Fund { address: to, units } => {
                let amount = Amount::from_units(&units).ok_or_else(|| format!("{units:?} is no amount"))?;
                Change::Fund(address(&to)?, amount)
            }
            Entry::Impoverish { address: of } => Change::Impoverish(address(&of)?),
            Entry::Bootstrap { bs } => Change::Bootstrap(hash(&bs)?),
            Entry::Txv { txv } => Change::Txv(hash(&txv)?),
            Entry::Operation { json } => {
                let landed = Landed::parse(&json, network).map_err(|error| error.to_string())?;
                Change::Operation(Box::new(landed))
            }
        })
    }
}

/// One of the two views.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct View {
    pub(super) balances: BTreeMap<Address, Amount>,
    /// Subnets and who deployed them.
    deployers: BTreeMap<Hash, Address>,
    pub(super) txv: Hash,
    /// All that was ever handed out.
    pub(super) funded: Amount,
    /// All that is gone.
    pub(super) burnt: Amount,
}

impl View {
    pub(super) fn balance(&self, address: &Address) -> Amount {
        self.balances.get(address).copied().unwrap_or_default()
    }

    pub(super) fn is_deployed(&self, bs: &Hash) -> bool {
        self.deployers.contains_key(bs)
    }

    fn pay(&mut self, to: Address, amount: Amount) {
        let balance = self.balances.entry(to).or_default();
        *balance = Amount(balance.0.checked_add(amount.0).expect("no more than was funded"));
    }

    fn take(&mut self, from: &Address, amount: Amount) {
        let balance = self.balances.get_mut(from).expect("who pays was found to be there");
        *balance = Amount(balance.0.checked_sub(amount.0).expect("who pays was found to have it"));
    }

    /// A share of the fee, in hundredths, goes to each; the rest is burnt.
    fn share(&mut self, shares: &[(Address, u128)]) {
        let mut rest = FEE.0;
        for (to, hundredths) in shares {
            let part = FEE.0 / 100 * hundredths;
            rest -= part;
            self.pay(*to, Amount(part));
        }
        self.burnt = Amount(self.burnt.0 + rest);
    }

    /// Makes a change that [`Books::check`] found right.
    fn apply(&mut self, change: &Change, validator: &Address) {
        match change {
            Change::Fund(to, amount) => {
                self.funded = Amount(self.funded.0 + amount.0);
                self.pay(*to, *amount);
            }
            Change::Impoverish(address) => {
                let had = self.balances.insert(*address, Amount::ZERO).unwrap_or_default();
                self.burnt = Amount(self.burnt.0 + had.0);
            }
            Change::Bootstrap(bs) => {
                self.deployers.insert(*bs, *validator);
            }
            Change::Txv(txv) => self.txv = *txv,
            Change::Operation(landed) => {
                let requester = landed.signed.requester;
                self.take(&requester, FEE);
                match &landed.signed.operation {
                    Operation::Tx(tx) => match self.deployers[&tx.bs] {
                        deployer if deployer == *validator => self.share(&[(*validator, 75)]),
                        deployer if deployer == requester => self.share(&[(*validator, 50)]),
                        deployer => self.share(&[(*validator, 50), (deployer, 25)]),
                    },
                    Operation::Deployment(deployment) => {
                        self.share(&[(*validator, 75)]);
                        self.deployers.insert(deployment.bs, requester);
                    }
                    Operation::Transfer(transfer) => {
                        self.share(&[(*validator, 75)]);
                        if transfer.to != requester {
                            self.take(&requester, transfer.amount);
                            self.pay(transfer.to, transfer.amount);
                        }
                    }
                }
            }
        }
        debug_assert_eq!(self.balances.values().map(|balance| balance.0).sum::<u128>() + self.burnt.0, self.funded.0);
    }
}

/// Where an operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Accepted, and not in the log yet.
    Waiting,
    /// In the log, at this place.
    At(u64),
}

/// Both views, and which operations there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Books {
    pub(super) network: Network,
    pub(super) bootstrap: Hash,
    pub(super) validator: Address,
    pub(super) confirmed: View,
    pub(super) unconfirmed: View,
    waiting: VecDeque<Change>,
    places: BTreeMap<Hash, Place>,
    order: BTreeMap<u64, Hash>,
    /// Entries of the log.
    length: u64,
}

impl Books {
    /// Before the first entry: the log has its head alone.
    pub(super) fn new(network: Network, bootstrap: Hash, validator: Address, txv: Hash) -> Books {
        let view = View {
            balances: BTreeMap::from([(validator, Amount::ZERO)]),
            deployers: BTreeMap::new(),
            txv,
            funded: Amount::ZERO,
            burnt: Amount::ZERO,
        };
        Books {
            network,
            bootstrap,
            validator,
            confirmed: view.clone(),
            unconfirmed: view,
            waiting: VecDeque::new(),
            places: BTreeMap::new(),
            order: BTreeMap::new(),
            length: 1,
        }
    }

    pub(super) fn confirmed_length(&self) -> u64 {
        self.length
    }

    pub(super) fn unconfirmed_length(&self) -> u64 {
        self.length + self.waiting.len() as u64
    }

    pub(super) fn waiting(&self) -> &VecDeque<Change> {
        &self.waiting
    }

    pub(super) fn place(&self, hash: &Hash) -> Option<Place> {
        self.places.get(hash).copied()
    }

    pub(super) fn waiting_operation(&self, hash: &Hash) -> Option<&Landed> {
        self.waiting.iter().find_map(|change| match change {
            Change::Operation(landed) if landed.signed.hash == *hash => Some(&**landed),
            _ => None,
        })
    }

    /// Operations from this place to before that one.
    pub(super) fn between(&self, from: u64, to: u64) -> impl Iterator<Item = (u64, Hash)> {
        self.order.range(from..to.max(from)).map(|(place, hash)| (*place, *hash))
    }

    /// Whether this operation may be put behind what is there and waits, in the real bus's order of checks.
    pub(super) fn check(&self, signed: &Signed) -> Result<(), Refused> {
        let Signed { requester, operation, hash, .. } = signed;
        if *requester == self.validator {
            return refused(Code::SelfValidationForbidden, format!("{requester} is this bus's validator"));
        }
        if !crate::crypto::is_key(requester.key()) {
            return refused(Code::RequesterPublicKeyInvalid, format!("{requester} is nobody's key"));
        }
        if self.places.contains_key(hash) {
            return refused(Code::TxAlreadyExists, format!("{hash} was accepted before"));
        }
        let real = operation.hash(self.network);
        if real != *hash {
            return refused(Code::TxHashMismatch, format!("tx is {hash}, but its fields have the hash {real}"));
        }
        if !crate::crypto::verify(requester.key(), &hash.0, &signed.sig) {
            return refused(Code::TxSignatureInvalid, format!("`is` is not the signature of {requester} over {hash}"));
        }
        self.check_state(signed)
    }

    /// The part of [`Books::check`] that depends on what came before.
    fn check_state(&self, signed: &Signed) -> Result<(), Refused> {
        let Signed { requester, operation, .. } = signed;
        let txv = &self.unconfirmed.txv;
        if operation.txv() != txv {
            return refused(Code::TxExpired, format!("txv is {}, the current one is {txv}", operation.txv()));
        }
        match operation {
            Operation::Tx(Tx { bs, mbs, .. }) => {
                self.check_fee(requester)?;
                if bs == &self.bootstrap {
                    return refused(Code::ExternalBootstrapEqualsMsbBootstrap, format!("bs is this bus's own, {bs}"));
                }
                if mbs != &self.bootstrap {
                    let why = format!("mbs is {mbs}, this bus's bootstrap is {}", self.bootstrap);
                    return refused(Code::MsbBootstrapMismatch, why);
                }
                if !self.confirmed.is_deployed(bs) {
                    return refused(Code::ExternalBootstrapNotDeployed, format!("bs {bs} is not deployed"));
                }
                Ok(())
            }
            Operation::Deployment(deployment) => {
                self.check_fee(requester)?;
                self.check_bootstrap(&deployment.bs)
            }
            Operation::Transfer(transfer) => self.check_transfer(requester, transfer),
        }
    }

    fn check_fee(&self, requester: &Address) -> Result<(), Refused> {
        for (view, name) in [(&self.unconfirmed, "unconfirmed"), (&self.confirmed, "confirmed")] {
            match view.balances.get(requester) {
                None => return refused(Code::RequesterNotFound, format!("{requester} never had money ({name})")),
                Some(balance) if *balance < FEE => {
                    let why = format!("{requester} has {balance} ({name}), the fee is {FEE}");
                    return refused(Code::InsufficientFeeBalance, why);
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    fn check_bootstrap(&self, bs: &Hash) -> Result<(), Refused> {
        if bs == &self.bootstrap {
            return refused(Code::ExternalBootstrapEqualsMsbBootstrap, format!("bs is this bus's own, {bs}"));
        }
        if self.unconfirmed.is_deployed(bs) {
            return refused(Code::BootstrapAlreadyExists, format!("bs {bs} is deployed already"));
        }
        Ok(())
    }

    fn check_transfer(&self, requester: &Address, transfer: &Transfer) -> Result<(), Refused> {
        let Some(balance) = self.unconfirmed.balances.get(requester) else {
            return refused(Code::TransferSenderNotFound, format!("{requester} never had money"));
        };
        // To oneself nothing moves, and nothing need be there but the fee.
        let to_self = transfer.to == *requester;
        let needed = if to_self { Some(FEE.0) } else { FEE.0.checked_add(transfer.amount.0) };
        if needed.is_none_or(|needed| balance.0 < needed) {
            let why = format!("{requester} has {balance}, not {} and the fee of {FEE}", transfer.amount);
            return refused(Code::TransferInsufficientBalance, why);
        }
        if !to_self && self.unconfirmed.balance(&transfer.to).0.checked_add(transfer.amount.0).is_none() {
            return refused(Code::TransferRecipientBalanceOverflow, format!("{} has too much already", transfer.to));
        }
        Ok(())
    }

    /// Whether a change that is no operation may be made: money that is handed out stays below what a number holds.
    pub(super) fn check_other(&self, change: &Change) -> Result<(), String> {
        match change {
            Change::Fund(_, amount) => match self.unconfirmed.funded.0.checked_add(amount.0) {
                Some(_) => Ok(()),
                None => Err(format!("{amount} more is more money than the bus can count")),
            },
            Change::Bootstrap(bs) => self.check_bootstrap(bs).map_err(|refused| refused.why),
            Change::Impoverish(_) | Change::Txv(_) => Ok(()),
            Change::Operation(landed) => self.check_state(&landed.signed).map_err(|refused| refused.why),
        }
    }

    /// Takes a change that was checked: from now on it is in the unconfirmed view, and waits.
    pub(super) fn accept(&mut self, change: Change) {
        self.unconfirmed.apply(&change, &self.validator);
        if let Change::Operation(landed) = &change {
            let before = self.places.insert(landed.signed.hash, Place::Waiting);
            assert!(before.is_none(), "a hash is accepted once");
        }
        self.waiting.push_back(change);
    }

    /// The first that waits is in the log now, at the end.
    pub(super) fn confirm(&mut self) {
        let change = self.waiting.pop_front().expect("something waits");
        self.confirmed.apply(&change, &self.validator);
        if let Change::Operation(landed) = &change {
            self.places.insert(landed.signed.hash, Place::At(self.length));
            self.order.insert(self.length, landed.signed.hash);
        }
        self.length += 1;
        assert!(
            !self.waiting.is_empty() || self.confirmed == self.unconfirmed,
            "nothing waits, so the views are alike"
        );
    }

    /// Whatever waits is gone: the log could not be written.
    pub(super) fn forget_waiting(&mut self) -> usize {
        let count = self.waiting.len();
        for change in self.waiting.drain(..) {
            if let Change::Operation(landed) = change {
                self.places.remove(&landed.signed.hash);
            }
        }
        self.unconfirmed = self.confirmed.clone();
        count
    }
}
