//! GPU time that tasks have had: counted from their pods, whatever the hub calls the work, and kept on the agent's volume
//! for as long as a limit looks back.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use serde::{Deserialize, Serialize};

use crate::state::{State, StateError};

/// What a limit of GPU hours looks back on.
const WINDOW: SignedDuration = SignedDuration::from_hours(30 * 24);
/// A pod that runs on is written down this often.
const STEP: SignedDuration = SignedDuration::from_secs(60);
const KEY: &str = "tasks/gpus/";

/// GPUs of one pod, and from when to when it had them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// How many.
    pub gpus: u32,
    /// Since when: the node took the pod.
    pub since: Timestamp,
    /// Until when, as far as was seen.
    pub until: Timestamp,
}

/// What a pod has held; none where it asks for no GPU, or no node has taken it yet.
pub fn of(pod: &Pod, now: Timestamp) -> Option<Held> {
    let asked = |container: &k8s_openapi::api::core::v1::Container| -> u32 {
        let limits = container.resources.as_ref().and_then(|all| all.limits.as_ref());
        limits.and_then(|limits| limits.get("nvidia.com/gpu")?.0.parse().ok()).unwrap_or(0)
    };
    let gpus = pod.spec.as_ref()?.containers.iter().map(asked).sum();
    let status = pod.status.as_ref()?;
    let since = status.start_time.as_ref()?.0;
    let over = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let ends = status.container_statuses.iter().flatten();
    let ends = ends.filter_map(|one| Some(one.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()?.0));
    let until = if over { ends.max().unwrap_or(since) } else { now };
    (gpus > 0).then(|| Held { gpus, since, until: until.max(since) })
}

/// Writes down what pods have held since it was last written.
pub fn record(state: &State, pods: impl Iterator<Item = impl AsRef<Pod>>, now: Timestamp) -> Result<(), StateError> {
    for pod in pods {
        let pod = pod.as_ref();
        let (Some(held), Some(uid)) = (of(pod, now), pod.uid()) else { continue };
        let key = format!("{KEY}{uid}");
        let known = state.blob(&key)?.and_then(|bytes| serde_json::from_slice::<Held>(&bytes).ok());
        let news = known.is_none_or(|known| {
            let more = held.until.duration_since(known.until);
            more >= STEP || (held.until < now && more > SignedDuration::ZERO)
        });
        if news {
            state.put_blob(&key, &serde_json::to_vec(&held).map_err(StateError::damaged(&key))?)?;
        }
    }
    Ok(())
}

/// GPU seconds within the last 30 days. What lies before is forgotten.
pub fn spent(state: &State, now: Timestamp) -> Result<u64, StateError> {
    let begin = now.checked_sub(WINDOW).unwrap_or(Timestamp::MIN);
    let mut seconds = 0u64;
    for (key, bytes) in state.blobs(KEY)? {
        let held: Held = serde_json::from_slice(&bytes).map_err(StateError::damaged(&key))?;
        if held.until < begin {
            state.delete_blob(&key)?;
            continue;
        }
        let within = held.until.duration_since(held.since.max(begin)).as_secs();
        seconds = seconds.saturating_add(u64::from(held.gpus) * u64::try_from(within).unwrap_or(0));
    }
    Ok(seconds)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;

    fn pod(uid: &str, gpus: &str, status: Value) -> Arc<Pod> {
        let limits = json!({"nvidia.com/gpu": gpus, "cpu": "8"});
        let containers = json!([{"name": "trainer", "resources": {"limits": limits}}, {"name": "deliver"}]);
        let pod = json!({"metadata": {"name": uid, "uid": uid}, "spec": {"containers": containers}, "status": status});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn at(hour: i64) -> Timestamp {
        Timestamp::from_second(1_780_000_000 + 3600 * hour).unwrap()
    }

    /// The hub may call its work as it likes and the agent may restart: the hours that a hospital's GPUs were held stay
    /// counted, each once, for thirty days.
    #[test]
    fn gpu_time_is_counted_once_and_survives_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let running = pod("a", "8", json!({"phase": "Running", "startTime": at(0)}));
        let ended = json!({"terminated": {"exitCode": 0, "finishedAt": at(3)}});
        let over = json!({"phase": "Succeeded", "startTime": at(1), "containerStatuses": [{"name": "trainer",
            "image": "i", "imageID": "i", "ready": false, "restartCount": 0, "state": ended}]});
        let waiting = pod("w", "8", json!({"phase": "Pending"}));
        let none = pod("c", "0", json!({"phase": "Running", "startTime": at(0)}));
        let pods = [running.clone(), pod("b", "2", over), waiting, none];
        let state = State::open(folder.path(), [1; 32]).unwrap();
        for hour in [4, 5] {
            record(&state, pods.iter(), at(hour)).unwrap();
            record(&state, pods.iter(), at(hour)).unwrap();
        }
        drop(state);
        let state = State::open(folder.path(), [1; 32]).unwrap();
        let hours = |hour| spent(&state, at(hour)).unwrap() / 3600;
        assert_eq!(hours(5), 8 * 5 + 2 * 2);
        // The pod is removed, and its time is not.
        record(&state, std::iter::empty::<Arc<Pod>>(), at(6)).unwrap();
        assert_eq!(hours(6), 44);
        // A month later the first hours fall out, and then all.
        assert_eq!(hours(30 * 24 + 4), 8);
        assert_eq!(hours(30 * 24 + 6), 0);
        assert!(state.blobs(KEY).unwrap().is_empty(), "what is forgotten takes no room");
    }
}
