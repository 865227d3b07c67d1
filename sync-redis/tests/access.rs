//! Who may do what, and what must not be shown to anybody.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

mod common;

use std::time::Duration;

use common::Server;
use sync_conformance::driver::{Driver, TTL, lock, run_through};
use sync_conformance::logs;
use sync_core::ErrorKind;
use sync_core::backend::{Backend, Held, Renewal};
use sync_redis::{Config, Node, Options};

/// The line of the documentation with everything filled in.
fn documented(user: &str, password: &str, namespace: &str) -> String {
    include_str!("../src/acl.txt")
        .trim()
        .replace("NAMESPACE", namespace)
        .replace("NAME", user)
        .replace("PASSWORD", password)
}

fn as_user(server: &Server, user: &str) -> Config {
    let url = format!("redis://{user}:sesame@127.0.0.1:{}/2", server.port);
    Config::new(url).options(Options::new().namespace("app/eu"))
}

#[tokio::test]
async fn the_documented_permissions_are_enough_for_everything() {
    let server = Server::start();
    let () = server.run(&documented("app", "sesame", "app:eu"));
    let (log, _guard) = logs::capture();
    let a = Driver::on(as_user(&server, "app").backend().await.unwrap(), TTL).await;
    let b = Driver::on(as_user(&server, "app").backend().await.unwrap(), TTL).await;
    let forget = async || {
        let () = server.run("SCRIPT FLUSH");
    };
    run_through(&a, &b, forget).await;
    tokio::time::sleep(Duration::from_millis(1200)).await; // the subscription is given up
    let denied: Vec<redis::Value> = server.run("ACL LOG");
    assert!(denied.is_empty(), "the server had to refuse something: {denied:?}");
    assert!(!log.text().contains("WARN"), "{}", log.text());
    let () = server.run("ACL DELUSER app");
}

