//! Interleavings that once broke a promise, each driven step by step on a clock that stands still,
//! or that spun a hot loop or hung, on the real one.

#![allow(clippy::unwrap_used, reason = "what is unwrapped is the test's own")]

mod bounds;
mod common;
mod ends;
mod late_grants;
mod margins;
mod sessions;
mod shutdowns;
mod told;
mod ttls;
mod updates;
mod waiters;
