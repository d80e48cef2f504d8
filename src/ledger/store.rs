//! The file: what each write does to the tables, and what can be asked about the past.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::{
    ANCESTOR_KEYS_A_ROW, EVIDENCE_MAX, EVIDENCE_PER_SIGNER_MAX, HEADERS_READ_MAX, LOOKED_OUTPUTS_MAX, LedgerError,
    MISSING_MAX, Outputs, OutputsOf, PAGE_BYTES_MAX, PAGE_FAILED_MAX, PAGE_LEAVES_MAX, PAGE_LOOKED_MAX,
    PAGE_OUTPUTS_MAX, PRUNE_INPUTS_MIN, PRUNE_LEDGERS_MAX, PastOutput, PastOutputs, PastSettlement, PutOut,
    READ_BYTES_MAX, SettlementPage, Standing, Trouble, Write, decode, encode, schema,
};
use crate::{
    consensus::{
        HEADERS_MAX, RANGE_BYTES_MAX, RANGE_LEDGERS_MAX, USERS_PAGE_MAX, bodies_kept,
        header::{
            self, BareLedger, Candidate, ClosedLedger, ExecResult, Genesis, Header, Input, InputKey, Settlement,
            UnlChange,
        },
        join::{Join, Lacks},
        journal::{Journal, Record},
        merkle,
        messages::{Advance, Certificate, Closed, Evidence, Headers, Overtime, Range, Signed, Tc, UsersPage},
        silence::{Silence, Why},
    },
    types::{Attempt, Hash, NodeKey, Seq, UserKey, WallMs},
};

/// What a stored proof of misbehaviour is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proven {
    /// Who signed two different messages.
    pub signer: NodeKey,
    /// Of this kind.
    pub kind: String,
    /// About this ledger; a RESULT is about the one after the ledger it is of.
    pub seq: Seq,
    /// In this attempt.
    pub attempt: Attempt,
}

/// `hist/ledger.db`, written by this process alone. Its calls block for as long as the disk takes.
#[derive(Debug)]
pub struct Store {
    pub(super) db: Connection,
    pub(super) path: PathBuf,
    pub(super) known: Known,
    lock: schema::Lock,
}

/// What commits need to know of what is stored.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Known {
    /// Hash of the genesis.
    pub(super) chain_id: Option<Hash>,
    /// Last closed ledger; 0 before the first.
    pub(super) tip: Seq,
    /// Its hash.
    pub(super) tip_hash: Option<Hash>,
    /// Last ledger with a result of mine, or after which the state was fetched, or that was passed over.
    pub(super) executed: Seq,
    /// That ledgers were passed over.
    pub(super) join: Option<Join>,
    /// W; until it is known, nothing is deleted for its age.
    pub(super) input_window: Option<u64>,
    /// The body of which some inputs are deleted already, if that is so; and how many.
    pub(super) pruned: Option<Seq>,
    pub(super) pruned_inputs: usize,
}

/// The last ledger with a result of mine, or after which the state was fetched.
pub(super) const EXECUTED: &str = "SELECT max(seq) FROM (SELECT seq FROM result UNION ALL SELECT last FROM synced)";

/// Kinds of the rows in `round`: what I said about the ledger after the tip.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Novel = 0,
    Prevote = 1,
    Precommit = 2,
    Advance = 3,
    Entered = 4,
    /// Of the tip, whose run took too long: said in the round after it, like the result it stands for.
    Overtime = 5,
}

/// The sets of users that are kept.
#[derive(Debug, Clone, Copy)]
pub(super) enum Users {
    /// Of the last closed ledger.
    Tip,
    /// Of the last ledger with a result of mine.
    Executed,
    /// Of the ledger before the oldest one with a body.
    Base,
}

impl Known {
    /// The last ledger that was passed over; 0 for none. Contents of ledgers up to it count for nothing.
    pub(super) fn base(&self) -> Seq {
        self.join.map_or(0, |join| join.base)
    }
}

impl Store {
    /// Opens `dir`/hist/ledger.db, where `dir` is the contract's folder; creates it when it is missing.
    ///
    /// Errors with `Damaged` when the file is not what this program wrote, with `InUse` when another process has it.
    pub fn open(dir: &Path) -> Result<Store, LedgerError> {
        let (db, path, lock) = schema::open(dir)?;
        let mut store = Store { db, path, known: Known::default(), lock };
        store.known = store.read_known().map_err(|trouble| trouble.at(&store.path, "read the tip"))?;
        Ok(store)
    }

    /// Ledger 0; `None` until it was set.
    pub fn genesis(&self) -> Result<Option<Genesis>, LedgerError> {
        genesis(&self.db).map_err(self.failed("read the genesis"))
    }

    /// Sets ledger 0. It is set once: the same again changes nothing, another one is `OtherChain`.
    pub fn set_genesis(&mut self, genesis: &Genesis) -> Result<(), LedgerError> {
        let given = genesis.chain_id();
        match self.known.chain_id {
            Some(held) if held == given => Ok(()),
            Some(held) => Err(LedgerError::OtherChain { path: self.path.clone(), held, given }),
            None => {
                // Nothing is known yet of what this node signed in this chain: both or none.
                let insert = "INSERT INTO meta (key, value) VALUES ('genesis', ?1), ('silence', ?2)";
                let done = self.db.execute(insert, [encode(genesis), encode(&Silence::begin())]);
                done.map_err(|error| Trouble::Sql(error).at(&self.path, "store the genesis"))?;
                self.known.chain_id = Some(given);
                // Ledger 0 is the genesis itself.
                self.known.tip_hash = Some(given);
                Ok(())
            }
        }
    }

    /// Says whose votes are in here. A file that has another node's has nothing of what this node signed: from now on
    /// it is this node's, without the other's votes, and this node is silent. The other node, if there was one.
    pub fn claim(&mut self, me: NodeKey, now_ms: WallMs) -> Result<Option<NodeKey>, LedgerError> {
        let tip = self.known.tip;
        let mut claim = || -> Result<Option<NodeKey>, Trouble> {
            let tx = self.db.transaction()?;
            let held: Option<[u8; 32]> =
                tx.query_row("SELECT value FROM meta WHERE key = 'node'", [], |row| row.get(0)).optional()?;
            let other = held.map(NodeKey).filter(|held| *held != me);
            if let Some(other) = other {
                tx.execute("DELETE FROM round", [])?;
                tx.execute("DELETE FROM candidate", [])?;
                tx.execute("DELETE FROM meta WHERE key = 'unl_vote'", [])?;
                let silence = encode(&Silence::new(Why::Copied(other), now_ms, tip));
                tx.execute("INSERT OR REPLACE INTO meta (key, value) VALUES ('silence', ?1)", [silence])?;
            }
            tx.execute("INSERT OR REPLACE INTO meta (key, value) VALUES ('node', ?1)", [me.0])?;
            tx.commit()?;
            Ok(other)
        };
        let path = self.path.clone();
        claim().map_err(|trouble| trouble.at(&path, "look whose votes are in it"))
    }

    /// Sets ledger 0 of a chain that goes on from another, with the users and the keys of inputs that its genesis names, and
    /// the settings behind its `cfg_hash`. In an empty database alone.
    ///
    /// # Panics
    /// When users or keys are not those that the genesis names.
    pub fn set_recovered(
        &mut self,
        settings: &[u8],
        genesis: &Genesis,
        users: &BTreeSet<UserKey>,
        keys: &BTreeSet<InputKey>,
    ) -> Result<(), LedgerError> {
        let ancestor = genesis.ancestor.as_ref().expect("a recovered chain has an ancestor");
        assert_eq!(ancestor.users_root, header::users_root(users), "the genesis names its users");
        assert_eq!(ancestor.keys_root, header::keys_root(keys), "the genesis names its keys");
        let given = genesis.chain_id();
        if let Some(held) = self.known.chain_id {
            return Err(LedgerError::OtherChain { path: self.path.clone(), held, given });
        }
        let mut set = || -> Result<(), Trouble> {
            let tx = self.db.transaction()?;
            tx.execute("INSERT INTO meta (key, value) VALUES ('settings', ?1)", [settings])?;
            // Nothing is known yet of what this node signed in this chain.
            let insert = "INSERT INTO meta (key, value) VALUES ('genesis', ?1), ('silence', ?2)";
            tx.execute(insert, [encode(genesis), encode(&Silence::begin())])?;
            for table in ["ancestor_user", "user_tip", "user_executed", "user_base"] {
                let mut insert = tx.prepare(&format!("INSERT INTO {table} (user) VALUES (?1)"))?;
                for user in users {
                    insert.execute([user.0])?;
                }
            }
            let keys: Vec<&InputKey> = keys.iter().collect();
            let mut insert = tx.prepare("INSERT INTO ancestor_key (n, keys) VALUES (?1, ?2)")?;
            for (n, part) in (0_i64..).zip(keys.chunks(ANCESTOR_KEYS_A_ROW)) {
                insert.execute(params![n, encode(part)])?;
            }
            drop(insert);
            Ok(tx.commit()?)
        };
        set().map_err(|trouble| trouble.at(&self.path, "store the genesis"))?;
        self.known.chain_id = Some(given);
        self.known.tip_hash = Some(given);
        Ok(())
    }

