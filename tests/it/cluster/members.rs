//! Real networks whose UNL changes: by the operators' votes, by the contract, with kills in between.

use std::process::Stdio;

use hotpocket::{
    cli::client::{ClientError, Pins, Servers, SignedClient},
    crypto::SecretKey,
    signed::{AnswerBody, Query},
};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::Command,
    time::timeout,
};

use crate::net::{DEADLINE, Ended, Net, SignedUser, TestNode, block_on_for, call, hp, plain, probe, until};

/// The longest of these tests on a busy machine.
const LONGEST: std::time::Duration = std::time::Duration::from_secs(240);

/// A network of `members` and, behind them, `observers`, all up.
async fn network(members: usize, observers: usize) -> Net {
    let mut net = Net::new(members + observers, probe(), plain);
    let keys: Vec<String> = net.nodes[..members].iter().map(|node| format!("\"{}\"", key(node))).collect();
    for node in &net.nodes {
        node.edit_config(|text| with_list(&text, "unl", &keys));
    }
    net.start_all().await;
    net
}

fn key(node: &TestNode) -> String {
    node.secret.as_ref().expect("made by this test").node_key().to_string()
}

/// Verifies a node's chain with the second implementation, running its ledgers again, and gives how often the UNL changed.
async fn verified_changes(node: &TestNode) -> u64 {
    let ended = call(&["ledger", "verify", node.dir.to_str().expect("UTF-8"), "--json", "--replay"]).await;
    assert_eq!(ended.code, Some(0), "{}{}", ended.out, ended.err);
    let report: Value = serde_json::from_str(&ended.out).expect("one JSON object");
    assert_eq!(report["unchecked"], serde_json::json!([]), "{report}");
    report["unl_changes"].as_u64().expect("a number")
}

/// The configuration with another list under this key, whatever lines it stands on.
pub fn with_list(text: &str, key: &str, items: &[String]) -> String {
    let start = text.find(&format!("\n{key} = [")).expect("a list") + 1;
    let end = start + text[start..].find(']').expect("its end") + 1;
    format!("{}{key} = [{}]{}", &text[..start], items.join(", "), &text[end..])
}

async fn unl(node: &TestNode, args: &[&str]) -> Ended {
    let dir = node.dir.to_str().expect("a path in UTF-8");
    call(&[&["unl"], args, &[dir]].concat()).await
}

async fn vote(node: &TestNode, args: &[&str]) -> String {
    let ended = unl(node, args).await;
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{args:?}");
    ended.out
}

async fn refused(node: &TestNode, args: &[&str]) -> String {
    let ended = unl(node, args).await;
    assert_eq!((ended.code, ended.out.as_str()), (Some(1), ""), "{args:?}");
    ended.err
}

fn members(status: &Value) -> Vec<String> {
    status["unl"].as_array().expect("a list").iter().map(|node| node.as_str().expect("a key").to_owned()).collect()
}

/// Waits until a node decides with exactly these, in whatever order.
async fn decides_with(node: &TestNode, nodes: &[&TestNode]) {
    let mut expected: Vec<String> = nodes.iter().map(|node| key(node)).collect();
    expected.sort();
    node.status_where("the UNL is the new one", |status| members(status) == expected).await;
}

