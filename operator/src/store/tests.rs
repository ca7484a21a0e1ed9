use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use consilium_federation::Digest;
use consilium_federation::model::CHUNK_BYTES;
use consilium_federation::round::ProtocolStep;
use consilium_secagg::ids::Digest as ChunkDigest;
use consilium_secagg::upload::chunk_digest;
use serde_json::json;

use super::*;

/// More than any upload here has.
const BYTES: u64 = 1 << 30;

async fn open(folder: &tempfile::TempDir) -> BlobStore {
    BlobStore::open(folder.path()).await.unwrap()
}

fn key(site: &str) -> UploadKey {
    UploadKey { round_uid: "3f0c-1".into(), attempt: 1, site: site.parse().unwrap() }
}

fn chunk(n: u8) -> Bytes {
    vec![n; 1000 + usize::from(n)].into()
}

fn digests(count: u8) -> Vec<ChunkDigest> {
    (0..count).map(|n| chunk_digest(&chunk(n))).collect()
}

/// Every file of the store, relative to its root.
fn files(folder: &tempfile::TempDir) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.path().to_owned()]);
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap().flatten() {
            match entry.path() {
                path if path.is_dir() => folders.push(path),
                path => found.push(path.strip_prefix(folder.path()).unwrap().to_owned()),
            }
        }
    }
    found.sort();
    found
}

fn file_of(folder: &tempfile::TempDir, part: &str) -> PathBuf {
    let all = files(folder);
    let found = all.iter().find(|f| f.to_string_lossy().contains(part));
    folder.path().join(found.unwrap_or_else(|| panic!("{part} is not among {all:?}")))
}

#[tokio::test]
async fn an_object_is_stored_once_and_read_back_verified() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).await;
    let digest = store.put_object(chunk(1)).await.unwrap();
    assert_eq!(digest, Digest::of(&chunk(1)));
    assert_eq!(store.put_object(chunk(1)).await.unwrap(), digest);
    assert_eq!(store.get_object(digest).await.unwrap(), chunk(1));
    assert!(store.has_object(digest).await.unwrap());
    assert!(!store.has_object(Digest::of(b"else")).await.unwrap());
    assert!(matches!(store.get_object(Digest::of(b"else")).await, Err(StoreError::Missing { .. })));
    let value = json!({"b": 1, "a": "x"});
    assert_eq!(store.put_json(&value).await.unwrap(), Digest::of_json(&value));
}

/// A hospital must never be given a damaged model, and sending the right bytes again must mend it.
#[tokio::test]
async fn a_torn_object_is_not_handed_out_and_is_mended_by_writing_it_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).await;
    let digest = store.put_object(chunk(1)).await.unwrap();
    std::fs::write(file_of(&folder, &digest.hex()), &chunk(1)[..500]).unwrap();
    assert!(matches!(store.get_object(digest).await, Err(StoreError::Corrupt { .. })));
    store.put_object(chunk(1)).await.unwrap();
    assert_eq!(store.get_object(digest).await.unwrap(), chunk(1));
    assert_eq!(std::fs::read(file_of(&folder, "torn/")).unwrap(), &chunk(1)[..500]);
}

/// Hospitals tell by the epoch whether the hub lost its journal, and by the boot which assignment is newer.
#[tokio::test]
async fn the_epoch_survives_a_restart_and_the_boot_grows() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).await;
    let epoch = store.epoch().to_owned();
    assert_eq!((epoch.len(), store.next_boot().await.unwrap()), (32, 1));
    let store = open(&folder).await;
    assert_eq!((store.epoch(), store.next_boot().await.unwrap()), (epoch.as_str(), 2));
    assert_eq!(store.next_boot().await.unwrap(), 3);
    assert_eq!(files(&folder).iter().filter(|f| f.starts_with("boots")).count(), 1, "they must not pile up");
    std::fs::write(folder.path().join("epoch"), "torn").unwrap();
    assert_ne!(open(&folder).await.epoch(), epoch, "a store whose identity is damaged is another store");
    assert_ne!(open(&tempfile::tempdir().unwrap()).await.epoch(), epoch);
}

