//! Attacks while a session is opened: keys, adverts, rosters, models, envelopes.
use crate::common::{FLOORS, Moment, TestRng, Trouble, World, site_id};
use crate::{VICTIM, adverts, answer, attack, client, view};
use consilium_secagg::advert::Seeds;
use consilium_secagg::client::{ClientError, Guard};
use consilium_secagg::hub::HubError;
use consilium_secagg::identity::SiteKey;
use consilium_secagg::ids::{Digest, Party, PublicKey};
use consilium_secagg::keys;
use consilium_secagg::roster::{Roster, RosterEntry, RosterError, SignedRoster};
use consilium_secagg::secret::Secret;
use consilium_secagg::session::SessionError;
use consilium_secagg::shares::ShareError;
use consilium_secagg::wire::Message;

#[test]
fn key_substitution_is_refused() {
    attack(4, |world| {
        let mut hub = world.hub();
        let mut list = adverts(world, &mut hub);
        let mine = Secret::new([9; 32]);
        list.adverts[2].body.mask_key = keys::x25519_public(&mine);
        let error = answer(world, &list).unwrap_err();
        assert!(matches!(error, ClientError::Session(SessionError::Signature { ref site, .. }) if *site == site_id(2)));
        view(&[&|| list.to_bytes()])
    });
}

#[test]
fn replacing_or_dropping_the_victims_own_advert_is_refused() {
    attack(4, |world| {
        let mut hub = world.hub();
        let list = adverts(world, &mut hub);
        let mut without = list.clone();
        without.adverts.remove(VICTIM);
        assert_eq!(answer(world, &without).unwrap_err(), ClientError::OwnAdvert);
        // An earlier advert of the victim itself, correctly signed: only the fresh one counts.
        let mut rng = TestRng::new(1);
        let old = Seeds::random(&mut rng);
        let (digest, site) = (world.attempt.digest(), site_id(VICTIM));
        let mut stale = list.clone();
        stale.adverts[VICTIM] = old.advertise(&digest, &site, &world.sites[VICTIM].key, &mut rng);
        assert_eq!(answer(world, &stale).unwrap_err(), ClientError::OwnAdvert);
        view(&[&|| list.to_bytes()])
    });
}

#[test]
fn invented_hospitals_are_refused() {
    attack(4, |world| {
        let mut hub = world.hub();
        let mut list = adverts(world, &mut hub);
        let (mut rng, digest) = (TestRng::new(5), world.attempt.digest());
        let sybil = SiteKey::generate(&mut rng);
        let site = consilium_secagg::ids::SiteId::new("site-002b").unwrap();
        list.adverts.insert(3, Seeds::random(&mut rng).advertise(&digest, &site, &sybil, &mut rng));
        world.attempt.round.capacity = 5;
        let error = answer(world, &list).unwrap_err();
        let capacity = matches!(error, ClientError::Session(SessionError::Threshold(_)));
        assert!(capacity || error == ClientError::Session(SessionError::UnknownSite { site: site.clone() }));
        // In place of an honest hospital it is no better.
        list.adverts.remove(2);
        assert_eq!(answer(world, &list).unwrap_err(), ClientError::Session(SessionError::UnknownSite { site }));
        view(&[&|| list.to_bytes()])
    });
}

/// Without pinned governance keys the hub would simply send a roster of its own making.
#[test]
fn a_roster_that_governance_did_not_sign_is_refused() {
    let world = World::new(4, 5, 1);
    let hub_key = SiteKey::generate(&mut TestRng::new(3));
    let mut entries: Vec<_> =
        world.sites.iter().map(|s| RosterEntry { site: s.id.clone(), key: s.key.public() }).collect();
    entries.push(RosterEntry { site: site_id(77), key: hub_key.public() });
    let mut forged = SignedRoster::new(Roster { federation: "federation".into(), version: 2, entries });
    forged.sign(&hub_key);
    forged.sign(&world.governors[0]);
    let error = world.governance.verify(&forged).unwrap_err();
    assert_eq!(error, RosterError::Unsigned { version: 2, valid: 1, required: 2 });
}

