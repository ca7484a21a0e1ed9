//! The desired state on the wire.

use consilium_federation::Digest;
use consilium_federation::approval::Approval;
use consilium_federation::assignment::{Assignment, DeployWork, Item, MAX_ITEMS, RoundWork, Work};
use consilium_federation::stage_approval::{MAX_STAGE_APPROVALS, StageApproval, Terms};

use crate::text::{WireError, digests, read, spell, uid};
use crate::v1;

impl From<&Assignment> for v1::Assignment {
    fn from(a: &Assignment) -> Self {
        Self {
            hub_epoch: a.hub_epoch.clone(),
            revision: a.revision,
            items: a.items.iter().map(Into::into).collect(),
            rosters: a.rosters.iter().map(ToString::to_string).collect(),
            // Said by whoever sends it: it is of the message, and not of what is asked for.
            hub_time: String::new(),
        }
    }
}

impl From<&Item> for v1::Item {
    fn from(item: &Item) -> Self {
        let work = match &item.work {
            Work::Round(round) => v1::item::Work::Round(round.into()),
            Work::Deploy(deploy) => v1::item::Work::Deploy(deploy.into()),
        };
        Self { uid: item.uid.clone(), state: spell(item.state), work: Some(work) }
    }
}

impl From<&RoundWork> for v1::RoundWork {
    fn from(w: &RoundWork) -> Self {
        Self {
            study: w.study.to_string(),
            study_uid: w.study_uid.clone(),
            spec_digest: w.spec_digest.to_string(),
            round: w.round,
            kind: spell(w.kind),
            model: w.model.to_string(),
            schema: w.schema.to_string(),
            roster_size: w.roster_size,
            attempt: w.attempt,
            step: w.step.map(spell).unwrap_or_default(),
            roster: w.roster.map(|d| d.to_string()).unwrap_or_default(),
            inputs: w.inputs.map(|d| d.to_string()).unwrap_or_default(),
            deadline: w.deadline.to_string(),
        }
    }
}

impl From<&DeployWork> for v1::DeployWork {
    fn from(w: &DeployWork) -> Self {
        let approval = |a: &Approval| v1::Approval {
            key_id: a.key_id.clone(),
            role: a.role.clone(),
            expiry: a.expiry.to_string(),
            signature: a.signature.clone(),
        };
        Self {
            release: w.release.clone(),
            release_digest: w.release_digest.to_string(),
            model: w.model.to_string(),
            stage: spell(w.stage),
            approvals: w.approvals.iter().map(approval).collect(),
            plan: w.plan.map(|plan| plan.to_string()).unwrap_or_default(),
            stage_approvals: w.stage_approvals.iter().map(Into::into).collect(),
        }
    }
}

impl From<&StageApproval> for v1::StageApproval {
    fn from(a: &StageApproval) -> Self {
        let Terms { model, pipeline, plan, stage, hospital, evidence, expiry } = &a.terms;
        Self {
            key_id: a.key_id.clone(),
            role: a.role.clone(),
            model: model.to_string(),
            pipeline: pipeline.to_string(),
            plan: plan.to_string(),
            stage: spell(stage),
            hospital: hospital.to_string(),
            evidence: evidence.to_string(),
            expiry: expiry.to_string(),
            signature: a.signature.clone(),
        }
    }
}

impl TryFrom<v1::Assignment> for Assignment {
    type Error = WireError;
    fn try_from(a: v1::Assignment) -> Result<Self, WireError> {
        if a.items.len() > MAX_ITEMS {
            return Err(WireError::new("items", a.items.len(), format!("at most {MAX_ITEMS} items")));
        }
        let items = a.items.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?;
        Ok(Self { hub_epoch: a.hub_epoch, revision: a.revision, rosters: digests("rosters", &a.rosters)?, items })
    }
}

impl TryFrom<v1::Item> for Item {
    type Error = WireError;
    fn try_from(item: v1::Item) -> Result<Self, WireError> {
        let uid = uid("items.uid", item.uid)?;
        let work = match item.work.ok_or_else(|| WireError::missing("items.work"))? {
            v1::item::Work::Round(round) => Work::Round(round.try_into()?),
            v1::item::Work::Deploy(deploy) => Work::Deploy(deploy.try_into()?),
        };
        Ok(Self { uid, state: read("items.state", &item.state)?, work })
    }
}

