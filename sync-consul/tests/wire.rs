//! What is sent to whom: headers and queries, redirections, proxies, what the environment says.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

#[path = "common/agent.rs"]
mod agent;
mod common;
#[path = "common/front.rs"]
mod front;
#[path = "common/guarded.rs"]
mod guarded;

use std::time::Duration;

use agent::{again, config, keys};
use common::{ACLS, Api, ROOT};
use front::{Answer, Front, Verdict};
use guarded::{Guarded, SECRET, SOON, TOKEN, UNKNOWN, denied, documented, within};
use sync_conformance::cli::example::{self, Example};
use sync_conformance::driver::{Driver, TTL, bounded, lock, name};
use sync_conformance::logs::shown;
use sync_conformance::server;
use sync_consul::Config;
use sync_core::{ErrorKind, Kind};
use tokio::time::timeout;

/// Runs `consul-lock`, which reads the environment, with these variables.
fn consul_lock(variables: &[(&str, &str)]) -> Example {
    let program = example::build(env!("CARGO_PKG_NAME"), "consul-lock").unwrap();
    let arguments = ["a", "--", "true"];
    Example::start(&program, &arguments, |command| {
        command.envs(variables.iter().copied());
    })
    .unwrap()
}

#[tokio::test]
async fn what_consuls_own_variables_say_is_used_where_the_program_asks_for_it() {
    let guarded = Guarded::start(&documented()).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, TOKEN).unwrap();
    let (address, file) = (guarded.server.addresses()[0].to_string(), file.display().to_string());
    let url = guarded.server.url();
    for (variables, status) in [
        (&[("CONSUL_HTTP_ADDR", &*address), ("CONSUL_HTTP_TOKEN", TOKEN)][..], 0),
        (&[("CONSUL_HTTP_ADDR", &*url), ("CONSUL_HTTP_TOKEN", TOKEN)], 0),
        (&[("CONSUL_HTTP_ADDR", &*address), ("CONSUL_HTTP_TOKEN_FILE", &*file)], 0),
        (&[("CONSUL_HTTP_ADDR", &*address), ("CONSUL_HTTP_TOKEN", UNKNOWN)], 1),
        (&[("CONSUL_HTTP_ADDR", &*address)], 1),
        (
            &[
                ("CONSUL_HTTP_ADDR", &*address),
                ("CONSUL_HTTP_TOKEN", TOKEN),
                ("CONSUL_HTTP_SSL", "x"),
            ],
            2,
        ),
        (
            &[
                ("CONSUL_HTTP_ADDR", &*address),
                ("CONSUL_HTTP_TOKEN", TOKEN),
                ("CONSUL_CAPATH", "x"),
            ],
            2,
        ),
    ] {
        let run = consul_lock(variables);
        assert_eq!(run.exit(Duration::from_secs(20)).await.unwrap(), status, "{}", run.said());
        assert!(!run.said().contains(SECRET), "{}", run.said());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_else_reads_the_environment_neither_its_proxy_nor_its_token() {
    if let Ok(url) = std::env::var("SYNC_TEST_AGENT") {
        // Without a token in the configuration none is sent.
        denied(within(config(&url)), &["key:write"]).await;
        let sync = within(config(&url).token(TOKEN)).connect().await.unwrap();
        sync.lock("a").acquire().await.unwrap().release().await.unwrap();
        let sync = within(Config::from_env().url(&url).token(TOKEN)).connect().await.unwrap();
        sync.lock("a").acquire().await.unwrap().release().await.unwrap();
        return;
    }
    let guarded = Guarded::start(&documented()).await;
    let url = guarded.server.url();
    let test = "nothing_else_reads_the_environment_neither_its_proxy_nor_its_token";
    // A proxy that nobody is behind: whoever asks it gets no answer.
    let proxy = Front::before("127.0.0.1:1".parse().unwrap()).await;
    proxy.decide(|_| Verdict::Answer(Answer::new(502, "a proxy")));
    let proxy_url = proxy.url();
    let proxies =
        ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];
    let mut variables: Vec<(&str, &str)> = proxies.map(|name| (name, &*proxy_url)).into();
    variables.extend([("SYNC_TEST_AGENT", &*url), ("CONSUL_HTTP_TOKEN", UNKNOWN)]);
    again(test, &variables).await;
    assert!(proxy.asked().is_empty(), "the proxy was asked: {:?}", proxy.asked());
}

#[tokio::test]
async fn a_redirection_is_not_followed_and_takes_no_token_anywhere() {
    let guarded = Guarded::start(&documented()).await;
    let (front, elsewhere) = (Front::of(&guarded.server).await, Front::of(&guarded.server).await);
    let target = elsewhere.url();
    let through = || within(config(front.url()).token(TOKEN));
    for status in [301, 302, 303, 307, 308] {
        let target = target.clone();
        front.decide(move |asked| {
            let target = format!("{target}{}", asked.path);
            Verdict::Answer(Answer::new(status, "").with("location", &target))
        });
        let error = through().connect().await.unwrap_err();
        assert!(error.to_string().contains("redirect"), "{error}");
        assert!(!shown(&error).contains(SECRET));
    }
    front.decide(|_| Verdict::Pass);
    let a = Driver::on(through().backend().await.unwrap(), TTL).await;
    front.decide(move |asked| {
        let target = format!("{target}{}", asked.path);
        Verdict::Answer(Answer::new(307, "").with("location", &target))
    });
    let error = a.backend.try_claim(&a.session, &lock("a"), None, false).await.unwrap_err();
    assert!(!error.settled(), "nobody knows what a redirection has done: {error}");
    assert!(a.backend.renew(&a.session, &[]).await.is_err());
    assert!(elsewhere.asked().is_empty(), "{:?}", elsewhere.asked());
}

