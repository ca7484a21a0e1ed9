//! What a hospital keeps of each case. It never leaves: no names, no UIDs, no accession numbers, no free text.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use consilium_federation::Digest;
use consilium_federation::ladder::Stage;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::values::{Name, Share};

/// Names of measured quantities, and of dimensions, that one case may have.
pub const MAX_NAMES: usize = 16;

/// A study or a patient under a secret of the hospital: HMAC-SHA-256 of the UID, 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pseudonym([u8; 32]);

impl Pseudonym {
    /// From the raw HMAC.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Is the result of this case held back until the read is signed? As many as `share` says, chosen by the pseudonym:
    /// nobody can choose, and the same case is always chosen.
    pub fn held_back(&self, share: Share) -> bool {
        let mut first = [0; 8];
        first.copy_from_slice(&self.0[..8]);
        // The upper 53 bits are exact as a double.
        ((u64::from_be_bytes(first) >> 11) as f64) < share.value() * (1u64 << 53) as f64
    }
}

/// The text is no pseudonym.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a pseudonym is 64 lower-case hexadecimal digits")]
pub struct PseudonymError;

impl FromStr for Pseudonym {
    type Err = PseudonymError;
    fn from_str(text: &str) -> Result<Self, PseudonymError> {
        let mut bytes = [0; 32];
        let lower = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        hex::decode_to_slice(text, &mut bytes).ok().filter(|()| lower).map(|()| Self(bytes)).ok_or(PseudonymError)
    }
}

impl TryFrom<String> for Pseudonym {
    type Error = PseudonymError;
    fn try_from(text: String) -> Result<Self, PseudonymError> {
        text.parse()
    }
}

impl From<Pseudonym> for String {
    fn from(pseudonym: Pseudonym) -> Self {
        hex::encode(pseudonym.0)
    }
}

impl fmt::Debug for Pseudonym {
    /// Enough to tell two apart; not enough to look one up.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}…", hex::encode(&self.0[..4]))
    }
}

/// What became of a case.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// The model answered.
    Result {
        /// Whether it found something.
        finding: bool,
        /// When the answer was there.
        at: Timestamp,
    },
    /// The scan is not what the plan's scope admits; the model was not asked.
    OutOfScope,
    /// The model was asked and no usable answer came.
    Failed,
}

/// Where truth comes from, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Source {
    /// A label that the report was given, posted by accession number.
    ReportLabel,
    /// A coded finding in a verified structured report.
    CodedReport,
    /// A structure that a reader drew or corrected, in the same frame of reference.
    CorrectedStructure,
    /// Pathology or follow-up: independent of the read.
    FollowUp,
}

/// Whether the finding is there, by one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Truth {
    /// Who says so.
    pub source: Source,
    /// It is there.
    pub present: bool,
}

/// One case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CaseRecord {
    /// Whose.
    pub patient: Pseudonym,
    /// Digest of the pipeline that ran, see [`crate::pipeline::Pipeline`].
    pub pipeline: Digest,
    /// The stage that the model stood on then.
    pub stage: Stage,
    /// When the series was complete.
    pub complete_at: Timestamp,
    /// What became of it.
    pub outcome: Outcome,
    /// When a clinician signed the read.
    pub read_at: Option<Timestamp>,
    /// When the result became visible to whoever reads; never for Shadow.
    pub shown_at: Option<Timestamp>,
    /// What is known of the truth.
    pub truths: Vec<Truth>,
    /// Measured against truth: Dice, volume error in millilitres… finite numbers.
    pub metrics: BTreeMap<Name, f64>,
    /// Dimension to group: `sex: F`.
    pub groups: BTreeMap<Name, Name>,
}

impl CaseRecord {
    /// The read was signed before the result was visible.
    pub fn blinded(&self) -> bool {
        self.read_at.is_some_and(|read| self.shown_at.is_none_or(|shown| read < shown))
    }

    /// The strongest truth that counts as a measure of the model. What a reader said counts only if the reader did not
    /// see the result; pathology and follow-up count always.
    pub fn usable_truth(&self) -> Option<bool> {
        let blinded = self.blinded();
        let usable = self.truths.iter().filter(|truth| blinded || truth.source == Source::FollowUp);
        usable.max().map(|truth| truth.present)
    }

    /// The strongest word of a reader, who may have seen the result.
    pub fn readers_word(&self) -> Option<bool> {
        let read = self.truths.iter().filter(|truth| truth.source != Source::FollowUp);
        read.max().map(|truth| truth.present)
    }

