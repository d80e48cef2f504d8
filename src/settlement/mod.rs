//! The settlement bus.

pub mod record;
pub mod schedule;
