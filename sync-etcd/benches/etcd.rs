//! The shared workloads on a real etcd, beside its own transactions and its own lock service.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, GetOptions, KvClient, LeaseKeepAliveStream,
    LeaseKeeper, LockClient, LockOptions, PutOptions, SortOrder, SortTarget, Txn, TxnOp,
    TxnOpResponse,
};
use sync_conformance::bench::{self, Contender, Goals, Raw, Rival};
use sync_conformance::{Failed, Server, Store, server};
use sync_core::{Backend, Error, Options};
use sync_etcd::Config;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Mutex;

struct Etcd;

#[async_trait]
impl Store for Etcd {
    fn name(&self) -> &str {
        "etcd"
    }

    /// It waits for its disk, as it does wherever it is used.
    async fn start(&self) -> Result<Server, Failed> {
        match server::external("SYNC_TEST_ETCD")? {
            Some(server) => Ok(server),
            None => server::etcd(1, &["--unsafe-no-fsync=false"]).start().await,
        }
    }

    async fn connect(&self, url: &str, options: &Options) -> Result<Arc<dyn Backend>, Error> {
        Ok(Arc::new(Config::new(url).options(options.clone()).backend().await?))
    }

    async fn leftovers(&self, _: &str, _: &str) -> Result<Vec<String>, Failed> {
        Ok(Vec::new())
    }
}

/// Of the leases here: longer than any workload takes, so that nobody has to renew them meanwhile.
const LEASE: Duration = Duration::from_secs(600);

/// The value that is put: always the same, so that it costs nothing to make.
const OWNER: &str = "5d1a6c3f9b7e4820a1c4e6f80b2d4f68";

async fn connect(url: &str) -> Result<(Client, i64), Failed> {
    let endpoints: Vec<&str> = url.split(',').collect();
    // As the backend's.
    let options = ConnectOptions::new()
        .with_keep_alive(Duration::from_secs(10), Duration::from_secs(5))
        .with_tcp_keepalive(Duration::from_secs(15))
        .with_require_leader(true);
    let mut client = Client::connect(endpoints, Some(options)).await?;
    let lease = client.lease_grant(LEASE.as_secs() as i64, None).await?.id();
    Ok((client, lease))
}

#[async_trait]
impl Raw for Etcd {
    async fn client(&self, url: &str) -> Result<Arc<dyn bench::Client>, Failed> {
        let (client, lease) = connect(url).await?;
        let keep_alive = Mutex::new(client.lease_client().keep_alive(lease).await?);
        let first = url.split(',').next().unwrap_or_default();
        let address = first.trim_start_matches("http://").trim_end_matches('/').to_owned();
        Ok(Arc::new(Commands { kv: client.kv_client(), client, lease, keep_alive, address }))
    }

    fn goals(&self) -> Goals {
        Goals::default()
            .free(1.1)
            .parallel(0.9)
            .renewal(1.0)
            .against_rival(2, 5.0, 0.2)
            .against_rival(32, 1.0, 1.0)
    }

    fn rival(&self) -> Option<&dyn Rival> {
        Some(self)
    }
}

/// What Go's `concurrency.Mutex` does, which everybody knows; only that giving back compares.
struct Commands {
    client: Client,
    kv: KvClient,
    lease: i64,
    keep_alive: Mutex<(LeaseKeeper, LeaseKeepAliveStream)>,
    /// Of the server's metrics.
    address: String,
}

impl Commands {
    fn key(&self, name: &str) -> String {
        format!("{name}/{:x}", self.lease)
    }

    async fn metrics(&self) -> Result<Metrics, Failed> {
        let mut stream = TcpStream::connect(&self.address).await?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok(Metrics(text))
    }
}

