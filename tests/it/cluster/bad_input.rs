//! Wrong folders, files, ports, settings and peers: each gives a clear error, and nothing makes a node panic.

use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt as _};

use hotpocket::{
    config::quoted,
    consensus::{
        header::unl_hash,
        messages::{Evidence, Message, Prevote, Scope, Signable as _, Signed, Vote},
    },
    crypto::SecretKey,
    mesh::{Admit, Class, Mesh, MeshConfig, MeshEvent},
    types::{Hash, NodeKey},
    wire::{self, Hello},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
    time::timeout,
};

use crate::net::{DEADLINE, Net, TestNode, block_on, call, copy_program, free_ports, plain, probe, record, until};

/// A byte sequence that looks random and is the same in every run.
fn garbage(turn: u64, len: usize) -> Vec<u8> {
    (0..).flat_map(|block: u64| Hash::tagged("garbage", &(turn, block)).0).take(len).collect()
}

/// Expects a node to refuse its folder with this exit code and these words, in one line of error.
async fn refused(net: &Net, code: i32, words: &[&str]) {
    let node = &net.nodes[0];
    fs::remove_file(node.dir.join("node.log")).ok();
    let (ended, log) = node.start_fails().await;
    assert_eq!(ended, Some(code), "{log}");
    let errors: Vec<&str> = log.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{log}");
    for word in words {
        assert!(errors[0].contains(word), "{word} is in: {log}");
    }
    assert!(!log.contains("panicked at"), "{log}");
}

#[test]
fn a_folder_that_is_missing_or_no_contract_folder_ends_with_3() {
    block_on(async {
        let folder = tempfile::tempdir().expect("a folder");
        let (missing, empty) = (folder.path().join("missing"), folder.path().join("empty"));
        fs::create_dir(&empty).expect("made");
        for dir in [&missing, &empty] {
            let dir = dir.to_str().expect("UTF-8");
            let ended = call(&["run", dir]).await;
            assert_eq!((ended.code, ended.out.as_str()), (Some(3), ""), "{ended:?}");
            assert!(ended.err.starts_with("error: ") && ended.err.contains(dir), "{}", ended.err);
            let ended = call(&["status", dir]).await;
            assert_eq!(ended.code, Some(6), "{ended:?}");
            assert!(ended.err.contains("no node runs in"), "{}", ended.err);
        }
    });
}

#[test]
fn a_damaged_database_ends_with_4_and_is_left_as_it_is() {
    block_on(async {
        let mut net = Net::up_with(1, record(), plain).await;
        let mut user = net.nodes[0].user().await;
        for number in 0..30 {
            user.ask(&format!("{number} {}\n", "x".repeat(1_000))).await;
        }
        net.nodes[0].signal(nix::sys::signal::Signal::SIGTERM);
        assert_eq!(net.nodes[0].ended().await, Some(0));
        let path = net.nodes[0].dir.join("hist/ledger.db");
        let whole = fs::read(&path).expect("the database");
        assert!(whole.len() > 32 << 10, "{}", whole.len());
        let half = whole[..whole.len() / 2].to_vec();
        let mut tail = whole.clone();
        let from = whole.len() / 3;
        tail[from..].copy_from_slice(&garbage(1, whole.len() - from));
        let mut head = whole.clone();
        head[..4096].copy_from_slice(&garbage(2, 4096));
        for (what, bytes) in
            [("half", half), ("garbage", garbage(3, 100_000)), ("tail", tail), ("head", head), ("empty", Vec::new())]
        {
            for side in ["ledger.db-wal", "ledger.db-shm"] {
                fs::remove_file(path.with_file_name(side)).ok();
            }
            fs::write(&path, &bytes).expect("written");
            eprintln!("{what}");
            refused(&net, 4, &["hist/ledger.db"]).await;
            assert_eq!(fs::read(&path).expect("there"), bytes, "{what}: nothing is overwritten");
        }
        fs::write(&path, &whole).expect("written");
        net.start_all().await;
        assert_eq!(net.nodes[0].user().await.ask("whole again\n").await, "whole again\n");
    });
}

