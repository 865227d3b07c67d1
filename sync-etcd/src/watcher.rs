//! Watches, all of them on one stream of the connection in use.
//!
//! Each begins now: one that begins at an earlier revision is served by the server's loop that runs
//! each 100 ms. Whoever watches reads again once the watch is open, and so misses nothing.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use etcd_client::{Error, KeyValue, WatchOptions, WatchRequestSender, WatchResponse};
use sync_core::backend::Nonce;
use sync_core::{ErrorKind, Moment, StoreError, record_nonce};
use tokio::runtime::Handle;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

use crate::dial::{Connector, Link, Login, over};
use crate::error::{Failure, is_about_permission, is_about_token, some_permissions};

/// Opens watches.
#[derive(Debug)]
pub(crate) struct Watcher {
    /// The one that the backend was made on, for all that goes on in the background: whoever asks may
    /// be on one that ends sooner.
    pub(crate) runtime: Handle,
    connector: Arc<Connector>,
    stream: Mutex<Option<Stream>>,
    next: AtomicI64,
    /// When somebody may ask for a connection where there is none.
    connect_at: Mutex<Moment>,
}

/// A stream, by whoever has or opens a watch on it. It ends with the last of them.
#[derive(Debug, Clone)]
struct Stream {
    generation: u64,
    orders: UnboundedSender<Order>,
}

#[derive(Debug)]
enum Order {
    Open { id: i64, range: Range, told: UnboundedSender<Told> },
    Close { id: i64 },
}

/// What is watched.
#[derive(Debug, Clone)]
pub(crate) enum Range {
    Key(String),
    Prefix(String),
}

/// What the server says of a watch. After an error nothing follows.
type Told = Result<News, StoreError>;

#[derive(Debug)]
enum News {
    Open,
    Change(Change),
}

/// What became of a key.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Change {
    Deleted,
    Put { token: i64, lease: i64, nonce: Option<Nonce> },
}

impl From<&KeyValue> for Change {
    fn from(found: &KeyValue) -> Self {
        // The kind of an event is not asked for: the library panics on one that it does not know.
        match found.version() {
            0 => Self::Deleted,
            _ => Self::Put {
                token: found.create_revision(),
                lease: found.lease(),
                nonce: record_nonce(found.value()),
            },
        }
    }
}

/// A watch. Dropped, it is closed.
#[derive(Debug)]
pub(crate) struct Watch {
    id: i64,
    told: UnboundedReceiver<Told>,
    stream: Stream,
}

impl Watch {
    async fn next(&mut self) -> Told {
        self.told.recv().await.unwrap_or_else(|| Err(gone()))
    }

    async fn opened(&mut self) -> Result<(), StoreError> {
        self.next().await.map(drop)
    }

    /// The next change, or why nothing is told any more.
    pub(crate) async fn change(&mut self) -> Result<Change, StoreError> {
        loop {
            if let News::Change(change) = self.next().await? {
                return Ok(change);
            }
        }
    }

    /// Forgets the changes that were told already.
    pub(crate) fn catch_up(&mut self) -> Result<(), StoreError> {
        while let Ok(told) = self.told.try_recv() {
            told?;
        }
        Ok(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Refused only by a stream that is gone.
        drop(self.stream.orders.send(Order::Close { id: self.id }));
    }
}

impl Watcher {
    pub(crate) fn new(connector: Arc<Connector>) -> Self {
        let connect_at = Mutex::new(connector.clock().now());
        let runtime = Handle::current();
        Self { runtime, connector, stream: Mutex::default(), next: AtomicI64::new(1), connect_at }
    }

    /// Whether to ask for a watch now, for those who ask again and again: where there is no
    /// connection, one of them does in each such time.
    pub(crate) fn may_connect(&self, now: Moment, each: Duration) -> bool {
        if self.connector.in_use().is_some() {
            return true;
        }
        let mut at = self.connect_at.lock().unwrap_or_else(PoisonError::into_inner);
        let may = now >= *at;
        if may {
            *at = now + each;
        }
        may
    }

    /// Watches these from now on: resolves when all are open, with the connection that they are on.
    pub(crate) async fn open<const N: usize>(
        &self,
        ranges: [Range; N],
    ) -> Result<(Link, [Watch; N]), StoreError> {
        let link = self.connector.link().await?;
        let stream = self.stream(&link);
        let mut watches = ranges.map(|range| {
            let (teller, told) = mpsc::unbounded_channel();
            let id = self.next.fetch_add(1, Ordering::Relaxed);
            // Refused only by a stream that is gone, which drops the teller.
            drop(stream.orders.send(Order::Open { id, range, told: teller }));
            Watch { id, told, stream: stream.clone() }
        });
        for watch in &mut watches {
            watch.opened().await?;
        }
        Ok((link, watches))
    }

    /// The stream on this connection.
    fn stream(&self, link: &Link) -> Stream {
        let mut slot = self.slot();
        if let Some(stream) = &*slot
            && stream.generation == link.generation()
            && !stream.orders.is_closed()
        {
            return stream.clone();
        }
        let (orders, received) = mpsc::unbounded_channel();
        let stream = Stream { generation: link.generation(), orders };
        self.runtime.spawn(serve(link.clone(), received));
        *slot = Some(stream.clone());
        stream
    }