    /// The model's finding and its seconds, where there is a result.
    pub fn result(&self) -> Option<(bool, f64)> {
        match self.outcome {
            Outcome::Result { finding, at } => Some((finding, at.duration_since(self.complete_at).as_secs_f64())),
            Outcome::OutOfScope | Outcome::Failed => None,
        }
    }

    /// The day (UTC) as days since 1970.
    pub fn day(&self) -> i64 {
        self.complete_at.as_second().div_euclid(86_400)
    }

    /// Refuses what a worker must not post.
    ///
    /// # Errors
    /// In words that name the field, the value and the rule.
    pub fn check(&self) -> Result<(), String> {
        for (field, n) in
            [("metrics", self.metrics.len()), ("groups", self.groups.len()), ("truths", self.truths.len())]
        {
            if n > MAX_NAMES {
                return Err(format!("{field} has {n} entries: a case may have {MAX_NAMES}"));
            }
        }
        if let Some((name, value)) = self.metrics.iter().find(|(_, value)| !value.is_finite()) {
            return Err(format!("metrics.{name} is {value}: write a finite number, or leave it out"));
        }
        match self.result() {
            Some((_, seconds)) if seconds < 0.0 => {
                Err(format!("outcome.at lies {} s before completeAt: check the worker's clock", -seconds))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn record() -> CaseRecord {
        CaseRecord {
            patient: Pseudonym::from_bytes([1; 32]),
            pipeline: Digest::of(b"pipeline"),
            stage: Stage::Shadow,
            complete_at: at(1000),
            outcome: Outcome::Result { finding: true, at: at(1030) },
            read_at: Some(at(2000)),
            shown_at: None,
            truths: vec![],
            metrics: BTreeMap::new(),
            groups: BTreeMap::new(),
        }
    }

    /// A reader who saw the answer is led by it: to count that as proof lets a model prove itself.
    #[test]
    fn a_reader_s_word_is_proof_only_when_the_answer_was_not_visible() {
        let word = |source, present| Truth { source, present };
        let mut case = record();
        case.truths = vec![word(Source::CodedReport, true), word(Source::ReportLabel, false)];
        assert_eq!((case.blinded(), case.usable_truth()), (true, Some(true)));
        case.shown_at = Some(at(1500));
        assert_eq!((case.blinded(), case.usable_truth(), case.readers_word()), (false, None, Some(true)));
        case.truths.push(word(Source::FollowUp, false));
        assert_eq!(case.usable_truth(), Some(false), "pathology is independent of the read");
        case.shown_at = Some(at(2000));
        assert!(!case.blinded(), "at the same moment is not before");
        case.read_at = None;
        assert!(!case.blinded(), "nobody has read it");
    }

    /// The hospital's own share is held back, and nobody chooses which cases.
    #[test]
    fn a_share_of_the_cases_is_held_back() {
        let pick = |n: u32| Pseudonym::from_bytes(*Digest::of(&n.to_be_bytes()).as_bytes());
        let held = |share: &str| (0..20_000).filter(|n| pick(*n).held_back(share.parse().unwrap())).count();
        assert_eq!((held("0"), held("1")), (0, 20_000));
        assert!((1850..2150).contains(&held("0.1")), "{}", held("0.1"));
    }

    #[test]
    fn what_a_worker_must_not_post_is_refused_in_words() {
        let mut case = record();
        assert_eq!(case.check(), Ok(()));
        case.outcome = Outcome::Result { finding: true, at: at(990) };
        assert!(case.check().unwrap_err().contains("10 s before"));
        case = record();
        case.metrics.insert("dice".parse().unwrap(), f64::NAN);
        assert!(case.check().unwrap_err().contains("metrics.dice"));
        case = record();
        case.truths = vec![Truth { source: Source::FollowUp, present: true }; 17];
        assert!(case.check().unwrap_err().contains("truths has 17"));
    }

    #[test]
    fn a_pseudonym_is_kept_as_text_and_shown_in_part() {
        let pseudonym = Pseudonym::from_bytes([0xab; 32]);
        let text = serde_json::to_string(&pseudonym).unwrap();
        assert_eq!(serde_json::from_str::<Pseudonym>(&text).unwrap(), pseudonym);
        assert_eq!(format!("{pseudonym:?}"), "abababab…");
        assert!("AB".repeat(32).parse::<Pseudonym>().is_err());
        assert!("ab".parse::<Pseudonym>().is_err());
    }
}
