//! Who may do what, and what must not be shown to anybody.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

#[path = "common/agent.rs"]
mod agent;
mod common;
#[path = "common/front.rs"]
mod front;
#[path = "common/guarded.rs"]
mod guarded;

use std::time::Duration;

use agent::{config, keys};
use common::rules;
use front::Front;
use guarded::{Guarded, OTHER, SECRET, SOON, TOKEN, UNKNOWN, denied, documented, within};
use sync_conformance::driver::{Driver, TTL, bounded, claim, lock, name, run_through};
use sync_conformance::logs::{self, shown};
use sync_consul::{Cause, Config, Node, Options};
use sync_core::backend::{Held, Renewal};
use sync_core::{ErrorKind, Kind};
use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt;

#[tokio::test]
async fn the_documented_permissions_are_enough_for_everything() {
    let guarded = Guarded::start(&rules(&["app/eu/"], "m0")).await;
    let (logs, _guard) = logs::capture();
    let config = || guarded.config().options(Options::new().namespace("app/eu"));
    let a = Driver::on(config().backend().await.unwrap(), TTL).await;
    let b = Driver::on(config().backend().await.unwrap(), TTL).await;
    let mut losses = b.backend.losses(&b.session);
    run_through(&a, &b, async || {}).await;
    let held = lock("b");
    let grant = b.held(&held).await;
    // Longer than it takes to watch what is held, and to look again at what has ended.
    assert!(timeout(Duration::from_millis(1500), losses.next()).await.is_err());
    b.release(&held, &grant).await;
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
    let none = within(config(guarded.server.url()));
    let words = ["key:write", "key_prefix", "no ACL token is given: ", "CONSUL_HTTP_TOKEN"];
    denied(none, &words).await;
    // As an unset variable gives it.
    denied(within(config(guarded.server.url()).token("")), &words).await;
    let unknown = within(config(guarded.server.url()).token(UNKNOWN));
    denied(unknown, &["does not know the ACL token"]).await;
    guarded.config().connect().await.unwrap();
}

#[tokio::test]
async fn of_several_agents_the_one_is_named_that_refuses_or_is_gone() {
    let guarded = Guarded::start(&documented()).await;
    let at = guarded.server.addresses()[0];
    let several = |urls: String| within(config(urls));
    let refuses = several(format!("http://{at},http://127.0.0.1:1"));
    denied(refuses, &[&format!(": {at}: Permission denied: the token lacks key:write")]).await;
    let unknown = several(format!("http://{at},http://127.0.0.1:1")).token(UNKNOWN);
    denied(unknown, &[&format!(": {at}: "), "does not know the ACL token"]).await;
    let gone = several("http://127.0.0.1:1,http://127.0.0.1:2".to_owned());
    let error = gone.connect().await.unwrap_err();
    assert!(error.to_string().contains(": 127.0.0.1:2: "), "the last that was tried: {error}");
    // However long a request may take.
    let patient = Options::new().request_timeout(Duration::MAX);
    let error = config("http://127.0.0.1:1").options(patient).connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    // Where there is one, its name stands in the error already.
    let error = within(config("http://127.0.0.1:1")).connect().await.unwrap_err();
    assert_eq!(error.to_string().matches("127.0.0.1:1").count(), 1, "{error}");
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
        denied(guarded.config(), &[lacks, "key_prefix \"sync/\"", "session \"NODE\""]).await;
    }
    let options = Options::new().namespace("app/eu").connect_timeout(SOON);
    denied(guarded.config().options(options), &["key_prefix \"app/eu/\"", "where NODE is"]).await;
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
    let error = guard.release().await.unwrap_err();
    let why = "before the deadline: the last one failed: Permission denied: the token lacks session:write";
    assert!(error.kind() == ErrorKind::Lost && error.to_string().contains(why), "{error}");
    assert!(!shown(&error).contains(SECRET));
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
    for content in [None, Some("\n")] {
        if let Some(content) = content {
            std::fs::write(&file, content).unwrap();
        }
        let error = of_file(6).connect().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        let text = error.to_string();
        assert!(text.contains(&format!("the ACL token's file {} ", file.display())), "{text}");
        assert!(text.contains("Config::token_file"), "{text}");
    }
    std::fs::write(&file, UNKNOWN).unwrap();
    denied(of_file(6), &["does not know the ACL token"]).await;

    std::fs::write(&file, format!("{TOKEN}\n")).unwrap();
    let (sync, other) = (of_file(6).connect().await.unwrap(), of_file(6).connect().await.unwrap());
    let guard = sync.lock("a").acquire().await.unwrap();
    let lock = other.lock("a");
    let waiting = tokio::spawn(async move { lock.acquire().await });
    agent::in_line(&guarded.root, "lock/a", 1).await;
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
    let places = agent::in_line(&guarded.root, "lock/a", 1).await;
    let place = places[0].key.rsplit_once('-').unwrap().1.to_owned();
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
