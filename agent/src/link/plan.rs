//! What is to be done about an attempt: pure.

use consilium_crds::FederatedStudySpec;
use consilium_crds::round_task::Irreversible;
use consilium_crds::study::SumFacts;
use consilium_federation::Digest;
use consilium_federation::assignment::{Assignment, Item, ItemState, RoundWork, Work};
use consilium_federation::model::ModelManifest;
use consilium_federation::round::ProtocolStep;
use consilium_federation::task::TaskKind;
use consilium_secagg::roster::VerifiedRoster;
use consilium_secagg::spec::AttemptSpec;
use tonic::Code;

use crate::state::{AttemptKey, StoredUpdate, hub_digest};

/// One turn: a step of an attempt, and what it starts from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TurnKey {
    /// The attempt.
    pub attempt: AttemptKey,
    /// What is summed.
    pub kind: TaskKind,
    /// The step.
    pub step: ProtocolStep,
    /// Digest of the object that it starts from.
    pub inputs: Option<Digest>,
}

impl TurnKey {
    /// The step's name.
    pub fn step_name(&self) -> String {
        format!("{:?}", self.step)
    }
}

/// The steps that the hub waits for, of those it asks this hospital for.
pub fn wanted(item: &Item) -> Option<(TurnKey, &RoundWork)> {
    let Work::Round(work) = &item.work else { return None };
    let step = work.step.filter(|step| *step != ProtocolStep::Sum)?;
    let asked = item.state == ItemState::Active && work.kind != TaskKind::Init && work.attempt > 0;
    let attempt = AttemptKey { round_uid: item.uid.clone(), attempt: work.attempt };
    asked.then_some((TurnKey { attempt, kind: work.kind, step, inputs: work.inputs }, work))
}

/// Why an attempt's secrets are of no use any more: the hub goes on without it. While the hub says nothing of the
/// round, it may yet come back to it.
pub fn outdated(key: &AttemptKey, desired: &Assignment) -> Option<&'static str> {
    if desired.hub_epoch.is_empty() {
        return None;
    }
    // A hub that has not made the next step's inputs yet leaves the round out: that is no word at all.
    let item = desired.items.iter().find(|item| item.uid == key.round_uid)?;
    match (&item.work, item.state) {
        (_, ItemState::Orphaned) => None,
        (Work::Round(work), ItemState::Active) if work.attempt == key.attempt && work.step.is_some() => None,
        (Work::Round(work), ItemState::Active) if work.attempt > 0 && work.attempt != key.attempt => {
            Some("the hub opened another attempt")
        }
        (Work::Round(_), ItemState::Active) => {
            Some("the hub closed the attempt, or goes on in it without this hospital")
        }
        (_, ItemState::Cancelled) | (Work::Deploy(_), _) => Some("the round is over"),
    }
}

/// Whether the hub was heard and does not name the round of an attempt.
pub fn unnamed(key: &AttemptKey, desired: &Assignment) -> bool {
    !desired.hub_epoch.is_empty() && !desired.items.iter().any(|item| item.uid == key.round_uid)
}

/// What the attempt is about, from what this hospital knows itself: the study that it opted in to, the model that its
/// update starts from. A hub that plans another sum gets an advert for one that it does not run.
///
/// # Errors
/// In words, when the numbers make no sum.
pub fn attempt_spec(
    work: &RoundWork,
    spec: &FederatedStudySpec,
    roster: &VerifiedRoster,
    model: &ModelManifest,
) -> Result<AttemptSpec, String> {
    let schema = model.tensors.digest();
    if schema != work.schema {
        return Err(format!("the assignment names tensor schema {} and the model has {schema}", work.schema));
    }
    let facts = SumFacts {
        federation: &roster.roster().federation,
        study: &work.study,
        study_uid: &work.study_uid,
        round: work.round,
        kind: work.kind,
        model: work.model,
        spec_digest: work.spec_digest,
        schema,
        roster: hub_digest(roster.digest()),
        participants: work.roster_size,
        parameters: model.elements(),
    };
    let round = spec.sum_spec(&facts).map_err(|error| error.to_string())?;
    Ok(AttemptSpec { round, attempt: work.attempt })
}

/// Why a stored update must not go where the hub asks for it.
pub fn mismatch(work: &RoundWork, update: &StoredUpdate) -> Option<String> {
    let meta = &update.meta;
    let differs = |field: &str, stored: &dyn std::fmt::Display, asked: &dyn std::fmt::Display| {
        Some(format!("the update was made for {field} {stored} and is asked for under {asked}; it is not sent"))
    };
    if meta.study != work.study {
        return differs("study", &meta.study, &work.study);
    }
    if meta.spec_digest != work.spec_digest {
        return differs("spec digest", &meta.spec_digest, &work.spec_digest);
    }
    if meta.base != work.model {
        return differs("base model", &meta.base, &work.model);
    }
    if meta.round != work.round {
        return differs("round", &meta.round, &work.round);
    }
    if meta.roster_size != work.roster_size {
        return differs("roster size", &meta.roster_size, &work.roster_size);
    }
    None
}

/// The volume is older than what the RoundTask remembers: it was restored from a backup.
///
/// `known_head` tells whether the ledger ever had the head that the RoundTask holds.
pub fn rolled_back(before: Option<&Irreversible>, known_head: bool) -> Option<String> {
    let before = before.filter(|_| !known_head)?;
    Some(format!(
        "StateRolledBack: the RoundTask remembers ledger head {} (attempt {}), which this volume never had: it was restored from before; the attempt is burned",
        before.ledger_head, before.attempt
    ))
}

