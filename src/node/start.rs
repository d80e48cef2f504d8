//! Brings a node up from its folder: lock, database, genesis, state, launcher, mesh, users, control socket.

use std::{
    collections::{BTreeSet, VecDeque},
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    time::Instant,
};

use tokio::sync::{mpsc, watch};
use tracing::{debug, info, warn};

use super::{
    Banner, ExecError, Executor, LINE_MAX, Node, PartyLine, alerts::Kind, backend, bans, control::Control, disk,
    diverge, events::Events, files::Files, guards, http, metrics, reads::Reads, release::Release, report::Report,
    rounds, service, settle, silence, twins, users::Finality, wall_ms,
};
use crate::{
    config::{self, Admit, Config, Inputs, SharedConfig, caps},
    consensus::{
        self, Consensus, Crypto, Params,
        header::{Genesis, VERSION},
        journal::Journal,
        seats,
    },
    contract::{LaunchError, Launcher, raise_nofile_limit},
    crypto::{self, SecretKey},
    gateway::{self, Gateway, GatewayConfig, GatewayError},
    http::HttpError,
    ledger::{Ledger, LedgerError, Store},
    mesh::{self, Mesh, MeshConfig, MeshError},
    settlement::embedded::StartError,
    state::{self, Backend, StateError, StateStore},
    tls::Tls,
    types::{Execute, Hash, NodeKey, Seq, Sig},
    wire::{self, Hello, PROTOCOL},
};

// What nodes must have alike is hashed by `config` and kept by others: it is the same number.
const _: () = assert!(caps::LEDGER_INPUTS_MAX == consensus::INPUTS_MAX as u64);
const _: () = assert!(caps::LEDGER_INPUT_BYTES_MAX == consensus::INPUTS_BYTES_MAX as u64);
const _: () = assert!(caps::NOVEL_USERS_MAX == consensus::NOVEL_USERS_MAX as u64);
const _: () = assert!(config::UNL_MAX == consensus::UNL_MAX);
const _: () = assert!(config::USERS_MIN == consensus::seats::LEDGER_USERS_MIN as u64);
const _: () = assert!(config::USERS_MAX == consensus::seats::LEDGER_USERS_MAX as u64);
const _: () = assert!(config::PUBMAXSIZE_MAX == consensus::INPUT_BYTES_MAX as u64);

/// Frames of peers waiting for the loop. Past it the links' readers wait.
const MESH_EVENTS_MAX: usize = 256;

