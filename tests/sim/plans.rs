//! Draws a run from a seed: who is in it, what goes wrong, and what must come of it.

use std::collections::BTreeSet;

use hotpocket::{consensus::header::UnlChange, types::Seq};

use super::{
    properties::{Coverage, changed, quorum},
    rng::Rng,
    world::{BusHappening, Config, Happening, Manner, NO_LIMIT_MS, World},
};

/// Ledgers that everybody sound must close once faults are over.
const LEDGERS_AFTER: u64 = 3;
/// Milliseconds for which a node falls behind in a long run.
const LONG_MS: u64 = 3_000;
/// Milliseconds in which they must.
const SETTLE_MS: u64 = 60_000;
/// Milliseconds after which everybody is in sync at the latest: once everybody has said where it stands ...
const SYNC_MS: u64 = 7_000;
/// ... so many times a message's and a commit's longest way for each ledger missed.
const SYNC_DELAYS: u64 = 10;
/// How often all operators vote for each change once faults are over, in turns because each has one vote at a time.
const VOTES: usize = 4;
/// How often all look at the settlement bus once faults are over, and how far apart.
const LOOKS: u64 = 100;
const LOOK_MS: u64 = 500;
/// What happens on the bus is drawn from another seed than the rest.
const BUS_SEED: u64 = 0xb05_5eed;
/// So are disks that are nearly full for a while.
const PAUSE_SEED: u64 = 0xd15c_5eed;
/// How long each of these votes stands at least.
const VOTE_MS: u64 = 3_000;

/// The configuration and the plan of a seed, for a report.
pub fn describe(seed: u64) -> String {
    let (world, length) = prepared(seed);
    format!("{:?}\nfaults end at {length} ms\n{}", world.cfg, world.planned())
}

/// The world of a seed at its beginning, and when faults end.
fn prepared(seed: u64) -> (World, u64) {
    let mut rng = Rng::new(seed);
    let cfg = config(&mut rng);
    let length = (cfg.roundtime_ms * rng.within(3, 8)).clamp(400, 2000);
    let faulty = cfg.manners.iter().filter(|manner| **manner != Manner::Honest).count();
    let long = faulty < cfg.n - quorum(cfg.n, cfg.threshold) && rng.chance(15);
    if long {
        let (latency_ms, disk_ms) = ((1, rng.within(1, 5)), (0, 2));
        // Mostly contents are deleted meanwhile.
        let input_window = rng.pick(&[65_536, 3, 3, 10]);
        // And ledgers close quickly: what slows them down is in the other runs.
        let (loss, grace_ms, eager) = (cfg.loss.min(5), 5, true);
        let quick = Config { late: 0, loss, grace_ms, eager, roundtime_ms: 15, min_round_ms: 0, ..cfg };
        let cfg = Config { latency_ms, disk_ms, run_ms: (0, 2), input_window, ..quick };
        let mut world = World::new(cfg, rng);
        fall_behind(&mut world);
        plan_pauses(&mut world, seed, LONG_MS + 900);
        return (world, LONG_MS + 1000);
    }
    let mut world = World::new(cfg, rng);
    plan(&mut world, length);
    plan_bus(&mut world, seed, length);
    plan_pauses(&mut world, seed, length);
    (world, length)
}