#[tokio::test]
async fn with_less_the_error_names_what_is_missing() {
    let server = Server::start();
    let line = documented("app", "sesame", "app:eu");
    let commands = line.split(' ').filter_map(|word| word.strip_prefix('+'));
    for command in commands.filter(|command| !["hello", "unsubscribe"].contains(command)) {
        let () = server.run("ACL DELUSER app");
        let granted = format!("+{command}");
        let words: Vec<&str> = line.split(' ').filter(|word| *word != granted).collect();
        let () = server.run(&words.join(" "));
        let (log, _guard) = logs::capture();
        let outcome = as_user(&server, "app").connect().await;
        if command == "info" {
            outcome.unwrap();
            assert!(log.text().contains("grant +info"), "{}", log.text());
            continue;
        }
        let error = outcome.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{command}: {error}");
        let text = error.to_string();
        let (reason, advice) = text.split_once(" (").unwrap();
        assert!(reason.to_lowercase().contains(command), "{command}: {reason}");
        assert!(advice.contains("+zmscore"), "{command}: {advice}");
        assert!(!format!("{error} {error:?}").contains("sesame"), "{error:?}");
    }
    for (lacking, word) in [(" ~app:eu:*", "keys"), (" &app:eu:*", "channel")] {
        let () = server.run("ACL DELUSER app");
        let () = server.run(&line.replace(lacking, " resetchannels"));
        let error = as_user(&server, "app").connect().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied);
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[tokio::test]
async fn permissions_that_are_taken_away_later_are_told_too() {
    let server = Server::start();
    let () = server.run(&documented("app", "sesame", "app:eu"));
    let a = Driver::on(as_user(&server, "app").backend().await.unwrap(), TTL).await;
    let () = server.run("ACL SETUSER app -set");
    let denied = a.backend.try_claim(&a.session, &lock("a"), None, false).await.unwrap_err();
    assert_eq!((denied.kind(), denied.settled()), (ErrorKind::Denied, true), "{denied}");
    let () = server.run("ACL SETUSER app +set -evalsha");
    let denied = a.backend.try_claim(&a.session, &lock("a"), None, false).await.unwrap_err();
    assert_eq!((denied.kind(), denied.settled()), (ErrorKind::Denied, true), "{denied}");
    let () = server.run("ACL SETUSER app +evalsha");
    a.held(&lock("a")).await;
}

#[tokio::test]
async fn a_renewal_that_is_refused_is_told_with_its_reason() {
    let server = Server::start();
    let () = server.run(&documented("app", "sesame", "app:eu"));
    let a = Driver::on(as_user(&server, "app").backend().await.unwrap(), TTL).await;
    let mut held = Vec::new();
    for of in ["a", "b"] {
        let claim = lock(of);
        held.push(Held { grant: a.held(&claim).await, claim: claim.into() });
    }
    let (log, _guard) = logs::capture();
    // Of one: the other is renewed.
    let () = server.run("ACL SETUSER app resetkeys ~app:eu:lock:{b}*");
    match a.backend.renew(&a.session, &held).await.unwrap() {
        Renewal::Alive { claims, .. } => assert_eq!(claims.len(), 1, "{claims:?}"),
        other => panic!("{other:?}"),
    }
    let text = log.text();
    assert!(text.contains("WARN") && text.contains("permissions"), "{text}");
    // Of all, since the script is gone and may not be loaded.
    let () = server.run("ACL SETUSER app ~app:eu:* -script|load");
    let () = server.run("SCRIPT FLUSH");
    let refused = a.backend.renew(&a.session, &held).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Denied, "{refused}");
    let () = server.run("ACL SETUSER app +script|load");
    match a.backend.renew(&a.session, &held).await.unwrap() {
        Renewal::Alive { claims, .. } => assert_eq!(claims.len(), 2, "{claims:?}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_server_that_forbids_scripts_is_named_as_one() {
    for command in ["EVAL", "EVALSHA", "SCRIPT"] {
        let server = Server::start_with(&["--save", "", "--rename-command", command, ""]);
        let error = Config::new(server.url()).connect().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains("every operation is a script"), "{error}");
        assert!(error.to_string().contains(command), "{error}");
    }
}

#[tokio::test]
async fn a_server_that_is_too_old_is_named_as_one() {
    let server = Server::start_with(&["--save", "", "--rename-command", "ZMSCORE", ""]);
    let error = Config::new(server.url()).connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.to_string().contains("Redis 6.2 or later"), "{error}");
}

#[tokio::test]
async fn a_server_without_hello_is_named_as_one_and_the_password_is_not_shown() {
    let hello = ["--save", "", "--requirepass", "sesame", "--rename-command", "HELLO", ""];
    let server = Server::start_with(&hello);
    let url = format!("redis://default:sesame@127.0.0.1:{}", server.port);
    let error = Config::new(url).connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.to_string().contains("Redis 6.2 or later"), "{error}");
    let mut shown = format!("{error} {error:?}");
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        shown += &format!("{inner} {inner:?}");
        cause = inner.source();
    }
    assert!(!shown.contains("sesame"), "{shown}");
}

#[tokio::test]
async fn credentials_that_are_wrong_or_missing_are_denied_without_being_shown() {
    let server = Server::start_with(&["--save", "", "--requirepass", "right"]);
    for (url, advice) in [
        (format!("redis://127.0.0.1:{}", server.port), "put user and password"),
        (format!("redis://:sesame@127.0.0.1:{}", server.port), "check user and password"),
        (format!("redis://me:sesame@127.0.0.1:{}", server.port), "check user and password"),
    ] {
        let error = sync_redis::connect(&url).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        assert!(error.to_string().contains(advice), "{error}");
        assert!(!format!("{error} {error:?}").contains("sesame"), "{error:?}");
    }
    Config::new(format!("redis://:right@127.0.0.1:{}", server.port)).connect().await.unwrap();
}

