//! From wanting a name to having given it back: once for a lock, in terms for a leadership.

use std::future::Future;
use std::time::Duration;

use sync_core::{
    BootClock, Cause, Changes, Clock, Coordinator, Error, ErrorKind, Hold, Holder, Kind,
};
use tokio::io::AsyncWriteExt;
use tokio_stream::StreamExt;

use super::arguments::Plan;
use super::claim::{Claim, Wanted};
use super::command::{self, Served};
use super::console::Console;
use super::ending::Ending;
use super::{LOST, NOT_ACQUIRED, NOT_FOUND};

/// Whoever wants the name, with all that is needed for it.
pub(super) struct Contender<'a> {
    pub(super) plan: &'a Plan,
    pub(super) sync: &'a Coordinator,
    pub(super) console: &'a Console,
    pub(super) ending: &'a Ending,
}

/// What has become of one term.
enum Term {
    /// COMMAND ended by itself. `kept`: under the claim, as far as can be known.
    Ended { code: u8, kept: bool },
    /// The claim was lost, or came so near to it that COMMAND was asked to end.
    Lost,
}

/// The status to exit with, where there is nothing more to be done.
type Exit = u8;

impl Contender<'_> {
    /// Contends for the name until there is a status to exit with.
    pub(super) async fn run(&self) -> Exit {
        match self.plan.kind {
            Kind::Lock => self.lock().await,
            Kind::Leader if self.plan.command.is_empty() => {
                let changes = match self.sync.leader(&self.plan.name).changes() {
                    Ok(changes) => changes,
                    Err(error) => return self.console.error(&error).await,
                };
                tokio::select! {
                    biased;
                    code = self.elect() => code,
                    code = self.print_leaders(changes) => code,
                }
            }
            Kind::Leader => self.elect().await,
        }
    }

    async fn lock(&self) -> Exit {
        match self.term().await {
            Ok(Term::Ended { code, kept: true }) => code,
            Ok(Term::Ended { kept: false, .. } | Term::Lost) => LOST,
            Err(code) => code,
        }
    }

    async fn elect(&self) -> Exit {
        loop {
            match self.term().await {
                Ok(Term::Ended { code, .. }) | Err(code) => return code,
                Ok(Term::Lost) => {}
            }
        }
    }

    async fn term(&self) -> Result<Term, Exit> {
        let claim = self.take().await?;
        self.console.event(format_args!("held token={}", claim.token())).await;
        let hold = claim.hold();
        let served = match self.serve(&hold).await {
            Ok(served) => served,
            Err(code) => {
                self.give_back(claim).await;
                return Err(code);
            }
        };
        let Served { status, told, lost } = served;
        let kept = if lost {
            false
        } else if told.is_none() && status.is_none() {
            self.on_loss();
            self.give_back_in_time(claim).await;
            false
        } else {
            self.give_back(claim).await
        };
        match (told, status) {
            (Some(code), _) => Err(code),
            (None, Some(status)) => Ok(Term::Ended { code: command::to_code(status), kept }),
            (None, None) => Ok(Term::Lost),
        }
    }

    /// Waits for the name, as long as the plan allows.
    async fn take(&self) -> Result<Claim, Exit> {
        let wanted = Wanted::new(self.sync, self.plan);
        let clock = BootClock::new();
        let began = clock.now();
        let tries_once = self.plan.wait == Some(Duration::ZERO);
        match self.unless_told(wanted.try_claim()).await? {
            Ok(Some(claim)) => return Ok(claim),
            Ok(None) => {}
            // It has answered when we connected: it may again while we wait.
            Err(error) if is_transient(&error) && !tries_once => self.console.complain(error).await,
            Err(error) => return Err(self.console.error(&error).await),
        }
        let left = self.plan.wait.map(|wait| wait.saturating_sub(clock.now().since(began)));
        if left != Some(Duration::ZERO) {
            self.console.event("waiting").await;
            match self.unless_told(wanted.waiting(left).claim()).await? {
                Ok(claim) => return Ok(claim),
                Err(error) if error.kind() == ErrorKind::Timeout => {}
                Err(error) if is_transient(&error) => self.console.complain(error).await,
                Err(error) => return Err(self.console.error(&error).await),
            }
        }
        self.console.event("timed out").await;
        self.ending.begin(NOT_ACQUIRED);
        Err(NOT_ACQUIRED)
    }

    /// The output of `work`, unless the example is told to stop. What `work` leaves under way is
    /// waited for by the shutdown at the end.
    async fn unless_told<T>(&self, work: impl Future<Output = T>) -> Result<T, Exit> {
        tokio::select! {
            biased;
            code = self.ending.told() => Err(code),
            output = work => Ok(output),
        }
    }

    /// Does what is to be done under the claim, until it is done or has to end.
    async fn serve(&self, hold: &Hold) -> Result<Served, Exit> {
        let on_loss = async || {
            self.on_loss();
            let cause = hold.revoked().await.cause;
            self.revoked(cause).await;
        };
        if self.plan.command.is_empty() {
            return Ok(tokio::select! {
                biased;
                code = self.ending.told() => Served { told: Some(code), ..Served::default() },
                _ = hold.revoked() => {
                    on_loss().await;
                    Served { lost: true, ..Served::default() }
                }
            });
        }
        if let Some(code) = self.ending.is_told() {
            return Ok(Served { told: Some(code), ..Served::default() });
        }
        if !hold.is_valid() {
            on_loss().await;
            return Ok(Served { lost: true, ..Served::default() });
        }
        let program = self.plan.command[0].to_string_lossy().into_owned();
        let mut child = match command::start(&self.plan.command, hold.token()) {
            Ok(child) => child,
            Err(error) => {
                let code = self.console.failed(format_args!("cannot run {program}"), &error).await;
                return Err(if error.kind() == std::io::ErrorKind::NotFound {
                    NOT_FOUND
                } else {
                    code
                });
            }
        };
        match command::attend(&mut child, hold, self.plan.margin(), self.ending, on_loss).await {
            Ok(served) => Ok(served),
            Err(error) => {
                let _ = child.kill().await;
                Err(self.console.failed(format_args!("cannot watch over {program}"), &error).await)
            }
        }
    }

    /// A lock that is lost is the end of its example, soon.
    fn on_loss(&self) {
        if self.plan.kind == Kind::Lock {
            self.ending.begin(LOST);
        }
    }

    /// Whether the claim was ours until now, as far as the store tells.
    async fn give_back(&self, claim: Claim) -> bool {
        match claim.release().await {
            Ok(()) => {
                self.console.event("released").await;
                true
            }
            Err(error) if error.kind() == ErrorKind::Lost => {
                self.revoked(error.revocation().map_or(Cause::Key, |lost| lost.cause)).await;
                false
            }
            Err(error) => {
                self.console.complain(error).await;
                true
            }
        }
    }

    /// Gives back a claim whose renewal has not come, unless its deadline comes first.
    async fn give_back_in_time(&self, claim: Claim) {
        let (clock, deadline) = (BootClock::new(), claim.deadline());
        tokio::select! {
            biased;
            _ = self.give_back(claim) => {}
            () = clock.sleep_until(deadline) => self.revoked(Cause::Deadline).await,
        }
    }

    async fn revoked(&self, cause: Cause) {
        self.console.event(format_args!("revoked cause={}", cause.as_str())).await;
    }

    /// Prints who leads at each change, until standard output is gone.
    async fn print_leaders(&self, mut changes: Changes) -> Exit {
        let mut out = tokio::io::stdout();
        let mut last = String::new();
        while let Some(leader) = changes.next().await {
            let line = leader_line(leader.as_ref());
            if line == last {
                continue;
            }
            let written = async {
                out.write_all(line.as_bytes()).await?;
                out.flush().await
            };
            if let Err(error) = written.await {
                return self.console.failed("cannot write to standard output", &error).await;
            }
            last = line;
        }
        std::future::pending().await
    }
}

