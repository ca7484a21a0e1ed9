//! What the hub sees of a hospital. Pure.

use consilium_crds::conditions::{ACCEPTED, Conditions, READY, STALLED, status_of};
use consilium_crds::{TrustSite, TrustSiteStatus};
use consilium_federation::clock::OtherClock;
use consilium_proto::TWO_AGENTS;
use jiff::{SignedDuration, Timestamp};

use crate::controllers::write::Note;

const NOT_ACCEPTED: &str =
    "spec.accepted is false: the gateway refuses every call of this hospital; set it to true to let it in";

/// Whether the hospital's clock and the hub's show one time.
const CLOCK: &str = "ClockInSync";

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
    /// What is known of its clock.
    pub clock: OtherClock,
    /// Two agents speak for it, in words.
    pub two_agents: Option<String>,
}

/// The status, and what people should hear.
pub fn decide(site: &TrustSite, facts: &Facts, now: Timestamp) -> (TrustSiteStatus, Vec<Note>) {
    let known = site.status.clone().unwrap_or_default();
    let mut conditions = Conditions::from_status(&known.conditions, site.metadata.generation, now);
    let mut notes = Vec::new();
    let accepted = site.spec.accepted;
    if accepted {
        conditions.set(ACCEPTED, true, "Accepted", "the gateway lets this hospital in");
    } else {
        conditions.set(ACCEPTED, false, "NotAccepted", NOT_ACCEPTED);
    }
    match facts.two_agents.as_ref().filter(|_| accepted) {
        Some(words) => {
            conditions.set(READY, false, TWO_AGENTS, words).set(STALLED, true, TWO_AGENTS, words);
        }
        None => {
            let words = if accepted { "the gateway lets this hospital in" } else { NOT_ACCEPTED };
            conditions.set(READY, true, "InForce", words).clear(STALLED);
        }
    }
    in_sync(&mut conditions, facts.clock);
    let connected = accepted && facts.connected && facts.two_agents.is_none();
    if let Some(words) = facts.two_agents.as_ref().filter(|_| accepted) {
        conditions.set("Connected", false, TWO_AGENTS, words);
    } else if connected {
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
    if let (Some(words), false) =
        (facts.two_agents.as_ref().filter(|_| accepted), status_of(&known.conditions, STALLED) == Some("True"))
    {
        notes.push(Note::warning(TWO_AGENTS, words.clone()));
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

/// Set once the hospital's clock is known.
fn in_sync(conditions: &mut Conditions, clock: OtherClock) {
    match (clock.in_sync(), clock.distance()) {
        (Some(true), _) => {
            conditions.set(CLOCK, true, "InSync", "the hospital's clock and the hub's show one time");
        }
        (Some(false), Some(distance)) => {
            let side = if clock.now(Timestamp::UNIX_EPOCH) > Timestamp::UNIX_EPOCH { "ahead of" } else { "behind" };
            let message = format!(
                "the hospital's clock is {distance} {side} the hub's: one of the two is wrong. Its trainings are not ended by \
                 that; its approvals and leases go by its own clock"
            );
            conditions.set(CLOCK, false, "Apart", message);
        }
        _ => {}
    }
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
        Facts { connected, last_contact: Some(at(contact)), agent_version: Some("0.1.0".into()), ..Facts::default() }
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

    /// A hospital's people and the hub's must read that two agents are at work, and nobody that all is well.
    #[test]
    fn two_agents_are_told_once_and_cleared() {
        let two = Facts { two_agents: Some("two agents speak".into()), ..facts(true, 0) };
        let (alder, _, notes) = after(site(true), &two, 0);
        let list = &alder.status.as_ref().unwrap().conditions;
        let of = |type_| status_of(list, type_);
        assert_eq!((of(READY), of(STALLED), of("Connected")), (Some("False"), Some("True"), Some("False")));
        assert!(notes.iter().any(|note| note.reason == "TwoAgents" && note.warning));
        let (alder, changed, notes) = after(alder, &two, 10);
        assert!(!changed && notes.is_empty(), "{notes:?}");
        let (alder, ..) = after(alder, &facts(true, 20), 20);
        let list = &alder.status.as_ref().unwrap().conditions;
        assert_eq!((status_of(list, STALLED), status_of(list, READY)), (None, Some("True")));
    }

    /// Hours of skew must be seen at the hub too, and jitter must not be a write each time.
    #[test]
    fn a_clock_that_is_off_is_a_condition() {
        let off = |seconds| Facts { clock: OtherClock::Ahead(SignedDuration::from_secs(seconds)), ..facts(true, 0) };
        let (alder, ..) = after(site(true), &off(3 * 3600), 0);
        let found = alder.status.as_ref().unwrap().conditions.iter().find(|c| c.type_ == CLOCK).unwrap().clone();
        assert!(found.status == "False" && found.message.contains("3 h 0 min ahead of"), "{}", found.message);
        assert!(!after(alder.clone(), &off(3 * 3600), 9).1);
        let (alder, ..) = after(alder, &off(-2), 10);
        assert_eq!(status_of(&alder.status.unwrap().conditions, CLOCK), Some("True"));
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
