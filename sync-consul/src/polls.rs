//! Following keys and sessions by long polls, at most 64 at a time.
//!
//! Whoever follows the same thing shares its poll. A state is a hint of what stands there by now: it
//! may be late, never for good. What is beyond the limit shares one poll, over the namespace: it
//! tells that something has changed, and then all of these keys are read.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sync_core::{Environment, StoreError};
use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::AbortHandle;

use crate::api::{Api, read_key};
use crate::http::{Ask, Lane};
use crate::pair::Pair;
use crate::shared::Shared;

/// Long polls by what they are for; with the one over the namespace they are 64.
const WAITS: usize = 31;
const HELD: usize = 16;
const SESSIONS: usize = 16;

/// How long a read without waiting may take.
const LOOK_LIMIT: Duration = Duration::from_secs(5);

/// By how much a long poll may be late: the agent adds a sixteenth of the time to wait besides.
const SLACK: Duration = Duration::from_secs(3);

/// The poll of a key that is not there wakes for its siblings too: it is made again no faster.
pub(crate) const PACE: Duration = Duration::from_millis(100);

/// The pauses after failures double up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What can be followed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Subject {
    Key(String),
    Session(String),
}

/// What it is followed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// Somebody waits for it to go.
    Turn,
    /// Somebody waits for a change.
    Wait,
    /// It is held, and nobody else should change it.
    Held,
    /// It is a session.
    Session,
}

/// What is known of what is followed.
#[derive(Debug, Clone)]
pub(crate) enum State {
    /// Nothing so far.
    Unknown,
    /// It could not be read lately.
    Failed(Arc<StoreError>),
    /// What stands there, if anything.
    Is(Option<Arc<Pair>>),
}

/// All that one coordinator follows.
#[derive(Debug)]
pub(crate) struct Polls {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) api: Api,
    pub(crate) environment: Environment,
    /// Where the polls run: whoever follows something may be on one that ends sooner.
    runtime: Handle,
    /// How long a poll waits for a change.
    pub(crate) wait: Duration,
    /// What all keys of the namespace begin with.
    pub(crate) prefix: String,
    table: Mutex<Table>,
    waits: Arc<Semaphore>,
    held: Arc<Semaphore>,
    sessions: Arc<Semaphore>,
    /// Something new is followed by the shared poll.
    pub(crate) joined: Arc<Notify>,
}

#[derive(Default)]
struct Table {
    entries: BTreeMap<Subject, Entry>,
    /// The task of the shared poll, while it has something to do.
    shared: Option<AbortHandle>,
}

struct Entry {
    states: watch::Sender<State>,
    /// Its own poll; without one it is among those that share.
    task: Option<AbortHandle>,
    why: Why,
}

