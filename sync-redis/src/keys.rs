//! Which keys there are.

use redis::Cmd;
use sync_core::{Kind, Name, Namespace};

/// The keys of a namespace. Pinned: other programs and other versions rely on them.
#[derive(Debug)]
pub(crate) struct Keys {
    lock: String,
    leader: String,
    /// What comes before a coordinator in its channel's name.
    wake: String,
}

impl Keys {
    pub(crate) fn new(namespace: &Namespace) -> Self {
        let namespace = namespace.joined(':');
        Self {
            lock: format!("{namespace}:lock:{{"),
            leader: format!("{namespace}:leader:{{"),
            wake: format!("{namespace}:wake:"),
        }
    }

    pub(crate) fn claim(&self, kind: Kind, name: &Name) -> String {
        let prefix = match kind {
            Kind::Lock => &self.lock,
            Kind::Leader => &self.leader,
        };
        [prefix, &name.encoded(), "}"].concat()
    }

    pub(crate) fn wake_prefix(&self) -> &str {
        &self.wake
    }

    pub(crate) fn wake(&self, coordinator: &str) -> String {
        [&self.wake, coordinator].concat()
    }
}

/// What stands beside a claim to keep late attempts of this nonce out.
pub(crate) fn void(nonce: &str) -> String {
    [":void:", nonce].concat()
}

/// Adds a claim's key and those beside it, in the order in which the script counts them.
pub(crate) fn push_keys(command: &mut Cmd, claim: &str, beside: &[&str]) {
    command.arg(claim);
    let mut key = String::with_capacity(claim.len() + 40);
    for suffix in beside {
        key.clear();
        key.push_str(claim);
        key.push_str(suffix);
        command.arg(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_are_pinned() {
        let keys = Keys::new(&Namespace::parse("billing/eu").unwrap());
        let name = Name::parse("a/b{c}").unwrap();
        assert_eq!(keys.claim(Kind::Lock, &name), "billing:eu:lock:{a=2Fb=7Bc=7D}");
        assert_eq!(keys.claim(Kind::Leader, &name), "billing:eu:leader:{a=2Fb=7Bc=7D}");
        assert_eq!(keys.wake("c0ffee"), "billing:eu:wake:c0ffee");
    }
}
