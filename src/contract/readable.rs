//! What a contract must be able to read, wherever this machine keeps it: the system's programs and libraries, and the
//! interpreters between the binary and the code that it is.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::{self, File},
    io::Read as _,
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    path::{Path, PathBuf},
};

/// What programs, libraries and language runtimes are made of.
const SYSTEM: &[&str] = &[
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/opt",
    "/nix/store",
    "/gnu/store",
    "/proc",
    "/sys",
];

/// Of /etc what programs read to start and to behave, and nothing that holds a secret.
const SETTINGS: &[&str] = &[
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/ld.so.preload",
    "/etc/alternatives",
    "/etc/passwd",
    "/etc/group",
    "/etc/nsswitch.conf",
    "/etc/host.conf",
    "/etc/hosts",
    "/etc/resolv.conf",
    "/etc/gai.conf",
    "/etc/protocols",
    "/etc/services",
    "/etc/localtime",
    "/etc/timezone",
    "/etc/os-release",
    "/etc/debian_version",
    "/etc/locale.alias",
    "/etc/locale.conf",
    "/etc/mime.types",
    "/etc/magic",
    "/etc/inputrc",
    "/etc/profile",
    "/etc/bash.bashrc",
    "/etc/bashrc",
    "/etc/fonts",
    "/etc/perl",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/ssl/cert.pem",
    "/etc/pki/tls/certs",
    "/etc/pki/tls/openssl.cnf",
    "/etc/pki/ca-trust/extracted",
    "/etc/crypto-policies",
];

/// Where names are looked up with a network.
const NETWORK: &[&str] = &["/run/systemd/resolve", "/run/resolvconf", "/run/NetworkManager/resolv.conf"];

/// Devices that are alike everywhere and hold nothing.
pub(super) const DEVICES: &[&str] = &["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];

/// Links from a name to a file, and scripts that are interpreted by scripts, that are followed.
const HOPS_MAX: usize = 16;

/// Bytes of a script's first line that the kernel looks at.
const LINE_BYTES_MAX: u64 = 256;

/// What a program is started with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Program<'a> {
    /// The contract folder.
    pub(super) dir: &'a Path,
    /// Absolute, or relative to it.
    pub(super) binary: &'a Path,
    /// Without its name.
    pub(super) args: &'a [String],
    /// `PATH` of its environment.
    pub(super) path: &'a OsStr,
}

/// Everything that a program may need to read, and `more`. Never anything at or above one of `secrets`: where such a
/// folder is needed, what is beside the secret stands for it. Of the contract folder only what the program is started
/// with, and `more`.
pub(super) fn paths(program: Program<'_>, network: bool, more: &[PathBuf], secrets: &[PathBuf]) -> Vec<PathBuf> {
    let real = |path: &Path| fs::canonicalize(path).unwrap_or(path.to_owned());
    let mut secrets: Vec<PathBuf> = secrets.iter().map(|path| real(path)).collect();
    let mut paths = BTreeSet::new();
    let mut named = more.to_vec();
    for file in files_of(program) {
        named.extend(home_of(&file, program.dir));
        named.push(file);
    }
    let dir = real(program.dir);
    for path in named.iter().map(|path| real(path)).filter(|path| path.starts_with(&dir)) {
        around(path, &secrets, &mut paths);
    }
    secrets.push(dir);
    let network = if network { NETWORK } else { &[] };
    let system = [SYSTEM, SETTINGS, network].concat().into_iter().map(PathBuf::from);
    for path in system.chain(named) {
        around(real(&path), &secrets, &mut paths);
    }
    paths.into_iter().collect()
}

