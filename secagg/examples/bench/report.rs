//! A figure is a line; repetitions of the things compared are interleaved and the median is reported.
use std::time::{Duration, Instant};

/// One figure; `ratio` is value over limit, `budget` the least ratio that is good enough.
pub(crate) struct Figure<'a> {
    pub(crate) bench: &'a str,
    pub(crate) case: &'a str,
    pub(crate) metric: &'a str,
    pub(crate) value: f64,
    pub(crate) unit: &'a str,
    pub(crate) against: &'a str,
    pub(crate) ratio: Option<f64>,
    pub(crate) budget: Option<f64>,
}

impl Figure<'_> {
    pub(crate) fn print(&self) {
        let number = |x: Option<f64>| x.map_or("null".to_owned(), |x| format!("{x:.4}"));
        let met = match (self.ratio, self.budget) {
            (Some(ratio), Some(budget)) => (ratio >= budget).to_string(),
            _ => "null".to_owned(),
        };
        println!(
            r#"{{"bench":"{}","case":"{}","metric":"{}","value":{:.6},"unit":"{}","against":"{}","ratio":{},"budget":{},"met":{}}}"#,
            self.bench,
            self.case,
            self.metric,
            self.value,
            self.unit,
            self.against,
            number(self.ratio),
            number(self.budget),
            met
        );
    }
}

pub(crate) fn time(f: impl FnOnce()) -> Duration {
    let start = Instant::now();
    f();
    start.elapsed()
}

pub(crate) fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64()
}
