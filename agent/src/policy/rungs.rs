//! The rungs of the veto ladder, one function each. `Err` holds the refusal.

use consilium_crds::site_policy::{Hardware, SitePolicySpec, StudyApproval};
use consilium_crds::study::{ProtocolKind, Secure, Trainer};
use consilium_crds::values;
use consilium_crds::{FederatedStudySpec, RoundTaskSpec};
use consilium_federation::assignment::RoundWork;
use consilium_federation::round::SiteReason;
use consilium_federation::task::TaskKind;
use consilium_federation::{Digest, StudyKey};

use super::standing::{self, Room};
use super::{Barrier, Decision, opt_in};
use crate::Enforcement;

pub(super) type Rung = Result<(), Decision>;

pub(super) fn deny(message: String) -> Decision {
    Decision::refused(SiteReason::DeniedByPolicy, message)
}

/// A round of a study, as the hub asks for it or as a task here was made for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    study: &'a StudyKey,
    study_uid: &'a str,
    spec_digest: Digest,
    round: u32,
}

impl<'a> Asked<'a> {
    /// What the hub asks for.
    pub(super) fn of(work: &'a RoundWork) -> Self {
        Self { study: &work.study, study_uid: &work.study_uid, spec_digest: work.spec_digest, round: work.round }
    }

    /// What a task here was made for.
    pub(super) fn of_task(task: &'a RoundTaskSpec) -> Self {
        Self { study: &task.study, study_uid: &task.study_uid, spec_digest: task.spec_digest, round: task.round }
    }
}

/// Opted in by namespace/name, then UID, then spec digest, then approval.
pub(super) fn opted_in(work: &Asked<'_>, policy: &SitePolicySpec) -> Rung {
    let study = work.study;
    let entry = opt_in(policy, study).ok_or_else(|| {
        deny(format!(
            "SitePolicy spec.studies has no entry for {study}; to take part add one with uid {:?} and specDigest {}",
            work.study_uid, work.spec_digest
        ))
    })?;
    if entry.uid != work.study_uid {
        let message = format!(
            "SitePolicy spec.studies[{study}].uid is {:?} but the hub's study has {:?}: it was deleted and made anew; look at it again and set uid and specDigest ({})",
            entry.uid, work.study_uid, work.spec_digest
        );
        return Err(Decision::refused(SiteReason::SpecChanged, message));
    }
    let earlier = entry.earlier.iter().find(|earlier| earlier.spec_digest == work.spec_digest);
    if let Some(earlier) = earlier.filter(|earlier| work.round > earlier.through_round) {
        let message = format!(
            "SitePolicy spec.studies[{study}].earlier approves {} through round {} and this is round {}; raise its throughRound to take part",
            earlier.spec_digest, earlier.through_round, work.round
        );
        return Err(Decision::refused(SiteReason::SpecChanged, message));
    }
    if earlier.is_none() && entry.spec_digest != work.spec_digest {
        let message = format!(
            "SitePolicy spec.studies[{study}].specDigest is {} but the round runs {}: the study was edited; look at it again and set specDigest to the new one to take part",
            entry.spec_digest, work.spec_digest
        );
        return Err(Decision::refused(SiteReason::SpecChanged, message));
    }
    match entry.approval {
        StudyApproval::Automatic => Ok(()),
        StudyApproval::Denied => Err(deny(format!(
            "SitePolicy spec.studies[{study}].approval is Denied; set it to Automatic or PerRound to take part"
        ))),
        StudyApproval::PerRound => {
            let through = entry.approved_through_round.unwrap_or(0);
            if work.round <= through {
                return Ok(());
            }
            let message = format!(
                "SitePolicy spec.studies[{study}].approvedThroughRound is {through} and this is round {0}; raise it to {0} to take part",
                work.round
            );
            Err(Decision::refused(SiteReason::AwaitingApproval, message))
        }
    }
}

