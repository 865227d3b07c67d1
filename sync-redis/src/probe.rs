//! What is asked of a server once, before anything is held on it.

use redis::{Cmd, Pipeline, Value};
use sync_core::{ErrorKind, Kind, Name, StoreError};

use crate::connection::Link;
use crate::error;
use crate::keys::Keys;
use crate::script::{self, Reply};

/// What an answer to the probe is recognised by.
const ECHO: &str = "sync";

/// Finds out whether this user may run what is needed, and makes the scripts known to the server.
/// Warns if the server may evict what is held.
pub(crate) async fn probe(link: &mut Link, keys: &Keys, channel: &str) -> Result<(), StoreError> {
    let mut batch = Pipeline::new();
    batch.add_command(check("EVAL", *script::CHECK.code, keys, channel));
    batch.add_command(check("EVALSHA", script::CHECK.hash(), keys, channel));
    batch.cmd("INFO").arg("memory");
    for source in script::ALL {
        batch.add_command(source.load());
    }
    let mut answers = link.send_all(&batch).await?.into_iter();
    for _ in 0..2 {
        let reply = Reply::read(answers.next().unwrap_or(Value::Nil), ECHO, link)?;
        if reply.status() == "old" {
            let reason = "the server does not know the command ZMSCORE";
            return Err(StoreError::refused(ErrorKind::Unsupported, reason)
                .advise("Redis 6.2 or later is needed, or any Valkey"));
        }
        let missing: Vec<&str> = reply.words().collect();
        if !missing.is_empty() {
            let commands = missing.join(", ");
            let reason = format!("this user may not run {commands} on the namespace's keys");
            return Err(StoreError::refused(ErrorKind::Denied, reason).advise(error::permissions()));
        }
    }
    warn_of_eviction(&answers.next().unwrap_or(Value::Nil));
    match answers.find_map(|answer| match answer {
        Value::ServerError(refusal) => Some(error::text(&refusal)),
        _ => None,
    }) {
        Some(refusal) => Err(link.replied(&refusal)),
        None => Ok(()),
    }
}

fn check(command: &str, script: &str, keys: &Keys, channel: &str) -> Cmd {
    let mut check = Cmd::new();
    check.arg(command).arg(script).arg(0).arg(ECHO);
    if let Ok(name) = Name::parse("probe") {
        check.arg(keys.claim(Kind::Lock, &name)).arg(keys.claim(Kind::Leader, &name));
    }
    check.arg(channel);
    check
}

/// A server with too little memory may drop a held lock under every policy but one.
fn warn_of_eviction(memory: &Value) {
    let text = match memory {
        Value::BulkString(text) => String::from_utf8_lossy(text).into_owned(),
        Value::VerbatimString { text, .. } => text.clone(),
        _ => {
            tracing::warn!("could not read the server's maxmemory-policy: grant +info");
            return;
        }
    };
    let value = |of| text.lines().find_map(|line| line.trim().strip_prefix(of));
    // Without a limit nothing is ever evicted.
    let policy = value("maxmemory_policy:").filter(|_| value("maxmemory:") != Some("0"));
    if let Some(policy) = policy.filter(|policy| *policy != "noeviction") {
        tracing::warn!(
            policy,
            "THIS SERVER MAY EVICT HELD LOCKS when its memory is used up: \
             set maxmemory-policy to noeviction, or use a server of its own for locks"
        );
    }
}