/// Adds `path`, or, where that would show a secret, all that is beside it.
fn around(path: PathBuf, secrets: &[PathBuf], paths: &mut BTreeSet<PathBuf>) {
    if secrets.iter().any(|secret| path.starts_with(secret)) {
        return;
    }
    if !secrets.iter().any(|secret| secret.starts_with(&path)) {
        // Each costs every run a little.
        if path.exists() && !paths.iter().any(|above| path.starts_with(above)) {
            paths.insert(path);
        }
        return;
    }
    for entry in fs::read_dir(&path).into_iter().flatten().flatten() {
        // A link is no way around: what it leads to needs a rule of its own.
        if entry.file_type().is_ok_and(|kind| !kind.is_symlink()) {
            around(entry.path(), secrets, paths);
        }
    }
}

/// The files that are executed one for the other: the binary, the interpreter that its first line names, and so on;
/// each with the links that lead to it.
pub(super) fn files_of(program: Program<'_>) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut next = Some((program.dir.join(program.binary), program.args.to_vec()));
    while let Some((file, args)) = next.take() {
        if files.len() > HOPS_MAX {
            break;
        }
        let at = links(&file, &mut files);
        next = match interpreter(&at) {
            Some((interpreter, argument)) => {
                let argument = argument.into_iter().chain([file.to_string_lossy().into_owned()]);
                Some((program.dir.join(interpreter), argument.collect()))
            }
            None if at.file_name() == Some(OsStr::new("env")) => {
                named(&args).and_then(|name| search(&name, program)).map(|found| (found, Vec::new()))
            }
            None => None,
        };
    }
    files
}

/// Notes a file and every link on the way to it; returns the last.
fn links(file: &Path, files: &mut Vec<PathBuf>) -> PathBuf {
    let mut file = file.to_owned();
    for _ in 0..HOPS_MAX {
        files.push(file.clone());
        match fs::read_link(&file) {
            Ok(target) => file = file.parent().unwrap_or(Path::new("/")).join(target),
            Err(_) => break,
        }
    }
    file
}

/// What stands behind `#!` in a script, and its argument.
fn interpreter(file: &Path) -> Option<(PathBuf, Option<String>)> {
    let mut line = Vec::new();
    // Opening a fifo would wait for a writer.
    if !fs::metadata(file).is_ok_and(|meta| meta.is_file()) {
        return None;
    }
    File::open(file).ok()?.take(LINE_BYTES_MAX).read_to_end(&mut line).ok()?;
    let line = line.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let line = String::from_utf8_lossy(line);
    let line = line.trim();
    match line.split_once([' ', '\t']) {
        Some((path, argument)) => Some((path.into(), Some(argument.trim().to_owned()))),
        None => Some((line.into(), None)).filter(|_| !line.is_empty()),
    }
}

/// The program that `env` starts with these arguments.
fn named(args: &[String]) -> Option<String> {
    // With -S the kernel's one argument is many.
    let words = args.iter().flat_map(|arg| arg.split_ascii_whitespace());
    for word in words {
        match word.strip_prefix("-S").or_else(|| word.strip_prefix("--split-string=")) {
            Some("") => {}
            Some(name) => return Some(name.to_owned()),
            None if word.starts_with('-') || word.contains('=') => {}
            None => return Some(word.to_owned()),
        }
    }
    None
}

fn search(name: &str, program: Program<'_>) -> Option<PathBuf> {
    if name.contains('/') {
        return Some(program.dir.join(name));
    }
    let folders = program.path.as_bytes().split(|byte| *byte == b':').map(OsStr::from_bytes);
    folders.map(|folder| program.dir.join(folder).join(name)).find(|file| is_executable(file))
}

