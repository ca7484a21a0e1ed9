//! Attacks while an attempt is opened: models, keys, invented hospitals, another purpose.

use consilium_secagg::advert::{AdvertList, Seeds};
use consilium_secagg::ids::PublicKey;
use consilium_secagg::roster::RosterEntry;
use consilium_secagg::session::{Session, SessionError};
use consilium_secagg::spec::Purpose;

use super::*;

/// Adverts as the hub relays them.
async fn adverts(attack: &Attack) -> AdvertList {
    attack.run_to(TaskKind::Train, 1, ProtocolStep::Advertise).await;
    attack.machine(|hub| hub.close_adverts().unwrap())
}

fn nobody_dealt(attack: &Attack) {
    assert!(SITES.iter().all(|site| attack.hub.times(site, 1, "Share") == 0));
}

/// The hub asks for a step about something else than what the update was made for, at once or in the middle.
#[tokio::test]
async fn another_base_or_schema_is_refused_by_name() {
    attack(async |attack| {
        let list = adverts(attack).await;
        let inputs = Some(attack.hub.keep(list.to_bytes()));
        let asked = attack.ask(TaskKind::Train, 1, ProtocolStep::Share, inputs);
        attack.publish(&["alder"], &RoundWork { model: Digest::of(b"another"), ..asked.clone() });
        attack.refuses(0, 1, "base model").await;
        attack.publish(&["birch"], &RoundWork { schema: Digest::of(b"another"), ..asked.clone() });
        attack.refuses(1, 1, "schema").await;
        attack.publish(&["cedar"], &RoundWork { roster_size: 3, ..asked });
        attack.refuses(2, 1, "roster size").await;
        let asked = attack.ask(TaskKind::Train, 2, ProtocolStep::Advertise, None);
        attack.publish(&["damson"], &RoundWork { model: Digest::of(b"another"), ..asked });
        attack.refuses(3, 2, "base model").await;
        assert_eq!(attack.hub.times("damson", 2, "Advertise"), 0);
        assert!(attack.agents[..3].iter().all(|agent| agent.ctx.state.phase(&key(1)).unwrap() == Some("Burned")));
        nobody_dealt(attack);
    })
    .await;
}

/// A hub that puts its own key in a hospital's place could read the shares that are dealt to it.
#[tokio::test]
async fn a_substituted_key_is_refused_and_nothing_is_dealt() {
    attack(async |attack| {
        let mut list = adverts(attack).await;
        let mut forged = list.adverts[1].body.clone();
        forged.enc_key = SiteKey::from_seed(&[5; 32]).public();
        list.adverts[1] = SiteKey::from_seed(&[6; 32]).sign(forged);
        attack.press("alder", 1, ProtocolStep::Share, &list);
        attack.refuses(0, 1, "birch").await;
        assert_eq!(attack.agents[0].ctx.state.phase(&key(1)).unwrap(), Some("Burned"));
        until_reason(&attack.agents[0], SiteReason::Rejected).await;
        // The hub is told in the attempt's own words, until another attempt opens.
        let quiet = RoundWork { step: None, ..attack.ask(TaskKind::Train, 1, ProtocolStep::Share, None) };
        attack.publish(&["alder"], &quiet);
        until_reason(&attack.agents[0], SiteReason::Ready).await;
        nobody_dealt(attack);
    })
    .await;
}

/// Without its own advert in the list, a hospital would mask against hospitals that do not mask against it.
#[tokio::test]
async fn replacing_or_dropping_the_victims_own_advert_is_refused() {
    attack(async |attack| {
        let list = adverts(attack).await;
        let mut without = list.clone();
        without.adverts.remove(0);
        attack.press("alder", 1, ProtocolStep::Share, &without);
        attack.refuses(0, 1, "do not hold this hospital's own").await;
        // Another advert under its name, which only a copy of its key could sign.
        let mut stale = list.clone();
        let mut rng = Dice::new("the hub").entropy();
        let digest = attack.attempt_spec(TaskKind::Train, 1).digest();
        stale.adverts[1] =
            Seeds::random(&mut rng).advertise(&digest, &attack.hospitals[1].site(), &attack.colluder(1), &mut rng);
        attack.press("birch", 1, ProtocolStep::Share, &stale);
        attack.refuses(1, 1, "do not hold this hospital's own").await;
        nobody_dealt(attack);
    })
    .await;
}

/// Hospitals that the hub invents would be colluders, as many as it likes.
#[tokio::test]
async fn invented_hospitals_are_refused() {
    attack(async |attack| {
        let list = adverts(attack).await;
        let (mut rng, elm) = (Dice::new("the hub").entropy(), SiteId::new("elm").unwrap());
        let digest = attack.attempt_spec(TaskKind::Train, 1).digest();
        let invented = Seeds::random(&mut rng).advertise(&digest, &elm, &SiteKey::from_seed(&[4; 32]), &mut rng);
        let mut instead = list.clone();
        instead.adverts[3] = invented.clone();
        attack.press("alder", 1, ProtocolStep::Share, &instead);
        attack.refuses(0, 1, "elm is not on the roster").await;
        let mut beside = list.clone();
        beside.adverts.push(invented);
        attack.press("birch", 1, ProtocolStep::Share, &beside);
        attack.refuses(1, 1, "5 hospitals in the attempt, at most 4").await;
        // One hospital under two names needs two keys that governance signed.
        let mut twice = list.clone();
        twice.adverts[3] = twice.adverts[1].clone();
        attack.press("cedar", 1, ProtocolStep::Share, &twice);
        attack.refuses(2, 1, "strictly ascending").await;
        nobody_dealt(attack);
    })
    .await;
}

