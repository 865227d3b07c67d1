//! Runs a command while it holds a lock on Redis or Valkey:
//!
//! ```sh
//! cargo run -p sync-redis --example redis-lock -- nightly-report -- sh -c 'echo "token $SYNC_TOKEN"'
//! ```
//!
//! The command line is the same for every store, so it stands in `sync-conformance`.

use std::process::ExitCode;

use sync_conformance::cli::{self, About, Target};
use sync_redis::{Config, Coordinator, Error};

const HERE: &str = "redis://127.0.0.1:6379";

fn main() -> ExitCode {
    let url = "redis://[USER[:PASSWORD]@]HOST[:PORT][/DB] [default: redis://127.0.0.1:6379]";
    cli::lock(&About { name: "redis", title: "Redis or Valkey", url }, connect)
}

async fn connect(target: Target) -> Result<Coordinator, Error> {
    let url = target.url.as_deref().unwrap_or(HERE);
    Config::new(url).options(target.options).connect().await
}
