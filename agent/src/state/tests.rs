use consilium_federation::assignment::{Acceptance, Assignment, Item, ItemState, RoundWork, Work};
use consilium_federation::round::ProtocolStep;
use consilium_federation::task::{ScoreFile, TaskKind};
use consilium_federation::{Digest, StudyKey};
use consilium_secagg::upload::chunk_digest;
use jiff::Timestamp;
use tempfile::TempDir;

use super::*;

fn now() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

fn open(dir: &TempDir) -> State {
    State::open(dir.path(), [7; 32]).unwrap()
}

fn assignment(epoch: &str, revision: u64, attempt: u32) -> Assignment {
    let work = RoundWork {
        study: StudyKey::new("research", "hippocampus"),
        study_uid: "u".into(),
        spec_digest: Digest::of(b"spec"),
        round: 1,
        kind: TaskKind::Train,
        model: Digest::of(b"model"),
        schema: Digest::of(b"schema"),
        roster_size: 4,
        attempt,
        step: Some(ProtocolStep::Upload),
        roster: None,
        inputs: None,
        deadline: "2026-01-02T00:00:00Z".parse().unwrap(),
    };
    let item = Item { uid: "round".into(), state: ItemState::Active, work: Work::Round(work) };
    Assignment { hub_epoch: epoch.into(), revision, rosters: vec![], items: vec![item] }
}

fn meta() -> UpdateMeta {
    UpdateMeta {
        task_uid: "task".into(),
        task_name: "hippocampus-r1-train".into(),
        study: StudyKey::new("research", "hippocampus"),
        spec_digest: Digest::of(b"spec"),
        round: 1,
        base: Digest::of(b"model"),
        roster_size: 4,
        examples: 12,
        norm: "0.5".into(),
        clipped: false,
        delivered: now(),
    }
}

fn store(state: &State, chunks: &[&[u8]]) -> StoredUpdate {
    let mut writer = state.begin_update("round").unwrap();
    for chunk in chunks {
        writer.put_chunk(chunk).unwrap();
    }
    writer.finish(meta()).unwrap()
}

fn entry(reason: &str) -> Entry {
    Entry::NewEpoch { old: reason.into(), new: "e".into() }
}

/// Two agents on one volume would upload twice and write one ledger between them.
#[test]
fn a_second_agent_on_the_volume_is_told_so() {
    let dir = TempDir::new().unwrap();
    let first = open(&dir);
    let error = State::open(dir.path(), [8; 32]).err().unwrap().to_string();
    assert!(error.contains("another agent") && error.contains("--state"), "{error}");
    drop(first);
    open(&dir);
}

/// The secret salts the data order: another one after a restart would make two runs comparable from outside.
#[test]
fn the_secret_is_made_once() {
    let dir = TempDir::new().unwrap();
    drop(open(&dir));
    assert_eq!(State::open(dir.path(), [9; 32]).unwrap().secret(), [7; 32]);
}

/// A hub restored from a backup must not take a hospital back to work that it has left behind.
#[test]
fn an_older_revision_is_refused_also_after_a_restart() {
    let dir = TempDir::new().unwrap();
    let state = open(&dir);
    assert_eq!(state.accept(assignment("e1", 7, 1), now(), now()).unwrap(), Acceptance::Take);
    drop(state);
    let state = open(&dir);
    assert_eq!(state.accept(assignment("e1", 6, 2), now(), now()).unwrap(), Acceptance::Stale);
    assert_eq!(state.assignment().unwrap(), Some(assignment("e1", 7, 1)));
}

/// A hub that lost its store asks under attempt numbers that mean something else now.
#[test]
fn a_new_epoch_burns_the_open_attempt_and_says_so_in_the_ledger() {
    let dir = TempDir::new().unwrap();
    let state = open(&dir);
    state.accept(assignment("e1", 7, 1), now(), now()).unwrap();
    store(&state, &[b"head"]);
    assert!(!state.is_burned("round", 1).unwrap());
    assert_eq!(state.accept(assignment("e2", 1, 1), now(), now()).unwrap(), Acceptance::TakeNewEpoch);
    drop(state);
    let state = open(&dir);
    assert!(state.is_burned("round", 1).unwrap());
    assert!(!state.is_burned("round", 2).unwrap());
    assert!(matches!(state.ledger(1, 10).unwrap()[..], [Record { entry: Entry::NewEpoch { .. }, .. }]));
}

/// A hub that changes its epoch with each message, and names ten thousand other attempts in each, would fill the volume
/// with attempts in which this hospital never said a word.
#[test]
fn a_new_epoch_burns_nothing_that_this_hospital_had_no_part_in() {
    let dir = TempDir::new().unwrap();
    let state = open(&dir);
    state.accept(assignment("e1", 7, 1), now(), now()).unwrap();
    assert_eq!(state.accept(assignment("e2", 1, 1), now(), now()).unwrap(), Acceptance::TakeNewEpoch);
    assert!(!state.is_burned("round", 1).unwrap());
}

