//! Networks that settle: each range of ledgers is on the bus once, whoever is killed when, and whatever the bus does.
//!
//! Every test ends with [`Bus::settled`], which makes each settlement of the chain again and looks for it on the bus.

use std::time::{Duration, Instant};

use hotpocket::{
    config::quoted,
    settlement::{client::Client, embedded::Hook},
};

use crate::{
    bus::{Bus, alerted, drill, last_step, posted, step, unalerted},
    net::{Net, block_on, echo, probe, until},
};

#[test]
fn five_nodes_that_post_at_once_make_one_transaction_of_each_settlement_over_a_connection_each() {
    block_on(async {
        let Some(bus) = Bus::start().await else { return };
        let mut net = bus.network(5).await;
        drill(&mut net, "together");
        let started = Instant::now();
        net.start_all().await;
        let mut user = net.nodes[0].user().await;
        for round in 1..=3 {
            if bus.has_hooks() {
                // Nobody sees what another one posted before it has posted itself.
                bus.hook(Hook::HoldConfirmations).await;
            }
            user.ask("hello").await;
            if bus.has_hooks() {
                posted(&bus, 5 * round).await;
                bus.hook(Hook::ConfirmAfterMs(0)).await;
            }
            assert_eq!(bus.settled(&net).await.len(), round);
        }
        let counts = bus.way.counts();
        // One that was idle for four seconds is not used again; the real bus closes it then.
        let renewed = started.elapsed().as_secs() as usize / 4;
        assert!(counts.connections <= 5 * (1 + renewed), "{counts:?}");
        assert!(counts.requests > 10 * 5, "{counts:?}");
        for node in &net.nodes {
            unalerted(node).await;
        }
    });
}

#[test]
fn all_nodes_killed_behind_any_step_settle_what_was_due_once() {
    block_on(async {
        let Some(bus) = Bus::start().await else { return };
        let mut net = bus.network(3).await;
        let mut settled = 0;
        // From the last one to the first: what is taken up again after a kill passes the next step no more.
        for point in ["in_ledger", "confirmed", "answered", "posted", "signed", "due"] {
            drill(&mut net, &format!("park={point},together"));
            net.start_all().await;
            let mut user = net.nodes[0].user().await;
            if settled > 0 {
                assert_eq!(bus.settled(&net).await.len(), settled, "{point}");
            }
            let before = bus.way.counts().posts;
            if bus.has_hooks() && point == "answered" {
                bus.hook(Hook::HoldConfirmations).await;
            }
            user.ask("hello").await;
            // Whoever sees on a real bus what another one posted does not post it.
            let nodes = if bus.has_hooks() { 3 } else { 1 };
            let row = if point == "answered" { "posted" } else { point };
            for node in &net.nodes[..nodes] {
                until(&format!("{row} is noted"), async || (last_step(node) == row).then_some(())).await;
            }
            match point {
                "answered" => {
                    posted(&bus, before + nodes).await;
                    until("answers", async || {
                        let counts = bus.way.counts();
                        (counts.answers == counts.requests).then_some(())
                    })
                    .await;
                }
                "posted" => assert_eq!(bus.way.counts().posts, before, "noted, and not posted"),
                _ => {}
            }
            net.kill_all().await;
            assert!(net.nodes[..nodes].iter().all(|node| last_step(node) == row), "nothing was done behind {point}");
            if bus.has_hooks() {
                bus.hook(Hook::ConfirmAfterMs(0)).await;
            }
            settled += 1;
        }
        drill(&mut net, "");
        net.start_all().await;
        let found = bus.settled(&net).await;
        assert_eq!(found.len(), settled);
    });
}

#[test]
fn a_bus_that_is_away_for_a_thousand_ledgers_gets_one_settlement_of_what_came_meanwhile() {
    block_on(async {
        let Some(mut bus) = Bus::start().await else { return };
        let mut net = Net::new(1, echo(), |_, document| {
            bus.configure(document);
            document.set("roundtime", "1");
        });
        bus.fund(&net).await;
        net.start_all().await;
        let mut user = net.nodes[0].user().await;
        user.ask("hello").await;
        bus.settled(&net).await;
        bus.go_away().await;
        // This is due at once; what comes while it is under way is the next one.
        user.ask("hello").await;
        let node = &net.nodes[0];
        node.status_where("something is due", |status| !status["settlement"]["pending"].is_null()).await;
        user.ask("hello").await;
        let from = node.seq().await;
        net.closed(from + 100).await;
        let little = memory_kb(node.pid());
        net.closed(from + 1_000).await;
        user.ask("hello").await;
        let grown = memory_kb(node.pid()).saturating_sub(little);
        assert!(grown < 16 << 10, "{grown} KiB more for 900 ledgers that are not settled");
        alerted(node, "settling waits for the bus").await;
        bus.come_back().await;
        let found = bus.settled(&net).await;
        assert_eq!(found.len(), 3);
        let last = &found[2].record;
        assert!(last.last - last.first >= 1_000, "{last:?}");
        unalerted(node).await;
    });
}

