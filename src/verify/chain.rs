//! What a ledger must be to follow the one before: links, UNL and quorum, users, keys of inputs, time, results.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Ask, Head, PAGE, Place, Report, Source, Stopped, UNL_MAX, Wrong,
    alone::{self, Alone, Contents, Key, Rules, Shared},
    hash, is_ascending,
    read::{ExecResult, Genesis, Header, Lacks, Settlement, SharedConfig, Signed, UnlChange},
    user_key,
};
use crate::types::{Hash, NodeKey, Seq, Status, UserKey, WallMs};

/// Names of single values.
const META: [&str; 8] = ["genesis", "settings", "unl_vote", "adopted", "silence", "node", "heard", "join"];
/// Differing ledgers that are named.
const DIVERGED_MAX: usize = 8;

/// A chain as far as it was followed.
pub(super) struct Chain {
    pub(super) rules: Rules,
    threshold: usize,
    /// The last ledger there is.
    to: Seq,
    /// The last ledger followed, or the genesis.
    pub(super) seq: Seq,
    pub(super) hash: Hash,
    pub(super) time_ms: WallMs,
    /// The UNL that closes the next ledger, ascending, and its hash.
    pub(super) unl: Vec<NodeKey>,
    pub(super) unl_hash: Hash,
    pub(super) settlement: Option<Settlement>,
    /// Root of the state that the last ledger's run began with, and the result of the run before.
    before: Outcome,
    users: Users,
    /// Users of the last ledger that this node has a result of.
    pub(super) users_executed: Option<BTreeSet<UserKey>>,
    /// Users of the ledger before the oldest one with its contents, where they were found.
    pub(super) users_base: Option<BTreeSet<UserKey>>,
    executed: Seq,
    /// That this node passed over ledgers: the last of them, the last with inputs, what lacks since.
    join: Option<(Seq, Seq, Lacks)>,
    /// The last ledger with each key, of those in the window.
    window: BTreeMap<Key, Seq>,
    window_order: BTreeMap<Seq, Vec<Key>>,
    /// The agreed result that this node took over for the last one of its own.
    adopted: Option<ExecResult>,
    /// Ledgers whose runs others did, and the result that they agreed on for the last one.
    synced: Vec<(Seq, Seq, ExecResult)>,
    /// This node's own word about the last ledger.
    own: Own,
    /// Every UNL the chain has had.
    pub(super) unl_hashes: BTreeSet<Hash>,
    /// Inputs found in ledgers, and whether all that are stored must be among them.
    pub(super) inputs_seen: u64,
    pub(super) complete: bool,
    pub(super) report: Report,
    unchecked_contents: Option<(Seq, Seq)>,
    unchecked_users: Option<Seq>,
}

/// The users of the last ledger, as far as they are known.
pub(super) enum Users {
    Known(BTreeSet<UserKey>),
    /// They are found by going back from the end, and are those before this ledger.
    From(Seq, BTreeSet<UserKey>),
    Unknown,
}

/// What is agreed on about the run before.
struct Outcome {
    state_root: Hash,
}

/// What this node computed for the last ledger.
#[derive(Default)]
struct Own {
    result: Option<Signed<ExecResult>>,
    outputs: Option<Hash>,
}

