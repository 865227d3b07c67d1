//! Connections to the members of a cluster: one in use, the next when it is no longer to be trusted.
//!
//! The client library can balance several endpoints on one channel, but does not notice that one is
//! dead: so there is a client of its own for each connection, to one member.

use std::fmt;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{
    Client, ConnectOptions, Error, KvClient, LeaseClient, ResponseHeader, StatusResponse,
    WatchClient,
};
use sync_core::connection::{self, Dial, Health, Pending};
use sync_core::{Clock, ErrorKind, StoreError};

use crate::channel::Transport;
use crate::endpoint::Endpoint;
use crate::error::{Failure, unconnected};
use crate::mutant;

/// How long a look at the other members may delay connecting.
const CENSUS: Duration = Duration::from_millis(500);

/// How long an answer may take that nobody else bounds.
const LOOK_LIMIT: Duration = Duration::from_secs(2);

/// A lease that nobody has.
const NO_LEASE: i64 = 1;

/// The oldest without known bugs that void the promise.
const LEAST_VERSION: [u64; 3] = [3, 5, 30];

pub(crate) type Connector = connection::Connector<Members>;
pub(crate) type Link = connection::Link<Connection>;

/// The members, and how they are connected to.
pub(crate) struct Members {
    way: Way,
    /// Where the first attempt goes, so that not all processes are at the same member.
    first: u64,
    clock: Arc<dyn Clock>,
    /// The cluster that the first answer came from.
    cluster: OnceLock<u64>,
}

/// How a connection comes about.
pub(crate) enum Way {
    /// By a client to each member.
    Endpoints {
        endpoints: Vec<Endpoint>,
        transport: Box<Transport>,
        user: Option<(String, String)>,
    },
    /// By the user's own client, which sees to connections itself.
    #[cfg(feature = "client")]
    Own(Box<Client>),
}

impl Members {
    pub(crate) fn new(way: Way, first: u64, clock: Arc<dyn Clock>) -> Self {
        Self { way, first, clock, cluster: OnceLock::new() }
    }

    async fn client(&self, number: u64) -> Result<(Client, String), StoreError> {
        match &self.way {
            Way::Endpoints { endpoints, transport, user } => {
                let count = endpoints.len().max(1) as u64;
                let index = usize::try_from(self.first.wrapping_add(number) % count).unwrap_or(0);
                let index = mutant::member(index);
                let Some(endpoint) = endpoints.get(index) else {
                    return Err(StoreError::refused(ErrorKind::Invalid, "there is no endpoint"));
                };
                let url = endpoint.url.clone();
                let made = connect(&url, transport, user.as_ref()).await;
                let made = made.map_err(|error| unconnected(&url, Failure::from(error)))?;
                mutant::connected(index);
                Ok((made, url))
            }
            #[cfg(feature = "client")]
            Way::Own(client) => Ok((Client::clone(client), "the client that was given".into())),
        }
    }

    fn user(&self) -> Option<&(String, String)> {
        match &self.way {
            Way::Endpoints { user, .. } => user.as_ref(),
            #[cfg(feature = "client")]
            Way::Own(_) => None,
        }
    }

    /// Sees to it that all members that answer soon are of one cluster.
    pub(crate) async fn check_all(&self) -> Result<(), StoreError> {
        let (endpoints, transport, user) = match &self.way {
            Way::Endpoints { endpoints, transport, user } if endpoints.len() > 1 => {
                (endpoints, transport, user.as_ref())
            }
            _ => return Ok(()),
        };
        let until = self.clock.now() + CENSUS;
        for Endpoint { url, .. } in endpoints {
            let header = async {
                // Logging in costs the server much: only where it tells strangers nothing.
                let client = connect(url, transport, None).await.ok()?;
                match client.maintenance_client().status().await.map_err(Failure::from) {
                    Ok(mut status) => status.take_header(),
                    Err(Failure::Answer(_)) if user.is_some() => {
                        let client = connect(url, transport, user).await.ok()?;
                        header(&client).await.ok()?
                    }
                    Err(_) => None,
                }
            };
            let header = tokio::select! {
                biased;
                header = header => header,
                () = self.clock.sleep_until(until) => return Ok(()),
            };
            self.check_cluster(url, header.as_ref())?;
        }
        Ok(())
    }

