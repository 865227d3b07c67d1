//! What happens when one member of a store that has several dies, stops, or is cut off: nothing,
//! to those who hold and those who wait, for the others live.

use std::time::Duration;

use sync_core::{Cause, Coordinator, Error, ErrorKind, Moment};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::common::{now, soon, told};
use super::wants::{BOTH, Taken, Want};
use crate::context::{Context, Route};
use crate::failed::Failed;
use crate::proxy::{Flow, Proxy, Toward};
use crate::suite::{Case, Need};

pub(crate) fn cases() -> Vec<Case> {
    let struck = |case: Case| case.needs(&[Need::Cluster, Need::KillServer]);
    let wire = |case: Case| case.needs(&[Need::Cluster, Need::Proxy]);
    vec![
        struck(Case::new(a_leading_member_is_killed_while_a_lock_is_held)),
        struck(Case::new(a_leading_member_is_killed_while_a_lock_is_handed_over)),
        struck(Case::new(a_leading_member_stops_until_another_leads)),
        struck(Case::new(a_leading_member_stops_for_longer_than_a_ttl)),
        struck(Case::new(a_following_member_stops_for_longer_than_a_ttl)),
        struck(Case::new(every_member_is_restarted_in_turn)),
        struck(Case::new(most_members_die_and_come_back)),
        wire(Case::new(a_member_that_refuses_is_left_before_the_deadline)),
        wire(Case::new(a_member_that_falls_silent_is_left_before_the_deadline)),
        wire(Case::new(members_that_are_down_at_the_start_are_passed_over)),
        wire(Case::new(members_that_are_silent_at_the_start_are_passed_over)),
    ]
}

/// What is held and what waits for it: a lock and an election, each by clients of their own.
struct Scene {
    route: Route,
    holder: Coordinator,
    held: Vec<Taken>,
    waiting: Vec<JoinHandle<Result<Taken, Error>>>,
}

impl Scene {
    /// Whatever a client thinks of where to begin: the member at this place is the only one that
    /// it finds at first. The others are there from then on.
    async fn set(ctx: &Context, member: usize, ttl: Duration) -> Result<Self, Failed> {
        let route = ctx.route().await?;
        all_but(member, &route).for_each(Proxy::cut);
        let holder = ctx.coordinator_at(route.url(), ctx.options()?.ttl(ttl)).await?;
        let waiter = ctx.coordinator_at(route.url(), ctx.options()?.ttl(ttl)).await?;
        let (mut held, mut waiting) = (Vec::new(), Vec::new());
        for kind in BOTH {
            held.push(Want::new(&holder, kind, "x").take().await?);
            waiting.push(Want::new(&waiter, kind, "x").taking());
        }
        // In line by now.
        sleep(Duration::from_millis(300)).await;
        route.heal();
        Ok(Self { route, holder, held, waiting })
    }

    fn first_deadline(&self) -> Option<Moment> {
        self.held.iter().map(|held| held.deadline()).min()
    }

    fn assert_held(&self) {
        for held in &self.held {
            assert_eq!(held.revocation(), None);
            assert!(held.is_valid());
        }
        assert!(self.waiting.iter().all(|waiting| !waiting.is_finished()));
    }

    /// Waits until everything would be lost that was not renewed since it was taken, and longer
    /// than any store keeps it. All of it is still held.
    async fn outlives_its_ttl(&self, ctx: &Context) -> Result<(), Failed> {
        let first = self.first_deadline().ok_or("nothing is held")?;
        let over = || async { Ok(now() > first + ctx.ttl() / 4) };
        ctx.eventually(ctx.long() * 2, over).await?;
        self.assert_held();
        Ok(())
    }

    /// All of it has been renewed once.
    async fn is_renewed(&self, ctx: &Context) -> Result<(), Failed> {
        let before: Vec<Moment> = self.held.iter().map(|held| held.deadline()).collect();
        let renewed = || async {
            let mut both = self.held.iter().zip(&before);
            Ok(both.all(|(held, before)| held.deadline() > *before))
        };
        ctx.eventually(ctx.long(), renewed).await?;
        self.assert_held();
        Ok(())
    }

