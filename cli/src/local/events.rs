//! What is told while a study runs: bars and lines for people, or an object a line; and all of it into `events.jsonl`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{IsTerminal as _, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use consilium_federation::round::SiteReason;
use consilium_federation::task::TaskKind;
use consilium_federation::{Digest, SiteName};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::Timestamp;
use serde::Serialize;

use super::{Failure, Result};

/// Something that happened.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(super) enum Event {
    /// It begins, or is carried on.
    Started {
        study: String,
        spec: Digest,
        hospitals: Vec<SiteName>,
        /// What runs in place of `spec.trainer.image`.
        trainer: String,
        image: String,
        resumed: bool,
        out: String,
    },
    /// As an Event of a cluster.
    Note { about: String, reason: String, message: String, warning: bool },
    /// Where a hospital is with its part.
    Task {
        site: SiteName,
        round: u32,
        kind: TaskKind,
        reason: SiteReason,
        #[serde(skip_serializing_if = "Option::is_none")]
        progress: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        message: Option<String>,
    },
    /// A stage of a round ended.
    Stage { round: u32, stage: String, seconds: f64 },
    /// A process that ended was started again.
    Restarted { site: SiteName, why: String },
    /// A round ended.
    Round {
        round: u32,
        outcome: String,
        contributors: u32,
        #[serde(skip_serializing_if = "Option::is_none")]
        model: Option<Digest>,
        #[serde(skip_serializing_if = "Option::is_none")]
        dice: Option<String>,
        released: bool,
    },
    /// The study ended.
    Finished { succeeded: bool, message: String, model: Option<Digest>, file: String, report: String, seconds: f64 },
}

/// Where events go.
pub(super) struct Events {
    json: bool,
    bars: Option<Bars>,
    log: Mutex<File>,
}

impl Events {
    pub(super) fn open(file: &Path, json: bool) -> Result<Self> {
        let failed = || Failure::file(file);
        let mut log = File::options().create(true).read(true).append(true).open(file).map_err(failed())?;
        // What a kill cut off stays a line of its own, and takes none of those that follow with it.
        let mut last = [b'\n'];
        if log.metadata().map_err(failed())?.len() > 0 {
            log.seek(SeekFrom::End(-1)).and_then(|_| log.read_exact(&mut last)).map_err(failed())?;
        }
        if last != [b'\n'] {
            log.write_all(b"\n").map_err(failed())?;
        }
        let bars = (!json && std::io::stdout().is_terminal()).then(Bars::new);
        Ok(Self { json, bars, log: Mutex::new(log) })
    }

    /// Tells it.
    pub(super) fn tell(&self, event: &Event) {
        let mut line = serde_json::to_value(event).unwrap_or_default();
        line["at"] = Timestamp::now().to_string().into();
        // Nobody may read any more, which is no reason to stop.
        let _ = match (self.json, &self.bars) {
            (true, _) => writeln!(std::io::stdout(), "{line}"),
            (false, Some(bars)) => bars.tell(event),
            (false, None) => writeln!(std::io::stdout(), "{}", text(event).0),
        };
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = log.write_all(format!("{line}\n").as_bytes());
    }
}

/// A bar for each hospital's part, below the lines of a terminal.
struct Bars {
    all: MultiProgress,
    sites: Mutex<BTreeMap<SiteName, ProgressBar>>,
}

impl Bars {
    fn new() -> Self {
        Self { all: MultiProgress::with_draw_target(ProgressDrawTarget::stdout()), sites: Mutex::default() }
    }

    fn tell(&self, event: &Event) -> std::io::Result<()> {
        let (text, warning) = text(event);
        if let Event::Task { site, round, kind, reason, progress, .. } = event {
            let mut sites = self.sites.lock().unwrap_or_else(PoisonError::into_inner);
            let bar = sites.entry(site.clone()).or_insert_with(|| self.bar(site));
            let (step, of) = progress.as_deref().and_then(|p| p.split_once('/')).unwrap_or(("0", "1"));
            let (length, done) = (of.parse().unwrap_or(1), is_done(*reason));
            bar.set_length(length);
            bar.set_position(if done { length } else { step.parse().unwrap_or(0) });
            bar.set_message(format!("round {round} {}: {reason:?}", part(*kind)));
            if !warning {
                return Ok(());
            }
        }
        if matches!(event, Event::Finished { .. }) {
            let sites = self.sites.lock().unwrap_or_else(PoisonError::into_inner);
            sites.values().for_each(ProgressBar::finish_and_clear);
            return writeln!(std::io::stdout(), "{text}");
        }
        self.all.println(if warning { format!("\x1b[33m{text}\x1b[0m") } else { text })
    }

    fn bar(&self, site: &SiteName) -> ProgressBar {
        let bar = self.all.add(ProgressBar::new(1)).with_prefix(site.to_string());
        if let Ok(style) = ProgressStyle::with_template("{prefix:12} {bar:24} {pos:>5}/{len:<5} {msg}") {
            bar.set_style(style);
        }
        bar
    }
}

const fn is_done(reason: SiteReason) -> bool {
    matches!(reason, SiteReason::Ready | SiteReason::Submitted | SiteReason::Evaluated)
}

const fn part(kind: TaskKind) -> &'static str {
    if matches!(kind, TaskKind::Evaluate) { "evaluation" } else { "training" }
}

/// A line for people, and whether someone should look.
fn text(event: &Event) -> (String, bool) {
    let plain = |text: String| (text, false);
    match event {
        Event::Started { study, hospitals, trainer, image, resumed, out, .. } => {
            let verb = if *resumed { "carries on" } else { "begins" };
            plain(format!(
                "{study} {verb} with {} hospitals in {out}\n  {trainer} runs in place of {image}; nothing keeps it from the \
                 network here, as a hospital would",
                hospitals.len()
            ))
        }
        Event::Note { about, reason, message, warning } => (format!("{about:<12} {reason}: {message}"), *warning),
        Event::Task { site, round, kind, reason, progress, message } => {
            let progress = progress.as_ref().map(|p| format!(" {p}")).unwrap_or_default();
            let words = message.as_ref().map(|m| format!(": {m}")).unwrap_or_default();
            (format!("round {round:<6} {site}, {}: {reason:?}{progress}{words}", part(*kind)), reason.is_out())
        }
        Event::Stage { round, stage, seconds } => plain(format!("round {round:<6} {stage} took {seconds:.1} s")),
        Event::Restarted { site, why } => (format!("{site:<12} was started again: {why}"), true),
        Event::Round { round, outcome, contributors, model, dice, released } => {
            let model = model.map_or_else(|| "no model".to_owned(), |m| m.to_string());
            let dice = dice.as_ref().map(|d| format!(", mean Dice {d}")).unwrap_or_default();
            let released = if *released { ", released" } else { "" };
            plain(format!("round {round:<6} {outcome}: {contributors} updates, {model}{dice}{released}"))
        }
        Event::Finished { message, file, report, seconds, succeeded, .. } => {
            (format!("{message}, after {seconds:.0} s\n  model  {file}\n  report {report}"), !succeeded)
        }
    }
}
