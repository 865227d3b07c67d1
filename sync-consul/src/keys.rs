//! Which keys there are.

use sync_core::backend::Nonce;
use sync_core::{Kind, Name, Namespace};

/// The keys of a namespace. Pinned: other programs and other versions rely on them.
#[derive(Debug)]
pub(crate) struct Keys {
    /// What all of them begin with, `/` included.
    namespace: String,
}

impl Keys {
    pub(crate) fn new(namespace: &Namespace) -> Self {
        Self { namespace: format!("{}/", namespace.joined('/')) }
    }

    /// What all keys begin with.
    pub(crate) fn prefix(&self) -> &str {
        &self.namespace
    }

    /// The key that is locked while the name is held: where `consul lock` looks for it.
    pub(crate) fn claim(&self, kind: Kind, name: &Name) -> String {
        let (namespace, name) = (&self.namespace, name.encoded());
        match kind {
            Kind::Lock => format!("{namespace}lock/{name}/.lock"),
            Kind::Leader => format!("{namespace}leader/{name}"),
        }
    }

    /// What the tickets of all who wait for the name begin with.
    pub(crate) fn line(&self, kind: Kind, name: &Name) -> String {
        format!("{}line/{kind}/{}/", self.namespace, name.encoded())
    }

    /// The marker that keeps late attempts of this nonce out.
    pub(crate) fn void(&self, session: &str, nonce: Nonce) -> String {
        format!("{}void/{session}-{}", self.namespace, nonce.to_hex())
    }

    /// Keys that nobody has, one of each kind: whoever may write them may write all there is.
    pub(crate) fn probes(&self, nonce: Nonce) -> [String; 4] {
        let probe = |part| format!("{}{part}/.probe-{}", self.namespace, nonce.to_hex());
        ["lock", "leader", "line", "void"].map(probe)
    }
}

/// The last segment of a ticket's key.
pub(crate) fn ticket(session: &str, nonce: Nonce) -> String {
    format!("{session}-{}", nonce.to_hex())
}

/// Whether a key's last segment is a ticket of this session.
pub(crate) fn is_ticket_of(segment: &str, session: &str) -> bool {
    let nonce = segment.strip_prefix(session).and_then(|rest| rest.strip_prefix('-'));
    !session.is_empty() && nonce.and_then(Nonce::from_hex).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: &str = "0947cabe-552d-1df2-fbd7-a55a46299340";

    #[test]
    fn the_keys_are_pinned() {
        let keys = Keys::new(&Namespace::parse("billing/eu").unwrap());
        let name = Name::parse("a/b.lock").unwrap();
        let nonce = Nonce::from_bytes([0xab; 16]);
        let hex = "ab".repeat(16);
        assert_eq!(keys.claim(Kind::Lock, &name), "billing/eu/lock/a=2Fb=2Elock/.lock");
        assert_eq!(keys.claim(Kind::Leader, &name), "billing/eu/leader/a=2Fb=2Elock");
        assert_eq!(keys.line(Kind::Lock, &name), "billing/eu/line/lock/a=2Fb=2Elock/");
        assert_eq!(keys.line(Kind::Leader, &name), "billing/eu/line/leader/a=2Fb=2Elock/");
        assert_eq!(keys.void(SESSION, nonce), format!("billing/eu/void/{SESSION}-{hex}"));
        assert_eq!(ticket(SESSION, nonce), format!("{SESSION}-{hex}"));
    }

    #[test]
    fn only_a_key_that_names_its_own_session_is_a_ticket() {
        let hex = "ab".repeat(16);
        assert!(is_ticket_of(&format!("{SESSION}-{hex}"), SESSION));
        for segment in [
            format!("{SESSION}-{}", &hex[1..]),
            format!("{SESSION}-{}", hex.to_uppercase()),
            format!("{SESSION}{hex}"),
            format!("{SESSION}-{hex}/x"),
            format!("x{SESSION}-{hex}"),
            "garbage".to_owned(),
            String::new(),
        ] {
            assert!(!is_ticket_of(&segment, SESSION), "{segment}");
        }
        assert!(!is_ticket_of(&format!("-{hex}"), ""), "a key without session is nobody's");
    }
}
