//! Users' websockets: handshake, limits, raw mode.
