//! One HTML file about a study: opens without a network, and holds what was measured, by which config, on which digests.

mod chart;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use consilium_crds::TrainingRound;
use consilium_federation::round::RoundState;
use jiff::Timestamp;
use serde_json::Value;

use super::center::{Center, End};
use super::setup::Plan;
use super::{Failure, Result, files};
use chart::{Bar, Line};

/// Writes `report.html`; where it is.
pub(super) fn write(plan: &Plan, center: &Center<'_>, end: &End, model: &Path) -> Result<PathBuf> {
    let path = plan.out.join("report.html");
    let rounds = center.all_rounds()?;
    let events = plan.out.join("events.jsonl");
    let text = std::fs::read_to_string(&events).map_err(Failure::file(&events))?;
    let times = Times::of(text.lines().filter_map(|line| serde_json::from_str(line).ok()));
    files::put_bytes(&path, page(plan, &rounds, &times, end, model).as_bytes())?;
    Ok(path)
}

/// Where the time of rounds went, by round.
#[derive(Default)]
struct Times {
    /// Seconds of each stage of the hub.
    stages: BTreeMap<u32, BTreeMap<String, f64>>,
    /// When each hospital's trainer was first seen to train, and when its update was there.
    trained: BTreeMap<(u32, String), (Option<Timestamp>, Option<Timestamp>)>,
}

impl Times {
    fn of(events: impl Iterator<Item = Value>) -> Self {
        let mut times = Self::default();
        for event in events {
            let round = event["round"].as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
            match event["event"].as_str() {
                Some("stage") => {
                    let stage = event["stage"].as_str().unwrap_or_default().to_owned();
                    *times.stages.entry(round).or_default().entry(stage).or_default() +=
                        event["seconds"].as_f64().unwrap_or(0.0);
                }
                Some("task") if event["kind"] == "Train" => {
                    let at: Option<Timestamp> = event["at"].as_str().and_then(|at| at.parse().ok());
                    let site = event["site"].as_str().unwrap_or_default().to_owned();
                    let known = times.trained.entry((round, site)).or_default();
                    match event["reason"].as_str() {
                        Some("Training") => known.0 = known.0.or(at),
                        Some("Ready") => known.1 = known.1.or(at),
                        _ => {}
                    }
                }
                _ => {}
            }
        }
        times
    }

    fn stage(&self, round: u32, stage: &str) -> f64 {
        self.stages.get(&round).and_then(|stages| stages.get(stage)).copied().unwrap_or(0.0)
    }

    /// Seconds that the hospitals of a round trained, on average, at most as long as the stage.
    fn training(&self, round: u32) -> f64 {
        let spans = self.trained.iter().filter(|((of, _), _)| *of == round).filter_map(|(_, span)| match span {
            (Some(from), Some(to)) => Some(to.duration_since(*from).as_secs_f64().max(0.0)),
            _ => None,
        });
        let spans: Vec<f64> = spans.collect();
        let mean = spans.iter().sum::<f64>() / spans.len().max(1) as f64;
        mean.min(self.stage(round, "Training"))
    }
}

/// Text as HTML shows it.
fn plain(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn state(round: &TrainingRound) -> Option<&RoundState> {
    round.status.as_ref()?.round.as_ref()
}

fn page(plan: &Plan, rounds: &[TrainingRound], times: &Times, end: &End, model: &Path) -> String {
    let title = plain(&plan.key.to_string());
    let spec = &plan.study.spec;
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\"><title>{title}</title><style>{}</style></head><body><main>\n\
         <h1>{title}</h1><p class=\"{}\">{}</p>\n",
        include_str!("report.css"),
        if end.succeeded { "good" } else { "bad" },
        plain(&end.message),
    );
    let rows = [
        ("Model", end.model.map_or_else(|| "none".into(), |model| model.to_string())),
        ("As a file", model.display().to_string()),
        ("Study's spec", plan.digest.to_string()),
        ("Hospitals", plan.sites.iter().map(|site| site.as_str()).collect::<Vec<_>>().join(", ")),
        ("Ran as trainer", plan.trainer.join(" ")),
        ("In place of", spec.trainer.image.clone()),
        ("Sums", if spec.is_masked() { "masked: the hub read no update".into() } else { "not masked".to_owned() }),
    ];
    page.push_str("<dl>");
    for (name, value) in rows {
        let _ = write!(page, "<dt>{name}</dt><dd>{}</dd>", plain(&value));
    }
    page.push_str("</dl>\n<h2>Rounds</h2>\n");
    table(&mut page, plan, rounds);
    curves(&mut page, plan, rounds);
    page.push_str("<h2>Where the time went</h2>\n");
    let bars: Vec<Bar> = rounds.iter().map(|round| bar(round, times)).collect();
    page.push_str(&chart::bars(&bars));
    let config = serde_json::to_string_pretty(spec).unwrap_or_default();
    let _ = writeln!(page, "<h2>The study as it was written</h2><pre>{}</pre></main></body></html>", plain(&config));
    page
}

