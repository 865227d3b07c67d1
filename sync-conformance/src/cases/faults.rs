//! What goes wrong between a client and its store: it is told in time, comes to an end, and the
//! client is as good as new afterwards.

use std::error::Error as _;
use std::time::Duration;

use sync_core::backend::Claim;
use sync_core::{
    BootClock, Cause, Clock, Coordinator, Error, ErrorKind, Kind, Name, Node, record_nonce,
};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::wants::{BOTH, Taken, Want};
use crate::context::{Context, Route};
use crate::failed::Failed;
use crate::fault::{Fault, Verb};
use crate::proxy::{Flow, Proxy, Toward};
use crate::suite::{Case, Need};

pub(crate) fn cases() -> Vec<Case> {
    let wire = |case: Case| case.needs(&[Need::Proxy]);
    vec![
        Case::new(a_client_recovers_from_a_store_that_does_not_serve),
        wire(Case::new(a_client_recovers_from_a_cut)),
        wire(Case::new(a_client_recovers_from_a_black_hole)),
        wire(Case::new(a_client_recovers_from_requests_that_vanish)),
        wire(Case::new(a_client_recovers_from_answers_that_vanish)),
        wire(Case::new(a_client_recovers_from_answers_that_take_too_long)),
        Case::new(a_client_recovers_from_a_store_that_stops).needs(&[Need::KillServer]),
        Case::new(a_client_recovers_from_a_restart).needs(&[Need::KillServer]),
        wire(Case::new(a_holder_cut_off_is_told_and_acquires_again)),
        wire(Case::new(a_waiter_cut_off_meanwhile_is_served_after_all)),
        wire(Case::new(resets_lose_nothing)),
        wire(Case::new(a_reset_of_a_slow_wire_loses_nothing)),
        wire(Case::new(a_connection_cut_at_any_byte_leaves_nothing)),
        Case::new(a_slow_store_is_no_dead_one),
        wire(Case::new(a_slow_wire_is_no_dead_one)),
        wire(Case::new(doubled_answers_grant_nothing)),
        Case::new(a_request_that_comes_twice_counts_once),
        wire(Case::new(a_store_that_is_down_at_the_start_says_so)),
        wire(Case::new(a_store_that_is_silent_at_the_start_says_so)),
        Case::new(errors_say_what_was_being_done_to_what_and_where),
        wire(Case::new(no_error_holds_a_credential)),
        Case::new(no_text_holds_a_nonce),
    ]
}

/// After how long a request counts as unanswered here.
const PATIENCE: Duration = Duration::from_millis(300);

/// How long a name is wanted in vain.
const BRIEF: Duration = Duration::from_secs(1);

/// Whether it says that there was no store rather than that somebody else holds the name.
fn is_about_the_store<T>(outcome: Result<T, Error>) -> Result<(), Failed> {
    match outcome.err().ok_or("it knows what it cannot know")? {
        error if matches!(error.kind(), ErrorKind::Unreachable | ErrorKind::Unknown) => Ok(()),
        error => Err(format!("{}: {error}", error.kind()))?,
    }
}

/// A client that is used to its store finds it gone, says so, and finds it again.
async fn recovers(
    ctx: &Context,
    sync: &Coordinator,
    break_off: impl Fn() -> Result<(), Failed>,
    heal: impl Fn() -> Result<(), Failed>,
) -> Result<(), Failed> {
    let other = ctx.coordinator().await?;
    for kind in BOTH {
        let want = Want::new(sync, kind, "x");
        want.take().await?.give_back().await?;
        break_off()?;
        let clock = BootClock::new();
        let began = clock.now();
        is_about_the_store(want.clone().wait(BRIEF).take().await)?;
        is_about_the_store(want.try_take().await)?;
        is_about_the_store(want.holder().await)?;
        let took = clock.now().since(began);
        assert!(took < ctx.long(), "it took {took:?} to say so");
        heal()?;
        timeout(ctx.long(), want.take()).await??.give_back().await?;
        let next = Want::new(&other, kind, "x").wait(ctx.long()).take().await?;
        assert!(want.holder().await?.is_some());
        next.give_back().await?;
        ctx.assert_nothing_left().await?;
    }
    Ok(())
}

