//! Where another node may be reached: `host:port`.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

/// Longest name of a host (RFC 1035).
const NAME_BYTES_MAX: usize = 253;
/// Longest part of it between dots.
const LABEL_BYTES_MAX: usize = 63;

/// Host and port of a node to dial. A name is looked up at each try.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PeerAddr {
    /// An IP address, or the name of a host.
    pub host: String,
    /// Never 0.
    pub port: u16,
}

/// Text that is not `host:port`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected host:port")]
pub struct ParsePeerError;

impl PeerAddr {
    /// The IP address, unless the host is a name.
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

impl FromStr for PeerAddr {
    type Err = ParsePeerError;
    fn from_str(text: &str) -> Result<PeerAddr, ParsePeerError> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return if address.port() == 0 { Err(ParsePeerError) } else { Ok(address.into()) };
        }
        let (host, port) = text.rsplit_once(':').ok_or(ParsePeerError)?;
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        let port: u16 = port.parse().map_err(|_| ParsePeerError)?;
        if port == 0 || !digits || !is_name(host) {
            return Err(ParsePeerError);
        }
        Ok(PeerAddr { host: host.to_owned(), port })
    }
}

/// Letters, digits and hyphens between dots; not all digits, which would be a mistyped IP address.
fn is_name(host: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= LABEL_BYTES_MAX
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    host.len() <= NAME_BYTES_MAX && host.bytes().any(|byte| byte.is_ascii_alphabetic()) && host.split('.').all(label)
}

impl From<SocketAddr> for PeerAddr {
    fn from(address: SocketAddr) -> PeerAddr {
        PeerAddr { host: address.ip().to_string(), port: address.port() }
    }
}

impl fmt::Display for PeerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.parse::<Ipv6Addr>() {
            Ok(_) => write!(f, "[{}]:{}", self.host, self.port),
            Err(_) => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_names_read_back_as_they_were() {
        for text in ["192.0.2.7:22860", "[2001:db8::7]:22860", "node1:22860", "a.example.org:1", "localhost:65535"] {
            assert_eq!(text.parse::<PeerAddr>().map(|peer| peer.to_string()).as_deref(), Ok(text));
        }
    }

    #[test]
    fn anything_else_is_refused() {
        let long = format!("{}:1", "a".repeat(64));
        for text in [
            "",
            ":1",
            "node1",
            "node1:",
            "node1:0",
            "node1:65536",
            "node1:+1",
            "a b:1",
            "-a:1",
            "a..b:1",
            "1.2.3:1",
            "::1:1",
            &long,
        ] {
            assert_eq!(text.parse::<PeerAddr>(), Err(ParsePeerError), "{text:?}");
        }
    }
}
