use std::sync::Arc;

use serde_json::json;

use super::*;

fn folder(task_uid: &str, claim: &str) -> Folder {
    Folder { task_uid: task_uid.into(), claim: claim.into() }
}

fn all(folders: &[Folder]) -> Known {
    folders.iter().cloned().map(|folder| (folder, History::default())).collect()
}

fn at(minute: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + 60 * minute).unwrap()
}

fn job(folders: &[Folder], end: Option<bool>) -> CleanSeen {
    CleanSeen { name: "j".into(), folders: folders.to_vec(), end, deleting: false, queued: None }
}

fn start(folders: &[Folder]) -> Act {
    Act::Start { folders: folders.to_vec(), without_queue: false }
}

/// A restart of the agent, or a RoundTask deleted by hand, must not leave a patient's segmentation on the claim for ever;
/// and a folder that an older agent wrote down is one too.
#[test]
fn a_folder_is_known_until_it_is_gone_whatever_happens_to_its_task() {
    let volume = tempfile::tempdir().unwrap();
    let (first, second) = (folder("a", "work"), folder("b", "other"));
    let state = State::open(volume.path(), [7; 32]).unwrap();
    let tried = History { since: Some(at(0)), tries: 3, ..History::default() };
    remember(&state, &first, &History::default()).unwrap();
    state.put_blob(&second.key(), b"").unwrap();
    remember(&state, &first, &tried).unwrap();
    assert_eq!(known(&state).unwrap(), [(first.clone(), tried), (second.clone(), History::default())].into());
    forget(&state, &first).unwrap();
    assert_eq!(known(&state).unwrap(), all(&[second]));
}

/// A clean-up must never take the folder of a task that exists or whose pod has not ended, nor forget one it did not see
/// go.
#[test]
fn only_what_nobody_uses_is_removed_and_forgotten_once_it_is_gone() {
    let (a, b) = (folder("a", "work"), folder("b", "work"));
    let known = all(&[a.clone(), b.clone(), folder("live", "work")]);
    let in_use = |uid: &str| uid == "live";
    assert_eq!(decide(&known, in_use, &[], at(0)), [start(&[a.clone(), b.clone()])]);
    assert_eq!(decide(&all(&[folder("live", "work")]), in_use, &[], at(0)), []);
    assert_eq!(decide(&known, in_use, &[job(std::slice::from_ref(&a), None)], at(0)), []);
    let removed = CleanSeen { deleting: true, ..job(std::slice::from_ref(&a), Some(true)) };
    assert_eq!(decide(&known, in_use, &[removed], at(0)), []);
    let done = Act::Finish { job: "j".into(), folders: vec![a.clone()] };
    assert_eq!(decide(&known, in_use, &[job(&[a], Some(true))], at(0)), [done]);
}

/// A work claim that somebody deleted held up the removal of segmentations from all others for an hour, again and again.
#[test]
fn a_claim_that_is_gone_holds_up_no_other() {
    let (gone, here) = (folder("a", "gone"), folder("b", "here"));
    let known = all(&[gone.clone(), here.clone()]);
    let stuck = job(std::slice::from_ref(&gone), None);
    assert_eq!(decide(&known, |_| false, &[stuck], at(0)), [start(std::slice::from_ref(&here))]);
    assert_eq!(decide(&known, |_| false, &[], at(0)), [start(&[gone]), start(&[here])]);
}

/// One folder that cannot be removed (a node's mount gone bad, a file system error) must not keep the others, and more than
/// one Job holds must not wait behind it for ever.
#[test]
fn a_bad_folder_is_soon_alone_and_never_before_a_fresh_one() {
    let mut known = all(&(0..200).map(|n| folder(&format!("{n:03}"), "work")).collect::<Vec<_>>());
    let bad = folder("007", "work");
    let (mut jobs, mut minute) = (0, 0);
    // Each Job that holds the bad folder fails.
    while known.len() > 1 {
        let acts = decide(&known, |_| false, &[], at(minute));
        let [Act::Start { folders, .. }] = &acts[..] else { panic!("{acts:?} at {minute}") };
        jobs += 1;
        assert!(jobs < 20, "{known:?}");
        if !folders.contains(&bad) {
            known.retain(|folder, _| !folders.contains(folder));
            continue;
        }
        let [Act::Again { noted, .. }] = &decide(&known, |_| false, &[job(folders, Some(false))], at(minute))[..]
        else {
            panic!("a failed Job is made anew")
        };
        known.extend(noted.clone());
        minute += 60;
    }
    assert!(known.contains_key(&bad));
    // A fresh one goes before it, at once.
    let fresh = folder("zzz", "work");
    known.insert(fresh.clone(), History::default());
    assert_eq!(decide(&known, |_| false, &[], at(minute)), [start(&[fresh])]);
}

