//! A settlement bus for networks of real nodes, the way to it, which counts and can be cut, and what must hold of both in the end.
//!
//! The bus is an embedded one in the test's own process, or the real one that `HP_MSB_URL` names (`docs/verification.md`
//! says how). What only the former can be made to do needs [`Bus::with_hooks`].

use std::{
    env, fs,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use futures::future::join_all;
use hotpocket::{
    config::{Document, quoted},
    consensus::header::Header,
    crypto::SecretKey,
    ledger::{Archive, Depth},
    settlement::{
        Address, Amount, Network,
        client::{Client, HASHES_RANGE_MAX, View},
        embedded::{Embedded, Hook, Options},
        record::{Record, nonce},
        tx::{Landed, Operation, Tx},
    },
    types::{Hash, Seq},
    wire,
};
use rustls::{ServerConfig, pki_types::PrivateKeyDer};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::{JoinHandle, JoinSet},
};
use tokio_rustls::TlsAcceptor;

use crate::net::{Net, TestNode, probe, until};

/// What each node has on an embedded bus.
pub const FUNDS: Amount = Amount::tnk(10);

/// Of every [`Net`].
const CONTRACT: Hash = Hash([7; 32]);

/// The variable that has a node of a build for tests stand still behind a step, or post without waiting for its turn.
const DRILL: &str = "HP_TEST_SETTLING";

/// What went over the way to the bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    pub connections: usize,
    pub requests: usize,
    pub posts: usize,
    pub answers: usize,
}

/// A TCP relay before the bus.
pub struct Way {
    address: SocketAddr,
    to: SocketAddr,
    shared: Arc<Shared>,
    task: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    counts: Mutex<Counts>,
    /// What is asked does not arrive, until it is over.
    silent: watch::Sender<bool>,
}

impl Way {
    async fn new(to: SocketAddr) -> Way {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::<Shared>::default();
        let task = Some(tokio::spawn(relay(listener, to, shared.clone())));
        Way { address, to, shared, task }
    }

    pub fn counts(&self) -> Counts {
        *self.shared.counts.lock().expect("nobody panics with it")
    }

    /// Whether connections and questions are taken, and nothing is answered.
    pub fn be_silent(&self, silent: bool) {
        self.shared.silent.send_replace(silent);
    }

    async fn cut(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
            let _ = task.await;
        }
    }

    async fn mend(&mut self) {
        let listener = TcpListener::bind(self.address).await.expect("the same port");
        self.task = Some(tokio::spawn(relay(listener, self.to, self.shared.clone())));
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.task.iter().for_each(JoinHandle::abort);
    }
}

/// Until it is dropped, and its connections with it.
async fn relay(listener: TcpListener, to: SocketAddr, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((from, _)) = listener.accept().await {
        shared.counts.lock().expect("nobody panics with it").connections += 1;
        let shared = shared.clone();
        connections.spawn(async move {
            let Ok(to) = TcpStream::connect(to).await else { return };
            let ((from_read, from_write), (to_read, to_write)) = (from.into_split(), to.into_split());
            let asked = |counts: &mut Counts, text: &str| {
                counts.requests += text.matches(" HTTP/1.1\r\n").count();
                counts.posts += text.matches("POST /v1/broadcast-transaction").count();
            };
            let answered = |counts: &mut Counts, text: &str| counts.answers += text.matches("HTTP/1.1 ").count();
            // A side that closes ends both.
            tokio::select! {
                () = carry(from_read, to_write, &shared, true, asked) => {}
                () = carry(to_read, from_write, &shared, false, answered) => {}
            }
        });
    }
}

/// Counts in what it carries. Heads come in one piece: both sides write one at once, and it is small.
async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    shared: &Shared,
    waits: bool,
    count: impl Fn(&mut Counts, &str),
) {
    let mut bytes = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut bytes).await {
        count(&mut shared.counts.lock().expect("nobody panics with it"), &String::from_utf8_lossy(&bytes[..read]));
        if waits {
            let mut silent = shared.silent.subscribe();
            let _ = silent.wait_for(|silent| !silent).await;
        }
        if to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}

