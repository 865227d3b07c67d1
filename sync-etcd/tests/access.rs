//! Who may do what, and what must not be shown to anybody.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

mod common;

use std::time::Duration;

use common::{Operator, counted, documented, received, server, servers, watched, within};
use etcd_client::{ConnectOptions, Permission};
use sync_conformance::Server;
use sync_conformance::driver::{Driver, TTL, bounded, claim, eventually, lock, name, run_through};
use sync_conformance::fault::{Faults, Verb};
use sync_conformance::logs::{self, shown};
use sync_conformance::proxy::Proxy;
use sync_core::backend::{Held, Renewal};
use sync_core::{Error, ErrorKind, Kind};
use sync_etcd::{Config, Coordinator, LockGuard, Node, Options};
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;

fn of_app(url: impl AsRef<str>) -> Config {
    Config::new(url).user("app", "sesame").options(Options::new().connect_timeout(SOON))
}

const SOON: Duration = Duration::from_secs(3);

/// A server that asks for user and password, whose user `app` may do this.
async fn guarded(more: &[&str], grants: &[Permission]) -> (Server, Operator) {
    let server = servers(1, more).await;
    Operator::of(&server).await.enable_auth(grants).await;
    // Its own token must not run out, whatever the server's lifetime of one.
    let root = ConnectOptions::new().with_user("root", "rootsesame").with_auto_token_refresh(true);
    let root = Operator::with(&server, Some(root)).await;
    (server, root)
}

async fn denied(config: Config, words: &[&str]) {
    let error = config.connect().await.map(|_| ()).unwrap_err();
    let text = shown(&error);
    assert_eq!(error.kind(), ErrorKind::Denied, "{text}");
    for word in words {
        assert!(error.to_string().contains(word), "no {word:?} in: {error}");
    }
    assert!(!text.contains("sesame"), "{text}");
}

#[tokio::test]
async fn the_documented_permissions_are_enough_for_everything() {
    let (server, _) = guarded(&[], &[documented("app/eu")]).await;
    let (logs, _guard) = logs::capture();
    let options = || Options::new().namespace("app/eu");
    let config = || of_app(server.url()).options(options());
    let a = Driver::on(config().backend().await.unwrap(), TTL).await;
    let b = Driver::on(config().backend().await.unwrap(), TTL).await;
    let mut losses = b.backend.losses(&b.session);
    run_through(&a, &b, async || {}).await;
    assert!(bounded(losses.next()).await.is_none());
    a.backend.close(&a.session).await.unwrap();
    b.backend.close(&b.session).await.unwrap();
    assert!(!logs.text().contains("WARN"), "{}", logs.text());

    // The same by a URL.
    for user in ["app:sesame", "%61pp:sesam%65"] {
        let url = server.url().replace("http://", &format!("http://{user}@"));
        let sync = Config::new(url).options(options()).connect().await.unwrap();
        sync.lock("a").acquire().await.unwrap().release().await.unwrap();
    }
}

#[tokio::test]
async fn credentials_that_are_wrong_or_missing_are_denied() {
    let (server, _) = guarded(&[], &[documented("sync")]).await;
    denied(Config::new(server.url()), &["Config::user"]).await;
    for (user, password) in [("app", "sesame2"), ("nobody", "sesame"), ("app", "")] {
        denied(Config::new(server.url()).user(user, password), &["user and password"]).await;
    }
    let url = server.url().replace("http://", "http://app:sesame2@");
    denied(Config::new(url), &["user and password"]).await;
    of_app(server.url()).connect().await.unwrap();
}

