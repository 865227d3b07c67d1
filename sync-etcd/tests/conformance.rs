//! The shared suite against a real etcd.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{
    Client, ConnectOptions, GetOptions, KeyValue, Permission, PutOptions, SortOrder, SortTarget,
    StatusResponse,
};
use sync_conformance::{Case, Context, Failed, Server, Store, Tamper, server, store};
use sync_core::{Backend, Error, Options};
use sync_etcd::Config;
use tokio::time::{sleep, timeout};

/// The namespaces of cases and of soaks begin with these. The suite's user may do nothing else.
const NAMESPACES: [&str; 2] = ["case", "soak"];
const SUITE: (&str, &str) = ("suite", "secret");
const ROOT: (&str, &str) = ("root", "secret");

/// How long a member may take for an answer before the next is asked.
const PATIENCE: Duration = Duration::from_secs(2);

struct Etcd {
    name: &'static str,
    members: usize,
}

#[async_trait]
impl Store for Etcd {
    fn name(&self) -> &str {
        self.name
    }

    async fn start(&self) -> Result<Server, Failed> {
        if let Some(server) = server::external("SYNC_TEST_ETCD")? {
            return Ok(server);
        }
        // Who was idle for a second has to log in again.
        let server = server::etcd(self.members, &["--auth-token-ttl=1"]).start().await?;
        self.prepare(&server.url()).await?;
        Ok(server)
    }

    async fn prepare(&self, url: &str) -> Result<(), Failed> {
        let mut etcd = Client::connect([first(url)?], None).await?;
        etcd.role_add("suite").await?;
        for namespace in NAMESPACES {
            let permission = Permission::read_write(namespace).with_prefix();
            etcd.role_grant_permission("suite", permission).await?;
        }
        for ((user, password), role) in [(SUITE, "suite"), (ROOT, "root")] {
            etcd.user_add(user, password, None).await?;
            etcd.user_grant_role(user, role).await?;
        }
        etcd.auth_enable().await?;
        // The other members learn of it a moment later.
        for endpoint in url.split(',') {
            while connected(endpoint, Some(SUITE)).await.is_err() {
                sleep(Duration::from_millis(10)).await;
            }
        }
        Ok(())
    }

    async fn connect(&self, url: &str, options: &Options) -> Result<Arc<dyn Backend>, Error> {
        let mut config = Config::new(url).options(options.clone());
        // A server of our own knows a user that may touch the namespaces alone.
        if std::env::var_os("SYNC_TEST_ETCD").is_none() && !url.contains('@') {
            config = config.user(SUITE.0, SUITE.1);
        }
        Ok(Arc::new(config.backend().await?))
    }

    /// Every key but the markers, which go with their sessions. A session without a key tells
    /// nobody whose it is, and so is not among them.
    async fn leftovers(&self, url: &str, namespace: &str) -> Result<Vec<String>, Failed> {
        let mut etcd = admin(url).await?;
        let options = GetOptions::new().with_prefix();
        let mut keys = etcd.get(format!("{namespace}/"), Some(options)).await?.take_kvs();
        keys.retain(|key| !goes_with_its_session(key));
        Ok(keys.iter().map(|key| String::from_utf8_lossy(key.key()).into_owned()).collect())
    }

    async fn version(&self, url: &str) -> Result<String, Failed> {
        let mut versions = Vec::new();
        for endpoint in url.split(',') {
            versions.push(status(endpoint).await?.version().to_owned());
        }
        versions.dedup();
        Ok(match url.split(',').count() {
            1 => format!("etcd {}", versions.join(", ")),
            members => format!("etcd {} on {members} members", versions.join(", ")),
        })
    }

    async fn leader(&self, url: &str) -> Result<usize, Failed> {
        for (index, endpoint) in url.split(',').enumerate() {
            let Ok(status) = status(endpoint).await else { continue };
            let member = status.header().map_or(0, |header| header.member_id());
            if member != 0 && member == status.leader() {
                return Ok(index);
            }
        }
        Err("no member leads")?
    }

    /// Three servers share the machine with all that runs against them.
    fn ttl(&self) -> Duration {
        Duration::from_secs(if self.members > 1 { 4 } else { 2 })
    }

    fn tampers(&self) -> &[Tamper] {
        &[Tamper::Delete, Tamper::Overwrite, Tamper::EndSession]
    }

