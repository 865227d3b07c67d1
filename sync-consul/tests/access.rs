//! Who may do what, and what must not be shown to anybody.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

#[path = "common/agent.rs"]
mod agent;
mod common;
#[path = "common/front.rs"]
mod front;

use std::time::Duration;

use agent::{again, config, keys};
use common::{ACLS, Api, ROOT, rules};
use front::{Answer, Front, Verdict};
use serde_json::json;
use sync_conformance::cli::example::{self, Example};
use sync_conformance::driver::{Driver, TTL, bounded, claim, lock, name, record};
use sync_conformance::{Server, logs, server};
use sync_consul::{Cause, Config, Node, Options};
use sync_core::backend::{Claim, Held, Renewal, Updated};
use sync_core::{Error, ErrorKind, Kind};
use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt;

/// A token is a UUID to Consul. These are found in every text that shows them.
const TOKEN: &str = "5e5a3e00-aaaa-4aaa-8aaa-5e5a3e5e5a3e";
const OTHER: &str = "5e5a3e00-bbbb-4bbb-8bbb-5e5a3e5e5a3e";
const UNKNOWN: &str = "5e5a3e00-cccc-4ccc-8ccc-5e5a3e5e5a3e";
const SECRET: &str = "5e5a3e";

const SOON: Duration = Duration::from_secs(3);

/// An agent that asks for tokens.
struct Guarded {
    server: Server,
    root: Api,
}

impl Guarded {
    /// Its token [`TOKEN`] may do this.
    async fn start(rules: &str) -> Self {
        let server = server::consul(1, &[ACLS]).start().await.unwrap();
        let root = Api::new(&server.url(), Some(ROOT));
        agent::ready(&root).await.unwrap();
        let guarded = Self { server, root };
        guarded.may("app", rules).await;
        guarded.token(TOKEN, "app").await;
        guarded
    }

    /// A policy with these rules from now on.
    async fn may(&self, policy: &str, rules: &str) {
        let listed = self.root.json("GET", "/v1/acl/policies", b"").await.unwrap();
        let known = listed.as_array().unwrap().iter().find(|known| known["Name"] == policy);
        let known = known.and_then(|known| known["ID"].as_str().map(ToOwned::to_owned));
        let body = json!({ "Name": policy, "Rules": rules, "ID": known }).to_string();
        let path = match known {
            Some(id) => format!("/v1/acl/policy/{id}"),
            None => "/v1/acl/policy".to_owned(),
        };
        self.root.ask("PUT", &path, body.as_bytes()).await.unwrap();
    }

    async fn token(&self, secret: &str, policy: &str) {
        let body = json!({
            "SecretID": secret, "AccessorID": secret.replace("5e5a3e", "000000"),
            "Policies": [{ "Name": policy }],
        });
        self.root.ask("PUT", "/v1/acl/token", body.to_string().as_bytes()).await.unwrap();
    }

    async fn revoke(&self, secret: &str) {
        let path = format!("/v1/acl/token/{}", secret.replace("5e5a3e", "000000"));
        self.root.ask("DELETE", &path, b"").await.unwrap();
    }

    fn config(&self) -> Config {
        within(config(self.server.url()).token(TOKEN))
    }

    async fn driver(&self) -> Driver {
        Driver::on(self.config().backend().await.unwrap(), TTL).await
    }
}

fn within(config: Config) -> Config {
    config.options(Options::new().connect_timeout(SOON))
}

fn documented() -> String {
    rules(&["sync/"], "m0")
}

/// An error with all its causes, as somebody may log it.
fn shown(error: &Error) -> String {
    let mut shown = format!("{error} {error:?}");
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        shown += &format!(" {inner} {inner:?}");
        cause = inner.source();
    }
    shown
}

async fn denied(config: Config, words: &[&str]) {
    let error = config.connect().await.map(|_| ()).unwrap_err();
    let text = shown(&error);
    assert_eq!(error.kind(), ErrorKind::Denied, "{text}");
    for word in words {
        assert!(error.to_string().contains(word), "no {word:?} in: {error}");
    }
    assert!(!text.contains(SECRET), "{text}");
}

