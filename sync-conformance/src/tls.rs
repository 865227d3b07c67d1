//! TLS fails closed, and says why: what the tests of each store that speaks it have in common.
//!
//! What must not come about is a panic: these are for tests.

#![allow(clippy::expect_used, reason = "for tests, which report by panicking")]

use std::fmt;
use std::path::Path;
use std::time::Duration;

use sync_core::{Coordinator, Error, ErrorKind, Options};
use tokio::time::{Instant, timeout};
use tokio_stream::StreamExt;

use crate::certificates::Certificates;
use crate::logs;
use crate::server::{Launch, Server};

/// How long connecting may take here.
const TIMEOUT: Duration = Duration::from_secs(3);

/// For what comes about at once, on a busy machine.
const SOON: Duration = Duration::from_secs(5);

/// What a store's configuration says of TLS, by the names that it has there.
///
/// ```
/// use sync_conformance::tls::{Secure, Settings, refused};
/// use sync_core::{ErrorKind, Options};
///
/// async fn an_expired_certificate_is_refused<S: Settings>(secure: &Secure) {
///     let settings = S::at(&secure.url(), Options::new()).ca(secure.ca());
///     refused(settings.connect(), ErrorKind::Unreachable, &["expired"]).await;
/// }
/// ```
pub trait Settings: Clone + fmt::Debug {
    /// Nothing is said of TLS yet but by the URL.
    #[must_use]
    fn at(url: &str, options: Options) -> Self;

    /// Trusts these authorities alone.
    #[must_use]
    fn ca(self, pem: Vec<u8>) -> Self;

    /// Trusts the authorities in this file alone.
    #[must_use]
    fn ca_file(self, path: &Path) -> Self;

    /// Shows this certificate to the server.
    #[must_use]
    fn identity(self, certificate: Vec<u8>, key: Vec<u8>) -> Self;

    /// Shows the certificate in this file to the server.
    #[must_use]
    fn identity_files(self, certificate: &Path, key: &Path) -> Self;

    /// Connects.
    ///
    /// # Errors
    /// Those of the store.
    ///
    /// # Cancel safety
    /// Dropping the future connects nobody.
    fn connect(self) -> impl Future<Output = Result<Coordinator, Error>>;
}

/// A server that speaks plain text on its first port and TLS on its second, and the certificates of
/// all who have to do with it: `server`, its own, good for `localhost`, and `client` are signed by
/// the authority `ca`, `stranger` by the authority `other`.
///
/// ```no_run
/// # async fn example() {
/// use sync_conformance::server::Launch;
/// use sync_conformance::tls::Secure;
///
/// let secure = Secure::start(2, |made| {
///     let certificate = format!("--cert-file={}", made.path("server").display());
///     Launch::new("etcd", "ETCD", "apt-get install etcd-server")
///         .ports(2)
///         .arguments(move |_, _| vec![certificate.clone()])
/// })
/// .await;
/// println!("{}", secure.url());
/// # }
/// ```
#[derive(Debug)]
pub struct Secure {
    /// The server.
    pub server: Server,
    /// Whose certificates there are.
    pub made: Certificates,
}

impl Secure {
    /// Starts what `launch` makes of the certificates. The server's is good for so many days.
    ///
    /// # Panics
    /// When it does not start, or there is no `openssl`.
    pub async fn start(days: i32, launch: impl FnOnce(&Certificates) -> Launch) -> Self {
        let made = certificates(days);
        let server = launch(&made).start().await.expect("a server");
        Self { server, made }
    }

