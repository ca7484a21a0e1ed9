//! A hospital that does at once what it is asked, without training: reports through the hub, answers each step of an
//! attempt with a real client of the masking protocol, uploads into the store. What it remembers outlives the hub.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use consilium_crds::FederatedStudySpec;
use consilium_crds::roster::site_id;
use consilium_crds::study::{EXAMPLES_CAP, SumFacts};
use consilium_federation::assignment::{Assignment, DeployWork, Item, ItemState, RoundWork, Work};
use consilium_federation::gate::Vote;
use consilium_federation::report::{DeployReport, Evaluation, Report, RolloutReason, RoundReport};
use consilium_federation::round::{ProtocolStep, SiteReason};
use consilium_federation::task::TaskKind;
use consilium_federation::{Digest, SiteName};
use consilium_operator::attempts::Refused;
use consilium_operator::hub::Hub;
use consilium_operator::store::UploadKey;
use consilium_secagg::client::{Client, Floors, Guard};
use consilium_secagg::history::{DifferenceRule, History};
use consilium_secagg::identity::SiteKey;
use consilium_secagg::ring::encode_head;
use consilium_secagg::roster::{SignedRoster, VerifiedRoster};
use consilium_secagg::spec::AttemptSpec;
use consilium_secagg::sum::to_bytes;
use consilium_secagg::upload::chunk_digest;
use consilium_secagg::weight::Weight;
use consilium_secagg::wire::Message;
use jiff::Timestamp;
use tokio::task::JoinHandle;

use crate::world::governance;

/// Parameters of the model.
pub const ELEMENTS: usize = 1000;
/// What every hospital adds to each parameter.
pub const STEP: f32 = 0.125;
/// The mean Dice that every hospital finds, over ten cases.
pub const DICE: f32 = 0.9;

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

/// A hospital and what it keeps on its volume.
pub struct Hospital {
    name: SiteName,
    manner: Manner,
    key: SiteKey,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    rosters: Vec<VerifiedRoster>,
    history: History,
    /// By round and attempt.
    clients: HashMap<(String, u32), Part>,
}

/// A client, and its masked chunks once they are made.
type Part = (Client, Vec<Vec<u8>>);

impl Hospital {
    pub fn new(name: &str, manner: Manner) -> Arc<Self> {
        let key = key_of(name);
        Arc::new(Self { name: name.parse().unwrap(), manner, key, kept: Mutex::default() })
    }

    /// Starts it; it ends when the handle is aborted.
    pub fn start(self: &Arc<Self>, hub: &Hub) -> JoinHandle<()> {
        let (hub, hospital) = (hub.clone(), self.clone());
        tokio::spawn(async move {
            let _connection = hub.connect(&hospital.name);
            let mut desired = hub.subscribe(&hospital.name);
            loop {
                let assignment = desired.borrow_and_update().clone();
                if let Some(assignment) = assignment {
                    hospital.obey(&hub, &assignment).await;
                }
                if desired.changed().await.is_err() {
                    return;
                }
            }
        })
    }

    async fn obey(&self, hub: &Hub, assignment: &Assignment) {
        let mut accepted = Vec::new();
        for digest in &assignment.rosters {
            let bytes = hub.store().get_object(*digest).await.unwrap();
            accepted.push(governance().verify(&SignedRoster::from_bytes(&bytes).unwrap()).unwrap());
        }
        let rosters = accepted.iter().map(|roster| Digest::from_bytes(roster.digest().0)).collect();
        self.kept.lock().unwrap().rosters = accepted;
        let active: Vec<&Item> = assignment.items.iter().filter(|i| i.state == ItemState::Active).collect();
        let (mut rounds, mut deployments) = (Vec::new(), Vec::new());
        for item in &active {
            match &item.work {
                Work::Round(work) => rounds.push(answer(&item.uid, self.manner, work)),
                Work::Deploy(work) => deployments.push(serve(&item.uid, work)),
            }
        }
        let report = Report {
            hub_epoch: assignment.hub_epoch.clone(),
            revision: assignment.revision,
            agent_version: "test".into(),
            rosters,
            ledger: None,
            rounds,
            deployments,
        };
        let now = Timestamp::now();
        hub.contact(&self.name, now);
        hub.put_report(&self.name, report, now);
        for item in active {
            if let (Work::Round(work), Manner::Willing) = (&item.work, self.manner)
                && let Some(step) = work.step
            {
                self.act(hub, &item.uid, work, step).await;
            }
        }
    }