    async fn tamper(&self, url: &str, key: &str, how: Tamper) -> Result<(), Failed> {
        let mut etcd = admin(url).await?;
        let options = GetOptions::new()
            .with_prefix()
            .with_sort(SortTarget::Create, SortOrder::Ascend)
            .with_limit(1);
        let found = etcd.get(format!("{key}/"), Some(options)).await?;
        let held = found.kvs().first().ok_or("nobody holds it")?;
        match how {
            Tamper::Delete => {
                etcd.delete(held.key(), None).await?;
            }
            Tamper::Overwrite => {
                let options = PutOptions::new().with_ignore_lease();
                etcd.put(held.key(), store::FOREIGN, Some(options)).await?;
            }
            Tamper::EndSession => {
                etcd.lease_revoke(held.lease()).await?;
            }
            _ => Err(format!("not possible here: {how:?}"))?,
        }
        Ok(())
    }
}

/// Whether it is a marker, with the lease that its name says.
fn goes_with_its_session(key: &KeyValue) -> bool {
    let name = String::from_utf8_lossy(key.key());
    let marker = name.rsplit_once('/').filter(|(folder, _)| folder.ends_with("/void"));
    let session = marker.and_then(|(_, marker)| marker.split_once('-'));
    session.is_some_and(|(session, _)| key.lease() != 0 && session == format!("{:x}", key.lease()))
}

/// A client that may do everything, of a member that can serve.
async fn admin(url: &str) -> Result<Client, Failed> {
    let mut last = Failed::from("the URL names no member");
    for endpoint in url.split(',') {
        match connected(endpoint, root()).await {
            Ok(client) => return Ok(client),
            Err(failed) => last = failed,
        }
    }
    Err(last)
}

/// A client of this member. With a user it is known to serve: it has asked the others.
async fn connected(endpoint: &str, user: Option<(&str, &str)>) -> Result<Client, Failed> {
    let connecting = async {
        let mut client = connect(endpoint, user).await?;
        client.get("case/", None).await?;
        Ok::<_, etcd_client::Error>(client)
    };
    Ok(timeout(PATIENCE, connecting).await.map_err(|_| format!("{endpoint} is silent"))??)
}

async fn status(endpoint: &str) -> Result<StatusResponse, Failed> {
    let asking = async { connect(endpoint, root()).await?.status().await };
    Ok(timeout(PATIENCE, asking).await.map_err(|_| format!("{endpoint} is silent"))??)
}

async fn connect(endpoint: &str, user: Option<(&str, &str)>) -> Result<Client, etcd_client::Error> {
    let mut options = ConnectOptions::new().with_connect_timeout(PATIENCE).with_timeout(PATIENCE);
    if let Some((name, password)) = user {
        options = options.with_user(name, password);
    }
    Client::connect([endpoint], Some(options)).await
}

/// Who may do everything on a server of our own.
fn root() -> Option<(&'static str, &'static str)> {
    std::env::var_os("SYNC_TEST_ETCD").is_none().then_some(ROOT)
}

fn first(url: &str) -> Result<&str, Failed> {
    Ok(url.split(',').next().ok_or("the URL names no member")?)
}

mod strangers {
    //! Keys of others.

    use super::*;

    /// A key under a name's prefix by which nobody can hold is in nobody's way.
    pub(super) async fn a_key_that_is_no_claim_blocks_nobody(ctx: Context) -> Result<(), Failed> {
        let sync = ctx.coordinator().await?;
        let lock = sync.lock("x");
        let stranger = format!("{}/694d9a1c", lock.key()?);
        let mut etcd = admin(&ctx.server().url()).await?;
        etcd.put(stranger.as_str(), "of somebody", None).await?;
        assert!(lock.holder().await?.is_none());
        let guard = timeout(ctx.long(), lock.acquire()).await??;
        guard.release().await?;
        assert_eq!(etcd.delete(stranger.as_str(), None).await?.deleted(), 1);
        ctx.assert_nothing_left().await
    }
}

/// Runs the suite, and what it cannot know of etcd.
pub(crate) fn run(name: &'static str, members: usize) -> ExitCode {
    let own = Case::new(strangers::a_key_that_is_no_claim_blocks_nobody);
    sync_conformance::main_with(Etcd { name, members }, vec![own])
}

fn main() -> ExitCode {
    run("etcd", 1)
}
