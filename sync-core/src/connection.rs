//! One connection that is replaced when it is no longer to be trusted: for backends whose client
//! library does not see to that.
//!
//! A library's own manager keeps a connection whose server has fallen silent; here a request that
//! was given up without any answer on its connection is enough to make a new one, on the next
//! server where there are several. Requests that are under way on the old one go on there.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), sync_core::StoreError> {
//! use std::sync::Arc;
//! use std::time::Duration;
//! use async_trait::async_trait;
//! use sync_core::connection::{Connector, Dial, Health};
//! use sync_core::{BootClock, StoreError};
//!
//! #[derive(Debug)]
//! struct Servers(Vec<&'static str>);
//!
//! #[async_trait]
//! impl Dial for Servers {
//!     type Connection = &'static str;
//!
//!     async fn dial(&self, number: u64, _: &Arc<Health>) -> Result<&'static str, StoreError> {
//!         Ok(self.0[number as usize % self.0.len()])
//!     }
//!
//!     fn servers(&self) -> u64 {
//!         self.0.len() as u64
//!     }
//! }
//!
//! let (clock, within) = (Arc::new(BootClock::new()), Duration::from_secs(5));
//! let connector = Connector::new(Servers(vec!["a", "b"]), clock, within);
//! let link = connector.link().await?;
//! assert_eq!(link.connection, "b");
//! link.request().failed();
//! assert_eq!(connector.link().await?.connection, "a");
//! # Ok(()) }
//! ```

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, Moment};
use crate::error::{Error, ErrorKind, StoreError};

/// How old an attempt to connect is when one that waits for it has another begun beside it.
const LATE: Duration = Duration::from_millis(500);

/// How a connection is made. See the [module](self) for an example.
#[async_trait]
pub trait Dial: fmt::Debug + Send + Sync + 'static {
    /// What requests are sent on. Clones are the same connection.
    type Connection: Clone + Send + Sync + 'static;

    /// Makes a connection; `number` counts the attempts from one. Whoever finds out that it is of
    /// no use any more [breaks off](Health::break_off). The connector bounds the time.
    async fn dial(&self, number: u64, health: &Arc<Health>)
    -> Result<Self::Connection, StoreError>;

    /// How many attempts in a row go to different servers.
    fn servers(&self) -> u64 {
        1
    }

    /// The connection that this attempt has made is in use from now on.
    fn connected(&self, number: u64) {
        let _ = number;
    }

    /// Says more of an attempt that nobody has answered.
    fn explain(&self, silence: StoreError) -> StoreError {
        silence
    }
}

/// Makes connections, and keeps the one in use. See the [module](self) for an example.
pub struct Connector<D: Dial> {
    dial: Arc<D>,
    clock: Arc<dyn Clock>,
    /// How long making a connection may take.
    within: Duration,
    making: Mutex<Making<D::Connection>>,
    /// Told whenever an attempt to connect has ended.
    ended: watch::Sender<()>,
}

/// The connection in use, and what is done to have one.
struct Making<C> {
    link: Option<Link<C>>,
    /// How many attempts were begun: the number of the newest.
    begun: u64,
    /// When the newest is late.
    late: Moment,
    /// Each by its number. The first to succeed ends the others.
    running: Vec<(u64, AbortHandle)>,
    /// Why the newest failed.
    failure: Option<StoreError>,
}

impl<D: Dial> Connector<D> {
    /// One without a connection yet; making one may take this long.
    #[must_use]
    pub fn new(dial: D, clock: Arc<dyn Clock>, within: Duration) -> Arc<Self> {
        let making = Mutex::new(Making {
            link: None,
            begun: 0,
            late: clock.now(),
            running: Vec::new(),
            failure: None,
        });
        let dial = Arc::new(dial);
        Arc::new(Self { dial, clock, within, making, ended: watch::Sender::default() })
    }

    /// How its connections are made.
    pub fn dial(&self) -> &D {
        &self.dial
    }

