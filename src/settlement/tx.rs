//! Operations of the bus: what is hashed, what is signed, and the text that travels.
//!
//! A hash is BLAKE3 over the fields one after the other, numbers big-endian, without lengths. The requester's address is not
//! in it: whoever signs the same fields makes the same hash, and the bus takes each hash once. Source of every byte: the real
//! library's vectors, `tests/golden/msb.json`.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;

use super::{Address, Amount, Network};
use crate::{
    crypto::{SecretKey, verify},
    types::{Hash, Sig},
};

/// Type of an operation that deploys a subnet's bootstrap.
pub const DEPLOYMENT: u32 = 11;

/// Type of an operation that notes a content hash.
pub const TX: u32 = 12;

/// Type of an operation that moves money.
pub const TRANSFER: u32 = 13;

/// Notes that somebody stands behind a content hash: what a settlement is on the bus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tx {
    /// `txv`: stands for the bus's indexers; one that is not the current one is refused.
    pub txv: Hash,
    /// `iw`: who wrote it; anything but zeros, the bus does not look.
    pub iw: Hash,
    /// `ch`: the content hash, which alone is what this is about.
    pub ch: Hash,
    /// `bs`: the subnet's bootstrap, which must be deployed.
    pub bs: Hash,
    /// `mbs`: the bus's own bootstrap.
    pub mbs: Hash,
    /// `in`: tells two operations with otherwise equal fields apart.
    pub nonce: Hash,
}

/// Makes a subnet's bootstrap known, once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deployment {
    /// `txv`: as in [`Tx`].
    pub txv: Hash,
    /// `bs`: the bootstrap.
    pub bs: Hash,
    /// `ic`: the subnet's channel.
    pub channel: Hash,
    /// `in`: as in [`Tx`].
    pub nonce: Hash,
}

/// Moves money.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transfer {
    /// `txv`: as in [`Tx`].
    pub txv: Hash,
    /// `to`: who gets it.
    pub to: Address,
    /// `am`: how much, beside the fee.
    pub amount: Amount,
    /// `in`: as in [`Tx`].
    pub nonce: Hash,
}

/// What may be asked of the bus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Type 11.
    Deployment(Deployment),
    /// Type 12.
    Tx(Tx),
    /// Type 13.
    Transfer(Transfer),
}

impl From<Tx> for Operation {
    fn from(tx: Tx) -> Operation {
        Operation::Tx(tx)
    }
}

impl From<Deployment> for Operation {
    fn from(deployment: Deployment) -> Operation {
        Operation::Deployment(deployment)
    }
}

impl From<Transfer> for Operation {
    fn from(transfer: Transfer) -> Operation {
        Operation::Transfer(transfer)
    }
}

impl Operation {
    /// The number of its type.
    pub fn kind(&self) -> u32 {
        match self {
            Operation::Deployment(_) => DEPLOYMENT,
            Operation::Tx(_) => TX,
            Operation::Transfer(_) => TRANSFER,
        }
    }

    /// `txv`: which indexers it was made for.
    pub fn txv(&self) -> &Hash {
        match self {
            Operation::Deployment(deployment) => &deployment.txv,
            Operation::Tx(tx) => &tx.txv,
            Operation::Transfer(transfer) => &transfer.txv,
        }
    }

    /// What is hashed.
    pub fn preimage(&self, network: Network) -> Vec<u8> {
        let mut bytes = network.id().to_be_bytes().to_vec();
        match self {
            Operation::Deployment(Deployment { txv, bs, channel, nonce }) => {
                [txv, bs, channel, nonce].iter().for_each(|field| bytes.extend(field.0));
            }
            Operation::Tx(Tx { txv, iw, ch, bs, mbs, nonce }) => {
                [txv, iw, ch, bs, mbs, nonce].iter().for_each(|field| bytes.extend(field.0));
            }
            Operation::Transfer(Transfer { txv, to, amount, nonce }) => {
                bytes.extend(txv.0);
                bytes.extend(to.to_string().bytes());
                bytes.extend(amount.0.to_be_bytes());
                bytes.extend(nonce.0);
            }
        }
        bytes.extend(self.kind().to_be_bytes());
        bytes
    }

    /// The operation's hash (BLAKE3), by which the bus knows it.
    pub fn hash(&self, network: Network) -> Hash {
        blake3_of(&self.preimage(network))
    }

