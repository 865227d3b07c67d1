//! Who leads, and what part one has in it: for the handle itself, for others, and as a stream.

use std::time::{Duration, SystemTime};

use sync_core::{
    Cause, Changes, Coordinator, ErrorKind, FencingToken, Holder, LONGEST_RECORD, LeaderStatus,
    Node,
};
use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt;

use super::common::{kind, on_one_thread, soon, told};
use crate::context::Context;
use crate::failed::Failed;
use crate::fault::{Fault, Faults, Verb};
use crate::store::{FOREIGN, Tamper};
use crate::suite::{Case, Need};

pub(crate) fn cases() -> Vec<Case> {
    const PROXY: &[Need] = &[Need::Proxy];
    vec![
        Case::new(a_handle_and_its_clones_have_one_status),
        Case::new(who_never_led_is_never_told_that_it_is_over),
        Case::new(the_status_reads_the_clock),
        Case::new(others_see_who_holds_since_when_and_under_which_token),
        Case::new(a_node_that_was_not_given_is_told_apart),
        Case::new(an_update_is_seen_and_changes_no_token),
        Case::new(updates_at_once_keep_their_order),
        Case::new(an_update_goes_on_when_its_caller_is_gone),
        Case::new(an_update_of_who_was_deposed_is_lost),
        Case::new(an_update_of_whose_key_was_removed_is_lost)
            .needs(&[Need::Tamper(Tamper::Delete)]),
        Case::new(an_update_that_is_too_long_changes_nothing),
        Case::new(a_stream_begins_with_the_present_state),
        Case::new(a_stream_shows_every_last_state),
        Case::new(a_stream_shows_no_change_where_there_is_none),
        Case::new(a_stream_that_nobody_reads_misses_no_last_state),
        Case::new(streams_share_one_watch_and_it_ends_with_them),
        Case::new(a_stream_shows_nobody_who_never_led),
        Case::new(who_gives_way_is_never_shown),
        Case::new(a_stream_goes_on_after_a_cut).needs(PROXY),
        Case::new(a_stream_goes_on_after_a_black_hole).needs(PROXY),
        Case::new(a_stream_goes_on_after_failures),
        Case::new(a_stream_goes_on_after_a_restart_of_the_store).needs(&[Need::KillServer]),
        Case::new(a_stream_sees_a_killed_leader_go).needs(&[Need::SecondProcess]),
        Case::new(a_stream_ends_with_a_shutdown),
        Case::new(a_foreign_value_reads_as_a_node).needs(&[Need::Tamper(Tamper::Overwrite)]),
    ]
}

async fn a_handle_and_its_clones_have_one_status(ctx: Context) -> Result<(), Failed> {
    use LeaderStatus::{Candidate, Elected, Follower};
    let (sync, other) = (ctx.coordinator().await?, ctx.coordinator().await?);
    let (leader, apart) = (sync.leader("x"), sync.leader("x"));
    let clone = leader.clone();
    assert_eq!((leader.status(), clone.status()), (Follower, Follower));
    let before = other.leader("x").elect().await?;
    assert!(leader.try_elect().await?.is_none());
    assert_eq!(leader.status(), Follower);
    let campaigning = tokio::spawn(async move { clone.elect().await });
    ctx.eventually(ctx.long(), || async { Ok(leader.status() == Candidate) }).await?;
    before.resign().await?;
    let elected = soon(&ctx, "it is elected", campaigning).await???;
    assert_eq!((leader.status(), leader.clone().status()), (Elected, Elected));
    assert_eq!(apart.status(), Follower, "another handle has a part of its own");
    elected.resign().await?;
    assert_eq!(leader.status(), Follower);
    ctx.assert_nothing_left().await
}