/// Hours of training hang on this: what was acknowledged to the task pod is there after a crash, byte by byte.
#[test]
fn an_update_survives_a_restart_and_damage_is_noticed() {
    let dir = TempDir::new().unwrap();
    let stored = store(&open(&dir), &[b"head", b"body"]);
    let state = open(&dir);
    assert_eq!(state.update("round").unwrap(), Some(stored.clone()));
    assert_eq!(state.updates().unwrap(), std::slice::from_ref(&stored));
    assert_eq!(&state.update_chunk("round", 1).unwrap()[..], b"body");
    assert_eq!((stored.bytes, stored.digest()), (8, Digest::of_json(&[chunk_digest(b"head"), chunk_digest(b"body")])));
    std::fs::write(dir.path().join("updates/round/00000001"), b"bodY").unwrap();
    assert!(matches!(state.update_chunk("round", 1), Err(StateError::Chunk { index: 1, .. })));
    assert!(matches!(state.update_chunk("round", 2), Err(StateError::Missing(_))));
}

/// The bytes are re-sent, never re-made: a pod that delivers twice must not change what the hub may already hold.
#[test]
fn the_first_update_of_a_round_counts() {
    let dir = TempDir::new().unwrap();
    let state = open(&dir);
    let first = store(&state, &[b"first"]);
    assert_eq!(store(&state, &[b"second"]), first);
    assert_eq!(&state.update_chunk("round", 0).unwrap()[..], b"first");
    state.delete_update("round").unwrap();
    state.delete_update("round").unwrap();
    assert_eq!(store(&state, &[b"second"]).chunks, [chunk_digest(b"second")]);
}

/// A crash in the middle of a delivery must leave neither half an update nor a full disk.
#[test]
fn half_a_delivery_leaves_nothing() {
    let dir = TempDir::new().unwrap();
    let state = open(&dir);
    state.begin_update("round").unwrap().put_chunk(b"half").unwrap();
    assert_eq!(std::fs::read_dir(dir.path().join("staging")).unwrap().count(), 0);
    drop(state);
    // As a crash while chunks come in, and one between the rename and the row, leave it.
    for left in ["staging/round.9", "updates/round"] {
        std::fs::create_dir_all(dir.path().join(left)).unwrap();
        std::fs::write(dir.path().join(left).join("00000000"), b"half").unwrap();
    }
    let state = open(&dir);
    assert_eq!(state.update("round").unwrap(), None);
    for folder in ["staging", "updates"] {
        assert_eq!(std::fs::read_dir(dir.path().join(folder)).unwrap().count(), 0, "{folder}");
    }
}

/// UIDs come from the hub; one with a path in it must not reach another folder.
#[test]
fn a_uid_that_is_a_path_is_refused() {
    let dir = TempDir::new().unwrap();
    let state = open(&dir);
    for uid in ["../../etc", "", "a/b", ".."] {
        assert!(matches!(state.begin_update(uid), Err(StateError::Name { .. })), "{uid:?}");
        assert!(matches!(state.delete_update(uid), Err(StateError::Name { .. })), "{uid:?}");
    }
}

#[test]
fn a_score_is_kept_and_the_first_counts() {
    let dir = TempDir::new().unwrap();
    let state = open(&dir);
    let score = |cases| StoredScore {
        task_uid: "t".into(),
        task_name: "n".into(),
        score: ScoreFile { cases, classes: vec![] },
        delivered: now(),
    };
    state.put_score("round", &score(3)).unwrap();
    assert_eq!(state.put_score("round", &score(4)).unwrap(), score(3));
    drop(state);
    let state = open(&dir);
    assert_eq!(state.score("round").unwrap(), Some(score(3)));
    state.delete_score("round").unwrap();
    assert_eq!(state.score("round").unwrap(), None);
}

/// A hub that gives a round's UID to another study would have that study's image run on the first one's scans, or the
/// first one's score go out under the second one's permissions.
#[test]
fn a_uid_stays_that_of_its_round_until_all_of_it_is_forgotten() {
    let dir = TempDir::new().unwrap();
    let state = open(&dir);
    let work = |study: &str, spec: &[u8], round| RoundWork {
        study: study.parse().unwrap(),
        study_uid: "s".into(),
        spec_digest: Digest::of(spec),
        round,
        kind: TaskKind::Train,
        model: Digest::of(b"model"),
        schema: Digest::of(b"schema"),
        roster_size: 4,
        attempt: 0,
        step: None,
        roster: None,
        inputs: None,
        deadline: now(),
    };
    let mine = work("research/a", b"spec", 3);
    assert!(!state.holds("u").unwrap());
    assert!(state.is_round("u", &mine).unwrap());
    drop(state);
    let state = open(&dir);
    // The evaluation of the same round, of the model that came of it.
    let evaluated = RoundWork { kind: TaskKind::Evaluate, model: Digest::of(b"new"), ..mine.clone() };
    assert!(state.is_round("u", &mine).unwrap() && state.is_round("u", &evaluated).unwrap());
    for other in [work("research/b", b"spec", 3), work("research/a", b"other", 3), work("research/a", b"spec", 4)] {
        assert!(!state.is_round("u", &other).unwrap(), "{other:?}");
    }
    assert!(state.holds("u").unwrap());
    state.forget_round("u").unwrap();
    assert!(state.is_round("u", &work("research/b", b"spec", 3)).unwrap());
}

