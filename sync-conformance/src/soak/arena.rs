//! Where the processes contend, and how each fault is done to them.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sync_core::{BootClock, Clock, Moment};
use tokio::sync::OwnedMutexGuard;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::Settings;
use super::plan::{Aim, Mishap, Step};
use super::tail::Tail;
use super::witness::Notes;
use crate::child::{Child, Orders};
use crate::context::Route;
use crate::failed::Failed;
use crate::history::Seconds;
use crate::proxy::{Flow, Toward};
use crate::server::Server;
use crate::store::Store;

/// How long whoever holds is looked for at least: a lock may be idle for a while.
const CATCH_WITHIN: Duration = Duration::from_secs(5);

/// A fault that was done.
#[derive(Debug, Clone)]
pub(super) struct Done {
    pub(super) at: Moment,
    pub(super) mishap: Mishap,
    /// The process that held the lock and was struck.
    pub(super) holder: Option<u32>,
    /// Whether it was done to the member that leads a cluster.
    pub(super) to_leader: bool,
}

/// The processes, each behind a proxy of its own, and the server.
pub(super) struct Arena {
    store: Arc<dyn Store>,
    server: Arc<Server>,
    seats: Vec<Seat>,
    /// Held while a fault is done to a member: a cluster can do without one at a time.
    struck: Arc<tokio::sync::Mutex<()>>,
    tail: Mutex<Tail>,
    done: Mutex<Vec<Done>>,
    /// The same in a file beside the history, for whoever reads that.
    log: Notes,
    ttl: Duration,
    kept: Duration,
    relaxed: bool,
    clock: BootClock,
}

/// A place for one process at a time.
struct Seat {
    route: Route,
    orders: Orders,
    /// It writes without a look at its guard.
    careless: bool,
    process: AtomicU32,
    /// Held while a fault is done to it.
    child: Arc<tokio::sync::Mutex<Child>>,
    /// Held while a fault is done to its connections.
    link: Arc<tokio::sync::Mutex<()>>,
}

/// A process that holds the lock and is stopped, and since when.
type Caught<'a> = (&'a Seat, OwnedMutexGuard<Child>, Option<Moment>);

impl Arena {
    pub(super) async fn start(
        settings: &Settings,
        store: Arc<dyn Store>,
        server: Arc<Server>,
        orders: &Orders,
        history: PathBuf,
    ) -> Result<Self, Failed> {
        let mut seats = Vec::new();
        for number in 0..settings.processes {
            let route = Route::to(&server).await?;
            let orders = orders.clone().url(route.url());
            let orders = orders.with("seed", settings.seed.wrapping_add(number as u64));
            // All but one: stale writes should be tried.
            let careless = number > 0;
            let orders = orders.with("careless", u8::from(careless));
            let child = orders.start()?;
            let process = AtomicU32::new(child.process().id());
            let child = Arc::new(tokio::sync::Mutex::new(child));
            seats.push(Seat { route, orders, careless, process, child, link: Arc::default() });
        }
        Ok(Self {
            store,
            server,
            seats,
            struck: Arc::default(),
            done: Mutex::default(),
            log: Notes::open(&history.with_file_name("faults"))?,
            tail: Mutex::new(Tail::new(history)),
            ttl: settings.ttl,
            kept: settings.kept,
            relaxed: settings.relaxed,
            clock: BootClock::new(),
        })
    }

    /// Whether the store has several members.
    pub(super) fn is_a_cluster(&self) -> bool {
        self.server.members().len() > 1
    }

    /// Does what the plan says. Ends when all of it is over, at the first failure.
    pub(super) async fn play(self: Arc<Self>, plan: Vec<Step>) -> Result<(), Failed> {
        let mut tasks = JoinSet::new();
        for step in plan {
            let arena = Arc::clone(&self);
            tasks.spawn(async move {
                sleep(step.at).await;
                arena.carry_out(&step).await
            });
        }
        while let Some(outcome) = tasks.join_next().await {
            outcome??;
        }
        Ok(())
    }