    /// The operation with its requester's signature.
    pub fn sign(self, network: Network, key: &SecretKey) -> Signed {
        let hash = self.hash(network);
        let requester = Address::new(network, key.node_key().0);
        Signed { requester, sig: key.sign(&hash.0), hash, operation: self }
    }

    /// The first field that is all zeros, which the bus refuses; an amount may be.
    pub fn zero_field(&self) -> Option<&'static str> {
        let fields: Vec<(&'static str, &Hash)> = match self {
            Operation::Deployment(Deployment { txv, bs, channel, nonce }) => {
                vec![("txv", txv), ("bs", bs), ("ic", channel), ("in", nonce)]
            }
            Operation::Tx(Tx { txv, iw, ch, bs, mbs, nonce }) => {
                vec![("txv", txv), ("iw", iw), ("ch", ch), ("bs", bs), ("mbs", mbs), ("in", nonce)]
            }
            Operation::Transfer(Transfer { txv, nonce, .. }) => vec![("txv", txv), ("in", nonce)],
        };
        fields.into_iter().find(|(_, value)| **value == Hash::ZERO).map(|(name, _)| name)
    }

    /// Name of the JSON object that holds the fields.
    pub fn body_name(&self) -> &'static str {
        match self {
            Operation::Deployment(_) => "bdo",
            Operation::Tx(_) => "txo",
            Operation::Transfer(_) => "tro",
        }
    }

    /// The fields with their names, in the real library's order, after `tx`.
    fn fields(&self, amount: AmountText) -> Vec<(&'static str, String)> {
        match self {
            Operation::Deployment(Deployment { txv, bs, channel, nonce }) => vec![
                ("txv", txv.to_string()),
                ("bs", bs.to_string()),
                ("ic", channel.to_string()),
                ("in", nonce.to_string()),
            ],
            Operation::Tx(Tx { txv, iw, ch, bs, mbs, nonce }) => vec![
                ("txv", txv.to_string()),
                ("iw", iw.to_string()),
                ("ch", ch.to_string()),
                ("bs", bs.to_string()),
                ("mbs", mbs.to_string()),
                ("in", nonce.to_string()),
            ],
            Operation::Transfer(Transfer { txv, to, amount: value, nonce }) => vec![
                ("txv", txv.to_string()),
                ("to", to.to_string()),
                ("am", amount.write(*value)),
                ("in", nonce.to_string()),
            ],
        }
    }
}

/// How an amount is written: what is sent has 32 hexadecimal digits, what is shown is decimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AmountText {
    /// In what is sent.
    Hex,
    /// In what the API shows.
    Decimal,
}

impl AmountText {
    fn write(self, amount: Amount) -> String {
        match self {
            AmountText::Hex => hex::encode(amount.0.to_be_bytes()),
            AmountText::Decimal => amount.0.to_string(),
        }
    }

    fn read(self, text: &str) -> Option<Amount> {
        match self {
            AmountText::Hex => {
                let mut bytes = [0; 16];
                hex::decode_to_slice(text, &mut bytes).ok()?;
                Some(Amount(u128::from_be_bytes(bytes)))
            }
            AmountText::Decimal => Amount::from_units(text),
        }
    }
}

fn blake3_of(bytes: &[u8]) -> Hash {
    Hash(*blake3::hash(bytes).as_bytes())
}

/// An operation, who asks for it, and the signature over its hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// Who asks, and pays.
    pub requester: Address,
    /// What for.
    pub operation: Operation,
    /// `tx`: the operation's hash.
    pub hash: Hash,
    /// `is`: over the 32 bytes of the hash.
    pub sig: Sig,
}

impl Signed {
    /// The JSON text that is sent, byte for byte as the real library writes it. Holds no secret.
    pub fn to_json(&self) -> String {
        self.text(AmountText::Hex, None)
    }

    /// What `POST /v1/broadcast-transaction` takes: the JSON text in base64.
    pub fn payload(&self) -> String {
        STANDARD.encode(self.to_json())
    }

    /// Whether hash and signature are the operation's on this network.
    pub fn is_right(&self, network: Network) -> bool {
        self.operation.hash(network) == self.hash && verify(self.requester.key(), &self.hash.0, &self.sig)
    }

