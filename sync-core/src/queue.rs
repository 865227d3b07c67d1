//! First come, first served inside one process: one task at a time talks to the store about a name.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::mutant;
use crate::name::{Kind, Name};

type Key = (Kind, Name);

/// The lines of one coordinator, one for each name in use.
#[derive(Debug, Default)]
pub(crate) struct LocalQueue {
    lines: Mutex<BTreeMap<Key, Arc<Line>>>,
}

#[derive(Debug)]
struct Line {
    turn: Arc<Semaphore>,
    /// Whoever has the turn is giving the name back.
    ending: AtomicBool,
    /// Cancelled when whoever has the turn does not want the name any more.
    gone: Mutex<Option<CancellationToken>>,
    waiting: AtomicUsize,
    /// How many turns there are on it, with or without permit. Changed with the lines locked.
    turns: AtomicUsize,
}

/// The turn to talk to the store about a name. It lasts until what was won has been given back.
#[derive(Debug)]
pub(crate) struct Turn {
    queue: Arc<LocalQueue>,
    key: Key,
    line: Arc<Line>,
    permit: Option<OwnedSemaphorePermit>,
}

impl LocalQueue {
    /// Waits for the turn, in the order of the calls.
    ///
    /// Dropping the future leaves the line.
    pub(crate) async fn enter(self: &Arc<Self>, kind: Kind, name: &Name) -> Turn {
        let mut turn = self.stand(kind, name);
        let waiting = Waiting::of(&turn.line);
        if mutant::on(mutant::NEWEST_FIRST) {
            let place = turn.line.waiting.load(Ordering::Acquire);
            while turn.line.waiting.load(Ordering::Acquire) > place
                || turn.line.turn.available_permits() == 0
            {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        // The semaphore is never closed; without a permit the turn would merely be shared.
        turn.permit = Arc::clone(&turn.line.turn).acquire_owned().await.ok();
        drop(waiting);
        turn.line.begin();
        turn
    }

    /// The turn, if nobody has it.
    pub(crate) fn try_enter(self: &Arc<Self>, kind: Kind, name: &Name) -> Option<Turn> {
        let mut turn = self.stand(kind, name);
        turn.permit = Some(Arc::clone(&turn.line.turn).try_acquire_owned().ok()?);
        turn.line.begin();
        Some(turn)
    }

    /// Whether the one who has the turn is giving the name back already.
    pub(crate) fn is_ending(&self, kind: Kind, name: &Name) -> bool {
        let lines = self.lines();
        lines.get(&(kind, name.clone())).is_some_and(|line| line.ending.load(Ordering::Acquire))
    }

    /// Whether the one who has the turn is giving the name back already, and nobody waits for it.
    pub(crate) fn is_about_to_be_free(&self, kind: Kind, name: &Name) -> bool {
        self.lines()
            .get(&(kind, name.clone()))
            .is_none_or(|line| line.is_ending() && line.waiting.load(Ordering::Acquire) == 0)
    }

    fn stand(self: &Arc<Self>, kind: Kind, name: &Name) -> Turn {
        let key = (kind, name.clone());
        let fresh = || Line {
            turn: Arc::new(Semaphore::new(1)),
            ending: AtomicBool::new(false),
            gone: Mutex::new(None),
            waiting: AtomicUsize::new(0),
            turns: AtomicUsize::new(0),
        };
        let mut lines = self.lines();
        let line = lines.entry(key.clone()).or_insert_with(|| Arc::new(fresh()));
        line.turns.fetch_add(1, Ordering::AcqRel);
        let line = Arc::clone(line);
        drop(lines);
        Turn { queue: Arc::clone(self), key, line, permit: None }
    }

    fn lines(&self) -> std::sync::MutexGuard<'_, BTreeMap<Key, Arc<Line>>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    fn begin(&self) {
        self.ending.store(false, Ordering::Release);
        *self.gone() = None;
    }

    fn is_ending(&self) -> bool {
        let gone = || self.gone().as_ref().is_some_and(CancellationToken::is_cancelled);
        self.ending.load(Ordering::Acquire) || gone()
    }

    fn gone(&self) -> std::sync::MutexGuard<'_, Option<CancellationToken>> {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts one who waits for as long as it lives.
struct Waiting(Arc<Line>);

impl Waiting {
    fn of(line: &Arc<Line>) -> Self {
        line.waiting.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(line))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Turn {
    /// Says that the name is being given back as soon as `gone` is cancelled.
    pub(crate) fn wanted_until(&self, gone: &CancellationToken) {
        *self.line.gone() = Some(gone.clone());
    }

    /// Says that the name is being given back: who only tries may wait for that.
    pub(crate) fn ending(&self) {
        self.line.ending.store(true, Ordering::Release);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut lines = self.queue.lines();
        self.permit = None;
        // The last one: nobody else stands in this line, and nobody can join meanwhile.
        if self.line.turns.fetch_sub(1, Ordering::AcqRel) == 1 {
            lines.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn turns_are_taken_in_order_and_lines_vanish() {
        let queue = Arc::new(LocalQueue::default());
        let name = Name::parse("a").unwrap();
        let first = queue.enter(Kind::Lock, &name).await;
        assert!(queue.try_enter(Kind::Lock, &name).is_none());
        assert!(queue.try_enter(Kind::Leader, &name).is_some());

        let served = Arc::new(Mutex::new(Vec::new()));
        let mut waiting = Vec::new();
        for i in 0..5 {
            let (queue, name, served) = (Arc::clone(&queue), name.clone(), Arc::clone(&served));
            waiting.push(tokio::spawn(async move {
                let _turn = queue.enter(Kind::Lock, &name).await;
                served.lock().unwrap().push(i);
            }));
            tokio::task::yield_now().await;
        }
        waiting.remove(2).abort();
        drop(first);
        for task in waiting {
            task.await.unwrap();
        }
        assert_eq!(*served.lock().unwrap(), [0, 1, 3, 4]);
        assert!(queue.lines().is_empty());
    }

    #[test]
    fn lines_that_are_left_by_two_at_once_vanish_too() {
        let queue = Arc::new(LocalQueue::default());
        for i in 0..2_000 {
            let name = Name::parse(&format!("n{i}")).unwrap();
            let turns = [queue.stand(Kind::Lock, &name), queue.stand(Kind::Lock, &name)];
            let together = Arc::new(std::sync::Barrier::new(turns.len()));
            let leaving: Vec<_> = turns
                .into_iter()
                .map(|turn| {
                    let together = Arc::clone(&together);
                    std::thread::spawn(move || {
                        together.wait();
                        drop(turn);
                    })
                })
                .collect();
            for thread in leaving {
                thread.join().unwrap();
            }
        }
        assert_eq!(queue.lines().len(), 0);
    }

    #[tokio::test]
    async fn a_turn_that_is_ending_is_worth_a_wait_for_the_first_alone() {
        let queue = Arc::new(LocalQueue::default());
        let name = Name::parse("a").unwrap();
        let turn = queue.enter(Kind::Lock, &name).await;
        assert!(!queue.is_about_to_be_free(Kind::Lock, &name));
        turn.ending();
        assert!(queue.is_about_to_be_free(Kind::Lock, &name));
        let (other, name_too) = (Arc::clone(&queue), name.clone());
        let waiter = tokio::spawn(async move { other.enter(Kind::Lock, &name_too).await });
        tokio::task::yield_now().await;
        assert!(!queue.is_about_to_be_free(Kind::Lock, &name));
        drop(turn);

        let turn = waiter.await.unwrap();
        let gone = CancellationToken::new();
        turn.wanted_until(&gone);
        assert!(!queue.is_about_to_be_free(Kind::Lock, &name));
        gone.cancel();
        assert!(queue.is_about_to_be_free(Kind::Lock, &name));
    }
}
