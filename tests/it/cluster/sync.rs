//! Nodes whose state is damaged, or older than the others': they fetch it, and are members like the others again.

use std::{
    fs,
    os::unix::fs::{FileExt, symlink},
    path::Path,
};

use nix::sys::{signal::Signal, statvfs::statvfs};
use serde_json::Value;

use super::surroundings::move_to_small_disk;
use crate::net::{Net, TestNode, block_on, plain, probe};

/// Bytes of the file that every node begins with.
const BIG_BYTES: usize = 3 << 20;

fn big() -> Vec<u8> {
    (0_u32..).flat_map(u32::to_le_bytes).take(BIG_BYTES).collect()
}

fn begin_with(dir: &Path) {
    fs::create_dir_all(dir.join("state/many")).expect("a folder");
    fs::write(dir.join("state/big"), big()).expect("written");
    (0..100).for_each(|file| fs::write(dir.join(format!("state/many/{file}")), file.to_string()).expect("written"));
}

/// What `state/` should hold but for what the contract counts.
fn is_sound(node: &TestNode) -> bool {
    let state = node.dir.join("state");
    fs::read(state.join("big")).is_ok_and(|bytes| bytes == big())
        && (0..100).all(|file| node.state(&format!("many/{file}")) == file.to_string())
        && fs::read_dir(state.join("many")).is_ok_and(|files| files.count() == 100)
        && !state.join("added").exists()
}

/// A byte in the middle of a big file, a file less, one that never was, one that nodes cannot agree on.
fn damage(node: &TestNode) {
    let state = node.dir.join("state");
    let file = fs::File::options().write(true).open(state.join("big")).expect("it is there");
    file.write_all_at(b"!", 1_000_000).expect("written");
    fs::remove_file(state.join("many/7")).expect("removed");
    fs::write(state.join("added"), "by hand").expect("written");
    symlink("/etc/passwd", state.join("many/elsewhere")).expect("linked");
}

fn alerts(status: &Value) -> String {
    status["alerts"].to_string()
}

fn is_well(status: &Value) -> bool {
    status["synced"] == true && status["fetching_state"].is_null() && status["unexecuted"] == 0
}

#[test]
fn a_state_damaged_by_hand_heals_while_the_node_runs_and_when_it_starts() {
    block_on(async {
        let mut net = Net::new(5, probe(), |_, config| {
            config.set("roundtime", "200");
        });
        net.nodes.iter().for_each(|node| begin_with(&node.dir));
        net.start_all().await;
        let mut user = net.nodes[0].user().await;
        assert_eq!(user.ask("four").await, "4 4");
        // While it runs: it is seen before the next run, or that run's result differs from the others'.
        damage(&net.nodes[4]);
        net.nodes[4].status_where("it is healed", |status| is_well(status) && is_sound(&net.nodes[4])).await;
        // While it is stopped, and what it keeps of the state before too.
        net.nodes[4].kill().await;
        damage(&net.nodes[4]);
        let copy = net.nodes[4].dir.join("hist/shadow/copy/big");
        fs::write(copy, "nothing").expect("written");
        net.nodes[4].start().await;
        net.nodes[4].status_where("it is healed", |status| is_well(status) && is_sound(&net.nodes[4])).await;
        net.nodes[4].logs(&["the state is fetched"]).await;
        // And what it keeps of how far it was.
        net.nodes[4].kill().await;
        damage(&net.nodes[4]);
        fs::write(net.nodes[4].dir.join("hist/shadow/intent"), [7; 10_000]).expect("written");
        net.nodes[4].start().await;
        let status = net.nodes[4].status_where("it is healed", |it| is_well(it) && is_sound(&net.nodes[4])).await;
        assert!(alerts(&status).contains("was damaged") && alerts(&status).contains("hist/damaged"), "{status}");
        assert_eq!(fs::read(net.nodes[4].dir.join("hist/damaged/shadow/intent")).expect("put aside"), [7; 10_000]);
        // The quorum needs it.
        net.nodes[1].kill().await;
        assert_eq!(user.ask("again").await, "5 9");
        net.agree().await;
        assert_eq!(net.nodes[4].state("inputs"), "9");
    });
}

