//! What must survive, and what must not, of the masking protocol's state.

use std::collections::BTreeSet;

use consilium_federation::assignment::{Assignment, Item, ItemState, RoundWork, Work};
use consilium_federation::round::ProtocolStep;
use consilium_federation::task::TaskKind;
use consilium_federation::{Digest, StudyKey};
use consilium_secagg::client::{Client, Floors, Guard};
use consilium_secagg::identity::SiteKey;
use consilium_secagg::ids::{Digest as RingDigest, Sid, SiteId};
use consilium_secagg::roster::{Governance, Roster, RosterEntry, RosterError, SignedRoster, VerifiedRoster};
use consilium_secagg::spec::{AttemptSpec, Purpose, RoundSpec, Weighting};
use jiff::Timestamp;
use tempfile::TempDir;

use super::*;
use crate::Entropy;

fn now() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

fn open(dir: &TempDir) -> State {
    State::open(dir.path(), [7; 32]).unwrap()
}

fn entropy(byte: u8) -> Entropy {
    Entropy::from_fn(move |bytes| bytes.fill(byte))
}

fn governor(seed: u8) -> SiteKey {
    SiteKey::from_seed(&[seed; 32])
}

fn governance(seed: u8) -> Governance {
    Governance { federation: "north".into(), keys: vec![governor(seed).public()], required: 1 }
}

fn roster(version: u64, signed_by: &[u8]) -> SignedRoster {
    let entry = |n: u8| RosterEntry {
        site: SiteId::new(format!("site-{n}")).unwrap(),
        key: SiteKey::from_seed(&[n; 32]).public(),
    };
    let entries = (1..=3).map(entry).collect();
    let mut signed = SignedRoster::new(Roster { federation: "north".into(), version, entries });
    signed_by.iter().for_each(|seed| signed.sign(&governor(*seed)));
    signed
}

fn verified() -> VerifiedRoster {
    governance(9).verify(&roster(1, &[9])).unwrap()
}

fn spec(attempt: u32) -> AttemptSpec {
    let round = RoundSpec {
        federation: "north".into(),
        study: "research/hippocampus@u".into(),
        round: 1,
        purpose: Purpose::Train,
        subject: RingDigest([1; 32]),
        plan: RingDigest([2; 32]),
        schema: RingDigest([3; 32]),
        roster: verified().digest(),
        capacity: 3,
        clip: 1.0,
        weighting: Weighting::Equal,
        statistics: vec![],
        body: 4,
        colluders: 0,
        min_contributors: 3,
    };
    AttemptSpec { round, attempt }
}

fn key(attempt: u32) -> AttemptKey {
    AttemptKey { round_uid: "round".into(), attempt }
}

fn noted() -> Entry {
    Entry::AttemptBurned { round_uid: "round".into(), attempt: 1, why: "a note".into() }
}

/// Opens an attempt as the first step does.
fn advertise(state: &State, attempt: u32, draw: u8) -> Vec<u8> {
    use consilium_secagg::wire::Message as _;
    let opened = state.in_attempt(&key(attempt), "Advertise", now(), |memory| {
        if memory.client.is_none() {
            let (roster, floors) = (verified(), Floors { min_contributors: 3, colluders: 0 });
            let guard = Guard { roster: &roster, floors: &floors, history: &memory.history };
            let site = SiteId::new("site-1").unwrap();
            let me = SiteKey::from_seed(&[1; 32]);
            memory.client = Some(Client::open(spec(attempt), site, &me, guard, &mut entropy(draw)).unwrap());
            memory.burn_others("another one");
        }
        memory.act(noted());
        Ok(memory.client.as_ref().unwrap().advert().to_bytes())
    });
    opened.unwrap().unwrap().said
}

/// A hospital whose key changes is another hospital to the roster: no attempt would count it in.
#[test]
fn the_signing_key_is_made_once_and_stays() {
    let dir = TempDir::new().unwrap();
    let first = open(&dir).site_key(&entropy(1)).unwrap().public();
    assert_eq!(open(&dir).site_key(&entropy(2)).unwrap().public(), first);
    let other = TempDir::new().unwrap();
    assert_ne!(open(&other).site_key(&entropy(2)).unwrap().public(), first);
}

/// The same step is one act with one entry, whatever was killed in between and however the dice fall then.
#[test]
fn a_step_is_one_act_however_often_it_is_asked_for() {
    let dir = TempDir::new().unwrap();
    let first = advertise(&open(&dir), 1, 5);
    let state = open(&dir);
    let head = state.head().unwrap();
    assert_eq!(advertise(&state, 1, 6), first);
    assert_eq!((state.head().unwrap(), state.ledger(1, 10).unwrap().len()), (head, 1));
    let again = state.in_attempt(&key(1), "Advertise", now(), |memory| {
        memory.act(noted());
        Ok(())
    });
    assert_eq!(again.unwrap().unwrap().head, head, "the head that the RoundTask shows");
}

