//! The rounds as they happen: a table and progress bars in a terminal, plain lines elsewhere.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, IsTerminal, Read},
    process::{Child, ChildStdout, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::Value;

use super::{Federation, RESEARCH, TASKS};
use crate::{
    cluster::Cluster,
    error::{Error, Result},
};

/// Something changed.
enum Change {
    Round(Box<Value>),
    Task { site: String, task: Box<Value> },
    Study(Box<Value>),
}

/// Follows a study until it is over (its `Succeeded` condition is no longer Unknown) or nothing has been
/// heard of its rounds for `still`.
///
/// Returns how long each round took, by number.
pub fn follow(federation: &Federation, study: &str, still: Duration) -> Result<BTreeMap<u64, Duration>> {
    let (sender, changes) = channel();
    let hub = &federation.hub;
    let mut watches = vec![
        Watch::start(hub, RESEARCH, "trainingrounds", sender.clone(), Change::Round),
        Watch::start(hub, RESEARCH, "federatedstudies", sender.clone(), Change::Study),
    ];
    for site in &federation.sites {
        let name = site.name.clone();
        let change = move |task| Change::Task { site: name.clone(), task };
        watches.push(Watch::start(site, TASKS, "roundtasks", sender.clone(), change));
    }
    let mut screen = Screen::new(federation, study);
    let result = screen.run(&changes, still);
    watches.iter().for_each(Watch::stop);
    screen.close();
    result.map(|()| screen.durations)
}

/// `kubectl get --watch`, started again whenever it ends: an API server closes watches after a while.
struct Watch {
    running: Arc<Mutex<Running>>,
}

#[derive(Default)]
struct Running {
    stopped: bool,
    child: Option<Child>,
}

impl Watch {
    fn start(
        cluster: &Cluster,
        namespace: &'static str,
        kind: &'static str,
        sender: Sender<Change>,
        change: impl Fn(Box<Value>) -> Change + Send + 'static,
    ) -> Self {
        let running = Arc::new(Mutex::new(Running::default()));
        let (cluster, mine) = (cluster.clone(), Arc::clone(&running));
        thread::spawn(move || {
            while let Some(output) = spawn(&cluster, namespace, kind, &mine) {
                let objects = serde_json::Deserializer::from_reader(Lines(BufReader::new(output))).into_iter::<Value>();
                for object in objects.map_while(std::result::Result::ok) {
                    if sender.send(change(Box::new(object))).is_err() {
                        return;
                    }
                }
                thread::sleep(Duration::from_secs(1));
            }
        });
        Self { running }
    }

    fn stop(&self) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.stopped = true;
        if let Some(mut child) = running.child.take() {
            // Ending a watch that has ended by itself is no error.
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// Starts the next kubectl, unless the watch was stopped; its standard output.
fn spawn(cluster: &Cluster, namespace: &str, kind: &str, running: &Mutex<Running>) -> Option<ChildStdout> {
    let mut running = running.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(mut ended) = running.child.take() {
        ended.kill().ok();
        ended.wait().ok();
    }
    if running.stopped {
        return None;
    }
    let mut command = cluster.command("kubectl");
    command.args(["get", kind, "-n", namespace, "--watch", "-o", "json", "--request-timeout=0"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?;
    let output = child.stdout.take();
    running.child = Some(child);
    output
}

/// Reads what is there without waiting for a full buffer, so that an object is seen as soon as it is printed.
struct Lines<R>(BufReader<R>);

impl<R: Read> Read for Lines<R> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let ready = self.0.fill_buf()?;
        let n = ready.len().min(out.len());
        out[..n].copy_from_slice(&ready[..n]);
        self.0.consume(n);
        Ok(n)
    }
}

struct Screen {
    study: String,
    bars: Option<Bars>,
    started: Instant,
    /// When something else was seen last.
    moved: Instant,
    seen: BTreeMap<u64, (Instant, String)>,
    durations: BTreeMap<u64, Duration>,
}

struct Bars {
    all: MultiProgress,
    title: ProgressBar,
    sites: BTreeMap<String, ProgressBar>,
}

impl Screen {
    fn new(federation: &Federation, study: &str) -> Self {
        let bars = std::io::stderr().is_terminal().then(|| Bars::new(federation));
        Self {
            study: study.to_owned(),
            bars,
            started: Instant::now(),
            moved: Instant::now(),
            seen: BTreeMap::new(),
            durations: BTreeMap::new(),
        }
    }

    fn run(&mut self, changes: &Receiver<Change>, still: Duration) -> Result<()> {
        loop {
            let left = still.checked_sub(self.moved.elapsed()).ok_or_else(|| Error::Timeout {
                what: format!("the end of study {}", self.study),
                seconds: still.as_secs(),
                logs: "kubectl get trounds -n research -o yaml".into(),
                last: format!("{:?}", self.seen.values().last().map(|(_, line)| line)),
            })?;
            match changes.recv_timeout(left.min(Duration::from_secs(5))) {
                Ok(Change::Round(round)) if round["spec"]["study"] == self.study.as_str() => self.round(&round),
                Ok(Change::Task { site, task }) => self.task(&site, &task),
                Ok(Change::Study(study)) if self.is_over(&study) => return Ok(()),
                // A watch that ended is not the end of the study; standing still is.
                _ => {}
            }
        }
    }

    fn is_over(&self, study: &Value) -> bool {
        let over = super::wait::condition(study, "Succeeded").is_some_and(|(status, ..)| status != "Unknown");
        study["metadata"]["name"] == self.study.as_str() && over
    }

    fn round(&mut self, round: &Value) {
        let number = round["spec"]["number"].as_u64().unwrap_or_default();
        let line = describe(round);
        let now = Instant::now();
        let (since, last) = self.seen.entry(number).or_insert_with(|| (now, String::new()));
        if *last == line {
            return;
        }
        last.clone_from(&line);
        self.moved = now;
        let over = matches!(round["status"]["round"]["step"].as_str(), Some("Succeeded" | "Failed"));
        if over {
            self.durations.insert(number, since.elapsed());
        }
        match &self.bars {
            Some(bars) if over => bars.all.println(&line).unwrap_or_default(),
            Some(bars) => bars.title.set_message(line),
            None => eprintln!("[{:>5.0} s] {line}", self.started.elapsed().as_secs_f64()),
        }
    }

    fn task(&mut self, site: &str, task: &Value) {
        let Some(bar) = self.bars.as_ref().and_then(|bars| bars.sites.get(site)) else { return };
        let status = &task["status"];
        let (done, of) = status["progress"]
            .as_str()
            .and_then(|text| text.split_once('/'))
            .and_then(|(done, of)| Some((done.parse().ok()?, of.parse().ok()?)))
            .unwrap_or((0, 1));
        bar.set_length(of);
        bar.set_position(done);
        let kind = task["spec"]["kind"].as_str().unwrap_or_default();
        bar.set_message(format!("{kind} {}", status["reason"].as_str().unwrap_or_default()));
    }

    fn close(&self) {
        if let Some(bars) = &self.bars {
            bars.sites.values().for_each(ProgressBar::finish_and_clear);
            bars.title.finish_and_clear();
        }
    }
}

impl Bars {
    fn new(federation: &Federation) -> Self {
        let all = MultiProgress::new();
        let title = all.add(ProgressBar::no_length());
        title.set_style(style("{spinner} {msg}"));
        title.enable_steady_tick(Duration::from_millis(250));
        let bar = |name: &String| {
            let bar = all.add(ProgressBar::new(1));
            bar.set_style(style("  {prefix:10} {bar:30} {pos:>4}/{len:<4} {msg}"));
            bar.set_prefix(name.clone());
            (name.clone(), bar)
        };
        let sites = federation.sites.iter().map(|site| bar(&site.name)).collect();
        Self { all, title, sites }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// One line about a round: its step, that of an open attempt, the global figure, and every hospital's word.
pub fn describe(round: &Value) -> String {
    let state = &round["status"]["round"];
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let site = |site: &Value| {
        let dice: Vec<String> = site["dice"].as_array().into_iter().flatten().map(text).collect();
        let detail = if dice.is_empty() { text(&site["reason"]) } else { format!("Dice {}", dice.join("/")) };
        let mark = if site["contributed"] == true { "+" } else { "" };
        let lost = site["dropped"].as_str().map(|step| format!(" (out at {step})")).unwrap_or_default();
        format!("{}{mark}: {detail}{lost}", text(&site["site"]))
    };
    let sites: Vec<String> = state["sites"].as_array().into_iter().flatten().map(site).collect();
    let global = global(state).map(|dice| format!(" · global Dice {dice}")).unwrap_or_default();
    let open = |step: &str| format!(" · attempt {} {step}", state["attempt"]);
    let attempt = state["protocolStep"].as_str().map(open).unwrap_or_default();
    format!("round {} {}{attempt}{global} · {}", round["spec"]["number"], text(&state["step"]), sites.join(" · "))
}

/// The mean over all cases of all hospitals: what the gate saw, or, before it, the masked sum of all hospitals.
fn global(state: &Value) -> Option<String> {
    let total = &state["total"];
    let cases = total["cases"].as_f64().filter(|cases| *cases > 0.0);
    let summed = || Some(format!("{:.4}", total["dice"].as_str()?.parse::<f64>().ok()? / cases?));
    let dice = state["gate"]["global"].as_str().map(str::to_owned).or_else(summed)?;
    Some(match cases {
        Some(cases) => format!("{dice} over {cases} cases"),
        None => dice,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The line is all that a CI log shows of a round; it must name who is in and how good each is.
    #[test]
    fn a_line_names_contributors_and_their_dice() {
        let round = serde_json::json!({
            "spec": {"number": 2},
            "status": {"round": {"step": "Succeeded", "gate": {"global": "0.8500"}, "sites": [
                {"site": "alder", "reason": "Evaluated", "contributed": true, "dice": ["0.9", "0.8"]},
                {"site": "birch", "reason": "DeniedByPolicy"},
            ]}},
        });
        let expected = "round 2 Succeeded · global Dice 0.8500 · alder+: Dice 0.9/0.8 · birch: DeniedByPolicy";
        assert_eq!(describe(&round), expected);
    }

    /// While hospitals wait for each other, the line is what says at which step, and whom the sum goes on without.
    #[test]
    fn a_line_shows_the_step_of_an_attempt_who_fell_out_and_the_masked_figure() {
        let mut round = serde_json::json!({
            "spec": {"number": 1},
            "status": {"round": {"step": "Aggregating", "attempt": 1, "protocolStep": "Agree", "sites": [
                {"site": "alder", "reason": "Submitted", "member": true},
                {"site": "birch", "reason": "Missed", "dropped": "Upload"},
            ]}},
        });
        let expected = "round 1 Aggregating · attempt 1 Agree · alder: Submitted · birch: Missed (out at Upload)";
        assert_eq!(describe(&round), expected);
        round["status"]["round"] = serde_json::json!({
            "step": "Evaluating", "total": {"cases": 40, "dice": "34.000000"}, "sites": [],
        });
        assert_eq!(describe(&round), "round 1 Evaluating · global Dice 0.8500 over 40 cases · ");
    }
}