    /// Where it speaks TLS, by the name that its certificate is good for.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://localhost:{}", self.port(1))
    }

    /// The same by its address, which its certificate is not good for.
    #[must_use]
    pub fn url_by_address(&self) -> String {
        format!("https://127.0.0.1:{}", self.port(1))
    }

    /// A port of its only member.
    ///
    /// # Panics
    /// When it has not so many.
    #[must_use]
    pub fn port(&self, number: usize) -> u16 {
        self.server.members().first().expect("a member").port(number)
    }

    /// The authority that signed its certificate, as PEM.
    ///
    /// # Panics
    /// When the file has been removed.
    #[must_use]
    pub fn ca(&self) -> Vec<u8> {
        self.made.pem("ca").expect("it was made")
    }

    /// The certificate of `client` or `stranger` and its key, as PEM.
    ///
    /// # Panics
    /// When there is none of this name.
    #[must_use]
    pub fn identity(&self, name: &str) -> (Vec<u8>, Vec<u8>) {
        identity(&self.made, name)
    }
}

fn certificates(days: i32) -> Certificates {
    let make = || {
        let made = Certificates::new()?;
        made.authority("ca")?;
        made.authority("other")?;
        made.signed("server", "DNS:localhost", days, "ca")?;
        made.signed("client", "DNS:client", 2, "ca")?;
        made.signed("stranger", "DNS:client", 2, "other")?;
        Ok::<_, crate::Failed>(made)
    };
    make().expect("certificates")
}

fn identity(made: &Certificates, name: &str) -> (Vec<u8>, Vec<u8>) {
    let certificate = made.pem(name).expect("it was made");
    (certificate, made.key(name).expect("it was made"))
}

fn at<S: Settings>(url: &str) -> S {
    S::at(url, Options::new().connect_timeout(TIMEOUT))
}

/// The connection is made and good for everything, what the store tells of itself included.
///
/// # Panics
/// When it is not.
pub async fn works(connecting: impl Future<Output = Result<Coordinator, Error>>) {
    let sync = connecting.await.expect("a connection");
    let leader = sync.leader("a");
    let mut changes = leader.changes().expect("it can be followed");
    let first = timeout(SOON, changes.next()).await.expect("soon");
    assert_eq!(first, Some(None));
    let elected = leader.elect().await.expect("nobody leads");
    let told = timeout(SOON, changes.next()).await.expect("told of it");
    assert!(matches!(told, Some(Some(_))), "{told:?}");
    elected.resign().await.expect("it leads");
    sync.shutdown().await.expect("it is answered");
}

/// No connection is made, which is said in time, with this kind and in these words.
///
/// # Panics
/// When one is made, or something else is said.
pub async fn refused(
    connecting: impl Future<Output = Result<Coordinator, Error>>,
    kind: ErrorKind,
    words: &[&str],
) {
    let began = Instant::now();
    let error = connecting.await.map(|_| ()).expect_err("a refusal");
    let took = began.elapsed();
    assert!(took < TIMEOUT + Duration::from_secs(1), "after {took:?}: {error}");
    assert_eq!(error.kind(), kind, "{error}");
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "no {word:?} in: {text}");
    }
}

/// The server's certificate is taken where its authority is trusted and its name is the URL's.
///
/// # Panics
/// When it is taken otherwise, or not then.
pub async fn one_that_fits_is_taken_and_no_other<S: Settings>(secure: &Secure) {
    let settings = || at::<S>(&secure.url());
    works(settings().ca(secure.ca()).connect()).await;
    works(settings().ca_file(&secure.made.path("ca")).connect()).await;
    // One of several is enough, also for who reads them from one file.
    let other = secure.made.pem("other").expect("it was made");
    works(settings().ca([other.clone(), secure.ca()].concat()).connect()).await;

    let unreachable = ErrorKind::Unreachable;
    refused(settings().ca(other).connect(), unreachable, &["UnknownIssuer", "Config::ca"]).await;
    let by_address = at::<S>(&secure.url_by_address()).ca(secure.ca());
    refused(by_address.connect(), unreachable, &["not valid for name", "host name"]).await;
}

