//! Agents of several nodes over one bus and one chain, which closes a ledger now and then and counts what they say.

mod bus;

use std::sync::Arc;

use tempfile::TempDir;

use self::bus::{BS, Bus, FEE, Fault, MBS, NETWORK};
use super::{drill::Stop, *};
use crate::{
    consensus::header::{ExecResult, VERSION},
    settlement::tx::Operation,
    types::Status as RunStatus,
};

/// Longest time for one step.
const STEP: Duration = Duration::from_secs(30);
/// Time from one ledger to the next.
const ROUND: Duration = Duration::from_millis(10);
const ID: Hash = Hash([7; 32]);
const PACE: Pace = Pace { every: 5, max_delay_ms: 1 << 40 };

struct Node {
    key: SecretKey,
    folder: TempDir,
    agent: Option<Agent>,
    tips: watch::Sender<Tip>,
    said: mpsc::Receiver<Option<Settlement>>,
    vote: Option<Settlement>,
    /// A vote of it counts.
    is_heard: bool,
}

struct World {
    bus: Bus,
    nodes: Vec<Node>,
    headers: Arc<Mutex<Vec<Header>>>,
    slot: Duration,
    quorum: usize,
    settled: Vec<Settlement>,
}

impl World {
    /// So many nodes, each of which can pay for a hundred and fifty settlements.
    async fn new(count: u8, slot: Duration) -> World {
        let bus = Bus::start().await;
        let mut world = World {
            bus,
            nodes: Vec::new(),
            headers: Arc::default(),
            slot,
            quorum: (usize::from(count) * 80).div_ceil(100),
            settled: Vec::new(),
        };
        for seed in 1..=count {
            let key = SecretKey::from_seed([seed; 32]);
            let address = Address::new(NETWORK, key.node_key().0).to_string();
            world.bus.lock().balances.insert(address, 150 * FEE);
            let folder = tempfile::tempdir().unwrap();
            std::fs::create_dir(folder.path().join("hist")).unwrap();
            let (tips, _) = watch::channel(Tip { seq: 0, settled: 0, unl: Vec::new() });
            let (_, said) = mpsc::channel(1);
            world.nodes.push(Node { key, folder, agent: None, tips, said, vote: None, is_heard: true });
        }
        for at in 0..world.nodes.len() {
            world.start(at, None);
        }
        world
    }

    fn unl(&self) -> Vec<NodeKey> {
        let mut unl: Vec<NodeKey> = self.nodes.iter().map(|node| node.key.node_key()).collect();
        unl.sort_unstable();
        unl
    }

    fn tip(&self) -> Tip {
        let headers = self.headers.lock().unwrap();
        let settled = headers.last().and_then(|header| header.settlement.as_ref()).map_or(0, |last| last.seq);
        Tip { seq: headers.len() as Seq, settled, unl: self.unl() }
    }

    /// Starts the agent of a node, anew if one runs.
    fn start(&mut self, at: usize, stop: Option<Stop>) {
        let (tips, heard) = watch::channel(self.tip());
        let (say, said) = mpsc::channel(4);
        let headers = self.headers.clone();
        let read: ReadHeaders = Box::new(move |first, count| {
            let headers = headers.lock().unwrap();
            let first = usize::try_from(first).unwrap() - 1;
            let page = headers.iter().skip(first).take(count).cloned().collect();
            Box::pin(async move { Ok(page) })
        });
        let node = &mut self.nodes[at];
        let setup = Setup {
            me: node.key.node_key(),
            key: node.key.clone(),
            client: Client::new(&self.bus.url(), NETWORK).unwrap().with_timeout(Duration::from_millis(500)),
            contract_id: ID,
            genesis_time_ms: 0,
            subnet: BS,
            bootstrap: MBS,
            pace: PACE,
            slot: self.slot,
            dir: node.folder.path().to_owned(),
            headers: read,
        };
        let worker = Worker { drill: Drill::stopping(stop), ..Worker::new(setup, heard, say) };
        node.agent = Some(Agent { status: worker.status.clone(), task: tokio::spawn(worker.run()) });
        (node.tips, node.said) = (tips, said);
    }

    /// kill -9: nothing of the process is left but its folder.
    fn kill(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        (node.agent, node.vote) = (None, None);
    }

