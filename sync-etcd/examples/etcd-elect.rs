//! Campaigns for a leadership on etcd, and runs a command while it leads, or prints who leads:
//!
//! ```sh
//! cargo run -p sync-etcd --example etcd-elect -- scheduler --node a
//! cargo run -p sync-etcd --example etcd-elect -- scheduler --node b -- sh -c 'echo "token $SYNC_TOKEN"'
//! ```
//!
//! `etcdctl elect sync/leader/scheduler c` takes part in the same election, and so does Go's
//! `concurrency.NewElection` with that prefix; `etcdctl elect -l sync/leader/scheduler` prints who
//! leads.
//!
//! The command line is the same for every store, so it stands in `sync-conformance`.

use std::process::ExitCode;

use sync_conformance::cli::{self, About, Target};
use sync_etcd::{Config, Coordinator, Error};

const HERE: &str = "http://127.0.0.1:2379";

fn main() -> ExitCode {
    let url = "http://[USER:PASSWORD@]HOST:PORT, several joined by commas [default: http://127.0.0.1:2379]";
    cli::elect(&About { name: "etcd", title: "etcd", url }, connect)
}

async fn connect(target: Target) -> Result<Coordinator, Error> {
    let url = target.url.as_deref().unwrap_or(HERE);
    Config::new(url).options(target.options).connect().await
}