async fn who_never_led_is_never_told_that_it_is_over(ctx: Context) -> Result<(), Failed> {
    let (sync, other) = (ctx.coordinator().await?, ctx.coordinator().await?);
    let elected = other.leader("x").elect().await?;
    let leader = sync.leader("x");
    // One gives up, one is dropped, one only tries.
    let impatient = leader.clone().wait(Duration::from_secs(1));
    assert_eq!(kind(impatient.elect().await), Some(ErrorKind::Timeout));
    assert!(timeout(Duration::from_millis(200), leader.elect()).await.is_err());
    assert!(leader.try_elect().await?.is_none());
    assert_eq!(leader.status(), LeaderStatus::Follower);
    let report = ctx.judge()?;
    assert_eq!((report.grants, report.revocations.len()), (1, 0), "{report}");
    elected.resign().await?;
    sync.shutdown().await?;
    let report = ctx.judge()?;
    assert_eq!((report.grants, report.revocations.len()), (1, 1), "{report}");
    ctx.assert_nothing_left().await
}

async fn the_status_reads_the_clock(ctx: Context) -> Result<(), Failed> {
    on_one_thread(move || async move {
        let sync = ctx.coordinator_with(ctx.hasty()?).await?;
        let leader = sync.leader("x");
        let elected = leader.elect().await?;
        std::thread::sleep(ctx.ttl() + Duration::from_millis(200));
        assert_eq!(leader.status(), LeaderStatus::Follower);
        assert_eq!(told(&ctx, &elected).await?, Cause::Deadline);
        let again = soon(&ctx, "it is elected again", leader.elect()).await??;
        assert_eq!(leader.status(), LeaderStatus::Elected);
        again.resign().await?;
        drop(elected);
        ctx.assert_nothing_left_within(ctx.long()).await
    })
    .await
}

async fn others_see_who_holds_since_when_and_under_which_token(ctx: Context) -> Result<(), Failed> {
    let (sync, other) = (ctx.coordinator().await?, ctx.coordinator().await?);
    assert_eq!(other.leader("x").leader().await?, None);
    let node = Node::new("wéb-1 \"q\"").address("10.0.0.7:8080").metadata("zone", "b\n");
    let before = SystemTime::now() - Duration::from_millis(1);
    let elected = sync.leader("x").node(node.clone()).elect().await?;
    assert_eq!(other.lock("x").holder().await?, None, "a lock is another thing");
    let guard = sync.lock("x").node(node.clone()).acquire().await?;
    let after = SystemTime::now();
    let leader = other.leader("x").leader().await?.ok_or("nobody leads")?;
    let holder = other.lock("x").holder().await?.ok_or("nobody holds it")?;
    for (seen, token) in [(&leader, elected.token()), (&holder, guard.token())] {
        assert_eq!((&seen.node, seen.token), (&node, Some(token)));
        let since = seen.since.ok_or("since when?")?;
        assert!(before <= since && since <= after, "{before:?} {since:?} {after:?}");
    }
    assert_eq!(sync.leader("x").leader().await?, Some(leader));
    elected.resign().await?;
    assert_eq!(other.leader("x").leader().await?, None);
    assert_eq!(other.lock("x").holder().await?, Some(holder));
    guard.release().await?;
    assert_eq!(other.lock("x").holder().await?, None);
    ctx.assert_nothing_left().await
}

async fn a_node_that_was_not_given_is_told_apart(ctx: Context) -> Result<(), Failed> {
    let mut ids = Vec::new();
    for _ in 0..2 {
        let sync = ctx.coordinator().await?;
        let guard = sync.lock("x").acquire().await?;
        let holder = sync.lock("x").holder().await?.ok_or("nobody holds it")?;
        guard.release().await?;
        ids.push(holder.node.id);
    }
    let pid = format!("-{}-", std::process::id());
    assert!(ids.iter().all(|id| id.contains(&pid)), "{ids:?}");
    assert_ne!(ids[0], ids[1]);
    Ok(())
}

