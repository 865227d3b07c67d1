//! The shared suite against a real cluster of three servers.

use std::process::ExitCode;

#[path = "conformance.rs"]
#[allow(dead_code, reason = "its main is not used here")]
mod conformance;

fn main() -> ExitCode {
    let (name, members) = ("consul-cluster", 3);
    sync_conformance::main(conformance::Consul { name, members, least_ttl: conformance::SHORT })
}
