//! Every state that the vote rule can lead to, for three honest members and every liar that they tolerate: no two
//! values are ever certified, and what the proof rests on holds in each step.
//!
//! The predicates are those of [`super::rules`], which the core asks before each signature; quorums are those of
//! [`Quorum`]. What is left out is left to an adversary, who may then do more than a network ever could:
//!
//! - Messages are facts. What was signed once may reach anybody at any time, or never; so a state is what the honest
//!   members have signed, and nothing else.
//! - The liars have signed everything that can be signed: they add what lacks to any quorum, for both values, and an
//!   ADVANCE with whatever POLC exists.
//! - Every attempt has any number of coordinators, who know everything; attempts are given up at any time.
//! - Any member may be restarted before each of its steps, and finds what its journal has: all that it signed. Of the
//!   rest, its attempt alone has a say in the rule, and [`rules::attempt_after_restart`] makes it as low as it can be;
//!   a member in a later attempt may do less, not more. [`Model::Explicit`] does not rely on that: there the attempt
//!   is part of the state, entering one and losing it again are steps, and both must lead to the same facts.
//!
//! How many members there are does not matter: with n members, a quorum of q and the 2q-n-1 liars it tolerates, there
//! are 2(n-q)+1 honest ones, and n-q+1 of them are in each quorum. So one exploration is of every UNL that goes on when
//! one member is down: 3 of 4, 4 of 5, 5 of 6, 6 of 7 and so on.
//!
//! Members are alike, and so are the two values: of states that differ in names alone one is looked at.

use std::rc::Rc;

use super::{mutation::mutated, rules, votes::Quorum};
use crate::types::{Attempt, Hash};

/// Honest members.
const HONEST: usize = 3;
/// The last attempt that fits into a [`Word`].
const ATTEMPT_MAX: Attempt = 2;

/// What one honest member has signed. A pair of bits is 00 for nothing, 01 and 10 for the two values (11: by mistake,
/// both).
/// From bit 0: PREVOTE at attempts 0 to 2, PRECOMMIT at attempts 0 to 2, ADVANCE to 1 and to 2. Of the POLC that an
/// ADVANCE to 2 reports there are two pairs, as it may be of attempt 0 or 1; 11 in the first is "none".
/// From bit 18: the attempt it is in, in the explicit model alone.
type Word = u32;

const PREVOTE: u32 = 0;
const PRECOMMIT: u32 = 6;
const ADVANCE: u32 = 12;
const CURRENT: u32 = 18;
const FACTS: Word = (1 << CURRENT) - 1;
const WORD_BITS: u32 = 20;

/// A value: pair 01 or 10.
type Value = u32;
const VALUES: [Value; 2] = [1, 2];
const NO_POLC: u32 = 3;

/// What is explored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Model {
    /// States are facts; any member may have been restarted before each step.
    Facts,
    /// The attempt a member is in is part of the state.
    Explicit,
}

/// What an exploration came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explored {
    /// States that differ in more than names.
    pub states: usize,
    /// Different facts among them.
    pub facts: usize,
    /// Steps looked at.
    pub steps: u64,
    /// The first thing that went wrong, with the states that led to it.
    pub violation: Option<String>,
}

// These few lines run ten million times in a test that is not optimised: they are as plain as they look.

/// The members' words in order, as one number.
fn pack([mut a, mut b, mut c]: [Word; HONEST]) -> u64 {
    if a > b {
        (a, b) = (b, a);
    }
    if b > c {
        (b, c) = (c, b);
    }
    if a > b {
        (a, b) = (b, a);
    }
    a as u64 | (b as u64) << WORD_BITS | (c as u64) << (2 * WORD_BITS)
}

fn unpack(state: u64) -> [Word; HONEST] {
    let mask = (1 << WORD_BITS) - 1;
    [state as Word & mask, (state >> WORD_BITS) as Word & mask, (state >> (2 * WORD_BITS)) as Word & mask]
}

/// The one state that stands for all that differ from it in the names of members and values.
fn canonical([a, b, c]: [Word; HONEST]) -> u64 {
    let one = pack([a, b, c]);
    let other = pack([swapped(a), swapped(b), swapped(c)]);
    if one < other { one } else { other }
}