#[test]
fn a_second_run_of_a_folder_and_a_port_that_is_taken_end_with_5() {
    block_on(async {
        let net = Net::up(1).await;
        let dir = net.nodes[0].dir.to_str().expect("UTF-8");
        let ended = call(&["run", dir]).await;
        assert_eq!(ended.code, Some(5), "{ended:?}");
        assert!(ended.err.contains("run/lock is locked"), "{}", ended.err);
        assert_eq!(net.nodes[0].user().await.ask("unharmed").await, "8 8");

        let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = taken.local_addr().expect("an address").port();
        for key in ["peerport", "pubport"] {
            let net = Net::new(1, probe(), |_, config| {
                config.set(key, &port.to_string());
            });
            refused(&net, 5, &[&format!("127.0.0.1:{port}")]).await;
        }
    });
}

#[test]
fn a_shared_setting_changed_after_the_chain_began_ends_with_3_and_names_both_values() {
    block_on(async {
        let mut net = Net::up(1).await;
        assert_eq!(net.nodes[0].user().await.ask("x").await, "1 1");
        net.nodes[0].kill().await;
        let file = fs::read_to_string(net.nodes[0].dir.join("cfg/hp.cfg")).expect("a file");
        for (from, to, words) in [
            ("time_res_ms = 1000", "time_res_ms = 500", &["consensus.time_res_ms", "500", "1000", "hp.cfg"][..]),
            ("pubmaxsize = 1048576", "pubmaxsize = 4096", &["pubmaxsize", "4096", "1048576"]),
            ("inputs = \"any\"", "inputs = \"signed\"", &["user.inputs", "signed", "any"]),
        ] {
            assert!(file.contains(from), "{from}");
            net.nodes[0].edit_config(|_| file.replace(from, to));
            refused(&net, 3, words).await;
        }
        let other = "ab".repeat(32);
        let id = Hash([7; 32]).to_string();
        net.nodes[0].edit_config(|_| file.replace(&id, &other));
        refused(&net, 3, &["contract", &other[..8], &id[..8]]).await;
        // What is not shared may change.
        net.nodes[0].edit_config(|_| file.replace("roundtime = 1000", "roundtime = 500"));
        net.start_all().await;
        assert_eq!(net.nodes[0].user().await.ask("x").await, "1 2");
    });
}

#[test]
fn a_contract_that_is_missing_or_not_executable_ends_with_3_and_is_named() {
    block_on(async {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("plain");
        fs::write(&file, "no program").expect("written");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("set");
        for binary in [&folder.path().join("missing"), &file] {
            let net = Net::new(1, binary, plain);
            refused(&net, 3, &[binary.to_str().expect("UTF-8")]).await;
        }
    });
}

#[test]
fn a_contract_that_goes_missing_or_cannot_be_executed_fails_alike_and_the_log_names_it() {
    block_on(async {
        let folder = tempfile::tempdir().expect("a folder");
        let binary = folder.path().join("contract");
        copy_program(probe(), &binary);
        let net = Net::up_with(2, &binary, plain).await;
        let mut user = net.nodes[0].user().await;
        assert_eq!(user.ask("four").await, "4 4");
        let stderr = net.nodes[1].dir.join("log/contract/stderr.log");
        let changes: [(&str, &dyn Fn()); 3] = [
            ("127", &|| fs::remove_file(&binary).expect("removed")),
            ("126", &|| fs::write(&binary, "no program").expect("written")),
            ("126", &|| fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).expect("set")),
        ];
        for (code, change) in changes {
            change();
            for _ in 0..2 {
                user.send("hello").await;
                let (error, message) = user.error().await;
                assert_eq!(error, "contract_failed");
                assert!(message.contains(&format!("exit code {code}")), "{message}");
            }
            let named = binary.to_str().expect("UTF-8");
            until("a log names the file", async || {
                let text = net.nodes[1].log() + &fs::read_to_string(&stderr).unwrap_or_default();
                text.contains(named).then_some(())
            })
            .await;
        }
        fs::remove_file(&binary).expect("removed");
        copy_program(probe(), &binary);
        assert_eq!(user.ask("four").await, "4 8", "with the executable in its place again it goes on");
        net.agree().await;
    });
}

