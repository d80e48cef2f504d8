//! What `hp status --watch` draws: one node in full, or a list of them above the one that is chosen. Knows neither the
//! terminal nor the nodes: what is drawn is what they said last.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Block, Paragraph, Row, Sparkline, Table, TableState, Wrap},
};
use serde_json::Value;

/// Below this the panels stand one below the other.
const WIDE_MIN: u16 = 90;
/// Below one of these there is room for a few lines alone.
const SMALL: (u16, u16) = (34, 12);
/// Rows of the list of nodes at once; more are scrolled.
const LISTED_MAX: usize = 12;

/// The stages of a round, in their order.
const STAGES: [&str; 6] = ["executing", "idle", "result", "novel", "prevote", "precommit"];

const HELP: &str = "\
 q, Esc      leave
 up, down    another node of the list
 ?, h        this help, and back

 stage    what the round waits for: the run of the last ledger, work or the round time (idle), a
          quorum of results, of novels, of prevotes, of precommits
 late     the part of the last rounds for which a vote of that node came after its step was
          decided; the last one of a full quorum is late by nature
 behind   ledgers that the node has closed fewer than this one, as far as it said";

/// A node, as it was seen last.
#[derive(Debug, Clone, Default)]
pub struct Watched {
    /// As the operator named it.
    pub name: String,
    /// What it said last.
    pub status: Option<Value>,
    /// Why it does not answer now.
    pub down: Option<String>,
}

/// What is on the screen.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// The nodes.
    pub nodes: Vec<Watched>,
    /// The one that is shown in full.
    pub chosen: usize,
    /// Whether the help is shown instead.
    pub help: bool,
    /// Whether there are colours.
    pub colours: bool,
}

impl View {
    /// Chooses the next node of the list, or the one before.
    pub fn choose(&mut self, forward: bool) {
        let last = self.nodes.len().saturating_sub(1);
        self.chosen = if forward { (self.chosen + 1).min(last) } else { self.chosen.saturating_sub(1) };
    }

    /// Draws it, in whatever room there is.
    pub fn draw(&self, frame: &mut Frame<'_>) {
        let area = frame.area();
        let keys = Line::styled(" q quit   ? help ", self.dim());
        let [body, foot] = Layout::vertical([Constraint::Min(0), Constraint::Length(1)]).areas(area);
        frame.render_widget(keys, foot);
        if self.help {
            return frame.render_widget(Paragraph::new(HELP).block(Block::bordered().title(" Help ")), body);
        }
        let Some(node) = self.nodes.get(self.chosen) else { return };
        if area.width < SMALL.0 || area.height < SMALL.1 {
            return frame.render_widget(Paragraph::new(self.few_lines(node)).wrap(Wrap { trim: false }), body);
        }
        let listed = if self.nodes.len() > 1 { self.nodes.len().min(LISTED_MAX) as u16 + 3 } else { 0 };
        let [list, one] = Layout::vertical([Constraint::Max(listed), Constraint::Min(6)]).areas(body);
        if listed > 0 {
            self.list(frame, list);
        }
        self.node(frame, one, node);
    }

