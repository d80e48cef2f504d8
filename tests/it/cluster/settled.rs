//! Outputs that are final when they are settled, on a bus that one of the nodes runs in itself.

use std::net::SocketAddr;

use hotpocket::{
    config::{Document, own_url, quoted},
    crypto::SecretKey,
    settlement::{Network, client::Client, tx::Operation},
    signed::{AnswerBody, InputState, OutputFrame, Query, Reply, Settled},
    types::{Execute, Hash, Seq},
};
use nix::sys::signal::Signal;

use crate::net::{Ended, Net, SignedUser, User, block_on, call, free_ports, probe, until};

/// Has the first node run the bus, and the others settle on it.
fn on_first(bus: SocketAddr, execute: &'static str) -> impl Fn(usize, &mut Document) {
    move |at, document| {
        document
            .set("msb.network", &quoted("development"))
            .set("msb.settle_every", "3")
            .set("msb.settle_max_delay_s", "1")
            .set("msb.execute", &quoted(execute))
            .set("roundtime", "200");
        if at == 0 {
            document.set("msb.mode", &quoted("embedded")).set("msb.listen", &quoted(&bus.to_string()));
        } else {
            document.set("msb.mode", &quoted("http")).set("msb.url", &quoted(&own_url(bus)));
        }
    }
}

async fn up(n: usize, execute: &'static str) -> (Net, SocketAddr) {
    let bus = free_ports(1)[0];
    (Net::up_with(n, probe(), on_first(bus, execute)).await, bus)
}

/// Sends an input, and gives its ledger and its output.
async fn asked(user: &mut SignedUser, nonce: u64, text: &str) -> (Seq, OutputFrame) {
    let request = user.input(nonce, text);
    user.send(&request).await;
    let seq = user.accepted(nonce).await;
    loop {
        match user.recv().await {
            Reply::Output(output) => return (seq, output),
            Reply::Settled(settled) => assert!(settled.last < seq, "an output comes before its settlement"),
            Reply::Error(error) => panic!("{error:?}"),
            _ => {}
        }
    }
}

/// The settlement that covers a ledger, as it is pushed, proven.
async fn settled(user: &mut SignedUser, seq: Seq) -> Settled {
    loop {
        match user.recv().await {
            Reply::Settled(settled) => {
                user.client.trust().check_settled(&settled).expect("it is proven");
                if settled.last >= seq {
                    assert!(settled.first <= seq, "none was missed: {settled:?}");
                    return settled;
                }
            }
            Reply::Error(error) => panic!("{error:?}"),
            _ => {}
        }
    }
}

/// What the bus says of a settlement's transaction: its content.
async fn on_bus(bus: SocketAddr, tx: &Hash) -> Hash {
    let client = Client::new(&own_url(bus), Network::Development).expect("a URL");
    let landed = client.tx(tx).await.expect("the bus answers").expect("it is there");
    landed.check(tx, Network::Development).expect("the bus does not lie");
    let Operation::Tx(tx) = landed.signed.operation else { panic!("another operation") };
    tx.ch
}

fn right(verified: &Ended) {
    assert!(verified.code == Some(0) && verified.out.contains("ok: "), "{verified:?}");
}

#[test]
fn an_output_is_final_when_the_chain_records_its_settlement_and_whoever_asks_later_learns_the_same() {
    block_on(async {
        let (mut net, bus) = up(2, "settled").await;
        let me = SecretKey::generate();
        let mut user = net.nodes[0].signed(&me).await;
        // A user of another node, without anything of its own, is told too.
        let mut other = net.nodes[1].signed(&SecretKey::generate()).await;
        assert_eq!(user.client.welcome().execute.0, Execute::Settled);
        let mut raw: User = net.nodes[1].user().await;
        let (seq, output) = asked(&mut user, 1, "hello").await;
        assert_eq!(output.is_final, Some(false), "nobody settled it yet");
        let first = settled(&mut user, seq).await;
        assert_eq!(on_bus(bus, &first.tx.0).await, first.ch.0);
        assert_eq!(settled(&mut other, seq).await, first);

        // In raw mode the output itself comes only then.
        raw.send("raw").await;
        assert_eq!(raw.text().await, "3 8");
        let now = net.nodes[1].signed(&me).await.client.welcome().settled_seq;
        assert!(now > first.last, "it came when ledgers up to {now} were settled");

        // One input, one answer, and the end only when it is final.
        let asked = net.nodes[1].url.clone();
        let once = call(&["client", &asked, "--once", "word", "--final", "--timeout", "50"]).await;
        assert_eq!((once.code, once.out.as_str()), (Some(0), "4 12\n"), "{}", once.err);
        assert!(once.err.contains("not final yet: ledger ") && once.err.contains("final: ledgers "), "{}", once.err);

        // Who comes later, to the other node, after a restart of all.
        net.kill_all().await;
        net.start_all().await;
        let mut later = net.nodes[1].signed(&me).await;
        assert!(later.client.welcome().settled_seq >= first.last);
        let page = until("the outputs of the past are there", async || {
            let page = later.outputs_since(0, seq).await;
            (!page.outputs.is_empty()).then_some(page)
        })
        .await;
        assert_eq!(page.outputs[0].is_final, Some(true));
        assert_eq!(page.settlements, std::slice::from_ref(&first));
        let AnswerBody::Input { state, .. } = later.ask(Query::Input { nonce: 1 }).await else { panic!("an answer") };
        let InputState::Accepted { settled: Some(told), .. } = state else { panic!("{state:?}") };
        assert_eq!(*told, first);
        right(&net.nodes[1].call(&["msb", "verify"]).await);
        let balance = net.nodes[0].call(&["msb", "balance"]).await;
        assert!(balance.code == Some(0) && balance.out.contains("enough for "), "{balance:?}");
    });
}

