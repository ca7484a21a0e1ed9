//! What one peer can take from the others: nothing that they would notice.

use consilium_federation::model::CHUNK_BYTES;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use super::*;

/// Entries of two bytes become structures: a megabyte of them would be a hundred once decoded, six times over.
#[tokio::test]
async fn a_call_with_too_many_entries_is_refused_before_it_is_decoded() {
    let rig = Rig::start().await;
    rig.accept(&["alder"]);
    let mut alder = rig.site("alder");
    let rounds = vec![v1::RoundReport::default(); 30_000];
    let status = alder.report(v1::ReportRequest { rounds, ..Default::default() }).await.unwrap_err();
    assert!(status.code() == Code::InvalidArgument && status.message().contains("30000 entries"), "{status}");
    let classes = vec![v1::ClassScore::default(); 30_000];
    let evaluation = v1::Evaluation { published: Some(v1::Score { cases: 1, classes }), ..Default::default() };
    let rounds = vec![v1::RoundReport { evaluation: Some(evaluation), ..Default::default() }];
    let status = alder.report(v1::ReportRequest { rounds, ..Default::default() }).await.unwrap_err();
    assert!(status.message().contains("30001 entries"), "{status}");
    let begin = v1::BeginUploadRequest { chunks: vec![Bytes::new(); 30_000], ..Default::default() };
    let status = alder.begin_upload(begin).await.unwrap_err();
    assert!(status.message().contains("30000 entries"), "{status}");
    let message = v1::PutMessageRequest { content: vec![0; 1 << 20].into(), ..Default::default() };
    let status = alder.put_message(message).await.unwrap_err();
    assert!(status.message().contains("bytes"), "{status}");
}

/// One round named ten thousand times would be looked at as often, in every turn.
#[tokio::test]
async fn a_report_names_each_piece_of_work_once() {
    let rig = Rig::start().await;
    rig.accept(&["alder"]);
    let round = |uid: &str, kind: &str| v1::RoundReport {
        uid: uid.into(),
        kind: kind.into(),
        reason: "Training".into(),
        ..Default::default()
    };
    let report = |rounds| v1::ReportRequest { rounds, ..Default::default() };
    let mut alder = rig.site("alder");
    let twice = vec![round("r-1", "Train"), round("r-2", "Train"), round("r-1", "Train")];
    let status = alder.report(report(twice)).await.unwrap_err();
    assert!(status.code() == Code::InvalidArgument && status.message().contains("rounds.uid"), "{status}");
    let status = alder.report(report(vec![round("../r", "Train")])).await.unwrap_err();
    assert!(status.message().contains("rounds.uid"), "{status}");
    alder.report(report(vec![round("r-1", "Train"), round("r-1", "Evaluate")])).await.unwrap();
}

/// A model that all hospitals fetch at once is handed out whole to each, piece by piece.
#[tokio::test(flavor = "multi_thread")]
async fn an_object_of_many_pieces_comes_whole_to_all_who_fetch_it_at_once() {
    let sites: Vec<String> = (0..12).map(|n| format!("site-{n}")).collect();
    let rig = Rig::start().await;
    rig.accept(&sites.iter().map(String::as_str).collect::<Vec<_>>());
    let content: Bytes = (0..CHUNK_BYTES as u32).map(|i| (i % 251) as u8).collect::<Vec<_>>().into();
    let digest = rig.hub.store().put_object(content.clone()).await.unwrap();
    let fetches = sites.iter().flat_map(|site| {
        rig.hub.publish(&name(site), items(&[round_item("r-1", digest, None)]));
        let client = rig.site(site);
        (0..3).map(move |_| {
            let mut client = client.clone().max_decoding_message_size(consilium_proto::MAX_MESSAGE_BYTES);
            async move { client.get_object(v1::GetObjectRequest { digest: digest.to_string() }).await }
        })
    });
    for reply in futures::future::join_all(fetches).await {
        assert_eq!(reply.unwrap().into_inner().content, content);
    }
    let fetched = (36 * CHUNK_BYTES / 12).to_string();
    assert!(rig.metrics.text().contains(&format!("consilium_downloads_bytes_total{{site=\"site-3\"}} {fetched}")));
}

