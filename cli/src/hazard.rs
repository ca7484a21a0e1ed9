//! `hazard`: opens, closes and lists the entries of a hospital's hazard log.

use consilium_clinical::hazards::{Closed, Control, Hazard, Risk};
use consilium_clinical::plan::Fall;
use consilium_clinical::values::Name;
use consilium_crds::model_hazard::{About, ModelHazard, ModelHazardSpec};
use consilium_federation::{Digest, StudyKey};
use jiff::Timestamp;
use kube::{Api, api::PostParams};

use crate::cluster;
use crate::error::{CliError, Result};
use crate::table;

/// The hazard log of this hospital.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Open a hazard: from the next few seconds on, the models that it is about stand lower. No text may say anything of a
    /// patient.
    Open(Box<Open>),
    /// Close a hazard, with what was done about it, the proof that it works, and the risk that is left.
    Close(Box<Close>),
    /// All hazards, open ones first.
    List(Place),
}

/// Where hazards are.
#[derive(clap::Args)]
pub struct Place {
    /// Namespace of the hospital's agent and of its SitePolicy.
    #[arg(short, long, default_value = "consilium-agent")]
    namespace: String,
}

/// What is opened.
#[derive(clap::Args)]
pub struct Open {
    /// Its name.
    name: String,
    /// About every model of this study, `namespace/name` at the hub. This or --model.
    #[arg(long, required_unless_present = "model", conflicts_with = "model")]
    line: Option<StudyKey>,
    /// About the model of this digest.
    #[arg(long)]
    model: Option<Digest>,
    /// What may go wrong.
    #[arg(long)]
    hazard: String,
    /// Why it may; may be given several times.
    #[arg(long = "cause", required = true)]
    causes: Vec<String>,
    /// What then happens in the clinic.
    #[arg(long)]
    effect: String,
    /// What that does to a patient.
    #[arg(long)]
    harm: String,
    #[command(flatten)]
    risk: RiskArguments,
    /// Who answers for it: a role, no name.
    #[arg(long)]
    owner: Name,
    /// How far it lowers while it is open: Watch, OneDown, Shadow or Withdraw.
    #[arg(long, value_parser = fall)]
    lowers: Fall,
    #[command(flatten)]
    place: Place,
}

/// Severity and likelihood.
#[derive(clap::Args)]
struct RiskArguments {
    /// 1 minor, 2 significant, 3 considerable, 4 major, 5 catastrophic.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=5))]
    severity: u8,
    /// 1 very low, 2 low, 3 medium, 4 high, 5 very high.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=5))]
    likelihood: u8,
}

impl RiskArguments {
    fn risk(&self) -> Risk {
        Risk { severity: self.severity, likelihood: self.likelihood }
    }
}

/// What is closed, and on what.
#[derive(clap::Args)]
pub struct Close {
    /// Its name.
    name: String,
    /// Something that was done about it; may be given several times, each with a --proof.
    #[arg(long = "control")]
    controls: Vec<String>,
    /// What shows that the control of the same place works.
    #[arg(long = "proof")]
    proofs: Vec<String>,
    /// The risk that is left.
    #[command(flatten)]
    residual: RiskArguments,
    /// By whom: a role, no name.
    #[arg(long)]
    by: Name,
    /// Why the risk that is left is accepted.
    #[arg(long)]
    why: String,
    #[command(flatten)]
    place: Place,
}

fn fall(text: &str) -> std::result::Result<Fall, String> {
    serde_json::from_value(text.into()).map_err(|_| "write Watch, OneDown, Shadow or Withdraw".to_owned())
}

