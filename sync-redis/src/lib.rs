//! Distributed locks and leader election on Redis (6.2 or later; tested: 7) and
//! Valkey (8).
//!
//! ```no_run
//! # async fn write_report(token: sync_redis::FencingToken) -> Result<(), sync_redis::Error> { Ok(()) }
//! # async fn example() -> Result<(), sync_redis::Error> {
//! let sync = sync_redis::connect("redis://127.0.0.1").await?;
//!
//! let guard = sync.lock("nightly-report").acquire().await?;
//! write_report(guard.token()).await?; // the resource refuses older tokens
//! guard.release().await?;
//! # Ok(()) }
//! ```
//!
//! # What is in the store
//!
//! A lock `NAME` is the key `<namespace>:lock:{NAME}`, an election `<namespace>:leader:{NAME}`;
//! [`Lock::key`] tells it. Its value is the acquisition's random nonce, set with `NX PX`: the rule that
//! redis-py, redsync, node-redlock and rslock follow, so a lock of theirs on that key and one of
//! this crate exclude each other. Bytes of a name outside `[A-Za-z0-9_-]` are written `=XX`.
//! Beside the key stand `:token` (the fencing counter, for 7 days after its last use), `:holder`
//! (who holds it, as JSON), `:line` and `:beat` (who waits, in order), and for a while
//! `:void:<nonce>` where a request was never answered.
//!
//! Whoever waits is woken by a message when the holder gives back, first come first served, and
//! looks by itself about once a second besides: holders that are not of this crate send none.
//!
//! # What can be lost
//!
//! Replication of Redis is asynchronous: a failover to a replica may forget a lock that is held, and
//! so may a restart without `appendonly yes` and `appendfsync always`. Then two holders overlap
//! for at most a TTL, and only the [token](FencingToken) protects: it still grows, as it is the larger
//! of the last one + 1 and the server's time. It can fall only if the counter is lost *and* the new
//! server's clock is behind: keep servers on NTP. A server that evicts keys (`maxmemory-policy` other than
//! `noeviction`, where `maxmemory` is set) may drop a held lock; connecting to one warns.
//!
//! # Least privilege
//!
//! ```text
#![doc = include_str!("acl.txt")]
//! ```
//!
//! # Features
//!
//! * `rustls-ring` or `rustls-aws-lc`: `rediss://` URLs, `Config::ca`, `Config::identity`.
//! * `native-roots`: trust whom the system trusts, where no CA is given.
//! * `client`: `Config::from_client` takes a client of the crate `redis`, whose version is then
//!   part of what your code depends on.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod backend;
mod config;
mod connection;
mod error;
mod follow;
mod keys;
#[cfg(sync_mutants)]
#[doc(hidden)]
pub mod mutant;
mod probe;
mod script;
mod wake;

pub use backend::Redis;
pub use config::Config;
#[cfg(feature = "client")]
pub use redis;
/// The core, for what is rarely needed: clocks, observers, and the contract of a backend.
pub use sync_core;
pub use sync_core::{
    Cause, Changes, Coordinator, Elected, Environment, Error, ErrorKind, Fence, FencingToken, Hold,
    Holder, Leader, LeaderStatus, Lock, LockGuard, Moment, Node, Options, Revocation, StaleToken,
};

/// Connects to one server with the default [`Options`]; [`Config`] has the rest.
///
/// ```no_run
/// # async fn example() -> Result<(), sync_redis::Error> {
/// let sync = sync_redis::connect("redis://127.0.0.1").await?;
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
