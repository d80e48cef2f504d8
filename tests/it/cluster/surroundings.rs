//! Nodes whose machine is at fault, while users go on: a wrong clock, a full disk, a damaged database.

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::Stdio,
    time::{SystemTime, UNIX_EPOCH},
};

use hotpocket::crypto::SecretKey;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::UnixDatagram,
    process::Command,
    time::timeout,
};

use super::{crowd::Crowd, faults::copy_folder};
use crate::net::{DEADLINE, Net, TestNode, block_on, compile_preload, plain, record, write_config};

const HOUR_S: i64 = 3_600;

/// How far the last ledger's time is ahead of this machine's clock.
async fn ahead_s(net: &Net) -> i64 {
    let status = net.nodes[0].status_where("the node answers", |status| status["time_ms"].is_u64()).await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("later than 1970").as_secs();
    status["time_ms"].as_i64().expect("just seen") / 1_000 - i64::try_from(now).expect("soon")
}

#[test]
fn clocks_an_hour_off_change_ledger_time_only_when_more_nodes_have_them_than_may_lie() {
    block_on(async {
        let folder = tempfile::tempdir().expect("a folder");
        let preload = folder.path().join("preload.so");
        compile_preload("preload.c", &preload);
        let mut net = Net::new(5, record(), plain);
        let set = |nodes: &[usize], seconds: i64| {
            for at in nodes {
                fs::write(folder.path().join(at.to_string()), seconds.to_string()).expect("written");
            }
        };
        for (at, node) in net.nodes.iter_mut().enumerate() {
            let clock = folder.path().join(at.to_string());
            let preload = format!("LD_PRELOAD={}", preload.display());
            node.wrapper = vec!["env".to_owned(), preload, format!("HP_TEST_CLOCK={}", clock.display())];
        }
        set(&[3], HOUR_S);
        net.start_all().await;
        Crowd::around(&mut net, 5, async |net, crowd| {
            crowd.more_answers(10).await;
            assert!(ahead_s(net).await.abs() < 120, "one of five");
            // While they run, as when somebody sets them.
            set(&[3, 4], -HOUR_S);
            crowd.more_answers(10).await;
            assert!(ahead_s(net).await.abs() < 120, "two of five, behind");
            set(&[3, 4], HOUR_S);
            crowd.more_answers(10).await;
            assert!(ahead_s(net).await.abs() < 120, "two of five, ahead");
            set(&[2], HOUR_S);
            crowd.more_answers(10).await;
            assert!(ahead_s(net).await > HOUR_S - 120, "three of five are the network's clock");
            // Ledger time stands still until the clocks have come there.
            set(&[2, 3, 4], 0);
            crowd.more_answers(10).await;
            assert!(ahead_s(net).await > HOUR_S - 120, "it never goes back");
        })
        .await;
    });
}

#[test]
fn a_node_with_a_truncated_database_refuses_and_goes_on_with_a_copy_of_anothers_as_the_guide_says() {
    block_on(async {
        let mut net = Net::up_with(5, record(), plain).await;
        Crowd::around(&mut net, 3, async |net, crowd| {
            crowd.more_answers(30).await;
            net.nodes[4].signal(Signal::SIGTERM);
            assert_eq!(net.nodes[4].ended().await, Some(0));
            let file = net.nodes[4].dir.join("hist/ledger.db");
            let whole = fs::read(&file).expect("the database");
            for len in [whole.len() / 2, whole.len() - 1, 4_096, 100, 0] {
                fs::write(&file, &whole[..len]).expect("written");
                let (code, log) = net.nodes[4].start_fails().await;
                let said = log.lines().last().unwrap_or_default().to_owned();
                assert_eq!(code, Some(4), "cut to {len} of {} bytes: {said}", whole.len());
                assert!(said.contains("ledger.db") && said.contains("docs/operating.md"), "{said}");
            }
            crowd.more_answers(10).await;
            // "Too far behind": both stopped, hist/ and state/ of the other one.
            net.nodes[3].signal(Signal::SIGTERM);
            assert_eq!(net.nodes[3].ended().await, Some(0));
            for folder in ["hist", "state"] {
                fs::remove_dir_all(net.nodes[4].dir.join(folder)).expect("removed");
                copy_folder(&net.nodes[3].dir.join(folder), &net.nodes[4].dir.join(folder));
            }
            net.start_all().await;
            crowd.more_answers(10).await;
            // The copy does not say what this node has signed: it votes again when that cannot matter.
            net.nodes[4].status_where("it votes again", |status| status["silent"].is_null()).await;
            // It is one of the four that are needed.
            net.nodes[3].kill().await;
            crowd.more_answers(10).await;
            net.start_all().await;
        })
        .await;
    });
}

