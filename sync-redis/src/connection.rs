//! One connection that is replaced when it is no longer to be trusted.
//!
//! The client library's own manager keeps a connection whose server has fallen silent for ever;
//! here a request that was given up without any answer on its connection is enough to take a new one.
//! Requests that are under way on the old one go on there.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, Pipeline, PushInfo, PushKind, RedisError,
    Value,
};
use sync_core::{Clock, Moment, StoreError};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::error;
use crate::wake::Wakes;

/// How many requests may stand before a connection without their senders waiting for room.
const BUFFERED_REQUESTS: usize = 1024;

/// How long an answer may take that nobody else bounds.
const LOOK_LIMIT: Duration = Duration::from_secs(2);

/// How old an attempt to connect is when one that waits for it has another begun beside it.
const LATE: Duration = Duration::from_millis(500);

/// Makes connections, and keeps the one in use.
#[derive(Debug)]
pub(crate) struct Connector {
    client: Client,
    clock: Arc<dyn Clock>,
    /// How long making a connection may take.
    within: Duration,
    wakes: Arc<Wakes>,
    making: Mutex<Making>,
    /// Told whenever an attempt to connect has ended.
    ended: watch::Sender<()>,
}

/// The connection in use, and what is done to have one.
#[derive(Debug)]
struct Making {
    link: Option<Link>,
    /// How many attempts were begun: the number of the newest.
    begun: u64,
    /// When the newest is late.
    late: Moment,
    /// Each by its number. The first to succeed ends the others.
    running: Vec<(u64, AbortHandle)>,
    /// Why the newest failed.
    failure: Option<RedisError>,
}

impl Connector {
    pub(crate) fn new(
        client: Client,
        clock: Arc<dyn Clock>,
        within: Duration,
        wakes: Arc<Wakes>,
    ) -> Arc<Self> {
        let making = Mutex::new(Making {
            link: None,
            begun: 0,
            late: clock.now(),
            running: Vec::new(),
            failure: None,
        });
        Arc::new(Self { client, clock, within, wakes, making, ended: watch::Sender::default() })
    }

