//! TLS fails closed, and says why.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

mod common;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{Server, free_port};
use sync_core::{Error, ErrorKind};
use sync_redis::{Config, Coordinator, Options};

/// Certificates of one's own, made by `openssl`.
fn make(dir: &Path, name: &str, host: &str, days: i32, ca: &str) {
    let script = format!(
        "set -e; cd '{}'
        key='-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key'
        if [ {name} = {ca} ]; then
            openssl req -x509 $key -out {name}.pem -subj /CN={name} -days {days}
        else
            openssl req $key -out {name}.csr -subj /CN={name} -addext subjectAltName=DNS:{host}
            openssl x509 -req -in {name}.csr -CA {ca}.pem -CAkey {ca}.key -copy_extensions copy \
                -days {days} -out {name}.pem
        fi",
        dir.display()
    );
    let made = Command::new("sh").args(["-c", &script]).output().unwrap();
    let why = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "no certificates (apt-get install openssl): {why}");
}

struct Secure {
    server: Server,
    port: u16,
}

impl Secure {
    /// A server that shows `certificate` and asks for the client's or does not.
    fn start(certificate: &str, days: i32, clients: &str) -> Self {
        let port = free_port();
        let mut server = Server::start();
        let dir = server.dir.path().to_owned();
        make(&dir, "ca", "", 2, "ca");
        make(&dir, "other", "", 2, "other");
        make(&dir, certificate, "localhost", days, "ca");
        make(&dir, "client", "client", 2, "ca");
        let file = |name: &str| dir.join(name).display().to_string();
        for (option, value) in [
            ("--tls-port", port.to_string()),
            ("--tls-cert-file", file(&format!("{certificate}.pem"))),
            ("--tls-key-file", file(&format!("{certificate}.key"))),
            ("--tls-ca-cert-file", file("ca.pem")),
            ("--tls-auth-clients", clients.to_owned()),
        ] {
            server.add_argument(option);
            server.add_argument(&value);
        }
        server.restart();
        Self { server, port }
    }

    fn pem(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.server.dir.path().join(name)).unwrap()
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
    let secure = Secure::start("server", 2, "no");
    let sync = secure.config().ca(secure.pem("ca.pem")).connect().await.unwrap();
    sync.lock("a").acquire().await.unwrap().release().await.unwrap();

    let other = secure.config().ca(secure.pem("other.pem")).connect().await;
    refused(other, "UnknownIssuer", "Config::ca");
    let address = Config::new(format!("rediss://127.0.0.1:{}", secure.port));
    let wrong_host = address.clone().ca(secure.pem("ca.pem")).connect().await;
    refused(wrong_host, "not valid for name", "another host name");
    // A server without TLS: Redis waits for the end of what it takes for a line.
    let plain = Config::new(format!("rediss://localhost:{}", secure.server.port))
        .options(Options::new().connect_timeout(Duration::from_millis(500)));
    refused(plain.ca(secure.pem("ca.pem")).connect().await, "TLS", "redis://");
    let nonsense = secure.config().ca("no PEM").connect().await;
    assert!(nonsense.is_err(), "no certificate is trusted, so none is taken");

    let unchecked = address.danger_accept_invalid_certificates().connect().await.unwrap();
    unchecked.lock("a").acquire().await.unwrap().release().await.unwrap();
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    let secure = Secure::start("server", -1, "no");
    let expired = secure.config().ca(secure.pem("ca.pem")).connect().await;
    refused(expired, "expired", "has expired");
}

#[tokio::test]
async fn a_server_that_wants_to_know_its_clients_gets_a_certificate() {
    let secure = Secure::start("server", 2, "yes");
    let config = secure.config().ca(secure.pem("ca.pem"));
    refused(config.clone().connect().await, "ertificate", "Config::identity");
    let identity = (secure.pem("client.pem"), secure.pem("client.key"));
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
async fn a_key_is_not_shown() {
    let secure = Secure::start("server", 2, "no");
    let key = secure.pem("client.key");
    let config = secure.config().ca(secure.pem("ca.pem")).identity("sesame", key.clone());
    let mut shown = format!("{config:?}");
    shown += &format!("{:?}", config.connect().await.unwrap_err());
    let secret = String::from_utf8(key).unwrap();
    assert!(!shown.contains(secret.lines().nth(1).unwrap()), "{shown}");
}
