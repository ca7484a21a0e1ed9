//! A figure is a line; repetitions of the things compared are interleaved and the median is reported.
use rustix::time::{ClockId, clock_gettime};

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

/// CPU seconds of this thread so far: on a busy machine it says more than the clock on the wall.
pub(crate) fn cpu() -> f64 {
    // Not /proc/thread-self/schedstat: that is brought up to date with the scheduler's tick, every 4 ms.
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// CPU seconds that `f` takes.
pub(crate) fn time(f: impl FnOnce()) -> f64 {
    let start = cpu();
    f();
    cpu() - start
}

pub(crate) fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}