    fn list(&self, frame: &mut Frame<'_>, area: Rect) {
        let head = Row::new(["node", "state", "ledger", "live", "alerts", "stage", "ledgers/s", "users", "run"]);
        let rows = self.nodes.iter().map(|node| {
            let Some(status) = node.status.as_ref().filter(|_| node.down.is_none()) else {
                return Row::new([node.name.clone(), "down".to_owned()]).style(self.colour(Color::Red));
            };
            let (state, colour) = state(status);
            let live = format!("{}/{}", length(&status["live"]), length(&status["unl"]));
            let cells = [
                node.name.clone(),
                state.to_owned(),
                number(&status["seq"]),
                live,
                length(&status["alerts"]).to_string(),
                stage(status).to_owned(),
                number(&status["rounds_per_s"]),
                number(&status["local_users"]),
                status["last_run"]["status"].as_str().unwrap_or("-").to_owned(),
            ];
            Row::new(cells).style(self.colour(colour))
        });
        // What there is no room for is at the end.
        let wide = [9, 9, 6, 8].map(Constraint::Length);
        let narrow = [Constraint::Min(8), Constraint::Length(11)].into_iter().chain([11, 6, 6].map(Constraint::Length));
        let more = if area.width < WIDE_MIN { &wide[..0] } else { &wide[..] };
        let widths: Vec<Constraint> = narrow.chain(more.iter().copied()).collect();
        let table = Table::new(rows, widths)
            .header(head.style(self.dim()))
            .block(Block::bordered().title(" Nodes "))
            .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
        let mut state = TableState::new().with_selected(Some(self.chosen));
        frame.render_stateful_widget(table, area, &mut state);
    }

    fn node(&self, frame: &mut Frame<'_>, area: Rect, node: &Watched) {
        let Some(status) = &node.status else {
            let why = node.down.as_deref().unwrap_or("asking it ...");
            let text = Paragraph::new(why.to_owned()).wrap(Wrap { trim: true });
            return frame.render_widget(text.block(Block::bordered().title(format!(" {} ", node.name))), area);
        };
        let alerts = self.alerts(node, status);
        // Rough, but lines of text wrap: the rest of the screen gets what is left.
        let width = usize::from(area.width.saturating_sub(2).max(1));
        let rows: usize = alerts.iter().map(|line| line.width().div_ceil(width).max(1)).sum();
        let alerts_rows = if alerts.is_empty() { 0 } else { rows.min(usize::from(area.height) / 3).max(1) as u16 + 2 };
        let [top, middle, runs, bottom] = Layout::vertical([
            Constraint::Max(if area.width < WIDE_MIN { 15 } else { 9 }),
            Constraint::Max(6),
            Constraint::Fill(1),
            Constraint::Length(alerts_rows),
        ])
        .areas(area);
        let (round, peers) = (self.round(status), length(&status["links"]));
        let direction = if area.width < WIDE_MIN {
            Layout::vertical([Constraint::Length(8), Constraint::Min(3)])
        } else {
            Layout::horizontal([Constraint::Percentage(45), Constraint::Fill(1)])
        };
        let [left, right] = direction.areas(top);
        let title = format!(" {}  {} ", node.name, state(status).0);
        let title = Span::styled(title, self.colour(state(status).1).add_modifier(Modifier::BOLD));
        frame.render_widget(Paragraph::new(round).block(Block::bordered().title(title)), left);
        let title = format!(
            " Peers: {} of {} members live, quorum {}, {peers} links ",
            length(&status["live"]),
            length(&status["unl"]),
            number(&status["quorum"])
        );
        frame.render_widget(self.peers(status).block(Block::bordered().title(title)), right);
        self.history(frame, middle, status);
        frame.render_widget(self.runs(status).block(Block::bordered().title(" Last ledgers ")), runs);
        if !alerts.is_empty() {
            let title = if node.down.is_some() { " Down " } else { " Alerts " };
            let block = Block::bordered().title(title).border_style(self.colour(Color::Red));
            frame.render_widget(Paragraph::new(alerts).wrap(Wrap { trim: true }).block(block), bottom);
        }
    }

