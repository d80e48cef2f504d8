//! Scripted schedules.
