//! How many users one node holds: memory for each, handshakes a second, and what a flood of bad handshakes does to the rounds.
//!
//! Run by `scripts/bench users [--users N] [--nodes N]`. Node and users share this machine, so that handshakes a second are at
//! most half of what the node alone could do. Says how many open files the system allows; more users than that do not fit.

#[path = "../tests/it/net.rs"]
#[allow(dead_code)]
mod net;

use std::{
    cell::Cell,
    path::Path,
    rc::Rc,
    time::{Duration, Instant},
};

use futures::{SinkExt as _, StreamExt as _, future::join_all};
use hotpocket::{
    cli::client::{Pins, SignedClient},
    crypto::SecretKey,
};
use net::Net;
use tokio::net::TcpStream;
use tokio_tungstenite::{client_async, tungstenite::Message};

/// Users that connect at the same time.
const AT_ONCE: usize = 64;
/// Descriptors that this process, and the node, need beside the users'.
const OTHER_FILES: u64 = 512;
/// How long rounds are counted.
const COUNTED: Duration = Duration::from_secs(5);
/// The longest any part may take.
const LIMIT: Duration = Duration::from_secs(900);

fn main() {
    let (mut users, mut nodes) = (15_000_usize, 1_usize);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match (arg.as_str(), args.next().as_deref().map(str::parse)) {
            ("--users", Some(Ok(number @ 1..=30_000))) => users = number,
            ("--nodes", Some(Ok(number @ 1..=7))) => nodes = number,
            // Given by `cargo bench`.
            ("--bench", _) => {}
            _ => {
                eprintln!("error: usage: scripts/bench users [--users N] [--nodes N], up to 30000 and 7");
                std::process::exit(2);
            }
        }
    }
    let allowed = hotpocket::contract::raise_nofile_limit();
    println!("open files allowed to a process: {allowed}");
    let room = usize::try_from(allowed.saturating_sub(OTHER_FILES)).unwrap_or(usize::MAX);
    if users > room {
        println!("{users} users do not fit; {room} are taken (see `ulimit -Hn`)");
        users = room;
    }
    net::block_on_for(2 * LIMIT, measure(users, nodes));
}

async fn measure(users: usize, nodes: usize) {
    let mut net = Net::new(nodes, Path::new("/bin/true"), |_, config| {
        config.set("log.level", "\"error\"").set("roundtime", "100");
        config.set("user.connections_max", "40000").set("user.per_address", "40000");
    });
    net.start_all().await;
    net.closed(3).await;
    let url = net.nodes[0].url.clone();
    let empty = memory_kib(&net);
    let before = rate(&net).await;
    println!("{nodes} nodes, without users: {} MiB, {before:.1} rounds/s", empty / 1024);

    let began = Instant::now();
    let left = Rc::new(Cell::new(users));
    let connecting = (0..AT_ONCE).map(|_| {
        let (left, url) = (left.clone(), url.clone());
        async move {
            let mut mine = Vec::new();
            while left.get() > 0 {
                left.set(left.get() - 1);
                let key = SecretKey::generate();
                match SignedClient::connect(&url, &key, &Pins::default()).await {
                    Ok(client) => mine.push(client),
                    Err(error) => return Err((mine, error)),
                }
            }
            Ok(mine)
        }
    });
    let mut idle = Vec::new();
    for connected in join_all(connecting).await {
        match connected {
            Ok(mine) => idle.extend(mine),
            Err((mine, error)) => {
                println!("a user was refused: {error}");
                idle.extend(mine);
            }
        }
    }
    let took = began.elapsed();
    println!(
        "{} users connected in {took:.1?}: {:.0} handshakes/s",
        idle.len(),
        idle.len() as f64 / took.as_secs_f64()
    );
    let full = memory_kib(&net);
    let each = full.saturating_sub(empty) as f64 / idle.len().max(1) as f64;
    println!("with them: {} MiB, {each:.1} KiB for each", full / 1024);
    println!("rounds/s with them idle        {:.1}", rate(&net).await);

    let (over, refused) = (Cell::new(false), Cell::new(0_u64));
    let flood = join_all((0..AT_ONCE).map(|_| async {
        while !over.get() {
            if bad_handshake(&url).await.is_some() {
                refused.set(refused.get() + 1);
            }
        }
    }));
    let counted = async {
        let meanwhile = rate(&net).await;
        over.set(true);
        meanwhile
    };
    let (_, meanwhile) = futures::future::join(flood, counted).await;
    let per_s = refused.get() as f64 / COUNTED.as_secs_f64();
    println!("rounds/s in a flood of bad handshakes {meanwhile:.1}; {per_s:.0} of these a second were refused");
}

/// A helo whose signature is wrong; `None` unless the node says so.
async fn bad_handshake(url: &str) -> Option<()> {
    let stream = TcpStream::connect(url.strip_prefix("ws://")?).await.ok()?;
    let (mut websocket, _) = client_async(url, stream).await.ok()?;
    let Message::Text(offer) = websocket.next().await?.ok()? else { return None };
    let offer: serde_json::Value = serde_json::from_str(&offer).ok()?;
    let key = SecretKey::generate().user_key().to_string();
    let helo = serde_json::json!({
        "type": "helo", "challenge": offer["challenge"], "sig": "00".repeat(64), "pubkey": key, "mode": "signed",
    });
    websocket.send(Message::text(helo.to_string())).await.ok()?;
    let Message::Text(answer) = websocket.next().await?.ok()? else { return None };
    answer.contains("bad_sig").then_some(())
}

/// What the first node has in memory.
fn memory_kib(net: &Net) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", net.nodes[0].pid())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line of it");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

async fn seq(net: &Net) -> u64 {
    net.nodes[0].status().await.and_then(|status| status["seq"].as_u64()).expect("a status")
}

/// Rounds a second of the first node from now on.
async fn rate(net: &Net) -> f64 {
    let (from, began) = (seq(net).await, Instant::now());
    net::until_within(LIMIT, "time passes", async || (began.elapsed() >= COUNTED).then_some(())).await;
    (seq(net).await - from) as f64 / began.elapsed().as_secs_f64()
}
