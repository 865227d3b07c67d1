//! The servers that this workspace has a crate for.

use super::{Launch, Place};

/// One Redis or Valkey server (`REDIS_SERVER` names another program) that keeps its data over a
/// kill. What `more` says comes last, and so counts.
///
/// ```no_run
/// # async fn example() -> Result<(), sync_conformance::Failed> {
/// let server = sync_conformance::server::redis(&["--maxmemory", "100mb"]).start().await?;
/// assert!(server.url().starts_with("redis://127.0.0.1:"));
/// # Ok(()) }
/// ```
#[must_use]
pub fn redis(more: &[&str]) -> Launch {
    let more: Vec<String> = more.iter().map(ToString::to_string).collect();
    Launch::new("redis-server", "REDIS_SERVER", "apt-get install redis-server")
        .arguments(move |places, me| {
            let mut arguments: Vec<String> =
                ["--bind", "127.0.0.1", "--save", ""].map(Into::into).into();
            arguments.extend(["--port".into(), places[me].port(0).to_string()]);
            arguments.extend(["--dir".into(), places[me].dir().display().to_string()]);
            // Written before the answer is sent, so it survives a kill of the server, though not
            // one of the machine, without the cost of `fsync`.
            arguments.extend(["--appendonly", "yes", "--appendfsync", "no"].map(Into::into));
            arguments.extend(more.iter().cloned());
            arguments
        })
        .probe("PING\r\n", "+PONG")
        .url(|at| at.first().map(|at| format!("redis://{at}")).unwrap_or_default())
}

/// An etcd of one server, or a cluster of several (`ETCD` names another program), that keeps its
/// data over a kill, though not over one of the machine: it does not wait for its disk. Passwords
/// cost little. The URL is that of all members, joined by commas. What `more` says comes last, and
/// so counts.
///
/// ```no_run
/// # async fn example() -> Result<(), sync_conformance::Failed> {
/// let cluster = sync_conformance::server::etcd(3, &["--quota-backend-bytes", "100000000"]).start().await?;
/// assert_eq!(cluster.url().matches("http://127.0.0.1:").count(), 3);
/// # Ok(()) }
/// ```
#[must_use]
pub fn etcd(members: usize, more: &[&str]) -> Launch {
    let more: Vec<String> = more.iter().map(ToString::to_string).collect();
    Launch::new("etcd", "ETCD", "apt-get install etcd-server")
        .members(members)
        .ports(2)
        .arguments(move |places, me| {
            let at = |member: &Place, port| format!("http://127.0.0.1:{}", member.port(port));
            let (clients, peers) = (at(&places[me], 0), at(&places[me], 1));
            let cluster: Vec<String> = places
                .iter()
                .enumerate()
                .map(|(index, member)| format!("m{index}={}", at(member, 1)))
                .collect();
            let data = places[me].dir().join("data");
            let mut arguments = vec![
                format!("--name=m{me}"),
                format!("--data-dir={}", data.display()),
                format!("--listen-client-urls={clients}"),
                format!("--advertise-client-urls={clients}"),
                format!("--listen-peer-urls={peers}"),
                format!("--initial-advertise-peer-urls={peers}"),
                format!("--initial-cluster={}", cluster.join(",")),
                "--unsafe-no-fsync".to_owned(),
                "--bcrypt-cost=4".to_owned(),
                "--log-level=warn".to_owned(),
            ];
            arguments.extend(more.iter().cloned());
            arguments
        })
        // It is healthy as soon as the cluster has a leader.
        .probe("GET /health HTTP/1.0\r\n\r\n", "\"health\":\"true\"")
        .url(|at| {
            let endpoints: Vec<String> = at.iter().map(|at| format!("http://{at}")).collect();
            endpoints.join(",")
        })
}

