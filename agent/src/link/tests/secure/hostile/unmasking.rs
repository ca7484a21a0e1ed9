//! The attack that recovers an update from Flower's SecAgg+: the victim is listed as active and as dead, so that its
//! peers hand out the shares of both of its seeds.

use consilium_secagg::layout::Layout;
use consilium_secagg::mask::{MaskSet, Sign};
use consilium_secagg::secret::Secret;
use consilium_secagg::shares::SeedKind;
use consilium_secagg::unmask::{ReleasedShare, UnmaskReply, pair_sign};
use consilium_secagg::{keys, shamir};

use super::*;

/// The other list: the victim dropped out.
fn without_victim(with: &SurvivorStatement) -> SurvivorStatement {
    SurvivorStatement { survivors: [1, 2, 3].map(Party).into(), ..with.clone() }
}

/// Every share that any hospital ever released.
fn released(attack: &Attack) -> Vec<(Party, ReleasedShare)> {
    let heard = attack.hub.heard.borrow();
    let mut replies: Vec<_> = heard.iter().filter(|(_, _, step, _)| step == "Unmask").map(|(.., b)| b).collect();
    replies.sort();
    replies.dedup();
    let reply = |bytes: &Vec<u8>| Signed::<UnmaskReply>::from_bytes(bytes).unwrap().body;
    replies.into_iter().map(reply).flat_map(|r| r.shares.into_iter().map(move |share| (r.from, share))).collect()
}

/// After honest replies to the first list the hub asks anew with the second, in every way that it can.
#[tokio::test]
async fn the_victim_in_both_lists_after_the_release_gets_nothing_more() {
    attack(async |attack| {
        attack.run_to(TaskKind::Train, 1, ProtocolStep::Unmask).await;
        let proof = attack.machine(|hub| hub.survivor_proof().unwrap().clone());
        let without = without_victim(&proof.statement);
        let mut signatures = proof.signatures.clone();
        signatures.retain(|(party, _)| *party != Party(0));
        let second = SurvivorProof { statement: without.clone(), signatures };
        let mut both = proof.statement.clone();
        both.survivors.insert(0, Party(0));
        attack.press("birch", 1, ProtocolStep::Agree, &without);
        attack.press("cedar", 1, ProtocolStep::Unmask, &second);
        attack.press("damson", 1, ProtocolStep::Unmask, &SurvivorProof { statement: both, ..proof.clone() });
        attack.press("alder", 1, ProtocolStep::Unmask, &second);
        attack.refuses(1, 1, "one session, one answer").await;
        attack.refuses(2, 1, "one session, one answer").await;
        attack.refuses(3, 1, "not strictly ascending").await;
        attack.refuses(0, 1, "one session, one answer").await;
        for site in SITES {
            assert_eq!((attack.hub.said(site, 1, "Agree").len(), attack.hub.said(site, 1, "Unmask").len()), (1, 1));
        }
        // What was released before is all there is: asked in the first words again, a hospital that refused is silent.
        for site in SITES {
            attack.press(site, 1, ProtocolStep::Unmask, &proof);
        }
    })
    .await;
}

/// The hub holds everyone's signature on the first list, and asks for the shares of the second in place of the first.
#[tokio::test]
async fn the_victim_in_both_lists_before_the_release_gets_no_share_at_all() {
    attack(async |attack| {
        attack.run_to(TaskKind::Train, 1, ProtocolStep::Agree).await;
        let proof = attack.machine(|hub| hub.close_agreement().unwrap());
        let without = without_victim(&proof.statement);
        let mut signatures = proof.signatures.clone();
        signatures.retain(|(party, _)| *party != Party(0));
        let second = SurvivorProof { statement: without.clone(), signatures };
        attack.press("birch", 1, ProtocolStep::Unmask, &second);
        attack.press("cedar", 1, ProtocolStep::Agree, &without);
        attack.press("damson", 1, ProtocolStep::Unmask, &second);
        attack.press("alder", 1, ProtocolStep::Unmask, &second);
        attack.refuses(1, 1, "this hospital signed").await;
        attack.refuses(2, 1, "one session, one answer").await;
        attack.refuses(3, 1, "this hospital signed").await;
        attack.refuses(0, 1, "this hospital signed").await;
        for (site, agent) in SITES.iter().zip(&attack.agents) {
            assert_eq!(agent.ctx.state.phase(&key(1)).unwrap(), Some("Burned"));
            attack.press(site, 1, ProtocolStep::Unmask, &proof);
        }
        assert!(released(attack).is_empty());
    })
    .await;
}