async fn a_client_recovers_from_a_store_that_does_not_serve(ctx: Context) -> Result<(), Failed> {
    for fault in [
        Fault::Unsent,
        Fault::LoseRequest,
        Fault::LoseAnswer,
        Fault::Refuse(ErrorKind::Unreachable),
        Fault::Hang,
    ] {
        let (sync, faults) = ctx.faulty_with(ctx.options()?.request_timeout(PATIENCE)).await?;
        let break_off = || {
            let verbs = [Verb::Open, Verb::Close, Verb::Renew, Verb::TryClaim, Verb::End];
            verbs.into_iter().for_each(|verb| faults.always(verb, fault));
            faults.always(Verb::Holder, fault);
            Ok(())
        };
        let heal = || {
            faults.heal();
            faults.release();
            Ok(())
        };
        recovers(&ctx, &sync, break_off, heal).await?;
    }
    Ok(())
}

/// [`recovers`], of what `break_off` does to the wire.
async fn recovers_on(ctx: Context, break_off: impl Fn(&Route)) -> Result<(), Failed> {
    let route = ctx.route().await?;
    let options = ctx.options()?.request_timeout(PATIENCE);
    let sync = ctx.coordinator_at(route.url(), options).await?;
    let heal = || {
        route.heal();
        Ok(())
    };
    let break_off = || {
        break_off(&route);
        Ok(())
    };
    recovers(&ctx, &sync, break_off, heal).await
}

async fn a_client_recovers_from_a_cut(ctx: Context) -> Result<(), Failed> {
    recovers_on(ctx, Route::cut).await
}

async fn a_client_recovers_from_a_black_hole(ctx: Context) -> Result<(), Failed> {
    recovers_on(ctx, Route::black_hole).await
}

async fn a_client_recovers_from_requests_that_vanish(ctx: Context) -> Result<(), Failed> {
    recovers_on(ctx, |route| route.set(Toward::Server, Flow::Swallow)).await
}

async fn a_client_recovers_from_answers_that_vanish(ctx: Context) -> Result<(), Failed> {
    recovers_on(ctx, |route| route.set(Toward::Client, Flow::Swallow)).await
}

async fn a_client_recovers_from_answers_that_take_too_long(ctx: Context) -> Result<(), Failed> {
    recovers_on(ctx, |route| route.set(Toward::Client, Flow::Delay(PATIENCE * 10))).await
}

async fn a_client_recovers_from_a_store_that_stops(ctx: Context) -> Result<(), Failed> {
    let sync = ctx.coordinator_with(ctx.options()?.request_timeout(PATIENCE)).await?;
    recovers(&ctx, &sync, || ctx.server().stop(), || ctx.server().resume()).await
}

async fn a_client_recovers_from_a_restart(ctx: Context) -> Result<(), Failed> {
    // What it held meanwhile is lost where the store forgets.
    ctx.expect_outside();
    let sync = ctx.coordinator().await?;
    for kind in BOTH {
        let want = Want::new(&sync, kind, "x");
        let beside = Want::new(&sync, kind, "beside").take().await?;
        for _ in 0..3 {
            want.take().await?.give_back().await?;
            ctx.server().restart().await?;
            timeout(ctx.long(), want.take()).await??.give_back().await?;
        }
        drop(beside.give_back().await);
        ctx.assert_nothing_left().await?;
    }
    Ok(())
}

