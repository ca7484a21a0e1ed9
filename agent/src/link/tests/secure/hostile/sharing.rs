//! Attacks on shares and on the upload: damaged envelopes, a dealer that cheats, a swapped study, a damaged vector.

use consilium_secagg::advert::Seeds;
use consilium_secagg::deal::deal;
use consilium_secagg::shares::ShareBundle;

use super::*;
use crate::state::Record;

/// Gives every hospital a bundle of shares as the hub changed it.
async fn bundles(attack: &Attack) -> [ShareBundle; 4] {
    attack.run_to(TaskKind::Train, 1, ProtocolStep::Share).await;
    attack.machine(|hub| hub.close_shares().unwrap());
    SITES.map(|site| attack.machine(|hub| hub.bundle_for(&SiteId::new(site).unwrap()).unwrap()))
}

fn nothing_uploaded(attack: &Attack) {
    assert!(SITES.iter().all(|site| attack.hub.times(site, 1, "Upload") == 0));
    assert!(attack.hub.chunks.borrow().is_empty());
}

/// A hospital that held wrong shares for another could not help to take its masks off, or would hold the hub's.
#[tokio::test]
async fn shares_that_the_hub_changed_are_refused_before_anything_is_masked() {
    attack(async |attack| {
        let honest = bundles(attack).await;
        let mut changed = honest[0].clone();
        changed.shares[2].entry.envelope[30] ^= 1;
        attack.press("alder", 1, ProtocolStep::Upload, &changed);
        attack.refuses(0, 1, "the entry of #2 for #0 is not the one it signed").await;
        let mut swapped = honest[1].clone();
        swapped.shares[2].entry = honest[3].shares[2].entry.clone();
        attack.press("birch", 1, ProtocolStep::Upload, &swapped);
        attack.refuses(1, 1, "the entry of #2 for #1 is not the one it signed").await;
        let mut few = honest[2].clone();
        few.shares.drain(..2);
        attack.press("cedar", 1, ProtocolStep::Upload, &few);
        attack.refuses(2, 1, "2 hospitals dealt shares, at least 3").await;
        attack.press("damson", 1, ProtocolStep::Upload, &honest[0]);
        attack.refuses(3, 1, "is for another hospital").await;
        nothing_uploaded(attack);
    })
    .await;
}

/// The hub cannot put its own dealing in a hospital's place, nor leave the victim's out.
#[tokio::test]
async fn a_dealing_that_the_hub_made_itself_is_refused() {
    attack(async |attack| {
        let honest = bundles(attack).await;
        let mut forged = honest[0].clone();
        let mut header = forged.shares[2].header.body.clone();
        header.mask_seed = RingDigest([1; 32]);
        forged.shares[2].header = SiteKey::from_seed(&[6; 32]).sign(header);
        attack.press("alder", 1, ProtocolStep::Upload, &forged);
        attack.refuses(0, 1, "shares of #2 are not signed by it").await;
        let mut not_own = honest[1].clone();
        not_own.shares.remove(1);
        attack.press("birch", 1, ProtocolStep::Upload, &not_own);
        attack.refuses(1, 1, "does not hold this hospital's own shares").await;
        let mut twice = honest[2].clone();
        twice.shares[1] = twice.shares[0].clone();
        attack.press("cedar", 1, ProtocolStep::Upload, &twice);
        attack.refuses(2, 1, "not strictly ascending").await;
        nothing_uploaded(attack);
    })
    .await;
}

/// A colluding hospital deals the victim a share that is not the committed one, well signed and well sealed.
#[tokio::test]
async fn a_corrupted_share_of_a_colluding_dealer_is_found_and_the_dealer_named() {
    attack(async |attack| {
        let (key_of_damson, damson) = (attack.colluder(3), SiteId::new("damson").unwrap());
        attack.agents.pop().unwrap().kill().await;
        attack.ask_all(TaskKind::Train, 1, ProtocolStep::Advertise);
        let mut rng = Dice::new("a colluding hospital").entropy();
        let seeds = Seeds::random(&mut rng);
        let digest = attack.attempt_spec(TaskKind::Train, 1).digest();
        let advert = seeds.advertise(&digest, &damson, &key_of_damson, &mut rng);
        attack.machine(|hub| hub.advert(&damson, advert).unwrap());
        attack.all_done(1, ProtocolStep::Advertise, 4).await;
        attack.ask_all(TaskKind::Train, 1, ProtocolStep::Share);
        let session = attack.machine(|hub| hub.session().unwrap().clone());
        let (mut message, _) = deal(&session, Party(3), &seeds, &key_of_damson, &mut rng).unwrap();
        let (other, _) = deal(&session, Party(3), &seeds, &key_of_damson, &mut rng).unwrap();
        message.entries[0].envelope = other.entries[0].envelope.clone();
        let mut header = message.header.body.clone();
        header.entries[0] = message.entries[0].digest();
        message.header = key_of_damson.sign(header);
        attack.machine(|hub| hub.shares(&damson, message).unwrap());
        attack.all_done(1, ProtocolStep::Share, 4).await;
        attack.ask_all(TaskKind::Train, 1, ProtocolStep::Upload);
        attack.refuses(0, 1, "the envelope of #3 for #0 does not hold the committed shares").await;
        assert_eq!(attack.hub.times("alder", 1, "Upload"), 0);
    })
    .await;
}

