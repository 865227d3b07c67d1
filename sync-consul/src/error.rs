//! What statuses, refusals and the client library's errors mean.

use std::error::Error as _;

use sync_core::{ErrorKind, StoreError, tls};

/// What a token needs, as the documentation shows it and a test uses it.
const LEAST_PRIVILEGE: &str = include_str!("acl.hcl");

/// A refusal by ACL, in a transaction as in a status.
pub(crate) fn is_denial(text: &str) -> bool {
    text.starts_with("Permission denied")
}

/// A refusal because the agent does not know the token.
pub(crate) fn is_unknown_token(status: u16, text: &str) -> bool {
    status == 403 && text.contains("ACL not found")
}

/// What an agent has yet to do that has just started.
pub(crate) const NOT_REGISTERED: &str = "the agent has not registered itself yet";
pub(crate) const NO_LEADER: &str = "the agent knows no leader";

/// Of an answer that says that something failed on the way to the servers or there.
const FAILED: &str = "the agent failed";

/// Whether an agent that has just started may say so, or one whose servers elect a leader.
pub(crate) fn is_beginners(error: &StoreError) -> bool {
    let text = error.to_string();
    let says = |words: &&str| text.contains(*words);
    is_unknown_token(403, &text) || [FAILED, NOT_REGISTERED, NO_LEADER].iter().any(says)
}

/// An answer with a status that nobody had a use for; `needed` is what [`permissions`] says.
///
/// Only those that Consul gives before it hands a request on are settled. A 500 may come after the
/// request was written to the log ("leadership lost while committing log").
pub(crate) fn answered(status: u16, text: &str, needed: &str) -> StoreError {
    let text = text.trim();
    // A page of some other program says no more than its first line.
    let line = text.lines().next().unwrap_or_default();
    let said = if line.is_empty() || line.starts_with('<') {
        format!("status {status}")
    } else {
        line.to_owned()
    };
    let refuse = |kind| StoreError::refused(kind, said.clone());
    match status {
        _ if is_unknown_token(status, text) => refuse(ErrorKind::Denied).advise(
            "the agent does not know the ACL token: check it, and which datacenter knows it",
        ),
        403 => refuse(ErrorKind::Denied).advise(needed),
        429 => refuse(ErrorKind::Unreachable).advise("the agent limits the rate of requests"),
        413 => refuse(ErrorKind::Invalid)
            .advise("the agent's limits txn_max_req_len or kv_max_value_size are too low"),
        400 if text.contains("HTTP request to an HTTPS server") => {
            StoreError::unsent(said).advise("the agent speaks TLS on this port: use https://")
        }
        404 => refuse(ErrorKind::Unsupported)
            .advise("what answers is no agent's HTTP API: check host, port (8500) and path"),
        400 | 409 => refuse(ErrorKind::Unsupported),
        // Said before anything was handed on.
        500 if text == "No path to datacenter" => StoreError::unsent(said).advise(
            "check Config::datacenter: the agent knows no server there; \
                 `consul catalog datacenters` lists the datacenters that it knows",
        ),
        300..=399 => {
            StoreError::unknown(format!("a redirection (status {status}) is not followed"))
                .advise("give the agent's own address")
        }
        _ => StoreError::unknown(format!("{FAILED} (status {status}): {said}")),
    }
}

/// What the token may not do: `what` names the permission, `needed` is what [`permissions`] says.
pub(crate) fn denied(text: &str, what: &str, needed: &str) -> StoreError {
    let reason = format!("{}: the token lacks {what}", text.trim());
    StoreError::refused(ErrorKind::Denied, reason).advise(needed)
}

/// No connection could be made. Nothing that matters was sent.
pub(crate) fn unconnected(error: reqwest::Error) -> StoreError {
    if error.is_builder() {
        return StoreError::refused(ErrorKind::Invalid, words(error));
    }
    let text = words(error);
    match tls::advice(&text, "http://") {
        Some(advice) => StoreError::unsent(text).advise(advice),
        None => StoreError::unsent(text)
            .advise("is an agent running there? Its HTTP port is 8500 unless set otherwise"),
    }
}

/// The connection was lost with a request on it.
pub(crate) fn lost(error: reqwest::Error) -> StoreError {
    StoreError::unknown(format!("the connection was lost: {}", words(error)))
}

/// All that the library has to say, without the URL: keys hold nonces.
pub(crate) fn words(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !words.contains(&text) {
            words = format!("{words}: {text}");
        }
        source = cause.source();
    }
    words
}

/// What a token needs whose keys begin with `prefix`; and where it is given, if none is.
pub(crate) fn permissions(prefix: &str, given: bool) -> String {
    let lines: Vec<&str> = LEAST_PRIVILEGE.lines().collect();
    let lines = lines.join("; ").replace("NAMESPACE/", prefix);
    let needed = format!(
        "what is needed: {lines}, where NODE is the name of the agent's node in `consul members`"
    );
    match given {
        true => needed,
        false => format!(
            "no ACL token is given: give one to Config::token or Config::token_file, or use \
             Config::from_env, which reads CONSUL_HTTP_TOKEN and CONSUL_HTTP_TOKEN_FILE; {needed}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_surely_not_applied_is_settled() {
        for (status, text, kind) in [
            (400, "Bad request", ErrorKind::Unsupported),
            (403, "Permission denied", ErrorKind::Denied),
            (403, "ACL not found", ErrorKind::Denied),
            (404, "", ErrorKind::Unsupported),
            (409, "", ErrorKind::Unsupported),
            (413, "Request body(800053 bytes) too large", ErrorKind::Invalid),
            (429, "", ErrorKind::Unreachable),
        ] {
            let error = answered(status, text, "");
            assert!(error.settled() && error.kind() == kind, "{status} {text}: {error:?}");
        }
        for status in [100, 201, 204, 301, 307, 408, 418, 500, 502, 503, 504] {
            assert!(
                !answered(status, "leadership lost while committing log", "").settled(),
                "{status}"
            );
        }
    }

    #[test]
    fn a_denial_names_what_is_missing_and_what_is_needed() {
        let of = |given| {
            denied("Permission denied", "session:write", &permissions("app/eu/", given)).to_string()
        };
        for (given, asked_for) in [(true, false), (false, true)] {
            let text = of(given);
            assert!(text.starts_with("Permission denied: the token lacks session:write"), "{text}");
            assert!(
                text.contains("key_prefix \"app/eu/\"") && !text.contains("NAMESPACE"),
                "{text}"
            );
            assert!(text.contains("session \"NODE\"") && text.contains("where NODE is"), "{text}");
            assert_eq!(text.contains("no ACL token is given: "), asked_for, "{text}");
            assert_eq!(text.contains("CONSUL_HTTP_TOKEN"), asked_for, "{text}");
        }
    }
}