impl Polls {
    pub(crate) fn new(
        api: Api,
        environment: Environment,
        runtime: Handle,
        wait: Duration,
        prefix: String,
    ) -> Self {
        let inner = Inner {
            api,
            environment,
            runtime,
            wait,
            prefix,
            table: Mutex::default(),
            waits: Arc::new(Semaphore::new(WAITS)),
            held: Arc::new(Semaphore::new(HELD)),
            sessions: Arc::new(Semaphore::new(SESSIONS)),
            joined: Arc::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Follows something until the value is dropped. Sessions beyond the limit are not followed.
    pub(crate) fn follow(&self, subject: Subject, why: Why) -> Option<Following> {
        self.follow_from(Index::default(), subject, why)
    }

    /// The same for a key that was seen as it stood at `index`, with its next change at first.
    pub(crate) fn follow_seen(&self, key: String, index: u64) -> Option<Following> {
        self.follow_from(Index::at(index), Subject::Key(key), Why::Turn)
    }

    fn follow_from(&self, index: Index, subject: Subject, why: Why) -> Option<Following> {
        let inner = &self.inner;
        let mut table = inner.table();
        if let Some(entry) = table.entries.get_mut(&subject) {
            if why != entry.why {
                let rarely_read = entry.why == Why::Held && entry.task.is_none();
                // Told of everything, as the one who needs the most.
                entry.why = Why::Wait;
                if rarely_read {
                    entry.states.send_replace(State::Unknown);
                    inner.joined.notify_one();
                }
            }
            return Some(Following::new(entry.states.subscribe()));
        }
        let permits = match why {
            Why::Turn | Why::Wait => &inner.waits,
            Why::Held => &inner.held,
            Why::Session => &inner.sessions,
        };
        let (states, follower) = watch::channel(State::Unknown);
        let task = match Arc::clone(permits).try_acquire_owned() {
            Ok(permit) => {
                let poll = Poll {
                    inner: Arc::downgrade(inner),
                    api: inner.api.clone(),
                    environment: inner.environment.clone(),
                    wait: inner.wait,
                    subject: subject.clone(),
                    why,
                    states: states.clone(),
                };
                Some(inner.runtime.spawn(poll.run(index, permit)).abort_handle())
            }
            Err(_) if why == Why::Session => return None,
            Err(_) => None,
        };
        if task.is_none() {
            if table.shared.as_ref().is_none_or(AbortHandle::is_finished) {
                let shared = Shared::new(inner);
                table.shared = Some(inner.runtime.spawn(shared.run()).abort_handle());
            }
            inner.joined.notify_one();
        }
        table.entries.insert(subject, Entry { states, task, why });
        Some(Following::new(follower))
    }
}

impl Inner {
    /// The keys that share a poll and are still followed, with those who are to be told. `None` if
    /// there are none and the task may end: it is then taken to have ended.
    pub(crate) fn sharing(
        &self,
        may_end: bool,
    ) -> Option<Vec<(String, Why, watch::Sender<State>)>> {
        let mut table = self.table();
        table.entries.retain(|_, entry| entry.task.is_some() || entry.states.receiver_count() > 0);
        let sharing: Vec<_> = table
            .entries
            .iter()
            .filter(|(_, entry)| entry.task.is_none())
            .filter_map(|(subject, entry)| match subject {
                Subject::Key(key) => Some((key.clone(), entry.why, entry.states.clone())),
                Subject::Session(_) => None,
            })
            .collect();
        if sharing.is_empty() && may_end {
            table.shared = None;
            return None;
        }
        Some(sharing)
    }

    /// Forgets what nobody follows any more. Whether it was forgotten.
    fn forget(&self, subject: &Subject) -> bool {
        let mut table = self.table();
        let followed = |entry: &Entry| entry.states.receiver_count() > 0;
        if table.entries.get(subject).is_some_and(followed) {
            return false;
        }
        table.entries.remove(subject);
        true
    }

    /// Forgets what has gone, if all who follow it wait for just that: nobody follows it any more
    /// once they are told. Whether it was forgotten.
    fn is_over(&self, subject: &Subject) -> bool {
        let mut table = self.table();
        let over = table.entries.get(subject).is_none_or(|entry| entry.why == Why::Turn);
        if over {
            table.entries.remove(subject);
        }
        over
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let table = self.table.get_mut().unwrap_or_else(PoisonError::into_inner);
        let polls = table.entries.values().filter_map(|entry| entry.task.as_ref());
        for task in polls.chain(table.shared.as_ref()) {
            task.abort();
        }
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Polls").field("wait", &self.wait).finish_non_exhaustive()
    }
}

/// What somebody follows.
#[derive(Debug)]
pub(crate) struct Following {
    states: watch::Receiver<State>,
}

impl Following {
    fn new(mut states: watch::Receiver<State>) -> Self {
        // What is known already is news to this one.
        states.mark_changed();
        Self { states }
    }

    /// The state at first, then the next that was read. Some may be left out, the last may not.
    pub(crate) async fn next(&mut self) -> State {
        loop {
            if self.states.changed().await.is_err() {
                // The backend has gone.
                return std::future::pending().await;
            }
            match self.states.borrow_and_update().clone() {
                State::Unknown => {}
                state => return state,
            }
        }
    }
}

/// One poll of its own.
struct Poll {
    inner: std::sync::Weak<Inner>,
    api: Api,
    environment: Environment,
    wait: Duration,
    subject: Subject,
    /// What it was followed for at first.
    why: Why,
    states: watch::Sender<State>,
}

impl Poll {
    async fn run(self, mut index: Index, _permit: OwnedSemaphorePermit) {
        let clock = &*self.environment.clock;
        let mut made = None;
        loop {
            // Not while it is under way: the agent goes on with a poll that was broken off, and keeps
            // its connection for as long.
            if self.inner.upgrade().is_none_or(|inner| inner.forget(&self.subject)) {
                return;
            }
            let armed = clock.now();
            let blocking = index.query(self.environment.jitter(self.wait));
            let blocks = blocking.is_some();
            let pause = match self.look(blocking).await {
                Ok((state, told)) => {
                    let gone = state.is_none();
                    let before =
                        std::mem::replace(&mut made, state.as_ref().map(|pair| pair.create_index));
                    let over = gone
                        && self.inner.upgrade().is_none_or(|inner| inner.is_over(&self.subject));
                    self.states.send_replace(State::Is(state.map(Arc::new)));
                    if over {
                        return;
                    }
                    let pause = self.environment.jitter(index.told(told));
                    // Whoever waits for a turn wants to know at once how it goes on if what stood
                    // there has gone and stands there anew.
                    let news = self.why == Why::Turn && made != before;
                    if blocks && !news { pause.max(PACE) } else { pause }
                }
                Err(error) => {
                    self.states.send_replace(State::Failed(Arc::new(error)));
                    self.environment.jitter(index.failed())
                }
            };
            if !pause.is_zero() {
                clock.sleep_until(armed + pause).await;
            }
        }
    }

    async fn look(
        &self,
        blocking: Option<(String, Duration)>,
    ) -> Result<(Option<Pair>, Option<u64>), StoreError> {
        // Whoever waits for a turn is only told when to try. Where a consistent read is to begin, or
        // wakes, the leader first writes what it has to write to its log: that is just then, while a
        // name is handed over, another's place in the line.
        let mode = if self.why == Why::Turn { "" } else { "consistent" };
        let (query, limit) = question(mode, blocking);
        match &self.subject {
            Subject::Key(key) => {
                let path = format!("/v1/kv/{key}");
                let ask = Ask::get(&path, &query).on(Lane::Polls).within(limit);
                let (head, pair) = read_key(&self.api.http, ask, key).await?;
                match head.status {
                    200 | 404 => Ok((pair, head.index)),
                    _ => Err(head.error()),
                }
            }
            Subject::Session(id) => {
                let path = format!("/v1/session/info/{id}");
                let mut body = Vec::new();
                let ask = Ask::get(&path, &query).on(Lane::Polls).within(limit);
                let head = self
                    .api
                    .http
                    .send(ask, &mut |piece| {
                        body.extend_from_slice(piece);
                        body.len() < 64 * 1024
                    })
                    .await?;
                match head.status {
                    200 => {
                        let there = body.windows(id.len()).any(|part| part == id.as_bytes());
                        Ok((there.then(Pair::default), head.index))
                    }
                    _ => Err(head.error()),
                }
            }
        }
    }
}

/// The query of a read that may block, and how long it may take.
pub(crate) fn question(query: &str, blocking: Option<(String, Duration)>) -> (String, Duration) {
    match blocking {
        Some((index, wait)) => (format!("{query}&{index}"), wait + wait / 16 + SLACK),
        None => (query.to_owned(), LOOK_LIMIT),
    }
}

/// The index from which a blocking query goes on, by the rules of Consul's documentation.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Index {
    /// `None`: read without blocking.
    last: Option<u64>,
    failures: u32,
}

impl Index {
    /// What stood there was read already, as it was at this index.
    fn at(index: u64) -> Self {
        Self { last: Some(index).filter(|index| *index > 0), failures: 0 }
    }

