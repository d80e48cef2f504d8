//! The challenge a user answers before the first input. Pure: knows nothing of sockets.

use serde::Deserialize;

use super::reply::ErrorCode;
use crate::{
    crypto,
    types::{Challenge, Sig, UserKey},
};

/// Bytes of a helo. A longer one is refused before it is parsed.
pub const HELO_BYTES_MAX: usize = 4096;

/// What a user showed to open a session: its signature over the challenge this node drew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeloProof {
    /// The challenge of this session.
    pub challenge: Challenge,
    /// The user's signature over the challenge's 32 hexadecimal characters.
    pub sig: Sig,
}

impl HeloProof {
    /// Whether `user` signed this challenge.
    pub fn verify(&self, user: &UserKey) -> bool {
        crypto::verify(&user.0, self.challenge.to_string().as_bytes(), &self.sig)
    }
}

/// How the frames after the helo are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Every frame is one input, every output one frame (Hot Pocket 0.1).
    Raw,
    /// Frames of [`crate::signed`]: inputs that the user signs, outputs with proofs.
    Signed,
}

/// A helo that was checked: `user` holds the key it claims.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Helo {
    /// Who opened the session.
    pub user: UserKey,
    /// Their proof.
    pub proof: HeloProof,
    /// How they want to talk.
    pub mode: Mode,
}

/// Why a frame is not the helo that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum HeloError {
    /// Longer than [`HELO_BYTES_MAX`].
    #[error("a helo has at most {HELO_BYTES_MAX} bytes, this frame has {0}")]
    TooLarge(usize),
    /// Not an object with the fields of a helo.
    #[error("not a helo: {0}")]
    Format(String),
    /// Not exactly 64 hexadecimal digits.
    #[error("pubkey is not exactly 64 hexadecimal digits")]
    PublicKey,
    /// A mode this node does not speak.
    #[error("mode {0} is not spoken here; \"signed\" is, and \"raw\", which is the same as none")]
    Mode(String),
    /// Another challenge than this session's.
    #[error("challenge is not the one this session was given")]
    Challenge,
    /// Not 128 hexadecimal digits, or not the key's signature.
    #[error("sig is not pubkey's ed25519 signature over the challenge's 32 characters, as 128 hexadecimal digits")]
    Sig,
}

impl HeloError {
    /// The code the user is told.
    pub fn code(&self) -> ErrorCode {
        match self {
            HeloError::TooLarge(_) => ErrorCode::TooLarge,
            HeloError::Format(_) | HeloError::PublicKey | HeloError::Mode(_) => ErrorCode::BadFormat,
            HeloError::Challenge => ErrorCode::BadChallenge,
            HeloError::Sig => ErrorCode::BadSig,
        }
    }
}