/// Where one side speaks TLS and the other does not, it is said what the URL should be.
///
/// # Panics
/// When it is not.
pub async fn plain_text_is_told_apart<S: Settings>(secure: &Secure) {
    let to_plain = at::<S>(&format!("https://localhost:{}", secure.port(0))).ca(secure.ca());
    refused(to_plain.connect(), ErrorKind::Unreachable, &["TLS", "http://"]).await;
    let to_secure = at::<S>(&format!("http://localhost:{}", secure.port(1)));
    refused(to_secure.connect(), ErrorKind::Unreachable, &["https://"]).await;
}

/// A server that asks for its clients' certificates gets one, and lets in whose it knows.
///
/// # Panics
/// When somebody else is let in, or he is not.
pub async fn clients_show_their_own<S: Settings>(secure: &Secure) {
    let settings = || at::<S>(&secure.url()).ca(secure.ca());
    let words = ["ertificate", "Config::identity"];
    refused(settings().connect(), ErrorKind::Unreachable, &words).await;
    let (certificate, key) = secure.identity("stranger");
    let stranger = settings().identity(certificate, key);
    refused(stranger.connect(), ErrorKind::Unreachable, &words).await;
    let (certificate, key) = secure.identity("client");
    works(settings().identity(certificate, key).connect()).await;
    let (certificate, key) = (secure.made.path("client"), secure.made.key_path("client"));
    works(settings().identity_files(&certificate, &key).connect()).await;
}

/// What is no certificate, no key or no file is refused before anything is sent.
///
/// # Panics
/// When it is not.
pub async fn what_is_none_is_refused<S: Settings>() {
    let made = certificates(2);
    let settings = || at::<S>("https://localhost:1");
    let trusting = || settings().ca_file(&made.path("ca"));
    let (certificate, key) = identity(&made, "client");
    let none = || b"no PEM".to_vec();
    let anothers = made.key("ca").expect("it was made");
    let missing = made.dir().join("missing.pem");
    for (settings, word) in [
        (settings().ca(none()), "certificate"),
        (settings().ca(Vec::new()), "certificate"),
        (trusting().identity(none(), key), "certificate"),
        (trusting().identity(certificate.clone(), none()), "key"),
        (trusting().identity(certificate, anothers), "does not belong to the certificate"),
        (settings().ca_file(&missing), "missing.pem"),
        (trusting().identity_files(&made.path("client"), &missing), "missing.pem"),
    ] {
        refused(settings.connect(), ErrorKind::Invalid, &[word]).await;
    }
}

/// Who gives certificates means TLS: without it, what is secret would go over the wire as it is.
///
/// # Panics
/// When a URL without TLS is taken with them.
pub async fn none_is_taken_for_an_http_url<S: Settings>() {
    let made = certificates(2);
    for urls in ["http://localhost:1", "https://localhost:1,http://localhost:2"] {
        let settings = at::<S>(urls).ca_file(&made.path("ca"));
        refused(settings.connect(), ErrorKind::Invalid, &["https://"]).await;
    }
    let (certificate, key) = identity(&made, "client");
    let settings = at::<S>("http://localhost:1").identity(certificate, key);
    refused(settings.connect(), ErrorKind::Invalid, &["https://"]).await;
}

/// A key is in no text, whether of the settings or of an error.
///
/// # Panics
/// When it is.
pub async fn no_key_is_shown<S: Settings>() {
    let made = certificates(2);
    let (certificate, key) = identity(&made, "client");
    let mut shown = String::new();
    // Also one that is put where the certificate belongs.
    for certificate in [certificate, key.clone()] {
        let settings = at::<S>("https://localhost:1").ca_file(&made.path("ca"));
        let settings = settings.identity(certificate, key.clone());
        shown += &format!("{settings:?}");
        let error = settings.connect().await.map(|_| ()).expect_err("nobody listens there");
        shown += &logs::shown(&error);
    }
    let secret = String::from_utf8_lossy(&key);
    let line = secret.lines().nth(1).expect("a line of it");
    assert!(!shown.contains(line), "{shown}");
}
