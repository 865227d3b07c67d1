//! The shared suite against a real cluster of three servers.

use std::process::ExitCode;

#[path = "conformance.rs"]
#[allow(dead_code, reason = "its main is not used here")]
mod conformance;

fn main() -> ExitCode {
    conformance::run("consul-cluster", 3)
}
