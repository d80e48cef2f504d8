//! What the node says to a user on its own behalf, as one text frame. Pure.

use serde::Serialize;

/// Characters of a reply's message. Longer ones are cut: the rest helps nobody and the frame stays small.
const REPLY_CHARS_MAX: usize = 1024;

/// Why something a user did was refused, or what became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ErrorCode {
    /// Not websocket, not UTF-8, or not a helo.
    BadFormat,
    /// The helo answers another challenge.
    BadChallenge,
    /// The signature in the helo is not the key's over the challenge.
    BadSig,
    /// Longer than `pubmaxsize`.
    TooLarge,
    /// More messages a minute than `pubmaxcpm`.
    Rate,
    /// The node has no room now. The same input may be sent again later.
    Busy,
    /// The node has as many users as its share of the network's. Another node may have room.
    Full,
    /// No helo in time.
    Timeout,
    /// The user does not read what it is sent.
    Slow,
    /// An input was not taken into a ledger in time. It was not executed and never will be.
    Expired,
    /// The contract failed in the ledger that holds the user's input; state and outputs of that run are gone.
    ContractFailed,
    /// The node takes no such inputs, for example because the network wants signed ones.
    Refused,
    /// The network agrees on no result at present. Inputs are held, and nothing is lost.
    Halted,
    /// After `Halted`: it goes on.
    Resumed,
}

impl ErrorCode {
    /// The word in the `code` field.
    pub const fn as_str(self) -> &'static str {
        match self {
            ErrorCode::BadFormat => "bad_format",
            ErrorCode::BadChallenge => "bad_challenge",
            ErrorCode::BadSig => "bad_sig",
            ErrorCode::TooLarge => "too_large",
            ErrorCode::Rate => "rate",
            ErrorCode::Busy => "busy",
            ErrorCode::Full => "full",
            ErrorCode::Timeout => "timeout",
            ErrorCode::Slow => "slow",
            ErrorCode::Expired => "expired",
            ErrorCode::ContractFailed => "contract_failed",
            ErrorCode::Refused => "refused",
            ErrorCode::Halted => "halted",
            ErrorCode::Resumed => "resumed",
        }
    }
}

/// `{"type":"error","code":...,"message":...}`.
pub fn error_frame(code: ErrorCode, message: &str) -> String {
    #[derive(Serialize)]
    struct Reply<'a> {
        r#type: &'static str,
        code: &'static str,
        message: &'a str,
    }
    let end = message.char_indices().nth(REPLY_CHARS_MAX).map_or(message.len(), |(at, _)| at);
    let reply = Reply { r#type: "error", code: code.as_str(), message: &message[..end] };
    serde_json::to_string(&reply).expect("three strings are always JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_frame_escapes_its_message_and_keeps_the_order_of_its_keys() {
        assert_eq!(
            error_frame(ErrorCode::TooLarge, "a \"b\"\n"),
            r#"{"type":"error","code":"too_large","message":"a \"b\"\n"}"#
        );
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let frame = error_frame(ErrorCode::Busy, &"é".repeat(5_000));
        let value: serde_json::Value = serde_json::from_str(&frame).unwrap();
        assert_eq!(value["message"].as_str().unwrap(), "é".repeat(REPLY_CHARS_MAX));
    }
}
