//! The leases on which models answer and the stages on which they stand: which pods are to be told, and what. Pure.
//!
//! Both stand in annotations of a model's pod, which the node shows to the server in it. A dead agent renews no lease.

use std::collections::BTreeSet;
use std::sync::Arc;

use consilium_federation::ladder::Stage;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use super::decide::Stop;
use crate::deployments::{LEASE, STAGE};
use crate::policy::Told;

/// What is to be written on a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) pod: String,
    /// Its lease; none: it keeps the one that it has.
    pub(super) until: Option<Timestamp>,
    /// Its stage; none: it has been told.
    pub(super) stage: Option<Stage>,
}

/// What the leases are measured by.
pub(super) struct Terms {
    /// How long one is.
    pub(super) length: SignedDuration,
    /// The time.
    pub(super) now: Timestamp,
    /// This agent is about to end: whoever comes after it finds every lease as long as it may be.
    pub(super) last: bool,
}

/// What to write now: on pods that nothing tells to stop, a lease of which a tenth is gone, or that is longer than it may
/// be, and a stage that is another one. No lease reaches beyond the moment at which what the pod is `told` no longer holds;
/// one of whose model nobody can say that is not renewed.
pub(super) fn due(pods: &[Arc<Pod>], stops: &[Stop], terms: &Terms, told: impl Fn(&Pod) -> Option<Told>) -> Vec<Lease> {
    let stopped: BTreeSet<&str> = stops.iter().map(|stop| stop.uid.as_str()).collect();
    let stays = |pod: &&Arc<Pod>| {
        pod.metadata.deletion_timestamp.is_none() && !pod.uid().is_some_and(|uid| stopped.contains(uid.as_str()))
    };
    let lease = |pod: &Arc<Pod>| {
        let told = told(pod);
        let until = until(pod, terms, told.and_then(|told| told.until));
        let known = pod.annotations().get(STAGE).map(String::as_str);
        let stage = told.map(|told| told.stage).filter(|stage| known != Some(stage.as_str()));
        (until.is_some() || stage.is_some()).then(|| Lease { pod: pod.name_any(), until, stage })
    };
    pods.iter().filter(stays).filter_map(lease).collect()
}

