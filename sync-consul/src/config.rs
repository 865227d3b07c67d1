//! Where the agent is, how to reach it, and what sessions are like.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use reqwest::{Client, Url, redirect, retry};
use sync_core::backend::{Expiry, Profile};
#[cfg(feature = "tls")]
use sync_core::tls::Pem;
use sync_core::{Coordinator, Error, ErrorKind, Options, StoreError};

use crate::api::Api;
use crate::backend::{Consul, Settings};
use crate::error;
use crate::http::{Agents, Base, Http, Recipe};
use crate::keys::Keys;
use crate::probe;
use crate::tls::{Prepared, Tls};
use crate::token::{Credentials, Token};

/// Below this Consul refuses a TTL, unless `session_ttl_min` says otherwise.
const LEAST_TTL: Duration = Duration::from_secs(10);

/// Above these it refuses a TTL, and a lock-delay.
const LONGEST_TTL: Duration = Duration::from_secs(24 * 3600);
const LONGEST_LOCK_DELAY: Duration = Duration::from_secs(60);

/// How long a long poll waits for a change.
const POLL: Duration = Duration::from_secs(10);

/// A connection that nobody has used for so long is closed, before the agent does.
const IDLE: Duration = Duration::from_secs(60);

/// An agent, how to reach it, and the options that are the same for every store.
///
/// ```no_run
/// # async fn example() -> Result<(), sync_consul::Error> {
/// use std::time::Duration;
/// use sync_consul::{Config, Options};
///
/// let sync = Config::new("http://127.0.0.1:8500")
///     .options(Options::new().namespace("billing").ttl(Duration::from_secs(10)))
///     .token("2f0e…")
///     .connect()
///     .await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Config {
    pub(crate) urls: String,
    /// What errors call these.
    pub(crate) called: &'static str,
    pub(crate) options: Options,
    pub(crate) credentials: Credentials,
    datacenter: Option<String>,
    pub(crate) enterprise_namespace: Option<String>,
    pub(crate) enterprise_partition: Option<String>,
    settings: Settings,
    least_ttl: Duration,
    pub(crate) tls: Tls,
    /// What the environment holds that cannot be used.
    pub(crate) invalid: Option<String>,
}

/// What a session's end does to the keys that it has locked.
///
/// ```
/// let config = sync_consul::Config::new("http://127.0.0.1:8500")
///     .behavior(sync_consul::Behavior::Release);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Behavior {
    /// They are deleted: nothing is left of a dead process.
    #[default]
    Delete,
    /// They stay, without a session, so that the value of a dead leader can still be read. So do
    /// its places in lines and its markers, which others pass over.
    Release,
}

impl Config {
    /// The agent at a URL: `http://[user:password@]host:port`, `https://…` with TLS, `unix:///path`
    /// for a socket. User and password are for a proxy before the agent (basic authentication).
    /// Several agents of one datacenter may be joined by commas: the next is used when one does not
    /// answer. What cannot be used is told by [`connect`](Config::connect).
    #[must_use]
    pub fn new(url: impl AsRef<str>) -> Self {
        Self {
            urls: url.as_ref().to_owned(),
            called: "its URL",
            options: Options::new(),
            credentials: Credentials::default(),
            datacenter: None,
            enterprise_namespace: None,
            enterprise_partition: None,
            settings: Settings {
                lock_delay: Duration::from_secs(1),
                strict: false,
                behavior: "delete",
                node_checks: Vec::new(),
                service_checks: Vec::new(),
            },
            least_ttl: LEAST_TTL,
            tls: Tls::default(),
            invalid: None,
        }
    }

