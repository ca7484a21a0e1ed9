//! What the other side sends, and what lies on a volume.

use consilium_agent::state::Record;
use consilium_crds::roster::RosterDocument;
use consilium_federation::assignment::{Item, MAX_ITEMS};
use consilium_federation::report::LedgerEnd;
use consilium_proto::{read_report, v1};
use consilium_secagg::advert::{Advert, AdvertList};
use consilium_secagg::roster::{Roster, SignedRoster};
use consilium_secagg::shares::{ShareBundle, SharesMessage};
use consilium_secagg::spec::{AttemptSpec, RoundSpec};
use consilium_secagg::survivors::{SurvivorProof, SurvivorStatement};
use consilium_secagg::unmask::{RevealedSeeds, UnmaskReply};
use consilium_secagg::upload::UploadManifest;
use consilium_secagg::wire::Message;
use prost::Message as _;

/// A roster as people write it (JSON), or as it goes over the wire.
pub(crate) fn roster(data: &[u8]) -> bool {
    let text = std::str::from_utf8(data).ok();
    if let Some(signed) = text.and_then(|text| RosterDocument::parse(text).ok()).and_then(|found| found.signed().ok()) {
        assert_eq!(RosterDocument::of(&signed).signed().as_ref(), Ok(&signed));
        return true;
    }
    canonical::<SignedRoster>(data) || canonical::<Roster>(data)
}

/// One byte form a message: what parses is written as it came.
fn canonical<M: Message>(data: &[u8]) -> bool {
    M::from_bytes(data).is_ok_and(|message| {
        assert_eq!(message.to_bytes(), data, "{} has two byte forms", M::TAG);
        true
    })
}

pub(crate) fn secagg_wire(data: &[u8]) -> bool {
    let read = [
        canonical::<Advert>(data),
        canonical::<AdvertList>(data),
        canonical::<SharesMessage>(data),
        canonical::<ShareBundle>(data),
        canonical::<UploadManifest>(data),
        canonical::<SurvivorStatement>(data),
        canonical::<SurvivorProof>(data),
        canonical::<UnmaskReply>(data),
        canonical::<RevealedSeeds>(data),
        canonical::<RoundSpec>(data),
        canonical::<AttemptSpec>(data),
    ];
    read.contains(&true)
}

/// An assignment as a hospital takes it, a report as the hub does, and the hub's answer.
pub(crate) fn hub_wire(data: &[u8]) -> bool {
    let assignment = v1::Assignment::decode(data).is_ok_and(|message| {
        let items = message.items.into_iter().take(MAX_ITEMS).filter_map(|item| Item::try_from(item).ok());
        let items: Vec<Item> = items.collect();
        for item in &items {
            assert_eq!(Item::try_from(v1::Item::from(item)).as_ref(), Ok(item));
        }
        !items.is_empty()
    });
    let report = v1::ReportRequest::decode(data).is_ok_and(|message| {
        read_report(message).is_ok_and(|(report, _)| {
            let again = read_report(v1::ReportRequest::from(&report));
            assert_eq!(again.map(|(again, _)| again), Ok(report));
            true
        })
    });
    let reply = v1::ReportReply::decode(data)
        .is_ok_and(|message| message.ledger.is_some_and(|end| LedgerEnd::try_from(end).is_ok()));
    assignment || report || reply
}

/// An entry of a hospital's ledger.
pub(crate) fn ledger(data: &[u8]) -> bool {
    serde_json::from_slice::<Record>(data).is_ok_and(|record| {
        let again = serde_json::to_vec(&record).unwrap_or_default();
        assert_eq!(serde_json::from_slice::<Record>(&again).ok(), Some(record));
        true
    })
}