    /// Where the round is, and what the node is.
    fn round(&self, status: &Value) -> Vec<Line<'static>> {
        let now = stage(status);
        let mut stages = Vec::new();
        for stage in STAGES {
            let style = if stage == now {
                self.colour(Color::Cyan).add_modifier(Modifier::BOLD | Modifier::REVERSED)
            } else {
                self.dim()
            };
            stages.extend([Span::styled(short_stage(stage), style), Span::raw(" ")]);
        }
        let field = |name: &'static str, value: String| {
            Line::from(vec![Span::styled(format!("{name:<8}"), self.dim()), Span::raw(value)])
        };
        let attempt = match status["attempt"].as_u64() {
            Some(0) | None => String::new(),
            Some(attempt) => format!(", attempt {attempt}"),
        };
        let users = format!(
            "{} here, {} in all; {} inputs wait",
            number(&status["local_users"]),
            number(&status["users"]),
            number(&status["pool"])
        );
        let speed = match status["rounds_per_s"].as_f64() {
            Some(per_s) => format!("{per_s} ledgers/s{attempt}"),
            None => format!("no ledger yet{attempt}"),
        };
        let up = status["up_s"].as_u64().map_or("-".to_owned(), long);
        vec![
            field("ledger", format!("{}  {}", number(&status["seq"]), key(&status["lcl"]))),
            Line::from(stages),
            field("speed", speed),
            field("users", users),
            field("settled", super::super::msb::line(&status["settlement"]).unwrap_or_else(|| "nothing".to_owned())),
            field("node", format!("{} {}, up {up}", key(&status["node"]), status["role"].as_str().unwrap_or("-"))),
        ]
    }

    fn peers(&self, status: &Value) -> Table<'static> {
        let rounds = list(&status["rounds"]);
        let late_of = |node: &Value| {
            let late = |round: &&Value| list(&round["late"]).iter().any(|late| late["node"] == *node);
            (100 * rounds.iter().filter(late).count()).checked_div(rounds.len())
        };
        let seq = status["seq"].as_u64().unwrap_or(0);
        let mut links: Vec<&Value> = list(&status["links"]).iter().collect();
        links.sort_by_key(|link| link["member"] != true);
        let linked = links.into_iter().map(|link| {
            let rtt = link["rtt_us"].as_f64().map_or("-".to_owned(), |us| format!("{:.1} ms", us / 1e3));
            let behind = link["seq"].as_u64().map_or("-".to_owned(), |tip| seq.saturating_sub(tip).to_string());
            let is_member = link["member"] == true;
            let late = late_of(&link["peer"]).filter(|_| is_member).map_or("-".to_owned(), |late| format!("{late} %"));
            let role = if is_member { "member" } else { "other" };
            let address = link["address"].as_str().unwrap_or("-").to_owned();
            Row::new([key(&link["peer"]), role.to_owned(), rtt, behind, late, address])
        });
        let live = list(&status["live"]);
        let missing = list(&status["unl"])
            .iter()
            .filter(|node| !live.contains(node))
            .map(|node| Row::new([key(node), "DOWN".to_owned()]).style(self.colour(Color::Red)));
        let widths = [
            Constraint::Length(8),
            Constraint::Length(6),
            Constraint::Length(8),
            Constraint::Length(6),
            Constraint::Length(5),
            Constraint::Fill(1),
        ];
        // Whoever is missing is what one looks for.
        let rows: Vec<Row<'static>> = missing.chain(linked).collect();
        Table::new(rows, widths).header(Row::new(["node", "", "ping", "behind", "late", "address"]).style(self.dim()))
    }

    /// How long the last rounds took.
    fn history(&self, frame: &mut Frame<'_>, area: Rect, status: &Value) {
        let took: Vec<f64> = list(&status["round_times_ms"]).iter().filter_map(Value::as_f64).collect();
        let room = usize::from(area.width.saturating_sub(2));
        let shown = &took[took.len().saturating_sub(room)..];
        let longest = shown.iter().copied().fold(0.0, f64::max);
        let title = match shown.last() {
            Some(last) => format!(" Time from ledger to ledger: {} now, {} at most ", ms(*last), ms(longest)),
            None => " Time from ledger to ledger ".to_owned(),
        };
        // A short round is a low bar, and not none.
        let bars = shown.iter().map(|took| (took * 1e3) as u64 + 1);
        let sparkline = Sparkline::default().data(bars).style(self.colour(Color::Cyan));
        frame.render_widget(sparkline.block(Block::bordered().title(title)), area);
    }

    fn runs(&self, status: &Value) -> Table<'static> {
        let rows: Vec<Row<'static>> = list(&status["rounds"])
            .iter()
            .rev()
            .map(|round| {
                let run = &round["run"];
                let time = |value: &Value| value.as_f64().map_or("-".to_owned(), ms);
                let how = run["status"].as_str().unwrap_or("...").to_owned();
                let colour = if ["ok", "..."].contains(&how.as_str()) { Color::Reset } else { Color::Red };
                let cells = [
                    number(&round["seq"]),
                    how,
                    time(&run["contract_ms"]),
                    time(&run["state_hash_ms"]),
                    format!("{} in, {} out", number(&round["inputs"]), number(&run["outputs"])),
                    time(&round["round_ms"]),
                    number(&round["attempts"]),
                ];
                Row::new(cells).style(self.colour(colour))
            })
            .collect();
        let widths = [
            Constraint::Length(9),
            Constraint::Length(12),
            Constraint::Length(9),
            Constraint::Length(9),
            Constraint::Length(16),
            Constraint::Length(9),
            Constraint::Fill(1),
        ];
        let head = Row::new(["ledger", "run", "contract", "hashing", "inputs, outputs", "round", "attempts"]);
        Table::new(rows, widths).header(head.style(self.dim()))
    }

    fn alerts(&self, node: &Watched, status: &Value) -> Vec<Line<'static>> {
        let down = node.down.iter().map(|why| format!("{why}; what is shown is what it said last"));
        let alerts = list(&status["alerts"]).iter().map(|alert| alert.as_str().unwrap_or_default().to_owned());
        down.chain(alerts).map(|text| Line::styled(text, self.colour(Color::Red))).collect()
    }

    /// For a terminal that is too small for panels.
    fn few_lines(&self, node: &Watched) -> Vec<Line<'static>> {
        let Some(status) = node.status.as_ref().filter(|_| node.down.is_none()) else {
            return vec![Line::raw(node.name.clone()), Line::styled("down", self.colour(Color::Red))];
        };
        let alerts = length(&status["alerts"]);
        vec![
            Line::raw(node.name.clone()),
            Line::styled(state(status).0, self.colour(state(status).1)),
            Line::raw(format!("ledger {}", number(&status["seq"]))),
            Line::raw(format!("{}, {}/{} live", stage(status), length(&status["live"]), length(&status["unl"]))),
            Line::raw(format!("{alerts} alerts")),
        ]
    }

    fn colour(&self, colour: Color) -> Style {
        if self.colours { Style::new().fg(colour) } else { Style::new() }
    }

    fn dim(&self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }
}