/// The bus that a network settles on.
pub struct Bus {
    pub way: Way,
    pub client: Client,
    /// Not there while it is away, nor where the bus is a real one.
    embedded: Option<Embedded>,
    options: Options,
    bootstrap: Hash,
    subnet: Hash,
    /// What all nodes pay with on a real bus.
    key_file: Option<PathBuf>,
    /// How long it was before the test.
    begin: u64,
    /// What the nodes were given.
    funded: Mutex<Vec<Address>>,
    _folder: TempDir,
}

/// A TLS server before a bus, until it is dropped.
pub struct Front {
    pub url: String,
    /// Who issued its certificate.
    pub ca_pem: String,
    task: JoinHandle<()>,
}

impl Drop for Front {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A settlement, as the chain has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub record: Record,
    pub tx: Hash,
    pub recorded_in: Seq,
}

impl Bus {
    /// A bus with the subnet on it: an embedded one, or that of `HP_MSB_URL`. `None`, and why is printed, where that cannot
    /// be used.
    pub async fn start() -> Option<Bus> {
        let Ok(url) = env::var("HP_MSB_URL") else {
            println!("on an embedded bus: HP_MSB_URL names no real one");
            return Some(Bus::embedded(true).await);
        };
        let names = ["HP_MSB_KEY_FILE", "HP_MSB_BOOTSTRAP", "HP_MSB_SUBNET"];
        let values: Vec<String> = names.iter().filter_map(|name| env::var(name).ok()).collect();
        let ([key, bootstrap, subnet], Some(host)) = (&values[..], url.strip_prefix("http://")) else {
            println!("skipped: for the bus at {url}, {} must all be set, and it must be http://", names.join(", "));
            return None;
        };
        let network: Network =
            env::var("HP_MSB_NETWORK").map_or(Network::Mainnet, |name| name.parse().expect("a network"));
        let host = host.trim_end_matches('/');
        let to =
            tokio::net::lookup_host(host).await.expect("HP_MSB_URL is http://HOST:PORT").next().expect("an address");
        let folder = tempfile::tempdir().expect("a folder");
        let mut options = Options::new(folder.path());
        options.network = network;
        Some(Bus {
            key_file: Some(fs::canonicalize(key).expect("HP_MSB_KEY_FILE is a file")),
            ..Bus::at(to, None, options, bootstrap.parse().expect("a hash"), subnet.parse().expect("a hash"), folder)
                .await
        })
    }

    /// An embedded bus with the subnet on it. `None` where a real one is to be tried: it cannot be made to fail.
    pub async fn with_hooks() -> Option<Bus> {
        match env::var("HP_MSB_URL") {
            Ok(url) => {
                println!("skipped: the bus at {url} cannot be made to fail");
                None
            }
            Err(_) => Some(Bus::embedded(true).await),
        }
    }

    /// An embedded bus with nothing on it. `None` as of [`Bus::with_hooks`].
    pub async fn with_nothing_on_it() -> Option<Bus> {
        match env::var("HP_MSB_URL") {
            Ok(url) => {
                println!("skipped: on the bus at {url} a subnet is deployed and a key funded");
                None
            }
            Err(_) => Some(Bus::embedded(false).await),
        }
    }

    async fn embedded(deployed: bool) -> Bus {
        let folder = tempfile::tempdir().expect("a folder");
        let subnet = Hash([0x44; 32]);
        let mut options = Options::new(folder.path().join("bus"));
        options.deployed = if deployed { vec![subnet] } else { Vec::new() };
        let embedded = Embedded::start(options.clone()).await.expect("a bus");
        options.listen = embedded.address();
        let (to, bootstrap) = (embedded.address(), embedded.bootstrap());
        Bus::at(to, Some(embedded), options, bootstrap, subnet, folder).await
    }