impl Chain {
    /// Checks genesis and settings.
    pub(super) fn begin(head: &Head, ask: Ask) -> Result<Chain, Wrong> {
        let place = Place::Genesis;
        let Some(bytes) = head.meta.get("genesis") else {
            return place.wrong("genesis", "missing", "stored", "there is no chain without one");
        };
        let genesis: Genesis = place.read("genesis", bytes)?;
        let chain_id = hash::tagged("hp/genesis/1", &[bytes]);
        if let Some(expected) = ask.genesis {
            place.same("chain id", chain_id, expected, "this is another chain than the one asked for")?;
        }
        place.same("genesis.ver", genesis.ver, 1, "no such version is written down")?;
        let members = genesis.unl.len();
        place.holds((1..=UNL_MAX).contains(&members), "genesis.unl", members, "1 to 128 members", "no such UNL")?;
        place.holds(
            is_ascending(&genesis.unl),
            "genesis.unl",
            "in disorder",
            "ascending",
            "a member may count twice",
        )?;
        let percent = (67..=100).contains(&genesis.threshold);
        place.holds(percent, "genesis.threshold", genesis.threshold, "67 to 100", "quorums need not share a member")?;
        let shared = shared(head, &genesis)?;
        let (users, keys) = ancestry(head, bytes, &genesis)?;
        if let Some(unknown) = head.meta.keys().find(|key| !META.contains(&key.as_str())) {
            return place.wrong(
                "meta",
                format!("{unknown:?}"),
                "names that are known",
                "something was renamed or added",
            );
        }
        if let Some((table, seq)) = head.stray.first() {
            let found = format!("a row of ledger {seq}");
            let means = "something was put into the database that no ledger has";
            return Place::Journal.wrong(table, found, format!("ledgers 1 to {}", head.tip), means);
        }
        let unl_hash = hash::tagged("hp/unl/1", &[&hash::list(&genesis.unl)]);
        let report = Report { chain_id: Some(chain_id), from: ask.from.max(1), ..Report::default() };
        let mut chain = Chain {
            rules: Rules { chain_id, shared },
            threshold: usize::from(genesis.threshold),
            to: head.tip,
            seq: 0,
            hash: chain_id,
            time_ms: genesis.time_ms,
            unl: genesis.unl,
            unl_hash,
            settlement: None,
            before: Outcome { state_root: genesis.state_root },
            users_executed: (head.executed == 0).then(|| users.clone()),
            users_base: (head.kept_from.unwrap_or(head.tip + 1) == 1).then(|| users.clone()),
            join: join(head)?,
            users: Users::Known(users),
            executed: head.executed,
            window: BTreeMap::new(),
            window_order: BTreeMap::new(),
            adopted: adopted(head)?,
            synced: synced(head)?,
            own: Own::default(),
            unl_hashes: BTreeSet::from([unl_hash]),
            inputs_seen: 0,
            complete: true,
            report,
            unchecked_contents: None,
            unchecked_users: None,
        };
        // They count as if they had been in ledger 0.
        chain.remember(0, keys);
        Ok(chain)
    }

    /// Users of the last ledger.
    pub(super) fn users(&self) -> &Users {
        &self.users
    }

    /// What checking one ledger needs to know.
    pub(super) fn rules(&self) -> Rules {
        self.rules
    }

    /// Votes that decide, of the members in force.
    pub(super) fn quorum(&self) -> usize {
        (self.unl.len() * self.threshold).div_ceil(100)
    }

    /// Takes the ledgers before `from` as they are: the last one's header, the UNL, and the keys within the window.
    pub(super) fn trust<S: Source>(&mut self, source: &mut S, from: Seq) -> Result<(), Stopped<S::Error>> {
        self.complete = false;
        let last = from - 1;
        let keys_from = self.rules.shared.map_or(from, |shared| from.saturating_sub(shared.input_window)).max(1);
        let mut seq = 1;
        while seq <= last {
            let page = source.changes(seq, last.min(seq + PAGE - 1)).map_err(Stopped::Source)?;
            for stored in &page.ledgers {
                let place = Place::Ledger(stored.seq);
                let Some(closed) = &stored.closed else {
                    let means = "headers are kept for ever, so it was lost or removed";
                    return Ok(place.wrong("ledger", "missing", "stored", means)?);
                };
                let (hash, header) = alone::header(place, stored.seq, closed)?;
                self.unl_after(place, &header, alone::unl_change(place, stored)?)?;
                if let Some(keys) = stored.keys.as_ref().filter(|_| stored.seq >= keys_from) {
                    let keys = alone::keys(place, keys)?;
                    self.remember(stored.seq, keys);
                }
                (self.seq, self.hash, self.time_ms) = (stored.seq, hash, header.time_ms);
                self.before = Outcome { state_root: header.result.state_root };
                self.settlement = header.settlement;
                self.users = Users::Unknown;
            }
            seq = page.ledgers.last().map_or(last, |stored| stored.seq) + 1;
        }
        self.report.unchecked.push(format!("ledgers 1 to {last}: not asked for"));
        Ok(())
    }