    /// No value in it needs escaping: hexadecimal and decimal digits, and addresses.
    pub(super) fn text(&self, amount: AmountText, completion: Option<&Completion>) -> String {
        let mut fields = vec![("tx", self.hash.to_string())];
        fields.extend(self.operation.fields(amount));
        fields.push(("is", self.sig.to_string()));
        if let Some(Completion { validator, nonce, sig }) = completion {
            fields.extend([("va", validator.to_string()), ("vn", nonce.to_string()), ("vs", sig.to_string())]);
        }
        let fields: Vec<String> = fields.into_iter().map(|(name, value)| format!("\"{name}\":\"{value}\"")).collect();
        let (kind, requester, name) = (self.operation.kind(), self.requester, self.operation.body_name());
        format!("{{\"type\":{kind},\"address\":\"{requester}\",\"{name}\":{{{}}}}}", fields.join(","))
    }
}

/// What the validator adds to an operation that it passes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// `va`: who.
    pub validator: Address,
    /// `vn`: a number of its own.
    pub nonce: Hash,
    /// `vs`: its signature.
    pub sig: Sig,
}

impl Completion {
    /// Completes an operation of this hash and type.
    pub fn new(network: Network, tx: &Hash, kind: u32, nonce: Hash, key: &SecretKey) -> Completion {
        let sig = key.sign(&Completion::hash(network, tx, kind, &nonce).0);
        Completion { validator: Address::new(network, key.node_key().0), nonce, sig }
    }

    /// What the validator signs.
    pub fn hash(network: Network, tx: &Hash, kind: u32, nonce: &Hash) -> Hash {
        let mut bytes = network.id().to_be_bytes().to_vec();
        bytes.extend(tx.0);
        bytes.extend(nonce.0);
        bytes.extend(kind.to_be_bytes());
        blake3_of(&bytes)
    }
}

/// `txv` of a bus with these indexers' writer keys, in its order.
pub fn txv_of(indexers: &[[u8; 32]]) -> Hash {
    blake3_of(&indexers.concat())
}

/// An operation as the bus shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Landed {
    /// What was asked for, by whom.
    pub signed: Signed,
    /// Who passed it on.
    pub completion: Completion,
}

/// An operation that is not what its hash stands for: whoever shows it is wrong, or lies.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Lie {
    /// Another operation than the one that was asked for.
    #[error("asked for the operation {asked}, got {got}")]
    AnotherHash {
        /// What was asked for.
        asked: Hash,
        /// What came.
        got: Hash,
    },
    /// The fields give another hash.
    #[error("the fields of operation {claimed} have the hash {real}: one of them was changed")]
    Fields {
        /// The hash that stands there.
        claimed: Hash,
        /// That of the fields.
        real: Hash,
    },
    /// The requester did not sign it.
    #[error("operation {0} does not have the signature of {1}, who is said to have asked for it")]
    Requester(Hash, Address),
    /// The validator did not sign it.
    #[error("operation {0} does not have the signature of {1}, who is said to have passed it on")]
    Validator(Hash, Address),
}

/// JSON that is no operation that we know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseOperationError {
    /// An operation of another type, or of none.
    #[error("its type is {0}, and not 11, 12 or 13")]
    Kind(String),
    /// A field is missing, or not what it should be.
    #[error("its field {0} is missing or wrong")]
    Field(&'static str),
}

impl Landed {
    /// Reads `{"type":12,"address":"trac1...","txo":{...}}` as the API shows it.
    pub fn parse(value: &Value, network: Network) -> Result<Landed, ParseOperationError> {
        Landed::read(value, network, AmountText::Decimal)
    }

