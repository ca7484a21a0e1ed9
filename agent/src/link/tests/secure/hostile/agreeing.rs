//! Attacks on who survived: split views, split sets, too few signatures, sets that expose someone.

use consilium_secagg::history::HistoryError;
use consilium_secagg::ids::Signature;
use consilium_secagg::shares::{ShareBundle, view_digest};

use super::*;

/// Survivors that rest on another view of who dealt shares would unmask one hospital's part.
#[tokio::test]
async fn a_split_survivor_view_is_refused_and_nothing_is_signed() {
    attack(async |attack| {
        attack.run_to(TaskKind::Train, 1, ProtocolStep::Upload).await;
        let all: BTreeSet<SiteId> = attack.hospitals.iter().map(Hospital::site).collect();
        let statement = attack.machine(|hub| hub.close_uploads(&all).unwrap());
        let split = SurvivorStatement { view: RingDigest([7; 32]), ..statement };
        attack.press("alder", 1, ProtocolStep::Agree, &split);
        attack.refuses(0, 1, "split the views").await;
        assert_eq!(attack.hub.times("alder", 1, "Agree"), 0);
        assert!(attack.agents[0].ctx.state.history().unwrap().signed.is_empty());
    })
    .await;
}

/// The hub shows the victim fewer dealers than the others, and takes its upload all the same: the others sign no
/// survivors of the victim's view, nor the victim of theirs, so that neither set gets t signatures.
#[tokio::test]
async fn a_split_view_of_the_dealers_gets_no_common_survivors() {
    attack(async |attack| {
        attack.run_to(TaskKind::Train, 1, ProtocolStep::Share).await;
        attack.machine(|hub| hub.close_shares().unwrap());
        let bundle = |site: &str| attack.machine(|hub| hub.bundle_for(&SiteId::new(site).unwrap()).unwrap());
        let mut fewer = bundle("alder");
        fewer.shares.remove(3);
        attack.hub.sly.store(true, Ordering::SeqCst);
        attack.press("alder", 1, ProtocolStep::Upload, &fewer);
        for site in &SITES[1..] {
            attack.press(site, 1, ProtocolStep::Upload, &bundle(site));
        }
        until("all uploads", attack.hub.chunks.subscribe(), |chunks| chunks.len() == 8).await;
        let sid = fewer.sid;
        let seen_in = |bundle: &ShareBundle| SurvivorStatement {
            sid,
            view: view_digest(&sid, bundle.shares.iter().map(|share| &share.header.body)),
            survivors: [0, 1, 2].map(Party).into(),
        };
        let (of_victim, of_others) = (seen_in(&fewer), seen_in(&bundle("birch")));
        attack.press("alder", 1, ProtocolStep::Agree, &of_others);
        attack.press("birch", 1, ProtocolStep::Agree, &of_victim);
        attack.press("cedar", 1, ProtocolStep::Agree, &of_victim);
        for (of, site) in SITES.iter().enumerate().take(3) {
            attack.refuses(of, 1, "split the views").await;
            assert_eq!(attack.hub.times(site, 1, "Agree"), 0);
        }
    })
    .await;
}

/// A signed set is the only one: the hub splits the hospitals over two, and gets no proof of either.
#[tokio::test]
async fn split_survivor_sets_get_no_shares_between_them() {
    attack(async |attack| {
        attack.run_to(TaskKind::Train, 1, ProtocolStep::Upload).await;
        let all: BTreeSet<SiteId> = attack.hospitals.iter().map(Hospital::site).collect();
        let with = attack.machine(|hub| hub.close_uploads(&all).unwrap());
        let without = SurvivorStatement { survivors: [1, 2, 3].map(Party).into(), ..with.clone() };
        attack.hub.sly.store(true, Ordering::SeqCst);
        for (of, set) in [(0, &with), (1, &with), (2, &without), (3, &without)] {
            attack.press(SITES[of], 1, ProtocolStep::Agree, set);
            let name = SITES[of];
            until("a signature", attack.hub.heard.subscribe(), |_| attack.hub.times(name, 1, "Agree") == 1).await;
        }
        let signature = |of: usize| -> (Party, Signature) {
            let said = attack.hub.said(SITES[of], 1, "Agree");
            (Party(of as u8), Signed::<SurvivorStatement>::from_bytes(&said[0]).unwrap().signature)
        };
        let proof = |statement: &SurvivorStatement, signers: &[usize]| SurvivorProof {
            statement: statement.clone(),
            signatures: signers.iter().map(|of| signature(*of)).collect(),
        };
        attack.press("alder", 1, ProtocolStep::Unmask, &proof(&with, &[0, 1]));
        attack.press("birch", 1, ProtocolStep::Unmask, &proof(&with, &[0, 1, 2]));
        attack.press("cedar", 1, ProtocolStep::Unmask, &proof(&without, &[2, 3]));
        attack.press("damson", 1, ProtocolStep::Unmask, &proof(&with, &[0, 1, 3]));
        attack.refuses(0, 1, "2 signatures on the survivor set, 3 are needed").await;
        attack.refuses(1, 1, "signature of #2 on the survivor set does not verify").await;
        attack.refuses(2, 1, "2 signatures on the survivor set, 3 are needed").await;
        attack.refuses(3, 1, "this hospital signed").await;
        assert!(SITES.iter().all(|site| attack.hub.times(site, 1, "Unmask") == 0));
    })
    .await;
}

