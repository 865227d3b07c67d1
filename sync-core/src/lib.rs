//! Distributed locks and leader election: the core that every store's crate shares.
//!
//! A service depends on one store's crate (`sync-redis`, `sync-etcd`, `sync-consul`), each of
//! which re-exports what is needed from here; or on this crate alone for [`memory`], the embedded
//! store.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), sync_core::Error> {
//! use sync_core::{Options, memory};
//!
//! let sync = memory::Store::new().connect(&Options::new())?;
//!
//! let guard = sync.lock("nightly-report").acquire().await?;
//! println!("only one of us does this, under token {}", guard.token());
//! guard.release().await?;
//! # Ok(()) }
//! ```
//!
//! # What is promised
//!
//! * **Fencing**: each acquisition of a name has a [`FencingToken`] greater than every earlier
//!   one. A resource that refuses older tokens ([`Fence`]) is safe in any asynchrony.
//! * **Early revocation**: a [`Hold`] knows before the store can grant the name to anyone else,
//!   as far as clocks run at nearly the same rate and the store honours its leases. A loss from
//!   outside (an operator removes the key) is told as soon as it is seen.
//!
//! # How it works
//!
//! A *session* is the unit of liveness, shared by all claims with one TTL and renewed by one task.
//! A *claim* is one name wanted or held. Its *deadline* counts from when the last answered renewal
//! was sent, on a clock that goes on while the machine sleeps; past it the claim is revoked,
//! whatever the network does. The [`backend`] module has the contract between this and a store.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod acquire;
pub mod backend;
mod backoff;
mod carried;
mod claim;
mod clock;
pub mod connection;
mod coordinator;
mod error;
mod handle;
mod leader;
mod lease;
mod lock;
pub mod memory;
#[cfg(sync_mutants)]
#[doc(hidden)]
pub mod mutant;
#[cfg(not(sync_mutants))]
mod mutant;
mod name;
mod node;
mod observer;
mod options;
mod queue;
mod random;
pub mod reuse;
mod revocation;
mod session;
mod sightings;
pub mod tls;
mod token;
mod trouble;
pub mod watches;

pub use backend::Backend;
pub use clock::{BootClock, Clock, HeldClock, Moment};
pub use coordinator::Coordinator;
pub use error::{Error, ErrorKind, StoreError};
pub use leader::{Changes, Elected, Leader, LeaderStatus};
pub use lock::{Lock, LockGuard};
pub use name::{InvalidName, Kind, LONGEST_NAME, Name, Namespace};
pub use node::{Holder, LONGEST_RECORD, Node, record_nonce};
pub use observer::{Event, Observer, What};
pub use options::{Environment, Options};
pub use random::{OsRng, Rng, SeededRng};
pub use revocation::{Cause, Hold, Revocation};
pub use token::{Fence, FencingToken, StaleToken};
