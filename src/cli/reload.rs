//! What a running node takes of a changed `cfg/hp.cfg` when it gets SIGHUP: the level of its log. Everything else is named,
//! and waits for the next start.

use std::path::PathBuf;

use tracing::{error, info, warn};

use super::SetLevel;
use crate::config::{Config, LogLevel, Shown, shown};

/// What the node runs with.
pub(super) struct Reload {
    dir: PathBuf,
    /// Every key, as the process began with it.
    began_with: Vec<Shown>,
    level: LogLevel,
    set_level: SetLevel,
}

impl Reload {
    /// The process begins, with this configuration.
    pub(super) fn new(config: &Config, set_level: SetLevel) -> Reload {
        let began_with = Config::load_text(&config.dir).map(|(text, config)| shown(&text, &config)).unwrap_or_default();
        Reload { dir: config.dir.clone(), began_with, level: config.log.level, set_level }
    }

    /// Reads the file again. A wrong one changes nothing.
    pub(super) fn configuration(&mut self) {
        let (text, config) = match Config::load_text(&self.dir) {
            Ok(read) => read,
            Err(error) => {
                return error!(
                    error = &error as &dyn std::error::Error,
                    "the configuration is wrong; the node goes on with the one before"
                );
            }
        };
        let waiting = waiting(&self.began_with, &shown(&text, &config));
        if config.log.level != self.level {
            let (from, to) = (self.level.name(), config.log.level.name());
            match std::env::var_os("RUST_LOG").is_some_and(|value| !value.is_empty()) {
                true => warn!(from, to, "log.level has changed, but RUST_LOG decides"),
                false if (self.set_level)(config.log.level) => info!(from, to, "log.level has changed"),
                false => error!(from, to, "log.level has changed, but the log does not take it"),
            }
            self.level = config.log.level;
        }
        match waiting.is_empty() {
            true => info!("the configuration was read again"),
            false => warn!(keys = waiting.join(", "), "these keys have changed, which needs a restart"),
        }
    }
}

/// Keys that have another value than the process began with, and that it cannot take.
fn waiting(before: &[Shown], now: &[Shown]) -> Vec<String> {
    let value = |all: &[Shown], key: &str| all.iter().find(|it| it.key() == key).and_then(|it| it.value.clone());
    let keys = now.iter().map(Shown::key).filter(|key| key != "log.level");
    keys.filter(|key| value(before, key) != value(now, key)).collect()
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        sync::{Arc, Mutex},
    };

    use super::*;
    use crate::{config::Document, crypto::SecretKey, types::Hash};

    #[test]
    fn the_level_is_taken_at_once_and_whatever_else_changed_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let secret = SecretKey::from_seed([7; 32]);
        let text = Document::new(&secret, Hash([1; 32]), 0, &[secret.node_key()]).text().to_owned();
        let write = |text: &str| {
            fs::create_dir_all(folder.path().join("cfg")).unwrap();
            let file = super::super::new::write_aside(&folder.path().join("cfg"), text).unwrap();
            file.persist(Config::path(folder.path())).unwrap();
        };
        write(&text);
        let config = Config::load(folder.path()).unwrap();
        let set = Arc::new(Mutex::new(Vec::new()));
        let taken = set.clone();
        let set_level: SetLevel = Box::new(move |level| {
            taken.lock().unwrap().push(level);
            true
        });
        let mut reload = Reload::new(&config, set_level);
        reload.configuration();
        write(&text.replace("level = \"info\"", "level = \"debug\""));
        reload.configuration();
        reload.configuration();
        write("hotpocket = \"9\"");
        reload.configuration();
        let expected: &[LogLevel] = if std::env::var_os("RUST_LOG").is_some() { &[] } else { &[LogLevel::Debug] };
        assert_eq!(*set.lock().unwrap(), expected, "once, and nothing of a wrong file");

        let changed =
            text.replace("roundtime = 1000", "roundtime = 50").replace("format = \"text\"", "format = \"json\"");
        write(&changed.replace("level = \"info\"", "level = \"error\""));
        let (text, config) = Config::load_text(folder.path()).unwrap();
        assert_eq!(waiting(&reload.began_with, &shown(&text, &config)), ["roundtime", "log.format"]);
    }
}