/// The first frame of a session: `{"hotpocket":0.1,"type":"public_challenge","challenge":"<32 hex>"}`.
pub fn challenge_message(challenge: &Challenge) -> String {
    format!(r#"{{"hotpocket":0.1,"type":"public_challenge","challenge":"{challenge}"}}"#)
}

/// Reads the answer to `challenge`: a JSON object with `type` "helo", the same `challenge`, `pubkey` and `sig`.
///
/// Keys it does not know are ignored, `timestamp` among them. A key given twice is an error: two readers must not
/// see two users in one helo. Source: `contracts/README.md`, "User port".
pub fn parse_helo(frame: &[u8], challenge: &Challenge) -> Result<Helo, HeloError> {
    #[derive(Deserialize)]
    struct Fields {
        r#type: String,
        challenge: String,
        pubkey: String,
        sig: String,
        mode: Option<serde_json::Value>,
    }
    if frame.len() > HELO_BYTES_MAX {
        return Err(HeloError::TooLarge(frame.len()));
    }
    // serde reads an array into a struct as well, in order of the fields. A helo is an object.
    if frame.trim_ascii_start().first() != Some(&b'{') {
        return Err(HeloError::Format("expected a JSON object".into()));
    }
    let fields: Fields = serde_json::from_slice(frame).map_err(|error| HeloError::Format(error.to_string()))?;
    if fields.r#type != "helo" {
        return Err(HeloError::Format("type is not \"helo\"".into()));
    }
    let user: UserKey = fields.pubkey.parse().map_err(|_| HeloError::PublicKey)?;
    let mode = match fields.mode {
        None => Mode::Raw,
        Some(mode) if mode == "raw" => Mode::Raw,
        Some(mode) if mode == "signed" => Mode::Signed,
        Some(other) => return Err(HeloError::Mode(other.to_string().chars().take(80).collect())),
    };
    if fields.challenge != challenge.to_string() {
        return Err(HeloError::Challenge);
    }
    let sig: Sig = fields.sig.parse().map_err(|_| HeloError::Sig)?;
    let proof = HeloProof { challenge: *challenge, sig };
    if !proof.verify(&user) {
        return Err(HeloError::Sig);
    }
    Ok(Helo { user, proof, mode })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::crypto::SecretKey;

    const CHALLENGE: Challenge = Challenge([0xab; 16]);

    fn helo() -> Value {
        let key = SecretKey::from_seed([9; 32]);
        json!({
            "type": "helo", "challenge": CHALLENGE.to_string(), "pubkey": key.user_key().to_string(),
            "sig": key.sign(CHALLENGE.to_string().as_bytes()).to_string(), "timestamp": 1,
        })
    }

    fn with(key: &str, value: Value) -> String {
        let mut helo = helo();
        helo[key] = value;
        helo.to_string()
    }

    fn code(frame: &str) -> &'static str {
        parse_helo(frame.as_bytes(), &CHALLENGE).unwrap_err().code().as_str()
    }

    #[test]
    fn the_recorded_handshake_of_0_1_is_spoken() {
        let vector: Value = serde_json::from_str(include_str!("../../tests/golden/handshake-0.1.json")).unwrap();
        let challenge: Challenge = vector["server_to_client"]["challenge"].as_str().unwrap().parse().unwrap();
        let ours: Value = serde_json::from_str(&challenge_message(&challenge)).unwrap();
        assert_eq!(ours, vector["server_to_client"]);
        let helo = parse_helo(vector["client_to_server"].to_string().as_bytes(), &challenge).unwrap();
        assert_eq!(helo.user, SecretKey::from_seed([3; 32]).user_key());
        assert!(helo.proof.verify(&helo.user));
    }

    #[test]
    fn a_helo_says_how_it_wants_to_talk() {
        let mode = |frame: &str| parse_helo(frame.as_bytes(), &CHALLENGE).unwrap().mode;
        assert_eq!(mode(&helo().to_string()), Mode::Raw);
        assert_eq!(mode(&with("mode", json!("raw"))), Mode::Raw);
        assert_eq!(mode(&with("mode", json!("signed"))), Mode::Signed);
    }

    #[test]
    fn an_upper_case_key_and_signature_name_the_same_user() {
        let plain = parse_helo(helo().to_string().as_bytes(), &CHALLENGE).unwrap();
        let mut upper = helo();
        for key in ["pubkey", "sig"] {
            upper[key] = json!(upper[key].as_str().unwrap().to_uppercase());
        }
        assert_eq!(parse_helo(upper.to_string().as_bytes(), &CHALLENGE).unwrap(), plain);
    }

    #[test]
    fn unknown_keys_and_any_timestamp_are_ignored() {
        for extra in [json!(null), json!(-1e300), json!({"a": [1, {}]}), json!("zz")] {
            assert!(parse_helo(with("timestamp", extra.clone()).as_bytes(), &CHALLENGE).is_ok());
            assert!(parse_helo(with("whatever", extra).as_bytes(), &CHALLENGE).is_ok());
        }
        let mut bare = helo();
        bare.as_object_mut().unwrap().remove("timestamp");
        assert!(parse_helo(bare.to_string().as_bytes(), &CHALLENGE).is_ok());
    }

    #[test]
    fn what_is_no_helo_is_bad_format() {
        let key = helo()["pubkey"].as_str().unwrap().to_owned();
        let victim = SecretKey::from_seed([8; 32]).user_key();
        let sequence = json!(["helo", helo()["challenge"], key, helo()["sig"], null]).to_string();
        let twice = helo().to_string().replacen('{', &format!("{{\"pubkey\":\"{victim}\","), 1);
        for frame in ["", "null", "[]", "{}", "1", "\"helo\"", "{\"type\":", "\u{feff}{}", &sequence, &twice] {
            assert_eq!(code(frame), "bad_format", "{frame}");
        }
        assert_eq!(code(&with("type", json!("hello"))), "bad_format");
        assert_eq!(code(&with("sig", json!(null))), "bad_format");
        for mode in [json!("Signed"), json!(""), json!(2), json!(["signed"])] {
            assert_eq!(code(&with("mode", mode)), "bad_format");
        }
        assert_eq!(code(&"[".repeat(HELO_BYTES_MAX)), "bad_format");
        for pubkey in [format!("{key}zz;{victim}"), format!("{key} "), key[1..].to_owned(), format!("{key}{victim}")] {
            assert_eq!(code(&with("pubkey", json!(pubkey))), "bad_format");
        }
    }

    #[test]
    fn another_challenge_is_bad_challenge_even_with_a_good_signature() {
        let key = SecretKey::from_seed([9; 32]);
        let other = Challenge([1; 16]).to_string();
        let mut helo = helo();
        helo["sig"] = json!(key.sign(other.as_bytes()).to_string());
        helo["challenge"] = json!(other);
        assert_eq!(code(&helo.to_string()), "bad_challenge");
        assert_eq!(code(&with("challenge", json!(CHALLENGE.to_string().to_uppercase()))), "bad_challenge");
    }

    #[test]
    fn another_users_signature_is_bad_sig() {
        assert_eq!(code(&with("pubkey", json!(SecretKey::from_seed([8; 32]).user_key().to_string()))), "bad_sig");
        assert_eq!(code(&with("sig", json!("00".repeat(64)))), "bad_sig");
        assert_eq!(code(&with("sig", json!("xyz"))), "bad_sig");
        // The signature covers the characters, not the 16 bytes they stand for.
        let over_bytes = SecretKey::from_seed([9; 32]).sign(&CHALLENGE.0);
        assert_eq!(code(&with("sig", json!(over_bytes.to_string()))), "bad_sig");
    }

    #[test]
    fn a_helo_of_the_longest_size_is_read_and_one_byte_more_is_too_large() {
        let room = HELO_BYTES_MAX - with("pad", json!("")).len();
        assert!(parse_helo(with("pad", json!("x".repeat(room))).as_bytes(), &CHALLENGE).is_ok());
        assert_eq!(code(&with("pad", json!("x".repeat(room + 1)))), "too_large");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(frame in proptest::collection::vec(any::<u8>(), 0..200), brace in any::<bool>()) {
            let frame = if brace { [b"{".as_slice(), &frame].concat() } else { frame };
            prop_assert!(parse_helo(&frame, &CHALLENGE).is_err());
        }
    }
}