/// Drain finishes what was started; Disabled and a suspension stop everything.
pub(super) fn participation(policy: &SitePolicySpec, barrier: Barrier) -> Rung {
    match (standing::tasks(policy), barrier) {
        (Room::Open, _) | (Room::Kept(_), Barrier::Fetch | Barrier::Upload | Barrier::Amount | Barrier::Admission) => {
            Ok(())
        }
        (Room::Kept(field), Barrier::CreateTask) => {
            Err(deny(format!("SitePolicy {field}: nothing new starts; set it to Enabled to take part")))
        }
        (Room::Closed(field), _) if policy.suspended().tasks => {
            Err(deny(format!("SitePolicy {field}: nothing is trained or evaluated; change that to take part")))
        }
        (Room::Closed(field), _) => Err(deny(format!("SitePolicy {field}; set it to Enabled to take part"))),
    }
}

/// The hub chose which object to send; it must be the one that was approved, understood in full.
pub(super) fn spec_is_the_approved_one(work: &RoundWork, spec: &FederatedStudySpec) -> Rung {
    let found = spec.digest();
    if found == work.spec_digest {
        return Ok(());
    }
    let message = format!(
        "the spec of {} as this agent reads it has the digest {found}, the approved one is {}: it holds fields that this version ({}) does not know, so they could not be honoured; update the agent",
        work.study,
        work.spec_digest,
        crate::VERSION
    );
    Err(Decision::refused(SiteReason::SpecChanged, message))
}

/// What the assignment says beside the spec must lie within it.
pub(super) fn work_fits_spec(work: &RoundWork, spec: &FederatedStudySpec) -> Rung {
    if work.kind == TaskKind::Init {
        return Err(deny(
            "the hub asks for a task of kind Init, which never runs in a hospital; tell the hub's administrators"
                .into(),
        ));
    }
    if work.kind == TaskKind::Evaluate && spec.gate.is_none() {
        return Err(deny(format!(
            "the hub asks to evaluate but the approved spec of {} has no gate; tell the hub's administrators",
            work.study
        )));
    }
    if !(1..=spec.rounds.max).contains(&work.round) {
        return Err(deny(format!(
            "the hub asks for round {} but the approved spec of {} has rounds.max {}; tell the hub's administrators",
            work.round, work.study, spec.rounds.max
        )));
    }
    let (floor, sites) = (spec.aggregation.secure.min_contributors, spec.sites.len() as u32);
    if !(floor..=sites).contains(&work.roster_size) {
        return Err(deny(format!(
            "the hub names a roster of {} hospitals but the approved spec of {} has {sites} and needs at least {floor}; tell the hub's administrators",
            work.roster_size, work.study
        )));
    }
    Ok(())
}

/// The image comes from an allowed place and, if the policy lists digests, is one of them.
pub(super) fn image(image: &str, policy: &SitePolicySpec) -> Rung {
    let digest = image.split_once('@').and_then(|(_, digest)| digest.parse::<Digest>().ok()).ok_or_else(|| {
        deny(format!(
            "image {image:?} of the study is not pinned by digest; the study must name it as registry/name@sha256:…"
        ))
    })?;
    if !policy.registries.iter().any(|prefix| under(image, prefix)) {
        return Err(deny(format!(
            "image {image:?} of the study is under none of SitePolicy spec.registries {:?}; add its prefix to allow it",
            policy.registries
        )));
    }
    if !policy.image_digests.is_empty() && !policy.image_digests.contains(&digest) {
        return Err(deny(format!(
            "image {image:?} of the study is not in SitePolicy spec.imageDigests; add {digest} to allow it"
        )));
    }
    Ok(())
}

/// A prefix ends at a part of the name, so that `registry.example` does not allow `registry.example.evil.org`.
fn under(image: &str, prefix: &str) -> bool {
    let rest = if prefix.is_empty() { None } else { image.strip_prefix(prefix) };
    rest.is_some_and(|rest| prefix.ends_with('/') || rest.starts_with('/') || rest.starts_with('@'))
}

