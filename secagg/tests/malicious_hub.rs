//! The hub is the attacker. Every test is one attack of the literature or of practice; it ends in a refusal with a
//! reason, and what the hub saw up to then is the same whatever the victim's update was.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests panic as tests do")]
mod common;
use common::{FLOORS, Moment, ONE, Outcome, Plan, TestRng, Trouble, World, round_spec, site_id};
use consilium_secagg::advert::{AdvertList, Seeds};
use consilium_secagg::client::{Client, ClientError, Guard};
use consilium_secagg::history::{DifferenceRule, HistoryError};
use consilium_secagg::hub::{Hub, HubError};
use consilium_secagg::identity::SiteKey;
use consilium_secagg::ids::{Digest, Party, PublicKey};
use consilium_secagg::keys;
use consilium_secagg::mask::{MaskSet, Sign};
use consilium_secagg::roster::{Roster, RosterEntry, RosterError, SignedRoster};
use consilium_secagg::secret::Secret;
use consilium_secagg::session::SessionError;
use consilium_secagg::shamir::{self, ShamirError};
use consilium_secagg::shares::{SeedKind, ShareError};
use consilium_secagg::spec::Purpose;
use consilium_secagg::survivors::{SurvivorError, SurvivorProof, SurvivorStatement};
use consilium_secagg::unmask::{UnmaskError, pair_sign};
use consilium_secagg::wire::{Message, WireError};

/// The hospital that the hub is after.
const VICTIM: usize = 1;

/// What the hub saw, apart from masked vectors and their digests (`tests/noise.rs` is about those).
type View = Vec<Vec<u8>>;

/// Runs an attack against two updates of the victim: the view must be the same.
fn attack(n: usize, run: impl Fn(&mut World) -> View) {
    let view_of = |update: f32| {
        let mut world = World::new(n, 40, 99);
        world.sites[VICTIM].update.fill(update);
        run(&mut world)
    };
    let (one, other) = (view_of(1.5), view_of(-0.25));
    assert!(!one.is_empty());
    assert!(one == other, "what the hub sees depends on the victim's update");
}

fn client(world: &mut World, i: usize) -> &mut Client {
    world.sites[i].client.as_mut().unwrap()
}

/// The victim's answer to a list of adverts.
fn answer(world: &mut World, list: &AdvertList) -> Result<Vec<u8>, ClientError> {
    let list = list.clone();
    world
        .act(VICTIM, Trouble::Nothing, |client, site, roster| {
            let (key, history) = (site.key.clone(), site.history.clone());
            client.adverts(&list, &key, Guard { roster, floors: &FLOORS, history: &history }, &mut site.rng)
        })
        .map(|m| m.to_bytes())
}

fn adverts(world: &mut World, hub: &mut Hub) -> AdvertList {
    world.advance(hub, Moment::BeforeShares);
    hub.advert_list().unwrap().clone()
}

fn view(messages: &[&dyn Fn() -> Vec<u8>]) -> View {
    messages.iter().map(|m| m()).collect()
}

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

