//! Many users on one node: how fast they come, what each costs, what they cost a round, and what a flood of people who are
//! none costs those who are. All on this machine, which has to be the users as well.
//!
//! Run by `scripts/bench users [--users N]`. Machines are noisy: compare with the anchors and with the round without users.

#[path = "../tests/it/net.rs"]
#[allow(dead_code)]
mod net;
#[path = "../tests/it/strangers.rs"]
mod strangers;

use std::{
    fs,
    time::{Duration, Instant},
};

use futures::{StreamExt as _, stream};
use hotpocket::{
    cli::client::RawClient,
    contract::raise_nofile_limit,
    crypto::{SecretKey, verify},
};
use net::{Net, TestNode};
use strangers::Flood;

/// Users that come at the same time.
const AT_ONCE: usize = 64;
/// Inputs of the user that is measured.
const INPUTS: usize = 100;
/// Connections at a time of those who are no users.
const FLOOD: usize = 256;
/// Descriptors that each side needs beside those of the users.
const OTHER_FILES: u64 = 1_100;
/// Users that may be there beside those: the one that is measured.
const INPUTS_AHEAD: usize = 16;
/// The longest all of it may take.
const LIMIT: Duration = Duration::from_secs(1_200);

fn main() {
    let mut users = 15_000;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match (arg.as_str(), args.next().as_deref().map(str::parse)) {
            ("--users", Some(Ok(number @ 1..=22_000))) => users = number,
            // Given by `cargo bench`.
            ("--bench", _) => {}
            _ => {
                eprintln!("error: usage: scripts/bench users [--users N], from 1 to 22000");
                std::process::exit(2);
            }
        }
    }
    let files = raise_nofile_limit();
    let most = room(files);
    println!("open files a process may have here: {files}");
    if users > most {
        println!("that is room for {most} users, not for {users}; raise it (ulimit -Hn) for more");
        users = most;
    }
    net::block_on_for(LIMIT, measure(users));
}

/// For how many users the node, its contract and this process can open files.
fn room(files: u64) -> usize {
    // As `docs/operating.md` has it, where three quarters of `users_max` come.
    let node = files.saturating_sub(OTHER_FILES + 4_096) * 3 / 7;
    let contract = files.saturating_sub(OTHER_FILES) * 3 / 8;
    (node.min(contract) as usize).saturating_sub(INPUTS_AHEAD)
}

async fn measure(users: usize) {
    let key = SecretKey::from_seed([1; 32]);
    let sig = key.sign(&[7; 32]);
    let started = Instant::now();
    for _ in 0..1_000 {
        assert!(verify(&key.node_key().0, &[7; 32], &sig));
    }
    println!("ed25519 verify, for comparison       {:>9.1} us", started.elapsed().as_secs_f64() * 1e3);

    let net = Net::up_with(1, net::probe(), |_, config| {
        config.set("log.level", "\"warn\"");
        // Three quarters are seats.
        config.set("user.users_max", &(4 * (users + INPUTS_AHEAD) / 3 + 1).clamp(256, 30_000).to_string());
        config.set("user.connections_max", &(users + 1_024).to_string());
        config.set("user.per_address", &(users + 1_024).to_string());
        // All come from one address, and it is their work that is measured, not their refusal.
        config.set("user.failed_per_minute", "0");
        config.set("consensus.eager", "true");
    })
    .await;
    let node = &net.nodes[0];
    println!("input to output, nobody else         {}", times(node).await);

    let before = memory(node);
    let started = Instant::now();
    let url = &node.url;
    let opened: Vec<_> = stream::iter(0..users)
        .map(async |_| RawClient::connect(url, &SecretKey::generate()).await)
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let took = started.elapsed();
    let refused = opened.iter().filter(|opened| opened.is_err()).count();
    if let Some(Err(error)) = opened.iter().find(|opened| opened.is_err()) {
        println!("{refused} users were refused, one of them: {error:#}");
    }
    let open: Vec<RawClient> = opened.into_iter().flatten().collect();
    println!("{} users came in                    {:>9.1} s", open.len(), took.as_secs_f64());
    println!("handshakes a second                  {:>9.0}", open.len() as f64 / took.as_secs_f64());
    let all = open.len() as u64;
    let status = node
        .status_where("all users are in the ledger", |status| {
            status["users"].as_u64().is_some_and(|users| users >= all)
        })
        .await;
    let after = memory(node);
    println!("memory of the node                   {:>9.1} MiB, before {:.1}", mib(after), mib(before));
    println!(
        "a user                               {:>9.1} KiB",
        (after.saturating_sub(before)) as f64 / 1024.0 / all as f64
    );
    println!("the last run                         {}", status["last_run"]);
    println!("input to output, beside them         {}", times(node).await);
    drop(open);
    node.status_where("they are gone", |status| status["users"] == 0).await;

    let flood = Flood::begin(&node.url, FLOOD);
    println!("input to output, beside a flood      {}", times(node).await);
    println!("wrong handshakes a second            {:>9.0}", flood.end());
    println!("input to output, behind it           {}", times(node).await);
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1 << 20) as f64
}

/// Bytes of memory that the process holds now.
fn memory(node: &TestNode) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0");
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// How long one user's inputs take, one after the other.
async fn times(node: &TestNode) -> String {
    let mut user = node.user().await;
    user.ask("warm up").await;
    let mut times = Vec::with_capacity(INPUTS);
    for at in 0..INPUTS {
        let sent = Instant::now();
        user.ask(&format!("input {at}")).await;
        times.push(sent.elapsed());
    }
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    format!("{:>9.2} ms p50, {:.2} p95, {:.2} at most", at(50), at(95), at(100))
}
