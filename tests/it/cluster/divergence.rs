//! Contracts that do not do the same everywhere: who differs is told, and in what, to the byte; and nobody agrees on
//! nonsense.

use std::{fs, path::Path};

use hotpocket::{config::quoted, crypto::SecretKey, signed::Reply};
use serde_json::Value;

use crate::net::{Net, TestNode, block_on, call, copy_program, probe, until};

fn alerts(status: &Value) -> String {
    let alerts = status["alerts"].as_array().cloned().unwrap_or_default();
    alerts.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("\n")
}

/// The report of a node, once it is so. Needs no running node.
async fn report(node: &TestNode, what: &str, is: impl Fn(&Value) -> bool) -> Value {
    until(what, async || {
        let shown = call(&["diverge", "show", node.dir.to_str().expect("UTF-8"), "--json"]).await;
        serde_json::from_str::<Value>(&shown.out).ok().filter(|report| is(report))
    })
    .await
}

/// What is known of one path, against whichever other group.
fn difference_at<'a>(report: &'a Value, path: &str) -> Vec<&'a Value> {
    let compared = report["compared"].as_array().expect("a list");
    let paths = compared.iter().flat_map(|comparison| comparison["paths"].as_array().expect("a list"));
    paths.filter(|difference| difference["path"] == path).collect()
}

#[test]
fn a_split_of_all_nodes_stops_ledgers_and_every_node_says_where_it_differs() {
    block_on(async {
        let mut net = Net::up_with(3, probe(), |_, config| {
            config.set("roundtime", "200");
        })
        .await;
        let mut user = net.nodes[0].user().await;
        assert_eq!(user.ask("four").await, "4 4");
        user.send("differ").await;
        for node in &net.nodes {
            let what = "the node says that and where it differs";
            let told = |status: &Value| status["split"] == true && alerts(status).contains("state/differ");
            node.status_where(what, told).await;
            let told = call(&["status", node.dir.to_str().expect("UTF-8")]).await;
            assert_eq!(told.code, Some(0));
            assert!(
                told.out.contains("SPLIT") && told.out.contains("ALERT") && told.out.contains("state/differ"),
                "{}",
                told.out
            );
            let metrics = call(&["status", node.dir.to_str().expect("UTF-8"), "--metrics"]).await.out;
            assert!(
                metrics.contains("\nhotpocket_halts_total 1\n") && metrics.contains("\nhotpocket_split 1.0\n"),
                "{metrics}"
            );
        }
        let (code, message) = user.error().await;
        assert!(code == "halted" && message.contains("nothing is lost"), "{code}: {message}");
        for node in &net.nodes {
            let why = "each node shows the bytes of the two others, and what they look like";
            let shown = report(node, why, |report| {
                let proven = |at: &&Value| at["theirs"]["proof"] == "proven" && at["offset"].is_u64();
                difference_at(report, "differ").iter().filter(|at| proven(at)).count() == 2
            })
            .await;
            assert_eq!((&shown["kind"], shown["groups"].as_array().map(Vec::len)), (&"split".into(), Some(3)));
            let key = status_key(node).await;
            for difference in difference_at(&shown, "differ") {
                let bytes = |side: &str| {
                    let hex = difference[side]["hex"].as_str().expect("bytes");
                    String::from_utf8(hex::decode(hex).expect("hex")).expect("text")
                };
                let (mine, theirs) = (bytes("mine_bytes"), bytes("theirs_bytes"));
                let at = usize::try_from(difference["offset"].as_u64().expect("a number")).expect("small");
                assert_eq!((&mine, theirs.len()), (&key, 64));
                assert!(mine[..at] == theirs[..at] && mine[at..=at] != theirs[at..=at], "{mine} {theirs} at {at}");
                assert!(difference["looks_like"].to_string().contains("public key"), "{difference}");
            }
            let text = call(&["diverge", "show", node.dir.to_str().expect("UTF-8")]).await.out;
            let root = shown["groups"][0]["state_root"].as_str().expect("a root");
            assert!(text.contains("SPLIT") && text.contains(&format!("--root {root}")), "{text}");
            assert!(!text.contains('\x1b'), "no colours in a pipe");
        }

        // A restart asks again, and keeps what was found.
        net.nodes[1].kill().await;
        net.nodes[1].start().await;
        net.nodes[1].status_where("it is split again", |status| status["split"] == true).await;
        let mut late = net.nodes[1].user().await;
        assert_eq!(late.error().await.0, "halted", "whoever comes is told");

        let (seq, _) = (net.nodes[0].seq().await, user.send("more").await);
        let up = |status: &Value| status["up_s"].as_u64().expect("a number");
        let now = up(&net.nodes[0].status().await.expect("it is up"));
        // Ten times the round time.
        net.nodes[0].status_where("time goes by", |status| up(status) >= now + 3).await;
        for node in &net.nodes {
            assert_eq!(node.seq().await, seq, "no ledger after the split");
        }
    });
}