    /// What to ask for, to block for as long as `wait`. Zero is never sent.
    pub(crate) fn query(&self, wait: Duration) -> Option<(String, Duration)> {
        self.last.map(|index| (format!("index={index}&wait={}ms", wait.as_millis()), wait))
    }

    /// Whether an answer with this index says that all stands as it was last told.
    pub(crate) fn is_still(&self, told: Option<u64>) -> bool {
        self.last.is_some() && self.last == told
    }

    /// An answer's index. How long to wait before the next question at the least.
    pub(crate) fn told(&mut self, told: Option<u64>) -> Duration {
        self.failures = 0;
        match (self.last, told.filter(|index| *index > 0)) {
            // Without an index every question would be answered at once.
            (_, None) => {
                self.last = None;
                LONGEST_PAUSE
            }
            // It went backwards, as after a restore: what is there now is to be read anew.
            (Some(last), Some(told)) if told < last => {
                self.last = None;
                PACE
            }
            (_, told) => {
                self.last = told;
                Duration::ZERO
            }
        }
    }

    /// No answer. How long to wait before the next question.
    pub(crate) fn failed(&mut self) -> Duration {
        let pause = PACE * (1 << self.failures.min(5));
        (self.last, self.failures) = (None, self.failures + 1);
        pause.min(LONGEST_PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_of_the_index() {
        let wait = Duration::from_millis(1_500);
        let query = |index: &Index| index.query(wait).map(|(query, _)| query);
        let mut index = Index::default();
        assert_eq!(query(&index), None, "zero is never sent");
        assert!(!index.is_still(None) && !index.is_still(Some(0)), "nothing was told so far");
        assert_eq!(index.told(Some(7)), Duration::ZERO);
        assert_eq!(query(&index).unwrap(), "index=7&wait=1500ms");
        assert!(index.is_still(Some(7)) && !index.is_still(Some(8)) && !index.is_still(None));
        assert_eq!(index.told(Some(7)), Duration::ZERO, "the time to wait is over");
        assert_eq!(index.told(Some(9)), Duration::ZERO);
        assert_eq!(index.told(Some(8)), PACE, "backwards");
        assert_eq!(query(&index), None, "and it begins anew");
        assert_eq!(index.told(Some(8)), Duration::ZERO);
        for nothing in [None, Some(0)] {
            assert_eq!(index.told(nothing), LONGEST_PAUSE, "no hot loop without an index");
            assert_eq!(query(&index), None);
        }
        let pauses: Vec<u128> = (0..6).map(|_| index.failed().as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1000, 1000]);
        index.told(Some(5));
        assert_eq!(index.failed(), PACE);
    }
}