    async fn at(
        to: SocketAddr,
        embedded: Option<Embedded>,
        options: Options,
        bootstrap: Hash,
        subnet: Hash,
        folder: TempDir,
    ) -> Bus {
        let client = Client::new(&format!("http://{to}"), options.network).expect("a URL");
        let begin = client.confirmed_length().await.expect("the bus answers");
        let funded = Mutex::default();
        let way = Way::new(to).await;
        Bus { way, client, embedded, options, bootstrap, subnet, key_file: None, begin, funded, _folder: folder }
    }

    /// Whether it does what [`Bus::hook`] says.
    pub fn has_hooks(&self) -> bool {
        self.key_file.is_none()
    }

    /// Has the embedded bus do something.
    pub async fn hook(&self, hook: Hook) {
        self.embedded.as_ref().expect("it is an embedded one, and there").hook(hook).await.expect("it does");
    }

    /// Nobody listens any more. An embedded bus ends.
    pub async fn go_away(&mut self) {
        self.way.cut().await;
        if let Some(embedded) = self.embedded.take() {
            embedded.stop().await;
        }
    }

    /// Somebody does again, at the same address. An embedded bus reads its log.
    pub async fn come_back(&mut self) {
        if self.has_hooks() {
            self.embedded = Some(Embedded::start(self.options.clone()).await.expect("a bus"));
        }
        self.way.mend().await;
    }

