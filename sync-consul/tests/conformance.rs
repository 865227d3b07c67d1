//! The shared suite against a real Consul.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sync_conformance::{Failed, Server, Store, Tamper, server, store};
use sync_consul::Config;
use sync_core::{Backend, Error, Options};

#[path = "common/mod.rs"]
pub(crate) mod common;

use common::{Api, ROOT, SUITE};

pub(crate) struct Consul {
    pub(crate) name: &'static str,
    pub(crate) members: usize,
    /// The least TTL that sessions may have, if not what Consul has by default.
    pub(crate) least_ttl: Option<Duration>,
}

#[async_trait]
impl Store for Consul {
    fn name(&self) -> &str {
        self.name
    }

    async fn start(&self) -> Result<Server, Failed> {
        if let Some(server) = server::external("SYNC_TEST_CONSUL")? {
            return Ok(server);
        }
        let least = self.least_ttl.unwrap_or(DEFAULT_LEAST_TTL).as_secs();
        let least = format!("session_ttl_min = \"{least}s\"");
        let server = server::consul(self.members, &[common::ACLS, &least]).start().await?;
        self.prepare(&server.url()).await?;
        Ok(server)
    }

    async fn prepare(&self, url: &str) -> Result<(), Failed> {
        common::prepare(url).await
    }

    async fn connect(&self, url: &str, options: &Options) -> Result<Arc<dyn Backend>, Error> {
        let mut config = Config::new(url).options(options.clone());
        if let Some(least) = self.least_ttl {
            config = config.least_ttl(least);
        }
        // An agent of our own knows a token that may touch the namespaces alone.
        if std::env::var_os("SYNC_TEST_CONSUL").is_none() {
            config = config.token(SUITE);
        }
        if is_strict() {
            config = config.strict_lock_delay();
        }
        Ok(Arc::new(config.backend().await?))
    }

    /// Every key but the markers, which go with their sessions. A session without a key tells
    /// nobody whose it is, and so is not among them.
    async fn leftovers(&self, url: &str, namespace: &str) -> Result<Vec<String>, Failed> {
        let keys = admin(url).await?.pairs(&format!("{namespace}/")).await?;
        let goes = |key: &&common::Pair| key.key.contains("/void/") && !key.session.is_empty();
        Ok(keys.iter().filter(|key| !goes(key)).map(|key| key.key.clone()).collect())
    }

    async fn version(&self, url: &str) -> Result<String, Failed> {
        let own = admin(url).await?.json("GET", "/v1/agent/self", b"").await?;
        let version = own["Config"]["Version"].as_str().ok_or("no version")?;
        Ok(match url.split(',').count() {
            1 => format!("Consul {version}"),
            members => {
                let delay = if is_strict() { "the TTL" } else { "1 s" };
                format!("Consul {version} on {members} servers, lock-delay {delay}")
            }
        })
    }

    async fn leader(&self, url: &str) -> Result<usize, Failed> {
        // An agent's word on itself is not to be had: a new leader may keep it back for long.
        let path = "/v1/operator/raft/configuration";
        for agent in url.split(',') {
            let Ok(raft) = Api::new(agent, root()).json("GET", path, b"").await else { continue };
            let servers = raft["Servers"].as_array();
            let leader = servers.into_iter().flatten().find(|server| server["Leader"] == true);
            let name = leader.and_then(|leader| leader["Node"].as_str());
            if let Some(index) = name.and_then(|name| name.strip_prefix('m')?.parse().ok()) {
                return Ok(index);
            }
        }
        Err("no member leads")?
    }

    fn ttl(&self) -> Duration {
        self.least_ttl.map_or(DEFAULT_LEAST_TTL, |least| least * 2)
    }

    /// A session ends up to twice its TTL after its last renewal.
    fn kept(&self, ttl: Duration) -> Duration {
        ttl * 2 + if is_strict() { ttl } else { Duration::from_secs(1) }
    }

    fn tampers(&self) -> &[Tamper] {
        &[Tamper::Delete, Tamper::Overwrite, Tamper::EndSession]
    }

    async fn tamper(&self, url: &str, key: &str, how: Tamper) -> Result<(), Failed> {
        let consul = admin(url).await?;
        let path = format!("/v1/kv/{key}");
        match how {
            Tamper::Delete => consul.ask("DELETE", &path, b"").await.map(drop)?,
            Tamper::Overwrite => {
                consul.ask("PUT", &path, store::FOREIGN.as_bytes()).await.map(drop)?;
            }
            Tamper::EndSession => {
                let held = consul.pairs(key).await?;
                let held = held.iter().find(|pair| pair.key == key).ok_or("nobody holds it")?;
                let path = format!("/v1/session/destroy/{}", held.session);
                consul.ask("PUT", &path, b"").await.map(drop)?;
            }
            _ => Err(format!("not possible here: {how:?}"))?,
        }
        Ok(())
    }
}

/// An agent's `session_ttl_min` that nobody has set.
const DEFAULT_LEAST_TTL: Duration = Duration::from_secs(10);

/// What most runs have it set to: else each expiry costs 20 s.
const SHORT: Option<Duration> = Some(Duration::from_secs(1));

/// Whether the lock-delay is the strict one, for the soak.
fn is_strict() -> bool {
    std::env::var_os("SYNC_TEST_CONSUL_STRICT").is_some()
}

/// A member that can serve, as somebody who may do everything.
async fn admin(url: &str) -> Result<Api, Failed> {
    for agent in url.split(',') {
        let api = Api::new(agent, root());
        if api.ask("GET", "/v1/kv/?keys&separator=/", b"").await.is_ok() {
            return Ok(api);
        }
    }
    Err("no member serves")?
}

fn root() -> Option<&'static str> {
    std::env::var_os("SYNC_TEST_CONSUL").is_none().then_some(ROOT)
}

pub(crate) fn run(name: &'static str, members: usize) -> ExitCode {
    sync_conformance::main(Consul { name, members, least_ttl: SHORT })
}

fn main() -> ExitCode {
    run("consul", 1)
}
