//! Who may do what, what an agent is asked for, and what must not be shown to anybody.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may")]

mod common;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{ACLS, Api, ROOT, rules};
use serde_json::json;
use sync_conformance::{Failed, Server, server};
use sync_consul::{Config, ErrorKind, Options};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};

const LONG: Duration = Duration::from_secs(30);

/// An agent with ACLs, and who may do everything there.
struct Scene {
    server: Server,
    root: Api,
}

impl Scene {
    async fn new() -> Result<Self, Failed> {
        let server = server::consul(1, &[ACLS]).start().await?;
        common::prepare(&server.url()).await?;
        let root = Api::new(&server.url(), Some(ROOT));
        Ok(Self { server, root })
    }

    /// A token with these rules.
    async fn token(&self, name: &str, rules: &str) -> Result<String, Failed> {
        let policy = json!({ "Name": name, "Rules": rules }).to_string();
        self.root.ask("PUT", "/v1/acl/policy", policy.as_bytes()).await?;
        let token = json!({ "Description": name, "Policies": [{ "Name": name }] }).to_string();
        let token = self.root.json("PUT", "/v1/acl/token", token.as_bytes()).await?;
        Ok(token["SecretID"].as_str().ok_or("no token")?.to_owned())
    }

    fn config(&self) -> Config {
        Config::new(self.server.url()).options(Options::new().namespace("app/eu"))
    }
}

#[tokio::test]
async fn the_documented_permissions_are_enough() -> Result<(), Failed> {
    let scene = Scene::new().await?;
    let token = scene.token("app", &rules(&["app/eu/"], "m0")).await?;
    let [a, b] = [
        scene.config().token(&token).connect().await?,
        scene.config().token(&token).connect().await?,
    ];
    for (a, b) in [(a.lock("x"), b.lock("x"))] {
        let guard = a.acquire().await?;
        let waiting = tokio::spawn(async move { b.acquire().await });
        sleep(Duration::from_millis(300)).await;
        guard.release().await?;
        timeout(LONG, waiting).await???.release().await?;
    }
    let elected = a.leader("x").elect().await?;
    assert_eq!(b.leader("x").leader().await?.unwrap().token, Some(elected.token()));
    elected.resign().await?;
    Ok(())
}

#[tokio::test]
async fn with_less_the_error_names_what_is_missing() -> Result<(), Failed> {
    let scene = Scene::new().await?;
    let all = rules(&["app/eu/"], "m0");
    for (number, (missing, named)) in
        [("session", "session:write"), ("key_prefix", "key:write")].into_iter().enumerate()
    {
        let kept: Vec<&str> = all.lines().filter(|line| !line.starts_with(missing)).collect();
        let token = scene.token(&format!("less{number}"), &kept.join("\n")).await?;
        let error = scene.config().token(&token).connect().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied);
        let text = format!("{error} {error:?}");
        assert!(text.contains(&format!("the token lacks {named}")), "{text}");
        assert!(text.contains("what is needed: key_prefix"), "{text}");
        assert!(!text.contains(&token), "{text}");

        // The same once it is connected, and has lost the permission.
        let name = format!("both{number}");
        let token = scene.token(&name, &all).await?;
        let sync = scene.config().token(&token).connect().await?;
        let id = scene.root.json("GET", &format!("/v1/acl/policy/name/{name}"), b"").await?;
        let less = json!({ "ID": id["ID"], "Name": name, "Rules": kept.join("\n") }).to_string();
        let path = format!("/v1/acl/policy/{}", id["ID"].as_str().unwrap());
        scene.root.ask("PUT", &path, less.as_bytes()).await?;
        let error = timeout(LONG, sync.lock("x").acquire()).await?.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied);
        assert!(error.to_string().contains(named), "{error}");
    }
    let unknown = "00000000-0000-4000-8000-00000000dead";
    let error = scene.config().token(unknown).connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(error.to_string().contains("does not know the ACL token"), "{error}");
    let error = scene.config().connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    Ok(())
}

