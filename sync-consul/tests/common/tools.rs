//! `consul` itself beside a coordinator, on one agent.
#![allow(dead_code, reason = "each test uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use sync_conformance::cli::example::Example;
use sync_conformance::driver::eventually;
use sync_conformance::server::Member;
use sync_conformance::{Server, server};
use sync_consul::{Coordinator, Node, Options};

use crate::agent::{self, PATIENCE, config, operator, sessions};
use crate::common::{Api, Pair};

pub(crate) const TTL: Duration = Duration::from_secs(2);

/// A handover by a blocking query; machines are busy.
pub(crate) const SOON: Duration = Duration::from_millis(1_500);

/// By then `consul lock` has tried again after a lock-delay.
pub(crate) const RETRY: Duration = Duration::from_secs(5);

/// The lock-delay of `consul lock`'s own sessions.
pub(crate) const THEIR_DELAY: Duration = Duration::from_secs(15);

/// One agent or a cluster, and what is to be done there.
pub(crate) struct Consul {
    pub(crate) server: Server,
    /// Of the member that `consul` talks to.
    pub(crate) api: Api,
}

impl Consul {
    pub(crate) async fn start() -> Self {
        let server = agent::agent(&[]).await;
        let api = operator(&server);
        Self { server, api }
    }

    /// Three servers; `consul` talks to one that does not lead.
    pub(crate) async fn cluster() -> (Self, usize) {
        let server = server::consul(3, &[]).start().await.unwrap();
        let mut agents: Vec<Api> =
            server.addresses().iter().map(|at| Api::new(&at.to_string(), None)).collect();
        for api in &agents {
            agent::ready(api).await;
        }
        let leader = agents[0].json("GET", "/v1/status/leader", b"").await.unwrap();
        let leads = |member: &Member| format!("127.0.0.1:{}", member.port(1)) == leader;
        let leader = server.members().iter().position(leads).unwrap();
        (Self { server, api: agents.swap_remove((leader + 1) % 3) }, leader)
    }

    pub(crate) async fn coordinator(&self, id: &str) -> Coordinator {
        let options = Options::new().ttl(TTL).node(Node::new(id));
        config(self.server.url()).options(options).connect().await.unwrap()
    }

    /// Runs `consul`, or what `CONSUL` names.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> Example {
        let program = std::env::var("CONSUL").unwrap_or_else(|_| "consul".to_owned());
        Example::start(Path::new(&program), arguments, |command| {
            command.env("CONSUL_HTTP_ADDR", &self.api.address);
        })
        .unwrap()
    }

    /// Runs it to its end and gives what it printed.
    pub(crate) async fn run(&self, arguments: &[&str]) -> String {
        let ctl = self.ctl(arguments);
        assert_eq!(ctl.exit(PATIENCE).await.unwrap(), 0, "{arguments:?}: {}", ctl.said());
        ctl.printed().trim_end().to_owned()
    }

    /// A `consul lock` on a name's key. It says `held` when it holds.
    pub(crate) fn lock(&self, key: &str, more: &[&str]) -> Example {
        let prefix = key.strip_suffix("/.lock").unwrap();
        let script = "echo held; exec sleep 600";
        self.ctl(&[&["lock", "-verbose"], more, &[prefix, script]].concat())
    }

    pub(crate) async fn lock_holds(&self, key: &str) -> (Example, Pair) {
        let ctl = self.lock(key, &[]);
        ctl.print("held").await.unwrap();
        let pair = self.at(key).await.expect("it holds");
        (ctl, pair)
    }

    /// What stands at a key.
    pub(crate) async fn at(&self, key: &str) -> Option<Pair> {
        self.api.pairs(key).await.unwrap().into_iter().find(|pair| pair.key == key)
    }

    /// Waits until so many sessions are open: for who waits with one of his own.
    pub(crate) async fn until_sessions(&self, count: usize) {
        eventually(PATIENCE, async || {
            let open = sessions(&self.api).await.unwrap().len();
            if open >= count { Ok(()) } else { Err(open) }
        })
        .await;
    }

    pub(crate) async fn nothing_is_left(&self) {
        let left = self.api.pairs("sync/").await.unwrap();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// Ends a `consul lock` as a terminal would: it gives back what it has.
pub(crate) async fn interrupt(ctl: &Example) {
    ctl.process().signal(Signal::INT).unwrap();
    ctl.exit(PATIENCE).await.unwrap();
}

pub(crate) fn holds(ctl: &Example) -> bool {
    ctl.printed().lines().any(|line| line == "held")
}
