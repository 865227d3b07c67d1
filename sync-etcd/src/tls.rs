//! Who is trusted, and what is shown to the servers.

#[cfg(any(feature = "rustls-ring", feature = "rustls-aws-lc"))]
pub(crate) use with::{Settings, Tls, secure};
#[cfg(not(any(feature = "rustls-ring", feature = "rustls-aws-lc")))]
pub(crate) use without::{Settings, Tls, secure};

#[cfg(any(feature = "rustls-ring", feature = "rustls-aws-lc"))]
mod with {
    use std::path::Path;

    use etcd_client::{Certificate, Identity, TlsOptions};
    use sync_core::tls::{Pem, unusable};
    use sync_core::{Error, ErrorKind};
    use tonic::transport::{self, Endpoint};

    use crate::config::Config;
    use crate::error::words;

    /// What was read of it; `None` without TLS.
    pub(crate) type Settings = Option<TlsOptions>;

    pub(crate) fn secure(
        endpoint: Endpoint,
        settings: &Settings,
    ) -> Result<Endpoint, transport::Error> {
        match settings {
            Some(tls) => endpoint.tls_config(tls.clone()),
            None => Ok(endpoint),
        }
    }

    #[derive(Clone, Default)]
    pub(crate) struct Tls {
        ca: Option<Pem>,
        identity: Option<(Pem, Pem)>,
    }

    impl Tls {
        pub(crate) fn read(self, https: bool) -> Result<Settings, Error> {
            if !https {
                return match (&self.ca, &self.identity) {
                    (None, None) => Ok(None),
                    _ => Err(invalid("certificates were given, but the URLs are http://")
                        .advise("write https://")),
                };
            }
            let mut tls = TlsOptions::new();
            match self.ca {
                Some(ca) => {
                    let ca = ca.certificates()?;
                    tls = tls.ca_certificate(Certificate::from_pem(ca));
                }
                #[cfg(feature = "native-roots")]
                None => tls = tls.with_native_roots(),
                #[cfg(not(feature = "native-roots"))]
                None => {
                    return Err(invalid("nobody is trusted to sign the servers' certificates")
                        .advise(
                            "give a CA to Config::ca, or enable the feature native-roots for the \
                             system's",
                        ));
                }
            }
            if let Some((certificate, key)) = self.identity {
                let certificate = certificate.certificates()?;
                let key = key.private_key()?;
                tls = tls.identity(Identity::from_pem(certificate, key));
            }
            // The library's text is about the form of the PEM and holds nothing of it.
            Endpoint::from_static("https://etcd")
                .tls_config(tls.clone())
                .map_err(|error| unusable(&words(error)))?;
            Ok(Some(tls))
        }
    }

    fn invalid(reason: impl Into<String>) -> Error {
        Error::new(ErrorKind::Invalid, "use TLS", reason)
    }

    #[cfg_attr(docsrs, doc(cfg(any(feature = "rustls-ring", feature = "rustls-aws-lc"))))]
    impl Config {
        /// Trusts the certificates in `pem` and no others.
        #[must_use]
        pub fn ca(mut self, pem: impl Into<Vec<u8>>) -> Self {
            self.tls().ca = Some(Pem::Text(pem.into()));
            self
        }

        /// Trusts the certificates in this file, read when [connecting](Config::connect), and no
        /// others.
        #[must_use]
        pub fn ca_file(mut self, path: impl AsRef<Path>) -> Self {
            self.tls().ca = Some(Pem::File(path.as_ref().to_owned()));
            self
        }

        /// Shows the servers this certificate (with its chain) and proves it by this key, both as
        /// PEM.
        #[must_use]
        pub fn identity(
            mut self,
            certificate: impl Into<Vec<u8>>,
            key: impl Into<Vec<u8>>,
        ) -> Self {
            let (certificate, key) = (Pem::Text(certificate.into()), Pem::Text(key.into()));
            self.tls().identity = Some((certificate, key));
            self
        }

        /// [`identity`](Config::identity) from files, read when [connecting](Config::connect).
        #[must_use]
        pub fn identity_files(
            mut self,
            certificate: impl AsRef<Path>,
            key: impl AsRef<Path>,
        ) -> Self {
            let file = |path: &Path| Pem::File(path.to_owned());
            self.tls().identity = Some((file(certificate.as_ref()), file(key.as_ref())));
            self
        }
    }
}

#[cfg(not(any(feature = "rustls-ring", feature = "rustls-aws-lc")))]
mod without {
    use sync_core::Error;
    use tonic::transport::{self, Endpoint};

    pub(crate) type Settings = ();

    pub(crate) fn secure(endpoint: Endpoint, (): &()) -> Result<Endpoint, transport::Error> {
        Ok(endpoint)
    }

    #[derive(Clone, Default)]
    pub(crate) struct Tls {}

    impl Tls {
        pub(crate) fn read(self, https: bool) -> Result<Settings, Error> {
            match https {
                false => Ok(()),
                true => Err(sync_core::tls::unavailable()),
            }
        }
    }
}

#[cfg(all(test, not(any(feature = "rustls-ring", feature = "rustls-aws-lc"))))]
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
