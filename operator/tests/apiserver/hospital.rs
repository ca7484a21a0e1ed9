//! A hospital that does at once what it is asked, without training: reports through the hub, uploads into the store.

use std::collections::BTreeSet;

use consilium_federation::assignment::{Assignment, DeployWork, Item, ItemState, RoundWork, Work};
use consilium_federation::gate::{CaseSums, Vote};
use consilium_federation::report::{DeployReport, Evaluation, Report, RolloutReason, RoundReport};
use consilium_federation::round::{ProtocolStep, SiteReason};
use consilium_federation::task::TaskKind;
use consilium_federation::{Digest, SiteName};
use consilium_operator::hub::Hub;
use consilium_operator::store::UploadKey;
use consilium_secagg::ring::{RingParams, encode_head};
use consilium_secagg::sum::to_bytes;
use consilium_secagg::weight::Weight;
use jiff::Timestamp;
use tokio::task::JoinHandle;

/// Parameters of the model.
pub const ELEMENTS: usize = 1000;
/// What every hospital adds to each parameter.
pub const STEP: f32 = 0.125;

/// How a hospital behaves.
#[derive(Clone, Copy, PartialEq)]
pub enum Manner {
    /// Does everything.
    Willing,
    /// Says no to every round.
    Refusing,
    /// Trains for ever.
    Slow,
}

/// Starts a hospital; it ends when the handle is aborted.
pub fn start(hub: &Hub, site: &SiteName, manner: Manner) -> JoinHandle<()> {
    let (hub, site) = (hub.clone(), site.clone());
    tokio::spawn(async move {
        let _connection = hub.connect(&site);
        let mut desired = hub.subscribe(&site);
        loop {
            let assignment = desired.borrow_and_update().clone();
            if let Some(assignment) = assignment {
                obey(&hub, &site, manner, &assignment).await;
            }
            if desired.changed().await.is_err() {
                return;
            }
        }
    })
}

async fn obey(hub: &Hub, site: &SiteName, manner: Manner, assignment: &Assignment) {
    let active: Vec<&Item> = assignment.items.iter().filter(|i| i.state == ItemState::Active).collect();
    let (mut rounds, mut deployments) = (Vec::new(), Vec::new());
    let mut uploads = BTreeSet::new();
    for item in active {
        match &item.work {
            Work::Round(work) => {
                rounds.push(answer(&item.uid, manner, work));
                if work.step == Some(ProtocolStep::Upload) && manner == Manner::Willing {
                    upload(hub, site, &item.uid, work).await;
                    uploads.insert(item.uid.clone());
                }
            }
            Work::Deploy(work) => deployments.push(serve(&item.uid, work)),
        }
    }
    let report = Report {
        hub_epoch: assignment.hub_epoch.clone(),
        revision: assignment.revision,
        agent_version: "test".into(),
        rounds,
        deployments,
    };
    let now = Timestamp::now();
    hub.contact(site, now);
    hub.put_report(site, report, now);
    if !uploads.is_empty() {
        hub.changed(site);
    }
}

fn answer(uid: &str, manner: Manner, work: &RoundWork) -> RoundReport {
    let evaluating = work.kind == TaskKind::Evaluate;
    let reason = match manner {
        Manner::Refusing => SiteReason::DeniedByPolicy,
        Manner::Slow => SiteReason::Training,
        Manner::Willing if evaluating => SiteReason::Evaluated,
        Manner::Willing => SiteReason::Ready,
    };
    let vote = Evaluation { vote: Vote::Pass, sums: Some(CaseSums { cases: 10, dice: 9.0 }), published: None };
    let evaluation = (evaluating && manner == Manner::Willing).then_some(vote);
    RoundReport { uid: uid.into(), kind: work.kind, reason, message: None, evaluation }
}

fn serve(uid: &str, work: &DeployWork) -> DeployReport {
    DeployReport { uid: uid.into(), reason: RolloutReason::Serving, serving: Some(work.model), message: None }
}

async fn upload(hub: &Hub, site: &SiteName, uid: &str, work: &RoundWork) {
    let ring = RingParams::new(work.roster_size as usize, 10.0).unwrap();
    let mut head = vec![0; 16];
    encode_head(&ring, Weight::EQUAL, &[], &mut head).unwrap();
    let mut body = vec![0; ELEMENTS];
    ring.encode(Weight::EQUAL, &[STEP; ELEMENTS], &mut body).unwrap();
    let chunks = [to_bytes(&head), to_bytes(&body)];
    let key = UploadKey { round_uid: uid.into(), attempt: work.attempt, site: site.clone() };
    let digests = chunks.each_ref().map(|c| Digest::of(c));
    for index in hub.store().begin_upload(&key, &digests).await.unwrap() {
        hub.store().put_chunk(&key, index, chunks[index as usize].clone().into()).await.unwrap();
    }
}
