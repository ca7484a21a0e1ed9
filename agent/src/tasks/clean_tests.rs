use std::sync::Arc;

use serde_json::json;

use super::*;

fn folder(task_uid: &str, claim: &str) -> Folder {
    Folder { task_uid: task_uid.into(), claim: claim.into() }
}

fn all(folders: &[Folder]) -> BTreeSet<Folder> {
    folders.iter().cloned().collect()
}

/// A restart of the agent, or a RoundTask deleted by hand, must not leave a patient's segmentation on the claim for ever.
#[test]
fn a_folder_is_known_until_it_is_gone_whatever_happens_to_its_task() {
    let volume = tempfile::tempdir().unwrap();
    let (first, second) = (folder("a", "work"), folder("b", "other"));
    let state = State::open(volume.path(), [7; 32]).unwrap();
    remember(&state, &first).unwrap();
    remember(&state, &second).unwrap();
    remember(&state, &first).unwrap();
    assert_eq!(known(&state).unwrap(), all(&[first.clone(), second.clone()]));
    forget(&state, &first).unwrap();
    assert_eq!(known(&state).unwrap(), all(&[second]));
}

/// A clean-up must never take the folder of a task that exists or whose pod has not ended, nor forget one it did not see
/// go.
#[test]
fn only_what_nobody_uses_is_removed_and_forgotten_once_it_is_gone() {
    let known = all(&[folder("a", "work"), folder("b", "work"), folder("c", "other"), folder("live", "work")]);
    let in_use = |uid: &str| uid == "live";
    let started = decide(&known, in_use, None);
    assert_eq!(started, Some(Act::Start(vec![folder("a", "work"), folder("b", "work")])));
    assert_eq!(decide(&all(&[folder("live", "work")]), in_use, None), None);
    let job = |end, deleting| CleanSeen { folders: vec![folder("a", "work")], end, deleting };
    assert_eq!(decide(&known, in_use, Some(&job(None, false))), None);
    assert_eq!(decide(&known, in_use, Some(&job(Some(true), true))), None);
    assert_eq!(decide(&known, in_use, Some(&job(Some(false), false))), Some(Act::Again));
    let done = Some(Act::Finish(vec![folder("a", "work")]));
    assert_eq!(decide(&known, in_use, Some(&job(Some(true), false))), done);
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
    let seen = |job: &Job| see(&[Arc::new(job.clone())]).unwrap();
    assert_eq!(seen(&job), CleanSeen { folders: due.to_vec(), end: None, deleting: false });
    let condition = json!({"conditions": [{"type": "Complete", "status": "True"}]});
    job.status = Some(serde_json::from_value(condition).unwrap());
    assert_eq!(seen(&job).end, Some(true));
    assert!(see(&[Arc::new(Job::default())]).is_none());
}
