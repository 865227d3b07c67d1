//! The shared workloads on a real Consul, beside its own transactions and the usual way to lock.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sync_conformance::bench::{self, Contender, Goals, Raw, Rival};
use sync_conformance::{Failed, Server, Store, server};
use sync_consul::Config;
use sync_core::{Backend, Error, Options};
use tokio::task::JoinSet;

struct Consul;

#[async_trait]
impl Store for Consul {
    fn name(&self) -> &str {
        "consul"
    }

    async fn start(&self) -> Result<Server, Failed> {
        if let Some(server) = server::external("SYNC_TEST_CONSUL")? {
            return Ok(server);
        }
        // Nothing but what is counted here: all of it would cost the agent more the longer it runs.
        let telemetry = "telemetry { prometheus_retention_time = \"1h\" disable_hostname = true \
                         filter_default = false prefix_filter = [\"+consul.http\"] }";
        server::consul(1, &[telemetry]).start().await
    }

    async fn connect(&self, url: &str, options: &Options) -> Result<Arc<dyn Backend>, Error> {
        let config = Config::new(url).options(options.clone()).least_ttl(Duration::from_secs(1));
        Ok(Arc::new(config.backend().await?))
    }

    async fn leftovers(&self, _: &str, _: &str) -> Result<Vec<String>, Failed> {
        Ok(Vec::new())
    }
}

/// The value that is put: always the same, so that it costs nothing to make.
const OWNER: &str = "NWQxYTZjM2Y5YjdlNDgyMGExYzRlNmY4MGIyZDRmNjg=";

/// A client of the HTTP library as the backend's, with a session that outlives every workload.
struct Requests {
    http: reqwest::Client,
    url: String,
    session: String,
}

impl Requests {
    async fn new(url: &str) -> Result<Self, Failed> {
        let http = reqwest::Client::builder().no_proxy().tcp_nodelay(true).build()?;
        let url = url.split(',').next().unwrap_or_default().to_owned();
        let mut this = Self { http, url, session: String::new() };
        let session =
            json!({ "TTL": "3600s", "NodeChecks": [], "Behavior": "delete", "LockDelay": "0s" });
        let (_, answer) = this.ask(Method::PUT, "/v1/session/create", session.to_string()).await?;
        let answer: Value = serde_json::from_slice(&answer)?;
        this.session = answer["ID"].as_str().ok_or("no session")?.to_owned();
        Ok(this)
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: String,
    ) -> Result<(Option<u64>, Vec<u8>), Failed> {
        let sent = self.http.request(method, format!("{}{path}", self.url)).body(body).send();
        let answer = sent.await?;
        let (status, index) = (answer.status(), answer.headers().get("x-consul-index"));
        let index = index.and_then(|index| index.to_str().ok()?.parse().ok());
        let body = answer.bytes().await?.to_vec();
        match status {
            StatusCode::OK => Ok((index, body)),
            StatusCode::NOT_FOUND => Ok((index, Vec::new())),
            _ => Err(format!("{path}: {status}: {}", String::from_utf8_lossy(&body)))?,
        }
    }

    /// Whose session has a key, and the index to wait from.
    async fn holder(
        &self,
        path: &str,
        how: &str,
        index: Option<u64>,
    ) -> Result<(Option<String>, Option<u64>), Failed> {
        let wait = index.map(|index| format!("&index={index}")).unwrap_or_default();
        let question = format!("{path}?{how}{wait}");
        let (index, found) = self.ask(Method::GET, &question, String::new()).await?;
        let found: Value = serde_json::from_slice(&found).unwrap_or_default();
        Ok((found[0]["Session"].as_str().map(str::to_owned), index))
    }

    async fn txn(&self, operations: Value) -> Result<(), Failed> {
        self.ask(Method::PUT, "/v1/txn", operations.to_string()).await.map(drop)
    }
}

#[async_trait]
impl Raw for Consul {
    async fn client(&self, url: &str) -> Result<Arc<dyn bench::Client>, Failed> {
        Ok(Arc::new(Requests::new(url).await?))
    }

    fn goals(&self) -> Goals {
        Goals::default().free(1.1).parallel(0.9).renewal(1.0).against_rival(32, 2.0, 1.0)
    }

    fn rival(&self) -> Option<&dyn Rival> {
        Some(self)
    }
}