#[test]
fn state_changed_by_hand_while_the_node_is_down_ends_with_4() {
    block_on(async {
        for signal in [nix::sys::signal::Signal::SIGTERM, nix::sys::signal::Signal::SIGKILL] {
            let mut net = Net::up(1).await;
            assert_eq!(net.nodes[0].user().await.ask("four").await, "4 4");
            net.agree().await;
            net.nodes[0].signal(signal);
            net.nodes[0].ended().await;
            let file = net.nodes[0].dir.join("state/inputs");
            let (was, runs) = (fs::read(&file).expect("state"), net.nodes[0].state("runs"));
            fs::write(&file, "9").expect("written");
            refused(&net, 4, &["state/", "changed"]).await;
            fs::write(&file, was).expect("written");
            let stray = net.nodes[0].dir.join("state/stray");
            fs::write(&stray, "").expect("written");
            refused(&net, 4, &["state/", "changed"]).await;
            fs::remove_file(&stray).expect("removed");
            net.start_all().await;
            assert_eq!(net.nodes[0].user().await.ask("more").await, "4 8", "as it was, it goes on");
            let now: u64 = net.nodes[0].state("runs").parse().expect("a number");
            assert!(now > runs.parse().expect("a number"));
        }
    });
}

#[test]
fn a_configuration_that_makes_no_sense_ends_with_3_and_names_file_key_and_value() {
    block_on(async {
        let net = Net::new(1, probe(), plain);
        let file = fs::read_to_string(net.nodes[0].dir.join("cfg/hp.cfg")).expect("a file");
        for (from, to, words) in [
            ("roundtime = 1000", "roundtime = \"soon\"", &["hp.cfg", "roundtime", "soon"][..]),
            ("threshold = 80", "threshold = 20", &["consensus.threshold", "20"]),
            ("[mesh]", "[mash]", &["mash", "mesh"]),
            ("ip = \"127.0.0.1\"", "ip = \"localhost:80\"", &["ip", "localhost:80"]),
            ("seckey = \"", "seckey = \"zz", &["seckey"]),
        ] {
            assert!(file.contains(from), "{from}");
            net.nodes[0].edit_config(|_| file.replace(from, to));
            refused(&net, 3, words).await;
        }
        net.nodes[0].edit_config(|_| file.replace("binargs = []", "\u{0}\u{1}\u{2}"));
        refused(&net, 3, &["hp.cfg"]).await;
    });
}

#[test]
fn garbage_on_both_ports_harms_nobody() {
    block_on(async {
        let net = Net::up(2).await;
        let mut user = net.nodes[0].user().await;
        let status = net.nodes[0].status().await.expect("it is up");
        for (turn, key) in ["peer_address", "user_address"].iter().cycle().take(24).enumerate() {
            let address = status[*key].as_str().expect("an address");
            let mut stream = TcpStream::connect(address).await.expect("a connection");
            let mut bytes = match turn / 2 % 4 {
                0 => Vec::new(),
                1 => b"\x13/multistream/1.0.0\n\x07/noise\n".to_vec(),
                2 => b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n".to_vec(),
                _ => b"GET / HTTP/1.1\r\n".to_vec(),
            };
            bytes.extend(garbage(turn as u64, 1 << (turn % 13)));
            // The node may close it before all is said.
            let _ = stream.write_all(&bytes).await;
            if turn % 3 == 0 {
                let _ = stream.shutdown().await;
                let mut rest = Vec::new();
                let _ = timeout(DEADLINE, stream.read_to_end(&mut rest)).await.expect("the node closes it");
            }
        }
        assert_eq!(user.ask("hello").await, "5 5");
        assert_eq!(net.nodes[1].user().await.ask("x").await, "1 6");
        net.agree().await;
    });
}

/// Speaks the peer protocol with a member's key, in place of that member.
pub struct Impostor {
    pub mesh: Mesh,
    pub events: mpsc::Receiver<MeshEvent>,
}

