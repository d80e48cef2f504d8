//! `hp new --template`: the project of a contract, ready to be changed, with its tests. The files are in `templates/`.

use std::{fs, io, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::{Context as _, bail};

use crate::cli::{Outcome, answer};

/// The language of a contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(in crate::cli) enum Language {
    /// C, built by make and cc
    C,
    /// Python 3, with nothing but its standard library
    Python,
    /// JavaScript for Node.js, with nothing but its own modules
    Node,
    /// POSIX shell
    Shell,
    /// Rust, built by cargo, with serde_json
    Rust,
}

/// A file of a project, by its path there.
struct Part {
    path: &'static str,
    text: &'static str,
    is_executable: bool,
}

const fn text(path: &'static str, text: &'static str) -> Part {
    Part { path, text, is_executable: false }
}

const fn program(path: &'static str, text: &'static str) -> Part {
    Part { path, text, is_executable: true }
}

macro_rules! template {
    ($path:literal) => {
        include_str!(concat!("../../../templates/", $path))
    };
}

/// What every project has. `{{...}}` is filled in.
const COMMON: [Part; 5] = [
    text("README.md", template!("common/README.md")),
    text(".gitignore", template!("common/gitignore")),
    program("test", template!("common/test")),
    text("test-inputs.jsonl", template!("common/test-inputs.jsonl")),
    program("test-network", template!("common/test-network")),
];

/// What differs between languages.
struct Words {
    parts: &'static [Part],
    /// The command that builds it, if it has to be built.
    build: Option<&'static str>,
    /// What is where, but for the files that all have.
    files: &'static str,
    /// What to beware of in this language.
    care: &'static str,
}

impl Language {
    fn words(self) -> Words {
        match self {
            Language::C => Words {
                parts: const {
                    &[text("src/contract.c", template!("c/src/contract.c")), text("Makefile", template!("c/Makefile"))]
                },
                build: Some("make"),
                files: "`src/contract.c` is the contract, `make` builds `bin/contract` of it.",
                care: "In C that is uninitialised memory too, also between the fields of a struct that is written as a whole.",
            },
            Language::Python => Words {
                parts: const { &[program("bin/contract", template!("python/bin/contract"))] },
                build: None,
                files: "`bin/contract` is the contract; nothing has to be built.",
                care: "In Python that is the order of a set, `hash()` and `id()`. `-I -S` in the first line keeps out what is installed on one machine \
                       only, and starts four times as fast; modules of your own go to `bin/`, behind `sys.path.insert(0, \"bin\")`. Nodes need the same \
                       version of Python.",
            },
            Language::Node => Words {
                parts: const { &[program("bin/contract", template!("node/bin/contract"))] },
                build: None,
                files: "`bin/contract` is the contract; nothing has to be built.",
                care: "In JavaScript that is `Date`, `Math.random()`, what `Intl` and `toLocaleString` make, and what depends on which promise is done \
                       first. Modules of your own go to `bin/`, and so does `node_modules`. Nodes need the same version of Node.js.",
            },
            Language::Shell => Words {
                parts: const { &[program("bin/contract", template!("shell/bin/contract"))] },
                build: None,
                files: "`bin/contract` is the contract; nothing has to be built.",
                care: "In a shell that is every program it calls: another `sed` or `sort`, or another `/bin/sh`, may do another thing. Nodes need the \
                       same system.",
            },
            Language::Rust => Words {
                parts: const {
                    &[
                        text("src/main.rs", template!("rust/src/main.rs")),
                        // Not named Cargo.toml where it is kept: this project would take it for a package of its own.
                        text("Cargo.toml", template!("rust/Cargo.toml.in")),
                        program("build", template!("rust/build")),
                    ]
                },
                build: Some("./build"),
                files: "`src/main.rs` is the contract, `./build` makes `bin/contract` of it. The first build fetches `serde_json` from the registry; \
                        after `cargo vendor` it needs no network.",
                care: "In Rust that is the order of a `HashMap` and a `HashSet`; take a `BTreeMap`.",
            },
        }
    }
}