fn bar(round: &TrainingRound, times: &Times) -> Bar {
    let number = round.spec.number;
    let training = times.training(number);
    Bar {
        name: format!("round {number}"),
        parts: vec![
            ("training", training),
            ("waiting for others", (times.stage(number, "Training") - training).max(0.0)),
            ("masking and summing", times.stage(number, "Aggregating")),
            ("evaluation", times.stage(number, "Evaluating")),
        ],
    }
}

/// Mean of what a hospital published for a round, and each structure.
fn dice(state: &RoundState, site: &str) -> Vec<Option<f64>> {
    let found = state.sites.iter().find(|s| s.site.as_str() == site);
    found.map(|s| s.dice.iter().map(|text| text.parse().ok()).collect()).unwrap_or_default()
}

fn mean(values: &[Option<f64>]) -> Option<f64> {
    let known: Vec<f64> = values.iter().flatten().copied().collect();
    (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
}

fn table(page: &mut String, plan: &Plan, rounds: &[TrainingRound]) {
    page.push_str("<div class=\"wide\"><table><tr><th>Round<th>Outcome<th>Updates<th>Mean Dice<th>Gate");
    for site in &plan.sites {
        let _ = write!(page, "<th>{}", plain(site.as_str()));
    }
    page.push_str("<th>Model</tr>\n");
    for round in rounds {
        let Some(state) = state(round) else { continue };
        let gate = state.gate.as_ref();
        let verdict = gate.map_or("", |gate| if gate.passed { "passed" } else { "shut" });
        let _ = write!(
            page,
            "<tr><td>{}<td>{}<td>{}<td>{}<td title=\"{}\">{verdict}",
            round.spec.number,
            state.outcome.map_or_else(|| "runs".into(), |outcome| format!("{outcome:?}")),
            state.contributors,
            gate.and_then(|gate| gate.global.as_deref()).unwrap_or(""),
            plain(gate.and_then(|gate| gate.message.as_deref()).unwrap_or("")),
        );
        for site in &plan.sites {
            let shown = mean(&dice(state, site.as_str())).map(|dice| format!("{dice:.4}"));
            let _ = write!(page, "<td>{}", shown.unwrap_or_default());
        }
        let model = state.model.map(|model| model.to_string()).unwrap_or_default();
        let _ = writeln!(page, "<td class=\"digest\">{model}</tr>");
    }
    page.push_str("</table></div>\n");
}

/// A chart of all structures together, and one for each.
fn curves(page: &mut String, plan: &Plan, rounds: &[TrainingRound]) {
    let states: Vec<(u32, &RoundState)> =
        rounds.iter().filter_map(|round| Some((round.spec.number, state(round)?))).collect();
    let most = states.iter().flat_map(|(_, state)| state.sites.iter().map(|site| site.dice.len())).max().unwrap_or(0);
    if most == 0 {
        return;
    }
    page.push_str("<h2>Dice by round</h2>\n<div class=\"charts\">");
    let line = |site: &str, of: &dyn Fn(&[Option<f64>]) -> Option<f64>| Line {
        name: site.to_owned(),
        points: states.iter().filter_map(|(n, state)| Some((*n, of(&dice(state, site))?))).collect(),
    };
    let lines = |of: &dyn Fn(&[Option<f64>]) -> Option<f64>| -> Vec<Line> {
        plan.sites.iter().map(|site| line(site.as_str(), of)).collect()
    };
    let mut all = lines(&mean);
    let global = |state: &RoundState| state.gate.as_ref().and_then(|gate| gate.global.as_ref()?.parse().ok());
    all.push(Line {
        name: "all cases".into(),
        points: states.iter().filter_map(|(n, state)| Some((*n, global(state)?))).collect(),
    });
    page.push_str(&chart::lines("all structures", &all));
    for class in 0..most {
        let name = structure(plan, class);
        page.push_str(&chart::lines(&name, &lines(&|values| values.get(class).copied().flatten())));
    }
    page.push_str("</div>\n");
}

/// Name of a structure, by its place among the foreground classes.
fn structure(plan: &Plan, class: usize) -> String {
    let output = plan.study.spec.output.as_ref().and_then(|output| serde_json::to_value(output).ok());
    let classes = output.as_ref().and_then(|output| output["classes"].as_array());
    let name = classes.and_then(|classes| {
        let found = &classes.get(class)?;
        found["name"].as_str().or_else(|| found.as_str()).map(str::to_owned)
    });
    name.unwrap_or_else(|| format!("structure {}", class + 1))
}