#[test]
fn low_order_keys_are_refused() {
    attack(4, |world| {
        let mut hub = world.hub();
        let mut list = adverts(world, &mut hub);
        // A colluding hospital signs it, so only the key itself is wrong.
        let mut body = list.adverts[2].body.clone();
        body.mask_key = PublicKey([0; 32]);
        list.adverts[2] = world.sites[2].key.sign(body);
        let error = answer(world, &list).unwrap_err();
        assert!(matches!(error, ClientError::Session(SessionError::LowOrder { ref site, .. }) if *site == site_id(2)));
        view(&[&|| list.to_bytes()])
    });
}

/// With one key for two hospitals, one colluder would stand for two.
#[test]
fn a_key_used_twice_is_refused() {
    attack(4, |world| {
        let mut hub = world.hub();
        let mut list = adverts(world, &mut hub);
        let mut body = list.adverts[3].body.clone();
        body.mask_key = list.adverts[2].body.mask_key;
        list.adverts[3] = world.sites[3].key.sign(body);
        let error = answer(world, &list).unwrap_err();
        assert!(matches!(error, ClientError::Session(SessionError::RepeatedKey { .. })), "{error}");
        view(&[&|| list.to_bytes()])
    });
}

/// The victim is told another base model than the rest: nobody's adverts fit, and no mask would cancel.
#[test]
fn different_base_models_make_no_session() {
    attack(4, |world| {
        let mut hub = world.hub();
        let honest = world.attempt.clone();
        world.attempt.round.subject = Digest([66; 32]);
        world.open(VICTIM).unwrap();
        let own = client(world, VICTIM).advert().clone();
        world.attempt = honest;
        let error = hub.advert(&site_id(VICTIM), own.clone()).unwrap_err();
        assert_eq!(error, HubError::OtherAttempt { site: site_id(VICTIM) });
        world.sites[VICTIM].client = None;
        let mut list = adverts(world, &mut world.hub());
        list.adverts[VICTIM] = own;
        let error = world
            .act(0, Trouble::Nothing, |client, site, roster| {
                let guard = Guard { roster, floors: &FLOORS, history: &site.history };
                client.adverts(&list, &site.key, guard, &mut TestRng::new(1))
            })
            .unwrap_err();
        assert!(matches!(error, ClientError::Session(SessionError::WrongAttempt { .. })), "{error}");
        view(&[&|| list.to_bytes()])
    });
}

/// A share envelope changed, swapped or left out on the way.
#[test]
fn changed_envelopes_are_refused_and_the_culprit_is_told_apart() {
    attack(4, |world| {
        let mut hub = world.hub();
        world.advance(&mut hub, Moment::BeforeUpload);
        let bundle = hub.bundle_for(&site_id(VICTIM)).unwrap();
        let mut changed = bundle.clone();
        changed.shares[2].entry.envelope[30] ^= 1;
        let expected = ShareError::Entry { dealer: Party(2), to: Party(1) };
        assert_eq!(client(world, VICTIM).bundle(&changed), Err(ClientError::Share(expected.clone())));
        let mut swapped = bundle.clone();
        swapped.shares[2].entry = hub.bundle_for(&site_id(3)).unwrap().shares[2].entry.clone();
        assert_eq!(client(world, VICTIM).bundle(&swapped), Err(ClientError::Share(expected)));
        let mut few = bundle.clone();
        few.shares.truncate(2);
        assert_eq!(client(world, VICTIM).bundle(&few), Err(ClientError::TooFewDealers { got: 2, needed: 3 }));
        let mut not_own = bundle.clone();
        not_own.shares.remove(VICTIM);
        assert!(matches!(client(world, VICTIM).bundle(&not_own), Err(ClientError::Bundle { .. })));
        let other = hub.bundle_for(&site_id(3)).unwrap();
        assert!(matches!(client(world, VICTIM).bundle(&other), Err(ClientError::Bundle { .. })));
        client(world, VICTIM).bundle(&bundle).unwrap();
        view(&[&|| bundle.to_bytes()])
    });
}