/// A damaged object must not reach a hospital as if it were one, and must be told apart from one that is not there.
#[tokio::test]
async fn a_damaged_object_is_not_handed_out() {
    let rig = Rig::start().await;
    rig.accept(&["alder"]);
    let digest = rig.hub.store().put_object(Bytes::from_static(b"whole")).await.unwrap();
    rig.spoil(&format!("objects/{}/{}", &digest.hex()[..2], digest.hex()), b"other");
    rig.hub.publish(&name("alder"), items(&[round_item("r-1", digest, None)]));
    let status = rig.site("alder").get_object(v1::GetObjectRequest { digest: digest.to_string() }).await.unwrap_err();
    assert_eq!(status.code(), Code::DataLoss);
}

/// Whoever reaches the port and says nothing must not keep hospitals out until each of its connections times out.
#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_stall_make_way() {
    let rig = Rig::start().await;
    rig.accept(&["alder"]);
    let mut silent = Vec::new();
    for _ in 0..super::super::CONNECTIONS.pending + 50 {
        silent.push(TcpStream::connect(rig.address()).await.unwrap());
    }
    rig.site("alder").report(v1::ReportRequest::default()).await.unwrap();
    // The oldest was closed; nobody waited for its time to end.
    let mut first = silent.remove(0);
    assert_eq!(first.read(&mut [0; 1]).await.unwrap_or(0), 0);
}

/// A hospital whose agent connects again and again holds no more than its own connections, and no other one's.
#[tokio::test(flavor = "multi_thread")]
async fn a_hospital_has_only_so_many_connections_and_watches() {
    let rig = Rig::start().await;
    rig.accept(&["alder", "birch"]);
    rig.hub.publish(&name("alder"), items(&[]));
    let identity = rig.pki.site("alder");
    let mut clients = Vec::new();
    for _ in 0..super::super::CONNECTIONS.each {
        let mut client = rig.client(Some(identity.clone()));
        let mut stream = client.watch(watch()).await.unwrap().into_inner();
        stream.message().await.unwrap().unwrap();
        clients.push((client, stream));
    }
    let beyond = rig.client(Some(identity)).report(v1::ReportRequest::default()).await.unwrap_err();
    // The connection ends, so gRPC knows no more than that there is none.
    assert!(matches!(beyond.code(), Code::Unavailable | Code::Unknown | Code::Cancelled), "{beyond}");
    let status = clients[0].0.watch(watch()).await.unwrap_err();
    assert!(status.code() == Code::ResourceExhausted && status.message().contains("watches"), "{status}");
    rig.site("birch").report(v1::ReportRequest::default()).await.unwrap();
    // One that is closed is free again.
    drop(clients.pop());
    let mut again = clients[0].0.watch(watch()).await;
    while again.is_err() {
        tokio::task::yield_now().await;
        again = clients[0].0.watch(watch()).await;
    }
}

/// A volume on which nothing can be written must not keep a hospital's no from being heard.
#[tokio::test]
async fn a_report_is_heard_by_a_hub_that_can_write_nothing() {
    let rig = Rig::start().await;
    rig.accept(&["alder"]);
    rig.spoil("ledgers", b"no folder");
    let ledger = Some(v1::LedgerEnd { entries: 3, head: Digest::of(b"head").to_string() });
    let report = v1::ReportRequest { ledger, revision: 9, ..Default::default() };
    let reply = rig.site("alder").report(report).await.unwrap().into_inner();
    assert!(reply.ledger.is_none(), "what was not kept is not acknowledged");
    assert_eq!(rig.hub.report(&name("alder")).unwrap().0.revision, 9);
}
