//! Users that keep sending while something happens to the network, and what must be true of their inputs afterwards:
//! each that was answered took effect once, each other at most once, every node wrote down the same, and every node's
//! ledgers verify.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    time::Duration,
};

use futures::future::{join, join_all};
use hotpocket::{
    cli::client::{Frame, RawClient},
    crypto::SecretKey,
};
use tokio::time::{sleep, timeout};

use crate::net::{Net, TestNode, until};

/// A node that is stopped accepts a connection, and says nothing.
const CONNECT: Duration = Duration::from_secs(2);

/// How long a user waits for an answer before it comes again in a new session.
const PATIENCE: Duration = Duration::from_secs(10);

/// What became of a user's inputs.
struct Sent {
    /// Who sent them, as the contract writes it.
    user: String,
    answered: Vec<String>,
    /// Sent when the node, or the session, ended.
    open: Vec<String>,
}

/// One user at each of the first nodes. For networks of the recording contract.
pub struct Crowd {
    urls: RefCell<Vec<String>>,
    over: Cell<bool>,
    answers: Cell<u64>,
}

impl Crowd {
    /// The users go on while `scenario` does what it does to the network; then all nodes must agree, also on every
    /// input. Gives how many were answered.
    pub async fn around(net: &mut Net, users: usize, scenario: impl AsyncFnOnce(&mut Net, &Crowd)) -> u64 {
        let crowd = Crowd { urls: RefCell::default(), over: Cell::new(false), answers: Cell::new(0) };
        crowd.follow(net);
        let sent = join_all((0..users).map(|at| crowd.talk(at)));
        let work = async {
            scenario(net, &crowd).await;
            crowd.over.set(true);
        };
        let (sent, ()) = join(sent, work).await;
        net.agree().await;
        judge(net, &sent);
        verified(net).await;
        crowd.answers.get()
    }

    /// Nodes were started again and have other ports for users.
    pub fn follow(&self, net: &Net) {
        *self.urls.borrow_mut() = net.nodes.iter().map(|node| node.url.clone()).collect();
    }

    /// Waits until so many more inputs are answered.
    pub async fn more_answers(&self, count: u64) {
        let wanted = self.answers.get() + count;
        until(&format!("{count} more answers"), async || (self.answers.get() >= wanted).then_some(())).await;
    }

    /// One input after the other through a node, in a new session whenever the one before ended.
    async fn talk(&self, at: usize) -> Sent {
        let key = SecretKey::generate();
        let user = key.user_key().to_string()[..8].to_owned();
        let mut sent = Sent { user, answered: Vec::new(), open: Vec::new() };
        let mut number = 0;
        while !self.over.get() {
            let url = self.urls.borrow()[at].clone();
            let Ok(Ok(mut client)) = timeout(CONNECT, RawClient::connect(&url, &key)).await else {
                sleep(Duration::from_millis(5)).await;
                continue;
            };
            let mut alive = true;
            while alive && !self.over.get() {
                let input = format!("{at}-{number}\n");
                number += 1;
                sent.open.push(input.clone());
                alive = client.send(input.clone()).await.is_ok();
                while alive && sent.open.contains(&input) {
                    match timeout(PATIENCE, client.recv()).await {
                        // Also what an earlier session of this user sent.
                        Ok(Ok(Frame::Text(text))) => {
                            for line in text.split_inclusive('\n') {
                                let open = sent.open.iter().position(|open| open == line);
                                sent.answered.push(sent.open.remove(open.expect("an input is answered once")));
                                self.answers.set(self.answers.get() + 1);
                            }
                        }
                        _ => alive = false,
                    }
                }
            }
        }
        sent
    }
}

/// Every node's folder holds a chain that is right.
pub async fn verified(net: &Net) {
    let verify = async |node: &TestNode| {
        let verified = node.call(&["ledger", "verify"]).await;
        assert_eq!(verified.code, Some(0), "{}: {}{}", node.dir.display(), verified.out, verified.err);
    };
    join_all(net.nodes.iter().map(verify)).await;
}

fn judge(net: &Net, users: &[Sent]) {
    let log = net.nodes[0].state("log");
    for node in &net.nodes {
        assert!(node.state("log") == log, "{}: another log than the first node's", node.dir.display());
    }
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for line in log.lines() {
        *counts.entry(line).or_default() += 1;
    }
    for sent in users {
        let line = |input: &String| format!("{} {}", sent.user, input.trim_end());
        let count = |input: &String| counts.get(&*line(input)).copied().unwrap_or(0);
        assert!(!sent.answered.is_empty(), "a user was never answered");
        for input in &sent.answered {
            assert_eq!(count(input), 1, "{input:?} was answered");
        }
        for input in &sent.open {
            assert!(count(input) <= 1, "{input:?} was counted {} times", count(input));
        }
    }
}