/// With t − 1 signatures the others may have signed another set: no share leaves, also not of a hospital that missed
/// the signing, and not when the full proof comes after all.
#[tokio::test]
async fn a_proof_of_fewer_than_t_signatures_releases_nothing() {
    attack(async |attack| {
        attack.run_to(TaskKind::Train, 1, ProtocolStep::Upload).await;
        attack.agents.remove(2).kill().await;
        attack.ask_all(TaskKind::Train, 1, ProtocolStep::Agree);
        attack.all_done(1, ProtocolStep::Agree, 3).await;
        let full = attack.machine(|hub| hub.close_agreement().unwrap());
        assert_eq!(full.signatures.len(), 3, "t of four is three");
        let mut few = full.clone();
        few.signatures.pop();
        let mut padded = few.clone();
        padded.signatures.insert(2, (Party(2), Signature([0; 64])));
        let mut twice = few.clone();
        twice.signatures.push(few.signatures[1]);
        attack.press("alder", 1, ProtocolStep::Unmask, &few);
        attack.press("birch", 1, ProtocolStep::Unmask, &padded);
        attack.press("damson", 1, ProtocolStep::Unmask, &twice);
        attack.press("cedar", 1, ProtocolStep::Unmask, &few);
        let late = attack.federation.start(2);
        attack.agents.insert(2, late);
        attack.refuses(0, 1, "2 signatures on the survivor set, 3 are needed").await;
        attack.refuses(1, 1, "signature of #2 on the survivor set does not verify").await;
        attack.refuses(2, 1, "2 signatures on the survivor set, 3 are needed").await;
        attack.refuses(3, 1, "not strictly ascending by party").await;
        let history = attack.agents[2].ctx.state.history().unwrap();
        assert!(history.signed.is_empty() && history.released.is_empty(), "a refused step leaves nothing behind");
        for site in SITES {
            attack.press(site, 1, ProtocolStep::Unmask, &full);
        }
        assert!(SITES.iter().all(|site| attack.hub.times(site, 1, "Unmask") == 0));
    })
    .await;
}

/// A sum of two shows each of them the other; a set without the victim would have it help against itself.
#[tokio::test]
async fn survivor_sets_that_are_too_small_or_leave_the_signer_out_are_refused() {
    attack(async |attack| {
        attack.run_to(TaskKind::Train, 1, ProtocolStep::Upload).await;
        let all: BTreeSet<SiteId> = attack.hospitals.iter().map(Hospital::site).collect();
        let statement = attack.machine(|hub| hub.close_uploads(&all).unwrap());
        let set = |survivors: &[u8]| SurvivorStatement {
            survivors: survivors.iter().map(|p| Party(*p)).collect(),
            ..statement.clone()
        };
        for (of, survivors, words) in [
            (0, &[1, 2, 3][..], "this hospital is not among the survivors"),
            (1, &[0, 1], "2 survivors, at least 3 must be in the sum"),
            (2, &[0, 2, 9], "survivor #9 dealt no shares"),
            (3, &[0, 3, 3], "strictly ascending"),
        ] {
            attack.press(SITES[of], 1, ProtocolStep::Agree, &set(survivors));
            attack.refuses(of, 1, words).await;
            assert_eq!(attack.hub.times(SITES[of], 1, "Agree"), 0);
        }
    })
    .await;
}

/// Sums of two rounds, in the second of which the hub leaves out one hospital that did upload.
async fn one_fewer(attack: &Attack, rule: Option<&str>) -> String {
    let says = rule.map(|rule| ("/aggregation/survivorDifference", json!(rule)));
    let policy = Arc::new(secure_policy_with(says.as_slice()));
    attack.hospitals.iter().for_each(|h| drop(h.policy.send_replace(Some(policy.clone()))));
    attack.run_to(TaskKind::Train, 1, ProtocolStep::Unmask).await;
    let first = attack.machine(|hub| hub.session().unwrap().sid());
    attack.go_on(&attack.agents, next_round());
    attack.run_to(TaskKind::Train, 2, ProtocolStep::Upload).await;
    let three: BTreeSet<SiteId> = attack.hospitals[..3].iter().map(Hospital::site).collect();
    let smaller = attack.machine(|hub| hub.close_uploads(&three).unwrap());
    attack.press("alder", 2, ProtocolStep::Agree, &smaller);
    let site = SiteId::new("damson").unwrap();
    HistoryError::DiffersByOne { sid: first, site }.to_string()
}

/// Two sums that differ by one hospital tell its update, as far as the models are alike.
#[tokio::test]
async fn a_survivor_set_one_hospital_smaller_than_the_last_is_refused_where_the_policy_says_so() {
    attack(async |attack| {
        let words = one_fewer(attack, Some("Refuse")).await;
        assert!(words.contains("damson alone"));
        attack.refuses(0, 2, &words).await;
        assert_eq!(attack.hub.times("alder", 2, "Agree"), 0);
    })
    .await;
}

/// The policy says nothing, and the hub opens rounds among so few that one more could not be spared: the study has
/// eight hospitals, by the spec that this one approved, and that is what counts.
#[tokio::test]
async fn a_survivor_set_one_hospital_smaller_is_refused_by_default_in_a_study_that_could_spare_two() {
    attack(async |attack| {
        let words = one_fewer(attack, None).await;
        attack.refuses(0, 2, &words).await;
        assert_eq!(attack.hub.times("alder", 2, "Agree"), 0);
    })
    .await;
}

/// The same set, where the hospital has put up with it: a small federation would stall at every drop-out.
#[tokio::test]
async fn a_survivor_set_one_hospital_smaller_is_signed_where_the_policy_allows_it() {
    attack(async |attack| {
        one_fewer(attack, Some("Allow")).await;
        until("a signature", attack.hub.heard.subscribe(), |_| attack.hub.times("alder", 2, "Agree") == 1).await;
        let told = attack.hub.told("alder");
        assert!(told.is_empty(), "{told:?}");
    })
    .await;
}