    /// What `set_settings` kept, as bytes.
    pub fn settings(&self) -> Result<Option<Vec<u8>>, LedgerError> {
        let read = || -> Result<Option<Vec<u8>>, Trouble> {
            let mut query = self.db.prepare_cached("SELECT value FROM meta WHERE key = 'settings'")?;
            let mut rows = query.query([])?;
            Ok(rows.next()?.map(|row| row.get(0)).transpose()?)
        };
        read().map_err(self.failed("read the settings"))
    }

    /// Keeps the settings behind the genesis' `cfg_hash`, so that a later difference can be named.
    pub fn set_settings(&mut self, settings: &[u8]) -> Result<(), LedgerError> {
        let insert = "INSERT OR REPLACE INTO meta (key, value) VALUES ('settings', ?1)";
        let done = self.db.execute(insert, [settings]);
        done.map(|_| ()).map_err(|error| Trouble::Sql(error).at(&self.path, "store the settings"))
    }

    /// Everything the core goes on from; `None` without genesis. `input_window` is the chain's, in ledgers.
    ///
    /// Checks what it reads: encodings, the hash chain of the last ledgers, input ids, the roots of the users.
    pub fn load(&mut self, input_window: u64) -> Result<Option<Journal>, LedgerError> {
        self.known.input_window = Some(input_window);
        self.load_journal(input_window).map_err(self.failed("read the journal"))
    }

    /// Applies the writes in order, all or none. When it returns `Ok` they are on disk.
    pub fn commit(&mut self, batch: &[Write]) -> Result<(), LedgerError> {
        self.commit_all(batch.iter())
    }

