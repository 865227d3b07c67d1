//! The connection, which carries requests and messages; the core sees to it that it is replaced when
//! it is no longer to be trusted.

use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, Pipeline, PushInfo, PushKind, RedisError,
    Value,
};
use sync_core::connection::{self, Dial, Health, Pending};
use sync_core::{Clock, Error, StoreError};

use crate::error;
use crate::wake::Wakes;

/// How many requests may stand before a connection without their senders waiting for room.
const BUFFERED_REQUESTS: usize = 1024;

/// How long an answer may take that nobody else bounds.
const LOOK_LIMIT: Duration = Duration::from_secs(2);

/// A server, and how it is connected to.
#[derive(Debug)]
pub(crate) struct Server {
    client: Client,
    clock: Arc<dyn Clock>,
    wakes: Arc<Wakes>,
}

#[async_trait]
impl Dial for Server {
    type Connection = Connection;

    async fn dial(&self, number: u64, health: &Arc<Health>) -> Result<Connection, StoreError> {
        let stream = connect(&self.client, &self.wakes, health, number).await;
        let stream = stream.map_err(error::unconnected)?;
        Ok(Connection { stream, clock: Arc::clone(&self.clock) })
    }

    fn connected(&self, number: u64) {
        self.wakes.connected(number);
    }

    fn explain(&self, silence: StoreError) -> StoreError {
        match self.client.get_connection_info().addr() {
            ConnectionAddr::TcpTls { .. } => silence.advise(
                "a server that does not speak TLS on this port may say nothing: it needs redis://",
            ),
            _ => silence,
        }
    }
}

/// Makes connections, and keeps the one in use.
#[derive(Debug, Clone)]
pub(crate) struct Connector(Arc<connection::Connector<Server>>);

impl Connector {
    pub(crate) fn new(
        client: Client,
        clock: Arc<dyn Clock>,
        within: Duration,
        wakes: Arc<Wakes>,
    ) -> Self {
        let server = Server { client, clock: Arc::clone(&clock), wakes };
        Self(connection::Connector::new(server, clock, within))
    }

    /// The connection in use, or a new one where it has failed.
    pub(crate) async fn link(&self) -> Result<Link, StoreError> {
        self.0.link().await.map(Link)
    }

    /// The connection in use, if it can be used.
    pub(crate) fn in_use(&self) -> Option<Link> {
        self.0.in_use().map(Link)
    }

    /// Gives the connection up, and with it its subscriptions.
    pub(crate) fn disconnect(&self) {
        self.0.disconnect();
    }

    /// Runs what is to be asked of the server first, as long as connecting may take.
    pub(crate) async fn greet(
        &self,
        endpoint: &str,
        greeting: impl Future<Output = Result<(), StoreError>>,
    ) -> Result<(), Error> {
        self.0.greet("redis", endpoint, greeting).await
    }

    pub(crate) fn wakes(&self) -> &Arc<Wakes> {
        &self.0.dial().wakes
    }

    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        self.0.clock()
    }

    /// One that does not keep the connection alive.
    pub(crate) fn downgrade(&self) -> WeakConnector {
        WeakConnector(Arc::downgrade(&self.0))
    }
}

/// A [`Connector`] that may be gone.
#[derive(Debug)]
pub(crate) struct WeakConnector(Weak<connection::Connector<Server>>);

impl WeakConnector {
    pub(crate) fn upgrade(&self) -> Option<Connector> {
        self.0.upgrade().map(Connector)
    }
}

/// A connection that is subscribed before anything else is sent on it.
async fn connect(
    client: &Client,
    wakes: &Arc<Wakes>,
    health: &Arc<Health>,
    generation: u64,
) -> Result<MultiplexedConnection, RedisError> {
    let pushes = {
        let (wakes, health) = (Arc::clone(wakes), Arc::clone(health));
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
    // Requests are bounded by the core, connecting by the connector.
    let config = AsyncConnectionConfig::new()
        .set_response_timeout(None)
        .set_connection_timeout(None)
        .set_pipeline_buffer_size(BUFFERED_REQUESTS)
        .set_push_sender(pushes);
    let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
    connection.subscribe(wakes.channel()).await?;
    Ok(connection)
}

/// What commands are sent on.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    stream: MultiplexedConnection,
    clock: Arc<dyn Clock>,
}

/// A connection to send on.
#[derive(Debug, Clone)]
pub(crate) struct Link(connection::Link<Connection>);

impl Link {
    pub(crate) fn generation(&self) -> u64 {
        self.0.generation()
    }

    /// Sends a command. Dropped before the answer has come, it distrusts the connection.
    pub(crate) async fn send(&mut self, command: &Cmd) -> Result<Value, StoreError> {
        let mut stream = self.stream();
        let pending = self.0.request();
        over(pending, stream.send_packed_command(command).await)
    }

    /// Sends commands at once; each has an answer of its own, which may be an error.
    pub(crate) async fn send_all(&mut self, commands: &Pipeline) -> Result<Vec<Value>, StoreError> {
        let mut stream = self.stream();
        let pending = self.0.request();
        over(pending, stream.send_packed_commands(commands, 0, commands.len()).await)
    }

    /// Like [`send`](Link::send), for callers that may go away at any time: only the end of its
    /// own time limit distrusts the connection.
    pub(crate) async fn look(&mut self, command: &Cmd) -> Result<Value, StoreError> {
        let mut stream = self.stream();
        self.patiently(stream.send_packed_command(command)).await
    }

    /// Subscribes a channel, bounded as [`look`](Link::look) is.
    pub(crate) async fn subscribe(&mut self, channel: &str) -> Result<(), StoreError> {
        let mut stream = self.stream();
        let subscribed = async {
            match stream.subscribe(channel).await {
                // A refusal is an answer, and no sign of a lost connection.
                Err(refusal) if refusal.code().is_some() => Ok(Err(error::unconnected(refusal))),
                other => other.map(Ok),
            }
        };
        self.patiently(subscribed).await?
    }

    /// Unsubscribes a channel. That it fails has no consequence but a message too many.
    pub(crate) async fn unsubscribe(&mut self, channel: &str) {
        let mut stream = self.stream();
        drop(self.patiently(stream.unsubscribe(channel)).await);
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
        self.0.health().break_off();
        StoreError::unknown("the answer does not belong to the request")
    }

    fn leave_if_useless(&self, text: &str) {
        if error::wants_another_server(text) {
            self.0.health().break_off();
        }
    }

    fn stream(&self) -> MultiplexedConnection {
        self.0.connection.stream.clone()
    }

    async fn patiently<T>(
        &self,
        answer: impl Future<Output = Result<T, RedisError>>,
    ) -> Result<T, StoreError> {
        let clock = &self.0.connection.clock;
        let pending = self.0.look();
        tokio::select! {
            biased;
            answer = answer => over(pending, answer),
            () = clock.sleep_until(clock.now() + LOOK_LIMIT) => {
                pending.given_up();
                Err(StoreError::unknown(format!("no answer within {LOOK_LIMIT:?}")))
            }
        }
    }
}

fn over<T>(pending: Pending<'_>, answer: Result<T, RedisError>) -> Result<T, StoreError> {
    match answer {
        Ok(answer) => {
            pending.answered();
            Ok(answer)
        }
        Err(error) => {
            pending.failed();
            let reason = format!("the connection was lost: {error}");
            Err(StoreError::unknown(reason).caused_by(error))
        }
    }
}
