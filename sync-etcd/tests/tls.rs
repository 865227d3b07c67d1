//! TLS fails closed, and says why.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

mod common;

use std::time::{Duration, Instant};

use sync_conformance::Server;
use sync_conformance::certificates::Certificates;
use sync_conformance::server::Launch;
use sync_core::ErrorKind;
use sync_etcd::{Config, Options};

const TIMEOUT: Duration = Duration::from_secs(3);

/// A server that speaks plain text on one port and TLS on another.
struct Secure {
    server: Server,
    made: Certificates,
}

impl Secure {
    /// Its certificate is good for so many days; it asks for the client's, or does not.
    async fn start(days: i32, clients: bool) -> Self {
        let made = Certificates::new().unwrap();
        made.authority("ca").unwrap();
        made.authority("other").unwrap();
        made.signed("server", "DNS:localhost", days, "ca").unwrap();
        made.signed("client", "DNS:client", 2, "ca").unwrap();
        made.signed("stranger", "DNS:client", 2, "other").unwrap();
        let (pem, key) = (made.path("server"), made.key_path("server"));
        let ca = made.path("ca");
        let server = Launch::new("etcd", "ETCD", "apt-get install etcd-server")
            .ports(3)
            .arguments(move |places, me| {
                let at =
                    |scheme: &str, port| format!("{scheme}://127.0.0.1:{}", places[me].port(port));
                let (plain, peers) = (at("http", 0), at("http", 2));
                let mut arguments = vec![
                    "--name=m0".to_owned(),
                    format!("--data-dir={}", places[me].dir().join("data").display()),
                    format!("--listen-client-urls={plain},{}", at("https", 1)),
                    format!("--advertise-client-urls={plain}"),
                    format!("--listen-peer-urls={peers}"),
                    format!("--initial-advertise-peer-urls={peers}"),
                    format!("--initial-cluster=m0={peers}"),
                    "--unsafe-no-fsync".to_owned(),
                    "--log-level=warn".to_owned(),
                    format!("--cert-file={}", pem.display()),
                    format!("--key-file={}", key.display()),
                ];
                if clients {
                    arguments.push("--client-cert-auth".to_owned());
                    arguments.push(format!("--trusted-ca-file={}", ca.display()));
                }
                arguments
            })
            .probe("GET /health HTTP/1.0\r\n\r\n", "\"health\":\"true\"")
            .start()
            .await
            .unwrap();
        Self { server, made }
    }

    fn port(&self) -> u16 {
        self.server.members()[0].port(1)
    }

    fn plain_port(&self) -> u16 {
        self.server.members()[0].port(0)
    }

    fn config(&self) -> Config {
        at(&format!("https://localhost:{}", self.port()))
    }

    fn ca(&self) -> Vec<u8> {
        self.made.pem("ca").unwrap()
    }
}

fn at(url: &str) -> Config {
    Config::new(url).options(Options::new().connect_timeout(TIMEOUT))
}

async fn refused(config: Config, kind: ErrorKind, words: &[&str]) {
    let began = Instant::now();
    let error = config.connect().await.map(|_| ()).unwrap_err();
    let took = began.elapsed();
    assert!(took < TIMEOUT + Duration::from_secs(1), "after {took:?}: {error}");
    assert_eq!(error.kind(), kind, "{error}");
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "no {word:?} in: {text}");
    }
}

