//! TLS fails closed, and says why.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may")]

mod common;

use std::net::TcpListener;
use std::time::{Duration, Instant};

use sync_conformance::certificates::Certificates;
use sync_conformance::{Server, server};
use sync_consul::{Config, ErrorKind, Options};

const TIMEOUT: Duration = Duration::from_secs(5);

/// An agent that speaks plain text on one port and TLS on another.
struct Secure {
    server: Server,
    made: Certificates,
    port: u16,
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
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let more = format!(
            "ports {{ https = {port} }}
            ca_file = \"{}\"
            cert_file = \"{}\"
            key_file = \"{}\"
            verify_incoming_https = {clients}",
            made.path("ca").display(),
            made.path("server").display(),
            made.key_path("server").display(),
        );
        let server = server::consul(1, &[&more]).start().await.unwrap();
        common::registered(&server.url()).await.unwrap();
        Self { server, made, port }
    }

    fn config(&self) -> Config {
        at(&format!("https://localhost:{}", self.port))
    }

    fn ca(&self) -> Vec<u8> {
        self.made.pem("ca").unwrap()
    }
}

fn at(url: &str) -> Config {
    Config::new(url).token("sesame").options(Options::new().connect_timeout(TIMEOUT))
}

async fn refused(config: Config, kind: ErrorKind, words: &[&str]) {
    let began = Instant::now();
    let error = config.connect().await.map(|_| ()).unwrap_err();
    let took = began.elapsed();
    assert!(took < TIMEOUT + Duration::from_secs(1), "after {took:?}: {error}");
    assert_eq!(error.kind(), kind, "{error}");
    let text = format!("{error} {error:?}");
    for word in words {
        assert!(text.contains(word), "no {word:?} in: {text}");
    }
    assert!(!text.contains("sesame"), "{text}");
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
    let other = secure.made.pem("other").unwrap();
    refused(secure.config().ca(other), ErrorKind::Unreachable, &["Config::ca"]).await;
    let by_address = at(&format!("https://127.0.0.1:{}", secure.port)).ca(secure.ca());
    refused(by_address, ErrorKind::Unreachable, &["for another host name"]).await;
    works(secure.config().danger_accept_invalid_certificates()).await;
    if !cfg!(feature = "native-roots") {
        refused(secure.config(), ErrorKind::Invalid, &["nobody is trusted", "Config::ca"]).await;
    }
    refused(secure.config().ca("no certificate"), ErrorKind::Invalid, &[]).await;
    refused(secure.config().ca_file("/no/such/file"), ErrorKind::Invalid, &["/no/such/file"]).await;
}

#[tokio::test]
async fn an_expired_certificate_is_named() {
    let secure = Secure::start(-1, false).await;
    let config = secure.config().ca(secure.ca());
    refused(config, ErrorKind::Unreachable, &["has expired"]).await;
}

#[tokio::test]
async fn plain_text_on_either_side_is_found_out() {
    let secure = Secure::start(2, false).await;
    let plain = secure.server.addresses()[0].port();
    let config = at(&format!("https://localhost:{plain}")).ca(secure.ca());
    refused(config, ErrorKind::Unreachable, &["does not speak TLS"]).await;
    let error = at(&format!("http://localhost:{}", secure.port)).connect().await.unwrap_err();
    assert!(error.to_string().contains("HTTPS server"), "{error}");
}

#[tokio::test]
async fn a_client_certificate_is_shown_and_its_lack_is_named() {
    let secure = Secure::start(2, true).await;
    let made = &secure.made;
    let ours = (made.pem("client").unwrap(), std::fs::read(made.key_path("client")).unwrap());
    works(secure.config().ca(secure.ca()).identity(ours.0, ours.1)).await;
    let (certificate, key) = (made.path("client"), made.key_path("client"));
    works(secure.config().ca(secure.ca()).identity_files(certificate, key)).await;
    let none = secure.config().ca(secure.ca());
    refused(none, ErrorKind::Unreachable, &["Config::identity"]).await;
    let (certificate, key) = (made.path("stranger"), made.key_path("stranger"));
    let stranger = secure.config().ca(secure.ca()).identity_files(certificate, key);
    refused(stranger, ErrorKind::Unreachable, &["Config::identity"]).await;
}