    pub(super) fn read(value: &Value, network: Network, amount: AmountText) -> Result<Landed, ParseOperationError> {
        let kind = value["type"].as_u64();
        let body = match kind.and_then(|kind| u32::try_from(kind).ok()) {
            Some(DEPLOYMENT) => &value["bdo"],
            Some(TX) => &value["txo"],
            Some(TRANSFER) => &value["tro"],
            _ => return Err(ParseOperationError::Kind(value["type"].to_string().chars().take(20).collect())),
        };
        let text = |name: &'static str| body[name].as_str().ok_or(ParseOperationError::Field(name));
        let hash = |name| text(name)?.parse::<Hash>().map_err(|_| ParseOperationError::Field(name));
        let sig = |name| text(name)?.parse::<Sig>().map_err(|_| ParseOperationError::Field(name));
        let address = |name| Address::parse(text(name)?, network).map_err(|_| ParseOperationError::Field(name));
        let operation = match kind.map(|kind| kind as u32) {
            Some(DEPLOYMENT) => Operation::Deployment(Deployment {
                txv: hash("txv")?,
                bs: hash("bs")?,
                channel: hash("ic")?,
                nonce: hash("in")?,
            }),
            Some(TX) => Operation::Tx(Tx {
                txv: hash("txv")?,
                iw: hash("iw")?,
                ch: hash("ch")?,
                bs: hash("bs")?,
                mbs: hash("mbs")?,
                nonce: hash("in")?,
            }),
            _ => Operation::Transfer(Transfer {
                txv: hash("txv")?,
                to: address("to")?,
                amount: amount.read(text("am")?).ok_or(ParseOperationError::Field("am"))?,
                nonce: hash("in")?,
            }),
        };
        let requester = value["address"].as_str().and_then(|text| Address::parse(text, network).ok());
        let requester = requester.ok_or(ParseOperationError::Field("address"))?;
        let completion = Completion { validator: address("va")?, nonce: hash("vn")?, sig: sig("vs")? };
        Ok(Landed { signed: Signed { requester, operation, hash: hash("tx")?, sig: sig("is")? }, completion })
    }

    /// As [`Landed::parse`] reads it.
    pub fn to_json(&self) -> String {
        self.signed.text(AmountText::Decimal, Some(&self.completion))
    }

