//! Who is trusted, and what is shown to the agent.

use std::path::PathBuf;

use reqwest::ClientBuilder;
use sync_core::Error;

use crate::config::invalid;
#[cfg(feature = "tls")]
use crate::error;

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
        Err(invalid("this build has no TLS")
            .advise("enable one of the features rustls-ring and rustls-aws-lc"))
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
        let no_pem = |error: reqwest::Error| invalid(error::words(error));
        let (certificate, key) =
            (("certificate", "BEGIN CERTIFICATE"), ("private key", "PRIVATE KEY"));
        let roots = match &self.ca {
            Some(ca) => Some(Certificate::from_pem_bundle(&ca.read(certificate)?).map_err(no_pem)?),
            None => None,
        };
        let identity = match &self.identity {
            Some((chain, secret)) => {
                let pem = [chain.read(certificate)?, b"\n".to_vec(), secret.read(key)?].concat();
                Some(Identity::from_pem(&pem).map_err(no_pem)?)
            }
            None => None,
        };
        Ok(Prepared { roots, identity, unchecked: self.unchecked })
    }
}

#[cfg(feature = "tls")]
impl Pem {
    /// Reads what must hold an item with this label. Without one the library would trust nobody,
    /// or show nothing, and say neither.
    fn read(&self, (what, label): (&str, &str)) -> Result<Vec<u8>, Error> {
        let (pem, place) = match self {
            Pem::Text(text) => (text.clone(), "what was given".to_owned()),
            Pem::File(path) => {
                let place = path.display().to_string();
                let read = std::fs::read(path);
                (read.map_err(|error| invalid(format!("cannot read {place}: {error}")))?, place)
            }
        };
        let label = format!("{label}-----");
        match pem.windows(label.len()).any(|found| found == label.as_bytes()) {
            true => Ok(pem),
            false => Err(invalid(format!("there is no {what} in {place}"))
                .advise("give it as PEM, which begins with -----BEGIN")),
        }
    }
}

#[cfg(feature = "tls")]
impl Prepared {
    /// The library wants cryptography also where none is used, or panics; and the system's
    /// certificates, which a small container does not have.
    pub(crate) fn for_plain_text() -> Result<Self, Error> {
        crate::crypto::provide_crypto()?;
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
