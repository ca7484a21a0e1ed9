//! What an SRE sees of the hub: every `consilium_*` metric of the operator, registered in one place.
//!
//! Base units; labels are closed enums, plus the `site` of accepted hospitals and the `study` of those that there are,
//! removed with them. Never a round or a pod. [`describe`] is the source of the table in the docs.

mod labels;
pub mod studies;

use std::time::Duration;

use consilium_federation::round::Outcome;
use consilium_federation::{SiteName, StudyKey};
use jiff::{SignedDuration, Timestamp};
pub use labels::{Controller, ReconcileResult, Refusal, RoundStage};
use prometheus::core::Collector;
use prometheus::{
    Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};
use studies::{Figures, Studies};

/// Upper bounds of request and reconcile durations, seconds.
const QUICK: &[f64] = &[0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Upper bounds of stage durations, seconds: from an exchange of messages to half a day of training.
const LONG: &[f64] = &[0.5, 2.0, 10.0, 30.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 7200.0, 21600.0, 43200.0];

/// All metrics of the operator; a clone is the same set.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    request_seconds: HistogramVec,
    refused: IntCounterVec,
    connected: IntGaugeVec,
    two_agents: IntGaugeVec,
    clock_ahead: GaugeVec,
    last_contact: GaugeVec,
    certificate_expiry: GaugeVec,
    uploaded: IntCounterVec,
    downloaded: IntCounterVec,
    accepted: IntGauge,
    reconciles: IntCounterVec,
    reconcile_seconds: HistogramVec,
    stage_seconds: HistogramVec,
    rounds: IntCounterVec,
    earliest_deadline: Gauge,
    store_free: IntGauge,
    collected: IntCounter,
    store_promised: IntGauge,
    unreadable: IntGaugeVec,
    not_understood: IntCounter,
    store_volume: IntGauge,
    queue: IntGaugeVec,
    gateway_certificate: Gauge,
    studies: Studies,
}

/// One line of the docs' table of metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// Name, with its unit.
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// Its labels.
    pub labels: Vec<String>,
    /// What it counts.
    pub help: String,
}

/// Registers metrics and remembers how they are described.
#[derive(Default)]
pub(super) struct Builder {
    registry: Registry,
    described: Vec<Described>,
}

impl Builder {
    // Safety: names, labels and buckets are constants of this file; a test makes all of them.
    #[allow(clippy::expect_used)]
    fn add<C: Collector + Clone + 'static>(&mut self, kind: &'static str, made: prometheus::Result<C>) -> C {
        let metric = made.expect("the metric is well-formed");
        self.registry.register(Box::new(metric.clone())).expect("the metric's name is new");
        self.described.extend(metric.desc().into_iter().map(|desc| Described {
            name: desc.fq_name.clone(),
            kind,
            labels: desc.variable_labels.clone(),
            help: desc.help.clone(),
        }));
        metric
    }

    fn counter(&mut self, name: &str, labels: &[&str], help: &str) -> IntCounterVec {
        self.add("counter", IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn int_gauge(&mut self, name: &str, labels: &[&str], help: &str) -> IntGaugeVec {
        self.add("gauge", IntGaugeVec::new(Opts::new(name, help), labels))
    }

    fn gauge(&mut self, name: &str, labels: &[&str], help: &str) -> GaugeVec {
        self.add("gauge", GaugeVec::new(Opts::new(name, help), labels))
    }

    fn histogram(&mut self, name: &str, labels: &[&str], buckets: &[f64], help: &str) -> HistogramVec {
        self.add("histogram", HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels))
    }
}

/// Every metric of the operator, for the docs.
pub fn describe() -> Vec<Described> {
    build().1
}

