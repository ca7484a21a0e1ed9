//! Cutting one public data set into simulated hospitals. These are simulated hospitals: every listing made here says so.

use consilium_imaging::msd::Case;
use consilium_imaging::split::{hold_back, runs};

use crate::error::TrainerError;

/// One simulated hospital's scans.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// The hospital.
    pub name: String,
    /// The acquisition regime its scans have; empty where the data set names none.
    pub regime: String,
    /// To train on.
    pub train: Vec<Case>,
    /// To evaluate on: other persons.
    pub held_back: Vec<Case>,
}

/// Cuts cases into hospitals: four by regime, F in two runs of persons, U, H, in this order for `names`. Where no regime is
/// known, as in the folder that the Decathlon publishes, and for another number of names, into runs of persons.
///
/// Every `every`-th person of the *whole* set is held back first, so that a model trained on all of it (`fit`) and one
/// trained by the hospitals are judged on the same persons.
pub fn by_regime(cases: &[Case], names: &[String], every: usize) -> Result<Vec<Shard>, TrainerError> {
    let (train, held_back) = hold_back(cases, every, None);
    let of_regime = |from: &[Case], regime: &str| -> Vec<Case> {
        from.iter().filter(|case| case.regime.as_deref() == Some(regime)).cloned().collect()
    };
    let known = names.len() == 4 && cases.iter().any(|case| case.regime.is_some());
    let regimes = if known { vec!["F", "F", "U", "H"] } else { vec![""; names.len()] };
    let halves = |from: &[Case]| -> Vec<Vec<Case>> {
        if !known {
            return runs(from, names.len());
        }
        let mut parts = runs(&of_regime(from, "F"), 2);
        parts.extend([of_regime(from, "U"), of_regime(from, "H")]);
        parts
    };
    let shards: Vec<Shard> = names
        .iter()
        .zip(regimes)
        .zip(halves(&train).into_iter().zip(halves(&held_back)))
        .map(|((name, regime), (train, held_back))| Shard {
            name: name.clone(),
            regime: regime.to_owned(),
            train,
            held_back,
        })
        .collect();
    for shard in &shards {
        if shard.train.is_empty() || shard.held_back.is_empty() {
            return Err(TrainerError::Config(format!(
                "hospital {} would get {} scans to train on and {} to evaluate: both must be at least 1; give more scans, \
                 and in a cases.csv with a column regime some of each of F, U and H",
                shard.name,
                shard.train.len(),
                shard.held_back.len()
            )));
        }
    }
    Ok(shards)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn case(id: usize, subject: usize, regime: &str) -> Case {
        Case {
            id: format!("c{id}"),
            subject: subject.to_string(),
            regime: Some(regime.into()),
            image: format!("{id}.nii.gz").into(),
            mask: None,
        }
    }

    /// A researcher splits a set over as many hospitals as the study names, whatever its scanners were.
    #[test]
    fn any_number_of_hospitals_gets_runs_of_persons() {
        let cases: Vec<Case> = (0..60).map(|i| case(i, i / 2, ["F", "U", "H"][i % 3])).collect();
        let names = ["a", "b", "c"].map(String::from);
        let shards = by_regime(&cases, &names, 5).unwrap();
        assert_eq!(shards.iter().map(|s| s.train.len() + s.held_back.len()).sum::<usize>(), 60);
        let persons = |shard: &Shard| -> BTreeSet<String> {
            shard.train.iter().chain(&shard.held_back).map(|case| case.subject.clone()).collect()
        };
        assert!(persons(&shards[0]).is_disjoint(&persons(&shards[1])) && shards[2].regime.is_empty());
    }

    fn names() -> [String; 4] {
        ["alder", "birch", "cedar", "damson"].map(String::from)
    }

    /// A person on both sides would make every figure of the demo too good.
    #[test]
    fn no_person_is_in_two_parts() {
        let cases: Vec<Case> = (0..120).map(|i| case(i, i / 2 + 1, ["F", "F", "U", "H"][i / 2 % 4])).collect();
        let shards = by_regime(&cases, &names(), 5).unwrap();
        let mut seen = BTreeSet::new();
        let mut count = 0;
        for part in shards.iter().flat_map(|shard| [&shard.train, &shard.held_back]) {
            let subjects: BTreeSet<_> = part.iter().map(|case| case.subject.clone()).collect();
            assert!(subjects.iter().all(|subject| seen.insert(subject.clone())), "a person is in two parts");
            count += part.len();
        }
        assert_eq!(count, cases.len());
    }

    /// Whoever downloads the public data set has no table beside it, and wants to see the demo all the same.
    #[test]
    fn without_regimes_persons_are_dealt_out() {
        let unknown = |i| Case { regime: None, ..case(i, i / 2, "") };
        let cases: Vec<Case> = (0..120).map(unknown).collect();
        let shards = by_regime(&cases, &names(), 5).unwrap();
        let sizes: Vec<usize> = shards.iter().map(|s| s.train.len() + s.held_back.len()).collect();
        assert_eq!(sizes.iter().sum::<usize>(), 120);
        assert!(sizes.iter().all(|size| *size >= 24), "{sizes:?}");
        assert!(shards.iter().all(|shard| shard.regime.is_empty()));
    }

    #[test]
    fn a_folder_that_lacks_a_regime_is_refused_with_the_way_out() {
        let cases: Vec<Case> = (0..20).map(|i| case(i, i, "F")).collect();
        let message = by_regime(&cases, &names(), 5).unwrap_err().to_string();
        assert!(message.contains("cedar") && message.contains("cases.csv"), "{message}");
    }
}
