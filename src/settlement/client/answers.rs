//! What a bus answers, read into types. Fields that we do not know are left aside.

use serde_json::Value;

use super::{Answer, ClientError};
use crate::{
    settlement::{Amount, Network, tx::Landed},
    types::Hash,
};

/// Which of the bus's two views is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// What stays.
    Confirmed,
    /// With what may yet be put in another order, or dropped.
    Unconfirmed,
}

impl View {
    pub(super) fn parameter(self) -> &'static str {
        match self {
            View::Confirmed => "true",
            View::Unconfirmed => "false",
        }
    }
}

impl Answer {
    pub(super) fn malformed(&self, what: impl Into<String>) -> ClientError {
        ClientError::Malformed { route: self.route.clone(), what: what.into() }
    }

    fn text(&self, name: &str) -> Result<&str, ClientError> {
        self.value[name].as_str().ok_or_else(|| self.malformed(format!("it has no text {name}")))
    }

    pub(super) fn boolean(&self, name: &str) -> Result<bool, ClientError> {
        self.value[name].as_bool().ok_or_else(|| self.malformed(format!("it has no truth value {name}")))
    }

    pub(super) fn number(&self, name: &str) -> Result<u64, ClientError> {
        self.value[name].as_u64().ok_or_else(|| self.malformed(format!("it has no number {name}")))
    }

    pub(super) fn amount(&self, name: &str) -> Result<Amount, ClientError> {
        Amount::from_units(self.text(name)?).ok_or_else(|| self.malformed(format!("its {name} is no amount")))
    }

    pub(super) fn hash(&self, name: &str) -> Result<Hash, ClientError> {
        self.text(name)?.parse().map_err(|_| self.malformed(format!("its {name} is not 64 hexadecimal digits")))
    }

    pub(super) fn landed(&self, network: Network) -> Result<Landed, ClientError> {
        Landed::parse(&self.value["txDetails"], network)
            .map_err(|error| self.malformed(format!("cannot read the operation: {error}")))
    }
}

/// What the embedded bus says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// Its network's name.
    pub network: String,
    /// Its own bootstrap, `mbs`.
    pub bootstrap: Hash,
    /// Its validator's address.
    pub validator: String,
}

impl About {
    pub(super) fn read(answer: &Answer) -> Result<About, ClientError> {
        Ok(About {
            network: answer.text("network")?.chars().filter(|c| !c.is_control()).take(20).collect(),
            bootstrap: answer.hash("bootstrap")?,
            validator: answer.text("validator")?.chars().filter(|c| !c.is_control()).take(80).collect(),
        })
    }
}

/// What the bus knows of an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Whether it may become a validator.
    pub is_whitelisted: bool,
    /// Whether it passes operations on.
    pub is_validator: bool,
    /// Whether it puts operations in order.
    pub is_indexer: bool,
    /// What it has to spend.
    pub balance: Amount,
    /// What it has pledged as a validator.
    pub staked_balance: Amount,
}

impl Account {
    pub(super) fn read(answer: &Answer) -> Result<Account, ClientError> {
        Ok(Account {
            is_whitelisted: answer.boolean("isWhitelisted")?,
            is_validator: answer.boolean("isValidator")?,
            is_indexer: answer.boolean("isIndexer")?,
            balance: answer.amount("balance")?,
            staked_balance: answer.amount("stakedBalance")?,
        })
    }
}

/// What a server says that it did with an operation. No proof of anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broadcast {
    /// The operation's hash.
    pub tx: Hash,
    /// Length of what was confirmed then.
    pub signed_length: u64,
    /// Length with what was not.
    pub unsigned_length: u64,
}

impl Broadcast {
    pub(super) fn read(answer: &Answer) -> Result<Broadcast, ClientError> {
        let inner = Answer { route: answer.route.clone(), value: answer.value["result"].clone() };
        Ok(Broadcast {
            tx: inner.hash("tx")?,
            signed_length: inner.number("signedLength")?,
            unsigned_length: inner.number("unsignedLength")?,
        })
    }
}

/// An operation and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Details {
    /// The operation. Not checked: see [`Landed::check`].
    pub landed: Landed,
    /// Its place in the one order of all operations; `None` while it is not confirmed.
    pub confirmed_length: Option<u64>,
    /// What it cost.
    pub fee: Amount,
}

impl Details {
    pub(super) fn read(answer: &Answer, network: Network) -> Result<Details, ClientError> {
        Ok(Details {
            landed: answer.landed(network)?,
            confirmed_length: Some(answer.number("confirmed_length")?).filter(|length| *length > 0),
            fee: answer.amount("fee")?,
        })
    }
}

/// The hash of an operation, and its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HashAt {
    /// The operation's hash.
    pub hash: Hash,
    /// Its place in the one order of all operations.
    pub confirmed_length: u64,
}

impl HashAt {
    pub(super) fn read_all(answer: &Answer) -> Result<Vec<HashAt>, ClientError> {
        let list = answer.value["hashes"].as_array().ok_or_else(|| answer.malformed("it has no list hashes"))?;
        let read = |value: &Value| {
            let hash = value["hash"].as_str()?.parse().ok()?;
            Some(HashAt { hash, confirmed_length: value["confirmed_length"].as_u64()? })
        };
        list.iter().map(|value| read(value).ok_or_else(|| answer.malformed("one of its hashes is none"))).collect()
    }
}

/// Many operations at once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Payloads {
    /// Those that are there. Not checked: see [`Landed::check`]. Operations of types that we do not know are left out.
    pub found: Vec<(Hash, Landed)>,
    /// Those that are not.
    pub missing: Vec<Hash>,
}

impl Payloads {
    pub(super) fn read(answer: &Answer, network: Network) -> Result<Payloads, ClientError> {
        let list = |name: &str| {
            answer.value[name].as_array().ok_or_else(|| answer.malformed(format!("it has no list {name}")))
        };
        let hash = |value: &Value| {
            let hash = value.as_str().and_then(|text| text.parse().ok());
            hash.ok_or_else(|| answer.malformed("one of its hashes is none"))
        };
        let mut payloads = Payloads::default();
        for result in list("results")? {
            if let Ok(landed) = Landed::parse(&result["payload"], network) {
                payloads.found.push((hash(&result["hash"])?, landed));
            }
        }
        for missing in list("missing")? {
            payloads.missing.push(hash(missing)?);
        }
        Ok(payloads)
    }
}