    fn check_cluster(&self, url: &str, header: Option<&ResponseHeader>) -> Result<(), StoreError> {
        let Some(cluster) = header.map(ResponseHeader::cluster_id) else { return Ok(()) };
        if *self.cluster.get_or_init(|| cluster) == cluster {
            return Ok(());
        }
        let reason = format!("{url} belongs to another cluster than was connected to first");
        Err(StoreError::refused(ErrorKind::Invalid, reason).advise(
            "name the members of one cluster only, since two lock nothing together; if the cluster \
             was built anew or restored, start this process again",
        ))
    }

    /// Whether this member belongs to the cluster, and takes part in it now.
    fn check(&self, url: &str, status: &StatusResponse) -> Result<(), StoreError> {
        self.check_cluster(url, status.header())?;
        if status.is_learner() {
            return Err(StoreError::unsent(format!("{url} is a learner, which serves nobody")));
        }
        match status.leader() {
            0 => Err(StoreError::unsent(format!("{url} has no leader"))),
            _ => Ok(()),
        }
    }
}

/// What a server tells of itself to whoever is logged in; its status it tells to few.
async fn header(client: &Client) -> Result<Option<ResponseHeader>, Error> {
    Ok(client.lease_client().time_to_live(NO_LEASE, None).await?.take_header())
}

async fn connect(
    url: &str,
    transport: &Transport,
    user: Option<&(String, String)>,
) -> Result<Client, Error> {
    let options = ConnectOptions::new().with_require_leader(true);
    if let Some((name, password)) = user {
        let options = options.clone().with_user(name, password);
        match Client::from_channel(transport.channel(url)?, Some(options)).await {
            Err(Error::GRpcStatus(status))
                if Failure::from(Error::GRpcStatus(status.clone())).is_without_auth() =>
            {
                tracing::warn!(
                    endpoint = url,
                    "user and password are not asked for here: auth is off"
                );
            }
            other => return other,
        }
    }
    Client::from_channel(transport.channel(url)?, Some(options)).await
}

#[async_trait]
impl Dial for Members {
    type Connection = Connection;

    async fn dial(&self, number: u64, _: &Arc<Health>) -> Result<Connection, StoreError> {
        let (client, url) = self.client(number).await?;
        // The library connects with the first request.
        match client.maintenance_client().status().await.map_err(Failure::from) {
            Ok(status) => {
                self.check(&url, &status)?;
                if number == 1 {
                    warn_of_age(&url, status.version());
                }
            }
            Err(failure) if failure.wants_another_member() => {
                return Err(unconnected(&url, failure));
            }
            // That it does not tell everybody.
            Err(_) => match header(&client).await.map_err(Failure::from) {
                Ok(header) => self.check_cluster(&url, header.as_ref())?,
                Err(failure) if failure.wants_another_member() => {
                    return Err(unconnected(&url, failure));
                }
                Err(_) => {}
            },
        }
        let clients = Clients {
            kv: client.kv_client(),
            lease: client.lease_client(),
            watch: client.watch_client(),
            client,
            logins: AtomicU64::new(0),
            logging_in: tokio::sync::Mutex::default(),
            user: self.user().cloned(),
            clock: Arc::clone(&self.clock),
        };
        Ok(Connection(Arc::new(clients)))
    }

    fn servers(&self) -> u64 {
        match &self.way {
            Way::Endpoints { endpoints, .. } => endpoints.len() as u64,
            #[cfg(feature = "client")]
            Way::Own(_) => 1,
        }
    }
}

impl fmt::Debug for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.way {
            Way::Endpoints { endpoints, .. } => f.debug_tuple("Members").field(endpoints).finish(),
            #[cfg(feature = "client")]
            Way::Own(_) => f.debug_tuple("Members").finish_non_exhaustive(),
        }
    }
}

