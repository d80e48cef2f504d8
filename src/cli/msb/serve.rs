//! `hp msb serve`: the embedded settlement bus as a program of its own.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::Context as _;
use clap::Args;
use tracing::info;

use super::block_on;
use crate::{
    cli::{Exit, Failure, Outcome, answer, run::Stop, start_logging},
    config::{LogFormat, LogLevel},
    settlement::{
        Address, Amount, Network,
        embedded::{Embedded, Options, StartError},
    },
    types::Hash,
};

const EXAMPLES: &str = "\
Examples:
  hp msb serve mybus                                  on 127.0.0.1:5000, history in mybus/bus.log
  hp msb serve mybus --fund trac1...=100              with 100 TNK for an address that never had any
  hp msb serve mybus --listen 127.0.0.1:0             on any free port, which it prints

For trying: it speaks the real bus's HTTP API, but whoever runs it can make another one, so it proves nothing to others. What
is confirmed is on disk, whatever ends it; start it again with the same folder, and it goes on. Anybody on this machine can
have money of it (`hp msb fund`). Ctrl-C or SIGTERM ends it. Logs go to stderr.

Exit codes: 0 stopped, 1 failed, 2 usage, 4 the history is damaged, 5 port or folder in use.";

/// Run a settlement bus of your own, for trying.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Serve {
    /// Folder for its history and its key; made if it is missing
    #[arg(required_unless_present = "data")]
    dir: Option<PathBuf>,
    /// The same folder, by name
    #[arg(long, value_name = "FOLDER", conflicts_with = "dir")]
    data: Option<PathBuf>,
    /// Where to listen; anything but 127.0.0.1 lets others in
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:5000")]
    listen: SocketAddr,
    /// Money for an address that never had any; may be repeated
    #[arg(long, value_name = "ADDRESS=TNK")]
    fund: Vec<String>,
    /// A subnet's bootstrap that is there from the beginning, 64 hexadecimal digits; may be repeated
    #[arg(long, value_name = "HASH")]
    deployed: Vec<Hash>,
    /// The bus's own bootstrap, when its history begins [default: drawn by chance]
    #[arg(long, value_name = "HASH")]
    bootstrap: Option<Hash>,
    /// Whose letters and number: mainnet, testnet or development
    #[arg(long, value_name = "NAME", default_value = "development")]
    network: Network,
    /// For tests: POST /v1/embedded/hooks makes it misbehave
    #[arg(long)]
    test_hooks: bool,
}

impl Serve {
    pub(super) fn run(self) -> Outcome {
        let options = self.options()?;
        start_logging(LogLevel::Info, LogFormat::Text);
        block_on(serve(options))?
    }

    fn options(&self) -> Result<Options, Failure> {
        let usage = |text: &str, error: anyhow::Error| {
            Failure::new(Exit::Usage, error.context(format!("--fund {text}: expected ADDRESS=TNK")))
        };
        let mut fund = Vec::new();
        for text in &self.fund {
            let (address, amount) =
                text.split_once('=').ok_or_else(|| usage(text, anyhow::anyhow!("there is no = in it")))?;
            let address = Address::parse(address, self.network).map_err(|error| usage(text, error.into()))?;
            fund.push((address, amount.parse::<Amount>().map_err(|error| usage(text, error.into()))?));
        }
        let folder = self.dir.as_ref().or(self.data.as_ref()).expect("one of them is required");
        let folder =
            std::path::absolute(folder).with_context(|| format!("cannot tell where {} is", folder.display()))?;
        Ok(Options {
            folder,
            listen: self.listen,
            network: self.network,
            bootstrap: self.bootstrap,
            fund,
            deployed: self.deployed.clone(),
            hooks: self.test_hooks,
        })
    }
}

async fn serve(options: Options) -> Outcome {
    let mut stop = Stop::watch().context("cannot watch for signals")?;
    let bus = Embedded::start(options.clone()).await.map_err(failure)?;
    answer(&banner(&bus, &options))?;
    let signal = stop.next().await;
    info!(signal, "stopping");
    bus.stop().await;
    Ok(())
}

fn banner(bus: &Embedded, options: &Options) -> String {
    let network = options.network;
    let mut text = format!(
        "settlement bus of your own on {}\n  network    {network} ({})\n  bootstrap  {}\n  validator  {}\n  history    {}\n",
        bus.url(),
        network.id(),
        bus.bootstrap(),
        bus.validator(),
        bus.log().display(),
    );
    for (address, amount) in &options.fund {
        text += &format!("  funded     {address} {amount}\n");
    }
    for bs in &options.deployed {
        text += &format!("  deployed   {bs}\n");
    }
    if !bus.address().ip().is_loopback() {
        text += "  others than this machine can reach it\n";
    }
    if options.hooks {
        text += "  test hooks are on: anybody on this machine can make it misbehave\n";
    }
    text + "it is for trying, and proves nothing to others; Ctrl-C ends it\n"
}

fn failure(error: StartError) -> Failure {
    let exit = match () {
        () if error.is_taken() => Exit::Taken,
        () if error.is_damage() => Exit::Database,
        () if matches!(error, StartError::Key(_) | StartError::Differs { .. }) => Exit::Config,
        () => Exit::Failed,
    };
    Failure::new(exit, error)
}