/// One line of a node that changed, for a pipe.
pub fn line(node: &Watched) -> String {
    let name = &node.name;
    let Some(status) = node.status.as_ref().filter(|_| node.down.is_none()) else {
        return format!("{name}: down: {}", node.down.as_deref().unwrap_or("not asked yet"));
    };
    let run = &status["last_run"];
    let ran = run["status"].as_str().map_or(String::new(), |how| {
        let took = run["contract_ms"].as_f64().map_or(String::new(), |took| format!(" in {}", ms(took)));
        format!(", last run {how}{took}")
    });
    let alerts = match length(&status["alerts"]) {
        0 => String::new(),
        alerts => format!(", {alerts} alerts"),
    };
    format!(
        "{name}: {}, ledger {} {}, {}, {}/{} live, {} users{ran}{alerts}",
        state(status).0,
        number(&status["seq"]),
        key(&status["lcl"]),
        stage(status),
        length(&status["live"]),
        length(&status["unl"]),
        number(&status["local_users"])
    )
}

/// How it is with a node, in two words at most.
fn state(status: &Value) -> (&'static str, Color) {
    let is = |key: &str| status[key] == true;
    match () {
        () if is("diverging") => ("DIVERGING", Color::Red),
        () if is("diverged") => ("DIVERGED", Color::Red),
        () if is("split") => ("SPLIT", Color::Red),
        () if status["halted"].is_u64() => ("HALTED", Color::Red),
        () if status["disk"]["paused"] == true => ("disk full", Color::Red),
        () if status["silent"].is_object() => ("silent", Color::Yellow),
        () if !is("synced") => ("catching up", Color::Yellow),
        () if length(&status["alerts"]) > 0 => ("in sync", Color::Yellow),
        () => ("in sync", Color::Green),
    }
}