fn warn_of_age(url: &str, version: &str) {
    let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0);
    if [next(), next(), next()] < LEAST_VERSION {
        tracing::warn!(
            endpoint = url,
            version,
            "this version of etcd has bugs that can end or revive leases wrongly, and so give a lock \
             away: 3.5.30 or later is needed"
        );
    }
}

/// What requests are sent on.
#[derive(Clone)]
pub(crate) struct Connection(Arc<Clients>);

struct Clients {
    kv: KvClient,
    lease: LeaseClient,
    watch: WatchClient,
    client: Client,
    /// How often it has logged in anew.
    logins: AtomicU64,
    /// One at a time.
    logging_in: tokio::sync::Mutex<()>,
    user: Option<(String, String)>,
    clock: Arc<dyn Clock>,
}

impl Connection {
    pub(crate) fn kv(&self) -> KvClient {
        self.0.kv.clone()
    }

    pub(crate) fn lease(&self) -> LeaseClient {
        self.0.lease.clone()
    }

    pub(crate) fn watch(&self) -> WatchClient {
        self.0.watch.clone()
    }

    /// Whose token the requests that begin now send, or a later one's.
    pub(crate) fn login(&self) -> Login {
        Login(self.0.logins.load(Ordering::Acquire))
    }

    /// Logs in again, or for the first time where users were turned on meanwhile; unless somebody
    /// else has since `refused`: a server can stand few logins, and all requests lose their token at
    /// the same time. The library does so by itself only where a token has run out.
    pub(crate) async fn refresh_token(&self, refused: Login) -> Result<(), Error> {
        let _one = self.0.logging_in.lock().await;
        if self.login() == refused {
            match &self.0.user {
                // All clients of the connection share what this changes.
                Some(user) => self.0.client.clone().update_user(Some(user.clone())).await?,
                None => self.0.client.refresh_token().await?,
            }
            self.0.logins.fetch_add(1, Ordering::Release);
        }
        Ok(())
    }
}

/// Which login a token stems from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Login(u64);

/// Sends a request, and once more with a fresh token if that is what the server wants. Dropped
/// before the answer has come, it distrusts the connection.
pub(crate) async fn ask<T, R>(link: &Link, request: impl FnMut() -> R) -> Result<T, Failure>
where
    R: Future<Output = Result<T, Error>>,
{
    exchange(link, sent, request).await
}

/// [`ask`] for callers that may go away at any time: only the end of its own time limit distrusts
/// the connection.
pub(crate) async fn look<T, R>(link: &Link, request: impl FnMut() -> R) -> Result<T, StoreError>
where
    R: Future<Output = Result<T, Error>>,
{
    let clock = &link.connection.0.clock;
    let pending = link.look();
    tokio::select! {
        biased;
        answer = exchange(link, Link::look, request) => answer.map_err(Failure::into_store),
        () = clock.sleep_until(clock.now() + LOOK_LIMIT) => {
            pending.given_up();
            Err(StoreError::unknown(format!("no answer within {LOOK_LIMIT:?}")))
        }
    }
}

/// A request that distrusts the connection if it is dropped before its answer has come.
pub(crate) fn sent(link: &Link) -> Pending<'_> {
    if mutant::on(mutant::SILENCE_TRUSTED) { link.look() } else { link.request() }
}

async fn exchange<T, R>(
    link: &Link,
    pending: impl Fn(&Link) -> Pending<'_>,
    mut request: impl FnMut() -> R,
) -> Result<T, Failure>
where
    R: Future<Output = Result<T, Error>>,
{
    let login = link.connection.login();
    match over(pending(link), request().await) {
        Err(failure) if failure.wants_fresh_token() => {
            over(pending(link), link.connection.refresh_token(login).await)?;
            over(pending(link), request().await)
        }
        other => other,
    }
}

/// What an answer, or the lack of one, says of the connection.
pub(crate) fn over<T>(pending: Pending<'_>, answer: Result<T, Error>) -> Result<T, Failure> {
    let answer = answer.map_err(Failure::from);
    match &answer {
        Err(failure) if failure.wants_another_member() => pending.failed(),
        _ => pending.answered(),
    }
    answer
}