#[tokio::test]
async fn with_less_the_error_names_what_is_missing_and_nothing_was_written() {
    let read = |namespace| within(Permission::read(format!("{namespace}/")), namespace);
    let write = |namespace| within(Permission::write(format!("{namespace}/")), namespace);
    let server = server().await;
    let mut etcd = Operator::of(&server).await;
    etcd.enable_auth(&[]).await;
    let root = ConnectOptions::new().with_user("root", "rootsesame");
    let mut etcd = Operator::with(&server, Some(root)).await;
    let revision = etcd.0.get("x", None).await.unwrap().header().unwrap().revision();
    for (role, grants) in [
        ("none", vec![]),
        ("read", vec![read("sync")]),
        ("write", vec![write("sync")]),
        ("other", vec![documented("app")]),
        ("longer", vec![documented("sync/eu")]),
        ("locks", vec![documented("sync/lock")]),
        ("lines", vec![documented("sync/lock"), documented("sync/leader")]),
        ("one-key", vec![Permission::read_write("sync/")]),
    ] {
        etcd.0.role_add(role).await.unwrap();
        etcd.0.user_grant_role("app", role).await.unwrap();
        for grant in grants {
            etcd.0.role_grant_permission(role, grant).await.unwrap();
        }
        denied(of_app(server.url()), &["readwrite", "sync/", "sync0"]).await;
        etcd.0.user_revoke_role("app", role).await.unwrap();
    }
    assert_eq!(received(&server, "LeaseGrant").await, 0, "nothing was made");
    let after = etcd.0.get("x", None).await.unwrap().header().unwrap().revision();
    assert_eq!(after, revision, "nothing was written");
    // Two roles together will do.
    for (role, grant) in [("reader", read("sync")), ("writer", write("sync"))] {
        etcd.0.role_add(role).await.unwrap();
        etcd.0.role_grant_permission(role, grant).await.unwrap();
        etcd.0.user_grant_role("app", role).await.unwrap();
    }
    of_app(server.url()).connect().await.unwrap();
}

#[tokio::test]
async fn permissions_that_are_taken_away_later_are_told_too() {
    let (server, mut root) = guarded(&[], &[documented("sync")]).await;
    let a = Driver::on(of_app(server.url()).backend().await.unwrap(), TTL).await;
    let mine = lock("mine");
    let held = [Held { grant: a.held(&mine).await, claim: mine.clone().into() }];
    root.0.user_revoke_role("app", "app").await.unwrap();
    let refusals = [
        a.backend.try_claim(&a.session, &lock("a"), None, false).await.map(|_| ()),
        a.backend.holder(Kind::Lock, &name("a")).await.map(|_| ()),
        a.backend.end(&a.session, &mine, None, false).await.map(|_| ()),
    ];
    for refused in refusals {
        let refused = refused.unwrap_err();
        assert_eq!((refused.kind(), refused.settled()), (ErrorKind::Denied, true), "{refused}");
    }
    let refused = a.backend.renew(&a.session, &held).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Denied, "{refused}");
    root.0.user_grant_role("app", "app").await.unwrap();
    a.held(&lock("a")).await;
    assert!(matches!(a.backend.renew(&a.session, &held).await.unwrap(), Renewal::Alive { .. }));
    a.end(&mine).await;
}

