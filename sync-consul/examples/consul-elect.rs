//! Campaigns for a leadership on Consul, and runs a command while it leads, or prints who leads:
//!
//! ```sh
//! cargo run -p sync-consul --example consul-elect -- scheduler --node a
//! cargo run -p sync-consul --example consul-elect -- scheduler --node b -- sh -c 'echo "token $SYNC_TOKEN"'
//! ```
//!
//! `consul kv get sync/leader/scheduler` prints who leads, as JSON.
//!
//! `CONSUL_HTTP_ADDR`, `CONSUL_HTTP_TOKEN` and the other variables of Consul's own tools count; a
//! `--url` comes before the address among them. The command line is the same for every store, so it
//! stands in `sync-conformance`.

use std::process::ExitCode;
use std::time::Duration;

use sync_conformance::cli::{self, About, Target};
use sync_consul::{Config, Coordinator, Error};

fn main() -> ExitCode {
    let url = "http[s]://HOST:PORT [default: CONSUL_HTTP_ADDR, or http://127.0.0.1:8500]";
    cli::elect(&About { name: "consul", title: "Consul", url }, connect)
}

async fn connect(target: Target) -> Result<Coordinator, Error> {
    let mut config = Config::from_env().options(target.options);
    if let Some(url) = target.url {
        config = config.url(url);
    }
    // Below what Consul usually accepts the agent decides.
    if let Some(ttl) = target.ttl.filter(|ttl| *ttl < Duration::from_secs(10)) {
        config = config.least_ttl(ttl);
    }
    config.connect().await
}