/// Nothing that a refused step touched may stay, but that it was refused: and no seed.
#[test]
fn a_refusal_leaves_the_refusal_and_no_secret() {
    let dir = TempDir::new().unwrap();
    let state = open(&dir);
    advertise(&state, 1, 5);
    let refused = Refused { vector: "round".into(), step: "Share".into(), why: "a forged key".into() };
    let result = state.in_attempt(&key(1), "Share", now(), |memory| {
        memory.history.record_released(&spec(1).round, Sid([1; 32]));
        memory.act(noted());
        Err::<(), _>(refused.clone())
    });
    assert_eq!(result.unwrap(), Err(refused));
    drop(state);
    let state = open(&dir);
    assert_eq!((state.phase(&key(1)).unwrap(), state.is_burned("round", 1).unwrap()), (Some("Burned"), true));
    assert_eq!((state.history().unwrap(), state.open_attempts().unwrap()), (Default::default(), vec![]));
    let record = UploadRecord { attempt: 1, progress: UploadProgress::Rejected("a forged key".into()) };
    assert_eq!(state.upload("round").unwrap(), Some(record));
    let events: Vec<_> = state.ledger(2, 9).unwrap().into_iter().map(|record| record.entry).collect();
    assert!(
        matches!(&events[..], [Entry::AttemptRefused { why, .. }, Entry::AttemptBurned { .. }] if why == "a forged key")
    );
}

/// What was released must be refused for ever; a round that is over must leave nothing else.
#[test]
fn a_deleted_round_leaves_its_history_and_nothing_else() {
    let dir = TempDir::new().unwrap();
    let state = open(&dir);
    advertise(&state, 1, 5);
    state.begin_masked(&key(1)).unwrap();
    state.put_masked(&key(1), 0, b"masked").unwrap();
    state.finish_masked(&key(1)).unwrap();
    let sid = Sid([1; 32]);
    let released = state.in_attempt(&key(1), "Unmask", now(), |memory| {
        memory.history.record_released(&spec(1).round, sid);
        memory.history.record_signed(&spec(1).round, sid, BTreeSet::new());
        Ok(())
    });
    released.unwrap().unwrap();
    state.delete_update("round").unwrap();
    drop(state);
    let state = open(&dir);
    let history = state.history().unwrap();
    assert_eq!((history.released.len(), history.signed.len()), (1, 1));
    assert_eq!(state.released_in(&history.released[0]).unwrap(), Some(key(1)));
    assert_eq!((state.phase(&key(1)).unwrap(), state.is_burned("round", 1).unwrap()), (None, true));
    assert!(!dir.path().join("masked/round.1").exists());
}

#[test]
fn another_attempt_and_another_hub_wipe_what_is_open() {
    let dir = TempDir::new().unwrap();
    let state = open(&dir);
    advertise(&state, 1, 5);
    advertise(&state, 2, 6);
    assert_eq!(state.phase(&key(1)).unwrap(), Some("Burned"));
    assert_eq!(state.open_attempts().unwrap(), [key(2)]);
    let work = RoundWork {
        study: StudyKey::new("research", "hippocampus"),
        study_uid: "u".into(),
        spec_digest: Digest::of(b"spec"),
        round: 1,
        kind: TaskKind::Train,
        model: Digest::of(b"model"),
        schema: Digest::of(b"schema"),
        roster_size: 3,
        attempt: 2,
        step: Some(ProtocolStep::Share),
        roster: None,
        inputs: None,
        deadline: "2026-01-02T00:00:00Z".parse().unwrap(),
    };
    let items = vec![Item { uid: "round".into(), state: ItemState::Active, work: Work::Round(work) }];
    let offered =
        |epoch: &str| Assignment { hub_epoch: epoch.into(), revision: 1, rosters: vec![], items: items.clone() };
    state.accept(offered("one"), now(), now()).unwrap();
    assert_eq!(state.phase(&key(2)).unwrap(), Some("Advertised"));
    state.accept(offered("two"), now(), now()).unwrap();
    assert_eq!(state.phase(&key(2)).unwrap(), Some("Burned"));
}

/// Joining hospitals need two versions at a time; nobody needs to go back.
#[test]
fn two_rosters_hold_and_none_before_them() {
    let dir = TempDir::new().unwrap();
    let state = open(&dir);
    let accept = |state: &State, governor: u8, signed: &SignedRoster| {
        state.accept_roster(&governance(governor), signed, now()).unwrap().map(|_| ())
    };
    let versions = |state: &State, governor: u8| {
        let book = state.rosters(&governance(governor)).unwrap();
        book.accepted().iter().map(VerifiedRoster::version).collect::<Vec<_>>()
    };
    for version in [2, 3, 4] {
        accept(&state, 9, &roster(version, &[9, 8])).unwrap();
        accept(&state, 9, &roster(version, &[9, 8])).unwrap();
    }
    assert_eq!(versions(&state, 9), [3, 4]);
    drop(state);
    let state = open(&dir);
    assert_eq!(versions(&state, 9), [3, 4]);
    assert_eq!(state.ledger(1, 9).unwrap().len(), 3, "one entry for each version");
    assert!(matches!(accept(&state, 9, &roster(2, &[9])), Err(RosterError::Older { .. })));
    assert!(matches!(accept(&state, 9, &roster(5, &[])), Err(RosterError::Unsigned { .. })));
    // Other governance: what it signed too still holds, and its own are not behind what was seen either.
    assert_eq!(versions(&state, 8), [3, 4]);
    assert_eq!(versions(&state, 7), Vec::<u64>::new());
    assert!(matches!(accept(&state, 7, &roster(2, &[7])), Err(RosterError::Older { version: 2, newest: 4 })));
    accept(&state, 7, &roster(6, &[7])).unwrap();
    assert_eq!((versions(&state, 7), versions(&state, 9)), (vec![6], vec![]));
}