    /// Finds who was connected before ledger `first` by going back from the last.
    pub(super) fn users_before<S: Source>(
        &mut self,
        source: &mut S,
        first: Seq,
        head: &Head,
    ) -> Result<(), Stopped<S::Error>> {
        let mut users = BTreeSet::new();
        for user in &head.users_tip {
            users.insert(user_key(Place::Journal, user)?);
        }
        let mut last = self.to;
        while last >= first {
            let begins = first.max((last + 1).saturating_sub(PAGE));
            let mut changes = Vec::new();
            let mut seq = begins;
            while seq <= last {
                let page = source.changes(seq, last).map_err(Stopped::Source)?;
                seq += page.ledgers.len().max(1) as u64;
                for stored in page.ledgers {
                    let place = Place::Ledger(stored.seq);
                    // It was deleted meanwhile, or lost; that is told when it is its turn.
                    let Some(body) = stored.body else { return Ok(()) };
                    let came: Vec<UserKey> = place.read("users_add", &body.users_add)?;
                    let went: Vec<UserKey> = place.read("users_del", &body.users_del)?;
                    changes.push((came, went));
                }
            }
            for (came, went) in changes.into_iter().rev() {
                came.iter().for_each(|user| {
                    users.remove(user);
                });
                users.extend(went);
            }
            last = begins - 1;
        }
        if head.executed + 1 == first {
            self.users_executed = Some(users.clone());
        }
        if head.kept_from == Some(first) {
            self.users_base = Some(users.clone());
        }
        self.users = Users::From(first, users);
        Ok(())
    }

    /// Checks that a ledger follows, and goes on from it.
    pub(super) fn next(&mut self, ledger: Alone) -> Result<(), Wrong> {
        let place = Place::Ledger(ledger.seq);
        self.links(place, &ledger.header)?;
        self.certified(place, &ledger.signers)?;
        self.result_before(place, &ledger.header)?;
        let header = &ledger.header;
        let later = header.time_ms >= self.time_ms;
        let means = "agreed time never goes back";
        place.holds(later, "header.time_ms", header.time_ms, format!("at least {}", self.time_ms), means)?;
        if let Some(shared) = self.rules.shared
            && header.time_ms != self.time_ms
        {
            let means = "agreed time has this resolution";
            let whole = header.time_ms.is_multiple_of(shared.time_res_ms.max(1));
            let expected = format!("a multiple of {}", shared.time_res_ms);
            place.holds(whole, "header.time_ms", header.time_ms, expected, means)?;
        }
        if let Some(shared) = self.rules.shared {
            let (found, most) = (u64::from(header.n_users), shared.users_max);
            let means = "a ledger has room for so many users";
            place.holds(found <= most, "header.n_users", found, format!("at most {most}"), means)?;
        }
        self.settled(place, header)?;
        match &ledger.contents {
            Some(contents) => self.contents(place, header, contents, ledger.keys.as_deref(), ledger.tip)?,
            None => self.without_contents(place, header, ledger.keys, ledger.tip)?,
        }
        self.unl_after(place, header, ledger.unl_change)?;
        self.own_word(place, &ledger.header, ledger.result, ledger.outputs, ledger.contents.is_some())?;
        self.report.signatures += ledger.signatures;
        (self.seq, self.hash, self.time_ms) = (ledger.seq, ledger.hash, ledger.header.time_ms);
        self.before = Outcome { state_root: ledger.header.result.state_root };
        self.settlement = ledger.header.settlement;
        Ok(())
    }

    fn links(&self, place: Place, header: &Header) -> Result<(), Wrong> {
        place.same("header.chain_id", header.chain_id, self.rules.chain_id, "the ledger is of another chain")?;
        place.same("header.seq", header.seq, self.seq + 1, "a ledger is missing")?;
        place.same("header.parent", header.parent, self.hash, "it does not follow the ledger before")?;
        place.same("header.unl_hash", header.unl_hash, self.unl_hash, "the wrong nodes closed it")
    }