#[tokio::test]
async fn no_secret_is_shown_anywhere() {
    let server = Server::start_with(&["--save", "", "--requirepass", "sesame"]);
    let (log, _guard) = logs::capture();
    let url = format!("redis://default:sesame@127.0.0.1:{}", server.port);
    let config = Config::new(&url).options(Options::new().node(Node::new("n")));
    let mut shown = format!("{config:?}");
    let backend = config.clone().backend().await.unwrap();
    shown += &format!("{backend:?} {:?}", backend.profile());
    let sync = config.connect().await.unwrap();
    let guard = sync.lock("a").acquire().await.unwrap();
    let nonce = redis::Client::open(url.as_str())
        .and_then(|client| client.get_connection())
        .and_then(|mut raw| redis::cmd("GET").arg("sync:lock:{a}").query::<String>(&mut raw))
        .unwrap();
    shown += &format!("{sync:?} {guard:?} {:?}", sync.lock("a").holder().await.unwrap());
    let taken = sync.lock("a").wait(Duration::ZERO).acquire().await.unwrap_err();
    shown += &format!("{taken} {taken:?}");
    guard.release().await.unwrap();
    drop(server);
    let gone = sync.lock("a").wait(Duration::ZERO).acquire().await.unwrap_err();
    shown += &format!("{gone} {gone:?}");
    for url in [
        "redis://me:sesame@",
        "redis://me:sesame@h:sesame",
        "redis://me:sesame@h/sesame",
        "sesame",
        "http://me:sesame@h",
        "redis://me:sesame@h?protocol=sesame",
        "redis+unix:?pass=sesame",
        "redis://me:sesame@0.0.0.0",
        "rediss://me:sesame@h/#sesame",
        "redis://me%FF:sesame@h",
    ] {
        let config = Config::new(url);
        shown += &format!("{config:?}");
        let error = config.connect().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        shown += &format!("{error} {error:?}");
    }
    let text = shown + &log.text();
    assert!(text.contains("could not use the Redis URL"), "{text}");
    assert!(!text.contains("sesame"), "{text}");
    assert!(!text.contains(&nonce), "{text}");
}

#[tokio::test]
async fn a_server_that_may_evict_is_warned_of_once() {
    let server = Server::start_with(&["--save", "", "--maxmemory-policy", "volatile-lru"]);
    let (log, _guard) = logs::capture();
    server.client().await;
    assert!(!log.text().contains("MAY EVICT"), "it has no limit: {}", log.text());
    let () = server.run("CONFIG SET maxmemory 100mb");
    let a = server.client().await;
    a.held(&lock("a")).await;
    let () = server.run("CLIENT KILL TYPE pubsub");
    tokio::time::sleep(Duration::from_millis(100)).await;
    a.held(&lock("b")).await;
    let text = log.text();
    assert_eq!(text.matches("MAY EVICT HELD LOCKS").count(), 1, "{text}");
    assert!(text.contains("WARN") && text.contains("volatile-lru"), "{text}");
    let () = server.run("CONFIG SET maxmemory-policy noeviction");
    server.client().await;
    assert_eq!(log.text().matches("MAY EVICT").count(), 1);
}

#[cfg(unix)]
#[tokio::test]
async fn a_unix_socket_will_do() {
    let mut server = Server::start();
    let socket = common::path(&server, "socket");
    server.add_argument("--unixsocket");
    server.add_argument(socket.to_str().unwrap());
    server.restart();
    let url = format!("redis+unix://{}?db=1", socket.display());
    let sync = sync_redis::connect(url).await.unwrap();
    sync.lock("a").acquire().await.unwrap().release().await.unwrap();
    sync.shutdown().await.unwrap();
}

#[cfg(feature = "client")]
#[tokio::test]
async fn a_client_of_the_users_own_will_do() {
    let server = Server::start();
    let client = redis::Client::open(format!("{}/3?protocol=resp2", server.url())).unwrap();
    let sync = Config::from_client(&client).connect().await.unwrap();
    let guard = sync.lock("a").acquire().await.unwrap();
    assert!(server.run::<String>("INFO keyspace").contains("db3"));
    guard.release().await.unwrap();
}