#[tokio::test]
async fn the_documented_permissions_are_enough_for_everything() {
    let guarded = Guarded::start(&rules(&["app/eu/"], "m0")).await;
    let (logs, _guard) = logs::capture();
    let config = || guarded.config().options(Options::new().namespace("app/eu"));
    let a = Driver::on(config().backend().await.unwrap(), TTL).await;
    let b = Driver::on(config().backend().await.unwrap(), TTL).await;
    let mut losses = b.backend.losses(&b.session);
    let (first, second) = (claim(Kind::Leader, "a", true), claim(Kind::Leader, "a", true));
    let grant = a.held(&first).await;
    let place = b.blocked(&second).await;
    b.blocked(&claim(Kind::Leader, "a", false)).await;
    let seen = b.backend.holder(Kind::Leader, &name("a")).await.unwrap();
    let new = record("new", first.nonce).into();
    let renamed = Claim::new(Kind::Leader, name("a"), first.nonce, new, true);
    let of = name("a");
    let (watched, updated) = tokio::join!(
        b.backend.watch(Kind::Leader, &of, &seen.version),
        a.backend.update(&a.session, &renamed, &grant),
    );
    watched.unwrap();
    assert!(matches!(updated.unwrap(), Updated::Done(_)));
    let held = [Held { claim: first.clone().into(), grant }];
    assert!(matches!(a.backend.renew(&a.session, &held).await.unwrap(), Renewal::Alive { .. }));
    a.abandon(&first).await;
    bounded(b.backend.wait(&b.session, &second, &place)).await.expect("woken");
    let grant = b.acquire(&second).await;
    // Longer than it takes to watch what is held, and to look again at what has ended.
    assert!(timeout(Duration::from_millis(1500), losses.next()).await.is_err());
    b.release(&second, &grant).await;
    a.held(&lock("a")).await;
    b.blocked(&lock("a")).await;
    a.backend.close(&a.session).await.unwrap();
    b.backend.close(&b.session).await.unwrap();
    assert!(!logs.text().contains("WARN"), "{}", logs.text());
    assert!(keys(&guarded.root, "app/eu/").await.is_empty());
}

#[tokio::test]
async fn a_token_that_is_wrong_or_missing_is_denied() {
    let guarded = Guarded::start(&documented()).await;
    denied(within(config(guarded.server.url())), &["key:write", "key_prefix"]).await;
    let unknown = within(config(guarded.server.url()).token(UNKNOWN));
    denied(unknown, &["does not know the ACL token"]).await;
    guarded.config().connect().await.unwrap();
}

#[tokio::test]
async fn with_less_the_error_names_what_is_missing_and_nothing_was_made() {
    let guarded = Guarded::start("").await;
    let session = r#"session "m0" { policy = "write" }"#;
    let key = |prefix: &str, policy: &str| {
        format!("key_prefix \"{prefix}\" {{ policy = \"{policy}\" }} {session}")
    };
    let before = agent::applied(&guarded.root).await;
    for (rules, lacks) in [
        (String::new(), "key:write"),
        (session.to_owned(), "key:write"),
        (key("sync/", "read"), "key:write"),
        (key("sync/", "deny"), "key:write"),
        (key("app/", "write"), "key:write"),
        (key("sync/eu/", "write"), "key:write"),
        (key("sync/lock/", "write"), "key:write"),
        (key("sync/void/", "write"), "key:write"),
        (key("sync/line/", "write"), "key:write"),
        (rules_without_session(), "session:write"),
        (key("sync/", "write").replace("\"m0\"", "\"m1\""), "session:write"),
        (
            format!("{} session \"m0\" {{ policy = \"read\" }}", rules_without_session()),
            "session:write",
        ),
    ] {
        guarded.may("app", &rules).await;
        denied(guarded.config(), &[lacks, "key_prefix \"NAMESPACE/\"", "session \"NODE\""]).await;
    }
    let writes = agent::applied(&guarded.root).await - before;
    assert!(writes <= 16, "the rules were written, and hardly anything else: {writes}");
    assert!(keys(&guarded.root, "").await.is_empty());
    assert!(agent::sessions(&guarded.root).await.unwrap().is_empty(), "nothing was made");
    guarded.may("app", &documented()).await;
    guarded.config().connect().await.unwrap();
}

fn rules_without_session() -> String {
    documented().lines().filter(|line| !line.contains("session")).collect()
}

