//! `hp client` at a terminal, and for a program.

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    net::{Net, block_on, call},
    screen::Screen,
};

#[test]
fn a_program_gets_one_object_a_line_for_all_that_happens_and_may_send_a_file() {
    block_on(async {
        let net = Net::up(1).await;
        let url = net.nodes[0].url.as_str();
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("input");
        std::fs::write(&file, "hello").expect("written");
        let path = file.to_str().expect("UTF-8");
        let sent = call(&["client", url, "--send", path, "--timeout", "50"]).await;
        assert_eq!((sent.code, sent.out.as_str()), (Some(0), "5 5\n"), "{}", sent.err);

        let told = call(&["client", url, "--send", path, "--json", "--timeout", "50"]).await;
        let events: Vec<Value> = told.out.lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
        let kinds: Vec<&str> = events.iter().map(|event| event["event"].as_str().expect("a word")).collect();
        assert_eq!((told.code, kinds), (Some(0), vec!["connected", "accepted", "output"]), "{}", told.err);
        assert_eq!((&events[0]["members"], &events[0]["url"]), (&1.into(), &url.into()));
        assert_eq!((&events[1]["seq"], &events[2]["text"]), (&events[2]["seq"], &"5 10".into()));
        assert!(events[1]["latency_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{}", events[1]);

        let failed = call(&["client", url, "--once", "fail", "--json", "--timeout", "50"]).await;
        let last: Value = serde_json::from_str(failed.out.lines().last().expect("a line")).expect("an object");
        assert_eq!((failed.code, &last["event"], &last["proven"]), (Some(1), &"failed".into(), &true.into()));
        let missing = call(&["client", url, "--send", "/no/such/file"]).await;
        assert_eq!(missing.code, Some(1));
        assert!(missing.err.contains("/no/such/file"), "{}", missing.err);
    });
}

#[test]
fn a_person_types_lines_and_commands_and_has_the_terminal_back_at_the_end() {
    block_on(async {
        let net = Net::up(1).await;
        let folder = tempfile::tempdir().expect("a folder");
        let key = folder.path().join("my.key");
        let path = key.to_str().expect("UTF-8");
        let mut screen = Screen::of(&["client", &net.nodes[0].url, "--key", path, "--timeout", "50"]);
        // The test is a thread of the runtime's, which only waits here.
        screen.shows("connected to ws://");
        screen.shows("> ");
        screen.types("hello");
        screen.shows("\x1b[32m  accepted in ledger ");
        screen.shows("< 6 6");
        screen.types("/read hello");
        screen.shows("by this node's word");
        screen.shows("< 5 11");
        screen.types("/lcl");
        screen.shows("  ledger ");
        screen.types("/nope");
        screen.shows("there is no command \"/nope\"");
        screen.types("//x");
        screen.shows("< 3 9");
        screen.types("fail");
        screen.shows("the contract failed in ledger");
        screen.shows("> ");
        screen.types("/key");
        screen.shows("my.key");
        assert!(!screen.is_line_wise(), "keys come one by one while a line is typed");
        screen.types("/quit");
        assert_eq!(screen.ended(), Some(1), "one input failed");
        assert!(screen.is_line_wise(), "the terminal is as it was");
        let history = std::fs::read_to_string(folder.path().join("my.history")).expect("a history");
        assert!(history.contains("hello\n/read hello\n/lcl\n"), "{history}");
        use std::os::unix::fs::PermissionsExt as _;
        let mode = folder.path().join("my.history").metadata().expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    });
}

#[test]
fn lines_that_are_pasted_at_once_are_all_sent_and_a_signal_gives_the_terminal_back() {
    block_on(async {
        let net = Net::up(1).await;
        let folder = tempfile::tempdir().expect("a folder");
        let key = folder.path().join("my.key");
        let path = key.to_str().expect("UTF-8");
        for signal in [Signal::SIGTERM, Signal::SIGHUP] {
            let mut screen = Screen::of(&["client", &net.nodes[0].url, "--key", path]);
            screen.shows("connected to ws://");
            screen.shows("> ");
            screen.keys("one\rtwo\rthree\r");
            for _ in 0..3 {
                screen.shows("accepted in ledger ");
            }
            screen.shows("> ");
            assert!(!screen.is_line_wise());
            screen.signal(signal);
            assert_eq!(screen.ended(), Some(130), "{signal}");
            assert!(screen.is_line_wise(), "{signal}");
        }
    });
}
