//! Says what is the case: whole, after changes, and at least every half minute.

use std::sync::Arc;
use std::time::Duration;

use consilium_federation::ledger::Countersigned;
use consilium_federation::report::{DeployReport, LedgerEnd, Report, RolloutReason, RoundReport};
use consilium_federation::round::SiteReason;
use consilium_proto::clock;
use consilium_proto::v1::{ReportReply, ReportRequest};
use tokio::sync::watch;
use tokio::time::Instant;

use super::said::Account;
use super::{Backoff, Connection, connected, gone};
use crate::policy::speaks;
use crate::{Context, StateError, words};

/// Changes that come closer together share one report. Short, since a round's next step waits for it.
const AT_MOST_EVERY: Duration = Duration::from_millis(25);
const AT_LEAST_EVERY: Duration = Duration::from_secs(30);

/// An answer that takes no longer tells the hub's clock.
const PROMPT: Duration = Duration::from_secs(10);

/// Bytes of an Ed25519 signature (RFC 8032).
const SIGNATURE_BYTES: usize = 64;

/// How long the first report waits for the controllers to look at what is known from before a restart.
const FIRST_LOOK: Duration = Duration::from_secs(15);

/// Waits until every part that was known before the restart has a fact again.
///
/// A round that is not listed counts as forgotten at the hub, which takes that as word that its work was cleaned up.
async fn first_look(ctx: &Context) {
    let known = ctx.desired.borrow().clone();
    let mut facts = ctx.facts.changed();
    let looked = facts.wait_for(|_| {
        let (rounds, deployments) = ctx.facts.snapshot();
        known.items.iter().all(|item| {
            rounds.iter().any(|round| round.uid == item.uid) || deployments.iter().any(|model| model.uid == item.uid)
        })
    });
    tokio::select! {
        () = ctx.shutdown.cancelled() => {}
        () = tokio::time::sleep(FIRST_LOOK) => {}
        _ = looked => {}
    }
}

/// Runs until shutdown. Fails when what it follows ends.
pub(super) async fn run(ctx: Arc<Context>, mut channel: watch::Receiver<Option<Connection>>) -> anyhow::Result<()> {
    let mut facts = ctx.facts.changed();
    let mut desired = ctx.desired.clone();
    let mut backoff = Backoff::default();
    let mut account = Account::default();
    first_look(&ctx).await;
    loop {
        let Some(open) = (tokio::select! {
            () = ctx.shutdown.cancelled() => return Ok(()),
            open = connected(&mut channel) => open,
        }) else {
            return gone(&ctx, "the connection that reports go by");
        };
        channel.mark_unchanged();
        facts.mark_unchanged();
        desired.mark_unchanged();
        let sent = Instant::now();
        let mut pause = AT_MOST_EVERY;
        let mut retry = AT_LEAST_EVERY;
        match send(&ctx, &mut account, open).await {
            Ok(()) => backoff.reset(),
            Err(status) => {
                tracing::warn!(code = ?status.code(), message = status.message(), "the report was not taken; it is sent again");
                retry = backoff.wait(ctx.entropy.fraction());
                pause = retry;
            }
        }
        let changed = async {
            tokio::select! {
                changed = facts.changed() => changed,
                changed = desired.changed() => changed,
                changed = channel.changed() => changed,
                () = tokio::time::sleep(retry) => Ok(()),
            }
        };
        let changed = tokio::select! {
            () = ctx.shutdown.cancelled() => return Ok(()),
            changed = changed => changed,
        };
        if changed.is_err() {
            return gone(&ctx, "what reports follow");
        }
        tokio::select! {
            () = ctx.shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep_until(sent + pause) => {}
        }
    }
}

pub(super) async fn send(ctx: &Context, account: &mut Account, channel: Connection) -> Result<(), tonic::Status> {
    let report = compose(ctx, account).map_err(failed)?;
    let (asked, begun) = (ctx.now(), Instant::now());
    let request = ReportRequest { agent_time: asked.to_string(), ..ReportRequest::from(&report) };
    let result = channel.report(request).await;
    ctx.metrics.reports.with_label_values(&[if result.is_ok() { "ok" } else { "failed" }]).inc();
    let reply = result?;
    let (answered, took) = (ctx.now(), begun.elapsed());
    ctx.metrics.last_contact.set(answered.as_second() as f64);
    // The hub spoke about halfway; an answer that was long under way says too little of when.
    if took < PROMPT {
        let heard = ctx.clock.steady();
        ctx.heard_clock(clock(&reply.hub_time), heard.checked_sub(took / 2).unwrap_or(heard));
    }
    acknowledged(ctx, reply)
}

fn failed(error: StateError) -> tonic::Status {
    tonic::Status::internal(error.to_string())
}

