//! The gateway as hospitals meet it: over loopback, with real certificates.

mod attempts;
mod hostile;
mod rig;

use std::time::Duration;

use bytes::Bytes;
use consilium_federation::assignment::ItemState;
use consilium_federation::model::CHUNK_BYTES;
use consilium_federation::round::ProtocolStep;
use consilium_federation::{Digest, SiteName};
use consilium_proto::{CHUNKS_IN_FLIGHT, v1};
use consilium_secagg::upload::chunk_digest;
use futures::StreamExt as _;
use rig::{Pki, Rig, items, round_item};
use tonic::Code;

fn name(site: &str) -> SiteName {
    site.parse().unwrap()
}

fn watch() -> v1::WatchRequest {
    v1::WatchRequest { agent_version: "test".into() }
}

/// The hub's desired states and uploads are open to enrolled hospitals and to nobody else on the network.
#[tokio::test]
async fn without_a_certificate_of_the_right_ca_nothing_answers() {
    let rig = Rig::start().await;
    for identity in [None, Some(Pki::new().site("alder"))] {
        let mut client = rig.client(identity);
        let refused = client.watch(watch()).await.err().map(|status| status.code());
        // The handshake fails, so gRPC knows no more than that there is no connection.
        assert!(matches!(refused, Some(Code::Unavailable | Code::Unknown)), "{refused:?}");
    }
    let refused = rig.plaintext_client().watch(watch()).await.err().map(|status| status.code());
    assert!(matches!(refused, Some(Code::Unavailable | Code::Unknown)), "{refused:?}");
    assert!(rig.hub.last_contact(&name("alder")).is_none());
}

/// Two names, or a name of another kind: refused, rather than guessed.
#[tokio::test]
async fn a_certificate_that_is_not_one_hospital_is_refused() {
    let rig = Rig::start().await;
    rig.accept(&["alder", "birch"]);
    let both = ["spiffe://consilium/site/alder", "spiffe://consilium/site/birch"];
    for uris in [&both[..], &[], &["spiffe://elsewhere/site/alder"]] {
        let status = rig.client(Some(rig.pki.identity(uris))).watch(watch()).await.err().unwrap();
        assert_eq!(status.code(), Code::Unauthenticated, "{uris:?}");
        assert!(status.message().contains("spiffe://consilium/site/"), "{status}");
    }
}