#[test]
fn a_bus_in_the_node_goes_on_after_kill_9_with_one_transaction_for_each_settlement_and_ends_with_it() {
    block_on(async {
        let (mut net, bus) = up(1, "closed").await;
        let mut user = net.nodes[0].signed(&SecretKey::generate()).await;
        let (_, output) = asked(&mut user, 1, "hello").await;
        assert_eq!(output.is_final, None, "it is final at once");
        for nonce in 2..=4 {
            // In the middle of whatever it does about settling.
            net.nodes[0].kill().await;
            net.nodes[0].start().await;
            let mut user = net.nodes[0].signed(&SecretKey::generate()).await;
            let (seq, _) = asked(&mut user, nonce, "again").await;
            if nonce % 2 == 0 {
                net.nodes[0]
                    .status_where("it is settled", |status| status["settlement"]["settled_seq"].as_u64() >= Some(seq))
                    .await;
            }
        }
        net.nodes[0]
            .status_where("all is settled", |status| {
                status["settlement"]["pending"].is_null() && status["settlement"]["oldest_unsettled_ms"].is_null()
            })
            .await;
        let verified = net.nodes[0].call(&["msb", "verify", "--json"]).await;
        let value: serde_json::Value = serde_json::from_str(&verified.out).expect("JSON");
        let settlements = value["settlements"].as_array().expect("a list").len();
        let client = Client::new(&own_url(bus), Network::Development).expect("a URL");
        let length = client.confirmed_length().await.expect("the bus answers");
        let landed = client.tx_hashes(0, length).await.expect("the bus answers").len();
        assert_eq!(landed, settlements, "one transaction for each: {value}");

        // A second node that wants the same port is refused.
        let mut second = Net::new(1, probe(), on_first(bus, "closed"));
        let (code, told) = second.nodes[0].start_fails().await;
        assert!(code == Some(5) && told.contains(&format!("cannot listen on {bus}")), "{told}");
        assert!(told.contains("msb.mode = \"embedded\" (msb.listen in "), "{told}");
        second.tampered = true;

        net.nodes[0].signal(Signal::SIGTERM);
        assert_eq!(net.nodes[0].ended().await, Some(0));
        assert!(client.health().await.is_err(), "nothing is left behind");
        // The folder's commands know where it was.
        let away = net.nodes[0].call(&["msb", "balance"]).await;
        assert!(away.code == Some(1) && away.err.contains("cannot be reached"), "{away:?}");
    });
}

#[test]
fn nodes_that_differ_in_when_outputs_are_final_have_no_link_and_say_why() {
    block_on(async {
        let bus = free_ports(1)[0];
        let set = on_first(bus, "closed");
        let net = Net::up_with(2, probe(), |at, document| {
            set(at, document);
            if at == 1 {
                document.set("msb.execute", &quoted("settled"));
            }
        })
        .await;
        for node in &net.nodes {
            node.status_where("it says why", |status| {
                let alerts = status["alerts"].to_string();
                alerts.contains("msb.execute") && alerts.contains("closed") && alerts.contains("settled")
            })
            .await;
        }
        let checked = call(&["config", "check", net.nodes[0].dir.to_str().expect("a path")]).await;
        assert!(checked.out.contains("`msb.mode` is \"embedded\", and `unl` has 1 other members"), "{checked:?}");
    });
}
