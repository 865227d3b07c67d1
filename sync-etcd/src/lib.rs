//! Distributed locks and leader election on etcd (3.5.30 or later; 3.4 works, with server bugs that
//! are worth knowing).
//!
//! ```no_run
//! # async fn write_report(token: sync_etcd::FencingToken) -> Result<(), sync_etcd::Error> { Ok(()) }
//! # async fn example() -> Result<(), sync_etcd::Error> {
//! let sync = sync_etcd::connect("http://10.0.0.1:2379,http://10.0.0.2:2379").await?;
//!
//! let guard = sync.lock("nightly-report").acquire().await?;
//! write_report(guard.token()).await?; // the resource refuses older tokens
//! guard.release().await?;
//! # Ok(()) }
//! ```
//!
//! **Building needs `protoc`** (Debian: `apt-get install protobuf-compiler`), which generates the
//! code for etcd's protocol.
//!
//! # What is in the store
//!
//! A session is a lease. A claim on the lock `NAME` is a key `<namespace>/lock/NAME/<lease>-<nonce>`
//! attached to it, one on an election `<namespace>/leader/NAME/…`; [`Lock::key`] and [`Leader::key`]
//! tell the prefix. The oldest key, by create revision, holds the name; its create revision is the
//! [token](FencingToken); each other waits for the one before it. That is the order of `etcdctl lock`,
//! `etcdctl elect` and Go's `concurrency` package, which take part in the same line under the same
//! prefix. The value says who it is, as JSON. Bytes of a name outside `[A-Za-z0-9_-]` are written
//! `=XX`. Everything goes with its lease; also the markers `<namespace>/void/…`, which stand where a
//! request was never answered.
//!
//! # Several members
//!
//! Name all members of a cluster, joined by commas. One is used at a time; the next when it is
//! refused, breaks, has no leader, or leaves a renewal without an answer. The deadline of what is held
//! goes on counting meanwhile.
//!
//! # Least privilege
//!
//! ```text
//! etcdctl role add locks
//! etcdctl role grant-permission locks readwrite NAMESPACE/ NAMESPACE0
//! etcdctl user grant-role USER locks
//! ```
//!
//! # Features
//!
//! * `rustls-ring` or `rustls-aws-lc`: `https://` URLs, `Config::ca`, `Config::identity`, and the
//!   same from files.
//! * `native-roots`: trust whom the system trusts, where no CA is given.
//! * `client`: `Config::from_client` takes a client of the crate `etcd_client`, whose version is then
//!   part of what your code depends on.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod backend;
mod channel;
mod config;
mod dial;
mod endpoint;
mod error;
mod guard;
mod keys;
mod line;
#[cfg(sync_mutants)]
#[doc(hidden)]
pub mod mutant;
#[cfg(not(sync_mutants))]
mod mutant;
mod place;
mod queue;
mod session;
mod tls;
mod watcher;

pub use backend::Etcd;
pub use config::Config;
#[cfg(feature = "client")]
pub use etcd_client;
/// The core, for what is rarely needed: clocks, observers, and the contract of a backend.
pub use sync_core;
pub use sync_core::{
    Cause, Changes, Coordinator, Elected, Environment, Error, ErrorKind, Fence, FencingToken, Hold,
    Holder, Leader, LeaderStatus, Lock, LockGuard, Moment, Node, Options, Revocation, StaleToken,
};

/// Connects to a cluster with the default [`Options`]; [`Config`] has the rest.
///
/// ```no_run
/// # async fn example() -> Result<(), sync_etcd::Error> {
/// let sync = sync_etcd::connect("http://127.0.0.1:2379").await?;
/// # Ok(()) }
/// ```
///
/// # Errors
/// As for [`Config::connect`].
///
/// # Cancel safety
/// As for [`Config::connect`].
pub async fn connect(endpoints: impl AsRef<str>) -> Result<Coordinator, Error> {
    Config::new(endpoints).connect().await
}
