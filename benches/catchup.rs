//! How long a node with an empty folder takes to fetch, verify and store a chain of a network of five, and to run it; and
//! how much that slows the rounds of the other four. All on this machine.
//!
//! Run by `scripts/bench catchup [--ledgers N]`. Machines are noisy: compare with what the signatures alone would take.

#[path = "../tests/it/chain.rs"]
#[allow(dead_code)]
mod chain;
#[path = "../tests/it/net.rs"]
#[allow(dead_code)]
mod net;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use chain::{CONTRACT, Chain, Shape};
use hotpocket::crypto::{SecretKey, verify};
use net::Net;

/// Nodes, and the votes that certify a ledger.
const NODES: usize = 5;
const QUORUM: u64 = 4;
/// How long the rounds of a network are counted.
const COUNTED: Duration = Duration::from_secs(5);
/// The longest any part may take.
const LIMIT: Duration = Duration::from_secs(1_200);

fn main() {
    let mut len = 10_000;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match (arg.as_str(), args.next().as_deref().map(str::parse)) {
            ("--ledgers", Some(Ok(number @ 1_000..=60_000))) => len = number,
            // Given by `cargo bench`.
            ("--bench", _) => {}
            _ => {
                eprintln!("error: usage: scripts/bench catchup [--ledgers N], from 1000 to 60000");
                std::process::exit(2);
            }
        }
    }
    let verify_us = verify_us();
    let signatures = Duration::from_micros(len * QUORUM * verify_us);
    println!(
        "this machine: ed25519 verify {verify_us} us; the {} signatures of {len} ledgers: {signatures:.1?}",
        len * QUORUM
    );
    for (name, roundtime) in [("a ledger a second", "1000"), ("rounds as fast as they go", "1")] {
        let measured = net::block_on_for(2 * LIMIT, measure(len, roundtime));
        println!("{name}:");
        let per_s = |time: Duration| len as f64 / time.as_secs_f64();
        println!("  fetched, verified, stored  {:>8.1?}  {:>6.0} ledgers/s", measured.closed, per_s(measured.closed));
        println!("  run too                    {:>8.1?}  {:>6.0} ledgers/s", measured.run, per_s(measured.run));
        println!(
            "  rounds/s of the others     {:.0} before, {:.0} while it fetches, {:.0} while it runs",
            measured.before, measured.fetching, measured.running
        );
    }
}

struct Measured {
    closed: Duration,
    run: Duration,
    before: f64,
    fetching: f64,
    running: f64,
}

async fn measure(len: u64, roundtime: &str) -> Measured {
    let mut net = Net::new(NODES, Path::new(CONTRACT), |_, config| {
        config.set("log.level", "\"error\"").set("roundtime", roundtime);
    });
    let chain = Chain::new(&net.nodes, Shape { len, input_every: 10, large_at: None });
    for node in &mut net.nodes[..NODES - 1] {
        chain.write(node);
        node.start().await;
    }
    net.nodes[0].status_where("the others go on", |status| status["seq"].as_u64() > Some(len)).await;
    let (from, began) = (seq(&net, 0).await, Instant::now());
    net::until("time passes", async || (began.elapsed() >= COUNTED).then_some(())).await;
    let before = rate(&net, from, began).await;

    let started = Instant::now();
    net.nodes[NODES - 1].start().await;
    let last = &net.nodes[NODES - 1];
    let from = seq(&net, 0).await;
    let number = |status: &serde_json::Value, key: &str| status[key].as_u64().unwrap_or(0);
    net::until_within(LIMIT, "it is there", async || (number(&last.status().await?, "seq") >= len).then_some(())).await;
    let (closed, fetching) = (started.elapsed(), rate(&net, from, started).await);
    let (from, began) = (seq(&net, 0).await, Instant::now());
    net::until_within(LIMIT, "it is there", async || {
        let status = last.status().await?;
        (number(&status, "seq") - number(&status, "unexecuted") >= len).then_some(())
    })
    .await;
    Measured { closed, run: started.elapsed(), before, fetching, running: rate(&net, from, began).await }
}

async fn seq(net: &Net, node: usize) -> u64 {
    net.nodes[node].status().await.and_then(|status| status["seq"].as_u64()).expect("a status")
}

/// Rounds a second of the first node since it closed `from`.
async fn rate(net: &Net, from: u64, began: Instant) -> f64 {
    (seq(net, 0).await - from) as f64 / began.elapsed().as_secs_f64()
}

fn verify_us() -> u64 {
    let key = SecretKey::from_seed([1; 32]);
    let (sig, public) = (key.sign(&[7; 32]), key.node_key());
    let began = Instant::now();
    for _ in 0..1_000 {
        assert!(verify(&public.0, &[7; 32], &sig));
    }
    u64::try_from(began.elapsed().as_micros()).expect("not that long") / 1_000
}