/// A restart of the hub must not look like a revocation to hospitals that are quicker than its caches.
#[tokio::test]
async fn a_hub_that_does_not_know_its_hospitals_yet_says_try_again() {
    let rig = Rig::start().await;
    let mut alder = rig.site("alder");
    assert_eq!(alder.watch(watch()).await.err().unwrap().code(), Code::Unavailable);
    rig.accept(&[]);
    assert_eq!(alder.watch(watch()).await.err().unwrap().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_hospital_that_is_not_accepted_is_told_who_can_change_that() {
    let rig = Rig::start().await;
    rig.accept(&["birch"]);
    let mut alder = rig.site("alder");
    let status = alder.watch(watch()).await.err().unwrap();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("TrustSite alder"), "{status}");
    let report = alder.report(v1::ReportRequest::default()).await.err().unwrap();
    let object = alder.get_object(v1::GetObjectRequest { digest: Digest::of(b"").to_string() }).await.err().unwrap();
    assert_eq!((report.code(), object.code()), (Code::PermissionDenied, Code::PermissionDenied));
    assert!(rig.hub.report(&name("alder")).is_none());
    assert!(rig.metrics.text().contains("consilium_gateway_refused_total{reason=\"NotAccepted\"} 3"));
}

#[tokio::test]
async fn a_watch_gives_the_whole_desired_state_at_once_and_after_each_change() {
    let rig = Rig::start().await;
    rig.accept(&["alder"]);
    let model = rig.model(1).await;
    let mut stream = rig.site("alder").watch(watch()).await.unwrap().into_inner();
    // Nothing is said before the first publish: an empty state would look like "you have no work".
    assert!(rig.hub.publish(&name("alder"), items(&[])));
    let first = stream.message().await.unwrap().unwrap();
    assert_eq!((first.hub_epoch.as_str(), first.items.len()), (rig.hub.store().epoch(), 0));
    assert!(!rig.hub.publish(&name("alder"), items(&[])), "the same again is no news");
    rig.hub.publish(&name("alder"), items(&[round_item("r-1", model, None)]));
    let second = stream.message().await.unwrap().unwrap();
    assert_eq!(second.items.len(), 1);
    assert!(second.revision > first.revision && first.revision >> 32 == 1);
    assert!(rig.hub.connected(&name("alder")));
    assert_eq!(rig.hub.last_contact(&name("alder")), Some(rig::now()));
}

/// `accepted: false` must take hold now, not when the agent happens to connect again.
#[tokio::test]
async fn revoking_a_hospital_closes_its_open_watch_and_forgets_what_it_said() {
    let rig = Rig::start().await;
    rig.accept(&["alder", "birch"]);
    for site in ["alder", "birch"] {
        rig.hub.publish(&name(site), items(&[]));
    }
    let (mut alder, mut birch) = (rig.site("alder"), rig.site("birch"));
    alder.report(v1::ReportRequest::default()).await.unwrap();
    let mut revoked = alder.watch(watch()).await.unwrap().into_inner();
    let mut kept = birch.watch(watch()).await.unwrap().into_inner();
    revoked.message().await.unwrap().unwrap();
    kept.message().await.unwrap().unwrap();
    let mut changes = rig.hub.changes();
    rig.accept(&["birch"]);
    assert_eq!(revoked.message().await.unwrap_err().code(), Code::PermissionDenied);
    while rig.hub.connected(&name("alder")) {
        assert_eq!(changes.recv().await.unwrap().0, name("alder"));
    }
    assert!(rig.hub.report(&name("alder")).is_none());
    assert_eq!(alder.report(v1::ReportRequest::default()).await.unwrap_err().code(), Code::PermissionDenied);
    rig.hub.publish(&name("birch"), items(&[round_item("r-1", Digest::of(b"m"), None)]));
    assert_eq!(kept.message().await.unwrap().unwrap().items.len(), 1, "the other hospital notices nothing");
}

/// A report of a few megabytes can need hundreds once decoded: one hospital would end the hub for all.
#[tokio::test]
async fn a_report_that_is_too_large_is_refused_before_it_is_read() {
    let rig = Rig::start().await;
    rig.accept(&["alder"]);
    let empty = |n| v1::ReportRequest { rounds: vec![v1::RoundReport::default(); n], ..Default::default() };
    let status = rig.site("alder").report(empty(1 << 20)).await.unwrap_err();
    assert!(!status.message().contains("entries"), "it was decoded: {status}");
    assert!(rig.hub.report(&name("alder")).is_none());
    rig.site("alder").report(v1::ReportRequest::default()).await.unwrap();
}

/// The controllers must hear of a hospital that went away without waiting for a deadline.
#[tokio::test]
async fn a_hospital_that_hangs_up_is_noticed() {
    let rig = Rig::start().await;
    rig.accept(&["alder"]);
    rig.hub.publish(&name("alder"), items(&[]));
    let mut client = rig.site("alder");
    let mut stream = client.watch(watch()).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    let mut changes = rig.hub.changes();
    drop((stream, client));
    assert_eq!(changes.recv().await.unwrap().0, name("alder"));
    assert!(!rig.hub.connected(&name("alder")));
}

/// The hospital learns from the answer to its report whether the hub has seen more of its ledger than it has itself.
#[tokio::test]
async fn a_report_is_answered_with_the_furthest_end_of_the_ledger() {
    let mut rig = Rig::start().await;
    rig.accept(&["alder"]);
    let head = |text: &[u8]| Digest::of(text).to_string();
    let report =
        |entries, head| v1::ReportRequest { ledger: Some(v1::LedgerEnd { entries, head }), ..Default::default() };
    let reply = rig.site("alder").report(report(7, head(b"seven"))).await.unwrap().into_inner();
    assert_eq!((reply.ledger.unwrap().entries, reply.signature.len()), (7, 64));
    rig.restart().await;
    rig.accept(&["alder"]);
    let reply = rig.site("alder").report(report(4, head(b"four"))).await.unwrap().into_inner();
    let end = reply.ledger.unwrap();
    assert_eq!((end.entries, end.head), (7, head(b"seven")));
    let none = rig.site("alder").report(v1::ReportRequest::default()).await.unwrap().into_inner();
    assert!(none.ledger.is_none());
    let status = rig.site("alder").report(report(8, "head".into())).await.unwrap_err();
    assert!(status.code() == Code::InvalidArgument && status.message().contains("ledger.head"), "{status}");
}

/// A hospital whose power fails sends no goodbye: only the gateway's own pings can tell that it is gone.
#[tokio::test]
#[ignore = "waits for real pings, up to 30 s"]
async fn a_hospital_that_falls_silent_is_noticed_within_the_budget_of_30_seconds() {
    let rig = Rig::start().await;
    rig.accept(&["alder"]);
    rig.hub.publish(&name("alder"), items(&[]));
    let (relay, silence) = rig.relay().await;
    let mut client = rig.client_at(relay, Some(rig.pki.site("alder")));
    let mut stream = client.watch(watch()).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    let mut changes = rig.hub.changes();
    silence.cancel();
    let noticed = tokio::time::timeout(std::time::Duration::from_secs(30), changes.recv()).await;
    assert_eq!(noticed.expect("within the budget").unwrap().0, name("alder"));
    assert!(!rig.hub.connected(&name("alder")));
}

#[test]
fn the_pings_fit_into_the_budget_of_30_seconds() {
    assert!(super::KEEPALIVE_INTERVAL + super::KEEPALIVE_TIMEOUT <= std::time::Duration::from_secs(30));
}

/// What another study trains is none of this hospital's business, whatever digests it has heard of.
#[tokio::test]
async fn only_objects_of_its_own_work_are_handed_out() {
    let rig = Rig::start().await;
    rig.accept(&["alder", "birch"]);
    let (mine, theirs) = (rig.model(1).await, rig.model(2).await);
    rig.hub.publish(&name("alder"), items(&[round_item("r-1", mine, None)]));
    rig.hub.publish(&name("birch"), items(&[round_item("r-2", theirs, None)]));
    let mut alder = rig.site("alder");
    let chunk = async |model| rig.hub.store().get_manifest(model).await.unwrap().chunks[0];
    for allowed in [mine, chunk(mine).await] {
        let reply = alder.get_object(v1::GetObjectRequest { digest: allowed.to_string() }).await.unwrap();
        assert_eq!(Digest::of(&reply.into_inner().content), allowed);
    }
    for refused in [theirs, chunk(theirs).await, Digest::of(b"nowhere")] {
        let status = alder.get_object(v1::GetObjectRequest { digest: refused.to_string() }).await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound, "and it does not learn which of them exist");
    }
    let mut cancelled = round_item("r-1", mine, None);
    cancelled.state = ItemState::Cancelled;
    rig.hub.publish(&name("alder"), items(&[cancelled]));
    let status = alder.get_object(v1::GetObjectRequest { digest: mine.to_string() }).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    let nonsense = alder.get_object(v1::GetObjectRequest { digest: "sha256:zz".into() }).await.unwrap_err();
    assert_eq!(nonsense.code(), Code::InvalidArgument);
}

