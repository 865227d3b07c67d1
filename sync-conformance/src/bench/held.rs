//! What many held names cost, and those who wait for them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sync_core::{Coordinator, Environment, Event, LockGuard, Observer, What};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::measure::Spread;
use super::table::{Goal, Quantity, Row};
use super::{Client, Field, machine};
use crate::failed::Failed;

/// How many names are taken at once.
const AT_ONCE: usize = 64;

/// Counts the renewals of one name: what a session renews, it renews together.
#[derive(Debug)]
struct Renewals {
    name: String,
    seen: watch::Sender<u32>,
}

impl Observer for Renewals {
    fn observe(&self, event: &Event) {
        if matches!(event.what, What::Extended { .. }) && event.name.as_str() == self.name {
            self.seen.send_modify(|seen| *seen += 1);
        }
    }
}

pub(super) async fn run(field: &Field) -> Result<Vec<Row>, Failed> {
    let scale = field.scale;
    let (seen, mut renewals) = watch::channel(0);
    let observer = Arc::new(Renewals { name: name(0), seen });
    let holder = field.coordinator_with(Environment::default().observer(observer)).await?;
    let raw = field.raw().await?;
    warm_up(&holder).await?;

    let mut rows = Vec::new();
    let row = |what: &str, value| Row::new(field.flavour, what, value);
    let began = Instant::now();
    let (guards, bytes) = grown(take(&holder, "held", scale.names)).await?;
    let rate = scale.names as f64 / began.elapsed().as_secs_f64();
    let names = scale.names;
    rows.push(row(&format!("{names} names taken, {AT_ONCE} at a time"), Quantity::Rate(rate)));
    push_bytes(&mut rows, row, "memory per held name", bytes, names);

    // From the end of one renewal to the end of a later one.
    let (mut requests, mut cpu) = (Vec::new(), Vec::new());
    next(&mut renewals, scale.ttl).await?;
    for _ in 0..scale.renewals {
        let before = (raw.requests().await?, machine::cpu_time());
        let more = next(&mut renewals, scale.ttl).await?;
        let used = machine::cpu_time() - before.1;
        requests.push((raw.requests().await? - before.0) as f64 / f64::from(more));
        cpu.push(used.as_secs_f64() / f64::from(more));
    }
    // Not before: where a store keeps sessions, the other has one to renew, too.
    let other = field.coordinator().await?;
    warm_up(&other).await?;
    let (waiters, bytes) = grown(wait(&other, &*raw, scale.waiters)).await?;
    push_bytes(&mut rows, row, "memory per waiter in the store's line", bytes, scale.waiters);
    let (local, bytes) = grown(wait_here(&holder, scale.local_waiters)).await?;
    let what = "memory per waiter behind one of its own process";
    push_bytes(&mut rows, row, what, bytes, scale.local_waiters);
    drop((local, waiters));
    if let Some(lost) = guards.iter().find(|guard| !guard.is_valid()) {
        Err(format!("{:?} was lost meanwhile", lost.name()))?;
    }
    drop(guards);
    other.shutdown().await?;
    holder.shutdown().await?;

    let raw_cpu = Spread::of(raw_renewals(field, &raw).await?).median;
    let requests = Spread::of(requests).median;
    let goal = field.raw.goals().renewal.map(Goal::AtMost);
    rows.push(row("requests per renewal", Quantity::Number(requests)).goal(goal));
    rows.push(row("requests per renewal and held name", Quantity::Number(requests / names as f64)));
    let ratio = Spread::of(cpu.iter().map(|cpu| cpu / raw_cpu));
    rows.push(
        row("client's CPU per renewal of all", Quantity::Time(Spread::of(cpu).median))
            .beside(Quantity::Time(raw_cpu), ratio),
    );
    Ok(rows)
}

fn name(number: usize) -> String {
    format!("held-{number}")
}

async fn warm_up(coordinator: &Coordinator) -> Result<(), Failed> {
    drop(take(coordinator, "warm-up", 4 * AT_ONCE).await?);
    // Those guards are given back in the background.
    tokio::time::sleep(Duration::from_millis(200)).await;
    Ok(())
}