/// Whose keys hold is governance's word: a roster of the hub's own making opens nothing, however it is asked for.
#[tokio::test]
async fn a_roster_with_invented_hospitals_opens_nothing() {
    attack(async |attack| {
        let mut entries = attack.roster.roster.entries[..2].to_vec();
        for (name, seed) in [("elm", 4), ("fir", 5)] {
            entries
                .push(RosterEntry { site: SiteId::new(name).unwrap(), key: SiteKey::from_seed(&[seed; 32]).public() });
        }
        let forged = sign(4, entries, Some(&SiteKey::from_seed(&[7; 32])));
        let object = attack.hub.keep(forged.to_bytes());
        let asked = attack.ask(TaskKind::Train, 1, ProtocolStep::Advertise, None);
        let named = RoundWork { roster: Some(hub_digest(forged.roster.digest())), ..asked };
        let offered = [vec![object], attack.rosters()].concat();
        attack.publish_to(&["alder", "birch"], &named, offered);
        for of in [0, 1] {
            attack.denies(of, "does not hold here").await;
            let trouble = attack.agents[of].ctx.facts.roster_trouble();
            assert!(trouble.is_some_and(|why| why.contains("0 valid governance signatures")));
        }
        assert_eq!(attack.sent("alder", 1) + attack.sent("birch", 1), 0);
        // The same hub, asking as governance allows, is answered.
        attack.run_to(TaskKind::Train, 1, ProtocolStep::Advertise).await;
    })
    .await;
}

/// With such a key the hub would know the mask that the victim shares with the colluder, or read its shares.
#[tokio::test]
async fn low_order_and_repeated_keys_of_a_colluder_are_refused() {
    attack(async |attack| {
        let list = adverts(attack).await;
        let colluder = attack.colluder(1);
        let with = |change: &dyn Fn(&mut consilium_secagg::advert::Advert)| {
            let mut list = list.clone();
            let mut body = list.adverts[1].body.clone();
            change(&mut body);
            list.adverts[1] = colluder.sign(body);
            list
        };
        let mut one = [0; 32];
        one[0] = 1;
        attack.press("alder", 1, ProtocolStep::Share, &with(&|advert| advert.mask_key = PublicKey([0; 32])));
        attack.press("cedar", 1, ProtocolStep::Share, &with(&|advert| advert.enc_key = PublicKey(one)));
        let same = list.adverts[0].body.mask_key;
        attack.press("damson", 1, ProtocolStep::Share, &with(&|advert| advert.mask_key = same));
        attack.refuses(0, 1, "birch: X25519 key 0000").await;
        attack.refuses(2, 1, "low order").await;
        attack.refuses(3, 1, "repeats key").await;
        nobody_dealt(attack);
    })
    .await;
}

/// No hospital knows of a sum of static counts. A hub that opens one on its own, however often, is answered with adverts
/// for what the hospitals know of: they open no session of its sum, and nothing else leaves.
#[tokio::test]
async fn static_counts_that_the_hub_asks_for_by_itself_get_no_session() {
    attack(async |attack| {
        for attempt in [1, 2] {
            let mut counts = attack.attempt_spec(TaskKind::Train, attempt);
            counts.round.purpose = Purpose::Statistics;
            counts.round.subject = counts.round.roster;
            let machine = Hub::open(counts.clone(), attack.verified()).unwrap();
            *attack.hub.machine.lock().unwrap() = Some(machine);
            attack.publish(&SITES, &attack.ask(TaskKind::Train, attempt, ProtocolStep::Advertise, None));
            for of in 0..SITES.len() {
                attack.refuses(of, attempt, "is for another attempt").await;
            }
            assert!(attack.machine(|hub| hub.heard()).is_empty());
            let said = |site: &str| {
                let said = attack.hub.said(site, attempt, "Advertise");
                Signed::from_bytes(&said[0]).unwrap()
            };
            let list = AdvertList { adverts: SITES.map(said).into() };
            let error = Session::open(&counts, &list, &attack.verified()).unwrap_err();
            assert!(matches!(error, SessionError::WrongAttempt { .. }), "{error}");
            // A hub that takes the adverts all the same is answered no more.
            attack.publish(&SITES, &{
                let inputs = Some(attack.hub.keep(list.to_bytes()));
                attack.ask(TaskKind::Train, attempt, ProtocolStep::Share, inputs)
            });
        }
        assert!(attack.hub.heard.borrow().iter().all(|(_, _, step, _)| step == "Advertise"));
        assert!(attack.hub.chunks.borrow().is_empty());
    })
    .await;
}