    pub(crate) fn wakes(&self) -> &Arc<Wakes> {
        &self.wakes
    }

    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// The connection in use, or a new one where it has failed.
    pub(crate) async fn link(self: &Arc<Self>) -> Result<Link, StoreError> {
        if let Some(link) = self.in_use() {
            return Ok(link);
        }
        let until = self.clock.now() + self.within;
        let mut ended = self.ended.subscribe();
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
                        return Err(error::unconnected(failure));
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
    fn attempt(self: &Arc<Self>) -> Result<Link, (u64, Moment)> {
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
            let (client, wakes) = (self.client.clone(), Arc::clone(&self.wakes));
            let (clock, within) = (Arc::clone(&self.clock), self.within);
            let connector = Arc::downgrade(self);
            let task = tokio::spawn(async move {
                let made = tokio::select! {
                    biased;
                    made = connect(&client, &wakes, &clock, number) => Some(made),
                    () = clock.sleep_until(clock.now() + within) => None,
                };
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
    fn ended(&self, number: u64, made: Option<Result<Link, RedisError>>) {
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
                self.wakes.connected(number);
            }
            Some(Err(error)) if number == making.begun => making.failure = Some(error),
            _ => {}
        }
        drop(making);
        self.ended.send_replace(());
    }

    /// Gives the connection up, and with it its subscriptions.
    pub(crate) fn disconnect(&self) {
        let mut making = self.making();
        making.link = None;
        making.abort();
    }

    /// Nobody has answered in time.
    pub(crate) fn silence(&self) -> StoreError {
        let silence = StoreError::unsent(format!("no answer within {:?}", self.within));
        match self.client.get_connection_info().addr() {
            ConnectionAddr::TcpTls { .. } => silence.advise(
                "a server that does not speak TLS on this port may say nothing: it needs redis://",
            ),
            _ => silence,
        }
    }

    /// The connection in use, if it can be used.
    pub(crate) fn in_use(&self) -> Option<Link> {
        self.making().in_use()
    }

    fn making(&self) -> MutexGuard<'_, Making> {
        self.making.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Connector {
    fn drop(&mut self) {
        self.making().abort();
    }
}

impl Making {
    fn in_use(&self) -> Option<Link> {
        self.link.as_ref().filter(|link| !link.health.is_broken()).cloned()
    }

    fn abort(&mut self) {
        for (_, task) in self.running.drain(..) {
            task.abort();
        }
    }
}

/// A connection that is subscribed before anything else is sent on it.
async fn connect(
    client: &Client,
    wakes: &Arc<Wakes>,
    clock: &Arc<dyn Clock>,
    generation: u64,
) -> Result<Link, RedisError> {
    let health = Arc::new(Health::default());
    let pushes = {
        let (wakes, health) = (Arc::clone(wakes), Arc::clone(&health));
        move |push: PushInfo| {
            if push.kind == PushKind::Disconnection {
                health.break_off();
                wakes.disconnected(generation);
            } else {
                wakes.pushed(&push);
            }
            Ok::<(), redis::aio::SendError>(())
        }
    };
    // Requests are bounded by the core, connecting by `attempt`.
    let config = AsyncConnectionConfig::new()
        .set_response_timeout(None)
        .set_connection_timeout(None)
        .set_pipeline_buffer_size(BUFFERED_REQUESTS)
        .set_push_sender(pushes);
    let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
    connection.subscribe(wakes.channel()).await?;
    let clock = Arc::clone(clock);
    Ok(Link { connection, generation, health, clock, waited_for: false })
}

/// A connection to send on.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    connection: MultiplexedConnection,
    generation: u64,
    health: Arc<Health>,
    clock: Arc<dyn Clock>,
    /// Whoever had to wait for it has little time left for the answer: that it gives up is no sign
    /// of silence.
    waited_for: bool,
}

impl Link {
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Sends a command. Dropped before the answer has come, it distrusts the connection.
    pub(crate) async fn send(&mut self, command: &Cmd) -> Result<Value, StoreError> {
        let pending = Pending::new(&self.health, !self.waited_for);
        let answer = self.connection.send_packed_command(command).await;
        pending.over(answer)
    }

    /// Sends commands at once; each has an answer of its own, which may be an error.
    pub(crate) async fn send_all(&mut self, commands: &Pipeline) -> Result<Vec<Value>, StoreError> {
        let pending = Pending::new(&self.health, !self.waited_for);
        let answer = self.connection.send_packed_commands(commands, 0, commands.len()).await;
        pending.over(answer)
    }

    /// Like [`send`](Link::send), for callers that may go away at any time: only the end of its
    /// own time limit distrusts the connection.
    pub(crate) async fn look(&mut self, command: &Cmd) -> Result<Value, StoreError> {
        let Self { connection, health, clock, .. } = self;
        patiently(health, clock, connection.send_packed_command(command)).await
    }

    /// Subscribes a channel, bounded as [`look`](Link::look) is.
    pub(crate) async fn subscribe(&mut self, channel: &str) -> Result<(), StoreError> {
        let Self { connection, health, clock, .. } = self;
        let subscribed = async {
            match connection.subscribe(channel).await {
                // A refusal is an answer, and no sign of a lost connection.
                Err(refusal) if refusal.code().is_some() => Ok(Err(error::unconnected(refusal))),
                other => other.map(Ok),
            }
        };
        patiently(health, clock, subscribed).await?
    }

    /// Unsubscribes a channel. That it fails has no consequence but a message too many.
    pub(crate) async fn unsubscribe(&mut self, channel: &str) {
        let Self { connection, health, clock, .. } = self;
        drop(patiently(health, clock, connection.unsubscribe(channel)).await);
    }

    /// What an error reply means. A server that will not do is not asked again.
    pub(crate) fn replied(&self, text: &str) -> StoreError {
        self.leave_if_useless(text);
        error::replied(text)
    }

    /// What a script's own word of refusal means.
    pub(crate) fn refused(&self, text: &str) -> StoreError {
        self.leave_if_useless(text);
        error::refused(text)
    }

    /// An answer that is not to what was asked: no later one on this connection can be trusted.
    pub(crate) fn off_by_one(&self) -> StoreError {
        self.health.break_off();
        StoreError::unknown("the answer does not belong to the request")
    }

    fn leave_if_useless(&self, text: &str) {
        if error::wants_another_server(text) {
            self.health.break_off();
        }
    }
}

/// What is known of a connection.
#[derive(Debug, Default)]
struct Health {
    broken: AtomicBool,
    answers: AtomicU64,
}

impl Health {
    fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    fn break_off(&self) {
        self.broken.store(true, Ordering::Release);
    }
}

async fn patiently<T>(
    health: &Health,
    clock: &Arc<dyn Clock>,
    answer: impl Future<Output = Result<T, RedisError>>,
) -> Result<T, StoreError> {
    let mut pending = Pending::new(health, false);
    tokio::select! {
        biased;
        answer = answer => pending.over(answer),
        () = clock.sleep_until(clock.now() + LOOK_LIMIT) => {
            pending.distrusts = true;
            Err(StoreError::unknown(format!("no answer within {LOOK_LIMIT:?}")))
        }
    }
}

/// A request under way. Dropped in that state it was given up; if nothing at all was answered
/// meanwhile, the connection has fallen silent.
struct Pending<'a> {
    health: &'a Health,
    answers: u64,
    distrusts: bool,
}

impl<'a> Pending<'a> {
    fn new(health: &'a Health, distrusts: bool) -> Self {
        Self { health, answers: health.answers.load(Ordering::Relaxed), distrusts }
    }

    fn over<T>(mut self, answer: Result<T, RedisError>) -> Result<T, StoreError> {
        self.distrusts = false;
        match answer {
            Ok(answer) => {
                self.health.answers.fetch_add(1, Ordering::Relaxed);
                Ok(answer)
            }
            Err(error) => {
                self.health.break_off();
                let reason = format!("the connection was lost: {error}");
                Err(StoreError::unknown(reason).caused_by(error))
            }
        }
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if self.distrusts && self.health.answers.load(Ordering::Relaxed) == self.answers {
            self.health.break_off();
        }
    }
}