impl Impostor {
    /// Links with the network whose hello it first learns from a node that refuses nothing.
    pub async fn link(net: &Net, key: SecretKey) -> Impostor {
        let status = net.nodes[0].status().await.expect("it is up");
        let address: std::net::SocketAddr = status["peer_address"].as_str().expect("text").parse().expect("an address");
        let unl = net
            .nodes
            .iter()
            .filter_map(|node| Some(node.secret.as_ref()?.node_key()))
            .collect::<std::collections::BTreeSet<_>>();
        let (learnt, mut hellos) = mpsc::unbounded_channel::<Vec<u8>>();
        let mut hello = vec![0; 10];
        loop {
            let (events_tx, events) = mpsc::channel(1_024);
            let learnt = learnt.clone();
            let mesh = Mesh::start(
                MeshConfig {
                    key: key.clone(),
                    listen: "127.0.0.1:0".parse().expect("an address"),
                    peers: vec![(address.ip().to_string(), address.port())],
                    unl: unl.clone(),
                    admit: Admit::Open,
                    connections_max: 50,
                    hello: hello.clone(),
                    check_hello: Box::new(move |_, bytes| {
                        let _ = learnt.send(bytes.to_vec());
                        Ok(())
                    }),
                },
                events_tx,
            )
            .await
            .expect("it listens");
            let theirs = timeout(DEADLINE, hellos.recv()).await.expect("a hello in time").expect("a hello");
            let mut impostor = Impostor { mesh, events };
            if hello.len() > 10 {
                impostor.linked().await;
                return impostor;
            }
            impostor.mesh.stop().await;
            while hellos.try_recv().is_ok() {}
            let mut mine: Hello = wire::decode(&theirs).expect("a hello");
            mine.boot = Hash([9; 32]);
            hello = wire::encode(&mine);
        }
    }

    async fn linked(&mut self) {
        while !matches!(self.next().await, MeshEvent::LinkUp { .. }) {}
    }

    pub async fn next(&mut self) -> MeshEvent {
        timeout(DEADLINE, self.events.recv()).await.expect("something happens").expect("the mesh is up")
    }
}

#[test]
fn a_member_that_sends_garbage_and_altered_messages_stops_nobody() {
    block_on(async {
        let mut net = Net::up_with(4, probe(), |_, config| {
            config.set("consensus.threshold", "75");
        })
        .await;
        assert_eq!(net.nodes[0].user().await.ask("x").await, "1 1");
        let key = net.nodes[3].secret.clone().expect("made here");
        net.nodes[3].kill().await;
        let mut impostor = Impostor::link(&net, key).await;
        let mut user = net.nodes[0].user().await;
        let mut total = 1;
        let mut heard = 0;
        for turn in 0..8 {
            total += 4;
            user.send("more").await;
            let answer = loop {
                tokio::select! {
                    answer = user.text() => break answer,
                    event = impostor.next() => if let MeshEvent::Frame { peer, class, bytes } = event {
                        heard += 1;
                        let mut altered = bytes.to_vec();
                        let at = usize::from(garbage(heard, 1)[0]) % altered.len();
                        altered[at] ^= 1 << (heard % 8);
                        let cut = bytes.slice(..bytes.len() - at.min(bytes.len() / 2));
                        for bytes in [bytes, altered.into(), cut, garbage(heard, at).into()] {
                            // The node may have ended the link over the one before.
                            let _ = impostor.mesh.send(&peer, class, bytes);
                        }
                    },
                }
            };
            assert_eq!(answer, format!("4 {total}"), "turn {turn}");
        }
        assert!(heard > 8, "the impostor was told {heard} messages");
        for len in [0, 1, 65, 4_096, 1 << 20] {
            for class in [Class::Vote, Class::Bulk] {
                impostor.mesh.broadcast(class, garbage(len as u64, len).into());
            }
        }
        net.nodes[0].logs(&["dropped a message"]).await;
        assert_eq!(user.ask("last").await, format!("4 {}", total + 4));
        impostor.mesh.stop().await;
        // The real one is back.
        net.nodes[3].start().await;
        net.agree().await;
        assert_eq!(net.nodes[3].state("inputs"), (total + 4).to_string());
    });
}