/// The same with the two values swapped.
fn swapped(word: Word) -> Word {
    word & !FACTS | (word & 0x15555) << 1 | word >> 1 & 0x15555
}

fn pair(word: Word, at: u32) -> u32 {
    word >> at & 3
}

fn prevote(word: Word, attempt: Attempt) -> Option<Value> {
    Some(pair(word, PREVOTE + 2 * attempt)).filter(|value| *value != 0)
}

fn precommit(word: Word, attempt: Attempt) -> Option<Value> {
    Some(pair(word, PRECOMMIT + 2 * attempt)).filter(|value| *value != 0)
}

/// The POLC that a member's ADVANCE to an attempt reports; `None` when it sent none.
fn advance(word: Word, attempt: Attempt) -> Option<Option<(Attempt, Value)>> {
    let of_first = ADVANCE + 2 * (attempt - 1);
    let high = [pair(word, of_first), if attempt == 2 { pair(word, of_first + 2) } else { 0 }];
    match high {
        [0, 0] => None,
        [NO_POLC, _] => Some(None),
        [value, 0] => Some(Some((0, value))),
        [_, value] => Some(Some((1, value))),
    }
}

fn with_advance(word: Word, attempt: Attempt, high: Option<(Attempt, Value)>) -> Word {
    let of_first = ADVANCE + 2 * (attempt - 1);
    match high {
        None => word | NO_POLC << of_first,
        Some((polc, value)) => word | value << (of_first + 2 * polc),
    }
}

/// The POLCs there are of attempts before this one.
fn polcs_below(attempt: Attempt, polcs: Word) -> impl Iterator<Item = (Attempt, Value)> {
    let all = (0..attempt).flat_map(|polc| VALUES.map(|value| (polc, value)));
    all.filter(move |(attempt, value)| pair(polcs, PREVOTE + 2 * attempt) & value != 0)
}

/// What a member knows that it has signed.
fn signed(word: Word) -> rules::Signed {
    let last = |signed: fn(Word, Attempt) -> bool| (0..=ATTEMPT_MAX).rev().find(|attempt| signed(word, *attempt));
    rules::Signed {
        prevote: last(|word, attempt| prevote(word, attempt).is_some()),
        precommit: last(|word, attempt| precommit(word, attempt).is_some()),
        advance: last(|word, attempt| attempt > 0 && advance(word, attempt).is_some()),
    }
}

/// A member as its journal has it.
struct Member {
    signed: rules::Signed,
    /// The attempt it is in.
    current: Attempt,
    /// It holds a POLC at least as high.
    polc: Option<Attempt>,
}

impl Member {
    fn of(word: Word, model: Model) -> Member {
        let signed = signed(word);
        let reported = signed.advance.and_then(|attempt| advance(word, attempt).flatten()).map(|(polc, _)| polc);
        let polc = signed.precommit.max(reported);
        let current = match model {
            Model::Facts => rules::attempt_after_restart(&signed, None),
            Model::Explicit => word >> CURRENT,
        };
        Member { signed, current, polc }
    }

    /// The same behind a restart that makes the mistake under way.
    fn restarted(mut self) -> Member {
        if mutated!(ForgetPrevote) {
            self.signed.prevote = None;
        }
        if mutated!(ForgetAdvance) {
            self.signed.advance = None;
        }
        if mutated!(ForgetPolc) {
            self.polc = None;
        }
        self.current = rules::attempt_after_restart(&self.signed, None);
        self
    }
}

/// Values stand for themselves in order, as hashes do.
fn hash_of(value: Value) -> Hash {
    Hash([value as u8; 32])
}

/// Explores everything up to an attempt.
pub struct Explorer {
    model: Model,
    last: Attempt,
    /// Honest votes that liars can make a quorum of.
    needed: usize,
    /// Whether what the proof rests on is checked in each step, or what comes of it alone.
    invariants: bool,
    /// States in the order in which they were found, each with the one before it.
    found: Vec<(u64, u32)>,
    seen: Table,
    steps: u64,
    /// What a Tc with these reports allows, once it was asked for.
    allowed: Vec<Option<u32>>,
    /// The votes of a member by all that they depend on, once they were asked for: its word, the POLCs there are, what
    /// the Tcs allow, and whether it comes from a forgetful restart.
    votes: Table,
    lists: Vec<Rc<[Word]>>,
}

