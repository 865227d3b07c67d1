//! stub
pub mod backend;
mod clock;
mod error;
#[cfg(sync_mutants)]
#[doc(hidden)]
pub mod mutant;
#[cfg(not(sync_mutants))]
mod mutant;
mod name;
mod node;
mod observer;
mod options;
mod random;
mod revocation;
mod token;

pub use backend::Backend;
pub use clock::{BootClock, Clock, HeldClock, Moment};
pub use error::{Error, ErrorKind, StoreError};
pub use name::{InvalidName, Kind, LONGEST_NAME, Name, Namespace};
pub use node::{Holder, LONGEST_RECORD, Node, record_nonce};
pub use observer::{Event, Observer, What};
pub use options::{Environment, Options};
pub use random::{OsRng, Rng, SeededRng};
pub use revocation::{Cause, Hold, Revocation};
pub use token::{Fence, FencingToken, StaleToken};
