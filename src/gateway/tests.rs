//! A real gateway on a free port, and real connections to it.

use std::collections::HashMap;

use futures::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc::Receiver,
};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use super::*;
use crate::{
    cli::client::{ClientError, Frame, RawClient},
    crypto::SecretKey,
};

type Websocket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Fails a test that waits for something that does not come.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(20), future).await.expect("in time")
}

async fn start(change: impl FnOnce(&mut GatewayConfig)) -> (Gateway, Receiver<GatewayEvent>) {
    start_with_room(EVENTS_MAX, change).await
}

async fn start_with_room(room: usize, change: impl FnOnce(&mut GatewayConfig)) -> (Gateway, Receiver<GatewayEvent>) {
    let mut config = GatewayConfig::new("127.0.0.1:0".parse().unwrap());
    change(&mut config);
    let (sender, events) = mpsc::channel(room);
    (Gateway::start(config, sender).await.unwrap(), events)
}

fn key(number: u8) -> SecretKey {
    SecretKey::from_seed([number; 32])
}

async fn connect(gateway: &Gateway, number: u8) -> RawClient {
    soon(RawClient::connect(&gateway.local_addr().to_string(), &key(number))).await.unwrap()
}

/// A client whose session is open at the gateway.
async fn open(gateway: &Gateway, events: &mut Receiver<GatewayEvent>, number: u8) -> RawClient {
    let client = connect(gateway, number).await;
    assert_eq!(soon(events.recv()).await, Some(GatewayEvent::UserUp { user: client.user() }));
    client
}

