//! What the author of a backend tells the suite.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sync_core::{Backend, Error, Options};

use crate::failed::Failed;
use crate::server::Server;

/// What stands in the store when [`Tamper::Overwrite`] is done.
pub const FOREIGN: &str = "somebody else";

/// A store with its backend, as the suite drives them.
///
/// Everything that a backend's author writes for the suite is an `impl` of this and a `main` of
/// one line; see `docs/writing-a-backend.md`.
///
/// ```no_run
/// use std::sync::Arc;
/// use async_trait::async_trait;
/// use sync_conformance::{Failed, Server, Store, server};
/// use sync_core::{Backend, Error, Options};
///
/// struct Toy;
///
/// #[async_trait]
/// impl Store for Toy {
///     fn name(&self) -> &str { "toy" }
///
///     async fn start(&self) -> Result<Server, Failed> {
///         match server::external("SYNC_TEST_REDIS")? {
///             Some(server) => Ok(server),
///             None => server::redis(&[]).start().await,
///         }
///     }
///
///     async fn connect(&self, url: &str, options: &Options) -> Result<Arc<dyn Backend>, Error> {
///         // my_crate::Config::new(url).options(options.clone()).backend().await
///         # let _ = url;
///         # Ok(Arc::new(sync_core::memory::Store::new().backend(&options.parsed_namespace()?)))
///     }
///
///     async fn leftovers(&self, url: &str, namespace: &str) -> Result<Vec<String>, Failed> {
///         // every key under the namespace
///         # let _ = (url, namespace);
///         # Ok(Vec::new())
///     }
/// }
///
/// fn main() -> std::process::ExitCode {
///     sync_conformance::main(Toy)
/// }
/// ```
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The store's name: what the names of all cases begin with.
    fn name(&self) -> &str;

    /// Starts a fresh server that nobody else uses, or takes the one that the environment points
    /// at. Called once for all cases that leave the server alone, and once for each other.
    async fn start(&self) -> Result<Server, Failed>;

    /// A backend of its own over connections of its own, as a user's process would have it.
    async fn connect(&self, url: &str, options: &Options) -> Result<Arc<dyn Backend>, Error>;

    /// What stands in the store under `namespace`, in words for a person: claims, places in a
    /// line, sessions. What the docs except (counters, markers) is left out.
    async fn leftovers(&self, url: &str, namespace: &str) -> Result<Vec<String>, Failed>;

    /// Which program the server is, in which version, for those who read what a run came to.
    async fn version(&self, url: &str) -> Result<String, Failed> {
        let _ = url;
        Ok(format!("{} in a version that it does not tell", self.name()))
    }

    /// Makes a server that has lost all its data what [`start`](Store::start) made of it, such as
    /// the users that it knows. Nothing unless said otherwise.
    async fn prepare(&self, url: &str) -> Result<(), Failed> {
        let _ = url;
        Ok(())
    }

    /// Which of the members leads the others, by its place in [`Server::members`]. An error while
    /// none does; [`Failed::skipped`] where none ever does, or nobody can tell.
    async fn leader(&self, url: &str) -> Result<usize, Failed> {
        let _ = url;
        Err(Failed::skipped("the store does not tell which of its members leads"))
    }

    /// Which kinds of tampering [`tamper`](Store::tamper) knows. The cases of the others are
    /// listed as not applicable.
    fn tampers(&self) -> &[Tamper] {
        &[]
    }

    /// Does to the claim that is held at `key` ([`Backend::key`]) what an operator could do.
    async fn tamper(&self, url: &str, key: &str, how: Tamper) -> Result<(), Failed> {
        let _ = (url, key);
        Err(format!("{} knows no {how:?}", self.name()))?
    }

    /// A TTL that is short, so that no case takes long, and kept by a busy machine all the same.
    fn ttl(&self) -> Duration {
        Duration::from_secs(2)
    }

    /// How long what a process held is kept from others after its last renewal, at most: the TTL
    /// unless said otherwise. By this the soak measures how long to stop a process so that somebody
    /// else has its lock when it goes on.
    fn kept(&self, ttl: Duration) -> Duration {
        ttl
    }
}

/// What an operator, or another program, can do to a claim that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Tamper {
    /// Removes the key.
    Delete,
    /// Writes [`FOREIGN`] over the key.
    Overwrite,
    /// Ends the session that holds the key.
    EndSession,
}
