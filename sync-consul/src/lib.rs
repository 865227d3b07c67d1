//! Distributed locks and leader election on Consul (1.8 or later; tested: 1.8.7).
//!
//! ```no_run
//! # async fn write_report(token: sync_consul::FencingToken) -> Result<(), sync_consul::Error> { Ok(()) }
//! # async fn example() -> Result<(), sync_consul::Error> {
//! let sync = sync_consul::connect("http://127.0.0.1:8500").await?;
//!
//! let guard = sync.lock("nightly-report").acquire().await?;
//! write_report(guard.token()).await?; // the resource refuses older tokens
//! guard.release().await?;
//! # Ok(()) }
//! ```
//!
//! # What is in the store
//!
//! A lock `NAME` is the key `<namespace>/lock/NAME/.lock`, an election `<namespace>/leader/NAME`;
//! [`Lock::key`] tells it. It is locked by a session, with the flags by which `consul lock` and
//! Go's `api.Lock` know a lock: `consul lock <namespace>/lock/NAME …` and this crate exclude each
//! other. Its value says who holds it, as JSON, so `consul kv get` and `consul watch` read the
//! leader. Bytes of a name outside `[A-Za-z0-9_-]` are written `=XX`. Beside it stand, for as long
//! as their session lives, `<namespace>/line/…` (who waits, in order) and `<namespace>/void/…`
//! (attempts that were never answered).
//!
//! Whoever waits is woken by the end of the one before, first come first served; a release wakes
//! one client, however many wait. Foreign clients know no line and may slip in.
//!
//! # How long a dead holder blocks others
//!
//! Consul ends a session no sooner than its TTL after the last renewal, and up to twice that after
//! it; it accepts no TTL below 10 s unless the agents' `session_ttl_min` says so (then set
//! [`Config::least_ttl`]). Add the lock-delay, 1 s by default ([`Config::lock_delay`]).
//!
//! # Least privilege
//!
//! ```text
#![doc = include_str!("acl.hcl")]
//! ```
//!
//! # Features
//!
//! * `rustls-ring` or `rustls-aws-lc`: `https` URLs, `Config::ca`, `Config::identity`.
//! * `native-roots`: trust whom the system trusts, where no CA is given.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod acquire;
mod api;
mod backend;
mod config;
mod crowds;
mod end;
mod env;
mod error;
mod ghosts;
mod http;
mod keys;
mod line;
mod losses;
#[cfg(sync_mutants)]
#[doc(hidden)]
pub mod mutant;
#[cfg(not(sync_mutants))]
mod mutant;
mod pair;
mod polls;
mod probe;
mod sessions;
mod shared;
mod tls;
mod token;
mod txn;

pub use backend::Consul;
pub use config::{Behavior, Config};
/// The core, for what is rarely needed: clocks, observers, and the contract of a backend.
pub use sync_core;
pub use sync_core::{
    Cause, Changes, Coordinator, Elected, Environment, Error, ErrorKind, Fence, FencingToken, Hold,
    Holder, Leader, LeaderStatus, Lock, LockGuard, Moment, Node, Options, Revocation, StaleToken,
};

/// Connects to one agent with the default [`Options`]; [`Config`] has the rest.
///
/// ```no_run
/// # async fn example() -> Result<(), sync_consul::Error> {
/// let sync = sync_consul::connect("http://127.0.0.1:8500").await?;
/// # Ok(()) }
/// ```
///
/// # Errors
/// As for [`Config::connect`].
///
/// # Cancel safety
/// As for [`Config::connect`].
pub async fn connect(url: impl AsRef<str>) -> Result<Coordinator, Error> {
    Config::new(url).connect().await
}
