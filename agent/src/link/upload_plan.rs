//! What is to be done about an upload: pure.

use consilium_crds::round_task::Irreversible;
use consilium_federation::assignment::{Item, ItemState, RoundWork, Work};
use consilium_federation::round::ProtocolStep;
use consilium_federation::task::TaskKind;
use tonic::Code;

use crate::state::StoredUpdate;

/// One upload: a round and its attempt.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UploadKey {
    /// UID of the TrainingRound.
    pub round_uid: String,
    /// The attempt.
    pub attempt: u32,
}

/// The uploads that the hub waits for, of those it asks this hospital for.
pub fn wanted(item: &Item) -> Option<(UploadKey, &RoundWork)> {
    let Work::Round(work) = &item.work else { return None };
    let asked = item.state == ItemState::Active
        && work.kind == TaskKind::Train
        && work.attempt > 0
        && work.step == Some(ProtocolStep::Upload);
    asked.then(|| (UploadKey { round_uid: item.uid.clone(), attempt: work.attempt }, work))
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
    use consilium_federation::{Digest, StudyKey};

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
        StoredUpdate { round_uid: "r".into(), meta, chunks: vec![Digest::of(b"c")], bytes: 1 }
    }

    /// Nothing leaves but what is asked for, by an item that stands, in the step that is open.
    #[test]
    fn only_an_open_upload_step_of_an_active_item_is_wanted() {
        let item = |state, work| Item { uid: "r".into(), state, work: Work::Round(work) };
        let key = UploadKey { round_uid: "r".into(), attempt: 2 };
        assert_eq!(wanted(&item(ItemState::Active, work())).map(|(key, _)| key), Some(key));
        assert!(wanted(&item(ItemState::Cancelled, work())).is_none());
        assert!(wanted(&item(ItemState::Orphaned, work())).is_none());
        for other in [
            RoundWork { step: None, ..work() },
            RoundWork { step: Some(ProtocolStep::Agree), ..work() },
            RoundWork { attempt: 0, ..work() },
            RoundWork { kind: TaskKind::Evaluate, ..work() },
        ] {
            assert!(wanted(&item(ItemState::Active, other)).is_none());
        }
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