#[tokio::test]
async fn permissions_that_are_taken_away_later_are_told_too() {
    let guarded = Guarded::start(&documented()).await;
    let a = guarded.driver().await;
    let (mine, place) = (lock("mine"), lock("mine"));
    let grant = a.held(&mine).await;
    let held = [Held { grant: grant.clone(), claim: mine.clone().into() }];
    let b = guarded.driver().await;
    let ticket = b.blocked(&place).await;
    guarded.may("app", r#"session "m0" { policy = "write" }"#).await;
    let refusals = [
        a.backend.try_claim(&a.session, &lock("a"), None, false).await.map(|_| ()),
        a.backend
            .try_claim(&a.session, &claim(Kind::Leader, "a", true), None, false)
            .await
            .map(|_| ()),
        b.backend.try_claim(&b.session, &place, Some(&ticket), false).await.map(|_| ()),
        a.backend.holder(Kind::Lock, &name("mine")).await.map(|_| ()),
        a.backend.end(&a.session, &mine, Some(&grant), false).await.map(|_| ()),
        a.backend.end(&a.session, &lock("a"), None, true).await.map(|_| ()),
        a.backend.update(&a.session, &mine, &grant).await.map(|_| ()),
    ];
    for (number, refused) in refusals.into_iter().enumerate() {
        let refused = refused.expect_err(&format!("number {number}"));
        assert_eq!((refused.kind(), refused.settled()), (ErrorKind::Denied, true), "{refused}");
        assert!(refused.to_string().contains("key:"), "number {number}: {refused}");
    }
    guarded.may("app", &rules_without_session()).await;
    let refused = a.backend.renew(&a.session, &held).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Denied, "{refused}");
    assert!(refused.to_string().contains("session:write"), "{refused}");
    let refused = a.backend.close(&b.session).await.unwrap_err();
    assert_eq!((refused.kind(), refused.settled()), (ErrorKind::Denied, true), "{refused}");
    guarded.may("app", &documented()).await;
    a.held(&lock("a")).await;
    assert!(matches!(a.backend.renew(&a.session, &held).await.unwrap(), Renewal::Alive { .. }));
    a.backend.end(&a.session, &mine, Some(&grant), false).await.unwrap();
    bounded(b.backend.wait(&b.session, &place, &ticket)).await.expect("woken");
}

/// A poll is refused at once: who follows is told, and asks no faster than the core does.
#[tokio::test]
async fn a_poll_that_is_refused_is_told_and_not_asked_for_without_end() {
    let guarded = Guarded::start(&documented()).await;
    let front = Front::of(&guarded.server).await;
    let through = || within(config(front.url()).token(TOKEN));
    let a = guarded.driver().await;
    let b = Driver::on(through().backend().await.unwrap(), TTL).await;
    let (first, second) = (claim(Kind::Leader, "a", true), claim(Kind::Leader, "a", true));
    let grant = a.held(&first).await;
    let place = b.blocked(&second).await;
    let seen = b.backend.holder(Kind::Leader, &name("a")).await.unwrap();
    guarded.may("app", r#"session "m0" { policy = "write" }"#).await;

    let of = name("a");
    let watch = b.backend.watch(Kind::Leader, &of, &seen.version);
    let refused = timeout(Duration::from_secs(12), watch).await.expect("told").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Denied, "{refused}");
    front.forget();
    let waits = async {
        loop {
            b.backend.wait(&b.session, &second, &place).await;
            let attempt = b.backend.try_claim(&b.session, &second, Some(&place), false).await;
            assert_eq!(attempt.unwrap_err().kind(), ErrorKind::Denied);
            // The core backs off from errors.
            sleep(Duration::from_millis(100)).await;
        }
    };
    assert!(timeout(Duration::from_secs(1), waits).await.is_err());
    let asked = front.asked().len();
    assert!(asked < 60, "{asked} requests in a second");

    guarded.may("app", &documented()).await;
    a.release(&first, &grant).await;
    let woken = timeout(SOON, b.backend.wait(&b.session, &second, &place)).await;
    woken.expect("it is followed again");
    b.acquire(&second).await;
}

#[tokio::test]
async fn a_renewal_that_is_refused_for_good_revokes_by_the_deadline() {
    let guarded = Guarded::start(&documented()).await;
    let ttl = Duration::from_secs(3);
    let sync = guarded.config().options(Options::new().ttl(ttl)).connect().await.unwrap();
    let (logs, _guard) = logs::capture();
    let guard = sync.lock("a").acquire().await.unwrap();
    guarded.may("app", &rules_without_session()).await;
    let revoked = timeout(ttl, guard.revoked()).await.expect("by its deadline");
    assert_eq!(revoked.cause, Cause::Deadline);
    let text = logs.of("sync_");
    assert!(text.contains("WARN") && text.contains("session:write"), "{text}");
    assert!(!logs.text().contains(SECRET), "{}", logs.text());
}