async fn a_holder_cut_off_is_told_and_acquires_again(ctx: Context) -> Result<(), Failed> {
    let other = ctx.coordinator().await?;
    for break_off in [Route::cut as fn(&Route), Route::black_hole] {
        let route = ctx.route().await?;
        let sync = ctx.coordinator_at(route.url(), ctx.hasty()?).await?;
        for kind in BOTH {
            let want = Want::new(&sync, kind, "x");
            let held = want.take().await?;
            break_off(&route);
            let revocation = timeout(ctx.long(), held.revoked()).await?;
            assert_eq!(revocation.cause, Cause::Deadline);
            let next = Want::new(&other, kind, "x").wait(ctx.long()).take().await?;
            let lost = held.give_back().await.err().ok_or("it gave back what it had lost")?;
            assert_eq!(lost.kind(), ErrorKind::Lost, "{lost}");
            route.heal();
            assert!(next.is_valid());
            next.give_back().await?;
            // The same handle, at once.
            timeout(ctx.long(), want.take()).await??.give_back().await?;
        }
    }
    ctx.assert_nothing_left_within(ctx.long()).await
}

async fn a_waiter_cut_off_meanwhile_is_served_after_all(ctx: Context) -> Result<(), Failed> {
    let other = ctx.coordinator().await?;
    for break_off in [Route::cut as fn(&Route), Route::black_hole, Route::reset] {
        let route = ctx.route().await?;
        let options = ctx.options()?.request_timeout(PATIENCE);
        let (sync, faults) = ctx.faulty_at(route.url(), options).await?;
        for kind in BOTH {
            let held = Want::new(&other, kind, "x").take().await?;
            let waits = faults.calls(Verb::Wait);
            let waiting = Want::new(&sync, kind, "x").taking();
            faults.called(Verb::Wait, waits + 1).await;
            break_off(&route);
            // What would have woken it goes astray.
            held.give_back().await?;
            sleep(PATIENCE).await;
            route.heal();
            timeout(ctx.long(), waiting).await???.give_back().await?;
            ctx.assert_nothing_left().await?;
        }
    }
    Ok(())
}

async fn resets_lose_nothing(ctx: Context) -> Result<(), Failed> {
    let route = ctx.route().await?;
    let sync = ctx.coordinator_at(route.url(), ctx.options()?.ttl(ctx.ttl() * 2)).await?;
    let guard = sync.lock("x").acquire().await?;
    let elected = sync.leader("x").elect().await?;
    let clock = BootClock::new();
    let end = clock.now() + ctx.ttl() * 3;
    let mut taken = 0;
    while clock.now() < end {
        route.reset();
        timeout(ctx.long(), sync.lock("beside").acquire()).await??.release().await?;
        taken += 1;
        sleep(ctx.ttl() / 10).await;
    }
    assert!(taken > 3, "only {taken} were taken");
    assert!(guard.is_valid() && elected.is_valid());
    guard.release().await?;
    elected.resign().await?;
    ctx.assert_nothing_left().await
}

/// A connection takes several round trips to make, more than one renewal may take.
async fn a_reset_of_a_slow_wire_loses_nothing(ctx: Context) -> Result<(), Failed> {
    let route = ctx.route().await?;
    let ttl = ctx.ttl() * 3;
    let sync = ctx.coordinator_at(route.url(), ctx.options()?.ttl(ttl)).await?;
    let (guard, elected) = (sync.lock("x").acquire().await?, sync.leader("x").elect().await?);
    route.set(Toward::Server, Flow::Delay(ttl / 36));
    route.set(Toward::Client, Flow::Delay(ttl / 36));
    route.reset();
    sleep(ttl * 2).await;
    assert_eq!((guard.revocation(), elected.revocation()), (None, None));
    guard.release().await?;
    elected.resign().await?;
    ctx.assert_nothing_left().await
}

