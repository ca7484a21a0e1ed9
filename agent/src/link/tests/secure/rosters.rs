//! Whose keys hold, and what else the hospital's own policy asks of a masked study.

use super::*;
use crate::policy::{RosterSeen, SecureFacts};
use crate::state::Closed;

/// Whose keys hold is not the hub's to say.
#[tokio::test]
async fn rosters_that_governance_did_not_sign_or_has_replaced_do_not_hold() {
    let federation = Federation::new(0).await;
    let agent = federation.start(0);
    deliver(&agent.ctx.state, 0);
    let entries = federation.roster.roster.entries.clone();
    let unsigned = federation.hub.keep(sign(4, entries.clone(), Some(&SiteKey::from_seed(&[1; 32]))).to_bytes());
    let work = federation.ask(TaskKind::Train, 1, ProtocolStep::Advertise, None);
    federation.publish_to(&["alder"], &work, vec![unsigned]);
    let awaits = |words: &'static str| {
        move |entry: &Entry| {
            matches!(entry, Entry::Decision { allowed: false, reason, message, .. }
                if reason == "AwaitingRoster" && message.contains(words))
        }
    };
    until_entry(&agent, "the wait", awaits("no roster")).await;
    let trouble = |agent: &Agent, words: &'static str| {
        let facts = agent.ctx.facts.clone();
        until("the trouble", agent.ctx.facts.changed(), move |_: &u64| {
            facts.roster_trouble().is_some_and(|why| why.contains(words))
        })
    };
    trouble(&agent, "0 valid governance signatures").await;

    let newer = federation.hub.keep(sign(5, entries[1..].to_vec(), Some(&governor())).to_bytes());
    federation.publish_to(&["alder"], &work, vec![newer]);
    until_entry(&agent, "another wait", awaits("does not list this hospital")).await;
    let older = federation.hub.keep(federation.roster.to_bytes());
    federation.publish_to(&["alder"], &work, vec![older]);
    trouble(&agent, "older").await;
    assert_eq!(federation.hub.times("alder", 1, "Advertise"), 0);

    // Other governance: nothing that it did not sign holds any more.
    let mut policy = secure_policy();
    policy.spec.governance.as_mut().unwrap().keys[0].public_key =
        consilium_crds::roster::key_text(&SiteKey::from_seed(&[8; 32]).public());
    federation.hospitals[0].policy.send_replace(Some(Arc::new(policy)));
    let facts = agent.ctx.facts.clone();
    until("nothing holds", agent.ctx.facts.changed(), move |_: &u64| facts.rosters().is_empty()).await;
}

fn closed(resumed: Option<u32>) -> Option<Closed> {
    Some(Closed { study: secure_work().study, uid: "uid-1".into(), resumed })
}

/// The rungs of a masked study, each with the words that its people need.
#[test]
fn the_rungs_of_masked_studies_refuse_and_say_what_would_help() {
    let (spec, roster) = (secure_spec(), Digest::of(b"roster"));
    let ask = |edit: &dyn Fn(&mut SitePolicy, &mut SecureFacts, &mut RoundWork)| {
        let mut policy = secure_policy();
        let mut work = secure_work();
        let mut facts = SecureFacts {
            rosters: vec![RosterSeen { digest: roster, version: 3, lists_us: true }],
            ..SecureFacts::default()
        };
        edit(&mut policy, &mut facts, &mut work);
        let decision = crate::policy::ladder(&crate::policy::LadderInputs {
            work: &work,
            policy: Some(&policy.spec),
            spec: Some(&spec),
            enforcement: &Enforcement::Enforced,
            secure: &facts,
            barrier: crate::Barrier::Upload,
        });
        (decision.reason_name(), decision.message().unwrap_or_default().to_owned())
    };
    assert_eq!(ask(&|_, _, _| {}).0, "Allowed");
    assert_eq!(ask(&|_, _, work| work.roster = Some(roster)).0, "Allowed");
    type Edit = dyn Fn(&mut SitePolicy, &mut SecureFacts, &mut RoundWork);
    assert_eq!(
        ask(&|p, f, _| {
            p.spec.studies[0].resume_after_round = Some(2);
            f.closed = closed(Some(1));
        })
        .0,
        "Allowed"
    );
    let rows: [(&Edit, &str, &[&str]); 12] = [
        (&|p, _, _| p.spec.governance = None, "DeniedByPolicy", &["spec.governance", "out of band"]),
        (&|p, _, _| p.spec.governance.as_mut().unwrap().keys[0].public_key = "x".into(), "DeniedByPolicy", &["chair"]),
        (&|p, _, _| p.spec.aggregation.colluders = 2, "DeniedByPolicy", &["colluders is 2", "withstands 1"]),
        (&|p, _, _| p.spec.aggregation.min_contributors = 4, "DeniedByPolicy", &["minContributors is 4"]),
        (&|_, f, _| f.closed = closed(None), "DeniedByPolicy", &["StateRolledBack", "resumeAfterRound"]),
        (
            &|p, f, _| {
                p.spec.studies[0].resume_after_round = Some(2);
                f.closed = closed(Some(2));
            },
            "DeniedByPolicy",
            &["StateRolledBack", "higher than 2"],
        ),
        (
            &|p, f, _| {
                p.spec.studies[0].resume_after_round = Some(3);
                f.closed = closed(None);
            },
            "DeniedByPolicy",
            &["resumeAfterRound is 3", "from round 4 on"],
        ),
        (&|_, f, _| f.released = Some("5e55".into()), "DeniedByPolicy", &["session 5e55", "second sum"]),
        (&|_, f, _| f.rosters.clear(), "AwaitingRoster", &["no roster", "status.signingKey"]),
        (&|_, f, _| f.rosters[0].lists_us = false, "AwaitingRoster", &["version 3 does not list"]),
        (&|_, _, w| w.roster = Some(Digest::of(b"other")), "AwaitingRoster", &["does not hold here"]),
        (
            &|p, _, _| p.spec.participation = consilium_crds::site_policy::Participation::Disabled,
            "DeniedByPolicy",
            &["Disabled"],
        ),
    ];
    for (edit, reason, words) in rows {
        let (found, message) = ask(edit);
        assert_eq!(found, reason, "{message}");
        words.iter().for_each(|word| assert!(message.contains(word), "{word:?} is not in {message:?}"));
    }
}