/// Reconstructs, as Flower's hub could, from all that the hub ever got: the victim's own mask comes off, as it must for
/// the sum, and the masks that it shares with the others do not. With the one seed that nobody gave, they would.
#[tokio::test]
async fn what_recovers_an_update_from_flower_recovers_nothing_here() {
    attack(async |attack| {
        attack.run_to(TaskKind::Train, 1, ProtocolStep::Unmask).await;
        let session = attack.machine(|hub| hub.session().unwrap().clone());
        let without = without_victim(&attack.machine(|hub| hub.statement().unwrap().clone()));
        for (of, site) in SITES.iter().enumerate().skip(1) {
            attack.press(site, 1, ProtocolStep::Agree, &without);
            attack.refuses(of, 1, "one session, one answer").await;
        }
        let (victim, sid, t) = (Party(0), session.sid(), session.thresholds().t());
        let shares = released(attack);
        for from in session.parties() {
            let of_victim: Vec<_> = shares.iter().filter(|(f, s)| *f == from && s.of == victim).collect();
            assert!(matches!(&of_victim[..], [(_, share)] if share.kind == SeedKind::Own), "one share, of one kind");
        }
        let of = |kind: SeedKind| -> Vec<(Party, &Secret)> {
            let wanted = shares.iter().filter(|(_, share)| share.of == victim && share.kind == kind);
            wanted.map(|(from, share)| (*from, &share.share.share)).collect()
        };
        let own = shamir::combine(&of(SeedKind::Own), t).unwrap();
        assert!(shamir::combine(&of(SeedKind::Mask), t).is_err());

        // Its own mask comes off. Of the shares there are, no seed gives the key behind the other masks.
        let body = attack.hub.chunks.borrow()[&(VICTIM.to_owned(), 1, 1)].clone();
        let head = Layout::new(0, body.len() as u64 / 4).unwrap().head() as u64;
        let mut y = sum::from_bytes(&body);
        let mut masks = MaskSet::new();
        masks.push(Sign::Minus, &keys::self_mask_key(&own, &sid, victim));
        masks.apply(head, &mut y).unwrap();
        assert!(is_noise(&sum::to_bytes(&y)), "{:?}", scores(&sum::to_bytes(&y)));
        let advertised = session.advert(victim).unwrap().mask_key;
        let attempt = session.attempt().digest();
        let is_behind = |seed: &Secret| keys::x25519_public(&keys::mask_scalar(seed, &attempt)) == advertised;
        let known = shares.iter().map(|(_, share)| &share.share.share);
        assert!(!known.chain([&own]).any(is_behind));

        // The control: that seed, from inside the hospital, lays the update bare. So it was the refusals that kept it.
        let kept = attack.hospitals[0].dice.secrets().into_iter().map(Secret::new).find(is_behind).unwrap();
        let scalar = keys::mask_scalar(&kept, &attempt);
        let mut masks = MaskSet::new();
        for peer in session.parties().filter(|peer| *peer != victim) {
            let key = session.advert(peer).unwrap().mask_key;
            let key = keys::pair_mask_key(&scalar, &key, &sid, victim, peer).unwrap();
            masks.push(pair_sign(victim, peer).opposite(), &key);
        }
        masks.apply(head, &mut y).unwrap();
        assert_eq!(sum::to_bytes(&y), attack.plain(TaskKind::Train)[1]);
    })
    .await;
}