/// Runs a command.
pub async fn run(command: &Command, now: Timestamp) -> Result<String> {
    match command {
        Command::Open(open) => {
            let hazard = opened(open, now)?;
            hazards(&open.place).await?.create(&PostParams::default(), &hazard).await?;
            Ok(format!(
                "{} is open. Look where the models stand in a few seconds: kubectl get mdeploy -n consilium-tasks\n",
                open.name
            ))
        }
        Command::Close(close) => {
            let api = hazards(&close.place).await?;
            let known = api.get_opt(&close.name).await?.ok_or_else(|| CliError::Missing {
                what: "ModelHazard",
                name: format!("{}/{}", close.place.namespace, close.name),
                way_out: "`kubectl consilium hazard list` has the names; hazards of a hospital are in its own cluster",
            })?;
            // The object as it was read: whoever changes it meanwhile is not overwritten.
            api.replace(&close.name, &PostParams::default(), &closed(known, close, now)?).await?;
            Ok(format!("{} is closed, and stays in the log\n", close.name))
        }
        Command::List(place) => {
            let client = cluster::client().await?;
            let found = cluster::list::<ModelHazard>(&client, Some(&place.namespace)).await?;
            Ok(listed(found.unwrap_or_default()))
        }
    }
}

async fn hazards(place: &Place) -> Result<Api<ModelHazard>> {
    Ok(Api::namespaced(cluster::client().await?, &place.namespace))
}