    /// Whether this is the operation with this hash, asked for and passed on by those whose names it bears. Does not tell
    /// whether it is on the bus: for that one has to trust whoever says so.
    pub fn check(&self, asked: &Hash, network: Network) -> Result<(), Lie> {
        let Signed { requester, operation, hash, sig } = &self.signed;
        if hash != asked {
            return Err(Lie::AnotherHash { asked: *asked, got: *hash });
        }
        let real = operation.hash(network);
        if real != *hash {
            return Err(Lie::Fields { claimed: *hash, real });
        }
        if !verify(requester.key(), &hash.0, sig) {
            return Err(Lie::Requester(*hash, *requester));
        }
        let Completion { validator, nonce, sig } = &self.completion;
        let completed = Completion::hash(network, hash, operation.kind(), nonce);
        if !verify(validator.key(), &completed.0, sig) {
            return Err(Lie::Validator(*hash, *validator));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settlement::vectors::{vector, vectors};

    const NETWORK: Network = Network::Mainnet;

    fn input(name: &str) -> Hash {
        vector(&format!("/inputs/{name}")).parse().unwrap()
    }

    fn tx() -> Tx {
        Tx {
            txv: input("txv"),
            iw: input("iw"),
            ch: input("ch"),
            bs: input("bs"),
            mbs: input("mbs"),
            nonce: input("nonce"),
        }
    }

    fn wallet() -> SecretKey {
        SecretKey::parse(&vector("/wallet/seed")).unwrap()
    }

    fn requester() -> SecretKey {
        SecretKey::from_seed([1; 32])
    }

    fn operations() -> [(&'static str, Operation); 3] {
        let deployment = Deployment { txv: input("txv"), bs: input("bs"), channel: input("ic"), nonce: input("nonce") };
        let to = Address::parse(&vector("/wallet/address"), NETWORK).unwrap();
        let transfer = Transfer { txv: input("txv"), to, amount: Amount::tnk(1), nonce: input("nonce") };
        [("tx", tx().into()), ("bdo", deployment.into()), ("transfer", transfer.into())]
    }

    #[test]
    fn preimages_hashes_signatures_and_json_are_those_of_the_real_library() {
        for (name, operation) in operations() {
            assert_eq!(hex::encode(operation.preimage(NETWORK)), vector(&format!("/{name}_preimage")), "{name}");
            let signed = operation.sign(NETWORK, &requester());
            let written: Value = serde_json::from_str(&signed.to_json()).unwrap();
            assert_eq!(written, vectors()[name], "{name}");
            assert!(signed.is_right(NETWORK) && !signed.is_right(Network::Testnet));
        }
        let signed = Operation::from(tx()).sign(NETWORK, &requester());
        assert_eq!(signed.payload(), vector("/tx_payload_base64"), "the order of the fields too");
        assert_eq!(signed.requester.to_string(), vector("/inputs/signer"));
    }

    #[test]
    fn the_same_fields_signed_by_another_have_the_same_hash() {
        let (one, two) = (
            Operation::from(tx()).sign(NETWORK, &requester()),
            Operation::from(tx()).sign(NETWORK, &SecretKey::from_seed([2; 32])),
        );
        assert_eq!(one.hash, two.hash);
        assert_ne!(one.sig, two.sig);
    }

    #[test]
    fn completions_and_txv_are_those_of_the_real_library() {
        let hash: Hash = vector("/tx/txo/tx").parse().unwrap();
        let nonce: Hash = vector("/tx_complete/vn").parse().unwrap();
        assert_eq!(Completion::hash(NETWORK, &hash, TX, &nonce).to_string(), vector("/tx_complete/vs_hash"));
        let completion = Completion::new(NETWORK, &hash, TX, nonce, &wallet());
        assert_eq!(completion.sig.to_string(), vector("/tx_complete/vs"));
        assert_eq!(completion.validator.to_string(), vector("/tx_complete/va"));
        assert_eq!(txv_of(&[[0xaa; 32], [0xbb; 32]]).to_string(), vector("/txv_example/txv"));
        assert_eq!(txv_of(&[[0xaa; 32]]).to_string(), vector("/txv_one/txv"));
    }

    fn landed(operation: Operation) -> Landed {
        let signed = operation.sign(NETWORK, &requester());
        let completion = Completion::new(NETWORK, &signed.hash, signed.operation.kind(), Hash([9; 32]), &wallet());
        Landed { signed, completion }
    }

    #[test]
    fn what_landed_reads_back_and_what_was_changed_is_a_lie() {
        for (name, operation) in operations() {
            let landed = landed(operation);
            let hash = landed.signed.hash;
            let value: Value = serde_json::from_str(&landed.to_json()).unwrap();
            assert_eq!(Landed::parse(&value, NETWORK).as_ref(), Ok(&landed), "{name}");
            assert_eq!(landed.check(&hash, NETWORK), Ok(()));
            assert!(matches!(landed.check(&Hash([7; 32]), NETWORK), Err(Lie::AnotherHash { .. })));
        }
        let good = landed(tx().into());
        let hash = good.signed.hash;
        let mut other = good.clone();
        other.signed.operation = Tx { ch: Hash([7; 32]), ..tx() }.into();
        assert!(matches!(other.check(&hash, NETWORK), Err(Lie::Fields { .. })));
        let mut other = good.clone();
        other.signed.requester = Address::new(NETWORK, SecretKey::from_seed([5; 32]).node_key().0);
        assert!(matches!(other.check(&hash, NETWORK), Err(Lie::Requester(..))));
        let mut other = good.clone();
        other.completion.nonce = Hash([8; 32]);
        assert!(matches!(other.check(&hash, NETWORK), Err(Lie::Validator(..))));
    }

    #[test]
    fn what_is_no_operation_is_refused_with_the_field() {
        let good: Value = serde_json::from_str(&landed(tx().into()).to_json()).unwrap();
        for name in ["tx", "txv", "iw", "ch", "bs", "mbs", "in", "is", "va", "vn", "vs"] {
            for wrong in [Value::Null, Value::from(7), Value::from("zz"), Value::from("00")] {
                let mut value = good.clone();
                value["txo"][name] = wrong;
                assert_eq!(Landed::parse(&value, NETWORK), Err(ParseOperationError::Field(name)));
            }
        }
        for kind in [Value::Null, Value::from(5), Value::from("12"), Value::from(-12), Value::from(1_u64 << 32 | 12)] {
            let mut value = good.clone();
            value["type"] = kind;
            assert!(matches!(Landed::parse(&value, NETWORK), Err(ParseOperationError::Kind(_))));
        }
        assert_eq!(Landed::parse(&good, Network::Testnet), Err(ParseOperationError::Field("address")));
    }

    #[test]
    fn a_field_of_zeros_is_named() {
        assert_eq!(Operation::from(tx()).zero_field(), None);
        assert_eq!(Operation::from(Tx { bs: Hash::ZERO, ..tx() }).zero_field(), Some("bs"));
    }
}