/// A small file system of its own at a folder, in name spaces that end with the child. What was in the folder stands in
/// it too. `None` where an ordinary user may not make one.
async fn small_disk(dir: &Path, size: &str) -> Option<tokio::process::Child> {
    let script = r#"mount -t tmpfs -o size="$1" none "$0" && echo ready && exec cat"#;
    let mut child = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", script])
        .arg(dir)
        .arg(size)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .ok()?;
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let line = timeout(DEADLINE, lines.next_line()).await.expect("it says something, or ends").expect("text");
    (line.as_deref() == Some("ready")).then_some(child)
}

/// Moves a node that was not started yet to a small disk of its own, which lasts as long as the child. `None`: as above.
pub async fn move_to_small_disk(node: &mut TestNode, size: &str) -> Option<tokio::process::Child> {
    let config = fs::read_to_string(node.dir.join("cfg/hp.cfg")).expect("there");
    let disk = small_disk(&node.dir, size).await?;
    let holder = disk.id().expect("it runs");
    node.dir = Path::new(&format!("/proc/{holder}/root")).join(node.dir.strip_prefix("/").expect("absolute"));
    node.wrapper =
        ["nsenter", "-t", &holder.to_string(), "-U", "-m", "--preserve-credentials"].map(str::to_owned).to_vec();
    // What happens when it is full is what such tests are about, not what keeps it from being.
    let config = match config.contains("\ndisk_reserve_mb = 256\n") {
        true => config.replace("\ndisk_reserve_mb = 256\n", "\ndisk_reserve_mb = 0\n"),
        false => config,
    };
    write_config(&node.dir, &config);
    Some(disk)
}

/// Writes until nothing more fits.
fn fill(file: &Path) {
    let mut ballast = fs::File::create(file).expect("a file");
    while ballast.write_all(&[0; 4_096]).is_ok() {}
}

#[test]
fn a_full_disk_stops_the_node_before_it_votes_for_what_came_of_it_and_with_room_it_goes_on() {
    block_on(async {
        let mut net = Net::new(5, record(), plain);
        let Some(_disk) = move_to_small_disk(&mut net.nodes[4], "64m").await else {
            return println!("skipped: no name spaces for users here");
        };
        net.start_all().await;
        Crowd::around(&mut net, 5, async |net, crowd| {
            crowd.more_answers(20).await;
            let ballast = net.nodes[4].dir.join("ballast");
            fill(&ballast);
            assert_eq!(net.nodes[4].ended().await, Some(1));
            crowd.more_answers(20).await;
            let (code, log) = net.nodes[4].start_fails().await;
            assert_eq!(code, Some(1), "there is no room yet");
            assert!(log.contains("make room") || log.contains("disk is full"), "{log}");
            fs::remove_file(ballast).expect("removed");
            net.start_all().await;
            crowd.follow(net);
            crowd.more_answers(20).await;
            let status = net.nodes[4].status_where("it answers", |status| status["seq"].is_u64()).await;
            assert_eq!(status["diverged"], false, "it voted for nothing that a full disk led to");
        })
        .await;
        for node in &mut net.nodes {
            node.kill().await;
        }
    });
}

