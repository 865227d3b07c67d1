//! TLS fails closed, and says why.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

mod common;

use std::time::Duration;

use common::{Server, free_port};
use sync_conformance::certificates::Certificates;
use sync_core::{Error, ErrorKind};
use sync_redis::{Config, Coordinator, Options};

struct Secure {
    server: Server,
    made: Certificates,
    port: u16,
}

impl Secure {
    /// A server whose certificate is good for so many days, and that asks for the client's or does
    /// not.
    fn start(days: i32, clients: &str) -> Self {
        let made = Certificates::new().unwrap();
        made.authority("ca").unwrap();
        made.authority("other").unwrap();
        made.signed("server", "DNS:localhost", days, "ca").unwrap();
        made.signed("client", "DNS:client", 2, "ca").unwrap();
        let (port, mut server) = (free_port(), Server::start());
        for (option, value) in [
            ("--tls-port", port.to_string()),
            ("--tls-cert-file", made.path("server").display().to_string()),
            ("--tls-key-file", made.key_path("server").display().to_string()),
            ("--tls-ca-cert-file", made.path("ca").display().to_string()),
            ("--tls-auth-clients", clients.to_owned()),
        ] {
            server.add_argument(option);
            server.add_argument(&value);
        }
        server.restart();
        Self { server, made, port }
    }

    fn pem(&self, name: &str) -> Vec<u8> {
        self.made.pem(name).unwrap()
    }

    fn key(&self) -> Vec<u8> {
        self.made.key("client").unwrap()
    }

    fn config(&self) -> Config {
        Config::new(format!("rediss://localhost:{}", self.port))
    }
}

fn refused(outcome: Result<Coordinator, Error>, word: &str, advice: &str) {
    let error = outcome.map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    let text = error.to_string();
    assert!(text.contains(word) && text.contains(advice), "{text}");
}

#[tokio::test]
async fn a_certificate_that_fits_is_taken_and_no_other() {
    let secure = Secure::start(2, "no");
    let sync = secure.config().ca(secure.pem("ca")).connect().await.unwrap();
    sync.lock("a").acquire().await.unwrap().release().await.unwrap();

    let other = secure.config().ca(secure.pem("other")).connect().await;
    refused(other, "UnknownIssuer", "Config::ca");
    let address = Config::new(format!("rediss://127.0.0.1:{}", secure.port));
    let wrong_host = address.clone().ca(secure.pem("ca")).connect().await;
    refused(wrong_host, "not valid for name", "another host name");
    // A server without TLS: Redis waits for the end of what it takes for a line.
    let plain = Config::new(format!("rediss://localhost:{}", secure.server.port))
        .options(Options::new().connect_timeout(Duration::from_millis(500)));
    refused(plain.ca(secure.pem("ca")).connect().await, "TLS", "redis://");
    let nonsense = secure.config().ca("no PEM").connect().await;
    assert!(nonsense.is_err(), "no certificate is trusted, so none is taken");

    let unchecked = address.danger_accept_invalid_certificates().connect().await.unwrap();
    unchecked.lock("a").acquire().await.unwrap().release().await.unwrap();
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    let secure = Secure::start(-1, "no");
    let expired = secure.config().ca(secure.pem("ca")).connect().await;
    refused(expired, "expired", "has expired");
}

#[tokio::test]
async fn a_server_that_wants_to_know_its_clients_gets_a_certificate() {
    let secure = Secure::start(2, "yes");
    let config = secure.config().ca(secure.pem("ca"));
    refused(config.clone().connect().await, "ertificate", "Config::identity");
    let identity = (secure.pem("client"), secure.key());
    config.identity(identity.0, identity.1).connect().await.unwrap();
}

#[tokio::test]
async fn a_url_cannot_turn_checking_off() {
    let config = Config::new("rediss://localhost:1/#insecure").ca("");
    let error = config.clone().connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("#insecure"), "{error}");
    let asked_for = config.danger_accept_invalid_certificates().connect().await.unwrap_err();
    assert_eq!(asked_for.kind(), ErrorKind::Unreachable, "{asked_for}");
}

#[cfg(not(feature = "native-roots"))]
#[tokio::test]
async fn without_a_ca_nobody_is_trusted() {
    let error = Config::new("rediss://localhost:1").connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("native-roots"), "{error}");
}

#[tokio::test]
async fn a_key_that_is_not_the_certificates_is_called_so() {
    let secure = Secure::start(2, "no");
    let another = secure.made.key("ca").unwrap();
    let config = secure.config().ca(secure.pem("ca")).identity(secure.pem("client"), another);
    let error = config.connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert!(error.to_string().contains("does not belong to the certificate"), "{error}");
}

#[tokio::test]
async fn a_key_is_not_shown() {
    let secure = Secure::start(2, "no");
    let key = secure.key();
    let config = secure.config().ca(secure.pem("ca")).identity("sesame", key.clone());
    let mut shown = format!("{config:?}");
    shown += &format!("{:?}", config.connect().await.unwrap_err());
    let secret = String::from_utf8(key).unwrap();
    assert!(!shown.contains(secret.lines().nth(1).unwrap()), "{shown}");
}
