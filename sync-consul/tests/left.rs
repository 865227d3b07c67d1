//! What must not be left behind, and who must not be forgotten, whatever becomes of others.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

#[path = "common/agent.rs"]
mod agent;
mod common;
#[path = "common/front.rs"]
mod front;
#[path = "common/guarded.rs"]
mod guarded;

use std::time::{Duration, Instant};

use agent::{agent, client, config, delete, in_line, keys, only, operator, put};
use front::{Answer, Asked, Front, Verdict};
use guarded::{Guarded, TOKEN, documented, within};
use sync_conformance::driver::{Driver, TTL, claim, eventually, lock, name};
use sync_consul::{Cause, Coordinator, LockGuard, Options};
use sync_core::{ErrorKind, Kind};
use tokio::time::{sleep, timeout};

const SOON: Duration = Duration::from_secs(5);

/// On a runtime that ends afterwards: a lock is taken, and another waited for in vain.
fn aside(sync: &Coordinator) -> LockGuard {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let guard = sync.lock("mine").acquire().await.unwrap();
        // Until both are followed.
        let waits = sync.lock("theirs").wait(Duration::from_millis(500));
        assert_eq!(waits.acquire().await.unwrap_err().kind(), ErrorKind::Timeout);
        guard
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn who_acquires_on_a_runtime_that_ends_takes_nothing_with_it() {
    let server = agent(&[]).await;
    let consul = operator(&server);
    let a = client(&server).await;
    let held = lock("theirs");
    let grant = a.held(&held).await;
    let options = Options::new().ttl(Duration::from_secs(30));
    let sync = config(server.url()).options(options).connect().await.unwrap();
    let guard = tokio::task::spawn_blocking({
        let sync = sync.clone();
        move || aside(&sync)
    });
    let guard = guard.await.unwrap();
    // The polls of the one before are still there, or seem to be.
    let waiting = tokio::spawn({
        let lock = sync.lock("theirs");
        async move { lock.acquire().await }
    });
    in_line(&consul, "lock/theirs", 1).await;
    delete(&consul, &guard_key(&sync)).await;
    let revoked = timeout(SOON, guard.revoked()).await.expect("told without a renewal");
    assert_eq!(revoked.cause, Cause::Key);
    a.release(&held, &grant).await;
    let got = timeout(SOON, waiting).await.expect("woken").unwrap().unwrap();
    got.release().await.unwrap();
}

fn guard_key(sync: &Coordinator) -> String {
    sync.lock("mine").key().unwrap()
}

/// Such an answer, which names nothing, belongs to something else.
#[tokio::test]
async fn a_place_is_left_only_where_the_answer_says_so() {
    let server = agent(&[]).await;
    let (consul, front) = (operator(&server), Front::of(&server).await);
    let a = client(&server).await;
    let x = Driver::on(config(front.url()).backend().await.unwrap(), TTL).await;
    a.held(&claim(Kind::Leader, "a", true)).await;
    let mere = claim(Kind::Leader, "a", false);
    front.decide(|asked| {
        let body = String::from_utf8_lossy(&asked.body);
        let leaves = body.contains("\"delete\"") && !body.contains("void");
        match leaves {
            true => Verdict::Answer(Answer::new(200, r#"{"Results":null,"Errors":null}"#)),
            false => Verdict::Pass,
        }
    });
    let error = x.backend.try_claim(&x.session, &mere, None, false).await.unwrap_err();
    assert!(!error.settled(), "{error}");
    front.decide(|_| Verdict::Pass);
    x.abandon(&mere).await;
    assert!(keys(&consul, "sync/line/").await.is_empty());
}

#[tokio::test]
async fn a_session_that_cannot_be_closed_is_not_watched_for_ever() {
    let guarded = Guarded::start(&documented()).await;
    let front = Front::of(&guarded.server).await;
    let sync = within(config(front.url()).token(TOKEN)).connect().await.unwrap();
    let brief = sync.lock("a").ttl(Duration::from_secs(2)).dedicated_session();
    let guard = brief.acquire().await.unwrap();
    front.polled("/v1/session/info/").await;
    let without: String = documented().lines().filter(|line| !line.contains("session")).collect();
    guarded.may("app", &without).await;
    assert_eq!(timeout(SOON, guard.revoked()).await.unwrap().cause, Cause::Deadline);
    // In vain, and then it is given up.
    let ends = |asked: &Asked| asked.path.starts_with("/v1/session/destroy/");
    eventually(SOON, async || if front.asked().iter().any(ends) { Ok(()) } else { Err(()) }).await;
    sleep(Duration::from_secs(2)).await;
    front.forget();
    sleep(Duration::from_secs(3)).await;
    let asked: Vec<String> = front.asked().into_iter().map(|asked| asked.path).collect();
    assert!(asked.iter().all(|path| !path.contains("session")), "{asked:?}");
}

/// The poll of a key that is not there wakes for each change beside it.
#[tokio::test]
async fn two_polls_of_a_key_are_never_closer_than_they_may_be() {
    let server = agent(&[]).await;
    let (consul, front) = (operator(&server), Front::of(&server).await);
    let x = Driver::on(config(front.url()).backend().await.unwrap(), TTL).await;
    let of = name("a");
    let seen = x.backend.holder(Kind::Leader, &of).await.unwrap();
    let watch = x.backend.watch(Kind::Leader, &of, &seen.version);
    let beside = async {
        front.polled("sync/leader/a").await;
        front.forget();
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(2) {
            put(&consul, "sync/leader/ab", "x").await;
            delete(&consul, "sync/leader/ab").await;
        }
    };
    tokio::select! {
        _ = watch => panic!("nothing has changed"),
        () = beside => {}
    }
    let polls = front.asked().iter().filter(|asked| asked.is_poll()).count();
    assert!((5..=21).contains(&polls), "{polls} in two seconds");
}

/// `consul kv import` puts an earlier record over that of the claim which holds the key now.
#[tokio::test]
async fn an_earlier_record_that_is_put_back_over_a_held_key_blocks_nobody() {
    let server = agent(&[]).await;
    let consul = operator(&server);
    let options = Options::new().ttl(Duration::from_secs(30));
    let sync = config(server.url()).options(options).connect().await.unwrap();
    let other = config(server.url()).connect().await.unwrap();
    let lock = sync.lock("a");
    let key = lock.key().unwrap();
    let guard = lock.acquire().await.unwrap();
    let earlier = only(&consul, &key).await;
    guard.release().await.unwrap();
    sleep(Duration::from_secs(3)).await; // what has ended is not looked for any more
    let guard = lock.acquire().await.unwrap();
    let waiting = tokio::spawn({
        let lock = other.lock("a");
        async move { lock.acquire().await }
    });
    in_line(&consul, "lock/a", 1).await;
    let path = format!("/v1/kv/{key}?flags={}", earlier.flags);
    consul.ask("PUT", &path, earlier.text().as_bytes()).await.unwrap();
    assert_eq!(timeout(SOON, guard.revoked()).await.expect("told").cause, Cause::Key);
    let got = timeout(SOON, waiting).await.expect("it is free").unwrap().unwrap();
    assert!(guard.release().await.is_err());
    assert!(got.is_valid());
    got.release().await.unwrap();
}
