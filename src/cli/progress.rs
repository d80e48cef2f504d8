//! Draws how far a node that is behind has come, below its log, when stderr is a terminal.

use std::io::{self, Write};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tracing_subscriber::fmt::MakeWriter;

use crate::node::{
    Draw, SyncProgress,
    progress::{Part, Progress},
};

/// Two bars, while the node is behind, and one, while it fetches the state.
pub(super) fn draw(bars: MultiProgress) -> Draw {
    let mut shown: Option<[ProgressBar; 2]> = None;
    let mut state: Option<ProgressBar> = None;
    Box::new(move |progress: Option<&Progress>, fetching: Option<&SyncProgress>| {
        match progress {
            None => {
                if let Some(old) = shown.take() {
                    old.iter().for_each(ProgressBar::finish_and_clear);
                }
            }
            Some(Progress { verified, executed }) => {
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
    let style = ProgressStyle::with_template("{prefix:>8} {bar:30} {bytes}/{total_bytes}, {msg}");
    ProgressBar::new(0).with_prefix("state").with_style(style.expect("the template is one"))
}

fn set_state(bar: &ProgressBar, fetching: &SyncProgress) {
    bar.set_length(fetching.fetched.bytes_total);
    bar.set_position(fetching.fetched.bytes);
    bar.set_message(match fetching.next {
        _ if fetching.waits.is_some() => "waiting for room on the disk".to_owned(),
        None => "no node offers it yet".to_owned(),
        Some(_) => format!("{:.1} MB a second from {} nodes", fetching.bytes_per_s / 1e6, fetching.peers),
    });
}

fn bar(name: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix:>8} {bar:30} {pos}/{len} ledgers, {msg}");
    ProgressBar::new(0).with_prefix(name).with_style(style.expect("the template is one"))
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
    use super::*;

    #[test]
    fn the_bar_of_the_state_shows_bytes_and_from_how_many_nodes_they_come() {
        let bar = state_bar();
        let mut fetching = SyncProgress::default();
        set_state(&bar, &fetching);
        assert_eq!((bar.length(), bar.message()), (Some(0), "no node offers it yet".to_owned()));
        (fetching.next, fetching.peers, fetching.bytes_per_s) = (Some(7), 3, 2_500_000.0);
        (fetching.fetched.bytes, fetching.fetched.bytes_total) = (40, 100);
        set_state(&bar, &fetching);
        let message = "2.5 MB a second from 3 nodes".to_owned();
        assert_eq!((bar.position(), bar.length(), bar.message()), (40, Some(100), message));
        fetching.waits = Some("the disk is full".to_owned());
        set_state(&bar, &fetching);
        assert_eq!(bar.message(), "waiting for room on the disk");
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
