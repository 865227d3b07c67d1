//! Where the server is, and how to reach it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion};
use sync_core::backend::{Expiry, Profile};
use sync_core::{Coordinator, Error, ErrorKind, Options};

use crate::backend::Redis;
use crate::connection::Connector;
use crate::keys::Keys;
use crate::probe;
use crate::wake::Wakes;

/// Redis keeps expiries in whole milliseconds, by a clock that it reads once a command.
const ROUNDING: Duration = Duration::from_millis(2);

/// The library's words for a URL with TLS in a build without.
const NO_TLS: &str = "can't connect with TLS, the feature is not enabled";

/// A server, how to reach it, and the options that are the same for every store.
///
/// ```no_run
/// # async fn example() -> Result<(), sync_redis::Error> {
/// use std::time::Duration;
/// use sync_redis::{Config, Options};
///
/// let sync = Config::new("redis://user:password@127.0.0.1:6379/0")
///     .options(Options::new().namespace("billing").ttl(Duration::from_secs(10)))
///     .connect()
///     .await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Config {
    server: Result<ConnectionInfo, String>,
    options: Options,
    #[cfg(feature = "tls")]
    ca: Option<Vec<u8>>,
    #[cfg(feature = "tls")]
    identity: Option<(Vec<u8>, Vec<u8>)>,
    #[cfg(feature = "tls")]
    unchecked_certificates: bool,
}

impl Config {
    /// The server at a URL: `redis://[user[:password]@]host[:port][/db]`, `rediss://…` with TLS,
    /// `redis+unix:///path[?db=N][&user=U][&pass=P]` for a socket. `valkey` stands for `redis` as
    /// well. What cannot be used is told by [`connect`](Config::connect).
    #[must_use]
    pub fn new(url: impl AsRef<str>) -> Self {
        // The library's own text may repeat parts of the URL, and so a password.
        let read = url.as_ref().into_connection_info().map_err(|error| {
            let text = error.to_string();
            match text.split_once(" - ") {
                Some((reason, _)) => reason.to_owned(),
                None => "it is none".to_owned(),
            }
        });
        Self::at(read)
    }

    /// The server that this client connects to. Everything but the protocol version and the
    /// settings of the socket is taken from it.
    ///
    /// The type is `redis`'s own: this method is outside this crate's promise of compatibility and
    /// follows the version of that crate.
    #[cfg(feature = "client")]
    #[must_use]
    pub fn from_client(client: &Client) -> Self {
        Self::at(Ok(client.get_connection_info().clone()))
    }

    fn at(server: Result<ConnectionInfo, String>) -> Self {
        Self {
            server,
            options: Options::new(),
            #[cfg(feature = "tls")]
            ca: None,
            #[cfg(feature = "tls")]
            identity: None,
            #[cfg(feature = "tls")]
            unchecked_certificates: false,
        }
    }