#[test]
fn proofs_of_a_contradiction_are_checked_kept_over_a_restart_and_shown() {
    block_on(async {
        let mut net = Net::up_with(4, probe(), |_, config| {
            config.set("consensus.threshold", "75").set("roundtime", "200");
        })
        .await;
        assert_eq!(net.nodes[0].user().await.ask("x").await, "1 1");
        let secrets = net.nodes.iter().map(|node| node.secret.clone().expect("made here")).collect::<Vec<_>>();
        net.nodes[3].kill().await;
        let impostor = Impostor::link(&net, secrets[3].clone()).await;

        let mut unl: Vec<NodeKey> = secrets.iter().map(SecretKey::node_key).collect();
        unl.sort();
        let status = net.nodes[0].status().await.expect("it is up");
        let chain_id = status["chain"].as_str().expect("text").parse().expect("a hash");
        let scope = Scope { chain_id, unl_hash: unl_hash(&unl) };
        let prevote = |signer: &SecretKey, by: &SecretKey, seq, byte| {
            let body = Prevote(Vote { seq, attempt: 0, ledger_hash: Hash([byte; 32]) });
            let sig = by.sign(&body.digest(&scope).0);
            wire::encode(&Message::Prevote(Signed { from: signer.node_key(), body, sig }))
        };
        let proof = |signer: &SecretKey, by: &SecretKey, seq, byte: u8| {
            let (first, second) = (prevote(signer, by, seq, byte), prevote(signer, by, seq, byte + 1));
            wire::encode(&Message::Evidence(Evidence { signer: signer.node_key(), first, second }))
        };
        // A forged one against another, and a true one against itself, twice in other words.
        for bytes in [
            proof(&secrets[1], &secrets[3], 1, 1),
            proof(&secrets[3], &secrets[3], 1, 1),
            proof(&secrets[3], &secrets[3], 1, 7),
        ] {
            impostor.mesh.broadcast(Class::Vote, bytes.into());
        }
        let liar = secrets[3].node_key().to_string();
        let shown = |status: &serde_json::Value| {
            status["evidence"]
                == serde_json::json!([{"node": liar, "kind": "PREVOTE", "count": 1, "seq": 1, "attempt": 0}])
        };
        let status = net.nodes[0].status_where("the proof is shown", shown).await;
        net.nodes[0].logs(&["EVIDENCE with a wrong signature", &secrets[1].node_key().to_string()]).await;
        impostor.mesh.stop().await;
        // It is on disk with the next ledger.
        net.closed(status["seq"].as_u64().expect("a number") + 2).await;
        net.nodes[0].kill().await;
        net.nodes[0].start().await;
        net.nodes[0].status_where("the proof is shown after a restart", shown).await;
        let text = call(&["status", net.nodes[0].dir.to_str().expect("UTF-8")]).await.out;
        assert!(text.contains(&format!("evidence  {liar} signed two different PREVOTE messages")), "{text}");
    });
}

#[test]
fn nodes_of_two_contracts_refuse_each_other_and_say_why_in_one_line() {
    block_on(async {
        let ports = free_ports(2);
        let other = |at: usize| ports[1 - at].to_string();
        let id = |at: usize| Hash([at as u8 + 1; 32]).to_string();
        let nets = futures::future::join_all((0..2).map(|at| {
            let (port, peer, id) = (ports[at].port(), other(at), id(at));
            async move {
                Net::up_with(1, probe(), |_, config| {
                    config.set("peerport", &port.to_string()).set_list("peers", std::slice::from_ref(&peer));
                    config.set("contract.id", &quoted(&id));
                })
                .await
            }
        }))
        .await;
        for (at, net) in nets.iter().enumerate() {
            let line = net.nodes[0].logs(&["the contract id differs"]).await;
            assert!(line.contains("ERROR") && line.contains(&id(at)) && line.contains(&id(1 - at)), "{line}");
            let told = |status: &serde_json::Value| status["alerts"].to_string().contains("contract id");
            net.nodes[0].status_where("the status says it too", told).await;
        }
        for net in &nets {
            assert_eq!(net.nodes[0].user().await.ask("x").await, "1 1", "each goes on for itself");
            let lines = net.nodes[0].log().lines().filter(|line| line.contains("ERROR")).count();
            assert!(lines <= 2, "it is not repeated all the time: {}", net.nodes[0].log());
        }
    });
}

