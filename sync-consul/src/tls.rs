//! Who is trusted, and what is shown to the agent.

use std::path::PathBuf;

use reqwest::ClientBuilder;
use sync_core::Error;

use crate::config::invalid;

/// PEM text, or where it stands.
#[derive(Clone)]
pub(crate) enum Pem {
    #[cfg(feature = "tls")]
    Text(Vec<u8>),
    #[cfg_attr(not(feature = "tls"), expect(dead_code, reason = "refused where there is no TLS"))]
    File(PathBuf),
}

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

/// What each client is given, read once.
pub(crate) struct Prepared {
    #[cfg(feature = "tls")]
    roots: Vec<reqwest::Certificate>,
    #[cfg(feature = "tls")]
    identity: Option<reqwest::Identity>,
    #[cfg(feature = "tls")]
    unchecked: bool,
}

#[cfg(not(feature = "tls"))]
impl Tls {
    pub(crate) fn prepare(&self) -> Result<Prepared, Error> {
        let _ = (&self.ca, &self.identity, self.unchecked, self.unchecked_by_environment);
        Err(invalid("this build has no TLS")
            .advise("enable one of the features rustls-ring and rustls-aws-lc"))
    }
}

#[cfg(not(feature = "tls"))]
impl Prepared {
    pub(crate) fn apply(&self, client: ClientBuilder) -> ClientBuilder {
        client
    }
}

#[cfg(feature = "tls")]
impl Tls {
    pub(crate) fn prepare(&self) -> Result<Prepared, Error> {
        use reqwest::{Certificate, Identity};

        crate::crypto::provide_crypto()?;
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
        let no_pem = |error: reqwest::Error| invalid(error.to_string());
        let roots = match &self.ca {
            Some(ca) => Certificate::from_pem_bundle(&ca.read()?).map_err(no_pem)?,
            None => Vec::new(),
        };
        if self.ca.is_some() && roots.is_empty() {
            return Err(invalid("the CA holds no certificate"));
        }
        let identity = match &self.identity {
            Some((certificate, key)) => {
                let pem = [certificate.read()?, b"\n".to_vec(), key.read()?].concat();
                Some(Identity::from_pem(&pem).map_err(no_pem)?)
            }
            None => None,
        };
        Ok(Prepared { roots, identity, unchecked: self.unchecked })
    }
}

#[cfg(feature = "tls")]
impl Pem {
    fn read(&self) -> Result<Vec<u8>, Error> {
        match self {
            Pem::Text(text) => Ok(text.clone()),
            Pem::File(path) => std::fs::read(path)
                .map_err(|error| invalid(format!("cannot read {}: {error}", path.display()))),
        }
    }
}

#[cfg(feature = "tls")]
impl Prepared {
    pub(crate) fn apply(&self, mut client: ClientBuilder) -> ClientBuilder {
        if !self.roots.is_empty() {
            client = client.tls_certs_only(self.roots.iter().cloned());
        }
        if let Some(identity) = &self.identity {
            client = client.identity(identity.clone());
        }
        client.tls_danger_accept_invalid_certs(self.unchecked)
    }
}