    /// Whether enough members are among these distinct, valid signers.
    pub(super) fn certified(&self, place: Place, signers: &[NodeKey]) -> Result<(), Wrong> {
        if let Some(stranger) = signers.iter().find(|signer| self.unl.binary_search(signer).is_err()) {
            let found = format!("signed by {stranger}");
            return place.wrong("certificate", found, "members alone", "who is in no UNL has no vote");
        }
        let (members, quorum) = (self.unl.len(), self.quorum());
        let found = format!("signed by {} of {members}", signers.len());
        let means = "the ledger is not closed by this";
        place.holds(signers.len() >= quorum, "certificate", found, format!("at least {quorum}"), means)
    }

    /// The header's result is that of the ledger before.
    fn result_before(&mut self, place: Place, header: &Header) -> Result<(), Wrong> {
        let result = &header.result;
        place.same("header.result.of_seq", result.of_seq, self.seq, "it is the result of another ledger")?;
        place.same("header.result.of_hash", result.of_hash, self.hash, "it is the result of another ledger")?;
        let rolled_back = "a run that failed leaves state and outputs as they were";
        if self.seq == 0 {
            let means = "the result of ledger 0 is a constant";
            place.same("header.result.state_root", result.state_root, self.before.state_root, means)?;
            place.same("header.result.outputs_root", result.outputs_root, Hash::ZERO, means)?;
            let ok = result.status == Status::Ok && result.unl_req.is_none();
            place.holds(ok, "header.result.status", result.status, Status::Ok, means)?;
        } else if result.status != Status::Ok {
            place.same("header.result.state_root", result.state_root, self.before.state_root, rolled_back)?;
            place.same("header.result.outputs_root", result.outputs_root, Hash::ZERO, rolled_back)?;
            let found = if result.unl_req.is_some() { "a change" } else { "none" };
            place.holds(result.unl_req.is_none(), "header.result.unl_req", found, "none", rolled_back)?;
        }
        let differs = self.own.result.as_ref().is_some_and(|own| own.body != *result);
        if differs && self.report.diverged.len() < DIVERGED_MAX {
            self.report.diverged.push(self.seq);
        }
        if let Some(adopted) = self.adopted.as_ref().filter(|adopted| adopted.of_seq == self.seq) {
            let means = "this node goes on from a result that is not the agreed one";
            Place::Journal.holds(adopted == result, "adopted", "another result", "the agreed one", means)?;
        }
        if let Some((_, _, synced)) = self.synced.iter().find(|(_, last, _)| *last == self.seq) {
            let means = "this node fetched a state that is not the agreed one";
            Place::Journal.holds(synced == result, "synced", "another result", "the agreed one", means)?;
        }
        self.own_outputs(Some(result.outputs_root))
    }

    /// The last ledger has no successor that says what its run led to.
    pub(super) fn own_outputs_of_the_last(&mut self) -> Result<(), Wrong> {
        let adopted = self.adopted.as_ref().filter(|adopted| adopted.of_seq == self.seq);
        if let Some(adopted) = adopted {
            let means = "it is the result of another ledger";
            Place::Journal.same("adopted.of_hash", adopted.of_hash, self.hash, means)?;
        }
        self.own_outputs(adopted.map(|adopted| adopted.outputs_root))
    }

    /// Outputs of the last ledger are those of this node's own result, or those that a quorum agreed on.
    fn own_outputs(&mut self, agreed: Option<Hash>) -> Result<(), Wrong> {
        let Own { result, outputs } = std::mem::take(&mut self.own);
        let Some(root) = outputs else { return Ok(()) };
        let own = result.map(|result| result.body.outputs_root);
        if own == Some(root) || agreed == Some(root) {
            return Ok(());
        }
        // A run whose result is not on disk yet.
        let Some(expected) = own.or(agreed) else { return Ok(()) };
        let means = "stored outputs are not those of the run";
        Place::Ledger(self.seq).wrong("outputs_root", root, expected, means)
    }