/// An id from the store cannot end the line. Foreign leaders may have no token.
fn leader_line(leader: Option<&Holder>) -> String {
    let Some(Holder { node, token, .. }) = leader else {
        return "leader none\n".to_owned();
    };
    let mut line = "leader ".to_owned();
    for char in node.id.chars() {
        if char.is_control() {
            line.extend(char.escape_default());
        } else {
            line.push(char);
        }
    }
    if let Some(token) = token {
        line.push_str(&format!(" token={token}"));
    }
    line.push('\n');
    line
}

fn is_transient(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unknown | ErrorKind::Unreachable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsString;
    use sync_core::memory;

    use crate::cli::{About, FAILED};

    /// An example on a store in memory, as far as it goes without signals of its own.
    struct Fixture {
        store: memory::Store,
        sync: Coordinator,
        plan: Plan,
        console: Console,
        ending: Ending,
    }

    const ABOUT: About = About { name: "toy", title: "toy", url: "toy://" };

    impl Fixture {
        fn new(
            make: fn(&About, Vec<OsString>) -> Result<Plan, clap::Error>,
            line: &[&str],
        ) -> Self {
            let arguments = ["toy"].iter().chain(line).map(OsString::from).collect();
            let plan = make(&ABOUT, arguments).unwrap();
            let store = memory::Store::new();
            Self {
                sync: store.connect(&plan.target().options).unwrap(),
                store,
                plan,
                console: Console::new("toy".into()),
                ending: Ending::new(),
            }
        }

        fn lock(line: &[&str]) -> Self {
            Self::new(Plan::lock, line)
        }

        fn elect(line: &[&str]) -> Self {
            Self::new(Plan::elect, line)
        }

        async fn run(&self) -> Exit {
            let Self { sync, plan, console, ending, .. } = self;
            let code = Contender { plan, sync, console, ending }.run().await;
            sync.shutdown().await.unwrap();
            assert_eq!(self.store.keys(), [""; 0]);
            code
        }

        /// Waits until somebody holds the name, and gives the key.
        async fn held(&self) -> String {
            let key = match self.plan.kind {
                Kind::Lock => self.sync.lock(&self.plan.name).key(),
                Kind::Leader => self.sync.leader(&self.plan.name).key(),
            }
            .unwrap();
            while !self.store.keys().contains(&key) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            key
        }
    }

    #[tokio::test]
    async fn the_status_is_commands_own() {
        assert_eq!(Fixture::lock(&["a", "--", "sh", "-c", "exit 7"]).run().await, 7);
        assert_eq!(Fixture::lock(&["a", "--", "sh", "-c", "test $SYNC_TOKEN = 1"]).run().await, 0);
        assert_eq!(Fixture::lock(&["a", "--", "sh", "-c", "kill -9 $$"]).run().await, 137);
        assert_eq!(Fixture::lock(&["a", "--", "/no/such/program"]).run().await, NOT_FOUND);
        assert_eq!(Fixture::lock(&["a", "--", "/"]).run().await, FAILED);
        assert_eq!(Fixture::elect(&["a", "--node", "n", "--", "false"]).run().await, 1);
    }

    #[tokio::test]
    async fn a_wait_that_is_used_up_is_told_by_its_status() {
        for wait in ["0", "0.05"] {
            let fixture = Fixture::lock(&["a", "--wait", wait, "--", "true"]);
            let other = fixture.store.connect(&fixture.plan.target().options).unwrap();
            let guard = other.lock("a").acquire().await.unwrap();
            let Fixture { sync, plan, console, ending, .. } = &fixture;
            assert_eq!(Contender { plan, sync, console, ending }.run().await, NOT_ACQUIRED);
            guard.release().await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_lost_lock_takes_a_command_that_does_not_listen_along() {
        let fixture = Fixture::lock(&["a", "--", "sh", "-c", "trap '' TERM; sleep 2; sleep 60"]);
        let (code, ()) = tokio::join!(fixture.run(), async {
            let key = fixture.held().await;
            assert!(fixture.store.remove_key(&key));
        });
        assert_eq!(code, LOST);
    }

    #[tokio::test]
    async fn a_lost_leadership_begins_another_term() {
        let terms = tempfile::NamedTempFile::new().unwrap();
        let path = terms.path().to_str().unwrap();
        let script =
            format!("echo $SYNC_TOKEN >> {path}; test $SYNC_TOKEN = 1 && exec sleep 60; exit 3");
        let fixture = Fixture::elect(&["a", "--node", "n", "--", "sh", "-c", &script]);
        let (code, ()) = tokio::join!(fixture.run(), async {
            let key = fixture.held().await;
            while std::fs::read_to_string(path).unwrap().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            assert!(fixture.store.end_session_of(&key));
        });
        assert_eq!(code, 3);
        assert_eq!(std::fs::read_to_string(path).unwrap(), "1\n2\n");
    }

    #[tokio::test]
    async fn being_told_to_stop_ends_waiting_and_command_and_leaves_nothing() {
        let fixture = Fixture::lock(&["a", "--", "sleep", "60"]);
        let (code, ()) = tokio::join!(fixture.run(), async {
            fixture.held().await;
            fixture.ending.tell(143);
        });
        assert_eq!(code, 143);

        let fixture = Fixture::lock(&["a", "--", "true"]);
        let other = fixture.store.connect(&fixture.plan.target().options).unwrap();
        let guard = other.lock("a").acquire().await.unwrap();
        let Fixture { sync, plan, console, ending, .. } = &fixture;
        let contender = Contender { plan, sync, console, ending };
        let (code, ()) = tokio::join!(contender.run(), async {
            while fixture.store.keys().len() < 2 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            ending.tell(130);
        });
        assert_eq!(code, 130);
        sync.shutdown().await.unwrap();
        assert_eq!(fixture.store.keys().len(), 1);
        guard.release().await.unwrap();
    }

    #[tokio::test]
    async fn an_id_from_the_store_cannot_end_the_line() {
        let sync = memory::Store::new().connect(&sync_core::Options::new()).unwrap();
        let node = sync_core::Node::new("a\nleader b\u{1b}");
        let leader = sync.leader("e").node(node);
        let elected = leader.elect().await.unwrap();
        let line = leader_line(leader.leader().await.unwrap().as_ref());
        assert_eq!(line, "leader a\\nleader b\\u{1b} token=1\n");
        elected.resign().await.unwrap();
        assert_eq!(leader_line(leader.leader().await.unwrap().as_ref()), "leader none\n");
    }
}
