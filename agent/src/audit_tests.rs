use consilium_federation::ledger::Countersigned;
use ed25519_dalek::{Signer as _, SigningKey};
use jiff::Timestamp;

use super::*;
use crate::state::Entry;

fn now() -> Timestamp {
    "2026-06-01T12:00:00Z".parse().unwrap()
}

fn refused(n: u32) -> Entry {
    Entry::Stopped { kind: "Job".into(), name: format!("job-{n}"), uid: "u".into(), why: "Disabled\u{1b}[2J".into() }
}

/// A volume with so many entries, countersigned at the fourth.
fn volume(folder: &Path, entries: u32) -> State {
    let state = State::open(folder, [7; 32]).unwrap();
    state.put_blob("site", b"alder").unwrap();
    state.dialed("https://hub.example:443", Digest::of(b"identity"), now()).unwrap();
    state.append(Entry::PolicyInForce { generation: Some(3), uid: None, digest: None, spec: None }, now()).unwrap();
    for n in 2..entries {
        state.append(refused(n), now()).unwrap();
        let end = state.ledger_end().unwrap();
        if end.entries == 4 {
            let signature = key().sign(&end.signed_bytes(&"alder".parse().unwrap()));
            let signature = hex::encode(signature.to_bytes());
            state.put_countersigned(&Countersigned { end, signature, at: now() }).unwrap();
        }
    }
    state
}

fn key() -> SigningKey {
    SigningKey::from_bytes(&[5; 32])
}

fn check(file: &Path, seen: Vec<Digest>) -> Result<String, String> {
    use base64::Engine as _;
    let hub_key = Some(base64::engine::general_purpose::STANDARD.encode(key().verifying_key().to_bytes()));
    Verify { file: file.into(), hub_key, seen }.run(|_| Ok(())).map_err(|error| format!("{error:#}"))
}

/// Information governance checks the file on a machine of its own, and is told in which line it was tampered with.
#[test]
fn a_file_is_checked_with_no_cluster_and_its_fault_is_located() {
    let dir = tempfile::tempdir().unwrap();
    let (state, file) = (volume(&dir.path().join("state"), 1203), dir.path().join("ledger"));
    let mut bytes = Vec::new();
    export(&state, &mut bytes).unwrap();
    std::fs::write(&file, &bytes).unwrap();
    let head = state.head().unwrap();
    let said = check(&file, vec![head]).unwrap();
    assert!(
        said.contains("alder is whole") && said.contains("entry 1203") && said.contains("last with entry 4"),
        "{said}"
    );
    let lines: Vec<&str> = std::str::from_utf8(&bytes).unwrap().lines().collect();
    let with = |change: &dyn Fn(&mut Vec<String>)| {
        let mut lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
        change(&mut lines);
        std::fs::write(&file, lines.join("\n")).unwrap();
        check(&file, vec![]).unwrap_err()
    };
    let edited = with(&|lines| lines[700] = lines[700].replace("job-", "bob-"));
    assert!(edited.contains("line 702") && edited.contains("changed after it was written"), "{edited}");
    let swapped = with(&|lines| lines.swap(20, 21));
    assert!(swapped.contains("line 21") && swapped.contains("another order"), "{swapped}");
    let cut = with(&|lines| lines.truncate(900));
    assert!(cut.contains("line 900") && cut.contains("cut off"), "{cut}");
    let shorter = with(&|lines| drop(lines.remove(1203)));
    assert!(shorter.contains("line 1204") && shorter.contains("follow"), "{shorter}");
    std::fs::write(&file, &bytes).unwrap();
    let other = check(&file, vec![Digest::of(b"noted elsewhere")]).unwrap_err();
    assert!(other.contains("seen elsewhere"), "{other}");
}

/// A ledger that somebody broke is shown as it is: as evidence it must come out of the volume that no agent opens any more.
#[test]
fn a_broken_ledger_comes_out_and_is_found_broken() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, file) = (dir.path().join("state"), dir.path().join("ledger"));
    let state = volume(&folder, 9);
    state.tamper(7, Some(b"{\"seq\":7}"));
    drop(state);
    assert!(matches!(State::open(&folder, [7; 32]), Err(StateError::Ledger { seq: 7, .. })));
    let mut bytes = Vec::new();
    export(&State::open_ledger(&folder).unwrap(), &mut bytes).unwrap();
    std::fs::write(&file, bytes).unwrap();
    let said = check(&file, vec![]).unwrap_err();
    assert!(said.contains("line 9") && said.contains("no entry of a ledger"), "{said}");
    assert!(State::open_ledger(&dir.path().join("none")).is_err(), "no new volume is made by looking at it");
}

/// Whoever reads the list sees by which policy each thing happened and where it went, and no entry can draw on the screen.
#[test]
fn the_list_says_by_which_policy_and_where_to() {
    let dir = tempfile::tempdir().unwrap();
    let (state, file) = (volume(&dir.path().join("state"), 4), dir.path().join("ledger"));
    let vote = Entry::EvaluationSent { round_uid: "r".into(), vote: "Pass".into(), sums: false, published: false };
    state.append(vote, now()).unwrap();
    let mut bytes = Vec::new();
    export(&state, &mut bytes).unwrap();
    std::fs::write(&file, bytes).unwrap();
    let list = |left| {
        let mut out = Vec::new();
        let verify = Verify { file: file.clone(), hub_key: None, seen: vec![] };
        List { verify, left }.run(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    };
    let (all, left) = (list(false), list(true));
    let sent = "5  2026-06-01T12:00:00Z  3  EvaluationSent  https://hub.example:443  published=false round_uid=r";
    assert!(all.lines().count() == 7 && !all.contains('\u{1b}'), "{all}");
    assert!(left.lines().count() == 3 && left.lines().nth(1).is_some_and(|line| line.starts_with("5  ")), "{left}");
    assert!(all.contains("Stopped") && !left.contains("Stopped"), "{left}");
    assert!(all.contains(sent) || all.contains("EvaluationSent  https://hub.example:443"), "{all}");
}

/// The agent holds its volume for itself, and gives the ledger out only by its own socket.
#[tokio::test]
async fn a_running_agent_gives_its_ledger_out() {
    let dir = tempfile::tempdir().unwrap();
    let state = volume(&dir.path().join("state"), 5);
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let give = tokio::spawn(give(state, ours));
    let read = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        theirs.read_to_end(&mut bytes).map(|_| bytes)
    });
    let file = dir.path().join("ledger");
    std::fs::write(&file, read.await.unwrap().unwrap()).unwrap();
    give.await.unwrap().unwrap();
    assert!(check(&file, vec![]).unwrap().contains("entry 5"));
}