#[tokio::test]
async fn a_token_in_a_file_may_change() -> Result<(), Failed> {
    let scene = Scene::new().await?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("token");
    let config = scene.config().token_file(&file);
    let error = config.clone().connect().await.unwrap_err();
    assert!(error.to_string().contains("token"), "{error}");
    let rules = rules(&["app/eu/"], "m0");
    let first = scene.token("first", &rules).await?;
    std::fs::write(&file, format!("{first}\n"))?;
    let sync = config.connect().await?;
    let guard = sync.lock("x").acquire().await?;

    let second = scene.token("second", &rules).await?;
    std::fs::write(&file, &second)?;
    let tokens = scene.root.json("GET", "/v1/acl/tokens", b"").await?;
    let old = tokens.as_array().unwrap().iter().find(|token| token["Description"] == "first");
    let path = format!("/v1/acl/token/{}", old.unwrap()["AccessorID"].as_str().unwrap());
    scene.root.ask("DELETE", &path, b"").await?;
    let before = guard.deadline();
    timeout(LONG, async {
        while guard.deadline() == before {
            sleep(Duration::from_millis(50)).await;
        }
    })
    .await?;
    guard.release().await?;
    sync.lock("y").acquire().await?.release().await?;
    Ok(())
}

/// A server that answers everything alike, and keeps what it was asked.
async fn parrot(answer: String) -> Result<(String, Arc<Mutex<String>>), Failed> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let asked = Arc::new(Mutex::new(String::new()));
    let heard = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (heard, answer) = (Arc::clone(&heard), answer.clone());
            tokio::spawn(async move {
                let mut piece = [0; 4096];
                while let Ok(read @ 1..) = stream.read(&mut piece).await {
                    heard.lock().unwrap().push_str(&String::from_utf8_lossy(&piece[..read]));
                    let _ = stream.write_all(answer.as_bytes()).await;
                }
            });
        }
    });
    Ok((url, asked))
}

#[tokio::test]
async fn every_request_asks_for_datacenter_namespace_and_partition() -> Result<(), Failed> {
    // It knows a leader, and refuses everything else.
    let body = "\"127.0.0.1:8300\"";
    let good = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let (url, asked) = parrot(good).await?;
    let config = Config::new(url)
        .datacenter("dc2")
        .enterprise_namespace("team a")
        .enterprise_partition("p&q")
        .token("sesame");
    let shown = format!("{config:?}");
    assert!(!shown.contains("sesame"), "{shown}");
    let error = config.connect().await.unwrap_err();
    assert!(!format!("{error} {error:?}").contains("sesame"));
    let asked = asked.lock().unwrap().clone();
    assert!(asked.contains("PUT /v1/txn?dc=dc2&ns=team+a&partition=p%26q HTTP/1.1\r\n"), "{asked}");
    assert_eq!(
        asked.matches("x-consul-token: sesame\r\n").count(),
        asked.matches("HTTP/1.1").count()
    );
    Ok(())
}

#[tokio::test]
async fn a_redirection_gets_no_token() -> Result<(), Failed> {
    let (elsewhere, asked) =
        parrot("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_owned()).await?;
    let (url, _) =
        parrot(format!("HTTP/1.1 307 Temporary Redirect\r\nLocation: {elsewhere}/v1/status/leader\r\nContent-Length: 0\r\n\r\n")).await?;
    let error = Config::new(url).token("sesame").connect().await.unwrap_err();
    assert!(error.to_string().contains("redirection"), "{error}");
    assert_eq!(*asked.lock().unwrap(), "");
    Ok(())
}

#[tokio::test]
async fn an_agent_of_another_kind_is_named() -> Result<(), Failed> {
    let scene = Scene::new().await?;
    let token = scene.token("app", &rules(&["app/eu/"], "m0")).await?;
    // 1.8.7 knows no namespaces.
    let error = scene.config().token(&token).enterprise_namespace("x").connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("Enterprise"), "{error}");
    // This one keeps TTLs of a second and more.
    let config = scene.config().token(&token).least_ttl(Duration::from_millis(500));
    let error = config.connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("Config::least_ttl"), "{error}");
    Ok(())
}
