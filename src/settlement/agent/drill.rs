//! What a test may want of the agent: that it stands still behind a step for good, so that its process can be killed there, or
//! that members do not take turns.
//!
//! For real processes it is read from the environment, by builds with debug assertions alone: no release has it.

use std::{env, sync::Arc};

use tokio::time::Duration;
use tracing::warn;

/// The variable: `park=` and a point, `together`, or both with a comma between them.
const VARIABLE: &str = "HP_TEST_SETTLING";

/// Whether the agent stands still at the point with this name.
pub(super) type Stop = Arc<dyn Fn(&'static str) -> bool + Send + Sync>;

/// See the module. Of a node that no test runs, it is empty.
#[derive(Clone, Default)]
pub(super) struct Drill {
    stop: Option<Stop>,
    together: bool,
}

impl Drill {
    /// What the environment says; nothing in a release.
    pub(super) fn of_environment() -> Drill {
        if !cfg!(debug_assertions) {
            return Drill::default();
        }
        let Ok(said) = env::var(VARIABLE) else { return Drill::default() };
        warn!(VARIABLE, said, "this node settles as a test wants it");
        let park = said.split(',').find_map(|word| word.strip_prefix("park=")).map(str::to_owned);
        Drill {
            stop: park.map(|park| Arc::new(move |point: &'static str| point == park) as Stop),
            together: said.split(',').any(|word| word == "together"),
        }
    }

    #[cfg(test)]
    pub(super) fn stopping(stop: Option<Stop>) -> Drill {
        Drill { stop, together: false }
    }

    /// Time between two members that post.
    pub(super) fn slot(&self, configured: Duration) -> Duration {
        if self.together { Duration::ZERO } else { configured }
    }

    /// Never returns, if a test wants it so.
    pub(super) async fn point(&self, name: &'static str) {
        if self.stop.as_ref().is_some_and(|stop| stop(name)) {
            std::future::pending().await
        }
    }
}