#[tokio::test]
async fn a_token_file_is_read_again_when_it_changes() {
    let guarded = Guarded::start(&documented()).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    let of_file = |ttl| {
        config(guarded.server.url())
            .token_file(&file)
            .options(Options::new().ttl(Duration::from_secs(ttl)).connect_timeout(SOON))
    };
    let error = of_file(6).connect().await.unwrap_err();
    assert!(error.to_string().contains("token"), "{error}");
    assert!(error.to_string().contains(&file.display().to_string()), "{error}");
    std::fs::write(&file, UNKNOWN).unwrap();
    denied(of_file(6), &["does not know the ACL token"]).await;

    std::fs::write(&file, format!("{TOKEN}\n")).unwrap();
    let (sync, other) = (of_file(6).connect().await.unwrap(), of_file(6).connect().await.unwrap());
    let guard = sync.lock("a").acquire().await.unwrap();
    let lock = other.lock("a");
    let waiting = tokio::spawn(async move { lock.acquire().await });
    sleep(Duration::from_millis(300)).await;
    // As it is done: the next is made, handed out, and only then the old one ends.
    guarded.token(OTHER, "app").await;
    std::fs::write(&file, OTHER).unwrap();
    guarded.revoke(TOKEN).await;
    sync.lock("b").acquire().await.unwrap().release().await.unwrap();
    sleep(Duration::from_secs(7)).await;
    assert!(guard.is_valid(), "renewed with the new one: {:?}", guard.revocation());
    guard.release().await.unwrap();
    let guard = timeout(SOON, waiting).await.expect("woken").unwrap().unwrap();

    // In the other order nobody knows the token for a while: before the deadline it costs nothing.
    guarded.revoke(OTHER).await;
    sleep(Duration::from_secs(2)).await;
    guarded.token(TOKEN, "app").await;
    std::fs::write(&file, TOKEN).unwrap();
    sleep(Duration::from_secs(5)).await;
    assert!(guard.is_valid(), "{:?}", guard.revocation());
    guard.release().await.unwrap();
}

#[tokio::test]
async fn a_token_that_is_revoked_is_told_to_who_tries() {
    let guarded = Guarded::start(&documented()).await;
    let sync = guarded.config().connect().await.unwrap();
    sync.lock("a").acquire().await.unwrap().release().await.unwrap();
    guarded.revoke(TOKEN).await;
    let wait = Duration::from_secs(20);
    let error = sync.lock("a").wait(wait).acquire().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.to_string().contains("does not know the ACL token"), "{error}");
    assert!(!shown(&error).contains(SECRET));
}

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
    let front = Front::of(&server).await;
    let before = |user: &str| front.url().replace("://", &format!("://{user}@"));
    for (user, basic) in [
        ("me:ses%61me", "Basic bWU6c2VzYW1l"),
        ("me", "Basic bWU6"),
        (":sesame", "Basic OnNlc2FtZQ=="),
    ] {
        front.forget();
        config(before(user)).connect().await.unwrap();
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
    agent::ready(&root).await.unwrap();
    let url = format!("unix://{socket}");
    let (a, b) = (
        config(&url).token(ROOT).connect().await.unwrap(),
        config(&url).token(ROOT).connect().await.unwrap(),
    );
    let guard = a.lock("a").acquire().await.unwrap();
    let lock = b.lock("a");
    let waiting = tokio::spawn(async move { lock.acquire().await.unwrap() });
    sleep(Duration::from_millis(300)).await;
    guard.release().await.unwrap();
    timeout(SOON, waiting).await.expect("woken").unwrap().release().await.unwrap();
    assert!(keys(&root, "sync/").await.is_empty());
    let missing = within(config("unix:///no/such/socket")).connect().await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::Unreachable, "{missing}");
}

#[tokio::test]
async fn what_the_agent_does_not_know_of_is_told() {
    let guarded = Guarded::start(&documented()).await;
    for (config, word) in [
        (guarded.config().enterprise_namespace("team"), "Enterprise"),
        (guarded.config().datacenter("dc9"), "No path to datacenter (check Config::datacenter"),
    ] {
        let error = config.connect().await.unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
        assert!(!shown(&error).contains(SECRET));
    }
}

