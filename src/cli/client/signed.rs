//! A connection in signed mode: the frames alone. What they mean for a conversation is in `talk`.

use futures::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::tungstenite::Message;

use super::{
    connection::{ClientError, Frame, Websocket, broken, close, next_frame, open},
    servers::Servers,
};
use crate::{
    crypto::SecretKey,
    signed::{Query, QueryFrame, Reply, Request, Welcome, proof::Trust},
    types::{Hash, NodeKey, UserKey},
};

/// What a user knows of a network from elsewhere than the node it talks to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pins {
    /// The chain's id.
    pub chain: Option<Hash>,
    /// Its members.
    pub unl: Option<Vec<NodeKey>>,
}

/// A user's connection to a node in signed mode.
#[derive(Debug)]
pub struct SignedClient {
    websocket: Websocket,
    user: UserKey,
    welcome: Welcome,
    trust: Trust,
}

impl SignedClient {
    /// Connects to `url`, signs the challenge with `key`, and waits for the welcome. Waits as long as it takes.
    ///
    /// Errors with `Trust` when what the node says of its network makes no sense or does not fit `pins`.
    pub async fn connect(url: &str, key: &SecretKey, pins: &Pins) -> Result<SignedClient, ClientError> {
        SignedClient::connect_to(url, key, pins, &Servers::default()).await
    }

    /// The same, where `servers` says whom to believe behind `wss://`.
    pub async fn connect_to(
        url: &str,
        key: &SecretKey,
        pins: &Pins,
        servers: &Servers,
    ) -> Result<SignedClient, ClientError> {
        let mut websocket = open(url, key, Some("signed"), servers).await?;
        let url = || url.to_owned();
        let welcome = match next_frame(&mut websocket).await? {
            Frame::Text(text) => match serde_json::from_str(&text) {
                Ok(Reply::Welcome(welcome)) => *welcome,
                _ => return Err(ClientError::Handshake { url: url(), why: "its first frame is no welcome".into() }),
            },
            Frame::Error { code, message } => {
                let why = format!("{code}: {message}");
                return Err(match code.as_str() {
                    "bad_format" => ClientError::NotSigned { url: url(), why },
                    _ => ClientError::Handshake { url: url(), why },
                });
            }
            Frame::Binary(_) => {
                return Err(ClientError::Handshake { url: url(), why: "its first frame is no welcome".into() });
            }
        };
        let trust = Trust::of(&welcome).and_then(|trust| {
            trust.check_pins(pins.chain, pins.unl.as_deref())?;
            Ok(trust)
        });
        let trust = trust.map_err(|source| ClientError::Trust { url: url(), source })?;
        Ok(SignedClient { websocket, user: key.user_key(), welcome, trust })
    }

    /// Whose connection it is.
    pub fn user(&self) -> UserKey {
        self.user
    }

    /// What the node said first.
    pub fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    /// What outputs are checked with.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Sends one request.
    pub async fn send(&mut self, request: &Request) -> Result<(), ClientError> {
        self.send_text(request.to_json()).await
    }

    /// Sends any text as a frame.
    pub async fn send_text(&mut self, frame: String) -> Result<(), ClientError> {
        self.websocket.send(Message::text(frame)).await.map_err(broken)
    }

    /// Asks something.
    pub async fn ask(&mut self, query: Query) -> Result<(), ClientError> {
        self.send(&Request::Query(QueryFrame { id: None, query })).await
    }

    /// Waits for the next frame. Outputs in it are as the node says: check them. May be dropped while it waits.
    pub async fn recv(&mut self) -> Result<Reply, ClientError> {
        recv(&mut self.websocket).await
    }

    /// Says goodbye and waits up to a second for the node to agree.
    pub async fn close(self) {
        close(self.websocket).await;
    }

    /// The connection itself.
    pub(super) fn into_websocket(self) -> Websocket {
        self.websocket
    }
}

/// The next frame of a node.
pub(super) async fn recv(
    messages: &mut (impl futures::Stream<Item = Result<Message, tokio_tungstenite::tungstenite::Error>> + Unpin),
) -> Result<Reply, ClientError> {
    loop {
        let text = match messages.next().await {
            Some(Ok(Message::Text(text))) => text,
            Some(Ok(Message::Binary(_))) => return Err(ClientError::Reply { why: "a binary frame".into() }),
            Some(Ok(Message::Close(frame))) => return Err(super::connection::closed(frame)),
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => continue,
            Some(Err(error)) => return Err(broken(error)),
            None => return Err(super::connection::closed(None)),
        };
        return serde_json::from_str(&text).map_err(|error| ClientError::Reply { why: error.to_string() });
    }
}
