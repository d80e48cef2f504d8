//! The journal back from the tables, with everything checked that can be.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Standing, Trouble,
    store::{
        Kind, Store, Users, adopted, ancestor_keys, body_hash, closed, column, genesis, input, seq_of, unl_changes,
        unl_vote,
    },
};
use crate::{
    consensus::{
        LOADED_BYTES_MAX, LOADED_LEDGERS_MAX,
        header::{self, Candidate, ClosedLedger, ExecResult, Genesis, Header, Input, InputKey},
        join::Lacks,
        journal::{Journal, is_time_up},
        messages::{Certificate, Overtime, Precommit, Prevote, Signed},
        silence::Silence,
        window::Window,
    },
    types::{Attempt, Hash, NodeKey, Seq, UserKey},
};

/// Ledgers below the tip whose headers are read and chained at start; older ones are checked when they are asked for.
const CHAIN_CHECKED: u64 = 1_024;

impl Store {
    pub(super) fn load_journal(&self, input_window: u64) -> Result<Option<Journal>, Trouble> {
        let Some(genesis) = genesis(&self.db)? else { return Ok(None) };
        let mut journal = Journal::new(genesis);
        self.check_chain(&journal.genesis)?;

        journal.tip = match self.known.tip {
            0 => None,
            tip if tip == self.known.base() => Some(self.bare(tip)?),
            tip => Some(self.whole(tip)?),
        };
        journal.join = self.known.join;
        let result = self.last_result()?;
        journal.result = result;
        journal.adopted = self.adopted()?;
        journal.synced = self.synced()?;
        if journal.adopted.is_none()
            && journal.synced.is_none()
            && let Some(result) = journal.result.as_ref().filter(|result| is_time_up(&result.body))
        {
            let ledger = self.whole(result.body.of_seq)?;
            let inputs = self.inputs_of(&journal.genesis, &ledger)?;
            journal.limited = Some((ledger, inputs));
        }
        journal.unexecuted = self.ledgers_to_run(self.known.executed + 1)?;
        if self.known.join.is_none_or(|join| join.lacks != Lacks::Users) {
            journal.users = self.read_users(&journal.genesis, Users::Tip, self.known.tip)?;
            journal.executed_users = self.read_users(&journal.genesis, Users::Executed, self.known.executed)?;
        }
        journal.unl = self.unl_after(&journal.genesis, self.known.tip)?;
        journal.executed_unl = self.unl_after(&journal.genesis, self.known.executed)?;
        journal.unl_vote = unl_vote(&self.db)?;
        journal.silence = self.silence()?;
        journal.heard = self.heard()?;
        journal.window = self.window(&journal.genesis, input_window)?;
        journal.pool = self.pool(&journal.genesis)?;
        self.round(&mut journal)?;
        Ok(Some(journal))
    }

    /// Ledgers from `first` on with their inputs, as many as are loaded at once.
    pub(super) fn ledgers_to_run(&self, first: Seq) -> Result<Vec<(ClosedLedger, Vec<Input>)>, Trouble> {
        let Some(genesis) = genesis(&self.db)? else { return Ok(Vec::new()) };
        let (mut ledgers, mut bytes) = (Vec::new(), 0);
        for seq in first..=self.known.tip {
            if ledgers.len() == LOADED_LEDGERS_MAX || bytes > LOADED_BYTES_MAX {
                break;
            }
            let ledger = self.whole(seq)?;
            let inputs = self.inputs_of(&genesis, &ledger)?;
            bytes += inputs.iter().map(|input| input.payload.len()).sum::<usize>();
            ledgers.push((ledger, inputs));
        }
        Ok(ledgers)
    }

