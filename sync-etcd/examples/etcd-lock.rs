//! Runs a command while it holds a lock on etcd:
//!
//! ```sh
//! cargo run -p sync-etcd --example etcd-lock -- nightly-report -- sh -c 'echo "token $SYNC_TOKEN"'
//! ```
//!
//! `etcdctl lock sync/lock/nightly-report` stands in the same line, and so does Go's
//! `concurrency.NewMutex` with that prefix.
//!
//! The command line is the same for every store, so it stands in `sync-conformance`.

use std::process::ExitCode;

use sync_conformance::cli::{self, About, Target};
use sync_etcd::{Config, Coordinator, Error};

const HERE: &str = "http://127.0.0.1:2379";

fn main() -> ExitCode {
    let url = "http://[USER:PASSWORD@]HOST:PORT, several joined by commas [default: http://127.0.0.1:2379]";
    cli::lock(&About { name: "etcd", title: "etcd", url }, connect)
}

async fn connect(target: Target) -> Result<Coordinator, Error> {
    let url = target.url.as_deref().unwrap_or(HERE);
    Config::new(url).options(target.options).connect().await
}