#[async_trait]
impl bench::Client for Commands {
    async fn version(&self) -> Result<String, Failed> {
        let version = self.client.clone().status().await?.version().to_owned();
        let metrics = self.metrics().await?;
        let fsync = "etcd_disk_wal_fsync_duration_seconds";
        let count = metrics.sum(&format!("{fsync}_count"));
        let mean = metrics.sum(&format!("{fsync}_sum")) / count * 1e3;
        Ok(format!(
            "etcd {version}, which waited {count} times for its disk, {mean:.1} ms on average"
        ))
    }

    async fn take(&self, name: &str, _: Duration) -> Result<(), Failed> {
        let key = self.key(name);
        let first = GetOptions::new()
            .with_prefix()
            .with_sort(SortTarget::Create, SortOrder::Ascend)
            .with_limit(1);
        let txn = Txn::new()
            .when([Compare::create_revision(key.clone(), CompareOp::Equal, 0)])
            .and_then([
                TxnOp::put(key.clone(), OWNER, Some(PutOptions::new().with_lease(self.lease))),
                TxnOp::get(format!("{name}/"), Some(first)),
            ]);
        let answer = self.kv.clone().txn(txn).await?;
        match answer.op_responses().as_slice() {
            [_, TxnOpResponse::Get(first)]
                if first.kvs().first().is_some_and(|first| first.key() == key.as_bytes()) =>
            {
                Ok(())
            }
            _ => Err("the key was not free")?,
        }
    }

    async fn give_back(&self, name: &str) -> Result<(), Failed> {
        let key = self.key(name);
        let txn = Txn::new()
            .when([Compare::lease(key.clone(), CompareOp::Equal, self.lease)])
            .and_then([TxnOp::delete(key, None)]);
        if !self.kv.clone().txn(txn).await?.succeeded() {
            Err("the key was not held")?;
        }
        Ok(())
    }

    /// All of them hang on the one lease.
    async fn extend(&self, _: &[String], _: Duration) -> Result<(), Failed> {
        let (keeper, answers) = &mut *self.keep_alive.lock().await;
        keeper.keep_alive().await?;
        match answers.message().await? {
            Some(answer) if answer.ttl() > 0 => Ok(()),
            _ => Err("the lease has ended")?,
        }
    }

    /// Also those within streams.
    async fn requests(&self) -> Result<u64, Failed> {
        Ok(self.metrics().await?.sum("grpc_server_msg_received_total") as u64)
    }

    async fn writes(&self) -> Result<Option<u64>, Failed> {
        Ok(Some(self.metrics().await?.sum("etcd_server_proposals_applied_total") as u64))
    }
}

/// In the text format of Prometheus.
struct Metrics(String);

impl Metrics {
    /// The sum over all labels.
    fn sum(&self, name: &str) -> f64 {
        let of_name = |line: &str| {
            let rest = line.strip_prefix(name).filter(|rest| rest.starts_with(['{', ' ']))?;
            rest.rsplit(' ').next()?.parse::<f64>().ok()
        };
        self.0.lines().filter_map(of_name).sum()
    }
}

#[async_trait]
impl Rival for Etcd {
    fn name(&self) -> &str {
        "etcd's lock service"
    }

    async fn contender(&self, url: &str, name: &str) -> Result<Box<dyn Contender>, Failed> {
        let (client, lease) = connect(url).await?;
        let name = name.to_owned();
        Ok(Box::new(LockService { locks: client.lock_client(), lease, name, key: Vec::new() }))
    }
}

struct LockService {
    locks: LockClient,
    lease: i64,
    name: String,
    /// Of the lock that it has.
    key: Vec<u8>,
}

#[async_trait]
impl Contender for LockService {
    async fn lock(&mut self) -> Result<(), Failed> {
        let options = LockOptions::new().with_lease(self.lease);
        self.key = self.locks.lock(self.name.clone(), Some(options)).await?.key().to_vec();
        Ok(())
    }

    async fn unlock(&mut self) -> Result<(), Failed> {
        self.locks.unlock(std::mem::take(&mut self.key)).await?;
        Ok(())
    }
}

fn main() -> ExitCode {
    bench::main(Etcd, Etcd)
}