    /// Everything is given back, and everybody who waits is served.
    async fn hand_over(self, ctx: &Context) -> Result<(), Failed> {
        let Self { route, holder, held, waiting } = self;
        for (held, waiting) in held.into_iter().zip(waiting) {
            let before = held.token();
            soon(ctx, "it is given back", held.give_back()).await??;
            let next = soon(ctx, "who waits gets it", waiting).await???;
            assert!(next.token() > before);
            next.give_back().await?;
        }
        ctx.assert_nothing_left().await?;
        drop((route, holder));
        Ok(())
    }
}

/// The ways to all other members.
fn all_but(member: usize, route: &Route) -> impl Iterator<Item = &Proxy> {
    let all = route.proxies().iter().enumerate();
    all.filter(move |(index, _)| *index != member).map(|(_, proxy)| proxy)
}

/// Which member leads.
async fn leading(ctx: &Context) -> Result<usize, Failed> {
    let url = ctx.server().url();
    let leader = async {
        loop {
            match ctx.store().leader(&url).await {
                Err(failed) if !failed.is_skipped() => sleep(Duration::from_millis(50)).await,
                found => return found,
            }
        }
    };
    soon(ctx, "a member leads", leader).await?
}

async fn a_leading_member_is_killed_while_a_lock_is_held(ctx: Context) -> Result<(), Failed> {
    let leader = leading(&ctx).await?;
    let scene = Scene::set(&ctx, leader, ctx.ttl() * 5).await?;
    let leader = &ctx.server().members()[leader];
    leader.kill()?;
    scene.is_renewed(&ctx).await?;
    // The death of one is no reason for anybody to be kept out, or let in.
    let other = ctx.coordinator().await?;
    assert!(other.lock("x").try_acquire().await?.is_none());
    let free = soon(&ctx, "a free name is taken", other.lock("free").acquire()).await??;
    free.release().await?;
    scene.outlives_its_ttl(&ctx).await?;
    leader.restart().await?;
    scene.hand_over(&ctx).await
}

async fn a_leading_member_is_killed_while_a_lock_is_handed_over(
    ctx: Context,
) -> Result<(), Failed> {
    let leader = leading(&ctx).await?;
    let scene = Scene::set(&ctx, leader, ctx.ttl() * 5).await?;
    ctx.server().members()[leader].kill()?;
    scene.hand_over(&ctx).await
}

/// Once it goes on it must take back nothing that the others have granted or renewed meanwhile.
async fn a_leading_member_stops_until_another_leads(ctx: Context) -> Result<(), Failed> {
    let first = leading(&ctx).await?;
    let scene = Scene::set(&ctx, first, ctx.ttl() * 5).await?;
    let member = &ctx.server().members()[first];
    member.stop()?;
    let another_leads = || async { Ok(leading(&ctx).await? != first) };
    ctx.eventually(ctx.long(), another_leads).await?;
    scene.is_renewed(&ctx).await?;
    member.resume()?;
    scene.outlives_its_ttl(&ctx).await?;
    scene.hand_over(&ctx).await
}

/// It goes on with a head full of what has run out in the meantime, and some stores believe it
/// for a moment: then those who hold are told.
async fn a_leading_member_stops_for_longer_than_a_ttl(ctx: Context) -> Result<(), Failed> {
    let leader = leading(&ctx).await?;
    let scene = Scene::set(&ctx, leader, ctx.ttl() * 4).await?;
    let leader = &ctx.server().members()[leader];
    leader.stop()?;
    scene.outlives_its_ttl(&ctx).await?;
    ctx.expect_outside();
    leader.resume()?;
    sleep(ctx.ttl()).await;
    let Scene { route: _route, holder: _holder, held, waiting } = scene;
    for (held, waiting) in held.into_iter().zip(waiting) {
        let before = held.token();
        match held.revocation().map(|lost| lost.cause) {
            None => held.give_back().await?,
            // Whether it was the session or the key alone is asked, but not for long.
            Some(cause) => assert!(matches!(cause, Cause::Session | Cause::Key), "{cause:?}"),
        }
        let next = soon(&ctx, "who waits gets it", waiting).await???;
        assert!(next.token() > before);
        next.give_back().await?;
    }
    ctx.assert_nothing_left().await
}

