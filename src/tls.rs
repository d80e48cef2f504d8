//! TLS of a port: a certificate and its key from files, checked when they are read, and read again when the node is told to.
//!
//! The user port and the HTTP side share it. What it needs of X.509 beside what rustls does is one date.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::{config::TlsFiles, small_file, types::WallMs};

/// Bytes of a certificate or key file. A longer one is an error, and is not read further.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Why a pair of files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
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
    /// Others may read the secret key.
    #[error("{0}: mode is {mode:04o}, but the file holds a secret key: expected 0600 or 0400 (chmod 600 {0})", path.display())]
    Mode {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It holds no certificate.
    #[error("{}: {what}; expected one or more blocks `-----BEGIN CERTIFICATE-----`", path.display())]
    Certificate {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// It holds no secret key.
    #[error("{}: {what}; expected a block `-----BEGIN PRIVATE KEY-----`", path.display())]
    Key {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// They do not belong together, or are of a kind that is not spoken.
    #[error("{} and {} do not make a pair: {what}", cert.display(), key.display())]
    Pair {
        /// The certificate.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
        /// What is wrong.
        what: String,
    },
}

/// How a port speaks TLS. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Tls(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    files: TlsFiles,
    current: RwLock<Current>,
}

#[derive(Debug, Clone)]
struct Current {
    config: Arc<ServerConfig>,
    not_after_ms: Option<WallMs>,
}

impl Tls {
    /// Reads the files.
    pub fn load(files: &TlsFiles) -> Result<Tls, TlsError> {
        let current = RwLock::new(read(files)?);
        Ok(Tls(Arc::new(Inner { files: files.clone(), current })))
    }

    /// With a configuration that is in no file, for tests.
    #[cfg(test)]
    pub(crate) fn of(config: ServerConfig) -> Tls {
        let files = TlsFiles { cert: PathBuf::new(), key: PathBuf::new() };
        let current = RwLock::new(Current { config: Arc::new(config), not_after_ms: None });
        Tls(Arc::new(Inner { files, current }))
    }

    /// Reads the files again. Connections that begin from now on get what is in them; those that are open keep what they have,
    /// and so does everybody when the files cannot be used.
    pub fn reload(&self) -> Result<(), TlsError> {
        let new = read(&self.0.files)?;
        *self.0.current.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    /// Where the certificate is.
    pub fn cert_path(&self) -> &Path {
        &self.0.files.cert
    }

    /// The end of the certificate's life, if it says so in the usual way.
    pub fn not_after_ms(&self) -> Option<WallMs> {
        self.current().not_after_ms
    }

    /// The handshake with a client. Who speaks something else, or takes longer, is an error.
    pub async fn accept<S>(&self, stream: S, within: Duration) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let acceptor = TlsAcceptor::from(self.current().config);
        let late = || io::Error::new(io::ErrorKind::TimedOut, "no TLS handshake in time");
        timeout(within, acceptor.accept(stream)).await.map_err(|_| late())?
    }

    fn current(&self) -> Current {
        self.0.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn read(files: &TlsFiles) -> Result<Current, TlsError> {
    let TlsFiles { cert, key } = files;
    let chain = certificates(cert)?;
    let secret = secret_key(key)?;
    let not_after_ms = not_after_ms(&chain[0]);
    let pair = |what: String| TlsError::Pair { cert: cert.clone(), key: key.clone(), what };
    let provider = Arc::new(ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring speaks them")
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => pair("the key is of another certificate".to_owned()),
            other => pair(other.to_string()),
        })?;
    Ok(Current { config: Arc::new(config), not_after_ms })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = read_file(path, false)?;
    let wrong = |what: String| TlsError::Certificate { path: path.to_owned(), what };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match chain.map_err(|error| wrong(error.to_string()))? {
        chain if chain.is_empty() => Err(wrong("there is no certificate in it".to_owned())),
        chain => Ok(chain),
    }
}

fn secret_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let bytes = zeroize::Zeroizing::new(read_file(path, true)?);
    // Nothing of the content is shown.
    let wrong = |_| TlsError::Key { path: path.to_owned(), what: "there is no secret key in it".to_owned() };
    PrivateKeyDer::from_pem_slice(&bytes).map_err(wrong)
}

fn read_file(path: &Path, is_secret: bool) -> Result<Vec<u8>, TlsError> {
    let failed = |source| TlsError::Read { path: path.to_owned(), source };
    let about = fs::metadata(path).map_err(failed)?;
    let mode = about.permissions().mode() & 0o777;
    if is_secret && about.is_file() && ![0o600, 0o400].contains(&mode) {
        return Err(TlsError::Mode { path: path.to_owned(), mode });
    }
    small_file::read(path, FILE_BYTES_MAX).map_err(failed)?.ok_or_else(|| TlsError::Long(path.to_owned()))
}

// ---- The date -------------------------------------------------------------------------------------------------------

const SEQUENCE: u8 = 0x30;
const EXPLICIT_0: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// `notAfter` of a certificate (RFC 5280, 4.1). `None` when it is not where it should be.
fn not_after_ms(certificate: &[u8]) -> Option<WallMs> {
    let (_, certificate, _) = element(certificate)?;
    let (_, mut body, _) = element(certificate)?;
    let (tag, _, rest) = element(body)?;
    if tag == EXPLICIT_0 {
        // The version.
        body = rest;
    }
    // Number, algorithm, issuer.
    for _ in 0..3 {
        (_, _, body) = element(body)?;
    }
    let (SEQUENCE, validity, _) = element(body)? else { return None };
    let (_, _, rest) = element(validity)?;
    let (tag, text, _) = element(rest)?;
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let text = match tag {
        UTC_TIME => format!("{}{text}", if text.get(..2)? < "50" { "20" } else { "19" }),
        GENERALIZED_TIME => text.to_owned(),
        _ => return None,
    };
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<u64>().ok();
    let (year, month, day) = (number(0, 4)?, number(4, 6)?, number(6, 8)?);
    let second = number(8, 10)? * 3_600 + number(10, 12)? * 60 + number(12, 14)?;
    if text.len() != 14 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    Some(days_since_1970(year, month, day)?.checked_mul(86_400)?.checked_add(second)? * 1_000)
}

/// Days from 1970-01-01 to a day of the Gregorian calendar.
fn days_since_1970(year: u64, month: u64, day: u64) -> Option<u64> {
    // The year begins in March, so that a leap day is its last.
    let year = year - u64::from(month <= 2);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    (365 * year + year / 4 - year / 100 + year / 400 + day_of_year).checked_sub(719_468)
}

/// The first element of DER: its tag, its content, and what comes behind it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first - 0x80))?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    struct Pair {
        _folder: tempfile::TempDir,
        files: TlsFiles,
    }

    /// A certificate that ends with this year, and its key.
    fn pair(year: i32) -> Pair {
        let folder = tempfile::tempdir().unwrap();
        let files = TlsFiles { cert: folder.path().join("crt"), key: folder.path().join("key") };
        write(&files, year);
        Pair { _folder: folder, files }
    }

    fn write(files: &TlsFiles, year: i32) {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_after = date_time_ymd(year, 3, 1);
        let key = KeyPair::generate().unwrap();
        fs::write(&files.cert, params.self_signed(&key).unwrap().pem()).unwrap();
        put_key(files, key.serialize_pem().as_bytes());
    }

    fn put_key(files: &TlsFiles, bytes: &[u8]) {
        fs::write(&files.key, bytes).unwrap();
        fs::set_permissions(&files.key, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn error(files: &TlsFiles) -> String {
        Tls::load(files).unwrap_err().to_string()
    }

    #[test]
    fn the_end_of_a_certificate_is_found_on_both_sides_of_2050() {
        for (year, ms) in [(2024, 1_709_251_200_000), (2049, 2_498_169_600_000), (2400, 13_574_649_600_000)] {
            assert_eq!(Tls::load(&pair(year).files).unwrap().not_after_ms(), Some(ms), "{year}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_pair_is_said_with_its_path_and_no_secret() {
        let good = pair(2100);
        let Pair { files, .. } = &good;
        let missing = TlsFiles { cert: files.cert.join("no"), ..files.clone() };
        assert!(error(&missing).starts_with(&format!("cannot read {}", missing.cert.display())));
        let swapped = TlsFiles { cert: files.key.clone(), key: files.cert.clone() };
        assert!(error(&swapped).contains("there is no certificate in it"), "{}", error(&swapped));
        fs::set_permissions(&files.key, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(error(files).contains("mode is 0644"));
        put_key(files, b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n");
        let text = error(files);
        assert!(
            text.contains("do not make a pair") && !text.contains("c2VjcmV0") && !text.contains("secret\""),
            "{text}"
        );
        put_key(files, b"nothing");
        assert!(error(files).contains("there is no secret key in it"));
        put_key(files, KeyPair::generate().unwrap().serialize_pem().as_bytes());
        assert!(error(files).ends_with("the key is of another certificate"), "{}", error(files));
        put_key(files, &vec![b'x'; FILE_BYTES_MAX as usize + 1]);
        assert!(error(files).contains("longer than"));
    }

    #[test]
    fn a_broken_new_file_leaves_the_old_certificate() {
        let Pair { _folder, files } = pair(2100);
        let tls = Tls::load(&files).unwrap();
        let old = tls.not_after_ms();
        fs::write(&files.cert, "broken").unwrap();
        assert!(tls.reload().is_err());
        assert_eq!(tls.not_after_ms(), old);
        write(&files, 2101);
        tls.reload().unwrap();
        assert_ne!(tls.not_after_ms(), old);
    }

    proptest! {
        #[test]
        fn no_bytes_of_a_certificate_make_the_reader_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..120), at in 0usize..400, to in any::<u8>()
        ) {
            let _ = not_after_ms(&bytes);
            let mut real = rcgen::generate_simple_self_signed(vec!["a".to_owned()]).unwrap().cert.der().to_vec();
            let at = at % real.len();
            real[at] = to;
            let _ = not_after_ms(&real);
        }
    }
}