/// Whole seconds, as people read them.
fn second(now: Timestamp) -> Timestamp {
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

fn opened(open: &Open, now: Timestamp) -> Result<ModelHazard> {
    let spec = ModelHazardSpec {
        of: About { line: open.line.clone(), model: open.model },
        hazard: open.hazard.clone(),
        causes: open.causes.clone(),
        effect: open.effect.clone(),
        harm: open.harm.clone(),
        initial: open.risk.risk(),
        controls: Vec::new(),
        residual: None,
        owner: open.owner.clone(),
        lowers: open.lowers,
        opened: second(now),
        closed: None,
    };
    checked(ModelHazard::new(&open.name, spec))
}

fn closed(mut known: ModelHazard, close: &Close, now: Timestamp) -> Result<ModelHazard> {
    if let Some(closed) = &known.spec.closed {
        let rule = "it is closed already, and stays as it is; open a new one";
        return Err(CliError::Argument { field: "NAME", value: format!("{} ({})", close.name, closed.at), rule });
    }
    if close.controls.len() != close.proofs.len() {
        let value = format!("{} and {}", close.controls.len(), close.proofs.len());
        return Err(CliError::Argument { field: "--control and --proof", value, rule: "give as many of each" });
    }
    let pairs = close.controls.iter().cloned().zip(close.proofs.iter().cloned());
    for (control, proof) in pairs {
        // One that was written down without a proof gets it.
        known.spec.controls.retain(|known| known.control != control || known.proof.is_some());
        known.spec.controls.push(Control { control, proof: Some(proof) });
    }
    known.spec.residual = Some(close.residual.risk());
    known.spec.closed = Some(Closed { at: second(now), by: close.by.clone(), why: close.why.clone() });
    checked(known)
}

/// What the agent would refuse is refused here, where somebody can correct it.
fn checked(hazard: ModelHazard) -> Result<ModelHazard> {
    let name = hazard.metadata.name.clone().unwrap_or_default();
    let id: Name = name.parse().map_err(|_| CliError::Argument {
        field: "NAME",
        value: name,
        rule: "use at most 63 lower-case letters, digits and \"-\"",
    })?;
    let checked = hazard.spec.hazard().as_ref().map(|found: &Hazard| found.check(&id));
    match checked {
        Some(Err(error)) => Err(CliError::Hazard(error)),
        Some(Ok(())) | None => Ok(hazard),
    }
}

fn listed(mut hazards: Vec<ModelHazard>) -> String {
    if hazards.is_empty() {
        return "no hazard was ever opened here\n".to_owned();
    }
    hazards.sort_by_key(|h| (h.spec.closed.is_some(), std::cmp::Reverse(h.spec.opened)));
    let row = |hazard: &ModelHazard| {
        let ModelHazardSpec { of, initial, residual, closed, .. } = &hazard.spec;
        let risk = |risk: &Risk| format!("{}x{}", risk.severity, risk.likelihood);
        let about = of.line.as_ref().map(ToString::to_string).or(of.model.map(|model| model.to_string()));
        vec![
            hazard.metadata.name.clone().unwrap_or_default(),
            if closed.is_some() { "-".to_owned() } else { format!("{:?}", hazard.spec.lowers) },
            residual.as_ref().map_or_else(|| risk(initial), |left| format!("{} -> {}", risk(initial), risk(left))),
            hazard.spec.owner.to_string(),
            hazard.spec.opened.to_string(),
            closed.as_ref().map_or_else(|| "-".to_owned(), |closed| closed.at.to_string()),
            about.unwrap_or_else(|| "every model".to_owned()),
            hazard.spec.hazard.clone(),
        ]
    };
    let headings = ["NAME", "LOWERS", "RISK", "OWNER", "OPENED", "CLOSED", "ABOUT", "HAZARD"];
    table::lay_out(&headings, &hazards.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(subcommand)]
        command: Command,
    }

    fn command(text: &str) -> Command {
        Line::parse_from(std::iter::once("hazard").chain(text.split_whitespace())).command
    }

    const NOW: &str = "2026-06-01T12:00:00.9Z";

    fn open(lowers: &str) -> ModelHazard {
        let text = format!(
            "open plane --line research/hippocampus --hazard wrong-plane --cause rule --effect missed --harm late \
             --severity 4 --likelihood 2 --owner clinical-safety-officer --lowers {lowers}"
        );
        let Command::Open(arguments) = command(&text) else { panic!() };
        opened(&arguments, NOW.parse().unwrap()).unwrap()
    }

    fn close(hazard: &ModelHazard, extra: &str) -> Result<ModelHazard> {
        let text = format!("close plane --severity 4 --likelihood 1 --by clinical-safety-officer --why rare {extra}");
        let Command::Close(arguments) = command(&text) else { panic!() };
        closed(hazard.clone(), &arguments, NOW.parse().unwrap())
    }

    /// Somebody opens one in a hurry and closes it weeks later: what they typed is what the log has.
    #[test]
    fn what_is_opened_can_be_closed_with_proof_and_not_without() {
        let hazard = open("Withdraw");
        assert_eq!(
            (hazard.spec.lowers, hazard.spec.opened.to_string().as_str()),
            (Fall::Withdraw, "2026-06-01T12:00:00Z")
        );
        let done = close(&hazard, "--control new-rule --proof test-12").unwrap();
        assert_eq!(done.spec.controls, [Control { control: "new-rule".into(), proof: Some("test-12".into()) }]);
        assert_eq!(done.spec.residual, Some(Risk { severity: 4, likelihood: 1 }));
        for (extra, word) in [("", "controls"), ("--control new-rule", "as many of each")] {
            let refused = close(&hazard, extra).unwrap_err().to_string();
            assert!(refused.contains(word), "{refused}");
        }
        assert!(close(&done, "--control a --proof b").unwrap_err().to_string().contains("closed already"));
        // A control that was planned gets its proof, and does not stand twice.
        let mut planned = hazard.clone();
        planned.spec.controls.push(Control { control: "new-rule".into(), proof: None });
        assert_eq!(close(&planned, "--control new-rule --proof test-12").unwrap().spec.controls.len(), 1);
    }

    /// What lowers now must be read first.
    #[test]
    fn open_ones_come_first_and_closed_ones_stay() {
        let mut later = open("Shadow");
        later.metadata.name = Some("later".into());
        let done = close(&open("Shadow"), "--control a --proof b").unwrap();
        let text = listed(vec![done, later]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].starts_with("later  Shadow") && lines[2].starts_with("plane  -"), "{text}");
        assert!(lines[2].contains("4x2 -> 4x1"), "{text}");
        assert!(listed(vec![]).contains("no hazard"));
    }
}