#[test]
fn nodes_of_one_network_that_are_set_up_differently_name_what_differs() {
    block_on(async {
        type Change = fn(&TestNode);
        let changes: [(&str, Change); 4] = [
            ("consensus.time_res_ms differs", |node| {
                node.edit_config(|text| text.replace("time_res_ms = 1000", "time_res_ms = 500"));
            }),
            ("the genesis time differs", |node| {
                node.edit_config(|text| text.replace("1700000000000", "1700000000001"))
            }),
            ("the genesis UNL differs", |node| {
                node.edit_config(|text| text.replace("unl = [\n", &format!("unl = [\n    \"{}\",\n", "01".repeat(32))));
            }),
            ("the state before the first run differs", |node| {
                fs::create_dir(node.dir.join("state")).expect("made");
                fs::write(node.dir.join("state/inputs"), "1").expect("written");
            }),
        ];
        for (what, change) in changes {
            let mut net = Net::new(2, probe(), plain);
            change(&net.nodes[1]);
            net.start_all().await;
            for node in &net.nodes {
                let line = node.logs(&["ERROR", what]).await;
                assert!(line.contains(" here, ") && line.contains(" there"), "{line}");
            }
        }
    });
}

#[test]
fn a_node_that_stands_still_is_told_of_by_hp_status_in_time() {
    block_on(async {
        let net = Net::up(1).await;
        net.nodes[0].signal(nix::sys::signal::Signal::SIGSTOP);
        let ended = call(&["status", net.nodes[0].dir.to_str().expect("UTF-8")]).await;
        assert_eq!((ended.code, ended.out.as_str()), (Some(6), ""), "{ended:?}");
        assert!(ended.err.contains("does not answer"), "{}", ended.err);
        net.nodes[0].signal(nix::sys::signal::Signal::SIGCONT);
        let ended = call(&["status", net.nodes[0].dir.to_str().expect("UTF-8"), "--json"]).await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let status: serde_json::Value = serde_json::from_str(&ended.out).expect("one JSON object");
        assert!(status["seq"].is_u64(), "{status}");
    });
}

#[test]
fn a_node_outside_the_unl_follows_the_chain_and_refuses_raw_inputs_with_a_reason() {
    block_on(async {
        let net = Net::up(2).await;
        let mut user = net.nodes[0].user().await;
        for round in 1..=5 {
            assert_eq!(user.ask("four").await, format!("4 {}", 4 * round));
        }
        let dir = net.nodes[0].dir.with_file_name("observer");
        let path = dir.to_str().expect("UTF-8");
        let config = net.nodes[0].dir.join("cfg/hp.cfg");
        let made = call(&["new", path, "--join", config.to_str().expect("UTF-8")]).await;
        assert_eq!(made.code, Some(0), "{made:?}");
        let mut observers = Net::of(tempfile::tempdir().expect("a folder"), vec![dir]);
        observers.nodes[0].edit_config(|text| {
            let text = text.replace("peerport = 22860", "peerport = 0").replace("# pubport = 8080", "pubport = 0");
            assert!(text.contains("peerport = 0\n") && text.contains("\npubport = 0\n"), "{text}");
            text
        });
        observers.start_all().await;
        let observer = &observers.nodes[0];
        let (seq, _) = net.agree().await;
        let caught_up =
            |status: &serde_json::Value| status["role"] == "observer" && status["seq"].as_u64() >= Some(seq);
        observer.status_where("the observer catches up", caught_up).await;
        assert_eq!(user.ask("more").await, "4 24");
        let (seq, lcl) = net.agree().await;
        let same = |status: &serde_json::Value| status["seq"].as_u64() > Some(seq) || status["lcl"] == lcl;
        observer.status_where("the observer follows", same).await;
        until("the observer's state follows", async || (observer.state("inputs") == "24").then_some(())).await;
        let mut refused = observer.user().await;
        refused.send("hello").await;
        let (code, message) = refused.error().await;
        assert_eq!(code, "refused");
        assert!(message.contains("observer"), "{message}");
        assert_eq!(user.ask("four").await, "4 28");
    });
}