impl Explorer {
    /// Up to the attempt `last`; with `invariants`, what the proof rests on is checked in each step too.
    pub fn new(model: Model, last: Attempt, invariants: bool) -> Explorer {
        assert!(last <= ATTEMPT_MAX, "there is no room for more");
        let quorum = Quorum::new(4, 75);
        assert_eq!((quorum.n - quorum.safe(), quorum.safe()), (HONEST, 1));
        let needed = quorum.q - quorum.safe() - usize::from(mutated!(OneVoteLess));
        Explorer {
            model,
            last,
            needed,
            invariants,
            found: Vec::new(),
            seen: Table::new(),
            steps: 0,
            allowed: vec![None; 1 << 17],
            votes: Table::new(),
            lists: Vec::new(),
        }
    }

    /// Until everything was seen, or something went wrong.
    pub fn run(mut self) -> Explored {
        self.add([0; HONEST], 0);
        let mut at = 0;
        let mut violation = None;
        while let Some(&(state, _)) = self.found.get(at) {
            if let Err(what) = self.step_from(unpack(state), at as u32) {
                violation = Some(self.report(at, &what));
                break;
            }
            at += 1;
        }
        Explored { states: self.found.len(), facts: self.facts(), steps: self.steps, violation }
    }

    /// How many different sets of facts there are among the states.
    fn facts(&self) -> usize {
        if self.model == Model::Facts {
            return self.found.len();
        }
        let mut facts = Table::new();
        self.found
            .iter()
            .filter(|(state, _)| facts.insert(canonical(unpack(*state).map(|word| word & FACTS)), 0).1)
            .count()
    }

    fn add(&mut self, words: [Word; HONEST], before: u32) {
        self.steps += 1;
        let state = canonical(words);
        if self.seen.insert(state, 0).1 {
            self.found.push((state, before));
        }
    }

    /// Every step of every member from here.
    fn step_from(&mut self, words: [Word; HONEST], at: u32) -> Result<(), String> {
        let quorums = self.quorums(words);
        let certified = (0..=self.last).fold(0, |all, attempt| all | pair(quorums, PRECOMMIT + 2 * attempt));
        if certified == VALUES[0] | VALUES[1] {
            return Err("two values are certified".into());
        }
        let polcs = quorums & ((1 << PRECOMMIT) - 1);
        let mut allowed = [0; 3];
        for attempt in 1..=self.last {
            allowed[attempt as usize] = self.allowed_by_tc(&words, attempt, polcs)?;
        }
        for who in 0..HONEST {
            // Members that are alike have the same steps.
            if words[..who].contains(&words[who]) {
                continue;
            }
            let here = Member::of(words[who], self.model);
            let restarted = Member::of(words[who], self.model).restarted();
            if self.model == Model::Explicit {
                self.move_between_attempts(words, who, &here, &restarted, at);
            }
            let forgetful = restarted.signed != here.signed || restarted.polc != here.polc;
            for (member, forgetful) in [(here, false), (restarted, true)].iter().take(1 + usize::from(forgetful)) {
                let reach = u64::from(polcs | allowed[1] << PRECOMMIT | allowed[2] << (PRECOMMIT + 2));
                let key = (reach << 1 | u64::from(*forgetful)) << WORD_BITS | u64::from(words[who]);
                let (list, new) = self.votes.insert(key, self.lists.len() as u32);
                if new {
                    self.lists.push(self.votes_of(words[who], member, polcs, allowed)?.into());
                }
                let next = self.lists[list as usize].clone();
                for word in next.iter() {
                    self.add_step(words, who, *word, at);
                }
            }
        }
        Ok(())
    }

    /// By kind and attempt, the values that a quorum with every liar in it has signed.
    fn quorums(&self, [a, b, c]: [Word; HONEST]) -> Word {
        match self.needed {
            0 => FACTS,
            1 => a | b | c,
            2 => a & b | a & c | b & c,
            _ => a & b & c,
        }
    }