/// Why a node cannot start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Another process runs this folder.
    #[error("{0} is locked: another `hp run` uses this folder")]
    Locked(PathBuf),
    /// Something in the folder cannot be read or made.
    #[error("cannot {what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The chain was begun with another value of a key that all its nodes share for ever.
    #[error(
        "{key} in {file} is {mine}, but this chain began with {chain}: put it back, or start a new chain with empty hist/ and state/"
    )]
    Shared {
        /// The key.
        key: &'static str,
        /// The file.
        file: PathBuf,
        /// Value in the file.
        mine: String,
        /// Value of the chain.
        chain: String,
    },
    /// The configuration asks for a way to keep the state that does not work on this machine.
    #[error(
        "contract.state_backend in {file} is \"overlay\", which does not work here: {why}; take \"shadow\" or \"auto\""
    )]
    Overlay {
        /// The file.
        file: PathBuf,
        /// What failed.
        why: String,
    },
    /// The configuration asks for another user for the contract.
    #[error(
        "contract.run_as in {file} is \"{run_as}\", but only root can run the contract as another user, and this node does not \
         run as root: start it as root, or remove the line"
    )]
    RunAs {
        /// The file.
        file: PathBuf,
        /// Whom.
        run_as: config::RunAs,
    },
    /// The configuration asks for all guards, and some do not work on this machine.
    #[error(
        "contract.containment in {file} is \"required\", but these guards are off; mend that, or take \"auto\":{missing}"
    )]
    Guards {
        /// The file.
        file: PathBuf,
        /// A line for each: which, why it is off, and what to do.
        missing: String,
    },
    /// A full ledger could not be run: this machine lets a process open too few files.
    #[error(
        "user.users_max in {file} is {users_max}, but {}: {}", .files.text(*.users_max), .files.advice()
    )]
    Files {
        /// The file.
        file: PathBuf,
        /// The key.
        users_max: usize,
        /// What is needed, and what there is.
        files: Files,
    },
    /// The configuration's bus cannot be spoken to.
    #[error("{file}: {why}")]
    Msb {
        /// The file.
        file: PathBuf,
        /// Which key, and why.
        why: String,
    },
    /// The bus that the node is to run in itself.
    #[error("cannot run the settlement bus of msb.mode = \"embedded\" (msb.listen in {file})")]
    OwnBus {
        /// The file.
        file: PathBuf,
        /// Why.
        source: StartError,
    },
    /// The HTTP side cannot be set up as the configuration says.
    #[error("{file}: {why}")]
    Http {
        /// The file.
        file: PathBuf,
        /// Which key, and why.
        why: String,
    },
    /// The HTTP side.
    #[error(transparent)]
    HttpPort(#[from] HttpError),
    /// The folder's database is of another contract.
    #[error("hist/ holds the chain of contract {chain}, but {file} says {mine}")]
    Contract {
        /// The file.
        file: PathBuf,
        /// Contract id in the file.
        mine: Hash,
        /// Contract id of the chain.
        chain: Hash,
    },
    /// The database.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The state at the start.
    #[error(transparent)]
    State(#[from] StateError),
    /// What is kept of the state is damaged, and nobody else has it.
    #[error(
        "what is kept of the state in {dir}/hist is damaged, and there is no other member of the UNL to fetch the state \
         from: restore a backup with `hp restore`; or, where state/ itself may be whole, move the folders shadow, overlay \
         and sync out of hist/ and start again: state/ is then checked against the chain"
    )]
    DamagedAlone {
        /// The contract folder.
        dir: PathBuf,
        /// What was found.
        source: StateError,
    },
    /// A run, and so the node's state.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// The launcher.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The peer port.
    #[error(transparent)]
    Mesh(#[from] MeshError),
    /// The user port.
    #[error(transparent)]
    Gateway(#[from] GatewayError),
}

impl NodeError {
    /// A port or the folder's lock is taken.
    pub fn is_taken(&self) -> bool {
        match self {
            NodeError::Locked(_)
            | NodeError::Gateway(GatewayError::PortTaken { .. })
            | NodeError::HttpPort(HttpError::PortTaken { .. }) => true,
            NodeError::Mesh(error) => error.is_port_taken(),
            NodeError::Ledger(LedgerError::InUse { .. }) => true,
            NodeError::OwnBus { source, .. } => source.is_taken(),
            _ => false,
        }
    }

    /// The database, or the state that belongs to it, is damaged.
    pub fn is_damage(&self) -> bool {
        match self {
            NodeError::Ledger(error) => error.is_damage(),
            NodeError::OwnBus { source, .. } => source.is_damage(),
            NodeError::Exec(ExecError::WrongState { .. }) | NodeError::DamagedAlone { .. } => true,
            NodeError::State(StateError::Root { .. } | StateError::Intent { .. }) => true,
            _ => false,
        }
    }

    /// The configuration does not fit the chain.
    pub fn is_config(&self) -> bool {
        matches!(
            self,
            NodeError::Shared { .. }
                | NodeError::Contract { .. }
                | NodeError::Files { .. }
                | NodeError::Overlay { .. }
                | NodeError::Guards { .. }
                | NodeError::RunAs { .. }
                | NodeError::Msb { .. }
                | NodeError::OwnBus { source: StartError::Key(_) | StartError::Differs { .. }, .. }
                | NodeError::Http { .. }
        )
    }
}

/// Signs and checks with real keys.
struct RealCrypto(SecretKey);

impl Crypto for RealCrypto {
    fn sign(&self, digest: &Hash) -> Sig {
        self.0.sign(&digest.0)
    }
    fn verify(&self, key: &NodeKey, digest: &Hash, sig: &Sig) -> bool {
        crypto::verify(&key.0, &digest.0, sig)
    }
}

/// The folder's lock: held by the process until it ends, however it ends.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Not by closing it alone: a process that another thread begins at this moment has it, too, until it executes its program.
        let _ = self.file.unlock();
    }
}

