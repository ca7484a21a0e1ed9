//! Attacks on who survived and on taking the masks off.
use crate::common::{Moment, ONE, Outcome, Plan, World, site_id};
use crate::{VICTIM, attack, client, view};
use consilium_secagg::client::ClientError;
use consilium_secagg::history::DifferenceRule;
use consilium_secagg::hub::HubError;
use consilium_secagg::ids::Party;
use consilium_secagg::keys;
use consilium_secagg::mask::{MaskSet, Sign};
use consilium_secagg::secret::Secret;
use consilium_secagg::shamir;
use consilium_secagg::shamir::ShamirError;
use consilium_secagg::shares::SeedKind;
use consilium_secagg::survivors::{SurvivorError, SurvivorProof, SurvivorStatement};
use consilium_secagg::unmask::{UnmaskError, pair_sign};
use consilium_secagg::wire::Message;
use consilium_secagg::wire::WireError;

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
        let error = client(world, VICTIM).survivors(&statement, &key, &history, DifferenceRule::Allow).unwrap_err();
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
            let error = client(world, i).survivors(&without, &key, &history, DifferenceRule::Allow).unwrap_err();
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
                let signed = copy.survivors(&kind, &world.sites[i].key, history, DifferenceRule::Allow).unwrap();
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
    let mut y = crate::common::elements(&world.sites[VICTIM].uploads);
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
            let signed = client(world, i).survivors(set, &key, &history, DifferenceRule::Allow).unwrap();
            signatures[half].push((Party(i as u8), signed.signature));
            let other = if half == 0 { &without } else { &with };
            let error = client(world, i).survivors(other, &key, &history, DifferenceRule::Allow).unwrap_err();
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
            client(world, VICTIM).survivors(&statement, &key, &history, DifferenceRule::Allow).unwrap_err()
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
    // By force, of the shares of the victim's own seed that a finished attempt released: the fourth gives the very seed
    // behind its mask, three of them another one.
    let mut world = World::new(5, 40, 4);
    let mut hub = world.hub();
    world.advance(&mut hub, Moment::BeforeUnmask);
    let (session, proof) = (hub.session().unwrap().clone(), hub.survivor_proof().unwrap().clone());
    let shares: Vec<_> = (0..5)
        .map(|i| {
            let (key, history) = (world.sites[i].key.clone(), world.sites[i].history.clone());
            let reply = client(&mut world, i).proof(&proof, &key, &history).unwrap();
            (Party(i as u8), reply.body.shares[VICTIM].share.share.clone())
        })
        .collect();
    let of = |n: usize| shares[..n].iter().map(|(party, share)| (*party, share)).collect::<Vec<_>>();
    assert_eq!(shamir::combine(&of(3), 4), Err(ShamirError::TooFew { got: 3, needed: 4 }));
    let (forced, seed) = (shamir::combine(&of(3), 3).unwrap(), shamir::combine(&of(4), 4).unwrap());
    assert_eq!(seed, shamir::combine(&of(5), 4).unwrap());
    let (sid, victim) = (session.sid(), Party(VICTIM as u8));
    assert_ne!(keys::self_mask_key(&forced, &sid, victim), keys::self_mask_key(&seed, &sid, victim));
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
