//! Text of `cfg/hp.cfg` -> a `Config` whose every value is already valid.
