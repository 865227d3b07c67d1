//! An agent that asks for tokens, and how errors are looked at.
#![allow(dead_code, reason = "each test uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

use std::time::Duration;

use serde_json::json;
use sync_conformance::driver::{Driver, TTL};
use sync_conformance::logs::shown;
use sync_conformance::{Server, server};
use sync_consul::{Config, Options};
use sync_core::ErrorKind;

use crate::agent::{self, config};
use crate::common::{ACLS, Api, ROOT, rules};

/// A token is a UUID to Consul. These are found in every text that shows them.
pub(crate) const TOKEN: &str = "5e5a3e00-aaaa-4aaa-8aaa-5e5a3e5e5a3e";
pub(crate) const OTHER: &str = "5e5a3e00-bbbb-4bbb-8bbb-5e5a3e5e5a3e";
pub(crate) const UNKNOWN: &str = "5e5a3e00-cccc-4ccc-8ccc-5e5a3e5e5a3e";
pub(crate) const SECRET: &str = "5e5a3e";

pub(crate) const SOON: Duration = Duration::from_secs(3);

/// An agent that asks for tokens.
pub(crate) struct Guarded {
    pub(crate) server: Server,
    pub(crate) root: Api,
}

impl Guarded {
    /// Its token [`TOKEN`] may do this.
    pub(crate) async fn start(rules: &str) -> Self {
        let server = server::consul(1, &[ACLS]).start().await.unwrap();
        let root = Api::new(&server.url(), Some(ROOT));
        agent::ready(&root).await;
        let guarded = Self { server, root };
        guarded.may("app", rules).await;
        guarded.token(TOKEN, "app").await;
        guarded
    }

    /// A policy with these rules from now on.
    pub(crate) async fn may(&self, policy: &str, rules: &str) {
        let listed = self.root.json("GET", "/v1/acl/policies", b"").await.unwrap();
        let known = listed.as_array().unwrap().iter().find(|known| known["Name"] == policy);
        let known = known.and_then(|known| known["ID"].as_str().map(ToOwned::to_owned));
        let body = json!({ "Name": policy, "Rules": rules, "ID": known }).to_string();
        let path = match known {
            Some(id) => format!("/v1/acl/policy/{id}"),
            None => "/v1/acl/policy".to_owned(),
        };
        self.root.ask("PUT", &path, body.as_bytes()).await.unwrap();
    }

    pub(crate) async fn token(&self, secret: &str, policy: &str) {
        let body = json!({
            "SecretID": secret, "AccessorID": secret.replace("5e5a3e", "000000"),
            "Policies": [{ "Name": policy }],
        });
        self.root.ask("PUT", "/v1/acl/token", body.to_string().as_bytes()).await.unwrap();
    }

    pub(crate) async fn revoke(&self, secret: &str) {
        let path = format!("/v1/acl/token/{}", secret.replace("5e5a3e", "000000"));
        self.root.ask("DELETE", &path, b"").await.unwrap();
    }

    pub(crate) fn config(&self) -> Config {
        within(config(self.server.url()).token(TOKEN))
    }

    pub(crate) async fn driver(&self) -> Driver {
        Driver::on(self.config().backend().await.unwrap(), TTL).await
    }
}

pub(crate) fn within(config: Config) -> Config {
    config.options(Options::new().connect_timeout(SOON))
}

pub(crate) fn documented() -> String {
    rules(&["sync/"], "m0")
}

pub(crate) async fn denied(config: Config, words: &[&str]) {
    let error = config.connect().await.map(|_| ()).unwrap_err();
    let text = shown(&error);
    assert_eq!(error.kind(), ErrorKind::Denied, "{text}");
    for word in words {
        assert!(error.to_string().contains(word), "no {word:?} in: {error}");
    }
    assert!(!text.contains(SECRET), "{text}");
}