/// One model that is gone must not stop the downloads of every other study.
#[tokio::test]
async fn a_missing_model_blocks_only_what_it_leads_to() {
    let rig = Rig::start().await;
    rig.accept(&["alder"]);
    let model = rig.model(1).await;
    // It is looked at first.
    let lost = (0u32..).map(|n| Digest::of(&n.to_be_bytes())).find(|lost| *lost < model).unwrap();
    rig.hub.publish(&name("alder"), items(&[round_item("r-1", lost, None), round_item("r-2", model, None)]));
    let chunk = rig.hub.store().get_manifest(model).await.unwrap().chunks[0];
    let mut alder = rig.site("alder");
    alder.get_object(v1::GetObjectRequest { digest: chunk.to_string() }).await.unwrap();
    let status = alder.get_object(v1::GetObjectRequest { digest: Digest::of(b"x").to_string() }).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
}

/// A hub that restarts in the middle of an upload costs at most the chunk in flight.
#[tokio::test]
async fn an_upload_goes_on_after_the_hub_restarts() {
    let mut rig = Rig::start().await;
    let model = rig.model(1).await;
    let upload = rig::upload(1);
    let open = round_item("r-1", model, Some(ProtocolStep::Upload));
    rig.accept(&["alder"]);
    rig.hub.publish(&name("alder"), items(std::slice::from_ref(&open)));
    let begin = upload.begin("r-1", 1);
    let mut alder = rig.site("alder");
    assert_eq!(alder.begin_upload(begin.clone()).await.unwrap().into_inner().missing, [0, 1]);
    assert!(!alder.put_chunk(upload.chunk("r-1", 1, 0)).await.unwrap().into_inner().complete);

    rig.restart().await;
    rig.accept(&["alder"]);
    rig.hub.publish(&name("alder"), items(&[open]));
    let mut changes = rig.hub.changes();
    let mut alder = rig.site("alder");
    assert_eq!(alder.begin_upload(begin.clone()).await.unwrap().into_inner().missing, [1]);
    assert!(alder.put_chunk(upload.chunk("r-1", 1, 1)).await.unwrap().into_inner().complete);
    assert_eq!(changes.recv().await.unwrap().0, name("alder"), "the round is told");
    assert!(alder.begin_upload(begin).await.unwrap().into_inner().missing.is_empty());
    assert!(rig.hub.store().upload_complete(&rig::key("alder", "r-1", 1)).await.unwrap());
}

