//! What the hub sees of a hospital. Pure.

use consilium_crds::conditions::{ACCEPTED, Conditions, READY, status_of};
use consilium_crds::{TrustSite, TrustSiteStatus};
use jiff::{SignedDuration, Timestamp};

use crate::controllers::write::Note;

/// How often the last contact is written while nothing else changes.
pub const REFRESH: SignedDuration = SignedDuration::from_mins(5);

/// Everything that was read for one turn.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Its watch is open.
    pub connected: bool,
    /// When it last called.
    pub last_contact: Option<Timestamp>,
    /// Version of its agent, by its last report.
    pub agent_version: Option<String>,
}

/// The status, and what people should hear.
pub fn decide(site: &TrustSite, facts: &Facts, now: Timestamp) -> (TrustSiteStatus, Vec<Note>) {
    let known = site.status.clone().unwrap_or_default();
    let mut conditions = Conditions::from_status(&known.conditions, site.metadata.generation, now);
    let mut notes = Vec::new();
    let accepted = site.spec.accepted;
    if accepted {
        conditions.set(ACCEPTED, true, "Accepted", "the gateway lets this hospital in");
        conditions.set(READY, true, "InForce", "the gateway lets this hospital in");
    } else {
        let message =
            "spec.accepted is false: the gateway refuses every call of this hospital; set it to true to let it in";
        conditions.set(ACCEPTED, false, "NotAccepted", message).set(READY, true, "InForce", message);
    }
    let connected = accepted && facts.connected;
    if connected {
        conditions.set("Connected", true, "WatchOpen", "the hospital's agent is connected");
    } else {
        let message =
            "the hospital's agent is not connected; nothing can dial it, see its log for what keeps it from dialling";
        conditions.set("Connected", false, "NoWatch", if accepted { message } else { "the hospital is not accepted" });
    }
    let before = status_of(&known.conditions, "Connected");
    let turned = before != Some(if connected { "True" } else { "False" });
    if turned && (connected || before.is_some()) {
        notes.push(if connected {
            Note::normal("Connected", "the hospital's agent connected")
        } else {
            Note::warning("Disconnected", "the hospital's agent is no longer connected")
        });
    }
    let due = match (known.last_contact_time, facts.last_contact) {
        (Some(old), Some(new)) => turned || new.duration_since(old) >= REFRESH,
        (None, Some(_)) => true,
        (_, None) => false,
    };
    let version = facts.agent_version.as_ref().filter(|v| !v.is_empty());
    let status = TrustSiteStatus {
        observed_generation: site.metadata.generation,
        agent_version: version.cloned().or(known.agent_version),
        last_contact_time: if due { facts.last_contact } else { known.last_contact_time },
        conditions: conditions.into_list(),
    };
    (status, notes)
}

#[cfg(test)]
mod tests {
    use consilium_crds::TrustSiteSpec;

    use super::*;
    use crate::controllers::testing::at;

    fn site(accepted: bool) -> TrustSite {
        TrustSite::new("alder", TrustSiteSpec { accepted, ..TrustSiteSpec::default() })
    }

    fn facts(connected: bool, contact: i64) -> Facts {
        Facts { connected, last_contact: Some(at(contact)), agent_version: Some("0.1.0".into()) }
    }

    fn after(mut site: TrustSite, facts: &Facts, now: i64) -> (TrustSite, bool, Vec<Note>) {
        let (status, notes) = decide(&site, facts, at(now));
        let changed = site.status.as_ref() != Some(&status);
        site.status = Some(status);
        (site, changed, notes)
    }

    /// A thousand hospitals that report twice a minute must not be a thousand writes to etcd each time.
    #[test]
    fn a_report_is_written_on_a_transition_and_every_five_minutes() {
        let (alder, changed, notes) = after(site(true), &facts(true, 0), 0);
        assert!(changed);
        assert_eq!(notes[0].reason, "Connected");
        let (alder, changed, notes) = after(alder, &facts(true, 30), 30);
        assert!(!changed && notes.is_empty());
        let (alder, changed, _) = after(alder, &facts(true, 300), 300);
        assert!(changed);
        assert_eq!(alder.status.as_ref().unwrap().last_contact_time, Some(at(300)));
        let (alder, changed, notes) = after(alder, &facts(false, 310), 311);
        assert!(changed);
        assert_eq!((notes[0].reason, notes[0].warning), ("Disconnected", true));
        assert_eq!(alder.status.unwrap().last_contact_time, Some(at(310)));
    }

    #[test]
    fn a_new_hospital_that_has_not_called_yet_is_no_warning() {
        let (alder, _, notes) = after(site(true), &Facts::default(), 0);
        assert!(notes.is_empty());
        let status = alder.status.unwrap();
        assert_eq!(status_of(&status.conditions, "Connected"), Some("False"));
        assert_eq!(status_of(&status.conditions, READY), Some("True"));
    }

    #[test]
    fn a_revoked_hospital_is_shown_as_cut_off() {
        let (alder, ..) = after(site(true), &facts(true, 0), 0);
        let revoked = TrustSite { spec: TrustSiteSpec { accepted: false, ..alder.spec }, ..alder };
        let (revoked, _, notes) = after(revoked, &facts(true, 5), 5);
        let status = revoked.status.unwrap();
        assert_eq!(status_of(&status.conditions, ACCEPTED), Some("False"));
        assert_eq!(status_of(&status.conditions, "Connected"), Some("False"));
        assert_eq!(notes[0].reason, "Disconnected");
    }
}