    fn add_step(&mut self, mut words: [Word; HONEST], who: usize, next: Word, at: u32) {
        words[who] = next;
        self.add(words, at);
    }

    /// In the explicit model: a Tc leads on, a restart leads back.
    fn move_between_attempts(&mut self, words: [Word; HONEST], who: usize, here: &Member, restarted: &Member, at: u32) {
        let facts = words[who] & FACTS;
        for attempt in here.current + 1..=self.last {
            if words.iter().filter(|word| advance(**word, attempt).is_some()).count() >= self.needed {
                self.add_step(words, who, facts | attempt << CURRENT, at);
            }
        }
        if restarted.current < here.current {
            // Its Tc may have been journaled or not.
            self.add_step(words, who, facts | restarted.current << CURRENT, at);
        }
    }

    /// What one member may sign, as the words it has then.
    fn votes_of(&self, word: Word, member: &Member, polcs: Word, allowed: [u32; 3]) -> Result<Vec<Word>, String> {
        let mut next = Vec::new();
        let Member { signed, current, polc } = member;
        let model = self.model;
        let entered = |word: Word, attempt: Attempt| match model {
            Model::Facts => word,
            Model::Explicit => word & FACTS | attempt.max(*current) << CURRENT,
        };
        if *current == 0 && rules::may_prevote_first(signed) {
            for value in VALUES {
                next.push(entered(self.with_vote("PREVOTE", word, PREVOTE, value)?, 0));
            }
        }
        for attempt in *current..=self.last {
            if attempt == 0 || !rules::may_prevote(signed, attempt) {
                continue;
            }
            for value in VALUES.into_iter().filter(|value| allowed[attempt as usize] & value != 0) {
                next.push(entered(self.with_vote("PREVOTE", word, PREVOTE + 2 * attempt, value)?, attempt));
            }
        }
        for attempt in 0..=self.last {
            if !rules::may_precommit(signed, *current, attempt) {
                continue;
            }
            for value in
                VALUES.into_iter().filter(|value| prevote(polcs, attempt).is_some_and(|polc| polc & value != 0))
            {
                let later = (attempt + 1..=self.last).any(|later| advance(word, later).is_some());
                if self.invariants && later {
                    return Err(format!("I2: a PRECOMMIT at attempt {attempt} behind an ADVANCE beyond it"));
                }
                next.push(entered(self.with_vote("PRECOMMIT", word, PRECOMMIT + 2 * attempt, value)?, attempt));
            }
        }
        for attempt in 1..=self.last {
            // The best POLC held is any that exists and is not below what it has journaled.
            let none = polc.is_none().then_some(None);
            let held = polcs_below(attempt, polcs).filter(|(attempt, _)| Some(*attempt) >= *polc).map(Some);
            for best in none.into_iter().chain(held) {
                if !rules::may_advance(signed, *current, best.map(|(polc, _)| polc), attempt) {
                    continue;
                }
                let high = rules::reported_high(best.map(|(polc, value)| (polc, hash_of(value))));
                let high = high.map(|(polc, hash)| (polc, Value::from(hash.0[0])));
                let precommitted = (0..=self.last).rev().find(|attempt| precommit(word, *attempt).is_some());
                if self.invariants && high.map(|(polc, _)| polc) < precommitted {
                    return Err(format!(
                        "I3: an ADVANCE to {attempt} reports {high:?} behind PRECOMMIT {precommitted:?}"
                    ));
                }
                match advance(word, attempt) {
                    None => next.push(with_advance(word, attempt, high)),
                    Some(before) if before == high => {}
                    Some(_) if !self.invariants => {}
                    Some(before) => return Err(format!("I1: ADVANCE to {attempt} with {before:?} and {high:?}")),
                }
            }
        }
        Ok(next)
    }

    fn with_vote(&self, kind: &str, word: Word, at: u32, value: Value) -> Result<Word, String> {
        match pair(word, at) {
            before if before & !value == 0 => Ok(word | value << at),
            _ if !self.invariants => Ok(word | value << at),
            _ => Err(format!("I1: two {kind}s of one attempt")),
        }
    }

