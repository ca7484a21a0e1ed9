//! The hub of a study on one machine: the driver of the cluster's rounds and the cluster's rules for studies, over files.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use consilium_crds::conditions::{STALLED, SUCCEEDED, status_of};
use consilium_crds::{FederatedStudy, ModelRelease, TrainingRound};
use consilium_federation::{Digest, SiteName};
use consilium_operator::controllers::release::cut;
use consilium_operator::controllers::round as rounds;
use consilium_operator::controllers::study::decide::{self as study, Act, Initial, NewRound, newest_model};
use consilium_operator::controllers::study::make;
use consilium_operator::driver::items::items;
use consilium_operator::driver::{DriveError, Driver, Round, RoundStore, Turn};
use consilium_operator::hub::Hub;
use consilium_operator::news::News;
use ed25519_dalek::SigningKey;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::events::{Event, Events};
use super::first::First;
use super::setup::Plan;
use super::{Failure, Result, files};

/// After something that may pass.
const AGAIN: Duration = Duration::from_secs(1);
/// When it is looked at everything again, whatever happens.
const IDLE: Duration = Duration::from_secs(60);

/// How a study ended.
pub(super) struct End {
    pub(super) succeeded: bool,
    pub(super) message: String,
    pub(super) model: Option<Digest>,
}

/// A study with all that it came to, each object in a file.
pub(super) struct Center<'a> {
    plan: &'a Plan,
    events: &'a Events,
    hub: Hub,
    driver: Driver,
    key: SigningKey,
    study: FederatedStudy,
    rounds: BTreeMap<u32, TrainingRound>,
    releases: Vec<Arc<ModelRelease>>,
    first: First,
}

impl<'a> Center<'a> {
    /// Reads what is there, and offers the hospitals what they were asked for before.
    pub(super) async fn open(
        (plan, events): (&'a Plan, &'a Events),
        (hub, driver): (Hub, Driver),
        key: SigningKey,
    ) -> Result<Self> {
        let study = match files::get::<FederatedStudy>(&plan.out.join("study.json"))? {
            Some(known) => FederatedStudy { status: known.status, ..plan.study.clone() },
            None => plan.study.clone(),
        };
        let rounds = files::all::<TrainingRound>(&plan.out.join("rounds"))?;
        let releases = files::all::<ModelRelease>(&plan.out.join("releases"))?;
        let center = Self {
            plan,
            events,
            hub,
            driver,
            key,
            study,
            rounds: rounds.into_iter().map(|round| (round.spec.number, round)).collect(),
            releases: releases.into_iter().map(Arc::new).collect(),
            first: First::open(plan)?,
        };
        let mut work = Vec::new();
        for round in center.rounds.values().map(rounds::read) {
            work.push((center.driver.asked_before(&round).await, round));
        }
        center.driver.publish(|book| {
            for (items, round) in work {
                book.set(&round.uid, &round.owner(), items);
            }
            plan.sites.iter().cloned().collect()
        });
        Ok(center)
    }

    /// What the hub that hospitals speak to is.
    pub(super) fn hub(&self) -> &Hub {
        &self.hub
    }

    /// The Init task.
    pub(super) fn first(&mut self) -> &mut First {
        &mut self.first
    }

    /// Takes note of what a hospital said.
    pub(super) fn hear(&self, site: &SiteName) {
        self.driver.hear(site, &News::Everything);
    }

    /// Looks at everything once; when to look again, or the end.
    pub(super) async fn turn(&mut self) -> Result<std::result::Result<Duration, End>> {
        match self.look().await {
            Err(Failure::Passing(why)) => {
                tracing::warn!(why, "everything is looked at again");
                Ok(Ok(AGAIN))
            }
            other => other,
        }
    }

    async fn look(&mut self) -> Result<std::result::Result<Duration, End>> {
        let mut next = IDLE;
        while self.study_turn().await? {}
        for number in self.rounds.keys().copied().collect::<Vec<_>>() {
            next = next.min(self.round_turn(number).await?.unwrap_or(IDLE));
        }
        // What a round came to may be what the study waits for.
        while self.study_turn().await? {}
        Ok(self.end().map_or(Ok(next), Err))
    }