#[test]
fn one_of_four_that_differs_says_so_with_the_path_and_the_others_go_on() {
    block_on(async {
        let folder = tempfile::tempdir().expect("a folder");
        let odd = folder.path().join("odd");
        copy_program(probe(), &odd);
        let mut net = Net::up_with(4, probe(), |at, config| {
            config.set("consensus.threshold", "75");
            if at == 3 {
                config.set("binary", &quoted(odd.to_str().expect("UTF-8")));
            }
        })
        .await;
        let mut user = net.nodes[0].user().await;
        assert_eq!(user.ask("four").await, "4 4");
        net.agree().await;
        assert_eq!(user.ask("odd").await, "3 7");
        for round in 1..=5 {
            assert_eq!(user.ask("more").await, format!("4 {}", 7 + 4 * round), "the others go on");
        }
        let told = |status: &Value| {
            let alerts = alerts(status);
            alerts.contains("differs from the network's") && alerts.contains("state/odd")
        };
        net.nodes[3].status_where("the node says that and where it differs", told).await;
        let metrics = call(&["status", net.nodes[3].dir.to_str().expect("UTF-8"), "--metrics"]).await.out;
        let of = |name: &str| metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
        assert!(of("hotpocket_divergences_total ").is_some_and(|count| count >= 1.0), "{metrics}");
        assert_eq!(of("hotpocket_halts_total "), Some(0.0), "the others went on");
        let line = net.nodes[3].logs(&["the differing state is kept"]).await;
        let path =
            line.split("path=").nth(1).expect("a path").split_whitespace().next().expect("a path").trim_matches('"');
        let odd_state = Path::new(path).join("state/odd");
        assert_eq!(fs::read_to_string(&odd_state).expect("it is kept"), "/odd");

        for node in &net.nodes {
            let why = "every node knows who differs, and in what";
            let shown = report(node, why, |report| {
                report["groups"].as_array().is_some_and(|groups| groups.len() == 2)
                    && difference_at(report, "odd").len() == 1
                    && difference_at(report, "odd")[0]["theirs_bytes"].is_object()
            })
            .await;
            let is_odd = node.dir == net.nodes[3].dir;
            assert_eq!(shown["kind"], if is_odd { "diverged" } else { "others" });
            assert_eq!(shown["groups"][0]["agreed"], true);
            let odd = difference_at(&shown, "odd")[0];
            let text =
                |side: &str| String::from_utf8(hex::decode(odd[side]["hex"].as_str().unwrap()).unwrap()).unwrap();
            let (mine, theirs) = if is_odd { ("/odd", "/probe") } else { ("/probe", "/odd") };
            assert_eq!((text("mine_bytes"), text("theirs_bytes")), (mine.to_owned(), theirs.to_owned()));
            assert_eq!((&odd["offset"], &odd["theirs"]["proof"]), (&1.into(), &"proven".into()));
        }

        // It goes on with the network's state, and the quorum needs it.
        let healed = |status: &Value| status["diverged"] == false && status["synced"] == true;
        net.nodes[3].status_where("it has the network's state", healed).await;
        net.nodes[1].kill().await;
        assert_eq!(user.ask("more").await, "4 31");
        net.agree().await;
        for node in [&net.nodes[0], &net.nodes[2], &net.nodes[3]] {
            assert_eq!((node.state("odd"), node.state("inputs")), ("/probe".to_owned(), "31".to_owned()));
        }
        assert_eq!(fs::read_to_string(&odd_state).expect("it is kept"), "/odd");

        // A third time is no accident: it waits before it fetches the state once more, and says what to do.
        net.nodes[1].start().await;
        assert_eq!(user.ask("odd").await, "3 34");
        net.nodes[3].logs(&["ledger", "differs from the network's"]).await;
        net.nodes[3].status_where("it has the network's state again", healed).await;
        assert_eq!(user.ask("odd").await, "3 37");
        let status = net.nodes[3].status_where("it waits", |status| status["fetches_state_in_s"].is_u64()).await;
        assert_eq!((&status["diverging"], &status["fetching_state"]), (&true.into(), &Value::Null));
        assert!(alerts(&status).contains("compare the executable"), "{status}");
        assert_eq!(user.ask("more").await, "4 41", "the others go on, and it votes with them");
        let seq = net.nodes[0].seq().await;
        net.nodes[3].status_where("it follows", |status| status["seq"].as_u64() >= Some(seq)).await;
    });
}

