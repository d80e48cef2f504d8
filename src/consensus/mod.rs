//! The core: the state machine of the protocol, pure.
