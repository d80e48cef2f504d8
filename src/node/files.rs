//! How many files a node and its runs have open, and for how many users that is enough.

use crate::{
    config::{Config, USERS_MIN},
    consensus::INPUTS_BYTES_MAX,
    contract::{files_of_run, files_of_supervisor},
};

/// Files that a node opens beside those for its users and for HTTP: links, the database, the state, a batch on its way to a run.
const OTHERWISE: u64 = 768;

/// Users that must be able to connect for a node to be worth starting, if it serves any.
const CONNECTIONS_MIN: u64 = 16;

/// What a process may open, and what it needs where a ledger is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Files {
    /// Files that one process may have open here.
    pub allowed: u64,
    /// Files that it must be allowed: the node for its ends of all pipes, the contract for two a user.
    pub needed: u64,
    /// Connections of users for which there is room in the node then; as many as the configuration says at most.
    pub connections: usize,
    /// The largest `users_max` for which so many files are enough.
    pub users_max: usize,
}

impl Files {
    /// For this configuration, where one process may open `allowed` files.
    pub fn of(config: &Config, allowed: u64) -> Files {
        let users_max = config.user.users_max;
        let others = OTHERWISE + config.http.listen.map_or(0, |_| config.http.connections_max as u64);
        let least = if config.pubport.is_some() { CONNECTIONS_MIN } else { 0 };
        let node = |users: usize| others + files_of_supervisor(users, INPUTS_BYTES_MAX);
        let needed = |users: usize| (node(users) + least).max(files_of_run(config.contract.files, users));
        let room = allowed.saturating_sub(node(users_max));
        let (mut enough, mut too_many) = (0, usize::try_from(allowed).unwrap_or(usize::MAX).saturating_add(1));
        while too_many - enough > 1 {
            let middle = enough + (too_many - enough) / 2;
            if needed(middle) <= allowed { enough = middle } else { too_many = middle }
        }
        let connections = usize::try_from(room).unwrap_or(usize::MAX).min(config.user.connections_max);
        Files { allowed, needed: needed(users_max), connections, users_max: enough }
    }

    /// Whether they are enough for a run with as many users as a ledger may have.
    pub fn are_enough(&self) -> bool {
        self.needed <= self.allowed
    }

    /// What to do where they are not.
    pub fn advice(&self) -> String {
        let Files { needed, users_max, .. } = *self;
        let allow = format!("allow it more (`ulimit -Hn {needed}`, or LimitNOFILE={needed} in its service)");
        match users_max as u64 >= USERS_MIN {
            true => format!("{allow}; or, for a chain that has not begun, set it to {users_max} at most, on all nodes"),
            false => allow,
        }
    }

    /// What there is and what is needed, in a line.
    pub fn text(&self, users_max: usize) -> String {
        let Files { allowed, needed, .. } = self;
        format!("a run of {users_max} users needs {needed} open files, a process may have {allowed} here")
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::EXAMPLE;

    fn config(users_max: usize) -> Config {
        let text = EXAMPLE.replace("\nusers_max = 4096\n", &format!("\nusers_max = {users_max}\n"));
        Config::parse(&text, Path::new("n/cfg/hp.cfg"), Path::new("n"), &|_| unreachable!()).unwrap()
    }

    #[test]
    fn what_a_run_needs_follows_from_the_users_and_the_users_from_what_is_allowed() {
        for allowed in [4_096, 10_240, 20_000, 524_288, 1_048_576] {
            let most = Files::of(&config(4_096), allowed).users_max;
            let at = |users_max| Files::of(&config(users_max), allowed);
            let most_here = most.min(29_999);
            assert!(at(most_here).are_enough(), "{allowed}: {:?}", at(most_here));
            assert!(most_here < most || !at(most + 1).are_enough(), "{allowed}: {:?}", at(most + 1));
            let Files { connections, needed, .. } = at(most_here);
            assert!((16..=16_384).contains(&connections), "{allowed}: {connections}");
            assert!(needed >= 2 * most_here as u64 + 1_024, "two a user in the contract");
        }
    }

    #[test]
    fn the_default_suits_the_usual_limits_and_not_the_smallest_one() {
        let enough = |allowed| Files::of(&config(4_096), allowed).are_enough();
        assert_eq!([4_096, 9_247, 9_248, 20_000, 524_288].map(enough), [false, false, true, true, true]);
        assert_eq!(Files::of(&config(4_096), 4_096).users_max, 1_520);
    }
}