#[test]
fn a_sixth_node_is_voted_in_and_another_one_out_over_kills_and_the_one_that_left_goes_on_as_observer() {
    block_on_for(LONGEST, async {
        let mut net = network(5, 1).await;
        let mut total = 0;
        let mut say = async |node: &TestNode| {
            total += 5;
            assert_eq!(node.user().await.ask("hello").await, format!("5 {total}"));
        };
        say(&net.nodes[0]).await;
        net.nodes[5]
            .status_where("the sixth follows", |status| status["role"] == "observer" && status["seq"] != 0)
            .await;

        // Four of five is a quorum; the vote of the second outlives its process.
        let sixth = key(&net.nodes[5]);
        let told = vote(&net.nodes[0], &["add", &sixth]).await;
        assert!(told.contains(&format!("asked for: add {sixth}: 1 of 4 votes")), "{told}");
        assert!(told.contains("then UNL 6, quorum 5"), "{told}");
        vote(&net.nodes[1], &["add", &sixth]).await;
        net.nodes[1].kill().await;
        net.nodes[1].start().await;
        vote(&net.nodes[2], &["add", &sixth]).await;
        net.nodes[4]
            .status_where("three votes are seen", |status| {
                status["unl_changes"][0]["by"].as_array().is_some_and(|by| by.len() == 3)
            })
            .await;
        assert_eq!(members(&net.nodes[4].status().await.expect("it answers")).len(), 5, "three of five decide nothing");
        vote(&net.nodes[3], &["add", &sixth]).await;
        let all: Vec<&TestNode> = net.nodes.iter().collect();
        for node in &net.nodes {
            decides_with(node, &all).await;
        }
        net.nodes[5].status_where("the sixth is a member", |status| status["role"] == "member").await;
        assert!(refused(&net.nodes[0], &["add", &sixth]).await.contains("is a member already"));
        let listed = vote(&net.nodes[1], &["list"]).await;
        assert!(!listed.contains("asked for"), "the votes have done their work: {listed}");

        // The newcomer counts: with another member killed it is one of the five that are needed, and takes users.
        net.nodes[1].kill().await;
        say(&net.nodes[5]).await;
        net.nodes[1].start().await;
        say(&net.nodes[1]).await;

        // All that stay vote the first one out, the newcomer among them; one is killed when it has voted.
        let first = key(&net.nodes[0]);
        for at in 1..6 {
            vote(&net.nodes[at], &["remove", &first]).await;
            if at == 3 {
                net.nodes[at].kill().await;
                net.nodes[at].start().await;
            }
        }
        let rest: Vec<&TestNode> = net.nodes[1..].iter().collect();
        for node in &net.nodes {
            decides_with(node, &rest).await;
        }
        say(&net.nodes[3]).await;
        let (seq, _) = net.agree().await;
        let left = net.nodes[0].status_where("it follows", |status| status["seq"].as_u64() >= Some(seq)).await;
        assert_eq!(left["role"], "observer");
        assert!(refused(&net.nodes[0], &["add", &sixth]).await.contains("only members vote"));
        let mut user = net.nodes[0].user().await;
        user.send("hello").await;
        assert_eq!(user.error().await.0, "refused");
        for node in &net.nodes {
            until("the state is alike", async || (node.state("inputs") == net.nodes[3].state("inputs")).then_some(()))
                .await;
        }
        // Everything is on the disk: a power cut of all changes nothing, and the one that left stays an observer.
        net.kill_all().await;
        net.start_all().await;
        let rest: Vec<&TestNode> = net.nodes[1..].iter().collect();
        for node in &net.nodes {
            decides_with(node, &rest).await;
        }
        say(&net.nodes[5]).await;
        net.agree().await;

        // Somebody who comes from nothing knows the first members alone, and follows the chain through the changes; the
        // only address it has is that of a node which was none of them.
        let dir = net.nodes[0].dir.with_file_name("late");
        let (path, cfg) = (dir.to_str().expect("UTF-8"), net.nodes[5].dir.join("cfg/hp.cfg"));
        let made = call(&["new", path, "--join", cfg.to_str().expect("UTF-8"), "--pubport", "1"]).await;
        assert_eq!(made.code, Some(0), "{made:?}");
        assert!(made.out.contains("hp unl add "), "{}", made.out);
        let sixth = format!("127.0.0.1:{}", net.nodes[5].peer_port());
        let mut late = Net::of(tempfile::tempdir().expect("a folder"), vec![dir]);
        late.nodes[0].edit_config(|text| {
            let text = with_list(&text, "peers", &[format!("\"{sixth}\"")]);
            text.replace("pubport = 1\n", "pubport = 0\n").replacen("peerport = ", "peerport = 0 # ", 1)
        });
        late.start_all().await;
        let (seq, lcl) = net.agree().await;
        let same = |status: &Value| status["seq"].as_u64() > Some(seq) || status["lcl"] == lcl;
        late.nodes[0].status_where("it catches up", same).await;
        decides_with(&late.nodes[0], &net.nodes[1..].iter().collect::<Vec<_>>()).await;
        for node in [&net.nodes[0], &net.nodes[5], &late.nodes[0]] {
            assert_eq!(verified_changes(node).await, 2, "{}", node.dir.display());
        }
    });
}

