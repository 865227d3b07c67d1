//! What the tests ask of an agent beside the crate: over a client of their own.
#![allow(dead_code, reason = "each test uses its part")]

use std::time::Duration;

use base64::Engine as _;
use serde::Deserialize;
use serde_json::{Value, json};
use sync_conformance::Failed;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// What turns ACLs on, with a token that may do everything.
pub(crate) const ACLS: &str = r#"acl {
    enabled = true
    default_policy = "deny"
    tokens { master = "00000000-0000-4000-8000-000000000001" }
}"#;
pub(crate) const ROOT: &str = "00000000-0000-4000-8000-000000000001";

/// The token of the least privilege, for the namespaces of cases and of soaks.
pub(crate) const SUITE: &str = "00000000-0000-4000-8000-000000000002";

/// How long an agent may take for an answer before the next is asked.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long a blocking query may take.
const LONG_POLL: Duration = Duration::from_secs(30);

/// Makes the suite's token.
pub(crate) async fn prepare(url: &str) -> Result<(), Failed> {
    let agents: Vec<Api> = url.split(',').map(|agent| Api::new(agent, Some(ROOT))).collect();
    let rules = rules(&["case", "soak"], "");
    let policy = json!({ "Name": "suite", "Rules": rules }).to_string();
    // ACLs are there a moment after the leader is.
    let first = agents.first().ok_or("the URL names no agent")?;
    for _ in 0..200 {
        if first.ask("PUT", "/v1/acl/policy", policy.as_bytes()).await.is_ok() {
            let token = json!({ "SecretID": SUITE, "Policies": [{ "Name": "suite" }] }).to_string();
            first.ask("PUT", "/v1/acl/token", token.as_bytes()).await?;
            break;
        }
        sleep(Duration::from_millis(50)).await;
    }
    // The other members learn of it a moment later.
    for agent in &agents {
        let suite = Api { token: Some(SUITE.to_owned()), ..agent.clone() };
        for _ in 0..200 {
            let session =
                suite.ask("PUT", "/v1/session/create", br#"{"TTL":"10s","NodeChecks":[]}"#);
            if session.await.is_ok() {
                break;
            }
            sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}

/// The least privilege as the documentation shows it, for these namespaces and any node.
pub(crate) fn rules(namespaces: &[&str], node: &str) -> String {
    let documented = include_str!("../../src/acl.hcl");
    let mut rules = String::new();
    for line in documented.lines() {
        if line.contains("NAMESPACE/") {
            for namespace in namespaces {
                rules += &line.replace("NAMESPACE/", namespace);
                rules += "\n";
            }
        } else if node.is_empty() {
            rules += &line.replace("session \"NODE\"", "session_prefix \"\"");
        } else {
            rules += &line.replace("NODE", node);
        }
    }
    rules
}

/// An agent's API.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    /// Host and port.
    pub(crate) address: String,
    pub(crate) token: Option<String>,
}

/// A key as the agent shows it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Pair {
    pub(crate) key: String,
    pub(crate) value: Option<String>,
    pub(crate) flags: u64,
    #[serde(default)]
    pub(crate) session: String,
    pub(crate) create_index: u64,
    pub(crate) modify_index: u64,
}

impl Pair {
    pub(crate) fn text(&self) -> String {
        let value = self.value.as_deref().unwrap_or_default();
        let bytes = base64::engine::general_purpose::STANDARD.decode(value).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Api {
    pub(crate) fn new(url: &str, token: Option<&str>) -> Self {
        let address = url.trim_start_matches("http://").trim_end_matches('/').to_owned();
        Self { address, token: token.map(ToOwned::to_owned) }
    }

    /// Every key under a prefix.
    pub(crate) async fn pairs(&self, prefix: &str) -> Result<Vec<Pair>, Failed> {
        let (status, body) =
            self.answer("GET", &format!("/v1/kv/{prefix}?recurse&consistent"), b"").await?;
        match status {
            200 => Ok(serde_json::from_slice(&body)?),
            404 => Ok(Vec::new()),
            _ => Err(format!("status {status}: {}", String::from_utf8_lossy(&body)))?,
        }
    }

    pub(crate) async fn json(
        &self,
        method: &str,
        path: &str,
        body: &[u8],
    ) -> Result<Value, Failed> {
        Ok(serde_json::from_slice(&self.ask(method, path, body).await?)?)
    }

    /// The body of a good answer.
    pub(crate) async fn ask(
        &self,
        method: &str,
        path: &str,
        body: &[u8],
    ) -> Result<Vec<u8>, Failed> {
        match self.answer(method, path, body).await? {
            (200, body) => Ok(body),
            (404, _) if path.contains("keys") => Ok(Vec::new()),
            (status, body) => {
                Err(format!("{path}: status {status}: {}", String::from_utf8_lossy(&body)))?
            }
        }
    }

    pub(crate) async fn answer(
        &self,
        method: &str,
        path: &str,
        body: &[u8],
    ) -> Result<(u16, Vec<u8>), Failed> {
        let (head, body) = self.exchange(method, path, body, PATIENCE).await?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok((status.ok_or("no status")?, body))
    }

    /// A key, and the index from which a blocking query for it goes on; `query` begins with `?`.
    pub(crate) async fn poll(&self, key: &str, query: &str) -> Result<(Option<Pair>, u64), Failed> {
        let path = format!("/v1/kv/{key}{query}");
        let (head, body) = self.exchange("GET", &path, b"", LONG_POLL).await?;
        let head = head.to_lowercase();
        let index = head.lines().find_map(|line| line.strip_prefix("x-consul-index: "));
        let index = index.ok_or_else(|| format!("no index: {head}"))?.trim().parse()?;
        let pairs: Vec<Pair> =
            if body.is_empty() { Vec::new() } else { serde_json::from_slice(&body)? };
        Ok((pairs.into_iter().next(), index))
    }

    /// Head and body of an answer.
    async fn exchange(
        &self,
        method: &str,
        path: &str,
        body: &[u8],
        patience: Duration,
    ) -> Result<(String, Vec<u8>), Failed> {
        let exchange = async {
            let mut stream = TcpStream::connect(&self.address).await?;
            let token = self.token.as_deref().unwrap_or_default();
            let token = if token.is_empty() {
                String::new()
            } else {
                format!("X-Consul-Token: {token}\r\n")
            };
            let head = format!(
                "{method} {path} HTTP/1.0\r\nConnection: close\r\nContent-Length: {}\r\n{token}\r\n",
                body.len()
            );
            stream.write_all(&[head.as_bytes(), body].concat()).await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        let answer = timeout(patience, exchange).await.map_err(|_| "the agent is silent")??;
        let head = answer.windows(4).position(|end| end == b"\r\n\r\n").ok_or("no answer")?;
        let text = String::from_utf8_lossy(&answer[..head]).into_owned();
        Ok((text, answer[head + 4..].to_vec()))
    }
}
