//! How many connections one address and all of them together may have. Pure.

use std::{collections::BTreeMap, net::IpAddr};

/// Which limit a new connection ran into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// `connections_max`.
    #[error("all {0} connections of this node are taken")]
    Node(usize),
    /// `per_address_max`.
    #[error("all {0} connections for one address are taken")]
    Address(usize),
}

/// Connections in all and by address. An IPv6 address counts as its /64, which one holder usually has whole.
#[derive(Debug)]
pub struct Connections {
    max: usize,
    per_address_max: usize,
    total: usize,
    by_address: BTreeMap<IpAddr, usize>,
}

impl Connections {
    /// None yet.
    pub fn new(max: usize, per_address_max: usize) -> Connections {
        Connections { max, per_address_max, total: 0, by_address: BTreeMap::new() }
    }

    /// Counts one more connection from `address`, or says which limit forbids it.
    pub fn open(&mut self, address: IpAddr) -> Result<(), Full> {
        if self.total >= self.max {
            return Err(Full::Node(self.max));
        }
        let address = holder(address);
        if self.by_address.get(&address).is_some_and(|count| *count >= self.per_address_max)
            || self.per_address_max == 0
        {
            return Err(Full::Address(self.per_address_max));
        }
        *self.by_address.entry(address).or_default() += 1;
        self.total += 1;
        Ok(())
    }

    /// Uncounts a connection that `open` counted.
    pub fn close(&mut self, address: IpAddr) {
        let address = holder(address);
        let count = self.by_address.get_mut(&address).expect("only an open connection closes");
        *count -= 1;
        if *count == 0 {
            self.by_address.remove(&address);
        }
        self.total -= 1;
    }

    /// Connections now.
    pub fn total(&self) -> usize {
        self.total
    }
}

/// Whom an address counts for: itself, or its /64.
pub fn holder(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) >> 64 << 64).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_limited_in_all_and_by_address() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut connections = Connections::new(4, 2);
        connections.open(address("10.0.0.1")).unwrap();
        connections.open(address("::ffff:10.0.0.1")).unwrap();
        assert_eq!(connections.open(address("10.0.0.1")), Err(Full::Address(2)));
        connections.open(address("2001:db8::1")).unwrap();
        connections.open(address("2001:db8::ffff:0:0:2")).unwrap();
        assert_eq!(connections.open(address("10.0.0.2")), Err(Full::Node(4)));
        connections.close(address("2001:db8::1"));
        assert_eq!(connections.open(address("10.0.0.1")), Err(Full::Address(2)));
        connections.open(address("2001:db8::3")).unwrap();
        connections.close(address("10.0.0.1"));
        connections.open(address("10.0.0.1")).unwrap();
        assert_eq!((connections.total(), connections.by_address.len()), (4, 2));
    }
}