impl Lock {
    /// Takes it, or says who has it.
    pub fn take(dir: &Path) -> Result<Lock, NodeError> {
        let run = dir.join("run");
        fs::create_dir_all(&run).map_err(|source| NodeError::Io { what: "create", path: run.clone(), source })?;
        let path = run.join("lock");
        let opened = File::options().create(true).truncate(false).write(true).open(&path);
        let file = opened.map_err(|source| NodeError::Io { what: "open", path: path.clone(), source })?;
        match file.try_lock() {
            Ok(()) => Ok(Lock { file }),
            Err(TryLockError::WouldBlock) => Err(NodeError::Locked(path)),
            Err(TryLockError::Error(source)) => Err(NodeError::Io { what: "lock", path, source }),
        }
    }
}

impl Node {
    /// Brings the node up. `exe` is this program, for the launcher. The banner says what there is.
    pub async fn start(config: Config, exe: &Path) -> Result<(Node, Banner), NodeError> {
        let lock = Lock::take(&config.dir)?;
        let bus = settle::prepare(&config)?;
        let user_tls = http::load_tls(&config, "user", config.user.tls.as_ref())?;
        let http_tls = http::load_tls(&config, "http", config.http.tls.as_ref())?;
        let files = Files::of(&config, raise_nofile_limit());
        if !files.are_enough() {
            return Err(NodeError::Files { file: config.file.clone(), users_max: config.user.users_max, files });
        }
        let mut store = Store::open(&config.dir)?;
        let launcher = Launcher::start(exe)?;
        let chosen = backend::choose(&config, &launcher).await?;
        let guards = guards::contain_node(&config, &launcher).await?;
        let kept = store.load(config.consensus.input_window)?;
        let expected = kept.as_ref().filter(|journal| journal.has_state()).map(Journal::state_root);
        let others = kept.as_ref().map(|journal| journal.unl.iter().any(|node| *node != config.key));
        let (state, damage) = open_state(&config.dir, chosen.backend, expected, others).await?;
        let (genesis, state) = genesis(&config, &mut store, state).await?;
        let shared = config.shared();
        let journal = match kept {
            Some(journal) => journal,
            None => store.load(config.consensus.input_window)?.expect("the genesis is stored"),
        };
        let journal = match forgotten(&config, &mut store, journal.seq())? {
            false => journal,
            true => store.load(config.consensus.input_window)?.expect("the genesis is stored"),
        };
        compare_unl(&config, &genesis, &journal.unl);
        let root = journal.state_root();
        let cut = journal.may_need_rollback();
        let seq = journal.seq();

        let mut report = Report::default();
        report.restore_evidence(store.proven()?);
        if let Some(damage) = damage {
            warn!(error = &damage as &dyn std::error::Error, "what is kept of the state is damaged; it is put aside");
            let what = format!(
                "what was kept of the state was damaged ({:#}); it is in {}, and what is not right in state/ is fetched \
                 from other nodes",
                anyhow::Error::new(damage),
                config.dir.join(state::DAMAGED).display()
            );
            report.alert(Kind::StateDamaged, what);
        }
        let executed = journal.executed();
        let executor = Executor::new(launcher, state, root, executed, &config);
        executor.check_room()?;
        // Whatever a cut run left is put back first; then it shows whether that is possible.
        let found = if cut || !journal.has_state() { Ok(()) } else { executor.verify().await };
        let state_was_lost = match found {
            Ok(()) => false,
            Err(error) if error.is_lost_state() && others == Some(true) => {
                warn!(
                    error = &error as &dyn std::error::Error,
                    "state/ is not what it should be; it is fetched from other nodes"
                );
                true
            }
            Err(error) => return Err(error.into()),
        };

        let reads = Reads::new(&config, exe).await?;
        let boot = random_hash();
        let params = Params {
            me: config.key,
            boot,
            roundtime_ms: config.roundtime_ms,
            min_round_ms: config.consensus.min_round_ms,
            eager: config.consensus.eager,
            grace_ms: config.consensus.grace_ms,
            attempt_ms: config.consensus.attempt_ms,
            time_res_ms: config.consensus.time_res_ms,
            input_window: config.consensus.input_window,
            users_max: config.user.users_max,
            input_bytes_max: usize::try_from(config.pubmaxsize).expect("at most 4 MiB"),
            session_inputs: config.user.inputs == Inputs::Any,
        };
        let secret = config.secret.clone();
        let core = Consensus::new(params, Box::new(RealCrypto(secret.clone())), genesis.threshold, journal);

        let hello = Hello { protocol: PROTOCOL, boot, genesis, shared };
        let (mesh, mesh_events) = start_mesh(&config, &secret, hello, core.unl()).await?;
        let bans = bans::Bans::load(&config.dir);
        mesh.set_banned(bans.nodes().collect());
        let (gateway, gateway_events) =
            start_gateway(&config, user_tls.clone(), &files, users_here(&config, core.unl())).await?;
        let (changes, changed) = watch::channel(0);
        let (control, requests) = Control::start(&config.dir, changed).map_err(|source| NodeError::Io {
            what: "listen on",
            path: super::control::path(&config.dir),
            source,
        })?;

        let scheme = if user_tls.is_some() { "wss" } else { "ws" };
        let users = gateway.as_ref().map(|gateway| format!("{scheme}://{}", gateway.local_addr()));
        debug!(allowed = files.allowed, needed = files.needed, "open files");
        let mut line = PartyLine::default();
        line.closed(core.summary().lcl);
        // Whatever run there was, was cut; a run of an older ledger has nobody to talk to.
        let rerun = cut.then(|| core.summary().lcl);
        let (from_runs_tx, from_runs) = mpsc::channel(LINE_MAX);
        let (served_tx, served) = mpsc::channel(LINE_MAX);
        let (told_tx, told) = mpsc::channel(LINE_MAX);
        let (found_tx, found) = mpsc::channel(LINE_MAX);
        let (from_sync_tx, from_sync) = mpsc::channel(LINE_MAX);
        let (state_served_tx, state_served) = mpsc::channel(LINE_MAX);
        let records = diverge::Records::load(&config.dir);
        let ledger = Ledger::start(store)?;
        let settled_seq = core.summary().settlement.map_or(0, |settlement| settlement.seq);
        let release = gateway
            .as_ref()
            .filter(|_| config.msb.execute == Execute::Settled)
            .map(|gateway| Release::start(ledger.clone(), gateway.raw(), settled_seq));
        let settling = match bus {
            None => None,
            Some(prepared) => {
                let bus = settle::open(prepared, &config, core.unl()).await?;
                Some(settle::start(bus, &config, core.genesis(), &core, &ledger))
            }
        };
        let events = Events::new(config.http.listen.is_some());
        let metrics = metrics::Metrics::new(&config.dir);
        let (agreed, heard) = watch::channel(http::Agreed {
            seq: 0,
            tip: None,
            finality: Finality { execute: config.msb.execute, settled_seq },
        });
        let parts = http::Parts {
            chain_id: core.chain_id(),
            events: &events,
            metrics: &metrics,
            ledger: &ledger,
            agreed: heard,
            files: reads.files(&executor),
        };
        let (http, http_asks) = http::start(&config, http_tls.clone(), parts)?;
        let disk = disk::Disk::new(&config.dir, config.disk_reserve, chosen.backend);
        let rounds = rounds::Rounds::new(config.key, core.unl(), seq);
        let node = Node {
            config,
            secret,
            core,
            edge: Default::default(),
            started: Instant::now(),
            mesh,
            mesh_events,
            gateway,
            gateway_events,
            files,
            http,
            http_asks,
            tls: user_tls.into_iter().chain(http_tls).collect(),
            events,
            told_last: Default::default(),
            waiting: Default::default(),
            agreed,
            ledger,
            settled_seq,
            delivered_seq: 0,
            release,
            settling,
            control: Some(control),
            requests,
            changes,
            answers: Vec::new(),
            executor,
            swap: super::swap::Swap::new(executed),
            from_runs_tx,
            from_runs,
            found_tx,
            found,
            checking: BTreeSet::new(),
            progress: Default::default(),
            progress_told: None,
            draw: None,
            effects: VecDeque::new(),
            effects_bytes: 0,
            persists: 0,
            batch: Vec::new(),
            committing: None,
            commit_began: Instant::now(),
            timers: Default::default(),
            jobs: VecDeque::new(),
            running: None,
            end_run: None,
            syncing: None,
            sync_due: None,
            from_sync_tx,
            from_sync,
            state_was_lost,
            stops: false,
            bans,
            offers: Default::default(),
            state_served_tx,
            state_served,
            line,
            rerun,
            line_counters: Default::default(),
            sessions: Default::default(),
            linked: BTreeSet::new(),
            twins: twins::Watch::new(boot),
            runs: Default::default(),
            serving: Default::default(),
            serving_ranges: BTreeSet::new(),
            served_tx,
            served,
            state_kept: chosen,
            guards,
            told_tx,
            told,
            reads,
            asking: Default::default(),
            deliveries: VecDeque::new(),
            delivering: false,
            last_agreed: None,
            report,
            rounds,
            traffic: Default::default(),
            metrics,
            disk,
            service: service::Service::of_environment(),
            records,
            _lock: lock,
        };
        let room = node.disk.text(wall_ms());
        let banner =
            Banner::new(&node.config, node.core.unl(), seq, node.mesh.local_addr(), users, node.http_url(), room);
        Ok((node, banner))
    }
}

