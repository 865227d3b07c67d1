//! Campaigns for a leadership on Redis or Valkey, and runs a command while it leads, or prints who
//! leads:
//!
//! ```sh
//! cargo run -p sync-redis --example redis-elect -- scheduler --node a
//! cargo run -p sync-redis --example redis-elect -- scheduler --node b -- sh -c 'echo "token $SYNC_TOKEN"'
//! ```
//!
//! The command line is the same for every store, so it stands in `sync-conformance`.

use std::process::ExitCode;

use sync_conformance::cli::{self, About, Target};
use sync_redis::{Config, Coordinator, Error};

const HERE: &str = "redis://127.0.0.1:6379";

fn main() -> ExitCode {
    let url = "redis://[USER[:PASSWORD]@]HOST[:PORT][/DB] [default: redis://127.0.0.1:6379]";
    cli::elect(&About { name: "redis", title: "Redis or Valkey", url }, connect)
}

async fn connect(target: Target) -> Result<Coordinator, Error> {
    let url = target.url.as_deref().unwrap_or(HERE);
    Config::new(url).options(target.options).connect().await
}
