//! Who is trusted, and what is shown to the agent.

use reqwest::ClientBuilder;
use sync_core::Error;
use sync_core::tls::Pem;

#[cfg(feature = "tls")]
use crate::{config::invalid, error};

/// What was given for TLS.
#[derive(Clone, Default)]
pub(crate) struct Tls {
    /// Who is trusted, and nobody else.
    pub(crate) ca: Option<Pem>,
    /// The own certificate, and its key.
    pub(crate) identity: Option<(Pem, Pem)>,
    /// Every certificate is taken.
    pub(crate) unchecked: bool,
    /// The environment asks for that.
    pub(crate) unchecked_by_environment: bool,
}

impl Tls {
    /// Whether somebody means TLS.
    pub(crate) fn is_given(&self) -> bool {
        self.ca.is_some() || self.identity.is_some()
    }
}

/// What each client is given, read once.
pub(crate) struct Prepared {
    /// Who is trusted; `None`: whom the system trusts.
    #[cfg(feature = "tls")]
    roots: Option<Vec<reqwest::Certificate>>,
    #[cfg(feature = "tls")]
    identity: Option<reqwest::Identity>,
    #[cfg(feature = "tls")]
    unchecked: bool,
}

#[cfg(not(feature = "tls"))]
impl Tls {
    pub(crate) fn prepare(&self) -> Result<Prepared, Error> {
        let _ = (&self.ca, &self.identity, self.unchecked, self.unchecked_by_environment);
        Err(sync_core::tls::unavailable())
    }
}

#[cfg(not(feature = "tls"))]
impl Prepared {
    pub(crate) fn for_plain_text() -> Result<Self, Error> {
        Ok(Self {})
    }

    pub(crate) fn apply(&self, client: ClientBuilder) -> ClientBuilder {
        client
    }
}

#[cfg(feature = "tls")]
impl Tls {
    pub(crate) fn prepare(&self) -> Result<Prepared, Error> {
        use reqwest::{Certificate, Identity};

        sync_core::tls::provide_crypto()?;
        if self.unchecked_by_environment && !self.unchecked {
            return Err(invalid("CONSUL_HTTP_SSL_VERIFY asks for certificates not to be checked")
                .advise("unset it, or call Config::danger_accept_invalid_certificates"));
        }
        if self.ca.is_none() && !cfg!(feature = "native-roots") && !self.unchecked {
            return Err(invalid("nobody is trusted to sign the agent's certificate").advise(
                "give a CA to Config::ca, or enable the feature native-roots for the system's",
            ));
        }
        // The library's text is about the form of the PEM and holds nothing of it.
        let no_pem = |error: reqwest::Error| invalid(error::words(error));
        let roots = match &self.ca {
            Some(ca) => Some(Certificate::from_pem_bundle(&ca.certificates()?).map_err(no_pem)?),
            None => None,
        };
        let identity = match &self.identity {
            Some((chain, secret)) => {
                let pem = [chain.certificates()?, b"\n".to_vec(), secret.private_key()?].concat();
                Some(Identity::from_pem(&pem).map_err(no_pem)?)
            }
            None => None,
        };
        Ok(Prepared { roots, identity, unchecked: self.unchecked })
    }
}

#[cfg(feature = "tls")]
impl Prepared {
    /// The library wants cryptography also where none is used, or panics; and the system's
    /// certificates, which a small container does not have.
    pub(crate) fn for_plain_text() -> Result<Self, Error> {
        sync_core::tls::provide_crypto()?;
        Ok(Self { roots: Some(Vec::new()), identity: None, unchecked: false })
    }

    pub(crate) fn apply(&self, mut client: ClientBuilder) -> ClientBuilder {
        if let Some(roots) = &self.roots {
            client = client.tls_certs_only(roots.iter().cloned());
        }
        if let Some(identity) = &self.identity {
            client = client.identity(identity.clone());
        }
        client.tls_danger_accept_invalid_certs(self.unchecked)
    }
}

#[cfg(all(test, not(feature = "tls")))]
mod tests {
    use sync_core::ErrorKind;

    use crate::config::Config;

    #[tokio::test]
    async fn a_build_without_tls_says_so() {
        let error = Config::new("https://localhost:1").connect().await.map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains("rustls-ring"), "{error}");
    }
}
