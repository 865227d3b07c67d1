//! Where the cluster is, and how to reach it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "client")]
use etcd_client::Client;
use etcd_client::{Compare, CompareOp, GetOptions, Txn, TxnOp};
use sync_core::backend::{Expiry, Profile};
use sync_core::connection;
use sync_core::{Coordinator, Error, ErrorKind, Options, StoreError};

use crate::backend::Etcd;
use crate::channel::Transport;
use crate::dial::{Connector, Members, Way, ask};
use crate::endpoint::Endpoint;
use crate::error::permissions;
use crate::keys::Keys;
use crate::tls::Tls;

/// How often the server is pinged while anything is awaited from it. A server refuses clients that
/// do so more often than each 5 s (`--grpc-keepalive-min-time`).
const PING_EACH: Duration = Duration::from_secs(10);

/// How long a ping may take.
const PING_WITHIN: Duration = Duration::from_secs(5);

/// The shortest of both that can be set.
const LEAST_PING: Duration = Duration::from_millis(500);

/// A cluster, how to reach it, and the options that are the same for every store.
///
/// ```no_run
/// # async fn example() -> Result<(), sync_etcd::Error> {
/// use std::time::Duration;
/// use sync_etcd::{Config, Options};
///
/// let sync = Config::new("http://10.0.0.1:2379,http://10.0.0.2:2379,http://10.0.0.3:2379")
///     .user("billing", "password")
///     .options(Options::new().namespace("billing").ttl(Duration::from_secs(10)))
///     .connect()
///     .await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Config {
    members: Result<Target, String>,
    user: Option<(String, String)>,
    ping_each: Duration,
    ping_within: Duration,
    options: Options,
    tls: Tls,
}

/// What is connected to.
#[derive(Clone)]
enum Target {
    Endpoints(Vec<Endpoint>),
    #[cfg(feature = "client")]
    Own(Box<Client>),
}

impl Config {
    /// The cluster whose members are at these URLs, joined by commas: `http://[user:password@]host[:port]`, or `https://…` with TLS. One is used at a time,
    /// the next when it fails; name all members. What cannot be used is told by
    /// [`connect`](Config::connect).
    #[must_use]
    pub fn new(endpoints: impl AsRef<str>) -> Self {
        let read = |(number, url): (usize, &str)| {
            Endpoint::read(url.trim()).map_err(|why| format!("endpoint {}: {why}", number + 1))
        };
        let read: Result<Vec<_>, _> = endpoints.as_ref().split(',').enumerate().map(read).collect();
        Self::at(read.map(Target::Endpoints))
    }

    /// The cluster that this client is connected to. How it connects is its own affair: this crate
    /// can only open other streams on it, not go to another member.
    ///
    /// Give it timeouts, [`keep_alive`](etcd_client::ConnectOptions::with_keep_alive) and
    /// [`require_leader`](etcd_client::ConnectOptions::with_require_leader), which it has not by
    /// itself. The type is `etcd_client`'s own: this method is outside this crate's promise of
    /// compatibility and follows the version of that crate.
    #[cfg(feature = "client")]
    #[must_use]
    pub fn from_client(client: Client) -> Self {
        Self::at(Ok(Target::Own(Box::new(client))))
    }

    fn at(members: Result<Target, String>) -> Self {
        Self {
            members,
            user: None,
            ping_each: PING_EACH,
            ping_within: PING_WITHIN,
            options: Options::new(),
            tls: Tls::default(),
        }
    }

    /// Sets namespace, TTL and the rest that is the same for every store.
    #[must_use]
    pub fn options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    /// Logs in as this user. It comes before what the URLs say.
    #[must_use]
    pub fn user(mut self, name: impl Into<String>, password: impl Into<String>) -> Self {
        self.user = Some((name.into(), password.into()));
        self
    }

    /// Sets how often the server is pinged while anything is awaited from it, and how long the
    /// answer may take before the connection is given up. Default: each 10 s, 5 s. Servers refuse
    /// clients that ping more often than each 5 s, unless told otherwise; less than 0.5 s of either
    /// is refused.
    #[must_use]
    pub fn keep_alive(mut self, interval: Duration, timeout: Duration) -> Self {
        (self.ping_each, self.ping_within) = (interval, timeout);
        self
    }

    /// Connects, finds out whether the user may do what is needed, and makes a coordinator.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for URLs or options that cannot be used, and for endpoints of
    /// different clusters; [`ErrorKind::Unsupported`] for `https` where this build has no TLS;
    /// [`ErrorKind::Unreachable`] where no member answers within the connect timeout;
    /// [`ErrorKind::Denied`] with what is missing.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection again; nothing is left in the store.
    pub async fn connect(self) -> Result<Coordinator, Error> {
        let options = self.options.clone();
        let backend = self.backend().await?;
        Coordinator::new(Arc::new(backend), &options)
    }

