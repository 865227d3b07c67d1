//! What a store's crate adds: its own commands, and what else its users know.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::Goals;
use crate::failed::Failed;

/// What a program would do that sent the store's own commands itself.
///
/// It should be the least that is right: the commands that the store's users know, on the client
/// library that the backend uses, set up as the backend sets it up.
///
/// ```no_run
/// use std::process::ExitCode;
/// use std::sync::Arc;
/// use std::time::Duration;
/// use async_trait::async_trait;
/// use sync_conformance::bench::{self, Client, Raw};
/// use sync_conformance::{Failed, Store};
///
/// struct Toy;
/// struct ToyClient;
///
/// #[async_trait]
/// impl Raw for Toy {
///     async fn client(&self, url: &str) -> Result<Arc<dyn Client>, Failed> {
///         # let _ = url;
///         Ok(Arc::new(ToyClient)) // connected
///     }
/// }
///
/// #[async_trait]
/// impl Client for ToyClient {
///     async fn version(&self) -> Result<String, Failed> {
///         Ok("toy 1.0".to_owned())
///     }
///     # async fn take(&self, _: &str, _: Duration) -> Result<(), Failed> { Ok(()) }
///     # async fn give_back(&self, _: &str) -> Result<(), Failed> { Ok(()) }
///     # async fn extend(&self, _: &[String], _: Duration) -> Result<(), Failed> { Ok(()) }
///     # async fn requests(&self) -> Result<u64, Failed> { Ok(0) }
///     // and the others
/// }
///
/// # fn store() -> impl Store {
/// #     struct Never;
/// #     #[async_trait]
/// #     impl Store for Never {
/// #         fn name(&self) -> &str { "toy" }
/// #         async fn start(&self) -> Result<sync_conformance::Server, Failed> { Ok(sync_conformance::Server::in_process("toy")) }
/// #         async fn connect(&self, _: &str, options: &sync_core::Options) -> Result<Arc<dyn sync_core::Backend>, sync_core::Error> {
/// #             Ok(Arc::new(sync_core::memory::Store::new().backend(&options.parsed_namespace()?)))
/// #         }
/// #         async fn leftovers(&self, _: &str, _: &str) -> Result<Vec<String>, Failed> { Ok(Vec::new()) }
/// #     }
/// #     Never
/// # }
/// // benches/toy.rs, with `harness = false` and `test = true` in the manifest
/// fn main() -> ExitCode {
///     bench::main(store(), Toy)
/// }
/// ```
#[async_trait]
pub trait Raw: Send + Sync + 'static {
    /// A client with a connection of its own.
    async fn client(&self, url: &str) -> Result<Arc<dyn Client>, Failed>;

    /// What the figures should come to on this store.
    fn goals(&self) -> Goals {
        Goals::default()
    }

    /// How else the store's users hand a name round: `handover` runs beside it then.
    fn rival(&self) -> Option<&dyn Rival> {
        None
    }
}

/// A client that sends the store's own commands. See [`Raw`].
#[async_trait]
pub trait Client: Send + Sync + 'static {
    /// The store's name and version, and what else of it the figures hang on. Asked at the end.
    async fn version(&self) -> Result<String, Failed>;

    /// Takes a key that is free, for this long: one round trip. Fails if it is not free.
    async fn take(&self, key: &str, ttl: Duration) -> Result<(), Failed>;

    /// Gives back what [`take`](Client::take) took, comparing first: one round trip. Fails if it
    /// was not held.
    async fn give_back(&self, key: &str) -> Result<(), Failed>;

    /// Extends what [`take`](Client::take) took, all of it, in as few round trips as make sense.
    async fn extend(&self, keys: &[String], ttl: Duration) -> Result<(), Failed>;

    /// How many requests the server has had from clients so far, as it counts them. Only
    /// differences are looked at.
    async fn requests(&self) -> Result<u64, Failed>;

    /// How many writes have gone through the store's log so far, where it has one and counts them.
    /// Only differences are looked at.
    async fn writes(&self) -> Result<Option<u64>, Failed> {
        Ok(None)
    }
}

/// Another way to hand a name round, that the store's users know: its own lock service, or the
/// recipe of its documentation.
///
/// ```no_run
/// use async_trait::async_trait;
/// use sync_conformance::Failed;
/// use sync_conformance::bench::{Contender, Rival};
///
/// /// Everybody waits on the key.
/// struct Herd;
/// struct One;
///
/// #[async_trait]
/// impl Rival for Herd {
///     fn name(&self) -> &str {
///         "everybody waits on the key"
///     }
///
///     async fn contender(&self, url: &str, name: &str) -> Result<Box<dyn Contender>, Failed> {
///         # let _ = (url, name);
///         Ok(Box::new(One)) // connected, its session open
///     }
/// }
///
/// #[async_trait]
/// impl Contender for One {
///     # async fn lock(&mut self) -> Result<(), Failed> { Ok(()) }
///     # async fn unlock(&mut self) -> Result<(), Failed> { Ok(()) }
///     // and so on
/// }
/// ```
#[async_trait]
pub trait Rival: Send + Sync + 'static {
    /// What the table calls it.
    fn name(&self) -> &str;

    /// One who wants this name, with a connection of its own, and a session of its own where the
    /// store has sessions. It is used for some minutes.
    async fn contender(&self, url: &str, name: &str) -> Result<Box<dyn Contender>, Failed>;
}

/// One of those who hand a name round. See [`Rival`].
#[async_trait]
pub trait Contender: Send + 'static {
    /// Waits until it has the name.
    async fn lock(&mut self) -> Result<(), Failed>;

    /// Gives it back.
    async fn unlock(&mut self) -> Result<(), Failed>;
}