    pub(super) fn commit_all<'a>(&mut self, writes: impl Iterator<Item = &'a Write>) -> Result<(), LedgerError> {
        // The copy becomes true with the transaction.
        let mut known = self.known;
        let committed = (|| {
            let tx = self.db.transaction()?;
            let mut change = Change { db: &tx, known: &mut known, closed: 0, ledgered: 0 };
            for write in writes {
                change.apply(write)?;
            }
            if change.closed > 0 {
                change.prune()?;
            }
            Ok(tx.commit()?)
        })();
        committed.map_err(|trouble: Trouble| trouble.at(&self.path, "commit"))?;
        self.known = known;
        Ok(())
    }

    /// Forgets this node's results of ledgers above `executed`, and what their runs put out, as if they had not been run yet.
    ///
    /// For a copy of the database alone: the node itself never takes back what it has signed.
    pub fn rewind(&mut self, executed: Seq) -> Result<(), LedgerError> {
        let mut known = self.known;
        let mut rewound = || -> Result<(), Trouble> {
            let tx = self.db.transaction()?;
            if executed > known.executed {
                return Trouble::contradiction(format!(
                    "ledger {executed} was not run: the last one is {}",
                    known.executed
                ));
            }
            for seq in (executed + 1..=known.executed).rev() {
                let Some(body) = body(&tx, seq)? else { return Trouble::damaged(format!("ledger {seq} has no body")) };
                // The other way round: who came goes.
                Change { db: &tx, known: &mut known, closed: 0, ledgered: 0 }.users(
                    Users::Executed,
                    &body.users_del,
                    &body.users_add,
                )?;
            }
            if executed < known.executed {
                tx.execute("DELETE FROM meta WHERE key = 'adopted'", [])?;
                for table in ["result", "run", "output"] {
                    tx.execute(&format!("DELETE FROM {table} WHERE seq > ?1"), [executed as i64])?;
                }
                tx.execute("DELETE FROM synced WHERE last > ?1", [executed as i64])?;
                // What was agreed on where this node's own result was another: by now the next ledger says it.
                let agreed = header_at(&tx, executed + 1)?.map(|next| next.header.result);
                let differs = |own: ExecResult| agreed.clone().filter(|agreed| *agreed != own);
                if let Some(agreed) = own_result(&tx, executed)?.and_then(differs) {
                    tx.execute("INSERT INTO meta (key, value) VALUES ('adopted', ?1)", [encode(&agreed)])?;
                }
            }
            Ok(tx.commit()?)
        };
        rewound().map_err(|trouble| trouble.at(&self.path, "rewind"))?;
        self.known.executed = executed;
        Ok(())
    }

    /// Sequence number of the last closed ledger; 0 before the first.
    pub fn tip(&self) -> Seq {
        self.known.tip
    }

    /// A closed ledger, whole; `None` when there is none yet or its body was deleted.
    pub fn closed(&self, seq: Seq) -> Result<Option<ClosedLedger>, LedgerError> {
        closed(&self.db, seq).map_err(self.failed("read a ledger"))
    }

    /// The same by the ledger's hash.
    pub fn by_hash(&self, hash: &Hash) -> Result<Option<ClosedLedger>, LedgerError> {
        let find = || -> Result<Option<ClosedLedger>, Trouble> {
            let mut query = self.db.prepare_cached("SELECT seq FROM ledger WHERE hash = ?1")?;
            match query.query_row([hash.0], |row| row.get(0)).optional()? {
                Some(seq) => closed(&self.db, seq_of(seq)?),
                None => Ok(None),
            }
        };
        find().map_err(self.failed("read a ledger"))
    }

    /// Closed ledgers from `first` on with their inputs, ascending without a gap, as many as are loaded at once for their
    /// runs. Nothing of them was deleted as long as they were not run; what lacks is damage.
    pub fn to_run(&self, first: Seq) -> Result<Vec<(ClosedLedger, Vec<Input>)>, LedgerError> {
        self.ledgers_to_run(first).map_err(self.failed("read the ledgers to be run"))
    }

    /// Closed ledgers from `first` to `last` with their inputs, as many as fit into one answer to a peer. None when the
    /// first of them is not here with its body.
    pub fn range(&self, first: Seq, last: Seq) -> Result<Range, LedgerError> {
        let read = || -> Result<Range, Trouble> {
            let oldest = self.oldest_body()?;
            let mut range = Range { first, oldest, ledgers: Vec::new(), inputs: Vec::new() };
            let mut bytes = 0;
            for seq in (first..=last).take(RANGE_LEDGERS_MAX) {
                let Some(ledger) = closed(&self.db, seq)?.filter(|_| seq >= oldest) else { break };
                let size = encode(&ledger).len();
                let payload = usize::try_from(ledger.candidate.header.inputs_bytes).unwrap_or(usize::MAX);
                if !range.ledgers.is_empty() && payload.saturating_add(bytes + size) > RANGE_BYTES_MAX {
                    break;
                }
                bytes += size;
                for id in &ledger.candidate.inputs {
                    let Some(input) = input(&self.db, id)? else { break };
                    bytes += encode(&input).len();
                    if bytes > RANGE_BYTES_MAX {
                        break;
                    }
                    range.inputs.push(input);
                }
                range.ledgers.push(ledger);
                if bytes > RANGE_BYTES_MAX {
                    break;
                }
            }
            Ok(range)
        };
        read().map_err(self.failed("read ledgers for a peer"))
    }

    /// Closed ledgers from `first` to `last` without their contents, as many as fit into one answer to a peer.
    pub fn headers(&self, first: Seq, last: Seq) -> Result<Headers, LedgerError> {
        let read = || -> Result<Headers, Trouble> {
            let mut headers = Headers { first, oldest: self.oldest_body()?, ledgers: Vec::new() };
            let Some(from) = row_seq(first) else { return Ok(headers) };
            let mut query = self.db.prepare_cached(
                "SELECT ledger.header, ledger.qc, unl_change.change FROM ledger
                 LEFT JOIN unl_change ON unl_change.seq = ledger.seq
                 WHERE ledger.seq BETWEEN ?1 AND ?2 ORDER BY ledger.seq LIMIT ?3",
            )?;
            let mut rows = query.query([from, row_seq(last).unwrap_or(i64::MAX), HEADERS_MAX as i64])?;
            let mut bytes = 0;
            while let Some(row) = rows.next()? {
                let unl_change = match row.get_ref(2)? {
                    rusqlite::types::ValueRef::Null => None,
                    _ => Some(column(row, 2, "a change of the UNL")?),
                };
                let (header, qc) = (column(row, 0, "a header")?, column(row, 1, "a certificate")?);
                let ledger = BareLedger { header, unl_change, qc };
                bytes += encode(&ledger).len();
                if bytes > RANGE_BYTES_MAX && !headers.ledgers.is_empty() {
                    break;
                }
                headers.ledgers.push(ledger);
            }
            Ok(headers)
        };
        read().map_err(self.failed("read headers for a peer"))
    }

    /// The users of ledger `seq` behind `after`, as many as fit into one answer to a peer. None when it is not known any more
    /// who they were, or would take long to find out.
    pub fn users_page(&self, seq: Seq, after: Option<UserKey>) -> Result<UsersPage, LedgerError> {
        let read = || -> Result<UsersPage, Trouble> {
            let mut page = UsersPage { seq, oldest: self.oldest_body()?, after, users: Vec::new() };
            let first = oldest_row(&self.db, self.known.base())?.unwrap_or(self.known.tip + 1);
            let spare = self.known.input_window.map_or(0, |window| bodies_kept(window).saturating_sub(window));
            let is_near = (first..=first.saturating_add(2 * spare)).contains(&seq.saturating_add(1));
            if !is_near || seq > self.known.tip || self.known.join.is_some_and(|join| join.lacks == Lacks::Users) {
                return Ok(page);
            }
            let is_behind = |user: &UserKey| Some(*user) > after;
            let mut changed: BTreeMap<UserKey, bool> = BTreeMap::new();
            for seq in first..=seq {
                let Some(body) = body(&self.db, seq)? else {
                    return Trouble::damaged(format!("ledger {seq} has no body, but older ones have"));
                };
                changed.extend(body.users_del.into_iter().filter(is_behind).map(|user| (user, false)));
                changed.extend(body.users_add.into_iter().filter(is_behind).map(|user| (user, true)));
            }
            // With so many more that those that went do not make the page end before others that came.
            let count = USERS_PAGE_MAX + changed.len();
            let mut query =
                self.db.prepare_cached("SELECT user FROM user_base WHERE user > ?1 ORDER BY user LIMIT ?2")?;
            let from = after.map_or(Vec::new(), |after| after.0.to_vec());
            let rows = query.query_map(params![from, count as i64], |row| Ok(UserKey(row.get(0)?)))?;
            let mut users: BTreeSet<UserKey> = rows.collect::<Result<_, _>>()?;
            for (user, is_there) in changed {
                if is_there {
                    users.insert(user);
                } else {
                    users.remove(&user);
                }
            }
            page.users = users.into_iter().take(USERS_PAGE_MAX).collect();
            Ok(page)
        };
        read().map_err(self.failed("read the users of a ledger for a peer"))
    }

    /// Headers and certificates from `first` on, ascending without a gap; at most `count` and [`HEADERS_READ_MAX`].
    pub fn header_range(&self, first: Seq, count: usize) -> Result<Vec<Closed>, LedgerError> {
        let read = || -> Result<Vec<Closed>, Trouble> {
            let Some(first) = row_seq(first) else { return Ok(Vec::new()) };
            let count = count.min(HEADERS_READ_MAX) as i64;
            let mut query =
                self.db.prepare_cached("SELECT header, qc FROM ledger WHERE seq >= ?1 ORDER BY seq LIMIT ?2")?;
            let mut rows = query.query([first, count])?;
            let mut headers = Vec::new();
            while let Some(row) = rows.next()? {
                headers.push(Closed { header: column(row, 0, "a header")?, qc: column(row, 1, "a certificate")? });
            }
            Ok(headers)
        };
        read().map_err(self.failed("read headers"))
    }

    /// The changes of the UNL by ledger, ascending, since the chain began.
    pub fn unl_changes(&self) -> Result<Vec<(Seq, UnlChange)>, LedgerError> {
        unl_changes(&self.db, self.known.tip).map_err(self.failed("read the changes of the UNL"))
    }

    /// Closed ledgers after `since` that change the UNL, with the changes, ascending; at most `count`.
    pub fn unl_steps(&self, since: Seq, count: usize) -> Result<Vec<(Closed, UnlChange)>, LedgerError> {
        let read = || -> Result<Vec<(Closed, UnlChange)>, Trouble> {
            let Some(since) = row_seq(since) else { return Ok(Vec::new()) };
            let mut query = self.db.prepare_cached(
                "SELECT ledger.header, ledger.qc, unl_change.change FROM unl_change JOIN ledger ON ledger.seq = unl_change.seq
                 WHERE unl_change.seq > ?1 AND unl_change.seq <= ?2 ORDER BY unl_change.seq LIMIT ?3",
            )?;
            let mut rows = query.query([since, row_seq(self.known.tip).unwrap_or(i64::MAX), count as i64])?;
            let mut steps = Vec::new();
            while let Some(row) = rows.next()? {
                let (header, qc) = (column(row, 0, "a header")?, column(row, 1, "a certificate")?);
                steps.push((Closed { header, qc }, column(row, 2, "a change of the UNL")?));
            }
            Ok(steps)
        };
        read().map_err(self.failed("read the changes of the UNL"))
    }

    /// An input by its id, whether it is ledgered or waits; `None` when it never came or was deleted.
    pub fn input(&self, id: &Hash) -> Result<Option<Input>, LedgerError> {
        input(&self.db, id).map_err(self.failed("read an input"))
    }

    /// Those of the inputs that are held, in the order asked for. Ends early past [`READ_BYTES_MAX`] bytes of payload.
    pub fn inputs(&self, ids: &[Hash]) -> Result<Vec<Input>, LedgerError> {
        let (mut found, mut bytes) = (Vec::new(), 0);
        for id in ids {
            let Some(input) = self.input(id)? else { continue };
            bytes += input.payload.len();
            if bytes > READ_BYTES_MAX && !found.is_empty() {
                break;
            }
            found.push(input);
        }
        Ok(found)
    }

    /// This node's result of a ledger; `None` when it has none or it was deleted.
    pub fn result(&self, seq: Seq) -> Result<Option<Signed<ExecResult>>, LedgerError> {
        let read = || -> Result<Option<Signed<ExecResult>>, Trouble> {
            let Some(seq) = row_seq(seq) else { return Ok(None) };
            let mut query = self.db.prepare_cached("SELECT bytes FROM result WHERE seq = ?1")?;
            let mut rows = query.query([seq])?;
            rows.next()?.map(|row| column(row, 0, "a result")).transpose()
        };
        read().map_err(self.failed("read a result"))
    }

    /// What the run of a ledger put out, ascending by user; `None` when it was not stored or was deleted.
    pub fn outputs(&self, seq: Seq) -> Result<Option<Outputs>, LedgerError> {
        outputs(&self.db, seq).map_err(self.failed("read outputs"))
    }

    /// Outputs to one user of the ledgers above `since` whose results are agreed on, ascending, with what proves them.
    ///
    /// That of the last ledger counts as agreed on when it is `agreed`: no next header tells it yet. Ends early past
    /// [`PAGE_OUTPUTS_MAX`] outputs, [`PAGE_BYTES_MAX`] bytes of them or [`PAGE_LEAVES_MAX`] leaves of their trees.
    pub fn outputs_since(&self, user: &UserKey, since: Seq, agreed: Option<Seq>) -> Result<PastOutputs, LedgerError> {
        past_outputs(&self.db, &self.known, user, since, agreed).map_err(self.failed("read outputs"))
    }

    /// What settled these ledgers, ascending, as far as the chain records it; each settlement once.
    pub fn settlements(&self, seqs: &[Seq]) -> Result<Vec<PastSettlement>, LedgerError> {
        settlements(&self.db, self.known.tip, seqs).map_err(self.failed("read what settled ledgers"))
    }

    /// The first ledger after `after` up to `to` that has outputs here and an agreed result.
    pub fn next_outputs(&self, after: Seq, to: Seq) -> Result<Option<PutOut>, LedgerError> {
        let read = || -> Result<Option<PutOut>, Trouble> {
            let (Some(after), Some(to)) = (row_seq(after), row_seq(to.min(self.known.tip.saturating_sub(1)))) else {
                return Ok(None);
            };
            let mut query = self.db.prepare_cached("SELECT min(seq) FROM output WHERE seq > ?1 AND seq <= ?2")?;
            let found: Option<i64> = query.query_row([after, to], |row| row.get(0))?;
            let Some(seq) = found.map(seq_of).transpose()? else { return Ok(None) };
            let Some(next) = header_at(&self.db, seq + 1)? else {
                return Trouble::damaged(format!("ledger {} is missing", seq + 1));
            };
            let leaves = output_leaves(&self.db, seq)?.into_iter().map(|(_, leaf)| leaf).collect();
            Ok(Some(PutOut { seq, leaves, agreed: next.header.result }))
        };
        read().map_err(self.failed("read outputs"))
    }

    /// Outputs of a ledger to those of `wanted` behind `after`, ascending. Ends early past `bytes_max` of them, each counted
    /// with `overhead` more, and past [`LOOKED_OUTPUTS_MAX`] looked at; one output may be longer.
    pub fn outputs_of(
        &self,
        seq: Seq,
        after: Option<UserKey>,
        wanted: &BTreeSet<UserKey>,
        (bytes_max, overhead): (usize, usize),
    ) -> Result<OutputsOf, LedgerError> {
        let read = || -> Result<OutputsOf, Trouble> {
            let mut page = OutputsOf { outputs: Vec::new(), more_after: None };
            let Some(row) = row_seq(seq) else { return Ok(page) };
            // Nobody's key is before the empty one.
            let after: Vec<u8> = after.map_or(Vec::new(), |user| user.0.to_vec());
            let mut query =
                self.db.prepare_cached("SELECT user, bytes FROM output WHERE seq = ?1 AND user > ?2 ORDER BY user")?;
            let mut rows = query.query(params![row, after])?;
            let (mut looked, mut bytes, mut last) = (0, 0, None);
            while let Some(row) = rows.next()? {
                let user = UserKey(row.get(0)?);
                if looked == LOOKED_OUTPUTS_MAX {
                    page.more_after = last;
                    break;
                }
                looked += 1;
                if wanted.contains(&user) {
                    // The bytes of others are not read.
                    let output: Vec<u8> = row.get(1)?;
                    bytes += output.len() + overhead;
                    if bytes > bytes_max && !page.outputs.is_empty() {
                        page.more_after = last;
                        break;
                    }
                    page.outputs.push((user, output));
                }
                last = Some(user);
            }
            Ok(page)
        };
        read().map_err(self.failed("read outputs"))
    }

    /// Users with inputs in a ledger, ascending; none when its contents are not kept.
    pub fn senders(&self, seq: Seq) -> Result<Vec<UserKey>, LedgerError> {
        let read = || {
            let inputs = body(&self.db, seq)?.map_or_else(Vec::new, |body| body.inputs);
            Ok(users_of(&self.db, &inputs)?.into_iter().collect())
        };
        read().map_err(self.failed("read the users of a ledger"))
    }

    /// Users and UNL as ledger `seq` left them, which is not older than the last one that was executed, and its result by
    /// the next header; `None` when there is no next one.
    pub fn standing(&self, seq: Seq) -> Result<Option<Standing>, LedgerError> {
        self.read_standing(seq).map_err(self.failed("read the users and the UNL of a ledger"))
    }

    /// Proofs of misbehaviour, oldest first, of which a bounded number is kept; ends early past [`READ_BYTES_MAX`] bytes.
    pub fn evidence(&self) -> Result<Vec<Evidence>, LedgerError> {
        let read = || -> Result<Vec<Evidence>, Trouble> {
            let mut query = self.db.prepare_cached("SELECT bytes, length(bytes) FROM evidence ORDER BY n")?;
            let mut rows = query.query([])?;
            let (mut proofs, mut bytes) = (Vec::new(), 0);
            while let Some(row) = rows.next()? {
                bytes += row.get::<_, u32>(1)? as usize;
                if bytes > READ_BYTES_MAX && !proofs.is_empty() {
                    break;
                }
                proofs.push(column(row, 0, "a proof")?);
            }
            Ok(proofs)
        };
        read().map_err(self.failed("read evidence"))
    }

    /// What those proofs are of, oldest first: who said what twice, about which ledger, in which attempt.
    pub fn proven(&self) -> Result<Vec<Proven>, LedgerError> {
        let read = || -> Result<Vec<Proven>, Trouble> {
            let mut query = self.db.prepare_cached("SELECT signer, kind, seq, attempt FROM evidence ORDER BY n")?;
            let mut rows = query.query([])?;
            let mut proven = Vec::new();
            while let Some(row) = rows.next()? {
                proven.push(Proven {
                    signer: NodeKey(row.get(0)?),
                    kind: row.get(1)?,
                    seq: seq_of(row.get(2)?)?,
                    attempt: row.get(3)?,
                });
            }
            Ok(proven)
        };
        read().map_err(self.failed("read evidence"))
    }

    /// Makes the commits to come cheaper, at the price of some milliseconds and 16 MiB on disk.
    pub fn preallocate(&mut self) -> Result<(), LedgerError> {
        schema::preallocate(&self.path)
    }

    /// Moves what was committed from the write-ahead log into the file. Nothing is lost without it; it bounds the log.
    pub fn checkpoint(&mut self) -> Result<(), LedgerError> {
        let done = self.db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
        done.map_err(|error| Trouble::Sql(error).at(&self.path, "move the write-ahead log"))
    }

    /// Moves the write-ahead log into the file and closes it.
    pub fn close(self) -> Result<(), LedgerError> {
        let Store { db, path, lock, .. } = self;
        db.flush_prepared_statement_cache();
        let closed = db.close().map_err(|(_, error)| Trouble::Sql(error).at(&path, "close tables"));
        drop(lock);
        closed
    }

    /// The oldest ledger whose body is whole, and those of all later ones; the next one when the last ledger was passed over,
    /// 0 before the first.
    fn oldest_body(&self) -> Result<Seq, Trouble> {
        let base = self.known.base();
        Ok(match oldest_row(&self.db, base)? {
            Some(oldest) => oldest + Seq::from(self.known.pruned == Some(oldest)),
            None if base > 0 => base + 1,
            None => 0,
        })
    }

    fn read_known(&self) -> Result<Known, Trouble> {
        let chain_id = genesis(&self.db)?.map(|genesis| genesis.chain_id());
        let tip: Option<(i64, [u8; 32])> = self
            .db
            .query_row("SELECT seq, hash FROM ledger ORDER BY seq DESC LIMIT 1", [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .optional()?;
        let join = join(&self.db)?;
        let known = Known {
            chain_id,
            tip: tip.map_or(Ok(0), |(seq, _)| seq_of(seq))?,
            tip_hash: tip.map(|(_, hash)| Hash(hash)).or(chain_id),
            executed: executed(&self.db)?,
            join,
            ..Known::default()
        };
        match known {
            Known { chain_id: None, tip: 1.., .. } => Trouble::damaged("ledgers without a genesis"),
            Known { executed, tip, .. } if executed > tip => {
                Trouble::damaged(format!("a result of ledger {executed}, but the last ledger is {tip}"))
            }
            known => Ok(known),
        }
    }

    fn failed(&self, what: &'static str) -> impl FnOnce(Trouble) -> LedgerError {
        let path = self.path.clone();
        move |trouble| trouble.at(&path, what)
    }
}

// ---- Writing ----------------------------------------------------------------------------------------------------

/// One transaction under way.
struct Change<'a> {
    db: &'a Connection,
    known: &'a mut Known,
    /// Ledgers closed by it.
    closed: u64,
    /// Their inputs.
    ledgered: usize,
}

