use super::*;
use sync_core::backend::Nonce;
use sync_core::{HeldClock, Namespace, memory};

const LONG: Duration = Duration::from_secs(20);

struct World {
    clock: Arc<HeldClock>,
    store: memory::Store,
    faults: Faults,
    backend: Arc<Faulty>,
    session: Session,
}

impl World {
    async fn new() -> Self {
        let clock = Arc::new(HeldClock::new());
        let store = memory::Store::with_clock(clock.clone());
        let faults = Faults::new();
        let inner = Arc::new(store.backend(&Namespace::default()));
        let backend = Arc::new(Faulty::new(inner, clock.clone(), &faults));
        let session = backend.open(LONG).await.unwrap();
        Self { clock, store, faults, backend, session }
    }

    fn claim(name: &str) -> Claim {
        let nonce = Nonce::from_bytes([7; 16]);
        Claim::new(Kind::Lock, Name::parse(name).unwrap(), nonce, Arc::from(*b"{}"), true)
    }

    async fn try_claim(&self) -> Result<Attempt, StoreError> {
        self.backend.try_claim(&self.session, &Self::claim("a"), None, false).await
    }

    /// The same under way in a task.
    fn trying(&self) -> tokio::task::JoinHandle<Result<Attempt, StoreError>> {
        let (backend, session) = (Arc::clone(&self.backend), self.session.clone());
        tokio::spawn(
            async move { backend.try_claim(&session, &Self::claim("a"), None, false).await },
        )
    }

    fn is_held(&self) -> bool {
        !self.store.keys().is_empty()
    }
}

#[tokio::test]
async fn plans_are_used_up_and_then_the_rule_holds() {
    let world = World::new().await;
    world.faults.always(Verb::TryClaim, Fault::Unsent);
    world.faults.next(Verb::TryClaim, Fault::Refuse(ErrorKind::Denied));
    world.faults.next(Verb::TryClaim, Fault::LoseRequest);
    let refused = world.try_claim().await.unwrap_err();
    assert_eq!((refused.kind(), refused.settled()), (ErrorKind::Denied, true));
    assert!(!world.try_claim().await.unwrap_err().settled());
    for _ in 0..2 {
        let unsent = world.try_claim().await.unwrap_err();
        assert_eq!((unsent.kind(), unsent.settled()), (ErrorKind::Unreachable, true));
    }
    assert!(!world.is_held());
    world.faults.heal();
    assert!(matches!(world.try_claim().await, Ok(Attempt::Held(_))));
    assert_eq!(world.faults.calls(Verb::TryClaim), 5);
    assert_eq!(world.faults.calls(Verb::Open), 1);
}

#[tokio::test]
async fn a_call_is_under_way_until_it_is_answered_or_dropped() {
    let world = World::new().await;
    world.faults.under_way(Verb::TryClaim, 0).await;
    world.faults.always(Verb::TryClaim, Fault::Hang);
    let (dropped, answered) = (world.trying(), world.trying());
    world.faults.under_way(Verb::TryClaim, 2).await;
    dropped.abort();
    world.faults.under_way(Verb::TryClaim, 1).await;
    world.faults.release();
    answered.await.unwrap().unwrap();
    world.faults.under_way(Verb::TryClaim, 0).await;
}

#[tokio::test]
async fn a_lost_answer_leaves_its_request_applied() {
    let world = World::new().await;
    world.faults.next(Verb::TryClaim, Fault::LoseAnswer);
    assert!(!world.try_claim().await.unwrap_err().settled());
    assert!(world.is_held());
}

#[tokio::test]
async fn a_request_that_comes_twice_is_answered_once() {
    let world = World::new().await;
    world.faults.next(Verb::TryClaim, Fault::Twice);
    let Ok(Attempt::Held(grant)) = world.try_claim().await else { panic!("it is not held") };
    world.faults.next(Verb::End, Fault::Twice);
    let ended = world.backend.end(&world.session, &World::claim("a"), Some(&grant), false).await;
    assert_eq!(ended.unwrap(), Ended::Released);
    assert!(!world.is_held());
    assert_eq!((world.faults.calls(Verb::TryClaim), world.faults.calls(Verb::End)), (1, 1));
}