    /// Closes a ledger behind which the one before had outputs.
    fn close(&mut self) {
        for node in &mut self.nodes {
            while let Ok(vote) = node.said.try_recv() {
                node.vote = vote;
            }
        }
        let mut headers = self.headers.lock().unwrap();
        let seq = headers.len() as Seq + 1;
        let last = headers.last().and_then(|header| header.settlement.clone());
        let votes: Vec<&Settlement> =
            self.nodes.iter().filter(|node| node.is_heard).filter_map(|node| node.vote.as_ref()).collect();
        let decided = votes.iter().find(|vote| {
            votes.iter().filter(|other| other == vote).count() >= self.quorum && vote.follows(last.as_ref(), seq)
        });
        let settlement = decided.map(|vote| (*vote).clone()).or(last.clone());
        if settlement.as_ref().map(|new| new.seq) > last.as_ref().map(|last| last.seq).or(Some(0)) {
            self.settled.extend(settlement.clone());
        }
        let parent = headers.last().map_or(Hash::ZERO, Header::hash);
        headers.push(Header {
            ver: VERSION,
            chain_id: Hash::ZERO,
            seq,
            parent,
            time_ms: 1_000 * seq,
            unl_hash: Hash::ZERO,
            next_unl_hash: Hash::ZERO,
            users_root: Hash::ZERO,
            n_users: 0,
            inputs_root: Hash::ZERO,
            n_inputs: 0,
            inputs_bytes: 0,
            result: ExecResult {
                of_seq: seq - 1,
                of_hash: parent,
                state_root: Hash::tagged("test/state", &(seq - 1)),
                outputs_root: if seq == 1 { Hash::ZERO } else { Hash::tagged("test/outputs", &(seq - 1)) },
                status: RunStatus::Ok,
                unl_req: None,
            },
            settlement,
        });
        drop(headers);
        let tip = self.tip();
        for node in &self.nodes {
            node.tips.send_replace(tip.clone());
        }
    }

    /// Closes ledgers until it is so.
    async fn until(&mut self, what: &str, done: impl Fn(&World) -> bool) {
        let deadline = Instant::now() + STEP;
        let mut rounds = tokio::time::interval(ROUND);
        while !done(self) {
            assert!(Instant::now() < deadline, "{what}: {:?}", self.status(0));
            rounds.tick().await;
            self.close();
        }
    }

    async fn settle(&mut self, more: usize) {
        let goal = self.settled.len() + more;
        self.until("settlements", |world| world.settled.len() >= goal).await;
    }

    fn status(&self, at: usize) -> Status {
        self.nodes[at].agent.as_ref().map(Agent::status).unwrap_or_default()
    }

    fn alert(&self, says: &str) -> bool {
        (0..self.nodes.len()).any(|at| self.status(at).alerts.iter().any(|alert| alert.contains(says)))
    }

    /// Each settlement is on the bus once, paid once, and the ranges have no hole between them.
    fn check(&self) {
        let landed = self.bus.lock().landed.clone();
        let mut schedule = Schedule::new(ID, 0, PACE);
        let mut all = Vec::new();
        for header in self.headers.lock().unwrap().iter() {
            all.extend(schedule.next(header).expect("what is recorded is what the chain leads to"));
        }
        assert_eq!(all.len(), self.settled.len());
        let (mut prev, mut first) = (Hash::ZERO, 1);
        for settled in &all {
            assert_eq!((settled.record.prev, settled.record.first), (prev, first), "a hole");
            (prev, first) = (settled.settlement.ch, settled.record.last + 1);
            let of = |ch: &Hash| -> Vec<usize> {
                let is = |landed: &&crate::settlement::tx::Landed| matches!(&landed.signed.operation, Operation::Tx(tx) if tx.ch == *ch);
                landed.iter().enumerate().filter(|(_, landed)| is(landed)).map(|(at, _)| at + 1).collect()
            };
            let places = of(&settled.settlement.ch);
            assert_eq!(places.len(), 1, "on the bus once: {places:?}");
            assert_eq!(places[0] as u64, settled.settlement.confirmed_length);
        }
        let left: u128 = self.bus.lock().balances.values().sum();
        assert_eq!(left, self.nodes.len() as u128 * 150 * FEE - landed.len() as u128 * FEE, "a fee each");
        assert!(landed.len() <= all.len() + 1, "one at most is under way");
    }
}

