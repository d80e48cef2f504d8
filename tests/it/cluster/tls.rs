//! TLS on both ports: who trusts the certificate is served, a new one takes the place of the old while sessions go on.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use hotpocket::{
    cli::client::{ClientError, Frame, Pins, RawClient, Servers, SignedClient},
    config::{Document, quoted},
    crypto::SecretKey,
    signed::{Query, Reply},
};
use nix::sys::signal::Signal;
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, timeout},
};

use super::http::with_http;
use crate::net::{DEADLINE, Net, block_on, call, probe, until};

/// Writes a certificate of its own for 127.0.0.1, and its key.
fn write_pair(dir: &Path, year: i32) {
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    params.not_after = date_time_ymd(year, 1, 1);
    let key = KeyPair::generate().unwrap();
    let files = [("tls.crt", params.self_signed(&key).unwrap().pem()), ("tls.key", key.serialize_pem())];
    for (name, text) in files {
        let path = dir.join("cfg").join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
}

fn with_tls(at: usize, document: &mut Document) {
    with_http(at, document);
    for table in ["user", "http"] {
        document.set(&format!("{table}.tls_cert"), &quoted("cfg/tls.crt"));
        document.set(&format!("{table}.tls_key"), &quoted("cfg/tls.key"));
    }
}

fn trusting(dir: &Path) -> Servers {
    Servers::read(dir.join("cfg/tls.crt").to_str().unwrap()).expect("a certificate")
}

#[test]
fn both_ports_speak_tls_and_a_new_certificate_comes_while_sessions_go_on() {
    block_on(async {
        let mut net = Net::new(1, probe(), with_tls);
        write_pair(&net.nodes[0].dir, 2020);
        net.start_all().await;
        let node = &net.nodes[0];
        assert!(node.url.starts_with("wss://127.0.0.1:") && node.http.starts_with("https://127.0.0.1:"));
        // Its time is over, which the operator is told, and clients mind.
        node.logs(&["certificate has expired", "2020-01-01"]).await;
        let key = SecretKey::from_seed([9; 32]);
        let refused = RawClient::connect_to(&node.url, &key, &trusting(&node.dir)).await.unwrap_err();
        assert!(matches!(refused, ClientError::Tls { .. }), "{refused}");

        write_pair(&node.dir, 2100);
        node.signal(Signal::SIGHUP);
        node.logs(&["certificate and key were read again"]).await;
        let old = trusting(&node.dir);
        let mut open =
            until("the new certificate is shown", async || RawClient::connect_to(&node.url, &key, &old).await.ok())
                .await;
        let ask = async |client: &mut RawClient, expected: &str| {
            client.send("abc").await.unwrap();
            assert_eq!(timeout(DEADLINE, client.recv()).await.unwrap().unwrap(), Frame::Text(expected.to_owned()));
        };
        ask(&mut open, "3 3").await;

        // A broken file leaves the old pair; a good one takes its place, and the open session goes on.
        fs::write(node.dir.join("cfg/tls.crt"), "broken").unwrap();
        node.signal(Signal::SIGHUP);
        node.logs(&["ERROR", "goes on with the old ones", "tls.crt"]).await;
        assert!(RawClient::connect_to(&node.url, &key, &old).await.is_ok());
        write_pair(&node.dir, 2101);
        node.signal(Signal::SIGHUP);
        let new = trusting(&node.dir);
        let mut signed = until("the newest certificate is shown", async || {
            SignedClient::connect_to(&node.url, &SecretKey::from_seed([8; 32]), &Pins::default(), &new).await.ok()
        })
        .await;
        signed.ask(Query::Lcl).await.unwrap();
        assert!(matches!(timeout(DEADLINE, signed.recv()).await.unwrap().unwrap(), Reply::Answer(_)));
        assert!(RawClient::connect_to(&node.url, &key, &old).await.is_err(), "the old one is shown no more");
        ask(&mut open, "3 6").await;

        // The same for HTTP.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let root = reqwest::Certificate::from_pem(&fs::read(node.dir.join("cfg/tls.crt")).unwrap()).unwrap();
        let https = reqwest::Client::builder().tls_certs_only([root]).timeout(DEADLINE).no_proxy().build().unwrap();
        let answer = https.get(format!("{}/v1/health", node.http)).send().await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.text().await.unwrap()), (200, r#"{"ok":true}"#.to_owned()));
    });
}

#[test]
fn who_speaks_plain_text_on_a_port_with_tls_or_says_nothing_is_dropped() {
    block_on(async {
        let mut net = Net::new(1, probe(), with_tls);
        write_pair(&net.nodes[0].dir, 2100);
        net.start_all().await;
        let node = &net.nodes[0];
        for address in [node.url.strip_prefix("wss://").unwrap(), node.http.strip_prefix("https://").unwrap()] {
            let began = Instant::now();
            let mut plain = TcpStream::connect(address).await.unwrap();
            plain.write_all(b"GET /v1/health HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
            let mut answer = Vec::new();
            let _ = timeout(DEADLINE, plain.read_to_end(&mut answer)).await.expect("it is dropped");
            assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
            assert!(began.elapsed() < Duration::from_secs(4), "at once, not after the handshake's time");
        }
        let address = node.url.strip_prefix("wss://").unwrap();
        let mut silent = TcpStream::connect(address).await.unwrap();
        let _ = timeout(DEADLINE, silent.read_to_end(&mut Vec::new())).await.expect("it is dropped in time");
        let key = SecretKey::from_seed([9; 32]);
        assert!(RawClient::connect_to(&node.url, &key, &trusting(&node.dir)).await.is_ok(), "others are served");
    });
}

#[test]
fn hp_new_makes_a_pair_that_clients_can_be_told_to_trust() {
    block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("node");
        let path = dir.to_str().unwrap();
        let made = call(&[
            "new",
            path,
            "--pubport",
            "0",
            "--peerport",
            "0",
            "--binary",
            probe().to_str().unwrap(),
            "--tls=node.example.org",
        ])
        .await;
        assert_eq!(made.code, Some(0), "{}", made.err);
        assert!(made.out.contains("127.0.0.1, ::1, localhost, node.example.org"), "{}", made.out);
        let fingerprint = made.out.split("sha256:").nth(1).unwrap()[..64].to_owned();
        assert_eq!(fs::metadata(dir.join("cfg/tls.key")).unwrap().permissions().mode() & 0o777, 0o600);
        let mut net = Net::of(folder, vec![dir]);
        net.start_all().await;
        let url = net.nodes[0].url.clone();
        let ca = net.nodes[0].dir.join("cfg/tls.crt").to_str().unwrap().to_owned();
        for trusted in [ca, format!("sha256:{fingerprint}")] {
            let said = call(&["client", &url, "--once", "hello", "--timeout", "60", "--ca", &trusted]).await;
            assert_eq!((said.code, said.out.split(' ').next()), (Some(0), Some("5")), "{}", said.err);
        }
        let said = call(&[
            "client",
            &url,
            "--once",
            "hello",
            "--timeout",
            "5",
            "--ca",
            &format!("sha256:{}", "00".repeat(32)),
        ])
        .await;
        assert!(
            said.code == Some(1) && said.err.contains(&format!("fingerprint sha256:{fingerprint}")),
            "{}",
            said.err
        );
    });
}