/// The hub is killed after every single step; each time the hospital asks again and sends only what is missing.
#[tokio::test]
async fn a_kill_between_any_two_chunks_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (alder, chunks) = (key("alder"), digests(4));
    let mut sent = Vec::new();
    loop {
        let store = open(&folder).await;
        let missing = store.begin_upload(&alder, &chunks, BYTES).await.unwrap();
        assert_eq!(store.upload_complete(&alder).await.unwrap(), missing.is_empty());
        let Some(&index) = missing.last() else { break };
        sent.push(index);
        let complete = store.put_chunk(&alder, index, chunk(index as u8)).await.unwrap();
        assert_eq!(complete, missing.len() == 1);
        // What a kill in the middle of a write leaves behind must not be taken for a chunk.
        let written = file_of(&folder, &format!("{}/{index}", Digest::of_json(&chunks).hex()));
        std::fs::write(format!("{}#1", written.display()), "half").unwrap();
    }
    assert_eq!(sent, [3, 2, 1, 0], "every chunk exactly once");
}

#[tokio::test]
async fn a_restarted_hub_takes_the_next_chunk_of_an_upload_that_it_has_not_seen() {
    let folder = tempfile::tempdir().unwrap();
    let (alder, chunks) = (key("alder"), digests(2));
    open(&folder).await.begin_upload(&alder, &chunks, BYTES).await.unwrap();
    let store = open(&folder).await;
    assert!(!store.put_chunk(&alder, 0, chunk(0)).await.unwrap());
    assert!(store.put_chunk(&alder, 1, chunk(1)).await.unwrap());
    assert!(store.put_chunk(&alder, 1, chunk(1)).await.unwrap(), "a replay of the last chunk is still complete");
    assert_eq!(store.upload_chunks(&alder).await.unwrap(), chunks);
}

/// All bytes are there and the word that they are is not: without it a round waits for a hospital that has done all.
#[tokio::test]
async fn an_upload_whose_last_word_could_not_be_written_is_finished_when_it_is_asked_for_again() {
    let folder = tempfile::tempdir().unwrap();
    let (alder, chunks) = (key("alder"), digests(1));
    let store = open(&folder).await;
    store.begin_upload(&alder, &chunks, BYTES).await.unwrap();
    let marker = file_of(&folder, "manifest").with_file_name("complete");
    std::fs::create_dir_all(marker.join("in the way")).unwrap();
    store.put_chunk(&alder, 0, chunk(0)).await.unwrap_err();
    std::fs::remove_dir_all(marker).unwrap();
    assert_eq!(store.begin_upload(&alder, &chunks, BYTES).await.unwrap(), [] as [u32; 0]);
    assert!(store.upload_complete(&alder).await.unwrap());
    assert_eq!(store.space().unwrap().1, BYTES, "only the sum is to come");
}

/// Bit rot found when the upload is resumed costs one chunk, not the round.
#[tokio::test]
async fn a_torn_chunk_is_asked_for_again() {
    let folder = tempfile::tempdir().unwrap();
    let (alder, chunks) = (key("alder"), digests(3));
    let store = open(&folder).await;
    store.begin_upload(&alder, &chunks, BYTES).await.unwrap();
    store.put_chunk(&alder, 0, chunk(0)).await.unwrap();
    store.put_chunk(&alder, 1, chunk(1)).await.unwrap();
    let torn = file_of(&folder, &format!("{}/1", Digest::of_json(&chunks).hex()));
    std::fs::write(torn, &chunk(1)[..10]).unwrap();
    assert_eq!(open(&folder).await.begin_upload(&alder, &chunks, BYTES).await.unwrap(), [1, 2]);
}

/// One attempt, one update: a hospital (or someone with its certificate) must not swap what it committed to.
#[tokio::test]
async fn other_content_for_the_same_attempt_is_a_conflict() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).await;
    let alder = key("alder");
    assert!(matches!(store.put_chunk(&alder, 0, chunk(0)).await, Err(StoreError::NotBegun { .. })));
    store.begin_upload(&alder, &digests(2), BYTES).await.unwrap();
    assert_eq!(store.begin_upload(&alder, &digests(2), BYTES).await.unwrap(), [0, 1]);
    assert!(matches!(store.begin_upload(&alder, &digests(3), BYTES).await, Err(StoreError::Conflict { .. })));
    let other = store.put_chunk(&alder, 0, chunk(7)).await.unwrap_err();
    assert!(matches!(other, StoreError::ChunkDigest { index: 0, .. }));
    let beyond = store.put_chunk(&alder, 2, chunk(2)).await.unwrap_err();
    assert!(matches!(beyond, StoreError::NoSuchChunk { index: 2, chunks: 2 }));
    let next = UploadKey { attempt: 2, ..alder };
    assert_eq!(
        store.begin_upload(&next, &digests(3), BYTES).await.unwrap(),
        [0, 1, 2],
        "another attempt is another upload"
    );
    assert!(matches!(store.begin_upload(&next, &[], BYTES).await, Err(StoreError::ChunkCount { .. })));
}

