//! From scores of cases to the figures of a hospital.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One class in one case. No Dice: the class is in neither mask; no distances: it is missing from at least one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClassScore {
    /// The class, from 1.
    pub class: u8,
    /// 0 to 1.
    pub dice: Option<f64>,
    /// 95th percentile Hausdorff distance, mm.
    pub hd95_mm: Option<f64>,
    /// Average symmetric surface distance, mm.
    pub assd_mm: Option<f64>,
}

/// One case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CaseScore {
    /// The case.
    pub case: String,
    /// The person it is of.
    pub subject: String,
    /// Its classes.
    pub classes: Vec<ClassScore>,
}

/// One class over all cases.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClassSummary {
    /// The class, from 1.
    pub class: u8,
    /// Cases in which it was present in at least one mask.
    pub cases: usize,
    /// Cases of these in which only one of the masks had it.
    pub missed: usize,
    /// Mean over persons of the mean over the person's cases.
    pub dice: f64,
    /// Mean over cases.
    pub dice_by_case: f64,
    /// Mean over persons, mm; over the cases in which both masks have the class, absent when there is none.
    pub hd95_mm: Option<f64>,
    /// The same, mean over cases.
    pub hd95_mm_by_case: Option<f64>,
    /// Mean over persons of the average symmetric surface distance, likewise.
    pub assd_mm: Option<f64>,
    /// The same, mean over cases.
    pub assd_mm_by_case: Option<f64>,
    /// The worst case's Dice.
    pub worst_dice: f64,
}

/// All cases of one hospital or one held-back part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Cases scored.
    pub cases: usize,
    /// Persons they are of.
    pub subjects: usize,
    /// Mean of the classes' Dice; absent when no class was present anywhere.
    pub dice: Option<f64>,
    /// Per class.
    pub classes: Vec<ClassSummary>,
}

/// Means of cases, first within each person and then over persons, so that someone with two scans counts once.
pub fn summarise(cases: &[CaseScore]) -> Summary {
    let mut numbers: Vec<u8> = cases.iter().flat_map(|case| case.classes.iter().map(|score| score.class)).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let classes: Vec<ClassSummary> = numbers.into_iter().filter_map(|class| summarise_class(cases, class)).collect();
    let mut subjects: Vec<&str> = cases.iter().map(|case| case.subject.as_str()).collect();
    subjects.sort_unstable();
    subjects.dedup();
    let dice = (!classes.is_empty()).then(|| classes.iter().map(|c| c.dice).sum::<f64>() / classes.len() as f64);
    Summary { cases: cases.len(), subjects: subjects.len(), dice, classes }
}

fn summarise_class(cases: &[CaseScore], class: u8) -> Option<ClassSummary> {
    let scores: Vec<(&str, &ClassScore)> = cases
        .iter()
        .flat_map(|case| case.classes.iter().map(|score| (case.subject.as_str(), score)))
        .filter(|(_, score)| score.class == class && score.dice.is_some())
        .collect();
    let worst_dice = scores.iter().filter_map(|(_, score)| score.dice).reduce(f64::min)?;
    let mean = |value: fn(&ClassScore) -> Option<f64>| {
        let mut by_subject: BTreeMap<&str, (f64, usize)> = BTreeMap::new();
        for (subject, score) in &scores {
            if let Some(value) = value(score) {
                let entry = by_subject.entry(subject).or_default();
                *entry = (entry.0 + value, entry.1 + 1);
            }
        }
        let total: f64 = by_subject.values().map(|(sum, n)| sum / *n as f64).sum();
        (!by_subject.is_empty()).then(|| total / by_subject.len() as f64)
    };
    let by_case = |value: fn(&ClassScore) -> Option<f64>| {
        let values: Vec<f64> = scores.iter().filter_map(|(_, score)| value(score)).collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    };
    Some(ClassSummary {
        class,
        cases: scores.len(),
        missed: scores.iter().filter(|(_, score)| score.hd95_mm.is_none()).count(),
        dice: mean(|score| score.dice)?,
        dice_by_case: by_case(|score| score.dice)?,
        hd95_mm: mean(|score| score.hd95_mm),
        hd95_mm_by_case: by_case(|score| score.hd95_mm),
        assd_mm: mean(|score| score.assd_mm),
        assd_mm_by_case: by_case(|score| score.assd_mm),
        worst_dice,
    })
}
