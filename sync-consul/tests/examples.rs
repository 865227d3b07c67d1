//! The examples as their users run them: processes of their own against an agent of their own.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use sync_conformance::cli::cases::{self, Bench, Case, Examples};
use sync_conformance::cli::example::Example;
use sync_conformance::{Failed, Server, server};

#[path = "common/agent.rs"]
mod agent;
mod common;

use agent::sessions;
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
        Ok(agent::agent(&[]).await)
    }

    async fn leftovers(&self, url: &str) -> Result<Vec<String>, Failed> {
        let consul = Api::new(url, None);
        let sessions = sessions(&consul).await?;
        let keys = consul.pairs("").await?;
        // What the docs except: the marks of what was given up, until their sessions end.
        let keys = keys.into_iter().map(|pair| pair.key).filter(|key| !key.contains("/void/"));
        Ok(keys.chain(sessions.into_iter().map(|id| format!("session {id}"))).collect())
    }

    async fn remove_keys(&self, url: &str) -> Result<(), Failed> {
        Api::new(url, None).ask("DELETE", "/v1/kv/?recurse", b"").await?;
        Ok(())
    }
}

/// Without `--url` the agent is the one that Consul's own tools would ask.
async fn the_agent_may_be_named_as_for_consuls_own_tools(bench: Bench) -> Result<(), Failed> {
    let address = bench.server().addresses()[0].to_string();
    let (lock, elect) = bench.programs()?;
    let lock = Example::start(lock, &["a", "--", "true"], |command| {
        command.env("CONSUL_HTTP_ADDR", &address);
    })?;
    let elect = Example::start(elect, &["a", "--node", "n", "--", "true"], |command| {
        command.env("CONSUL_HTTP_ADDR", &address);
    })?;
    for run in [lock, elect] {
        assert_eq!(run.exit(Duration::from_secs(20)).await?, 0, "{}", run.said());
        assert!(run.said().ends_with("\nreleased\n"), "{}", run.said());
    }
    let left = Consul.leftovers(&bench.server().url()).await?;
    assert!(left.is_empty(), "{left:?}");
    Ok(())
}

/// A shorter TTL than the agent keeps is refused by it, in words that help.
async fn a_ttl_that_the_agent_does_not_keep_is_told(bench: Bench) -> Result<(), Failed> {
    let strict = server::consul(1, &["session_ttl_min = \"10s\""]).start().await?;
    let (lock, _) = bench.programs()?;
    let began = Instant::now();
    let arguments = ["a", "--url", &strict.url(), "--ttl", "5", "--", "true"];
    let run = Example::start(lock, &arguments, |_| {})?;
    assert_eq!(run.exit(Duration::from_secs(20)).await?, 2, "{}", run.said());
    for words in ["between [10s=24h", "session_ttl_min", "use a longer one"] {
        assert!(run.said().contains(words), "{}", run.said());
    }
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    Ok(())
}

fn main() -> ExitCode {
    let more = vec![
        Case::new(the_agent_may_be_named_as_for_consuls_own_tools),
        Case::new(a_ttl_that_the_agent_does_not_keep_is_told),
    ];
    cases::main(Consul, more)
}
