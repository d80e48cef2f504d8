//! Draws how far a node that is behind has come, below its log, when stderr is a terminal.

use std::io::{self, Write};

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};
use tracing_subscriber::fmt::MakeWriter;

use crate::{
    node::{
        Draw, SyncProgress,
        progress::{self, Part},
    },
    state::sync::Progress,
};

/// Two bars, while the node is behind, and one, while it fetches the state.
pub(super) fn draw(bars: MultiProgress) -> Draw {
    let mut shown: Option<[ProgressBar; 2]> = None;
    let mut state: Option<ProgressBar> = None;
    Box::new(move |progress: Option<&progress::Progress>, fetching: Option<&SyncProgress>| {
        match progress {
            None => {
                if let Some(old) = shown.take() {
                    old.iter().for_each(ProgressBar::finish_and_clear);
                }
            }
            Some(progress::Progress { verified, executed }) => {
                let [first, second] = shown.get_or_insert_with(|| ["fetched", "run"].map(|name| bars.add(bar(name))));
                set(first, verified);
                set(second, executed);
            }
        }
        match fetching {
            None => {
                if let Some(old) = state.take() {
                    old.finish_and_clear();
                }
            }
            Some(fetching) => set_state(state.get_or_insert_with(|| bars.add(state_bar())), fetching),
        }
    })
}

fn state_bar() -> ProgressBar {
    ProgressBar::new(0).with_prefix("state").with_style(style("{prefix:>8} {msg}"))
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the template is one")
}

/// At most 80 columns, as a line that is cut or wrapped is not drawn over.
fn set_state(bar: &ProgressBar, fetching: &SyncProgress) {
    let Progress { bytes, bytes_total, entries, entries_total } = fetching.fetched;
    let is_known = bytes_total > 0;
    bar.set_length(bytes_total);
    bar.set_position(bytes);
    bar.set_message(match fetching.next {
        _ if fetching.waits.is_some() => "waiting for room on the disk".to_owned(),
        None => "no node offers it yet".to_owned(),
        Some(_) if !is_known => format!("the list: {entries} of {entries_total} files"),
        Some(_) => {
            let plural = if fetching.peers == 1 { "" } else { "s" };
            format!("{}/s, {} node{plural}", HumanBytes(fetching.bytes_per_s as u64), fetching.peers)
        }
    });
    // Last, as each of these draws: a bar of nothing is a full one.
    bar.set_style(style(if is_known {
        "{prefix:>8} {bar:20} {bytes}/{total_bytes}, {msg}"
    } else {
        "{prefix:>8} {msg}"
    }));
}

fn bar(name: &'static str) -> ProgressBar {
    ProgressBar::new(0).with_prefix(name).with_style(style("{prefix:>8} {bar:20} {pos}/{len} ledgers, {msg}"))
}

fn set(bar: &ProgressBar, part: &Part) {
    bar.set_length(part.to - part.from.min(part.to));
    bar.set_position(part.at - part.from);
    bar.set_message(match part.left() {
        Some(left) => format!("{:.0} a second, {} s left", part.per_s, left.as_secs()),
        None => "nothing moves".to_owned(),
    });
}

/// Writes the log to stderr above the bars.
pub(super) struct AboveBars(pub MultiProgress);

impl<'a> MakeWriter<'a> for AboveBars {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(&self.0)
    }
}

/// One line of the log, which comes in one piece.
pub(super) struct Line<'a>(&'a MultiProgress);

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.suspend(|| io::stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use indicatif::{ProgressDrawTarget, TermLike};

    use super::*;

    /// A terminal of 80 columns that keeps what is written to it.
    #[derive(Debug, Clone, Default)]
    struct Terminal(Arc<Mutex<String>>);

    impl TermLike for Terminal {
        fn width(&self) -> u16 {
            80
        }
        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn write_line(&self, line: &str) -> io::Result<()> {
            self.write_str(line)
        }
        fn write_str(&self, text: &str) -> io::Result<()> {
            self.0.lock().unwrap().push_str(text);
            Ok(())
        }
        fn clear_line(&self) -> io::Result<()> {
            self.0.lock().unwrap().clear();
            Ok(())
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What it shows of a bar in the end.
    fn drawn(bar: ProgressBar, set: impl FnOnce(&ProgressBar)) -> String {
        let terminal = Terminal::default();
        let target = ProgressDrawTarget::term_like(Box::new(terminal.clone()));
        bar.set_draw_target(target);
        set(&bar);
        bar.force_draw();
        terminal.0.lock().unwrap().trim_end().to_owned()
    }

    #[test]
    fn the_bar_of_the_state_shows_bytes_and_from_how_many_nodes_they_come_in_one_line() {
        let line = |fetching: &SyncProgress| drawn(state_bar(), |bar| set_state(bar, fetching));
        let mut fetching = SyncProgress::default();
        assert_eq!(line(&fetching), "   state no node offers it yet");
        (fetching.next, fetching.peers, fetching.bytes_per_s) = (Some(7), 1, 2.5 * 1_048_576.0);
        (fetching.fetched.entries, fetching.fetched.entries_total) = (64, 1_000_000);
        assert_eq!(line(&fetching), "   state the list: 64 of 1000000 files");
        (fetching.fetched.bytes, fetching.fetched.bytes_total) = (500 << 20, 1000 << 20);
        let expected = "   state ██████████░░░░░░░░░░ 500.00 MiB/1000.00 MiB, 2.50 MiB/s, 1 node";
        assert_eq!(line(&fetching), expected);
        (fetching.peers, fetching.bytes_per_s) = (4, 1_000.0 * 1_048_576.0);
        let widest = line(&fetching);
        assert!(widest.ends_with("1000.00 MiB/s, 4 nodes") && widest.chars().count() < 80, "{widest}");
        fetching.waits = Some("the disk is full".to_owned());
        assert!(line(&fetching).ends_with(" waiting for room on the disk"));
    }

    #[test]
    fn a_bar_counts_from_where_the_node_fell_behind_and_says_how_long_it_takes() {
        let shown = |part: Part| {
            let bar = bar("fetched");
            set(&bar, &part);
            (bar.position(), bar.length(), bar.message())
        };
        let part = Part { at: 250, from: 100, to: 300, per_s: 50.0 };
        assert_eq!(shown(part), (150, Some(200), "50 a second, 1 s left".to_owned()));
        assert_eq!(shown(Part { at: 100, per_s: 0.0, ..part }), (0, Some(200), "nothing moves".to_owned()));
    }
}
