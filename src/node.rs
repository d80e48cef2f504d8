//! The loop: events from the adapters into the core, effects back, in order.