/// Opens the state. `others`: whether there is another member to fetch it from; `None` where there is no chain yet. What was
/// damaged, if anything.
async fn open_state(
    dir: &Path,
    backend: Backend,
    expected: Option<Hash>,
    others: Option<bool>,
) -> Result<(Box<dyn StateStore>, Option<StateError>), NodeError> {
    let folder = dir.to_owned();
    let open = move || match others {
        Some(true) => state::open_or_put_aside(&folder, backend, expected),
        Some(false) | None => state::open(&folder, backend, expected).map(|state| (state, None)),
    };
    match tokio::task::spawn_blocking(open).await.expect("opening does not panic") {
        Err(source) if others == Some(false) && source.is_damage() => {
            Err(NodeError::DamagedAlone { dir: dir.to_owned(), source })
        }
        opened => Ok(opened?),
    }
}

/// The chain's genesis: the stored one if it fits the configuration, else a new one, stored.
async fn genesis(
    config: &Config,
    store: &mut Store,
    state: Box<dyn StateStore>,
) -> Result<(Genesis, Box<dyn StateStore>), NodeError> {
    let file = || config.file.clone();
    let shared = config.shared();
    if let Some(genesis) = store.genesis()? {
        if genesis.contract_id != config.contract.id {
            return Err(NodeError::Contract { file: file(), mine: config.contract.id, chain: genesis.contract_id });
        }
        if genesis.cfg_hash != config.cfg_hash() {
            let (mine, chain) = (config.cfg_hash().to_string(), genesis.cfg_hash.to_string());
            let unnamed = ("the hash of the shared settings", mine, chain);
            let kept = store.settings()?.and_then(|bytes| wire::decode::<SharedConfig>(&bytes).ok());
            let (key, mine, chain) = kept.and_then(|kept| shared.first_difference(&kept)).unwrap_or(unnamed);
            return Err(NodeError::Shared { key, file: file(), mine, chain });
        }
        if genesis.time_ms != config.contract.genesis_time_ms {
            return Err(NodeError::Shared {
                key: "contract.genesis_time_ms",
                file: file(),
                mine: config.contract.genesis_time_ms.to_string(),
                chain: genesis.time_ms.to_string(),
            });
        }
        return Ok((genesis, state));
    }
    let mut state = state;
    let (root, state) = tokio::task::spawn_blocking(move || state.scan(true).map(|scan| (scan.root, state)))
        .await
        .expect("scanning does not panic")?;
    let genesis = Genesis {
        ver: VERSION,
        contract_id: config.contract.id,
        unl: config.unl.clone(),
        threshold: u8::try_from(config.consensus.threshold).expect("at most 100"),
        cfg_hash: config.cfg_hash(),
        state_root: root,
        time_ms: config.contract.genesis_time_ms,
        ancestor: None,
    };
    // First the settings: whoever finds a genesis finds what its hash stands for.
    store.set_settings(&wire::encode(&shared))?;
    store.set_genesis(&genesis)?;
    Ok((genesis, state))
}