/// The lease that a pod is due.
fn until(pod: &Pod, terms: &Terms, holds: Option<Timestamp>) -> Option<Timestamp> {
    let &Terms { length, now, last } = terms;
    // Whole seconds, so that two looks within one write the same.
    let second = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let longest = second.checked_add(length).unwrap_or(second);
    let known = pod.annotations().get(LEASE).and_then(|text| text.parse::<Timestamp>().ok());
    let until = holds.map_or(longest, |holds| holds.min(longest));
    let due = match known {
        Some(known) if known > until => true,
        Some(known) => holds.is_some() && known < until && (last || known.duration_since(now) < length * 9 / 10),
        None => holds.is_some(),
    };
    due.then_some(until)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::decide::Kind;
    use super::*;

    const NOW: &str = "2026-06-01T12:00:00.4Z";

    /// A pod that has been told that its model stands on Shadow.
    fn pod(name: &str, lease: Option<&str>) -> Arc<Pod> {
        let annotations = match lease {
            Some(text) => json!({ (LEASE): text, (STAGE): "Shadow" }),
            None => json!({ (STAGE): "Shadow" }),
        };
        let pod = json!({"metadata": {"name": name, "uid": format!("{name}-uid"), "annotations": annotations}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn holds(until: Option<Timestamp>) -> Option<Told> {
        Some(Told { stage: Stage::Shadow, until })
    }

    fn terms(last: bool) -> Terms {
        Terms { length: SignedDuration::from_mins(15), now: NOW.parse().unwrap(), last }
    }

    fn names(pods: &[Arc<Pod>], stops: &[Stop]) -> Vec<String> {
        let leases = due(pods, stops, &terms(false), |_| holds(Some(Timestamp::MAX)));
        let until: Timestamp = "2026-06-01T12:15:00Z".parse().unwrap();
        assert!(leases.iter().all(|lease| lease.until == Some(until)), "{leases:?}");
        leases.into_iter().map(|lease| lease.pod).collect()
    }

    /// A model would drop out of care although its hospital wants it, or a write for each would go out every 3 seconds.
    #[test]
    fn a_lease_is_renewed_in_time_and_not_all_the_time() {
        let pods = [
            pod("new", None),
            pod("fresh", Some("2026-06-01T12:14:00Z")),
            pod("a-tenth-gone", Some("2026-06-01T12:13:00Z")),
            pod("expired", Some("2026-06-01T11:00:00Z")),
            pod("unreadable", Some("soon")),
        ];
        assert_eq!(names(&pods, &[]), ["new", "a-tenth-gone", "expired", "unreadable"]);
    }

    /// A hospital that shortens the lease means from now on.
    #[test]
    fn a_lease_longer_than_the_policy_gives_is_cut() {
        assert_eq!(names(&[pod("long", Some("2026-06-02T12:00:00Z"))], &[]), ["long"]);
    }

    /// What must stop would be told to go on in the same breath.
    #[test]
    fn what_must_stop_or_goes_gets_none() {
        let stop = Stop { kind: Kind::Pod, name: "a".into(), uid: "a-uid".into(), why: "w".into(), behind: vec![] };
        let mut going = pod("going", None);
        let at = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(NOW.parse().unwrap());
        Arc::make_mut(&mut going).metadata.deletion_timestamp = Some(at);
        assert_eq!(names(&[pod("a", None), going, pod("b", None)], &[stop]), ["b"]);
    }

    fn given(lease: Option<&str>, holds: Option<&str>) -> Option<String> {
        let told = holds.and_then(|at| super::tests::holds(Some(at.parse().unwrap())));
        let leases = due(&[pod("a", lease)], &[], &terms(false), |_| told);
        leases.first().and_then(|lease| lease.until).map(|until| until.to_string())
    }

    /// The agent dies in the minute in which an approval ends: its model must not answer a quarter of an hour longer.
    #[test]
    fn no_lease_reaches_beyond_the_approvals() {
        let ends = "2026-06-01T12:05:00Z";
        assert_eq!(given(None, Some(ends)).as_deref(), Some(ends));
        assert_eq!(given(Some("2026-06-01T12:14:00Z"), Some(ends)).as_deref(), Some(ends));
        assert_eq!(given(Some(ends), Some(ends)), None, "one write is enough");
    }

    /// After an upgrade of the agent its first looks find models of whose approvals nobody has told yet. They neither lose
    /// what they have nor get more; and one that has more than the hospital gives loses that all the same.
    #[test]
    fn what_nobody_vouches_for_lives_on_what_it_has() {
        assert_eq!(given(Some("2026-06-01T12:04:00Z"), None), None);
        assert_eq!(given(None, None), None);
        assert_eq!(given(Some("2099-06-01T12:04:00Z"), None).as_deref(), Some("2026-06-01T12:15:00Z"));
    }

    /// An upgrade of the agent takes a minute, and so long is the lease: two thirds of it were left at times, and the model
    /// dropped out of care with every upgrade. It now has nine tenths at any time, and all of it when the agent is told to
    /// end.
    #[test]
    fn an_agent_that_ends_leaves_every_lease_whole() {
        let pods = [pod("fresh", Some("2026-06-01T12:14:00Z")), pod("whole", Some("2026-06-01T12:15:00Z"))];
        let held = |last, until: &str| {
            let told = holds(Some(until.parse().unwrap()));
            let leases = due(&pods, &[], &terms(last), |_| told);
            leases.into_iter().map(|lease| lease.pod).collect::<Vec<_>>()
        };
        assert_eq!(held(false, "2027-01-01T00:00:00Z"), <[&str; 0]>::default());
        assert_eq!(held(true, "2027-01-01T00:00:00Z"), ["fresh"]);
        assert_eq!(held(true, "2026-06-01T12:14:00Z"), ["whole"], "and none beyond its approvals");
        let stop =
            Stop { kind: Kind::Pod, name: "fresh".into(), uid: "fresh-uid".into(), why: "w".into(), behind: vec![] };
        assert!(due(&pods, &[stop], &terms(true), |_| holds(Some(Timestamp::MAX))).is_empty());
    }

    /// A model whose approvals have ended falls, and its pod goes on: it must hear of it at this very look, whatever is
    /// left of its lease, and not at each look anew.
    #[test]
    fn a_pod_is_told_another_stage_at_once_and_the_same_one_never() {
        let fresh = [pod("a", Some("2026-06-01T12:15:00Z"))];
        let tell = |stage, until: Option<Timestamp>| due(&fresh, &[], &terms(false), |_| Some(Told { stage, until }));
        assert_eq!(tell(Stage::Shadow, Some(Timestamp::MAX)), []);
        let moved = tell(Stage::SafetyNet, Some(Timestamp::MAX));
        assert_eq!(moved, [Lease { pod: "a".into(), until: None, stage: Some(Stage::SafetyNet) }]);
        // Of whose word nobody can say, it is told Shadow, and its lease stays as it is.
        let mut raised = fresh.clone();
        Arc::make_mut(&mut raised[0]).annotations_mut().insert(STAGE.into(), "Triage".into());
        assert_eq!(
            due(&raised, &[], &terms(false), |_| holds(None)),
            [Lease { pod: "a".into(), until: None, stage: Some(Stage::Shadow) }]
        );
    }
}