/// Between two tries there is a pause, so that a claim which cannot be mounted is no load; and none is longer than an hour.
#[test]
fn what_failed_is_tried_again_after_a_while() {
    let one = folder("a", "work");
    let due = |tries, minute| {
        let history = History { tries, last: Some(at(0)), ..History::default() };
        !decide(&[(one.clone(), history)].into(), |_| false, &[], at(minute)).is_empty()
    };
    assert_eq!((due(1, 1), due(1, 2), due(3, 7), due(3, 8)), (false, true, false, true));
    assert_eq!((due(4_000_000_000, 59), due(4_000_000_000, 60)), (false, true));
}

/// A queue that lets nothing in (no quota, no flavour for it) would keep patients' segmentations: after ten minutes the
/// clean-up goes past it. One that is suspended by the kill switch has no queue, and waits for whoever stopped it.
#[test]
fn a_queue_that_lets_no_clean_up_in_is_passed() {
    let one = folder("a", "work");
    let known = all(std::slice::from_ref(&one));
    let queued = CleanSeen { queued: Some(at(0)), ..job(std::slice::from_ref(&one), None) };
    assert_eq!(decide(&known, |_| false, std::slice::from_ref(&queued), at(9)), []);
    let acts = decide(&known, |_| false, &[queued], at(10));
    let [Act::Again { noted, .. }] = &acts[..] else { panic!("{acts:?}") };
    assert!(noted[0].1.without_queue && noted[0].1.tries == 0);
    let next = decide(&noted.iter().cloned().collect(), |_| false, &[], at(10));
    assert_eq!(next, [Act::Start { folders: vec![one], without_queue: true }]);
}

/// Whoever is responsible learns that segmentations lie about, how many, where, and how often their removal was tried.
#[test]
fn what_lies_about_too_long_is_told() {
    let gone = History { since: Some(at(0)), tries: 2, ..History::default() };
    let known: Known = [(folder("a", "gone"), gone), (folder("live", "work"), History::default())].into();
    assert_eq!(overdue(&known, OVERDUE, at(24 * 60 - 1)), None);
    let (count, words) = overdue(&known, OVERDUE, at(24 * 60)).unwrap();
    assert!(
        count == 1 && words.contains("claims gone") && words.contains("2 times") && words.contains("24h"),
        "{words}"
    );
}

/// After a restart the agent knows from the Job itself what it has removed.
#[test]
fn the_job_says_what_it_removes() {
    let due = [folder("a", "work"), folder("b", "work")];
    let mut job = build("consilium-tasks", "registry.example/agent@sha256:courier", Some("research"), &due);
    let pod = serde_json::to_value(&job.spec.as_ref().unwrap().template.spec).unwrap();
    let args = json!(["clean", "--claim", "/work", "a", "a-results", "b", "b-results"]);
    assert_eq!(pod["containers"][0]["args"], args);
    assert_eq!((&pod["automountServiceAccountToken"], &pod["containers"][1]), (&json!(false), &json!(null)));
    assert!(!pod.to_string().contains("secret"), "it needs no credential");
    let seen = |job: &Job| see(&[Arc::new(job.clone())]).remove(0);
    let name = job.name_any();
    assert_eq!(seen(&job), CleanSeen { name: name.clone(), ..self::job(&due, None) });
    assert_ne!(build("n", "i", None, &[folder("a", "other")]).name_any(), name, "a claim has a Job of its own");
    job.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(0)));
    job.spec.as_mut().unwrap().suspend = Some(true);
    assert_eq!(seen(&job).queued, Some(at(0)));
    job.labels_mut().remove(QUEUE);
    assert_eq!(seen(&job).queued, None);
    let condition = json!({"conditions": [{"type": "Complete", "status": "True"}]});
    job.status = Some(serde_json::from_value(condition).unwrap());
    assert_eq!(seen(&job).end, Some(true));
    assert!(see(&[Arc::new(Job::default())]).is_empty());
}