async fn a_connection_cut_at_any_byte_leaves_nothing(ctx: Context) -> Result<(), Failed> {
    let route = ctx.route().await?;
    let sync = ctx.coordinator_at(route.url(), ctx.options()?.request_timeout(BRIEF)).await?;
    let other = ctx.coordinator().await?;
    for toward in [Toward::Server, Toward::Client] {
        for bytes in [0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610, 987] {
            let kind = BOTH[usize::from(bytes % 2 == 0)];
            let want = Want::new(&sync, kind, "x");
            want.take().await?.give_back().await?;
            route.proxies().iter().for_each(|proxy| proxy.cut_after(toward, bytes));
            let taken = timeout(ctx.long(), want.take()).await??;
            assert!(Want::new(&other, kind, "x").try_take().await?.is_none());
            taken.give_back().await?;
            Want::new(&other, kind, "x").wait(ctx.long()).take().await?.give_back().await?;
            ctx.assert_nothing_left().await?;
        }
    }
    Ok(())
}

async fn a_slow_store_is_no_dead_one(ctx: Context) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty_with(ctx.options()?.ttl(ctx.ttl() * 2)).await?;
    let slow = Fault::Slow(ctx.ttl() / 25);
    let verbs = [Verb::Open, Verb::Renew, Verb::TryClaim, Verb::End, Verb::Update, Verb::Holder];
    verbs.into_iter().for_each(|verb| faults.always(verb, slow));
    goes_on(&ctx, &sync).await
}

async fn a_slow_wire_is_no_dead_one(ctx: Context) -> Result<(), Failed> {
    let route = ctx.route().await?;
    let sync = ctx.coordinator_at(route.url(), ctx.options()?.ttl(ctx.ttl() * 2)).await?;
    route.set(Toward::Server, Flow::Delay(ctx.ttl() / 25));
    route.set(Toward::Client, Flow::Delay(ctx.ttl() / 25));
    goes_on(&ctx, &sync).await
}

/// Holds, waits, changes and releases for longer than anything lives that is not renewed.
async fn goes_on(ctx: &Context, sync: &Coordinator) -> Result<(), Failed> {
    let other = ctx.coordinator().await?;
    let elected = sync.leader("x").elect().await?;
    let clock = BootClock::new();
    let end = clock.now() + ctx.ttl() * 3;
    while clock.now() < end {
        let held = other.lock("x").acquire().await?;
        let waiting = Want::new(sync, Kind::Lock, "x").taking();
        sleep(ctx.ttl() / 10).await;
        held.release().await?;
        waiting.await??.give_back().await?;
        elected.update(Node::new("slow")).await?;
        assert_eq!(elected.revocation(), None);
    }
    elected.resign().await?;
    ctx.assert_nothing_left().await
}

/// Every answer is believed only if it names what was asked. (The same is not done to requests: a
/// piece of bytes that comes twice is no request, and etcd's server ends itself over some of them.)
async fn doubled_answers_grant_nothing(ctx: Context) -> Result<(), Failed> {
    const NAMES: usize = 20;
    let route = ctx.route().await?;
    let options = ctx.options()?.request_timeout(PATIENCE).release_timeout(BRIEF);
    let sync = ctx.coordinator_at(route.url(), options).await?;
    let other = ctx.coordinator().await?;
    for kind in BOTH {
        let mut held = Vec::new();
        for at in 0..NAMES {
            held.push(Want::new(&other, kind, &format!("held-{at}")).take().await?);
        }
        Want::new(&sync, kind, "free").take().await?.give_back().await?;
        route.set(Toward::Client, Flow::Double);
        for round in 0..3 {
            // All at once, so that there is always one to take the answer that is too many.
            let mut asking = JoinSet::new();
            for taken in &held {
                let (wanted, token) = (Want::new(&sync, kind, taken.name()), taken.token());
                let name = format!("free-{}", taken.name());
                let (free, truth) = (Want::new(&sync, kind, &name), Want::new(&other, kind, &name));
                asking.spawn(asks_under_doubt(free, truth));
                asking.spawn(async move {
                    let taken = wanted.try_take().await;
                    assert!(!matches!(taken, Ok(Some(_))), "two holders: {taken:?}");
                    let holder = wanted.holder().await.ok().flatten();
                    assert!(holder.is_none_or(|holder| holder.token == Some(token)));
                    Ok(())
                });
            }
            while let Some(asked) = asking.join_next().await {
                asked?.map_err(|failed| failed.and(format_args!("in round {round}")))?;
            }
        }
        route.heal();
        for taken in held {
            assert!(taken.is_valid());
            taken.give_back().await?;
        }
        let wanted = Want::new(&sync, kind, "held-0");
        timeout(ctx.long(), wanted.take()).await??.give_back().await?;
        ctx.assert_nothing_left().await?;
    }
    Ok(())
}