/// A store on a volume with room for so many chunks beside what is kept free.
async fn with_room(folder: &tempfile::TempDir, chunks: u64) -> (BlobStore, Arc<AtomicU64>) {
    let free = Arc::new(AtomicU64::new(RESERVED_BYTES + chunks * CHUNK_BYTES as u64));
    let measure = free.clone();
    let store = BlobStore::open_with(folder.path(), Arc::new(move || Ok(measure.load(Ordering::Relaxed)))).await;
    (store.unwrap(), free)
}

/// Bytes of an upload of two full chunks.
const TWO: u64 = 2 * CHUNK_BYTES as u64;

/// A volume that fills up in the middle of four uploads, or of the sum that all have waited for, would stop all of them,
/// and the journal with them.
#[tokio::test]
async fn an_upload_is_refused_when_its_space_or_that_of_the_sum_is_already_promised() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = with_room(&folder, 5).await;
    store.begin_upload(&key("alder"), &digests(2), TWO).await.unwrap();
    assert_eq!(store.space().unwrap().1, 2 * TWO, "the upload, and as much for what the sum gives");
    let refused = store.begin_upload(&key("birch"), &digests(2), TWO).await.unwrap_err();
    assert!(matches!(refused, StoreError::NoSpace { .. }) && refused.is_transient());
    assert!(!files(&folder).iter().any(|f| f.to_string_lossy().contains("birch")), "nothing is left of a refused one");
    store.put_chunk(&key("alder"), 0, chunk(0)).await.unwrap();
    store.put_chunk(&key("alder"), 1, chunk(1)).await.unwrap();
    assert_eq!(store.begin_upload(&key("birch"), &digests(2), TWO).await.unwrap(), [0, 1]);
    // The sum is still to come: another round's model does not fit beside it.
    let other = UploadKey { round_uid: "other".into(), ..key("alder") };
    assert!(matches!(store.begin_upload(&other, &digests(2), TWO).await, Err(StoreError::NoSpace { .. })));
    store.delete_round_uploads("3f0c-1").await.unwrap();
    assert_eq!(store.space().unwrap().1, 0, "what was promised for a round goes with it");
    store.begin_upload(&other, &digests(2), TWO).await.unwrap();
}

/// The evaluation of two hundred hospitals is a few kilobytes: it must not ask for the room of full chunks.
#[tokio::test]
async fn an_upload_is_promised_the_bytes_that_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = with_room(&folder, 1).await;
    for n in 0..200 {
        store.begin_upload(&key(&format!("site-{n}")), &digests(2), 128).await.unwrap();
    }
}

/// Attempts that came to nothing would hold their uploads for as long as the round lasts, and their promises with them.
#[tokio::test]
async fn the_uploads_of_a_burned_attempt_are_deleted_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = with_room(&folder, 12).await;
    let next = UploadKey { attempt: 2, ..key("alder") };
    for upload in [&key("alder"), &key("birch"), &next] {
        store.begin_upload(upload, &digests(2), TWO).await.unwrap();
        store.put_chunk(upload, 0, chunk(0)).await.unwrap();
    }
    store.delete_attempts("3f0c-1", 1).await.unwrap();
    assert_eq!(store.space().unwrap().1, TWO + CHUNK_BYTES as u64);
    assert!(matches!(store.put_chunk(&key("alder"), 1, chunk(1)).await, Err(StoreError::NotBegun { .. })));
    assert!(store.put_chunk(&next, 1, chunk(1)).await.unwrap());
    assert!(!files(&folder).iter().any(|f| f.starts_with("rounds/3f0c-1/1")));
}

#[tokio::test]
async fn what_is_reserved_is_free_again_when_it_is_not_needed() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = with_room(&folder, 2).await;
    let held = store.reserve(TWO).unwrap();
    assert!(matches!(store.reserve(1), Err(StoreError::NoSpace { .. })));
    drop(held);
    store.reserve(TWO).unwrap();
}

/// A resumed upload is looked through, which takes seconds for a large one: chunks of other hospitals go on meanwhile.
#[tokio::test]
async fn a_turn_of_one_upload_holds_up_no_other_one() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).await;
    for site in ["alder", "birch"] {
        store.begin_upload(&key(site), &digests(2), BYTES).await.unwrap();
    }
    let turn = store.hold(&key("alder"));
    let _held = turn.write().await;
    store.put_chunk(&key("birch"), 0, chunk(0)).await.unwrap();
    use futures::FutureExt as _;
    assert!(store.put_chunk(&key("alder"), 0, chunk(0)).now_or_never().is_none());
}