/// Who others see lead in the election `x`.
async fn seen(ctx: &Context) -> Result<Holder, Failed> {
    let leader = ctx.coordinator().await?.leader("x").leader().await?;
    Ok(leader.ok_or("nobody leads")?)
}

async fn an_update_is_seen_and_changes_no_token(ctx: Context) -> Result<(), Failed> {
    let sync = ctx.coordinator_with(ctx.hasty()?).await?;
    let elected = sync.leader("x").node(Node::new("a")).elect().await?;
    let first = seen(&ctx).await?;
    for address in ["h:1", "h:2", "h:2"] {
        let node = Node::new("a").address(address);
        elected.update(node.clone()).await?;
        let now = seen(&ctx).await?;
        assert_eq!((&now.node, now.token, now.since), (&node, first.token, first.since));
    }
    // It stays for as long as the claim, which goes on being renewed.
    let later = elected.deadline() + ctx.ttl();
    ctx.eventually(ctx.long(), || async { Ok(elected.deadline() > later) }).await?;
    assert!(elected.is_valid());
    assert_eq!(seen(&ctx).await?.node.address, "h:2");
    elected.resign().await?;
    ctx.assert_nothing_left().await
}

/// A leader whose requests soon count as unanswered.
async fn quick(ctx: &Context) -> Result<(Coordinator, Faults), Failed> {
    ctx.faulty_with(ctx.options()?.request_timeout(Duration::from_millis(300))).await
}

async fn updates_at_once_keep_their_order(ctx: Context) -> Result<(), Failed> {
    let (sync, faults) = quick(&ctx).await?;
    let elected = sync.leader("x").elect().await?;
    for fault in [Fault::Delay(Duration::from_millis(200)), Fault::LoseAnswer] {
        faults.next(Verb::Update, fault);
        let (a, b, c, d) = tokio::join!(
            elected.update(Node::new("a")),
            elected.update(Node::new("b")),
            elected.update(Node::new("c")),
            elected.update(Node::new("d")),
        );
        a.and(b).and(c).and(d)?;
        assert_eq!(seen(&ctx).await?.node.id, "d");
    }
    elected.resign().await?;
    ctx.assert_nothing_left().await
}

async fn an_update_goes_on_when_its_caller_is_gone(ctx: Context) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty().await?;
    let elected = sync.leader("x").elect().await?;
    faults.next(Verb::Update, Fault::Hang);
    let updating = elected.update(Node::new("updated"));
    assert!(timeout(Duration::from_millis(200), updating).await.is_err());
    faults.release();
    ctx.eventually(ctx.long(), || async { Ok(seen(&ctx).await?.node.id == "updated") }).await?;
    assert_eq!(faults.calls(Verb::Update), 1);
    elected.resign().await?;
    ctx.assert_nothing_left().await
}

async fn an_update_of_who_was_deposed_is_lost(ctx: Context) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty_with(ctx.hasty()?).await?;
    let deposed = sync.leader("x").elect().await?;
    faults.always(Verb::Renew, Fault::LoseRequest);
    let other = ctx.coordinator().await?;
    let campaign = other.leader("x").node(Node::new("next"));
    let next = soon(&ctx, "somebody else is elected", campaign.elect()).await??;
    assert_eq!(kind(deposed.update(Node::new("deposed")).await), Some(ErrorKind::Lost));
    assert_eq!(seen(&ctx).await?.node.id, "next");
    next.resign().await?;
    drop(deposed);
    ctx.assert_nothing_left_within(ctx.long()).await
}

async fn an_update_of_whose_key_was_removed_is_lost(ctx: Context) -> Result<(), Failed> {
    let sync = ctx.coordinator().await?;
    let leader = sync.leader("x");
    let elected = leader.elect().await?;
    ctx.tamper(&leader.key()?, Tamper::Delete).await?;
    let updated = soon(&ctx, "the update ends", elected.update(Node::new("gone"))).await?;
    assert_eq!(kind(updated), Some(ErrorKind::Lost));
    assert_eq!(told(&ctx, &elected).await?, Cause::Key);
    assert_eq!(leader.leader().await?, None);
    ctx.assert_nothing_left().await
}