fn config(rng: &mut Rng) -> Config {
    let n = rng.pick(&[1, 2, 3, 3, 4, 4, 4, 5, 5, 6, 7]);
    let threshold = rng.pick(&[67, 75, 80, 80, 100]);
    let quorum = quorum(n, threshold);
    let (safe, live) = (2 * quorum - n - 1, n - quorum);
    let mut manners = vec![Manner::Honest; n];
    let liars = match rng.index(10) {
        0..5 => 0,
        5..9 => safe.min(live),
        _ => safe.min(n - 1),
    };
    let mut members: Vec<usize> = (0..n).collect();
    for _ in 0..liars {
        let member = members.remove(rng.index(members.len()));
        manners[member] = rng.pick(&Manner::LIES);
    }
    if liars < live && rng.chance(20) {
        let member = members.remove(rng.index(members.len()));
        manners[member] = Manner::Flips(rng.within(1, 6));
    }
    // Now and then runs take about as long as they may. While somebody lies or is away, nobody may decide what that means.
    let run_ms = rng.pick(&[(0, 2), (1, 20), (1, 20), (50, 400)]);
    let limit_ms = if rng.chance(25) { rng.within(run_ms.0 + 1, run_ms.1.max(run_ms.0 + 2)) } else { NO_LIMIT_MS };
    let endless = if limit_ms < NO_LIMIT_MS { rng.pick(&[0, 0, 10]) } else { 0 };
    let latency = rng.pick(&[(1, 1), (1, 5), (1, 30), (10, 60), (0, 120)]);
    Config {
        n,
        observers: rng.pick(&[0, 0, 0, 0, 0, 0, 0, 1, 1, 2]),
        threshold,
        manners,
        roundtime_ms: rng.pick(&[100, 300, 1000]),
        min_round_ms: rng.pick(&[0, 0, 20, 200]),
        eager: rng.chance(75),
        grace_ms: rng.pick(&[5, 30, 100]),
        time_res_ms: rng.pick(&[1, 1000]),
        input_window: rng.pick(&[65_536, 65_536, 65_536, 3, 10]),
        latency_ms: latency,
        disk_ms: rng.pick(&[(0, 0), (0, 3), (1, 20)]),
        run_ms,
        limit_ms,
        endless,
        wall_off_ms: rng.pick(&[0, 50, 5_000, 3_600_000]),
        drift_permille: rng.pick(&[0, 5, 50]),
        loss: rng.pick(&[0, 0, 0, 5, 10, 25]),
        duplicates: rng.pick(&[0, 0, 10]),
        late: rng.pick(&[0, 0, 0, 1, 5]),
        reorder: rng.chance(25),
    }
}

/// A node that is away, or whose runs are slow, while the others close a hundred ledgers: seldom, because it takes long.
fn fall_behind(world: &mut World) {
    let honest: Vec<usize> = (0..world.cfg.n).filter(|node| world.cfg.manners[*node] == Manner::Honest).collect();
    let node = honest[world.rng.index(honest.len())];
    // Where contents are deleted it is away, so that it has to join.
    if world.cfg.input_window > LONG_MS && world.rng.chance(70) {
        world.nodes[node].slow_ms = 500;
    } else {
        world.nodes[node].dead = true;
        world.crash(node);
        if world.rng.chance(50) {
            world.plan(LONG_MS - 1, Happening::Empty(node));
        }
    }
    for what in [Happening::Input, Happening::SignedInput, Happening::User, Happening::User, Happening::Replay] {
        for _ in 0..world.rng.index(10) {
            let at = world.rng.within(0, LONG_MS + 900);
            world.plan(at, what.clone());
        }
    }
    world.plan(LONG_MS, Happening::Back(node));
    for _ in 0..world.rng.within(2, 6) {
        let (at, crash) = (LONG_MS + world.rng.within(0, 600), world.rng.within(0, 100) as u32);
        world.plan(at, Happening::Crash(node, crash));
    }
    world.plan(LONG_MS + 1000, Happening::Gst);
}

fn plan(world: &mut World, length: u64) {
    let n = world.cfg.n;
    let faulty = world.cfg.manners.iter().filter(|manner| **manner != Manner::Honest).count();
    let quorum = quorum(n, world.cfg.threshold);
    for _ in 0..world.rng.index(5) {
        let (node, after, at) = (world.rng.index(n), world.rng.within(0, 60) as u32, world.rng.within(0, length));
        world.plan(at, Happening::Crash(node, after));
    }
    if world.rng.chance(30) {
        let at = world.rng.within(0, length);
        world.plan(at, Happening::PowerCut);
    }
    for _ in 0..world.rng.index(3) {
        let group: BTreeSet<usize> = (0..world.nodes.len()).filter(|_| world.rng.chance(50)).collect();
        let at = world.rng.within(0, length);
        let until = at + world.rng.within(10, 1000);
        world.plan(at, Happening::Partition(group));
        world.plan(until, Happening::Heal);
    }
    for _ in 0..world.rng.index(4) {
        let (from, to, at) = (world.rng.index(n), world.rng.index(n), world.rng.within(0, length));
        let until = at + world.rng.within(10, 600);
        world.plan(at, Happening::OneWay(from, to, true));
        world.plan(until, Happening::OneWay(from, to, false));
    }
    let inputs = world.rng.pick(&[0, 3, 10, 25]);
    for what in [Happening::Input, Happening::Input, Happening::SignedInput, Happening::User, Happening::Replay] {
        for _ in 0..world.rng.index(inputs + 1) {
            let at = world.rng.within(0, length + 300);
            world.plan(at, what.clone());
        }
    }
    plan_changes(world, length);
    // Whoever lost its disk is faulty until it votes again.
    let mut spare = n.saturating_sub(quorum + faulty).min((2 * quorum - n - 1).saturating_sub(faulty));
    let mut honest: Vec<usize> = (0..n).filter(|node| world.cfg.manners[*node] == Manner::Honest).collect();
    if spare > 0 && world.rng.chance(20) {
        let node = honest.remove(world.rng.index(honest.len()));
        world.nodes[node].dead = true;
        spare -= 1;
    }
    if spare > 0 && world.rng.chance(40) {
        let node = honest[world.rng.index(honest.len())];
        for _ in 0..world.rng.within(1, 2) {
            let at = world.rng.within(0, length);
            world.plan(at, Happening::Empty(node));
        }
    }
    // Of one node: with the states of many a network's is gone.
    if n > 1 && faulty <= n - quorum && world.rng.chance(30) {
        let honest: Vec<usize> = (0..n).filter(|node| world.cfg.manners[*node] == Manner::Honest).collect();
        let node = honest[world.rng.index(honest.len())];
        for _ in 0..world.rng.within(1, 3) {
            let (at, copy_too) = (world.rng.within(0, length), world.rng.chance(70));
            world.plan(at, Happening::Damage(node, copy_too));
        }
    }
    world.plan(length, Happening::Gst);
}