    /// What is recorded of the settlement bus is what the ledger before has, or the next step.
    fn settled(&self, place: Place, header: &Header) -> Result<(), Wrong> {
        let zero = Hash::ZERO;
        let next = match (&self.settlement, &header.settlement) {
            (old, new) if old == new => true,
            (_, None) => false,
            (_, Some(new)) if new.txv == zero => false,
            (None, Some(new)) => (new.seq, new.ch, new.tx, new.confirmed_length) == (0, zero, zero, 0),
            (Some(old), Some(new)) if old.seq == new.seq => {
                (old.ch, old.tx, old.confirmed_length) == (new.ch, new.tx, new.confirmed_length)
            }
            // The result of the last ledger that it covers was in the chain before.
            (Some(old), Some(new)) => old.seq < new.seq && new.seq + 1 < header.seq && new.ch != zero && new.tx != zero,
        };
        let show = |settlement: &Option<Settlement>| match settlement {
            None => "none".to_owned(),
            Some(it) => format!("up to ledger {}, transaction {}, txv {}", it.seq, it.tx.short(), it.txv.short()),
        };
        let expected = format!("the next step after {}", show(&self.settlement));
        let means = "settlements are recorded one after the other";
        place.holds(next, "header.settlement", show(&header.settlement), expected, means)
    }

    fn contents(
        &mut self,
        place: Place,
        header: &Header,
        contents: &Contents,
        keys: Option<&[Key]>,
        tip: Seq,
    ) -> Result<(), Wrong> {
        self.report.inputs += contents.inputs.len() as u64;
        self.inputs_seen += contents.inputs.len() as u64;
        for listed in &contents.inputs {
            let Some(host) = listed.host else { continue };
            let member = self.unl.binary_search(&host).is_ok();
            let found = format!("a session of {host}");
            place.holds(member, "input.origin", found, "one of a member", "only members vouch for sessions")?;
        }
        self.connected(place, header, contents)?;

        let used: Vec<Key> = contents.inputs.iter().map(|listed| listed.key).collect();
        let mut distinct = BTreeSet::new();
        for key in &used {
            let means = "an input takes effect once in a window of ledgers";
            let again = !distinct.insert(key);
            let found = format!("{} of user {} twice", key.2, key.0);
            place.holds(!again, "input.nonce", found, "once", means)?;
            if let Some(seq) = self.window.get(key) {
                let found = format!("{} of user {}, as in ledger {seq}", key.2, key.0);
                return place.wrong("input.nonce", found, "one that was not used", means);
            }
        }
        // What was not looked at may have had it.
        for listed in contents.inputs.iter().filter(|_| self.complete) {
            let Some(keys) = listed.waits_for else { continue };
            let is_there = keys.iter().any(|key| distinct.contains(key) || self.window.contains_key(key));
            let found = format!("{} of user {}", listed.key.2, listed.key.0);
            let means = "a session's inputs take effect in the order in which they were sent";
            place.holds(is_there, "input.nonce", found, "one behind the input that it follows", means)?;
        }
        if contents.gone > 0 {
            self.complete = false;
            self.report.unchecked.push(format!("{} inputs of {place}: no longer kept", contents.gone));
        } else if let Some(keys) = keys {
            // Kept in the order of the inputs.
            let same = keys == used.as_slice();
            let means = "the node would take an input twice, or refuse a new one";
            place.holds(same, "input_key", "another list", "the keys of its inputs", means)?;
        } else if let Some(shared) = self.rules.shared {
            let forgotten = tip.saturating_sub(ledger_seq(place)) >= shared.input_window;
            let means = "the node would take an input twice";
            place.holds(used.is_empty() || forgotten, "input_key", "missing", "the keys of its inputs", means)?;
        }
        self.remember(ledger_seq(place), used);
        Ok(())
    }

    fn connected(&mut self, place: Place, header: &Header, contents: &Contents) -> Result<(), Wrong> {
        let seq = ledger_seq(place);
        let mut users = match std::mem::replace(&mut self.users, Users::Unknown) {
            Users::Known(users) => users,
            Users::From(first, users) if first == seq => users,
            Users::From(..) | Users::Unknown => {
                self.unchecked_users.get_or_insert(seq);
                return Ok(());
            }
        };
        let form = "a body has one form";
        for user in &contents.users_del {
            place.holds(
                users.remove(user),
                "users_del",
                format!("user {user}, who was not there"),
                "users who were",
                form,
            )?;
        }
        for user in &contents.users_add {
            place.holds(
                users.insert(*user),
                "users_add",
                format!("user {user}, who was there"),
                "users who were not",
                form,
            )?;
        }
        if let Some(user) = contents.users_del.iter().find(|user| contents.users_add.binary_search(user).is_ok()) {
            return place.wrong("users_del", format!("user {user}, who came too"), "users who went", form);
        }
        let root = hash::users_root(users.iter());
        let means = "the users are not those that were voted for";
        place.same("header.users_root", header.users_root, root, means)?;
        place.same(
            "header.n_users",
            u64::from(header.n_users),
            users.len() as u64,
            "the header does not count its users",
        )?;
        for listed in &contents.inputs {
            let there = users.contains(&listed.key.0);
            let found = format!("without user {}", listed.key.0);
            place.holds(there, "users", found, "everybody with an input", "who says something is there")?;
        }
        if seq == self.executed {
            self.users_executed = Some(users.clone());
        }
        self.users = Users::Known(users);
        Ok(())
    }

