//! What operators see of real nodes: status as it changes, metrics, and a log level that changes while the node runs.

use std::{collections::BTreeSet, fs, process::Stdio};

use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{ChildStdout, Command},
    time::timeout,
};

use crate::{
    net::{DEADLINE, Net, block_on, call, hp, send_signal},
    screen::Screen,
};

/// The next line of which this is so.
async fn line(lines: &mut Lines<BufReader<ChildStdout>>, is: impl Fn(&str) -> bool) -> String {
    let wanted = async {
        loop {
            let line = lines.next_line().await.expect("text").expect("it goes on");
            if is(&line) {
                return line;
            }
        }
    };
    timeout(DEADLINE, wanted).await.expect("the line comes in time")
}

#[test]
fn a_watcher_hears_of_each_change_and_a_node_that_was_down_comes_back() {
    block_on(async {
        let mut net = Net::up(2).await;
        let dirs: Vec<String> = net.nodes.iter().map(|node| node.dir.display().to_string()).collect();
        let mut watching = Command::new(hp())
            .args(["status", "--watch", &dirs[0], &dirs[1]])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("it starts");
        let mut lines = BufReader::new(watching.stdout.take().expect("piped")).lines();
        let (up, down) = (format!("{}: in sync, ledger ", dirs[1]), format!("{}: down: ", dirs[1]));
        line(&mut lines, |line| line.starts_with(&up) && line.contains(", 2/2 live")).await;
        let mut user = net.nodes[0].user().await;
        user.ask("x").await;
        let closed = format!("{}: in sync, ledger ", dirs[0]);
        line(&mut lines, |line| line.starts_with(&closed) && line.contains(", 1 users, last run ok in ")).await;
        net.nodes[1].kill().await;
        line(&mut lines, |line| line.starts_with(&down)).await;
        line(&mut lines, |line| line.starts_with(&closed) && line.contains(", 1/2 live") && line.contains("1 alerts"))
            .await;
        net.start_all().await;
        line(&mut lines, |line| line.starts_with(&up)).await;
        send_signal(watching.id().expect("it runs"), Signal::SIGTERM);
        let ended = timeout(DEADLINE, watching.wait()).await.expect("in time").expect("it ends");
        assert!(ended.success(), "{ended}");

        net.nodes[1].kill().await;
        let shown = call(&["status", &dirs[0], &dirs[1], "--json"]).await;
        assert_eq!(shown.code, Some(6), "one of them does not answer");
        let one: Value = serde_json::from_str(shown.out.lines().next().expect("the other does")).expect("an object");
        assert_eq!((one["folder"].as_str(), shown.out.lines().count()), (Some(dirs[0].as_str()), 1));
        assert!(shown.err.contains("no node runs in"), "{}", shown.err);
    });
}

#[test]
fn a_running_node_serves_what_the_dashboard_shows_and_takes_another_log_level() {
    block_on(async {
        let net = Net::up(3).await;
        let mut user = net.nodes[0].user().await;
        user.ask("x").await;
        // A vote that is late is counted for who is late, and nothing is settled here.
        const NOT_ALWAYS: [&str; 7] = [
            "hotpocket_votes_late_total",
            "hotpocket_votes_missing_total",
            "hotpocket_settlements_left",
            "hotpocket_unsettled_ledgers",
            "hotpocket_oldest_unsettled_seconds",
            "hotpocket_bus_reachable",
            "hotpocket_settled_seq",
        ];
        let dashboard = include_str!("../../../scripts/grafana.json");
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let shown: BTreeSet<&str> =
            dashboard.split(|c| !is_name(c)).filter(|word| word.starts_with("hotpocket_")).collect();
        let served = net.nodes[0].call(&["status", "--metrics"]).await.out;
        let served: BTreeSet<&str> = served
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split(['{', ' ']).next())
            .collect();
        let missing: Vec<&&str> =
            shown.iter().filter(|name| !served.contains(*name) && !NOT_ALWAYS.contains(name)).collect();
        assert!(missing.is_empty() && shown.len() > 25, "{missing:?}");

        let file = net.nodes[0].dir.join("cfg/hp.cfg");
        let text = fs::read_to_string(&file).expect("there");
        let before = text.lines().find(|line| line.starts_with("level = ")).expect("it is in the file");
        fs::write(&file, text.replace(before, "level = \"trace\"").replace("queue_kb = 1024", "queue_kb = 1025"))
            .expect("written");
        net.nodes[0].signal(Signal::SIGHUP);
        net.nodes[0].logs(&["log.level has changed"]).await;
        net.nodes[0].logs(&["needs a restart", "user.queue_kb"]).await;
        fs::write(&file, text.replace("hotpocket = \"0.1\"", "hotpocket = \"9\"")).expect("written");
        net.nodes[0].signal(Signal::SIGHUP);
        net.nodes[0].logs(&["the configuration is wrong"]).await;
        user.ask("y").await;
        fs::write(&file, text).expect("written");
    });
}

#[test]
fn however_the_view_ends_the_terminal_is_as_it_was() {
    block_on(async {
        let mut net = Net::up(1).await;
        let dir = net.nodes[0].dir.display().to_string();
        type End = fn(&mut Screen);
        let ends: [(&str, End); 5] = [
            ("q", |screen| screen.keys("q")),
            ("Ctrl-C", |screen| screen.keys("\x03")),
            ("SIGTERM", |screen| screen.signal(Signal::SIGTERM)),
            ("SIGINT", |screen| screen.signal(Signal::SIGINT)),
            ("SIGHUP", |screen| screen.signal(Signal::SIGHUP)),
        ];
        for (name, end) in ends {
            let mut screen = Screen::of(&["status", "--watch", &dir]);
            // The other screen, on which it draws.
            screen.shows("\x1b[?1049h");
            screen.shows("node0");
            assert!(!screen.is_line_wise(), "{name}");
            end(&mut screen);
            screen.shows("\x1b[?1049l");
            assert_eq!(screen.ended(), Some(0), "{name}");
            assert!(screen.is_line_wise(), "{name}");
        }
        // A node that goes is shown as gone, and the view stays.
        let mut screen = Screen::of(&["status", "--watch", &dir]);
        screen.shows("in sync");
        net.nodes[0].kill().await;
        screen.shows(" Down ");
        screen.keys("q");
        assert_eq!(screen.ended(), Some(0));
    });
}