/// A hub that has the masked update asks for it once more, under a study without masks: it must not get the plain one.
#[tokio::test]
async fn what_was_sent_masked_is_not_sent_plain_on_a_swapped_study() {
    attack(async |attack| {
        attack.run_to(TaskKind::Train, 1, ProtocolStep::Upload).await;
        until_reason(&attack.agents[0], SiteReason::Submitted).await;
        attack.hub.keep(canonical_json(&spec()));
        let asked = attack.ask(TaskKind::Train, 1, ProtocolStep::Upload, None);
        let sent = attack.sent("alder", 1);
        let plain = RoundWork { spec_digest: spec().digest(), roster: None, ..asked };
        attack.publish(&["alder"], &plain);
        attack.refuses(0, 1, "spec digest").await;
        assert_eq!(attack.sent("alder", 1), sent);
    })
    .await;
}

/// The hub is told why a step was refused; of a vector of one number even a digest would tell the number.
#[tokio::test]
async fn a_damaged_vector_is_refused_without_its_digest() {
    attack(async |attack| {
        attack.run_to(TaskKind::Evaluate, 1, ProtocolStep::Share).await;
        let body = attack.hospitals[0].volume().join("updates").join(evaluate_vector("round")).join("00000001");
        let stored = attack.agents[0].ctx.state.update(&evaluate_vector("round")).unwrap().unwrap();
        std::fs::write(body, b"dama").unwrap();
        attack.ask_all(TaskKind::Evaluate, 1, ProtocolStep::Upload);
        attack.refuses_of(TaskKind::Evaluate, 0, 1, "chunk 1 of what is stored is damaged").await;
        assert!(attack.hub.told("alder").iter().all(|told| !told.contains(&stored.chunks[1].to_string()[..8])));
        assert_eq!(attack.hub.times("alder", 1, "Upload"), 0);
    })
    .await;
}

/// The hub is told where the ledger ends, so that a volume that was set back is noticed. The ledger names the vector
/// that was sent: if the hub could make up the entry, it could try out every vector of one number.
#[tokio::test]
async fn the_end_of_the_ledger_tells_no_vector_of_one_number() {
    attack(async |attack| {
        attack.run_to(TaskKind::Evaluate, 1, ProtocolStep::Upload).await;
        let state = &attack.agents[0].ctx.state;
        let sent = |entry: &Entry| matches!(entry, Entry::UploadEnded { complete: true, .. });
        until_entry(&attack.agents[0], "the end of the upload", sent).await;
        let digests: Vec<_> = attack.plain(TaskKind::Evaluate).iter().map(|chunk| chunk_digest(chunk)).collect();
        let records = state.ledger(1, 100).unwrap();
        let at = records.iter().position(|record| matches!(record.entry, Entry::UploadBegins { .. })).unwrap();
        // All of it is known to the hub or, as the time is, guessed soon; the vector is what it tries out.
        let mut entry = records[at].entry.clone();
        let Entry::UploadBegins { update, .. } = &mut entry else { unreachable!() };
        *update = Digest::of_json(&digests);
        let guess = Record { salt: records[at - 1].salt.clone(), entry, ..records[at].clone() };
        let guess = serde_json::to_string(&guess).unwrap();
        assert_ne!(Digest::of(guess.as_bytes()), records[at + 1].prev, "the vector can be tried out");
        // The control: with the record's own salt, which never leaves, the guess would be right.
        assert_eq!(records[at].salt.len(), 32);
        let right = guess.replace(&records[at - 1].salt, &records[at].salt);
        assert_eq!(Digest::of(right.as_bytes()), records[at + 1].prev);
    })
    .await;
}