/// Takes a name that nobody has. It may fail, but what it says is so.
async fn asks_under_doubt(free: Want, truth: Want) -> Result<(), Failed> {
    if let Ok(Some(taken)) = free.try_take().await {
        let holder = truth.holder().await?;
        assert_eq!(holder.and_then(|holder| holder.token), Some(taken.token()));
        drop(taken.give_back().await);
    }
    Ok(())
}

async fn a_request_that_comes_twice_counts_once(ctx: Context) -> Result<(), Failed> {
    const ROUNDS: usize = 3;
    let (sync, faults) = ctx.faulty_with(ctx.hasty()?).await?;
    let (other, others) = ctx.faulty().await?;
    for verb in [Verb::Renew, Verb::TryClaim, Verb::Update, Verb::End, Verb::Close] {
        faults.always(verb, Fault::Twice);
    }
    for kind in BOTH {
        let (want, wanted) = (Want::new(&sync, kind, "x"), Want::new(&other, kind, "x"));
        for _ in 0..ROUNDS {
            let held = want.take().await?;
            if let Taken::Leader(elected) = &held {
                elected.update(Node::new("again")).await?;
            }
            let (waits, renewals) = (others.calls(Verb::Wait), faults.calls(Verb::Renew));
            let waiting = wanted.taking();
            others.called(Verb::Wait, waits + 1).await;
            faults.called(Verb::Renew, renewals + 1).await;
            let holder = wanted.holder().await?.and_then(|holder| holder.token);
            assert_eq!((held.revocation(), holder), (None, Some(held.token())));
            // The second release comes when there may be a next holder.
            held.give_back().await?;
            let next = timeout(ctx.long(), waiting).await???;
            let held = wanted.holder().await?.and_then(|holder| holder.token);
            assert_eq!(held, Some(next.token()));
            next.give_back().await?;
        }
        ctx.assert_nothing_left().await?;
    }
    sync.shutdown().await?;
    Ok(())
}

async fn a_store_that_is_down_at_the_start_says_so(ctx: Context) -> Result<(), Failed> {
    unreachable_at_the_start(ctx, Proxy::cut).await
}

async fn a_store_that_is_silent_at_the_start_says_so(ctx: Context) -> Result<(), Failed> {
    unreachable_at_the_start(ctx, |proxy| {
        proxy.set(Toward::Server, Flow::Swallow);
        proxy.set(Toward::Client, Flow::Swallow);
    })
    .await
}

async fn unreachable_at_the_start(ctx: Context, break_off: impl Fn(&Proxy)) -> Result<(), Failed> {
    let route = ctx.route().await?;
    route.proxies().iter().for_each(break_off);
    let options = ctx.options()?.connect_timeout(BRIEF);
    let clock = BootClock::new();
    let began = clock.now();
    let error = ctx.store().connect(route.url(), &options).await.err().ok_or("it is connected")?;
    let took = clock.now().since(began);
    assert!(took < BRIEF + ctx.long() / 2, "it took {took:?} to say so");
    assert!(matches!(error.kind(), ErrorKind::Unreachable | ErrorKind::Unknown), "{error:?}");
    let text = error.to_string();
    let address = route.proxies()[0].address().to_string();
    assert!(text.contains(&address), "{text:?} does not name {address}");
    route.heal();
    let sync = ctx.coordinator_at(route.url(), options).await?;
    sync.lock("x").acquire().await?.release().await?;
    ctx.assert_nothing_left().await
}