async fn an_update_that_is_too_long_changes_nothing(ctx: Context) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty().await?;
    let elected = sync.leader("x").node(Node::new("a")).elect().await?;
    let long = Node::new("a").metadata("k", "v".repeat(LONGEST_RECORD));
    assert_eq!(kind(elected.update(long.clone()).await), Some(ErrorKind::Invalid));
    assert_eq!(faults.calls(Verb::Update), 0);
    assert_eq!(seen(&ctx).await?.node, Node::new("a"));
    elected.resign().await?;
    assert_eq!(kind(sync.leader("x").node(long).elect().await), Some(ErrorKind::Invalid));
    // As long as can be is read by others as well.
    let most = Node::new("a").metadata("k", "v".repeat(LONGEST_RECORD - 200));
    let elected = sync.leader("x").node(most.clone()).elect().await?;
    assert_eq!(seen(&ctx).await?.node, most);
    elected.resign().await?;
    ctx.assert_nothing_left().await
}

/// Reads on until the stream shows what is `wanted`.
async fn shows(
    ctx: &Context,
    changes: &mut Changes,
    wanted: impl Fn(Option<&Holder>) -> bool,
) -> Result<(), Failed> {
    let reading = async {
        loop {
            match changes.next().await {
                Some(state) if wanted(state.as_ref()) => return Ok(()),
                Some(_) => {}
                None => return Err("the stream has ended")?,
            }
        }
    };
    soon(ctx, "the stream shows it", reading).await?
}

/// That the node of this id leads under this token.
fn led_by(id: &str, token: FencingToken) -> impl Fn(Option<&Holder>) -> bool + '_ {
    move |state| state.is_some_and(|seen| seen.node.id == id && seen.token == Some(token))
}

async fn a_stream_begins_with_the_present_state(ctx: Context) -> Result<(), Failed> {
    let (sync, other) = (ctx.coordinator().await?, ctx.coordinator().await?);
    let mut changes = other.leader("x").changes()?;
    assert_eq!(soon(&ctx, "its first state", changes.next()).await?, Some(None));
    let elected = sync.leader("x").node(Node::new("a")).elect().await?;
    // One that joins others, one of a coordinator that looks for the first time.
    for sync in [&other, &sync] {
        let mut changes = sync.leader("x").changes()?;
        shows(&ctx, &mut changes, led_by("a", elected.token())).await?;
    }
    let mut apart = other.leader("y").changes()?;
    assert_eq!(soon(&ctx, "its first state", apart.next()).await?, Some(None));
    assert_eq!(kind(other.leader("").changes()), Some(ErrorKind::Invalid));
    elected.resign().await?;
    ctx.assert_nothing_left().await
}

async fn a_stream_shows_every_last_state(ctx: Context) -> Result<(), Failed> {
    let (one, two) = (ctx.coordinator().await?, ctx.coordinator().await?);
    let mut changes = ctx.coordinator().await?.leader("x").changes()?;
    shows(&ctx, &mut changes, |state| state.is_none()).await?;
    for (sync, id) in [(&one, "a"), (&two, "b"), (&two, "c"), (&one, "d")] {
        let elected = sync.leader("x").node(Node::new(id)).elect().await?;
        shows(&ctx, &mut changes, led_by(id, elected.token())).await?;
        let node = Node::new(id).address("moved");
        elected.update(node.clone()).await?;
        shows(&ctx, &mut changes, |state| state.is_some_and(|seen| seen.node == node)).await?;
        elected.resign().await?;
        shows(&ctx, &mut changes, |state| state.is_none()).await?;
    }
    ctx.assert_nothing_left().await
}

