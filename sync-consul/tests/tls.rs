//! TLS fails closed, and says why.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

#[path = "common/agent.rs"]
mod agent;
mod common;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::Api;
use sync_conformance::Server;
use sync_conformance::certificates::Certificates;
use sync_conformance::server::Launch;
use sync_consul::{Config, Options};
use sync_core::ErrorKind;
use tokio_stream::StreamExt;

const TIMEOUT: Duration = Duration::from_secs(3);

/// An agent that speaks plain text on one port and TLS on another.
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
        let (pem, key, ca) = (made.path("server"), made.key_path("server"), made.path("ca"));
        let server = Launch::new("consul", "CONSUL", "apt-get install consul")
            .ports(4)
            .arguments(move |places, me| {
                let place = &places[me];
                let port = |number| place.port(number);
                let settings = format!(
                    "server = true
                    bootstrap_expect = 1
                    node_name = \"m0\"
                    bind_addr = \"127.0.0.1\"
                    data_dir = \"{}\"
                    ports {{
                        http = {} https = {} server = {} serf_lan = {}
                        serf_wan = -1 dns = -1 grpc = -1
                    }}
                    performance {{ raft_multiplier = 1 }}
                    cert_file = \"{}\"
                    key_file = \"{}\"
                    ca_file = \"{}\"
                    verify_incoming_https = {clients}
                    disable_update_check = true
                    log_level = \"warn\"",
                    place.dir().join("data").display(),
                    port(0),
                    port(1),
                    port(2),
                    port(3),
                    pem.display(),
                    key.display(),
                    ca.display(),
                );
                vec!["agent".to_owned(), "-hcl".to_owned(), settings]
            })
            .probe("GET /v1/status/leader HTTP/1.0\r\n\r\n", "\"127.0.0.1:")
            .url(|at| at.first().map(|at| format!("http://{at}")).unwrap_or_default())
            .start()
            .await
            .unwrap();
        agent::ready(&Api::new(&server.url(), None)).await;
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
    let mut changes = sync.leader("a").changes().unwrap();
    assert_eq!(changes.next().await, Some(None));
    let elected = sync.leader("a").elect().await.unwrap();
    assert!(changes.next().await.unwrap().is_some(), "told by a poll");
    elected.resign().await.unwrap();
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
    // Whoever asks for it in so many words is let in by anybody.
    works(secure.config().danger_accept_invalid_certificates()).await;
    let by_address = at(&format!("https://127.0.0.1:{}", secure.port()));
    works(by_address.danger_accept_invalid_certificates()).await;
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
async fn an_agent_that_wants_to_know_its_clients_gets_a_certificate() {
    let secure = Secure::start(2, true).await;
    let config = secure.config().ca(secure.ca());
    let unreachable = ErrorKind::Unreachable;
    refused(config.clone(), unreachable, &["ertificate", "Config::identity"]).await;
    let made = &secure.made;
    let (pem, key) = (made.pem("stranger").unwrap(), made.key("stranger").unwrap());
    let stranger = config.clone().identity(pem, key);
    refused(stranger, unreachable, &["ertificate", "Config::identity"]).await;
    let (pem, key) = (made.pem("client").unwrap(), made.key("client").unwrap());
    works(config.clone().identity(pem, key)).await;
    works(config.identity_files(made.path("client"), made.key_path("client"))).await;
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

/// Who gives a CA means TLS: without it tokens would go over the wire as they are.
#[tokio::test]
async fn certificates_for_an_http_url_are_refused() {
    let made = Certificates::new().unwrap();
    made.authority("ca").unwrap();
    made.signed("client", "DNS:client", 2, "ca").unwrap();
    let ca = made.pem("ca").unwrap();
    for urls in ["http://localhost:1", "https://localhost:1,http://localhost:2"] {
        refused(at(urls).ca(ca.clone()), ErrorKind::Invalid, &["https://"]).await;
    }
    let (pem, key) = (made.pem("client").unwrap(), made.key("client").unwrap());
    refused(at("http://localhost:1").identity(pem, key), ErrorKind::Invalid, &["https://"]).await;
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

/// In a process of its own each time, which has them in its environment.
#[tokio::test]
async fn consuls_own_variables_name_certificates_and_cannot_turn_checks_off_alone() {
    if std::env::var_os("CONSUL_HTTP_ADDR").is_some() {
        let config = Config::from_env().options(Options::new().connect_timeout(TIMEOUT));
        match config.connect().await {
            Ok(_) => println!("outcome: connected"),
            Err(error) => println!("outcome: {:?}: {error}", error.kind()),
        }
        return;
    }
    let secure = Secure::start(2, true).await;
    let path = |path: PathBuf| path.display().to_string();
    let (ca, pem, key) = (
        path(secure.made.path("ca")),
        path(secure.made.path("client")),
        path(secure.made.key_path("client")),
    );
    let (address, url) =
        (format!("localhost:{}", secure.port()), format!("https://localhost:{}", secure.port()));
    let bare = [
        ("CONSUL_HTTP_ADDR", &*address),
        ("CONSUL_CACERT", &ca),
        ("CONSUL_CLIENT_CERT", &pem),
        ("CONSUL_CLIENT_KEY", &key),
    ];
    let ssl = ("CONSUL_HTTP_SSL", "true");
    for (variables, words) in [
        (&[&bare[..], &[ssl]].concat(), &["connected"][..]),
        (&[&[("CONSUL_HTTP_ADDR", &*url)], &bare[1..]].concat(), &["connected"]),
        (&bare.to_vec(), &["Invalid", "https://"]),
        (&[&bare[..2], &[ssl]].concat(), &["Unreachable", "Config::identity"]),
        (&[&bare[..3], &[ssl]].concat(), &["Invalid", "CONSUL_CLIENT_KEY"]),
        (
            &[&bare[..], &[ssl, ("CONSUL_HTTP_SSL_VERIFY", "false")]].concat(),
            &["Invalid", "danger_accept_invalid_certificates"],
        ),
    ] {
        let test = "consuls_own_variables_name_certificates_and_cannot_turn_checks_off_alone";
        let text = agent::again(test, variables).await;
        let outcome = text.lines().find_map(|line| line.split_once("outcome: "));
        let (_, outcome) = outcome.unwrap_or_else(|| panic!("{text}"));
        for word in words {
            assert!(outcome.contains(word), "{variables:?}: no {word:?} in: {outcome}");
        }
    }
}