    /// The clock that it goes by.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// The connection in use, or a new one where it has failed.
    ///
    /// # Errors
    /// Why the latest attempt failed, once as many have in a row as there are servers; or that
    /// nobody answered in time.
    ///
    /// # Cancel safety
    /// Dropping the future does not end the attempt: it serves whoever asks next.
    pub async fn link(self: &Arc<Self>) -> Result<Link<D::Connection>, StoreError> {
        if let Some(link) = self.in_use() {
            return Ok(link);
        }
        let until = self.clock.now() + self.within;
        let mut ended = self.ended.subscribe();
        let mut failed = 0;
        loop {
            ended.mark_unchanged();
            let (number, late) = match self.attempt() {
                Ok(link) => return Ok(Link { waited_for: true, ..link }),
                Err(attempt) => attempt,
            };
            tokio::select! {
                biased;
                _ = ended.changed() => {
                    let making = self.making();
                    if let Some(failure) = making.failure.clone().filter(|_| making.begun == number) {
                        failed += 1;
                        if failed >= self.dial.servers() {
                            return Err(failure);
                        }
                    }
                }
                () = self.clock.sleep_until(late.min(until)) => {
                    if self.clock.now() >= until {
                        return Err(self.silence());
                    }
                }
            }
        }
    }

    /// The connection in use; or which attempt to wait for, and until when: one is begun where none
    /// runs or all are late.
    ///
    /// It is a task of its own, since those who wait for it have less time than it may need. One
    /// that was begun while the server could not be reached may never end, though the server is
    /// back: so it has others beside it.
    fn attempt(self: &Arc<Self>) -> Result<Link<D::Connection>, (u64, Moment)> {
        let mut making = self.making();
        if let Some(link) = making.in_use() {
            return Ok(link);
        }
        making.running.retain(|(_, task)| !task.is_finished());
        let now = self.clock.now();
        let wanted = making.running.is_empty() || making.failure.is_some() || now >= making.late;
        if wanted {
            let number = making.begun + 1;
            // However long an attempt may take, no more than ten run.
            let late = now + LATE.max(self.within / 10);
            let until = now + self.within;
            let (dial, clock) = (Arc::clone(&self.dial), Arc::clone(&self.clock));
            let connector = Arc::downgrade(self);
            let task = tokio::spawn(async move {
                let health = Arc::new(Health::default());
                let made = tokio::select! {
                    biased;
                    made = dial.dial(number, &health) => Some(made),
                    () = clock.sleep_until(until) => None,
                };
                let made = made.map(|made| {
                    let waited_for = false;
                    made.map(|connection| Link {
                        connection,
                        generation: number,
                        health,
                        waited_for,
                    })
                });
                if let Some(connector) = connector.upgrade() {
                    connector.ended(number, made);
                }
            });
            making.running.push((number, task.abort_handle()));
            (making.begun, making.late, making.failure) = (number, late, None);
        }
        Err((making.begun, making.late))
    }

    /// An attempt has ended, or its time is over.
    fn ended(&self, number: u64, made: Option<Result<Link<D::Connection>, StoreError>>) {
        let mut making = self.making();
        // One that is not among them comes too late.
        let Some(position) = making.running.iter().position(|(running, _)| *running == number)
        else {
            return;
        };
        drop(making.running.swap_remove(position));
        match made {
            Some(Ok(link)) => {
                making.link = Some(link);
                making.abort();
                self.dial.connected(number);
            }
            Some(Err(error)) if number == making.begun => making.failure = Some(error),
            _ => {}
        }
        drop(making);
        self.ended.send_replace(());
    }

    /// What is to be asked of a `store` before a coordinator is made, bounded by the time that
    /// connecting may take.
    ///
    /// # Errors
    /// Those of `greeting`; [`ErrorKind::Unreachable`] if it takes too long;
    /// [`ErrorKind::Unsupported`] outside a tokio runtime.
    ///
    /// # Cancel safety
    /// That of `greeting`.
    pub async fn greet<T>(
        &self,
        store: &str,
        endpoint: &str,
        greeting: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, Error> {
        let what = format!("connect to {store} at {endpoint}");
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(Error::new(ErrorKind::Unsupported, what, "there is no tokio runtime here")
                .advise("call it from inside one, such as #[tokio::main]"));
        }
        let until = self.clock.now() + self.within;
        let greeted = tokio::select! {
            biased;
            greeted = greeting => greeted,
            () = self.clock.sleep_until(until) => Err(self.silence()),
        };
        greeted.map_err(|error| Error::from_store(what, error))
    }

