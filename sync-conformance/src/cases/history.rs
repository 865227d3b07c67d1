//! What the histories stand on: the observer is told before anybody can act on it.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use sync_core::{Cause, Coordinator, Environment, Event, Hold, Observer, Options, What};

use tokio::sync::oneshot;
use tokio::time::sleep;

use super::wants::{BOTH, Want};
use crate::context::Context;
use crate::failed::Failed;
use crate::suite::{Case, runtime};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new(the_observer_is_told_before_anything_is_visible),
        Case::new(who_was_granted_nothing_is_not_told_of),
    ]
}

/// An observer that holds everybody up until it is allowed to go on.
#[derive(Debug)]
struct Gate {
    events: Mutex<Sender<Event>>,
    go_on: Mutex<Receiver<()>>,
}

impl Observer for Gate {
    fn observe(&self, event: &Event) {
        let told = self.events.lock().unwrap_or_else(PoisonError::into_inner).send(event.clone());
        if told.is_ok() {
            // The case is over when it does not allow it any more.
            let _ = self.go_on.lock().unwrap_or_else(PoisonError::into_inner).recv();
        }
    }
}

/// How long something that must not happen is given to happen.
const A_WHILE: Duration = Duration::from_millis(100);

async fn the_observer_is_told_before_anything_is_visible(ctx: Context) -> Result<(), Failed> {
    let other = ctx.coordinator().await?;
    for kind in BOTH {
        let (events, told) = channel();
        let (going, go_on) = channel();
        let gate = Gate { events: Mutex::new(events), go_on: Mutex::new(go_on) };
        let options = Options::new().namespace(ctx.namespace()).ttl(ctx.ttl());
        let options = options.environment(Environment::default().observer(Arc::new(gate)));
        let (visible, seen) = channel::<Hold>();
        let (release, released) = oneshot::channel();
        // On threads of its own, since it is held up there.
        let holder = thread::spawn({
            let ctx = ctx.clone();
            move || -> Result<(), Failed> {
                runtime("held-up")?.block_on(async move {
                    let backend = ctx.store().connect(&ctx.server().url(), &options).await?;
                    let sync = Coordinator::new(backend, &options)?;
                    let taken = Want::new(&sync, kind, "x").take().await?;
                    let hold: &Hold = &taken;
                    visible.send(hold.clone())?;
                    released.await?;
                    taken.give_back().await?;
                    Ok(())
                })
            }
        });
        let limit = ctx.long();
        let watch = Watch { told, going, limit };
        let watching = tokio::task::spawn_blocking(move || watch.up_to_the_release(&seen, release));
        let (watch, hold) = watching.await??;

        // It is held up in the middle of the release: nobody else can have the name yet.
        assert!(hold.revocation().is_none());
        let other = Want::new(&other, kind, "x");
        assert!(other.try_take().await?.is_none());
        watch.going.send(())?;
        assert_eq!(hold.revoked().await.cause, Cause::Released);
        let next = other.take().await?;
        assert!(next.token() > hold.token());
        next.give_back().await?;
        holder.join().map_err(|_| "the holder panicked")??;
        assert!(watch.told.try_recv().is_err(), "more was told than happened");
    }
    ctx.assert_nothing_left().await
}

/// The other side of a [`Gate`].
struct Watch {
    told: Receiver<Event>,
    going: Sender<()>,
    limit: Duration,
}

impl Watch {
    /// Goes through a grant and an extension up to the release, of which it has been told then.
    fn up_to_the_release(
        self,
        seen: &Receiver<Hold>,
        release: oneshot::Sender<()>,
    ) -> Result<(Self, Hold), Failed> {
        let granted = self.told.recv_timeout(self.limit)?;
        let What::Granted { deadline } = granted.what else { return Err("no grant")? };
        assert!(seen.recv_timeout(A_WHILE).is_err(), "the grant was visible before it was told");
        self.going.send(())?;
        let hold = seen.recv_timeout(self.limit)?;
        assert_eq!((hold.token(), hold.deadline()), (granted.token, deadline));

        let extended = self.told.recv_timeout(self.limit)?;
        let What::Extended { deadline: later } = extended.what else { return Err("no extension")? };
        thread::sleep(A_WHILE);
        assert_eq!(hold.deadline(), deadline, "the extension was visible before it was told");
        assert!(later > deadline);
        let _ = release.send(());
        loop {
            self.going.send(())?;
            match self.told.recv_timeout(self.limit)?.what {
                What::Extended { .. } => {}
                What::Revoked { cause: Cause::Released } => return Ok((self, hold)),
                other => return Err(format!("told of {other:?} instead of the release"))?,
            }
        }
    }
}

async fn who_was_granted_nothing_is_not_told_of(ctx: Context) -> Result<(), Failed> {
    let (holder, sync) = (ctx.coordinator().await?, ctx.coordinator().await?);
    for kind in BOTH {
        let held = Want::new(&holder, kind, "x").take().await?;
        let want = Want::new(&sync, kind, "x");
        assert!(want.try_take().await?.is_none());
        assert!(want.clone().wait(A_WHILE).take().await.is_err());
        let leaving = want.taking();
        sleep(A_WHILE).await;
        leaving.abort();
        assert!(leaving.await.is_err());
        held.give_back().await?;
    }
    sync.shutdown().await?;
    let report = ctx.judge()?;
    assert_eq!(report.grants, 2);
    assert_eq!(report.revocations.values().sum::<usize>(), 2);
    ctx.assert_nothing_left().await
}
