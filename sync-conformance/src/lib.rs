//! The suite that every backend of `sync-core` has to pass, and what it is made of.
//!
//! The author of a backend implements [`Store`] and writes a test of one line,
//! [`sync_conformance::main`](main); `docs/writing-a-backend.md` takes him through it. Then every
//! case runs against his store: real processes are killed and stopped, connections are cut,
//! delayed and swallowed, and what each process held is written down and judged.
//!
//! * [`store`], [`server`]: the store under test, and the real servers that are started for it.
//! * [`suite`], [`Context`]: the registry of cases, and what a case works with.
//! * [`history`], [`checker`]: what happened, written before anybody could act on it, and its judge.
//! * [`proxy`], [`fault`]: what goes wrong on the wire, and in the backend's calls.
//! * [`child`], [`process`], [`register`]: victims, and the resource that fencing protects.
//! * [`driver`], [`logs`], [`certificates`], [`tls`]: for a backend's own tests, beside the suite.
//! * [`bench`](mod@bench): workloads for measuring, beside the store's own commands.
//!
//! It stops and kills processes, and so is for Unix; elsewhere this crate is empty.

#![cfg(unix)]

pub mod bench;
mod cases;
pub mod certificates;
pub mod checker;
pub mod child;
pub mod cli;
pub mod company;
mod context;
pub mod driver;
mod failed;
pub mod fault;
pub mod history;
pub mod logs;
pub mod process;
pub mod proxy;
pub mod register;
mod roles;
pub mod server;
mod soak;
pub mod store;
pub mod suite;
pub mod tls;

pub use context::{Context, Route};
pub use failed::Failed;
pub use server::Server;
pub use store::{Store, Tamper};
pub use suite::{Case, Need, main, main_with};