/// In some runs the UNL changes, by the operators' votes and by the contract. Only so that whichever of the changes are
/// made, in whatever order, there are no more faulty members than the run could bear without them.
fn plan_changes(world: &mut World, length: u64) {
    if !world.rng.chance(35) {
        return;
    }
    let mut changes: Vec<UnlChange> = Vec::new();
    for _ in 0..world.rng.within(1, 3) {
        let node = world.rng.index(world.cfg.singles());
        let key = world.key(node);
        let change = if node < world.cfg.n { UnlChange::Remove(key) } else { UnlChange::Add(key) };
        if !changes.contains(&change) {
            changes.push(change);
            if !all_bearable(world, &changes) {
                changes.pop();
            }
        }
    }
    let count = changes.len();
    for (at, change) in changes.into_iter().enumerate() {
        if world.rng.chance(40) {
            let at = world.rng.within(0, length);
            world.plan(at, Happening::Request(change));
            continue;
        }
        // Some vote in the middle of it, some of them think better of it, and in the end all agree: one after the other,
        // because a node has one vote.
        let (first, percent) = (world.rng.within(0, length), world.rng.within(20, 100));
        world.plan(first, Happening::Operators(Some(change), percent));
        if world.rng.chance(30) {
            let later = first + world.rng.within(10, 500);
            world.plan(later, Happening::Operators(None, 50));
        }
        world.wanted.push(change);
        for turn in 0..VOTES {
            let place = turn * count + at;
            world.plan(length + 300 + VOTE_MS * place as u64, Happening::Operators(Some(change), 100));
        }
    }
}

/// Some networks settle. By numbers of its own, so that the other runs stay what they are.
fn plan_bus(world: &mut World, seed: u64, length: u64) {
    let mut rng = Rng::new(seed ^ BUS_SEED);
    if !rng.chance(30) {
        return;
    }
    for _ in 0..rng.within(3, 12) {
        let what = match rng.index(8) {
            0 => BusHappening::Rotate,
            1 => BusHappening::OutOfSight(rng.within(20, 100)),
            2 | 3 => BusHappening::Confirm,
            4 => BusHappening::Look(rng.within(20, 100)),
            _ => BusHappening::Look(100),
        };
        world.plan(rng.within(0, length), Happening::Bus(what));
    }
    // In the end all see it, again and again, as agents do.
    world.plan(length + 200, Happening::Bus(BusHappening::Confirm));
    for turn in 0..LOOKS {
        world.plan(length + 100 + LOOK_MS * turn, Happening::Bus(BusHappening::Look(100)));
    }
}

/// In some runs disks are nearly full for a while, sometimes all at once. By numbers of its own too.
fn plan_pauses(world: &mut World, seed: u64, length: u64) {
    let mut rng = Rng::new(seed ^ PAUSE_SEED);
    if !rng.chance(25) {
        return;
    }
    for _ in 0..rng.within(1, 4) {
        let (node, at) = (rng.index(world.cfg.singles()), rng.within(0, length));
        let until = at + rng.within(1, 1_500);
        let all = rng.chance(15);
        for node in (0..world.cfg.singles()).filter(|other| all || *other == node) {
            world.plan(at, Happening::Pause(node, true));
            world.plan(until, Happening::Pause(node, false));
        }
    }
}

