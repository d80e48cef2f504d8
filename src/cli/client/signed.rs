//! A connection in signed mode: the frames alone, once it is proven who the network's members are. What they mean for a
//! conversation is in `talk`.

use std::collections::VecDeque;

use futures::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::tungstenite::Message;

use super::{
    connection::{ClientError, Frame, Websocket, broken, close, next_frame, open},
    servers::Servers,
};
use crate::{
    crypto::SecretKey,
    signed::{
        Answer, AnswerBody, Query, QueryFrame, Reply, Request, UnlPage, UnlStep, Welcome,
        proof::{ProofError, Trust, TrustError},
    },
    types::{Hash, NodeKey, UserKey},
};

/// Frames that may come while it is not proven yet who the members are. Past it the node is left.
const EARLY_MAX: usize = 1_024;

/// What a user knows of a network from elsewhere than the node it talks to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pins {
    /// The chain's id.
    pub chain: Option<Hash>,
    /// Its members, or those it once had.
    pub unl: Option<Vec<NodeKey>>,
}

/// A user's connection to a node in signed mode.
#[derive(Debug)]
pub struct SignedClient {
    url: String,
    websocket: Websocket,
    user: UserKey,
    welcome: Welcome,
    trust: Trust,
    /// Frames that came before it was proven who the members are.
    early: VecDeque<Reply>,
}

impl SignedClient {
    /// Connects to `url`, signs the challenge with `key`, and waits for the welcome. Waits as long as it takes.
    ///
    /// Errors with `Trust` when what the node says of its network makes no sense, is not proven or does not fit `pins`.
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
        SignedClient::connect_again(url, key, pins, servers, None).await
    }

    /// The same by whom a network was known before: `known` is what was proven of it then. Its members may have changed.
    pub async fn connect_again(
        url: &str,
        key: &SecretKey,
        pins: &Pins,
        servers: &Servers,
        known: Option<&Trust>,
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
        let untrusted = |source| ClientError::Trust { url: url(), source };
        let named = Trust::pinned(&welcome, pins.chain, pins.unl.as_deref()).map_err(untrusted)?;
        let trust = known.filter(|known| known.chain_id() == named.chain_id()).cloned().unwrap_or(named);
        let early = VecDeque::new();
        let mut client = SignedClient { url: url(), websocket, user: key.user_key(), welcome, trust, early };
        // Members may be those of before again: that they are known is not enough.
        if !client.trust.unl().iter().eq(client.welcome.unl.iter().map(|key| &key.0)) {
            client.follow().await?;
            client.trust.check_unl(&client.welcome.unl, pins.unl.is_some()).map_err(untrusted)?;
        }
        Ok(client)
    }

    /// Asks how the members came to be who they are, from those who are known.
    async fn follow(&mut self) -> Result<(), ClientError> {
        let mut since = self.trust.known_to();
        loop {
            self.ask(Query::Unl { since }).await?;
            let UnlPage { changes, more, .. } = loop {
                match recv(&mut self.websocket).await? {
                    Reply::Answer(Answer { body: AnswerBody::Unl(page), .. }) => break page,
                    _ if self.early.len() == EARLY_MAX => {
                        let why = format!("{EARLY_MAX} frames and no answer about its members");
                        return Err(ClientError::Handshake { url: self.url.clone(), why });
                    }
                    reply => self.early.push_back(reply),
                }
            };
            for step in &changes {
                self.trust.follow(step).map_err(|source| unproven(&self.url, step, source))?;
            }
            match changes.last().filter(|last| more && last.seq > since) {
                Some(last) => since = last.seq,
                None => return Ok(()),
            }
        }
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

    /// Waits for the next frame. Outputs in it are as the node says: check them. Changes of the members are followed. May be
    /// dropped while it waits.
    ///
    /// Errors with `Trust`, beside the connection's errors, when a change of the members is not proven.
    pub async fn recv(&mut self) -> Result<Reply, ClientError> {
        let reply = match self.early.pop_front() {
            Some(reply) => reply,
            None => recv(&mut self.websocket).await?,
        };
        if let Reply::Unl(step) = &reply {
            self.trust.follow(step).map_err(|source| unproven(&self.url, step, source))?;
        }
        Ok(reply)
    }

    /// Says goodbye and waits up to a second for the node to agree.
    pub async fn close(self) {
        close(self.websocket).await;
    }

    /// The connection itself, and what came over it already.
    pub(super) fn into_parts(self) -> (Websocket, VecDeque<Reply>) {
        (self.websocket, self.early)
    }
}

fn unproven(url: &str, step: &UnlStep, source: ProofError) -> ClientError {
    ClientError::Trust { url: url.to_owned(), source: TrustError::Step { seq: step.seq, source } }
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