/// The least that excludes: made anew, and compared at the end.
#[async_trait]
impl bench::Client for Requests {
    async fn version(&self) -> Result<String, Failed> {
        let (_, own) = self.ask(Method::GET, "/v1/agent/self", String::new()).await?;
        let own: Value = serde_json::from_slice(&own)?;
        let version = own["Config"]["Version"].as_str().ok_or("no version")?;
        Ok(format!("Consul {version}"))
    }

    async fn take(&self, key: &str, _: Duration) -> Result<(), Failed> {
        self.txn(json!([
            { "KV": { "Verb": "check-not-exists", "Key": key } },
            { "KV": { "Verb": "lock", "Key": key, "Value": OWNER, "Session": self.session } },
        ]))
        .await
    }

    async fn give_back(&self, key: &str) -> Result<(), Failed> {
        self.txn(json!([
            { "KV": { "Verb": "check-session", "Key": key, "Session": self.session } },
            { "KV": { "Verb": "delete", "Key": key } },
        ]))
        .await
    }

    /// All of them hang on the one session.
    async fn extend(&self, _: &[String], _: Duration) -> Result<(), Failed> {
        let path = format!("/v1/session/renew/{}", self.session);
        self.ask(Method::PUT, &path, String::new()).await.map(drop)
    }

    async fn requests(&self) -> Result<u64, Failed> {
        let path = "/v1/agent/metrics?format=prometheus";
        let (_, text) = self.ask(Method::GET, path, String::new()).await?;
        let text = String::from_utf8(text)?;
        let count = |line: &str| {
            let (name, count) = line.split_once(' ')?;
            let counts = name.starts_with("consul_http_") && name.ends_with("_count");
            // Those by which it is measured do not count.
            let counts = counts && !name.contains("_v1_agent_");
            counts.then(|| count.parse::<f64>().ok())?
        };
        Ok(text.lines().filter_map(count).sum::<f64>() as u64)
    }

    async fn writes(&self) -> Result<Option<u64>, Failed> {
        let (_, own) = self.ask(Method::GET, "/v1/agent/self", String::new()).await?;
        let own: Value = serde_json::from_slice(&own)?;
        let last = own["Stats"]["raft"]["last_log_index"].as_str().ok_or("no index")?;
        Ok(Some(last.parse()?))
    }
}

/// As Go's `api.Lock` does with a session that is open: everybody waits on the key, whoever is the
/// quickest gets it, and who has it watches it. Only that whoever finds it free after having failed
/// tries again at once, where Go's clients would sleep for 5 s.
#[async_trait]
impl Rival for Consul {
    fn name(&self) -> &str {
        "everybody waits on the key"
    }

    async fn contender(&self, url: &str, name: &str) -> Result<Box<dyn Contender>, Failed> {
        let (requests, path) = (Arc::new(Requests::new(url).await?), format!("/v1/kv/{name}"));
        Ok(Box::new(Herd { requests, path, watch: JoinSet::new() }))
    }
}

struct Herd {
    requests: Arc<Requests>,
    path: String,
    watch: JoinSet<Result<(), Failed>>,
}

#[async_trait]
impl Contender for Herd {
    async fn lock(&mut self) -> Result<(), Failed> {
        let Self { requests, path, watch } = self;
        let acquire = format!("{path}?acquire={}", requests.session);
        loop {
            let mut index = None;
            while let (Some(_), seen) = requests.holder(path, "wait=15s", index).await? {
                index = seen;
            }
            let (_, taken) = requests.ask(Method::PUT, &acquire, OWNER.to_owned()).await?;
            if taken.starts_with(b"true") {
                break;
            }
        }
        let (requests, path) = (Arc::clone(requests), path.clone());
        watch.spawn(async move {
            let mut index = None;
            loop {
                match requests.holder(&path, "consistent", index).await? {
                    (Some(holder), seen) if holder == requests.session => index = seen,
                    _ => return Ok(()),
                }
            }
        });
        Ok(())
    }

    async fn unlock(&mut self) -> Result<(), Failed> {
        let Self { requests, path, watch } = self;
        let release = format!("{path}?release={}", requests.session);
        let (_, free) = requests.ask(Method::PUT, &release, OWNER.to_owned()).await?;
        if !free.starts_with(b"true") {
            Err("the key was not held")?;
        }
        while let Some(ended) = watch.try_join_next() {
            ended??;
        }
        Ok(())
    }
}

fn main() -> ExitCode {
    bench::main(Consul, Consul)
}
