//! Links to the other nodes of the UNL, over libp2p.
