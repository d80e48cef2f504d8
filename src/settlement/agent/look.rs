//! One look at the bus: what it shows of the settlement under way, and a post if it is this node's turn.

use std::collections::BTreeMap;

use tokio::time::{Duration, Instant};
use tracing::{debug, info};

use super::{About, BALANCE, IDLE, LOOK, LOOK_MAX, Pending, RETRY, RETRY_MAX, Worker, jittered};
use crate::{
    consensus::header::Settlement,
    settlement::{
        client::{ClientError, Details, View},
        journal::Step,
        record::nonce,
        schedule::Due,
        tx::{Lie, Operation, Tx},
    },
    types::Hash,
};

/// Refusals in a row after which it is found out why. One may be of a transaction that another member's post brought there.
const REFUSED_MAX: u32 = 2;
/// Settlements that the address must be good for, or its operator is told.
const LEFT_MIN: u128 = 100;

/// What is due, and what this node did about it.
#[derive(Debug)]
pub(super) struct Attempt {
    pub due: Due,
    /// In whose turn this node is.
    pub rank: Option<usize>,
    posts: u64,
    next_post: Instant,
    /// Posts in a row that were refused.
    refused: u32,
    /// Where it is on the bus, by transaction. That stays so.
    confirmed: BTreeMap<Hash, u64>,
    state: &'static str,
}

impl Attempt {
    pub(super) fn new(due: Due, rank: Option<usize>, posts: u64, next_post: Instant) -> Attempt {
        let state = if posts > 0 { "posted" } else { "due" };
        Attempt { due, rank, posts, next_post, refused: 0, confirmed: BTreeMap::new(), state }
    }

    /// The settlement: of several transactions that landed, the first in the bus's order.
    fn settled(&self) -> Option<(Hash, u64)> {
        self.confirmed.iter().min_by_key(|(tx, length)| (**length, **tx)).map(|(tx, length)| (*tx, *length))
    }
}