async fn errors_say_what_was_being_done_to_what_and_where(ctx: Context) -> Result<(), Failed> {
    const NAME: &str = "re/port \"7\"";
    let profile = ctx.backend().await?.profile().clone();
    let options = ctx.options()?.request_timeout(PATIENCE).release_timeout(PATIENCE);
    for fault in [Fault::Unsent, Fault::LoseRequest, Fault::Refuse(ErrorKind::Denied)] {
        let (sync, faults) = ctx.faulty_with(options.clone()).await?;
        let (lock, leader) = (sync.lock(NAME), sync.leader(NAME));
        let guard = lock.clone().wait(ctx.long()).acquire().await?;
        let elected = leader.clone().wait(ctx.long()).elect().await?;
        let verbs = [Verb::TryClaim, Verb::End, Verb::Holder, Verb::Update];
        verbs.into_iter().for_each(|verb| faults.always(verb, fault));
        let updated = elected.update(Node::new("n")).await;
        let (lock, leader) = (lock.wait(PATIENCE), leader.wait(PATIENCE));
        let (fresh, vacant) = (sync.lock("fresh").wait(PATIENCE), sync.leader("vacant"));
        let found = [
            ("release lock", NAME, guard.release().await.err()),
            ("update leader", NAME, updated.err()),
            ("resign leader", NAME, elected.resign().await.err()),
            ("read the holder of lock", NAME, lock.holder().await.err()),
            ("read the holder of leader", NAME, leader.leader().await.err()),
            ("acquire lock", "fresh", fresh.acquire().await.err()),
            ("campaign for leader", "vacant", vacant.try_elect().await.err()),
        ];
        let behind_what_is_not_given_back = [
            ("acquire lock", NAME, lock.acquire().await.err()),
            ("acquire lock", NAME, lock.try_acquire().await.err()),
            ("campaign for leader", NAME, leader.elect().await.err()),
            ("campaign for leader", NAME, leader.try_elect().await.err()),
        ];
        let kind = |error: &Option<Error>| error.as_ref().map(Error::kind);
        for (doing, _, error) in &found {
            let refused = matches!(fault, Fault::Refuse(_));
            let denied = kind(error) == Some(ErrorKind::Denied);
            assert_eq!(denied, refused, "{doing}: {error:?}");
        }
        for (doing, _, error) in &behind_what_is_not_given_back {
            assert_eq!(kind(error), Some(ErrorKind::Unknown), "{doing}: {error:?}");
        }
        for (doing, name, error) in found.into_iter().chain(behind_what_is_not_given_back) {
            let error = error.ok_or_else(|| format!("no error: {doing} under {fault:?}"))?;
            let text = error.to_string();
            let doing = format!("could not {doing} {name:?} on {}", profile.store);
            assert!(text.starts_with(&doing), "{text:?} does not say {doing:?}");
            assert!(text.contains(&profile.endpoint), "{text:?} does not say where");
        }
        faults.heal();
    }
    let (one, two) = (ctx.coordinator().await?, ctx.coordinator().await?);
    let guard = one.lock(NAME).wait(ctx.long()).acquire().await?;
    let timed_out = two.lock(NAME).wait(PATIENCE).acquire().await.err().ok_or("two holders")?;
    one.shutdown().await?;
    let closed = guard.release().await.err().ok_or("released twice")?;
    let asked = one.lock(NAME).acquire().await.err().ok_or("it was shut down")?;
    for error in [timed_out, closed, asked] {
        let text = error.to_string();
        assert!(text.contains(&format!("{NAME:?}")) && text.contains(&profile.endpoint), "{text}");
    }
    ctx.assert_nothing_left().await
}