#[tokio::test]
async fn a_call_that_hangs_is_taken_back_by_who_drops_it() {
    let world = World::new().await;
    world.faults.always(Verb::TryClaim, Fault::Hang);
    let (dropped, kept) = (world.trying(), world.trying());
    world.faults.called(Verb::TryClaim, 2).await;
    dropped.abort();
    assert!(dropped.await.unwrap_err().is_cancelled());
    assert!(!world.is_held());
    world.faults.release();
    assert!(matches!(kept.await.unwrap(), Ok(Attempt::Held(_))));
}

#[tokio::test]
async fn a_late_request_is_applied_though_its_caller_has_gone() {
    let world = World::new().await;
    world.faults.next(Verb::TryClaim, Fault::Late);
    let trying = world.trying();
    world.faults.called(Verb::TryClaim, 1).await;
    trying.abort();
    assert!(trying.await.unwrap_err().is_cancelled());
    assert!(!world.is_held());
    world.faults.release();
    world.faults.landed().await;
    assert!(world.is_held());
}

#[tokio::test]
async fn a_late_answer_comes_after_its_request_was_applied() {
    let world = World::new().await;
    world.faults.next(Verb::TryClaim, Fault::LateAnswer);
    let trying = world.trying();
    while !world.is_held() {
        tokio::task::yield_now().await;
    }
    assert!(!trying.is_finished());
    world.faults.release();
    assert!(matches!(trying.await.unwrap(), Ok(Attempt::Held(_))));
}

#[tokio::test]
async fn a_delay_runs_by_the_clock_that_was_given() {
    let world = World::new().await;
    world.faults.next(Verb::TryClaim, Fault::Delay(Duration::from_secs(5)));
    let trying = world.trying();
    world.faults.called(Verb::TryClaim, 1).await;
    world.clock.advance(Duration::from_secs(4));
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!trying.is_finished());
    world.clock.advance(Duration::from_secs(1));
    assert!(matches!(trying.await.unwrap(), Ok(Attempt::Held(_))));
}

#[tokio::test]
async fn a_slow_call_takes_its_time_before_and_after_it_is_applied() {
    let world = World::new().await;
    world.faults.next(Verb::TryClaim, Fault::Slow(Duration::from_secs(5)));
    let trying = world.trying();
    world.faults.called(Verb::TryClaim, 1).await;
    assert!(!world.is_held());
    world.clock.advance(Duration::from_secs(5));
    while !world.is_held() {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.faults.done(Verb::TryClaim), 0);
    world.clock.advance(Duration::from_secs(5));
    world.faults.did(Verb::TryClaim, 1).await;
    assert!(matches!(trying.await.unwrap(), Ok(Attempt::Held(_))));
}

#[tokio::test]
async fn an_end_that_abandons_is_counted() {
    let world = World::new().await;
    let claim = World::claim("a");
    for unanswered in [false, true, true] {
        world.backend.end(&world.session, &claim, None, unanswered).await.unwrap();
    }
    assert_eq!((world.faults.abandons(), world.faults.done(Verb::End)), (2, 3));
}

#[tokio::test]
async fn a_wait_never_resolves_where_something_is_lost_and_does_where_it_is_refused() {
    let world = World::new().await;
    let (claim, ticket) = (World::claim("a"), Ticket::default());
    world.faults.next(Verb::Wait, Fault::Unsent);
    world.backend.wait(&world.session, &claim, &ticket).await;
    world.faults.next(Verb::Wait, Fault::LoseRequest);
    let wait = world.backend.wait(&world.session, &claim, &ticket);
    assert!(tokio::time::timeout(Duration::from_millis(50), wait).await.is_err());
}

#[tokio::test]
async fn losses_reach_every_session() {
    let world = World::new().await;
    let other = world.backend.open(LONG).await.unwrap();
    let mut streams = [world.backend.losses(&world.session), world.backend.losses(&other)];
    world.faults.lose(Loss::Session);
    for stream in &mut streams {
        assert_eq!(stream.next().await, Some(Loss::Session));
    }
    world.backend.close(&other).await.unwrap();
}
