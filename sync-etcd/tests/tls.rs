//! TLS fails closed, and says why.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

mod common;

use std::path::Path;

use sync_conformance::server::Launch;
use sync_conformance::tls::{self, Secure, Settings, refused, works};
use sync_core::ErrorKind;
use sync_etcd::{Config, Coordinator, Error, Options};

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
    Secure::start(days, |made| {
        let (pem, key, ca) = (made.path("server"), made.key_path("server"), made.path("ca"));
        Launch::new("etcd", "ETCD", "apt-get install etcd-server")
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
    })
    .await
}

#[tokio::test]
async fn a_certificate_that_fits_is_taken_and_no_other() {
    let secure = secure(2, false).await;
    tls::one_that_fits_is_taken_and_no_other::<Tls>(&secure).await;
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
async fn a_server_that_wants_to_know_its_clients_gets_a_certificate() {
    tls::clients_show_their_own::<Tls>(&secure(2, true).await).await;
}

/// Where no user is given, a server with users takes the name in the certificate.
#[tokio::test]
async fn a_client_certificate_can_say_who_the_user_is() {
    let secure = secure(2, true).await;
    let mut etcd = common::Operator::of(&secure.server).await;
    etcd.0.user_add("client", "sesame", None).await.unwrap();
    etcd.enable_auth(&[common::documented("sync")]).await;
    let (pem, key) = secure.identity("client");
    let config = Config::new(secure.url()).ca(secure.ca()).identity(pem, key);
    refused(config.clone().connect(), ErrorKind::Denied, &["permission denied"]).await;
    let root = etcd_client::ConnectOptions::new().with_user("root", "rootsesame");
    let mut etcd = common::Operator::with(&secure.server, Some(root)).await;
    etcd.0.user_grant_role("client", "app").await.unwrap();
    works(config.clone().connect()).await;
    // A user that is given comes first.
    works(config.clone().user("app", "sesame").connect()).await;
    refused(config.user("app", "wrong").connect(), ErrorKind::Denied, &["user and password"]).await;
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