/// Adverts, bundles, survivor sets and proofs of an earlier attempt are worthless in this one.
#[test]
fn messages_of_another_session_are_refused() {
    attack(4, |world| {
        let mut old_hub = world.hub();
        world.advance(&mut old_hub, Moment::BeforeUnmask);
        let old_bundle = old_hub.bundle_for(&site_id(VICTIM)).unwrap();
        let old_statement = old_hub.statement().unwrap().clone();
        let old_list = old_hub.advert_list().unwrap().clone();
        world.attempt.attempt = 2;
        world.sites.iter_mut().for_each(|s| s.client = None);
        let mut hub = world.hub();
        let list = adverts(world, &mut hub);
        let error = answer(world, &old_list).unwrap_err();
        assert!(matches!(error, ClientError::Session(SessionError::WrongAttempt { .. })), "{error}");
        let shares = answer(world, &list).unwrap();
        let error = client(world, VICTIM).bundle(&old_bundle).unwrap_err();
        assert!(matches!(error, ClientError::WrongSession { .. }), "{error}");
        let (key, history) = (world.sites[VICTIM].key.clone(), world.sites[VICTIM].history.clone());
        let error = client(world, VICTIM).survivors(&old_statement, &key, &history, None).unwrap_err();
        assert!(matches!(error, ClientError::OutOfOrder { .. }), "{error}");
        view(&[&|| list.to_bytes(), &|| shares.clone()])
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

/// The hub shows the victim fewer dealers than the others: the survivor set then rests on another view.
#[test]
fn split_views_of_the_dealers_are_refused() {
    attack(5, |world| {
        let mut hub = world.hub();
        world.advance(&mut hub, Moment::BeforeUpload);
        let mut bundle = hub.bundle_for(&site_id(VICTIM)).unwrap();
        bundle.shares.remove(4);
        client(world, VICTIM).bundle(&bundle).unwrap();
        let mut scratch = hub.clone();
        let chunks = world.encoded(VICTIM);
        let plain: Vec<_> = chunks.iter().map(|c| consilium_secagg::upload::elements_digest(c)).collect();
        client(world, VICTIM).bind_update(plain.clone()).unwrap();
        let key = world.sites[VICTIM].key.clone();
        let manifest = client(world, VICTIM).finish_upload(plain, &key).unwrap();
        let error = scratch.manifest(&site_id(VICTIM), manifest.clone()).unwrap_err();
        assert!(matches!(error, HubError::OtherView { .. }), "{error}");
        let view_of_others = consilium_secagg::shares::view_digest(
            &bundle.sid,
            hub.bundle_for(&site_id(0)).unwrap().shares.iter().map(|s| &s.header.body),
        );
        let survivors = (0..5).map(Party).collect();
        let statement = SurvivorStatement { sid: bundle.sid, view: view_of_others, survivors };
        let history = world.sites[VICTIM].history.clone();
        let error = client(world, VICTIM).survivors(&statement, &key, &history, None).unwrap_err();
        assert!(matches!(error, ClientError::Survivors(SurvivorError::OtherView { .. })), "{error}");
        view(&[&|| bundle.to_bytes(), &|| statement.to_bytes()])
    });
}

/// The attack that recovers an update from Flower's SecAgg+ (victim listed as active and as dead): the shape itself
/// has no bytes here, and asked one after the other the second question is refused.
#[test]
fn the_victim_in_both_lists_is_refused() {
    attack(4, |world| {
        let mut hub = world.hub();
        world.advance(&mut hub, Moment::BeforeUnmask);
        let with = hub.statement().unwrap().clone();
        let twice = SurvivorStatement { survivors: vec![Party(0), Party(1), Party(1), Party(2)], ..with.clone() };
        let wire = SurvivorStatement::from_bytes(&twice.to_bytes()).unwrap_err();
        assert!(matches!(wire, WireError::Field { field: "survivors", .. }));
        let proof = hub.survivor_proof().unwrap().clone();
        let without = SurvivorStatement { survivors: vec![Party(0), Party(2), Party(3)], ..with.clone() };
        let mut view = vec![proof.to_bytes()];
        for i in [0, 2, 3] {
            let (key, history) = (world.sites[i].key.clone(), world.sites[i].history.clone());
            let reply = client(world, i).proof(&proof, &key, &history).unwrap();
            assert!(reply.body.shares.iter().all(|s| s.kind == SeedKind::Own), "no share of a mask seed leaves");
            // Now the other list: whatever the hub sends, no share of the victim's mask seed follows.
            let error = client(world, i).survivors(&without, &key, &history, Some(DifferenceRule::Allow)).unwrap_err();
            assert!(matches!(error, ClientError::Conflict { .. }), "{error}");
            let second = SurvivorProof { statement: without.clone(), signatures: proof.signatures.clone() };
            let error = client(world, i).proof(&second, &key, &history).unwrap_err();
            assert!(matches!(error, ClientError::Conflict { .. }), "{error}");
            view.push(reply.to_bytes());
        }
        view
    });
}

/// The control for the test above: hospitals that did answer both lists would hand the update over, bit by bit. So
/// the refusals are what protects, not some accident.
#[test]
fn answering_both_lists_would_recover_the_update_exactly() {
    let mut world = World::new(4, 40, 99);
    let mut hub = world.hub();
    world.advance(&mut hub, Moment::BeforeAgree);
    let session = hub.session().unwrap().clone();
    let with = hub.statement().unwrap().clone();
    let without = SurvivorStatement { survivors: vec![Party(0), Party(2), Party(3)], ..with.clone() };
    let careless = |kind: SurvivorStatement, world: &World| {
        let signed: Vec<_> = [0usize, 2, 3]
            .map(|i| {
                let mut copy = world.sites[i].client.clone().unwrap();
                let history = &world.sites[i].history;
                let signed = copy.survivors(&kind, &world.sites[i].key, history, Some(DifferenceRule::Allow)).unwrap();
                (Party(i as u8), signed.signature, copy)
            })
            .into();
        let signatures = signed.iter().map(|(p, s, _)| (*p, *s)).collect();
        let proof = SurvivorProof { statement: kind, signatures };
        let replies: Vec<_> = signed
            .into_iter()
            .map(|(p, _, mut copy)| {
                let site = &world.sites[p.index()];
                (p, copy.proof(&proof, &site.key, &site.history).unwrap())
            })
            .collect();
        let of: Vec<_> = replies.iter().map(|(p, r)| (*p, &r.body.shares[VICTIM].share.share)).collect();
        shamir::combine(&of, 3).unwrap()
    };
    let (own, mask) = (careless(with, &world), careless(without, &world));
    let victim = Party(VICTIM as u8);
    let mut masks = MaskSet::new();
    masks.push(Sign::Minus, &keys::self_mask_key(&own, &session.sid(), victim));
    let scalar = keys::mask_scalar(&mask, &world.attempt.digest());
    for peer in [0u8, 2, 3].map(Party) {
        let key = session.advert(peer).unwrap().mask_key;
        let key = keys::pair_mask_key(&scalar, &key, &session.sid(), victim, peer).unwrap();
        masks.push(pair_sign(victim, peer).opposite(), &key);
    }
    let mut y = common::elements(&world.sites[VICTIM].uploads);
    assert_ne!(y, world.plain_sum(&[VICTIM]));
    masks.apply(0, &mut y).unwrap();
    assert_eq!(y, world.plain_sum(&[VICTIM]), "both kinds of shares unmask the victim alone");
}

/// One set for one half, another for the other half: neither gets t signatures.
#[test]
fn split_survivor_views_never_reach_the_threshold() {
    attack(5, |world| {
        let mut hub = world.hub();
        world.advance(&mut hub, Moment::BeforeAgree);
        let with = hub.statement().unwrap().clone();
        let without = SurvivorStatement { survivors: [0, 2, 3, 4].map(Party).into(), ..with.clone() };
        let mut signatures = [Vec::new(), Vec::new()];
        for (i, half) in [(0, 0), (1, 0), (2, 1), (3, 1), (4, 0)] {
            let set = if half == 0 { &with } else { &without };
            let (key, history) = (world.sites[i].key.clone(), world.sites[i].history.clone());
            let signed = client(world, i).survivors(set, &key, &history, None).unwrap();
            signatures[half].push((Party(i as u8), signed.signature));
            let other = if half == 0 { &without } else { &with };
            let error = client(world, i).survivors(other, &key, &history, None).unwrap_err();
            assert!(matches!(error, ClientError::Conflict { .. }), "{error}");
        }
        let mut view = Vec::new();
        for (set, signatures) in [(&with, &signatures[0]), (&without, &signatures[1])] {
            let mut proof = SurvivorProof { statement: set.clone(), signatures: signatures.clone() };
            let signer = signatures[0].0.index();
            let (key, history) = (world.sites[signer].key.clone(), world.sites[signer].history.clone());
            let few = SurvivorError::TooFewSignatures { got: signatures.len(), needed: 4 };
            assert_eq!(client(world, signer).proof(&proof, &key, &history), Err(ClientError::Survivors(few)));
            // Signatures on the other set do not help.
            let foreign = if set == &with { Party(2) } else { Party(0) };
            proof.signatures.push((foreign, signatures[0].1));
            proof.signatures.sort_by_key(|(p, _)| *p);
            let bad = SurvivorError::Signature { party: foreign };
            assert_eq!(client(world, signer).proof(&proof, &key, &history), Err(ClientError::Survivors(bad)));
            view.push(proof.to_bytes());
        }
        view
    });
}

#[test]
fn survivor_sets_that_are_too_small_or_leave_the_signer_out_are_refused() {
    attack(5, |world| {
        let mut hub = world.hub();
        world.advance(&mut hub, Moment::BeforeAgree);
        let all = hub.statement().unwrap().clone();
        let (key, history) = (world.sites[VICTIM].key.clone(), world.sites[VICTIM].history.clone());
        let mut refused = |survivors: &[u8]| {
            let survivors = survivors.iter().map(|p| Party(*p)).collect();
            let statement = SurvivorStatement { survivors, ..all.clone() };
            client(world, VICTIM).survivors(&statement, &key, &history, None).unwrap_err()
        };
        let few = SurvivorError::TooFew { got: 3, needed: 4 };
        assert_eq!(refused(&[0, 1, 2]), ClientError::Survivors(few));
        assert_eq!(refused(&[0, 2, 3, 4]), ClientError::Survivors(SurvivorError::SelfMissing));
        assert_eq!(refused(&[0, 1, 2, 9]), ClientError::Survivors(SurvivorError::NotDealt { party: Party(9) }));
        assert_eq!(refused(&[1, 0, 2, 3]), ClientError::Survivors(SurvivorError::Order));
        vec![all.to_bytes()]
    });
}

/// t − 1 shares give nothing: the hub cannot close, and combining them by force gives another secret.
#[test]
fn fewer_than_t_shares_reconstruct_nothing() {
    let mut world = World::new(5, 40, 4);
    let mut plan = Plan::smooth(5);
    plan.vanish[3] = Moment::BeforeUnmask;
    plan.vanish[4] = Moment::BeforeUnmask;
    let Outcome::Burned { error, .. } = world.run(&plan) else { panic!("t is 4") };
    assert_eq!(error, HubError::TooFew { step: "Unmask", got: 3, needed: 4 });
    let mut world = World::new(5, 40, 4);
    let mut hub = world.hub();
    world.advance(&mut hub, Moment::Never);
    let seeds = hub.close_unmasking();
    assert!(matches!(seeds, Err(HubError::OutOfOrder { .. })));
    let secret = Secret::new([3; 32]);
    let shares = shamir::split(&secret, 4, 5, &mut TestRng::new(1)).unwrap();
    let few: Vec<_> = (0..3u8).map(|i| (Party(i), &shares[usize::from(i)])).collect();
    assert_eq!(shamir::combine(&few, 4), Err(ShamirError::TooFew { got: 3, needed: 4 }));
    assert_ne!(shamir::combine(&few, 3).unwrap(), secret);
}

/// A hospital that releases a wrong share is named, and the rest still finish.
#[test]
fn a_corrupted_share_names_its_sender_and_is_left_out() {
    let mut world = World::new(4, 40, 8);
    let mut hub = world.hub();
    world.advance(&mut hub, Moment::BeforeUnmask);
    let proof = hub.survivor_proof().unwrap().clone();
    for i in 0..4 {
        let (key, history) = (world.sites[i].key.clone(), world.sites[i].history.clone());
        let mut reply = client(&mut world, i).proof(&proof, &key, &history).unwrap();
        if i == 2 {
            let mut body = reply.body.clone();
            body.shares[0].share.share = Secret::new([1; 32]);
            reply = key.sign(body);
            let error = hub.unmask(&site_id(2), reply).unwrap_err();
            let expected = UnmaskError::Corrupted { from: Party(2), of: Party(0) };
            assert_eq!(error, HubError::Unmask(expected));
        } else {
            hub.unmask(&site_id(i), reply).unwrap();
        }
    }
    hub.close_unmasking().unwrap();
    let (survivors, sum) = world.sum(&hub);
    assert_eq!(sum, world.plain_sum(&survivors));
}

/// "The hub crashed, please do it again without one of you" is how an update is subtracted out.
#[test]
fn a_second_attempt_or_round_on_a_released_base_is_refused() {
    attack(4, |world| {
        assert!(matches!(world.run(&Plan::smooth(4)), Outcome::Summed { .. }));
        let mut view = Vec::new();
        for (attempt, round) in [(2, 1), (1, 2)] {
            world.attempt.attempt = attempt;
            world.attempt.round.round = round;
            let error = world.open(VICTIM).unwrap_err();
            assert!(matches!(error, ClientError::History(HistoryError::AlreadyReleased { .. })), "{error}");
            view.push(error.to_string().into_bytes());
        }
        view
    });
}

/// Two attempts opened side by side: after the release in one, the other gets neither signature nor shares.
#[test]
fn of_two_open_attempts_only_one_is_ever_released() {
    let mut world = World::new(4, 40, 2);
    let mut first = world.hub();
    world.advance(&mut first, Moment::BeforeUnmask);
    let kept: Vec<_> = world.sites.iter_mut().map(|s| s.client.take().unwrap()).collect();
    world.attempt.attempt = 2;
    let mut second = world.hub();
    world.advance(&mut second, Moment::BeforeAgree);
    let (site, proof) = (&mut world.sites[VICTIM], first.survivor_proof().unwrap());
    let mut earlier = kept[VICTIM].clone();
    let reply = earlier.proof(proof, &site.key, &site.history).unwrap();
    site.history.record_released(&world.attempt.round, reply.body.sid);
    let statement = second.statement().unwrap();
    let late = site.client.as_mut().unwrap();
    let error = late.survivors(statement, &site.key, &site.history, None).unwrap_err();
    assert!(matches!(error, ClientError::History(HistoryError::AlreadyReleased { .. })), "{error}");
}

#[test]
fn a_survivor_set_one_hospital_smaller_than_the_last_is_refused() {
    let mut world = World::new(7, 10, 3);
    assert!(matches!(world.run(&Plan::smooth(7)), Outcome::Summed { .. }));
    world.attempt.round.round = 2;
    world.attempt.round.subject = Digest([50; 32]);
    world.sites.iter_mut().for_each(|s| s.client = None);
    let mut hub = world.hub();
    world.advance(&mut hub, Moment::BeforeAgree);
    let all = hub.statement().unwrap().clone();
    let smaller = SurvivorStatement { survivors: (0..6).map(Party).collect(), ..all };
    let (key, history) = (world.sites[VICTIM].key.clone(), world.sites[VICTIM].history.clone());
    let error = client(&mut world, VICTIM).survivors(&smaller, &key, &history, None).unwrap_err();
    let ClientError::History(HistoryError::DiffersByOne { site, .. }) = error else { panic!("{error}") };
    assert_eq!(site, site_id(6));
    client(&mut world, VICTIM).survivors(&smaller, &key, &history, Some(DifferenceRule::Allow)).unwrap();
}

#[test]
fn static_counts_are_not_given_twice() {
    let mut world = World::new(4, 0, 6);
    world.attempt.round.purpose = Purpose::Statistics;
    world.attempt.round.subject = world.attempt.round.roster;
    assert!(matches!(world.run(&Plan::smooth(4)), Outcome::Summed { .. }));
    world.attempt.round.round = 9;
    world.attempt.round.plan = Digest([44; 32]);
    let error = world.open(VICTIM).unwrap_err();
    assert!(matches!(error, ClientError::History(HistoryError::AlreadyReleased { .. })), "{error}");
}

#[test]
fn floors_of_the_hospital_hold_whatever_the_hub_says() {
    let mut world = World::new(4, 10, 1);
    world.attempt.round.min_contributors = 2;
    let error = world.open(VICTIM).unwrap_err();
    assert_eq!(error, ClientError::Floor { field: "minContributors", got: 2, least: 3 });
    let mut other = World::new(4, 10, 1);
    other.attempt.round.roster = Digest([1; 32]);
    assert!(matches!(other.open(VICTIM), Err(ClientError::Session(SessionError::OtherRoster { .. }))));
}

/// Two updates under one mask give their difference; training again on a GPU gives another update.
#[test]
fn a_second_update_under_one_session_is_refused() {
    let mut world = World::new(4, 40, 1);
    let mut hub = world.hub();
    world.advance(&mut hub, Moment::BeforeUpload);
    let bundle = hub.bundle_for(&site_id(VICTIM)).unwrap();
    client(&mut world, VICTIM).bundle(&bundle).unwrap();
    let digests = |chunks: &[Vec<u32>]| -> Vec<_> {
        chunks.iter().map(|c| consilium_secagg::upload::elements_digest(c)).collect()
    };
    let first = world.encoded(VICTIM);
    client(&mut world, VICTIM).bind_update(digests(&first)).unwrap();
    world.sites[VICTIM].update[3] += 0.5;
    let mut second = world.encoded(VICTIM);
    let error = client(&mut world, VICTIM).bind_update(digests(&second)).unwrap_err();
    assert!(matches!(error, ClientError::Conflict { .. }), "{error}");
    let masker = client(&mut world, VICTIM).masker().unwrap();
    let mut out = Vec::new();
    let error = masker.mask(1, &mut second[1], ONE, &mut out).unwrap_err();
    assert!(error.to_string().contains("not the update bound"), "{error}");
    assert!(out.is_empty());
    masker.mask(1, &mut first[1].clone(), ONE, &mut out).unwrap();
}

/// Every message at every wrong moment: refused by name, and the client goes on as if nothing had been.
#[test]
fn messages_out_of_order_are_refused_and_change_nothing() {
    let mut world = World::new(4, 10, 21);
    let mut done = world.hub();
    world.advance(&mut done, Moment::Never);
    let finished = world.sites[VICTIM].client.clone().unwrap();
    assert_eq!(finished.phase(), "Released");
    assert!(finished.clone().burn("too late").is_err());
    let bundle = done.bundle_for(&site_id(VICTIM)).unwrap();
    let (statement, proof) = (done.statement().unwrap().clone(), done.survivor_proof().unwrap().clone());
    world.attempt.attempt = 2;
    world.attempt.round.subject = Digest([8; 32]);
    world.open(VICTIM).unwrap();
    let site = &mut world.sites[VICTIM];
    let fresh = site.client.clone().unwrap();
    let client = site.client.as_mut().unwrap();
    let refused = |e: ClientError| assert!(matches!(e, ClientError::OutOfOrder { phase: "Advertised", .. }), "{e}");
    refused(client.bundle(&bundle).unwrap_err());
    refused(client.bind_update(vec![Digest([0; 32]); 2]).unwrap_err());
    refused(client.masker().unwrap_err());
    refused(client.finish_upload(vec![Digest([0; 32]); 2], &site.key).unwrap_err());
    refused(client.survivors(&statement, &site.key, &site.history, None).unwrap_err());
    refused(client.proof(&proof, &site.key, &site.history).unwrap_err());
    assert_eq!(*client, fresh);
    client.burn("vetoed").unwrap();
    assert_eq!(client.bundle(&bundle), Err(ClientError::Burned { reason: "vetoed".into() }));
    assert!(!serde_json::to_string(client).unwrap().contains("seed"), "a burned attempt keeps no secret");
}

/// The hub's own side: messages under another's name, twice with different content, or of strangers.
#[test]
fn the_hub_refuses_strangers_impostors_and_second_thoughts() {
    let mut world = World::new(4, 10, 13);
    let mut hub = world.hub();
    (0..4).for_each(|i| world.open(i).unwrap());
    let advert = |world: &World, i: usize| world.sites[i].client.as_ref().unwrap().advert().clone();
    let stranger = consilium_secagg::ids::SiteId::new("stranger").unwrap();
    assert_eq!(hub.advert(&stranger, advert(&world, 0)), Err(HubError::UnknownSite { site: stranger }));
    let impostor = HubError::Sender { sender: site_id(2), claimed: site_id(0) };
    assert_eq!(hub.advert(&site_id(2), advert(&world, 0)), Err(impostor));
    hub.advert(&site_id(0), advert(&world, 0)).unwrap();
    world.open(0).unwrap();
    let again = hub.advert(&site_id(0), advert(&world, 0)).unwrap_err();
    assert_eq!(again, HubError::Conflict { site: site_id(0), step: "Advertise" });
    assert!(matches!(hub.close_adverts(), Err(HubError::Session(SessionError::Threshold(_)))));
    assert_eq!(hub.phase(), "Advertise", "a step that cannot be closed stays open");
    assert!(matches!(hub.close_uploads(&Default::default()), Err(HubError::OutOfOrder { .. })));
    assert_eq!(hub.heard(), [site_id(0)]);
    let mut small = round_spec(4, 10);
    small.capacity = 1;
    world.attempt.round = small;
    assert!(Hub::open(world.attempt.clone(), world.roster.clone()).is_err());
}

/// Whoever doubts the hub can recompute the sum from signed messages, revealed seeds and masked uploads.
#[test]
fn a_wrong_sum_is_found_by_the_audit() {
    use consilium_secagg::audit::{Audit, AuditError};
    use consilium_secagg::upload::elements_digest;
    let mut world = World::new(5, 40, 31);
    let mut hub = world.hub();
    world.advance(&mut hub, Moment::Never);
    let (_, sum) = world.sum(&hub);
    let text = serde_json::to_string(&hub.transcript().unwrap()).unwrap();
    let mut transcript: consilium_secagg::audit::Transcript = serde_json::from_str(&text).unwrap();
    let audit = Audit::open(&transcript, &world.roster).unwrap();
    let head = world.attempt.round.layout().unwrap().head();
    let uploads: Vec<&[u8]> = world.sites.iter().map(|s| s.uploads[1].as_slice()).collect();
    audit.check_chunk(1, &uploads, &elements_digest(&sum[head..]), ONE).unwrap();
    let mut wrong = sum[head..].to_vec();
    wrong[5] = wrong[5].wrapping_add(1);
    let error = audit.check_chunk(1, &uploads, &elements_digest(&wrong), ONE).unwrap_err();
    assert!(matches!(error, AuditError::OtherSum { chunk: 1, .. }), "{error}");
    transcript.seeds.seeds[0].2 = Secret::new([0; 32]);
    let error = Audit::open(&transcript, &world.roster).unwrap_err();
    assert_eq!(error, AuditError::Unmask(UnmaskError::Dealer { dealer: Party(0) }));
    transcript.seeds.seeds.clear();
    assert_eq!(Audit::open(&transcript, &world.roster).unwrap_err(), AuditError::Seeds);
}