fn build() -> (Metrics, Vec<Described>) {
    let mut b = Builder::default();
    let build_info = b.int_gauge("consilium_build_info", &["component", "version"], "Always 1; what is running.");
    build_info.with_label_values(&["operator", env!("CARGO_PKG_VERSION")]).set(1);
    let site = &["site"][..];
    let metrics = Metrics {
        requests: b.counter(
            "consilium_gateway_requests_total",
            &["method", "code"],
            "Calls of hospitals, by gRPC method and status code.",
        ),
        request_seconds: b.histogram(
            "consilium_gateway_request_duration_seconds",
            &["method"],
            QUICK,
            "Time to answer a call; for Watch, to open it.",
        ),
        refused: b.counter(
            "consilium_gateway_refused_total",
            &["reason"],
            "Calls refused because of who called or for which work.",
        ),
        two_agents: b.int_gauge(
            "consilium_site_two_agents",
            site,
            "1 while two agents speak with the hospital's certificate, and neither takes part.",
        ),
        clock_ahead: b.gauge(
            "consilium_site_clock_ahead_seconds",
            site,
            "By how much the hospital's clock is ahead of the hub's; below 0 it is behind.",
        ),
        connected: b.int_gauge("consilium_site_connected", site, "1 while a watch of the hospital is open, else 0."),
        last_contact: b.gauge(
            "consilium_site_last_contact_timestamp_seconds",
            site,
            "When the hospital last called, Unix time.",
        ),
        certificate_expiry: b.gauge(
            "consilium_site_certificate_expiry_timestamp_seconds",
            site,
            "When the certificate that the hospital last showed ends, Unix time.",
        ),
        uploaded: b.counter("consilium_uploads_bytes_total", site, "Bytes of chunks taken from the hospital."),
        downloaded: b.counter("consilium_downloads_bytes_total", site, "Bytes of objects given to the hospital."),
        accepted: b.add("gauge", IntGauge::new("consilium_sites_accepted", "Hospitals that may call.")),
        reconciles: b.counter(
            "consilium_reconcile_total",
            &["controller", "result"],
            "Reconciles, by controller and by the class of their end.",
        ),
        reconcile_seconds: b.histogram(
            "consilium_reconcile_duration_seconds",
            &["controller"],
            QUICK,
            "Time of one reconcile.",
        ),
        stage_seconds: b.histogram(
            "consilium_round_stage_duration_seconds",
            &["stage"],
            LONG,
            "Time that a round spent in a stage, observed when it leaves it.",
        ),
        rounds: b.counter("consilium_rounds_finished_total", &["outcome"], "Rounds that ended, by outcome."),
        earliest_deadline: b.add(
            "gauge",
            Gauge::new(
                "consilium_rounds_earliest_deadline_timestamp_seconds",
                "The earliest deadline of an open round's step, Unix time; +Inf when no round is open.",
            ),
        ),
        store_free: b.add(
            "gauge",
            IntGauge::new("consilium_store_free_bytes", "Bytes that are free on the volume of the blob store."),
        ),
        store_promised: b.add(
            "gauge",
            IntGauge::new(
                "consilium_store_promised_bytes",
                "Bytes of them that are promised: to uploads under way, and to what their sums will give.",
            ),
        ),
        collected: b.add(
            "counter",
            IntCounter::new(
                "consilium_store_collected_bytes_total",
                "Bytes of models that nothing named any more and that were taken out of the blob store.",
            ),
        ),
        unreadable: b.int_gauge(
            "consilium_unreadable_objects",
            &["kind"],
            "Objects of a kind that this version cannot read and leaves out, each with a condition that says why.",
        ),
        not_understood: b.add(
            "counter",
            IntCounter::new(
                "consilium_reports_not_understood_total",
                "Entries of hospitals' reports with a word that this version does not know: an agent is ahead of the hub.",
            ),
        ),
        store_volume: b.add("gauge", IntGauge::new("consilium_store_volume_bytes", "Size of the volume of the blob store.")),
        queue: b.int_gauge(
            "consilium_reconcile_queue_length",
            &["controller"],
            "Requests for a reconcile that no controller has taken yet.",
        ),
        gateway_certificate: b.add(
            "gauge",
            Gauge::new("consilium_gateway_certificate_expiry_timestamp_seconds", "When the gateway's certificate ends, Unix time."),
        ),
        studies: Studies::new(&mut b),
        registry: b.registry.clone(),
    };
    // Memory, CPU time, open files: the names that every program has them under. Only Linux has them.
    #[cfg(target_os = "linux")]
    let _ = b.registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()));
    metrics.refused.with_label_values(&[Refusal::StoreFull.as_str()]);
    // From zero on: an increase from nothing to one is none to Prometheus.
    for outcome in Outcome::ALL {
        metrics.rounds.with_label_values(&[&format!("{outcome:?}")]);
    }
    metrics.earliest_deadline(None);
    (metrics, b.described)
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// A fresh set, all at zero.
    pub fn new() -> Self {
        build().0
    }

    /// The Prometheus text format (version 0.0.4).
    pub fn text(&self) -> String {
        self.studies.write();
        // Encoding into a string fails only for a metric family without metrics, which `gather` leaves out.
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }

    /// A call of a hospital was answered.
    pub fn request(&self, method: &'static str, code: tonic::Code, took: Duration) {
        self.requests.with_label_values(&[method, &format!("{code:?}")]).inc();
        self.request_seconds.with_label_values(&[method]).observe(took.as_secs_f64());
    }

    /// A call was refused because of who called or for which work.
    pub fn refused(&self, reason: Refusal) {
        self.refused.with_label_values(&[reason.as_str()]).inc();
    }

    /// Two agents speak for a hospital, or no longer do.
    pub fn two_agents(&self, site: &SiteName, two: bool) {
        self.two_agents.with_label_values(&[site.as_str()]).set(two.into());
    }

    /// A hospital's clock is ahead of the hub's by so much.
    pub fn clock_ahead(&self, site: &SiteName, by: SignedDuration) {
        self.clock_ahead.with_label_values(&[site.as_str()]).set(by.as_secs_f64());
    }

    /// A watch of a hospital opened, or its last one closed.
    pub fn connected(&self, site: &SiteName, connected: bool) {
        self.connected.with_label_values(&[site.as_str()]).set(connected.into());
    }

    /// A hospital called.
    pub fn contact(&self, site: &SiteName, now: Timestamp) {
        self.last_contact.with_label_values(&[site.as_str()]).set(now.as_millisecond() as f64 / 1e3);
    }

    /// A hospital showed a certificate that ends then (Unix time, seconds).
    pub fn certificate_expiry(&self, site: &SiteName, at: i64) {
        self.certificate_expiry.with_label_values(&[site.as_str()]).set(at as f64);
    }

    /// Bytes of a chunk were taken from a hospital.
    pub fn uploaded(&self, site: &SiteName, bytes: usize) {
        self.uploaded.with_label_values(&[site.as_str()]).inc_by(bytes as u64);
    }

    /// Bytes of an object were given to a hospital.
    pub fn downloaded(&self, site: &SiteName, bytes: usize) {
        self.downloaded.with_label_values(&[site.as_str()]).inc_by(bytes as u64);
    }

    /// How many hospitals may call.
    pub fn accepted(&self, sites: usize) {
        self.accepted.set(sites as i64);
    }

    /// Removes the series of a hospital that may no longer call.
    pub fn forget_site(&self, site: &SiteName) {
        let label = &[site.as_str()];
        // A series that was never made cannot be removed, which is as good.
        let _ = self.connected.remove_label_values(label);
        let _ = self.two_agents.remove_label_values(label);
        let _ = self.clock_ahead.remove_label_values(label);
        let _ = self.last_contact.remove_label_values(label);
        let _ = self.certificate_expiry.remove_label_values(label);
        let _ = self.uploaded.remove_label_values(label);
        let _ = self.downloaded.remove_label_values(label);
    }

    /// A reconcile ended.
    pub fn reconciled(&self, controller: Controller, result: ReconcileResult, took: Duration) {
        self.reconciles.with_label_values(&[controller.as_str(), result.as_str()]).inc();
        self.reconcile_seconds.with_label_values(&[controller.as_str()]).observe(took.as_secs_f64());
    }

    /// A round left a stage after this time in it.
    pub fn stage(&self, stage: RoundStage, took: Duration) {
        self.stage_seconds.with_label_values(&[stage.as_str()]).observe(took.as_secs_f64());
    }

    /// The earliest deadline of an open round's step.
    pub fn earliest_deadline(&self, at: Option<Timestamp>) {
        self.earliest_deadline.set(at.map_or(f64::INFINITY, |at| at.as_millisecond() as f64 / 1e3));
    }

    /// Bytes that are free on the store's volume, and those of them that are promised.
    pub fn store_space(&self, free: u64, promised: u64) {
        self.store_free.set(i64::try_from(free).unwrap_or(i64::MAX));
        self.store_promised.set(i64::try_from(promised).unwrap_or(i64::MAX));
    }

    /// Size of the store's volume.
    pub fn store_volume(&self, bytes: u64) {
        self.store_volume.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// So many requests wait for a controller.
    pub fn queued(&self, controller: Controller, requests: usize) {
        self.queue.with_label_values(&[controller.as_str()]).set(requests as i64);
    }

    /// The gateway's certificate ends then (Unix time, seconds).
    pub fn gateway_certificate(&self, at: i64) {
        self.gateway_certificate.set(at as f64);
    }

    /// Where a study is. Not noted when it turns out to be gone, which is asked while nobody can forget it.
    pub fn study(&self, key: StudyKey, figures: Figures, is: impl FnOnce() -> bool) {
        self.studies.put(key, figures, is);
    }

    /// Removes the series of a study that is gone.
    pub fn forget_study(&self, key: &StudyKey) {
        self.studies.forget(key);
    }

    /// Bytes were taken out of the store.
    pub fn collected(&self, bytes: u64) {
        self.collected.inc_by(bytes);
    }

    /// Entries of a report were not understood.
    pub fn not_understood(&self, entries: usize) {
        self.not_understood.inc_by(entries as u64);
    }

    /// How many objects of a kind cannot be read.
    pub fn unreadable(&self, kind: &str, objects: usize) {
        self.unreadable.with_label_values(&[kind]).set(objects as i64);
    }

    /// A round ended.
    pub fn round_finished(&self, outcome: Outcome) {
        self.rounds.with_label_values(&[&format!("{outcome:?}")]).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Alerts and dashboards are written against these names; a name without the prefix or a unit escapes them.
    #[test]
    fn every_metric_is_prefixed_described_and_labelled_from_a_closed_set() {
        let allowed = ["method", "code", "reason", "site", "study", "controller", "result", "stage", "outcome", "kind"];
        for metric in describe() {
            assert!(metric.name.starts_with("consilium_") && !metric.help.is_empty(), "{metric:?}");
            assert_eq!(metric.kind == "counter", metric.name.ends_with("_total"), "{metric:?}");
            let info = metric.name == "consilium_build_info";
            assert!(info || metric.labels.iter().all(|l| allowed.contains(&l.as_str())), "{metric:?}");
        }
    }

    /// The first round that fails must raise the alert, not only the second.
    #[test]
    fn every_outcome_is_counted_from_zero() {
        let text = Metrics::new().text();
        for outcome in Outcome::ALL {
            assert!(text.contains(&format!("consilium_rounds_finished_total{{outcome=\"{outcome:?}\"}} 0")), "{text}");
        }
    }

    /// Without this a hospital that left would be shown, and alerted on, for ever.
    #[test]
    fn the_series_of_a_hospital_go_with_it() {
        let metrics = Metrics::new();
        let site: SiteName = "alder".parse().unwrap();
        metrics.connected(&site, true);
        metrics.contact(&site, Timestamp::UNIX_EPOCH);
        metrics.certificate_expiry(&site, 5);
        metrics.two_agents(&site, true);
        metrics.clock_ahead(&site, SignedDuration::from_secs(5));
        metrics.uploaded(&site, 3);
        metrics.downloaded(&site, 3);
        assert_eq!(metrics.text().matches("site=\"alder\"").count(), 7);
        metrics.forget_site(&site);
        assert!(!metrics.text().contains("alder"));
    }
}