    /// The last ledgers follow each other without a gap, each with a certificate of its own hash.
    fn check_chain(&self, genesis: &Genesis) -> Result<(), Trouble> {
        let first = self.known.tip.saturating_sub(CHAIN_CHECKED - 1).max(1);
        let chain_id = genesis.chain_id();
        let mut query = self.db.prepare("SELECT seq, hash, header, qc FROM ledger WHERE seq >= ?1 ORDER BY seq")?;
        let mut rows = query.query([first as i64])?;
        let mut expected = first;
        let mut parent = (first == 1).then_some(chain_id);
        let mut unl = (first == 1).then(|| header::unl_hash(&genesis.unl));
        while let Some(row) = rows.next()? {
            let seq = seq_of(row.get(0)?)?;
            let hash = Hash(row.get(1)?);
            let header: Header = column(row, 2, "a header")?;
            let qc: Certificate = column(row, 3, "a certificate")?;
            let chained = seq == expected
                && header.seq == seq
                && header.hash() == hash
                && header.chain_id == chain_id
                && parent.is_none_or(|parent| parent == header.parent)
                && unl.is_none_or(|unl| unl == header.unl_hash)
                && (qc.vote.seq, qc.vote.ledger_hash) == (seq, hash);
            if !chained {
                return Trouble::damaged(format!("ledger {expected} does not follow the one before"));
            }
            parent = Some(hash);
            unl = Some(header.next_unl_hash);
            expected += 1;
        }
        match expected == self.known.tip + 1 {
            true => Ok(()),
            false => Trouble::damaged(format!("ledger {expected} is missing")),
        }
    }

    /// A ledger that was passed over.
    fn bare(&self, seq: Seq) -> Result<ClosedLedger, Trouble> {
        let Some(header) = self.header(seq)? else { return Trouble::damaged(format!("ledger {seq} is missing")) };
        let qc = {
            let mut query = self.db.prepare_cached("SELECT qc FROM ledger WHERE seq = ?1")?;
            let mut rows = query.query([seq as i64])?;
            rows.next()?.map(|row| column(row, 0, "a certificate")).transpose()?
        };
        let Some(qc) = qc else { return Trouble::damaged(format!("ledger {seq} is missing")) };
        let change = unl_changes(&self.db, seq)?.pop().filter(|(at, _)| *at == seq);
        let unl_change = change.map(|(_, change)| change);
        let (inputs, users_add, users_del) = (Vec::new(), Vec::new(), Vec::new());
        Ok(ClosedLedger { candidate: Candidate { header, inputs, users_add, users_del, unl_change }, qc })
    }

    /// A ledger that must be here with its body.
    fn whole(&self, seq: Seq) -> Result<ClosedLedger, Trouble> {
        let Some(ledger) = closed(&self.db, seq)? else {
            return Trouble::damaged(format!("ledger {seq} or its body is missing"));
        };
        let Candidate { header, inputs, .. } = &ledger.candidate;
        if header.seq != seq || header::inputs_root(inputs) != header.inputs_root {
            return Trouble::damaged(format!("the inputs listed by ledger {seq} are not those of its header"));
        }
        Ok(ledger)
    }

    fn inputs_of(&self, genesis: &Genesis, ledger: &ClosedLedger) -> Result<Vec<Input>, Trouble> {
        let chain_id = genesis.chain_id();
        let read = |id: &Hash| match input(&self.db, id)? {
            Some(input) if input.id(&chain_id) == *id => Ok(input),
            Some(_) => Trouble::damaged(format!("the bytes of input {id} are not its own")),
            None => Trouble::damaged(format!("input {id} of ledger {} is missing", ledger.candidate.header.seq)),
        };
        ledger.candidate.inputs.iter().map(read).collect()
    }

    fn last_result(&self) -> Result<Option<Signed<ExecResult>>, Trouble> {
        let mut query = self.db.prepare("SELECT bytes, seq FROM result ORDER BY seq DESC LIMIT 1")?;
        let mut rows = query.query([])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        let result: Signed<ExecResult> = column(row, 0, "the last result")?;
        match result.body.of_seq == seq_of(row.get(1)?)? {
            // Of before ledgers were passed over.
            true if result.body.of_seq <= self.known.base() => Ok(None),
            true => Ok(Some(result)),
            false => Trouble::damaged("the last result is of another ledger"),
        }
    }

    /// The agreed result after which the state was fetched, unless later ledgers were run.
    fn synced(&self) -> Result<Option<ExecResult>, Trouble> {
        let mut query = self.db.prepare_cached("SELECT result FROM synced WHERE last = ?1")?;
        let mut rows = query.query([self.known.executed as i64])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        let result: ExecResult = column(row, 0, "the result after which the state was fetched")?;
        match result.of_seq == self.known.executed {
            true => Ok(Some(result)),
            false => Trouble::damaged("the result after which the state was fetched is of another ledger"),
        }
    }

