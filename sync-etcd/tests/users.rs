//! Servers that ask who one is.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

use std::time::Duration;

use etcd_client::{Client, Permission};
use sync_conformance::Server;
use sync_conformance::proxy::Proxy;
use sync_core::Backend;
use sync_etcd::{Config, ErrorKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A server whose user `app` may do what the documentation asks for, and nothing else.
async fn guarded(more: &[&str]) -> Server {
    let server = sync_conformance::server::etcd(1, more).start().await.unwrap();
    let mut etcd = Client::connect([server.url()], None).await.unwrap();
    etcd.role_add("app").await.unwrap();
    let permission = Permission::read_write("sync/").with_range_end("sync0");
    etcd.role_grant_permission("app", permission).await.unwrap();
    for (user, role) in [("app", "app"), ("root", "root")] {
        etcd.user_add(user, "sesame", None).await.unwrap();
        etcd.user_grant_role(user, role).await.unwrap();
    }
    etcd.auth_enable().await.unwrap();
    server
}

#[tokio::test]
async fn two_clusters_with_users_are_told_apart_when_connecting() {
    let (one, other) = (guarded(&[]).await, guarded(&[]).await);
    let config = Config::new(format!("{},{}", one.url(), other.url())).user("app", "sesame");
    let refused = config.connect().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid, "{refused}");
    assert!(refused.to_string().contains("another cluster"), "{refused}");
}

#[tokio::test]
async fn a_cluster_with_users_is_not_left_for_another() {
    let (one, other) = (guarded(&[]).await, guarded(&[]).await);
    let mut proxies = Vec::new();
    for server in [&one, &other] {
        proxies.push(Proxy::start(server.addresses()[0]).await.unwrap());
    }
    // Only one of them can be seen while connecting.
    proxies[1].cut();
    let urls: Vec<_> = proxies.iter().map(|proxy| format!("http://{}", proxy.address())).collect();
    let config = Config::new(urls.join(",")).user("app", "sesame");
    let backend = config.backend().await.unwrap();
    proxies[0].cut();
    proxies[1].heal();
    for _ in 0..6 {
        let opened = backend.open(Duration::from_secs(10)).await;
        assert!(opened.is_err(), "a session on another cluster excludes nobody of the first");
    }
}

/// How often anybody has logged in.
async fn logins(server: &Server) -> u64 {
    let mut stream = tokio::net::TcpStream::connect(server.addresses()[0]).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let counts = "grpc_server_started_total{grpc_method=\"Authenticate\"";
    let line = text.lines().find(|line| line.starts_with(counts)).unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Each login costs a server with etcd's own settings about 60 ms of a processor.
#[tokio::test]
async fn a_token_that_has_run_out_under_many_requests_is_replaced_once() {
    let server = guarded(&["--auth-token-ttl=1", "--bcrypt-cost=10"]).await;
    let config = Config::new(server.url()).user("app", "sesame");
    let sync = config.connect().await.unwrap();
    sync.lock("first").acquire().await.unwrap().release().await.unwrap();
    tokio::time::sleep(Duration::from_millis(3500)).await;
    let before = logins(&server).await;
    let mut tasks = Vec::new();
    for number in 0..64 {
        let lock = sync.lock(format!("{number}"));
        tasks.push(tokio::spawn(async move { lock.acquire().await }));
    }
    let began = tokio::time::Instant::now();
    for task in tasks {
        drop(task.await.unwrap().unwrap());
    }
    let logins = logins(&server).await - before;
    assert_eq!(logins, 1, "all were served after {:?}", began.elapsed());
}
