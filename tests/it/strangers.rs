//! People who are no users: they connect, answer the challenge with a signature that is none, and come again.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};

use hotpocket::crypto::SecretKey;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// Many of them at a time, on a thread of their own.
pub struct Flood {
    over: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    begun: Instant,
    thread: Option<thread::JoinHandle<()>>,
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

impl Flood {
    /// So many come to the user port at `url` (`ws://...`), again and again.
    pub fn begin(url: &str, at_a_time: usize) -> Flood {
        let (over, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let address: SocketAddr = url.trim_start_matches("ws://").parse().expect("an address");
        let thread = {
            let (over, count) = (Arc::clone(&over), Arc::clone(&count));
            thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                runtime.block_on(async {
                    let one = async |_: usize| {
                        while !over.load(Ordering::Relaxed) {
                            if wrong(address).await.is_ok() {
                                count.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    };
                    futures::future::join_all((0..at_a_time).map(one)).await;
                });
            })
        };
        Flood { over, count, begun: Instant::now(), thread: Some(thread) }
    }

    /// How many handshakes were answered so far.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// How many a second there were.
    pub fn end(mut self) -> f64 {
        let rate = self.count() as f64 / self.begun.elapsed().as_secs_f64();
        self.over.store(true, Ordering::Relaxed);
        self.thread.take().expect("it runs").join().expect("the flood ends");
        rate
    }
}

/// One handshake with a wrong signature, up to the refusal.
async fn wrong(address: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream
        .write_all(
            b"GET / HTTP/1.1\r\nHost: node\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
              Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        )
        .await?;
    let mut heard = Vec::new();
    let challenge = loop {
        let mut buffer = [0; 1024];
        let got = stream.read(&mut buffer).await?;
        if got == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        heard.extend_from_slice(&buffer[..got]);
        let text = String::from_utf8_lossy(&heard);
        if let Some((_, rest)) = text.split_once("\"challenge\":\"")
            && rest.len() >= 33
        {
            break rest[..32].to_owned();
        }
    };
    let key = SecretKey::from_seed([5; 32]);
    let helo = format!(
        "{{\"type\":\"helo\",\"challenge\":\"{challenge}\",\"sig\":\"{}\",\"pubkey\":\"{}\",\"timestamp\":0}}",
        key.sign(b"another text"),
        key.user_key()
    );
    let len = u16::try_from(helo.len()).expect("a short text").to_be_bytes();
    // A frame of text whose mask is zero.
    let mut frame = vec![0x81, 0x80 | 126, len[0], len[1], 0, 0, 0, 0];
    frame.extend_from_slice(helo.as_bytes());
    stream.write_all(&frame).await?;
    while stream.read(&mut [0; 1024]).await? > 0 {}
    Ok(())
}
