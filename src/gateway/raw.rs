//! Users in raw mode, for who has more for them than fits their queues at once: sends, and waits until it was taken.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::join_all;
use tokio::time::timeout;
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

    /// Returns when the sessions of these users in raw mode were sent everything, or are over; or after this time, with those
    /// users for whom something waits still.
    pub async fn slow(&self, users: impl Iterator<Item = &UserKey>, patience: Duration) -> BTreeSet<UserKey> {
        let outboxes: Vec<(UserKey, Arc<Outbox>)> = {
            let registry = self.shared.lock();
            let sessions = users.filter_map(|user| Some((*user, registry.users.get(user)?)));
            let raw = sessions.flat_map(|(user, sessions)| in_mode(sessions, Mode::Raw).map(move |line| (user, line)));
            raw.map(|(user, line)| (user, line.outbox.clone())).collect()
        };
        let all = join_all(outboxes.iter().map(|(_, outbox)| outbox.emptied()));
        match timeout(patience, all).await {
            Ok(_) => BTreeSet::new(),
            Err(_) => outboxes.iter().filter(|(_, outbox)| !outbox.is_empty()).map(|(user, _)| *user).collect(),
        }
    }
}
