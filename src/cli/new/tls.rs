//! `hp new --tls`: a certificate that its own key signs, for trying, or for clients that are told its fingerprint.

use std::{fs, io::Write as _, net::IpAddr, os::unix::fs::OpenOptionsExt as _, path::Path};

use anyhow::Context as _;
use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, date_time_ymd};
use sha2::{Digest as _, Sha256};

use crate::{
    config::{Document, quoted},
    types::Hash,
};

/// Where they are in the contract folder.
const CERT: &str = "cfg/tls.crt";
const KEY: &str = "cfg/tls.key";

/// A pair that is to be written.
pub(super) struct Pair {
    certificate: String,
    key: String,
    fingerprint: Hash,
    names: Vec<String>,
}

/// Draws a key and makes its certificate for this machine's own names, `ip`, and those that are given.
pub(super) fn make(ip: IpAddr, more: &[String]) -> Result<Pair, anyhow::Error> {
    let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec();
    if !ip.is_unspecified() {
        names.push(ip.to_string());
    }
    names.extend(more.iter().cloned());
    names.sort();
    names.dedup();
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("cannot draw a key")?;
    let mut params = CertificateParams::new(names.clone()).context("--tls: a name is no host name and no address")?;
    params.distinguished_name.push(DnType::CommonName, "Hot Pocket node");
    // Who pins a certificate means it for as long as it is there.
    params.not_after = date_time_ymd(2100, 1, 1);
    let certificate = params.self_signed(&key).context("cannot make a certificate")?;
    let fingerprint = Hash(Sha256::digest(certificate.der()).into());
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem(), fingerprint, names })
}

impl Pair {
    /// Names the files in the configuration.
    pub(super) fn set(&self, document: &mut Document) {
        for table in ["user", "http"] {
            document.set(&format!("{table}.tls_cert"), &quoted(CERT));
            document.set(&format!("{table}.tls_key"), &quoted(KEY));
        }
    }

    /// Writes the files. None of them may be there.
    pub(super) fn write(&self, dir: &Path) -> Result<(), anyhow::Error> {
        for (name, text, mode) in [(KEY, &self.key, 0o600), (CERT, &self.certificate, 0o644)] {
            let path = dir.join(name);
            let mut open = fs::File::options();
            let opened = open.write(true).create_new(true).mode(mode).open(&path);
            let written = opened.and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
            written.with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    /// What people are told.
    pub(super) fn report(&self, dir: &Path) -> String {
        format!(
            "\nTLS: {} is for {}; its own key signed it, so clients are told to trust it:\n  hp client wss://HOST:PORT --ca {}\n  \
             hp client wss://HOST:PORT --ca sha256:{}\nThe page over https works once [http] listen is set, and a browser was told the same.\n",
            dir.join(CERT).display(),
            self.names.join(", "),
            dir.join(CERT).display(),
            self.fingerprint
        )
    }
}