#[tokio::test]
async fn what_was_uploaded_for_a_round_goes_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).await;
    let other = UploadKey { round_uid: "other".into(), ..key("alder") };
    for upload in [&key("alder"), &key("birch"), &other] {
        store.begin_upload(upload, &digests(2), BYTES).await.unwrap();
        store.put_chunk(upload, 0, chunk(0)).await.unwrap();
    }
    let written = file_of(&folder, "alder/manifest");
    std::fs::write(format!("{}#1", written.display()), "half").unwrap();
    store.delete_round_uploads("3f0c-1").await.unwrap();
    store.delete_round_uploads("3f0c-1").await.unwrap();
    let left = files(&folder).iter().filter(|f| f.starts_with("rounds")).count();
    assert_eq!(left, 2, "only the other round's manifest and chunk");
    assert!(matches!(store.put_chunk(&key("alder"), 1, chunk(1)).await, Err(StoreError::NotBegun { .. })));
    assert!(!store.put_chunk(&other, 0, chunk(0)).await.unwrap());
}

#[tokio::test]
async fn an_archived_round_is_never_replaced_unless_torn() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).await;
    let record = json!({"round": 1, "outcome": "Completed"});
    store.archive("study-1", 1, &record).await.unwrap();
    store.archive("study-1", 1, &record).await.unwrap();
    let other = store.archive("study-1", 1, &json!({"round": 2})).await.unwrap_err();
    assert!(matches!(other, StoreError::Conflict { .. }) && !other.is_transient());
    std::fs::write(folder.path().join("archive/study-1/1"), "torn").unwrap();
    store.archive("study-1", 1, &record).await.unwrap();
}

/// Names from an API object or a certificate must not lead out of their folder.
#[tokio::test]
async fn names_that_mean_something_in_a_path_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).await;
    for bad in ["", "..", "a/b", "a#1", &"x".repeat(64)] {
        assert!(matches!(store.delete_round_uploads(bad).await, Err(StoreError::Name { .. })), "{bad}");
        assert!(matches!(store.archive(bad, 1, &json!({})).await, Err(StoreError::Name { .. })), "{bad}");
        let upload = UploadKey { round_uid: bad.into(), ..key("alder") };
        assert!(matches!(store.begin_upload(&upload, &digests(1), BYTES).await, Err(StoreError::Name { .. })), "{bad}");
    }
}

/// Half-written objects of killed hubs would fill the volume over the years.
#[tokio::test]
async fn what_a_kill_left_half_written_is_swept_at_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let digest = open(&folder).await.put_object(chunk(1)).await.unwrap();
    let half = format!("{}#1", file_of(&folder, &digest.hex()).display());
    std::fs::write(&half, "half").unwrap();
    let store = open(&folder).await;
    assert!(!std::path::Path::new(&half).exists());
    assert_eq!(store.get_object(digest).await.unwrap(), chunk(1));
}

/// Two different adverts of one hospital in one attempt would be two sessions; a message that a crash tore is asked for
/// again instead of blocking the hospital for good.
#[tokio::test]
async fn a_message_is_written_once_and_torn_ones_are_sent_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).await;
    let alder = key("alder");
    assert_eq!(store.message(&alder, ProtocolStep::Share).await.unwrap(), None);
    for _ in 0..2 {
        store.put_message(&alder, ProtocolStep::Share, b"shares").await.unwrap();
    }
    let other = store.put_message(&alder, ProtocolStep::Share, b"others").await;
    assert!(matches!(other, Err(StoreError::Conflict { .. })));
    store.put_message(&alder, ProtocolStep::Agree, b"others").await.unwrap();
    let store = open(&folder).await;
    assert_eq!(store.message(&alder, ProtocolStep::Share).await.unwrap().unwrap(), "shares");
    let sent = store.messages_of(&alder.round_uid, 1, ProtocolStep::Share).await.unwrap();
    assert_eq!(sent, std::slice::from_ref(&alder.site));
    let file = file_of(&folder, "share/alder");
    std::fs::write(&file, b"torn").unwrap();
    assert_eq!(store.message(&alder, ProtocolStep::Share).await.unwrap(), None);
    store.put_message(&alder, ProtocolStep::Share, b"shares").await.unwrap();
    assert_eq!(store.message(&alder, ProtocolStep::Share).await.unwrap().unwrap(), "shares");
}