    fn without_contents(
        &mut self,
        place: Place,
        header: &Header,
        keys: Option<Vec<Key>>,
        tip: Seq,
    ) -> Result<(), Wrong> {
        let seq = header.seq;
        if let Some(shared) = self.rules.shared {
            let forgotten = tip.saturating_sub(seq) >= shared.input_window;
            let unknown = self.join.is_some_and(|(_, unknown, _)| seq <= unknown);
            let known = header.n_inputs == 0 || keys.is_some() || forgotten || unknown;
            let means = "the node would take an input twice";
            place.holds(known, "input_key", "missing", "the keys of its inputs", means)?;
        }
        self.complete = false;
        let (first, _) = self.unchecked_contents.unwrap_or((seq, seq));
        self.unchecked_contents = Some((first, seq));
        if !matches!(self.users, Users::From(..)) {
            self.users = Users::Unknown;
        }
        // Not proven, but better than none.
        self.remember(seq, keys.unwrap_or_default());
        Ok(())
    }

    fn remember(&mut self, seq: Seq, keys: Vec<Key>) {
        self.window.extend(keys.iter().map(|key| (*key, seq)));
        self.window_order.insert(seq, keys);
        let Some(shared) = self.rules.shared else { return };
        // The next ledger may have what the one before its window had.
        while let Some((&oldest, _)) = self.window_order.first_key_value()
            && seq + 1 - oldest > shared.input_window
        {
            for key in self.window_order.remove(&oldest).unwrap_or_default() {
                if self.window.get(&key) == Some(&oldest) {
                    self.window.remove(&key);
                }
            }
        }
    }

    /// The UNL that closes the next ledger, if this one makes a change.
    fn unl_after(&mut self, place: Place, header: &Header, change: Option<UnlChange>) -> Result<(), Wrong> {
        let next = self.next_unl(place, header, change)?;
        if let Some(unl) = next {
            self.unl_hash = header.next_unl_hash;
            self.unl = unl;
            self.unl_hashes.insert(self.unl_hash);
            self.report.unl_changes += 1;
        }
        Ok(())
    }

    /// The UNL that a header leads to; `None` when it stays the same.
    pub(super) fn next_unl(
        &self,
        place: Place,
        header: &Header,
        change: Option<UnlChange>,
    ) -> Result<Option<Vec<NodeKey>>, Wrong> {
        let show = |change: Option<UnlChange>| change.map_or("none".to_owned(), |change| change.to_string());
        // What the contract asks for comes before what operators vote for, if it can be done.
        if let Some(asked) = header.result.unl_req.filter(|asked| self.changed(asked).is_some()) {
            let means = "the contract asked for a change";
            place.holds(change == Some(asked), "unl_change", show(change), show(Some(asked)), means)?;
        }
        let Some(change) = change else {
            let means = "the UNL changes, and nothing says how";
            place.same("header.next_unl_hash", header.next_unl_hash, self.unl_hash, means)?;
            return Ok(None);
        };
        let Some(unl) = self.changed(&change) else {
            return place.wrong("unl_change", change, "one that applies", "no such change can be made of this UNL");
        };
        let unl_hash = hash::tagged("hp/unl/1", &[&hash::list(&unl)]);
        place.same("header.next_unl_hash", header.next_unl_hash, unl_hash, "the change leads to another UNL")?;
        Ok(Some(unl))
    }