#[tokio::test]
async fn no_secret_is_shown_anywhere() {
    let guarded = Guarded::start(&documented()).await;
    let (logs, _guard) = logs::capture();
    let options = || Options::new().node(Node::new("n")).ttl(Duration::from_secs(5));
    let url = guarded.server.url();
    let file = tempfile::tempdir().unwrap();
    let path = file.path().join("token");
    std::fs::write(&path, TOKEN).unwrap();
    let of_value = || config(&url).token(TOKEN).options(options().connect_timeout(SOON));
    let of_file = || config(&url).token_file(&path).options(options().connect_timeout(SOON));
    let mut text = format!("{:?} {:?}", of_value(), of_file());
    let backend = of_file().backend().await.unwrap();
    text += &format!("{backend:?} {:?}", sync_core::Backend::profile(&backend));
    let session = sync_core::Backend::open(&backend, TTL).await.unwrap();
    text += &format!("{session:?}");
    let sync = of_value().connect().await.unwrap();
    let guard = sync.lock("a").acquire().await.unwrap();
    let found = agent::only(&guarded.root, "sync/lock/a/").await;
    let record: serde_json::Value = serde_json::from_str(&found.text()).unwrap();
    let nonce = record["nonce"].as_str().unwrap().to_owned();
    text += &format!("{sync:?} {guard:?} {:?}", sync.lock("a").holder().await.unwrap());
    let taken = sync.lock("a").wait(Duration::ZERO).acquire().await.unwrap_err();
    text += &shown(&taken);
    // A refusal, one in the line, an unknown token, an agent that is gone.
    let two = of_file().connect().await.unwrap();
    let waiting = {
        let lock = two.lock("a");
        tokio::spawn(async move { lock.acquire().await })
    };
    sleep(Duration::from_millis(300)).await;
    let places = keys(&guarded.root, "sync/line/").await;
    let place = places[0].rsplit_once('-').unwrap().1.to_owned();
    guarded.may("app", "").await;
    text += &shown(&sync.lock("b").wait(Duration::ZERO).acquire().await.unwrap_err());
    text += &shown(&waiting.await.unwrap().unwrap_err());
    text += &shown(&of_value().connect().await.unwrap_err());
    text += &format!("{:?}", guard.release().await.map_err(|error| shown(&error)));
    guarded.may("app", &documented()).await;
    std::fs::write(&path, UNKNOWN).unwrap();
    text += &shown(&of_file().connect().await.unwrap_err());
    text += &shown(&two.lock("b").wait(Duration::ZERO).acquire().await.unwrap_err());
    std::fs::write(&path, format!("{TOKEN}\n{TOKEN}")).unwrap();
    text += &shown(&of_file().connect().await.unwrap_err());
    guarded.server.kill().unwrap();
    text += &shown(&sync.lock("a").wait(Duration::ZERO).acquire().await.unwrap_err());
    text += &shown(&of_value().connect().await.unwrap_err());

    for token in [format!("{SECRET}\n"), format!("{SECRET}\u{1}"), format!("é{SECRET}\r\n")] {
        let config = config("http://127.0.0.1:1").token(token);
        text += &format!("{config:?}");
        let error = config.connect().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        text += &shown(&error);
    }
    for url in [
        "",
        SECRET,
        "http://me:5e5a3e@",
        "http://me:5e5a3e@h:5e5a3e",
        "http://me:5e5a3e@h?5e5a3e",
        "http://me:5e5a3e@h#5e5a3e",
        "http://h?token=5e5a3e",
        "http://me:5e5a3e@[::1",
        "http://me:5e5a3e@h,5e5a3e",
        "http://me:5e5a3e@h,https://me:5e5a3e@h",
        "unix:///run/consul,http://me:5e5a3e@h",
        "5e5a3e://me:5e5a3e@h",
    ] {
        let config = Config::new(url);
        text += &format!("{config:?}");
        let error = config.connect().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{url}: {error}");
        text += &shown(&error);
    }
    for url in ["http://me:5e5a3e@127.0.0.1:1", "http://5e5a3e@127.0.0.1:1/5e5a3e"] {
        let config = Config::new(url);
        text += &format!("{config:?}");
        text += &shown(&config.connect().await.unwrap_err());
    }
    text += &logs.text();
    assert!(text.contains("could not"), "errors are among it");
    for secret in [SECRET, &*nonce, &*place] {
        if let Some(at) = text.find(secret) {
            let from = text.floor_char_boundary(at.saturating_sub(300));
            let to = text.floor_char_boundary((at + 60).min(text.len()));
            panic!("{secret:?} is shown: {}", &text[from..to]);
        }
    }
}

/// Consul does not say whether it looks at tokens: without ACLs one is not needed and does no harm.
#[tokio::test]
async fn a_token_for_an_agent_that_asks_for_none_is_let_in() {
    let agent = agent::agent(&[]).await;
    let (logs, _guard) = logs::capture();
    let sync = config(agent.url()).token(TOKEN).connect().await.unwrap();
    sync.lock("a").acquire().await.unwrap().release().await.unwrap();
    assert!(!logs.text().contains(SECRET), "{}", logs.text());
}
