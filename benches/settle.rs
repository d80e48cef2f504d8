//! What settling costs a round: real networks of n nodes on this machine that settle nothing, that settle and have nothing due,
//! and that settle all the time, one after the other in small blocks, so that the machine's moods reach all of them alike.
//!
//! Run by `scripts/bench settle [--inputs N] [--nodes N]`. Compare the ratios.

#[path = "../tests/it/bus.rs"]
#[allow(dead_code)]
mod bus;
#[path = "../tests/it/net.rs"]
#[allow(dead_code)]
mod net;

use std::{
    fs,
    time::{Duration, Instant},
};

use bus::Bus;
use net::{Net, User, echo};

/// Blocks of inputs, of each network in turn.
const BLOCKS: usize = 20;

/// Ledgers after which a network settles: none, none in this time, and a few times in each block.
const NETWORKS: [(&str, Option<u64>); 3] = [("off", None), ("idle", Some(1 << 32)), ("busy", Some(10))];

struct Measured {
    name: &'static str,
    net: Net,
    user: User,
    /// The median of each block.
    blocks: Vec<Duration>,
}

fn main() {
    let (mut inputs, mut nodes) = (2_000, 4);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut number = || args.next().and_then(|text| text.parse().ok()).unwrap_or_else(|| fail("expected a number"));
        match arg.as_str() {
            "--inputs" => inputs = number(),
            "--nodes" => nodes = number(),
            // Given by `cargo bench`.
            "--bench" => {}
            other => fail(&format!("unknown argument {other:?}; usage: scripts/bench settle [--inputs N] [--nodes N]")),
        }
    }
    net::block_on_for(Duration::from_secs(3_600), measure(inputs.max(BLOCKS), nodes.max(1)));
}

fn fail(what: &str) -> ! {
    eprintln!("error: {what}");
    std::process::exit(2);
}

async fn measure(inputs: usize, nodes: usize) {
    let bus = Bus::start().await.expect("a bus");
    let mut networks = Vec::new();
    for (name, every) in NETWORKS {
        let mut net = Net::new(nodes, echo(), |_, document| {
            if let Some(every) = every {
                bus.configure(document);
                document.set("msb.settle_every", &every.to_string());
                document.set("msb.settle_max_delay_s", &(1_u64 << 32).to_string());
            }
            // Nothing happens in one while another one is measured.
            document.set("roundtime", "3600000");
            document.set("log.level", "\"warn\"");
        });
        bus.fund(&net).await;
        net.start_all().await;
        let user = net.nodes[0].user().await;
        networks.push(Measured { name, net, user, blocks: Vec::new() });
    }
    // The first block warms up.
    for block in 0..=BLOCKS {
        for network in &mut networks {
            let median = ask(&mut network.user, inputs / BLOCKS).await;
            if block > 0 {
                network.blocks.push(median);
            }
        }
    }
    println!("{nodes} nodes, {BLOCKS} blocks of {} inputs each, medians of a block:", inputs / BLOCKS);
    println!("{:>6} {:>10} {:>10} {:>10} {:>10} {:>10}", "", "p50 ms", "least", "most", "to off", "MiB");
    let off = networks[0].blocks.clone();
    for network in &networks {
        // Block by block, with what was measured in the same second.
        let mut ratios: Vec<f64> =
            network.blocks.iter().zip(&off).map(|(mine, off)| mine.as_secs_f64() / off.as_secs_f64()).collect();
        ratios.sort_by(f64::total_cmp);
        let mut blocks = network.blocks.clone();
        blocks.sort_unstable();
        let at = |at: usize| blocks[at].as_secs_f64() * 1_000.0;
        println!(
            "{:>6} {:>10.3} {:>10.3} {:>10.3} {:>10.4} {:>10.1}",
            network.name,
            at(BLOCKS / 2),
            at(0),
            at(BLOCKS - 1),
            ratios[BLOCKS / 2],
            memory_mib(network.net.nodes[0].pid())
        );
    }
    println!("{} settlements of the busy one; {:?}", bus.landed().await.len(), bus.way.counts());
}

/// The median of so many inputs, one in flight.
async fn ask(user: &mut User, inputs: usize) -> Duration {
    let mut times = Vec::with_capacity(inputs);
    for at in 0..inputs {
        let (text, sent) = (format!("input {at}"), Instant::now());
        assert_eq!(user.ask(&text).await, text);
        times.push(sent.elapsed());
    }
    times.sort_unstable();
    times[inputs / 2]
}

fn memory_mib(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0");
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or(0.0) / 1_024.0
}
