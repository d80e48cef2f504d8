//! Users in raw mode, for who has more for them than fits their queues at once: sends, and waits until it was taken.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use futures::future::join_all;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use super::{Mode, Shared, in_mode, outbox::Outbox};
use crate::types::UserKey;

/// The users in raw mode of one gateway.
#[derive(Debug, Clone)]
pub struct RawUsers {
    shared: Arc<Shared>,
}

impl RawUsers {
    pub(super) fn new(shared: Arc<Shared>) -> RawUsers {
        RawUsers { shared }
    }

    /// Everybody with a session in raw mode.
    pub fn all(&self) -> BTreeSet<UserKey> {
        let registry = self.shared.lock();
        let raw = registry.users.iter().filter(|(_, sessions)| in_mode(sessions, Mode::Raw).next().is_some());
        raw.map(|(user, _)| *user).collect()
    }

    /// Bytes that may wait for one session; see [`super::GatewayConfig::queue_bytes_max`].
    pub fn queue_bytes_max(&self) -> usize {
        self.shared.config.queue_bytes_max
    }

    /// See [`super::Gateway::deliver`].
    pub fn deliver(&self, user: &UserKey, output: Bytes) {
        let registry = self.shared.lock();
        if let Some(sessions) = registry.users.get(user) {
            let message = match Utf8Bytes::try_from(output.clone()) {
                Ok(text) => Message::Text(text),
                Err(_) => Message::Binary(output),
            };
            in_mode(sessions, Mode::Raw).for_each(|line| line.outbox.push(message.clone()));
        }
    }

    /// Returns when the sessions of these users in raw mode were sent everything, or are over.
    pub async fn took_all(&self, users: impl Iterator<Item = &UserKey>) {
        let outboxes: Vec<Arc<Outbox>> = {
            let registry = self.shared.lock();
            let sessions = users.filter_map(|user| registry.users.get(user));
            sessions.flat_map(|sessions| in_mode(sessions, Mode::Raw)).map(|line| line.outbox.clone()).collect()
        };
        join_all(outboxes.iter().map(|outbox| outbox.emptied())).await;
    }
}
