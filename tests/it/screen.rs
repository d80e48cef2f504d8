//! A program at a terminal: what it shows, keys and signals for it.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::{AsFd as _, OwnedFd},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Instant,
};

use nix::{
    pty::{Winsize, openpty},
    sys::{
        signal::Signal,
        termios::{LocalFlags, tcgetattr},
    },
};

use crate::net::{DEADLINE, hp, send_signal};

/// `hp` at a terminal of 40 lines of 200 characters. It is killed with this.
pub struct Screen {
    program: Child,
    keys: File,
    /// The program's end, which stays open here: how the keys come can be looked at when the program is gone.
    terminal: OwnedFd,
    shown: mpsc::Receiver<Vec<u8>>,
    seen: String,
}

impl Drop for Screen {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

impl Screen {
    /// Starts it.
    pub fn of(args: &[&str]) -> Screen {
        let size = Winsize { ws_row: 40, ws_col: 200, ws_xpixel: 0, ws_ypixel: 0 };
        let terminal = openpty(&size, None).expect("a terminal");
        let end = || -> OwnedFd { terminal.slave.try_clone().expect("another end") };
        let program = Command::new(hp())
            .args(args)
            .env("TERM", "xterm")
            .env_remove("NO_COLOR")
            .stdin(Stdio::from(end()))
            .stdout(Stdio::from(end()))
            .stderr(Stdio::from(end()))
            .spawn()
            .expect("hp starts");
        let mut from = File::from(terminal.master.try_clone().expect("another end"));
        let (sender, shown) = mpsc::channel();
        // Ends with the test's process at the latest.
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(bytes @ 1..) = from.read(&mut piece) {
                if sender.send(piece[..bytes].to_vec()).is_err() {
                    break;
                }
            }
        });
        let keys = File::from(terminal.master);
        Screen { program, keys, terminal: terminal.slave, shown, seen: String::new() }
    }

    /// Types a line.
    pub fn types(&mut self, line: &str) {
        self.keys(&format!("{line}\r"));
    }

    /// Sends keys, in one piece.
    pub fn keys(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).expect("typed");
    }

    /// Waits until this is shown, behind what was waited for before.
    pub fn shows(&mut self, words: &str) {
        let deadline = Instant::now() + DEADLINE;
        while !self.seen.contains(words) {
            let left = deadline.saturating_duration_since(Instant::now());
            let more = self.shown.recv_timeout(left).unwrap_or_else(|_| panic!("no {words:?} in {:?}", self.seen));
            self.seen += &String::from_utf8_lossy(&more);
        }
        self.seen = self.seen.split_once(words).expect("it is there").1.to_owned();
    }

    /// Whether keys come a line at a time and are shown, as a shell wants it.
    pub fn is_line_wise(&self) -> bool {
        let flags = tcgetattr(self.terminal.as_fd()).expect("a terminal").local_flags;
        flags.contains(LocalFlags::ICANON | LocalFlags::ECHO)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        send_signal(self.program.id(), signal);
    }

    /// Waits for the end; the exit code. The runner ends what hangs.
    pub fn ended(&mut self) -> Option<i32> {
        self.program.wait().expect("it ends").code()
    }
}