    fn end(&self) -> Option<End> {
        let status = self.study.status.as_ref()?;
        let message = |type_: &str| {
            let condition = status.conditions.iter().find(|c| c.type_ == type_);
            condition.map(|c| c.message.clone()).unwrap_or_default()
        };
        let end = |succeeded, type_| Some(End { succeeded, message: message(type_), model: status.model });
        match (status_of(&status.conditions, STALLED), status_of(&status.conditions, SUCCEEDED)) {
            (Some("True"), _) => end(false, STALLED),
            (_, Some("True")) => end(true, SUCCEEDED),
            (_, Some("False")) => end(false, SUCCEEDED),
            _ => None,
        }
    }

    /// One turn of the study; whether anything came of it.
    async fn study_turn(&mut self) -> Result<bool> {
        let store = self.hub.store();
        let known: Vec<Arc<TrainingRound>> = self.rounds.values().cloned().map(Arc::new).collect();
        let stored = store.has_object(self.plan.digest).await;
        let initial = if newest_model(&known, self.study.status.as_ref()).is_some() {
            Initial::Past { ended: vec![] }
        } else if let Some(model) = self.study.spec.initial_model.digest {
            Initial::Named { model, stored: store.get_manifest(model).await.is_ok() }
        } else {
            Initial::Made { delivered: self.first.delivered, tries: self.first.tries.clone(), stale: vec![] }
        };
        let facts = study::Facts {
            study: Arc::new(self.study.clone()),
            sites: self.plan.facts.clone(),
            rosters: self.driver.rosters(),
            rounds: known,
            leftovers: false,
            unread: false,
            releases: self.releases.clone(),
            spec_stored: stored.map_err(DriveError::store("looking for the study's spec"))?,
            initial,
        };
        let now = Timestamp::now();
        let plan = study::decide(&facts, now);
        let mut moved = false;
        for act in &plan.acts {
            moved |= self.perform(act, now).await?;
        }
        if self.study.status.as_ref() != Some(&plan.status) {
            self.study.status = Some(plan.status);
            files::put(&self.plan.out.join("study.json"), &self.study)?;
            for note in plan.notes {
                self.note("study", note.reason, note.message, note.warning);
            }
        }
        Ok(moved)
    }

    fn note(&self, about: &str, reason: &str, message: String, warning: bool) {
        self.events.tell(&Event::Note { about: about.to_owned(), reason: reason.to_owned(), message, warning });
    }

    /// Does what the study decided; whether there is more to decide now.
    async fn perform(&mut self, act: &Act, now: Timestamp) -> Result<bool> {
        match act {
            Act::StoreSpec => {
                make::store_spec(self.hub.store(), &self.study).await?;
                Ok(true)
            }
            Act::StartInit(number) => {
                self.first.start(self.plan, *number)?;
                Ok(false)
            }
            // There are no Jobs.
            Act::EnsureCredential(_) | Act::DeleteJobs(_) => Ok(false),
            Act::Release { round } => self.release(*round).map(|()| true),
            Act::Archive { round } => self.archive(*round),
            Act::Start(new) => self.start(new, now).await.map(|()| true),
        }
    }

    fn round_file(&self, number: u32) -> PathBuf {
        self.plan.out.join("rounds").join(format!("{number:05}.json"))
    }

    async fn start(&mut self, new: &NewRound, now: Timestamp) -> Result<()> {
        let mut round = make::round(self.hub.store(), &self.study, new, now).await?;
        round.metadata.uid = Some(format!("{}-{}", self.plan.uid, new.number));
        round.metadata.generation = Some(1);
        round.metadata.creation_timestamp = Some(Time(now));
        files::put(&self.round_file(new.number), &round)?;
        let message = format!("from {}", new.base_model);
        self.note(&format!("round {}", new.number), "RoundStarted", message, false);
        self.rounds.insert(new.number, round);
        Ok(())
    }

