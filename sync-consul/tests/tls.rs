//! TLS fails closed, and says why.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

#[path = "common/agent.rs"]
mod agent;
mod common;

use std::path::{Path, PathBuf};

use common::Api;
use sync_conformance::server::Launch;
use sync_conformance::tls::{self, Secure, Settings, refused, works};
use sync_consul::{Config, Coordinator, Error, Options};
use sync_core::ErrorKind;

#[derive(Clone, Debug)]
struct Tls(Config);

impl Settings for Tls {
    fn at(url: &str, options: Options) -> Self {
        Self(Config::new(url).options(options))
    }

    fn ca(self, pem: Vec<u8>) -> Self {
        Self(self.0.ca(pem))
    }

    fn ca_file(self, path: &Path) -> Self {
        Self(self.0.ca_file(path))
    }

    fn identity(self, certificate: Vec<u8>, key: Vec<u8>) -> Self {
        Self(self.0.identity(certificate, key))
    }

    fn identity_files(self, certificate: &Path, key: &Path) -> Self {
        Self(self.0.identity_files(certificate, key))
    }

    async fn connect(self) -> Result<Coordinator, Error> {
        self.0.connect().await
    }
}

/// Its certificate is good for so many days; it asks for the client's, or does not.
async fn secure(days: i32, clients: bool) -> Secure {
    let secure = Secure::start(days, |made| {
        let (pem, key, ca) = (made.path("server"), made.key_path("server"), made.path("ca"));
        Launch::new("consul", "CONSUL", "apt-get install consul")
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
    })
    .await;
    agent::ready(&Api::new(&secure.server.url(), None)).await;
    secure
}

#[tokio::test]
async fn a_certificate_that_fits_is_taken_and_no_other() {
    let secure = secure(2, false).await;
    tls::one_that_fits_is_taken_and_no_other::<Tls>(&secure).await;
    // Whoever asks for it in so many words is let in by anybody.
    for url in [secure.url(), secure.url_by_address()] {
        works(Config::new(url).danger_accept_invalid_certificates().connect()).await;
    }
}

#[tokio::test]
async fn plain_text_and_tls_are_told_apart() {
    tls::plain_text_is_told_apart::<Tls>(&secure(2, false).await).await;
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    let secure = secure(-1, false).await;
    let config = Config::new(secure.url()).ca(secure.ca());
    refused(config.connect(), ErrorKind::Unreachable, &["expired"]).await;
}

#[tokio::test]
async fn an_agent_that_wants_to_know_its_clients_gets_a_certificate() {
    tls::clients_show_their_own::<Tls>(&secure(2, true).await).await;
}

#[tokio::test]
async fn what_is_no_certificate_is_refused_before_anything_is_sent() {
    tls::what_is_none_is_refused::<Tls>().await;
}

#[tokio::test]
async fn certificates_for_an_http_url_are_refused() {
    tls::none_is_taken_for_an_http_url::<Tls>().await;
}

#[cfg(not(feature = "native-roots"))]
#[tokio::test]
async fn without_a_ca_nobody_is_trusted() {
    let connecting = Config::new("https://localhost:1").connect();
    refused(connecting, ErrorKind::Invalid, &["native-roots"]).await;
}

#[tokio::test]
async fn a_key_is_not_shown() {
    tls::no_key_is_shown::<Tls>().await;
}

/// In a process of its own each time, which has them in its environment.
#[tokio::test]
async fn consuls_own_variables_name_certificates_and_cannot_turn_checks_off_alone() {
    if std::env::var_os("CONSUL_HTTP_ADDR").is_some() {
        let config = Config::from_env();
        match config.connect().await {
            Ok(_) => println!("outcome: connected"),
            Err(error) => println!("outcome: {:?}: {error}", error.kind()),
        }
        return;
    }
    let secure = secure(2, true).await;
    let path = |path: PathBuf| path.display().to_string();
    let (ca, pem, key) = (
        path(secure.made.path("ca")),
        path(secure.made.path("client")),
        path(secure.made.key_path("client")),
    );
    let (address, url) = (format!("localhost:{}", secure.port(1)), secure.url());
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
