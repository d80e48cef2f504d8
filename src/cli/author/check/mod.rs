//! `hp check`: does a contract come to the same everywhere? Runs it again and again, each time with one thing changed.
//!
//! `lab` makes the runs and compares them, `trial` says what is changed, `source` what that means, `inputs` what users
//! send, `shim` reaches the clock and the randomness of a program, `apart` finds the first byte that differs.

mod apart;
mod inputs;
mod lab;
mod shim;
mod source;
mod trial;

use std::{
    io::{self, IsTerminal as _},
    path::PathBuf,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use self::{
    lab::{Difference, Lab, Series, Setup},
    source::Source,
    trial::TRIALS,
};
use super::{
    place::Place,
    view::{Paint, many},
};
use crate::cli::{Exit, Failure, Outcome, answer, run::Stop};

/// Times that a contract is run with something held still, to see whether that makes runs alike, at most.
const PIN_RUNS_MAX: usize = 32;
/// Times that runs beside these must have differed, before what was held still is believed to be the cause.
const PIN_DIFFERED: usize = 5;
/// Times that a trial that differs, and equal runs beside it, are repeated before it is believed.
const CONTROLS: usize = 2;
/// Why a trial says nothing.
const DIFFERS_ALREADY: &str = "equal runs differ already";
/// What a run may take at least, in the trials. Held-still clocks make some programs wait for ever.
const TIME_LIMIT_MIN: Duration = Duration::from_secs(5);
/// What a run may take in the trials, as a multiple of all that the first ones took.
const TIME_FACTOR: u32 = 10;

const EXAMPLES: &str = "\
Examples:
  hp check guestbook                               with inputs that try any contract
  hp check guestbook --inputs ledgers.jsonl        with yours
  hp check mynode --runs 20                        look harder for what happens now and then
  hp check guestbook --binary ./a.out --json       what a program reads

DIR needs nothing but the executable (bin/contract); of a node's folder the configuration is used. Nothing in DIR changes:
each run is in a copy. All ledgers are run, then run again alike, and then again with one thing changed at a time.
Outputs, the files in state/, how each run ended and what it asked the network for are compared, as nodes compare them.

FILE has a JSON object a line: {\"user\":\"alice\",\"input\":\"hello\\n\"} sends a text, {\"user\":\"bob\",\"hex\":\"00ff\"} bytes, and
{\"user\":\"carol\"} is there and says nothing. An empty line ends a ledger; the state builds up from ledger to ledger.

A check that finds nothing proves nothing: it sees the inputs it is given, on one machine. What could not be tried is said.

Exit codes: 0 always the same, 1 something differed (or the check could not be made).";

/// Find out whether a contract comes to the same everywhere, before a network does.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(in crate::cli) struct Check {
    #[command(flatten)]
    place: Place,
    /// What users send [default: ledgers that try any contract]
    #[arg(long, value_name = "FILE")]
    inputs: Option<PathBuf>,
    /// Times that equal runs are repeated
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    runs: u32,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

/// What came of one trial.
struct Tried {
    name: &'static str,
    what: String,
    result: Verdict,
}

enum Verdict {
    Same,
    Differs(Box<Found>),
    NotTried(String),
    /// It differed, and so do equal runs.
    ByChance(Difference),
}

/// What trials are compared with.
struct Ground {
    setup: Setup,
    /// What is held still in it.
    still: Vec<Source>,
    /// None: nothing makes equal runs alike.
    series: Option<Rc<Series>>,
}

/// Something that differs, and why.
struct Found {
    difference: Difference,
    /// The likely ones, the likeliest first. More than one: they were not told apart.
    sources: Vec<Source>,
    /// What the runs had in common, or not: for the heading of the second side.
    changed: &'static str,
    places: Vec<String>,
}

/// All that is to be told.
struct Report {
    ledgers: usize,
    tried: Vec<Tried>,
    notes: Vec<String>,
    seconds: f64,
}

impl Check {
    pub(in crate::cli) fn run(self) -> Outcome {
        let ledgers = match &self.inputs {
            Some(file) => inputs::read(file)?,
            None => inputs::usual(),
        };
        let lab = Lab::new(&self.place, &ledgers)?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
        let report = runtime.block_on(async {
            let stop = Stop::watch().context("cannot watch for signals")?;
            tokio::select! {
                report = self.check(lab, ledgers.len()) => report,
                // The copies are removed in any case.
                signal = stop.wait() => Err(Failure::new(Exit::Interrupted, anyhow!("ended by {signal}"))),
            }
        })?;
        if self.json {
            answer(&format!("{}\n", report.json()))?
        } else {
            answer(&report.text(Paint::stdout()))?
        }
        if report.found().next().is_none() { Ok(()) } else { Err(Failure::told(Exit::Failed)) }
    }

    async fn check(&self, mut lab: Lab<'_>, ledgers: usize) -> Result<Report, Failure> {
        let began = Instant::now();
        let bar = Bar::new(TRIALS.len() as u64 + 2);
        let mut report = Report { ledgers, tried: Vec::new(), notes: Vec::new(), seconds: 0.0 };
        bar.show("the first time");
        let first = lab.reference(&Setup::default()).await?;
        report.notes = notes(&first);
        lab.limit_time(TIME_LIMIT_MIN.max(began.elapsed() * TIME_FACTOR));

        bar.show("again, alike");
        let mut again = Vec::new();
        for _ in 0..self.runs {
            again.push(lab.compare(&Setup::default(), &first).await?);
        }
        let differing = again.iter().flatten().count();
        let mut ground = Ground { setup: Setup::default(), still: Vec::new(), series: Some(Rc::new(first)) };
        let verdict = match again.into_iter().flatten().next() {
            None => Verdict::Same,
            Some(difference) => {
                let always = differing == self.runs as usize;
                Verdict::Differs(self.by_chance(&lab, &mut ground, difference, always, &bar).await?)
            }
        };
        let what = many(self.runs as usize, "equal run", "equal runs");
        report.tried.push(Tried { name: "again", what, result: verdict });

        for trial in &TRIALS {
            bar.show(trial.what);
            let path_matters = report.tried.iter().any(|tried| tried.name == Source::Folder.name() && tried.is_found());
            let (mut setup, mut result) = self.try_one(&lab, trial, &ground, path_matters).await?;
            if let Some(Verdict::ByChance(difference)) = result.take_if(|result| matches!(result, Verdict::ByChance(_)))
            {
                // It was no trial that made it differ: equal runs do, now and then.
                if report.tried[0].is_found() {
                    ground.series = None;
                } else {
                    let found = self.by_chance(&lab, &mut ground, difference, false, &bar).await?;
                    report.tried[0].result = Verdict::Differs(found);
                }
                (setup, result) = self.try_one(&lab, trial, &ground, path_matters).await?;
            }
            let result = match result {
                Some(Verdict::ByChance(_)) | None => Verdict::NotTried(DIFFERS_ALREADY.to_owned()),
                Some(result) => result,
            };
            report.tried.push(Tried { name: trial.source.name(), what: trial.what(&setup), result });
        }
        bar.end();
        report.seconds = began.elapsed().as_secs_f64();
        Ok(report)
    }

    /// Runs a trial beside equal runs: what it is like here, and what came of it.
    async fn try_one(
        &self,
        lab: &Lab<'_>,
        trial: &trial::Trial,
        ground: &Ground,
        path_matters: bool,
    ) -> Result<(Setup, Option<Verdict>), Failure> {
        let (mut setup, beside) = trial.setups(&ground.setup);
        // Another file system is another path, too.
        if path_matters {
            setup.other_disk = None;
        }
        let not_tried = |setup, why: &str| Ok((setup, Some(Verdict::NotTried(why.to_owned()))));
        let Some(series) = ground.series.clone() else { return not_tried(setup, DIFFERS_ALREADY) };
        if ground.still.contains(&trial.source) {
            return not_tried(setup, "held still, see above");
        }
        if setup.party && !series.speaks() {
            return not_tried(setup, "the contract says nothing on it");
        }
        if let Err(why) = lab.probe(&setup) {
            return not_tried(setup, &why);
        }
        let series = if beside == ground.setup { series } else { Rc::new(lab.reference(&beside).await?) };
        for _ in 0..if trial.repeats { self.runs } else { 1 } {
            let Some(difference) = lab.compare(&setup, &series).await? else { continue };
            let mut stable = true;
            for _ in 0..CONTROLS {
                stable = stable && lab.compare(&beside, &series).await?.is_none();
                // What a trial leads to it leads to again; but the time goes on, and threads are never twice the same.
                let varies = matches!(trial.source, Source::Clock | Source::Threads);
                stable = stable && (varies || lab.compare(&setup, &series).await?.as_ref() == Some(&difference));
            }
            if !stable {
                return Ok((setup, Some(Verdict::ByChance(difference))));
            }
            let places = trial.source.places(&self.place.dir.join("bin"));
            let found = Found { difference, sources: vec![trial.source], changed: trial.what, places };
            return Ok((setup, Some(Verdict::Differs(Box::new(found)))));
        }
        Ok((setup, Some(Verdict::Same)))
    }

    /// Why equal runs differ. The trials go on where that is held still, if anything helps.
    async fn by_chance(
        &self,
        lab: &Lab<'_>,
        ground: &mut Ground,
        difference: Difference,
        always: bool,
        bar: &Bar,
    ) -> Result<Box<Found>, Failure> {
        ground.series = None;
        let mut sources = match always {
            true => vec![Source::Clock, Source::Randomness, Source::Threads, Source::Addresses, Source::ProcessId],
            // What is another one in each process would have shown at once.
            false => vec![Source::Threads, Source::Clock],
        };
        for (held, setup) in trial::pins() {
            if !always && !matches!(held.as_slice(), [Source::Clock | Source::Threads]) {
                continue;
            }
            bar.say(&format!("again, holding still the {}", held[0].name()));
            if lab.probe(&setup).is_ok()
                && let Some(series) = self.helps(lab, &setup).await?
            {
                *ground = Ground { setup, still: held.clone(), series: Some(Rc::new(series)) };
                sources = held;
                break;
            }
        }
        let places = sources.iter().flat_map(|source| source.places(&self.place.dir.join("bin"))).collect();
        Ok(Box::new(Found { difference, sources, changed: "again", places }))
    }

    /// Whether runs in `setup` are alike as long as it takes others to differ a few times.
    async fn helps(&self, lab: &Lab<'_>, setup: &Setup) -> Result<Option<Series>, Failure> {
        let series = lab.reference(setup).await?;
        let mut differed = 0;
        for _ in 0..PIN_RUNS_MAX {
            if lab.compare(setup, &series).await?.is_some() {
                return Ok(None);
            }
            // Two new ones each time: one that all others differ from may be the odd one itself.
            let one = lab.reference(&Setup::default()).await?;
            differed += usize::from(lab.compare(&Setup::default(), &one).await?.is_some());
            if differed == PIN_DIFFERED {
                return Ok(Some(series));
            }
        }
        Ok(None)
    }
}

/// What a person should know of the first series.
fn notes(first: &Series) -> Vec<String> {
    let mut notes: Vec<String> = first
        .failed()
        .map(|(ledger, status)| {
            format!("the run of ledger {ledger} fails ({status}), so nothing of it is kept or compared")
        })
        .collect();
    if !first.left_anything() {
        notes.push("no run wrote to a user or to state/: give it inputs that it understands, with --inputs".to_owned());
    }
    notes
}

impl Tried {
    fn is_found(&self) -> bool {
        matches!(self.result, Verdict::Differs(_))
    }
}

impl Report {
    fn found(&self) -> impl Iterator<Item = &Found> {
        self.tried.iter().filter_map(|tried| match &tried.result {
            Verdict::Differs(found) => Some(found.as_ref()),
            _ => None,
        })
    }

    fn text(&self, paint: Paint) -> String {
        let mut text = String::new();
        for Tried { name, what, result } in &self.tried {
            let (result, what) = match result {
                Verdict::Same => (paint.good("same     "), what.clone()),
                Verdict::Differs(_) => (paint.bad("differs  "), what.clone()),
                Verdict::NotTried(why) => (paint.faint("not tried"), format!("{what}: {why}")),
                Verdict::ByChance(_) => unreachable!("is told as what equal runs do"),
            };
            text += &format!("{name:<16} {result}  {what}\n");
        }
        for note in &self.notes {
            text += &format!("{:<16} {note}\n", "note");
        }
        for found in self.found() {
            text += "\n";
            text += &found.text(paint);
        }
        let ledgers = many(self.ledgers, "ledger", "ledgers");
        let not_tried = self.tried.iter().filter(|tried| matches!(tried.result, Verdict::NotTried(_))).count();
        let ending = match self.found().count() {
            0 => paint.good("nothing differed"),
            found => paint.bad(&format!(
                "{} {}",
                many(found, "trial", "trials"),
                if found == 1 { "differs" } else { "differ" }
            )),
        };
        text +=
            &format!("\n{ending} in {ledgers}, {:.1} s; {not_tried} of {} not tried\n", self.seconds, self.tried.len());
        text
    }

    fn json(&self) -> Value {
        let tried = self.tried.iter().map(|Tried { name, what, result }| {
            let (result, why, found) = match result {
                Verdict::Same => ("same", None, None),
                Verdict::Differs(found) => ("differs", None, Some(found.json())),
                Verdict::NotTried(why) => ("not tried", Some(why), None),
                Verdict::ByChance(_) => unreachable!("is told as what equal runs do"),
            };
            json!({ "name": name, "what": what, "result": result, "why": why, "found": found })
        });
        json!({
            "ok": self.found().next().is_none(), "ledgers": self.ledgers, "seconds": self.seconds,
            "trials": tried.collect::<Vec<_>>(), "notes": self.notes,
        })
    }
}

impl Found {
    fn text(&self, paint: Paint) -> String {
        let Found { difference, sources, changed, places } = self;
        let line = |name: &str, what: &str| format!("{}{what}\n", paint.strong(&format!("{name:<17}")));
        let mut text = line("differs", &difference.place());
        text += &line("  first", &difference.sides[0]);
        text += &line("  then", &format!("{}   ({changed})", difference.sides[1]));
        let one = sources.len() == 1;
        if !one {
            text += &line(
                "likely cause",
                "one of these; holding one of them still did not help, or could not be done here",
            );
        }
        for source in sources {
            let name = if one { "likely cause" } else { "" };
            text += &line(name, &format!("{}: {}", source.name(), source.cause()));
        }
        if let [source] = sources.as_slice() {
            text += &line("instead", source.instead());
        }
        for (at, place) in places.iter().enumerate() {
            text += &line(if at == 0 { "perhaps here" } else { "" }, place);
        }
        text
    }

    fn json(&self) -> Value {
        let Difference { ledger, what, offset, sides } = &self.difference;
        let instead = self.sources.iter().map(|source| source.instead());
        json!({
            "ledger": ledger, "what": what, "offset": offset, "first": sides[0], "then": sides[1],
            "causes": self.sources.iter().map(|source| source.name()).collect::<Vec<_>>(),
            "instead": instead.collect::<Vec<_>>(), "places": self.places,
        })
    }
}

/// How far it is, in a terminal.
struct Bar(Option<ProgressBar>);

impl Bar {
    fn new(steps: u64) -> Bar {
        let style = ProgressStyle::with_template("{bar:20} {pos}/{len} {msg}").expect("the template is one");
        let bar = || ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr()).with_style(style);
        Bar(io::stderr().is_terminal().then(bar))
    }

    /// The next step.
    fn show(&self, what: &str) {
        self.say(what);
        if let Some(bar) = &self.0 {
            bar.inc(1);
        }
    }

    fn say(&self, what: &str) {
        if let Some(bar) = &self.0 {
            bar.set_message(what.to_owned());
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
