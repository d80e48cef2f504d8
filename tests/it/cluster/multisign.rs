//! Nodes that sign with keys of their own: every node gives out one and the same set of signatures, or nothing.

use std::{fs, path::Path};

use hotpocket::{
    crypto::{self, SecretKey},
    types::Sig,
};
use serde_json::Value;

use crate::net::{Net, block_on, copy_program, plain, until};

/// A network of four around the example; the nodes in `with_key` have a key, all four are signers, `need` make a set.
async fn network(need: usize, with_key: &[usize]) -> (Net, Vec<SecretKey>, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join("contract");
    copy_program(&Path::new(env!("CARGO_MANIFEST_DIR")).join("contracts/multisign/multisign.js"), &program);
    let mut net = Net::new(4, &program, plain);
    let keys: Vec<SecretKey> = (0..4).map(|_| SecretKey::generate()).collect();
    let names: String = keys.iter().map(|key| format!("{}\n", key.node_key())).collect();
    for (at, node) in net.nodes.iter().enumerate() {
        fs::create_dir(node.dir.join("state")).expect("a folder");
        fs::write(node.dir.join("state/signers"), format!("need {need}\n{names}")).expect("written");
        fs::create_dir(node.dir.join("private")).expect("a folder");
        if with_key.contains(&at) {
            fs::write(node.dir.join("private/multisign.key"), hex::encode(keys[at].seed())).expect("written");
        }
    }
    net.start_all().await;
    (net, keys, folder)
}

/// The first complete set that a node's contract has printed.
async fn collected(net: &Net, at: usize) -> String {
    until("a set is complete", async || {
        let log = fs::read_to_string(net.nodes[at].dir.join("log/contract/stdout.log")).ok()?;
        log.split_inclusive('\n').find(|line| line.starts_with("set ") && line.ends_with('\n')).map(str::to_owned)
    })
    .await
}

/// Checks the line that users get: as many right signatures of signers as needed, in the order of their keys.
async fn check(net: &Net, keys: &[SecretKey], need: usize, line: &str) {
    let set: Value = serde_json::from_str(line.strip_prefix("signed ").expect(line)).expect("an object");
    assert_eq!((&set["id"], set["text"].as_str()), (&1.into(), Some("pay 5 to bob")));
    let status = net.nodes[0].status().await.expect("it runs");
    let contract = status["contract"].as_str().expect("an id").to_owned();
    let message = format!("hp-multisign/1\n{contract}\n1\npay 5 to bob");
    let found = set["signatures"].as_object().expect("an object");
    for (name, signature) in found {
        let key = keys.iter().find(|key| key.node_key().to_string() == *name).expect("a signer");
        let signature: Sig = signature.as_str().expect("text").parse().expect("a signature");
        assert!(crypto::verify(&key.node_key().0, message.as_bytes(), &signature), "{name}");
    }
    assert_eq!(found.len(), need);
    let at: Vec<usize> = found.keys().map(|name| line.find(name.as_str()).expect("it is there")).collect();
    assert!(at.is_sorted(), "in the order of the keys");
}

#[test]
fn all_nodes_give_out_the_one_complete_set_of_their_signatures() {
    block_on(async {
        let (net, keys, _folder) = network(4, &[0, 1, 2, 3]).await;
        let mut asker = net.nodes[0].user().await;
        assert_eq!(asker.ask("sign pay 5 to bob").await, "request 1\n");
        // Each node has collected the same set.
        let line = collected(&net, 1).await;
        for at in [0, 2, 3] {
            assert_eq!(collected(&net, at).await, line, "node {at}");
        }
        assert_eq!(net.nodes[3].user().await.ask(line.trim()).await, "ok 1\n");
        let signed = asker.text().await;
        check(&net, &keys, 4, signed.trim()).await;
        for node in &net.nodes {
            assert_eq!(node.user().await.ask("get 1").await, signed, "asked at another node");
        }
        net.agree().await;
        let books: Vec<String> = net.nodes.iter().map(|node| node.state("book.json")).collect();
        assert!(books.iter().all(|book| *book == books[0]), "{books:?}");
    });
}

#[test]
fn a_node_without_a_key_is_missed_where_all_must_sign_and_not_where_three_are_enough() {
    block_on(async {
        let (net, keys, _folder) = network(3, &[0, 1, 3]).await;
        let mut asker = net.nodes[2].user().await;
        assert_eq!(asker.ask("sign pay 5 to bob").await, "request 1\n");
        let line = collected(&net, 2).await;
        assert_eq!(net.nodes[2].user().await.ask(line.trim()).await, "ok 1\n");
        check(&net, &keys, 3, asker.text().await.trim()).await;
        net.agree().await;

        let (net, _, _folder) = network(4, &[0, 1, 3]).await;
        let mut asker = net.nodes[2].user().await;
        assert_eq!(asker.ask("sign pay 5 to bob").await, "request 1\n");
        until("three were heard", async || {
            let log = fs::read_to_string(net.nodes[2].dir.join("log/contract/stdout.log")).ok()?;
            log.contains("request 1: 3 of 4 signatures heard").then_some(())
        })
        .await;
        // The set of another network, under the same number.
        assert_eq!(asker.ask(line.trim()).await, "the set for 1 is not complete\n");
        assert_eq!(asker.ask("get 1").await, "pending 1\n");
        net.agree().await;
    });
}
