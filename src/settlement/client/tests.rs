//! The client against servers that answer as no bus should.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::*;

/// A server that gives each request what `answer` makes of its head; nothing at all for `None`.
struct Fake {
    url: String,
    connections: Arc<AtomicUsize>,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    async fn start(answer: impl Fn(&str) -> Option<Vec<u8>> + Clone + Send + Sync + 'static) -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (connections, heads) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let fake = Fake { url, connections: connections.clone(), heads: heads.clone() };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(serve(stream, answer.clone(), heads.clone()));
            }
        });
        fake
    }

    fn client(&self) -> Client {
        Client::new(&self.url, Network::Mainnet).unwrap().with_timeout(Duration::from_secs(20))
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

async fn serve(mut stream: TcpStream, answer: impl Fn(&str) -> Option<Vec<u8>>, heads: Arc<Mutex<Vec<String>>>) {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                return;
            }
            continue;
        };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
        if body.len() < length {
            if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                return;
            }
            continue;
        }
        heads.lock().unwrap().push(head.to_owned());
        match answer(head) {
            Some(reply) => stream.write_all(&reply).await.unwrap_or(()),
            None => std::future::pending().await,
        }
        bytes.drain(..head.len() + 4 + length);
    }
}

fn reply(status: &str, body: &str) -> Option<Vec<u8>> {
    Some(format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes())
}

fn address() -> Address {
    Address::new(Network::Mainnet, [7; 32])
}