/// Whether the folder itself says that it may lack what this node has signed: then the database has that now.
fn forgotten(config: &Config, store: &mut Store, tip: Seq) -> Result<bool, NodeError> {
    if let Some(other) = store.claim(config.key, wall_ms())? {
        warn!(node = %other, "hist/ was made by another node, or with another key");
        silence::take_mark(&config.dir, store, tip)?;
        return Ok(true);
    }
    silence::take_mark(&config.dir, store, tip)
}

/// The chain knows who decides; the file only said so in the beginning. It may say what it said then, which others need to
/// join, or what is so now.
fn compare_unl(config: &Config, genesis: &Genesis, unl: &[NodeKey]) {
    if config.unl != genesis.unl && config.unl != unl {
        warn!(file = %config.file.display(), "the UNL in the configuration is not the chain's; the chain's counts");
    }
    if unl != genesis.unl {
        info!(members = unl.len(), at_first = genesis.unl.len(), "the UNL has changed since the chain began");
    }
}

async fn start_mesh(
    config: &Config,
    secret: &SecretKey,
    hello: Hello,
    unl: &[NodeKey],
) -> Result<(Mesh, mpsc::Receiver<mesh::MeshEvent>), NodeError> {
    let (events, mesh_events) = mpsc::channel(MESH_EVENTS_MAX);
    let ours = hello.clone();
    let me = config.key;
    let mesh = Mesh::start(
        MeshConfig {
            key: secret.clone(),
            listen: (config.ip, config.peerport).into(),
            peers: config.peers.iter().map(|peer| (peer.host.clone(), peer.port)).collect(),
            unl: unl.iter().copied().filter(|node| *node != me).collect(),
            admit: match config.mesh.admit {
                Admit::Open => mesh::Admit::Open,
                Admit::Unl => mesh::Admit::Unl,
            },
            connections_max: config.mesh.max_connections,
            hello: wire::encode(&hello),
            check_hello: Box::new(move |_, bytes| {
                let theirs: Hello = wire::decode(bytes).map_err(|error| error.to_string())?;
                ours.check(&theirs)
            }),
        },
        events,
    )
    .await?;
    Ok((mesh, mesh_events))
}

