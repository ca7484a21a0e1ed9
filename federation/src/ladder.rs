//! The clinical ladder: what a model is trusted with, from running unseen to reading first.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One rung. The order of the variants is the order of trust.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum Stage {
    /// Runs beside care; nobody sees its answers but those who validate it.
    Shadow,
    /// Warns when a finding seems to have been missed, after the clinician has read.
    SafetyNet,
    /// Orders the work list; nothing is ever hidden or lowered.
    Prioritisation,
    /// Routes studies.
    Triage,
    /// Reads after a clinician, who keeps the decision.
    SecondReader,
    /// Reads first; a clinician still signs.
    PrimaryReader,
}

impl Stage {
    /// All stages, lowest trust first.
    pub const ALL: [Stage; 6] = [
        Stage::Shadow,
        Stage::SafetyNet,
        Stage::Prioritisation,
        Stage::Triage,
        Stage::SecondReader,
        Stage::PrimaryReader,
    ];

    /// The name as it stands in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Stage::Shadow => "Shadow",
            Stage::SafetyNet => "SafetyNet",
            Stage::Prioritisation => "Prioritisation",
            Stage::Triage => "Triage",
            Stage::SecondReader => "SecondReader",
            Stage::PrimaryReader => "PrimaryReader",
        }
    }
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Stage {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Stage::ALL.into_iter().find(|stage| stage.as_str() == text).ok_or_else(|| {
            format!(
                "stage {text:?} is not one of Shadow, SafetyNet, Prioritisation, Triage, SecondReader, PrimaryReader"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trust_grows_along_the_ladder_and_names_round_trip() {
        assert!(Stage::ALL.windows(2).all(|pair| pair[0] < pair[1]));
        for stage in Stage::ALL {
            assert_eq!(stage.as_str().parse::<Stage>().unwrap(), stage);
            assert_eq!(serde_json::to_value(stage).unwrap(), stage.as_str());
        }
    }
}