    /// A TLS server before the way to it, for `localhost`.
    pub async fn front(&self) -> Front {
        use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let ca_pem = params.self_signed(&key).expect("signed").pem();
        let issuer = Issuer::new(params, key);
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &issuer).expect("signed").der().clone();
        let secret = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring speaks them")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], secret)
            .expect("a pair");
        let (acceptor, to) = (TlsAcceptor::from(Arc::new(config)), self.way.address);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("https://localhost:{}", listener.local_addr().expect("an address").port());
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                connections.spawn(async move {
                    // Who does not believe the certificate ends it.
                    let Ok(mut from) = acceptor.accept(stream).await else { return };
                    let Ok(mut to) = TcpStream::connect(to).await else { return };
                    let _ = copy_bidirectional(&mut from, &mut to).await;
                });
            }
        });
        Front { url, ca_pem, task }
    }

    /// Where nodes find it.
    pub fn url(&self) -> String {
        format!("http://{}", self.way.address)
    }

    /// Has a node settle every output at once.
    pub fn configure(&self, document: &mut Document) {
        document.set("roundtime", "300");
        document.set("msb.mode", "\"http\"");
        document.set("msb.url", &quoted(&self.url()));
        document.set("msb.network", &quoted(&self.options.network.to_string()));
        document.set("msb.bootstrap", &quoted(&self.bootstrap.to_string()));
        document.set("msb.subnet", &quoted(&self.subnet.to_string()));
        document.set("msb.settle_every", "1");
        document.set("msb.settle_max_delay_s", "1");
        document.set("msb.settle_slot_s", "3");
        if let Some(key_file) = &self.key_file {
            document.set("msb.key_file", &quoted(key_file.to_str().expect("UTF-8")));
        }
    }

    /// The folders of so many nodes that settle on it, each with money.
    pub async fn network(&self, n: usize) -> Net {
        let net = Net::new(n, probe(), |_, document| self.configure(document));
        self.fund(&net).await;
        net
    }

    /// Gives the nodes money, where that can be done.
    pub async fn fund(&self, net: &Net) {
        let Some(embedded) = &self.embedded else { return };
        for node in &net.nodes {
            let address = self.address_of(node.secret.as_ref().expect("the test's own"));
            embedded.fund(address, FUNDS).await.expect("funded");
            self.funded.lock().expect("nobody panics with it").push(address);
        }
    }

    fn address_of(&self, key: &SecretKey) -> Address {
        Address::new(self.options.network, key.node_key().0)
    }

    /// Everything about this contract that came onto the bus since the test began, with its place.
    pub async fn landed(&self) -> Vec<(u64, Tx)> {
        let end = self.client.confirmed_length().await.expect("the bus answers");
        let mut places = Vec::new();
        let mut from = self.begin;
        while from < end {
            let to = end.min(from + HASHES_RANGE_MAX);
            places.extend(self.client.tx_hashes(from, to).await.expect("the bus answers"));
            from = to;
        }
        let mut found = Vec::new();
        for place in places {
            let landed: Option<Landed> = self.client.tx(&place.hash).await.expect("the bus answers");
            let landed = landed.expect("what it lists is there");
            if let Operation::Tx(tx) = landed.signed.operation
                && (tx.bs, tx.iw) == (self.subnet, CONTRACT)
            {
                found.push((place.confirmed_length, tx));
            }
        }
        found
    }

    /// Waits until all that was put out so far is settled, and checks what must hold then, on every node: each range of the
    /// chain is on the bus, once and with its own content, without a hole before it; each fee was paid once; and `hp msb
    /// verify` says so too.
    pub async fn settled(&self, net: &Net) -> Vec<Found> {
        let seq = join_all(net.nodes.iter().map(TestNode::seq)).await.into_iter().max().expect("there is a node");
        for node in &net.nodes {
            node.status_where("all is settled", |status| {
                let settling = &status["settlement"];
                let number = |key: &str| settling[key].as_u64().unwrap_or(0);
                let read = number("settled_seq") + number("unsettled_ledgers");
                read > seq && settling["pending"].is_null() && settling["oldest_unsettled_ms"].is_null()
            })
            .await;
        }
        let found = chain(&net.nodes[0]);
        let landed = self.landed().await;
        let of_this_chain: Vec<&(u64, Tx)> =
            landed.iter().filter(|(_, tx)| found.iter().any(|found| found.record.ch() == tx.ch)).collect();
        assert_eq!(of_this_chain.len(), found.len(), "each is there once: {landed:?} of {found:?}");
        for (found, place) in found.iter().zip(settlements(&net.nodes[0]).iter().map(|header| header.1)) {
            let ch = found.record.ch();
            let (at, tx) = landed.iter().find(|(_, tx)| tx.ch == ch).expect("just seen");
            assert_eq!(*at, place, "where the chain says");
            let expected =
                Tx { txv: tx.txv, iw: CONTRACT, ch, bs: self.subnet, mbs: self.bootstrap, nonce: nonce(&ch) };
            assert_eq!(*tx, expected);
            assert_eq!(Operation::from(expected).hash(self.options.network), found.tx);
        }
        self.check_fees(landed.len()).await;
        let url = format!("http://{}", self.way.to);
        let verify = ["msb", "verify", "--url", &url];
        let verified = join_all(net.nodes.iter().map(|node| node.call(&verify))).await;
        let plural = if found.len() == 1 { "" } else { "s" };
        for verified in verified {
            assert_eq!(verified.code, Some(0), "{}{}", verified.out, verified.err);
            let told = format!("ok: {} settlement{plural}, all of them on the bus", found.len());
            assert!(verified.out.contains(&told), "{}, and not {told}", verified.out);
        }
        found
    }

    /// Only where nobody else pays with these keys.
    async fn check_fees(&self, landed: usize) {
        let funded = self.funded.lock().expect("nobody panics with it").clone();
        let (mut left, fee) = (0, self.client.fee().await.expect("the bus answers"));
        for address in &funded {
            left += self.client.balance(address, View::Confirmed).await.expect("the bus answers").0;
        }
        if !funded.is_empty() {
            assert_eq!(left, funded.len() as u128 * FUNDS.0 - landed as u128 * fee.0, "a fee for each, once");
        }
    }
}

/// Has a node do what a test wants of its settling, from its next start on: see `src/settlement/agent/drill.rs`.
pub fn drill(net: &mut Net, said: &str) {
    for node in &mut net.nodes {
        node.wrapper = if said.is_empty() { Vec::new() } else { vec!["env".to_owned(), format!("{DRILL}={said}")] };
    }
}