/// What the hub is told now, which the ledger says before it leaves.
fn compose(ctx: &Context, account: &mut Account) -> Result<Report, StateError> {
    let (rounds, deployments) = ctx.facts.snapshot();
    ctx.metrics.set_rounds(&rounds);
    let (hub_epoch, revision) = {
        let desired = ctx.desired.borrow();
        (desired.hub_epoch.clone(), desired.revision)
    };
    let rosters = ctx.facts.rosters();
    let agent_version = crate::VERSION.to_owned();
    let mut report = Report { hub_epoch, revision, agent_version, rosters, ledger: None, rounds, deployments };
    let says_all = speaks(ctx.in_force()?.as_deref().map(|policy| &policy.spec));
    if !says_all {
        report = only_no(report);
    }
    let (mut report, others) = words::only_listed(report);
    if others > 0 {
        tracing::error!(
            others,
            "words that are not on the list of what may leave stay here; this is a fault of the agent"
        );
    }
    let now = ctx.now();
    if let Some(entry) = account.news(&report, now) {
        let numbers = report.rounds.iter().any(|round| round.evaluation.is_some());
        match ctx.state.append(entry.clone(), now) {
            // A volume that takes no entry must not keep the hospital's no from the hub: it is written down later.
            Err(error) if !numbers => {
                tracing::error!(%error, "what the hub is told could not be written down; it is written later");
                ctx.unrecorded.push(entry, now);
            }
            written => drop(written?),
        }
        account.written(&report);
    }
    if says_all {
        report.ledger = Some(ctx.state.ledger_end()?);
    }
    Ok(report)
}

/// What a hospital says that takes no part: that it is there, and no to whatever it is asked. Neither how far anything
/// came here, nor a vote, a number, a roster or how busy it was.
fn only_no(report: Report) -> Report {
    let no = |round: &RoundReport| RoundReport {
        uid: round.uid.clone(),
        kind: round.kind,
        reason: SiteReason::DeniedByPolicy,
        message: None,
        evaluation: None,
    };
    let none = |model: &DeployReport| DeployReport {
        uid: model.uid.clone(),
        reason: RolloutReason::DeniedByPolicy,
        serving: None,
        stage: None,
        message: None,
    };
    Report {
        rosters: Vec::new(),
        ledger: None,
        rounds: report.rounds.iter().map(no).collect(),
        deployments: report.deployments.iter().map(none).collect(),
        ..report
    }
}

/// The hub's word on this hospital's ledger: kept for whoever wants to prove what the hub has seen, and compared.
fn acknowledged(ctx: &Context, reply: ReportReply) -> Result<(), tonic::Status> {
    let Some(end) = reply.ledger.clone() else { return Ok(()) };
    let end = LedgerEnd::try_from(end)?;
    crate::site::check_hub(ctx, end).map_err(failed)?;
    // Anything else is no Ed25519 signature, and would be shown in a status that takes no more.
    if reply.signature.len() != SIGNATURE_BYTES {
        return Ok(());
    }
    let by_hub = Countersigned { end, signature: hex::encode(&reply.signature), at: ctx.now() };
    let by_key = crate::site::take_countersigned(ctx, &by_hub).map_err(failed)?;
    if !by_key {
        tracing::error!("the hub's signature over the ledger's end is not by the key in SitePolicy spec.audit.hubKey");
    }
    ctx.facts.set_countersigned_by_key(by_key);
    Ok(())
}

#[cfg(test)]
mod tests {
    use consilium_federation::Digest;
    use consilium_federation::gate::CaseSums;
    use consilium_federation::ladder::Stage;
    use consilium_federation::report::Evaluation;
    use consilium_federation::task::TaskKind;

    use super::*;

    /// A hospital that stopped everything would go on telling the hub how it voted, what it serves and how busy it is.
    #[test]
    fn a_hospital_that_takes_no_part_says_only_no() {
        let evaluation = Evaluation {
            vote: consilium_federation::gate::Vote::Pass,
            sums: Some(CaseSums { cases: 3, dice: 2.5 }),
            published: None,
        };
        let report = Report {
            hub_epoch: "e".into(),
            revision: 7,
            agent_version: "1".into(),
            rosters: vec![Digest::of(b"roster")],
            ledger: Some(LedgerEnd { entries: 9, head: Digest::of(b"head") }),
            rounds: vec![RoundReport {
                uid: "r".into(),
                kind: TaskKind::Evaluate,
                reason: SiteReason::Evaluated,
                message: Some("m".into()),
                evaluation: Some(evaluation),
            }],
            deployments: vec![DeployReport {
                uid: "d".into(),
                reason: RolloutReason::Serving,
                serving: Some(Digest::of(b"model")),
                stage: Some(Stage::Shadow),
                message: None,
            }],
        };
        let said = only_no(report);
        assert_eq!((said.hub_epoch.as_str(), said.revision, said.ledger, said.rosters.len()), ("e", 7, None, 0));
        let round = &said.rounds[0];
        assert_eq!((round.uid.as_str(), round.reason), ("r", SiteReason::DeniedByPolicy));
        assert!(round.evaluation.is_none() && round.message.is_none());
        let model = &said.deployments[0];
        assert_eq!((model.uid.as_str(), model.reason, model.serving), ("d", RolloutReason::DeniedByPolicy, None));
        assert_eq!(model.stage, None);
    }
}