    /// The agent that the variables of Consul's own tools name: `CONSUL_HTTP_ADDR`,
    /// `CONSUL_HTTP_SSL`, `CONSUL_HTTP_SSL_VERIFY`, `CONSUL_HTTP_TOKEN`, `CONSUL_HTTP_TOKEN_FILE`,
    /// `CONSUL_HTTP_AUTH`, `CONSUL_CACERT`, `CONSUL_CLIENT_CERT`, `CONSUL_CLIENT_KEY`,
    /// `CONSUL_NAMESPACE` and `CONSUL_PARTITION`. Nothing else ever reads them.
    #[must_use]
    pub fn from_env() -> Self {
        crate::env::read(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    /// Sets the agent's URL and leaves all else as it is.
    #[must_use]
    pub fn url(self, url: impl AsRef<str>) -> Self {
        Self { urls: url.as_ref().to_owned(), called: "its URL", ..self }
    }

    /// Sets namespace, TTL and the rest that is the same for every store.
    #[must_use]
    pub fn options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    /// The ACL token, sent as a header. Without one, or with an empty one, the agent's own counts, or
    /// the anonymous one.
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Self {
        let token = token.into();
        self.credentials.token =
            if token.is_empty() { Token::None } else { Token::Value(token.into()) };
        self
    }

    /// A file that holds the ACL token. It is read for each request: its content may change.
    #[must_use]
    pub fn token_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.credentials.token = Token::File(path.into());
        self
    }

    /// The datacenter whose servers decide, default the agent's.
    #[must_use]
    pub fn datacenter(mut self, datacenter: impl Into<String>) -> Self {
        self.datacenter = Some(datacenter.into());
        self
    }

    /// The namespace of Consul Enterprise in which keys and sessions are. It has nothing to do with
    /// [`Options::namespace`], which all keys begin with.
    #[must_use]
    pub fn enterprise_namespace(mut self, namespace: impl Into<String>) -> Self {
        self.enterprise_namespace = Some(namespace.into());
        self
    }

    /// The admin partition of Consul Enterprise in which keys and sessions are.
    #[must_use]
    pub fn enterprise_partition(mut self, partition: impl Into<String>) -> Self {
        self.enterprise_partition = Some(partition.into());
        self
    }

    /// For how long nobody can take a name whose holder's session was ended from outside or ran
    /// out, default 1 s, at most 60 s. A release is not delayed.
    ///
    /// With the default, a holder whose session is destroyed is told before anybody else can be
    /// granted the name. It does not cover a server that was stopped for long and leads again.
    #[must_use]
    pub fn lock_delay(mut self, delay: Duration) -> Self {
        self.settings.lock_delay = delay;
        self
    }

    /// A lock-delay of at least the TTL, which may be 60 s at most then.
    ///
    /// A server that was stopped while it led, and leads again, may end sessions that were renewed
    /// meanwhile; with this nobody else is granted their names before their holders' deadlines. The
    /// price: after the death of a holder its names are blocked for one TTL longer.
    #[must_use]
    pub fn strict_lock_delay(mut self) -> Self {
        self.settings.strict = true;
        self
    }

    /// What a session's end does to its keys, default [`Behavior::Delete`].
    #[must_use]
    pub fn behavior(mut self, behavior: Behavior) -> Self {
        self.settings.behavior = match behavior {
            Behavior::Delete => "delete",
            Behavior::Release => "release",
        };
        self
    }

    /// Checks of the agent's node by which sessions live, such as `serfHealth`, default none: with
    /// that one, trouble on the agent's network ends every session at once.
    #[must_use]
    pub fn node_checks<S: Into<String>>(mut self, ids: impl IntoIterator<Item = S>) -> Self {
        self.settings.node_checks = ids.into_iter().map(Into::into).collect();
        self
    }

    /// Checks of services on the agent's node by which sessions live, by their ids, default none.
    #[must_use]
    pub fn service_checks<S: Into<String>>(mut self, ids: impl IntoIterator<Item = S>) -> Self {
        self.settings.service_checks = ids.into_iter().map(Into::into).collect();
        self
    }

    /// The shortest TTL that the servers accept: their `session_ttl_min`, default 10 s.
    #[must_use]
    pub fn least_ttl(mut self, ttl: Duration) -> Self {
        self.least_ttl = ttl;
        self
    }

    /// Trusts the certificates in `pem` and no others.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn ca(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.tls.ca = Some(Pem::Text(pem.into()));
        self
    }