#[tokio::test]
async fn one_connection_serves_all_requests() {
    let fake = Fake::start(|_| reply("200 OK", r#"{"fee":"30000000000000000"}"#)).await;
    let client = fake.client();
    for _ in 0..20 {
        assert_eq!(client.clone().fee().await.unwrap().to_string(), "0.03 TNK");
    }
    assert_eq!(fake.connections.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn routes_are_those_of_the_bus_below_the_path_of_the_url() {
    let fake = Fake::start(|_| reply("404 Not Found", r#"{"error":"Not Found"}"#)).await;
    let client = Client::new(&format!("{}/some%20bus/", fake.url), Network::Mainnet).unwrap();
    let hash = Hash([0xab; 32]);
    let _ = client.health().await;
    let _ = client.txv().await;
    let _ = client.fee().await;
    let _ = client.confirmed_length().await;
    let _ = client.unconfirmed_length().await;
    let _ = client.balance(&address(), View::Confirmed).await;
    let _ = client.account(&address(), View::Unconfirmed).await;
    let _ = client.broadcast("e30=").await;
    let _ = client.tx(&hash).await;
    let _ = client.tx_details(&hash, View::Confirmed).await;
    let _ = client.tx_hashes(3, 9).await;
    let _ = client.payloads_bulk(&[hash]).await;
    let address = address();
    let expected = [
        "GET /some%20bus/v1/health".to_owned(),
        "GET /some%20bus/v1/txv".to_owned(),
        "GET /some%20bus/v1/fee".to_owned(),
        "GET /some%20bus/v1/confirmed-length".to_owned(),
        "GET /some%20bus/v1/unconfirmed-length".to_owned(),
        format!("GET /some%20bus/v1/balance/{address}?confirmed=true"),
        format!("GET /some%20bus/v1/account/{address}?confirmed=false"),
        "POST /some%20bus/v1/broadcast-transaction".to_owned(),
        format!("GET /some%20bus/v1/tx/{hash}"),
        format!("GET /some%20bus/v1/tx/details/{hash}?confirmed=true"),
        "GET /some%20bus/v1/tx-hashes/3/9".to_owned(),
        "POST /some%20bus/v1/tx-payloads-bulk".to_owned(),
    ];
    let asked = fake.heads();
    let asked: Vec<&str> = asked.iter().map(|head| head.split(" HTTP").next().unwrap()).collect();
    assert_eq!(asked, expected);
}

#[tokio::test]
async fn a_password_in_the_url_is_sent_and_never_shown() {
    let fake = Fake::start(|_| reply("500 Oh", "no")).await;
    let url = fake.url.replace("http://", "http://me:hunter2@");
    let client = Client::new(&url, Network::Mainnet).unwrap();
    let error = client.fee().await.unwrap_err();
    assert!(fake.heads()[0].contains("authorization: Basic bWU6aHVudGVyMg=="), "{:?}", fake.heads());
    drop(fake);
    let gone = Client::new("http://me:hunter2@127.0.0.1:1", Network::Mainnet).unwrap().fee().await.unwrap_err();
    for shown in [client.url(), error.to_string(), format!("{error:?}"), gone.to_string(), format!("{gone:?}")] {
        assert!(!shown.contains("hunter2") && !shown.contains("me:"), "{shown}");
    }
    for wrong in ["http://me:hunter2@:1", "hunter2://x", "http://me:hunter2@[x"] {
        assert!(!Client::new(wrong, Network::Mainnet).unwrap_err().to_string().contains("me:hunter2"), "{wrong}");
    }
}

#[tokio::test]
async fn only_a_bus_says_that_there_is_no_such_operation() {
    let hash = Hash([0xab; 32]);
    for (status, body, absent) in [
        ("404 Not Found", format!(r#"{{"error":"Transaction {hash} not found."}}"#), true),
        ("404 Not Found", format!(r#"{{"error":"No payload found for tx hash: {hash}"}}"#), true),
        ("404 Not Found", r#"{"txDetails":null}"#.to_owned(), true),
        ("200 OK", r#"{"txDetails":null}"#.to_owned(), true),
        ("404 Not Found", r#"{"error":"Not Found"}"#.to_owned(), false),
        ("404 Not Found", "<html>no such page</html>".to_owned(), false),
        ("400 Bad Request", r#"{"error":"Transaction x not found."}"#.to_owned(), false),
        ("502 Bad Gateway", String::new(), false),
    ] {
        let fake = Fake::start({
            let body = body.clone();
            move |_| reply(status, &body)
        })
        .await;
        let told = fake.client().tx(&hash).await;
        assert_eq!(matches!(told, Ok(None)), absent, "{status} {body}: {told:?}");
    }
}

#[tokio::test]
async fn refusals_carry_status_and_text_without_control_characters() {
    let fake = Fake::start(|head| {
        if head.contains("fee") {
            reply("429 Slow", r#"{"error":"bad\u001b[2J\nthing","code":10,"reason":"TX_ALREADY_PENDING"}"#)
        } else {
            reply("503 Down", &"x".repeat(100_000))
        }
    })
    .await;
    match fake.client().fee().await.unwrap_err() {
        ClientError::Refused { status, text, reason, .. } => {
            let reason = reason.as_deref();
            assert_eq!((status, text.as_str(), reason), (429, "bad [2J thing", Some("TX_ALREADY_PENDING")));
        }
        other => panic!("{other:?}"),
    }
    match fake.client().health().await.unwrap_err() {
        ClientError::Refused { status, text, .. } => assert_eq!((status, text.len()), (503, 300)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_no_bus_answers_is_malformed_and_bounded() {
    let long = format!(r#"{{"fee":"{}"}}"#, "1".repeat(ANSWER_BYTES_MAX));
    for body in [
        "",
        "<html>",
        "[]",
        "null",
        r#"{"fee":3}"#,
        r#"{"fee":"-3"}"#,
        r#"{"fee":"3e9"}"#,
        r#"{"fee":null}"#,
        &"[".repeat(10_000),
        &long,
    ] {
        let owned = body.to_owned();
        let fake = Fake::start(move |_| reply("200 OK", &owned)).await;
        let told = fake.client().fee().await;
        let start: String = body.chars().take(20).collect();
        assert!(matches!(told, Err(ClientError::Malformed { .. })), "{start}: {told:?}");
    }
    let fake = Fake::start(|_| reply("200 OK", r#"{"txv":"00","confirmed_length":-1,"ok":false,"hashes":[{}]}"#)).await;
    let client = fake.client();
    let malformed =
        |told: Option<ClientError>| assert!(matches!(told, Some(ClientError::Malformed { .. })), "{told:?}");
    malformed(client.txv().await.err());
    malformed(client.confirmed_length().await.err());
    malformed(client.health().await.err());
    malformed(client.tx_hashes(0, 1).await.err());
    malformed(client.account(&address(), View::Confirmed).await.err());
    malformed(client.broadcast("").await.err());
    malformed(client.payloads_bulk(&[]).await.err());
}

#[tokio::test]
async fn a_body_without_an_end_is_cut_at_the_bound() {
    let fake = Fake::start(|_| {
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n";
        Some([head.as_bytes(), &vec![b'x'; 2 * ANSWER_BYTES_MAX]].concat())
    })
    .await;
    let told = fake.client().fee().await.unwrap_err();
    assert!(told.to_string().contains("longer than 262144 bytes"), "{told}");
}

#[tokio::test]
async fn silence_is_a_timeout_and_nobody_there_is_unreachable() {
    let fake = Fake::start(|_| None).await;
    let told = fake.client().with_timeout(Duration::from_millis(50)).broadcast("e30=").await.unwrap_err();
    assert!(matches!(told, ClientError::Timeout { .. }), "{told:?}");
    // Begins, and does not end.
    let fake = Fake::start(|_| Some(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{".to_vec())).await;
    let told = fake.client().with_timeout(Duration::from_millis(50)).fee().await.unwrap_err();
    assert!(matches!(told, ClientError::Timeout { .. }), "{told:?}");
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let told = Client::new(&format!("http://{free}"), Network::Mainnet).unwrap().fee().await.unwrap_err();
    assert!(matches!(told, ClientError::Unreachable { .. }), "{told:?}");
    assert!(anyhow::Error::new(told).chain().any(|cause| cause.to_string().contains("refused")), "the cause is told");
    // No HTTP, and a connection that breaks in the middle.
    let fake = Fake::start(|_| Some(b"SSH-2.0-OpenSSH\r\n\r\n".to_vec())).await;
    let told = fake.client().fee().await.unwrap_err();
    assert!(matches!(told, ClientError::Unreachable { .. }), "{told:?}");
}

#[tokio::test]
async fn nobody_is_sent_elsewhere() {
    let other = Fake::start(|_| reply("200 OK", r#"{"fee":"1"}"#)).await;
    let to = other.url.clone();
    let fake = Fake::start(move |_| {
        Some(format!("HTTP/1.1 307 Go\r\nLocation: {to}/v1/fee\r\nContent-Length: 0\r\n\r\n").into_bytes())
    })
    .await;
    assert_eq!(fake.client().fee().await.unwrap_err().status(), Some(307));
    assert_eq!(other.connections.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn https_does_not_fall_back_to_plain_text() {
    let fake = Fake::start(|_| reply("200 OK", r#"{"fee":"1"}"#)).await;
    let url = fake.url.replace("http://", "https://");
    let client = Client::new(&url, Network::Mainnet).unwrap().with_timeout(Duration::from_millis(300));
    let told = client.fee().await.unwrap_err();
    assert!(matches!(told, ClientError::Unreachable { .. } | ClientError::Timeout { .. }), "{told:?}");
    assert!(fake.heads().iter().all(|head| !head.contains("GET")), "nothing was asked in the open");
}

/// An authority of one's own.
struct Authority {
    certificate: rcgen::Certificate,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    folder: tempfile::TempDir,
}

impl Authority {
    fn new() -> Authority {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), certificate.pem()).unwrap();
        Authority { certificate, issuer: rcgen::Issuer::new(params, key), folder }
    }

    fn file(&self) -> std::path::PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// A server before `plain` with a certificate for this name, which ends with this year. Its address.
    async fn front(&self, name: &str, year: i32, plain: &Fake) -> std::net::SocketAddr {
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.not_before, params.not_after) = (rcgen::date_time_ymd(2020, 1, 1), rcgen::date_time_ymd(year, 1, 1));
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        let secret = rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], secret)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let to = plain.url.strip_prefix("http://").unwrap().to_owned();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, to) = (acceptor.clone(), to.clone());
                tokio::spawn(async move {
                    // Who refuses the certificate ends it.
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let mut plain = TcpStream::connect(to).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut stream, &mut plain).await;
                });
            }
        });
        address
    }
}

#[tokio::test]
async fn over_https_who_is_not_shown_to_be_the_bus_is_asked_nothing_and_said_why() {
    let fake = Fake::start(|_| reply("200 OK", r#"{"fee":"30000000000000000"}"#)).await;
    let (ours, another) = (Authority::new(), Authority::new());
    let right = ours.front("127.0.0.1", 2100, &fake).await;
    let other_name = ours.front("bus.example.org", 2100, &fake).await;
    let old = ours.front("127.0.0.1", 2021, &fake).await;
    let trusted = Authorities::read(&ours.file()).unwrap();
    let client = |address: std::net::SocketAddr, authorities: Option<&Authorities>| {
        Client::trusting(&format!("https://{address}"), Network::Mainnet, authorities).unwrap()
    };
    let unknown =
        "nobody who is trusted here issued it; if that is a private authority, name its certificate in `[msb] ca_file`";
    for (address, authorities, why) in [
        (right, None, unknown),
        (right, Some(Authorities::read(&another.file()).unwrap()), unknown),
        (other_name, Some(trusted.clone()), "see that the URL has the name that the certificate is for"),
        (old, Some(trusted.clone()), "its owner must renew it, unless the clock here is wrong"),
    ] {
        let told = client(address, authorities.as_ref()).broadcast("e30=").await.unwrap_err();
        assert!(matches!(&told, ClientError::Certificate { what, .. } if what.ends_with(why)), "{told:?}");
        assert!(told.to_string().starts_with(&format!("POST https://{address}/v1/broadcast-transaction: the bus's")));
    }
    assert_eq!(fake.heads(), [""; 0]);
    // The one that is it, over one connection.
    let client = client(right, Some(&trusted));
    for _ in 0..3 {
        assert_eq!(client.fee().await.unwrap().to_string(), "0.03 TNK");
    }
    assert_eq!((fake.heads().len(), fake.connections.load(Ordering::Relaxed)), (3, 1));
    assert!(ours.certificate.der() != another.certificate.der());
}

#[test]
fn a_file_that_names_nobody_to_believe_is_refused_with_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.pem");
    let told = |text: &[u8]| {
        std::fs::write(&file, text).unwrap();
        let error = anyhow::Error::new(Authorities::read(&file).unwrap_err());
        assert!(error.to_string().contains("ca.pem"), "{error}");
        format!("{error:#}")
    };
    assert!(told(b"").contains("there is no certificate in it"));
    assert!(told(b"hello").contains("there is no certificate in it"));
    assert!(
        told(b"-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n").contains("cannot read its certificates")
    );
    assert!(told(&vec![b'x'; (1 << 20) + 1]).contains("longer than"));
    assert!(Authorities::read(folder.path()).unwrap_err().to_string().starts_with("cannot read "));
    assert!(Authorities::read(&folder.path().join("none")).unwrap_err().to_string().starts_with("cannot read "));
}

#[test]
fn what_is_no_url_of_a_bus_is_refused() {
    let told = |url: &str| Client::new(url, Network::Mainnet).unwrap_err().to_string();
    assert!(told("127.0.0.1:5000").starts_with("not a URL") || told("127.0.0.1:5000").contains("expected http"));
    assert_eq!(told("ftp://x"), "expected http:// or https://, got ftp://");
    assert_eq!(told("file:///etc/passwd"), "expected http:// or https://, got file://");
    assert_eq!(told("http://x/?y"), "the URL of a bus has neither ? nor #");
    assert!(told(&format!("http://{}", "x".repeat(3_000))).contains("too long"));
}
