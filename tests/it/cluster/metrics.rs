//! What Prometheus reads of real nodes.

use std::collections::{BTreeMap, BTreeSet};

use super::http::{client, with_http};
use crate::net::{Net, TestNode, block_on, call, probe, until};

const OPEN: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a node serves to who accepts this: kind and text.
async fn scrape(node: &TestNode, accept: &str) -> (String, String) {
    let response =
        client().get(format!("{}/metrics", node.http)).header("accept", accept).send().await.expect("an answer");
    assert_eq!(response.status().as_u16(), 200);
    let kind = response.headers()["content-type"].to_str().expect("text").to_owned();
    (kind, response.text().await.expect("text"))
}

/// The samples by name and labels. Panics when a line is none, or one comes twice.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line:?} is no sample"));
        let value = value.parse().unwrap_or_else(|_| panic!("{line:?} has no number"));
        assert_eq!(samples.insert(name.to_owned(), value), None, "{name} comes twice");
    }
    samples
}

/// Names of families, by the lines that tell their kind.
fn families(text: &str) -> BTreeSet<&str> {
    text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect()
}

/// Values of a label.
fn labels<'a>(samples: &'a BTreeMap<String, f64>, label: &str) -> BTreeSet<&'a str> {
    let begin = format!("{label}=\"");
    samples.keys().filter_map(|name| name.split(&begin).nth(1)?.split('"').next()).collect()
}

#[test]
fn prometheus_reads_what_happens_with_names_that_are_documented_and_labels_that_are_bounded() {
    block_on(async {
        let net = Net::up_with(2, probe(), with_http).await;
        let node = &net.nodes[0];
        net.closed(1).await;
        let (kind, before) = scrape(node, "text/plain").await;
        assert_eq!(kind, PLAIN);
        let before = samples(&before);
        let mut user = node.user().await;
        assert_eq!(user.ask("hello").await, "5 5");
        net.agree().await;
        let (_, text) = scrape(node, "*/*").await;
        let after = samples(&text);
        let grown = |name: &str| after[name] - before[name];
        for (name, by) in [
            ("hotpocket_inputs_total", 1.0),
            ("hotpocket_inputs_bytes_total", 5.0),
            ("hotpocket_outputs_total", 1.0),
            ("hotpocket_outputs_bytes_total", 3.0),
            ("hotpocket_users", 1.0),
            ("hotpocket_users_local", 1.0),
        ] {
            assert_eq!(grown(name), by, "{name}");
        }
        for name in [
            "hotpocket_round_seconds_count",
            "hotpocket_round_seconds_sum",
            "hotpocket_stage_seconds_count{stage=\"prevote\"}",
            "hotpocket_stage_seconds_sum{stage=\"executing\"}",
            "hotpocket_contract_runs_total{status=\"ok\"}",
            "hotpocket_contract_run_seconds_sum",
            "hotpocket_state_hash_seconds_count",
            "hotpocket_commit_seconds_count",
            "hotpocket_ledger_seq",
            "hotpocket_received_bytes_total",
            "hotpocket_sent_frames_total",
        ] {
            assert!(grown(name) > 0.0, "{name} stands at {}", after[name]);
        }
        for (name, value) in [
            ("hotpocket_synced", 1.0),
            ("hotpocket_members_live", 2.0),
            ("hotpocket_quorum", 2.0),
            ("hotpocket_links", 1.0),
            ("hotpocket_divergences_total", 0.0),
            ("hotpocket_halts_total", 0.0),
        ] {
            assert_eq!(after[name], value, "{name}");
        }
        user.send("fail").await;
        until("the failed run is counted", async || {
            let seen = samples(&scrape(node, "*/*").await.1);
            (seen["hotpocket_contract_runs_total{status=\"exit\"}"] == 1.0).then_some(())
        })
        .await;
        let statuses = BTreeSet::from(["exit", "limit", "ok", "signal", "time"]);
        assert_eq!(labels(&after, "status"), statuses);
        assert!(labels(&after, "peer").len() <= 2 && labels(&after, "vote").len() <= 4 && after.len() < 500, "{text}");

        // Every name is in the documents, and the other ways to read them have the same ones.
        let documents = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operating.md")).unwrap();
        for family in families(&text) {
            let is_there = [" ", "`", "{"].iter().any(|end| documents.contains(&format!("| `{family}{}", end.trim())));
            assert!(is_there, "{family} is not in docs/operating.md");
        }
        let told = call(&["status", node.dir.to_str().unwrap(), "--metrics"]).await;
        assert_eq!((told.code, families(&told.out)), (Some(0), families(&text)));
        let accept = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.4,*/*;q=0.1";
        let (kind, open) = scrape(node, accept).await;
        assert!(kind == OPEN && open.ends_with("# EOF\n") && open.contains("# UNIT hotpocket_round_seconds seconds\n"));
        assert!(samples(&open).keys().eq(samples(&scrape(node, "*/*").await.1).keys()));
    });
}