/// The server refuses such a watch by cancelling it, in words, on a stream that stays open.
#[tokio::test]
async fn a_watch_that_the_server_cancels_is_told_and_not_asked_for_without_end() {
    let (server, mut root) = guarded(&[], &[documented("sync")]).await;
    let a = Driver::on(of_app(server.url()).backend().await.unwrap(), TTL).await;
    let b = Driver::on(of_app(server.url()).backend().await.unwrap(), TTL).await;
    let (first, second) = (claim(Kind::Leader, "a", true), claim(Kind::Leader, "a", true));
    a.held(&first).await;
    let place = b.blocked(&second).await;
    let seen = b.backend.holder(Kind::Leader, &name("a")).await.unwrap();
    root.0.user_revoke_role("app", "app").await.unwrap();

    let of = name("a");
    let watch = b.backend.watch(Kind::Leader, &of, &seen.version);
    let refused = tokio::time::timeout(SOON, watch).await.expect("told").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Denied, "{refused}");
    let asked = async || received(&server, "Watch").await + received(&server, "Range").await;
    let before = asked().await;
    let waits = async {
        loop {
            b.backend.wait(&b.session, &second, &place).await;
            let attempt = b.backend.try_claim(&b.session, &second, Some(&place), false).await;
            assert_eq!(attempt.unwrap_err().kind(), ErrorKind::Denied);
            // The core backs off from errors.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(1), waits).await.is_err());
    let asked = asked().await - before;
    assert!(asked < 60, "{asked} requests in a second");

    root.0.user_grant_role("app", "app").await.unwrap();
    let watch = b.backend.watch(Kind::Leader, &of, &seen.version);
    let wait = b.backend.wait(&b.session, &second, &place);
    let release = async {
        // The follower's, the waiter's, and the holder's own.
        watched(&server, 3).await;
        a.end(&first).await;
    };
    let all = async { tokio::join!(watch, wait, release) };
    let (seen, ..) = tokio::time::timeout(SOON, all).await.expect("all is well again");
    seen.unwrap();
    b.held(&second).await;
}

/// Somebody who holds, somebody who waits for it, somebody who only follows an election, and
/// somebody who does nothing yet: what they do once their tokens are of no use any more.
struct Four {
    holder: Coordinator,
    waiter: (Coordinator, Faults),
    follower: Coordinator,
    idle: (Coordinator, Faults),
}

impl Four {
    async fn through(url: &str) -> Self {
        let options = Options::new().ttl(Duration::from_secs(6)).connect_timeout(SOON);
        let connect = async || of_app(url).options(options.clone()).connect().await.unwrap();
        let counted = async || counted(of_app(url), options.clone()).await;
        let (holder, waiter) = (connect().await, counted().await);
        Self { holder, waiter, follower: connect().await, idle: counted().await }
    }

    /// `worn_out` makes their tokens useless while they are at it.
    async fn survive(&self, worn_out: impl Future<Output = ()>) {
        let guard = self.holder.lock("a").acquire().await.unwrap();
        let elected = self.holder.leader("x").node(Node::new("one")).elect().await.unwrap();
        let mut changes = self.follower.leader("x").changes().unwrap();
        let seen = changes.next().await.unwrap();
        assert!(format!("{seen:?}").contains("one"), "{seen:?}");
        let waiting = in_line(&self.waiter).await;
        worn_out.await;

        let late = in_line(&self.idle).await;
        elected.update(Node::new("two")).await.unwrap();
        let seen = tokio::time::timeout(SOON, changes.next()).await.expect("told of it").unwrap();
        assert!(format!("{seen:?}").contains("two"), "{seen:?}");
        assert!(guard.is_valid() && elected.is_valid());
        guard.release().await.unwrap();
        // By their watches: looks come every six seconds only.
        let second = tokio::time::timeout(SOON, waiting).await.expect("woken").unwrap().unwrap();
        second.release().await.unwrap();
        let third = tokio::time::timeout(SOON, late).await.expect("woken").unwrap().unwrap();
        third.release().await.unwrap();
        elected.resign().await.unwrap();
        let seen = tokio::time::timeout(SOON, changes.next()).await.expect("told of it").unwrap();
        assert!(!format!("{seen:?}").contains("two"), "{seen:?}");
    }
}

/// A task that stands in line for the lock `a` when this returns.
async fn in_line((sync, calls): &(Coordinator, Faults)) -> JoinHandle<Result<LockGuard, Error>> {
    let lock = sync.lock("a");
    let waiting = tokio::spawn(async move { lock.acquire().await });
    tokio::time::timeout(SOON, calls.called(Verb::Wait, 1)).await.expect("it stands in line");
    waiting
}

const SIMPLE: [&str; 1] = ["--auth-token-ttl=1"];

#[tokio::test]
async fn a_token_that_runs_out_is_survived_while_holding_waiting_and_following() {
    let (server, _) = guarded(&SIMPLE, &[documented("sync")]).await;
    let four = Four::through(&server.url()).await;
    four.survive(tokio::time::sleep(Duration::from_millis(3500))).await;
}

#[tokio::test]
async fn a_token_that_runs_out_is_survived_also_when_the_streams_break() {
    let (server, _) = guarded(&SIMPLE, &[documented("sync")]).await;
    let proxy = Proxy::start(server.addresses()[0]).await.unwrap();
    let four = Four::through(&format!("http://{}", proxy.address())).await;
    let worn_out = async {
        tokio::time::sleep(Duration::from_millis(3500)).await;
        proxy.reset();
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    four.survive(worn_out).await;
}

/// Where tokens tell the revision of users and roles, each change of those outdates all of them.
#[tokio::test]
async fn an_old_revision_of_the_auth_store_is_survived() {
    let keys = tempfile::tempdir().unwrap();
    let key = keys.path().join("key");
    std::fs::write(&key, [7; 32]).unwrap();
    let tokens = |ttl: &str| {
        format!("--auth-token=jwt,sign-method=HS256,priv-key={},ttl={ttl}", key.display())
    };
    let (server, mut root) = guarded(&[&tokens("1h")], &[documented("sync")]).await;
    let four = Four::through(&server.url()).await;
    let worn_out = async {
        root.0.user_add("another", "sesame", None).await.unwrap();
        root.0.update_user(Some(("root".to_owned(), "rootsesame".to_owned()))).await.unwrap();
        root.0.role_add("another").await.unwrap();
    };
    four.survive(worn_out).await;

    let (server, _) = guarded(&[&tokens("1s")], &[documented("sync")]).await;
    let four = Four::through(&server.url()).await;
    four.survive(tokio::time::sleep(Duration::from_millis(2500))).await;
}

/// Its stream keeps the token that it was opened with.
#[tokio::test]
async fn a_watch_gets_a_fresh_token_without_the_help_of_any_request() {
    let (server, mut root) = guarded(&SIMPLE, &[documented("sync")]).await;
    let backend = of_app(server.url()).backend().await.unwrap();
    let of = name("a");
    let seen = sync_core::Backend::holder(&backend, Kind::Leader, &of).await.unwrap();
    let watch = || sync_core::Backend::watch(&backend, Kind::Leader, &of, &seen.version);
    assert!(bounded(watch()).await.is_none());
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let lease = root.lease(60).await;
    let options = etcd_client::PutOptions::new().with_lease(lease);
    root.0.put(format!("sync/leader/a/{lease:x}"), "text", Some(options)).await.unwrap();
    // The core calls again after an error.
    let again = async { watch().await.map(drop).map_err(|error| error.to_string()) };
    assert!(bounded(again).await.expect("an answer").is_err(), "the token is of no use");
    bounded(watch()).await.expect("on a stream of its own").unwrap();
}

#[tokio::test]
async fn a_changed_password_is_denied_and_put_right_before_the_deadline_costs_nothing() {
    let (server, mut root) = guarded(&[], &[documented("sync")]).await;
    let options = Options::new().ttl(Duration::from_secs(4));
    let sync = of_app(server.url()).options(options).connect().await.unwrap();
    let guard = sync.lock("a").acquire().await.unwrap();
    let first = guard.deadline();
    root.0.user_change_password("app", "other").await.unwrap();
    let error = sync.lock("b").wait(Duration::ZERO).acquire().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(!shown(&error).contains("sesame"));
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(guard.is_valid(), "{:?}", guard.revocation());
    root.0.user_change_password("app", "sesame").await.unwrap();
    let renewed = async || match guard.deadline() > first {
        true => Ok(()),
        false => Err("it is not renewed again"),
    };
    eventually(SOON, renewed).await;
    assert!(guard.is_valid(), "{:?}", guard.revocation());
    guard.release().await.unwrap();
}

#[tokio::test]
async fn a_renewal_that_is_refused_for_good_revokes_by_the_deadline() {
    let (server, mut root) = guarded(&[], &[documented("sync")]).await;
    let ttl = Duration::from_secs(3);
    let options = Options::new().ttl(ttl);
    let sync = of_app(server.url()).options(options).connect().await.unwrap();
    let (logs, _guard) = logs::capture();
    let guard = sync.lock("a").acquire().await.unwrap();
    root.0.user_revoke_role("app", "app").await.unwrap();
    let revoked = tokio::time::timeout(ttl, guard.revoked()).await.expect("by its deadline");
    assert_eq!(revoked.cause, sync_core::Cause::Deadline);
    let text = logs.of("sync_");
    assert!(text.contains("WARN") && text.contains("permission denied"), "{text}");
}

#[tokio::test]
async fn no_secret_is_shown_anywhere() {
    let (server, mut root) = guarded(&SIMPLE, &[documented("sync")]).await;
    let (logs, _guard) = logs::capture();
    let options = || Options::new().node(Node::new("n")).ttl(Duration::from_secs(5));
    let url = server.url().replace("http://", "http://app:sesame@");
    let config = Config::new(&url).options(options());
    let mut text = format!("{config:?} {:?}", of_app(server.url()));
    let backend = config.clone().backend().await.unwrap();
    text += &format!("{backend:?} {:?}", sync_core::Backend::profile(&backend));
    let session = sync_core::Backend::open(&backend, TTL).await.unwrap();
    text += &format!("{session:?}");
    let sync = config.connect().await.unwrap();
    let guard = sync.lock("a").acquire().await.unwrap();
    let found = root.only("sync/lock/a/").await;
    let (lease, nonce) =
        found.key_str().unwrap().rsplit_once('/').unwrap().1.split_once('-').unwrap();
    let (lease, nonce) = (lease.to_owned(), nonce.to_owned());
    text += &format!("{sync:?} {guard:?} {:?}", sync.lock("a").holder().await.unwrap());
    let taken = sync.lock("a").wait(Duration::ZERO).acquire().await.unwrap_err();
    text += &shown(&taken);
    // A token that ran out, a refusal, streams that break, a server that is gone.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    sync.lock("b").acquire().await.unwrap().release().await.unwrap();
    root.0.user_revoke_role("app", "app").await.unwrap();
    text += &shown(&sync.lock("b").wait(Duration::ZERO).acquire().await.unwrap_err());
    text += &shown(&Config::new(&url).connect().await.unwrap_err());
    root.0.user_grant_role("app", "app").await.unwrap();
    let wrong = server.url().replace("http://", "http://app:sesame2@");
    text += &shown(&Config::new(wrong).connect().await.unwrap_err());
    guard.release().await.unwrap();
    server.kill().unwrap();
    text += &shown(&sync.lock("a").wait(Duration::ZERO).acquire().await.unwrap_err());
    text += &shown(&Config::new(&url).connect().await.unwrap_err());

    for url in [
        "",
        "sesame",
        "http://me:sesame@",
        "http://me:sesame@h:sesame",
        "http://me:sesame@h/sesame",
        "http://me:sesame@h?sesame",
        "http://me:sesame@h#sesame",
        "http://sesame@h",
        "http://me:sesame@[::1",
        "http://me:%FFsesame@h",
        "http://me:sesame@h,http://you:sesame2@h",
        "http://me:sesame@h,sesame",
        "sesame://me:sesame@h",
    ] {
        let config = Config::new(url);
        text += &format!("{config:?}");
        let error = config.connect().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{url}: {error}");
        text += &shown(&error);
    }
    for url in ["https://me:ses ame@h", "http://me:ses%20ame@h"] {
        text += &format!("{:?}", Config::new(url).user("me", "sesame"));
    }
    text += &logs.text();
    assert!(text.contains("could not") && text.contains(" h2::"), "libraries are heard, too");
    for secret in ["sesame", "ses ame", &*nonce, &*lease] {
        if let Some(at) = text.find(secret) {
            let around = &text[at.saturating_sub(300)..(at + 40).min(text.len())];
            panic!("{secret:?} is shown: {around}");
        }
    }
}

#[tokio::test]
async fn a_user_for_a_server_that_asks_for_none_is_warned_of_and_let_in() {
    let server = server().await;
    let (logs, _guard) = logs::capture();
    let sync = of_app(server.url()).connect().await.unwrap();
    sync.lock("a").acquire().await.unwrap().release().await.unwrap();
    let text = logs.text();
    assert!(text.contains("WARN") && text.contains("auth is off"), "{text}");
    assert!(!text.contains("sesame"), "{text}");
}

/// Auth that is turned on while somebody holds: he has no token yet.
#[tokio::test]
async fn auth_that_is_turned_on_while_held_is_met_with_the_credentials_that_were_given() {
    let server = server().await;
    let url = server.url();
    let sync = of_app(&url).connect().await.unwrap();
    let guard = sync.lock("a").acquire().await.unwrap();
    Operator::of(&server).await.enable_auth(&[documented("sync")]).await;
    let again = sync.lock("b").acquire().await.unwrap();
    again.release().await.unwrap();
    guard.release().await.unwrap();
}

#[cfg(feature = "client")]
#[tokio::test]
async fn a_client_of_the_users_own_will_do() {
    let (server, mut root) = guarded(&SIMPLE, &[documented("sync")]).await;
    let options = ConnectOptions::new().with_user("app", "sesame");
    let client = Operator::with(&server, Some(options)).await.0;
    let config = Config::from_client(client);
    assert!(!format!("{config:?}").contains("sesame"), "{config:?}");
    let ours = counted(config, Options::new()).await;
    let guard = ours.0.lock("a").acquire().await.unwrap();
    assert_eq!(root.keys("sync/lock/a/").await.len(), 1);
    let waiting = in_line(&counted(of_app(server.url()), Options::new()).await).await;
    // Its token runs out meanwhile; nothing was said of that when it was made.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    guard.release().await.unwrap();
    let next = tokio::time::timeout(SOON, waiting).await.expect("woken").unwrap().unwrap();
    let again = in_line(&ours).await;
    next.release().await.unwrap();
    let again = tokio::time::timeout(SOON, again).await.expect("woken").unwrap().unwrap();
    again.release().await.unwrap();
}
