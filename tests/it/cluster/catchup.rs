//! Nodes that are far behind a network: they fetch, check and run what they lack, whatever happens to them meanwhile.

use std::path::Path;

use hotpocket::{
    consensus::messages::{Get, Message, Range, StatusMsg},
    crypto::SecretKey,
    mesh::{Class, MeshEvent},
    types::Hash,
    wire,
};
use serde_json::Value;

use super::bad_input::Impostor;
use crate::{
    chain::{CONTRACT, Chain, Shape},
    net::{Net, block_on, plain},
};

/// A network of four, of which the first three are so far ahead, and up; the fourth has an empty folder.
async fn ahead(shape: Shape) -> (Net, Chain) {
    let mut net = Net::new(4, Path::new(CONTRACT), |_, config| {
        config.set("consensus.threshold", "75");
    });
    let chain = Chain::new(&net.nodes, shape);
    for node in &mut net.nodes[..3] {
        chain.write(node);
        node.start().await;
    }
    (net, chain)
}

fn is_done(shape: Shape) -> impl Fn(&Value) -> bool {
    move |status| status["seq"].as_u64() >= Some(shape.len) && status["unexecuted"] == 0
}

#[test]
fn a_new_folder_that_joins_late_fetches_and_checks_every_ledger_and_is_a_member_like_the_others() {
    block_on(async {
        let shape = Shape { len: 600, input_every: 7, large_at: Some(300) };
        let (mut net, _) = ahead(shape).await;
        net.nodes[3].start().await;
        let status = net.nodes[3].status_where("it is there", is_done(shape)).await;
        assert_eq!((&status["diverged"], &status["liars"]), (&Value::Bool(false), &Value::Array(vec![])));
        net.nodes[3].logs(&["fetching the state from other nodes"]).await;
        // It is a member like the others from here on: the quorum needs it.
        net.nodes[0].kill().await;
        let (seq, _) = net.agree().await;
        net.closed(seq + 2).await;
    });
}

#[test]
fn kills_in_the_middle_of_catching_up_cost_nothing_but_time() {
    block_on(async {
        let shape = Shape { len: 800, input_every: 9, large_at: None };
        let (mut net, _) = ahead(shape).await;
        let mut reached = 0;
        let mut in_the_middle = 0;
        for _ in 0..4 {
            net.nodes[3].start().await;
            let further = |status: &Value| {
                let executed = status["seq"].as_u64().unwrap_or(0) - status["unexecuted"].as_u64().unwrap_or(0);
                executed > reached || status["unexecuted"] == 0 && status["seq"].as_u64() >= Some(shape.len)
            };
            let status = net.nodes[3].status_where("it has run more", further).await;
            reached = status["seq"].as_u64().expect("a number") - status["unexecuted"].as_u64().expect("a number");
            in_the_middle += u64::from(reached < shape.len);
            net.nodes[3].kill().await;
        }
        assert!(in_the_middle > 0, "it was killed while it was behind");
        net.nodes[3].start().await;
        net.nodes[3].status_where("it is there", is_done(shape)).await;
        net.agree().await;
    });
}

#[test]
fn a_node_that_sends_false_ledgers_is_named_and_the_others_are_asked() {
    block_on(async {
        let shape = Shape { len: 300, input_every: 5, large_at: None };
        let mut net = Net::new(5, Path::new(CONTRACT), |_, config| {
            config.set("consensus.threshold", "80");
        });
        let chain = Chain::new(&net.nodes, shape);
        // The node that lacks all is up first, with the liar alone: node 4's key.
        net.nodes[0].start().await;
        let liar: SecretKey = net.nodes[4].secret.clone().expect("a key");
        let mut impostor = Impostor::link(&net, liar.clone()).await;
        let status =
            StatusMsg { seq: shape.len, lcl: Hash::ZERO, attempt: 0, synced: true, silent: false, unheard: vec![] };
        let mine = net.nodes[0].secret.as_ref().expect("a key").node_key();
        let send = |impostor: &Impostor, message: Message, class| {
            impostor.mesh.send(&mine, class, wire::encode(&message).into()).expect("it is linked");
        };
        send(&impostor, Message::Status(chain.signed(&liar, status)), Class::Vote);
        let first = loop {
            if let MeshEvent::Frame { bytes, .. } = impostor.next().await
                && let Ok(Message::Get(Get::Range(first, _))) = wire::decode(&bytes)
            {
                break first;
            }
        };
        assert_eq!(first, 1);
        let kept = &chain.ledgers[..64];
        let mut ledgers: Vec<_> = kept.iter().map(|(ledger, ..)| ledger.clone()).collect();
        ledgers[30].qc.sigs[0].1 = liar.sign(b"anything");
        let inputs = kept.iter().flat_map(|(_, inputs, _)| inputs.clone()).collect();
        let range = Range { first, oldest: 1, ledgers, inputs };
        send(&impostor, Message::Range(Box::new(range)), Class::Bulk);
        let named = |status: &Value| {
            let liars = status["liars"].as_array().cloned().unwrap_or_default();
            liars.iter().any(|it| it["node"] == liar.node_key().to_string() && it["what"] == "a false certificate")
        };
        net.nodes[0].status_where("the liar is named", named).await;
        net.nodes[0].logs(&["sent something false as a closed ledger", "a false certificate"]).await;
        assert_eq!(net.nodes[0].seq().await, 0, "nothing of it was used");
        // It is asked for nothing more, and the others are believed.
        for node in &mut net.nodes[1..4] {
            chain.write(node);
            node.start().await;
        }
        net.nodes[0].status_where("it is there", is_done(shape)).await;
        let mut again = false;
        while let Ok(event) = impostor.events.try_recv() {
            let MeshEvent::Frame { bytes, .. } = event else { continue };
            again |= matches!(wire::decode(&bytes), Ok(Message::Get(Get::Range(..))));
        }
        assert!(!again, "it is not asked again");
        impostor.mesh.stop().await;
        drop(net);
    });
}

#[test]
fn a_node_that_was_away_for_hundreds_of_ledgers_is_back_soon() {
    block_on(async {
        let mut net = Net::up_with(4, Path::new(CONTRACT), |at, config| {
            plain(at, config);
            config.set("consensus.threshold", "75").set("roundtime", "10");
        })
        .await;
        net.closed(1).await;
        net.nodes[3].kill().await;
        let from = net.nodes[0].seq().await;
        net.nodes[0].status_where("hundreds of ledgers close", |it| it["seq"].as_u64() >= Some(from + 200)).await;
        net.nodes[3].start().await;
        let target = net.nodes[0].seq().await;
        let back = |status: &Value| {
            let executed = status["seq"].as_u64().unwrap_or(0) - status["unexecuted"].as_u64().unwrap_or(0);
            executed >= target
        };
        net.nodes[3].status_where("it has closed and run what it missed", back).await;
    });
}