    /// Trusts the certificates in a file and no others.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.tls.ca = Some(Pem::File(path.into()));
        self
    }

    /// Shows the agent this certificate (with its chain) and proves it by this key, both as PEM.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn identity(mut self, certificate: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.tls.identity = Some((Pem::Text(certificate.into()), Pem::Text(key.into())));
        self
    }

    /// The same with both in files.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn identity_files(
        mut self,
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Self {
        self.tls.identity = Some((Pem::File(certificate.into()), Pem::File(key.into())));
        self
    }

    /// Takes whatever certificate the agent shows: anybody on the way can read and change
    /// everything, the token included. Without this call `CONSUL_HTTP_SSL_VERIFY=false` is refused.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn danger_accept_invalid_certificates(mut self) -> Self {
        self.tls.unchecked = true;
        self
    }

    /// Connects, finds out whether the token may do what is needed, and makes a coordinator.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for a URL or options that cannot be used, also for a least TTL that
    /// the agent does not accept; [`ErrorKind::Unsupported`] for `https` where this build has no TLS;
    /// [`ErrorKind::Unreachable`] where no agent that knows a leader answers within the connect
    /// timeout; [`ErrorKind::Denied`] with what is missing.
    ///
    /// # Cancel safety
    /// Dropping the future may leave a session without keys, which ends with its TTL.
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
    /// As for [`connect`](Config::connect).
    pub async fn backend(self) -> Result<Consul, Error> {
        let options = self.options.clone();
        let keys = Keys::new(&options.parsed_namespace()?);
        let environment = options.to_environment();
        let nonce = environment.nonce()?;
        let (agents, endpoint) = self.agents(&keys)?;
        let Self { settings, least_ttl, .. } = self;
        let longest = if settings.strict { LONGEST_LOCK_DELAY } else { LONGEST_TTL };
        let profile = Profile::new("consul", &endpoint, Expiry::Session).ttl(least_ttl..=longest);
        let too_long =
            if settings.strict { "Config::strict_lock_delay allows no more" } else { "" };
        let profile = profile
            .advise("Config::least_ttl says so: set it to the servers' session_ttl_min", too_long);
        if least_ttl.is_zero() {
            return Err(invalid("a least TTL of zero is below what any agent accepts"));
        }
        options.check(&profile)?;
        if settings.lock_delay > LONGEST_LOCK_DELAY {
            let delay = settings.lock_delay;
            return Err(invalid(format!(
                "a lock-delay of {delay:?} is above {LONGEST_LOCK_DELAY:?}, the longest on consul"
            )));
        }
        let http = Http::new(agents, Arc::clone(&environment.clock), options.within());
        // So that a call which reads and then writes is not given up for a slow read.
        let read_limit = options.answered_within() / 4 * 3;
        let api = Api { http: http.clone(), read_limit };
        let probing = probe::probe(&api, &keys, &settings, nonce, least_ttl);
        http.connector().greet("consul", &endpoint, probing).await?;
        Ok(Consul::new(profile, keys, settings, environment, api, POLL))
    }

    /// The agents, and what errors and logs call them.
    fn agents(&self, keys: &Keys) -> Result<(Agents, String), Error> {
        if let Some(why) = &self.invalid {
            return Err(invalid(why.clone()));
        }
        let (mut bases, mut endpoints, mut socket) = (Vec::new(), Vec::new(), None);
        let mut basic = None;
        for url in self.urls.split(',').map(str::trim) {
            if let Some(path) = url.strip_prefix("unix://") {
                socket = Some(PathBuf::from(path));
                endpoints.push(url.to_owned());
                bases.push(parse("http://consul", self.called)?.base);
                continue;
            }
            let Place { base, endpoint, basic: user } = parse(url, self.called)?;
            bases.push(base);
            endpoints.push(endpoint);
            basic = basic.or(user);
        }
        if socket.is_some() && bases.len() > 1 {
            return Err(invalid("a socket stands among several agents"));
        }
        let secure = bases.iter().filter(|base| base.scheme() == "https").count();
        if secure != 0 && secure != bases.len() {
            return Err(invalid("some of its URLs are https:// and others http://"));
        }
        if secure == 0 && socket.is_none() && self.tls.is_given() {
            return Err(invalid("certificates were given, but the URLs are http://")
                .advise("write https://"));
        }
        let recipe = self.recipe(secure > 0, socket)?;
        let mut credentials = self.credentials.clone();
        credentials.basic = basic.or(credentials.basic);
        credentials.headers().map_err(|error| invalid(error.to_string()))?;
        let given = !matches!(credentials.token, Token::None);
        let needed = error::permissions(keys.prefix(), given).into();
        let several = bases.len() > 1;
        let base = |(url, endpoint): (Url, &String)| Base {
            url,
            name: several.then(|| endpoint.as_str().into()),
        };
        let bases = bases.into_iter().zip(&endpoints).map(base).collect();
        let places = self.places()?;
        Ok((Agents { bases, recipe, credentials, places, needed }, endpoints.join(",")))
    }

    /// What each request asks for.
    fn places(&self) -> Result<String, Error> {
        let places = [
            ("dc", &self.datacenter),
            ("ns", &self.enterprise_namespace),
            ("partition", &self.enterprise_partition),
        ];
        let given = places.iter().filter_map(|(name, value)| Some((name, value.as_deref()?)));
        let url = Url::parse_with_params("http://consul", given)
            .map_err(|error| invalid(error.to_string()))?;
        Ok(url.query().unwrap_or_default().to_owned())
    }

    /// How clients are made. One is made at once, so that what cannot be used is told early.
    fn recipe(&self, tls: bool, socket: Option<PathBuf>) -> Result<Recipe, Error> {
        let tls = if tls { self.tls.prepare()? } else { Prepared::for_plain_text()? };
        let within = self.options.within();
        let recipe = move |spare| {
            let client = Client::builder()
                .no_proxy()
                .redirect(redirect::Policy::none())
                .retry(retry::never())
                .referer(false)
                .user_agent(concat!("sync-consul/", env!("CARGO_PKG_VERSION")))
                .tcp_nodelay(true)
                .tcp_keepalive(Duration::from_secs(15))
                .connect_timeout(within)
                .pool_idle_timeout(IDLE)
                .pool_max_idle_per_host(spare);
            #[cfg(unix)]
            let client = match &socket {
                Some(path) => client.unix_socket(path.clone()),
                None => client,
            };
            let client = tls.apply(client);
            client.build().map_err(error::unconnected)
        };
        recipe(0).map_err(|error: StoreError| match error.kind() {
            // All else has been looked at.
            ErrorKind::Invalid => sync_core::tls::unusable(&error.to_string()),
            _ => invalid(error.to_string()),
        })?;
        Ok(Arc::new(recipe))
    }
}

