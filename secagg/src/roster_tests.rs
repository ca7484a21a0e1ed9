use super::*;
use crate::testing::{rng, site};

fn keys() -> Vec<SiteKey> {
    (0..3).map(|i| SiteKey::generate(&mut rng(100 + i))).collect()
}

fn governance(keys: &[SiteKey]) -> Governance {
    Governance { federation: "f".into(), keys: keys.iter().map(SiteKey::public).collect(), required: 2 }
}

fn roster(version: u64, sites: u64) -> SignedRoster {
    let entries =
        (0..sites).map(|i| RosterEntry { site: site(i as usize), key: SiteKey::generate(&mut rng(i)).public() });
    SignedRoster::new(Roster { federation: "f".into(), version, entries: entries.collect() })
}

fn signed(version: u64, sites: u64) -> SignedRoster {
    let mut signed = roster(version, sites);
    for key in &keys()[..2] {
        signed.sign(key);
    }
    signed
}

/// A hub that invents hospitals has no governance keys; neither one member alone nor one signing twice suffices.
#[test]
fn k_of_m_governance_members_must_sign() {
    let (keys, hub) = (keys(), SiteKey::generate(&mut rng(9)));
    let governance = governance(&keys);
    let mut signed = roster(1, 4);
    let refused = |s: &SignedRoster, expected: usize| {
        let error = governance.verify(s).unwrap_err();
        assert_eq!(error, RosterError::Unsigned { version: 1, valid: expected, required: 2 });
    };
    refused(&signed, 0);
    signed.sign(&hub);
    refused(&signed, 0);
    signed.sign(&keys[2]);
    signed.sign(&keys[2]);
    refused(&signed, 1);
    signed.sign(&keys[0]);
    assert_eq!(governance.verify(&signed).unwrap().key(&site(2)), Some(&signed.roster.entries[2].key));
    assert_eq!(SignedRoster::from_bytes(&signed.to_bytes()).unwrap(), signed);
    signed.roster.entries[0].key = hub.public();
    refused(&signed, 0);
}

#[test]
fn one_key_for_two_hospitals_is_refused() {
    let mut signed = roster(1, 3);
    signed.roster.entries[2].key = signed.roster.entries[0].key;
    for key in &keys() {
        signed.sign(key);
    }
    assert!(matches!(governance(&keys()).verify(&signed), Err(RosterError::SharedKey { .. })));
}

#[test]
fn another_federations_roster_is_refused() {
    let mut other = governance(&keys());
    other.federation = "g".into();
    assert!(matches!(other.verify(&signed(1, 3)), Err(RosterError::Federation { .. })));
    other.required = 0;
    assert!(matches!(other.verify(&signed(1, 3)), Err(RosterError::Governance { .. })));
}

/// Two versions overlap while a hospital joins; an old one that removed a key does not come back.
#[test]
fn the_book_keeps_two_versions_and_never_goes_back() {
    let (governance, mut book) = (governance(&keys()), RosterBook::default());
    let digests: Vec<_> = (1..=3).map(|v| book.accept(&governance, &signed(v, 2 + v)).unwrap()).collect();
    book.accept(&governance, &signed(3, 5)).unwrap();
    assert!(book.get(&digests[1]).is_ok() && book.get(&digests[2]).is_ok());
    assert!(matches!(book.get(&digests[0]), Err(RosterError::NotAccepted { .. })));
    assert_eq!(book.accept(&governance, &signed(1, 3)), Err(RosterError::Older { version: 1, newest: 3 }));
    assert!(matches!(book.accept(&governance, &signed(3, 6)), Err(RosterError::Forked { version: 3, .. })));
}

/// One hospital that has not accepted the new roster yet must not stop the others.
#[test]
fn attempts_open_on_the_roster_most_hospitals_share() {
    let (old, new) = (Digest([1; 32]), Digest([2; 32]));
    let ready = [(site(0), vec![old, new]), (site(1), vec![old, new]), (site(2), vec![old]), (site(3), vec![new])];
    let (chosen, with, without) = common_roster(&ready, &[new, old]).unwrap();
    assert_eq!((chosen, with.len(), without), (new, 3, vec![site(2)]));
    assert_eq!(common_roster(&ready, &[Digest([7; 32])]), None);
}
