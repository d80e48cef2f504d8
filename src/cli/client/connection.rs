//! The connection to a user port: address, challenge, frames of raw mode. Serves tests as well.

use std::{io, time::Duration};

use bytes::Bytes;
use futures::{SinkExt as _, Stream, StreamExt as _};
use rustls::pki_types::ServerName;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{
        Error as WsError, Message, Utf8Bytes,
        error::ProtocolError,
        http::Uri,
        protocol::{CloseFrame, WebSocketConfig, frame::coding::CloseCode},
    },
};

use super::servers::Servers;
use crate::{
    crypto::SecretKey,
    signed::proof::TrustError,
    types::{Challenge, Sig, UserKey},
};

/// Bytes of one frame from a node; a longer one ends the connection. Above the largest output a contract may have, also
/// in base64 and with a proof.
const FRAME_BYTES_MAX: usize = 96 << 20;

/// Time to say goodbye.
const CLOSE_TIME: Duration = Duration::from_secs(1);

/// What a node sent after the handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// An output that is valid UTF-8.
    Text(String),
    /// Any other output.
    Binary(Bytes),
    /// The node refused something, or reports what became of an input.
    Error {
        /// One word, for programs.
        code: String,
        /// For people.
        message: String,
    },
}

/// Why talking to a node failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Not an address of a user port.
    #[error("{url:?} is not the address of a user port ({why}); expected ws://HOST:PORT, wss://HOST:PORT or HOST:PORT")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// No connection.
    #[error("cannot connect to {url}; does the node run, and is this its ip and pubport?")]
    Connect {
        /// The address.
        url: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// No TLS with the server that was meant.
    #[error("no TLS with {url}: {why}; --ca names the certificate to trust (docs/operating.md, \"TLS\")")]
    Tls {
        /// The address.
        url: String,
        /// What is wrong.
        why: String,
    },
    /// A connection, but no user port of a node behind it.
    #[error("{url} does not answer like the user port of a node: {why}")]
    Handshake {
        /// The address.
        url: String,
        /// What it did instead.
        why: String,
    },
    /// The node has no room.
    #[error("{url} takes no more connections: {why}")]
    Busy {
        /// The address.
        url: String,
        /// Its answer.
        why: String,
    },
    /// Nothing in time.
    #[error("no answer from {url} within {} s", .after.as_secs_f64())]
    Timeout {
        /// The address.
        url: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// The node ended the connection.
    #[error("the node closed the connection{}{}", if .reason.is_empty() { "" } else { ": " }, .reason)]
    Closed {
        /// The websocket close code, when it gave one.
        code: Option<u16>,
        /// Its reason, often empty.
        reason: String,
    },
    /// The node does not speak signed mode.
    #[error("{url} does not speak signed mode ({why}); --raw talks as Hot Pocket 0.1 did, without proofs")]
    NotSigned {
        /// The address.
        url: String,
        /// Its answer.
        why: String,
    },
    /// The node is of another network than it should be.
    #[error("{url} is not to be trusted")]
    Trust {
        /// The address.
        url: String,
        /// Why not.
        source: TrustError,
    },
    /// A frame that signed mode does not have.
    #[error("the node sent what signed mode does not have: {why}")]
    Reply {
        /// What is wrong with it.
        why: String,
    },
    /// The connection broke.
    #[error("the connection broke")]
    Broken {
        /// What happened.
        source: Box<WsError>,
    },
}

/// A connection, in plain text or in TLS.
pub(super) trait Io: AsyncRead + AsyncWrite + Unpin + Send + std::fmt::Debug {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + std::fmt::Debug> Io for T {}

/// A websocket to a node.
pub(super) type Websocket = WebSocketStream<Box<dyn Io>>;

/// Connects to `url` (`ws://host:port`, `wss://host:port` or `host:port`) and signs the challenge with `key`. Waits as long as it
/// takes.
pub(super) async fn open(
    url: &str,
    key: &SecretKey,
    mode: Option<&'static str>,
    servers: &Servers,
) -> Result<Websocket, ClientError> {
    let (url, host, port) = parse_url(url)?;
    let connect = |source| ClientError::Connect { url: url.clone(), source };
    let stream = TcpStream::connect((host.as_str(), port)).await.map_err(connect)?;
    stream.set_nodelay(true).map_err(connect)?;
    let stream: Box<dyn Io> = match is_tls(&url) {
        false => Box::new(stream),
        true => Box::new(tls(stream, &url, host, servers).await?),
    };
    let config = WebSocketConfig::default()
        .read_buffer_size(16 << 10)
        .max_message_size(Some(FRAME_BYTES_MAX))
        .max_frame_size(Some(FRAME_BYTES_MAX));
    let (mut websocket, _) =
        client_async_with_config(url.as_str(), stream, Some(config)).await.map_err(|error| not_ours(&url, error))?;
    answer_challenge(&mut websocket, &url, key, mode).await?;
    Ok(websocket)
}

async fn tls(
    stream: TcpStream,
    url: &str,
    host: String,
    servers: &Servers,
) -> Result<TlsStream<TcpStream>, ClientError> {
    let failed = |why: String| ClientError::Tls { url: url.to_owned(), why };
    let config = servers.config().map_err(|error| failed(error.to_string()))?;
    let name = ServerName::try_from(host).map_err(|error| failed(error.to_string()))?;
    TlsConnector::from(config).connect(name, stream).await.map_err(|error| failed(error.to_string()))
}

async fn answer_challenge(
    websocket: &mut Websocket,
    url: &str,
    key: &SecretKey,
    mode: Option<&'static str>,
) -> Result<(), ClientError> {
    #[derive(Deserialize)]
    struct Offer {
        r#type: String,
        challenge: String,
    }
    #[derive(Serialize)]
    struct Helo {
        r#type: &'static str,
        challenge: String,
        sig: String,
        pubkey: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        mode: Option<&'static str>,
    }
    let unexpected = |why: &str| ClientError::Handshake { url: url.to_owned(), why: why.to_owned() };
    let challenge = match next_frame(websocket).await? {
        Frame::Text(text) => match serde_json::from_str::<Offer>(&text) {
            // Only ever signed as 32 lower-case digits: a node must not choose what this key signs.
            Ok(offer) if offer.r#type == "public_challenge" => {
                offer.challenge.parse::<Challenge>().map_err(|_| unexpected("its challenge is malformed"))?
            }
            _ => return Err(unexpected("it sent no challenge")),
        },
        Frame::Error { code, message } => return Err(unexpected(&format!("{code}: {message}"))),
        Frame::Binary(_) => return Err(unexpected("it sent no challenge")),
    };
    let challenge = challenge.to_string();
    let sig: Sig = key.sign(challenge.as_bytes());
    let pubkey = key.user_key().to_string();
    let helo = Helo { r#type: "helo", sig: sig.to_string(), pubkey, challenge, mode };
    let helo = serde_json::to_string(&helo).expect("texts are always JSON");
    websocket.send(Message::text(helo)).await.map_err(broken)
}

/// Says goodbye and waits up to a second for the node to agree.
pub(super) async fn close(mut websocket: Websocket) {
    let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    let goodbye = async {
        websocket.close(Some(frame)).await?;
        while let Some(Ok(_)) = websocket.next().await {}
        Ok::<_, WsError>(())
    };
    // However it ends, the connection is over.
    let _ = timeout(CLOSE_TIME, goodbye).await;
}

/// A user's connection to a node, in raw mode: every frame sent is one input, every frame received one output.
#[derive(Debug)]
pub struct RawClient {
    pub(super) websocket: Websocket,
    pub(super) user: UserKey,
}

impl RawClient {
    /// Connects to `url` (`ws://host:port` or `host:port`) and signs the challenge with `key`.
    ///
    /// A node that refuses the signature says so in the first frame received. Waits as long as it takes.
    pub async fn connect(url: &str, key: &SecretKey) -> Result<RawClient, ClientError> {
        RawClient::connect_to(url, key, &Servers::default()).await
    }

    /// The same, where `servers` says whom to believe behind `wss://`.
    pub async fn connect_to(url: &str, key: &SecretKey, servers: &Servers) -> Result<RawClient, ClientError> {
        Ok(RawClient { websocket: open(url, key, None, servers).await?, user: key.user_key() })
    }

    /// Whose connection it is.
    pub fn user(&self) -> UserKey {
        self.user
    }

    /// Sends one input: as a text frame when it is valid UTF-8, else as a binary one. The contract sees no difference.
    pub async fn send(&mut self, input: impl Into<Bytes>) -> Result<(), ClientError> {
        self.websocket.send(input_message(input.into())).await.map_err(broken)
    }

    /// Waits for the next frame. May be dropped while it waits; no frame is lost.
    pub async fn recv(&mut self) -> Result<Frame, ClientError> {
        next_frame(&mut self.websocket).await
    }

    /// Says goodbye and waits up to a second for the node to agree.
    pub async fn close(self) {
        close(self.websocket).await;
    }
}

pub(super) fn input_message(input: Bytes) -> Message {
    match Utf8Bytes::try_from(input.clone()) {
        Ok(text) => Message::Text(text),
        Err(_) => Message::Binary(input),
    }
}

pub(super) async fn next_frame(
    messages: &mut (impl Stream<Item = Result<Message, WsError>> + Unpin),
) -> Result<Frame, ClientError> {
    loop {
        match messages.next().await {
            Some(Ok(Message::Text(text))) => return Ok(error_frame(&text).unwrap_or(Frame::Text(text.to_string()))),
            Some(Ok(Message::Binary(bytes))) => return Ok(Frame::Binary(bytes)),
            Some(Ok(Message::Close(frame))) => return Err(closed(frame)),
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
            Some(Err(error)) => return Err(broken(error)),
            None => return Err(closed(None)),
        }
    }
}

/// The whole address, the host and the port.
fn parse_url(text: &str) -> Result<(String, String, u16), ClientError> {
    let wrong = |why| ClientError::Url { url: text.to_owned(), why };
    let url = match text.split_once("://") {
        None => format!("ws://{text}"),
        Some((scheme, _)) if scheme.eq_ignore_ascii_case("ws") => text.to_owned(),
        Some((scheme, _)) if scheme.eq_ignore_ascii_case("wss") => text.to_owned(),
        Some(_) => return Err(wrong("not a websocket scheme")),
    };
    let uri: Uri = url.parse().map_err(|_| wrong("malformed"))?;
    let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| wrong("no host"))?;
    let port = uri.port_u16().ok_or_else(|| wrong("no port"))?;
    Ok((url.clone(), host.trim_start_matches('[').trim_end_matches(']').to_owned(), port))
}

fn is_tls(url: &str) -> bool {
    url.get(..3).is_some_and(|scheme| scheme.eq_ignore_ascii_case("wss"))
}

/// `{"type":"error","code":...,"message":...}`, which is how a node speaks for itself.
fn error_frame(text: &str) -> Option<Frame> {
    #[derive(Deserialize)]
    struct Reply {
        r#type: String,
        code: String,
        message: String,
    }
    if !text.starts_with('{') {
        return None;
    }
    let reply: Reply = serde_json::from_str(text).ok()?;
    (reply.r#type == "error").then_some(Frame::Error { code: reply.code, message: reply.message })
}

fn not_ours(url: &str, error: WsError) -> ClientError {
    let url = url.to_owned();
    match error {
        WsError::Http(response) if response.status() == 503 => {
            let body = String::from_utf8_lossy(response.body().as_deref().unwrap_or_default()).into_owned();
            let why = match error_frame(&body) {
                Some(Frame::Error { message, .. }) => message,
                _ => "HTTP status 503".to_owned(),
            };
            ClientError::Busy { url, why }
        }
        error => ClientError::Handshake { url, why: error.to_string() },
    }
}

pub(super) fn broken(error: WsError) -> ClientError {
    match error {
        WsError::ConnectionClosed | WsError::AlreadyClosed => closed(None),
        WsError::Protocol(ProtocolError::ResetWithoutClosingHandshake) => closed(None),
        error => ClientError::Broken { source: Box::new(error) },
    }
}

pub(super) fn closed(frame: Option<CloseFrame>) -> ClientError {
    match frame {
        Some(frame) => ClientError::Closed { code: Some(frame.code.into()), reason: frame.reason.to_string() },
        None => ClientError::Closed { code: None, reason: String::new() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_with_and_without_scheme_and_path() {
        let parts = |text: &str| parse_url(text).map(|(_, host, port)| (host, port)).unwrap();
        assert_eq!(parts("127.0.0.1:8080"), ("127.0.0.1".into(), 8080));
        assert_eq!(parts("ws://localhost:1/any/path"), ("localhost".into(), 1));
        assert_eq!(parts("[::1]:9"), ("::1".into(), 9));
        assert_eq!(parts("wss://a.example:2"), ("a.example".into(), 2));
        assert!(is_tls("WSS://a:1") && !is_tls("ws://wss:1"));
        for bad in ["", "localhost", "ws://:1", "http://a:1", "wsss://a:1", "a b:1", "a:99999", "ws://"] {
            let error = parse_url(bad).unwrap_err().to_string();
            assert!(error.contains(&format!("{bad:?}")), "{error}");
        }
    }

    #[test]
    fn only_the_nodes_own_shape_is_an_error_frame() {
        let error = r#"{"type":"error","code":"rate","message":"m"}"#;
        assert_eq!(error_frame(error), Some(Frame::Error { code: "rate".into(), message: "m".into() }));
        for output in
            [r#"{"type":"error"}"#, r#"{"type":"ok","code":"a","message":"b"}"#, r#"["error","a","b"]"#, "", "{"]
        {
            assert_eq!(error_frame(output), None, "{output}");
        }
    }

    #[tokio::test]
    async fn a_server_that_is_no_node_is_named() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            for challenge in ["{}", r#"{"type":"public_challenge","challenge":"sign this"}"#] {
                let (stream, _) = listener.accept().await.unwrap();
                let mut websocket = tokio_tungstenite::accept_async(stream).await.unwrap();
                websocket.send(Message::text(challenge)).await.unwrap();
            }
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 404 Not Found\r\n\r\n").await.unwrap();
        });
        for why in ["no challenge", "malformed", "404"] {
            let error = RawClient::connect(&url, &SecretKey::from_seed([1; 32])).await.unwrap_err();
            assert!(matches!(error, ClientError::Handshake { .. }), "{error:?}");
            assert!(error.to_string().contains(why) && error.to_string().contains(&url), "{error}");
        }
    }

    #[tokio::test]
    async fn a_refused_connection_names_the_address_and_what_to_check() {
        let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let error = RawClient::connect(&free.to_string(), &SecretKey::from_seed([1; 32])).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&format!("ws://{free}")) && text.contains("pubport"), "{text}");
    }
}