#[test]
fn a_contract_asks_for_a_member_and_for_its_removal() {
    block_on_for(LONGEST, async {
        let net = network(3, 1).await;
        let fourth = key(&net.nodes[3]);
        net.nodes[3].status_where("it follows", |status| status["seq"] != 0).await;
        let mut user = net.nodes[0].user().await;
        user.ask(&format!("unl add {fourth}\n")).await;
        let all: Vec<&TestNode> = net.nodes.iter().collect();
        for node in &net.nodes {
            decides_with(node, &all).await;
        }
        user.ask("unl add me\n").await;
        let first = key(&net.nodes[0]);
        let mut other = net.nodes[3].user().await;
        other.ask(&format!("unl remove {first}\n")).await;
        for node in &net.nodes {
            decides_with(node, &all[1..]).await;
        }
        // What the contract sees: the three that are left.
        other.ask("who").await;
        net.agree().await;
        for node in &net.nodes {
            let seen: Vec<String> = serde_json::from_str(&node.state("unl")).expect("what it was given");
            let mut expected: Vec<String> = all[1..].iter().map(|node| key(node)).collect();
            expected.sort();
            assert_eq!(seen, expected);
        }
        for node in &net.nodes {
            assert_eq!(verified_changes(node).await, 2);
        }
        let log = net.nodes[1].log();
        assert!(log.contains("the contract's request is not understood"), "{log}");
    });
}

#[test]
fn an_operator_s_vote_that_makes_no_sense_is_refused_and_one_that_endangers_the_network_needs_a_word() {
    block_on_for(LONGEST, async {
        let mut net = network(2, 1).await;
        let stranger = SecretKey::generate().node_key().to_string();
        let node = &net.nodes[0];
        node.status_where("they are linked", |status| status["links"].as_array().is_some_and(|links| links.len() == 2))
            .await;
        for (args, why) in [
            (&["add", "12"][..], "is no key of a node"),
            (&["add", &"0".repeat(64)], "is no public key"),
            (&["remove", &stranger], "is no member"),
            (&["withdraw"], "votes for no change"),
            // It is nowhere: three members of which two live, and all three needed.
            (
                &["add", &stranger],
                "2 of 3 members would be live by this node's links, but the quorum would be 3 (--yes",
            ),
        ] {
            let error = refused(node, args).await;
            assert!(error.contains(why), "{args:?}: {error}");
        }
        let ended = unl(node, &["add", &stranger, "--peer", "nowhere"]).await;
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert!(refused(&net.nodes[2], &["remove", &key(node)]).await.contains("this node is an observer"));

        let told = vote(node, &["add", &stranger, "--yes", "--json"]).await;
        let told: Value = serde_json::from_str(&told).expect("one JSON line");
        assert_eq!((&told["vote"]["change"], &told["vote"]["node"]), (&"add".into(), &stranger.clone().into()));
        assert!(vote(node, &["list"]).await.contains("1 of 2 votes"));
        let status = call(&["status", node.dir.to_str().expect("a path")]).await.out;
        assert!(status.contains(&format!("unl vote  add {stranger}: 1 of 2 votes")), "{status}");
        // The vote is on the disk when the command ends.
        net.nodes[0].kill().await;
        net.nodes[0].start().await;
        let node = &net.nodes[0];
        assert!(vote(node, &["list"]).await.contains(&format!("asked for: add {stranger}")));
        vote(node, &["withdraw"]).await;
        net.nodes[1].status_where("no vote is seen", |status| status["unl_changes"] == serde_json::json!([])).await;
        assert_eq!(members(&node.status().await.expect("it answers")).len(), 2);
    });
}

#[test]
fn a_node_that_finds_nobody_by_itself_is_dialled_at_the_address_that_comes_with_the_vote() {
    block_on_for(LONGEST, async {
        let mut net = Net::new(3, probe(), plain);
        let keys: Vec<String> = net.nodes[..2].iter().map(|node| format!("\"{}\"", key(node))).collect();
        let addresses: Vec<String> =
            net.nodes.iter().map(|node| format!("\"127.0.0.1:{}\"", node.peer_port())).collect();
        for (at, node) in net.nodes.iter().enumerate() {
            node.edit_config(|text| {
                let peers = if at < 2 { &addresses[1 - at..=1 - at] } else { &[] };
                with_list(&with_list(&text, "unl", &keys), "peers", peers)
            });
        }
        net.start_all().await;
        net.nodes[0].status_where("the members are linked", |status| status["seq"] != 0).await;
        let third = key(&net.nodes[2]);
        let address = format!("127.0.0.1:{}", net.nodes[2].peer_port());
        let error = refused(&net.nodes[0], &["add", &third, "--peer", &address]).await;
        assert!(error.contains("2 of 3 members would be live") && error.contains("is dialled from now on"), "{error}");
        for node in &net.nodes[..2] {
            // The second is found by the third, which the first told of it.
            until("it observes", async || {
                vote(node, &["list"]).await.contains(&format!("observes {third}")).then_some(())
            })
            .await;
            vote(node, &["add", &third]).await;
        }
        for node in &net.nodes {
            decides_with(node, &net.nodes.iter().collect::<Vec<_>>()).await;
        }
        // All three are needed, and agree.
        assert_eq!(net.nodes[2].user().await.ask("four").await, "4 4");
        net.agree().await;
    });
}