#[test]
fn a_node_whose_disk_is_nearly_full_stops_by_itself_and_goes_on_by_itself() {
    block_on(async {
        let mut net = Net::new(4, record(), |node, document| {
            document.set("consensus.threshold", "75");
            if node == 3 {
                // Of this disk a quarter counts: 24 MiB.
                document.set("disk_reserve_mb", "100");
            }
        });
        let Some(_disk) = move_to_small_disk(&mut net.nodes[3], "96m").await else {
            return println!("skipped: no name spaces for users here");
        };
        net.start_all().await;
        Crowd::around(&mut net, 3, async |net, crowd| {
            crowd.more_answers(5).await;
            let mut user = net.nodes[3].user().await;
            let mut signed = net.nodes[3].signed(&SecretKey::generate()).await;
            let ballast = net.nodes[3].dir.join("ballast");
            // Above what ends a node, below what it keeps free.
            fs::write(&ballast, vec![7; 64 << 20]).expect("there is room for that");
            let paused = |status: &Value| status["disk"]["paused"] == true;
            let status = net.nodes[3].status_where("it stops", paused).await;
            let alerts = status["alerts"].to_string();
            assert!(alerts.contains("the disk is nearly full") && alerts.contains("disk_reserve_mb"), "{alerts}");
            let stopped = status["seq"].as_u64().expect("a number");
            assert_eq!(status["alert_kinds"], json!(["disk_full"]), "{alerts}");
            // The others go on without it, and it answers all the time, and refuses what it cannot keep.
            crowd.more_answers(10).await;
            user.send("one more").await;
            let (code, why) = user.error().await;
            assert!(code == "busy" && why.contains("nearly full"), "{code}: {why}");
            signed.outputs_since(1, stopped - 1).await;
            let stands = |status: &Value| {
                assert_eq!((status["seq"].as_u64(), &status["disk"]["paused"]), (Some(stopped), &Value::Bool(true)));
                true
            };
            net.nodes[3].status_where("it answers", stands).await;
            let said = net.nodes[3].call(&["status"]).await;
            assert!(said.out.contains("DISK FULL") && said.out.contains("(disk_full)"), "{}", said.out);
            // A restart changes nothing about it.
            net.nodes[3].kill().await;
            net.nodes[3].start().await;
            net.nodes[3]
                .status_where("it is linked", |status| stands(status) && status["live"].as_array().unwrap().len() == 4)
                .await;
            crowd.more_answers(10).await;
            net.nodes[3].status_where("it answers", stands).await;
            fs::remove_file(ballast).expect("removed");
            let goes_on = |status: &Value| {
                status["disk"]["paused"] == false
                    && status["synced"] == true
                    && status["unexecuted"] == 0
                    && status["seq"].as_u64() > Some(stopped + 5)
                    && !status["alerts"].to_string().contains("the disk is nearly full")
            };
            let status = net.nodes[3].status_where("it goes on", goes_on).await;
            assert_eq!(status["diverged"], false);
            // It is one of the three that are needed.
            net.nodes[2].kill().await;
            crowd.more_answers(10).await;
            net.start_all().await;
            crowd.follow(net);
        })
        .await;
        for node in &mut net.nodes {
            node.kill().await;
        }
    });
}

#[test]
fn a_service_manager_hears_that_a_node_is_up_lives_and_stops() {
    block_on(async {
        let mut net = Net::new(1, record(), plain);
        let node = &mut net.nodes[0];
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).expect("a socket");
        let heard = async || {
            let mut bytes = [0; 4_096];
            let len = timeout(DEADLINE, manager.recv(&mut bytes)).await.expect("in time").expect("a datagram");
            String::from_utf8(bytes[..len].to_vec()).expect("text")
        };
        node.wrapper =
            ["env", &format!("NOTIFY_SOCKET={}", path.display()), "WATCHDOG_USEC=400000"].map(str::to_owned).to_vec();
        node.start().await;
        let ready = heard().await;
        assert!(ready.starts_with("READY=1\nSTATUS=ledger ") && ready.contains(" 1 of 1 members live"), "{ready}");
        node.user().await.ask("are you there").await;
        let mut beats = 0;
        while beats < 3 {
            beats += usize::from(heard().await.starts_with("WATCHDOG=1\n"));
        }
        node.signal(Signal::SIGTERM);
        while !heard().await.starts_with("STOPPING=1\n") {}
        assert_eq!(node.ended().await, Some(0));
    });
}