/// Whether the hub's answer ends the attempt for this hospital, or may change by itself.
pub fn is_final(code: Code) -> bool {
    matches!(code, Code::AlreadyExists | Code::InvalidArgument | Code::OutOfRange)
}

#[cfg(test)]
mod tests {
    use consilium_federation::StudyKey;

    use super::*;
    use crate::state::UpdateMeta;

    fn work() -> RoundWork {
        RoundWork {
            study: StudyKey::new("research", "hippocampus"),
            study_uid: "u".into(),
            spec_digest: Digest::of(b"spec"),
            round: 3,
            kind: TaskKind::Train,
            model: Digest::of(b"base"),
            schema: Digest::of(b"schema"),
            roster_size: 4,
            attempt: 2,
            step: Some(ProtocolStep::Upload),
            roster: None,
            inputs: None,
            deadline: "2026-01-01T00:00:00Z".parse().unwrap(),
        }
    }

    fn update() -> StoredUpdate {
        let meta = UpdateMeta {
            task_uid: "t".into(),
            task_name: "hippocampus-r3-train".into(),
            study: work().study,
            spec_digest: work().spec_digest,
            round: 3,
            base: work().model,
            roster_size: 4,
            examples: 10,
            norm: "1".into(),
            clipped: false,
            delivered: "2026-01-01T00:00:00Z".parse().unwrap(),
        };
        StoredUpdate {
            round_uid: "r".into(),
            meta,
            chunks: vec![consilium_secagg::upload::chunk_digest(b"c")],
            bytes: 1,
        }
    }

    fn item(state: ItemState, work: RoundWork) -> Item {
        Item { uid: "r".into(), state, work: Work::Round(work) }
    }

    /// Nothing leaves but what is asked for, by an item that stands, in a step that is open.
    #[test]
    fn only_an_open_step_of_an_active_item_is_wanted() {
        let attempt = AttemptKey { round_uid: "r".into(), attempt: 2 };
        let key = TurnKey { attempt, kind: TaskKind::Train, step: ProtocolStep::Upload, inputs: None };
        assert_eq!(wanted(&item(ItemState::Active, work())).map(|(key, _)| key), Some(key));
        assert!(wanted(&item(ItemState::Cancelled, work())).is_none());
        assert!(wanted(&item(ItemState::Orphaned, work())).is_none());
        for other in [
            RoundWork { step: None, ..work() },
            RoundWork { step: Some(ProtocolStep::Sum), ..work() },
            RoundWork { attempt: 0, ..work() },
            RoundWork { kind: TaskKind::Init, ..work() },
        ] {
            assert!(wanted(&item(ItemState::Active, other)).is_none());
        }
    }

    /// Seeds that nobody needs are only a risk; but a hub that is restored may come back to an attempt that it forgot.
    #[test]
    fn secrets_live_as_long_as_their_attempt() {
        let key = AttemptKey { round_uid: "r".into(), attempt: 2 };
        let gone = |state, work| {
            let items = vec![item(state, work)];
            let desired = Assignment { hub_epoch: "e".into(), revision: 1, rosters: vec![], items };
            outdated(&key, &desired)
        };
        assert_eq!(gone(ItemState::Active, work()), None);
        assert_eq!(gone(ItemState::Orphaned, RoundWork { attempt: 0, step: None, ..work() }), None);
        assert!(gone(ItemState::Active, RoundWork { attempt: 3, ..work() }).is_some_and(|why| why.contains("another")));
        assert!(gone(ItemState::Active, RoundWork { step: None, ..work() }).is_some());
        assert!(gone(ItemState::Active, RoundWork { attempt: 0, step: None, ..work() }).is_some());
        assert!(gone(ItemState::Cancelled, work()).is_some());
        let fresh = Assignment { hub_epoch: String::new(), revision: 0, rosters: vec![], items: vec![] };
        assert_eq!(outdated(&key, &fresh), None, "an agent that has not heard the hub yet knows nothing");
        assert!(!unnamed(&key, &fresh));
        let silent = Assignment { hub_epoch: "e".into(), ..fresh };
        assert_eq!((outdated(&key, &silent), unnamed(&key, &silent)), (None, true));
    }

    /// A hub that asks for one round's update under another's name would get sums that the hospital did not agree to.
    #[test]
    fn an_update_goes_only_where_it_was_made_for() {
        assert_eq!(mismatch(&work(), &update()), None);
        for (asked, word) in [
            (RoundWork { study: StudyKey::new("research", "other"), ..work() }, "study"),
            (RoundWork { spec_digest: Digest::of(b"x"), ..work() }, "spec digest"),
            (RoundWork { model: Digest::of(b"x"), ..work() }, "base model"),
            (RoundWork { round: 4, ..work() }, "round"),
            (RoundWork { roster_size: 200, ..work() }, "roster size"),
        ] {
            assert!(mismatch(&asked, &update()).is_some_and(|why| why.contains(word)), "{word}");
        }
    }

    /// A volume from a backup does not know what it has sent since; sending again under the same attempt could differ.
    #[test]
    fn a_head_that_the_ledger_never_had_is_a_roll_back() {
        let before = Irreversible { attempt: 1, step: "Upload".into(), ledger_head: Digest::of(b"head") };
        assert_eq!(rolled_back(None, false), None);
        assert_eq!(rolled_back(Some(&before), true), None);
        assert!(rolled_back(Some(&before), false).is_some_and(|why| why.starts_with("StateRolledBack")));
    }
}