/// More hospitals than places, each with as many chunks on their way as it may have: none may wait for another's time-out,
/// or every round of a large model takes minutes.
#[tokio::test(flavor = "multi_thread")]
async fn chunks_of_many_hospitals_do_not_hold_each_other_up() {
    const SITES: [&str; 6] = ["alder", "birch", "cedar", "damson", "elm", "fir"];
    const BODY_CHUNKS: usize = 4;
    let rig = Rig::start().await;
    rig.accept(&SITES);
    let model = rig.large_model(BODY_CHUNKS).await;
    let content = Bytes::from(vec![7; CHUNK_BYTES]);
    let head = Bytes::from(vec![7; 64]);
    let bodies = (0..BODY_CHUNKS).map(|_| content.clone());
    let chunks: Vec<Bytes> = std::iter::once(head).chain(bodies).collect();
    let uploads = SITES.map(|site| {
        rig.hub.publish(&name(site), items(&[round_item("r-1", model, Some(ProtocolStep::Upload))]));
        let (client, chunks) = (rig.site(site), chunks.clone());
        async move {
            let digests = chunks.iter().map(|chunk| Bytes::copy_from_slice(&chunk_digest(chunk).0)).collect();
            let (round_uid, manifest) = ("r-1".to_owned(), Bytes::new());
            let begin = v1::BeginUploadRequest { round_uid: round_uid.clone(), attempt: 1, chunks: digests, manifest };
            client.clone().begin_upload(begin).await.unwrap();
            let put = |(index, content)| {
                let put = v1::PutChunkRequest { round_uid: round_uid.clone(), attempt: 1, index, content };
                let mut client = client.clone();
                async move { client.put_chunk(put).await.unwrap() }
            };
            let sent = futures::stream::iter((0..).zip(chunks)).map(put).buffer_unordered(CHUNKS_IN_FLIGHT);
            sent.collect::<Vec<_>>().await;
        }
    });
    // Half of what a call may take: whoever waited for a time-out is later than that.
    tokio::time::timeout(Duration::from_secs(45), futures::future::join_all(uploads)).await.unwrap();
    for site in SITES {
        assert!(rig.hub.store().upload_complete(&rig::key(site, "r-1", 1)).await.unwrap(), "{site}");
    }
}