async fn works(config: Config) {
    let sync = config.connect().await.unwrap();
    sync.lock("a").acquire().await.unwrap().release().await.unwrap();
    sync.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_certificate_that_fits_is_taken_and_no_other() {
    let secure = Secure::start(2, false).await;
    works(secure.config().ca(secure.ca())).await;
    works(secure.config().ca_file(secure.made.path("ca"))).await;
    // One of several is enough, also for who reads them from one file.
    let both = [secure.made.pem("other").unwrap(), secure.ca()].concat();
    works(secure.config().ca(both)).await;

    let other = secure.made.pem("other").unwrap();
    let unreachable = ErrorKind::Unreachable;
    refused(secure.config().ca(other), unreachable, &["UnknownIssuer", "Config::ca"]).await;
    let by_address = at(&format!("https://127.0.0.1:{}", secure.port())).ca(secure.ca());
    refused(by_address, unreachable, &["not valid for name", "host name"]).await;
}

#[tokio::test]
async fn plain_text_and_tls_are_told_apart() {
    let secure = Secure::start(2, false).await;
    let to_plain = at(&format!("https://localhost:{}", secure.plain_port())).ca(secure.ca());
    refused(to_plain, ErrorKind::Unreachable, &["TLS", "http://"]).await;
    let to_secure = at(&format!("http://localhost:{}", secure.port()));
    refused(to_secure, ErrorKind::Unreachable, &["https://"]).await;
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    let secure = Secure::start(-1, false).await;
    let config = secure.config().ca(secure.ca());
    refused(config, ErrorKind::Unreachable, &["expired"]).await;
}

#[tokio::test]
async fn a_server_that_wants_to_know_its_clients_gets_a_certificate() {
    let secure = Secure::start(2, true).await;
    let config = secure.config().ca(secure.ca());
    let unreachable = ErrorKind::Unreachable;
    refused(config.clone(), unreachable, &["ertificate", "Config::identity"]).await;
    let stranger =
        config.clone().identity(secure.made.pem("stranger").unwrap(), stranger_key(&secure));
    refused(stranger, unreachable, &["ertificate", "Config::identity"]).await;
    let (pem, key) = (secure.made.pem("client").unwrap(), secure.made.key("client").unwrap());
    works(config.clone().identity(pem, key)).await;
    let made = &secure.made;
    works(config.identity_files(made.path("client"), made.key_path("client"))).await;
}

fn stranger_key(secure: &Secure) -> Vec<u8> {
    secure.made.key("stranger").unwrap()
}

/// Where no user is given, a server with users takes the name in the certificate.
#[tokio::test]
async fn a_client_certificate_can_say_who_the_user_is() {
    let secure = Secure::start(2, true).await;
    let mut etcd = common::Operator::of(&secure.server).await;
    etcd.0.user_add("client", "sesame", None).await.unwrap();
    etcd.enable_auth(&[common::documented("sync")]).await;
    let config = secure.config().ca(secure.ca());
    let identity = |name: &str| (secure.made.pem(name).unwrap(), secure.made.key(name).unwrap());
    let (pem, key) = identity("client");
    let config = config.identity(pem, key);
    refused(config.clone(), ErrorKind::Denied, &["permission denied"]).await;
    let root = etcd_client::ConnectOptions::new().with_user("root", "rootsesame");
    let mut etcd = common::Operator::with(&secure.server, Some(root)).await;
    etcd.0.user_grant_role("client", "app").await.unwrap();
    works(config.clone()).await;
    // A user that is given comes first.
    works(config.clone().user("app", "sesame")).await;
    refused(config.user("app", "wrong"), ErrorKind::Denied, &["user and password"]).await;
}

#[tokio::test]
async fn what_is_no_certificate_is_refused_before_anything_is_sent() {
    let made = Certificates::new().unwrap();
    made.authority("ca").unwrap();
    made.signed("client", "DNS:client", 2, "ca").unwrap();
    let config = || at("https://localhost:1").ca(made.pem("ca").unwrap());
    let (pem, key) = (|| made.pem("client").unwrap(), || made.key("client").unwrap());
    let invalid = ErrorKind::Invalid;
    refused(at("https://localhost:1").ca("no PEM"), invalid, &["certificate"]).await;
    refused(at("https://localhost:1").ca(""), invalid, &["certificate"]).await;
    refused(config().identity("no PEM", key()), invalid, &["certificate"]).await;
    refused(config().identity(pem(), "no PEM"), invalid, &["key"]).await;
    let another = made.key("ca").unwrap();
    let pair = config().identity(pem(), another);
    refused(pair, invalid, &["does not belong to the certificate"]).await;
    let missing = made.dir().join("missing.pem");
    refused(at("https://localhost:1").ca_file(&missing), invalid, &["missing.pem"]).await;
    let files = config().identity_files(made.path("client"), &missing);
    refused(files, invalid, &["missing.pem"]).await;
}

/// Who gives a CA means TLS: without it passwords would go over the wire as they are.
#[tokio::test]
async fn certificates_for_an_http_url_are_refused() {
    let made = Certificates::new().unwrap();
    made.authority("ca").unwrap();
    let ca = made.pem("ca").unwrap();
    for urls in ["http://localhost:1", "https://localhost:1,http://localhost:2"] {
        refused(at(urls).ca(ca.clone()), ErrorKind::Invalid, &["https://"]).await;
    }
}

#[cfg(not(feature = "native-roots"))]
#[tokio::test]
async fn without_a_ca_nobody_is_trusted() {
    refused(at("https://localhost:1"), ErrorKind::Invalid, &["native-roots"]).await;
}

#[tokio::test]
async fn a_key_is_not_shown() {
    let made = Certificates::new().unwrap();
    made.authority("ca").unwrap();
    made.signed("client", "DNS:client", 2, "ca").unwrap();
    let key = made.key("client").unwrap();
    let config = at("https://localhost:1").ca(made.pem("ca").unwrap());
    let mut shown = String::new();
    // Also one that is put where the certificate belongs.
    for (pem, key) in [(made.pem("client").unwrap(), key.clone()), (key.clone(), key.clone())] {
        let config = config.clone().identity(pem, key);
        shown += &format!("{config:?}");
        let error = config.connect().await.unwrap_err();
        shown += &format!("{error} {error:?} {:?}", std::error::Error::source(&error));
    }
    let secret = String::from_utf8(key).unwrap();
    assert!(!shown.contains(secret.lines().nth(1).unwrap()), "{shown}");
}