/// The last step in a node's journal, by name.
pub fn last_step(node: &TestNode) -> String {
    step(node, |_| true)["state"].as_str().unwrap_or_default().to_owned()
}

/// The last step in a node's journal that is so; null, where there is none.
pub fn step(node: &TestNode, is: impl Fn(&Value) -> bool) -> Value {
    let text = fs::read_to_string(node.dir.join("hist/settlement.jsonl")).unwrap_or_default();
    let steps = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("a step is JSON"));
    steps.rev().find(is).unwrap_or_default()
}

fn headers(node: &TestNode) -> Vec<Header> {
    let archive = Archive::open(&node.dir).expect("the database is there");
    let tip = archive.tip().expect("it reads");
    let mut headers: Vec<Header> = Vec::new();
    while (headers.len() as Seq) < tip {
        let page = archive.page(headers.len() as Seq + 1, tip, Depth::Closed).expect("it reads");
        assert!(!page.ledgers.is_empty(), "all ledgers are there");
        for stored in page.ledgers {
            headers.push(wire::decode(&stored.closed.expect("it was closed").header).expect("a header"));
        }
    }
    headers
}

/// Of each settlement in the chain, the ledger that records it first, and its place.
fn settlements(node: &TestNode) -> Vec<(usize, u64)> {
    let headers = headers(node);
    let mut last = 0;
    let mut found = Vec::new();
    for (at, header) in headers.iter().enumerate() {
        if let Some(settlement) = header.settlement.as_ref().filter(|settlement| settlement.seq != last) {
            last = settlement.seq;
            found.push((at, settlement.confirmed_length));
        }
    }
    found
}

/// The settlements of a node's chain, each made again out of its headers, by the letter of `docs/protocol.md`. None leaves
/// out a ledger, and each names the one before.
fn chain(node: &TestNode) -> Vec<Found> {
    let headers = headers(node);
    // Of ledger n; its own result is in the next header.
    let header = |seq: Seq| &headers[seq as usize - 1];
    let (mut first, mut prev, mut found) = (1, Hash::ZERO, Vec::new());
    for (at, _) in settlements(node) {
        let settlement = headers[at].settlement.as_ref().expect("it records one");
        let last = settlement.seq;
        let mut outputs_root = Hash::ZERO;
        for seq in first..=last {
            let outputs = header(seq + 1).result.outputs_root;
            if outputs != Hash::ZERO {
                outputs_root = Hash::tagged("hp/settle-outputs/1", &(outputs_root, seq, outputs));
            }
        }
        let (lcl, state_root) = (header(last).hash(), header(last + 1).result.state_root);
        let record = Record { contract_id: CONTRACT, first, last, lcl, outputs_root, state_root, prev };
        assert_eq!(record.ch(), settlement.ch, "ledgers {first} to {last}, behind {prev}");
        (first, prev) = (last + 1, settlement.ch);
        found.push(Found { record, tx: settlement.tx, recorded_in: headers[at].seq });
    }
    found
}

/// Waits until a node's alert says this, and gives the node's alerts about settling.
pub async fn alerted(node: &TestNode, says: &str) -> Vec<String> {
    let status = node
        .status_where(&format!("an alert says {says:?}"), |status| {
            alerts(status).iter().any(|alert| alert.contains(says))
        })
        .await;
    alerts(&status)
}

/// Waits until a node has no alert about settling.
pub async fn unalerted(node: &TestNode) {
    node.status_where("there is no alert any more", |status| alerts(status).is_empty()).await;
}

fn alerts(status: &Value) -> Vec<String> {
    let alerts = status["settlement"]["alerts"].as_array().cloned().unwrap_or_default();
    alerts.iter().map(|alert| alert.as_str().expect("text").to_owned()).collect()
}

/// Waits until as many posts were made.
pub async fn posted(bus: &Bus, posts: usize) {
    until("posts", async || (bus.way.counts().posts >= posts).then_some(())).await;
}