    pub(super) fn read_standing(&self, seq: Seq) -> Result<Option<Standing>, Trouble> {
        let Some(genesis) = genesis(&self.db)?.filter(|_| (self.known.executed..self.known.tip).contains(&seq)) else {
            return Ok(None);
        };
        let mut users = self.read_users(&genesis, Users::Executed, self.known.executed)?;
        for seq in self.known.executed + 1..=seq {
            users = self.whole(seq)?.candidate.users_after(&users);
        }
        let unl = self.unl_after(&genesis, seq)?;
        Ok(self.header(seq + 1)?.map(|next| Standing { result: next.result, users, unl }))
    }

    fn adopted(&self) -> Result<Option<ExecResult>, Trouble> {
        let Some(result) = adopted(&self.db)? else { return Ok(None) };
        match result.of_seq == self.known.executed {
            true => Ok(Some(result)),
            false => Trouble::damaged("the adopted result is of another ledger than the last one executed"),
        }
    }

    fn heard(&self) -> Result<BTreeSet<NodeKey>, Trouble> {
        let mut query = self.db.prepare_cached("SELECT value FROM meta WHERE key = 'heard'")?;
        let mut rows = query.query([])?;
        Ok(rows.next()?.map(|row| column(row, 0, "of whom this node heard")).transpose()?.unwrap_or_default())
    }

    fn silence(&self) -> Result<Option<Silence>, Trouble> {
        let mut query = self.db.prepare_cached("SELECT value FROM meta WHERE key = 'silence'")?;
        let mut rows = query.query([])?;
        rows.next()?.map(|row| column(row, 0, "why this node is silent")).transpose()
    }

    /// The users of ledger `seq`.
    fn read_users(&self, genesis: &Genesis, users: Users, seq: Seq) -> Result<BTreeSet<UserKey>, Trouble> {
        let sql = match users {
            Users::Tip => "SELECT user FROM user_tip",
            Users::Executed => "SELECT user FROM user_executed",
            Users::Base => "SELECT user FROM user_base",
        };
        let users: BTreeSet<UserKey> =
            self.db.prepare(sql)?.query_map([], |row| Ok(UserKey(row.get(0)?)))?.collect::<Result<_, _>>()?;
        let wanted = match self.header(seq)? {
            None => genesis.users_root(),
            Some(header) => header.users_root,
        };
        match header::users_root(&users) == wanted {
            true => Ok(users),
            false => Trouble::damaged(format!("the users of ledger {seq} are not those of its header")),
        }
    }

    /// The UNL that ledger `seq` fixed for the next.
    fn unl_after(&self, genesis: &Genesis, seq: Seq) -> Result<Vec<NodeKey>, Trouble> {
        let mut unl = genesis.unl.clone();
        for (at, change) in unl_changes(&self.db, seq)? {
            unl = match change.apply(&unl) {
                Some(unl) => unl,
                None => return Trouble::damaged(format!("the change of the UNL in ledger {at} does not apply")),
            };
        }
        let Some(header) = self.header(seq)? else { return Ok(unl) };
        match header::unl_hash(&unl) == header.next_unl_hash {
            true => Ok(unl),
            false => Trouble::damaged(format!("the UNL after ledger {seq} is not that of its header")),
        }
    }

    /// The header of a ledger that must be here; `None` for ledger 0.
    fn header(&self, seq: Seq) -> Result<Option<Header>, Trouble> {
        if seq == 0 {
            return Ok(None);
        }
        let mut query = self.db.prepare_cached("SELECT header FROM ledger WHERE seq = ?1")?;
        let mut rows = query.query([seq as i64])?;
        match rows.next()? {
            Some(row) => column(row, 0, "a header").map(Some),
            None => Trouble::damaged(format!("ledger {seq} is missing")),
        }
    }

    fn window(&self, genesis: &Genesis, input_window: u64) -> Result<Window, Trouble> {
        let mut window = Window::default();
        if let Some(ancestor) = genesis.ancestor.as_ref().filter(|_| self.known.tip < input_window) {
            let keys = ancestor_keys(&self.db)?;
            if header::keys_root(&keys) != ancestor.keys_root {
                return Trouble::damaged("the input keys of the chain before are not those of the genesis");
            }
            // As if they had been in ledger 0.
            window.extend(keys.into_iter().map(|key| (key, 0)));
        }
        let mut query = self.db.prepare("SELECT seq, keys FROM input_key WHERE seq > ?1 ORDER BY seq")?;
        let mut rows = query.query([self.known.tip.saturating_sub(input_window) as i64])?;
        while let Some(row) = rows.next()? {
            let seq = seq_of(row.get(0)?)?;
            let keys: Vec<InputKey> = column(row, 1, "the input keys of a ledger")?;
            window.extend(keys.into_iter().map(|key| (key, seq)));
        }
        Ok(window)
    }