/// The GPU cap.
pub(super) fn gpus(asked: u32, policy: &SitePolicySpec) -> Rung {
    if asked <= policy.max_gpus {
        return Ok(());
    }
    Err(deny(format!(
        "the study asks for {asked} GPUs and SitePolicy spec.maxGPUs is {}; raise it to take part",
        policy.max_gpus
    )))
}

/// The GPU cap, and one kind of accelerator that has all that the study asks for.
pub(super) fn hardware(trainer: &Trainer, policy: &SitePolicySpec) -> Rung {
    gpus(trainer.gpus, policy)?;
    if trainer.gpus == 0 || policy.hardware.iter().any(|kind| fits(trainer, kind)) {
        return Ok(());
    }
    let wants = format!(
        "{} GPUs in one node with memory {} and compute capability {}",
        trainer.gpus,
        trainer.min_gpu_memory.as_deref().unwrap_or("of any size"),
        trainer.min_compute_capability.as_deref().unwrap_or("of any kind"),
    );
    let message = format!(
        "the study asks for {wants}; no entry of SitePolicy spec.hardware has that; declare the hardware if there is some"
    );
    Err(Decision::refused(SiteReason::IncompatibleGPU, message))
}

/// A value that cannot be read does not fit: an error never means yes.
fn fits(trainer: &Trainer, kind: &Hardware) -> bool {
    let memory = |text: &str| values::mebibytes("memory", text).ok();
    let capability = |text: &str| values::compute_capability("computeCapability", text).ok();
    let enough = |need: Option<&str>, have: &str, read: &dyn Fn(&str) -> Option<(u64, u64)>| match need {
        None => true,
        Some(need) => read(need).zip(read(have)).is_some_and(|(need, have)| have >= need),
    };
    let as_pair = |text: &str| memory(text).map(|mib| (mib, 0));
    let as_version = |text: &str| capability(text).map(|(major, minor)| (u64::from(major), u64::from(minor)));
    trainer.gpus <= kind.count
        && enough(trainer.min_gpu_memory.as_deref(), &kind.memory, &as_pair)
        && enough(trainer.min_compute_capability.as_deref(), &kind.compute_capability, &as_version)
}

/// Floors of the aggregation.
pub(super) fn aggregation(secure: &Secure, policy: &SitePolicySpec) -> Rung {
    let floor = policy.aggregation.min_contributors;
    if secure.min_contributors < floor {
        return Err(deny(format!(
            "the study sums from {} hospitals on and SitePolicy spec.aggregation.minContributors is {floor}; lower it to take part, or ask the study to raise its own",
            secure.min_contributors
        )));
    }
    match secure.protocol {
        ProtocolKind::None if !policy.aggregation.allow_plaintext_updates => Err(deny(
            "the study runs with aggregation.secure.protocol None, where the hub can read this hospital's update; set SitePolicy spec.aggregation.allowPlaintextUpdates to true to take part all the same"
                .into(),
        )),
        ProtocolKind::None | ProtocolKind::SecAgg => Ok(()),
    }
}

/// No task starts where its pod could reach the network, and nothing that was trained there leaves. An update from
/// before a restart was trained under an earlier probe.
pub(super) fn network(enforcement: &Enforcement, barrier: Barrier) -> Rung {
    let message = match (enforcement, barrier) {
        (Enforcement::Enforced, _) | (Enforcement::Unknown, Barrier::Upload) => return Ok(()),
        (Enforcement::Unknown, _) => {
            "whether task pods are kept from the network is being probed; no task starts before that is known"
                .to_owned()
        }
        (Enforcement::NotEnforced(what), _) => format!(
            "task pods are not kept from the network ({what}); run a CNI that enforces NetworkPolicy in the task namespace"
        ),
    };
    Err(Decision::refused(SiteReason::NetworkPolicyNotEnforced, message))
}