/// Whether the run may go on as it was meant to with each subset of these changes made.
fn all_bearable(world: &World, changes: &[UnlChange]) -> bool {
    let first: BTreeSet<_> = (0..world.cfg.n).map(|node| world.key(node)).collect();
    let faulty: BTreeSet<_> = (0..world.cfg.n)
        .filter(|node| world.cfg.manners[*node] != Manner::Honest)
        .map(|node| world.key(node))
        .collect();
    // One more may be made to stay down.
    let spare = |unl: &BTreeSet<_>| {
        let quorum = quorum(unl.len(), world.cfg.threshold);
        let faulty = unl.intersection(&faulty).count();
        (faulty < 2 * quorum - unl.len(), (unl.len() - quorum).checked_sub(faulty))
    };
    let (_, live) = spare(&first);
    let mut unls = vec![first];
    for change in changes {
        let more: Vec<BTreeSet<_>> = unls.iter().filter_map(|unl| changed(unl, *change)).collect();
        unls.extend(more);
    }
    unls.iter().all(|unl| {
        let (safe, spare) = spare(unl);
        safe && (live.is_none() || spare >= live)
    })
}

/// L3: whoever was away, or cut off, is where the others are soon after that is over.
fn check_sync(world: &mut World, tip: Seq) {
    let behind = world.sound().map(|node| tip.saturating_sub(world.seq(node))).max().unwrap_or(0);
    let delay_ms = world.cfg.latency_ms.1 + world.cfg.disk_ms.1;
    let bound_ms = SYNC_MS + SYNC_DELAYS * delay_ms * (behind + 1);
    let until = world.now + bound_ms;
    let done = world.run(until, |world| world.sound().all(|node| world.seq(node) >= tip));
    assert!(done, "L3: not all are at {tip} within {bound_ms} ms, {behind} ledgers behind: {}", world.describe());
    if behind > 0 {
        world.watch.seen.hit("in sync after faults ended");
    }
}

/// Members that ledgers have to be closed without.
fn away(world: &World, faulty: usize) -> usize {
    faulty + world.nodes.iter().filter(|node| node.dead || node.emptied).count()
}

/// Counts what kind of run this is.
fn count_kind(world: &mut World) {
    let names = ["", "n = 1", "n = 2", "n = 3", "n = 4", "n = 5", "n = 6", "n = 7"];
    world.watch.seen.hit(names[world.cfg.n]);
    world.watch.seen.hit(match world.cfg.threshold {
        67 => "threshold 67",
        75 => "threshold 75",
        80 => "threshold 80",
        _ => "threshold 100",
    });
    for manner in world.cfg.manners.clone() {
        world.watch.seen.hit(manner.name());
    }
}

/// Runs a seed; panics with what was violated.
pub fn run(seed: u64) -> Coverage {
    let (mut world, length) = prepared(seed);
    count_kind(&mut world);
    let n = world.cfg.n;
    let quorum = quorum(n, world.cfg.threshold);
    let faulty = world.cfg.manners.iter().filter(|manner| **manner != Manner::Honest).count();
    world.run(length, |world| world.gst);
    // A run of which too few clocks say that its time was up, and too few that it was not, waits for whoever is away.
    let silent = world.silent_members();
    let all_speak = faulty == 0 && silent.is_empty() && world.nodes.iter().all(|node| !node.dead);
    let live = away(&world, faulty) <= n - quorum && (all_speak || world.cfg.limit_ms == NO_LIMIT_MS);
    let tip = world.watch.tip();
    let goal = tip + LEDGERS_AFTER;
    if live {
        check_sync(&mut world, tip);
        let done = world.run(length + SETTLE_MS, |world| {
            let closed = world.sound().all(|node| world.seq(node) >= goal);
            let flips = |node: usize| matches!(world.cfg.manners.get(node), Some(Manner::Flips(_)));
            let have = world.sound().all(|node| flips(node) || world.has_state(node));
            let open = !world.unledgered().is_empty() || !world.outstanding().is_empty() || !world.is_settled();
            closed && have && world.silent_members().is_empty() && world.now > length + 300 && !open
        });
        let (open, wanted) = (world.unledgered(), world.outstanding());
        assert!(
            done,
            "L1: ledger {goal} is not closed by all, or not all have a state, or these are silent: {:?}, or these inputs are not: {open:?}, or these changes: {wanted:?}: {}",
            world.silent_members(),
            world.describe()
        );
    } else {
        world.run(length + 2000, |_| false);
    }
    world.watch.seen
}