async fn a_stream_shows_no_change_where_there_is_none(ctx: Context) -> Result<(), Failed> {
    let (sync, other) = (ctx.coordinator().await?, ctx.coordinator().await?);
    let node = Node::new("a");
    let elected = sync.leader("x").node(node.clone()).elect().await?;
    let mut changes = other.leader("x").changes()?;
    shows(&ctx, &mut changes, |state| state.is_some()).await?;
    for _ in 0..3 {
        elected.update(node.clone()).await?;
        let shown = timeout(Duration::from_millis(200), changes.next()).await;
        assert!(shown.is_err(), "{shown:?}");
    }
    elected.resign().await?;
    shows(&ctx, &mut changes, |state| state.is_none()).await?;
    ctx.assert_nothing_left().await
}

async fn a_stream_that_nobody_reads_misses_no_last_state(ctx: Context) -> Result<(), Failed> {
    let sync = ctx.coordinator().await?;
    let mut changes = ctx.coordinator().await?.leader("x").changes()?;
    for _ in 0..20 {
        sync.leader("x").elect().await?.resign().await?;
    }
    let elected = sync.leader("x").node(Node::new("last")).elect().await?;
    elected.update(Node::new("moved")).await?;
    shows(&ctx, &mut changes, led_by("moved", elected.token())).await?;
    elected.resign().await?;
    shows(&ctx, &mut changes, |state| state.is_none()).await?;
    ctx.assert_nothing_left().await
}

async fn streams_share_one_watch_and_it_ends_with_them(ctx: Context) -> Result<(), Failed> {
    const STREAMS: usize = 10;
    let sync = ctx.coordinator().await?;
    let (watching, faults) = ctx.faulty().await?;
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        streams.push(watching.leader("x").changes()?);
    }
    for stream in &mut streams {
        assert_eq!(soon(&ctx, "its first state", stream.next()).await?, Some(None));
    }
    let elected = sync.leader("x").node(Node::new("a")).elect().await?;
    for stream in &mut streams {
        shows(&ctx, stream, led_by("a", elected.token())).await?;
    }
    assert_eq!(faults.calls(Verb::Holder), 1);
    assert!(faults.calls(Verb::Watch) <= 5, "{}", faults.calls(Verb::Watch));
    // The others go on when some are dropped.
    streams.truncate(1);
    elected.update(Node::new("b")).await?;
    shows(&ctx, &mut streams[0], led_by("b", elected.token())).await?;
    soon(&ctx, "it is watched again", faults.under_way(Verb::Watch, 1)).await?;
    drop(streams);
    soon(&ctx, "the watch is ended", faults.under_way(Verb::Watch, 0)).await?;
    let before = faults.calls(Verb::Watch);
    elected.resign().await?;
    sleep(Duration::from_millis(300)).await;
    assert_eq!(faults.calls(Verb::Watch), before, "nobody reads any more");
    // And another one can be had.
    let mut again = watching.leader("x").changes()?;
    assert_eq!(soon(&ctx, "its first state", again.next()).await?, Some(None));
    ctx.assert_nothing_left().await
}

async fn a_stream_shows_nobody_who_never_led(ctx: Context) -> Result<(), Failed> {
    let (sync, other) = (ctx.coordinator().await?, ctx.coordinator().await?);
    let mut changes = ctx.coordinator().await?.leader("x").changes()?;
    shows(&ctx, &mut changes, |state| state.is_none()).await?;
    let elected = sync.leader("x").node(Node::new("leads")).elect().await?;
    let candidate = other.leader("x").node(Node::new("never led"));
    let trying = async {
        for _ in 0..20 {
            assert!(candidate.try_elect().await?.is_none());
            // Not even the store's first answer may have come by then.
            assert!(candidate.clone().wait(Duration::from_millis(20)).elect().await.is_err());
        }
        elected.update(Node::new("led")).await?;
        Ok::<_, Failed>(elected)
    };
    let watching = shows(&ctx, &mut changes, |state| {
        assert_ne!(state.map(|seen| &*seen.node.id), Some("never led"));
        state.is_some_and(|seen| seen.node.id == "led")
    });
    let (elected, watched) = tokio::join!(trying, watching);
    watched?;
    elected?.resign().await?;
    ctx.assert_nothing_left().await
}