#[test]
fn a_node_alone_that_cannot_open_its_state_says_what_to_do_and_goes_on_once_that_is_done() {
    block_on(async {
        let mut net = Net::up(1).await;
        assert_eq!(net.nodes[0].user().await.ask("four").await, "4 4");
        net.nodes[0].signal(Signal::SIGTERM);
        net.nodes[0].ended().await;
        let shadow = net.nodes[0].dir.join("hist/shadow");
        fs::write(shadow.join("intent"), [7; 10_000]).expect("written");
        let (code, log) = net.nodes[0].start_fails().await;
        assert_eq!(code, Some(4), "{log}");
        assert!(log.contains("no other member") && log.contains("hp restore") && log.contains("intent"), "{log}");
        assert!(!net.nodes[0].dir.join("hist/damaged").exists(), "nothing was changed");
        fs::rename(shadow, net.nodes[0].dir.join("aside")).expect("moved, as it was told to");
        net.start_all().await;
        assert_eq!(net.nodes[0].user().await.ask("five5").await, "5 9");
    });
}

#[test]
fn a_state_for_which_the_disk_has_no_room_is_not_fetched_until_there_is_some() {
    block_on(async {
        let mut net = Net::new(4, probe(), |_, config| {
            config.set("consensus.threshold", "75").set("roundtime", "200");
        });
        let Some(_disk) = move_to_small_disk(&mut net.nodes[3], "128m").await else {
            return println!("skipped: no name spaces for users here");
        };
        net.nodes.iter().for_each(|node| begin_with(&node.dir));
        net.start_all().await;
        let mut user = net.nodes[0].user().await;
        assert_eq!(user.ask("four").await, "4 4");
        net.nodes[3].kill().await;
        let dir = net.nodes[3].dir.clone();
        for place in ["state/big", "hist/shadow/copy/big"] {
            fs::remove_file(dir.join(place)).expect("removed");
        }
        // More than a run needs, and less than the file takes: as fetched, as a copy, and in state/.
        let disk = statvfs(&dir).expect("a disk");
        let free = disk.blocks_available() * disk.fragment_size();
        let left = (8 << 20) + 2 * BIG_BYTES as u64;
        fs::write(dir.join("ballast"), vec![1; usize::try_from(free - left).expect("it fits")]).expect("written");
        net.nodes[3].start().await;
        let waits = |status: &Value| status["fetching_state"]["waits"].is_string();
        let status = net.nodes[3].status_where("it waits for room", waits).await;
        assert!(
            alerts(&status).contains("18 MiB are needed") || alerts(&status).contains("17 MiB are needed"),
            "{status}"
        );
        assert!(alerts(&status).contains("make room"), "{status}");
        assert_eq!(user.ask("more").await, "4 8", "the others go on");
        let staged = fs::metadata(dir.join("hist/sync/blocks")).expect("a file").len();
        assert!(staged < BIG_BYTES as u64 / 2, "{staged} bytes: it waits before it fills the disk");
        // What is fetched cannot be kept where it should: it is fetched anew.
        fs::remove_dir_all(dir.join("hist/sync")).expect("removed");
        fs::write(dir.join("hist/sync"), "no folder").expect("written");
        fs::remove_file(dir.join("ballast")).expect("removed");
        net.nodes[3].logs(&["what was fetched of the state is damaged"]).await;
        let status = net.nodes[3].status_where("it is healed", |it| is_well(it) && is_sound(&net.nodes[3])).await;
        assert!(!alerts(&status).contains("make room"), "{status}");
        net.agree().await;
        for node in &mut net.nodes {
            node.kill().await;
        }
    });
}

#[test]
fn a_node_from_nothing_fetches_the_state_instead_of_running_all_and_goes_on_after_kills() {
    block_on(async {
        let mut net = Net::new(4, probe(), |at, config| {
            plain(at, config);
            config.set("consensus.threshold", "75").set("roundtime", "10");
        });
        for node in &mut net.nodes[..3] {
            node.start().await;
        }
        let mut user = net.nodes[0].user().await;
        assert_eq!(user.ask("grow").await, "4 4");
        net.nodes[0].status_where("a hundred ledgers close", |it| it["seq"].as_u64() >= Some(150)).await;
        for _ in 0..3 {
            net.nodes[3].start().await;
            net.nodes[3].logs(&["fetching the state from other nodes"]).await;
            net.nodes[3].kill().await;
            fs::write(net.nodes[3].dir.join("node.log"), "").expect("written");
        }
        net.nodes[3].start().await;
        net.nodes[3].status_where("it is there", is_well).await;
        let state = |node: &TestNode| fs::read(node.dir.join("state/grown")).expect("it is there");
        assert_eq!(state(&net.nodes[3]), state(&net.nodes[0]));
        net.nodes[0].kill().await;
        let mut user = net.nodes[3].user().await;
        assert_eq!(user.ask("more").await, "4 8");
    });
}