/// An upload is taken only from a hospital that is asked for it, and lands under the name in its certificate.
#[tokio::test]
async fn nobody_uploads_in_another_name_or_without_being_asked() {
    let rig = Rig::start().await;
    rig.accept(&["alder", "birch"]);
    let model = rig.model(1).await;
    let upload = rig::upload(1);
    rig.hub.publish(&name("alder"), items(&[round_item("r-1", model, Some(ProtocolStep::Upload))]));
    rig.hub.publish(&name("birch"), items(&[round_item("r-2", model, Some(ProtocolStep::Agree))]));
    let mut birch = rig.site("birch");
    for (round, attempt) in [("r-1", 1), ("r-2", 1), ("../x", 1)] {
        let status = birch.begin_upload(upload.begin(round, attempt)).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition, "{round}");
        let status = birch.put_chunk(upload.chunk(round, attempt, 0)).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition, "{round}");
    }
    let mut alder = rig.site("alder");
    let status = alder.begin_upload(upload.begin("r-1", 2)).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "an attempt that is not open");
    alder.begin_upload(upload.begin("r-1", 1)).await.unwrap();
    assert!(rig.hub.store().upload_chunks(&rig::key("alder", "r-1", 1)).await.is_ok());
    assert!(rig.hub.store().upload_chunks(&rig::key("birch", "r-1", 1)).await.is_err());
}

/// What cannot be summed is refused at the door, where the one who sent it hears of it, and not in the sum of all.
#[tokio::test]
async fn an_upload_of_the_wrong_shape_is_refused_with_the_rule() {
    let rig = Rig::start().await;
    rig.accept(&["alder"]);
    let model = rig.model(1).await;
    rig.hub.publish(&name("alder"), items(&[round_item("r-1", model, Some(ProtocolStep::Upload))]));
    let (mut alder, upload) = (rig.site("alder"), rig::upload(1));
    let mut longer = upload.begin("r-1", 1);
    longer.chunks.push(vec![7; 32].into());
    let status = alder.begin_upload(longer).await.unwrap_err();
    assert!(status.code() == Code::InvalidArgument && status.message().contains("3 digests"), "{status}");
    alder.begin_upload(upload.begin("r-1", 1)).await.unwrap();
    let mut short = upload.chunk("r-1", 1, 1);
    short.content.truncate(8);
    let status = alder.put_chunk(short).await.unwrap_err();
    assert!(status.code() == Code::InvalidArgument && status.message().contains("8 bytes"), "{status}");
    let mut swapped = upload.chunk("r-1", 1, 1);
    swapped.content = vec![9; swapped.content.len()].into();
    let status = alder.put_chunk(swapped).await.unwrap_err();
    assert!(status.code() == Code::InvalidArgument && status.message().contains("begun with"), "{status}");
    let other = rig::upload(2).begin("r-1", 1);
    assert_eq!(alder.begin_upload(other).await.unwrap_err().code(), Code::AlreadyExists);
    let huge = v1::PutChunkRequest { content: vec![0; 6 << 20].into(), ..upload.chunk("r-1", 1, 1) };
    assert_eq!(alder.put_chunk(huge).await.unwrap_err().code(), Code::OutOfRange);
}