#[tokio::test]
async fn five_nodes_that_post_at_once_settle_each_range_once_and_leave_none_out() {
    let mut world = World::new(5, Duration::ZERO).await;
    world.settle(4).await;
    assert!(world.bus.lock().posts > 4, "all posted at once");
    world.check();
    assert_eq!(world.status(0).alerts, [""; 0]);
    assert!(world.status(0).settled_seq > Some(0));
}

#[tokio::test]
async fn one_node_posts_while_it_works_and_the_next_in_turn_where_it_does_not() {
    let mut world = World::new(4, Duration::from_millis(700)).await;
    world.settle(1).await;
    assert_eq!(world.bus.lock().posts, 1);
    // Whoever has nothing left is passed over.
    let poor: Vec<usize> = (0..3).collect();
    let mut taken = 0;
    for at in poor {
        let address = Address::new(NETWORK, world.nodes[at].key.node_key().0).to_string();
        taken += world.bus.lock().balances.insert(address, 0).unwrap();
    }
    world.settle(2).await;
    world.until("an alert", |world| world.alert("and a settlement costs")).await;
    let rich = Address::new(NETWORK, world.nodes[0].key.node_key().0).to_string();
    *world.bus.lock().balances.get_mut(&rich).unwrap() += taken;
    world.check();
}

#[tokio::test]
async fn a_node_killed_at_any_step_settles_what_was_due_once() {
    for point in ["due", "signed", "posted", "answered", "confirmed", "in_ledger"] {
        let mut world = World::new(3, Duration::ZERO).await;
        let stopped = Arc::new(Mutex::new(0));
        for at in 0..3 {
            let seen = stopped.clone();
            let stop: Stop = Arc::new(move |at| {
                let is_it = at == point;
                *seen.lock().unwrap() += u32::from(is_it);
                is_it
            });
            world.start(at, Some(stop));
        }
        // The others get as far as they do: a transaction that one posted is not posted by who sees it there.
        world.until(point, |_| *stopped.lock().unwrap() > 0).await;
        for at in 0..3 {
            world.kill(at);
        }
        world.close();
        for at in 0..3 {
            world.start(at, None);
        }
        world.settle(2).await;
        world.check();
    }
}

#[tokio::test]
async fn a_bus_that_was_away_for_a_thousand_ledgers_gets_one_settlement_for_all_that_came_meanwhile() {
    let mut world = World::new(3, Duration::ZERO).await;
    world.settle(1).await;
    world.bus.stop().await;
    world.until("something due", |world| world.status(0).pending.is_some()).await;
    for _ in 0..1_000 {
        world.close();
    }
    world.until("an alert", |world| world.alert("settling waits for the bus")).await;
    // The alert may come while the agent has yet to hear of the last ledgers.
    world.until("a thousand ledgers to settle", |world| world.status(0).unsettled_ledgers >= 1_000).await;
    let before = world.settled.len();
    world.bus.restart().await;
    world.settle(2).await;
    let covered = world.settled[before + 1].seq - world.settled[before].seq;
    assert!(covered >= 1_000, "{covered}");
    world.check();
    world.until("no alert", |world| !world.alert("waits for the bus")).await;
}

#[tokio::test]
async fn what_the_bus_answers_to_a_post_is_not_believed() {
    let mut world = World::new(3, Duration::ZERO).await;
    for fault in [Fault::LostReply, Fault::BusyThoughLanded, Fault::OkThoughLost, Fault::Broken] {
        world.bus.lock().faults = vec![fault; 4];
        world.settle(1).await;
        world.bus.lock().faults.clear();
        world.check();
    }
}

#[tokio::test]
async fn a_confirmation_that_takes_long_is_waited_for() {
    let mut world = World::new(3, Duration::ZERO).await;
    world.bus.lock().confirmed = Some(0);
    world.until("a post", |world| !world.bus.lock().landed.is_empty()).await;
    let posts = world.bus.lock().posts;
    world.until("another post", |world| world.bus.lock().posts > posts + 3).await;
    assert_eq!((world.settled.len(), world.bus.lock().landed.len()), (0, 1), "the same bytes land once");
    assert!(
        (0..3).all(|at| world.status(at).alerts.is_empty()),
        "it is there, and no operator can do anything about it"
    );
    world.bus.lock().confirmed = None;
    world.settle(1).await;
    world.check();
}