/// Takes `count` names that are free.
async fn take(
    coordinator: &Coordinator,
    prefix: &str,
    count: usize,
) -> Result<Vec<LockGuard>, Failed> {
    let take = |number| {
        let lock = coordinator.lock(format!("{prefix}-{number}"));
        async move { Ok(lock.acquire().await?) }
    };
    at_once(count, take).await
}

/// Does `work` with each number below `count`, several at once; in whatever order.
async fn at_once<T, F>(count: usize, work: impl Fn(usize) -> F) -> Result<Vec<T>, Failed>
where
    T: Send + 'static,
    F: Future<Output = Result<T, Failed>> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    let mut done = Vec::with_capacity(count);
    for number in 0..count {
        if tasks.len() == AT_ONCE
            && let Some(result) = tasks.join_next().await
        {
            done.push(result??);
        }
        tasks.spawn(work(number));
    }
    while let Some(result) = tasks.join_next().await {
        done.push(result??);
    }
    Ok(done)
}

/// Lets tasks wait, each for another held name, until all of them stand in line.
async fn wait(
    coordinator: &Coordinator,
    raw: &dyn Client,
    count: usize,
) -> Result<JoinSet<()>, Failed> {
    let before = raw.requests().await?;
    let mut tasks = JoinSet::new();
    for number in 0..count {
        let lock = coordinator.lock(name(number));
        // They are aborted before anybody releases.
        tasks.spawn(async move { drop(lock.acquire().await) });
    }
    let end = Instant::now() + Duration::from_secs(30);
    let mut seen = before;
    loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        // One request at least from each, and then nothing more.
        let now = raw.requests().await?;
        if now == seen && now - before >= count as u64 {
            return Ok(tasks);
        }
        if Instant::now() > end {
            Err("the waiters do not stand in line")?;
        }
        seen = now;
    }
}

/// Lets tasks wait for one name that is held by the same coordinator.
async fn wait_here(coordinator: &Coordinator, count: usize) -> Result<JoinSet<()>, Failed> {
    let mut tasks = JoinSet::new();
    let lock = coordinator.lock(name(0));
    for _ in 0..count {
        let lock = lock.clone();
        tasks.spawn(async move { drop(lock.acquire().await) });
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    Ok(tasks)
}

/// What came of it, and by how many bytes the process has grown meanwhile.
async fn grown<T>(
    work: impl Future<Output = Result<T, Failed>>,
) -> Result<(T, Option<f64>), Failed> {
    let before = machine::memory();
    let done = work.await?;
    Ok((done, machine::memory().zip(before).map(|(after, before)| after - before)))
}

fn push_bytes(
    rows: &mut Vec<Row>,
    row: impl Fn(&str, Quantity) -> Row,
    what: &str,
    bytes: Option<f64>,
    count: usize,
) {
    if let Some(bytes) = bytes {
        rows.push(row(what, Quantity::Bytes(bytes.max(0.0) / count as f64)));
    }
}

/// Waits for the end of the next renewal; how many have ended.
async fn next(renewals: &mut watch::Receiver<u32>, ttl: Duration) -> Result<u32, Failed> {
    let before = *renewals.borrow_and_update();
    tokio::time::timeout(ttl, renewals.changed()).await.map_err(|_| "nothing is renewed")??;
    // All of them are extended in one go, without a pause in between.
    tokio::task::yield_now().await;
    Ok(*renewals.borrow_and_update() - before)
}

/// Processor time that each of several raw renewals takes, in seconds.
async fn raw_renewals(field: &Field, raw: &Arc<dyn Client>) -> Result<Vec<f64>, Failed> {
    let ttl = Duration::from_secs(60);
    let keys: Arc<[String]> =
        (0..field.scale.names).map(|number| format!("bench:raw:held-{number}")).collect();
    at_once(keys.len(), |number| {
        let (raw, keys) = (Arc::clone(raw), Arc::clone(&keys));
        async move { raw.take(&keys[number], ttl).await }
    })
    .await?;
    let mut used = Vec::new();
    for number in 0..=field.scale.renewals {
        let before = machine::cpu_time();
        raw.extend(&keys, ttl).await?;
        if number > 0 {
            used.push((machine::cpu_time() - before).as_secs_f64());
        }
    }
    at_once(keys.len(), |number| {
        let (raw, keys) = (Arc::clone(raw), Arc::clone(&keys));
        async move { raw.give_back(&keys[number]).await }
    })
    .await?;
    Ok(used)
}
