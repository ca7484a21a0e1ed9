//! Approvals: whose word counts, for what. Each wrong one is something that a hub, or a thief of an old file, may try.

use super::*;
use crate::testing::{sign, subject};

const LATER: &str = "2027-01-01T00:00:00Z";

fn terms() -> Terms {
    Terms {
        model: subject().model,
        pipeline: subject().pipeline,
        plan: Digest::of(b"plan"),
        stage: Stage::Prioritisation,
        hospital: Hospitals::One("alder".parse().unwrap()),
        evidence: Digest::of(b"release evidence"),
        expiry: LATER.parse().unwrap(),
    }
}

fn approve(key: u8, id: &str, role: &str, terms: Terms) -> StageApproval {
    let signature = sign(key, &terms.signed_bytes());
    StageApproval { key_id: id.into(), role: role.into(), terms, signature }
}

fn verify(approvals: &[StageApproval], first: &[Approval]) -> (Vec<Valid>, Vec<String>) {
    let key = |n: u8, id: &str, role: &str| crate::testing::trusted(n, id, role);
    let keys = [key(1, "mary", "clinical-safety-officer"), key(2, "ola", "radiologist")];
    let own = [Digest::of(b"own evidence")];
    let presented = Presented {
        approvals,
        first,
        release_evidence: Digest::of(b"release evidence"),
        own_evidence: &own,
        keys: &keys,
    };
    presented.verify(&subject(), Some(Digest::of(b"plan")))
}

/// Golden: what people sign with other tools, and what they have signed, is over these bytes.
#[test]
fn the_signed_bytes_are_for_ever() {
    let text = String::from_utf8(terms().signed_bytes()).unwrap();
    let expected = "consilium/approval/v2\n\
        sha256:9372c470eeadd5ecd9c3c74c2b3cb633f8e2f2fad799250a0f70d652b6b825e4\n\
        sha256:23bf0d244a4cb62c85fc3aa0e8ebf8eb7eb970522a51326adf1ac015fc738c7c\n\
        sha256:64879f7d6b960a01909762d911a32d4582c20010c5641ee90278b644a9e3b525\n\
        Prioritisation\n\
        alder\n\
        sha256:55721654f9f5ee40e2acd466f488de43bcf890ee0d7fcb20272c5bfd0708ea8c\n\
        2027-01-01T00:00:00Z\n";
    assert_eq!(text, expected);
    // By another implementation, `cryptography` in Python, with the private key 01…01.
    assert_eq!(
        sign(1, text.as_bytes()),
        "M14RXMgdFQAl3MuyesB1/JhO4HPF/6bc5CtTc8VwFSxCBMdC2/ueRf3laV64G1zSQLN04N0GcLVF2ueOxy9+Cg=="
    );
    let all = Terms { hospital: Hospitals::All, ..terms() };
    assert!(String::from_utf8(all.signed_bytes()).unwrap().contains("\nPrioritisation\n*\n"));
}

#[test]
fn an_approval_counts_by_its_own_terms() {
    let good = approve(1, "mary", "clinical-safety-officer", terms());
    let (valid, faults) = verify(std::slice::from_ref(&good), &[]);
    assert_eq!((valid.len(), valid[0].stage, faults.len()), (1, Stage::Prioritisation, 0));
    for terms in
        [Terms { hospital: Hospitals::All, ..terms() }, Terms { evidence: Digest::of(b"own evidence"), ..terms() }]
    {
        assert_eq!(verify(&[approve(1, "mary", "clinical-safety-officer", terms)], &[]).0.len(), 1);
    }
    let json = serde_json::to_value(&good).unwrap();
    assert_eq!(serde_json::from_value::<StageApproval>(json).unwrap(), good);
}

#[test]
fn what_is_not_for_this_model_plan_hospital_and_evidence_counts_for_nothing() {
    let officer = "clinical-safety-officer";
    let x = Digest::of(b"x");
    let mut edited = approve(1, "mary", officer, terms());
    edited.terms.stage = Stage::PrimaryReader;
    let mut longer = approve(1, "mary", officer, terms());
    longer.terms.expiry = "2037-01-01T00:00:00Z".parse().unwrap();
    let mut garbage = approve(1, "mary", officer, terms());
    garbage.signature = "!".into();
    for (wrong, why) in [
        (approve(1, "mary", officer, Terms { model: x, ..terms() }), "for model"),
        (approve(1, "mary", officer, Terms { pipeline: x, ..terms() }), "for pipeline"),
        (approve(1, "mary", officer, Terms { plan: x, ..terms() }), "for plan"),
        (approve(1, "mary", officer, Terms { hospital: Hospitals::One("birch".parse().unwrap()), ..terms() }), "birch"),
        (approve(1, "mary", officer, Terms { evidence: x, ..terms() }), "cannot show"),
        (approve(2, "mary", officer, terms()), "not over these terms"),
        (approve(1, "mary", "radiologist", terms()), "may sign as"),
        (approve(3, "mallory", officer, terms()), "not in the policy"),
        (edited, "not over these terms"),
        (longer, "not over these terms"),
        (garbage, "not base64"),
    ] {
        let (valid, faults) = verify(&[wrong], &[]);
        assert!(valid.is_empty() && faults[0].contains(why), "{faults:?} lacks {why:?}");
    }
}

/// Signatures of before there were plans were made without one: they are for looking on.
#[test]
fn an_approval_of_the_first_kind_stands_for_shadow_whatever_it_was_signed_for() {
    let expiry: Timestamp = LATER.parse().unwrap();
    let old = |stage: Stage, evidence: &[u8]| Approval {
        key_id: "mary".into(),
        role: "clinical-safety-officer".into(),
        expiry,
        signature: sign(1, &first_bytes(subject().model, stage, Digest::of(evidence), expiry)),
    };
    for stage in Stage::ALL {
        let (valid, _) = verify(&[], &[old(stage, b"release evidence")]);
        assert_eq!(valid[0].stage, Stage::Shadow);
    }
    assert!(verify(&[], &[old(Stage::Shadow, b"other evidence")]).0.is_empty());
}

/// A hub that sends a million approvals must not cost a hospital a million verifications, nor gain by it.
#[test]
fn a_bound_of_approvals_is_looked_at() {
    let many = vec![approve(1, "mary", "clinical-safety-officer", terms()); MAX_APPROVALS + 10];
    assert_eq!(verify(&many, &[]).0.len(), MAX_APPROVALS);
}

#[test]
fn hospitals_are_one_or_all() {
    assert_eq!(Hospitals::try_from("*".to_owned()), Ok(Hospitals::All));
    assert!(Hospitals::try_from("al der".to_owned()).is_err());
}