    /// Gives the connection up.
    pub fn disconnect(&self) {
        let mut making = self.making();
        making.link = None;
        making.abort();
        drop(making);
        // Who waits for one of these attempts begins another.
        self.ended.send_replace(());
    }

    /// The error of one that nobody has answered in time.
    pub fn silence(&self) -> StoreError {
        self.dial.explain(StoreError::unsent(format!("no answer within {:?}", self.within)))
    }

    /// The connection in use, if it can be used.
    pub fn in_use(&self) -> Option<Link<D::Connection>> {
        self.making().in_use()
    }

    fn making(&self) -> MutexGuard<'_, Making<D::Connection>> {
        self.making.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<D: Dial> Drop for Connector<D> {
    fn drop(&mut self) {
        self.making().abort();
    }
}

impl<D: Dial> fmt::Debug for Connector<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("dial", &self.dial).finish_non_exhaustive()
    }
}

impl<C: Clone> Making<C> {
    fn in_use(&self) -> Option<Link<C>> {
        self.link.as_ref().filter(|link| !link.health.is_broken()).cloned()
    }

    fn abort(&mut self) {
        for (_, task) in self.running.drain(..) {
            task.abort();
        }
    }
}

/// A connection to send on. See the [module](self) for an example.
#[derive(Clone)]
pub struct Link<C> {
    /// What requests are sent on.
    pub connection: C,
    generation: u64,
    health: Arc<Health>,
    /// Whoever had to wait for it has little time left for the answer: that it gives up is no sign
    /// of silence.
    waited_for: bool,
}

impl<C> Link<C> {
    /// The number of the attempt that made it.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// What is known of it.
    pub fn health(&self) -> &Arc<Health> {
        &self.health
    }

    /// A request is sent: dropped before it is over, it distrusts the connection.
    pub fn request(&self) -> Pending<'_> {
        Pending::new(&self.health, !self.waited_for)
    }

    /// [`request`](Link::request) of somebody who may go away at any time, which says nothing of
    /// the connection.
    pub fn look(&self) -> Pending<'_> {
        Pending::new(&self.health, false)
    }
}

impl<C> fmt::Debug for Link<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("generation", &self.generation).finish_non_exhaustive()
    }
}

/// What is known of a connection.
///
/// ```
/// let health = sync_core::connection::Health::default();
/// health.break_off();
/// assert!(health.is_broken());
/// ```
#[derive(Debug, Default)]
pub struct Health {
    broken: CancellationToken,
    answers: AtomicU64,
}

impl Health {
    /// Whether the connection is of no use any more.
    pub fn is_broken(&self) -> bool {
        self.broken.is_cancelled()
    }

    /// Nobody is given the connection from now on.
    pub fn break_off(&self) {
        self.broken.cancel();
    }

    /// Resolves when the connection is of no use any more.
    pub async fn broken(&self) {
        self.broken.cancelled().await;
    }
}

/// A request under way. Dropped in that state it was given up; if nothing at all was answered
/// meanwhile, the connection has fallen silent.
///
/// ```
/// use sync_core::connection::Link;
///
/// async fn ask(link: &Link<u16>, answer: impl Future<Output = Option<String>>) -> Option<String> {
///     let pending = link.request();
///     match answer.await {
///         Some(answer) => {
///             pending.answered();
///             Some(answer)
///         }
///         None => {
///             pending.failed();
///             None
///         }
///     }
/// }
/// ```
#[derive(Debug)]
#[must_use = "dropped, it was given up"]
pub struct Pending<'a> {
    health: &'a Health,
    answers: u64,
    distrusts: bool,
}

impl<'a> Pending<'a> {
    fn new(health: &'a Health, distrusts: bool) -> Self {
        Self { health, answers: health.answers.load(Ordering::Relaxed), distrusts }
    }

    /// The server has answered.
    pub fn answered(mut self) {
        self.distrusts = false;
        self.health.answers.fetch_add(1, Ordering::Relaxed);
    }

    /// The connection was lost.
    pub fn failed(mut self) {
        self.distrusts = false;
        self.health.break_off();
    }

    /// Nobody answered in the time that it had.
    pub fn given_up(mut self) {
        self.distrusts = true;
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if self.distrusts && self.health.answers.load(Ordering::Relaxed) == self.answers {
            self.health.break_off();
        }
    }
}