/// Somebody tries again and again while the name is free for the one whose turn it is.
async fn who_gives_way_is_never_shown(ctx: Context) -> Result<(), Failed> {
    let (sync, other) = (ctx.coordinator().await?, ctx.coordinator().await?);
    let (next, faults) = ctx.faulty().await?;
    let elected = sync.leader("x").elect().await?;
    let leader = next.leader("x");
    let waiting = tokio::spawn(async move { leader.elect().await });
    faults.called(Verb::Wait, 1).await;
    let asked = faults.calls(Verb::TryClaim);
    faults.next(Verb::TryClaim, Fault::Hang);
    elected.resign().await?;
    timeout(ctx.long(), faults.called(Verb::TryClaim, asked + 1)).await?;
    let candidate = other.leader("x").node(Node::new("gives way"));
    let trying = async {
        for _ in 0..30 {
            assert!(candidate.try_elect().await?.is_none(), "it has passed who stood in line");
        }
        Ok::<_, Failed>(())
    };
    let looking = async {
        loop {
            let seen = sync.leader("x").leader().await?;
            assert_ne!(seen.as_ref().map(|node| &*node.node.id), Some("gives way"));
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        tried = trying => tried?,
        looked = looking => return looked,
    }
    faults.release();
    timeout(ctx.long(), waiting).await???.resign().await?;
    ctx.assert_nothing_left().await
}

async fn a_stream_goes_on_after_a_cut(ctx: Context) -> Result<(), Failed> {
    let route = ctx.route().await?;
    let watching = ctx.coordinator_at(route.url(), ctx.options()?).await?;
    let sync = ctx.coordinator().await?;
    let mut changes = watching.leader("x").changes()?;
    shows(&ctx, &mut changes, |state| state.is_none()).await?;
    // Reset in passing, and gone for a while in which something happens.
    route.reset();
    let elected = sync.leader("x").node(Node::new("a")).elect().await?;
    shows(&ctx, &mut changes, led_by("a", elected.token())).await?;
    route.cut();
    elected.resign().await?;
    let elected = sync.leader("x").node(Node::new("b")).elect().await?;
    sleep(Duration::from_millis(500)).await;
    route.heal();
    shows(&ctx, &mut changes, led_by("b", elected.token())).await?;
    elected.resign().await?;
    shows(&ctx, &mut changes, |state| state.is_none()).await?;
    ctx.assert_nothing_left().await
}

async fn a_stream_goes_on_after_a_black_hole(ctx: Context) -> Result<(), Failed> {
    let route = ctx.route().await?;
    let watching = ctx.coordinator_at(route.url(), ctx.options()?).await?;
    let sync = ctx.coordinator().await?;
    let mut changes = watching.leader("x").changes()?;
    shows(&ctx, &mut changes, |state| state.is_none()).await?;
    route.black_hole();
    let elected = sync.leader("x").node(Node::new("a")).elect().await?;
    sleep(Duration::from_secs(1)).await;
    route.heal();
    shows(&ctx, &mut changes, led_by("a", elected.token())).await?;
    elected.resign().await?;
    shows(&ctx, &mut changes, |state| state.is_none()).await?;
    ctx.assert_nothing_left().await
}

async fn a_stream_goes_on_after_failures(ctx: Context) -> Result<(), Failed> {
    let (watching, faults) = ctx.faulty().await?;
    let sync = ctx.coordinator().await?;
    for verb in [Verb::Holder, Verb::Watch] {
        for fault in [Fault::LoseAnswer, Fault::Unsent, Fault::Refuse(ErrorKind::Denied)] {
            faults.next(verb, fault);
        }
    }
    let mut changes = watching.leader("x").changes()?;
    shows(&ctx, &mut changes, |state| state.is_none()).await?;
    for id in ["a", "b", "c"] {
        let elected = sync.leader("x").node(Node::new(id)).elect().await?;
        shows(&ctx, &mut changes, led_by(id, elected.token())).await?;
        elected.resign().await?;
    }
    shows(&ctx, &mut changes, |state| state.is_none()).await?;
    ctx.assert_nothing_left().await
}

async fn a_stream_goes_on_after_a_restart_of_the_store(ctx: Context) -> Result<(), Failed> {
    // What was held may be gone with the store's memory.
    ctx.expect_outside();
    let sync = ctx.coordinator_with(ctx.hasty()?).await?;
    let mut changes = ctx.coordinator().await?.leader("x").changes()?;
    let elected = sync.leader("x").node(Node::new("a")).elect().await?;
    shows(&ctx, &mut changes, led_by("a", elected.token())).await?;
    ctx.server().restart().await?;
    drop(elected);
    let elected = soon(&ctx, "it is elected again", async {
        sync.leader("x").node(Node::new("b")).elect().await
    });
    let elected = elected.await??;
    shows(&ctx, &mut changes, led_by("b", elected.token())).await?;
    elected.resign().await?;
    shows(&ctx, &mut changes, |state| state.is_none()).await?;
    ctx.assert_nothing_left_within(ctx.long()).await
}

/// Nobody says that a leader has died: its time runs out.
async fn a_stream_sees_a_killed_leader_go(ctx: Context) -> Result<(), Failed> {
    let mut changes = ctx.coordinator().await?.leader("x").changes()?;
    let mut leader = ctx.child("lead").with("name", "x").with("node", "killed").start()?;
    leader.expect("waiting").await?;
    leader.expect("held").await?;
    shows(&ctx, &mut changes, |state| state.is_some_and(|seen| seen.node.id == "killed")).await?;
    leader.process().kill()?;
    shows(&ctx, &mut changes, |state| state.is_none()).await?;
    ctx.assert_nothing_left().await
}

async fn a_stream_ends_with_a_shutdown(ctx: Context) -> Result<(), Failed> {
    let sync = ctx.coordinator().await?;
    let (mut waiting, mut unread) = (sync.leader("x").changes()?, sync.leader("x").changes()?);
    shows(&ctx, &mut waiting, |state| state.is_none()).await?;
    let mut ending = Box::pin(waiting.next());
    assert!(timeout(Duration::ZERO, &mut ending).await.is_err(), "it waits for a change");
    sync.shutdown().await?;
    assert_eq!(soon(&ctx, "the stream ends", ending).await?, None);
    let rest = async { while unread.next().await.is_some() {} };
    soon(&ctx, "the other stream ends", rest).await
}

async fn a_foreign_value_reads_as_a_node(ctx: Context) -> Result<(), Failed> {
    let (sync, faults) = ctx.faulty().await?;
    // What is done on the loss would remove the value on some stores.
    faults.always(Verb::End, Fault::Hang);
    let other = ctx.coordinator().await?;
    let (lock, leader) = (sync.lock("x"), sync.leader("x"));
    let mut changes = other.leader("x").changes()?;
    let held = (lock.acquire().await?, leader.elect().await?);
    for key in [lock.key()?, leader.key()?] {
        ctx.tamper(&key, Tamper::Overwrite).await?;
    }
    shows(&ctx, &mut changes, |state| state.is_some_and(|seen| seen.node.id == FOREIGN)).await?;
    for seen in [other.lock("x").holder().await?, other.leader("x").leader().await?] {
        let seen = seen.ok_or("nobody is there")?;
        assert_eq!((seen.node, seen.since), (Node::new(FOREIGN), None));
    }
    drop(held);
    Ok(())
}