/// What people and logs may see of an error.
fn texts(error: &Error) -> Vec<String> {
    let mut texts = vec![error.to_string(), format!("{error:?}"), format!("{error:#?}")];
    let mut source = error.source();
    while let Some(cause) = source {
        texts.extend([cause.to_string(), format!("{cause:?}")]);
        source = cause.source();
    }
    texts
}

async fn no_error_holds_a_credential(ctx: Context) -> Result<(), Failed> {
    const USER: &str = "somebody";
    const SECRET: &str = "s3cr3t-of-somebody";
    let route = ctx.route().await?;
    let Some((scheme, rest)) = route.url().split_once("://") else {
        return Err(Failed::skipped("a URL without a scheme holds no credential"));
    };
    if rest.contains('@') {
        return Err(Failed::skipped("the server's URL has a credential of its own"));
    }
    let mut seen = Vec::new();
    for url in [
        format!("{scheme}://{USER}:{SECRET}@{rest}"),
        format!("{scheme}://:{SECRET}@{rest}"),
        format!("{scheme}://{USER}:{SECRET}@{rest}:not-a-port"),
        format!("{scheme}://{USER}:{SECRET}@[{rest}"),
        format!("{scheme}s://{USER}:{SECRET}@{rest}"),
        format!("nonsense://{USER}:{SECRET}@{rest}"),
        format!("{scheme}:{USER}:{SECRET}@{rest}"),
    ] {
        for down in [false, true] {
            if down {
                route.cut();
            }
            let options = ctx.options()?.connect_timeout(BRIEF).request_timeout(PATIENCE);
            match ctx.store().connect(&url, &options).await {
                Err(error) => seen.extend(texts(&error)),
                Ok(backend) => {
                    seen.extend([format!("{backend:?}"), format!("{:?}", backend.profile())]);
                    let sync = Coordinator::new(backend, &options)?;
                    route.cut();
                    let lost = sync.lock("x").wait(BRIEF).acquire().await.err();
                    seen.extend(lost.iter().flat_map(texts));
                    seen.extend([format!("{sync:?}"), format!("{options:?}")]);
                }
            }
            route.heal();
        }
    }
    assert!(!seen.is_empty());
    for text in seen {
        assert!(!text.contains(SECRET), "the secret stands in {text:?}");
    }
    Ok(())
}

/// Whoever knows a nonce can end the claim, and texts end up in logs.
async fn no_text_holds_a_nonce(ctx: Context) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty().await?;
    let backend = ctx.backend().await?;
    let (lock, leader) = (sync.lock("x"), sync.leader("x"));
    let (guard, elected) = (lock.acquire().await?, leader.elect().await?);
    faults.always(Verb::Update, Fault::Refuse(ErrorKind::Denied));
    let error = elected.update(Node::new("n")).await.err().ok_or("updated in vain")?;
    let mut seen = texts(&error);
    seen.extend([format!("{guard:?} {lock:?}"), format!("{elected:?} {leader:?} {sync:?}")]);
    seen.push(format!("{:?} {:?} {backend:?}", lock.holder().await?, leader.leader().await?));
    for kind in BOTH {
        let sighting = backend.holder(kind, &Name::parse("x")?).await?;
        let record = sighting.holder.as_ref().ok_or("nobody")?.record.clone();
        let nonce = record_nonce(&record).ok_or("the record has no nonce")?;
        let claim = Claim::new(kind, Name::parse("x")?, nonce, record.into(), true);
        let texts = [format!("{sighting:?}"), format!("{claim:?}"), format!("{nonce:?}")];
        let hex = nonce.to_hex();
        let bytes = format!("{:?}", hex.as_bytes());
        let bytes = bytes.trim_matches(['[', ']']);
        for text in seen.iter().chain(&texts) {
            assert!(!text.contains(&hex) && !text.contains(bytes), "the nonce stands in {text}");
        }
    }
    guard.release().await?;
    elected.resign().await?;
    ctx.assert_nothing_left().await
}