impl TryFrom<v1::RoundWork> for RoundWork {
    type Error = WireError;
    fn try_from(w: v1::RoundWork) -> Result<Self, WireError> {
        let some = |field, text: &str| -> Result<Option<Digest>, WireError> {
            if text.is_empty() { Ok(None) } else { read(field, text).map(Some) }
        };
        let step = if w.step.is_empty() { None } else { Some(read("round.step", &w.step)?) };
        Ok(Self {
            study: w.study.parse().map_err(|e| WireError::new("round.study", &w.study, e))?,
            study_uid: uid("round.study_uid", w.study_uid)?,
            spec_digest: read("round.spec_digest", &w.spec_digest)?,
            round: w.round,
            kind: read("round.kind", &w.kind)?,
            model: read("round.model", &w.model)?,
            schema: read("round.schema", &w.schema)?,
            roster_size: w.roster_size,
            attempt: w.attempt,
            step,
            roster: some("round.roster", &w.roster)?,
            inputs: some("round.inputs", &w.inputs)?,
            deadline: w.deadline.parse().map_err(|e| WireError::new("round.deadline", &w.deadline, e))?,
        })
    }
}

/// Approvals of one promotion, and the lengths of what is in them: as the API bounds them at the hub. A hospital keeps
/// what it is asked for, so a hub must not be able to ask in megabytes.
const MAX_APPROVALS: usize = 20;
const MAX_RELEASE: usize = 253;
const MAX_LABEL: usize = 63;
const MAX_SIGNATURE: usize = 88;

fn short(field: &'static str, text: String, most: usize) -> Result<String, WireError> {
    if text.len() <= most { Ok(text) } else { Err(WireError::new(field, text, format!("at most {most} bytes"))) }
}

impl TryFrom<v1::DeployWork> for DeployWork {
    type Error = WireError;
    fn try_from(w: v1::DeployWork) -> Result<Self, WireError> {
        let approval = |a: v1::Approval| {
            let expiry = a.expiry.parse().map_err(|e| WireError::new("deploy.approvals.expiry", &a.expiry, e))?;
            Ok(Approval {
                key_id: short("deploy.approvals.key_id", a.key_id, MAX_LABEL)?,
                role: short("deploy.approvals.role", a.role, MAX_LABEL)?,
                expiry,
                signature: short("deploy.approvals.signature", a.signature, MAX_SIGNATURE)?,
            })
        };
        if w.approvals.len() > MAX_APPROVALS {
            let rule = format!("at most {MAX_APPROVALS} approvals");
            return Err(WireError::new("deploy.approvals", w.approvals.len(), rule));
        }
        if w.stage_approvals.len() > MAX_STAGE_APPROVALS {
            let rule = format!("at most {MAX_STAGE_APPROVALS} approvals");
            return Err(WireError::new("deploy.stage_approvals", w.stage_approvals.len(), rule));
        }
        Ok(Self {
            release: short("deploy.release", w.release, MAX_RELEASE)?,
            release_digest: read("deploy.release_digest", &w.release_digest)?,
            model: read("deploy.model", &w.model)?,
            stage: read("deploy.stage", &w.stage)?,
            approvals: w.approvals.into_iter().map(approval).collect::<Result<_, WireError>>()?,
            plan: if w.plan.is_empty() { None } else { Some(read("deploy.plan", &w.plan)?) },
            // One that is not understood counts for nothing, and must not keep what else is asked from being heard.
            stage_approvals: w.stage_approvals.into_iter().filter_map(|a| a.try_into().ok()).collect(),
        })
    }
}

impl TryFrom<v1::StageApproval> for StageApproval {
    type Error = WireError;
    fn try_from(a: v1::StageApproval) -> Result<Self, WireError> {
        let at = "deploy.stage_approvals";
        let terms = Terms {
            model: read(at, &a.model)?,
            pipeline: read(at, &a.pipeline)?,
            plan: read(at, &a.plan)?,
            stage: read(at, &a.stage)?,
            hospital: read(at, &a.hospital)?,
            evidence: read(at, &a.evidence)?,
            expiry: a.expiry.parse().map_err(|e| WireError::new(at, &a.expiry, e))?,
        };
        Ok(Self {
            key_id: short(at, a.key_id, MAX_LABEL)?,
            role: short(at, a.role, MAX_LABEL)?,
            terms,
            signature: short(at, a.signature, MAX_SIGNATURE)?,
        })
    }
}
