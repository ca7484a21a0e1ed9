//! A figure is a line; repetitions of the things compared are interleaved and the median is reported.

use std::time::{Duration, Instant};

/// Whether the ratio should be large or small.
pub(crate) enum Budget {
    AtLeast(f64),
    AtMost(f64),
    None,
}

/// One figure; `ratio` is the value over what it is compared with.
pub(crate) struct Figure<'a> {
    pub(crate) case: &'a str,
    pub(crate) metric: &'a str,
    pub(crate) value: f64,
    pub(crate) unit: &'a str,
    pub(crate) against: String,
    pub(crate) ratio: f64,
    pub(crate) budget: Budget,
}

impl Figure<'_> {
    pub(crate) fn print(self) {
        let (budget, met) = match self.budget {
            Budget::AtLeast(least) => (Some(least), Some(self.ratio >= least)),
            Budget::AtMost(most) => (Some(most), Some(self.ratio <= most)),
            Budget::None => (None, None),
        };
        let round = |value: f64| (value * 1e4).round() / 1e4;
        let line = serde_json::json!({
            "bench": "aggregate", "case": self.case, "metric": self.metric, "value": round(self.value),
            "unit": self.unit, "against": self.against, "ratio": round(self.ratio), "budget": budget, "met": met,
        });
        println!("{line}");
    }
}

pub(crate) fn time<T>(work: impl FnOnce() -> T) -> Duration {
    let start = Instant::now();
    std::hint::black_box(work());
    start.elapsed()
}

pub(crate) fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64()
}
