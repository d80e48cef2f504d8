//! `hp status --watch`: nodes as they are, as long as somebody looks. A node is asked to answer when something changed; one
//! that is down is looked for again until it is there.

use std::{
    io::{self, IsTerminal as _},
    path::PathBuf,
    time::Duration,
};

use anyhow::Context as _;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use serde_json::Value;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    super::{Failure, Outcome, answer, run::Stop},
    folder_name,
    view::{View, Watched, line},
};
use crate::node::control::{self, Request};

/// Between two answers of a node, and two drawings, at least.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Between two tries to reach a node that is down.
const TRY_EVERY: Duration = Duration::from_secs(1);
/// A node that says nothing for so long stands still.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// News and keys that were not taken yet. At it nodes and keys wait.
const NEWS_MAX: usize = 64;

/// What happened.
enum News {
    /// Of the node at this place of the list.
    Node(usize, Result<Value, String>),
    Terminal(Event),
    /// Nothing can be read from it any more.
    TerminalGone,
}

/// Shows the nodes in these folders until it is told to stop.
pub(super) fn watch(dirs: Vec<PathBuf>, json: bool) -> Outcome {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    let outcome = runtime.block_on(async {
        let stop = Stop::watch_hangup().context("cannot watch for signals")?;
        let (told, news) = mpsc::channel(NEWS_MAX);
        for (at, dir) in dirs.iter().enumerate() {
            tokio::spawn(follow(at, dir.clone(), told.clone()));
        }
        let nodes = dirs.iter().map(|dir| Watched { name: folder_name(dir), ..Watched::default() }).collect();
        let is_drawn = !json && io::stdout().is_terminal() && io::stdin().is_terminal();
        let colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let view = View { nodes, colours, ..View::default() };
        if is_drawn { draw(view, news, told, stop).await } else { tell(view.nodes, news, json, stop).await }
    });
    // The thread that reads keys waits for one.
    runtime.shutdown_background();
    outcome
}

/// Asks a node again and again; it answers when something changed.
async fn follow(at: usize, dir: PathBuf, told: mpsc::Sender<News>) {
    // No node begins with this number, so that the first answer comes at once.
    let mut after = u64::MAX;
    loop {
        let asked = timeout(ANSWER_TIME, control::ask(&dir, &Request::Watch { after })).await;
        let (heard, pause) = match asked {
            Ok(Ok(status)) => {
                after = status["change"].as_u64().unwrap_or(u64::MAX);
                (Ok(status), LOOK_EVERY)
            }
            Ok(Err(error)) => {
                after = u64::MAX;
                (Err(super::no_answer(&dir, &error)), TRY_EVERY)
            }
            Err(_) => (Err(super::stands_still(&dir, ANSWER_TIME)), TRY_EVERY),
        };
        if told.send(News::Node(at, heard)).await.is_err() {
            return;
        }
        sleep(pause).await;
    }
}

impl Watched {
    fn hear(&mut self, heard: Result<Value, String>) {
        match heard {
            Ok(status) => (self.status, self.down) = (Some(status), None),
            Err(why) => self.down = Some(why),
        }
    }
}

/// A line for each change, for whatever reads them.
async fn tell(mut nodes: Vec<Watched>, mut news: mpsc::Receiver<News>, json: bool, stop: Stop) -> Outcome {
    let stop = stop.wait();
    tokio::pin!(stop);
    let mut told: Vec<String> = vec![String::new(); nodes.len()];
    loop {
        let next = tokio::select! {
            _ = &mut stop => return Ok(()),
            next = news.recv() => next,
        };
        let Some(News::Node(at, heard)) = next else { continue };
        nodes[at].hear(heard);
        let node = &nodes[at];
        let text = match (&node.down, json) {
            (None, true) => super::named(node.status.clone().unwrap_or_default(), &node.name).to_string(),
            (Some(why), true) => serde_json::json!({ "folder": node.name, "error": why }).to_string(),
            (_, false) => line(node),
        };
        // A node that is down is still down, and the times of a status alone are no change.
        if told[at] != text {
            answer(&format!("{text}\n"))?;
            told[at] = text;
        }
    }
}

/// Puts the terminal back however this ends.
struct Restored;

impl Drop for Restored {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

async fn draw(mut view: View, mut news: mpsc::Receiver<News>, told: mpsc::Sender<News>, stop: Stop) -> Outcome {
    let stop = stop.wait();
    tokio::pin!(stop);
    // Also puts it back before a panic is told.
    let mut terminal = ratatui::try_init().context("cannot draw on this terminal")?;
    let _restored = Restored;
    std::thread::spawn(move || {
        loop {
            let next = event::read().map_or(News::TerminalGone, News::Terminal);
            let is_over = matches!(next, News::TerminalGone);
            if told.blocking_send(next).is_err() || is_over {
                return;
            }
        }
    });
    let mut drawn: Option<Instant> = None;
    // Whether something is not on the screen yet.
    let mut is_due = true;
    loop {
        let at = drawn.map_or_else(Instant::now, |drawn| drawn + LOOK_EVERY);
        tokio::select! {
            biased;
            _ = &mut stop => return Ok(()),
            next = news.recv() => match next {
                Some(News::Node(at, heard)) => {
                    view.nodes[at].hear(heard);
                    is_due = true;
                }
                Some(News::Terminal(Event::Key(key))) => {
                    if is_over(&mut view, key) {
                        return Ok(());
                    }
                    // Whoever presses a key looks.
                    (drawn, is_due) = (None, true);
                }
                Some(News::Terminal(Event::Resize(..))) => (drawn, is_due) = (None, true),
                Some(News::Terminal(_)) => {}
                Some(News::TerminalGone) | None => return Ok(()),
            },
            () = sleep_until(at), if is_due => {
                terminal.draw(|frame| view.draw(frame)).map_err(Failure::from)?;
                (drawn, is_due) = (Some(Instant::now()), false);
            }
        }
    }
}

/// What a key does; whether it ends the view.
fn is_over(view: &mut View, key: KeyEvent) -> bool {
    if key.kind == KeyEventKind::Release {
        return false;
    }
    match key.code {
        KeyCode::Char('c' | 'd') if key.modifiers.contains(KeyModifiers::CONTROL) => return true,
        KeyCode::Esc if view.help => view.help = false,
        KeyCode::Char('q') | KeyCode::Esc => return true,
        KeyCode::Char('?' | 'h') => view.help = !view.help,
        KeyCode::Down | KeyCode::Right | KeyCode::Char('j') | KeyCode::Tab => view.choose(true),
        KeyCode::Up | KeyCode::Left | KeyCode::Char('k') | KeyCode::BackTab => view.choose(false),
        _ => {}
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_choose_help_and_leave() {
        let mut view = View { nodes: vec![Watched::default(); 3], ..View::default() };
        let mut press = |code, modifiers| {
            let over = is_over(&mut view, KeyEvent::new(code, modifiers));
            (over, view.chosen, view.help)
        };
        let none = KeyModifiers::NONE;
        assert_eq!(press(KeyCode::Down, none), (false, 1, false));
        assert_eq!(press(KeyCode::Char('k'), none), (false, 0, false));
        assert_eq!(press(KeyCode::Char('?'), none), (false, 0, true));
        assert_eq!(press(KeyCode::Esc, none), (false, 0, false), "out of the help first");
        assert_eq!(press(KeyCode::Char('c'), none), (false, 0, false));
        assert!(press(KeyCode::Char('c'), KeyModifiers::CONTROL).0 && press(KeyCode::Esc, none).0);
    }
}
