//! One acting model of a line in a hospital, whatever promotions there are.

use std::collections::BTreeMap;

use consilium_federation::Digest;
use consilium_federation::ladder::Stage;
use jiff::Timestamp;

use super::Standing;
use super::lack::Lack;
use crate::plan::above;

/// One promotion and where its model would stand if it were the only one.
#[derive(Clone, Debug, PartialEq)]
pub struct Promoted {
    /// Digest of the model.
    pub model: Digest,
    /// When the promotion was made.
    pub made: Timestamp,
    /// By [`super::standing`].
    pub standing: Standing,
}

/// Where the models of one line stand in one hospital.
#[derive(Clone, Debug, PartialEq)]
pub struct LineStanding {
    /// The model that acts, if any is asked for: the only one that may stand above Shadow.
    pub acting: Option<Digest>,
    /// Each model's standing.
    pub models: BTreeMap<Digest, Standing>,
}

impl LineStanding {
    /// The stage of the line: that of the acting model. None: it is not served.
    pub fn stage(&self) -> Option<Stage> {
        self.models.get(&self.acting?)?.effective
    }
}

/// Brings the promotions of one line to one standing for each model and one acting model.
///
/// Several promotions of one model: the lowest standing counts, so that another promotion never raises. Several models:
/// the one asked highest acts, of those the one whose promotion was made first, and the others stand on Shadow beside it.
/// Who acts hangs on what is asked alone, not on evidence or hazards: no hazard of one model raises another. To hand over,
/// ask for Shadow in the old model's promotion.
pub fn arbitrate(promotions: impl IntoIterator<Item = Promoted>) -> LineStanding {
    let mut models: BTreeMap<Digest, (Timestamp, Standing)> = BTreeMap::new();
    for Promoted { model, made, standing } in promotions {
        let merged = match models.remove(&model) {
            Some((first, other)) => (first.min(made), lower(other, standing)),
            None => (made, standing),
        };
        models.insert(model, merged);
    }
    let rank = |(model, (made, standing)): &(&Digest, &(Timestamp, Standing))| {
        (standing.asked, std::cmp::Reverse(*made), std::cmp::Reverse(**model))
    };
    let acting = models.iter().max_by_key(rank).map(|(model, _)| *model);
    let beside = |(model, (_, standing)): (Digest, (Timestamp, Standing))| {
        let standing = if Some(model) == acting { standing } else { in_shadow(standing) };
        (model, standing)
    };
    LineStanding { acting, models: models.into_iter().map(beside).collect() }
}

/// Of two standings of one model the lower, with what either asks and the earlier end.
fn lower(one: Standing, other: Standing) -> Standing {
    let asked = one.asked.min(other.asked);
    let until = one.until.into_iter().chain(other.until).min();
    let rank = |standing: &Standing| (standing.effective, standing.asked);
    let low = if rank(&other) < rank(&one) { other } else { one };
    // That the other promotion asks for less is why it stands no higher; what is asked is the lower of the two.
    let because = if low.effective >= Some(asked) { Vec::new() } else { low.because };
    Standing { asked, until, because, ..low }
}

fn in_shadow(standing: Standing) -> Standing {
    let effective = standing.effective.min(Some(Stage::Shadow));
    if effective == standing.effective {
        let taken = effective.map(|_| Lack::LineTaken);
        return Standing { missing: standing.missing.into_iter().chain(taken).collect(), ..standing };
    }
    Standing {
        effective,
        next: above(effective),
        because: vec![Lack::LineTaken],
        missing: vec![Lack::LineTaken],
        ..standing
    }
}