#[test]
fn clients_follow_the_members_and_take_no_others_for_them() {
    block_on_for(LONGEST, async {
        let net = network(4, 1).await;
        let me = SecretKey::from_seed([7; 32]);
        let mut user = net.nodes[1].signed(&me).await;
        let began_with = user.client.trust().clone();
        let (chain, first_unl) = (began_with.chain_id(), began_with.unl().to_vec());
        let keys: Vec<String> = first_unl.iter().map(ToString::to_string).collect();
        let mut person = Command::new(hp())
            .args(["client", &net.nodes[2].url, "--json", "--unl", &keys.join(","), "--timeout", "100"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("hp starts");
        let mut typed = person.stdin.take().expect("piped");
        let mut shown = BufReader::new(person.stdout.take().expect("piped")).lines();
        let mut total = 0;
        // What both say is put out, and proven by whoever the members are then.
        let mut say = async |user: &mut SignedUser, nonce| {
            let request = user.input(nonce, "hello");
            user.send(&request).await;
            total += 5;
            assert_eq!(user.output().await.1, format!("5 {total}"));
            typed.write_all(b"word\n").await.expect("it reads");
            total += 5;
            let expected = format!("5 {total}");
            loop {
                let line = timeout(DEADLINE, shown.next_line()).await.expect("in time").expect("text").expect("a line");
                let event: Value = serde_json::from_str(&line).expect("an object");
                assert_ne!(event["event"], "disconnected", "{event}");
                if event["event"] == "output" {
                    assert_eq!(event["text"], expected);
                    break;
                }
            }
        };
        say(&mut user, 1).await;
        let (fifth, left) = (key(&net.nodes[4]), key(&net.nodes[0]));
        for node in &net.nodes[..4] {
            vote(node, &["add", &fifth]).await;
        }
        for node in &net.nodes {
            decides_with(node, &net.nodes.iter().collect::<Vec<_>>()).await;
        }
        say(&mut user, 2).await;
        for node in &net.nodes[1..] {
            vote(node, &["remove", &left]).await;
        }
        let rest: Vec<&TestNode> = net.nodes[1..].iter().collect();
        for node in &net.nodes {
            decides_with(node, &rest).await;
        }
        say(&mut user, 3).await;
        drop(typed);
        assert_eq!(timeout(DEADLINE, person.wait()).await.expect("it ends").expect("a status").code(), Some(0));
        let mut expected: Vec<String> = rest.iter().map(|node| key(node)).collect();
        expected.sort();
        let followed: Vec<String> = user.client.trust().unl().iter().map(ToString::to_string).collect();
        assert_eq!(followed, expected);

        // Who comes later is shown how they followed those of the beginning, and can check what was put out under each.
        let node = &net.nodes[4];
        let pins = |unl| Pins { chain: Some(chain), unl };
        let late = SignedClient::connect(&node.url, &me, &pins(None)).await.expect("proven by the chain's name");
        assert_eq!(late.trust(), user.client.trust());
        let mut late = SignedUser { client: late, key: me.clone() };
        let AnswerBody::Outputs(page) = late.ask(Query::Outputs { since: 0 }).await else { panic!("outputs") };
        assert_eq!(page.outputs.len(), 3);
        let by_members = SignedClient::connect(&node.url, &me, &pins(Some(first_unl.clone()))).await;
        assert_eq!(by_members.expect("proven by those of then").trust().unl(), late.client.trust().unl());
        let servers = Servers::default();
        let again = SignedClient::connect_again(&node.url, &me, &Pins::default(), &servers, Some(&began_with)).await;
        assert_eq!(again.expect("proven by what was known").trust(), late.client.trust());
        let strangers = Some(vec![SecretKey::from_seed([9; 32]).node_key()]);
        let refused = SignedClient::connect(&node.url, &me, &pins(strangers)).await;
        assert!(matches!(refused, Err(ClientError::Trust { .. })), "{refused:?}");
    });
}