fn stage(status: &Value) -> &str {
    status["stage"].as_str().unwrap_or("-")
}

fn short_stage(stage: &'static str) -> &'static str {
    match stage {
        "executing" => "exec",
        "precommit" => "precmt",
        "prevote" => "prevot",
        other => other,
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn length(value: &Value) -> usize {
    list(value).len()
}

fn number(value: &Value) -> String {
    if value.is_number() { value.to_string() } else { "-".to_owned() }
}

/// The first digits of a key or hash.
fn key(value: &Value) -> String {
    value.as_str().unwrap_or("-").chars().take(8).collect()
}

fn ms(ms: f64) -> String {
    match ms {
        ms if ms < 10.0 => format!("{ms:.1} ms"),
        ms if ms < 10_000.0 => format!("{ms:.0} ms"),
        ms => format!("{:.0} s", ms / 1e3),
    }
}

/// A long time for people.
fn long(seconds: u64) -> String {
    match (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};
    use serde_json::json;

    use super::*;

    fn status() -> Value {
        let (a, b, c) = ("a978ffcce8407623", "b06b5af91d2c3e4f", "c0ffee0012345678");
        json!({
            "node": a, "role": "member", "up_s": 11_000, "seq": 1_234, "lcl": "6b7bf398621d0079", "stage": "prevote",
            "attempt": 1, "rounds_per_s": 4.25, "unl": [a, b, c], "live": [a, b], "quorum": 2, "users": 5,
            "local_users": 3, "pool": 0, "synced": true, "alerts": [], "settlement": null,
            "links": [
                {"peer": "0123456789", "address": "192.0.2.9:22860", "rtt_us": null, "member": false, "seq": null},
                {"peer": b, "address": "192.0.2.7:22860", "rtt_us": 230, "member": true, "seq": 1_232},
            ],
            "last_run": {"seq": 1_234, "status": "ok", "contract_ms": 1.5},
            "round_times_ms": [250.0, 500.0, 1000.0],
            "rounds": [
                {"seq": 1_233, "round_ms": 500.0, "attempts": 1, "inputs": 0, "late": [{"node": b, "vote": "NOVEL"}],
                 "run": {"status": "exit code 3", "contract_ms": 12.0, "state_hash_ms": 0.1, "outputs": 0}},
                {"seq": 1_234, "round_ms": 1000.0, "attempts": 2, "inputs": 2, "late": [],
                 "run": {"status": "ok", "contract_ms": 1.5, "state_hash_ms": 0.25, "outputs": 2}},
            ],
        })
    }

    fn up(name: &str) -> Watched {
        Watched { name: name.to_owned(), status: Some(status()), down: None }
    }

    fn drawn(view: &View, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| view.draw(frame)).unwrap();
        let buffer = terminal.backend().buffer();
        let row = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..height).map(|y| row(y).trim_end().to_owned() + "\n").collect()
    }

    #[test]
    fn a_wide_terminal_shows_round_peers_history_and_ledgers_of_a_node() {
        let view = View { nodes: vec![up("alice")], ..View::default() };
        let expected = "\
┌ alice  in sync ───────────────────────────┐┌ Peers: 2 of 3 members live, quorum 2, 2 links ──────┐
│ledger  1234  6b7bf398                     ││node            ping     behind late  address        │
│exec idle result novel prevot precmt       ││c0ffee00 DOWN                                        │
│speed   4.25 ledgers/s, attempt 1          ││b06b5af9 member 0.2 ms   2      50 %  192.0.2.7:22860│
│users   3 here, 5 in all; 0 inputs wait    ││01234567 other  -        -      -     192.0.2.9:22860│
│settled nothing                            ││                                                     │
│node    a978ffcc member, up 3 h 3 min      ││                                                     │
│                                           ││                                                     │
└───────────────────────────────────────────┘└─────────────────────────────────────────────────────┘
";
        let text = drawn(&view, 100, 24);
        assert!(text.starts_with(expected), "{text}");
        for line in [
            "┌ Time from ledger to ledger: 1000 ms now, 1000 ms at most ",
            "│1234      ok           1.5 ms    0.2 ms    2 in, 2 out      1000 ms   2",
            "│1233      exit code 3  12 ms     0.1 ms    0 in, 0 out      500 ms    1",
            " q quit   ? help",
        ] {
            assert!(text.lines().any(|row| row.starts_with(line)), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn nodes_of_a_list_stand_above_the_chosen_one_and_one_that_is_down_says_so() {
        let mut bob = up("bob");
        bob.down = Some("no node runs in bob".to_owned());
        let mut diverged = up("carol");
        diverged.status.as_mut().unwrap()["diverged"] = json!(true);
        let unseen = Watched { name: "dan".to_owned(), ..Watched::default() };
        let mut view = View { nodes: vec![up("alice"), bob, diverged, unseen], ..View::default() };
        let text = drawn(&view, 100, 40);
        let row = |start: &str| text.lines().find(|row| row.starts_with(start)).unwrap_or_else(|| panic!("{text}"));
        assert!(
            row("│alice").contains("in sync     1234        2/3    0      prevote   4.25      3      ok"),
            "{text}"
        );
        assert!(row("│bob").contains("down   ") && row("│carol").contains("DIVERGED"));
        let narrow = drawn(&view, 60, 40);
        assert!(
            narrow
                .lines()
                .any(|row| row.starts_with("│alice ") && row.ends_with("in sync     1234        2/3    0     │")),
            "{narrow}"
        );
        view.choose(true);
        assert!(drawn(&view, 100, 40).contains("no node runs in bob; what is shown is what it said last"));
        (0..9).for_each(|_| view.choose(true));
        assert!(drawn(&view, 100, 40).contains("asking it ..."));
        (0..9).for_each(|_| view.choose(false));
        assert_eq!(view.chosen, 0);
    }

    #[test]
    fn whatever_the_size_and_whatever_a_node_says_it_is_drawn() {
        let mut long = status();
        long["alerts"] = json!(["a long alert ".repeat(50), "another"]);
        long["links"] = (0..300).map(|at| json!({"peer": format!("{at:064}")})).collect();
        let odd = [json!({}), json!([]), json!("?"), Value::Null, long];
        let nodes = odd.into_iter().map(|status| Watched { name: "x".repeat(70), status: Some(status), down: None });
        let mut view = View { nodes: nodes.collect(), colours: true, ..View::default() };
        for chosen in 0..view.nodes.len() {
            view.chosen = chosen;
            for (width, height) in [(1, 1), (5, 3), (20, 8), (34, 12), (60, 14), (80, 24), (89, 10), (200, 60)] {
                for help in [false, true] {
                    view.help = help;
                    drawn(&view, width, height);
                }
            }
        }
        assert!(drawn(&View::default(), 80, 24).contains("q quit"));
    }

    #[test]
    fn a_pipe_gets_a_line_for_each_change() {
        assert_eq!(
            line(&up("alice")),
            "alice: in sync, ledger 1234 6b7bf398, prevote, 2/3 live, 3 users, last run ok in 1.5 ms"
        );
        let down = Watched { down: Some("no node runs there".to_owned()), ..up("bob") };
        assert_eq!(line(&down), "bob: down: no node runs there");
    }
}