    /// The UNL after a change; `None` when that does not apply.
    fn changed(&self, change: &UnlChange) -> Option<Vec<NodeKey>> {
        let mut unl = self.unl.clone();
        match change {
            UnlChange::Add(node) => match unl.binary_search(node) {
                Err(at) if unl.len() < UNL_MAX => unl.insert(at, *node),
                _ => return None,
            },
            UnlChange::Remove(node) => match unl.binary_search(node) {
                Ok(at) if unl.len() > 1 => drop(unl.remove(at)),
                _ => return None,
            },
        }
        Some(unl)
    }

    /// What this node computed itself. Compared with the agreed result when the next header tells that.
    fn own_word(
        &mut self,
        place: Place,
        header: &Header,
        result: Option<Signed<ExecResult>>,
        outputs: Option<(Vec<UserKey>, Hash)>,
        kept: bool,
    ) -> Result<(), Wrong> {
        let executed = header.seq <= self.executed;
        let others = self.synced.iter().find(|(first, last, _)| (*first..=*last).contains(&header.seq));
        let by_others = others.is_some();
        // Of a single ledger there may be both: a result that was not the agreed one.
        let is_extra = result.is_some() && others.is_some_and(|(first, last, _)| first < last);
        let means = "the state after it was fetched because it was not run";
        place.holds(!is_extra, "own result", "stored", "none", means)?;
        let lost = kept && executed && result.is_none() && !by_others;
        place.holds(!lost, "own result", "missing", "stored", "results are kept as long as contents")?;
        if let Some(result) = &result
            && result.body.status != Status::Ok
        {
            let means = "a run that failed leaves state and outputs as they were";
            place.same("own result.outputs_root", result.body.outputs_root, Hash::ZERO, means)?;
        }
        let root = match outputs {
            Some((users, root)) => {
                self.report.outputs += users.len() as u64;
                if let Users::Known(connected) = &self.users {
                    let stranger = users.iter().find(|user| !connected.contains(user));
                    let found = stranger.map_or(String::new(), |user| format!("for user {user}"));
                    place.holds(stranger.is_none(), "outputs", found, "for users of the ledger", "it was not there")?;
                }
                Some(root)
            }
            // Contents that are here have their outputs, if they were run.
            None if kept && result.is_some() => Some(Hash::ZERO),
            None => None,
        };
        self.own = Own { result, outputs: root };
        Ok(())
    }

    /// Nothing is wrong.
    pub(super) fn end(mut self) -> Report {
        if let Some((first, last)) = self.unchecked_contents {
            self.report.unchecked.push(format!(
                "users, inputs and outputs of ledgers {first} to {last}: contents are kept for {} ledgers",
                self.rules.shared.map_or(0, |shared| shared.kept())
            ));
        }
        if let Some((base, _, lacks)) = self.join {
            let state = if lacks == Lacks::Nothing { "" } else { "; it still fetches what it needs to go on" };
            let joined = format!(
                "runs of ledgers up to {base}: this node joined the chain behind them, without contents{state}"
            );
            self.report.unchecked.push(joined);
        }
        if let Some(seq) = self.unchecked_users {
            self.report
                .unchecked
                .push(format!("users of ledgers {seq} to {}: it is not known who was there before", self.seq));
        }
        self.report.tip = Some(self.hash);
        self.report.from = self.report.from.min(self.seq + 1);
        self.report.to = self.seq;
        self.report.members = self.unl.len();
        self.report
    }
}

fn ledger_seq(place: Place) -> Seq {
    match place {
        Place::Ledger(seq) => seq,
        Place::Genesis | Place::Journal => 0,
    }
}

