//! Real servers, and an operator beside them.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{ConnectOptions, GetOptions, KeyValue, Permission};
use sync_conformance::Server;
use sync_conformance::driver::{Driver, TTL, eventually};
use sync_conformance::fault::Faults;
use sync_conformance::proxy::Proxy;
use sync_core::Name;
use sync_core::backend::{Claim, Session};
use sync_etcd::{Config, Coordinator, Options};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Servers of their own, which the test may stop.
pub(crate) async fn servers(members: usize, more: &[&str]) -> Server {
    sync_conformance::server::etcd(members, more).start().await.unwrap()
}

pub(crate) async fn server() -> Server {
    servers(1, &[]).await
}

/// The URL that leads to these addresses.
pub(crate) fn to(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(|at| format!("http://{at}")).collect::<Vec<_>>().join(",")
}

pub(crate) async fn proxy(server: &Server) -> Proxy {
    Proxy::start(server.addresses()[0]).await.unwrap()
}

pub(crate) async fn client(server: &Server) -> Driver {
    client_with(server, TTL).await
}

pub(crate) async fn client_with(server: &Server, ttl: Duration) -> Driver {
    Driver::on(Config::new(server.url()).backend().await.unwrap(), ttl).await
}

pub(crate) async fn coordinator(url: &str, ttl: Duration) -> Coordinator {
    Config::new(url).options(Options::new().ttl(ttl)).connect().await.unwrap()
}

/// A coordinator, and what it asks of its backend.
pub(crate) async fn counted(config: Config, options: Options) -> (Coordinator, Faults) {
    let backend = config.options(options.clone()).backend().await.unwrap();
    let calls = Faults::new();
    (calls.coordinator(Arc::new(backend), &options).unwrap(), calls)
}

/// etcd's own client, as an operator would use it.
#[derive(Clone)]
pub(crate) struct Operator(pub(crate) etcd_client::Client);

impl Operator {
    pub(crate) async fn of(server: &Server) -> Self {
        Self::with(server, None).await
    }

    pub(crate) async fn with(server: &Server, options: Option<ConnectOptions>) -> Self {
        let endpoints: Vec<String> = server.addresses().iter().map(ToString::to_string).collect();
        Self(etcd_client::Client::connect(endpoints, options).await.unwrap())
    }

    /// Everything under a prefix, the oldest first.
    pub(crate) async fn under(&mut self, prefix: &str) -> Vec<KeyValue> {
        use etcd_client::{SortOrder, SortTarget};
        let options =
            GetOptions::new().with_prefix().with_sort(SortTarget::Create, SortOrder::Ascend);
        self.0.get(prefix, Some(options)).await.unwrap().take_kvs()
    }

    pub(crate) async fn keys(&mut self, prefix: &str) -> Vec<String> {
        self.under(prefix).await.iter().map(|pair| pair.key_str().unwrap().to_owned()).collect()
    }

    /// The one key under a prefix.
    pub(crate) async fn only(&mut self, prefix: &str) -> KeyValue {
        let mut found = self.under(prefix).await;
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0)
    }

    pub(crate) async fn put(&mut self, key: &str, value: impl Into<Vec<u8>>) {
        self.0.put(key, value, None).await.unwrap();
    }

    pub(crate) async fn lease(&mut self, seconds: i64) -> i64 {
        self.0.lease_grant(seconds, None).await.unwrap().id()
    }

    /// Forgets everything but what stands in the store now.
    pub(crate) async fn compact(&mut self) {
        let revision = self.0.get("x", None).await.unwrap().header().unwrap().revision();
        let physical = etcd_client::CompactionOptions::new().with_physical();
        self.0.compact(revision, Some(physical)).await.unwrap();
    }

    /// Asks for a user and a password from now on: `root`, and `app` with a role that may do this
    /// to the keys of `range`.
    pub(crate) async fn enable_auth(&mut self, grants: &[Permission]) {
        let client = &mut self.0;
        client.role_add("root").await.unwrap();
        client.user_add("root", "rootsesame", None).await.unwrap();
        client.user_grant_role("root", "root").await.unwrap();
        client.role_add("app").await.unwrap();
        client.user_add("app", "sesame", None).await.unwrap();
        client.user_grant_role("app", "app").await.unwrap();
        for grant in grants {
            client.role_grant_permission("app", grant.clone()).await.unwrap();
        }
        client.auth_enable().await.unwrap();
    }
}

/// What the documentation asks for.
pub(crate) fn documented(namespace: &str) -> Permission {
    within(Permission::read_write(format!("{namespace}/")), namespace)
}

/// The keys of a namespace: those that begin with it and a slash, which 0 comes after.
pub(crate) fn within(permission: Permission, namespace: &str) -> Permission {
    permission.with_range_end(format!("{namespace}0"))
}

/// The key of a claim, as other programs and other versions know it.
pub(crate) fn key(session: &Session, claim: &Claim) -> String {
    let Claim { kind, name, nonce, .. } = claim;
    format!("sync/{kind}/{}/{}-{}", Name::encoded(name), session.id, nonce.to_hex())
}

pub(crate) fn void(session: &Session, claim: &Claim) -> String {
    format!("sync/void/{}-{}", session.id, claim.nonce.to_hex())
}

pub(crate) fn lease(session: &Session) -> i64 {
    i64::from_str_radix(&session.id, 16).unwrap()
}

/// How many messages the first member has received, calls and what came on streams, by method.
pub(crate) async fn received(server: &Server, method: &str) -> u64 {
    metric(server, &format!("grpc_server_msg_received_total{{grpc_method=\"{method}\"")).await
}

/// Returns when the server has so many watches open.
pub(crate) async fn watched(server: &Server, count: u64) {
    let open = async || match metric(server, "etcd_debugging_mvcc_watcher_total").await {
        open if open >= count => Ok(()),
        open => Err(format!("{open} watches are open, not {count}")),
    };
    eventually(Duration::from_secs(5), open).await;
}

/// What the first member tells of itself, in the line that begins like this.
pub(crate) async fn metric(server: &Server, begins: &str) -> u64 {
    metrics(server, begins, "").await
}

/// The sum of the lines that begin like this and hold that.
pub(crate) async fn metrics(server: &Server, begins: &str, holds: &str) -> u64 {
    let mut stream = tokio::net::TcpStream::connect(server.addresses()[0]).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let lines = text.lines().filter(|line| line.starts_with(begins) && line.contains(holds));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64).sum()
}
