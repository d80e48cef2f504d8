//! The settlement bus of one's own as a real process: what is confirmed outlives `kill -9`, and `hp msb` speaks to it.

use std::{
    path::Path,
    process::{Command as Sync, Stdio},
    time::Duration,
};

use hotpocket::{
    crypto::SecretKey,
    settlement::{
        Address, Amount, Network,
        client::{Client, View},
        tx::{Operation, Tx},
    },
    types::Hash,
};
use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    time::timeout,
};

use crate::net::{DEADLINE, block_on, hp, send_signal, until};

/// A running `hp msb serve`, and what it said of itself.
struct Serve {
    child: Child,
    url: String,
    bootstrap: Hash,
}

async fn serve(folder: &Path, listen: &str, more: &[&str]) -> Serve {
    let mut child = Command::new(hp())
        .args(["msb", "serve", "--listen", listen])
        .args(more)
        .arg(folder.join("bus"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut value = async |start: &str| loop {
        let line = timeout(DEADLINE, lines.next_line()).await.unwrap().unwrap().expect("it says where it is");
        if let Some(rest) = line.strip_prefix(start) {
            return rest.to_owned();
        }
    };
    let url = value("settlement bus of your own on ").await;
    let bootstrap = value("  bootstrap  ").await.parse().unwrap();
    Serve { child, url, bootstrap }
}

/// Exit code, stdout, stderr.
fn run(folder: &TempDir, args: &[&str]) -> (Option<i32>, String, String) {
    let output = Sync::new(hp()).args(args).current_dir(folder.path()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn key_file(folder: &TempDir, key: &SecretKey) {
    use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
    let mut options = std::fs::File::options();
    let mut file = options.write(true).create(true).mode(0o600).open(folder.path().join("key")).unwrap();
    writeln!(file, "{}", hex::encode(key.seed())).unwrap();
}

#[test]
fn what_a_bus_confirmed_outlives_kill_9_and_its_commands_work() {
    block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let key = SecretKey::generate();
        key_file(&folder, &key);
        let address = Address::new(Network::Development, key.node_key().0);
        let bs = Hash([0x44; 32]).to_string();
        let begin = [format!("--fund={address}=10"), format!("--deployed={bs}")];
        let begin: Vec<&str> = begin.iter().map(String::as_str).collect();
        let mut bus = serve(folder.path(), "127.0.0.1:0", &begin).await;
        let listen = bus.url.strip_prefix("http://").unwrap().to_owned();

        assert_eq!(run(&folder, &["msb", "address", "--key-file", "key"]).1, format!("{address}\n"));
        let url = bus.url.clone();
        let balance = ["msb", "balance", "--key-file", "key", "--url", &url];
        let told = run(&folder, &balance);
        let worth = format!("{address}\n  10 TNK: enough for 333 settlements of 0.03 TNK\n");
        assert_eq!((told.0, told.1), (Some(0), worth), "{}", told.2);
        let fund = ["msb", "fund", "--key-file", "key", "--url", &url, "--amount", "0.5"];
        assert!(run(&folder, &fund).1.contains("10.5 TNK"));
        let deploy = ["msb", "deploy", "--key-file", "key", "--url", &url, "--bootstrap", &"45".repeat(32)];
        let told = run(&folder, &deploy);
        assert_eq!((told.0, told.1.as_str()), (Some(0), format!("{}\n", "45".repeat(32)).as_str()), "{}", told.2);
        assert!(run(&folder, &deploy).2.contains("deployed already"));
        // A second one is refused: the folder is taken, and the port too.
        let (code, _, told) = run(&folder, &["msb", "serve", "--listen", "127.0.0.1:0", "bus"]);
        assert_eq!(code, Some(5), "{told}");
        let (code, _, told) = run(&folder, &["msb", "serve", "--listen", &listen, "another"]);
        assert!(code == Some(5) && told.contains(&format!("cannot listen on {listen}")), "{told}");

        // Killed while it is handed operations, thrice; each that it showed as confirmed is there afterwards.
        let mut confirmed = Vec::new();
        for round in 1..=3 {
            let client = Client::new(&bus.url, Network::Development).unwrap();
            let txv = client.txv().await.unwrap();
            let (pid, mbs) = (bus.child.id().unwrap(), bus.bootstrap);
            for number in 1..=5 {
                let fields = [round, number].map(|number| Hash([number; 32]));
                let [ch, nonce] = fields;
                let tx = Tx { txv, iw: Hash([2; 32]), ch, bs: bs.parse().unwrap(), mbs, nonce };
                let signed = Operation::from(tx).sign(Network::Development, &key);
                client.broadcast(&signed.payload()).await.unwrap();
                if number == 5 {
                    // The last one may be anywhere between the answer and the disk.
                    send_signal(pid, Signal::SIGKILL);
                } else {
                    let there = async || client.tx(&signed.hash).await.unwrap();
                    until("an operation lands", there).await;
                    confirmed.push(signed.hash);
                }
            }
            bus.child.wait().await.unwrap();
            bus = serve(folder.path(), &listen, &[]).await;
            assert_eq!(bus.bootstrap, mbs);
            let client = Client::new(&bus.url, Network::Development).unwrap().with_timeout(Duration::from_secs(60));
            let there = client.payloads_bulk(&confirmed).await.unwrap();
            assert_eq!((there.found.len(), there.missing), (confirmed.len(), Vec::new()), "round {round}");
            let length = client.confirmed_length().await.unwrap();
            let landed = client.tx_hashes(0, length).await.unwrap().len();
            // Of the operations one is the deployment, which cost a fee like the others.
            let paid = landed as u128 * client.fee().await.unwrap().0;
            let left = client.balance(&address, View::Confirmed).await.unwrap();
            assert_eq!(left, Amount("10.5".parse::<Amount>().unwrap().0 - paid));
        }
        send_signal(bus.child.id().unwrap(), Signal::SIGTERM);
        assert_eq!(timeout(DEADLINE, bus.child.wait()).await.unwrap().unwrap().code(), Some(0));
        let (code, _, told) = run(&folder, &balance);
        assert!(code == Some(1) && told.contains("the bus cannot be reached"), "{told}");
    });
}
