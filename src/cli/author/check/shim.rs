//! A library that is loaded into a contract before its own, so that a source of chance is held still or is another one.
//!
//! Compiled here and now, with the system's C compiler: a clock or the machine's randomness cannot be changed for one
//! program in another way without privileges. It reaches programs that load the C library, also as interpreters.

use std::{
    fs,
    io::Read as _,
    path::Path,
    process::{Command, Stdio},
};

const SOURCE: &str = include_str!("shim.c");

/// What the library does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Shim {
    /// The wall clock is 400 days and some hours early. Not late: who waits until a time would wait for long.
    pub(super) early: bool,
    /// Clocks count how often they were looked at.
    pub(super) steps: bool,
    /// Random bytes are always alike.
    pub(super) random: bool,
    /// So are process ids.
    pub(super) pid: bool,
}

impl Shim {
    /// Compiles it to `library`; if that cannot be, why.
    pub(super) fn compile(self, library: &Path) -> Result<(), String> {
        let source = library.with_extension("c");
        fs::write(&source, SOURCE).map_err(|error| format!("cannot write {}: {error}", source.display()))?;
        let flags = [
            (self.early, "-DSHIFT_S=-34586000"),
            (self.steps, "-DSTEPS"),
            (self.random, "-DRANDOM"),
            (self.pid, "-DPID"),
        ];
        let mut command = Command::new("cc");
        command.args(["-shared", "-fPIC", "-O1"]).args(flags.iter().filter(|(is_on, _)| *is_on).map(|(_, flag)| flag));
        command.arg("-o").arg(library).arg(&source).stdin(Stdio::null());
        let compiled =
            command.output().map_err(|error| format!("needs a C compiler, and cc does not start: {error}"))?;
        if compiled.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&compiled.stderr);
        Err(format!("cc cannot compile the library for it: {}", said.lines().next().unwrap_or_default()))
    }
}

/// Why no library can be loaded into this program; `None` where it can.
pub(super) fn unreachable(program: &Path) -> Option<&'static str> {
    if !cfg!(target_os = "linux") {
        return Some("works on Linux alone");
    }
    let mut head = Vec::new();
    let read = fs::File::open(program).and_then(|file| file.take(4_096).read_to_end(&mut head));
    if read.is_err() || !head.starts_with(b"\x7fELF\x02\x01") {
        return None; // a script, whose interpreter is looked at by nobody
    }
    let number = |at: usize, bytes: usize| {
        let field = head.get(at..at + bytes)?;
        Some(field.iter().rev().fold(0usize, |number, byte| number << 8 | usize::from(*byte)))
    };
    let has_loader = || {
        const INTERP: usize = 3;
        let (begin, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        Some((0..count).any(|at| number(begin.saturating_add(at * size), 4) == Some(INTERP)))
    };
    let is_static = has_loader() == Some(false);
    is_static.then_some("the executable is linked statically, so that nothing can be put before its C library")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn a_static_program_is_told_from_others() {
        assert_eq!(unreachable(Path::new("/bin/sh")), None);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("program");
        fs::write(&file, "#!/bin/sh\n").unwrap();
        assert_eq!(unreachable(&file), None);
        let mut elf = [0; 120];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (elf[32], elf[54], elf[56], elf[64]) = (64, 56, 1, 1);
        fs::write(&file, elf).unwrap();
        assert!(unreachable(&file).is_some(), "one segment, which is no loader");
        elf[64] = 3;
        fs::write(&file, elf).unwrap();
        assert_eq!(unreachable(&file), None);
    }
}