    /// Lets go of the stream: it ends with its last watch.
    pub(crate) fn rest(&self) {
        *self.slot() = None;
    }

    fn slot(&self) -> MutexGuard<'_, Option<Stream>> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs a stream until nobody needs it, or the connection is of no use.
async fn serve(link: Link, mut orders: UnboundedReceiver<Order>) {
    let mut watches = Watches::default();
    let told = tokio::select! {
        biased;
        () = link.health().broken() => Err(gone()),
        told = watches.serve(&link, &mut orders) => told,
    };
    // From here on orders are refused.
    orders.close();
    let Err(reason) = told else { return };
    while let Ok(order) = orders.try_recv() {
        if let Order::Open { id, told, .. } = order {
            watches.0.insert(id, told);
        }
    }
    for told in watches.0.into_values() {
        drop(told.send(Err(reason.clone())));
    }
}

/// The watches on a stream, by the number that they have there.
#[derive(Debug, Default)]
struct Watches(BTreeMap<i64, UnboundedSender<Told>>);

impl Watches {
    async fn serve(
        &mut self,
        link: &Link,
        orders: &mut UnboundedReceiver<Order>,
    ) -> Result<(), StoreError> {
        let (first, range) = loop {
            match orders.recv().await {
                Some(Order::Open { id, range, told }) => {
                    self.0.insert(id, told);
                    break (id, range);
                }
                Some(Order::Close { .. }) => {}
                None => return Ok(()),
            }
        };
        let (key, options) = range.options(first);
        let login = link.connection.login();
        let opened = link.connection.watch().watch(key, Some(options)).await;
        let opened = over(link.look(), opened).map_err(Failure::into_store)?;
        let (mut requests, mut answers) = opened.split();
        loop {
            let order = tokio::select! {
                biased;
                answer = answers.message() => {
                    self.hear(link, login, answer).await?;
                    continue;
                }
                order = orders.recv() => order,
            };
            let Some(order) = order else { return Ok(()) };
            let mut sent = pin!(self.carry_out(order, &mut requests));
            // A server that nobody listens to does not listen either.
            loop {
                tokio::select! {
                    biased;
                    sent = &mut sent => {
                        over(link.look(), sent).map_err(Failure::into_store)?;
                        break;
                    }
                    answer = answers.message() => self.hear(link, login, answer).await?,
                }
            }
        }
    }

    /// Takes note of an order; what is to be sent takes its own time.
    fn carry_out<'a>(
        &mut self,
        order: Order,
        requests: &'a mut WatchRequestSender,
    ) -> impl Future<Output = Result<(), Error>> + use<'a> {
        let request = match order {
            Order::Open { id, range, told } => {
                self.0.insert(id, told);
                Some((id, Some(range)))
            }
            Order::Close { id } => self.0.remove(&id).map(|_| (id, None)),
        };
        async move {
            match request {
                Some((id, Some(range))) => {
                    let (key, options) = range.options(id);
                    requests.watch(key, Some(options)).await
                }
                Some((id, None)) => requests.cancel(id).await,
                None => Ok(()),
            }
        }
    }

    async fn hear(
        &mut self,
        link: &Link,
        login: Login,
        answer: Result<Option<WatchResponse>, Error>,
    ) -> Result<(), StoreError> {
        match over(link.look(), answer).map_err(Failure::into_store)? {
            Some(answer) => self.tell(link, login, &answer).await,
            None => Err(gone()),
        }
    }

    /// Tells whom it concerns. An error ends the stream.
    async fn tell(
        &mut self,
        link: &Link,
        login: Login,
        answer: &WatchResponse,
    ) -> Result<(), StoreError> {
        if answer.canceled() {
            let reason = match answer.cancel_reason() {
                "" if answer.compact_revision() > 0 => "what it would tell was compacted",
                "" => "the server gives no reason",
                reason => reason,
            };
            let text = format!("the server has ended a watch: {reason}");
            let closed = match is_about_permission(reason) {
                true => StoreError::refused(ErrorKind::Denied, text).advise(some_permissions()),
                false => StoreError::unknown(text),
            };
            if is_about_token(reason) {
                // The stream keeps the token that it was opened with.
                let refreshed = link.connection.refresh_token(login).await;
                over(link.look(), refreshed).map_err(Failure::into_store)?;
                return Err(closed);
            }
            return match self.0.remove(&answer.watch_id()) {
                Some(told) => {
                    drop(told.send(Err(closed)));
                    Ok(())
                }
                // One that was cancelled by us; but one that is refused has no number.
                None if !answer.created() => Ok(()),
                None => Err(closed),
            };
        }
        let Some(told) = self.0.get(&answer.watch_id()) else { return Ok(()) };
        if answer.created() {
            drop(told.send(Ok(News::Open)));
        }
        for event in answer.events() {
            if let Some(found) = event.kv() {
                drop(told.send(Ok(News::Change(found.into()))));
            }
        }
        Ok(())
    }
}

impl Range {
    fn options(self, id: i64) -> (String, WatchOptions) {
        let options = WatchOptions::new().with_watch_id(id);
        match self {
            Self::Key(key) => (key, options),
            Self::Prefix(prefix) => (prefix, options.with_prefix()),
        }
    }
}

fn gone() -> StoreError {
    StoreError::unknown("the stream of watches has ended")
}
