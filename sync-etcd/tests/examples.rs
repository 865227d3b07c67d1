//! The examples as their users run them: processes of their own against a server of their own.

use std::net::TcpListener;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use etcd_client::{Client, DeleteOptions, GetOptions};
use sync_conformance::cli::cases::{self, Bench, Case, Examples};
use sync_conformance::cli::example::Example;
use sync_conformance::{Failed, Server, server};

struct Etcd;

#[async_trait]
impl Examples for Etcd {
    fn name(&self) -> &str {
        "etcd"
    }

    fn package(&self) -> &str {
        env!("CARGO_PKG_NAME")
    }

    async fn start(&self) -> Result<Server, Failed> {
        server::etcd(1, &[]).start().await
    }

    async fn leftovers(&self, url: &str) -> Result<Vec<String>, Failed> {
        let mut etcd = Client::connect([url], None).await?;
        let keys = etcd.get("", Some(GetOptions::new().with_all_keys().with_keys_only())).await?;
        let keys = keys.kvs().iter().map(|kv| kv.key_str().map(ToOwned::to_owned));
        let keys: Vec<String> = keys.collect::<Result<_, _>>()?;
        let leases = etcd.leases().await?;
        let leases = leases.leases().iter().map(|lease| format!("lease {:x}", lease.id()));
        // What the docs except: the marks of what was given up.
        Ok(keys.into_iter().filter(|key| !key.contains("/void/")).chain(leases).collect())
    }

    async fn remove_keys(&self, url: &str) -> Result<(), Failed> {
        let mut etcd = Client::connect([url], None).await?;
        etcd.delete("", Some(DeleteOptions::new().with_all_keys())).await?;
        Ok(())
    }

    /// The least that etcd grants with its usual election timeout.
    fn ttl(&self) -> f64 {
        2.0
    }
}

/// One endpoint refuses, one accepts and never answers, the last is the server.
async fn of_several_endpoints_one_that_lives_is_enough(bench: Bench) -> Result<(), Failed> {
    let closed = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let silent = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{closed},http://{},{}", silent.local_addr()?, bench.server().url());
    let began = Instant::now();
    let (lock, elect) = bench.programs()?;
    let lock = Example::start(lock, &["a", "--url", &url, "--", "true"], |_| {})?;
    let elect = Example::start(elect, &["a", "--url", &url, "--node", "n", "--", "true"], |_| {})?;
    for run in [lock, elect] {
        assert_eq!(run.exit(Duration::from_secs(20)).await?, 0, "{}", run.said());
        assert!(run.said().ends_with("\nreleased\n"), "{}", run.said());
    }
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let left = Etcd.leftovers(&bench.server().url()).await?;
    assert!(left.is_empty(), "{left:?}");
    Ok(())
}

fn main() -> ExitCode {
    cases::main(Etcd, vec![Case::new(of_several_endpoints_one_that_lives_is_enough)])
}