    /// The faults done so far.
    pub(super) fn done(&self) -> Vec<Done> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until every process has been granted the lock once more, with all faults over.
    pub(super) async fn recover(&self) -> Result<(), Failed> {
        let since = self.clock.now();
        let limit = self.ttl * 6 + Duration::from_secs(20);
        let all = async {
            loop {
                let mut waiting = 0;
                {
                    let mut tail = self.tail();
                    tail.catch_up()?;
                    for seat in &self.seats {
                        let granted = tail.granted(seat.process.load(Ordering::Relaxed));
                        waiting += usize::from(granted.is_none_or(|at| at < since));
                    }
                }
                if waiting == 0 {
                    return Ok::<(), Failed>(());
                }
                for seat in &self.seats {
                    check_alive(&mut *seat.child.lock().await).await?;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        match timeout(limit, all).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!("not all got the lock within {limit:?} after the last fault"))?,
        }
    }

    /// Tells all processes to give back what they have and end.
    pub(super) async fn finish(&self) -> Result<(), Failed> {
        for seat in &self.seats {
            seat.child.lock().await.tell("stop").await?;
        }
        for seat in &self.seats {
            let mut child = seat.child.lock().await;
            let mut said = Vec::new();
            while said.last().is_none_or(|line| line != "done") {
                match child.line().await {
                    Ok(line) => said.push(line),
                    Err(e) => Err(format!("{}; it said: {}", e.reason(), said.join("\n")))?,
                }
            }
            child.ended().await?;
        }
        Ok(())
    }

    async fn carry_out(&self, step: &Step) -> Result<(), Failed> {
        match step.mishap {
            mishap if mishap.is_of_a_server() => self.strike_server(step).await,
            mishap if mishap.is_of_a_link() => self.strike_link(step).await,
            _ => self.strike_process(step).await,
        }
    }

    async fn strike_process(&self, step: &Step) -> Result<(), Failed> {
        // Whoever writes without a look has something to be refused when it goes on.
        let suits = |seat: &Seat| seat.careless || step.mishap != Mishap::Freeze;
        let mut slowed = None;
        let mut caught = match step.aim {
            Aim::Anybody => self.pick(step.pick).map(|(seat, child)| (seat, child, None)),
            Aim::Holder => self.catch(suits).await?,
            Aim::SlowHolder => {
                let Some((seat, busy)) = self.pick_link(step.pick, suits) else { return Ok(()) };
                seat.route.set(Toward::Client, Flow::Delay(step.by));
                slowed = Some((seat, busy));
                self.catch(|other| std::ptr::eq(other, seat)).await?
            }
        };
        // One that is too slow gets nothing: whoever holds, then.
        if let (Some((seat, _)), None) = (&slowed, &caught) {
            seat.route.heal();
            slowed = None;
            caught = self.catch(suits).await?;
        }
        // If nobody was found (nobody holds, or all have trouble enough) it does not take place.
        if let Some((seat, mut child, since)) = caught {
            self.note(step, child.process().id(), since);
            let over = async {
                sleep(step.lasts).await;
                match (step.mishap, since) {
                    (Mishap::Freeze, Some(since)) => self.overtaken(since).await,
                    _ => Ok(()),
                }
            };
            seat.strike_process(step, &mut child, over).await?;
        }
        if let Some((seat, _busy)) = slowed {
            seat.route.heal();
        }
        Ok(())
    }

    async fn strike_link(&self, step: &Step) -> Result<(), Failed> {
        let (seat, _busy) = match step.aim {
            Aim::Anybody => {
                let Some(found) = self.pick_link(step.pick, |_| true) else { return Ok(()) };
                self.note(step, found.0.process.load(Ordering::Relaxed), None);
                found.0.strike_link(step);
                found
            }
            _ => {
                let Some((seat, child, since)) = self.catch(|_| true).await? else { return Ok(()) };
                let busy = Arc::clone(&seat.link).try_lock_owned();
                if busy.is_ok() {
                    self.note(step, child.process().id(), since);
                    seat.strike_link(step);
                }
                child.process().resume()?;
                let Ok(busy) = busy else { return Ok(()) };
                (seat, busy)
            }
        };
        sleep(step.lasts).await;
        seat.route.let_through();
        seat.route.heal();
        Ok(())
    }

    async fn strike_server(&self, step: &Step) -> Result<(), Failed> {
        let Ok(_busy) = Arc::clone(&self.struck).try_lock_owned() else { return Ok(()) };
        let Some((index, leads)) = self.pick_member(step).await else { return Ok(()) };
        let Some(member) = self.server.members().get(index) else { return Ok(()) };
        let holder = match step.aim {
            Aim::Anybody => None,
            _ => self.catch(|_| true).await?,
        };
        let done =
            Done { at: self.clock.now(), mishap: step.mishap, holder: None, to_leader: leads };
        self.put_down(step, &format_args!("member {index}"), done);
        if step.mishap == Mishap::ServerKill {
            member.kill()?;
            sleep(step.lasts).await;
            member.restart().await?;
        } else {
            member.stop()?;
            sleep(step.lasts).await;
            member.resume()?;
        }
        if let Some((_, child, _)) = holder {
            sleep(step.by).await;
            child.process().resume()?;
        }
        Ok(())
    }

    /// A member, and whether it leads the others: every other time one that does, if there is. For
    /// longer than the TTL none that does is stopped but by a [`Mishap::LeaderFreeze`]: it may take
    /// back what another leader has renewed.
    async fn pick_member(&self, step: &Step) -> Option<(usize, bool)> {
        let members = self.server.members().len().max(1);
        let pick = usize::try_from(step.pick % (members as u64 * 2)).unwrap_or(0);
        let picked = pick % members;
        let leader = match members {
            1 => None,
            _ => self.store.leader(&self.server.url()).await.ok(),
        };
        match leader {
            leader if step.mishap == Mishap::LeaderFreeze => Some((leader?, true)),
            Some(leader) if step.mishap == Mishap::ServerFreeze && !self.relaxed => {
                Some((if picked == leader { (picked + 1) % members } else { picked }, false))
            }
            Some(leader) if pick < members => Some((leader, true)),
            leader => Some((picked, leader == Some(picked))),
        }
    }

    /// A process that nothing is being done to, from number `pick` on.
    fn pick(&self, pick: u64) -> Option<(&Seat, OwnedMutexGuard<Child>)> {
        let free = |seat: &Seat| Arc::clone(&seat.child).try_lock_owned().ok();
        self.from(pick).find_map(|seat| Some((seat, free(seat)?)))
    }

    /// A process whose connections nothing is being done to.
    fn pick_link(
        &self,
        pick: u64,
        suits: impl Fn(&Seat) -> bool,
    ) -> Option<(&Seat, OwnedMutexGuard<()>)> {
        let free = |seat: &Seat| Arc::clone(&seat.link).try_lock_owned().ok();
        self.from(pick).filter(|seat| suits(seat)).find_map(|seat| Some((seat, free(seat)?)))
    }

    /// All seats, beginning with number `pick`.
    fn from(&self, pick: u64) -> impl Iterator<Item = &Seat> {
        let first = usize::try_from(pick % self.seats.len().max(1) as u64).unwrap_or(0);
        self.seats[first..].iter().chain(&self.seats[..first])
    }

    /// The process that holds the lock, if it suits; stopped, so that it goes on holding it, and
    /// since when.
    async fn catch(&self, suits: impl Fn(&Seat) -> bool) -> Result<Option<Caught<'_>>, Failed> {
        let give_up = self.clock.now() + CATCH_WITHIN.max(self.kept * 2);
        while self.clock.now() < give_up {
            if let Some(process) = self.holder()?
                && let Some(seat) = self.seat_of(process)
                && suits(seat)
                && let Ok(child) = Arc::clone(&seat.child).try_lock_owned()
                && child.process().id() == process
            {
                let since = self.clock.now();
                child.process().stop()?;
                // What it was doing just then shows in its history.
                sleep(Duration::from_millis(2)).await;
                if self.holder()? == Some(process) {
                    return Ok(Some((seat, child, Some(since))));
                }
                child.process().resume()?;
            }
            sleep(Duration::from_millis(2)).await;
        }
        Ok(None)
    }