/// Why a look was of no use.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error(transparent)]
    Bus(#[from] ClientError),
    #[error(transparent)]
    Lie(#[from] Lie),
}

impl Worker {
    /// What this node votes for by what it sees: `recorded` is what the chain has.
    pub(super) async fn look(&mut self, recorded: Option<Settlement>) -> Result<Option<Settlement>, Trouble> {
        let waits_for_chain = self.look_wait;
        let Some(recorded) = recorded else {
            let txv = self.setup.client.txv().await?;
            self.look_again(waits_for_chain);
            return Ok(Some(Settlement::begin(txv)));
        };
        let Some(mut attempt) = self.attempt.take() else {
            let txv = self.setup.client.txv().await?;
            self.look_at_balance().await?;
            let vote = (txv != recorded.txv).then_some(Settlement { txv, ..recorded });
            // Until the chain has the other one, it may change again.
            if vote.is_some() {
                self.look_again(waits_for_chain)
            } else {
                self.next_look = Instant::now() + IDLE
            };
            return Ok(vote);
        };
        let seen = self.look_for(&mut attempt, recorded).await;
        self.attempt = Some(attempt);
        seen
    }

    async fn look_for(&mut self, attempt: &mut Attempt, recorded: Settlement) -> Result<Option<Settlement>, Trouble> {
        for txv in attempt.due.txvs.iter().rev().copied().collect::<Vec<_>>() {
            let tx = self.operation(&attempt.due, txv).hash(self.setup.client.network());
            if !attempt.confirmed.contains_key(&tx)
                && let Some(confirmed_length) = self.find(&tx).await?
            {
                info!(%tx, confirmed_length, "the bus has confirmed a settlement");
                attempt.confirmed.insert(tx, confirmed_length);
                attempt.state = "confirmed";
                self.look_wait = LOOK;
                self.note(Step::Confirmed { tx: tx.to_string(), confirmed_length }).await;
            }
        }
        let txv = self.setup.client.txv().await?;
        if let Some((tx, confirmed_length)) = attempt.settled() {
            self.look_again(self.look_wait);
            let Due { record, ch, .. } = &attempt.due;
            return Ok(Some(Settlement { seq: record.last, ch: *ch, tx, confirmed_length, txv }));
        }
        if txv != attempt.due.txv() {
            // What was signed is not taken any more, and all agree first on what is.
            self.look_again(self.look_wait);
            return Ok(Some(Settlement { txv, ..recorded }));
        }
        if attempt.rank.is_some() && Instant::now() >= attempt.next_post {
            self.post(attempt).await?;
        }
        self.look_again(self.look_wait);
        self.next_look = self.next_look.min(attempt.next_post.max(Instant::now() + LOOK));
        Ok(None)
    }

    /// Where the bus has it, if it has confirmed it.
    async fn find(&self, tx: &Hash) -> Result<Option<u64>, Trouble> {
        let client = &self.setup.client;
        let Some(landed) = client.tx(tx).await? else { return Ok(None) };
        landed.check(tx, client.network())?;
        // It reads all of the bus's history, so only now.
        let Some(Details { landed, confirmed_length, .. }) = client.tx_details(tx, View::Confirmed).await? else {
            return Ok(None);
        };
        landed.check(tx, client.network())?;
        Ok(confirmed_length)
    }

    async fn post(&mut self, attempt: &mut Attempt) -> Result<(), Trouble> {
        let network = self.setup.client.network();
        let txv = attempt.due.txv();
        let signed = self.operation(&attempt.due, txv).sign(network, &self.setup.key);
        let (tx, payload) = (signed.hash, signed.payload());
        let is_signed = self.journal.lock().unwrap_or_else(std::sync::PoisonError::into_inner).has_signed(&tx);
        let signed = Step::Signed { txv: txv.to_string(), tx: tx.to_string(), payload: payload.clone() };
        let posted = Step::Posted { tx: tx.to_string(), n: attempt.posts + 1 };
        if !(is_signed || self.note(signed).await) || !self.note(posted).await {
            attempt.next_post = Instant::now() + RETRY_MAX;
            return Ok(());
        }
        attempt.posts += 1;
        attempt.state = "posted";
        let doubled = u32::try_from(attempt.posts.saturating_sub(1).min(10)).expect("small");
        attempt.next_post = Instant::now() + jittered((RETRY * 2_u32.pow(doubled)).min(RETRY_MAX));
        self.look_wait = LOOK;
        debug!(%tx, n = attempt.posts, "posting a settlement");
        let answer = self.setup.client.broadcast(&payload).await;
        self.drill.point("answered").await;
        match answer {
            // Whether it landed, the next look shows.
            Ok(_) => {
                attempt.refused = 0;
                Ok(())
            }
            Err(error) if error.status() == Some(400) => {
                attempt.refused += 1;
                match attempt.refused < REFUSED_MAX || self.find(&tx).await?.is_some() {
                    true => Ok(()),
                    false => self.find_out_why(&tx, &error).await,
                }
            }
            Err(error) if error.status().is_some() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The bus says no more than that it refuses: what it is about follows from what it says else.
    async fn find_out_why(&mut self, tx: &Hash, refusal: &ClientError) -> Result<(), Trouble> {
        // It reads all of the bus's history; a post comes every half minute at most by now.
        if self.setup.client.tx_details(tx, View::Unconfirmed).await?.is_some() {
            // It has it, from another member perhaps, and takes its time to confirm it.
            self.clear(About::Refused);
            return Ok(());
        }
        self.next_balance = Instant::now();
        let is_poor = self.look_at_balance().await?;
        if is_poor {
            self.clear(About::Refused);
            return Ok(());
        }
        let reason = match refusal {
            ClientError::Refused { reason: Some(reason), .. } => format!(" ({reason})"),
            _ => String::new(),
        };
        let (subnet, bootstrap) = (self.setup.subnet, self.setup.bootstrap);
        self.alert(
            About::Refused,
            format!(
                "the bus at {} refuses settlements{reason}: deploy the subnet bootstrap {subnet} there (`hp msb deploy` says \
                 how), and see that msb.bootstrap, {bootstrap}, and msb.network are the bus's; it is tried on",
                self.setup.client.url()
            ),
        );
        Ok(())
    }

    /// Whether the address lacks the fee.
    async fn look_at_balance(&mut self) -> Result<bool, Trouble> {
        if Instant::now() < self.next_balance {
            return Ok(false);
        }
        let client = &self.setup.client;
        let fee = client.fee().await?;
        let balance = client.balance(&self.address, View::Confirmed).await?;
        let left = balance.times(fee).unwrap_or(u128::MAX);
        // Whoever sends money wants to see that it came.
        self.next_balance = Instant::now() + if left < LEFT_MIN { IDLE } else { BALANCE };
        {
            let mut status = self.status.lock();
            status.balance = Some(balance.to_string());
            status.settlements_left = Some(u64::try_from(left).unwrap_or(u64::MAX));
        }
        let address = self.address;
        match left {
            0 => self.alert(
                About::Balance,
                format!(
                    "{address} has {balance}, and a settlement costs {fee}: this node can post none; send TNK to it (`hp msb \
                     fund` on an embedded bus)"
                ),
            ),
            1..LEFT_MIN => self.alert(
                About::Balance,
                format!("{address} has {balance}, which is good for {left} more settlements: send TNK to it"),
            ),
            _ => self.clear(About::Balance),
        }
        Ok(left == 0)
    }

    fn operation(&self, due: &Due, txv: Hash) -> Operation {
        let (iw, bs, mbs) = (self.setup.contract_id, self.setup.subnet, self.setup.bootstrap);
        Operation::Tx(Tx { txv, iw, ch: due.ch, bs, mbs, nonce: nonce(&due.ch) })
    }

    fn look_again(&mut self, wait: Duration) {
        self.next_look = Instant::now() + wait;
        self.look_wait = (wait * 2).min(LOOK_MAX);
    }

    pub(super) fn answered(&mut self) {
        self.retry_wait = RETRY;
        self.clear(About::Bus);
        self.clear(About::Lie);
        self.status.lock().reachable = Some(true);
    }

    pub(super) fn troubled(&mut self, trouble: Trouble) {
        self.next_look = Instant::now() + jittered(self.retry_wait);
        self.retry_wait = (self.retry_wait * 2).min(RETRY_MAX);
        let url = self.setup.client.url();
        match trouble {
            Trouble::Lie(lie) => {
                let what = format!(
                    "the bus at {url} lies, and this node votes for nothing it shows: {lie}; ask another one, and tell others"
                );
                self.alert(About::Lie, what);
            }
            Trouble::Bus(error) => {
                self.status.lock().reachable = Some(error.status().is_some());
                let error = anyhow::Error::new(error);
                self.alert(About::Bus, format!("settling waits for the bus: {error:#}; it is asked again"));
            }
        }
    }

    pub(super) fn pending(&self, attempt: &Attempt) -> Pending {
        let Attempt { due, rank, posts, state, .. } = attempt;
        let settled = attempt.settled();
        let signed = || self.operation(due, due.txv()).hash(self.setup.client.network());
        Pending {
            first: due.record.first,
            last: due.record.last,
            ch: due.ch.to_string(),
            tx: settled.map_or_else(signed, |(tx, _)| tx).to_string(),
            state,
            posts: *posts,
            rank: *rank,
            confirmed_length: settled.map(|(_, length)| length),
        }
    }
}
