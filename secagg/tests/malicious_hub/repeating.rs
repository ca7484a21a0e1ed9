//! Attacks by doing it again: replays, second attempts, second rounds, second updates, second thoughts.
use crate::common::{Moment, Outcome, Plan, World, round_spec, site_id};
use crate::{VICTIM, adverts, answer, attack, client, view};
use consilium_secagg::client::ClientError;
use consilium_secagg::history::{DifferenceRule, HistoryError};
use consilium_secagg::hub::{Hub, HubError};
use consilium_secagg::ids::{Digest, Party};
use consilium_secagg::session::SessionError;
use consilium_secagg::spec::Purpose;
use consilium_secagg::survivors::SurvivorStatement;
use consilium_secagg::wire::Message;

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
        let error = client(world, VICTIM).survivors(&old_statement, &key, &history, DifferenceRule::Allow).unwrap_err();
        assert!(matches!(error, ClientError::OutOfOrder { .. }), "{error}");
        view(&[&|| list.to_bytes(), &|| shares.clone()])
    });
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
    let error = late.survivors(statement, &site.key, &site.history, DifferenceRule::Allow).unwrap_err();
    assert!(matches!(error, ClientError::History(HistoryError::AlreadyReleased { .. })), "{error}");
}

/// The hub opens the second attempt among the others alone: so few could spare nobody, but the study can, and how many
/// open is the hub's choice.
#[test]
fn an_attempt_opened_without_the_victim_is_no_way_around_the_difference() {
    for (hospitals, earlier) in [(8, 7), (6, 7)] {
        let mut world = World::new(8, 10, 3);
        let mut plan = Plan::smooth(8);
        plan.vanish[earlier..].fill(Moment::BeforeAdvert);
        assert!(matches!(world.run(&plan), Outcome::Summed { .. }));
        world.attempt.round.round = 2;
        world.attempt.round.subject = Digest([50; 32]);
        world.sites.iter_mut().for_each(|s| s.client = None);
        let mut hub = world.hub();
        plan.vanish[6..].fill(Moment::BeforeAdvert);
        world.steps(&mut hub, &plan, Moment::BeforeAgree).unwrap();
        let statement = hub.statement().unwrap().clone();
        assert_eq!((hub.session().unwrap().thresholds().n(), statement.survivors.len()), (6, 6));
        let (key, history) = (world.sites[VICTIM].key.clone(), world.sites[VICTIM].history.clone());
        // Also when the study has been made smaller since, as far as its spec says.
        let rule = history.default_rule(&world.attempt.round, hospitals);
        let error = client(&mut world, VICTIM).survivors(&statement, &key, &history, rule).unwrap_err();
        let ClientError::History(HistoryError::DiffersByOne { site, .. }) = error else { panic!("{error}") };
        assert_eq!(site, site_id(6), "study of {hospitals}");
    }
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
    let rule = history.default_rule(&world.attempt.round, 7);
    let error = client(&mut world, VICTIM).survivors(&smaller, &key, &history, rule).unwrap_err();
    let ClientError::History(HistoryError::DiffersByOne { site, .. }) = error else { panic!("{error}") };
    assert_eq!(site, site_id(6));
    client(&mut world, VICTIM).survivors(&smaller, &key, &history, DifferenceRule::Allow).unwrap();
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
    let second = world.encoded(VICTIM);
    let error = client(&mut world, VICTIM).bind_update(digests(&second)).unwrap_err();
    assert!(matches!(error, ClientError::Conflict { .. }), "{error}");
    let masker = client(&mut world, VICTIM).masker().unwrap();
    let mut bytes = consilium_secagg::sum::to_bytes(&second[1]);
    let error = masker.mask(1, &mut bytes).unwrap_err();
    assert!(error.to_string().contains("not the update bound"), "{error}");
    assert!(bytes.iter().all(|b| *b == 0), "neither update nor mask may be left");
    masker.mask(1, &mut consilium_secagg::sum::to_bytes(&first[1])).unwrap();
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
    refused(client.survivors(&statement, &site.key, &site.history, DifferenceRule::Allow).unwrap_err());
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
