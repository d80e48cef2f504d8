//! `hp new --template`: each project works as it comes, by its own tests.
//!
//! As a rule the quick ones: what the contract answers, alone; and, for one language, in a network. With HP_TEMPLATES=all also
//! `hp check`, each language in a network, and the one in Rust, which is built with what the registry has.

use std::{path::Path, process::Command};

use crate::net::{DEADLINE, hp};

/// Languages, and what each needs.
const LANGUAGES: [(&str, &[&str]); 5] =
    [("c", &["make", "cc"]), ("python", &["python3"]), ("node", &["node"]), ("shell", &[]), ("rust", &["cargo"])];

/// Where a contract's interpreter is looked for.
const CONTRACT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn has(tool: &str, path: &str) -> bool {
    std::env::split_paths(path).any(|folder| folder.join(tool).is_file())
}

/// Runs something in a folder to its end; what it printed.
fn run(folder: &Path, program: &Path, args: &[&str], env: &[(&str, &str)]) -> String {
    let mut command = Command::new(program);
    command.args(args).current_dir(folder).env("HP", hp()).envs(env.iter().copied());
    let output = command.output().unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{} in {}: {text}", program.display(), folder.display());
    text
}

fn works(language: &str) {
    let all = std::env::var_os("HP_TEMPLATES").is_some_and(|value| value == "all");
    let path = if language == "rust" { std::env::var("PATH").unwrap_or_default() } else { CONTRACT_PATH.to_owned() };
    let tools = LANGUAGES.iter().find(|(name, _)| *name == language).expect("one of them").1;
    if let Some(missing) = tools.iter().find(|tool| !has(tool, &path)) {
        eprintln!("skipped: a contract in {language} needs {missing}, which is not in {path}");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let made = run(folder.path(), hp(), &["new", "--template", language, "notes"], &[]);
    assert!(made.contains("made notes") && made.contains("./test "), "{made}");
    let project = folder.path().join("notes");
    // As its README says it is built.
    match language {
        "c" => drop(run(&project, Path::new("make"), &["-s"], &[])),
        "rust" => drop(run(&project, &project.join("build"), &[], &[])),
        _ => {}
    }
    let told = run(&project, &project.join("test"), &[], if all { &[] } else { &[("QUICK", "1")] });
    assert!(told.contains("answers: ok\n") && all == told.contains("nothing differed in 3 ledgers"), "{told}");
    if all || language == "c" {
        let seconds = DEADLINE.as_secs().to_string();
        let told = run(&project, &project.join("test-network"), &[], &[("TIMEOUT", &seconds)]);
        assert_eq!(told.lines().last(), Some("three nodes agree: ok"));
    }
}

#[test]
fn the_project_in_c_is_built_answers_and_agrees_in_a_network() {
    works("c");
}

#[test]
fn the_project_in_python_answers_as_its_readme_says() {
    works("python");
}

#[test]
fn the_project_for_node_answers_as_its_readme_says() {
    works("node");
}

#[test]
fn the_project_in_shell_answers_as_its_readme_says() {
    works("shell");
}

#[test]
fn the_project_in_rust_answers_as_its_readme_says_where_that_is_asked_for() {
    if std::env::var_os("HP_TEMPLATES").is_some_and(|value| value == "all") {
        works("rust");
    } else {
        eprintln!("skipped: HP_TEMPLATES=all builds the contract in Rust, with what the registry has");
    }
}

#[test]
fn no_project_is_made_over_something_or_with_what_a_node_has() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("mine"), "text").expect("written");
    let refused = |args: &[&str]| {
        let output = Command::new(hp()).arg("new").args(args).current_dir(folder.path()).output().expect("hp runs");
        (output.status.code(), String::from_utf8(output.stderr).expect("text"))
    };
    let (code, told) = refused(&["--template", "c", "."]);
    assert_eq!((code, told.contains("is not empty; nothing was changed")), (Some(1), true), "{told}");
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1);
    assert_eq!(refused(&["--template", "cobol", "x"]).0, Some(2));
    assert_eq!(refused(&["--template", "c", "x", "--pubport", "8080"]).0, Some(2));
}