    fn pool(&self, genesis: &Genesis) -> Result<BTreeMap<Hash, Input>, Trouble> {
        let chain_id = genesis.chain_id();
        let mut pool = BTreeMap::new();
        let mut query = self
            .db
            .prepare("SELECT input.id, input.bytes, pooled.key FROM pooled LEFT JOIN input ON input.n = pooled.n")?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            let Some(id) = row.get(0)? else { return Trouble::damaged("a waiting input has no bytes") };
            let (id, input, key) =
                (Hash(id), column::<Input>(row, 1, "an input")?, column::<InputKey>(row, 2, "a key")?);
            if input.id(&chain_id) != id || input.key() != key {
                return Trouble::damaged(format!("the bytes of input {id} are not its own"));
            }
            pool.insert(id, input);
        }
        Ok(pool)
    }

    /// What I said about the ledger after the tip.
    fn round(&self, journal: &mut Journal) -> Result<(), Trouble> {
        let next = self.known.tip + 1;
        let mut query = self.db.prepare("SELECT kind, attempt, bytes FROM round")?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            let (kind, attempt): (i64, Attempt) = (row.get(0)?, row.get(1)?);
            let seq = match kind {
                kind if kind == Kind::Novel as i64 => {
                    let novel: Signed<crate::consensus::messages::Novel> = column(row, 2, "my novel")?;
                    let seq = novel.body.seq;
                    journal.novel = Some(novel);
                    seq
                }
                kind if kind == Kind::Prevote as i64 => {
                    let (vote, body): (Signed<Prevote>, Hash) = column(row, 2, "my prevote")?;
                    let voted = vote.body.0;
                    let candidate = self.candidate(&body)?;
                    let voted_for = candidate.header.hash();
                    journal.prevotes.insert(attempt, (vote, candidate));
                    same_vote(voted.attempt == attempt && voted.ledger_hash == voted_for, "prevote")?;
                    voted.seq
                }
                kind if kind == Kind::Precommit as i64 => {
                    let (vote, body, polc): (Signed<Precommit>, Hash, Certificate) = column(row, 2, "my precommit")?;
                    let voted = vote.body.0;
                    let candidate = self.candidate(&body)?;
                    let voted_for = candidate.header.hash();
                    journal.precommits.insert(attempt, (vote, candidate, polc));
                    same_vote(voted.attempt == attempt && voted.ledger_hash == voted_for, "precommit")?;
                    voted.seq
                }
                kind if kind == Kind::Advance as i64 => {
                    let advance: crate::consensus::messages::Advance = column(row, 2, "my advance")?;
                    let seq = advance.vote.body.seq;
                    journal.advance = Some(advance);
                    seq
                }
                kind if kind == Kind::Entered as i64 => {
                    journal.tc = Some(column(row, 2, "why I entered an attempt")?);
                    next
                }
                kind if kind == Kind::Overtime as i64 => {
                    let overtime: Signed<Overtime> = column(row, 2, "my overtime")?;
                    let tip = journal.tip.as_ref().map(|tip| tip.candidate.header.hash());
                    if Some(overtime.body.of_hash) != tip {
                        return Trouble::damaged("an OVERTIME of another ledger than the last");
                    }
                    journal.overtime = Some(overtime);
                    next
                }
                other => return Trouble::damaged(format!("an unknown kind {other} of vote")),
            };
            if seq != next {
                return Trouble::damaged(format!("a vote for ledger {seq}, but {next} is the next"));
            }
        }
        Ok(())
    }

    fn candidate(&self, hash: &Hash) -> Result<Candidate, Trouble> {
        let mut query = self.db.prepare_cached("SELECT bytes FROM candidate WHERE hash = ?1")?;
        let mut rows = query.query([hash.0])?;
        let Some(row) = rows.next()? else {
            return Trouble::damaged("a body voted for is missing");
        };
        let candidate: Candidate = column(row, 0, "a body voted for")?;
        match body_hash(&candidate) == *hash {
            true => Ok(candidate),
            false => Trouble::damaged("a body voted for is another's"),
        }
    }
}

fn same_vote(same: bool, what: &str) -> Result<(), Trouble> {
    match same {
        true => Ok(()),
        false => Trouble::damaged(format!("a {what} is stored in another's place")),
    }
}