/// What a URL says of an agent.
struct Place {
    /// Without user and password.
    base: Url,
    /// Host and port.
    endpoint: String,
    /// `user:password`.
    basic: Option<String>,
}

/// Reads a URL. What is wrong with it is said without repeating it: it may hold a password.
fn parse(url: &str, called: &str) -> Result<Place, Error> {
    let refused = |why: &str| {
        invalid(format!("{called} cannot be read: {why}"))
            .advise("write http://host:8500, https://… or unix:///path; commas join several")
    };
    if !url.starts_with("http://") && !url.starts_with("https://") {
        return Err(refused("it begins with none of http://, https:// and unix://"));
    }
    let mut parsed = Url::parse(url).map_err(|error| refused(&error.to_string()))?;
    if parsed.query().is_some() || parsed.fragment().is_some() {
        return Err(refused("it holds a query or a fragment"));
    }
    let (Some(host), Some(port)) = (parsed.host_str(), parsed.port_or_known_default()) else {
        return Err(refused("it names no host"));
    };
    let endpoint = format!("{host}:{port}");
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let user = decoded(parsed.username());
    let password = parsed.password().map(decoded);
    let basic = match (user.is_empty(), password) {
        (true, None) => None,
        (_, password) => Some(format!("{user}:{}", password.unwrap_or_default())),
    };
    // A place without a host has none to take them off, and there is none.
    let _ = (parsed.set_username(""), parsed.set_password(None));
    Ok(Place { base: parsed, endpoint, basic })
}

pub(crate) fn invalid(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::Invalid, "use the configuration for consul", reason)
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut credentials = self.credentials.clone();
        let places = self.urls.split(',').map(|url| {
            let Place { endpoint, basic, .. } = parse(url, self.called).ok()?;
            credentials.basic = credentials.basic.take().or(basic);
            Some(endpoint)
        });
        let endpoint: Vec<_> = places.collect();
        f.debug_struct("Config")
            .field("endpoint", &endpoint)
            .field("options", &self.options)
            .field("credentials", &credentials)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
