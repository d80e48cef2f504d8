//! The terminal as it was found, for whoever changes how its keys come.

use std::io;

use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};

/// How the keys of stdin's terminal came when this was made: so they come again when it is dropped, also by a panic.
pub(super) struct Restore(Termios);

impl Restore {
    /// `None` when stdin is no terminal.
    pub(super) fn take() -> Option<Restore> {
        tcgetattr(io::stdin()).ok().map(Restore)
    }
}

impl Drop for Restore {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, &self.0);
    }
}