/// Whether this is a file that somebody may execute.
pub(super) fn is_executable(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// The folder that an installed program lives in with its libraries: `X` of `X/bin/program`. None where that is the
/// system, or somebody's home.
fn home_of(file: &Path, dir: &Path) -> Option<PathBuf> {
    let folder = file.parent()?;
    if !matches!(folder.file_name()?.as_bytes(), b"bin" | b"sbin") {
        return None;
    }
    let home = fs::canonicalize(folder.parent()?).ok()?;
    let is_users = home.parent() == Some(Path::new("/home"))
        || home == Path::new("/root")
        || std::env::var_os("HOME").is_some_and(|own| home == Path::new(&own));
    let is_own = fs::canonicalize(dir).is_ok_and(|dir| dir.starts_with(&home));
    (home.parent().is_some() && !is_users && !is_own).then_some(home)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn executable(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn files(dir: &Path, binary: &str, args: &[&str], path: &str) -> Vec<PathBuf> {
        let args: Vec<String> = args.iter().map(ToString::to_string).collect();
        files_of(Program { dir, binary: Path::new(binary), args: &args, path: OsStr::new(path) })
    }

    #[test]
    fn interpreters_are_found_behind_links_and_through_env() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let at = |name: &str| dir.join(name);
        executable(&at("tools/3.11/bin/python3.11"), "\x7fELF");
        fs::create_dir_all(at("path")).unwrap();
        symlink(at("tools/3.11/bin/python3.11"), at("path/python3")).unwrap();
        fs::write(at("path/node"), "not executable").unwrap();
        executable(&at("second/node"), "\x7fELF");
        let path = format!("{}:{}", at("path").display(), at("second").display());
        let python = [at("path/python3"), at("tools/3.11/bin/python3.11")];
        for (line, behind) in [
            ("#!/usr/bin/env python3", &python[..]),
            ("#! /usr/bin/env -S python3 -I -S", &python[..]),
            ("#!/usr/bin/env -iS A=b python3", &python[..]),
            ("#!/usr/bin/env node\n", &[at("second/node")]),
            ("#!/usr/bin/env missing", &[]),
        ] {
            executable(&at("bin/contract"), line);
            let found = files(dir, "bin/contract", &[], &path);
            assert_eq!(found[0], at("bin/contract"));
            assert!(found.contains(&"/usr/bin/env".into()) && found.ends_with(behind), "{line}: {found:?}");
        }
        executable(&at("bin/contract"), "#!second/node --flag\nmore");
        assert_eq!(files(dir, "bin/contract", &[], &path), [at("bin/contract"), at("second/node")]);
        let found = files(dir, "/usr/bin/env", &["-i", "python3", "-c", "x"], &path);
        assert!(found.ends_with(&python), "{found:?}");
        executable(&at("bin/contract"), &format!("#!{}", at("bin/contract").display()));
        assert!(files(dir, "bin/contract", &[], &path).len() <= HOPS_MAX + 2);
    }

    #[test]
    fn an_interpreter_brings_its_installation_along_and_no_home() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        executable(&root.join("pyenv/3.11/bin/python3"), "\x7fELF");
        assert_eq!(home_of(&root.join("pyenv/3.11/bin/python3"), Path::new("/nowhere")), Some(root.join("pyenv/3.11")));
        assert_eq!(home_of(&root.join("pyenv/3.11/python3"), Path::new("/nowhere")), None);
        // The contract folder lies in it.
        fs::create_dir_all(root.join("pyenv/3.11/node")).unwrap();
        assert_eq!(home_of(&root.join("pyenv/3.11/bin/python3"), &root.join("pyenv/3.11/node")), None);
        assert_eq!(home_of(Path::new("/bin/sh"), Path::new("/nowhere")).filter(|home| home == Path::new("/")), None);
    }

    #[test]
    fn a_secret_is_left_out_of_what_is_readable_around_it() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        for folder in ["opt/tool/lib", "opt/nodes/a/cfg", "opt/nodes/b"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        symlink(root.join("opt/nodes/a"), root.join("opt/link")).unwrap();
        let program =
            Program { dir: &root.join("opt/nodes/a"), binary: Path::new("/bin/sh"), args: &[], path: OsStr::new("") };
        let found = paths(program, false, &[root.join("opt")], &[root.join("opt/nodes/a")]);
        let mine: Vec<&PathBuf> = found.iter().filter(|path| path.starts_with(&root)).collect();
        assert_eq!(mine, [&root.join("opt/nodes/b"), &root.join("opt/tool")]);
        assert!(found.contains(&"/usr".into()) && !found.contains(&"/etc/shadow".into()));
    }
}
