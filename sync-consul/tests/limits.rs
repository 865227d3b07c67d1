//! Many names at once over few connections: an agent serves no more than so many of one client.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may")]

mod common;

use std::time::Duration;

use common::Api;
use sync_conformance::{Failed, server};
use sync_consul::{Cause, Config, Coordinator, LockGuard, Options};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

const HELD: usize = 1_000;
const WAITED: usize = 300;

/// Long polls of one coordinator, and the connections that it has besides.
const POLLS: usize = 64;
const OTHERS: usize = 40;

async fn hold(sync: &Coordinator, names: Vec<String>) -> Result<Vec<LockGuard>, Failed> {
    let mut guards = Vec::new();
    // In groups: each request that is under way is a connection.
    for names in names.chunks(16) {
        let mut taking = JoinSet::new();
        for name in names {
            let lock = sync.lock(name);
            taking.spawn(async move { lock.acquire().await });
        }
        while let Some(taken) = taking.join_next().await {
            guards.push(taken??);
        }
    }
    Ok(guards)
}

/// How many connections this process has to a port of this host.
fn connections(port: u16) -> Result<usize, Failed> {
    let table = std::fs::read_to_string("/proc/net/tcp")?;
    let to = format!("0100007F:{port:04X}");
    let established = |line: &&str| {
        let mut columns = line.split_whitespace().skip(2);
        columns.next() == Some(&to) && columns.next() == Some("01")
    };
    Ok(table.lines().filter(established).count())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_held_and_hundreds_waited_for_need_few_connections() -> Result<(), Failed> {
    let limits = "limits { http_max_conns_per_client = 200 }";
    let server = server::consul(1, &[limits]).start().await?;
    let port = server.addresses()[0].port();
    common::registered(&server.url()).await?;
    let api = Api::new(&server.url(), None);
    let options = Options::new().ttl(Duration::from_secs(30));
    let mut coordinators = Vec::new();
    for _ in 0..2 {
        coordinators.push(Config::new(server.url()).options(options.clone()).connect().await?);
    }
    let [a, b] = [&coordinators[0], &coordinators[1]];
    let waited = hold(a, (0..WAITED).map(|at| format!("waited-{at}")).collect()).await?;
    let held = hold(b, (0..HELD).map(|at| format!("held-{at}")).collect()).await?;
    let mut waiting = JoinSet::new();
    for at in 0..WAITED {
        let lock = b.lock(format!("waited-{at}"));
        waiting.spawn(async move { lock.acquire().await });
        sleep(Duration::from_millis(5)).await;
    }
    let in_line = async {
        while api.pairs("sync/line/").await?.len() < WAITED {
            sleep(Duration::from_millis(100)).await;
        }
        Ok::<_, Failed>(())
    };
    timeout(Duration::from_secs(60), in_line).await??;
    // Two renewals, or nearly.
    for _ in 0..20 {
        let open = connections(port)?;
        assert!(open <= 2 * (POLLS + OTHERS), "{open} connections");
        sleep(Duration::from_secs(1)).await;
    }
    assert!(held.iter().chain(&waited).all(|guard| guard.is_valid()));

    // One that is polled by itself, and one that shares a poll.
    for guard in [&held[0], &held[HELD - 1]] {
        let key = format!("sync/lock/{}/.lock", guard.name());
        api.ask("DELETE", &format!("/v1/kv/{key}"), b"").await?;
        let revocation = timeout(Duration::from_secs(8), guard.revoked()).await?;
        assert_eq!(revocation.cause, Cause::Key);
    }
    for guard in waited {
        guard.release().await?;
    }
    let served = async {
        let mut served = 0;
        while let Some(taken) = waiting.join_next().await {
            taken??.release().await?;
            served += 1;
        }
        Ok::<_, Failed>(served)
    };
    assert_eq!(timeout(Duration::from_secs(60), served).await??, WAITED);
    Ok(())
}