    /// Whether the newest assignment still names these inputs.
    fn is_asked(&self, hub: &Hub, inputs: Digest) -> bool {
        let names = |item: &Item| matches!(&item.work, Work::Round(work) if work.inputs == Some(inputs));
        hub.assignment(&self.name).is_some_and(|assignment| assignment.items.iter().any(names))
    }

    /// Does a step; the same again gives the same, so nothing is lost with the hub.
    async fn act(&self, hub: &Hub, uid: &str, work: &RoundWork, step: ProtocolStep) {
        let input = match work.inputs {
            Some(digest) => {
                // What others dealt it is made when it asks; everything else lies in the store.
                let key = UploadKey { round_uid: uid.to_owned(), attempt: work.attempt, site: self.name.clone() };
                loop {
                    if let Some(made) = hub.attempts().made(&key, digest).await {
                        break made;
                    }
                    if let Ok(stored) = hub.store().get_object(digest).await {
                        break stored;
                    }
                    if !self.is_asked(hub, digest) {
                        // The hub has gone on meanwhile; the next assignment says so.
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
            None => Default::default(),
        };
        let spec: FederatedStudySpec =
            serde_json::from_slice(&hub.store().get_object(work.spec_digest).await.unwrap()).unwrap();
        let (message, masked) = self.answer_step(uid, work, &spec, step, &input);
        let key = UploadKey { round_uid: uid.into(), attempt: work.attempt, site: self.name.clone() };
        while let Err(refused) = hub.attempts().receive(hub.store(), &key, step, &message).await {
            match refused {
                // It has gone on meanwhile, and remembers nothing of the attempt; the next assignment says so.
                Refused::NotOpen { .. } if hub.step_work(&self.name, uid, work.attempt, step).is_none() => return,
                // The hub has just started and has not looked at the round yet.
                Refused::NotOpen { .. } => tokio::time::sleep(Duration::from_millis(20)).await,
                // It has gone on meanwhile; the next assignment says so.
                Refused::OutOfStep { .. } => return,
                other => panic!("{}: {other}", self.name),
            }
        }
        if step == ProtocolStep::Upload {
            let digests: Vec<_> = masked.iter().map(|c| chunk_digest(c)).collect();
            for index in hub.store().begin_upload(&key, &digests, 1 << 20).await.unwrap() {
                hub.store().put_chunk(&key, index, masked[index as usize].clone().into()).await.unwrap();
            }
        }
        hub.changed(&self.name);
    }

    fn answer_step(
        &self,
        uid: &str,
        work: &RoundWork,
        spec: &FederatedStudySpec,
        step: ProtocolStep,
        input: &[u8],
    ) -> (Vec<u8>, Vec<Vec<u8>>) {
        let mut kept = self.kept.lock().unwrap();
        let kept = &mut *kept;
        let wanted = work.roster.expect("a masked attempt names its roster");
        let roster = kept.rosters.iter().find(|r| r.digest().0 == *wanted.as_bytes()).expect("an accepted roster");
        let floors = Floors { min_contributors: 3, colluders: 1 };
        let guard = Guard { roster, floors: &floors, history: &kept.history };
        let facts = SumFacts {
            federation: &roster.roster().federation,
            study: &work.study,
            study_uid: &work.study_uid,
            round: work.round,
            kind: work.kind,
            model: work.model,
            spec_digest: work.spec_digest,
            schema: work.schema,
            roster: wanted,
            participants: work.roster_size,
            parameters: ELEMENTS as u64,
        };
        let attempt = AttemptSpec { round: spec.sum_spec(&facts).unwrap(), attempt: work.attempt };
        let round = attempt.round.clone();
        let key = (uid.to_owned(), work.attempt);
        if step == ProtocolStep::Advertise {
            let open = || Client::open(attempt, site_id(&self.name), &self.key, guard, &mut rand::rng()).unwrap();
            let (client, _) = kept.clients.entry(key).or_insert_with(|| (open(), Vec::new()));
            return (client.advert().to_bytes(), Vec::new());
        }
        let (client, masked) = kept.clients.get_mut(&key).expect("it advertised");
        let message = match step {
            ProtocolStep::Share => {
                let list = Message::from_bytes(input).unwrap();
                client.adverts(&list, &self.key, guard, &mut rand::rng()).unwrap().to_bytes()
            }
            ProtocolStep::Upload => {
                client.bundle(&Message::from_bytes(input).unwrap()).unwrap();
                if masked.is_empty() {
                    let plain = vector(work.kind, &round);
                    client.bind_update(plain.iter().map(|c| chunk_digest(c)).collect()).unwrap();
                    let masker = client.masker().unwrap();
                    *masked = plain;
                    for (index, chunk) in (0..).zip(masked.iter_mut()) {
                        masker.mask(index, chunk).unwrap();
                    }
                }
                client.finish_upload(masked.iter().map(|c| chunk_digest(c)).collect(), &self.key).unwrap().to_bytes()
            }
            ProtocolStep::Agree => {
                let statement = Message::from_bytes(input).unwrap();
                let rule = DifferenceRule::Allow;
                client.survivors(&statement, &self.key, &kept.history, rule).unwrap().to_bytes()
            }
            ProtocolStep::Unmask => {
                let reply = client.proof(&Message::from_bytes(input).unwrap(), &self.key, &kept.history).unwrap();
                kept.history.record_released(&round, client.session().unwrap().sid());
                reply.to_bytes()
            }
            ProtocolStep::Advertise | ProtocolStep::Sum => unreachable!("handled above, and never asked for"),
        };
        (message, masked.clone())
    }
}

/// A hospital's key in these tests.
pub fn key_of(name: &str) -> SiteKey {
    SiteKey::from_seed(&[name.as_bytes()[0]; 32])
}

/// What a hospital contributes: its update, or its Dice over ten cases.
fn vector(kind: TaskKind, round: &consilium_secagg::spec::RoundSpec) -> Vec<Vec<u8>> {
    let ring = round.ring().unwrap();
    let values = if kind == TaskKind::Evaluate { vec![DICE] } else { vec![STEP; ELEMENTS] };
    let weight = Weight::from_examples(10, EXAMPLES_CAP, 1).unwrap();
    let (mut head, mut body) = (vec![0; 16], vec![0; values.len()]);
    encode_head(&ring, weight, &[], &mut head).unwrap();
    ring.encode(weight, &values, &mut body).unwrap();
    vec![to_bytes(&head), to_bytes(&body)]
}

fn answer(uid: &str, manner: Manner, work: &RoundWork) -> RoundReport {
    let evaluating = work.kind == TaskKind::Evaluate;
    let reason = match manner {
        Manner::Refusing => SiteReason::DeniedByPolicy,
        Manner::Slow => SiteReason::Training,
        Manner::Willing if evaluating => SiteReason::Evaluated,
        Manner::Willing => SiteReason::Ready,
    };
    let vote = Evaluation { vote: Vote::Pass, sums: None, published: None };
    let evaluation = (evaluating && manner == Manner::Willing).then_some(vote);
    RoundReport { uid: uid.into(), kind: work.kind, reason, message: None, evaluation }
}

fn serve(uid: &str, work: &DeployWork) -> DeployReport {
    DeployReport {
        uid: uid.into(),
        reason: RolloutReason::Serving,
        serving: Some(work.model),
        stage: Some(work.stage),
        message: None,
    }
}