#[tokio::test]
async fn every_request_names_datacenter_enterprise_namespace_and_partition() {
    let guarded = Guarded::start(&documented()).await;
    let front = Front::of(&guarded.server).await;
    // The open source's agent refuses what only the other knows.
    front.decide(|asked| Verdict::Ask(asked.without("ns").without("partition")));
    let config = || {
        within(config(front.url()).token(TOKEN))
            .datacenter("dc1")
            .enterprise_namespace("team a&b")
            .enterprise_partition("eu=1")
    };
    let a = Driver::on(config().backend().await.unwrap(), TTL).await;
    let b = Driver::on(config().backend().await.unwrap(), TTL).await;
    let _losses = a.backend.losses(&a.session);
    let (first, second, third) = (lock("a"), lock("a"), lock("a"));
    a.held(&first).await;
    let place = b.blocked(&second).await;
    let behind = b.blocked(&third).await;
    a.backend.renew(&a.session, &[]).await.unwrap();
    assert!(bounded(b.backend.wait(&b.session, &second, &place)).await.is_none());
    assert!(bounded(b.backend.wait(&b.session, &third, &behind)).await.is_none());
    a.backend.holder(Kind::Lock, &name("a")).await.unwrap();
    a.abandon(&first).await;
    b.end(&second).await;
    b.end(&third).await;
    a.backend.close(&a.session).await.unwrap();
    let asked = front.asked();
    let paths = [
        "/v1/txn",
        "/v1/session/create",
        "/v1/session/renew/",
        "/v1/session/info/",
        "/v1/session/destroy/",
        "/v1/kv/sync/lock/a/.lock",
        "/v1/kv/sync/line/",
    ];
    for path in paths {
        assert!(asked.iter().any(|asked| asked.path.starts_with(path)), "{path} was not asked");
    }
    assert!(asked.iter().any(|asked| asked.is_poll()), "no long poll was asked for");
    for asked in asked {
        assert_eq!(asked.header("x-consul-token"), Some(TOKEN), "{}", asked.path);
        if asked.path == "/v1/status/leader" {
            continue;
        }
        assert_eq!(asked.query("dc"), Some("dc1"), "{}", asked.path);
        assert_eq!(asked.query("partition"), Some("eu%3D1"), "{}", asked.path);
        assert!(matches!(asked.query("ns"), Some("team+a%26b" | "team%20a%26b")), "{}", asked.path);
        assert!(!asked.path.contains(SECRET), "the token is in a header: {}", asked.path);
    }
}

#[tokio::test]
async fn user_and_password_are_shown_to_a_proxy_before_the_agent() {
    let server = agent::agent(&[]).await;
    for (user, basic) in [
        ("me:ses%61me", "Basic bWU6c2VzYW1l"),
        ("me", "Basic bWU6"),
        (":sesame", "Basic OnNlc2FtZQ=="),
    ] {
        let front = Front::of(&server).await;
        let url = front.url().replace("://", &format!("://{user}@"));
        let config = config(url);
        let text = format!("{config:?}");
        assert!(text.contains("basic: true") && !text.contains("same"), "{text}");
        config.connect().await.unwrap();
        let asked = front.asked();
        assert!(
            asked.iter().all(|asked| asked.header("authorization") == Some(basic)),
            "{asked:?}"
        );
    }
}

#[cfg(unix)]
#[tokio::test]
async fn an_agent_may_be_reached_by_its_socket() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("consul.sock").display().to_string();
    let listen = format!("addresses {{ http = \"127.0.0.1 unix://{socket}\" }}");
    let server = server::consul(1, &[ACLS, &listen]).start().await.unwrap();
    let root = Api::new(&server.url(), Some(ROOT));
    agent::ready(&root).await;
    let url = format!("unix://{socket}");
    let (a, b) = (
        config(&url).token(ROOT).connect().await.unwrap(),
        config(&url).token(ROOT).connect().await.unwrap(),
    );
    let guard = a.lock("a").acquire().await.unwrap();
    let lock = b.lock("a");
    let waiting = tokio::spawn(async move { lock.acquire().await.unwrap() });
    agent::in_line(&root, "lock/a", 1).await;
    guard.release().await.unwrap();
    timeout(SOON, waiting).await.expect("woken").unwrap().release().await.unwrap();
    assert!(keys(&root, "sync/").await.is_empty());
    let missing = within(config("unix:///no/such/socket")).connect().await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::Unreachable, "{missing}");
}

#[tokio::test]
async fn what_the_agent_does_not_know_of_is_told() {
    let guarded = Guarded::start(&documented()).await;
    for (config, words) in [
        (guarded.config().enterprise_namespace("team"), &["Enterprise"][..]),
        (
            guarded.config().datacenter("dc9"),
            &["No path to datacenter (check Config::datacenter", "consul catalog datacenters"],
        ),
    ] {
        let error = config.connect().await.unwrap_err();
        for word in words {
            assert!(error.to_string().contains(word), "{error}");
        }
        assert!(!shown(&error).contains(SECRET));
    }
}