    /// Waits until somebody has been granted the lock since then; not for ever, since whoever is next
    /// may be struck too.
    async fn overtaken(&self, since: Moment) -> Result<(), Failed> {
        let give_up = self.clock.now() + self.kept * 2;
        while self.clock.now() < give_up {
            {
                let mut tail = self.tail();
                tail.catch_up()?;
                if tail.last_granted().is_some_and(|at| at > since) {
                    break;
                }
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    fn seat_of(&self, process: u32) -> Option<&Seat> {
        self.seats.iter().find(|seat| seat.process.load(Ordering::Relaxed) == process)
    }

    fn holder(&self) -> Result<Option<u32>, Failed> {
        let mut tail = self.tail();
        tail.catch_up()?;
        Ok(tail.holder(self.clock.now()))
    }

    /// Writes down that a fault begins; `since` when the process holds the lock and is stopped.
    fn note(&self, step: &Step, process: u32, since: Option<Moment>) {
        let at = since.unwrap_or_else(|| self.clock.now());
        let holder = since.map(|_| process);
        let done = Done { at, mishap: step.mishap, holder, to_leader: false };
        self.put_down(step, &process, done);
    }

    fn put_down(&self, step: &Step, whom: &dyn fmt::Display, done: Done) {
        let Step { mishap, lasts, aim, .. } = step;
        self.log.count(&format!("{} {whom} {aim:?}: {mishap} for {lasts:?}", Seconds(done.at)));
        self.done.lock().unwrap_or_else(PoisonError::into_inner).push(done);
    }

    fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// Does a fault to the process. One that holds the lock has been stopped already.
    async fn strike_process(
        &self,
        step: &Step,
        child: &mut Child,
        over: impl Future<Output = Result<(), Failed>>,
    ) -> Result<(), Failed> {
        check_alive(child).await?;
        if step.mishap == Mishap::Kill {
            child.process().kill()?;
            over.await?;
            *child = self.orders.start()?;
            self.process.store(child.process().id(), Ordering::Relaxed);
            return Ok(());
        }
        child.process().stop()?;
        over.await?;
        Ok(child.process().resume()?)
    }

    /// Does a fault to the connections.
    fn strike_link(&self, step: &Step) {
        let both = |flow| {
            self.route.set(Toward::Server, flow);
            self.route.set(Toward::Client, flow);
        };
        match step.mishap {
            Mishap::Reset => self.route.reset(),
            Mishap::Cut => self.route.cut(),
            Mishap::Delay => both(Flow::Delay(step.by)),
            Mishap::LoseAnswers => self.route.set(Toward::Client, Flow::Swallow),
            Mishap::Late => self.route.hold(),
            _ => self.route.black_hole(),
        }
    }
}

/// A process that has ended by itself says why.
async fn check_alive(child: &mut Child) -> Result<(), Failed> {
    if child.process().is_running() {
        return Ok(());
    }
    let mut said = Vec::new();
    while let Ok(line) = child.line().await {
        said.push(line);
    }
    Err(format!("a process ended by itself; it said: {}", said.join("\n")))?
}
