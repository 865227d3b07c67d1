//! With the least TTL that agents have by default, of ten seconds: some cases of the shared suite, and
//! how long a process that dies blocks others.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

#[path = "common/agent.rs"]
mod agent;
#[path = "conformance.rs"]
#[allow(dead_code, reason = "its main is not used here")]
mod conformance;

use std::time::{Duration, Instant};

use conformance::common;
use sync_conformance::cli::example::{self, Example};
use sync_conformance::{server, suite};
use sync_consul::{Config, ErrorKind, Options};
use tokio::time::timeout;

fn case(name: &str) {
    let consul = conformance::Consul { name: "consul-defaults", members: 1, least_ttl: None };
    let ran = suite::outcomes(consul, |known| known == name).unwrap();
    let [(_, outcome)] = &ran[..] else { panic!("{name} is one case: {ran:?}") };
    if let Err(failed) = outcome {
        panic!("{}", failed.to_text());
    }
}

#[test]
fn a_holder_that_hears_nothing_any_more_is_told() {
    case("revocation::a_partitioned_holder_is_told");
}

#[test]
fn a_session_is_renewed_in_spite_of_renewals_that_hang() {
    case("renewal::renewals_that_hang_once_or_twice_take_nothing_away");
}

#[test]
fn a_waiter_gets_over_the_loss_of_its_session() {
    case("waiting::a_waiter_whose_session_died_starts_anew");
}

#[test]
fn tokens_grow_after_a_loss() {
    case("fencing::tokens_grow_after_a_loss");
}

#[tokio::test]
async fn a_holder_that_is_killed_is_followed_within_twice_the_ttl_and_the_lock_delay() {
    let ttl = Duration::from_secs(10);
    let server = server::consul(1, &["session_ttl_min = \"10s\""]).start().await.unwrap();
    agent::ready(&agent::operator(&server)).await;
    let config = |ttl| Config::new(server.url()).options(Options::new().ttl(ttl));
    let refused = config(ttl - Duration::from_secs(1)).connect().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid, "{refused}");
    let sync = config(ttl).connect().await.unwrap();

    let program = example::build(env!("CARGO_PKG_NAME"), "consul-lock").unwrap();
    let line = ["a", "--url", &server.url(), "--ttl", "10", "--", "sleep", "1"];
    let victim = Example::start(&program, &line, |_| {}).unwrap();
    let held = victim.event("held token=").await.unwrap();
    let killed = Instant::now();
    victim.process().kill().unwrap();
    let limit = 2 * ttl + Duration::from_secs(5);
    let guard = timeout(limit, sync.lock("a").acquire()).await.expect("followed").unwrap();
    // Its session was made, or renewed, a moment before; Consul ends none sooner than its TTL.
    assert!(killed.elapsed() > ttl - Duration::from_secs(1), "{:?}", killed.elapsed());
    println!("followed after {:?}", killed.elapsed());
    let token: u64 = held.parse().unwrap();
    assert!(guard.token().get() > token);
    guard.release().await.unwrap();
}