    /// The values that some Tc for an attempt allows by the rule that coordinators and voters share.
    fn allowed_by_tc(&mut self, words: &[Word; HONEST], attempt: Attempt, polcs: Word) -> Result<u32, String> {
        // All that the answer depends on, in 17 bits.
        let reports = words.iter().fold(0, |key, word| {
            let of_first = ADVANCE + 2 * (attempt - 1);
            let report = if attempt == 1 { pair(*word, of_first) } else { *word >> of_first & 15 };
            key << 4 | report
        });
        let key = (reports << 4 | polcs & 15) << 1 | (attempt - 1);
        if let Some(known) = self.allowed[key as usize] {
            return Ok(known);
        }
        let known = self.over_tcs(words, attempt, polcs, |highs| {
            let highs = highs.iter().map(|high| high.map(|(attempt, value)| (attempt, hash_of(value))));
            rules::propose_value(highs).map(|(_, hash)| Value::from(hash.0[0]))
        });
        if self.invariants && known & !self.bound_by_tc(words, attempt, polcs) != 0 {
            return Err(format!("I4: a PREVOTE at attempt {attempt} that no Tc allows"));
        }
        self.allowed[key as usize] = Some(known);
        Ok(known)
    }

    /// The same, by the words of the proof: the value of the POLC of the highest attempt.
    fn bound_by_tc(&self, words: &[Word; HONEST], attempt: Attempt, polcs: Word) -> u32 {
        self.over_tcs(words, attempt, polcs, |highs| {
            let mut bound = None;
            for high in highs.iter().flatten() {
                if bound.is_none_or(|before: (Attempt, Value)| *high > before) {
                    bound = Some(*high);
                }
            }
            bound.map(|(_, value)| value)
        })
    }

    /// All values that `choose` (`None`: both) allows by any Tc for an attempt: of any honest members that are enough,
    /// and liars that report any POLC there is, or none.
    fn over_tcs(
        &self,
        words: &[Word; HONEST],
        attempt: Attempt,
        polcs: Word,
        choose: impl Fn(&[Option<(Attempt, Value)>]) -> Option<Value>,
    ) -> u32 {
        let reports: Vec<Option<(Attempt, Value)>> = words.iter().filter_map(|word| advance(*word, attempt)).collect();
        let lies: Vec<Option<(Attempt, Value)>> =
            std::iter::once(None).chain(polcs_below(attempt, polcs).map(Some)).collect();
        let mut allowed = 0;
        for members in 0_u32..1 << reports.len() {
            if (members.count_ones() as usize) < self.needed {
                continue;
            }
            let chosen = reports.iter().enumerate().filter(|(at, _)| members >> at & 1 == 1).map(|(_, high)| *high);
            let chosen: Vec<Option<(Attempt, Value)>> = chosen.collect();
            for lie in &lies {
                let highs: Vec<Option<(Attempt, Value)>> = chosen.iter().copied().chain([*lie]).collect();
                allowed |= choose(&highs).unwrap_or(3);
            }
        }
        allowed
    }

    /// What went wrong, and the way there. Members change places on it: states are told apart by more than names.
    fn report(&self, at: usize, what: &str) -> String {
        let mut way = vec![at];
        while let Some(&last) = way.last().filter(|at| **at != 0) {
            way.push(self.found[last].1 as usize);
        }
        let lines = way.iter().rev().map(|at| unpack(self.found[*at].0).map(describe).join(" | "));
        format!("{what}\n{}", lines.collect::<Vec<String>>().join("\n"))
    }
}

fn describe(word: Word) -> String {
    let name = |value: Value| ["", "A", "B", "A and B"][value as usize];
    let mut text = String::new();
    for attempt in 0..=ATTEMPT_MAX {
        if let Some(value) = prevote(word, attempt) {
            text += &format!("PREVOTE {attempt} {} ", name(value));
        }
        if let Some(value) = precommit(word, attempt) {
            text += &format!("PRECOMMIT {attempt} {} ", name(value));
        }
        if attempt > 0
            && let Some(high) = advance(word, attempt)
        {
            let high = high.map_or("none".into(), |(polc, value)| format!("{polc} {}", name(value)));
            text += &format!("ADVANCE {attempt} ({high}) ");
        }
    }
    text
}