async fn a_following_member_stops_for_longer_than_a_ttl(ctx: Context) -> Result<(), Failed> {
    let member = (leading(&ctx).await? + 1) % ctx.server().members().len();
    let scene = Scene::set(&ctx, member, ctx.ttl() * 2).await?;
    let member = &ctx.server().members()[member];
    member.stop()?;
    scene.outlives_its_ttl(&ctx).await?;
    scene.hand_over(&ctx).await?;
    member.resume()?;
    for sync in [ctx.coordinator().await?, ctx.coordinator().await?] {
        let again = soon(&ctx, "it is taken again", sync.lock("x").acquire()).await??;
        again.release().await?;
    }
    ctx.assert_nothing_left().await
}

/// As for an upgrade.
async fn every_member_is_restarted_in_turn(ctx: Context) -> Result<(), Failed> {
    let scene = Scene::set(&ctx, 0, ctx.ttl() * 5).await?;
    for member in ctx.server().members() {
        member.restart().await?;
        scene.is_renewed(&ctx).await?;
    }
    scene.hand_over(&ctx).await
}

/// One member alone may answer, but may decide nothing.
async fn most_members_die_and_come_back(ctx: Context) -> Result<(), Failed> {
    let members = ctx.server().members();
    let dying = &members[..members.len().div_ceil(2)];
    let scene = Scene::set(&ctx, dying.len(), ctx.ttl()).await?;
    let Scene { route: _route, holder, held, waiting } = scene;
    for member in dying {
        member.kill()?;
    }
    for held in &held {
        assert_eq!(told(&ctx, held).await?, Cause::Deadline);
    }
    let asked = Want::new(&holder, BOTH[0], "y").wait(ctx.ttl()).take().await;
    let unanswered = asked.err().ok_or("a minority grants")?;
    let kind = unanswered.kind();
    assert!(matches!(kind, ErrorKind::Unknown | ErrorKind::Unreachable), "{unanswered}");
    assert!(waiting.iter().all(|waiting| !waiting.is_finished()));
    // The first of them is the one that was missing.
    for member in dying {
        member.restart().await?;
    }
    for (held, waiting) in held.into_iter().zip(waiting) {
        let before = held.token();
        let lost = held.give_back().await.err().ok_or("it gave back what it had lost")?;
        assert_eq!(lost.kind(), ErrorKind::Lost, "{lost}");
        let next = soon(&ctx, "who waits gets it", waiting).await???;
        assert!(next.token() > before);
        next.give_back().await?;
    }
    ctx.assert_nothing_left_within(ctx.long()).await
}

/// How a member goes out of a client's reach.
type BreakOff = fn(&Proxy);

fn falls_silent(proxy: &Proxy) {
    proxy.set(Toward::Server, Flow::Swallow);
    proxy.set(Toward::Client, Flow::Swallow);
}

async fn a_member_that_refuses_is_left_before_the_deadline(ctx: Context) -> Result<(), Failed> {
    is_left_before_the_deadline(ctx, Proxy::cut).await
}

async fn a_member_that_falls_silent_is_left_before_the_deadline(
    ctx: Context,
) -> Result<(), Failed> {
    is_left_before_the_deadline(ctx, falls_silent).await
}

async fn is_left_before_the_deadline(ctx: Context, break_off: BreakOff) -> Result<(), Failed> {
    let scene = Scene::set(&ctx, 0, ctx.ttl() * 2).await?;
    break_off(&scene.route.proxies()[0]);
    scene.outlives_its_ttl(&ctx).await?;
    // It would have told those who wait.
    scene.hand_over(&ctx).await
}

async fn members_that_are_down_at_the_start_are_passed_over(ctx: Context) -> Result<(), Failed> {
    are_passed_over_at_the_start(ctx, Proxy::cut).await
}

async fn members_that_are_silent_at_the_start_are_passed_over(ctx: Context) -> Result<(), Failed> {
    are_passed_over_at_the_start(ctx, falls_silent).await
}

/// Whichever member is the only one that can be reached.
async fn are_passed_over_at_the_start(ctx: Context, break_off: BreakOff) -> Result<(), Failed> {
    for member in 0..ctx.server().addresses().len() {
        let route = ctx.route().await?;
        all_but(member, &route).for_each(break_off);
        let sync = ctx.coordinator_at(route.url(), ctx.options()?).await?;
        let guard = soon(&ctx, "a lock is taken", sync.lock("x").acquire()).await??;
        guard.release().await?;
    }
    ctx.assert_nothing_left().await
}
