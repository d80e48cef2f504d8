//! Contracts that attack their node (contracts/hostile): the next ledger closes on all nodes, the state is as the rules say,
//! nothing of the run is left, and the disk is as before.

use std::{collections::BTreeSet, fs, os::unix::fs::MetadataExt as _, time::Duration};

use hotpocket::{
    config::{Document, quoted},
    crypto::SecretKey,
    signed::Reply,
    types::{Hash, Seq},
};
use serde_json::Value;
use tokio::time::timeout;

use super::surroundings::move_to_small_disk;
use crate::net::{DEADLINE, Net, SignedUser, TestNode, block_on_for, hostile, processes, until, until_within};

/// What becomes of a run.
#[derive(Debug, Clone, Copy)]
enum Run {
    /// It ends well, and the attack says this.
    Ok(&'static str),
    /// It ends well.
    Ends,
    /// It fails with this status, and leaves nothing.
    Fails(&'static str),
    /// Where the node has no guard against it, the first; else it ends well, and the attack was denied.
    Unless(&'static str),
    /// Denied where one of these guards is on; else it is told what came of it.
    Denied(&'static [&'static str]),
    /// As above, of one that harms those around the node where there is no guard: it is not tried then.
    DeniedOrHarmful(&'static [&'static str]),
}
use Run::{Denied, DeniedOrHarmful, Ends, Fails, Ok, Unless};

const FORBIDDEN: &str = "forbidden kind of file in state/";

/// Bytes of a node's memory that are not given back at once: caches, and what its allocator keeps.
const MEMORY_GROWTH_KIB_MAX: u64 = 128 << 10;

fn limits(config: &mut Document) {
    config.set("roundtime", "50");
    config.set("contract.time_limit_s", "20");
    config.set("contract.output_mb", "1");
    config.set("contract.output_user_mb", "1");
    config.set("contract.file_mb", "16");
    config.set("contract.state_mb", "20");
    config.set("contract.state_files", "2000");
    config.set("contract.memory_mb", "64");
    config.set("contract.log_kb", "16");
}

/// Files, folders and KiB on the disk below a node's folder, its ledgers and logs excepted.
fn disk_use(node: &TestNode) -> u64 {
    let mut kib = 0;
    let mut folders = vec![node.dir.join("state"), node.dir.join("hist/shadow/copy")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Some(meta) = entry.metadata().ok() else { continue };
            kib += 1 + meta.blocks() / 2;
            if meta.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    kib
}

fn descriptors(node: &TestNode) -> usize {
    fs::read_dir(format!("/proc/{}/fd", node.pid())).expect("it runs").count()
}

fn memory_kib(node: &TestNode) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", node.pid())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// A network under attack, and who tells it to.
struct Field {
    net: Net,
    marks: Vec<String>,
    user: SignedUser,
    nonce: u64,
    /// Attacks whose runs ended well.
    count: u64,
    /// The longest that one of them may take.
    longest: Duration,
}

impl Field {
    async fn up(n: usize, set: impl Fn(&mut Document)) -> Field {
        Field::prepared(n, set, async |_| {}).await
    }

    /// The same with nodes that something is done to before they start.
    async fn prepared(n: usize, set: impl Fn(&mut Document), prepare: impl AsyncFnOnce(&mut [TestNode])) -> Field {
        let mark = Hash(SecretKey::generate().node_key().0).to_string();
        let marks: Vec<String> = (0..n).map(|at| format!("{mark}-{at}")).collect();
        let mut net = Net::new(n, hostile(), |at, config| {
            config.set("contract.env", &format!("{{ HP_TEST_MARK = {} }}", quoted(&marks[at])));
            set(config);
        });
        prepare(&mut net.nodes).await;
        net.start_all().await;
        let user = net.nodes[0].signed(&SecretKey::generate()).await;
        Field { net, marks, user, nonce: 0, count: 0, longest: DEADLINE }
    }

    /// Processes of a node's contract, wherever they went: those that were started with its environment.
    fn marked(&self, at: usize) -> Vec<u32> {
        let mark = format!("HP_TEST_MARK={}\0", self.marks[at]);
        let is = |bytes: &[u8]| bytes.windows(mark.len()).any(|part| part == mark.as_bytes());
        processes(|pid| fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environment| is(&environment)))
    }

    /// Sends the words; the ledger that took them, how its run ended, and what the attack said.
    async fn order(&mut self, words: &str) -> (Seq, String, Vec<u8>) {
        self.nonce += 1;
        let input = self.user.input(self.nonce, words);
        self.user.send(&input).await;
        let seq = self.user.accepted(self.nonce).await;
        let mut said = Vec::new();
        loop {
            let reply = timeout(self.longest, self.user.client.recv()).await.expect("in time").expect("an answer");
            match reply {
                Reply::Output(output) if output.seq == seq => said = output.payload.0,
                Reply::Executed(executed) if executed.seq == seq => return (seq, executed.run.status, said),
                Reply::Error(error) => panic!("{words}: {error:?}"),
                _ => {}
            }
        }
    }

    async fn root(&self) -> String {
        // A run over a million files, or the copy of them that the next run waits for, takes longer than anything else may.
        self.net.agree_while_it_moves(self.longest).await;
        let mut roots = BTreeSet::new();
        for node in &self.net.nodes {
            let status = node.status().await.expect("it is up");
            assert_eq!((&status["diverged"], &status["split"]), (&Value::Bool(false), &Value::Bool(false)));
            roots.insert(status["state_root"].as_str().expect("a root").to_owned());
        }
        assert_eq!(roots.len(), 1, "{roots:?}");
        roots.pop_first().expect("one")
    }

    /// One attack: what comes of it, and that nothing else does.
    async fn attack(&mut self, words: &str, run: Run) {
        let begun = std::time::Instant::now();
        let guarded = match run {
            Denied(by) | DeniedOrHarmful(by) => self.has_guard(by).await,
            _ => false,
        };
        if matches!(run, DeniedOrHarmful(_)) && !guarded {
            return println!("{words:20} not tried: no guard against it is on here");
        }
        let (root, before) = (self.root().await, disk_use(&self.net.nodes[0]));
        let (seq, status, said) = self.order(words).await;
        let said = String::from_utf8_lossy(&said).into_owned();
        let denied = said.starts_with("denied") || said.starts_with("not tried");
        match run {
            Ok(expected) => assert_eq!((status.as_str(), said.as_str()), ("ok", expected), "{words}"),
            Ends => assert_eq!(status, "ok", "{words}"),
            Fails(expected) => assert_eq!((status.as_str(), said.as_str()), (expected, ""), "{words}"),
            Denied(_) | DeniedOrHarmful(_) if guarded => assert!(status == "ok" && denied, "{words}: {status}, {said}"),
            Denied(_) | DeniedOrHarmful(_) => println!("{words:20} has no guard against it here"),
            Unless(_) if denied => assert_eq!(status, "ok", "{words}"),
            Unless(expected) => assert_eq!(status, expected, "{words}"),
        }
        println!("{words:20} {status:32} {said:24} {} ms", begun.elapsed().as_millis());
        let ok = status == "ok";
        self.count += u64::from(ok);
        // The next ledgers close, on all nodes, and do what they should.
        for node in &self.net.nodes {
            until_within(self.longest, "the next ledger closes", async || {
                (node.status().await?["seq"].as_u64()? > seq).then_some(())
            })
            .await;
        }
        self.net.closed(seq + 1).await;
        let after = self.root().await;
        for (at, node) in self.net.nodes.iter().enumerate() {
            let what = format!("{words} at {}", node.dir.display());
            until(&format!("{what}: nothing is left running"), async || self.marked(at).is_empty().then_some(())).await;
            assert_eq!(
                node.state("count"),
                if self.count == 0 { String::new() } else { self.count.to_string() },
                "{what}"
            );
            assert!(!node.dir.join("state/late").exists(), "{what}");
            if !ok {
                assert!(!node.dir.join("state/half").exists(), "{what}");
            }
        }
        if ok {
            self.tidy(words).await;
        } else {
            assert_eq!(after, root, "{words}: as before");
            assert!(disk_use(&self.net.nodes[0]) <= before + 64, "{words}: the disk is as before");
        }
    }

    /// Whether one of these is on at the nodes, which are on one machine.
    async fn has_guard(&self, names: &[&str]) -> bool {
        let status = self.net.nodes[0].status().await.expect("it is up");
        let guards = status["guards"].as_array().cloned().unwrap_or_default();
        guards.iter().any(|guard| guard["on"] == true && names.iter().any(|name| guard["name"] == *name))
    }

    /// Half of a ledger stays where the attack was denied and the run ended well.
    async fn tidy(&mut self, words: &str) {
        if self.net.nodes[0].dir.join("state/half").exists() {
            let (_, status, _) = self.order("nothing").await;
            assert_eq!(status, "ok", "after {words}");
            self.count += 1;
        }
    }
}

#[test]
fn after_each_attack_of_a_contract_the_next_ledger_closes_and_nothing_of_it_is_left() {
    block_on_for(DEADLINE * 5, async {
        let mut field = Field::up(3, limits).await;
        field.attack("nothing", Ok("done")).await;
        let before: Vec<(usize, u64)> =
            field.net.nodes.iter().map(|node| (descriptors(node), memory_kib(node))).collect();
        for (words, run) in [
            // Processes.
            ("daemon", Ok("left behind")),
            ("fork_bomb 300", Ok("forked")),
            ("kill_group", Fails("signal 9")),
            ("kill_parent", Unless("signal 9")),
            ("stop_parent", Unless("ok")),
            ("hold_files", Ok("held")),
            ("half_exit", Fails("exit code 1")),
            ("half_crash", Fails("signal 6")),
            ("half_killed", Fails("signal 9")),
            ("half_exec", Fails("signal 9")),
            // Pipes.
            ("shout 10", Ok("shouted")),
            ("pour_out 10", Fails("output limit")),
            ("pour_npl 20", Fails("party line limit")),
            ("pour_control 5", Ok("poured")),
            ("poke_all", Ok("poked")),
            ("close_all", Ok("")),
            ("mix_outputs", Ok("\u{fffd}\u{fffd}done")),
            // State.
            ("remove_state", Unless(FORBIDDEN)),
            ("empty_state", Ok("done")),
            ("rename_state", Unless(FORBIDDEN)),
            ("link_state", Unless(FORBIDDEN)),
            ("link_away", Unless(FORBIDDEN)),
            ("link_above", Unless(FORBIDDEN)),
            ("link_around", Unless(FORBIDDEN)),
            ("link_hard", Unless(FORBIDDEN)),
            ("link_hard_inside", Unless(FORBIDDEN)),
            ("fifo", Unless(FORBIDDEN)),
            ("socket", Unless(FORBIDDEN)),
            ("device", Unless(FORBIDDEN)),
            ("nest 9", Ok("nested")),
            ("nest 40", Fails(FORBIDDEN)),
            ("many_files 1000", Ok("made")),
            ("many_files 2100", Fails("state size limit")),
            ("fill_disk 24", Fails("state size limit")),
            ("few_files", Ok("removed")),
            ("names", Ok("named")),
            ("sparse", Fails("file size limit")),
            ("sparse 1", Ok("denied: EFBIG")),
            ("hole 8", Ok("made")),
            ("no_rights", Ok("done")),
            ("odd_marks", Ends),
            ("frozen_half", Fails("exit code 1")),
            ("eat_memory 256", Fails("signal 9")),
            // Beyond the contract's business.
            ("read_key", Denied(&["landlock"])),
            ("read_history", Denied(&["landlock"])),
            ("write_outside", Denied(&["landlock"])),
            ("replace_self", Denied(&["landlock"])),
            ("write_log", Denied(&["landlock"])),
            ("mount_over", Denied(&["landlock", "seccomp"])),
            ("connect_out 1", Denied(&["network"])),
            ("trace_parent", DeniedOrHarmful(&["landlock", "seccomp"])),
            ("read_parent", Denied(&["landlock"])),
            ("kill_all", DeniedOrHarmful(&["namespaces"])),
            ("be_urgent", Ok("denied: EACCES")),
            ("raise_limits", Ok("denied: EPERM")),
            ("keep_memory", Denied(&["seccomp"])),
        ] {
            field.attack(words, run).await;
        }
        for (node, (files, kib)) in field.net.nodes.iter().zip(before) {
            let settled = || (descriptors(node) <= files + 2).then_some(());
            until("the node has as many files open as before", async || settled()).await;
            let now = memory_kib(node);
            assert!(now < kib + MEMORY_GROWTH_KIB_MAX, "{now} KiB of memory after {kib}");
        }
    });
}

#[test]
fn a_contract_that_never_ends_whatever_it_does_meanwhile_has_no_effect_and_stops_nobody() {
    block_on_for(DEADLINE * 3, async {
        let mut field = Field::up(3, |config| {
            limits(config);
            config.set("contract.time_limit_s", "1");
        })
        .await;
        field.attack("nothing", Ok("done")).await;
        for (words, run) in [("shout", Fails("time limit")), ("stop_self", Fails("time limit"))] {
            field.attack(words, run).await;
        }
    });
}

#[test]
fn a_contract_that_fills_the_disks_of_all_nodes_has_no_effect_and_they_are_as_empty_as_before() {
    block_on_for(DEADLINE * 3, async {
        let mut disks = Vec::new();
        let mut field = Field::prepared(3, limits, async |nodes| {
            for node in nodes {
                disks.extend(move_to_small_disk(node, "64m,nr_inodes=20000").await);
            }
        })
        .await;
        if disks.len() < 3 {
            return println!("skipped: no name spaces for users here");
        }
        field.attack("nothing", Ok("done")).await;
        for words in ["fill_disk 1000", "many_files 1000000", "fill_disk 1000"] {
            field.attack(words, Fails("time limit")).await;
            field.attack("names", Ok("named")).await;
        }
        field.net.nodes[0].logs(&["the contract fills the disk"]).await;
        for node in &mut field.net.nodes {
            node.kill().await;
        }
    });
}

/// The big ones, for real: minutes, and gigabytes of disk. `scripts/hostile` asks for it.
#[test]
fn the_big_attacks_are_no_worse_than_the_small_ones() {
    if std::env::var_os("HP_HOSTILE_BIG").is_none() {
        return println!("skipped: scripts/hostile runs it");
    }
    block_on_for(DEADLINE * 30, async {
        let mut field = Field::up(3, |config| {
            limits(config);
            config.set("contract.time_limit_s", "300");
            config.set("contract.file_mb", "4096");
            config.set("contract.state_mb", "0");
            config.set("contract.state_files", "0");
        })
        .await;
        field.longest = 10 * DEADLINE;
        for (words, run) in [
            ("nothing", Ok("done")),
            ("shout 10240", Ok("shouted")),
            ("pour_out 10240", Fails("output limit")),
            ("hole 4000", Ok("made")),
            ("fill_disk 2000", Ok("written")),
            ("few_files", Ok("removed")),
            ("many_files 1000000", Ok("made")),
            ("few_files", Ok("removed")),
        ] {
            field.attack(words, run).await;
            let memory: Vec<u64> = field.net.nodes.iter().map(|node| memory_kib(node) >> 10).collect();
            println!("{:20} nodes have {memory:?} MiB", "");
        }
    });
}