fn memory_kb(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the kernel tells");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[test]
fn what_the_bus_answers_to_a_post_decides_nothing_and_what_was_signed_before_may_land_after_all() {
    block_on(async {
        let Some(bus) = Bus::with_hooks().await else { return };
        let mut net = bus.network(3).await;
        drill(&mut net, "together");
        net.start_all().await;
        let mut user = net.nodes[0].user().await;
        // The reply to all three is lost, or 429 though it landed, or 200 though it did not. Who is second hears 400.
        let faults: [fn(u32) -> Hook; 3] = [Hook::DropReply, Hook::RefuseLanded, Hook::LoseAccepted];
        let mut last = String::new();
        for (at, fault) in faults.into_iter().enumerate() {
            bus.hook(fault(3)).await;
            user.ask("hello").await;
            let found = bus.settled(&net).await;
            assert_eq!(found.len(), at + 1, "{:?}", fault(3));
            last = found[at].tx.to_string();
            bus.hook(fault(0)).await;
        }

        // Nothing lands, until the bus takes nothing that was signed before.
        bus.hook(Hook::LoseAccepted(u32::MAX)).await;
        user.ask("hello").await;
        let node = &net.nodes[0];
        let signed = async |before: &str| {
            until("it is signed", async || {
                let signed = step(node, |step| step["state"] == "signed");
                (signed["tx"].is_string() && signed["tx"] != before).then_some(signed)
            })
            .await
        };
        let old = signed(&last).await;
        bus.hook(Hook::RotateTxv).await;
        let new = signed(old["tx"].as_str().expect("text")).await;
        assert_ne!(old["txv"], new["txv"]);
        // Then the bus is as it was, and what was on its way all the time arrives.
        bus.hook(Hook::RestoreTxv).await;
        bus.hook(Hook::LoseAccepted(0)).await;
        let client = Client::new(&bus.url(), bus.client.network()).expect("a URL");
        let _ = client.broadcast(old["payload"].as_str().expect("text")).await;
        let found = bus.settled(&net).await;
        assert_eq!(found.len(), 4);
        assert_eq!(found[3].tx.to_string(), old["tx"], "by its old name");
        user.ask("hello").await;
        assert_eq!(bus.settled(&net).await.len(), 5, "and it goes on");
    });
}

#[test]
fn who_lacks_money_or_a_deployed_subnet_is_told_once_what_to_do_and_settling_goes_on_by_itself() {
    block_on(async {
        let Some(bus) = Bus::with_nothing_on_it().await else { return };
        let mut net = Net::new(3, probe(), |_, document| bus.configure(document));
        drill(&mut net, "together");
        net.start_all().await;
        let mut user = net.nodes[0].user().await;
        for node in &net.nodes {
            let alerts = alerted(node, "send TNK to it (`hp msb fund` on an embedded bus)").await;
            assert!(
                alerts.len() == 1 && alerts[0].contains("has 0 TNK, and a settlement costs 0.03 TNK"),
                "{alerts:?}"
            );
        }
        user.ask("hello").await;
        for node in &net.nodes {
            let funded = node.call(&["msb", "fund", "--amount", "10"]).await;
            assert_eq!(funded.code, Some(0), "{}", funded.err);
        }
        for node in &net.nodes {
            let subnet = "44".repeat(32);
            let alerts =
                alerted(node, &format!("deploy the subnet bootstrap {subnet} there (`hp msb deploy` says how)")).await;
            assert_eq!(alerts.len(), 1, "the money came: {alerts:?}");
            let shown = node.call(&["status"]).await;
            assert_eq!(shown.out.matches("deploy the subnet bootstrap").count(), 1, "{}", shown.out);
        }
        let deployed = net.nodes[0].call(&["msb", "deploy"]).await;
        assert_eq!(deployed.code, Some(0), "{}", deployed.err);
        assert_eq!(bus.settled(&net).await.len(), 1);
        for node in &net.nodes {
            unalerted(node).await;
            let log = node.log();
            for about in ["about=Balance", "about=Refused"] {
                let told = log.lines().filter(|line| line.contains("WARN") && line.contains(about)).count();
                assert_eq!(told, 1, "{about} in\n{log}");
            }
        }
    });
}

#[test]
fn a_bus_that_shows_another_content_or_signature_is_reported_by_all_and_nobody_votes_for_it() {
    block_on(async {
        let Some(bus) = Bus::with_hooks().await else { return };
        let mut net = bus.network(3).await;
        net.start_all().await;
        let mut user = net.nodes[0].user().await;
        let lies: [fn(bool) -> Hook; 2] = [Hook::Lie, Hook::Forge];
        let told = ["the fields of operation", "does not have the signature of trac1"];
        for (at, (lie, says)) in lies.into_iter().zip(told).enumerate() {
            bus.hook(lie(true)).await;
            user.ask("hello").await;
            for node in &net.nodes {
                let alerts = alerted(node, "lies, and this node votes for nothing it shows").await;
                assert!(alerts.len() == 1 && alerts[0].contains(says), "{alerts:?}");
            }
            // Ledgers close, and none of them records what the bus shows.
            let seq = net.nodes[0].seq().await;
            net.closed(seq + 5).await;
            for node in &net.nodes {
                let status = node.status().await.expect("it answers");
                assert_eq!(status["settlement"]["pending"]["confirmed_length"], serde_json::Value::Null);
            }
            bus.hook(lie(false)).await;
            assert_eq!(bus.settled(&net).await.len(), at + 1);
            for node in &net.nodes {
                unalerted(node).await;
            }
        }
    });
}

#[test]
fn a_bus_that_takes_questions_and_never_answers_delays_no_ledger() {
    const INPUTS: usize = 15;
    block_on(async {
        let Some(bus) = Bus::start().await else { return };
        let mut net = bus.network(3).await;
        drill(&mut net, "together");
        net.start_all().await;
        let mut user = net.nodes[0].user().await;
        let mut timed = async || {
            let began = Instant::now();
            for _ in 0..INPUTS {
                user.ask("hello").await;
            }
            began.elapsed()
        };
        timed().await;
        bus.settled(&net).await;
        let usual = timed().await;
        bus.settled(&net).await;

        bus.way.be_silent(true);
        let asked = bus.way.counts();
        timed().await;
        // All of them wait for the bus now ...
        until("all three ask", async || (bus.way.counts().requests >= asked.requests + 3).then_some(())).await;
        let (waiting, seq) = (bus.way.counts(), net.nodes[0].seq().await);
        let hanging = timed().await;
        // ... and did so all the time.
        assert_eq!(bus.way.counts().answers, waiting.answers);
        assert!(net.nodes[0].seq().await >= seq + INPUTS as u64);
        assert!(hanging < 3 * usual + Duration::from_secs(2), "{hanging:?}, and {usual:?} with an answering bus");
        bus.way.be_silent(false);
        bus.settled(&net).await;
    });
}

#[test]
fn a_bus_with_a_private_authority_is_believed_by_who_was_given_its_certificate_and_refused_before() {
    block_on(async {
        let Some(bus) = Bus::start().await else { return };
        let front = bus.front().await;
        let mut net = Net::new(1, echo(), |_, document| {
            bus.configure(document);
            document.set("msb.url", &quoted(&front.url));
        });
        bus.fund(&net).await;
        net.start_all().await;
        let node = &mut net.nodes[0];
        let alerts = alerted(node, "the bus's certificate is refused: nobody who is trusted here issued it").await;
        assert!(alerts.len() == 1 && alerts[0].contains("name its certificate in `[msb] ca_file`"), "{alerts:?}");
        assert_eq!(bus.way.counts().requests, 0, "nothing is asked of who is not the bus");
        let balance = node.call(&["msb", "balance"]).await;
        assert!(balance.code == Some(1) && balance.err.contains("ca_file"), "{}", balance.err);

        node.kill().await;
        std::fs::write(node.dir.join("cfg/msb-ca.pem"), &front.ca_pem).expect("written");
        node.edit_config(|text| text.replace("# ca_file = ", "ca_file = "));
        node.start().await;
        unalerted(node).await;
        let mut user = node.user().await;
        user.ask("hello").await;
        assert_eq!(bus.settled(&net).await.len(), 1);
        for asked in [["msb", "balance"], ["msb", "verify"]] {
            let told = net.nodes[0].call(&asked).await;
            assert_eq!(told.code, Some(0), "{}", told.err);
        }
    });
}