/// Numbers by keys: open addressing, and a multiplication for a hash.
struct Table {
    /// One more than the key; 0 where there is none.
    keys: Vec<u64>,
    numbers: Vec<u32>,
    len: usize,
}

impl Table {
    fn new() -> Table {
        Table { keys: vec![0; 1 << 12], numbers: vec![0; 1 << 12], len: 0 }
    }

    /// The number of a key, and whether it is new: then it is this one.
    fn insert(&mut self, key: u64, number: u32) -> (u32, bool) {
        if 4 * self.len >= 3 * self.keys.len() {
            self.grow();
        }
        let at = self.place(key + 1);
        let new = self.keys[at] == 0;
        if new {
            self.keys[at] = key + 1;
            self.numbers[at] = number;
            self.len += 1;
        }
        (self.numbers[at], new)
    }

    fn grow(&mut self) {
        let len = 2 * self.keys.len();
        let keys = std::mem::replace(&mut self.keys, vec![0; len]);
        let numbers = std::mem::replace(&mut self.numbers, vec![0; len]);
        for (key, number) in keys.into_iter().zip(numbers).filter(|(key, _)| *key != 0) {
            let at = self.place(key);
            self.keys[at] = key;
            self.numbers[at] = number;
        }
    }

    fn place(&self, slot: u64) -> usize {
        let mask = self.keys.len() - 1;
        let mut at = (slot.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) as usize & mask;
        while self.keys[at] != 0 && self.keys[at] != slot {
            at = (at + 1) & mask;
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_values_are_ever_certified_and_each_step_keeps_what_the_proof_rests_on() {
        let explored = Explorer::new(Model::Facts, ATTEMPT_MAX, true).run();
        assert_eq!(explored.violation, None);
        // Fewer would mean that a step is not taken any more.
        assert_eq!((explored.states, explored.facts), (3_319_073, 3_319_073));
    }

    /// Up to attempt 1; up to 2, which takes a minute, where `HP_RULES_FULL` is set.
    #[test]
    fn the_attempt_a_member_is_in_and_what_a_restart_makes_of_it_lead_to_no_other_facts() {
        let last = if std::env::var_os("HP_RULES_FULL").is_some() { ATTEMPT_MAX } else { 1 };
        let facts = Explorer::new(Model::Facts, last, true).run();
        let explicit = Explorer::new(Model::Explicit, last, true).run();
        println!("up to attempt {last}: {facts:?}, {explicit:?}");
        assert_eq!((facts.violation, explicit.violation), (None, None));
        assert!(explicit.states > facts.states, "attempts are told apart");
        assert_eq!(explicit.facts, facts.facts);
    }

    #[test]
    fn states_that_differ_in_names_are_one_and_others_are_not() {
        let a = 1 << PREVOTE;
        let b = 2 << PREVOTE;
        assert_eq!(canonical([a, 0, b]), canonical([b, a, 0]));
        assert_eq!(canonical([a, a, 0]), canonical([0, b, b]));
        assert_ne!(canonical([a, a, 0]), canonical([a, b, 0]));
        let free = with_advance(0, 2, None) | 1 << CURRENT;
        let bound = with_advance(0, 2, Some((1, 1)));
        assert_eq!(canonical([free, bound, 0]), canonical([0, with_advance(0, 2, Some((1, 2))), free]));
        assert_eq!(unpack(canonical([free, 0, 0]))[2], free);
    }

    #[test]
    fn a_report_is_read_as_it_was_written() {
        for attempt in 1..=ATTEMPT_MAX {
            assert_eq!(advance(0, attempt), None);
            let highs = (0..attempt).flat_map(|polc| VALUES.map(|value| Some((polc, value))));
            for high in std::iter::once(None).chain(highs) {
                assert_eq!(advance(with_advance(0, attempt, high), attempt), Some(high));
            }
        }
    }
}