/// Makes the project in `dir`, which must not exist or be empty.
pub(super) fn make(language: Language, dir: &Path) -> Outcome {
    let name = name_of(dir)?;
    let is_taken = match fs::read_dir(dir) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => {
            return Err(anyhow::Error::new(error).context(format!("cannot look into {}", dir.display())).into());
        }
    };
    if is_taken {
        return Err(anyhow::anyhow!("{} is not empty; nothing was changed", dir.display()).into());
    }
    let words = language.words();
    for part in COMMON.iter().chain(words.parts) {
        write(dir, part, &fill(part.text, &name, &words))?;
    }
    answer(&report(dir, &words))
}

/// The project's name: that of its folder.
fn name_of(dir: &Path) -> anyhow::Result<String> {
    let full = std::path::absolute(dir).with_context(|| format!("cannot tell where {} is", dir.display()))?;
    match full.file_name().and_then(|name| name.to_str()) {
        Some(name) if !name.chars().any(char::is_control) => Ok(name.to_owned()),
        _ => bail!("{} gives the project no name; name a new folder", dir.display()),
    }
}

fn fill(text: &str, name: &str, words: &Words) -> String {
    let (build, ignore) = match words.build {
        Some(build) => (format!("{build}\n"), "# Built.\n/bin/\n/target/\n"),
        None => (String::new(), ""),
    };
    // In the README it stands in a console, with what it is for.
    let console = words.build.map(|build| format!("{build:<28}# builds bin/contract\n$ ")).unwrap_or_default();
    text.replace("$ {{build}}", &format!("$ {console}"))
        .replace("{{build}}", &build)
        .replace("{{ignore}}", ignore)
        .replace("{{files}}", &format!("{} `test` and `test-network` are its tests.\n", words.files))
        .replace("{{care}}", words.care)
        .replace("{{name}}", name)
}

fn write(dir: &Path, part: &Part, text: &str) -> anyhow::Result<()> {
    let path = dir.join(part.path);
    let written = || -> io::Result<()> {
        fs::create_dir_all(path.parent().expect("a file is in a folder"))?;
        // Not over a file that somebody put there meanwhile.
        let mut file = fs::File::create_new(&path)?;
        io::Write::write_all(&mut file, text.as_bytes())?;
        let mode = file.metadata()?.permissions().mode();
        // Whoever may read it may execute it.
        let mode = if part.is_executable { mode | ((mode & 0o444) >> 2) } else { mode };
        file.set_permissions(fs::Permissions::from_mode(mode))
    };
    written().with_context(|| format!("cannot write {}", path.display()))
}

fn report(dir: &Path, words: &Words) -> String {
    let mut text = format!("made {}, a contract that works already:\n", dir.display());
    for part in words.parts.iter().chain(&COMMON) {
        text += &format!("  {}\n", part.path);
    }
    text += &format!("\nNext:\n  cd {}\n", dir.display());
    if let Some(build) = words.build {
        text += &format!("  {build}\n");
    }
    text + "  ./test             (alone: what it answers, and whether it does so everywhere)\n  hp dev             (a network \
            around it, which takes over each change of bin/)\n"
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn every_file_of_every_language_is_filled_in_and_every_script_can_be_run() {
        for language in Language::value_variants() {
            let folder = tempfile::tempdir().unwrap();
            let dir = folder.path().join("my {{care}} notes");
            make(*language, &dir).map_err(|failure| failure.error).unwrap();
            let words = language.words();
            for part in COMMON.iter().chain(words.parts) {
                let text = fs::read_to_string(dir.join(part.path)).unwrap();
                let left = text.replace("my {{care}} notes", "");
                assert!(!left.contains("{{") && !text.is_empty(), "{language:?} {}: {text}", part.path);
                let mode = fs::metadata(dir.join(part.path)).unwrap().permissions().mode();
                assert_eq!(text.starts_with("#!"), mode & 0o100 != 0, "{language:?} {}", part.path);
            }
            let readme = fs::read_to_string(dir.join("README.md")).unwrap();
            assert!(readme.starts_with("# my {{care}} notes\n"), "{readme}");
            let again = make(*language, &dir).unwrap_err().error.unwrap().to_string();
            assert!(again.contains("is not empty; nothing was changed"), "{again}");
        }
    }

    #[test]
    fn a_folder_without_a_name_makes_no_project() {
        for dir in ["/", "..", "a\nb"] {
            assert!(make(Language::C, Path::new(dir)).is_err(), "{dir:?}");
        }
    }
}
