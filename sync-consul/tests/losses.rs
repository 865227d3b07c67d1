//! What others do to our sessions: told at once, with its own cause, and guarded by the lock-delay.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may")]

mod common;

use std::time::{Duration, Instant};

use common::Api;
use serde_json::json;
use sync_conformance::{Failed, Server, server};
use sync_consul::{Cause, Config, ErrorKind, Options};
use tokio::time::{sleep, timeout};

/// Long before any deadline.
const AT_ONCE: Duration = Duration::from_secs(5);
const TTL: Duration = Duration::from_secs(30);

struct Scene {
    server: Server,
    api: Api,
}

impl Scene {
    async fn new() -> Result<Self, Failed> {
        let server = server::consul(1, &[]).start().await?;
        common::registered(&server.url()).await?;
        let api = Api::new(&server.url(), None);
        Ok(Self { server, api })
    }

    fn config(&self) -> Config {
        Config::new(self.server.url()).options(Options::new().ttl(TTL))
    }

    async fn destroy_session_of(&self, key: &str) -> Result<(), Failed> {
        let session = &self.api.pairs(key).await?[0].session;
        self.api.ask("PUT", &format!("/v1/session/destroy/{session}"), b"").await.map(drop)
    }
}

#[tokio::test]
async fn a_destroyed_session_is_told_before_anybody_else_is_granted_the_name() -> Result<(), Failed>
{
    let scene = Scene::new().await?;
    let (a, b) = (scene.config().connect().await?, scene.config().connect().await?);
    let lock = a.lock("x");
    let guard = lock.acquire().await?;
    let waiting = tokio::spawn({
        let lock = b.lock("x");
        async move { lock.acquire().await }
    });
    sleep(Duration::from_millis(300)).await;
    let destroyed = Instant::now();
    scene.destroy_session_of(&lock.key()?).await?;
    let revocation = timeout(AT_ONCE, guard.revoked()).await?;
    assert_eq!(revocation.cause, Cause::Session);
    assert!(!waiting.is_finished(), "the lock-delay is over already");
    let next = timeout(AT_ONCE, waiting).await???;
    assert!(destroyed.elapsed() >= Duration::from_millis(900), "{:?}", destroyed.elapsed());
    assert!(next.token() > guard.token());
    next.release().await?;
    // The one who lost it goes on with another session.
    timeout(AT_ONCE, lock.acquire()).await??.release().await?;
    Ok(())
}

#[tokio::test]
async fn a_strict_lock_delay_lasts_for_the_ttl() -> Result<(), Failed> {
    let scene = Scene::new().await?;
    let options = Options::new().ttl(Duration::from_secs(4));
    let config = || scene.config().options(options.clone()).least_ttl(Duration::from_secs(1));
    let (a, b) = (config().strict_lock_delay().connect().await?, config().connect().await?);
    let lock = a.lock("x");
    let guard = lock.acquire().await?;
    let destroyed = Instant::now();
    scene.destroy_session_of(&lock.key()?).await?;
    timeout(AT_ONCE, guard.revoked()).await?;
    timeout(AT_ONCE * 3, b.lock("x").acquire()).await??.release().await?;
    assert!(destroyed.elapsed() >= Duration::from_millis(3_900), "{:?}", destroyed.elapsed());

    let long = scene.config().options(Options::new().ttl(Duration::from_secs(90)));
    let error = long.strict_lock_delay().connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    let error = scene.config().lock_delay(Duration::from_secs(61)).connect().await.unwrap_err();
    assert!(error.to_string().contains("61s is above 60s"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_deregistered_node_ends_its_sessions() -> Result<(), Failed> {
    let scene = Scene::new().await?;
    let sync = scene.config().connect().await?;
    let elected = sync.leader("x").elect().await?;
    let node = json!({ "Node": "m0" }).to_string();
    scene.api.ask("PUT", "/v1/catalog/deregister", node.as_bytes()).await?;
    let revocation = timeout(AT_ONCE, elected.revoked()).await?;
    assert_eq!(revocation.cause, Cause::Session);
    Ok(())
}

#[tokio::test]
async fn a_session_may_hang_on_a_check() -> Result<(), Failed> {
    let scene = Scene::new().await?;
    let config = || scene.config().node_checks(["app"]).connect();
    let error = config().await.unwrap_err();
    assert!(error.to_string().contains("app") && error.to_string().contains("checks"), "{error}");
    let check =
        json!({ "ID": "app", "Name": "app", "TTL": "60s", "Status": "passing" }).to_string();
    scene.api.ask("PUT", "/v1/agent/check/register", check.as_bytes()).await?;
    let sync = timeout(AT_ONCE, async {
        loop {
            // The servers learn of the check a moment later.
            match config().await {
                Ok(sync) => return sync,
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    })
    .await?;
    let guard = sync.lock("x").acquire().await?;
    scene.api.ask("PUT", "/v1/agent/check/fail/app", b"").await?;
    let revocation = timeout(AT_ONCE, guard.revoked()).await?;
    assert_eq!(revocation.cause, Cause::Session);
    Ok(())
}

#[tokio::test]
async fn with_release_the_record_of_a_dead_holder_can_still_be_read() -> Result<(), Failed> {
    let scene = Scene::new().await?;
    let sync = scene.config().behavior(sync_consul::Behavior::Release).connect().await?;
    let leader = sync.leader("x");
    let elected = leader.elect().await?;
    let key = leader.key()?;
    scene.destroy_session_of(&key).await?;
    timeout(AT_ONCE, elected.revoked()).await?;
    let left = scene.api.pairs(&key).await?;
    assert!(left[0].session.is_empty() && left[0].text().contains("\"id\""), "{left:?}");
    assert!(leader.leader().await?.is_none());
    let next = timeout(AT_ONCE, leader.elect()).await??;
    assert!(next.token() > elected.token());
    next.resign().await?;
    Ok(())
}
