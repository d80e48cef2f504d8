//! People who are no users, in numbers: who closes ledgers has no work with them.

use std::{collections::BTreeMap, fs};

use crate::{
    net::{Net, block_on, probe, until},
    strangers::Flood,
};

/// Strangers at a time.
const STRANGERS: usize = 128;

/// Handshakes of theirs.
const HANDSHAKES: u64 = 1_500;

/// Nanoseconds that each thread of a process has run, by its name.
fn ran(pid: u32) -> BTreeMap<String, u64> {
    let mut ran = BTreeMap::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task")).expect("it runs").flatten() {
        let read = |file: &str| fs::read_to_string(thread.path().join(file)).unwrap_or_default();
        let nanoseconds = read("schedstat").split(' ').next().and_then(|text| text.parse::<u64>().ok());
        *ran.entry(read("comm").trim_end().to_owned()).or_default() += nanoseconds.unwrap_or(0);
    }
    ran
}

#[test]
fn a_flood_of_wrong_handshakes_is_no_work_of_the_thread_that_closes_ledgers() {
    block_on(async {
        let net = Net::up_with(1, probe(), |_, config| {
            // All are served, however many fail.
            config.set("user.failed_per_minute", "0");
        })
        .await;
        let node = &net.nodes[0];
        let mut user = node.user().await;
        assert_eq!(user.ask("a").await, "1 1");
        let before = ran(node.pid());
        let flood = Flood::begin(&node.url, STRANGERS);
        until("strangers come", async || (flood.count() > HANDSHAKES / 2).then_some(())).await;
        assert_eq!(user.ask("b").await, "1 2", "users are served");
        until("strangers come", async || (flood.count() > HANDSHAKES).then_some(())).await;
        let after = ran(node.pid());
        flood.end();
        let [loop_ns, gateway_ns] = ["hp", "gateway"].map(|name| after[name] - before[name]);
        // Time of the processor, which does not depend on how busy the machine is.
        assert!(loop_ns < gateway_ns / 4, "the loop ran for {loop_ns} ns, the gateway for {gateway_ns} ns");
        println!("the loop ran for {loop_ns} ns, the gateway for {gateway_ns} ns");
    });
}