/// Users and keys that the chain begins with: none, or those of the chain before.
fn ancestry(head: &Head, genesis_bytes: &[u8], genesis: &Genesis) -> Result<(BTreeSet<UserKey>, Vec<Key>), Wrong> {
    let place = Place::Genesis;
    let mut users = BTreeSet::new();
    for user in &head.ancestor_users {
        users.insert(user_key(place, user)?);
    }
    let mut keys: Vec<Key> = Vec::new();
    for part in &head.ancestor_keys {
        keys.extend(alone::keys(place, part)?);
    }
    let Some(ancestor) = &genesis.ancestor else {
        let means = "the chain begins by itself";
        place.same("ancestor_user", users.len(), 0, means)?;
        place.same("ancestor_key", keys.len(), 0, means)?;
        return Ok((users, keys));
    };
    // The id stands behind the version, and is zero where it is made.
    let (version, rest) = (&genesis_bytes[..2], &genesis_bytes[2 + Hash::ZERO.0.len()..]);
    let derived = hash::tagged("hp/recover/1", &[version, &Hash::ZERO.0, rest]);
    let means = "a recovered chain has the id that follows from all else in its genesis";
    place.same("genesis.contract_id", genesis.contract_id, derived, means)?;
    let means = "the users are not those of the chain before";
    place.same("ancestor.n_users", u64::from(ancestor.n_users), users.len() as u64, means)?;
    place.same("ancestor.users_root", ancestor.users_root, hash::users_root(users.iter()), means)?;
    let means = "an input of the chain before could take effect again";
    place.same("ancestor.n_keys", ancestor.n_keys, keys.len() as u64, means)?;
    place.holds(is_ascending(&keys), "ancestor_key", "in disorder", "ascending", means)?;
    place.same("ancestor.keys_root", ancestor.keys_root, hash::keys_root(&keys), means)?;
    Ok((users, keys))
}

/// The settings behind the genesis' hash, as far as they can be checked.
fn shared(head: &Head, genesis: &Genesis) -> Result<Option<Shared>, Wrong> {
    let place = Place::Genesis;
    let Some(bytes) = head.meta.get("settings") else {
        return place.wrong("settings", "missing", "stored", "they are stored before the genesis");
    };
    let hash = hash::tagged("hp/cfg/1", &[bytes]);
    place.same("genesis.cfg_hash", genesis.cfg_hash, hash, "the settings are not those of this chain")?;
    let shared: SharedConfig = place.read("settings", bytes)?;
    let threshold = u64::from(genesis.threshold);
    place.same("settings.threshold", shared.threshold, threshold, "the genesis has another one")?;
    place.holds(shared.input_window > 0, "settings.input_window", 0, "at least 1", "no input could ever be taken")?;
    let SharedConfig { input_window, time_res_ms, inputs, users_max, .. } = shared;
    Ok(Some(Shared { input_window, time_res_ms, inputs, users_max }))
}

/// What was taken over in place of this node's last result.
fn adopted(head: &Head) -> Result<Option<ExecResult>, Wrong> {
    let Some(bytes) = head.meta.get("adopted") else { return Ok(None) };
    let adopted: ExecResult = Place::Journal.read("adopted", bytes)?;
    let means = "a result is taken over for the last run";
    Place::Journal.same("adopted.of_seq", adopted.of_seq, head.executed, means)?;
    Ok(Some(adopted))
}

/// Which ledgers were passed over.
fn join(head: &Head) -> Result<Option<(Seq, Seq, Lacks)>, Wrong> {
    let place = Place::Journal;
    let Some(bytes) = head.meta.get("join") else { return Ok(None) };
    let (base, unknown, lacks): (Seq, Seq, Lacks) = place.read("join", bytes)?;
    let fits = unknown <= base && (1..=head.tip).contains(&base) && (lacks != Lacks::Users || base == head.tip);
    let found = format!("to ledger {base}, with inputs to {unknown}");
    let means = "the node goes on from a ledger that it does not have";
    place.holds(fits, "join", found, format!("within ledgers 1 to {}", head.tip), means)?;
    Ok(Some((base, unknown, lacks)))
}

/// Where the state was fetched.
fn synced(head: &Head) -> Result<Vec<(Seq, Seq, ExecResult)>, Wrong> {
    let mut ranges = Vec::with_capacity(head.synced.len());
    for stored in &head.synced {
        let result: ExecResult = Place::Journal.read("synced", &stored.result)?;
        let means = "the node goes on from a state of which nothing is known";
        Place::Journal.same("synced.of_seq", result.of_seq, stored.last, means)?;
        let is_range = stored.first <= stored.last && stored.last < head.tip;
        let found = format!("ledgers {} to {}", stored.first, stored.last);
        Place::Journal.holds(is_range, "synced", found, "ledgers before the last one", means)?;
        ranges.push((stored.first, stored.last, result));
    }
    Ok(ranges)
}
