//! The examples as their users run them: processes of their own against an agent of their own.

use std::process::ExitCode;

use async_trait::async_trait;
use sync_conformance::cli::cases::{self, Examples};
use sync_conformance::{Failed, Server, server};

mod common;

use common::Api;

struct Consul;

#[async_trait]
impl Examples for Consul {
    fn name(&self) -> &str {
        "consul"
    }

    fn package(&self) -> &str {
        env!("CARGO_PKG_NAME")
    }

    async fn start(&self) -> Result<Server, Failed> {
        let server = server::consul(1, &[]).start().await?;
        common::registered(&server.url()).await?;
        Ok(server)
    }

    async fn leftovers(&self, url: &str) -> Result<Vec<String>, Failed> {
        let consul = Api::new(url, None);
        let keys = consul.pairs("").await?.into_iter().map(|pair| pair.key);
        let sessions = consul.json("GET", "/v1/session/list?consistent", b"").await?;
        let sessions = sessions.as_array().into_iter().flatten();
        let sessions = sessions.map(|session| format!("session {}", session["ID"]));
        // What the docs except: the marks of what was given up.
        Ok(keys.filter(|key| !key.contains("/void/")).chain(sessions).collect())
    }

    async fn remove_keys(&self, url: &str) -> Result<(), Failed> {
        Api::new(url, None).ask("DELETE", "/v1/kv/?recurse", b"").await.map(drop)
    }
}

fn main() -> ExitCode {
    cases::main(Consul, Vec::new())
}
