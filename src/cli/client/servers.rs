//! Which server a `wss://` address is believed to be: one with a certificate that this machine trusts, or that a file or a
//! fingerprint names.

use std::{fs, path::Path, sync::Arc};

use anyhow::{Context as _, bail};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
};
use rustls_platform_verifier::BuilderVerifierExt as _;
use sha2::{Digest as _, Sha256};

use crate::types::Hash;

/// Whom to believe. Without more: whom this machine's certificates vouch for.
#[derive(Debug, Clone, Default)]
pub struct Servers(Option<Arc<ClientConfig>>);

impl Servers {
    /// Reads what `--ca` says: a file with certificates, or `sha256:` and the fingerprint of one.
    pub fn read(text: &str) -> anyhow::Result<Servers> {
        if let Some(digits) = text.strip_prefix("sha256:") {
            let fingerprint: Hash =
                digits.parse().map_err(|_| anyhow::anyhow!("--ca: expected sha256: and 64 hexadecimal digits"))?;
            return Ok(Servers::pinned(fingerprint));
        }
        let path = Path::new(text);
        let bytes = fs::read(path).with_context(|| format!("--ca: cannot read {}", path.display()))?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&bytes) {
            let certificate = certificate.map_err(|error| anyhow::anyhow!("--ca: {}: {error}", path.display()))?;
            roots.add(certificate).with_context(|| format!("--ca: {}", path.display()))?;
        }
        if roots.is_empty() {
            bail!("--ca: {}: there is no certificate in it", path.display());
        }
        Ok(Servers(Some(Arc::new(builder().with_root_certificates(roots).with_no_client_auth()))))
    }

    fn pinned(fingerprint: Hash) -> Servers {
        let verifier = Arc::new(Pinned { fingerprint, provider: Arc::new(ring::default_provider()) });
        Servers(Some(Arc::new(builder().dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())))
    }

    /// For one connection.
    pub(super) fn config(&self) -> Result<Arc<ClientConfig>, rustls::Error> {
        match &self.0 {
            Some(config) => Ok(config.clone()),
            None => Ok(Arc::new(builder().with_platform_verifier()?.with_no_client_auth())),
        }
    }
}

fn builder() -> rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring speaks them")
}

/// One certificate, whoever signed it and whatever names it has.
#[derive(Debug)]
struct Pinned {
    fingerprint: Hash,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let found: [u8; 32] = Sha256::digest(certificate).into();
        match found == self.fingerprint.0 {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(rustls::Error::General(format!(
                "its certificate has the fingerprint sha256:{}, not the one of --ca",
                Hash(found)
            ))),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