#[tokio::test]
async fn a_gateway_with_unusable_certificates_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let error = super::GatewayTls::read(folder.path()).err().unwrap().to_string();
    assert!(error.contains("tls.crt") && error.contains("consilium-gateway-tls"), "{error}");
}

fn as_instance<T>(message: T, instance: &'static str) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert(consilium_proto::INSTANCE, tonic::metadata::MetadataValue::from_static(instance));
    request
}

/// Two on two copies of one volume, or on a stolen certificate, would answer one step in two ways. Both are turned away,
/// watch and all, each with the words and the kind of it; once one is gone, the other goes on.
#[tokio::test]
async fn neither_of_two_agents_with_one_certificate_takes_part() {
    let rig = Rig::start().await;
    rig.accept(&["alder", "birch"]);
    for site in ["alder", "birch"] {
        rig.hub.publish(&name(site), items(&[]));
    }
    let (mut one, mut other, mut birch) = (rig.site("alder"), rig.site("alder"), rig.site("birch"));
    let report = v1::ReportRequest::default;
    let mut watched = one.watch(as_instance(watch(), "aa11")).await.unwrap().into_inner();
    watched.message().await.unwrap().unwrap();
    let step = |seconds| rig.set_clock(rig::now() + jiff::SignedDuration::from_secs(seconds));
    other.report(as_instance(report(), "bb22")).await.unwrap();
    step(20);
    // The first is heard 20 s after the second's first word.
    assert!(one.report(as_instance(report(), "aa11")).await.is_err());
    let refused = other.report(as_instance(report(), "bb22")).await.err().unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(refused.metadata().get(consilium_proto::REFUSAL).unwrap(), consilium_proto::TWO_AGENTS);
    assert!(refused.message().contains("aa11") && refused.message().contains("bb22"), "{refused}");
    assert_eq!(watched.message().await.unwrap_err().code(), Code::PermissionDenied);
    assert!(one.report(as_instance(report(), "aa11")).await.is_err(), "neither takes part");
    assert!(rig.hub.report(&name("alder")).is_none(), "what either said is forgotten");
    assert!(rig.hub.two_agents(&name("alder")).is_some() && rig.hub.two_agents(&name("birch")).is_none());
    birch.report(as_instance(report(), "cc33")).await.unwrap();
    assert!(rig.metrics.text().contains("consilium_site_two_agents{site=\"alder\"} 1"));
    // One was stopped; the other dials on, and is let in when that has been silent for long enough.
    step(100);
    assert!(one.report(as_instance(report(), "aa11")).await.is_err());
    step(210);
    one.report(as_instance(report(), "aa11")).await.unwrap();
    assert!(rig.metrics.text().contains("consilium_site_two_agents{site=\"alder\"} 0"));
}

/// A hospital reads the hub's deadlines by the hub's clock: it must come with what is asked, and with each answer.
#[tokio::test]
async fn the_hub_says_its_time_and_measures_the_hospital_s() {
    let rig = Rig::start().await;
    rig.accept(&["alder"]);
    rig.hub.publish(&name("alder"), items(&[]));
    let mut alder = rig.site("alder");
    let mut watched = alder.watch(watch()).await.unwrap().into_inner();
    let asked = watched.message().await.unwrap().unwrap();
    assert_eq!(consilium_proto::clock(&asked.hub_time), Some(rig::now()));
    let hours = jiff::SignedDuration::from_hours(-3);
    let report = v1::ReportRequest { agent_time: (rig::now() + hours).to_string(), ..v1::ReportRequest::default() };
    let reply = alder.report(report).await.unwrap().into_inner();
    assert_eq!(consilium_proto::clock(&reply.hub_time), Some(rig::now()));
    assert_eq!(rig.hub.clock(&name("alder")), consilium_federation::clock::OtherClock::Ahead(hours));
    assert!(rig.metrics.text().contains("consilium_site_clock_ahead_seconds{site=\"alder\"} -10800"));
}