impl Change<'_> {
    fn apply(&mut self, write: &Write) -> Result<(), Trouble> {
        match write {
            Write::Record(record) => self.record(record),
            Write::Outputs { seq, outputs } => self.outputs(*seq, outputs),
            Write::Evidence(evidence) => self.evidence(evidence),
        }
    }

    /// The same as `Journal::apply`, where that keeps one value of each.
    fn record(&mut self, record: &Record) -> Result<(), Trouble> {
        match record {
            Record::Input(input) => self.input(input),
            Record::Forget(ids) => ids.iter().try_for_each(|id| self.forget(id)),
            Record::Novel(novel) => self.said(Kind::Novel, 0, encode(&**novel)),
            Record::Prevote(vote, candidate) => {
                let body = self.candidate(candidate)?;
                self.said(Kind::Prevote, vote.body.0.attempt, encode(&(vote, body)))
            }
            Record::Precommit(vote, candidate, polc) => {
                let body = self.candidate(candidate)?;
                self.said(Kind::Precommit, vote.body.0.attempt, encode(&(vote, body, polc)))
            }
            Record::Advance(advance) => self.advance(advance),
            Record::Entered(tc, polc) => self.entered(tc, polc.as_ref()),
            Record::Ledger(closed) => self.close(closed),
            Record::Result(result) => self.result(result),
            Record::Overtime(overtime) => self.overtime(overtime),
            Record::Adopted(result) => self.adopted(result),
            Record::UnlVote(vote) => self.unl_vote(vote.as_ref()),
            Record::Synced(result) => self.synced(result),
            Record::Silence(silence) => self.silence(silence.as_deref()),
            Record::Heard(members) => self.heard(members),
            Record::Bare(ledger) => self.pass(ledger),
            Record::Base(users) => self.base(users),
        }
    }

    fn input(&mut self, input: &Input) -> Result<(), Trouble> {
        let Some(chain_id) = self.known.chain_id else {
            return Trouble::contradiction("an input before the genesis");
        };
        let (id, bytes) = (input.id(&chain_id), encode(input));
        let mut insert =
            self.db.prepare_cached("INSERT INTO input (id, bytes) VALUES (?1, ?2) ON CONFLICT DO NOTHING")?;
        if insert.execute(params![id.0, bytes])? == 1 {
            let n = self.db.last_insert_rowid();
            let mut pool = self.db.prepare_cached("INSERT INTO pooled (n, key) VALUES (?1, ?2)")?;
            pool.execute(params![n, encode(&input.key())])?;
        } else {
            // The same input again, maybe with other signatures. In a ledger its bytes stay what they were.
            let mut replace = self.db.prepare_cached(
                "UPDATE input SET bytes = ?2 WHERE id = ?1 AND EXISTS (SELECT 1 FROM pooled WHERE n = input.n)",
            )?;
            replace.execute(params![id.0, bytes])?;
        }
        Ok(())
    }

    fn forget(&mut self, id: &Hash) -> Result<(), Trouble> {
        if self.unpool(id)?.is_some() {
            self.db.prepare_cached("DELETE FROM input WHERE id = ?1")?.execute([id.0])?;
        }
        Ok(())
    }

    /// Takes an input out of the pool; its key, if it was there.
    fn unpool(&self, id: &Hash) -> Result<Option<InputKey>, Trouble> {
        let mut delete =
            self.db.prepare_cached("DELETE FROM pooled WHERE n = (SELECT n FROM input WHERE id = ?1) RETURNING key")?;
        let mut rows = delete.query([id.0])?;
        rows.next()?.map(|row| column(row, 0, "an input's key")).transpose()
    }

    /// Something I signed about the ledger after the tip; once a kind and attempt.
    fn said(&mut self, kind: Kind, attempt: Attempt, bytes: Vec<u8>) -> Result<(), Trouble> {
        let mut insert = self
            .db
            .prepare_cached("INSERT INTO round (kind, attempt, bytes) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING")?;
        match insert.execute(params![kind as i64, attempt, bytes])? {
            1 => Ok(()),
            _ => Trouble::contradiction(format!("a second {kind:?} in attempt {attempt}")),
        }
    }

    /// Keeps the body that a vote is for, once; the hash of all of it.
    fn candidate(&mut self, candidate: &Candidate) -> Result<Hash, Trouble> {
        let hash = body_hash(candidate);
        let held = {
            let mut query = self.db.prepare_cached("SELECT 1 FROM candidate WHERE hash = ?1")?;
            query.exists([hash.0])?
        };
        if !held {
            let mut insert = self.db.prepare_cached("INSERT INTO candidate (hash, bytes) VALUES (?1, ?2)")?;
            insert.execute(params![hash.0, encode(candidate)])?;
        }
        Ok(hash)
    }

    fn advance(&mut self, advance: &Advance) -> Result<(), Trouble> {
        let mut replace =
            self.db.prepare_cached("INSERT OR REPLACE INTO round (kind, attempt, bytes) VALUES (?1, 0, ?2)")?;
        replace.execute(params![Kind::Advance as i64, encode(advance)])?;
        Ok(())
    }

    /// Keeps the highest alone.
    fn entered(&mut self, tc: &Tc, polc: Option<&Certificate>) -> Result<(), Trouble> {
        let kind = Kind::Entered as i64;
        let held: Option<Attempt> = {
            let mut query = self.db.prepare_cached("SELECT max(attempt) FROM round WHERE kind = ?1")?;
            query.query_row([kind], |row| row.get(0))?
        };
        if held.is_none_or(|held| held < tc.attempt()) {
            self.db.prepare_cached("DELETE FROM round WHERE kind = ?1")?.execute([kind])?;
            self.said(Kind::Entered, tc.attempt(), encode(&(tc, polc)))?;
        }
        Ok(())
    }

    fn close(&mut self, closed: &ClosedLedger) -> Result<(), Trouble> {
        let ClosedLedger { candidate, qc } = closed;
        let Candidate { header, inputs, users_add, users_del, unl_change } = candidate;
        let hash = header.hash();
        let seq = header.seq;
        if seq != self.known.tip + 1 || Some(header.parent) != self.known.tip_hash {
            return Trouble::contradiction(format!("ledger {seq} does not follow ledger {}", self.known.tip));
        }
        if (qc.vote.seq, qc.vote.ledger_hash) != (seq, hash) {
            return Trouble::contradiction(format!("the certificate of ledger {seq} is of another"));
        }
        if self.known.join.is_some_and(|join| join.lacks == Lacks::Users) {
            return Trouble::contradiction(format!("the contents of ledger {seq}, but those before it are unknown"));
        }
        let row = seq as i64;
        let mut keys = Vec::with_capacity(inputs.len());
        for id in inputs {
            match self.unpool(id)? {
                Some(key) => keys.push(key),
                None => return Trouble::contradiction(format!("ledger {seq} lists input {id}, which does not wait")),
            }
        }
        if !keys.is_empty() {
            let mut insert = self.db.prepare_cached("INSERT INTO input_key (seq, keys) VALUES (?1, ?2)")?;
            insert.execute(params![row, encode(&keys)])?;
        }
        self.chain(header, hash, qc, unl_change.as_ref())?;
        self.db
            .prepare_cached("INSERT INTO body (seq, inputs, users_add, users_del) VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![row, encode(inputs), encode(users_add), encode(users_del)])?;
        self.users(Users::Tip, users_add, users_del)?;
        self.ledgered += inputs.len();
        Ok(())
    }

    /// What is kept of a ledger for ever. Ends what was said about it.
    fn chain(
        &mut self,
        header: &Header,
        hash: Hash,
        qc: &Certificate,
        unl_change: Option<&UnlChange>,
    ) -> Result<(), Trouble> {
        let row = header.seq as i64;
        self.db
            .prepare_cached("INSERT INTO ledger (seq, hash, header, qc) VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![row, hash.0, encode(header), encode(qc)])?;
        if let Some(change) = unl_change {
            let mut insert = self.db.prepare_cached("INSERT INTO unl_change (seq, change) VALUES (?1, ?2)")?;
            insert.execute(params![row, encode(change)])?;
        }
        self.db.prepare_cached("DELETE FROM round")?.execute([])?;
        self.db.prepare_cached("DELETE FROM candidate")?.execute([])?;
        self.known.tip = header.seq;
        self.known.tip_hash = Some(hash);
        self.closed += 1;
        Ok(())
    }

    /// A ledger is passed over.
    fn pass(&mut self, ledger: &BareLedger) -> Result<(), Trouble> {
        let BareLedger { header, unl_change, qc } = ledger;
        let (seq, hash) = (header.seq, header.hash());
        if seq != self.known.tip + 1 || Some(header.parent) != self.known.tip_hash {
            return Trouble::contradiction(format!("ledger {seq} does not follow ledger {}", self.known.tip));
        }
        if (qc.vote.seq, qc.vote.ledger_hash) != (seq, hash) {
            return Trouble::contradiction(format!("the certificate of ledger {seq} is of another"));
        }
        self.chain(header, hash, qc, unl_change.as_ref())?;
        if self.known.join.is_none_or(|join| join.lacks != Lacks::Users) {
            // Of a run that does not count any more.
            self.db.prepare_cached("DELETE FROM meta WHERE key = 'adopted'")?.execute([])?;
        }
        self.join(Join::pass(self.known.join, header))?;
        self.known.executed = seq;
        Ok(())
    }

    /// The users of the last ledger, which was passed over.
    fn base(&mut self, users: &BTreeSet<UserKey>) -> Result<(), Trouble> {
        let Some(join) = self.known.join.filter(|join| join.lacks == Lacks::Users) else {
            return Trouble::contradiction("a list of users, but the last ledger was not passed over");
        };
        for table in ["user_tip", "user_executed", "user_base"] {
            self.db.execute(&format!("DELETE FROM {table}"), [])?;
            let mut insert = self.db.prepare(&format!("INSERT INTO {table} (user) VALUES (?1)"))?;
            for user in users {
                insert.execute([user.0])?;
            }
        }
        self.join(Join { lacks: Lacks::State, ..join })
    }

    fn join(&mut self, join: Join) -> Result<(), Trouble> {
        let mut replace = self.db.prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES ('join', ?1)")?;
        replace.execute([encode(&join)])?;
        self.known.join = Some(join);
        Ok(())
    }

    fn unl_vote(&mut self, vote: Option<&UnlChange>) -> Result<(), Trouble> {
        match vote {
            Some(vote) => self
                .db
                .prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES ('unl_vote', ?1)")?
                .execute([encode(vote)])?,
            None => self.db.prepare_cached("DELETE FROM meta WHERE key = 'unl_vote'")?.execute([])?,
        };
        Ok(())
    }

    fn heard(&mut self, members: &BTreeSet<NodeKey>) -> Result<(), Trouble> {
        let mut replace = self.db.prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES ('heard', ?1)")?;
        replace.execute([encode(members)])?;
        Ok(())
    }

    fn silence(&mut self, silence: Option<&Silence>) -> Result<(), Trouble> {
        match silence {
            Some(silence) => self
                .db
                .prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES ('silence', ?1)")?
                .execute([encode(silence)])?,
            None => self.db.prepare_cached("DELETE FROM meta WHERE key = 'silence'")?.execute([])?,
        };
        Ok(())
    }

    /// What `Candidate::users_after` does. The lists may name users twice or for nothing; they are never undone.
    fn users(&self, users: Users, add: &[UserKey], del: &[UserKey]) -> Result<(), Trouble> {
        let (delete, insert) = match users {
            Users::Tip => ("DELETE FROM user_tip WHERE user = ?1", "INSERT OR IGNORE INTO user_tip (user) VALUES (?1)"),
            Users::Executed => {
                ("DELETE FROM user_executed WHERE user = ?1", "INSERT OR IGNORE INTO user_executed (user) VALUES (?1)")
            }
            Users::Base => {
                ("DELETE FROM user_base WHERE user = ?1", "INSERT OR IGNORE INTO user_base (user) VALUES (?1)")
            }
        };
        for user in del {
            self.db.prepare_cached(delete)?.execute([user.0])?;
        }
        for user in add {
            self.db.prepare_cached(insert)?.execute([user.0])?;
        }
        Ok(())
    }

    fn result(&mut self, result: &Signed<ExecResult>) -> Result<(), Trouble> {
        let seq = result.body.of_seq;
        if seq != self.known.executed + 1 || seq > self.known.tip {
            let Known { executed, tip, .. } = *self.known;
            return Trouble::contradiction(format!(
                "a result of ledger {seq}, but {executed} was executed last and {tip} is the last ledger"
            ));
        }
        let Some(body) = body(self.db, seq)? else {
            return Trouble::damaged(format!("ledger {seq} has no body but was not executed"));
        };
        self.users(Users::Executed, &body.users_add, &body.users_del)?;
        let mut insert = self.db.prepare_cached("INSERT INTO result (seq, bytes) VALUES (?1, ?2)")?;
        insert.execute(params![seq as i64, encode(result)])?;
        self.db.prepare_cached("DELETE FROM meta WHERE key = 'adopted'")?.execute([])?;
        self.known.executed = seq;
        Ok(())
    }

    fn overtime(&mut self, overtime: &Signed<Overtime>) -> Result<(), Trouble> {
        let (of_seq, tip) = (overtime.body.of_seq, self.known.tip);
        if of_seq != tip {
            return Trouble::contradiction(format!("an OVERTIME of ledger {of_seq}, but {tip} is the last"));
        }
        self.said(Kind::Overtime, 0, encode(overtime))
    }

    fn adopted(&mut self, result: &ExecResult) -> Result<(), Trouble> {
        let Known { executed, .. } = *self.known;
        if result.of_seq != executed {
            let of_seq = result.of_seq;
            return Trouble::contradiction(format!(
                "ledger {of_seq}'s result adopted, but {executed} was executed last"
            ));
        }
        let mut insert = self.db.prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES ('adopted', ?1)")?;
        insert.execute([encode(result)])?;
        Ok(())
    }

    fn synced(&mut self, result: &ExecResult) -> Result<(), Trouble> {
        let (last, executed) = (result.of_seq, self.known.executed);
        if last < executed || last >= self.known.tip {
            return Trouble::contradiction(format!(
                "the state after ledger {last} was fetched, but {executed} was executed last and {} is the last ledger",
                self.known.tip
            ));
        }
        for seq in executed + 1..=last {
            let Some(body) = body(self.db, seq)? else {
                return Trouble::damaged(format!("ledger {seq} has no body but was not executed"));
            };
            self.users(Users::Executed, &body.users_add, &body.users_del)?;
            // Of a run that went wrong before its result was signed.
            self.db.prepare_cached("DELETE FROM output WHERE seq = ?1")?.execute([seq as i64])?;
            self.db.prepare_cached("DELETE FROM run WHERE seq = ?1")?.execute([seq as i64])?;
        }
        let first = last.min(executed + 1);
        self.db
            .prepare_cached("INSERT OR REPLACE INTO synced (last, first, result) VALUES (?1, ?2, ?3)")?
            .execute(params![last as i64, first as i64, encode(result)])?;
        self.db.prepare_cached("DELETE FROM meta WHERE key = 'adopted'")?.execute([])?;
        if let Some(join) = self.known.join.filter(|join| join.lacks != Lacks::Nothing) {
            self.join(Join { lacks: Lacks::Nothing, ..join })?;
        }
        self.known.executed = last;
        Ok(())
    }

    fn outputs(&mut self, seq: Seq, outputs: &Outputs) -> Result<(), Trouble> {
        let users: BTreeSet<&UserKey> = outputs.iter().map(|(user, _)| user).collect();
        if users.len() != outputs.len() {
            return Trouble::contradiction(format!("two outputs of ledger {seq} to one user"));
        }
        if seq <= self.known.base() {
            // A run that was under way when ledgers began to be passed over.
            return Ok(());
        }
        if body(self.db, seq)?.is_none() {
            return Trouble::contradiction(format!("outputs of ledger {seq}, whose body is not here"));
        }
        let seq = seq as i64;
        self.db.prepare_cached("DELETE FROM output WHERE seq = ?1")?.execute([seq])?;
        self.db
            .prepare_cached("INSERT OR REPLACE INTO run (seq, outputs) VALUES (?1, ?2)")?
            .execute(params![seq, outputs.len() as i64])?;
        let mut insert =
            self.db.prepare_cached("INSERT INTO output (seq, user, leaf, bytes) VALUES (?1, ?2, ?3, ?4)")?;
        for (user, bytes) in outputs {
            insert.execute(params![seq, user.0, merkle::output_leaf(user, bytes).0, bytes])?;
        }
        Ok(())
    }

    fn evidence(&mut self, evidence: &Evidence) -> Result<(), Trouble> {
        let slot = evidence.slot().and_then(|(_, kind, seq, attempt)| Some((kind, row_seq(seq)?, attempt)));
        let Some((kind, seq, attempt)) = slot else { return Trouble::contradiction("evidence of nothing") };
        // One proof for each thing said twice: several peers show the same.
        let mut insert = self.db.prepare_cached(
            "INSERT INTO evidence (signer, kind, seq, attempt, bytes) SELECT ?1, ?2, ?3, ?4, ?5
             WHERE (SELECT count(*) FROM evidence WHERE signer = ?1) < ?6 AND (SELECT count(*) FROM evidence) < ?7
             ON CONFLICT DO NOTHING",
        )?;
        let (per_signer, all) = (EVIDENCE_PER_SIGNER_MAX as i64, EVIDENCE_MAX as i64);
        insert.execute(params![evidence.signer.0, kind, seq, attempt, encode(evidence), per_signer, all])?;
        Ok(())
    }

    /// Deletes some of what is too old: never the newest, nothing that was not executed, a bounded number of rows.
    fn prune(&mut self) -> Result<(), Trouble> {
        let Known { tip, executed, input_window, .. } = *self.known;
        let ledgers = PRUNE_LEDGERS_MAX.max(2 * self.closed);
        let mut inputs = PRUNE_INPUTS_MIN + 2 * self.ledgered;
        let Some(input_window) = input_window else { return Ok(()) };
        let too_old = tip.saturating_sub(bodies_kept(input_window));
        let base = self.known.base();
        let bodies_to = too_old.min(executed).max(base);
        for _ in 0..ledgers {
            if !self.prune_body(bodies_to, &mut inputs)? {
                break;
            }
        }
        // The last result is where the node goes on from.
        let results_to = too_old.min(executed.saturating_sub(1)).max(base.saturating_sub(1));
        self.prune_rows(
            "DELETE FROM result WHERE seq IN (SELECT seq FROM result WHERE seq <= ?1 ORDER BY seq LIMIT ?2)",
            results_to,
            ledgers,
        )?;
        // The last one is where the node may go on from, like a result.
        self.prune_rows(
            "DELETE FROM synced WHERE last IN (SELECT last FROM synced WHERE last <= ?1 ORDER BY last LIMIT ?2)",
            results_to,
            ledgers,
        )?;
        let keys_to = tip.saturating_sub(input_window);
        self.prune_rows(
            "DELETE FROM input_key WHERE seq IN (SELECT seq FROM input_key WHERE seq <= ?1 ORDER BY seq LIMIT ?2)",
            keys_to,
            ledgers,
        )
    }

    fn prune_rows(&self, sql: &str, to: Seq, count: u64) -> Result<(), Trouble> {
        if to > 0 {
            self.db.prepare_cached(sql)?.execute([to as i64, count as i64])?;
        }
        Ok(())
    }

    /// Deletes the oldest body, up to `to`, or as many of its inputs as `inputs` allows. Whether it is gone.
    fn prune_body(&mut self, to: Seq, inputs: &mut usize) -> Result<bool, Trouble> {
        let oldest: Option<i64> = {
            let mut query = self.db.prepare_cached("SELECT min(seq) FROM body")?;
            query.query_row([], |row| row.get(0))?
        };
        let Some(row) = oldest.filter(|seq| seq_of(*seq).is_ok_and(|seq| seq <= to)) else { return Ok(false) };
        let seq = seq_of(row)?;
        let Some(body) = body(self.db, seq)? else { return Ok(false) };
        for id in body.inputs.iter().skip(self.known.pruned_inputs) {
            if *inputs == 0 {
                return Ok(false);
            }
            self.db.prepare_cached("DELETE FROM input WHERE id = ?1")?.execute([id.0])?;
            *inputs -= 1;
            self.known.pruned_inputs += 1;
            self.known.pruned = Some(seq);
        }
        (self.known.pruned, self.known.pruned_inputs) = (None, 0);
        if seq > self.known.base() {
            self.users(Users::Base, &body.users_add, &body.users_del)?;
        }
        for delete in
            ["DELETE FROM body WHERE seq = ?1", "DELETE FROM output WHERE seq = ?1", "DELETE FROM run WHERE seq = ?1"]
        {
            self.db.prepare_cached(delete)?.execute([row])?;
        }
        Ok(true)
    }
}

// ---- Reading ----------------------------------------------------------------------------------------------------

/// What the roots of a header stand for.
pub(super) struct Body {
    pub(super) inputs: Vec<Hash>,
    pub(super) users_add: Vec<UserKey>,
    pub(super) users_del: Vec<UserKey>,
}

/// Names a row of `candidate`. Not the ledger's hash: two bodies of one header can write its changes of users differently.
pub(super) fn body_hash(candidate: &Candidate) -> Hash {
    Hash::tagged("hp/stored-body/1", candidate)
}

/// A ledger's number as a row's; `None` when no row can have it.
pub(super) fn row_seq(seq: Seq) -> Option<i64> {
    i64::try_from(seq).ok()
}

/// A row's number as a ledger's.
pub(super) fn seq_of(row: i64) -> Result<Seq, Trouble> {
    Seq::try_from(row).or_else(|_| Trouble::damaged(format!("sequence number {row}")))
}

/// A column's value.
pub(super) fn column<T: borsh::BorshDeserialize + borsh::BorshSerialize>(
    row: &Row,
    at: usize,
    what: &str,
) -> Result<T, Trouble> {
    let bytes = row.get_ref(at)?.as_blob().or_else(|_| Trouble::damaged(format!("{what} is no bytes")))?;
    decode(bytes, what)
}

pub(super) fn genesis(db: &Connection) -> Result<Option<Genesis>, Trouble> {
    let mut query = db.prepare_cached("SELECT value FROM meta WHERE key = 'genesis'")?;
    let mut rows = query.query([])?;
    rows.next()?.map(|row| column(row, 0, "the genesis")).transpose()
}

/// The oldest ledger above `base` that has a body, maybe not all of it any more.
pub(super) fn oldest_row(db: &Connection, base: Seq) -> Result<Option<Seq>, Trouble> {
    let mut query = db.prepare_cached("SELECT min(seq) FROM body WHERE seq > ?1")?;
    let oldest: Option<i64> = query.query_row([row_seq(base).unwrap_or(i64::MAX)], |row| row.get(0))?;
    oldest.map(seq_of).transpose()
}

/// That ledgers were passed over, if that is so.
pub(super) fn join(db: &Connection) -> Result<Option<Join>, Trouble> {
    let mut query = db.prepare_cached("SELECT value FROM meta WHERE key = 'join'")?;
    let mut rows = query.query([])?;
    rows.next()?.map(|row| column(row, 0, "what is known of ledgers that were passed over")).transpose()
}

/// The last ledger that was run here, or after which the state was fetched, or that was passed over; 0 for none.
pub(super) fn executed(db: &Connection) -> Result<Seq, Trouble> {
    let executed: Option<i64> = db.query_row(EXECUTED, [], |row| row.get(0))?;
    Ok(executed.map_or(Ok(0), seq_of)?.max(join(db)?.map_or(0, |join| join.base)))
}

/// The agreed result that was taken over for the last one of this node, where there is one.
pub(super) fn adopted(db: &Connection) -> Result<Option<ExecResult>, Trouble> {
    let mut query = db.prepare_cached("SELECT value FROM meta WHERE key = 'adopted'")?;
    let mut rows = query.query([])?;
    rows.next()?.map(|row| column(row, 0, "the adopted result")).transpose()
}

/// The agreed result of a ledger up to which the state was fetched.
pub(super) fn synced_result(db: &Connection, last: Seq) -> Result<Option<ExecResult>, Trouble> {
    let mut query = db.prepare_cached("SELECT result FROM synced WHERE last = ?1")?;
    let mut rows = query.query([row_seq(last).unwrap_or(-1)])?;
    rows.next()?.map(|row| column(row, 0, "the result of a fetched state")).transpose()
}

/// This node's result of a ledger.
pub(super) fn own_result(db: &Connection, seq: Seq) -> Result<Option<ExecResult>, Trouble> {
    let mut query = db.prepare_cached("SELECT bytes FROM result WHERE seq = ?1")?;
    let mut rows = query.query([row_seq(seq).unwrap_or(-1)])?;
    let result: Option<Signed<ExecResult>> = rows.next()?.map(|row| column(row, 0, "a result")).transpose()?;
    Ok(result.map(|result| result.body))
}

/// Keys of inputs of the chain that this one goes on from.
pub(super) fn ancestor_keys(db: &Connection) -> Result<BTreeSet<InputKey>, Trouble> {
    let mut query = db.prepare("SELECT keys FROM ancestor_key ORDER BY n")?;
    let mut rows = query.query([])?;
    let mut keys = BTreeSet::new();
    while let Some(row) = rows.next()? {
        keys.extend(column::<Vec<InputKey>>(row, 0, "the input keys of the chain before")?);
    }
    Ok(keys)
}

/// What the operator of this node votes for.
pub(super) fn unl_vote(db: &Connection) -> Result<Option<UnlChange>, Trouble> {
    let mut query = db.prepare_cached("SELECT value FROM meta WHERE key = 'unl_vote'")?;
    let mut rows = query.query([])?;
    rows.next()?.map(|row| column(row, 0, "the vote for a change of the UNL")).transpose()
}

/// The changes of the UNL by ledger, ascending, in ledgers from 1 to `last`. They are never deleted.
pub(super) fn unl_changes(db: &Connection, last: Seq) -> Result<Vec<(Seq, UnlChange)>, Trouble> {
    let last = row_seq(last).unwrap_or(i64::MAX);
    let mut query = db.prepare_cached("SELECT seq, change FROM unl_change WHERE seq <= ?1 ORDER BY seq")?;
    let mut rows = query.query([last])?;
    let mut changes = Vec::new();
    while let Some(row) = rows.next()? {
        changes.push((seq_of(row.get(0)?)?, column(row, 1, "a change of the UNL")?));
    }
    Ok(changes)
}

pub(super) fn body(db: &Connection, seq: Seq) -> Result<Option<Body>, Trouble> {
    let Some(row) = row_seq(seq) else { return Ok(None) };
    let mut query = db.prepare_cached("SELECT inputs, users_add, users_del FROM body WHERE seq = ?1")?;
    let mut rows = query.query([row])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let what = format!("the body of ledger {seq}");
    Ok(Some(Body {
        inputs: column(row, 0, &what)?,
        users_add: column(row, 1, &what)?,
        users_del: column(row, 2, &what)?,
    }))
}

pub(super) fn closed(db: &Connection, seq: Seq) -> Result<Option<ClosedLedger>, Trouble> {
    let Some(row) = row_seq(seq) else { return Ok(None) };
    let mut query = db.prepare_cached("SELECT header, qc FROM ledger WHERE seq = ?1")?;
    let mut rows = query.query([row])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let header: Header = column(row, 0, "a header")?;
    let qc = column(row, 1, "a certificate")?;
    let Some(Body { inputs, users_add, users_del }) = body(db, seq)? else { return Ok(None) };
    let unl_change = {
        let mut query = db.prepare_cached("SELECT change FROM unl_change WHERE seq = ?1")?;
        let mut rows = query.query([header.seq as i64])?;
        rows.next()?.map(|row| column(row, 0, "a change of the UNL")).transpose()?
    };
    Ok(Some(ClosedLedger { candidate: Candidate { header, inputs, users_add, users_del, unl_change }, qc }))
}

pub(super) fn input(db: &Connection, id: &Hash) -> Result<Option<Input>, Trouble> {
    let mut query = db.prepare_cached("SELECT bytes FROM input WHERE id = ?1")?;
    let mut rows = query.query([id.0])?;
    rows.next()?.map(|row| column(row, 0, "an input")).transpose()
}

fn outputs(db: &Connection, seq: Seq) -> Result<Option<Outputs>, Trouble> {
    let Some(row) = row_seq(seq) else { return Ok(None) };
    let stored: Option<i64> = {
        let mut query = db.prepare_cached("SELECT outputs FROM run WHERE seq = ?1")?;
        query.query_row([row], |row| row.get(0)).optional()?
    };
    let Some(stored) = stored else { return Ok(None) };
    let mut query = db.prepare_cached("SELECT user, bytes FROM output WHERE seq = ?1 ORDER BY user")?;
    let outputs: Outputs =
        query.query_map([row], |row| Ok((UserKey(row.get(0)?), row.get(1)?)))?.collect::<Result<_, _>>()?;
    if outputs.len() as i64 != stored {
        return Trouble::damaged(format!("ledger {seq} has {} outputs instead of {stored}", outputs.len()));
    }
    Ok(Some(outputs))
}

fn past_outputs(
    db: &Connection,
    known: &Known,
    user: &UserKey,
    since: Seq,
    tip_agreed: Option<Seq>,
) -> Result<PastOutputs, Trouble> {
    let by_headers = known.tip.saturating_sub(1);
    let agreed = known.executed.min(tip_agreed.filter(|seq| *seq == known.tip).unwrap_or(by_headers));
    let oldest: Option<i64> = db.prepare_cached("SELECT min(seq) FROM run")?.query_row([], |row| row.get(0))?;
    let kept_from = oldest.map_or(Ok(known.executed + 1), seq_of)?.max(known.base() + 1);
    let (missing, failed) = (Vec::new(), Vec::new());
    let mut past = PastOutputs { outputs: Vec::new(), missing, failed, to: agreed, more: false, kept_from };
    let Some(first) = row_seq(since).filter(|_| since < agreed) else {
        past.to = agreed.max(since);
        return Ok(past);
    };
    let agreed = failures(db, user, since.max(kept_from.saturating_sub(1)), agreed, &mut past)?;
    let mut query = db.prepare_cached(
        "SELECT seq, bytes FROM output WHERE user = ?1 AND seq > ?2 AND seq <= ?3 ORDER BY seq LIMIT ?4",
    )?;
    let mut rows = query.query(params![user.0, first, agreed as i64, PAGE_OUTPUTS_MAX as i64 + 1])?;
    let (mut bytes, mut leaves) = (0, 0);
    while let Some(row) = rows.next()? {
        let seq = seq_of(row.get(0)?)?;
        let output: Vec<u8> = row.get(1)?;
        let tree = output_leaves(db, seq)?;
        (bytes, leaves) = (bytes + output.len(), leaves + tree.len());
        let count = past.outputs.len();
        if count > 0 && (count == PAGE_OUTPUTS_MAX || bytes > PAGE_BYTES_MAX || leaves > PAGE_LEAVES_MAX) {
            past.more = true;
            past.to = past.outputs.last().map_or(since, |last| last.seq);
            break;
        }
        let index = tree.iter().position(|(other, _)| other == user).and_then(|index| u32::try_from(index).ok());
        let Some(index) = index else { return Trouble::damaged(format!("an output of ledger {seq} is nobody's")) };
        let leaves = tree.into_iter().map(|(_, leaf)| leaf).collect();
        past.outputs.push(PastOutput { seq, output, index, leaves, next: header_at(db, seq + 1)? });
    }
    past.failed.retain(|(seq, _)| *seq <= past.to);
    past.missing = missing_runs(db, since.max(kept_from.saturating_sub(1)), past.to)?;
    Ok(past)
}

/// Notes ledgers after `since` up to `to` with inputs of the user whose runs failed. Ends early past [`PAGE_FAILED_MAX`]
/// failed runs or [`PAGE_LOOKED_MAX`] inputs; returns the last ledger looked at.
fn failures(db: &Connection, user: &UserKey, since: Seq, to: Seq, past: &mut PastOutputs) -> Result<Seq, Trouble> {
    // The status of a ledger's run stands in the next header, at this place (docs/protocol.md): the index has the failed.
    let mut query = db.prepare_cached(
        "SELECT seq FROM ledger WHERE substr(header, 331, 1) <> x'00' AND seq > ?1 AND seq <= ?2 ORDER BY seq LIMIT ?3",
    )?;
    let bounds = params![since as i64 + 1, to as i64 + 1, PAGE_FAILED_MAX as i64 + 1];
    let after: Vec<i64> = query.query_map(bounds, |row| row.get(0))?.collect::<Result<_, _>>()?;
    let (mut looked, mut last) = (0, since);
    for (count, next) in after.into_iter().enumerate() {
        let failed = seq_of(next)?.saturating_sub(1);
        let inputs = body(db, failed)?.map_or_else(Vec::new, |body| body.inputs);
        looked += inputs.len();
        if count == PAGE_FAILED_MAX || (count > 0 && looked > PAGE_LOOKED_MAX) {
            (past.to, past.more) = (last, true);
            return Ok(last);
        }
        if users_of(db, &inputs)?.contains(user) {
            past.failed.extend(header_at(db, failed + 1)?.map(|next| (failed, next)));
        }
        last = failed;
    }
    Ok(to)
}

/// Whose these inputs are, as far as they are kept.
fn users_of(db: &Connection, inputs: &[Hash]) -> Result<BTreeSet<UserKey>, Trouble> {
    // An input begins with its user.
    let mut query = db.prepare_cached("SELECT substr(bytes, 1, 32) FROM input WHERE id = ?1")?;
    let users = inputs.iter().map(|id| query.query_row([id.0], |row| row.get(0)).optional());
    let users: Result<Vec<Option<[u8; 32]>>, _> = users.collect();
    Ok(users?.into_iter().flatten().map(UserKey).collect())
}

/// Leaves of a ledger's `outputs_root`, ascending by user.
fn output_leaves(db: &Connection, seq: Seq) -> Result<Vec<(UserKey, Hash)>, Trouble> {
    let mut query = db.prepare_cached("SELECT user, leaf FROM output WHERE seq = ?1 ORDER BY user")?;
    let leaves = query.query_map([seq as i64], |row| Ok((UserKey(row.get(0)?), Hash(row.get(1)?))))?;
    Ok(leaves.collect::<Result<_, _>>()?)
}

fn header_at(db: &Connection, seq: Seq) -> Result<Option<Closed>, Trouble> {
    let Some(row) = row_seq(seq) else { return Ok(None) };
    let mut query = db.prepare_cached("SELECT header, qc FROM ledger WHERE seq = ?1")?;
    let mut rows = query.query([row])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    Ok(Some(Closed { header: column(row, 0, "a header")?, qc: column(row, 1, "a certificate")? }))
}

/// What the header of a ledger records of the settlement bus.
fn settlement_at(db: &Connection, seq: Seq) -> Result<Option<Settlement>, Trouble> {
    Ok(header_at(db, seq)?.and_then(|closed| closed.header.settlement))
}

/// The last ledger that is settled; 0 for none.
fn settled(db: &Connection, tip: Seq) -> Result<Seq, Trouble> {
    Ok(settlement_at(db, tip)?.map_or(0, |settlement| settlement.seq))
}

/// See [`Store::settlements`].
fn settlements(db: &Connection, tip: Seq, seqs: &[Seq]) -> Result<Vec<PastSettlement>, Trouble> {
    let settled = settled(db, tip)?;
    let mut found: Vec<PastSettlement> = Vec::new();
    for seq in seqs.iter().copied().filter(|seq| (1..=settled).contains(seq)) {
        if found.last().is_some_and(|last| last.settlement.seq >= seq) {
            continue;
        }
        found.extend(settlement_of(db, tip, seq)?);
    }
    Ok(found)
}

/// What settled a ledger that is settled; `None` where the headers that say so are missing. What is recorded never goes back, so it
/// is found by halving.
fn settlement_of(db: &Connection, tip: Seq, seq: Seq) -> Result<Option<PastSettlement>, Trouble> {
    // No ledger records that it is settled itself.
    let (mut before, mut at) = (seq, tip);
    while at - before > 1 {
        let middle = before + (at - before) / 2;
        match settlement_at(db, middle)?.is_some_and(|settlement| settlement.seq >= seq) {
            true => at = middle,
            false => before = middle,
        }
    }
    let (Some(recorded), Some(last)) = (header_at(db, at)?, settlement_at(db, at - 1)?) else {
        // Without the header before it nobody knows where the range begins.
        return Ok(None);
    };
    let Some(settlement) = recorded.header.settlement.clone() else { return Ok(None) };
    Ok(Some(PastSettlement { first: last.seq + 1, recorded, settlement }))
}

/// At most `limit` settlements, ascending, and the last ledger that is settled. Each takes a few reads more than there are
/// digits in the tip.
pub(super) fn settlement_page(
    db: &Connection,
    tip: Seq,
    page: SettlementPage,
    limit: u64,
) -> Result<(Vec<PastSettlement>, Seq), Trouble> {
    let settled = settled(db, tip)?;
    let mut found: Vec<PastSettlement> = Vec::new();
    match page {
        SettlementPage::From(first) => {
            let mut seq = first.max(1);
            while seq <= settled && (found.len() as u64) < limit {
                let Some(settlement) = settlement_of(db, tip, seq)? else { break };
                seq = settlement.settlement.seq + 1;
                found.push(settlement);
            }
        }
        SettlementPage::Newest { before } => {
            let mut seq = before.map_or(settled, |before| before.saturating_sub(1).min(settled));
            while seq > 0 && (found.len() as u64) < limit {
                let Some(settlement) = settlement_of(db, tip, seq)? else { break };
                seq = settlement.first - 1;
                found.push(settlement);
            }
            found.reverse();
        }
    }
    Ok((found, settled))
}

/// The first ledgers after `since` up to `to` that had outputs by the next header, and were not run here.
fn missing_runs(db: &Connection, since: Seq, to: Seq) -> Result<Vec<Seq>, Trouble> {
    let (since, to) = (since as i64, to as i64);
    let mut count = db.prepare_cached("SELECT count(*) FROM run WHERE seq > ?1 AND seq <= ?2")?;
    if count.query_row(params![since, to], |row| row.get::<_, i64>(0))? >= to - since {
        return Ok(Vec::new());
    }
    let mut query = db.prepare_cached(
        "SELECT ledger.seq FROM ledger WHERE seq > ?1 AND seq <= ?2
         AND NOT EXISTS (SELECT 1 FROM run WHERE run.seq = ledger.seq) ORDER BY seq LIMIT ?3",
    )?;
    let rows = query.query_map(params![since, to, MISSING_MAX as i64], |row| row.get::<_, i64>(0))?;
    let mut missing = Vec::new();
    for seq in rows {
        let seq = seq_of(seq?)?;
        // Of the last one nothing is known yet.
        if header_at(db, seq + 1)?.is_some_and(|next| next.header.result.outputs_root != Hash::ZERO) {
            missing.push(seq);
        }
    }
    Ok(missing)
}
