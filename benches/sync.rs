//! How long a node without a state takes to fetch that of a network of four, and how much that slows the rounds of the
//! others. All on this machine, which has to hold every node's state twice.
//!
//! Run by `scripts/bench sync [--mb N]`. Machines are noisy: compare with what copying the bytes takes here.

#[path = "../tests/it/net.rs"]
#[allow(dead_code)]
mod net;

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::Path,
    time::{Duration, Instant},
};

use net::Net;

/// Nodes.
const NODES: usize = 4;
/// Bytes of one file of the state.
const FILE_BYTES: u64 = 64 << 20;
/// How long the rounds of a network are counted.
const COUNTED: Duration = Duration::from_secs(5);
/// The longest any part may take.
const LIMIT: Duration = Duration::from_secs(1_200);

fn main() {
    let mut mb = 1_024;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match (arg.as_str(), args.next().as_deref().map(str::parse)) {
            ("--mb", Some(Ok(number @ 64..=65_536))) => mb = number,
            // Given by `cargo bench`.
            ("--bench", _) => {}
            _ => {
                eprintln!("error: usage: scripts/bench sync [--mb N], from 64 to 65536");
                std::process::exit(2);
            }
        }
    }
    for (name, roundtime) in [("a ledger a second", "1000"), ("rounds as fast as they go", "1")] {
        let measured = net::block_on_for(2 * LIMIT, measure(mb << 20, roundtime));
        let per_s = |time: Duration| (mb << 20) as f64 / 1e6 / time.as_secs_f64();
        println!("{name}, {mb} MiB:");
        println!("  copied by cp, for comparison   {:>7.1?}  {:>6.0} MB/s", measured.copied, per_s(measured.copied));
        println!("  fetched, checked, in state/    {:>7.1?}  {:>6.0} MB/s", measured.fetched, per_s(measured.fetched));
        println!("  rounds/s of the others         {:.1} before, {:.1} meanwhile", measured.before, measured.meanwhile);
    }
}

struct Measured {
    copied: Duration,
    fetched: Duration,
    before: f64,
    meanwhile: f64,
}

async fn measure(bytes: u64, roundtime: &str) -> Measured {
    let mut net = Net::new(NODES, Path::new("/bin/true"), |_, config| {
        config.set("log.level", "\"error\"").set("roundtime", roundtime).set("consensus.threshold", "75");
    });
    let first = net.nodes[0].dir.join("state");
    fill(&first, bytes);
    let mut copied = Duration::ZERO;
    for node in &net.nodes[1..] {
        let began = Instant::now();
        let done = std::process::Command::new("cp").arg("-a").arg(&first).arg(&node.dir).status().expect("cp");
        assert!(done.success(), "the state is copied");
        copied = began.elapsed();
    }
    net.start_all().await;
    net.closed(3).await;
    let last = NODES - 1;
    net.nodes[last].kill().await;
    for folder in ["state", "hist/shadow"] {
        fs::remove_dir_all(net.nodes[last].dir.join(folder)).expect("removed");
    }
    let (from, began) = (seq(&net).await, Instant::now());
    net::until("time passes", async || (began.elapsed() >= COUNTED).then_some(())).await;
    let before = rate(&net, from, began).await;

    let (from, began) = (seq(&net).await, Instant::now());
    net.nodes[last].start().await;
    net::until_within(LIMIT, "the state is there", async || {
        let status = net.nodes[last].status().await?;
        // At its very start a node does not know yet what it lacks.
        let files = fs::read_dir(net.nodes[last].dir.join("state")).map_or(0, |files| files.count() as u64);
        let is_there = files == bytes.div_ceil(FILE_BYTES);
        (is_there && status["fetching_state"].is_null() && status["synced"] == true).then_some(())
    })
    .await;
    Measured { copied, fetched: began.elapsed(), before, meanwhile: rate(&net, from, began).await }
}

/// Files of which no block is like another.
fn fill(state: &Path, bytes: u64) {
    fs::create_dir_all(state).expect("a folder");
    let mut number = 0_u64;
    for file in 0..bytes.div_ceil(FILE_BYTES) {
        let mut writer = BufWriter::with_capacity(1 << 20, File::create(state.join(file.to_string())).expect("a file"));
        for _ in 0..FILE_BYTES.min(bytes - file * FILE_BYTES) / 8 {
            number += 1;
            writer.write_all(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).expect("written");
        }
        writer.flush().expect("written");
    }
}

async fn seq(net: &Net) -> u64 {
    net.nodes[0].status().await.and_then(|status| status["seq"].as_u64()).expect("a status")
}

/// Rounds a second of the first node since it closed `from`.
async fn rate(net: &Net, from: u64, began: Instant) -> f64 {
    (seq(net).await - from) as f64 / began.elapsed().as_secs_f64()
}