/// A websocket and the challenge it was given.
async fn challenged(gateway: &Gateway) -> (Websocket, String) {
    let (mut websocket, _) = soon(connect_async(format!("ws://{}/a/path", gateway.local_addr()))).await.unwrap();
    let text = soon(websocket.next()).await.unwrap().unwrap().into_text().unwrap();
    let challenge = serde_json::from_str::<Value>(&text).unwrap()["challenge"].as_str().unwrap().to_owned();
    assert_eq!(text.as_str(), format!(r#"{{"hotpocket":0.1,"type":"public_challenge","challenge":"{challenge}"}}"#));
    (websocket, challenge)
}

fn helo(key: &SecretKey, challenge: &str) -> Value {
    json!({
        "sig": key.sign(challenge.as_bytes()).to_string(), "pubkey": key.user_key().to_string(),
        "timestamp": 1_567_852_562, "challenge": challenge, "type": "helo",
    })
}

/// The code of the error frame that comes next, and the code of the close frame after it.
async fn refusal(websocket: &mut Websocket) -> (String, u16) {
    let error = soon(websocket.next()).await.unwrap().unwrap().into_text().unwrap();
    let error: Value = serde_json::from_str(&error).unwrap();
    assert_eq!(error["type"], "error");
    let Some(Ok(Message::Close(Some(close)))) = soon(websocket.next()).await else { panic!("closed with a reason") };
    (error["code"].as_str().unwrap().to_owned(), close.code.into())
}

async fn input(events: &mut Receiver<GatewayEvent>) -> (UserKey, u64, Bytes) {
    match soon(events.recv()).await {
        Some(GatewayEvent::Input { user, counter, payload, proof, .. }) => {
            assert!(proof.verify(&user));
            (user, counter, payload)
        }
        other => panic!("expected an input, got {other:?}"),
    }
}

async fn error_code(client: &mut RawClient) -> String {
    match soon(client.recv()).await.unwrap() {
        Frame::Error { code, .. } => code,
        other => panic!("expected an error, got {other:?}"),
    }
}

/// Waits until the gateway serves this many connections.
async fn connections(gateway: &Gateway, count: usize) {
    soon(async {
        while gateway.connections() != count {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// A connection after the HTTP upgrade, and everything that is sent on it from then on is up to the test.
async fn bare(gateway: &Gateway) -> TcpStream {
    let mut stream = TcpStream::connect(gateway.local_addr()).await.unwrap();
    let request = "GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon(stream.read_u8()).await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "));
    stream
}

/// A short frame from the gateway: first byte and payload.
async fn read_frame(stream: &mut TcpStream) -> (u8, Vec<u8>) {
    let first = soon(stream.read_u8()).await.unwrap();
    let len = match soon(stream.read_u8()).await.unwrap() {
        126 => soon(stream.read_u16()).await.unwrap().into(),
        len => usize::from(len),
    };
    let mut payload = vec![0; len];
    soon(stream.read_exact(&mut payload)).await.unwrap();
    (first, payload)
}

/// A frame as a client sends it, masked with zeros.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let len = payload.len();
    let head = match len {
        0..126 => vec![first, 0x80 | len as u8],
        _ => [&[first, 0xfe][..], &u16::try_from(len).unwrap().to_be_bytes()].concat(),
    };
    [&head[..], &[0; 4], payload].concat()
}

/// A bare connection whose session is open.
async fn bare_open(gateway: &Gateway, number: u8) -> TcpStream {
    let mut stream = bare(gateway).await;
    let (_, text) = read_frame(&mut stream).await;
    let offer: Value = serde_json::from_slice(&text).unwrap();
    let helo = helo(&key(number), offer["challenge"].as_str().unwrap()).to_string();
    stream.write_all(&frame(0x81, helo.as_bytes())).await.unwrap();
    stream
}

#[tokio::test]
async fn a_users_inputs_arrive_in_order_with_a_proof() {
    let (gateway, mut events) = start(|_| {}).await;
    let mut client = open(&gateway, &mut events, 1).await;
    for text in ["a", "", "a"] {
        client.send(text).await.unwrap();
    }
    for (counter, text) in ["a", "", "a"].into_iter().enumerate() {
        assert_eq!(input(&mut events).await, (client.user(), counter as u64, Bytes::from(text)));
    }
    assert_eq!((gateway.users(), gateway.connections()), (1, 1));
    let user = client.user();
    client.close().await;
    assert_eq!(soon(events.recv()).await, Some(GatewayEvent::UserDown { user }));
    connections(&gateway, 0).await;
    assert_eq!(gateway.users(), 0);
}

#[tokio::test]
async fn inputs_sent_together_with_the_helo_are_taken() {
    let (gateway, mut events) = start(|_| {}).await;
    let mut stream = bare(&gateway).await;
    let (_, text) = read_frame(&mut stream).await;
    let offer: Value = serde_json::from_slice(&text).unwrap();
    let helo = helo(&key(1), offer["challenge"].as_str().unwrap()).to_string();
    let big = vec![b'x'; 20_000];
    let together = [frame(0x81, helo.as_bytes()), frame(0x81, b"one"), frame(0x82, &big)].concat();
    stream.write_all(&together).await.unwrap();
    assert_eq!(soon(events.recv()).await, Some(GatewayEvent::UserUp { user: key(1).user_key() }));
    assert_eq!(input(&mut events).await.2, "one");
    assert_eq!(input(&mut events).await.2, big);
}

#[tokio::test]
async fn an_upper_case_key_is_the_same_user() {
    let (gateway, mut events) = start(|_| {}).await;
    let (mut websocket, challenge) = challenged(&gateway).await;
    let mut helo = helo(&key(1), &challenge);
    helo["pubkey"] = json!(helo["pubkey"].as_str().unwrap().to_uppercase());
    websocket.send(Message::text(helo.to_string())).await.unwrap();
    assert_eq!(soon(events.recv()).await, Some(GatewayEvent::UserUp { user: key(1).user_key() }));
}

#[tokio::test]
async fn nobody_acts_as_another_user() {
    let (gateway, mut events) = start(|_| {}).await;
    let mine = key(1);
    let victim = key(2).user_key();
    type Change = fn(&mut Value, UserKey);
    let cases: [(Change, &str); 4] = [
        (
            |helo, victim| helo["pubkey"] = json!(format!("{}zz;{victim}", helo["pubkey"].as_str().unwrap())),
            "bad_format",
        ),
        (|helo, victim| helo["pubkey"] = json!(victim.to_string()), "bad_sig"),
        (|helo, _| helo["challenge"] = json!("00".repeat(16)), "bad_challenge"),
        (|helo, _| helo["sig"] = json!("00".repeat(64)), "bad_sig"),
    ];
    for (change, code) in cases {
        let (mut websocket, challenge) = challenged(&gateway).await;
        let mut helo = helo(&mine, &challenge);
        change(&mut helo, victim);
        websocket.send(Message::text(helo.to_string())).await.unwrap();
        websocket.send(Message::text("an input")).await.unwrap();
        assert_eq!(refusal(&mut websocket).await, (code.to_owned(), 1008));
    }
    // A good helo of another session is worth nothing here.
    let (_first, challenge) = challenged(&gateway).await;
    let (mut second, _) = challenged(&gateway).await;
    second.send(Message::text(helo(&mine, &challenge).to_string())).await.unwrap();
    assert_eq!(refusal(&mut second).await.0, "bad_challenge");
    assert!(events.try_recv().is_err(), "none of them became a user");
}

#[tokio::test]
async fn a_null_frame_is_refused_before_the_helo_and_an_input_after_it() {
    let (gateway, mut events) = start(|_| {}).await;
    for text in ["null", "[]", "{", ""] {
        let (mut websocket, _) = challenged(&gateway).await;
        websocket.send(Message::text(text)).await.unwrap();
        assert_eq!(refusal(&mut websocket).await, ("bad_format".to_owned(), 1008), "{text}");
    }
    let (mut websocket, _) = challenged(&gateway).await;
    websocket.send(Message::text("x".repeat(HELO_BYTES_MAX + 1))).await.unwrap();
    assert_eq!(refusal(&mut websocket).await, ("too_large".to_owned(), 1009));
    let mut client = open(&gateway, &mut events, 1).await;
    client.send("null").await.unwrap();
    assert_eq!(input(&mut events).await.2, "null");
}

#[tokio::test]
async fn bytes_that_are_no_websocket_end_that_connection_only() {
    let (gateway, mut events) = start(|_| {}).await;
    let mut bystander = open(&gateway, &mut events, 1).await;
    let malformed: [(&[u8], u16); 7] = [
        (&[0xff; 64], 1002),
        (&[0x81, 0x01, b'x'], 1002),
        (&[0x83, 0x80, 0, 0, 0, 0], 1002),
        (&[0x80, 0x80, 0, 0, 0, 0], 1002),
        (&[0x09, 0x80, 0, 0, 0, 0], 1002),
        (&[0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0], 1009),
        (&[0x81, 0x82, 0, 0, 0, 0, 0xc3, 0x28], 1007),
    ];
    for (bytes, code) in malformed {
        for is_open in [false, true] {
            let mut stream = match is_open {
                true => bare_open(&gateway, 2).await,
                false => bare(&gateway).await,
            };
            stream.write_all(bytes).await.unwrap();
            let close = loop {
                match read_frame(&mut stream).await {
                    (0x88, payload) => break payload,
                    (first, _) => assert_eq!(first, 0x81),
                }
            };
            assert_eq!(close[..2], code.to_be_bytes(), "{bytes:x?}");
            // The bystander is served as ever. An opened session of the other has come and gone around it.
            bystander.send("still here").await.unwrap();
            while !matches!(soon(events.recv()).await, Some(GatewayEvent::Input { .. })) {}
        }
    }
    let mut no_http = TcpStream::connect(gateway.local_addr()).await.unwrap();
    no_http.write_all(b"\x00\x01 no http at all\r\n\r\n").await.unwrap();
    let _ = soon(no_http.read(&mut [0; 16])).await;
    gateway.deliver(&bystander.user(), "output".into());
    assert_eq!(soon(bystander.recv()).await.unwrap(), Frame::Text("output".into()));
}

#[tokio::test]
async fn binary_passes_both_ways_unaltered() {
    let (gateway, mut events) = start(|_| {}).await;
    let mut client = open(&gateway, &mut events, 1).await;
    let bytes = Bytes::from((0..=255).cycle().take(70_000).collect::<Vec<u8>>());
    client.send(bytes.clone()).await.unwrap();
    assert_eq!(input(&mut events).await.2, bytes);
    for (output, expected) in [
        (bytes.clone(), Frame::Binary(bytes.clone())),
        (Bytes::from("é\0\n"), Frame::Text("é\0\n".into())),
        (bytes.slice(0x80..0xc0), Frame::Binary(bytes.slice(0x80..0xc0))),
        (Bytes::new(), Frame::Text(String::new())),
    ] {
        gateway.deliver(&client.user(), output);
        assert_eq!(soon(client.recv()).await.unwrap(), expected);
    }
}

#[tokio::test]
async fn an_output_longer_than_the_queue_arrives_whole() {
    let (gateway, mut events) = start(|config| config.queue_bytes_max = 1_000).await;
    let mut client = open(&gateway, &mut events, 1).await;
    let output = Bytes::from(vec![0xfe; 9 << 20]);
    gateway.deliver(&client.user(), output.clone());
    assert_eq!(soon(client.recv()).await.unwrap(), Frame::Binary(output));
}

#[tokio::test]
async fn a_message_that_is_too_large_is_refused_and_the_session_goes_on() {
    let (gateway, mut events) = start(|config| config.message_bytes_max = 100).await;
    let mut client = open(&gateway, &mut events, 1).await;
    client.send("x".repeat(101)).await.unwrap();
    client.send("y".repeat(60_000)).await.unwrap();
    client.send("z".repeat(100)).await.unwrap();
    assert_eq!(error_code(&mut client).await, "too_large");
    assert_eq!(error_code(&mut client).await, "too_large");
    assert_eq!(input(&mut events).await, (client.user(), 0, Bytes::from("z".repeat(100))));
}

#[tokio::test]
async fn a_message_too_large_to_skip_is_answered_before_the_close() {
    let (gateway, mut events) = start(|config| config.message_bytes_max = 100).await;
    let mut client = open(&gateway, &mut events, 1).await;
    // More than the buffers of a connection hold: the client is still sending when the gateway has given up.
    soon(client.send(vec![0xfe; 12 << 20])).await.unwrap();
    assert_eq!(error_code(&mut client).await, "too_large");
    match soon(client.recv()).await {
        Err(ClientError::Closed { code, .. }) => assert_eq!(code, Some(1009)),
        other => panic!("expected a close, got {other:?}"),
    }
    assert_eq!(soon(events.recv()).await, Some(GatewayEvent::UserDown { user: client.user() }));
}

#[tokio::test]
async fn a_burst_gets_the_messages_of_one_minute_over_all_sessions_of_the_user() {
    let (gateway, mut events) = start_with_room(2_000, |config| config.messages_per_minute = Some(100)).await;
    let mut client = open(&gateway, &mut events, 1).await;
    let mut again = connect(&gateway, 1).await;
    let mut other = open(&gateway, &mut events, 2).await;
    let began = Instant::now();
    for n in 0..500 {
        client.send(format!("{n}")).await.unwrap();
        again.send(format!("{n}")).await.unwrap();
    }
    other.send("slow").await.unwrap();
    let mut passed = HashMap::new();
    let mut errors = 0;
    while passed.values().sum::<u32>() + errors < 1_001 {
        tokio::select! {
            event = soon(events.recv()) => match event {
                Some(GatewayEvent::Input { user, .. }) => *passed.entry(user).or_default() += 1,
                other => panic!("expected an input, got {other:?}"),
            },
            code = error_code(&mut client) => { errors += 1; assert_eq!(code, "rate"); }
            code = error_code(&mut again) => { errors += 1; assert_eq!(code, "rate"); }
        }
    }
    // 100 a minute come back while the burst lasts.
    let most = 100 + began.elapsed().as_millis() as u32 / 600 + 1;
    assert!((100..=most).contains(&passed[&client.user()]), "{passed:?}");
    assert_eq!(passed[&other.user()], 1, "another user is not refused");
}

#[tokio::test]
async fn connections_over_the_limits_are_told_busy() {
    let change: [fn(&mut GatewayConfig); 2] =
        [|config| config.connections_max = 2, |config| config.per_address_max = 2];
    for change in change {
        let (gateway, mut events) = start(change).await;
        let first = open(&gateway, &mut events, 1).await;
        let _silent = TcpStream::connect(gateway.local_addr()).await.unwrap();
        connections(&gateway, 2).await;
        for _ in 0..3 {
            match soon(RawClient::connect(&gateway.local_addr().to_string(), &key(3))).await {
                Err(ClientError::Busy { why, .. }) => assert!(why.contains("all 2 connections"), "{why}"),
                other => panic!("expected busy, got {other:?}"),
            }
        }
        assert_eq!(gateway.connections(), 2);
        let user = first.user();
        first.close().await;
        assert_eq!(soon(events.recv()).await, Some(GatewayEvent::UserDown { user }));
        connections(&gateway, 1).await;
        open(&gateway, &mut events, 3).await;
    }
}

/// What a node says to this key when it proves to be its own and is not let in.
async fn turned_away(gateway: &Gateway, number: u8) -> (String, u16) {
    let (mut websocket, challenge) = challenged(gateway).await;
    soon(websocket.send(Message::text(helo(&key(number), &challenge).to_string()))).await.unwrap();
    refusal(&mut websocket).await
}

#[tokio::test]
async fn a_user_beyond_the_nodes_share_is_told_so_and_who_is_there_may_come_twice() {
    let (gateway, mut events) = start(|config| config.users_max = 2).await;
    let first = open(&gateway, &mut events, 1).await;
    let second = open(&gateway, &mut events, 2).await;
    assert_eq!(turned_away(&gateway, 3).await, ("full".to_owned(), 1013));
    let mut again = connect(&gateway, 1).await;
    soon(again.send("heard")).await.unwrap();
    assert_eq!(input(&mut events).await, (first.user(), 0, Bytes::from("heard")));
    let user = second.user();
    second.close().await;
    assert_eq!(soon(events.recv()).await, Some(GatewayEvent::UserDown { user }));
    open(&gateway, &mut events, 3).await;
}

#[tokio::test]
async fn where_the_share_gets_smaller_the_last_by_key_are_let_go_with_what_waits_for_them() {
    let (gateway, mut events) = start(|_| {}).await;
    let mut clients = Vec::new();
    for number in 1..=3 {
        clients.push(open(&gateway, &mut events, number).await);
    }
    clients.sort_by_key(RawClient::user);
    let mut twice = connect(&gateway, 1).await;
    soon(twice.send("here")).await.unwrap();
    input(&mut events).await;
    let last = clients[2].user();
    gateway.deliver(&last, Bytes::from("the last word"));
    gateway.set_users_max(2);
    assert_eq!(gateway.users_max(), 2);
    assert_eq!(soon(clients[2].recv()).await.unwrap(), Frame::Text("the last word".into()));
    assert_eq!(error_code(&mut clients[2]).await, "full");
    assert_eq!(soon(events.recv()).await, Some(GatewayEvent::UserDown { user: last }));
    assert_eq!(turned_away(&gateway, 9).await, ("full".to_owned(), 1013));
    for client in &mut clients[..2] {
        soon(client.send("still here")).await.unwrap();
        assert_eq!(input(&mut events).await.0, client.user());
    }
    gateway.set_users_max(3);
    open(&gateway, &mut events, 9).await;
}

#[tokio::test]
async fn whoever_does_not_say_helo_in_time_is_dropped() {
    let (gateway, mut events) = start(|config| config.handshake_timeout = Duration::from_millis(100)).await;
    let mut silent = TcpStream::connect(gateway.local_addr()).await.unwrap();
    let (mut websocket, _) = challenged(&gateway).await;
    let mut trickle = bare(&gateway).await;
    trickle.write_all(&frame(0x81, b"{\"type\"")[..8]).await.unwrap();
    assert_eq!(refusal(&mut websocket).await, ("timeout".to_owned(), 1008));
    assert_eq!(soon(silent.read(&mut [0; 1])).await.unwrap(), 0);
    soon(trickle.read_to_end(&mut Vec::new())).await.unwrap();
    drop((silent, websocket, trickle));
    connections(&gateway, 0).await;
    assert!(events.try_recv().is_err());
}

#[tokio::test]
async fn every_session_of_a_key_gets_every_output_and_the_last_to_leave_takes_the_user_along() {
    let (gateway, mut events) = start(|_| {}).await;
    let mut first = open(&gateway, &mut events, 1).await;
    let mut second = connect(&gateway, 1).await;
    let mut other = open(&gateway, &mut events, 2).await;
    second.send("hello").await.unwrap();
    let Some(GatewayEvent::Input { user, session, counter, .. }) = soon(events.recv()).await else {
        panic!("no input")
    };
    assert_eq!((user, counter, gateway.users(), gateway.connections()), (first.user(), 0, 2, 3));

    gateway.deliver(&user, "to both".into());
    gateway.refuse(session, ErrorCode::Busy, "pool full");
    gateway.tell(&user, ErrorCode::Expired, "ledger 7");
    let busy = Frame::Error { code: "busy".into(), message: "pool full".into() };
    let expired = Frame::Error { code: "expired".into(), message: "ledger 7".into() };
    for expected in [Frame::Text("to both".into()), expired.clone()] {
        assert_eq!(soon(first.recv()).await.unwrap(), expected);
    }
    for expected in [Frame::Text("to both".into()), busy, expired] {
        assert_eq!(soon(second.recv()).await.unwrap(), expected);
    }
    gateway.deliver(&other.user(), "to one".into());
    assert_eq!(soon(other.recv()).await.unwrap(), Frame::Text("to one".into()), "and nothing before");

    first.close().await;
    connections(&gateway, 2).await;
    second.send("still here").await.unwrap();
    assert_eq!(input(&mut events).await.2, "still here");
    second.close().await;
    assert_eq!(soon(events.recv()).await, Some(GatewayEvent::UserDown { user }));
    // Late words to those who left go nowhere.
    gateway.deliver(&user, "late".into());
    gateway.refuse(session, ErrorCode::Busy, "late");
}

#[tokio::test]
async fn a_user_that_does_not_read_is_dropped_and_the_others_miss_nothing() {
    let (gateway, mut events) = start(|config| config.queue_bytes_max = 256 << 10).await;
    let mut stuck = bare_open(&gateway, 1).await;
    let stuck_user = key(1).user_key();
    assert_eq!(soon(events.recv()).await, Some(GatewayEvent::UserUp { user: stuck_user }));
    let mut reader = open(&gateway, &mut events, 2).await;
    let output = Bytes::from(vec![0xff; 100 << 10]);
    let mut rounds = 0;
    let dropped = loop {
        gateway.deliver(&stuck_user, output.clone());
        gateway.deliver(&reader.user(), output.clone());
        assert_eq!(soon(reader.recv()).await.unwrap(), Frame::Binary(output.clone()));
        rounds += 1;
        assert!(rounds < 1_000, "the queue is bounded");
        if let Ok(event) = events.try_recv() {
            break event;
        }
    };
    assert_eq!(dropped, GatewayEvent::UserDown { user: stuck_user });
    connections(&gateway, 1).await;
    // What was sent before comes, as much as the connection held.
    let mut received = Vec::new();
    let _ = soon(stuck.read_to_end(&mut received)).await;
    let whole = [&[0x82, 0x7f][..], &(output.len() as u64).to_be_bytes(), &output].concat();
    let mut rest = &received[..];
    while let Some(after) = rest.strip_prefix(&whole[..]) {
        rest = after;
    }
    // Then a part of one more, or why it ends.
    assert!(!received.is_empty() && (whole.starts_with(rest) || rest[0] == 0x81), "{} bytes", received.len());
}

#[tokio::test]
async fn inputs_accepted_before_a_disconnect_all_arrive_in_order_and_before_the_user_is_down() {
    let (gateway, mut events) = start_with_room(2, |_| {}).await;
    let mut client = connect(&gateway, 1).await;
    for n in 0..400 {
        client.send(format!("{n}")).await.unwrap();
    }
    // Without a close frame, while the node has taken nothing yet.
    let user = client.user();
    drop(client);
    assert_eq!(soon(events.recv()).await, Some(GatewayEvent::UserUp { user }));
    for n in 0..400 {
        assert_eq!(input(&mut events).await, (user, n, Bytes::from(format!("{n}"))));
    }
    assert_eq!(soon(events.recv()).await, Some(GatewayEvent::UserDown { user }));
}

#[tokio::test]
async fn an_input_that_waits_for_the_node_outlives_its_session() {
    let (gateway, mut events) = start_with_room(1, |config| config.queue_bytes_max = 1_000).await;
    let mut stream = bare_open(&gateway, 1).await;
    let user = key(1).user_key();
    connections(&gateway, 1).await;
    soon(async {
        while gateway.users() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // The event of the user has all the room there is. The ping is answered when what came with it is read.
    stream.write_all(&[frame(0x89, b"read?"), frame(0x81, b"waits")].concat()).await.unwrap();
    assert_eq!(read_frame(&mut stream).await, (0x8a, b"read?".to_vec()));
    // Behind a frame that is longer than what a connection holds a second one does not fit, and the session is dropped for it.
    gateway.deliver(&user, vec![0xff; 32 << 20].into());
    gateway.deliver(&user, vec![0xff; 900].into());
    soon(stream.read_to_end(&mut Vec::new())).await.unwrap();
    assert_eq!(soon(events.recv()).await, Some(GatewayEvent::UserUp { user }));
    assert_eq!(input(&mut events).await, (user, 0, "waits".into()));
    assert_eq!(soon(events.recv()).await, Some(GatewayEvent::UserDown { user }));
}

#[tokio::test]
async fn inputs_of_one_that_hangs_up_without_reading_its_outputs_all_arrive() {
    let (gateway, mut events) = start_with_room(1, |_| {}).await;
    let mut stream = bare_open(&gateway, 1).await;
    let user = key(1).user_key();
    soon(async {
        while gateway.users() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let inputs = (0..3_000).map(|n| frame(0x81, format!("{n:04}").as_bytes())).collect::<Vec<_>>().concat();
    soon(stream.write_all(&inputs)).await.unwrap();
    gateway.deliver(&user, "output".into());
    // An output lies unread when the connection is dropped, so that it is reset.
    soon(stream.readable()).await.unwrap();
    drop(stream);
    assert_eq!(soon(events.recv()).await, Some(GatewayEvent::UserUp { user }));
    for n in 0..3_000 {
        gateway.deliver(&user, "output".into());
        assert_eq!(input(&mut events).await, (user, n, Bytes::from(format!("{n:04}"))));
    }
    assert_eq!(soon(events.recv()).await, Some(GatewayEvent::UserDown { user }));
}

#[tokio::test]
async fn a_busy_node_slows_inputs_down_loses_none_and_outputs_still_flow() {
    let ping_every = Duration::from_millis(20);
    let (gateway, mut events) = start_with_room(1, |config| config.ping_every = ping_every).await;
    let mut client = open(&gateway, &mut events, 1).await;
    for n in 0..10 {
        client.send(format!("{n}")).await.unwrap();
    }
    // Many pings long the node takes nothing, and the session lives.
    let until = Instant::now() + ping_every * 10;
    while Instant::now() < until {
        gateway.deliver(&client.user(), "tick".into());
        assert_eq!(soon(client.recv()).await.unwrap(), Frame::Text("tick".into()));
    }
    for n in 0..10 {
        assert_eq!(input(&mut events).await, (client.user(), n, Bytes::from(format!("{n}"))));
    }
}

#[tokio::test]
async fn a_dead_connection_is_dropped_after_two_pings_and_a_quiet_live_one_is_not() {
    let (gateway, mut events) = start(|config| config.ping_every = Duration::from_millis(50)).await;
    let mut live = open(&gateway, &mut events, 1).await;
    let mut dead = bare_open(&gateway, 2).await;
    let user = key(2).user_key();
    assert_eq!(soon(events.recv()).await, Some(GatewayEvent::UserUp { user }));
    let opened = Instant::now();
    tokio::select! {
        event = soon(events.recv()) => assert_eq!(event, Some(GatewayEvent::UserDown { user })),
        frame = live.recv() => panic!("the live one was sent {frame:?}"),
    }
    assert!(opened.elapsed() >= Duration::from_millis(100), "not before the second ping was missed");
    let mut received = Vec::new();
    soon(dead.read_to_end(&mut received)).await.unwrap();
    assert_eq!(received, [0x89, 0, 0x89, 0], "two pings");
    live.send("alive").await.unwrap();
    assert_eq!(input(&mut events).await.2, "alive");
}

#[tokio::test]
async fn who_floods_without_reading_the_refusals_is_read_no_further() {
    let (gateway, mut events) = start(|config| config.messages_per_minute = Some(1)).await;
    let mut flood = bare_open(&gateway, 1).await;
    let mut other = open_after(&gateway, &mut events, 2).await;
    let messages = frame(0x82, &[0; 500]).repeat(200);
    let mut sent = 0;
    let mut rest = &messages[..];
    // Buffers of the operating system fill up in both directions, then nothing more is taken.
    while let Ok(written) = timeout(Duration::from_millis(500), flood.write(rest)).await {
        let written = written.unwrap();
        sent += written;
        rest = if written == rest.len() { &messages } else { &rest[written..] };
        assert!(sent < 100 << 20, "the flood is never stopped");
    }
    other.send("served").await.unwrap();
    while input(&mut events).await.0 != other.user() {}
}

/// Like `open`, when another user may come up first.
async fn open_after(gateway: &Gateway, events: &mut Receiver<GatewayEvent>, number: u8) -> RawClient {
    let client = connect(gateway, number).await;
    while soon(events.recv()).await != Some(GatewayEvent::UserUp { user: client.user() }) {}
    client
}

#[tokio::test]
async fn up_and_down_of_a_user_alternate_however_its_sessions_overlap() {
    let (gateway, mut events) = start_with_room(1, |_| {}).await;
    let churn = async {
        for _ in 0..20 {
            let (first, second) = tokio::join!(connect(&gateway, 1), connect(&gateway, 1));
            drop(first);
            let third = connect(&gateway, 1).await;
            drop((second, third));
        }
        connections(&gateway, 0).await;
    };
    let mut up = false;
    let mut watch = |event| match event {
        Some(GatewayEvent::UserUp { .. }) if !up => up = true,
        Some(GatewayEvent::UserDown { .. }) if up => up = false,
        other => panic!("{other:?} while up = {up}"),
    };
    let mut churn = std::pin::pin!(churn);
    loop {
        tokio::select! {
            event = events.recv() => watch(event),
            () = &mut churn => break,
        }
    }
    while let Ok(event) = events.try_recv() {
        watch(Some(event));
    }
    assert!(!up);
}

#[tokio::test]
async fn an_address_whose_handshakes_fail_is_refused_and_its_users_do_not_count() {
    let (gateway, mut events) = start(|config| config.failed_per_minute = Some(3)).await;
    let mut users = Vec::new();
    for number in 1..=10 {
        users.push(open(&gateway, &mut events, number).await);
    }
    let (mut wrong, challenge) = challenged(&gateway).await;
    wrong.send(Message::text(helo(&key(1), &challenge).to_string().replace("helo", "hello"))).await.unwrap();
    assert_eq!(refusal(&mut wrong).await.0, "bad_format");
    // One that says nothing, and one that hangs up at once.
    let silent = TcpStream::connect(gateway.local_addr()).await.unwrap();
    connections(&gateway, 11).await;
    drop(TcpStream::connect(gateway.local_addr()).await.unwrap());

    let mut refused = TcpStream::connect(gateway.local_addr()).await.unwrap();
    let mut answer = String::new();
    soon(refused.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains(r#""code":"busy""#), "{answer}");
    assert!(answer.contains("more than 3 handshakes a minute"), "{answer}");
    users[9].send("served").await.unwrap();
    assert_eq!(input(&mut events).await.2, "served");
    drop((silent, users));
    connections(&gateway, 0).await;
}

#[tokio::test]
async fn strangers_go_on_in_turns_and_users_need_none() {
    let (gateway, mut events) = start(|_| {}).await;
    let mut user = open(&gateway, &mut events, 1).await;
    let turn = gateway.shared.turns.hold().await;
    let mut stranger = TcpStream::connect(gateway.local_addr()).await.unwrap();
    stranger.write_all(b"no HTTP\r\n\r\n").await.unwrap();
    connections(&gateway, 2).await;
    for _ in 0..20 {
        user.send("served").await.unwrap();
        assert_eq!(input(&mut events).await.2, "served");
        gateway.deliver(&user.user(), "output".into());
        assert_eq!(soon(user.recv()).await.unwrap(), Frame::Text("output".into()));
    }
    assert_eq!(gateway.connections(), 2, "nobody has looked at what the stranger says");
    drop(turn);
    let _ = soon(stranger.read(&mut [0; 16])).await;
    connections(&gateway, 1).await;
}

#[tokio::test]
async fn while_its_thread_is_busy_nobody_waits_for_the_gateway() {
    use rustls::{
        ClientConfig, ClientConnection, RootCertStore, ServerConfig,
        crypto::ring,
        server::{ClientHello, ResolvesServerCert},
        sign::CertifiedKey,
    };

    /// Has no certificate, and takes its time to say so.
    #[derive(Debug)]
    struct Busy {
        asked: mpsc::UnboundedSender<()>,
        go_on: Mutex<std::sync::mpsc::Receiver<()>>,
    }
    impl ResolvesServerCert for Busy {
        fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
            self.asked.send(()).unwrap();
            // Where the test stands still meanwhile it fails, instead of waiting for ever.
            let _ = self.go_on.lock().unwrap().recv_timeout(Duration::from_secs(20));
            None
        }
    }

    let (asked, mut is_busy) = mpsc::unbounded_channel();
    let (go_on, go_on_rx) = std::sync::mpsc::channel();
    let provider = Arc::new(ring::default_provider());
    let server = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Busy { asked, go_on: Mutex::new(go_on_rx) }));
    let (gateway, _events) = start(|config| config.tls = Some(Tls::of(server))).await;
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let mut client = ClientConnection::new(Arc::new(client), "localhost".try_into().unwrap()).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    let mut stream = TcpStream::connect(gateway.local_addr()).await.unwrap();
    stream.write_all(&hello).await.unwrap();
    soon(is_busy.recv()).await.unwrap();

    let user = key(1).user_key();
    gateway.deliver(&user, "output".into());
    gateway.tell(&user, ErrorCode::Expired, "an input");
    gateway.announce(ErrorCode::Halted, "wait", true);
    gateway.say_to_all_signed("a frame".into());
    assert!(gateway.raw().slow([user].iter(), Duration::from_secs(20)).await.is_empty());
    assert_eq!((gateway.users(), gateway.connections(), gateway.allows(&user)), (0, 1, true));
    // Still at it: whatever was asked did not wait for its end.
    go_on.send(()).unwrap();
    connections(&gateway, 0).await;

    stream = TcpStream::connect(gateway.local_addr()).await.unwrap();
    stream.write_all(&hello).await.unwrap();
    soon(is_busy.recv()).await.unwrap();
    let began = Instant::now();
    gateway.stop().await;
    assert!(began.elapsed() < Duration::from_secs(10), "the end of a node does not wait for it either");
    go_on.send(()).unwrap();
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let (gateway, _events) = start(|_| {}).await;
    let (sender, _others) = mpsc::channel(1);
    let error = Gateway::start(GatewayConfig::new(gateway.local_addr()), sender).await.unwrap_err();
    assert!(matches!(error, GatewayError::PortTaken { address, .. } if address == gateway.local_addr()));
    assert!(error.to_string().contains(&gateway.local_addr().to_string()));
}

#[tokio::test]
async fn it_listens_on_the_configured_address_only() {
    let (gateway, _events) = start(|_| {}).await;
    assert_eq!(gateway.local_addr().ip().to_string(), "127.0.0.1");
    assert!(TcpStream::connect(("127.0.0.2", gateway.local_addr().port())).await.is_err());
    assert!(TcpStream::connect(gateway.local_addr()).await.is_ok());
}

#[tokio::test]
async fn stopping_sends_what_was_delivered_then_a_close_frame_and_waits_for_nobody() {
    let (gateway, mut events) = start_with_room(1, |_| {}).await;
    let mut client = open(&gateway, &mut events, 1).await;
    let mut stuck = open(&gateway, &mut events, 2).await;
    for _ in 0..10 {
        // The node takes none of them.
        stuck.send("x").await.unwrap();
    }
    let (_challenged, _) = challenged(&gateway).await;
    let _silent = TcpStream::connect(gateway.local_addr()).await.unwrap();
    connections(&gateway, 4).await;
    let address = gateway.local_addr();
    let long = Bytes::from(vec![0xff; 900_000]);
    gateway.deliver(&client.user(), long.clone());
    gateway.deliver(&client.user(), "last words".into());
    let began = Instant::now();
    let (long_read, ()) = tokio::join!(soon(client.recv()), gateway.stop());
    assert!(began.elapsed() < Duration::from_secs(1), "took {:?}", began.elapsed());
    assert_eq!(long_read.unwrap(), Frame::Binary(long));
    assert_eq!(soon(client.recv()).await.unwrap(), Frame::Text("last words".into()));
    assert!(matches!(soon(client.recv()).await, Err(ClientError::Closed { code: Some(1001), .. })));
    assert!(TcpStream::connect(address).await.is_err());
}

/// A session in signed mode that was welcomed.
async fn signed(gateway: &Gateway, events: &mut Receiver<GatewayEvent>, number: u8) -> (Websocket, SessionId) {
    let (mut websocket, challenge) = challenged(gateway).await;
    let mut helo = helo(&key(number), &challenge);
    helo["mode"] = json!("signed");
    websocket.send(Message::text(helo.to_string())).await.unwrap();
    let user = key(number).user_key();
    let session = loop {
        match soon(events.recv()).await {
            Some(GatewayEvent::Opened { user: opened, session }) => {
                assert_eq!(opened, user);
                break session;
            }
            Some(GatewayEvent::UserUp { .. }) => {}
            other => panic!("expected a session, got {other:?}"),
        }
    };
    // Nothing goes out before the welcome.
    gateway.say(&user, "too early".into());
    assert!(!gateway.has_signed(&user));
    let hello = crate::signed::Reply::Error(crate::signed::ErrorFrame { code: "first".into(), message: "x".into() });
    gateway.welcome(&user, session, &hello);
    assert_eq!(frame_of(&mut websocket).await["code"], "first");
    (websocket, session)
}

async fn frame_of(websocket: &mut Websocket) -> Value {
    let text = soon(websocket.next()).await.unwrap().unwrap().into_text().unwrap();
    serde_json::from_str(&text).unwrap()
}

fn signed_input(nonce: u64, payload: &[u8]) -> String {
    let input = crate::signed::sign_input(&key(1), &crate::types::Hash([1; 32]), nonce, 9, payload.to_vec());
    Request::Input(input.into()).to_json()
}

#[tokio::test]
async fn in_signed_mode_requests_arrive_parsed_and_raw_words_go_to_raw_sessions_alone() {
    let (gateway, mut events) = start(|config| config.message_bytes_max = 100).await;
    let mut raw = open(&gateway, &mut events, 1).await;
    let (mut websocket, session) = signed(&gateway, &mut events, 1).await;
    let user = key(1).user_key();
    assert_eq!((gateway.users(), gateway.signed_users()), (1, BTreeSet::from([user])));
    websocket.send(Message::text(signed_input(5, &[7; 100]))).await.unwrap();
    match soon(events.recv()).await {
        Some(GatewayEvent::Request { user: from, session: through, request: Request::Input(input) }) => {
            assert_eq!((from, through, input.nonce, input.payload.0), (user, session, 5, vec![7; 100]));
        }
        other => panic!("expected an input, got {other:?}"),
    }
    gateway.deliver(&user, "raw output".into());
    gateway.tell(&user, ErrorCode::Expired, "raw");
    gateway.say(&user, r#"{"for":"signed"}"#.into());
    gateway.answer(session, r#"{"to":"one"}"#.into());
    assert_eq!(frame_of(&mut websocket).await["for"], "signed");
    assert_eq!(frame_of(&mut websocket).await["to"], "one");
    assert_eq!(soon(raw.recv()).await.unwrap(), Frame::Text("raw output".into()));
    assert_eq!(error_code(&mut raw).await, "expired");
    let mut left = gateway.left(session).expect("it is open");
    drop(websocket);
    // The end of the session is the end of the channel.
    assert!(soon(left.changed()).await.is_err() && gateway.left(session).is_none());
    connections(&gateway, 1).await;
    assert!(!gateway.has_any_signed());
}

#[tokio::test]
async fn in_signed_mode_what_is_malformed_too_large_or_too_often_is_answered_and_the_session_stays() {
    let (gateway, mut events) = start(|config| {
        config.message_bytes_max = 100;
        config.messages_per_minute = Some(7);
    })
    .await;
    let (mut websocket, _) = signed(&gateway, &mut events, 1).await;
    for malformed in ["null", "{}", r#"{"type":"input"}"#] {
        websocket.send(Message::text(malformed)).await.unwrap();
        let error = frame_of(&mut websocket).await;
        assert_eq!((&error["type"], &error["code"]), (&json!("error"), &json!("bad_format")), "{malformed}");
    }
    websocket.send(Message::text(signed_input(7, &[0; 101]))).await.unwrap();
    let status = frame_of(&mut websocket).await;
    assert_eq!(
        (&status["nonce"], &status["status"], &status["reason"]),
        (&json!(7), &json!("rejected"), &json!("too_large"))
    );
    websocket.send(Message::text("x".repeat(crate::signed::frame_bytes_max(100) + 1))).await.unwrap();
    assert_eq!(frame_of(&mut websocket).await["code"], "too_large");
    let long = Request::Read(crate::signed::ReadFrame { id: 4, payload: crate::signed::Base64(vec![0; 101]) });
    websocket.send(Message::text(long.to_json())).await.unwrap();
    let refused = frame_of(&mut websocket).await;
    assert_eq!((&refused["id"], &refused["reason"]), (&json!(4), &json!("too_large")));
    // Two of the minute's seven are left.
    for nonce in 8..11 {
        websocket.send(Message::text(signed_input(nonce, b"x"))).await.unwrap();
    }
    let status = frame_of(&mut websocket).await;
    assert_eq!((&status["nonce"], &status["reason"]), (&json!(10), &json!("rate")));
    websocket.send(Message::text(r#"{"type":"query","what":"lcl"}"#)).await.unwrap();
    assert_eq!(frame_of(&mut websocket).await["code"], "rate");
    websocket.send(Message::text(r#"{"type":"read","id":3,"payload":"eA=="}"#)).await.unwrap();
    let refused = frame_of(&mut websocket).await;
    assert_eq!((&refused["type"], &refused["id"]), (&json!("read_result"), &json!(3)));
    assert_eq!((&refused["status"], &refused["reason"]), (&json!("refused"), &json!("rate")));
    for nonce in [8, 9] {
        match soon(events.recv()).await {
            Some(GatewayEvent::Request { request: Request::Input(input), .. }) => assert_eq!(input.nonce, nonce),
            other => panic!("expected an input, got {other:?}"),
        }
    }
}