/// A Consul agent that is a server, or a cluster of several (`CONSUL` names another program), that
/// keeps its data over a kill. It accepts TTLs of a second and more, and thousands of connections of
/// one client; a server that has died is not taken off the catalogue, which would end the sessions
/// that were made through it. The URL is that of all members, joined by commas. What `more` says, as HCL, comes
/// last, and so counts.
///
/// ```no_run
/// # async fn example() -> Result<(), sync_conformance::Failed> {
/// let agent = sync_conformance::server::consul(1, &["log_level = \"debug\""]).start().await?;
/// assert!(agent.url().starts_with("http://127.0.0.1:"));
/// # Ok(()) }
/// ```
#[must_use]
pub fn consul(members: usize, more: &[&str]) -> Launch {
    let more = more.join("\n");
    Launch::new("consul", "CONSUL", "apt-get install consul")
        .members(members)
        .ports(3)
        .arguments(move |places, me| {
            let place = &places[me];
            let (http, server, serf) = (place.port(0), place.port(1), place.port(2));
            let others: Vec<String> =
                places.iter().map(|place| format!("\"127.0.0.1:{}\"", place.port(2))).collect();
            let (join, data) = (others.join(", "), place.dir().join("data"));
            let settings = format!(
                "server = true
                bootstrap_expect = {members}
                node_name = \"m{me}\"
                bind_addr = \"127.0.0.1\"
                data_dir = \"{}\"
                ports {{ http = {http} server = {server} serf_lan = {serf} serf_wan = -1 dns = -1 grpc = -1 }}
                retry_join = [{join}]
                retry_interval = \"1s\"
                performance {{ raft_multiplier = 1 }}
                session_ttl_min = \"1s\"
                limits {{ http_max_conns_per_client = 10000 }}
                autopilot {{ cleanup_dead_servers = false }}
                disable_update_check = true
                log_level = \"warn\"",
                data.display()
            );
            vec!["agent".to_owned(), "-hcl".to_owned(), settings, "-hcl".to_owned(), more.clone()]
        })
        // It serves as soon as there is a leader.
        .probe("GET /v1/status/leader HTTP/1.0\r\n\r\n", "\"127.0.0.1:")
        .url(|at| {
            let agents: Vec<String> = at.iter().map(|at| format!("http://{at}")).collect();
            agents.join(",")
        })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{sleep, timeout};

    use super::super::{Server, launch::ask};
    use super::*;

    #[tokio::test]
    async fn a_redis_keeps_its_data_over_a_kill() {
        let server = redis(&[]).start().await.unwrap();
        let address = server.addresses()[0];
        ask(address, "SET k kept\r\n").await.unwrap();
        server.kill().unwrap();
        assert!(ask(address, "PING\r\n").await.is_err());
        server.restart().await.unwrap();
        assert!(ask(address, "GET k\r\n").await.unwrap().contains("kept"));

        server.stop().unwrap();
        assert_eq!(ask(address, "PING\r\n").await.unwrap(), "");
        server.resume().unwrap();
        assert!(ask(address, "PING\r\n").await.unwrap().contains("PONG"));
    }

    /// The value of the key `k`, in base64, as the member with this index has it.
    async fn value(cluster: &Server, member: usize) -> String {
        post(cluster, member, "/v3/kv/range", r#"{"key":"aw=="}"#).await
    }

    async fn post(cluster: &Server, member: usize, path: &str, body: &str) -> String {
        let question =
            format!("POST {path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        ask(cluster.addresses()[member], &question).await.unwrap()
    }

    #[tokio::test]
    async fn an_etcd_cluster_keeps_its_data_over_a_kill() {
        let cluster = etcd(3, &[]).start().await.unwrap();
        post(&cluster, 0, "/v3/kv/put", r#"{"key":"aw==","value":"a2VwdA=="}"#).await;
        cluster.restart().await.unwrap();
        for member in 0..3 {
            assert!(value(&cluster, member).await.contains("a2VwdA=="));
        }

        // It goes on without one, and takes it back.
        cluster.members()[0].kill().unwrap();
        cluster.members()[1].restart().await.unwrap();
        post(&cluster, 1, "/v3/kv/put", r#"{"key":"aw==","value":"YW5ldw=="}"#).await;
        cluster.members()[0].restart().await.unwrap();
        assert!(value(&cluster, 0).await.contains("YW5ldw=="));
    }

    /// What stands at the key `k`, as the member with this index has it.
    async fn kept(cluster: &Server, member: usize) -> String {
        let question = "GET /v1/kv/k?raw HTTP/1.0\r\n\r\n";
        ask(cluster.addresses()[member], question).await.unwrap()
    }

    /// A server that has just come back may not have a leader, or not have caught up.
    async fn keeps(cluster: &Server, member: usize, value: &str) {
        let looking = async {
            while !kept(cluster, member).await.ends_with(value) {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(Duration::from_secs(20), looking).await.unwrap();
    }

    async fn put(cluster: &Server, member: usize, value: &str) {
        let length = value.len();
        let question = format!("PUT /v1/kv/k HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{value}");
        let written = async {
            while !ask(cluster.addresses()[member], &question).await.unwrap().ends_with("true") {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(Duration::from_secs(20), written).await.unwrap();
    }

    #[tokio::test]
    async fn a_consul_cluster_keeps_its_data_over_a_kill() {
        let cluster = consul(3, &[]).start().await.unwrap();
        put(&cluster, 0, "kept").await;
        cluster.restart().await.unwrap();
        for member in 0..3 {
            keeps(&cluster, member, "kept").await;
        }

        // It goes on without one, and takes it back.
        cluster.members()[0].kill().unwrap();
        cluster.members()[1].restart().await.unwrap();
        put(&cluster, 1, "anew").await;
        cluster.members()[0].restart().await.unwrap();
        keeps(&cluster, 0, "anew").await;
    }
}
