//! Draws how far a node that is behind has come, below its log, when stderr is a terminal.

use std::io::{self, Write};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tracing_subscriber::fmt::MakeWriter;

use crate::node::{
    Draw,
    progress::{Part, Progress},
};

/// Two bars, while the node is behind.
pub(super) fn draw(bars: MultiProgress) -> Draw {
    let mut shown: Option<[ProgressBar; 2]> = None;
    Box::new(move |progress: Option<&Progress>| match progress {
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
    })
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