    fn release(&mut self, number: u32) -> Result<()> {
        let Some(round) = self.rounds.get(&number) else { return Ok(()) };
        let spec = cut::cut(round, &self.study.spec, &self.key).map_err(Failure::Part)?;
        let name = format!("{}-r{number}", self.plan.key.name);
        let mut release = ModelRelease::new(&name, spec);
        release.metadata.namespace = Some(self.plan.key.namespace.clone());
        files::put(&self.plan.out.join("releases").join(format!("{number:05}.json")), &release)?;
        self.releases.push(Arc::new(release));
        self.note("study", "Released", format!("ModelRelease {name} was cut"), false);
        Ok(())
    }

    /// Puts a round aside that its hospitals have forgotten; whether it was.
    fn archive(&mut self, number: u32) -> Result<bool> {
        let Some(round) = self.rounds.get(&number).map(rounds::read) else { return Ok(false) };
        let acknowledged = self.driver.book().acknowledged(&round.uid);
        if !items(&round, &acknowledged, &Default::default()).is_empty() {
            return Ok(false);
        }
        let (from, to) = (self.round_file(number), self.plan.out.join("archive").join(format!("{number:05}.json")));
        files::put(&to, &self.rounds[&number])?;
        files::remove(&from)?;
        self.rounds.remove(&number);
        self.driver.forget(&round.uid);
        Ok(true)
    }

    /// One turn of a round; when to take the next, whatever happens.
    async fn round_turn(&mut self, number: u32) -> Result<Option<Duration>> {
        let (Some(object), now) = (self.rounds.get(&number), Timestamp::now()) else { return Ok(None) };
        let round = rounds::read(object);
        let policy = self.driver.policy(&round, now).await?;
        let store = Written { center: self, object, newest: Mutex::default() };
        let turned = self.driver.turn(&store, round, &policy, now).await;
        // What was written stands, also where what follows from it failed.
        let newest = store.newest.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(newest) = newest {
            self.rounds.insert(number, newest);
        }
        Ok(turned?.state.and_then(|state| self.driver.next_turn(&state, &policy, now)))
    }

    /// All rounds that were ever made, by number.
    pub(super) fn all_rounds(&self) -> Result<Vec<TrainingRound>> {
        // One that was being archived when somebody killed this is in both places.
        let archived = files::all::<TrainingRound>(&self.plan.out.join("archive"))?;
        let all = archived.into_iter().chain(self.rounds.values().cloned()).map(|round| (round.spec.number, round));
        Ok(all.collect::<BTreeMap<_, _>>().into_values().collect())
    }
}

/// A round's file, as the place where its turns are written. The lock of the folder is the fence.
struct Written<'a> {
    center: &'a Center<'a>,
    object: &'a TrainingRound,
    newest: Mutex<Option<TrainingRound>>,
}

impl RoundStore for Written<'_> {
    type Error = Failure;

    async fn write(&self, turn: &Turn<'_>) -> Result<()> {
        let status =
            rounds::decide::status(self.object, turn.after.clone(), turn.trouble.as_deref(), turn.policy, turn.now);
        if self.object.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let written = TrainingRound { status: Some(status), ..self.object.clone() };
        let number = written.spec.number;
        files::put(&self.center.round_file(number), &written)?;
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = Some(written);
        let (notes, ended) = rounds::decide::transition(turn.round.state.as_ref(), turn.after, turn.now);
        for note in notes {
            self.center.note(&format!("round {number}"), note.reason, note.message, note.warning);
        }
        let Some(ended) = ended else { return Ok(()) };
        let (stage, seconds) = (format!("{:?}", ended.step), ended.took.as_secs_f64());
        self.center.events.tell(&Event::Stage { round: number, stage, seconds });
        if let Some(outcome) = turn.after.outcome {
            let gate = turn.after.gate.as_ref();
            self.center.events.tell(&Event::Round {
                round: number,
                outcome: format!("{outcome:?}"),
                contributors: turn.after.contributors,
                model: turn.after.model,
                dice: gate.and_then(|gate| gate.global.clone()),
                released: gate.is_some_and(|gate| gate.passed),
            });
        }
        Ok(())
    }

    fn stands(&self, _: &Round) -> bool {
        true
    }
}