#[tokio::test]
async fn a_change_of_what_the_bus_takes_is_agreed_on_and_what_was_signed_before_is_watched() {
    let mut world = World::new(3, Duration::ZERO).await;
    world.settle(1).await;
    // It lands, and nobody sees that before the bus takes something else.
    world.bus.lock().confirmed = Some(1);
    world.until("a post", |world| world.bus.lock().landed.len() == 2).await;
    let old = world.bus.lock().txv;
    world.bus.lock().txv = Hash([0x67; 32]);
    let recorded = |world: &World| world.headers.lock().unwrap().last().unwrap().settlement.clone().unwrap();
    world.until("an agreement", |world| recorded(world).txv == Hash([0x67; 32])).await;
    world.until("another post", |world| world.bus.lock().landed.len() == 3).await;
    // Both are there: the first one is the settlement.
    world.bus.lock().confirmed = None;
    world.settle(1).await;
    assert_eq!(world.settled[1].confirmed_length, 2);
    // And back again.
    world.bus.lock().txv = old;
    world.settle(1).await;
    assert_eq!(recorded(&world).txv, old);
}

#[tokio::test]
async fn a_bus_that_refuses_gives_one_alert_with_the_remedy_and_settling_goes_on_by_itself() {
    let mut world = World::new(3, Duration::ZERO).await;
    world.bus.lock().is_deployed = false;
    world.until("an alert", |world| world.alert("deploy the subnet bootstrap 4444")).await;
    assert!((0..3).all(|at| world.status(at).alerts.len() <= 1), "one alert");
    world.bus.lock().is_deployed = true;
    world.settle(1).await;
    world.until("no alert", |world| (0..3).all(|at| world.status(at).alerts.is_empty())).await;

    let rich = world.bus.lock().balances.clone();
    world.bus.lock().balances.values_mut().for_each(|balance| *balance = FEE - 1);
    world.until("an alert", |world| world.alert("send TNK to it")).await;
    world.bus.lock().balances = rich;
    world.settle(1).await;
    world.until("no alert", |world| (0..3).all(|at| world.status(at).alerts.is_empty())).await;
    world.check();
}

#[tokio::test]
async fn a_bus_that_lies_is_told_and_nobody_votes_for_what_it_shows() {
    let mut world = World::new(3, Duration::ZERO).await;
    world.bus.lock().lies = true;
    world
        .until("an alert", |world| (0..3).all(|at| world.status(at).alerts.iter().any(|it| it.contains("lies"))))
        .await;
    for _ in 0..20 {
        world.close();
    }
    assert_eq!(world.settled, []);
    assert!(world.nodes.iter().all(|node| node.vote.is_none()));
    world.bus.lock().lies = false;
    world.settle(1).await;
    world.check();
}

#[tokio::test]
async fn a_node_whose_bus_too_few_others_see_says_so_until_they_do() {
    let mut world = World::new(3, Duration::ZERO).await;
    world.settle(1).await;
    // As if two members ran buses of their own: what they say is something else.
    world.nodes[1..].iter_mut().for_each(|node| node.is_heard = false);
    world.until("an alert", |world| world.alert("too few members see the same")).await;
    world.nodes.iter_mut().for_each(|node| node.is_heard = true);
    world.settle(1).await;
    world.until("no alert", |world| (0..3).all(|at| world.status(at).alerts.is_empty())).await;
    world.check();
}

#[tokio::test]
async fn a_bus_that_hangs_holds_up_no_ledger() {
    let mut world = World::new(3, Duration::ZERO).await;
    world.settle(1).await;
    world.bus.lock().hangs = true;
    let began = Instant::now();
    for _ in 0..500 {
        world.close();
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    world.until("an alert", |world| world.alert("settling waits for the bus")).await;
    world.bus.lock().hangs = false;
    world.settle(1).await;
    world.check();
}

#[tokio::test]
async fn a_node_that_starts_late_goes_on_where_the_chain_is() {
    let mut world = World::new(5, Duration::ZERO).await;
    world.kill(4);
    world.settle(2).await;
    world.start(4, None);
    world.kill(0);
    world.settle(2).await;
    assert_eq!(world.status(4).alerts, [""; 0]);
    world.check();
}
