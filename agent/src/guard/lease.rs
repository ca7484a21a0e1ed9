//! The leases on which models answer: which are to be renewed, and until when. Pure.
//!
//! A lease stands in an annotation of a model's pod, which the node shows to the server in it. A dead agent renews none.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use super::decide::Stop;
use crate::deployments::LEASE;

/// A lease that is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) pod: String,
    pub(super) until: Timestamp,
}

/// The leases to write now: of pods that nothing tells to stop, when a third of the time is gone, or when the policy
/// gives less than was given before.
pub(super) fn due(pods: &[Arc<Pod>], stops: &[Stop], length: SignedDuration, now: Timestamp) -> Vec<Lease> {
    let stopped: BTreeSet<&str> = stops.iter().map(|stop| stop.uid.as_str()).collect();
    let stays = |pod: &&Arc<Pod>| {
        pod.metadata.deletion_timestamp.is_none() && !pod.uid().is_some_and(|uid| stopped.contains(uid.as_str()))
    };
    // Whole seconds, so that two looks within one write the same.
    let second = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let until = second.checked_add(length).unwrap_or(second);
    let renew = |pod: &Arc<Pod>| {
        let known = pod.annotations().get(LEASE).and_then(|text| text.parse::<Timestamp>().ok());
        known.is_none_or(|known| known.duration_since(now) < length * 2 / 3 || known > until)
    };
    pods.iter().filter(stays).filter(|pod| renew(pod)).map(|pod| Lease { pod: pod.name_any(), until }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::decide::Kind;
    use super::*;

    const NOW: &str = "2026-06-01T12:00:00.4Z";

    fn pod(name: &str, lease: Option<&str>) -> Arc<Pod> {
        let annotations = lease.map(|text| json!({ (LEASE): text }));
        let pod = json!({"metadata": {"name": name, "uid": format!("{name}-uid"), "annotations": annotations}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn names(pods: &[Arc<Pod>], stops: &[Stop]) -> Vec<String> {
        let leases = due(pods, stops, SignedDuration::from_mins(15), NOW.parse().unwrap());
        let until: Timestamp = "2026-06-01T12:15:00Z".parse().unwrap();
        assert!(leases.iter().all(|lease| lease.until == until), "{leases:?}");
        leases.into_iter().map(|lease| lease.pod).collect()
    }

    /// A model would drop out of care although its hospital wants it, or a write for each would go out every 3 seconds.
    #[test]
    fn a_lease_is_renewed_in_time_and_not_all_the_time() {
        let pods = [
            pod("new", None),
            pod("fresh", Some("2026-06-01T12:14:00Z")),
            pod("a-third-gone", Some("2026-06-01T12:10:00Z")),
            pod("expired", Some("2026-06-01T11:00:00Z")),
            pod("unreadable", Some("soon")),
        ];
        assert_eq!(names(&pods, &[]), ["new", "a-third-gone", "expired", "unreadable"]);
    }

    /// A hospital that shortens the lease means from now on.
    #[test]
    fn a_lease_longer_than_the_policy_gives_is_cut() {
        assert_eq!(names(&[pod("long", Some("2026-06-02T12:00:00Z"))], &[]), ["long"]);
    }

    /// What must stop would be told to go on in the same breath.
    #[test]
    fn what_must_stop_or_goes_gets_none() {
        let stop = Stop { kind: Kind::Pod, name: "a".into(), uid: "a-uid".into(), why: "w".into() };
        let mut going = pod("going", None);
        let at = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(NOW.parse().unwrap());
        Arc::make_mut(&mut going).metadata.deletion_timestamp = Some(at);
        assert_eq!(names(&[pod("a", None), going, pod("b", None)], &[stop]), ["b"]);
    }
}