    /// Sets namespace, TTL and the rest that is the same for every store.
    #[must_use]
    pub fn options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    /// Trusts the certificates in `pem` and no others.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn ca(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.ca = Some(pem.into());
        self
    }

    /// Shows the server this certificate (with its chain) and proves it by this key, both as PEM.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn identity(mut self, certificate: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.identity = Some((certificate.into(), key.into()));
        self
    }

    /// Takes whatever certificate the server shows: anybody on the way can read and change
    /// everything, passwords included. Without this call a URL that asks for it (`#insecure`) is
    /// refused.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn danger_accept_invalid_certificates(mut self) -> Self {
        self.unchecked_certificates = true;
        self
    }

    /// Connects, finds out whether the user may do what is needed, and makes a coordinator.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for a URL or options that cannot be used,
    /// [`ErrorKind::Unreachable`] where no server answers within the connect timeout,
    /// [`ErrorKind::Denied`] with what is missing, [`ErrorKind::Unsupported`] where the server
    /// forbids scripts or is none that this crate can drive, and for `rediss` where this build has
    /// no TLS.
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
    pub async fn backend(self) -> Result<Redis, Error> {
        let options = self.options.clone();
        let keys = Keys::new(&options.parsed_namespace()?);
        let environment = options.to_environment();
        let coordinator = environment.nonce()?.to_hex();
        let client = self.client()?;
        let endpoint = client.get_connection_info().addr().to_string();
        let profile = Profile::new("redis", &endpoint, Expiry::Claim)
            .ttl(Duration::from_millis(100)..=Duration::from_secs(24 * 3600))
            .rounding(ROUNDING);

        options.check(&profile)?;
        let (clock, within) = (Arc::clone(&environment.clock), options.within());
        let wakes = Arc::new(Wakes::new(keys.wake(&coordinator)));
        let connector = Connector::new(client, clock, within, wakes);
        let greeting = async {
            let mut link = connector.link().await?;
            probe::probe(&mut link, &keys, connector.wakes().channel()).await
        };
        connector.greet(&endpoint, greeting).await?;
        Ok(Redis::new(profile, keys, coordinator, environment, connector))
    }

    /// The client library's client, set up as this crate needs it.
    fn client(self) -> Result<Client, Error> {
        let invalid =
            |reason: &str| Error::new(ErrorKind::Invalid, "use the Redis URL", reason.to_owned());
        let server = self.server.as_ref().map_err(|reason| match &**reason {
            NO_TLS => sync_core::tls::unavailable(),
            reason => invalid(reason),
        })?;
        let redis = server.redis_settings().clone();
        let keepalive = TcpKeepalive::new()
            .with_time(Duration::from_secs(15))
            .with_interval(Duration::from_secs(5));
        let server = server
            .clone()
            // Messages come on the connection that the attempts are sent on, which needs version 3;
            // and users with few permissions may not set a name.
            .set_redis_settings(redis.set_protocol(ProtocolVersion::RESP3).set_skip_set_lib_name())
            .set_tcp_settings(TcpSettings::default().set_nodelay(true).set_keepalive(keepalive));
        match server.addr() {
            ConnectionAddr::TcpTls { .. } => self.with_tls(server),
            _ => Client::open(server).map_err(|_| invalid("it is none")),
        }
    }

    #[cfg(not(feature = "tls"))]
    fn with_tls(&self, _: ConnectionInfo) -> Result<Client, Error> {
        Err(sync_core::tls::unavailable())
    }

    #[cfg(feature = "tls")]
    fn with_tls(self, server: ConnectionInfo) -> Result<Client, Error> {
        use redis::{ClientTlsConfig, TlsCertificates};

        let ConnectionAddr::TcpTls { host, port, insecure, tls_params } = server.addr().clone()
        else {
            return Err(no_tls("the address has none"));
        };
        if insecure && !self.unchecked_certificates {
            return Err(no_tls("the URL asks for certificates not to be checked (#insecure)").advise(
                "remove it, or call Config::danger_accept_invalid_certificates if that is meant",
            ));
        }
        sync_core::tls::provide_crypto()?;
        let own = tls_params.is_some();
        let server = server.set_addr(ConnectionAddr::TcpTls {
            host,
            port,
            insecure: self.unchecked_certificates,
            tls_params,
        });
        if self.ca.is_none() && self.identity.is_none() && own {
            // The user's own client brings its certificates along.
            return Client::open(server).map_err(|_| no_tls("the address cannot be used"));
        }
        if self.ca.is_none() && !cfg!(feature = "native-roots") && !self.unchecked_certificates {
            return Err(no_tls("nobody is trusted to sign the server's certificate").advise(
                "give a CA to Config::ca, or enable the feature native-roots for the system's",
            ));
        }
        let client_tls = self
            .identity
            .map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key });
        let certificates = TlsCertificates { client_tls, root_cert: self.ca };
        // The library's text is about the form of the PEM and holds nothing of it.
        Client::build_with_tls(server, certificates).map_err(|error| no_tls(&error.to_string()))
    }
}

#[cfg(feature = "tls")]
fn no_tls(reason: &str) -> Error {
    Error::new(ErrorKind::Invalid, "use TLS", reason.to_owned())
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoint = self.server.as_ref().map(|server| server.addr().to_string());
        f.debug_struct("Config")
            .field("endpoint", &endpoint)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(feature = "tls")))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_build_without_tls_says_so() {
        let error = Config::new("rediss://localhost:1").connect().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains("rustls-ring"), "{error}");
    }
}