async fn status_key(node: &TestNode) -> String {
    node.status().await.expect("it is up")["node"].as_str().expect("a key").to_owned()
}

/// Three say one thing, one another, and the fifth, which decides, is down: the network stands, says so, and goes on by
/// itself when the fifth is back.
#[test]
fn a_missing_result_completes_a_quorum_and_everybody_is_told_before_and_after() {
    block_on(async {
        let folder = tempfile::tempdir().expect("a folder");
        let odd = folder.path().join("odd");
        copy_program(probe(), &odd);
        let mut net = Net::up_with(5, probe(), |at, config| {
            if at == 3 {
                config.set("binary", &quoted(odd.to_str().expect("UTF-8")));
            }
        })
        .await;
        let mut user = net.nodes[0].user().await;
        assert_eq!(user.ask("four").await, "4 4");
        net.agree().await;
        let mut signed = net.nodes[3].signed(&SecretKey::from_seed([9; 32])).await;
        net.nodes[4].kill().await;
        user.send("odd").await;
        for node in &net.nodes[..4] {
            let status = node.status_where("it says that it stands", |status| status["halted"].is_u64()).await;
            assert!(alerts(&status).contains("split 2 ways") && status["split"] == false, "{status}");
            assert!(call(&["status", node.dir.to_str().expect("UTF-8")]).await.out.contains("HALTED"));
        }
        assert_eq!(user.error().await.0, "halted");
        let halted = |reply: Reply| matches!(reply, Reply::Error(error) if error.code == "halted");
        assert!(halted(signed.recv().await), "in signed mode too");
        // An input that comes now is held.
        user.send("more").await;
        let mut late = net.nodes[1].user().await;
        assert_eq!(late.error().await.0, "halted", "whoever comes is told");

        net.nodes[4].start().await;
        assert_eq!((user.error().await.0, user.text().await), ("resumed".to_owned(), "3 7".to_owned()));
        assert_eq!((user.text().await, late.error().await.0), ("4 11".to_owned(), "resumed".to_owned()));
        let resumed = |reply: Reply| matches!(reply, Reply::Error(error) if error.code == "resumed");
        assert!(resumed(signed.recv().await));
        assert!(matches!(net.nodes[1].user().await.ask("new").await.split_once(' '), Some(("3", "14"))), "as ever");
        for node in &net.nodes[..3] {
            node.status_where("it goes on", |status| status["halted"].is_null() && !alerts(status).contains("split"))
                .await;
            let shown = report(node, "what it was stays", |report| report["kind"] == "others").await;
            assert_eq!(shown["groups"][0]["nodes"].as_array().map(Vec::len), Some(4), "{shown}");
        }
        let shown = report(&net.nodes[3], "and the other knows", |report| report["kind"] == "diverged").await;
        assert_eq!(shown["groups"][1]["nodes"].as_array().map(Vec::len), Some(1), "{shown}");
        net.nodes[3].kill().await;
        net.agree().await;
    });
}