/// An old pod that comes back from a network cut must not deliver over a newer one.
#[test]
fn only_the_newest_try_is_newest() {
    let dir = TempDir::new().unwrap();
    let state = open(&dir);
    let grant = |uid: &str, r#try| Grant::Task { uid: uid.into(), name: "n".into(), r#try };
    let token = |text: &str| Digest::of(text.as_bytes());
    state.put_token(token("one"), &grant("a", 1)).unwrap();
    state.put_token(token("two"), &grant("a", 2)).unwrap();
    state.put_token(token("other"), &grant("b", 1)).unwrap();
    drop(state);
    let state = open(&dir);
    let newest = |text: &str| state.token(token(text)).unwrap().map(|granted| granted.newest);
    assert_eq!((newest("one"), newest("two"), newest("other")), (Some(false), Some(true), Some(true)));
    assert_eq!(newest("forged"), None);
    state.delete_tokens("a").unwrap();
    let newest = |text: &str| state.token(token(text)).unwrap().map(|granted| granted.newest);
    assert_eq!((newest("one"), newest("two"), newest("other")), (None, None, Some(true)));
}

#[test]
fn blobs_are_found_by_prefix() {
    let dir = TempDir::new().unwrap();
    let state = open(&dir);
    for name in ["a", "port/cert", "port/key", "q"] {
        state.put_blob(name, name.as_bytes()).unwrap();
    }
    let names: Vec<_> = state.blobs("port/").unwrap().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["port/cert", "port/key"]);
    state.delete_blob("port/key").unwrap();
    assert_eq!(state.blob("port/key").unwrap(), None);
}

/// The audit rests on this: nobody changes, drops or cuts off an entry without the next start saying so.
#[test]
fn a_ledger_that_was_touched_is_not_opened() {
    let touched = |act: fn(&State)| {
        let dir = TempDir::new().unwrap();
        let state = open(&dir);
        let heads: Vec<Digest> = ["a", "b", "c"].map(|text| state.append(entry(text), now()).unwrap()).into();
        assert_eq!((state.verify().unwrap(), state.head().unwrap()), (3, heads[2]));
        assert!(state.had_head(heads[0]).unwrap() && !state.had_head(Digest::of(b"x")).unwrap());
        act(&state);
        drop(state);
        match State::open(dir.path(), [7; 32]) {
            Err(StateError::Ledger { seq, .. }) => Some(seq),
            Ok(_) => None,
            Err(other) => panic!("{other}"),
        }
    };
    assert_eq!(touched(|_| ()), None);
    assert_eq!(touched(|state| state.tamper(2, None)), Some(2));
    assert_eq!(touched(|state| state.tamper(3, None)), Some(3));
    let forged = |state: &State| {
        let mut record = state.ledger(2, 1).unwrap().remove(0);
        record.entry = entry("forged");
        state.tamper(2, Some(&serde_json::to_vec(&record).unwrap()));
    };
    assert_eq!(touched(forged), Some(3));
}

/// The record and its ledger entry are one: neither is there without the other.
#[test]
fn an_upload_is_remembered_with_its_ledger_head() {
    let dir = TempDir::new().unwrap();
    let state = open(&dir);
    store(&state, &[b"x"]);
    let head = state.put_upload("round", 2, UploadProgress::Begun, &entry("a"), now()).unwrap();
    drop(state);
    let state = open(&dir);
    assert_eq!(state.head().unwrap(), head);
    let record = UploadRecord { attempt: 2, progress: UploadProgress::Begun(head) };
    assert_eq!(state.upload("round").unwrap(), Some(record));
    state.delete_update("round").unwrap();
    assert_eq!(state.upload("round").unwrap(), None);
}

/// A policy that was deleted and made again has generation 1 as the one before had: decisions were said to be made under a
/// text that was no longer in force.
#[test]
fn a_policy_that_was_made_again_is_another_one() {
    let dir = TempDir::new().unwrap();
    let state = State::open(dir.path(), [7; 32]).unwrap();
    let (first, again) = (|| Some("uid-1".to_owned()), || Some("uid-2".to_owned()));
    assert!(state.is_news(first(), Some(1)).unwrap() && !state.is_news(first(), Some(1)).unwrap());
    let entry = |uid| Entry::PolicyInForce { generation: Some(1), uid, digest: None, spec: None };
    state.append(entry(first()), "2026-01-01T00:00:00Z".parse().unwrap()).unwrap();
    drop(state);
    let state = State::open(dir.path(), [7; 32]).unwrap();
    assert!(!state.is_news(first(), Some(1)).unwrap(), "over a restart too");
    assert!(state.is_news(again(), Some(1)).unwrap());
}