/// Users that this node lets in: its share of those of a ledger. An observer has none, and as many as can connect.
pub(super) fn users_here(config: &Config, unl: &[NodeKey]) -> usize {
    match unl.binary_search(&config.key) {
        Ok(_) => seats::share(config.user.users_max, unl.len()),
        Err(_) => usize::MAX,
    }
}

async fn start_gateway(
    config: &Config,
    tls: Option<Tls>,
    files: &Files,
    users_max: usize,
) -> Result<(Option<Gateway>, mpsc::Receiver<gateway::GatewayEvent>), NodeError> {
    let (events, gateway_events) = mpsc::channel(gateway::EVENTS_MAX);
    let Some(port) = config.pubport else { return Ok((None, gateway_events)) };
    if files.connections < config.user.connections_max.min(users_max) {
        info!(
            connections = files.connections,
            "this process may open too few files for more connections of users than these (raise ulimit -Hn)"
        );
    }
    let settings = GatewayConfig {
        message_bytes_max: usize::try_from(config.pubmaxsize).expect("at most 4 MiB"),
        messages_per_minute: config.pubmaxcpm,
        connections_max: files.connections,
        users_max,
        per_address_max: config.user.per_address,
        failed_per_minute: Some(config.user.failed_per_minute).filter(|most| *most > 0),
        queue_bytes_max: config.user.queue_bytes,
        tls,
        ..GatewayConfig::new((config.ip, port).into())
    };
    let gateway = Gateway::start(settings, events).await?;
    Ok((Some(gateway), gateway_events))
}

fn random_hash() -> Hash {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    Hash(bytes)
}
