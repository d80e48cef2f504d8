//! The HTTP side over real sockets on loopback, with a node that the tests make.

use std::{collections::VecDeque, sync::Mutex};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, interval, timeout},
};

use super::*;

const DEADLINE: Duration = Duration::from_secs(20);

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// Events that one of the tests' listeners may be behind.
const BEHIND_MAX: usize = 64;

/// Answers health with its word, panics when it is asked for the UNL, and tells what it is given.
struct Fake {
    events: broadcast::Sender<Arc<Event>>,
    asked: Mutex<VecDeque<Question>>,
}

impl Fake {
    fn new() -> Arc<Fake> {
        Arc::new(Fake { events: broadcast::channel(BEHIND_MAX).0, asked: Mutex::default() })
    }

    fn tell(&self, id: u64, data: &str) {
        // Nobody may listen.
        let _ = self.events.send(Arc::new(Event { id, name: "test", data: data.to_owned() }));
    }
}

impl Source for Arc<Fake> {
    fn ask(&self, question: Question) -> Answering {
        self.asked.lock().unwrap().push_back(question.clone());
        Box::pin(async move {
            match question {
                Question::Unl => panic!("SECRET of the node"),
                _ => Ok(json!({ "ok": true })),
            }
        })
    }

    fn events(&self, _after: Option<u64>) -> Option<Subscription> {
        Some(Subscription { past: Vec::new(), future: self.events.subscribe() })
    }
}

fn start(fake: &Arc<Fake>) -> Http {
    let config = HttpConfig {
        listen: LOOPBACK,
        body_bytes_max: 1_000,
        connections_max: 16,
        per_address_max: 16,
        cors: Vec::new(),
        names: vec!["node.test".to_owned()],
        api_tx_exposed: false,
        admin_token: None,
        tls: None,
    };
    Http::start(config, Arc::new(fake.clone())).unwrap()
}

/// A client that reads exactly as much as it is told.
struct Client(TcpStream);

impl Client {
    async fn connect(http: &Http) -> Client {
        Client(TcpStream::connect(http.local_addr()).await.unwrap())
    }

    async fn send(&mut self, path: &str, host: &str) {
        self.0.write_all(format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes()).await.unwrap();
    }

    /// One more piece; nothing at the end.
    async fn piece(&mut self) -> String {
        let mut piece = vec![0; 65_536];
        let count = timeout(DEADLINE, self.0.read(&mut piece)).await.expect("in time").unwrap_or(0);
        String::from_utf8_lossy(&piece[..count]).into_owned()
    }

    /// All up to this text, and what came with it.
    async fn until(&mut self, end: &str) -> String {
        let mut text = String::new();
        loop {
            let piece = self.piece().await;
            assert!(!piece.is_empty(), "it ended with {text}");
            // It may begin in one piece and end in the next. What was looked through is not looked through again.
            let from = text.len().saturating_sub(end.len());
            text += &piece;
            if text.as_bytes()[from..].windows(end.len()).any(|part| part == end.as_bytes()) {
                return text;
            }
        }
    }

    /// The status and the body of an answer with a body of JSON.
    async fn get(&mut self, path: &str, host: &str) -> (u16, String) {
        self.send(path, host).await;
        let text = self.until("}").await;
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        (head.split(' ').nth(1).expect("a status").parse().unwrap(), body.to_owned())
    }
}

#[tokio::test]
async fn a_panic_in_a_route_is_a_bare_500_and_everything_else_goes_on() {
    let fake = Fake::new();
    let http = start(&fake);
    let (mut client, mut other) = (Client::connect(&http).await, Client::connect(&http).await);
    for _ in 0..3 {
        let said = client.get("/v1/unl", "127.0.0.1").await;
        assert_eq!(said, (500, r#"{"error":"An internal error occurred."}"#.to_owned()));
    }
    for client in [&mut client, &mut other] {
        assert_eq!(client.get("/v1/health", "127.0.0.1").await, (200, r#"{"ok":true}"#.to_owned()));
    }
    http.stop().await;
}

/// A page of somebody else whose host name leads to this node reaches nothing, whatever it asks for.
#[tokio::test]
async fn nothing_is_answered_under_another_host_name() {
    let fake = Fake::new();
    let http = start(&fake);
    let mut client = Client::connect(&http).await;
    for path in ["/", "/page/app.js", "/docs", "/v1/status", "/v1/events", "/metrics", "/nothing"] {
        let (status, said) = client.get(path, "evil.example").await;
        assert!(
            status == 421 && said.contains("\\\"evil.example\\\"") && said.contains("[http] names"),
            "{path}: {said}"
        );
    }
    assert_eq!(*fake.asked.lock().unwrap(), [], "the node was asked");
    for host in ["node.test", "localhost:1"] {
        assert_eq!(client.get("/v1/health", host).await.0, 200, "{host}");
    }
}

/// Whoever reads events too slowly is told so and dropped, and nobody waits for it.
#[tokio::test]
async fn a_slow_reader_of_events_is_dropped_with_a_reason_and_the_others_miss_nothing() {
    // Many times what sockets hold.
    const EVENTS: u64 = 6_000;
    let fake = Fake::new();
    let http = start(&fake);
    let mut slow = Client::connect(&http).await;
    let mut stuck = Client::connect(&http).await;
    let mut quick = Client::connect(&http).await;
    for client in [&mut slow, &mut stuck, &mut quick] {
        client.send("/v1/events", "127.0.0.1").await;
        client.until("hotpocket").await;
    }
    let data = format!("{{\"x\":\"{}\"}}", "x".repeat(1_000));
    let (mut text, began) = (String::new(), Instant::now());
    for id in 1..=EVENTS {
        fake.tell(id, &data);
        if id % (BEHIND_MAX as u64 / 2) == 0 || id == EVENTS {
            text += &quick.until(&format!("id: {id}\n")).await;
        }
    }
    assert!(began.elapsed() < DEADLINE, "the quick reader does not wait for the slow ones");
    let ids: Vec<u64> = text.lines().filter_map(|line| line.strip_prefix("id: ")?.parse().ok()).collect();
    assert!(ids.iter().copied().eq(1..=EVENTS), "none is missing, none comes twice");
    assert!(!text.contains("event: dropped"));
    assert!(fake.events.len() <= BEHIND_MAX, "what waits is bounded");

    let late = slow.until("too slow; connect again").await;
    let told = late.lines().filter(|line| line.starts_with("id: ")).count() as u64;
    let missed =
        late.lines().find_map(|line| line.strip_prefix("data: {\"missed\":")?.split(',').next()?.parse::<u64>().ok());
    assert!(
        late.contains("event: dropped") && missed.is_some_and(|missed| missed > 0 && told + missed <= EVENTS),
        "{missed:?}"
    );
    // Nothing follows: the answer is over.
    slow.send("/v1/health", "127.0.0.1").await;
    assert!(slow.until("\"ok\":true").await.contains("200 OK"));

    // One that takes nothing at all is cut, so that its connection is free for others.
    let cut = Instant::now();
    let mut ticks = interval(Duration::from_millis(10));
    while fake.events.receiver_count() > 1 {
        assert!(cut.elapsed() < DEADLINE, "it holds its place for ever");
        ticks.tick().await;
    }
    drop((stuck, quick));
    http.stop().await;
}