    /// Connects as [`connect`](Config::connect) does, but gives what a coordinator is made of: for
    /// those who test or decorate a [`Backend`](sync_core::Backend).
    ///
    /// # Errors
    /// As for [`connect`](Config::connect).
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection again; nothing is left in the store.
    pub async fn backend(self) -> Result<Etcd, Error> {
        let options = self.options.clone();
        let keys = Keys::new(&options.parsed_namespace()?);
        let environment = options.to_environment();
        let random = environment.nonce()?.to_hex();
        let first = u64::from_str_radix(&random[..8], 16).unwrap_or(0);
        let (way, endpoint) = self.way()?;
        let profile = Profile::new("etcd", &endpoint, Expiry::Session);

        options.check(&profile)?;
        let clock = Arc::clone(&environment.clock);
        let members = Members::new(way, first, Arc::clone(&clock));
        let connector = connection::Connector::new(members, clock, options.within());
        connector.greet("etcd", &endpoint, greet(&connector, &keys)).await?;
        Ok(Etcd::new(profile, keys, environment, connector))
    }

    /// How connections are made, and where to, for errors and logs.
    fn way(self) -> Result<(Way, String), Error> {
        let invalid = |reason: String| Error::new(ErrorKind::Invalid, "use the etcd URLs", reason);
        let endpoints = match self.members {
            Ok(Target::Endpoints(endpoints)) => endpoints,
            #[cfg(feature = "client")]
            Ok(Target::Own(client)) => {
                return Ok((Way::Own(client), "the client that was given".into()));
            }
            Err(reason) => return Err(invalid(reason)),
        };
        let shown: Vec<&str> = endpoints.iter().map(|endpoint| endpoint.url.as_str()).collect();
        let shown = shown.join(",");
        let mut users = endpoints.iter().filter_map(|endpoint| endpoint.user.clone());
        let first = users.next();
        if self.user.is_none() && users.any(|user| Some(&user) != first.as_ref()) {
            return Err(invalid("its URLs name different users".into()));
        }
        if self.ping_each < LEAST_PING || self.ping_within < LEAST_PING {
            let reason = format!("{:?} and {:?} are too short", self.ping_each, self.ping_within);
            return Err(Error::new(ErrorKind::Invalid, "use Config::keep_alive", reason).advise(
                "half a second is the least; servers want 5 s between pings unless told otherwise",
            ));
        }
        let https = endpoints.iter().filter(|endpoint| endpoint.is_https()).count();
        if https > 0 && https < endpoints.len() {
            return Err(invalid("some of its URLs are https:// and others http://".into()));
        }
        let transport = Transport {
            ping_each: self.ping_each,
            ping_within: self.ping_within,
            connect_within: self.options.within(),
            tls: self.tls.read(https > 0)?,
        };
        let user = self.user.or(first);
        Ok((Way::Endpoints { endpoints, transport: Box::new(transport), user }, shown))
    }

    #[cfg(any(feature = "rustls-ring", feature = "rustls-aws-lc"))]
    pub(crate) fn tls(&mut self) -> &mut Tls {
        &mut self.tls
    }
}

/// Asks what is to be known before anything is held: whether the members are of one cluster, and
/// whether the user may read and write the namespace. Changes nothing, but goes the way of a
/// change, so a cluster that has lost its majority does not pass.
async fn greet(connector: &Arc<Connector>, keys: &Keys) -> Result<(), StoreError> {
    let link = connector.link().await?;
    connector.dial().check_all().await?;
    let (start, end) = keys.range();
    let never = Compare::version(start.as_str(), CompareOp::Less, 0);
    // Of keys that are nobody's, should a server take it for true.
    let writes = ["lock/", "leader/", "void/"].map(|kind| [&start, kind].concat());
    let first = GetOptions::new().with_range(end.as_str()).with_limit(1).with_keys_only();
    let probe = Txn::new()
        .when([never])
        .and_then(writes.map(|key| TxnOp::delete(key, None)))
        .or_else([TxnOp::get(start.as_str(), Some(first))]);
    let probed = ask(&link, || {
        let (mut kv, probe) = (link.connection.kv(), probe.clone());
        async move { kv.txn(probe).await }
    });
    probed.await.map(drop).map_err(|failure| match failure.is_permission() {
        true => failure.into_store().advise(permissions(&start, &end)),
        false => failure.into_store(),
    })
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Config");
        if let Ok(Target::Endpoints(endpoints)) = &self.members {
            shown.field("endpoints", endpoints);
        }
        shown.field("options", &self.options).finish_non_exhaustive()
    }
}
