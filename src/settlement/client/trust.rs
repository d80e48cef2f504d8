//! Whose certificates are believed when a bus is spoken to over https, and what is said of one that is not.

use std::{
    error::Error,
    io,
    path::{Path, PathBuf},
};

use reqwest::Certificate;
use rustls::CertificateError;

use crate::small_file;

/// Bytes of a file with certificates. A longer one is an error, and is not read further.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Why a file does not say whom to believe.
#[derive(Debug, thiserror::Error)]
pub enum AuthoritiesError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is too long for what it should be.
    #[error("{}: longer than {FILE_BYTES_MAX} bytes", .0.display())]
    Long(PathBuf),
    /// There is no certificate in it.
    #[error("{}: there is no certificate in it; expected one or more blocks `-----BEGIN CERTIFICATE-----`", .0.display())]
    Empty(PathBuf),
    /// It holds something else.
    #[error("{}: cannot read its certificates", path.display())]
    Certificates {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: reqwest::Error,
    },
}

/// Certificate authorities of one's own, which are believed instead of the system's.
#[derive(Debug, Clone)]
pub struct Authorities(pub(super) Vec<Certificate>);

impl Authorities {
    /// Reads a file with one or more certificates in PEM.
    pub fn read(path: &Path) -> Result<Authorities, AuthoritiesError> {
        let failed = |source| AuthoritiesError::Read { path: path.to_owned(), source };
        let bytes = small_file::read(path, FILE_BYTES_MAX).map_err(failed)?;
        let bytes = bytes.ok_or_else(|| AuthoritiesError::Long(path.to_owned()))?;
        let found = Certificate::from_pem_bundle(&bytes);
        let found = found.map_err(|source| AuthoritiesError::Certificates { path: path.to_owned(), source })?;
        if found.is_empty() {
            return Err(AuthoritiesError::Empty(path.to_owned()));
        }
        Ok(Authorities(found))
    }
}

/// What is wrong with a certificate, and what to do about it, if that is why a connection did not come about.
pub(super) fn certificate_fault(error: &(dyn Error + 'static)) -> Option<String> {
    match (error.downcast_ref(), error.downcast_ref::<io::Error>()) {
        (Some(rustls::Error::InvalidCertificate(fault)), _) => Some(told(fault)),
        // It does not name what it was made of as its source.
        (_, Some(error)) => certificate_fault(error.get_ref()?),
        _ => certificate_fault(error.source()?),
    }
}

fn told(fault: &CertificateError) -> String {
    match fault {
        // The latter is of an issuer that has only the name of one that is trusted.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "nobody who is trusted here issued it; if that is a private authority, name its certificate in `[msb] ca_file`"
                .to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!("{fault}; see that the URL has the name that the certificate is for")
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            format!("{fault}; its owner must renew it, unless the clock here is wrong")
        }
        other => other.to_string(),
    }
}
